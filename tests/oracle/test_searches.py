"""Depth search (Alg. 1) against pass functions whose answer is plain."""

import itertools
import math

import pytest

from idcompress.core.depth_search import DepthProbe, FullModelFailsError, depth_search
from idcompress.core.timestep_search import STEP_SIZES, gamma_search, move_gamma


class Passes:
    """Says which depths pass and remembers what it was asked."""

    def __init__(self, depths):
        self.depths, self.asked = set(depths), []

    def __call__(self, depth):
        assert depth not in self.asked, "a depth was evaluated twice"
        self.asked.append(depth)
        return depth in self.depths


@pytest.mark.parametrize("shallowest", range(1, 14))
def test_monotone_quality(shallowest):
    passes = Passes(range(shallowest, 14))
    depth, probes = depth_search(passes, 13)
    assert depth == shallowest
    assert passes.asked == list(range(13, max(shallowest - 1, 1) - 1, -1))
    assert probes == [DepthProbe(d, d >= shallowest) for d in passes.asked]


def test_stops_at_the_first_failure_though_shallower_depths_pass():
    passes = Passes([13, 12, 11, 9, 8, 3])
    depth, probes = depth_search(passes, 13)
    assert depth == 11
    assert [probe.depth for probe in probes] == [13, 12, 11, 10]
    assert not probes[-1].passed


def test_every_set_of_passing_depths():
    """All 2^5 curves of a five-level model, with and without the whole curve, against the definition."""
    for flags in itertools.product([True, False], repeat=5):
        good = {depth for depth, passed in zip(range(6, 1, -1), flags, strict=True) if passed} | {6}
        expected = next((d + 1 for d in range(6, 0, -1) if d not in good), 1)
        for whole_curve in (False, True):
            passes = Passes(good)
            depth, probes = depth_search(passes, 6, whole_curve=whole_curve)
            assert depth == expected
            last = 1 if whole_curve else max(expected - 1, 1)
            assert passes.asked == [probe.depth for probe in probes] == list(range(6, last - 1, -1))
            assert all(probe.passed == (probe.depth in good) for probe in probes)


@pytest.mark.parametrize("whole_curve", [False, True])
def test_the_full_model_fails(whole_curve):
    passes = Passes([12, 11])
    with pytest.raises(FullModelFailsError, match=r"full model \(depth 13\)"):
        depth_search(passes, 13, whole_curve=whole_curve)
    assert passes.asked == [13]


def test_nothing_can_go():
    assert depth_search(Passes([13]), 13)[0] == 13


def test_everything_can_go():
    depth, probes = depth_search(Passes(range(1, 14)), 13)
    assert depth == 1
    assert len(probes) == 13


@pytest.mark.parametrize("whole_curve", [False, True])
@pytest.mark.parametrize(("min_depth", "expected"), [(1, 5), (5, 5), (6, 6), (13, 13), (99, 13)])
def test_min_depth_bounds_search_and_curve(min_depth, expected, whole_curve):
    passes = Passes(range(5, 14))
    depth, _ = depth_search(passes, 13, min_depth=min_depth, whole_curve=whole_curve)
    assert depth == expected
    assert min(passes.asked) >= min(min_depth, 13)


def test_a_model_of_one_level():
    assert depth_search(Passes([1]), 1) == (1, [DepthProbe(1, True)])


# gamma search


def test_gamma_moves_mirror_each_other():
    for step in STEP_SIZES:
        up = down = 1.0
        for _ in range(30):
            up, down = move_gamma(up, step, 1), move_gamma(down, step, -1)
            assert up == pytest.approx(1 / down)
        while up > 1:
            up = move_gamma(up, step, -1)
        while down < 1:
            down = move_gamma(down, step, 1)
        assert (up, down) == (1.0, 1.0)  # moves towards 1 stop there


@pytest.mark.parametrize("best", [0.2, 0.37, 0.5, 0.7, 0.9, 1.0, 1.1, 1.5, 2.3, 4.0])
def test_gamma_search_comes_close_to_a_single_peak(best):
    """In log gamma the walk ends within one coarse step of the peak, never below the uniform score."""

    def height(gamma):
        return -abs(math.log(gamma / best))

    found = gamma_search(height)
    assert found.value == height(found.gamma) >= height(1.0)
    assert abs(math.log(found.gamma / best)) < 0.2


def test_an_unknown_search_is_refused():
    with pytest.raises((ValueError, TypeError), match="released_up"):  # TypeError where annotations are checked
        gamma_search(lambda gamma: 0.0, search="up")


def test_ties_keep_uniform():
    calls = []
    found = gamma_search(lambda gamma: calls.append(gamma) or 7.0)
    assert (found.gamma, found.value) == (1.0, 7.0)
    assert len(calls) == len(set(calls)) == 2 + len(STEP_SIZES)
