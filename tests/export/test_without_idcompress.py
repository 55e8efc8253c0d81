"""Exported folders in plain diffusers, where idcompress cannot be imported."""

import subprocess
import sys

import torch
from PIL import Image

from idcompress import load_pipeline

from .folders import GUIDANCE, export_to, noise, recipe_for

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


def test_plain_diffusers_runs_the_card(tmp_path, monkeypatch):
    """The embedded models: the code of each card, where idcompress cannot be imported, makes the in-process picture."""
    monkeypatch.chdir(tmp_path)
    folders = {}
    for task in ("ip2p", "controlnet"):
        recipe = recipe_for(task, None, 9, timesteps=(970, 640, 300, 40))
        folder = export_to(tmp_path / task, recipe)
        picture = noise(64)
        picture.save(folder / "input.png")
        folders[task] = (folder, recipe, picture)
    command = [sys.executable, "-c", STOCK_PROGRAM, *(str(folder) for folder, _, _ in folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for task, (folder, recipe, picture) in folders.items():
        torch.manual_seed(7)
        pipe = load_pipeline(recipe)
        prompt = "make it warmer" if task == "ip2p" else "a bright photograph"
        ours = pipe(prompt, image=picture, num_inference_steps=4, **GUIDANCE[task], output_type="pt").images[0]
        theirs = Image.open(folder / "output.png")
        difference = ours * 255 - torch.tensor(list(theirs.tobytes())).view(64, 64, 3).permute(2, 0, 1)
        assert difference.abs().max() <= 0.5 + 1e-4 * 255, task
