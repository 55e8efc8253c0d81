"""task=stablesr through the command line: the chain, its costs, any image size, the conversion, and mistakes."""

import json
from pathlib import Path

import pytest
import tiny_random
import torch
from PIL import Image

from idcompress import load_pipeline
from idcompress.adapters.pipeline import native_size
from idcompress.adapters.unet import depth_skip
from idcompress.bench.translate import translate
from idcompress.core.ddim import path_noise
from idcompress.core.plan import Plan
from idcompress.errors import IdcError
from idcompress.images.photo_sets import packaged
from idcompress.images.pictures import to_tensor
from idcompress.models.stablesr import num_structure_levels
from idcompress.sources.load import load_source
from idcompress.tasks import _task
from idcompress.tasks.stablesr import Task, _tiles
from idcompress.types import Example

SMOKE = ("experiment=smoke", "task=stablesr")


def only(pattern: str) -> Path:
    found = sorted(Path().glob(pattern))
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def model(random_model):
    return load_source("stablesr", {"name": "random", "path": str(random_model("stablesr"))})


@pytest.fixture
def examples():
    return Task().examples(packaged("search"), 3, 64)


def params(module):
    return sum(parameter.numel() for parameter in module.parameters())


# the chain


def test_compress_runs_and_counts_the_structure_encoder(idc, random_model, model):
    result = idc(
        "compress",
        *SMOKE,
        f"model.path={random_model('stablesr')}",
        "depth_search.min_depth=9",
        "timesteps=uniform",
        "sampler=ddim",
    )
    assert result.code == 0, result.err
    folder = only("outputs/stablesr/*/compress/*")
    metrics = json.loads((folder / "evaluate/metrics.json").read_text())
    assert metrics["guidance"] == {}
    costs, depth = metrics["metrics"], metrics["recipe"]["depth"]
    assert depth == 9
    cut = model.at(model.chosen(depth))
    for system, pipeline in (("original", model.pipeline), ("compressed", cut)):
        networks = params(pipeline.unet) + params(pipeline.structure_encoder)
        assert costs["params"][system] == networks
        # the paper leaves the U-Net's time embedding out, not the encoder's
        assert costs["params_paper"][system] == networks - params(pipeline.unet.time_embedding)
    assert params(cut.structure_encoder) < params(model.pipeline.structure_encoder)
    assert 0 < costs["gmacs"]["compressed"] < costs["gmacs"]["original"]
    for kind in ("original", "compressed", "uniform", "image", "target", "depth_skipped"):
        pictures = sorted((folder / "evaluate/images" / kind).glob("*.png"))
        assert [Image.open(path).size for path in pictures] == [(64, 64)] * 2
    report = (folder / "report/report.md").read_text()
    assert "| guidance |" not in report and "Deterministic and stochastic sampling" in report
    samplers = metrics["samplers"]
    assert list(samplers) == ["ddim", "ancestral"]
    for name, row in samplers["ddim"].items():
        assert row == {system: costs[name][system] for system in ("original", "compressed")}
    assert samplers["ancestral"]["psnr"]["compressed"] != samplers["ddim"]["psnr"]["compressed"]
    assert len(list((folder / "evaluate/images/compressed_ancestral").glob("*.png"))) == 2
    pipeline = load_pipeline(folder)
    assert pipeline.unet.config.depth == 9
    assert pipeline(Image.new("RGB", (16, 16)), generator=torch.Generator()).images[0].size == (64, 64)


def test_stages_one_by_one(idc, random_model):
    common = (*SMOKE, f"model.path={random_model('stablesr')}", "evaluate.latency=true")
    for command in ("depth-search", "tsopt", "evaluate", "report"):
        result = idc(command, *common, "evaluate.metrics=[psnr,target_psnr,target_ssim]")
        assert result.code == 0, result.err
    metrics = json.loads(only("outputs/stablesr/*/evaluate/*/metrics.json").read_text())["metrics"]
    assert metrics["target_psnr"]["original"] > 0
    assert metrics["latency_ms"]["ratio"] > 0
    assert idc("tsopt", *common, "sampler=dpm_solver").code == 0


def test_other_options_are_warned_of_and_absent_weights_leave_a_metric_out(idc, random_model, monkeypatch):
    monkeypatch.delenv("IDC_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", "nowhere")
    common = (*SMOKE, f"model.path={random_model('stablesr')}")
    assert idc("tsopt", *common, "timesteps=uniform", "task.options.fidelity_weight=0.7").code == 0
    recipe = only("outputs/stablesr/*/tsopt/*/recipe.json")
    provenance = json.loads(recipe.read_text())["provenance"]
    assert [entry["options"] for entry in provenance] == [{"fidelity_weight": 0.7, "color_fix": "adain"}]
    assert [entry["sampler"] for entry in provenance] == ["ddim"]
    result = idc("evaluate", *common, "evaluate.metrics=[psnr,target_lpips?]")
    assert result.code == 0, result.err
    assert "left out: target_lpips needs" in result.out
    assert "target_lpips" not in json.loads(only("outputs/stablesr/*/evaluate/*/metrics.json").read_text())["metrics"]
    assert "task.options.fidelity_weight=0.5, but the recipe was searched at 0.7" in result.out
    assert "color_fix=adain, but" not in result.out


def test_a_recipe_is_sampled_as_it_was_searched(idc, random_model):
    common = (*SMOKE, f"model.path={random_model('stablesr')}")
    assert idc("tsopt", *common, "timesteps=uniform", "sampler=ancestral").code == 0
    Image.new("RGB", (8, 8)).save("a.png")
    for sampler in ((), ("sampler=ddim",)):
        wanted = "ddim" if sampler else "ancestral"
        result = idc("translate", *common, *sampler, "image=a.png", f"output.path={wanted}")
        assert result.code == 0, result.err
        assert json.loads(Path(f"{wanted}/translate.json").read_text())["sampler"] == wanted
        result = idc("evaluate", *common, *sampler)
        assert result.code == 0, result.err
        assert bool(sampler) == ("sampler=ddim, but the recipe was searched at ancestral" in result.out)
    assert Path("ddim/a.png").read_bytes() != Path("ancestral/a.png").read_bytes()


# the task


def test_examples_are_a_crop_and_its_degraded_quarter(examples):
    again = Task().examples(packaged("search"), 3, 64)
    for example, other in zip(examples, again, strict=True):
        assert example.image.shape == example.target.shape == (3, 64, 64)
        assert torch.equal(example.image, other.image)
        assert not torch.equal(example.image, example.target)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpm_solver"])
def test_batches_and_seeds(model, examples, sampler):
    def run(chosen, seed=0):
        return translate(Task(), model.pipeline, chosen, Plan.over([999, 500, 20], sampler=sampler), seed=seed)

    whole = run(examples)
    assert whole.shape == (3, 3, 64, 64)
    assert 0 <= whole.min() < whole.max() <= 1
    parts = torch.cat([run([examples[2]]), run(examples[:2])])
    assert torch.allclose(whole[[2, 0, 1]], parts, atol=1e-4)
    assert not torch.allclose(whole, run(examples, seed=1), atol=1e-3)


def test_posterior_noise_is_not_the_start(model, examples):
    """Both are unit noise of the latents' shape; one generator would make them equal."""
    task, pipeline = Task(), model.pipeline
    start = _task.initial_noise(pipeline, examples, 0)
    with torch.inference_mode():
        latents = task.encode(pipeline, examples, 0)["image_latents"]
        other = task.encode(pipeline, examples, 1)["image_latents"]
        image = torch.stack([example.image for example in examples]) * 2 - 1
        posterior = pipeline.vae.encode(image).latent_dist
    noise = (latents / pipeline.vae.config.scaling_factor - posterior.mean) / posterior.std
    assert noise.std() == pytest.approx(1, abs=0.15)
    assert not torch.equal(latents, other)
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), start.flatten()]))[0, 1]) < 0.15


@pytest.mark.parametrize("depth", [2, 5, 8, 9, 12])
def test_pruned_encoder_changes_nothing(model, examples, depth):
    """depth_skip alone, with the whole encoder, gives the picture that pruning gives."""
    cut = model.at(model.chosen(depth))
    assert len(cut.structure_encoder.feature_blocks) == num_structure_levels(cut.unet)
    conditioning = Task().encode(model.pipeline, examples)
    alone = tiny_random.stablesr_pipeline()
    for name, component in model.pipeline.components.items():
        setattr(alone, name, component)
    alone.unet = depth_skip(model.pipeline.unet, depth)
    images = [
        translate(Task(), pipeline, examples, Plan.over([999, 400]), conditioning=conditioning)
        for pipeline in (cut, alone)
    ]
    assert torch.allclose(*images, rtol=0, atol=1e-5)


def test_the_common_path_is_the_pipelines_own(model, examples):
    """Encoding, sampling and decoding through the task equal StableSRPipeline.__call__ with the same noise."""
    task, pipeline, timesteps = Task(fidelity_weight=0.8, color_fix="wavelet"), model.pipeline, [999, 700, 200]
    example = examples[0]
    generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        conditioning = task.encode(pipeline, [example])
        image = conditioning["image"]
        conditioning["image_latents"], _ = pipeline.encode_image(image, generator)
        start = _task.initial_noise(pipeline, [example], 0)
        ours = translate(task, pipeline, [example], Plan.over(timesteps), conditioning=conditioning)
        theirs = pipeline(
            example.image[None],
            timesteps=timesteps,
            upscale=1,
            fidelity_weight=0.8,
            color_fix="wavelet",
            eta=0,
            latents=start,
            generator=torch.Generator().manual_seed(5),
            output_type="pt",
        ).images
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_options_change_the_picture(model, examples):
    def picture(**options):
        return translate(Task(**options), model.pipeline, examples[:1], Plan.over([999, 0]))

    default = picture()
    assert torch.equal(default, picture(fidelity_weight=0.5, color_fix="adain"))
    assert not torch.equal(default, picture(fidelity_weight=1))
    assert not torch.equal(default, picture(color_fix="none"))


def test_ancestral_noise_is_the_steps_own(model, examples):
    """It is neither the start nor the posterior's, and the list decides how it is cut, not which it is."""
    start = _task.initial_noise(model.pipeline, examples[:1], 0)
    levels = model.pipeline.scheduler.alphas_cumprod
    generators = [_task.step_generator(0, examples[0].index)]
    (drawn,) = path_noise(start, [999, 0], levels, generators)
    with torch.inference_mode():
        image = examples[0].image[None] * 2 - 1
        posterior = model.pipeline.vae.encode(image).latent_dist
        latents = Task().encode(model.pipeline, examples[:1], 0)["image_latents"]
    encoded = (latents / model.pipeline.vae.config.scaling_factor - posterior.mean) / posterior.std
    for other in (start, encoded):
        assert abs(torch.corrcoef(torch.stack([drawn.flatten(), other.flatten()]))[0, 1]) < 0.25


# pictures


def test_translate_gives_four_times_any_size(idc, random_model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    sizes = {"one": (1, 1), "odd": (37, 41), "native": (64, 64), "long": (3, 50)}
    for name, size in sizes.items():
        Image.effect_noise(size, 80).convert("RGB").save(folder / f"{name}.png")
    common = (*SMOKE, f"model.path={random_model('stablesr')}", f"image={folder}", "num_inference_steps=2")
    result = idc("translate", *common, "output.path=out")
    assert result.code == 0, result.err
    for name, (width, height) in sizes.items():
        assert Image.open(f"out/{name}.png").size == (4 * width, 4 * height)
    settings = json.loads(Path("out/translate.json").read_text())
    assert settings["options"] == {"fidelity_weight": 0.5, "color_fix": "adain"}


def test_translate_repeats_itself_and_follows_options(idc, random_model):
    Image.effect_noise((9, 5), 80).convert("RGB").save("a.png")
    common = (*SMOKE, f"model.path={random_model('stablesr')}", "image=a.png", "num_inference_steps=2")
    for place, options in {"one": (), "two": (), "other": ("task.options.color_fix=none",)}.items():
        assert idc("translate", *common, *options, f"output.path={place}").code == 0
    one, two, other = (Path(f"{place}/a.png").read_bytes() for place in ("one", "two", "other"))
    assert one == two != other


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_a_translated_picture_is_the_one_that_an_evaluation_sees(model, sampler):
    picture, timesteps = Image.effect_noise((16, 16), 80).convert("RGB"), [999, 500, 0]
    photo, low = packaged("search")[0], to_tensor(picture)
    enlarged = torch.nn.functional.interpolate(low[None], scale_factor=4, mode="bicubic").clamp(0, 1)[0]
    example = Example(index=3, name="low", photo=photo.digest, image=enlarged)
    plan = Plan.over(timesteps, sampler=sampler)
    evaluated = translate(Task(), model.pipeline, [example], plan, seed=1)[0]
    _, translated = Task().translate_picture(model.pipeline, 3, photo, picture, None, plan, seed=1, translate=None)
    assert torch.allclose(evaluated, translated, atol=1e-5)


def test_the_work_on_tiles_is_told_before_it_begins(idc, random_model):
    Image.effect_noise((40, 20), 80).convert("RGB").save("wide.png")
    common = (*SMOKE, f"model.path={random_model('stablesr')}", "num_inference_steps=2")
    result = idc("translate", *common, "image=wide.png", "output.path=out")
    assert result.code == 0, result.err
    assert "wide.png: worked on at 160 x 96 px, 8 tiles in each of 2 steps: the U-Net takes about " in result.out
    Image.effect_noise((16, 16), 80).convert("RGB").save("one.png")
    result = idc("translate", *common, "image=one.png", "output.path=out2")
    assert result.code == 0 and "tiles" not in result.out


@pytest.mark.parametrize("size", [(640, 1), (1, 640), (20_000, 2)])
def test_a_strip_that_is_mostly_waste_is_refused(idc, random_model, size):
    Image.new("RGB", size).save("strip.png")
    result = idc("translate", *SMOKE, f"model.path={random_model('stablesr')}", "image=strip.png", "output.path=out")
    assert result.code == 2 and result.err.count("\n") == 1
    assert f"strip.png, {size[0]} x {size[1]} px, would be worked on at " in result.err
    assert "the limit for a strip of less than 4 px across is 64 tiles" in result.err


def test_a_picture_that_is_too_large_is_refused(idc, random_model):
    Image.new("L", (5000, 3500)).save("large.png")
    result = idc("translate", *SMOKE, f"model.path={random_model('stablesr')}", "image=large.png", "output.path=out")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "20,000 x 14,016 px, 280 megapixels; the limit is 268, so crop the picture or scale it down" in result.err


def test_tiles_are_counted_as_they_are_computed(model):
    tiles = _tiles(model.pipeline)
    picture, calls = Image.effect_noise((60, 11), 80).convert("RGB"), []
    model.pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    patches = {"patch_size": 128, "patch_overlap": 32}
    model.pipeline(picture, timesteps=[999], output_type="pt", **tiles, **patches)
    *_, canvas = model.pipeline.working_sizes(11, 60, 4, tiles["tile_size"])
    assert model.pipeline.count_tiles(canvas, **tiles, **patches) == len(calls) > 4


# the conversion


@pytest.fixture
def converted(monkeypatch):
    """Stands for the conversion itself, which tests/models examine; what it is called with."""
    calls = []

    def convert_to_folder(main, cfw, output, config=None):
        calls.append((main, cfw, config))
        tiny_random.stablesr_pipeline().save_pretrained(output)
        if "bad" in str(main):
            raise ValueError("2 keys of bad.ckpt that belong to no part of StableSR: a, b")

    monkeypatch.setattr("idcompress.models.stablesr.convert_to_folder", convert_to_folder)
    for name in ("main.ckpt", "cfw.ckpt", "bad.ckpt", "model.json"):
        Path(name).write_bytes(b"{}")
    return calls


CONVERT = ("convert", "task=stablesr", "convert.cfw_ckpt=cfw.ckpt")


def test_convert_writes_a_folder_that_every_stage_takes(idc, converted):
    result = idc(*CONVERT, "convert.main_ckpt=main.ckpt", "convert.config=model.json", "output.path=made/model")
    assert result.code == 0, result.err
    assert converted == [(Path("main.ckpt"), Path("cfw.ckpt"), Path("model.json"))]
    assert "recipe" not in result.out
    assert idc("depth-search", *SMOKE, "model.path=made/model", "depth=9").code == 0
    # nothing is ever overwritten
    again = idc(*CONVERT, "convert.main_ckpt=main.ckpt", "output.path=made/model")
    assert again.code == 2 and "not an empty folder" in again.err and again.err.count("\n") == 1
    assert len(converted) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("output.path=out", "convert.main_ckpt=FILE"),
        ("convert.main_ckpt=main.ckpt", "output.path=FOLDER"),
        ("convert.main_ckpt=nowhere.ckpt output.path=out", "nowhere.ckpt: no such file"),
        ("convert.main_ckpt=bad.ckpt output.path=out", "belong to no part of StableSR: a, b"),
        ("convert.main_ckpt=main.ckpt output.path=out task=ip2p", "want task=stablesr"),
        ("convert.main_ckpt=main.ckpt output.path=main.ckpt", "not an empty folder"),
    ],
)
def test_convert_mistakes(idc, converted, arguments, message):
    command = [word for word in CONVERT if not (word.startswith("task=") and "task=" in arguments)]
    result = idc(*command, *arguments.split())
    assert result.code == 2
    assert message in result.err and result.err.count("\n") == 1
    assert not Path("out").exists() and not Path("out.partial").exists()
    assert not Path("outputs").exists()


def test_a_file_that_is_no_checkpoint(idc):
    for name in ("main.ckpt", "cfw.ckpt"):
        Path(name).write_bytes(b"")
    for content in (b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)):
        Path("main.ckpt").write_bytes(content)
        result = idc(*CONVERT, "convert.main_ckpt=main.ckpt", "output.path=out")
        assert result.code == 2
        assert "main.ckpt" in result.err and result.err.count("\n") == 1


# mistakes


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("model=official", "run `idc convert task=stablesr"),
        ("task.options.color_fix=adian model.path={model}", "must be one of adain, wavelet, none"),
        ("task.options.fidelity_weight=1.5 model.path={model}", "between 0 and 1"),
        ("task.options.fidelity=1 model.path={model}", "task.options.fidelity"),
        ("+task.options.fidelity=1 model.path={model}", "did you mean 'fidelity_weight'"),
        ("guidance_scale=3 model.path={model}", "without guidance"),
        ("task=ip2p guidance_scale=null", "guidance_scale must be a number"),
        ("task=ip2p +task.options.color_fix=adain", "unknown key task.options.color_fix"),
    ],
)
def test_mistakes_are_one_line(idc, random_model, arguments, message):
    arguments = arguments.format(model=random_model("stablesr")).split()
    task = [] if any(word.startswith("task=") for word in arguments) else ["task=stablesr"]
    result = idc("depth-search", "experiment=smoke", *task, *arguments)
    assert result.code == 2
    assert message in result.err, result.err
    assert result.err.count("\n") == 1


def test_translate_does_not_sample_by_dpm_solver(idc, random_model):
    Image.new("RGB", (4, 4)).save("a.png")
    common = (*SMOKE, f"model.path={random_model('stablesr')}", "image=a.png")
    result = idc("translate", *common, "sampler=dpm_solver")
    assert result.code == 2 and "sampler=ddim" in result.err


def test_a_model_without_a_prompt_says_so(idc):
    pipeline = tiny_random.stablesr_pipeline()
    pipeline.register_modules(prompt_embedding=None)
    pipeline.save_pretrained("model")
    Image.new("RGB", (4, 4)).save("a.png")
    for command in ("depth-search", "translate"):
        result = idc(command, *SMOKE, "model.path=model", "image=a.png")
        assert result.code == 2 and result.err.count("\n") == 1
        assert "text tower" in result.err


def test_a_model_without_a_size_says_so(tmp_path):
    pipeline = tiny_random.stablesr_pipeline()
    pipeline.unet.register_to_config(sample_size=None)
    pipeline.save_pretrained(tmp_path / "model")
    model = load_source("stablesr", {"name": "random", "path": str(tmp_path / "model")})
    with pytest.raises(IdcError, match="no sample_size"):
        native_size(model.pipeline)
