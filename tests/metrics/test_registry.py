"""Properties of every registered metric of images: blind to batches and order, and perfect where nothing differs."""

import dataclasses
import inspect
import itertools
import random
from pathlib import Path

import pytest
import torch

from idcompress import registry
from idcompress.errors import IdcError
from idcompress.images.canny import canny
from idcompress.images.edits import EDITS
from idcompress.metrics import _inception, clip_aesthetic
from idcompress.metrics._clip import ClipMetric
from idcompress.metrics._metric import ImageMetric
from idcompress.types import Batch, Example

NAMES = [n for n in registry.names("metric") if issubclass(registry.load("metric", n).Metric, ImageMetric)]
# These compare the output with no image: a text, people's taste, or (chance levels) not its own reference.
NO_REFERENCE = {"clip_aesthetic", "clip_directional_similarity", "clip_score", "niqe"}
BASELINE_ENDINGS = ("_shuffled", "_mean_colour", "_bicubic", "_of_input")
SIZE = 48
NUMBER = 6


class Pooled(torch.nn.Module):
    """Stands in for the Inception network: 8-bit pixels (B, 3, H, W) -> [12 features of each]."""

    def forward(self, pixels):
        return [torch.nn.functional.adaptive_avg_pool2d(pixels.float(), 2).flatten(1)]


@pytest.fixture
def make(request, monkeypatch, tmp_path):
    """Metrics by name, with small weights in place of those that would be fetched."""

    def metric(name):
        entry = registry.load("metric", name).Metric
        arguments = {}
        if issubclass(entry, ClipMetric):
            arguments["weights"] = str(request.getfixturevalue("clip_folder"))
        if "head" in inspect.signature(entry).parameters:
            arguments["head"] = str(aesthetic_head(tmp_path / "head.pth"))
        if issubclass(entry, _inception.InceptionMetric):
            monkeypatch.setattr(_inception, "_find", lambda *_: Path(__file__))
            monkeypatch.setattr(_inception, "_load", lambda *_: Pooled())
            monkeypatch.setattr(_inception, "CACHE", tmp_path / "inception")
        if "lpips" in name:
            folder = request.getfixturevalue("lpips_folder")
            arguments["weights"] = str(folder / "alexnet_features.pth")
        if name == "niqe":
            arguments["weights"] = str(request.getfixturevalue("shared") / "weights" / "niqe")
        return entry(**arguments)

    return metric


def aesthetic_head(path, width=16):
    generator = torch.Generator().manual_seed(4)
    sizes = (width, 1024, 128, 64, 16, 1)
    state = {}
    for number, (inputs, outputs) in zip((0, 2, 4, 6, 7), itertools.pairwise(sizes), strict=True):
        state[f"layers.{number}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        state[f"layers.{number}.bias"] = torch.randn(outputs, generator=generator)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)

    def picture():
        coarse = torch.rand(1, 3, 7, 7, generator=generator)
        return torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)[0]

    examples = []
    for index in range(NUMBER):
        edit = EDITS["flip_vertically" if index % 2 else "warmer"]
        image = picture()
        target = edit.apply(image[None])[0]
        examples.append(
            Example(
                index=index,
                name=f"photo-{index}",
                photo=f"digest-{index // 2}",
                image=image,
                prompt=edit.phrasings[0],
                target=target,
                condition=canny(target[None])[0].expand(3, -1, -1),
                captions=("a photo of a cat", "a photo of a dog"),
                tags=("hard",) if index % 2 else ("easy",),
            )
        )
    outputs = torch.stack([(e.target + 0.1 * torch.randn(e.target.shape, generator=generator)) for e in examples])
    return Batch(examples, outputs.clamp(0, 1), torch.stack([picture() for _ in examples]))


def take(batch, order):
    return Batch([batch.examples[i] for i in order], batch.outputs[order], batch.references[order])


def value_of(metric, *batches):
    for batch in batches:
        metric.update(batch)
    return metric.compute()


@pytest.mark.parametrize("name", NAMES)
def test_any_split_and_order_gives_the_same_value(name, make, batch):
    if name == "niqe":  # wants larger images, and looks at no other
        large = torch.nn.functional.interpolate(batch.outputs, size=(96, 192), mode="bicubic").clamp(0, 1)
        batch = dataclasses.replace(batch, outputs=large)
    used = make(name)
    whole = value_of(used, batch)
    assert whole.value is not None
    assert used.fresh().compute().value is None
    assert used.compute() == whole == value_of(used.fresh(), batch)
    generator = random.Random(name)
    for _ in range(2):
        order = generator.sample(range(NUMBER), NUMBER)
        cuts = sorted(generator.sample(range(1, NUMBER), 2))
        parts = [order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :]]
        assert value_of(make(name), *(take(batch, part) for part in parts)) == whole


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_REFERENCE and not n.endswith(BASELINE_ENDINGS)])
def test_an_image_with_itself_is_perfect_and_another_is_worse(name, make, batch):
    metric = make(name)
    wanted = batch.references if metric.needs == ("references",) else batch.stack("target")
    if metric.needs == ("image",):
        wanted = batch.stack("image")
    best = value_of(make(name), Batch(batch.examples, wanted, batch.references))
    if metric.unit == "dB":
        assert best.perfect
    elif metric.higher_is_better:
        assert best.value == pytest.approx(1, abs=1e-12)
    else:
        assert best.value <= 1e-9  # KID is unbiased: slightly negative for a set with itself
    noise = torch.rand(wanted.shape, generator=torch.Generator().manual_seed(9))
    worse = value_of(metric, Batch(batch.examples, noise, batch.references))
    assert worse.value is not None
    if not best.perfect:
        assert worse.value < best.value if metric.higher_is_better else worse.value > best.value


@pytest.mark.parametrize("against", ["image", "target", "references"])
def test_features_of_real_images_are_embedded_once(against, make, batch, monkeypatch):
    make("fid")  # puts its stand-ins in place
    kept, embedded = _inception.CACHE, []
    network = type("Counting", (Pooled,), {"forward": lambda s, p: embedded.append(p) or Pooled.forward(s, p)})()
    monkeypatch.setattr(_inception, "_load", lambda *_: network)

    def value(*batches, name="fid"):
        entry = registry.load("metric", name).Metric(against=against)
        return value_of(entry, *batches), len(embedded), len(list(kept.iterdir()) if kept.is_dir() else [])

    whole, calls, number = value(batch)
    assert (calls, number) == (2 * NUMBER, 1)
    again, calls, number = value(batch)
    assert (again, calls, number) == (whole, 3 * NUMBER, 1)  # outputs alone
    _, calls, number = value(batch, name="kid")  # the same features
    assert (calls, number) == (4 * NUMBER, 1)
    other = dataclasses.replace(batch.examples[0], image=1 - batch.examples[0].image, target=batch.examples[0].image)
    changed = Batch([other, *batch.examples[1:]], batch.outputs, batch.references.flip(-1))
    assert value(changed)[0] != whole
    assert value(changed)[2] == 2
    monkeypatch.setattr(_inception, "_find", lambda *_: Path(__file__).with_name("conftest.py"))  # other weights
    assert value(batch)[2] == 3


def test_metrics_are_of_images_or_of_networks():
    for name in registry.names("metric"):
        assert issubclass(registry.load("metric", name).Metric, ImageMetric)


@pytest.mark.parametrize("name", ["edit_success_rate", "hard_edit_success_rate"])
def test_the_mean_colour_is_judged_like_an_output(name, make, batch):
    baseline = value_of(make(f"{name}_mean_colour"), batch)
    flat = batch.stack("image").mean(dim=(2, 3), keepdim=True).expand_as(batch.outputs)
    assert baseline.per_image == value_of(make(name), Batch(batch.examples, flat)).per_image
    assert len(baseline.per_image) == NUMBER // 2
    black = Batch(batch.examples, torch.zeros_like(batch.outputs))
    assert value_of(make(f"{name}_mean_colour"), black) == baseline  # whatever the model made


def test_the_mean_colour_beats_the_input_where_content_moves(make):
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(8, 3, 16, 16, generator=generator)
    examples = [Example(i, str(i), str(i), x, target=x.flip(-1), tags=("hard", "flip")) for i, x in enumerate(images)]
    value = value_of(make("hard_edit_success_rate_mean_colour"), Batch(examples, images))
    assert value.value == 1.0
    assert value_of(make("edit_success_rate_mean_colour"), Batch(examples, images)).value is None


def test_the_aesthetic_score_is_the_heads_on_the_embedding(make, batch, clip_folder, tmp_path):
    metric = make("clip_aesthetic")
    value = value_of(metric, batch)
    state = torch.load(tmp_path / "head.pth", weights_only=True)
    layers = [torch.nn.Linear(*reversed(state[f"layers.{n}.weight"].shape)) for n in (0, 2, 4, 6, 7)]
    for layer, number in zip(layers, (0, 2, 4, 6, 7), strict=True):
        layer.load_state_dict({k: state[f"layers.{number}.{k}"] for k in ("weight", "bias")})
    embeddings = torch.stack([metric.clip.encode_image(image, crop=True) for image in batch.outputs]).float()
    with torch.no_grad():
        wanted = torch.nn.Sequential(*layers)(embeddings)[:, 0]
    assert list(value.per_image.values()) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert set(metric.weight_digests) == {"open_clip_model.safetensors", "head.pth"}
    with pytest.raises(IdcError, match="takes 20 features and CLIP gives 16"):
        value_of(
            clip_aesthetic.Metric(weights=str(clip_folder), head=str(aesthetic_head(tmp_path / "b.pth", 20))), batch
        )


def test_the_aesthetic_score_refuses_without_its_head(no_weights, clip_folder, tmp_path):
    with pytest.raises(IdcError, match=r"sac\+logos\+ava1-l14-linearMSE\.pth.*metrics\.clip_aesthetic\.head=FILE"):
        clip_aesthetic.Metric(weights=str(clip_folder))
    torch.save({"layers.0.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(IdcError, match="no head of five linear layers"):
        clip_aesthetic.Metric(weights=str(clip_folder), head=str(tmp_path / "other.pth"))
    head = torch.load(aesthetic_head(tmp_path / "narrow.pth"), weights_only=True)
    torch.save({**head, "layers.4.weight": torch.zeros(64, 100)}, tmp_path / "narrow.pth")
    with pytest.raises(IdcError, match="no head of five linear layers"):
        clip_aesthetic.Metric(weights=str(clip_folder), head=str(tmp_path / "narrow.pth"))


# NIQE


def photograph(name, noise=0.0):
    from skimage import data

    image = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1).float()
    noise = noise * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + noise).clamp(0, 255).round() / 255


# values of pyiqa 0.1.16 on its MATLAB luma, with the same parameters
@pytest.mark.parametrize(
    ("name", "noise", "published"),
    [("chelsea", 0, 2.6255178), ("chelsea", 20, 9.0134293), ("coffee", 20, 10.5549305), ("astronaut", 20, 9.4487244)],
)
def test_niqe_equals_the_reference_package(name, noise, published, make):
    image = photograph(name, noise)
    value = value_of(make("niqe"), Batch([Example(0, name, name, image)], image[None]))
    assert value.value == pytest.approx(published, rel=1e-5)


def test_niqe_refuses_other_parameters_small_and_flat_images(make, no_weights, shared, tmp_path):
    import numpy as np

    from idcompress.metrics import niqe

    with pytest.raises(IdcError, match=r"niqe_pris_params\.npz.*IDC_WEIGHTS"):
        niqe.Metric()
    with np.load(shared / "weights" / "niqe" / "niqe_pris_params.npz") as file:
        changed = {name: file[name] + 1e-3 for name in file.files}
    np.savez(tmp_path / "niqe_pris_params.npz", **changed)
    with pytest.raises(IdcError, match="not the published"):
        niqe.Metric(weights=str(tmp_path))
    (tmp_path / "niqe_pris_params.npz").write_text("no archive")
    with pytest.raises(IdcError, match="not readable"):
        niqe.Metric(weights=str(tmp_path))
    small = torch.zeros(1, 3, 96, 96)
    with pytest.raises(IdcError, match="at least 96x192 px, got 96x96"):
        value_of(make("niqe"), Batch([Example(0, "a", "a", small[0])], small))
    flat = torch.full((1, 3, 96, 192), 0.5)
    assert value_of(make("niqe"), Batch([Example(0, "a", "a", flat[0])], flat)).value is None
