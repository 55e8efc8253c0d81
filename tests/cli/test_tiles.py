"""idc translate translate.tiles=true: whole photographs, of any size, in overlapping tiles."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from idcompress import registry
from idcompress.bench.tiles import translate_in_tiles, wants_tiles
from idcompress.bench.translate import translate
from idcompress.core.plan import Plan
from idcompress.core.process import Prediction
from idcompress.core.tiles import blend_tiles, cosine_weights, gaussian_weights
from idcompress.images.photo_sets import Photograph
from idcompress.images.pictures import to_tensor
from idcompress.sources.load import load_source

TASKS = ("ip2p", "controlnet", "inpaint", "high_frequency")  # their random models work at 32 px, by latents of 4
GUIDANCE = {"guidance_scale": 1.5, "image_guidance_scale": 1.0}


@pytest.fixture(scope="module")
def models(random_model):
    made = {}

    def load(task):
        if task not in made:
            source = {"name": "tiny", "path": str(random_model(task)), "repositories": None, "revision": None}
            made[task] = load_source(task, source, device="cpu", dtype="float32")
        return made[task]

    return load


def noise(width, height, seed=0):
    values = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def photo(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    return Photograph("a", tmp_path / "a.png")


def plan_of(task, **changes):
    scales = {name: GUIDANCE[name] for name in task.guidance_scales}
    return dataclasses.replace(Plan.over((981, 600, 200), guidance=scales), **changes)


def tiled(task, pipeline, photograph, picture, plan, **settings):
    arguments = (task, pipeline, 3, photograph, picture, "darker", plan)
    return translate_in_tiles(*arguments, seed=5, **settings)[1]


@pytest.mark.parametrize("name", TASKS)
def test_a_picture_of_the_models_own_size_is_translated_as_ever(models, tmp_path, name):
    task, pipeline, picture = registry.load("task", name).Task(), models(name).pipeline, noise(32, 32)
    photograph = photo(tmp_path, picture)
    example = task.picture_example(3, photograph, to_tensor(picture), "darker")
    for sampler in ("ddim", "ancestral"):
        plan = plan_of(task, sampler=sampler)
        untiled = translate(task, pipeline, [example], plan, seed=5)[0]
        assert torch.equal(tiled(task, pipeline, photograph, picture, plan), untiled)
    assert not wants_tiles(pipeline, picture, None) and wants_tiles(pipeline, noise(33, 32), None)
    assert not wants_tiles(pipeline, noise(64, 10), 64)


@pytest.mark.parametrize("name", TASKS)
def test_a_larger_picture_keeps_its_size_and_repeats_itself(models, tmp_path, monkeypatch, name):
    task, pipeline, picture = registry.load("task", name).Task(), models(name).pipeline, noise(75, 41)
    photograph, plan = photo(tmp_path, picture), plan_of(task)
    said = []
    monkeypatch.setattr("idcompress.images.large.say", said.append)
    made = tiled(task, pipeline, photograph, picture, plan)
    assert made.shape == (3, 41, 75) and made.min() >= 0 and made.max() <= 1
    assert said[0].startswith("a.png: worked on at 76 x 44 px, 8 tiles in each of 3 steps: the U-Net takes about ")
    assert said[0].endswith(", the picture about 0 MB of memory")
    assert torch.equal(made, tiled(task, pipeline, photograph, picture, plan))
    assert not torch.equal(made, tiled(task, pipeline, photograph, picture, plan, resolution_px=48))


class Pointwise(registry.load("task", "ip2p").Task):
    """A task whose every latent and pixel depends on what lies at its own place alone."""

    def encode(self, pipeline, examples, seed=0):
        images = torch.stack([example.image for example in examples])
        pooled = torch.nn.functional.avg_pool2d(images, 4).mean(dim=1, keepdim=True)
        return {"image": pooled.expand(-1, 4, -1, -1)}

    def denoise(self, pipeline, conditioning, guidance):
        return lambda sample, step, cache: (0.5 * torch.tanh(sample) + conditioning["image"], cache)

    def decode(self, pipeline, latents, conditioning):
        enlarged = torch.nn.functional.interpolate(latents[:, :3], scale_factor=4)
        return torch.sigmoid(enlarged)


def test_where_nothing_looks_around_no_tile_shows(models, tmp_path):
    """Neither in noise nor on a constant picture: as if there were one tile alone."""
    task, pipeline = Pointwise(), models("ip2p").pipeline
    for picture in (noise(96, 96), Image.new("RGB", (96, 96), (120, 60, 30))):
        photograph, plan = photo(tmp_path, picture), plan_of(task)
        whole = tiled(task, pipeline, photograph, picture, plan, resolution_px=96)
        torch.testing.assert_close(tiled(task, pipeline, photograph, picture, plan), whole, atol=1e-5, rtol=0)


class Toned(Pointwise):
    """Every second tile is brighter, though all are of a constant picture."""

    def encode(self, pipeline, examples, seed=0):
        self.number = getattr(self, "number", 0) + 1
        conditioning = super().encode(pipeline, examples, seed)
        return conditioning | {"tone": torch.tensor(float(self.number % 2))}

    def decode(self, pipeline, latents, conditioning):
        return (0.2 + 0.5 * conditioning["tone"]).expand(1, 3, *(4 * side for side in latents.shape[-2:]))


def test_no_seams_on_a_constant_picture(models, tmp_path, monkeypatch):
    """Tiles that differ in tone pass into one another over all that they share."""
    picture = Image.new("RGB", (128, 32), (120, 60, 30))
    photograph = photo(tmp_path, picture)

    def largest_step():
        made = tiled(Toned(), models("ip2p").pipeline, photograph, picture, plan_of(Toned()))
        assert made.max() - made.min() > 0.45
        return float(made.diff(dim=-1).abs().max())

    assert largest_step() < 0.06  # of 0.5, over 16 px
    monkeypatch.setattr("idcompress.bench.tiles.cosine_weights", gaussian_weights)
    assert largest_step() > 0.12


def test_what_steps_leave_out_and_what_is_known_go_by_tiles(models, tmp_path):
    model, task = models("inpaint"), registry.load("task", "inpaint").Task(keep_known=True)
    picture = noise(48, 48)
    photograph, plan = photo(tmp_path, picture), plan_of(task)
    steps = (plan.steps[0], *(dataclasses.replace(step, depth=6) for step in plan.steps[1:]))
    varied = dataclasses.replace(plan, steps=steps, fill="linear")
    cut = lambda depth: model.cut_further(model.pipeline, depth)  # noqa: E731
    made = [tiled(task, model.pipeline, photograph, picture, which, at_depth=cut) for which in (plan, varied)]
    assert made[0].shape == (3, 48, 48) and not torch.equal(*made)
    other = tiled(registry.load("task", "inpaint").Task(), model.pipeline, photograph, picture, plan)
    assert not torch.equal(made[0], other)


def test_a_projection_of_tiles_is_that_of_the_whole():
    values = Prediction(*torch.randn(2, 1, 4, 12, 20, generator=torch.Generator().manual_seed(0)))
    blended = blend_tiles(lambda r, c: torch.cat([v[..., r, c] for v in values], dim=1), 12, 20, 8, 4, cosine_weights)
    for one, other in zip(blended.chunk(2, dim=1), values, strict=True):
        torch.testing.assert_close(one, other)


def test_strips_and_giants_are_refused(idc, random_model, monkeypatch):
    monkeypatch.setattr("idcompress.images.large.MAX_CANVAS", 2_000_000)
    common = (
        "translate",
        f"model.path={random_model('ip2p')}",
        "recipe=none",
        "num_inference_steps=1",
        "prompt=darker",
    )
    Image.new("RGB", (900, 2)).save("strip.png")
    Image.new("L", (2000, 1400)).save("giant.png")
    for name, words in (
        ("strip", "strip.png, 900 x 2 px, would be worked on at 14,400 x 32 px, in 899 tiles"),
        ("giant", "giant.png, 2000 x 1400 px, would be worked on at 2,000 x 1,400 px, 3 megapixels; the limit is 2"),
    ):
        result = idc(*common, f"image={name}.png", "translate.tiles=true", "output.path=out")
        assert result.code == 2 and words in result.err, result.err
        assert result.err.splitlines()[-1].startswith("idc: error: ")


def test_the_command(idc, random_model):
    Image.new("RGB", (50, 40), (120, 60, 30)).save("a.png")
    Image.new("RGB", (40, 20), (120, 60, 30)).save("b.png")
    Image.new("RGB", (20, 10), (120, 60, 30)).save("small.png")
    common = (
        "translate",
        f"model.path={random_model('ip2p')}",
        "recipe=none",
        "num_inference_steps=2",
        "prompt=darker",
    )
    keys = ("image=[a.png,b.png,small.png]", "translate.tiles=true", "translate.compare=true", "output.path=out")
    result = idc(*common, *keys)
    assert result.code == 0, result.err
    assert Image.open("out/a.png").size == (50, 40)
    assert Image.open("out/b.png").size == (40, 20)  # its shorter side is enlarged to a tile, and reduced again
    assert Image.open("out/small.png").size == (32, 16)  # smaller than a tile: as without tiles
    assert (result.out + result.err).count("every tile follows the instruction by itself") == 1
    assert json.loads(Path("out/translate.json").read_text())["tiles_px"] == 32
    result = idc(*common, "image=a.png", "output.path=plain")
    assert result.code == 0 and "tile" not in result.out + result.err
    assert Image.open("plain/a.png").size == (32, 24)
