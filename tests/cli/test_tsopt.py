"""What a timestep search leaves behind besides its recipe."""

import json
from pathlib import Path


def test_the_uniform_list_is_recorded_whatever_the_strategy(idc, random_model):
    keys = ("task=ip2p", f"model.path={random_model('ip2p')}", "timesteps=quadratic", "tsopt.num_inference_steps=3")
    result = idc("tsopt", *keys, "tsopt.num_samples=1", "tsopt.reference_steps=4", "hydra.run.dir=search")
    assert result.code == 0, result.err
    (row,) = json.loads(Path("search/metrics.json").read_text())["searches"]
    first = json.loads(Path("search/trace.jsonl").read_text().splitlines()[0])
    assert row["uniform_timesteps"] == first["timesteps"]
    assert len(row["uniform_timesteps"]) == row["num_inference_steps"] == 3
    assert row["uniform_timesteps"] != row["timesteps"]


def test_a_list_that_equals_its_reference_is_called_perfect(idc, random_model):
    keys = ("task=ip2p", f"model.path={random_model('ip2p')}", "timesteps=uniform", "tsopt.num_inference_steps=3")
    result = idc("tsopt", *keys, "tsopt.num_samples=1", "tsopt.reference_steps=3", "hydra.run.dir=search")
    assert result.code == 0, result.err
    assert "psnr equal" in result.out
    row = json.loads(Path("search/trace.jsonl").read_text())
    assert (row["psnr"], row["perfect"]) == (None, ["psnr"])
