"""The published size with random weights: converting without a second copy, reloading, one step at 512 x 512."""

import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from test_stablesr_convert import original_weights

from idcompress.models.stablesr import PUBLISHED_CONFIG, StableSRPipeline
from idcompress.models.stablesr import convert as conversion

GIB = 2**30

# Run apart, so that its memory is its own: anonymous pages are what a copy costs, mapped file pages are not.
CONVERT = """
import json, sys, threading, time
from idcompress.models.stablesr import convert_to_folder, from_original

peak, running = 0, True
def watch():
    global peak
    while running:
        lines = open("/proc/self/status").read().splitlines()
        peak = max(peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
        time.sleep(0.02)
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
main, cfw, folder = sys.argv[1:]
from_original(main, cfw)
built = peak
convert_to_folder(main, cfw, folder)
running = False
watcher.join()
print(json.dumps({"built": built * 1024, "saved": peak * 1024}))
"""


@pytest.fixture(scope="module")
def full_size_folder(tmp_path_factory):
    """Write a pair of full-size checkpoints in the original format and convert them."""
    path = tmp_path_factory.mktemp("full_size")
    parts = (
        (conversion.StableSRUNet2DConditionModel, conversion.unet_config, conversion.unet_names, "main"),
        (
            conversion.StableSRStructureEncoder,
            conversion.structure_encoder_config,
            conversion.structure_encoder_names,
            "main",
        ),
        (conversion.StableSRAutoencoderKL, conversion.autoencoder_config, conversion.autoencoder_names, "cfw"),
    )
    files = {"main": {key: torch.zeros(1000) for key in conversion.DROPPED_MAIN_KEYS}, "cfw": {}}
    prefixes = (conversion.UNET_PREFIX, conversion.STRUCTURE_PREFIX, "")
    for (model_class, config, names, file), prefix in zip(parts, prefixes, strict=True):
        with torch.device("meta"):
            model = model_class(**config(PUBLISHED_CONFIG))
        weights = original_weights(model, names(model))
        files[file] |= {prefix + key: tensor for key, tensor in weights.items()}
    files["main"] |= {
        conversion.AUTOENCODER_PREFIX + key: tensor for key, tensor in files["cfw"].items() if "fusion" not in key
    }
    size = sum(tensor.nbytes for file in files.values() for tensor in file.values())
    for name in files:
        torch.save({"state_dict": files[name], "global_step": 0}, path / f"{name}.ckpt")
    expected = {
        key: files["main"][f"model.diffusion_model.{key}"].clone()
        for key in ("out.2.weight", "output_blocks.11.0.spade.mlp_gamma.weight")
    }
    files.clear()
    command = [sys.executable, "-c", CONVERT, *(str(path / name) for name in ("main.ckpt", "cfw.ckpt", "folder"))]
    memory = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    for name in ("main", "cfw"):
        (path / f"{name}.ckpt").unlink()
    yield path / "folder", memory, size, expected
    shutil.rmtree(path)


@pytest.mark.slow
def test_converting_holds_no_second_copy(full_size_folder):
    _folder, memory, size, _expected = full_size_folder
    print({name: f"{value / GIB:.2f} GiB" for name, value in memory.items()}, f"weights {size / GIB:.2f} GiB")
    assert memory["built"] < 1.5 * GIB  # the weights stay in the mapped files
    assert memory["saved"] < 1.5 * GIB


@pytest.mark.slow
def test_one_step_at_512(full_size_folder):
    folder, _memory, _size, expected = full_size_folder
    pipe = StableSRPipeline.from_pretrained(folder)
    weights = pipe.unet.state_dict()
    assert torch.equal(weights["conv_out.weight"], expected["out.2.weight"])
    gamma = weights["up_blocks.3.resnets.2.spade.gamma.weight"]
    assert torch.equal(gamma, expected["output_blocks.11.0.spade.mlp_gamma.weight"])
    assert pipe.unet.config.sample_size == 64
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    images = pipe(image, timesteps=[999], prompt_embeds=torch.zeros(1, 77, 1024), output_type="pt").images
    assert images.shape == (1, 3, 512, 512)
    assert images.isfinite().all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak {peak / GIB:.2f} GiB")
    assert peak < 24 * GIB
