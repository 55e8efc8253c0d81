"""Exported embedded models inside what people already use: compilers, LoRA, LCM samplers, DeepCache, quantisation.

Depth 9 has a stock form, depth 7 has none and comes as an idcompress folder.
"""

import functools
import os
from pathlib import Path

import pytest
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import LCMScheduler, QuantoConfig, StableDiffusionInstructPix2PixPipeline, TCDScheduler, TorchAoConfig
from safetensors.torch import save_file

from idcompress import load_pipeline
from idcompress.images.photo_sets import packaged
from idcompress.images.pictures import crop_square
from idcompress.sources.load import load_source

from .folders import GUIDANCE, TASKS, export_to, recipe_for

TIMESTEPS = (970, 640, 300, 40)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(task, depth) -> the folder of an exported embedded model, written once."""
    root, here = tmp_path_factory.mktemp("exported"), Path.cwd()

    def folder(task="ip2p", depth=9):
        path = root / f"{task}_{depth}"
        if not path.exists():
            os.chdir(root)
            export_to(path, recipe_for(task, None, depth, TIMESTEPS))
            os.chdir(here)
        return path

    return folder


def picture(pipeline, task="ip2p"):
    """(3, H, W) in [0, 1] of the same photograph from the same noise."""
    words = {} if task == "stablesr" else {"prompt": "make it warmer", "num_inference_steps": len(TIMESTEPS)}
    image = crop_square(packaged("search")[0].open(), 16 if task == "stablesr" else 64)[None]
    arguments = words | GUIDANCE[task] | {"image": image, "generator": torch.Generator().manual_seed(1)}
    return pipeline(**arguments, output_type="pt").images[0].float().cpu()


def psnr(a, b):
    return float(-10 * torch.log10((a - b).square().mean()))


# compilers


def compiled_equals_eager(folder, backend, task="ip2p"):
    pipeline = load_pipeline(folder)
    wanted = picture(pipeline, task)
    for name in ("unet", "controlnet", "structure_encoder"):
        if name in pipeline.components:
            getattr(pipeline, name).compile(fullgraph=True, backend=backend)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made = picture(pipeline, task)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert (made - wanted).abs().max() <= 1e-4


def test_compiled_in_one_graph(exported):
    compiled_equals_eager(exported(depth=5), "eager")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("depth", [7, 9])
@pytest.mark.parametrize("task", TASKS)
def test_compiled_by_every_backend(exported, task, depth, backend):
    compiled_equals_eager(exported(task, depth), backend, task)


# offload


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("task", "depth"), [("ip2p", 9), ("controlnet", 7), ("stablesr", 7)])
def test_offloaded_to_the_cpu(exported, task, depth, device):
    """Components wait on the CPU; without an accelerator this shows that the hooks find their way."""
    pipeline = load_pipeline(exported(task, depth), device=device, dtype="float32")
    wanted = picture(pipeline, task)
    pipeline.enable_model_cpu_offload(device=device)
    assert pipeline.unet.device.type == "cpu"
    assert (picture(pipeline, task) - wanted).abs().max() <= 1e-4
    assert pipeline.unet.device.type == "cpu"


# LoRA


@pytest.mark.parametrize(("depth", "blocks"), [(9, ("down_blocks.1",)), (7, ("down_blocks", "mid_block", "up_blocks"))])
def test_lora_of_the_full_model(exported, tmp_path, depth, blocks):
    """On kept blocks it does what it does to the full model before the cut; unloaded, nothing is left of it.

    Cut models keep their names and take it whole. So does the encoder of stock forms; their decoder is renumbered.
    """
    recipe = recipe_for("ip2p", None, depth, TIMESTEPS)
    full = load_source("ip2p", recipe.model, device="cpu", dtype="float32", prune="depth_skip")
    generator, lora = torch.Generator().manual_seed(0), {}
    for name, layer in full.pipeline.unet.named_modules():
        if name.startswith(blocks) and name.endswith(("to_q", "to_v", "to_out.0")):
            down = torch.randn(2, layer.in_features, generator=generator) / 10
            up = torch.randn(layer.out_features, 2, generator=generator)
            lora |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            layer.weight += up @ down
    save_file(lora, tmp_path / "lora.safetensors")

    pipeline = load_pipeline(exported(depth=depth))
    before = picture(pipeline)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    adapted = picture(pipeline)
    pipeline.unload_lora_weights()
    assert torch.equal(picture(pipeline), before)
    assert (adapted - before).abs().max() > 0.01
    pipeline.unet = full.at(full.chosen(depth)).unet
    assert (adapted - picture(pipeline)).abs().max() <= 1e-4


# other samplers


@pytest.mark.parametrize("scheduler_class", [LCMScheduler, TCDScheduler])
def test_lcm_type_schedulers_take_the_timesteps(exported, scheduler_class):
    """In stock diffusers they follow the list of the folder and sample as they do in process."""
    stock = StableDiffusionInstructPix2PixPipeline.from_pretrained(exported())
    stock.set_progress_bar_config(disable=True)
    listed = stock.scheduler.config["timesteps"]
    in_process = load_pipeline(recipe_for("ip2p", None, 9, TIMESTEPS))
    made = []
    for pipeline in (stock, in_process):
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config)
        pipeline.scheduler.set_timesteps = functools.partial(follow, pipeline.scheduler.set_timesteps, listed)
        made.append(picture(pipeline))
        assert pipeline.scheduler.timesteps.tolist() == list(TIMESTEPS)
    assert (made[0] - made[1]).abs().max() <= 1e-4
    in_process.scheduler = load_pipeline(exported()).scheduler
    assert (made[0] - picture(in_process)).abs().max() > 0.01  # DDIM's


def follow(set_timesteps, listed, _, device=None):
    """What the card's two lines do for a pipeline that hands no list to its scheduler."""
    set_timesteps(timesteps=listed, device=device)


# DeepCache


@pytest.mark.parametrize("depth", [7, 9])
def test_deepcache(exported, depth):
    """Every second step takes the inner levels from the step before; stock forms want a middle block to wrap."""
    pipeline = load_pipeline(exported(depth=depth))
    plain = picture(pipeline)
    if depth == 9:
        with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'forward'"):
            DeepCacheSDHelper(pipe=load_pipeline(exported(depth=depth))).enable()
        pipeline.unet.mid_block = torch.nn.Module()
        pipeline.unet.mid_block.forward = lambda sample, *_: sample
    helper = DeepCacheSDHelper(pipe=pipeline)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    calls = []
    pipeline.unet.down_blocks[1].resnets[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    helper.enable()
    cached = picture(pipeline)
    helper.disable()
    assert len(calls) == 2
    assert 20 < psnr(cached, plain) < 40
    assert torch.equal(picture(pipeline), plain)


# quantisation


QUANTISATION = {
    "quanto": lambda: QuantoConfig("int8"),
    "torchao": lambda: TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()),
}


@pytest.mark.parametrize("backend", QUANTISATION)
@pytest.mark.parametrize("depth", [7, 9])
def test_quantised(exported, depth, backend):
    """diffusers loads a folder's U-Net with weights of 8 bits: the picture stays within 50 dB of that of 32 bits."""
    settings = {"subfolder": "unet", "quantization_config": QUANTISATION[backend](), "dtype": torch.float32}
    pipeline = load_pipeline(exported(depth=depth))
    wanted = picture(pipeline)
    pipeline.unet = type(pipeline.unet).from_pretrained(exported(depth=depth), **settings)
    linear = pipeline.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    assert type(linear.weight).__module__.startswith(("optimum.quanto", "torchao"))
    assert 50 < psnr(picture(pipeline), wanted) < 90
