"""The tasks that see something beside the latents: what they are given, and that stock pipelines compute the same."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from idcompress import registry
from idcompress.core.process import Level, Prediction
from idcompress.images.deblur import draw_restored, restored
from idcompress.images.masks import KINDS, draw_mask
from idcompress.images.photo_sets import Photograph
from idcompress.types import Batch, Example

SMOKE = "experiment=smoke"


def task(name, **options):
    return registry.load("task", name).Task(**options)


def put(path, number, size=(40, 40)):
    """An image file of one colour, which its number decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number % 256, 7 * number % 256, 90)).save(path)


def image(size=32):
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def photo(tmp_path):
    put(tmp_path / "a.png", 40)
    return Photograph("a", tmp_path / "a.png")


# holes and restored pictures


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_holes_of_their_generator(kind):
    for seed in range(20):
        mask = draw_mask(kind, 48, 64, torch.Generator().manual_seed(seed))
        assert mask.shape == (1, 48, 64) and set(mask.unique().tolist()) == {0.0, 1.0}
        assert 0.01 < mask.mean() < 0.7
        assert torch.equal(mask, draw_mask(kind, 48, 64, torch.Generator().manual_seed(seed)))


def test_a_restored_picture_is_the_picture_without_detail():
    smooth = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    nothing = torch.zeros(1, 3, 64, 64)
    # 1 / (1 + 0.01), what the filter takes from a constant, is the only change where nothing was lost.
    assert (restored(smooth, torch.tensor([1.0]), nothing) * 1.01 - smooth).abs().max() < 0.02
    noisy = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.fft2(restored(noisy, torch.tensor([1.5]), nothing)).abs() / torch.fft.fft2(noisy).abs()
    assert spectrum[..., 0, 1].mean() > 0.9 and spectrum[..., 32, 32].mean() < 0.2
    picture = image(64)
    assert torch.equal(
        draw_restored(picture, torch.Generator().manual_seed(3)),
        draw_restored(picture, torch.Generator().manual_seed(3)),
    )


# examples


def test_inpainting_hides_its_hole_and_leaves_the_text_empty(photo):
    example = task("inpaint").example(5, photo, image(), None)
    hole = example.condition > 0.5
    assert torch.equal(example.image[hole], torch.full_like(example.image[hole], 0.5))
    assert torch.equal(example.image[~hole], example.target[~hole]) and torch.equal(example.target, image())
    assert example.prompt == "" and example.tags[0] in KINDS
    assert task("inpaint", masks="box").example(5, photo, image(), "a cat").prompt == "a cat"
    assert {task("inpaint").example(i, photo, image(), None).tags[0] for i in range(8)} == set(KINDS)


def test_a_mask_of_ones_own(photo, tmp_path):
    white = Image.new("L", (10, 10))
    white.paste(255, (0, 0, 5, 10))
    white.save(tmp_path / "hole.png")
    mask = task("inpaint", mask=str(tmp_path / "hole.png")).example(0, photo, image(), None).condition
    assert mask[:, :, :14].min() == 1 and mask[:, :, 18:].max() == 0


def test_pairs_are_taken_as_they_are_and_photographs_degraded(photo):
    synthesis = task("high_frequency")
    made = synthesis.example(0, photo, image(), None)
    assert torch.equal(made.target, image()) and not torch.equal(made.image, image())
    pair = synthesis.example(0, photo, image(), None, target=image() / 2)
    assert torch.equal(pair.image, image()) and torch.equal(pair.target, image() / 2)
    assert torch.equal(synthesis.picture_example(0, photo, image(), None).image, image())


def test_known_surroundings_are_kept_where_asked_for():
    prediction = Prediction(torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 2:5] = 1
    given = torch.cat([mask, torch.randn(1, 4, 8, 8)], 1)
    level = Level(0.6, 0.8)
    assert task("inpaint").project(prediction, level, {"given": given}) is prediction
    kept = task("inpaint", keep_known=True).project(prediction, level, {"given": given})
    outside = (mask == 0).expand(1, 4, 8, 8)
    assert torch.equal(kept.pred_original_sample[outside], given[:, 1:][outside])
    assert torch.equal(kept.pred_original_sample[~outside], prediction.pred_original_sample[~outside])
    samples = [0.6 * original + 0.8 * epsilon for original, epsilon in (prediction, kept)]
    assert torch.allclose(*samples, atol=1e-6)


# the pipelines


@pytest.mark.parametrize("name", ["inpaint", "high_frequency"])
def test_the_stock_pipeline_computes_the_same(random_model, photo, name):
    pipeline = DiffusionPipeline.from_pretrained(random_model(name))
    pipeline.set_progress_bar_config(disable=True)
    example = task(name).example(0, photo, image(), None)
    conditioning = task(name).encode(pipeline, [example])
    seen = []
    pipeline.unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True)
    picture = {"image": example.image[None] if name == "high_frequency" else example.target[None]}
    if name == "inpaint":
        picture |= {"mask_image": example.condition[None, :1], "height": 32, "width": 32}
        posterior = pipeline.vae.encode(example.image[None] * 2 - 1).latent_dist
        pipeline._encode_vae_image = lambda image, generator: posterior.mode() * pipeline.vae.config.scaling_factor
    pipeline("", num_inference_steps=1, guidance_scale=1.0, output_type="latent", **picture)
    assert torch.allclose(seen[0][:, 4:], conditioning["given"], atol=1e-5)


@pytest.mark.parametrize(("name", "metric"), [("inpaint", "hole_psnr"), ("high_frequency", "target_psnr_of_input")])
def test_every_stage_takes_the_task(idc, random_model, name, metric):
    model = (f"task={name}", f"model.path={random_model(name)}")
    result = idc("compress", SMOKE, *model, f"evaluate.metrics=[psnr,{metric}]")
    assert result.code == 0, result.err
    metrics = json.loads(next(Path("outputs").glob("*/*/compress/*/evaluate/metrics.json")).read_text())["metrics"]
    assert metrics[metric]["compressed"] is not None
    put(Path("b.png"), 50, size=(40, 56))
    result = idc("translate", *model, "recipe=none", "image=b.png", "num_inference_steps=2")
    assert result.code == 0, result.err


# metrics


def test_metrics_inside_the_hole():
    mask = torch.zeros(3, 16, 16)
    mask[:, :8] = 1
    target = torch.full((3, 16, 16), 0.5)
    output = torch.where(mask > 0.5, target + 0.1, target + 0.4)
    example = Example(0, "a", "", torch.where(mask > 0.5, 0.5, target - 0.2), target=target, condition=mask)
    batch = Batch([example], output[None])
    assert registry.load("metric", "hole_psnr").Metric().per_image(batch) == pytest.approx([20.0], abs=1e-4)
    flat = registry.load("metric", "hole_psnr_mean_colour").Metric().per_image(batch)  # 0.3 for 0.5
    assert flat == pytest.approx([13.979], abs=1e-3)
    given = registry.load("metric", "target_psnr_of_input").Metric()
    assert given.per_image(Batch([Example(0, "a", "", target - 0.1, target=target)], output[None])) == pytest.approx(
        [20.0], abs=1e-4
    )


# data sets


def test_pairs_of_equal_names(tmp_path):
    for name in ("a", "b", "c", "d"):
        put(tmp_path / "given" / f"{name}.png", ord(name))
        put(tmp_path / "true" / f"{name}.jpg", 2 * ord(name) % 256)
    (tmp_path / "true" / "d.jpg").unlink()
    roots = [str(tmp_path / "given"), str(tmp_path / "true")]
    sets = {split: registry.load("data", "pairs").load(roots, split) for split in ("search", "evaluate", "all")}
    assert [photo.name for photo in sets["all"]] == ["a", "b", "c"]
    assert all(photo.target.path == tmp_path / "true" / f"{photo.name}.jpg" for photo in sets["all"])
    assert not {p.name for p in sets["search"]} & {p.name for p in sets["evaluate"]}


def test_the_digest_of_pairs_is_that_of_both_folders(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / "given" / f"{name}.png", ord(name))
        put(tmp_path / "true" / f"{name}.png", ord(name))
    roots = [str(tmp_path / "given"), str(tmp_path / "true")]

    def digests():
        return [registry.load("data", "pairs").load(roots, split).digest for split in ("all", "train", "evaluate")]

    before = digests()
    assert digests() == before
    with (tmp_path / "true" / "a.png").open("ab") as file:
        file.write(b"another picture's length")
    assert not {*digests()} & {*before}


def test_published_splits_of_faces_and_open_images(tmp_path):
    rows = []
    for number, part in enumerate((0, 0, 1, 2), 1):
        put(tmp_path / "celeba" / "img_align_celeba" / f"{number:06d}.jpg", number * 20)
        rows.append(f"{number:06d}.jpg {part}")
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(rows))
    found = {
        s: [p.name for p in registry.load("data", "celeba").load(str(tmp_path / "celeba"), s)]
        for s in ("train", "search", "evaluate")
    }
    assert found == {"train": ["000001", "000002"], "search": ["000003"], "evaluate": ["000004"]}
    for folder in ("train/train_0", "validation", "test"):
        put(tmp_path / "open" / folder / "x.jpg", len(folder))
    sets = [
        registry.load("data", "open_images").load(str(tmp_path / "open"), s) for s in ("train", "search", "evaluate")
    ]
    assert [len(s) for s in sets] == [1, 1, 1] and len({s[0].path for s in sets}) == 3
