"""Xue et al.'s objective against the released code's numbers, and the minimisation against what scipy found there."""

import json

import pytest

from idcompress.core.process import VariancePreserving, scaled_linear_alphas_cumprod
from idcompress.timesteps.xue import objective, timesteps
from idcompress.types import ScheduleRequest

PROCESS = VariancePreserving(scaled_linear_alphas_cumprod().double())


@pytest.fixture(scope="module")
def entries(shared):
    return json.loads((shared / "fixtures" / "baselines" / "xue.json").read_text())["entries"]


def test_the_objective_equals_the_released_codes(entries):
    checked = 0
    for entry in entries:
        for probe in entry.get("probes", []):
            nodes = [entry["lambda_T"], *probe["lambda_inner"], entry["lambda_eps"]]
            assert objective(nodes, trunc_num=entry["trunc_num"]) == pytest.approx(probe["objective"], rel=1e-9)
            checked += 1
        if "lambda_opt" in entry and "trunc_num" in entry:
            found = objective(entry["lambda_opt"], trunc_num=entry["trunc_num"])
            assert found == pytest.approx(entry["objective_opt"], rel=1e-9)
            checked += 1
    assert checked == 24


def test_the_minimum_is_no_worse_than_scipys(entries):
    """From uniform timesteps, the start that the authors advise here."""
    for entry in entries:
        if entry.get("init") == "unif_t":
            found = timesteps(ScheduleRequest(entry["n"], PROCESS), trunc_num=entry["trunc_num"])
            assert found.details["objective"] <= 1.01 * entry["objective_opt"]
    five = timesteps(ScheduleRequest(5, PROCESS)).timesteps
    assert all(abs(a - b) <= 1 for a, b in zip(five, [999, 601, 375, 207, 79], strict=True))
