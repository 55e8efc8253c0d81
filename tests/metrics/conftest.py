"""Weights of metrics for tests: none, the LPIPS trunks, and a small random CLIP in open_clip's own layout."""

import json

import pytest
import torch


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.delenv("IDC_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="session")
def lpips_folder(shared):
    folder = shared / "weights" / "lpips"
    if not folder.is_dir():
        pytest.skip("the LPIPS trunks are absent")
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    folder = tmp_path_factory.mktemp("clip")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    model = open_clip.CLIP(**json.loads(json.dumps(config)))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
