"""Gamma sequences and search traces of the released scripts."""

import json
import math

import pytest

import idcompress
from idcompress.core.timestep_search import gamma_search


@pytest.fixture(scope="module")
def table(parity_fact):
    return json.loads(parity_fact("depth_skip/timesteps.json").read_text())


def test_all_released_sequences(table):
    assert len(table["grid"]) == 288
    for row in table["grid"]:
        ours = idcompress.gamma_timesteps(row["gamma"], row["n"], bias=row["coef"])
        assert ours == row["timesteps"], row
    assert any(len(set(row["timesteps"])) < row["n"] for row in table["grid"])  # repeats are among them


@pytest.mark.parametrize(
    ("name", "search"),
    [
        ("released_stablesr_sign_plus", "released_up"),
        ("released_ip2p_sign_minus", "released_down"),
        ("direction_first_reference", "direction_first"),
    ],
)
def test_search_traces(table, name, search):
    for case in table["search"].values():
        g0, formula = case["objective"]["g0"], case["objective"]["formula"]
        calls = []

        def score(gamma, g0=g0, formula=formula, calls=calls):
            calls.append(gamma)
            return 30 - 4 * (math.log(gamma) - math.log(g0)) ** 2 if "ln" in formula else -((gamma - g0) ** 2)

        expected, found = case[name], gamma_search(score, search=search)
        walked = found.probes[3:] if search == "direction_first" else found.probes
        assert [(p.step, p.gamma, p.accepted) for p in walked] == [
            (row["lr"], row["p"], row["accepted"]) for row in expected["trace"]
        ]
        assert found.gamma == expected["p_opt"]
        assert len(calls) == len(set(calls))
