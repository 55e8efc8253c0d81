"""Every data set in its documented layout: what is listed, how it is split, and what is said of a damaged one."""

import itertools
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from conftest import colour, jpeg, put, write_tar
from PIL import Image

from idcompress import registry
from idcompress.errors import IdcError
from idcompress.images.photo_sets import SPLITS
from idcompress.images.pictures import crop_pair, to_pil


def load(name, *arguments, **options):
    return registry.load("data", name).load(*arguments, **options)


def names(found):
    return [photo.name for photo in found]


def splits(name, path, **options):
    return {split: load(name, str(path), split, **options) for split in SPLITS}


def are_apart(found):
    """Nothing that trains is evaluated on, and searches and evaluations share nothing."""
    sets = {split: {photo.digest for photo in photos} for split, photos in found.items()}
    return not sets["evaluate"] & (sets["train"] | sets["search"])


# order


@pytest.mark.parametrize("name", ["tables", "shards", "pairs"])
def test_an_order_is_a_permutation_that_seed_and_epoch_decide(name, request):
    folder = request.getfixturevalue(name)
    found = load({"shards": "shards"}.get(name, "instruct_pix2pix"), str(folder), "all")
    orders = [found.order(seed, epoch) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert all(order.dtype == np.int64 for order in orders)
    assert all(sorted(order.tolist()) == list(range(len(found))) for order in orders)
    assert orders[0].tolist() == orders[1].tolist()
    assert len({tuple(order.tolist()) for order in orders}) == 3


@pytest.mark.parametrize("name", ["tables", "shards"])
def test_an_order_keeps_one_shard_open_at_a_time(name, request):
    found = load({"shards": "shards"}.get(name, "instruct_pix2pix"), str(request.getfixturevalue(name)), "all")
    visited = [found.shard(index) for index in found.order(3, 5)]
    changes = sum(a != b for a, b in itertools.pairwise(visited))
    assert changes == len(set(visited)) - 1 > 0
    assert found.order(3, 5).tolist() != sorted(found.order(3, 5).tolist())


# listing


@pytest.mark.parametrize("name", ["photographs", "coco", "super_resolution", "instruct_pix2pix"])
def test_nothing_is_opened_before_it_is_used(name, tmp_path, request):
    if name in ("photographs", "super_resolution"):
        folder = tmp_path
        for i in range(4):
            put(tmp_path / "set_HR" / f"{i}.jpg", 50 * i).write_bytes(jpeg(50 * i) + bytes(i))  # all sizes differ
    else:
        folder = request.getfixturevalue({"coco": "coco", "instruct_pix2pix": "pairs"}[name])
    found = {split: load(name, str(folder), split) for split in SPLITS}
    shutil.rmtree(folder)
    for photos in found.values():
        assert len(photos) == len(photos.order(0, 0)) > 0
        with pytest.raises(IdcError, match="there is no"):
            photos[0].open()


def test_a_set_is_listed_quickly_and_in_little_memory(tmp_path):
    """A tenth of InstructPix2Pix's size: the whole of it would be ten times these bounds."""
    import time
    import tracemalloc

    listed = [[f"{i:07d}", [str(10**9 + 7 * i + j) for j in range(4)]] for i in range(7_500)]
    (tmp_path / "seeds.json").write_text(json.dumps(listed))
    for name, seeds in listed:
        (tmp_path / name).mkdir()
        for file in ("prompt.json", *(f"{seed}_{number}.jpg" for seed in seeds for number in (0, 1))):
            (tmp_path / name / file).touch()
    began = time.process_time()
    load("instruct_pix2pix", str(tmp_path), "all").order(0, 0)
    took = time.process_time() - began
    tracemalloc.start()  # which makes it four times slower
    found = load("instruct_pix2pix", str(tmp_path), "all")
    order = found.order(0, 0)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == len(order) == 30_000
    assert took < 1
    assert kept < 10e6


@pytest.mark.parametrize("name", ["instruct_pix2pix", "coco", "shards"])
def test_a_set_survives_the_way_to_another_process(name, request):
    folder = request.getfixturevalue({"instruct_pix2pix": "tables", "coco": "coco", "shards": "shards"}[name])
    found = load(name, str(folder), "all")
    first = found[1].digest  # a file is open now
    copy = pickle.loads(pickle.dumps(found))
    assert (copy.digest, len(copy), copy[1].digest) == (found.digest, len(found), first)
    assert copy.order(0, 3).tolist() == found.order(0, 3).tolist()


def test_a_listing_has_a_digest(pairs):
    found = splits("instruct_pix2pix", pairs)
    assert len({photos.digest for photos in found.values()}) == 4
    assert load("instruct_pix2pix", str(pairs), "train").digest == found["train"].digest


@pytest.mark.parametrize("name", registry.names("data"))
def test_a_wrong_folder_is_one_line_of_what_was_wanted_and_found(name, tmp_path):
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "sub").mkdir()
    with pytest.raises(IdcError) as error:
        load(name, str(tmp_path), "train")
    assert str(tmp_path) in str(error.value)
    assert "readme.md" in str(error.value) or "1 x .md" in str(error.value)
    assert "\n" not in str(error.value)
    for path in (str(tmp_path / "nowhere"), *([] if name == "photographs" else [None])):
        with pytest.raises(IdcError, match=r"nowhere|None|null"):
            load(name, path, "train")


@pytest.mark.parametrize("name", registry.names("data"))
def test_an_unknown_split_is_refused(name, request, tmp_path):
    fixtures = {"instruct_pix2pix": "pairs", "coco": "coco", "shards": "shards"}
    put(tmp_path / "a.jpg", 1)
    folder = request.getfixturevalue(fixtures[name]) if name in fixtures else tmp_path
    with pytest.raises(IdcError, match="did you mean 'search'"):
        load(name, str(folder), "serach")


# photographs


def test_photographs_of_several_folders_with_captions(tmp_path):
    put(tmp_path / "one" / "0001.jpg", 10)
    put(tmp_path / "two" / "0001.jpg", 20)
    put(tmp_path / "two" / "class" / "0002.jpg", 30)
    (tmp_path / "two" / "0001.txt").write_text("a caption\n")
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    found = load("photographs", folders, "all")
    assert {photo.name: photo.prompt for photo in found} == {
        "one/0001": "",
        "two/0001": "a caption",
        "two/class/0002": "",
    }
    assert [colour(photo.open()) for photo in found] == [10, 20, 30]
    assert names(load("photographs", folders, "train")) == names(load("photographs", folders, "search"))
    with pytest.raises(IdcError, match="hold files of the same names"):
        load("photographs", [folders[0], folders[0]], "all")


def test_halves_tell_files_of_one_size_apart(tmp_path):
    for i, value in enumerate((1, 2, 3, 2)):
        (tmp_path / f"{i}.ppm").write_bytes(b"P6 64 64 255\n" + bytes(3 * 64 * 64 - 1) + bytes([value]))
    found = {split: load("photographs", str(tmp_path), split) for split in SPLITS}
    assert names(found["search"]) == ["0", "2"]
    assert names(found["evaluate"]) == ["1"]  # of the two equal ones the first
    assert are_apart(found)


def test_packaged_photographs_are_the_default():
    assert len(load("photographs", None, "all")) == 9
    assert names(load("photographs", None, "train")) == names(load("photographs", None, "search"))
    assert load("photographs", None, "evaluate").own_splits


# InstructPix2Pix


def test_pairs_in_folders(pairs):
    found = splits("instruct_pix2pix", pairs)
    assert [len(found[split]) for split in SPLITS] == [54, 3, 3, 60]
    assert names(found["search"]) == ["0000036/136", "0000036/236", "0000037/137"]
    photo = found["evaluate"][1]
    assert (photo.name, photo.prompt) == ("0000038/238", "edit 38")
    assert photo.captions == ("scene 38", "edited scene 38")
    assert (colour(photo.open()), colour(photo.target.open())) == (176, 196)
    assert are_apart(found)
    assert all(photos.own_splits for photos in found.values())


def test_prompts_without_captions_and_damaged_ones(pairs):
    found = load("instruct_pix2pix", str(pairs), "all")
    (pairs / "0000000" / "prompt.json").write_text('{"edit": "only this"}')
    assert (found[0].prompt, found[0].captions) == ("only this", None)
    (pairs / "0000000" / "prompt.json").write_text('{"edit": "only th')
    with pytest.raises(IdcError, match=r"0000000/prompt\.json is damaged"):
        found[0]
    (pairs / "seeds.json").write_text('{"a": 1}')
    with pytest.raises(IdcError, match=r"seeds\.json is damaged"):
        load("instruct_pix2pix", str(pairs), "all")


@pytest.fixture
def told(monkeypatch):
    """The lines that were said of listings."""
    from idcompress.images import pictures

    lines = []
    monkeypatch.setattr(pictures, "warn", lines.append)
    return lines


def test_pairs_of_a_partial_download(pairs, told):
    """Half of the folders, one without its prompt, one with one pair of two, one with half a pair."""
    for number in range(20, 40):
        shutil.rmtree(pairs / f"{number:07d}")
    (pairs / "0000003" / "prompt.json").unlink()
    (pairs / "0000004" / "204_1.jpg").unlink()
    (pairs / "0000005" / "105_0.jpg").unlink()
    found = splits("instruct_pix2pix", pairs)
    assert [len(found[split]) for split in SPLITS] == [24, 2, 1, 27]  # of 18 instructions
    for photos in found.values():
        for photo in photos:
            photo.open(), photo.target.open()
    assert are_apart(found)
    assert told == [
        f"{pairs / 'seeds.json'}: 33 of 60 pairs are not there and are left out: "
        "0000003/103, 0000004/204, 0000005/105 and 30 more"
    ]
    for folder in pairs.glob("0*"):
        shutil.rmtree(folder)
    with pytest.raises(IdcError, match=r"lists 60 pairs, and none is there whole; want .*0000000.*found seeds\.json"):
        load("instruct_pix2pix", str(pairs), "evaluate")


@pytest.mark.parametrize("suffix", ["png", "webp", "jpeg"])
def test_pairs_in_other_formats(pairs, told, suffix):
    for path in pairs.rglob("*.jpg"):
        with Image.open(path) as image:
            image.save(path.with_suffix(f".{suffix}"), **({"lossless": True} if suffix == "webp" else {}))
        path.unlink()
    found = load("instruct_pix2pix", str(pairs), "all")
    assert len(found) == 60 and told == []
    assert found[5].open().size == found[5].target.open().size
    assert abs(colour(found[5].target.open()) - colour(found[5].open()) - 20) <= 2


def test_of_a_list_of_edits_the_first_counts(pairs):
    place = pairs / "0000000" / "prompt.json"
    place.write_text(json.dumps({"edit": ["make it red", "make it blue"]}))
    assert load("instruct_pix2pix", str(pairs), "all")[0].prompt == "make it red"
    place.write_text(json.dumps({"edit": 5}))
    with pytest.raises(IdcError, match="edit must be a text, got int"):
        load("instruct_pix2pix", str(pairs), "all")[0]


def test_linked_folders_of_pairs_tables_and_shards(pairs, tmp_path):
    (tmp_path / "disk").mkdir()
    (pairs / "0000000").rename(tmp_path / "disk" / "0000000")
    (pairs / "0000000").symlink_to(tmp_path / "disk" / "0000000")
    assert len(load("instruct_pix2pix", str(pairs), "all")) == 60


def test_linked_folders_of_shards(shards, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "disk").symlink_to(shards)
    assert len(load("shards", str(tmp_path / "links"), "all")) == 20


def test_captions_in_shards_by_any_key(tmp_path, told, monkeypatch):
    from idcompress.datasets import shards as module

    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    members = {f"{i}.jpg": jpeg(10 * i) for i in range(4)}
    for i, row in enumerate(({"edit_prompt": "one"}, {"text": ["two", "x"]}, {"caption": None, "text": "thr\u2028ee"})):
        members[f"{i}.json"] = json.dumps(row).encode()
    found = load("shards", str(write_tar(tmp_path / "a.tar", members)), "all")
    assert [photo.prompt for photo in found] == ["one", "two", "thr\u2028ee", ""]
    assert told == [f"data.path={tmp_path / 'a.tar'}: 1 of 4 images have no caption"]


def test_captions_of_coco_that_fit_no_image_are_told(coco, tmp_path, told):
    text = '000000000146.jpg,"one\u2028two,\nthree"\n000000000999.jpg,x\n'
    (tmp_path / "own.csv").write_text(f"file_name,caption\n{text}")
    found = load("coco", str(coco), "all", captions_file=str(tmp_path / "own.csv"))
    assert [photo.prompt for photo in found] == ["one\u2028two,\nthree"]
    assert len(told) == 2 and told[0].startswith("5 images of") and told[1].startswith("1 captions of")


def test_the_real_pairs(shared):
    folder = shared / "data" / "ip2p_layout"
    if not folder.is_dir():
        pytest.skip("the shared folder has no InstructPix2Pix pairs")
    found = load("instruct_pix2pix", str(folder), "all")
    assert len(found) == 4
    assert found[0].prompt == "Make it look like a painting"
    for photo in found:
        assert photo.open().size == photo.target.open().size == (512, 512)
        assert photo.digest != photo.target.digest
    with pytest.raises(IdcError, match="search split is empty"):
        load("instruct_pix2pix", str(folder), "search")


def test_pairs_in_parquet_files(tables):
    found = splits("instruct_pix2pix", tables)
    assert [len(found[split]) for split in SPLITS] == [36, 2, 2, 40]
    for split, first in (("train", 0), ("search", 36), ("evaluate", 38), ("all", 0)):
        for i, photo in enumerate(found[split], start=first):
            assert photo.prompt == f"edit {i}"
            assert photo.captions == (f"scene {i}", f"edited scene {i}")
            assert (colour(photo.open()), colour(photo.target.open())) == (2 * i, 2 * i + 100)
    assert are_apart(found)


def test_pairs_of_one_instruction_are_in_one_split(tmp_path):
    """Both cuts fall inside a run of pairs that share instruction and scene: rows 36 and 38 of 40."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    pictures = arrow.array([{"bytes": jpeg(i), "path": None} for i in range(40)], image)
    runs = [(35, 37), (37, 39)]
    shared = [next((first for first, last in runs if first <= i < last), i) for i in range(40)]
    columns = {name: arrow.array([f"{name} {i}" for i in shared]) for name in ("original_prompt", "edit_prompt")}
    columns |= {"original_image": pictures, "edited_image": pictures, "edited_prompt": columns["edit_prompt"]}
    parquet.write_table(arrow.table(columns), tmp_path / "train.parquet", row_group_size=6)
    found = splits("instruct_pix2pix", tmp_path)
    assert [len(found[split]) for split in SPLITS] == [37, 2, 1, 40]
    prompts = [{photo.prompt for photo in found[split]} for split in ("train", "search", "evaluate")]
    assert not prompts[0] & prompts[1] and not prompts[1] & prompts[2]


def test_parquet_files_are_read_a_row_group_at_a_time(tables, monkeypatch):
    from idcompress.datasets import instruct_pix2pix

    read = []
    original = instruct_pix2pix._read_group
    monkeypatch.setattr(instruct_pix2pix, "_read_group", lambda *part: read.append(part) or original(*part))
    found = load("instruct_pix2pix", str(tables), "all")
    assert not read
    for index in found.order(0, 0):
        found[index].open()
    assert len(read) == len(set(read)) == 6  # 8 + 8 + 4 rows in each of two files


def test_damaged_parquet_files_are_named(tables):
    import pyarrow
    import pyarrow.parquet

    path = sorted((tables / "data").glob("*.parquet"))[1]
    found = load("instruct_pix2pix", str(tables), "all")
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes(len(data) - 300) + data[-250:])
    with pytest.raises(IdcError, match=f"{path.name}.*damaged"):
        found[-1].open()
    path.write_bytes(data[:-20])
    with pytest.raises(IdcError, match=f"{path.name}.*damaged"):
        load("instruct_pix2pix", str(tables), "all")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), path)
    with pytest.raises(IdcError, match="lacks the columns original_image"):
        load("instruct_pix2pix", str(tables), "all")


def test_rows_without_an_image_are_named(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    columns = {name: ["x", "x"] for name in ("original_prompt", "edit_prompt", "edited_prompt")}
    for name in ("original_image", "edited_image"):
        columns[name] = arrow.array([{"bytes": b"no image", "path": "a"}, {"bytes": None, "path": "a"}], image)
    parquet.write_table(arrow.table(columns), tmp_path / "train.parquet")
    found = load("instruct_pix2pix", str(tmp_path), "all")
    with pytest.raises(IdcError, match=r"train/0_0 in .*train\.parquet is no image"):
        found[0].open()
    with pytest.raises(IdcError, match=r"train\.parquet, row group 0, row 1: edited_image holds no image bytes"):
        found[1].target.open()


# COCO


def test_coco_by_its_lowest_annotation(coco):
    found = splits("coco", coco)
    assert names(found["train"]) == ["000000000009", "000000000016", "000000000023"]
    assert names(found["search"]) == ["000000000139", "000000000153", "000000000167"]
    assert names(found["evaluate"]) == ["000000000146", "000000000160"]
    assert len(found["all"]) == 5
    assert found["search"][0].prompt == "caption 1 of 139"  # the later one has the lower id
    assert colour(found["search"][0].open()) == 139
    assert are_apart(found)


def test_coco_with_every_caption(coco):
    found = load("coco", str(coco), "evaluate", captions="all")
    assert names(found) == ["000000000146", "000000000146_1", "000000000160", "000000000160_1"]
    assert [photo.prompt for photo in found[:2]] == ["caption 1 of 146", "caption 0 of 146"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("blip.json", '{"000000000146.jpg": "a grey, plain square"}'),
        ("blip.json", '[{"image_id": 146, "caption": "a grey, plain square "}, {"image_id": 9, "caption": "x"}]'),
        ("blip.csv", 'file_name,score,caption\n000000000146.jpg,1,"a grey, plain square"\n'),
        ("blip.txt", "\ufeff000000000146.jpg\ta grey, plain square\n\n"),
    ],
)
def test_captions_of_another_file_take_the_annotations_place(coco, tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.rmtree(coco / "annotations")
    found = load("coco", str(coco), "all", captions_file=str(tmp_path / name))
    assert [(photo.name, photo.prompt) for photo in found] == [("000000000146", "a grey, plain square")]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("blip.json", "{", "is not JSON"),
        ("blip.json", '{"000000000146.jpg": 3}', "captions_file=.*want .json with"),
        ("blip.json", '[{"image": 146}]', "captions_file=.*got 'image_id'"),
        ("blip.csv", "000000000146.jpg,a square\n1,2\n", "the columns file_name and caption.*got 'file_name'"),
        ("blip.txt", "000000000146.jpg\n", "lines like 000000000139.jpg a room"),
        ("blip.yaml", "a: b", "ends in .yaml"),
        ("blip.txt", "146.jpg a square", r"blip.txt names no image of .*val2017, which holds 000000000001.jpg"),
    ],
)
def test_caption_files_that_are_wrong_are_one_line(coco, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(IdcError, match=words) as error:
        load("coco", str(coco), "all", captions_file=str(tmp_path / name))
    assert "\n" not in str(error.value)
    with pytest.raises(IdcError, match=r"there is no .*gone\.json; .* holds"):
        load("coco", str(coco), "all", captions_file=str(tmp_path / "gone.json"))


def test_annotations_that_are_missing_or_wrong(coco):
    path = coco / "annotations" / "captions_val2017.json"
    for text, words in (
        ("{", "is not JSON"),
        ("[]", "not as COCO's"),
        ('{"images": []}', "not as COCO's.*annotations"),
    ):
        path.write_text(text)
        with pytest.raises(IdcError, match=words):
            load("coco", str(coco), "search")
    path.unlink()
    with pytest.raises(IdcError, match=r"there is no .*captions_val2017\.json; .* holds captions_train2017"):
        load("coco", str(coco), "search")
    shutil.rmtree(coco / "train2017")
    with pytest.raises(IdcError, match=r"want train2017/.*found annotations/, val2017/"):
        load("coco", str(coco), "train")


def test_options_are_checked(coco):
    entry = registry.load("data", "coco").load
    with pytest.raises(IdcError, match=r"data\.options\.captions must be one of first, all"):
        registry.bind(entry, {"captions": "last"}, "data.options")


# super-resolution


def test_div2k_with_its_small_copies(tmp_path):
    root = tmp_path / "DIV2K"
    for i in range(4):
        put(root / "DIV2K_train_HR" / f"000{i}.jpg", 10 * i)
        put(root / "DIV2K_train_LR_bicubic" / "X4" / f"000{i}x4.jpg", 1)
        put(root / "DIV2K_valid_HR" / f"080{i}.jpg", 10 * i + 5)
        put(root / "DIV2K_valid_LR_unknown" / "X4" / f"080{i}x4.jpg", 1)
    put(tmp_path / "Flickr2K" / "Flickr2K_HR" / "000001.jpg", 100)
    put(tmp_path / "Flickr2K" / "Flickr2K_LR_bicubic" / "X2" / "000001x2.jpg", 1)
    put(tmp_path / "OST" / "animal" / "a.jpg", 110)
    roots = [str(tmp_path / name) for name in ("DIV2K", "Flickr2K", "OST")]
    found = {split: load("super_resolution", roots, split) for split in SPLITS}
    assert names(found["train"]) == [
        *(f"DIV2K_train_HR/000{i}" for i in range(4)),
        "Flickr2K_HR/000001",
        "OST/animal/a",
    ]
    assert names(found["search"]) == ["0800", "0802"]
    assert names(found["evaluate"]) == ["0801", "0803"]
    assert len(found["all"]) == 10
    assert found["train"].own_splits and found["evaluate"].own_splits
    assert are_apart(found)
    alone = {split: load("super_resolution", str(root / "DIV2K_train_HR"), split) for split in SPLITS}
    assert [len(alone[split]) for split in SPLITS] == [2, 2, 2, 4]
    with pytest.raises(IdcError, match="evaluate only"):
        load("super_resolution", str(root / "DIV2K_valid_HR"), "train")


@pytest.mark.parametrize(
    ("high", "low"),
    [
        ("train_hr", "train_lr"),
        ("train_HR", "train_LR_bicubic/X4"),
        ("DIV2K_train_HR_sub", "DIV2K_train_LR_bicubic_sub"),
        ("trainHR", "trainLR"),
        ("train/HR", "train/LR"),
        ("train/hr", "train/lr_x4"),
        ("HR_train", "LR_train"),
        ("hr", "lr"),
        ("GTmod12", "LRbicx4"),
        ("gt", "lq"),
        ("high_res", "low_res"),
        ("high", "low"),
        ("High-Resolution", "Low-Resolution"),
        ("HQ", "LQ"),
        ("pictures", "pictures_LR"),  # no folder says that it is at full resolution
        (".", "LR"),
    ],
)
def test_small_copies_of_any_name_play_no_part(tmp_path, high, low):
    root = tmp_path / "set"
    for i in range(4):
        put(root / high / f"{i}.jpg", 10 * i)
        put(root / low / f"{i}.jpg", 200 + i)
    found = {split: load("super_resolution", str(root), split) for split in SPLITS}
    assert [colour(photo.open()) for photo in found["all"]] == [0, 10, 20, 30]
    assert [len(found[split]) for split in SPLITS] == [2, 2, 2, 4]
    assert are_apart(found)


@pytest.mark.parametrize(
    "held_out", ["valid_hr", "val/HR", "test_HR", "HR_validation", "testHR", "eval-gt", "test/high_res"]
)
def test_folders_to_evaluate_by_any_name(tmp_path, held_out):
    root = tmp_path / "set"
    for i in range(4):
        put(root / "train_hr" / f"{i}.jpg", 10 * i)
        put(root / held_out / f"{i}.jpg", 100 + 10 * i)
        put(root / held_out.lower().replace("hr", "lr") / "lr" / f"{i}.jpg", 1)
    found = {split: load("super_resolution", str(root), split) for split in SPLITS}
    values = {split: [colour(photo.open()) for photo in photos] for split, photos in found.items()}
    assert values["train"] == [0, 10, 20, 30]
    assert (values["search"], values["evaluate"]) == ([100, 120], [110, 130])
    assert len(found["all"]) == 8 and found["evaluate"].own_splits


def test_words_that_only_contain_lr_or_hr(tmp_path):
    for i, name in enumerate(("christmas", "always", "pictures_lrx", "valrhona", "gallery")):
        put(tmp_path / "set" / name / "a.jpg", 10 * i)
    found = load("super_resolution", str(tmp_path / "set"), "all")
    assert len(found) == 5


def test_a_linked_folder_of_pictures_counts_once(tmp_path):
    root = tmp_path / "set"
    for i in range(2):
        put(tmp_path / "disk" / f"{i}.jpg", 10 * i)
    root.mkdir()
    (root / "train_hr").symlink_to(tmp_path / "disk")
    (root / "also_hr").symlink_to(tmp_path / "disk")
    (root / "up").symlink_to(root)
    assert len(load("super_resolution", str(root), "all")) == 2


def put_pairs(root, low_px=(8, 8), high_px=(32, 32), number=4):
    """Pictures of one colour whose small copies have another, as PNG files."""
    for i in range(number):
        for folder, value, size in (("gt", 10 * i, high_px), ("lq", 100 + 10 * i, low_px)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (value,) * 3).save(root / folder / f"{i}.png")
    return str(root)


def test_given_small_copies_are_restored_and_not_made(tmp_path):
    path = put_pairs(tmp_path / "DIV2K_V2_val")
    found = {split: load("super_resolution", path, split, inputs="given") for split in SPLITS}
    assert [[colour(p.open()) for p in found[s]] for s in ("search", "evaluate")] == [[0, 20], [10, 30]]
    assert are_apart(found)
    assert all(photo.low is None for photo in found["train"])  # training degrades anew
    examples = registry.load("task", "stablesr").Task().examples(found["all"], 5, 32)
    assert [round(float(e.image.mean()) * 255) for e in examples] == [100, 110, 120, 130, 100]
    assert [round(float(e.target.mean()) * 255) for e in examples] == [0, 10, 20, 30, 0]
    assert [e.photo for e in examples[:4]] == [photo.digest for photo in load("super_resolution", path, "all")]
    other = registry.load("task", "controlnet").Task().examples(found["all"], 1, 32)
    assert float(other[0].image.max()) == 0.0  # a task that enlarges nothing takes the pictures themselves


@pytest.mark.parametrize(
    ("high", "low"),
    [("valid_HR/{}.png", "valid_LR_bicubic/X4/{}x4.png"), ("test_HR/c_{}_HR.png", "test_LR/c_{}_LR4.png")],
)
def test_small_copies_have_the_names_that_published_sets_give_them(tmp_path, high, low):
    others = {"valid_LR_bicubic/X2/{}x2.png": (16, 16)} if "X4" in low else {}
    for name, side in {high: (32, 32), low: (8, 8), **others}.items():
        for i in range(2):
            path = tmp_path / "set" / name.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", side, (10 * i,) * 3).save(path)
    found = load("super_resolution", str(tmp_path / "set"), "all", inputs="given")
    assert [photo.low.path for photo in found] == [tmp_path / "set" / low.format(i) for i in range(2)]


@pytest.mark.parametrize("number", [0, 3])
def test_a_pair_is_cut_alike(number):
    high = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 9), scale_factor=32, mode="bilinear")[0]
    high = to_pil(high)
    low = high.resize((high.width // 4, high.height // 4), Image.Resampling.BOX)
    image, target = crop_pair(low, high, 64, number, 4)
    assert image.shape == target.shape == (3, 64, 64)
    assert (image - target).abs().mean() < 0.02
    assert (image - target.roll(4, -1)).abs().mean() > 2 * (image - target).abs().mean()


@pytest.mark.parametrize("fault", ["missing", "twice", "size"])
def test_small_copies_that_do_not_fit(tmp_path, fault):
    root = tmp_path / "set"
    path = put_pairs(root, low_px=(16, 16) if fault == "size" else (8, 8))
    if fault == "missing":
        (root / "lq" / "2.png").unlink()
    if fault == "twice":
        shutil.copytree(root / "lq", root / "lr")
    with pytest.raises(
        IdcError, match={"missing": "no small copy", "twice": "2 small copies", "size": "want 1/4"}[fault]
    ):
        photos = load("super_resolution", path, "all", inputs="given")
        registry.load("task", "stablesr").Task().examples(photos, 1, 32)


# shards


def test_captioned_shards(shards):
    found = splits("shards", shards)
    assert [len(found[split]) for split in SPLITS] == [18, 1, 1, 20]
    assert [photo.prompt for photo in found["all"]] == [f"caption {i}" for i in range(20)]
    assert [colour(photo.open()) for photo in found["all"]] == [10 * i for i in range(20)]
    assert names(found["evaluate"]) == ["00001/000000019"]
    assert all(photo.target is None for photo in found["all"])
    assert are_apart(found)


def test_shards_of_pairs(shards, tmp_path):
    members = {
        "part/a.input.jpg": jpeg(10),
        "part/a.edited.jpg": jpeg(60),
        "part/a.json": json.dumps({"prompt": "brighten"}).encode(),
        "part/b.input.jpg": jpeg(20),
        "readme.md": b"x",
    }
    shard = write_tar(tmp_path / "pairs.tar", members)
    first, second = load("shards", str(shard), "all", image="input.jpg", target="edited.jpg")
    assert (first.name, first.prompt) == ("pairs/part/a", "brighten")
    assert (colour(first.open()), colour(first.target.open())) == (10, 60)
    assert (second.prompt, second.target) == ("", None)


def test_the_index_is_built_once_and_anew_for_a_changed_shard(shards, monkeypatch):
    from idcompress.datasets import shards as module

    read = []
    original = module._read_members
    monkeypatch.setattr(module, "_read_members", lambda *a: read.append(a) or original(*a))
    for _ in range(2):
        assert len(load("shards", str(shards), "all")) == 20
    assert len(read) == 2
    write_tar(shards / "00001.tar", {"x.jpg": jpeg(1)})
    assert len(load("shards", str(shards), "all")) == 11
    assert len(read) == 3


def test_damaged_shards_are_named(shards):
    path = shards / "00001.tar"
    found = load("shards", str(shards), "all")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(IdcError, match=r"00001/000000019 .* in .*00001\.tar is cut short"):
        found[19].open()
    with pytest.raises(IdcError, match=r"00001\.tar is no readable tar file"):
        load("shards", str(shards), "all")
    write_tar(path, {"a.txt": b"x"})
    with pytest.raises(IdcError, match=r"00001\.tar holds no image"):
        load("shards", str(shards), "all")
    write_tar(path, {"a.jpg": jpeg(1)[:400], "b.jpg": b"text"})
    damaged = load("shards", str(path), "all")
    for i, key in enumerate("ab"):
        with pytest.raises(IdcError, match=rf"00001/{key} in .*00001\.tar is"):
            damaged[i].open()


def test_shards_behind_a_url_are_fetched_one_at_a_time(shards, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for shard in shards.glob("*.tar"):
        memory.pipe(f"/bucket/{shard.name}", shard.read_bytes())
    fetched = []
    original = fsspec.open
    monkeypatch.setattr(fsspec, "open", lambda url, mode: fetched.append(url) or original(url, mode))
    urls = [f"memory://bucket/0000{i}.tar" for i in range(2)]
    found = load("shards", urls, "all")
    assert fetched == urls  # to list them, once
    order = found.order(0, 0)
    assert [colour(found[index].open()) for index in order] == [10 * index for index in order]
    assert len(fetched) == 4
    load("shards", urls, "all")
    assert len(fetched) == 4
    with pytest.raises(IdcError, match=r"memory://bucket/9\.tar cannot be fetched"):
        load("shards", ["memory://bucket/9.tar"], "all")
