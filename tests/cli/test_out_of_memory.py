"""Memory that is full is one line, wherever it happens: what was being done, and the keys that need less."""

import pytest
import torch

from idcompress.errors import is_out_of_memory
from idcompress.tasks.ip2p import Task

CPU = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."
)
GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1 GiB is free."
FEW = ["num_inference_steps=2", "evaluate.num_samples=1", "evaluate.latency=false", "evaluate.alternatives=false"]
TUNE = ["depth=9", "loss=task", "finetune.num_samples=1", "finetune.num_inference_steps=1", "finetune.batch_size=2"]


@pytest.mark.parametrize(
    ("command", "where", "error", "wanted"),
    [
        (
            ["evaluate", *FEW],
            "denoise",
            torch.OutOfMemoryError(GPU),
            "2.00 GiB more wanted) while sampling in idc eval",
        ),
        (["evaluate", *FEW], "decode", RuntimeError(CPU), "64 bytes more wanted) while decoding pictures in idc evalu"),
        (["evaluate", *FEW], "encode", MemoryError(), "(device=auto) while encoding pictures and prompts in idc eval"),
        (
            ["finetune", *TUNE],
            "encode_training",
            RuntimeError(CPU),
            "while training in idc finetune; lower finetune.ba",
        ),
    ],
)
def test_one_line_names_the_keys(idc, random_model, monkeypatch, command, where, error, wanted):
    def full(*arguments, **keywords):
        raise error

    monkeypatch.setattr(Task, where, full)
    result = idc(
        *command, f"model.path={random_model('ip2p')}", "recipe=none", "evaluate.metrics=[psnr]", "dtype=float32"
    )
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "idc: error: memory is full" in result.err
    assert wanted in result.err
    assert "batch_size=8" in result.err
    assert "dtype=float32" in result.err


def test_while_loading_it_is_not_called_a_broken_folder(idc, random_model, monkeypatch):
    import diffusers

    def full(*arguments, **keywords):
        raise RuntimeError(CPU)

    monkeypatch.setattr(diffusers.AutoencoderKL, "from_pretrained", full)
    result = idc("evaluate", f"model.path={random_model('ip2p')}", "recipe=none", *FEW)
    assert result.code == 2
    assert "memory is full (device=auto, 64 bytes more wanted) while loading the model in idc evaluate" in result.err


def test_other_errors_are_no_full_memory():
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))
