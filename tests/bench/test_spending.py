"""Milliseconds and bytes of plans: what the tables hold is what a plan's steps come to."""

import pytest

from idcompress.bench.spending import Bytes, Milliseconds, depth_within, weights_of
from idcompress.core.plan import Plan, Step
from idcompress.errors import IdcError
from idcompress.runs.trace import Trace

GUIDANCE = {"guidance_scale": 2.0}
MANY = Plan.over((999, 500), guidance=GUIDANCE)


def plan_of(*steps, fill="linear"):
    return Plan(steps, fill=fill, guidance=GUIDANCE)


def test_milliseconds_are_the_sum_of_the_tables_and_are_measured_once(bench_of, tmp_path):
    bench, trace = bench_of("controlnet"), Trace(tmp_path / "trace.jsonl")
    pipeline = bench.model.pipeline
    first = Milliseconds(bench, pipeline, MANY, trace, depths=[3], passes=True, refresh=True)
    assert sorted(first.table, key=str) == sorted(
        ((depth, passes, fresh) for depth in (None, 3) for passes in (2, 1) for fresh in (True, False)), key=str
    )
    assert min(first.table.values()) > 0
    plan = plan_of(Step(999), Step(700, 3, refresh=False), Step(300, 3, "held"), Step(3, None, "text", False))
    wanted = [(None, 2, True), (3, 2, False), (3, 1, True), (None, 1, True)]  # its side knows depth 3 alone by then
    assert first.of(plan) == pytest.approx(sum(first.table[entry] for entry in wanted))
    again = Milliseconds(bench, pipeline, MANY, trace, depths=[3], passes=True, refresh=True)
    assert again.table == first.table and len(trace.rows) == 8


def test_bytes_are_those_of_the_weights_and_of_what_later_steps_read(bench_of):
    bench = bench_of("controlnet")
    counted = Bytes(bench, bench.model.pipeline, MANY, [3, 7])
    modules = bench.task.networks(bench.model.pipeline)
    weights = sum(4 * parameter.numel() for module in modules for parameter in module.parameters())
    full = plan_of(Step(999), Step(500))
    assert counted.of(full) == counted.weights == weights
    held = plan_of(Step(999), Step(500, 3), Step(9, 3), fill="hold")
    assert counted.of(held) == weights + counted.hidden[3]
    assert counted.of(plan_of(*held.steps)) == weights + 2 * counted.hidden[3]
    assert counted.of(plan_of(*held.steps, fill="zero")) == weights
    assert counted.of(plan_of(Step(999), Step(500, refresh=False))) == weights + counted.side
    assert counted.hidden[3] % (2 * 4) == 0 and counted.side > 0


def test_the_deepest_cut_that_fits_is_stored(bench_of):
    bench = bench_of("ip2p")
    pipeline = bench.model.pipeline
    size = weights_of(bench, bench.at_depth(pipeline)(5))
    assert depth_within(bench, pipeline, 13, size) == 5
    assert depth_within(bench, pipeline, 13, size - 1) == 4
    least = weights_of(bench, bench.at_depth(pipeline)(1))
    with pytest.raises(IdcError, match=f"{least:,} bytes at the least"):
        depth_within(bench, pipeline, 13, least - 1)
