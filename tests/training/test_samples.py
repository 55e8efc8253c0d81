"""The stream of training samples: whole pictures where the original takes them, files decoded once, bad ones passed."""

import io
import json
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from idcompress import registry
from idcompress.adapters import training
from idcompress.bench.training_samples import TrainingSamples, held_out
from idcompress.errors import IdcError
from idcompress.images.degrade import sharpen
from idcompress.images.photo_sets import Photograph, Subset


def noise(path, seed, size=(96, 64)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def samples_of(photos, task="ip2p", **changes):
    settings = {"size": 32, "count": len(photos), "seed": 0, "prompts": [], "flip": False}
    return TrainingSamples(registry.load("task", task).Task(), photos, **settings | changes)


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        noise(tmp_path / f"{i}.png", i)
    return registry.load("data", "photographs").load(str(tmp_path), "all")


@pytest.fixture
def pairs(tmp_path):
    """Two edited pairs as InstructPix2Pix's authors lay them out."""
    for number in ("0000000", "0000001"):
        for place in (0, 1):
            noise(tmp_path / number / f"7_{place}.jpg", place, (64, 64))
        (tmp_path / number / "prompt.json").write_text(json.dumps({"edit": "blur it"}))
    (tmp_path / "seeds.json").write_text(json.dumps([["0000000", ["7"]], ["0000001", ["7"]]]))
    return registry.load("data", "instruct_pix2pix").load(str(tmp_path), "all")


def test_edited_pairs_are_whole_pictures(pairs):
    for photos in (pairs, Subset(pairs, [0, 1])):
        for number in range(4):
            example, bad = samples_of(photos)(number)
            for value, photo in ((example.image, pairs[0]), (example.target, pairs[0].target)):
                whole = photo.open().resize((32, 32), Image.Resampling.LANCZOS)
                assert torch.equal((value * 255).round().byte().permute(1, 2, 0), torch.from_numpy(np.array(whole)))
            assert example.prompt == "blur it"
            assert not bad


def test_photographs_are_cut_at_random(folder):
    made = samples_of(folder)
    crops = [made(number)[0].image for number in (0, 4, 8)]
    assert all(crop.shape == (3, 32, 32) for crop in crops)
    assert not torch.equal(crops[0], crops[1])
    assert torch.equal(crops[1], samples_of(folder)(4)[0].image)  # the number alone decides


def test_sharpened_photographs_are_degraded_and_wanted(folder):
    plain, made = samples_of(folder, "stablesr")(1)[0], samples_of(folder, "stablesr", sharpened=True)(1)[0]
    assert torch.equal(made.target, sharpen(plain.target)) and not torch.equal(made.target, plain.target)
    assert not torch.equal(made.image, plain.image)


def test_both_pictures_of_a_pair_are_sharpened(pairs):
    plain, made = samples_of(pairs)(0)[0], samples_of(pairs, sharpened=True)(0)[0]
    assert torch.equal(made.image, sharpen(plain.image)) and torch.equal(made.target, sharpen(plain.target))


def test_every_epoch_visits_each_photograph_once(folder):
    made = samples_of(folder, count=3)
    for epoch in range(3):
        names = [made(number)[0].photo for number in range(3 * epoch, 3 * epoch + 3)]
        assert sorted(names) == sorted(photo.digest for photo in folder[:3])


@pytest.mark.parametrize(("few", "times"), [(16, 4), (3, 12)])
def test_few_photographs_are_decoded_once(folder, few, times, monkeypatch):
    opened = []
    original = Photograph.open
    monkeypatch.setattr(Photograph, "open", lambda self: opened.append(self.name) or original(self))
    monkeypatch.setattr("idcompress.bench.training_samples._FEW", few)
    made = samples_of(folder)
    for number in range(12):
        made(number)
    assert len(opened) == times


def test_a_bad_photograph_is_named_and_the_next_one_taken(folder, tmp_path):
    (tmp_path / "1.png").write_bytes(b"no picture")
    made = [samples_of(folder)(number) for number in range(4)]
    assert sorted(name for _, bad in made for name in bad) == ["1"]
    assert all("1.png" in reason for _, bad in made for reason in bad.values())
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(IdcError, match=r"no photograph can be read; the first: .*\.png"):
        samples_of(folder)(0)


@pytest.mark.parametrize("error", [struct.error, SyntaxError, OSError, ValueError, KeyError, RuntimeError, MemoryError])
def test_whatever_is_raised_for_a_photograph_it_is_skipped(folder, monkeypatch, error):
    original = Photograph.open

    def fail(photo):
        if photo.name == "1":
            raise error("bad")
        return original(photo)

    monkeypatch.setattr(Photograph, "open", fail)
    skipped = [bad for _, bad in map(samples_of(folder), range(4)) if bad]
    assert skipped == [{"1": f"{error.__name__}: {error('bad')}"}]


def test_some_photographs_are_held_out(folder):
    assert [photo.name for photo in held_out(folder, 8)] == ["3"]
    with pytest.raises(IdcError, match="at least 2 photographs"):
        held_out(Subset(folder, [0]), 8)


def jpeg(seed):
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()


@pytest.fixture
def damaged_tar(tmp_path, monkeypatch):
    """Eight captioned images in a shard, of which the fourth is cut short."""
    monkeypatch.setattr("idcompress.datasets.shards.CACHE", tmp_path / "cache")
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for i in range(8):
            data = jpeg(i)[:300] if i == 3 else jpeg(i)
            entry = tarfile.TarInfo(f"{i:06d}.jpg")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return registry.load("data", "shards").load(str(tmp_path), "all"), "00000/000003"


@pytest.fixture
def damaged_parquet(tmp_path):
    """Eight edited pairs, of which the fourth's result is no image."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    before = [{"bytes": jpeg(i), "path": None} for i in range(8)]
    after = [{"bytes": b"cut" if i == 3 else jpeg(i), "path": None} for i in range(8)]
    pictures = {"original_image": arrow.array(before, image), "edited_image": arrow.array(after, image)}
    texts = {name: [f"text {i}" for i in range(8)] for name in ("original_prompt", "edit_prompt", "edited_prompt")}
    parquet.write_table(arrow.table(pictures | texts), tmp_path / "train.parquet", row_group_size=3)
    return registry.load("data", "instruct_pix2pix").load(str(tmp_path), "all"), "train/1_0"


@pytest.mark.parametrize("kind", ["damaged_tar", "damaged_parquet"])
def test_a_damaged_member_of_a_shard_is_skipped_counted_and_named(kind, request):
    photos, name = request.getfixturevalue(kind)
    made = [samples_of(photos)(number) for number in range(8)]
    assert len(made) == 8
    assert [set(bad) for _, bad in made if bad] == [{name}]
    said = []
    with pytest.raises(IdcError, match=f"1 of 8 photographs cannot be read, more than 1 %: {name};"):
        for number, (example, bad) in enumerate(made):
            batch = training.TrainingBatch([number], [example], bad)
            training.UnreadableImages(8, said.append).on_train_batch_start(None, None, batch, number)
    assert len(said) == 1
    assert said[0].startswith(f"{name} is left out: ")
