"""idc export: what a folder holds, what comes along, what damages it, and translate through it."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from idcompress import Recipe, load_pipeline
from idcompress.errors import IdcError

from .folders import TASKS, TIMESTEPS, arguments, classes, export_to, noise, recipe_for


def test_fine_tuned_weights_travel(random_model, tmp_path, monkeypatch):
    """They were trained with zeros at the cut; the export silences the entries that the stock form must not use."""
    monkeypatch.chdir(tmp_path)
    plain = recipe_for("ip2p", random_model("ip2p"), 9)
    weights = {name: w + 0.01 * torch.randn_like(w) for name, w in load_pipeline(plain).unet.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    entry = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    tuned = recipe_for("ip2p", random_model("ip2p"), 9, weights={"unet": entry}, folder=tmp_path)
    folder = export_to(tmp_path / "out", tuned)
    made = [load_pipeline(which)(**arguments("ip2p")).images for which in (tuned, folder, plain)]
    assert torch.allclose(made[0], made[1], atol=1e-4)
    assert not torch.allclose(made[0], made[2], atol=1e-2)
    assert Recipe.load(folder).weights == {}


def test_a_depth_without_timesteps_keeps_the_scheduler(random_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = export_to(tmp_path / "out", recipe_for("ip2p", random_model("ip2p"), 9, timesteps=None))
    assert classes(folder)["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert type(load_pipeline(folder).scheduler).__name__ == "DDIMScheduler"


def test_loaded_pipelines_save_themselves(random_model, tmp_path):
    """What load_pipeline returns can be saved by diffusers' own method and loads as it was."""
    cut = load_pipeline(recipe_for("ip2p", random_model("ip2p"), 7))
    cut.save_pretrained(tmp_path / "again")
    again = load_pipeline(tmp_path / "again")
    assert again.unet.config.depth == 7
    made = [pipe(**arguments("ip2p")).images for pipe in (cut, again)]
    assert torch.allclose(*made, atol=1e-5)


def test_ancestral_sampling_travels(idc, random_model, tmp_path):
    path = recipe_for("ip2p", random_model("ip2p"), 9, sampler="ancestral").save(tmp_path / "recipe.json")
    assert idc("export", f"recipe={path}", "export.path=out").code == 0
    assert json.loads(Path("out/scheduler/scheduler_config.json").read_text())["algorithm_type"] == "sde-dpmsolver++"
    load_pipeline(path).save_pretrained("own")
    for place in (path, "out", "own"):
        assert load_pipeline(place).scheduler.config.eta == 1


@pytest.mark.parametrize(("sampler", "asked"), [("ddim", True), ("ancestral", False)])
def test_the_card_of_stablesr_asks_for_the_sampler_of_the_search(random_model, tmp_path, monkeypatch, sampler, asked):
    """Its pipeline samples ancestrally unless told otherwise."""
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for("stablesr", random_model("stablesr"), 9, sampler=sampler)
    assert (", eta=0)" in (export_to(tmp_path / "out", recipe) / "README.md").read_text()) == asked


# what is in a folder


def test_half_precision_halves_the_files(random_model, tmp_path, idc):
    recipe = recipe_for("ip2p", random_model("ip2p"), 9)
    path = recipe.save(tmp_path / "recipe.json")
    assert idc("export", f"recipe={path}", f"export.path={tmp_path / 'half'}", "dtype=float16").code == 0
    weights = load_file(tmp_path / "half/unet/diffusion_pytorch_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    assert "dtype=torch.float16" in (tmp_path / "half/README.md").read_text()


def test_contents(random_model, tmp_path, monkeypatch):
    """Safetensors, JSON and the card; no code, no pickles, no path of this machine."""
    monkeypatch.chdir(tmp_path)
    for task in TASKS:
        folder = export_to(tmp_path / task, recipe_for(task, random_model(task), 7))
        paths = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in paths} <= {".safetensors", ".json", ".txt", ".md"}
        texts = "".join(path.read_text() for path in paths if path.suffix != ".safetensors")
        assert str(random_model(task).parent) not in texts and str(tmp_path) not in texts
        recipe = Recipe.load(folder)
        assert recipe.depth is None and recipe.timesteps == TIMESTEPS
        row = recipe.provenance[-1]
        assert (row["stage"], row["depth"], row["base"]["folder"]) == ("export", 7, task)


def test_the_card_says_what_was_evaluated(idc, tmp_path):
    path = recipe_for("ip2p", None, 9, timesteps=(900, 300)).save(tmp_path / "recipe.json")
    idc("evaluate", f"recipe={path}", "experiment=smoke", "evaluate.metrics=[psnr]", "num_inference_steps=2")
    assert idc("export", f"recipe={path}", "export.path=out").code == 0
    card = Path("out/README.md").read_text()
    for line in ("license: apache-2.0", "| depth | 9 |", "| timesteps | 900, 300 |", "| psnr | exact |"):
        assert line in card
    assert "image_guidance_scale=1.3" in card
    code = card.split("```")[1].splitlines()[1:]
    assert len(code) == 5 + 2  # five to run it, two that make the scheduler follow the list
    assert "DeepCache" in card


# mistakes and damage


def test_mistakes(idc, random_model, tmp_path):
    model = f"model.path={random_model('ip2p')}"
    assert "export wants export.path=FOLDER" in idc("export", model).err
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "exists and is not an empty folder" in idc("export", model, f"export.path={tmp_path / 'full'}").err
    assert "export.format must be one of" in idc("export", model, "export.format=pickle", "export.path=out").err
    assert not Path("out").exists()


def test_push(random_model, tmp_path, monkeypatch):
    """By the hub's own client; a refusal leaves the folder and says how to go on."""
    import huggingface_hub

    calls = []

    class Hub:
        def create_repo(self, name, exist_ok):
            calls.append((name, exist_ok))

        def upload_folder(self, folder_path, repo_id):
            calls.append((sorted(p.name for p in folder_path.iterdir() if p.is_file()), repo_id))
            return "address"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    recipe = recipe_for("ip2p", random_model("ip2p"), 9)
    export_to(tmp_path / "a", recipe, push_to="me/small")
    assert calls == [("me/small", True), (["README.md", "model_index.json", "recipe.json"], "me/small")]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IdcError, match="hf upload me/small"):  # the test suite is offline
        export_to(tmp_path / "b", recipe, push_to="me/small")
    assert (tmp_path / "b/recipe.json").is_file()


@pytest.fixture(scope="module")
def exported(random_model, tmp_path_factory):
    here = Path.cwd()
    folder = tmp_path_factory.mktemp("exported")
    os.chdir(folder)
    yield export_to(folder / "model", recipe_for("ip2p", random_model("ip2p"), 9))
    os.chdir(here)


def test_damage_is_named(exported, tmp_path):
    def damaged(name, change):
        folder = tmp_path / name.replace("/", "_")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(exported, folder)
        change(folder / name)
        with pytest.raises(IdcError) as caught:
            load_pipeline(folder)
        assert str(folder / name) in str(caught.value)
        return str(caught.value)

    def swap(path):
        weights = load_file(path)
        first = next(iter(weights))
        save_file(weights | {first: weights[first] + 1}, path)

    unet = "unet/diffusion_pytorch_model.safetensors"
    assert "cut short" in damaged(unet, lambda p: p.write_bytes(p.read_bytes()[:-10]))
    assert "was changed" in damaged(unet, swap)
    assert "was changed" in damaged("scheduler/scheduler_config.json", lambda p: p.write_text(p.read_text() + " "))
    assert "is missing" in damaged("tokenizer/tokenizer.json", Path.unlink)
    assert "was not exported" in damaged("vae/model.safetensors", lambda p: shutil.copy(exported / unet, p))


def test_a_recipe_inside_a_folder_points_to_the_folder(exported):
    with pytest.raises(IdcError, match=r"used by model\.path=FOLDER"):
        load_pipeline(exported / "recipe.json")


# translate


def test_translate_takes_an_exported_folder(idc, tmp_path):
    """Its task, timesteps and guidance come along; the pictures are those of the recipe."""
    noise(64).crop((0, 0, 64, 48)).save(tmp_path / "photo.png")
    path = recipe_for("controlnet", None, 9, timesteps=(900, 300)).save(tmp_path / "recipe.json")
    folder = tmp_path / "small"
    assert idc("export", f"recipe={path}", f"export.path={folder}").code == 0
    common = (f"image={tmp_path / 'photo.png'}", "prompt=a dark picture")
    assert idc("translate", f"recipe={path}", *common, "output.path=a").code == 0
    compare = ("translate.compare=true", "num_inference_steps=2", "output.path=b")
    result = idc("translate", f"model.path={folder}", *common, *compare)
    assert result.code == 0, result.err
    ours, theirs = (torch.tensor(list(Image.open(f"{p}/photo.png").tobytes())) for p in "ab")
    assert (ours - theirs).abs().max() <= 1
    settings = json.loads(Path("b/translate.json").read_text())
    assert (settings["task"], settings["timesteps"], settings["guidance"]) == (
        "controlnet",
        [900, 300],
        {"guidance_scale": 2.0},
    )
    row = settings["images"][0]
    assert row["seconds"] > 0 and row["original_seconds"] > 0
    assert Image.open(Path("b") / row["compare"]).width > 2 * 64

    assert "exported for task=controlnet" in idc("translate", "task=ip2p", f"model.path={folder}", *common).err
