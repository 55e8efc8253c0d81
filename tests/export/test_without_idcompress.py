"""Exported folders in plain diffusers, where idcompress cannot be imported."""

import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image

from idcompress import load_pipeline

from .folders import export_to, noise, recipe_for

STOCK_PROGRAM = """
import importlib.abc, os, re, sys, torch
from pathlib import Path
from PIL import Image

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "idcompress":
            raise ImportError("idcompress is hidden")

sys.meta_path.insert(0, Hidden())
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    os.chdir(folder)
    code = re.search(r"```python\\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[1]
    torch.manual_seed(7)
    exec(code)
assert "idcompress" not in sys.modules
"""


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """folder -> recipe of every embedded model that has a stock form."""
    monkeypatch.chdir(tmp_path)
    folders = {}
    for task in ("ip2p", "controlnet"):
        recipe = recipe_for(task, None, 9, timesteps=(970, 640, 300, 40))
        folder = export_to(tmp_path / task, recipe)
        noise(64).save(folder / "input.png")
        folders[folder] = recipe
    return folders


def run_cards(exported, *python):
    """Run the code of each card where idcompress cannot be imported, and look at the picture that it wrote."""
    command = [*python, "-c", STOCK_PROGRAM, *map(str, exported)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder, recipe in exported.items():
        check(folder, recipe)


def check(folder, recipe):
    """The picture that the card's code wrote is the in-process one: to 1e-4, before rounding to 8 bits."""
    torch.manual_seed(7)
    prompt = "make it warmer" if recipe.task == "ip2p" else "a bright photograph"
    steps = len(recipe.timesteps)
    pipe = load_pipeline(recipe)
    ours = pipe(prompt, image=noise(64), num_inference_steps=steps, **recipe.guidance, output_type="pt").images[0]
    theirs = torch.tensor(list(Image.open(folder / "output.png").tobytes())).view(64, 64, 3).permute(2, 0, 1)
    assert (ours * 255 - theirs).abs().max() <= 0.5 + 1e-4 * 255


def test_plain_diffusers_runs_the_card(exported):
    """The embedded models: the code of each card, where idcompress cannot be imported, makes the in-process picture."""
    run_cards(exported, sys.executable)


@pytest.mark.slow
def test_a_second_environment(exported, tmp_path):
    """The same in an environment of its own that has diffusers, transformers and no idcompress."""
    home = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    # the libraries are this environment's, all but the one that must not be there
    libraries = next(home.glob("lib/python*/site-packages"))
    for path in Path(diffusers.__file__).parents[1].iterdir():
        if "idcompress" not in path.name:
            (libraries / path.name).symlink_to(path)
    python = home / "bin/python"
    absent = subprocess.run([python, "-I", "-c", "import idcompress"], capture_output=True, check=False)
    assert absent.returncode == 1
    run_cards(exported, python, "-I")
