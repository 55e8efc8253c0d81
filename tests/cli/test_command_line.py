"""Help, listing, completion, sweeps, and one clear line for every mistake."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from idcompress import cli, registry

SMOKE = "experiment=smoke"


@pytest.mark.parametrize("command", [c for c in cli.commands() if c != "ls"])
def test_help_teaches(idc, command):
    result = idc(command, "--help")
    assert result.code == 0
    assert result.out.startswith(f"idc {command}")
    assert result.out.count(f"\n  idc {command}") >= 3, "three examples"


def test_usage(idc):
    result = idc("--help")
    assert result.code == 0
    assert all(command in result.out for command in cli.commands())
    assert idc().code == 2
    assert idc("--version").out.startswith("idc 0.")


def test_ls(idc):
    out = idc("ls").out
    for kind in ("task", "timesteps", "prune", "metric"):
        for name in registry.names(kind):
            assert f"\n  {name} " in out
    assert "official" in out
    assert idc("ls", "metrics").out.startswith("metrics:")
    assert idc("ls", "metricks").code == 2


def test_completion(idc, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "idc ")
    assert "depth-search" in idc("-sc", "query=bash").out
    monkeypatch.setenv("COMP_LINE", "idc tsopt timesteps=g")
    assert "timesteps=gamma" in idc("-sc", "query=bash").out
    assert "complete" in idc("-sc", "install=bash").out


def test_sweep(idc, random_model):
    result = idc(
        "tsopt", SMOKE, "-m", f"model.path={random_model('ip2p')}", "timesteps=uniform,quadratic", "recipe=none"
    )
    assert result.code == 0, result.err
    found = sorted(Path("outputs").glob("ip2p/*/tsopt/*/recipe.json"))
    assert len(found) == 2
    plans = [json.loads(path.read_text())["plan"] for path in found]
    lists = [[step["timestep"] for step in plan["steps"]] for plan in plans]
    assert lists == [[999, 0], [999, 249]]
    alias = idc("timestep-search", SMOKE, f"model.path={random_model('ip2p')}", "timesteps=uniform", "seed=3")
    assert alias.code == 0


MISTAKES = {
    "depth-searhc": "did you mean 'depth-search'",
    "depth-search depth_search.num_sample=3": "did you mean 'depth_search.num_samples'",
    "depth-search +foo=1": "foo",
    "depth-search seed=abc": "seed",
    "depth-search task=ip2": "did you mean 'ip2p'",
    "depth-search model=oficial": "did you mean 'official'",
    "tsopt timesteps=gama": "did you mean 'gamma'",
    "tsopt timesteps.gama=1": "did you mean 'timesteps.gamma'",
    "tsopt timesteps.bias=abc model.path={ip2p}": "timesteps.bias must be a number",
    "tsopt +timesteps.foo=1 model.path={ip2p}": "timesteps.foo",
    "tsopt timesteps.search=sideways model.path={ip2p} experiment=smoke": "search must be one of",
    "tsopt tsopt.reference=ful": "did you mean 'full'",
    "depth-search device=cud": "did you mean 'cuda'",
    "depth-search depth=0": "depth must be at least 1",
    "depth-search depth=99 model.path={ip2p}": "between 1 and 13",
    "tsopt depth=99 model.path={ip2p}": "between 1 and 13",
    "depth-search num_inference_steps=0": "between 1 and 1000",
    "tsopt tsopt.num_inference_steps=2000": "between 1 and 1000",
    "tsopt tsopt.num_inference_steps=[5,0]": "between 1 and 1000",
    "tsopt tsopt.num_inference_steps=many": "tsopt.num_inference_steps must be an integer",
    "evaluate batch_size=0": "batch_size must be at least 1",
    "evaluate evaluate.metrics=[psrn]": "did you mean 'psnr'",
    "depth-search depth_search.thresholds=5": "depth_search.thresholds must be like",
    "depth-search depth_search.thresholds=[{metric:psrn,bound:1}]": "did you mean 'psnr'",
    "depth-search depth_search.thresholds=[{metric:psnr,bound:1,direction:up}]": "at_least or at_most",
    "compress compress.stages=[depth_serch]": "depth_serch",
    "depth-search model.path=nowhere": "nowhere is no folder",
    "depth-search model.path={controlnet}": "wants a StableDiffusionInstructPix2PixPipeline",
    "depth-search model=official": "are not in the hub cache",
    "evaluate recipe=nothere.json": "nothere.json",
    "translate model.path={ip2p}": "image=FILE",
    "translate image=nothere.png model.path={ip2p}": "nothere.png",
    "translate image={text} model.path={ip2p}": "text.png",
    "translate image={cut} model.path={ip2p}": "cut.png",
    "translate image={empty} model.path={ip2p}": "empty",
    "depth-search data.path=nowhere model.path={ip2p} experiment=smoke": "nowhere",
    "depth-search data.path={empty} model.path={ip2p} experiment=smoke": "empty",
    "depth-search device=cuda model.path={ip2p}": "device=cuda",
    "depth-search hydra.run.dir=/proc/nothere model.path={ip2p}": "/proc/nothere",
    "depth-search --config-dir nowhere": "nowhere",
    "depth-search --config-dir=nowhere": "the configuration folder nowhere does not exist",
}


@pytest.mark.parametrize("flag", [["--config-dir=own"], ["--config-path", "own"], ["--config-path=own"]])
def test_own_configuration_folders_are_relative_to_the_working_folder(idc, flag):
    folder = Path("own/experiment")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nseed: 4321\n")
    result = idc("tsopt", "experiment=mine", *flag, "--cfg", "job")
    assert result.code == 0, result.err
    assert "seed: 4321" in result.out


@pytest.fixture
def places(random_model, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no picture at all")
    Image.radial_gradient("L").save(cut)
    cut.write_bytes(cut.read_bytes()[:400])
    return {
        "ip2p": random_model("ip2p"),
        "controlnet": random_model("controlnet"),
        "empty": empty,
        "text": text,
        "cut": cut,
    }


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes(idc, places, line):
    if "device=cuda" in line:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
    filled = re.sub(r"\{(\w+)\}", lambda name: str(places[name[1]]), line)
    result = idc(*filled.split())
    assert result.code == 2, result
    assert result.err.startswith("idc: error: ")
    assert result.err.count("\n") == 1, result.err
    assert MISTAKES[line] in result.err
    assert not any(Path().rglob("recipe.json")), "nothing half-written"
    assert not Path("outputs").exists() or not any(p.is_file() for p in Path("outputs").rglob("*")), "nothing left"


@pytest.mark.parametrize("damage", ["weights", "config", "component", "short"])
def test_half_copied_model(idc, random_model, tmp_path, damage):
    folder = tmp_path / "half"
    shutil.copytree(random_model("ip2p"), folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "weights":
        weights.unlink()
    elif damage == "config":
        (folder / "vae" / "config.json").unlink()
    elif damage == "component":
        shutil.rmtree(folder / "text_encoder")
    else:
        os.truncate(weights, weights.stat().st_size // 2)
    result = idc("depth-search", SMOKE, f"model.path={folder}")
    named = {"weights": "unet", "config": "vae/config.json", "component": "text_encoder", "short": "cut short"}
    assert result.code == 2
    assert named[damage] in result.err
    assert result.err.count("\n") == 1


def test_one_photograph_never_serves_both(idc, random_model, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((64, 64), 30 + i).convert("RGB").save(folder / f"{i}.png")
    common = (SMOKE, f"model.path={random_model('ip2p')}", f"data.path={folder}", "prompt=make it darker")
    assert idc("depth-search", *common).code == 0
    assert idc("evaluate", *common).code == 0
    recipe = json.loads(next(Path("outputs").glob("*/*/depth_search/*/recipe.json")).read_text())
    assert set(recipe["provenance"][0]["photographs"]) == {"0", "2"}
    table = next(Path("outputs").glob("*/*/evaluate/*/per_image.csv")).read_text()
    assert {line.split(",")[1] for line in table.splitlines()[1:]} <= {
        "0000_1",
        "0000_1_darker",
        "0001_1",
        "0001_1_darker",
    }
    (folder / "1.png").unlink()
    result = idc("evaluate", *common, "seed=1")
    assert result.code == 2
    assert "no photograph" in result.err
    (folder / "2.png").unlink()
    assert "at least 2" in idc("depth-search", *common).err
