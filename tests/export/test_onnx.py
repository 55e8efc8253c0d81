"""idc export export.format=onnx: the card's sampler makes the in-process picture; every depth; what is refused."""

import dataclasses
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from idcompress import Recipe, load_pipeline, registry
from idcompress.adapters.pipeline import own_pipeline
from idcompress.core.plan import Plan, Step
from idcompress.errors import IdcError
from idcompress.export import onnx
from idcompress.models.stablesr import pipeline as stablesr
from idcompress.sources.load import load_source
from idcompress.stages import export

from .folders import TASKS, export_to, noise, recipe_for

GRAPHS = {
    "ip2p": {"text_encoder", "vae_encoder", "unet", "vae_decoder"},
    "controlnet": {"text_encoder", "controlnet", "unet", "vae_decoder"},
    "stablesr": {"vae_encoder", "structure_encoder", "unet", "vae_decoder"},
    "inpaint": {"text_encoder", "vae_encoder", "unet", "vae_decoder"},
    "high_frequency": {"text_encoder", "vae_encoder", "unet", "vae_decoder"},
}
PROMPTS = {"ip2p": "make it warmer", "controlnet": "a bright photograph"}


@pytest.fixture
def said(monkeypatch, tmp_path):
    """Lines that the stage says, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    lines = []
    monkeypatch.setattr(export, "say", lines.append)
    return lines


def run_card(folder, monkeypatch):
    """Execute the card's Python in its folder: what it leaves behind."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(folder)
    names = {}
    exec(code, names)
    return names


def in_process(recipe, picture, monkeypatch):
    """The pixels (H, W, 3) that the pipeline makes of a picture from the card's noise."""
    pipe, rng = load_pipeline(recipe), np.random.default_rng(0)

    def draw(height, width):
        return torch.from_numpy(rng.standard_normal((1, pipe.vae.config.latent_channels, height, width), np.float32))

    if recipe.task == "stablesr":
        # the card's enlargement is Pillow's; posterior noise comes first
        picture = picture.resize((64, 64), Image.Resampling.BICUBIC)
        posterior = draw(8, 8)
        monkeypatch.setattr(stablesr, "randn_like", lambda mean, generator: posterior)
        return pipe(picture, upscale=1, eta=0, latents=draw(8, 8), output_type="np").images[0]
    side = picture.width // (2 ** (len(pipe.vae.config.block_out_channels) - 1))
    arguments = {"latents": draw(side, side), "num_inference_steps": len(recipe.timesteps), "output_type": "np"}
    arguments |= {"guidance_scale": 1.0} | recipe.guidance
    if recipe.task == "inpaint":  # the card's hole; its posterior is not drawn
        arguments["mask_image"] = Image.new("L", picture.size)
        arguments["mask_image"].paste(255, (8, 8, 24, 24))
        monkeypatch.setattr(pipe, "_encode_vae_image", lambda image, generator: mode(pipe.vae, image))
    return pipe(PROMPTS.get(recipe.task, ""), image=picture, **arguments).images[0]


def mode(vae, image):
    return vae.encode(image).latent_dist.mode() * vae.config.scaling_factor


@pytest.mark.parametrize("task", [*TASKS, "inpaint", "high_frequency"])
def test_the_card_makes_the_picture(task, random_model, tmp_path, said, monkeypatch):
    """Folded: the NumPy sampler gives the pixels of the pipeline that is not folded."""
    # the embedded ip2p predicts v, the random models predict noise
    recipe = recipe_for(task, None if task == "ip2p" else random_model(task), 4)
    folder = export_to(tmp_path / "graphs", recipe, format="onnx", fold=True)
    assert {path.name for path in folder.glob("*.onnx")} == {f"{name}.onnx" for name in GRAPHS[task]}

    picture = noise(16 if task == "stablesr" else 32)
    picture.save(folder / "input.png")
    made = run_card(folder, monkeypatch)["pixels"]
    assert np.abs(made - in_process(recipe, picture, monkeypatch)).max() <= 1e-4
    assert Image.open(folder / "output.png").size == made.shape[1::-1]

    row = Recipe.load(folder).provenance[-1]
    assert (row["depth"], row["format"]) == (4, "onnx")
    assert set(row["errors"]) == GRAPHS[task] and max(row["errors"].values()) <= 1e-5
    card, lines = (folder / "README.md").read_text(), "\n".join(said)
    for what, saved in row["folded"].items():
        assert f"folded: {what}, {saved:,} parameters less" in lines
        assert f"| folded: {what} | {saved:,} parameters less |" in card
    assert row["folded"]["timesteps"] > 0
    assert (row["folded"].get("prompt", 0) > 0) == (task == "stablesr")
    assert set(row["files"]) >= {f"{name}.onnx" for name in GRAPHS[task]} | {"unet.onnx.data"}
    assert all(digest in card for digest in row["files"].values())
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not any(str(tmp_path).encode() in text for text in texts)
    with pytest.raises(IdcError, match=r"holds ONNX graphs; its README\.md runs them"):
        load_pipeline(folder)


ROWS = ((0.01, -0.02), (0.02, -0.03, 0.01), (), (0.03, 0.0, -0.02, 0.01))


@pytest.mark.parametrize("task", ["ip2p", "stablesr"])
def test_fitted_steps_sample_alike_in_numpy(task, random_model, tmp_path, said, monkeypatch):
    """Folded: the card's sampler gives the pixels of torch's, and other pixels than DDIM."""
    recipe = recipe_for(task, random_model(task), 4)
    fitted = dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, sampler="fitted", coefficients=ROWS))
    monkeypatch.setattr(Recipe, "check_fit", lambda *_: None)  # the numbers are ours
    folder = export_to(tmp_path / "graphs", fitted, sampler="fitted", format="onnx", fold=True)
    picture = noise(16 if task == "stablesr" else 32)
    picture.save(folder / "input.png")
    made = run_card(folder, monkeypatch)["pixels"]
    assert np.abs(made - in_process(fitted, picture, monkeypatch)).max() <= 1e-4
    assert np.abs(made - in_process(recipe, picture, monkeypatch)).max() > 1e-3


PLANS = {
    "ip2p": ("linear", ("unet", "unet_5", "unet_3")),
    "controlnet": ("hold", ("unet", "unet_5", "unet_3", "controlnet", "controlnet_5", "controlnet_3")),
    "stablesr": (
        "zero",
        ("unet", "unet_5", "unet_3", "structure_encoder", "structure_encoder_5", "structure_encoder_3"),
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_plan_is_a_graph_for_each_depth(task, random_model, tmp_path, said, monkeypatch):
    """The card's program holds hidden states, guidance differences and side networks' outputs as load_pipeline does."""
    fill, graphs = PLANS[task]
    steps = (Step(981), Step(700), Step(640, 5, "held", False), Step(300, 3), Step(3, 5, "text", False))
    recipe = recipe_for(task, random_model(task), None)
    plan = dataclasses.replace(recipe.plan, steps=steps, fill=fill)
    recipe = dataclasses.replace(recipe, plan=plan)
    folder = export_to(tmp_path / "graphs", recipe, format="onnx")
    assert {path.stem for path in folder.glob("*.onnx")} == GRAPHS[task] | {*graphs}
    assert max(Recipe.load(folder).provenance[-1]["errors"].values()) <= 1e-5
    picture = noise(16 if task == "stablesr" else 32)
    picture.save(folder / "input.png")
    made = run_card(folder, monkeypatch)["pixels"]
    assert np.abs(made - in_process(recipe, picture, monkeypatch)).max() <= 1e-4
    whole = dataclasses.replace(recipe, plan=plan.all_whole)
    assert np.abs(made - in_process(whole, picture, monkeypatch)).max() > 1e-3


@pytest.mark.parametrize(("precision", "difference"), [("float16", 0.01), ("int8", 0.2)])
def test_smaller_numbers_make_smaller_graphs_of_nearly_the_same_picture(
    precision, difference, random_model, tmp_path, said, monkeypatch
):
    recipe = recipe_for("controlnet", random_model("controlnet"), 4)
    folder = export_to(tmp_path / "graphs", recipe, format="onnx", precision=precision)
    picture = noise(32)
    picture.save(folder / "input.png")
    made = run_card(folder, monkeypatch)["pixels"]
    error = np.abs(made - in_process(recipe, picture, monkeypatch)).max()
    assert 1e-6 < error < difference
    row = Recipe.load(folder).provenance[-1]
    assert set(row["precision"]) == GRAPHS["controlnet"]
    eight = {"unet", "controlnet"} if precision == "int8" else set()
    assert {name for name, inside in row["precision"].items() if inside == "int8"} == eight
    for name in GRAPHS["controlnet"]:
        (line,) = [line for line in said if line.startswith(f"{name}.onnx: ")]
        size = sum((folder / f"{name}{end}").stat().st_size for end in (".onnx", ".onnx.data"))
        assert f"{size / 1e6:.2f} MB in {row['precision'][name]}, " in line
        assert {path.name for path in folder.glob(f"{name}*")} == {f"{name}.onnx", f"{name}.onnx.data"}
    assert f"| weights | {precision} |" in (folder / "README.md").read_text()


def test_a_stock_folder_as_graphs(random_model, tmp_path, said, monkeypatch):
    """Its control branch has whole levels and a middle block: the graphs pass on what the U-Net reads.

    At depth 1 time and text play no part in the branch, and its graph takes neither.
    """
    recipe = recipe_for("controlnet", random_model("controlnet"), 1)
    stock = export_to(tmp_path / "stock", recipe)
    again = Recipe.load(stock)
    again = dataclasses.replace(again, model=again.model | {"path": str(stock)})
    folder = export_to(tmp_path / "graphs", again, format="onnx")
    noise(32).save(folder / "input.png")
    made = run_card(folder, monkeypatch)["pixels"]
    assert np.abs(made - in_process(recipe, noise(32), monkeypatch)).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_every_depth(task, fold, random_model, tmp_path):
    """All graphs at other batches and sizes than the traced one, odd sizes among them."""
    source = {"name": "tiny", "path": str(random_model(task))}
    model = load_source(task, source, device="cpu", dtype="float32", prune="depth_skip")
    for depth in range(13, 0, -1):
        if depth == 13 and fold:
            continue  # it would fold the model that the other depths are cut from
        pipeline = own_pipeline(model.at(model.chosen(depth)), Plan.over([640, 3]))
        folder = tmp_path / str(depth)
        folder.mkdir()
        found = registry.load("task", task).Task().graphs(pipeline)
        odd = onnx.example_values(pipeline, found, 1, 9, 15, 640)
        errors, saved, _ = onnx.export_onnx(pipeline, found, folder, [640, 3], fold=fold)
        assert max(errors.values()) <= 1e-5, depth
        assert ("zeros at the cut" in saved) == fold
        unet = next(graph for graph in found if graph.name == "unet")
        assert onnx.largest_error(unet, odd, folder / "unet.onnx") <= 1e-5, depth


def test_a_recipe_without_timesteps_takes_uniform_ones(random_model, tmp_path, said):
    recipe = recipe_for("ip2p", random_model("ip2p"), 1, timesteps=None)
    folder = export_to(tmp_path / "graphs", recipe, format="onnx", fold=True)
    row = Recipe.load(folder).provenance[-1]
    assert list(row["folded"]) == ["zeros at the cut"]  # the list is only the example's
    assert "timesteps = [999, 978, " in (folder / "README.md").read_text()


def test_a_graph_that_differs_is_no_export(random_model, tmp_path, said, monkeypatch):
    monkeypatch.setitem(onnx.TOLERANCE, "float32", 0.0)
    with pytest.raises(IdcError, match=r"text_encoder\.onnx is off by .* of the largest value"):
        export_to(tmp_path / "graphs", recipe_for("ip2p", random_model("ip2p"), 1), format="onnx")
    assert not list(tmp_path.glob("graphs*"))


def test_mistakes(idc, random_model, monkeypatch):
    common = (f"model.path={random_model('ip2p')}", "export.path=out")
    assert "export.fold: no stock class" in idc("export", *common, "export.fold=true").err
    half = idc("export", *common, "export.format=onnx", "dtype=float16").err
    assert "export.format=onnx is traced in float32, got dtype=float16" in half
    assert "export.precision=int8 is for export.format=onnx" in idc("export", *common, "export.precision=int8").err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    missing = idc("export", *common, "export.format=onnx").err
    assert "export.format=onnx needs the package onnxruntime: pip install 'idcompress[onnx]'" in missing
