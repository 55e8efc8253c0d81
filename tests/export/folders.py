"""What the tests of exported folders share."""

import json

import numpy as np
import torch
from PIL import Image

from idcompress import Recipe, gamma_timesteps
from idcompress.config import Config, ExportConfig, ModelConfig, TaskConfig
from idcompress.core.cut import Cut
from idcompress.core.plan import Plan
from idcompress.runs.run_dir import RunDir
from idcompress.stages import export

TASKS = ("ip2p", "controlnet", "stablesr")
GUIDANCE = {
    "ip2p": {"guidance_scale": 2.0, "image_guidance_scale": 1.3},
    "controlnet": {"guidance_scale": 2.0},
    "stablesr": {},
    "inpaint": {"guidance_scale": 2.0},
    "high_frequency": {},
}
TIMESTEPS = (981, 640, 3, 3)  # uneven, with a repeat


def recipe_for(task, model, depth, timesteps=TIMESTEPS, sampler="ddim", **changes):
    source = {"name": "tiny", "path": None if model is None else str(model), "repositories": None, "revision": None}
    cut = None if depth is None else Cut("depth_skip", {"depth": depth})
    plan = Plan.over(
        gamma_timesteps(1.0, 50) if timesteps is None else timesteps, sampler=sampler, guidance=GUIDANCE[task]
    )
    return Recipe(task, source, cut, plan=plan, free_steps=timesteps is None, **changes)


def export_to(folder, recipe, sampler="ddim", **settings):
    """The stage itself, without the command line."""
    config = Config(
        task=TaskConfig(recipe.task, 1, {}),
        model=ModelConfig("tiny", path=recipe.model["path"]),
        prune={"name": "depth_skip"},
        timesteps={"name": "uniform"},
        sampler=sampler,
        export=ExportConfig(path=str(folder), **settings),
    )
    assert export.run(config, [recipe], RunDir(folder.parent, False, {"digest": "of the run"})) == []
    return folder


def noise(size):
    """A picture, always the same."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def arguments(task):
    """A call with given latents, the same for every pipeline of the task."""
    generator = torch.Generator().manual_seed(0)
    size = 16 if task == "stablesr" else 32
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    common = {"image": noise(size), "latents": latents, "output_type": "pt" if task == "stablesr" else "latent"}
    if task == "stablesr":
        return common | {"generator": torch.Generator().manual_seed(1), "eta": 0}
    return common | GUIDANCE[task] | {"prompt": "make it warmer", "num_inference_steps": len(TIMESTEPS)}


def classes(folder):
    index = json.loads((folder / "model_index.json").read_text())
    return {name: entry for name, entry in index.items() if isinstance(entry, list) and entry[0]}
