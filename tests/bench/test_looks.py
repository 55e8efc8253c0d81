"""Searches that judge on a part of the images first: they decide as on all, and say what they skipped."""

import itertools
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from idcompress.bench.early_stop import EarlyStop, judge
from idcompress.bench.thresholds import Threshold
from idcompress.core.stats import MIN_SAMPLE, sign_of_mean
from idcompress.core.timestep_search import gamma_search
from idcompress.metrics import psnr
from idcompress.metrics._metric import MetricValue

# PSNR of every image of the embedded models' searches, by depth and by gamma; see its "made".
RECORDED = json.loads((Path(__file__).parent / "embedded_per_image.json").read_text())
DEPTHS = {int(depth): values for depth, values in RECORDED["depths"].items()}
GAMMAS = {int(n): {float(g): v for g, v in found.items()} for n, found in RECORDED["gammas"].items()}
KINDS = RECORDED["tags"]


class Bench:
    """As much of a bench as early stopping asks for."""

    def __init__(self, tags=KINDS, seed=0, metric=None):
        self.examples = [SimpleNamespace(index=i, tags=(tag,)) for i, tag in enumerate(tags)]
        self.seed, self._metric = seed, metric or psnr.Metric()

    def metric(self, name):
        return self._metric

    def measure(self, names, outputs, references, positions):
        numbers = {p: float(output) for p, output in zip(positions, outputs, strict=True) if math.isfinite(output)}
        perfect = not numbers and bool(outputs.isinf().any())
        value = MetricValue(math.fsum(numbers.values()) / len(numbers) if numbers else None, numbers, "", perfect)
        return dict.fromkeys(names, value)


def judged(values, bound, *, confidence=0.98, direction=">=", seed=0, tags=None):
    bench = Bench(tags or KINDS[: len(values)], seed)
    made = []

    def make(positions):
        made.extend(positions)
        return torch.tensor([values[position] for position in positions])

    found = judge(bench, make, lambda positions: None, [Threshold("psnr", bound, direction)], confidence)
    assert len(made) == len(set(made)) == len(found.images)  # no image twice
    return found


# the bound


def test_it_never_decides_from_too_few_or_from_equal_values():
    assert sign_of_mean([5.0] * (MIN_SAMPLE - 1), 16, confidence=0.9) == 0
    assert sign_of_mean([1.0] * 8, 16, confidence=0.5001) == 0  # eight successes: the others may all fail
    assert sign_of_mean([5.0, 5.1, 5.0, 5.2], 16, confidence=0.99) == 1
    assert sign_of_mean([-5.0, -5.1, -5.0, -5.2], 16, confidence=0.99) == -1
    assert sign_of_mean([5.0, -5.1, 5.0, -5.2], 16, confidence=0.99) == 0


def test_all_members_decide_exactly():
    assert [sign_of_mean(v, 2, confidence=0.99) for v in ([1.0, -2.0], [2.0, -1.0], [1.0, -1.0])] == [-1, 1, 0]
    with pytest.raises(ValueError, match="3 values of 2"):
        sign_of_mean([1.0, 2.0, 3.0], 2, confidence=0.99)
    with pytest.raises(ValueError, match="between 0 and 1"):
        sign_of_mean([1.0], 2, confidence=1.0)


@pytest.mark.parametrize("offset", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("number", [4, 8, 12])
def test_it_is_wrong_no_more_often_than_it_says(number, offset):
    """Finite sets of 16 normal members, of which some are drawn: the sign that is told against that of the mean."""
    draw, wrong, trials = random.Random(number), 0, 4000
    for _ in range(trials):
        members = [draw.gauss(offset, 1) for _ in range(16)]
        told = sign_of_mean(draw.sample(members, number), 16, confidence=0.9)
        wrong += told == -math.copysign(1, math.fsum(members))
    assert wrong / trials <= 0.1


# the looks


@pytest.mark.parametrize(("number", "sizes"), [(7, [7]), (8, [4, 8]), (12, [4, 8, 12]), (16, [4, 8, 12, 16])])
def test_looks_grow_by_a_part_of_the_images_from_eight_on(number, sizes):
    looks = EarlyStop.of(Bench((KINDS * 2)[:number]), ["psnr"], 0.98).looks
    assert [len(look) for look in looks] == sizes
    assert sorted(looks[-1]) == list(range(number))
    assert all(later[: len(look)] == look for look, later in itertools.pairwise(looks))


@pytest.mark.parametrize("seed", range(5))
def test_every_look_has_its_share_of_every_kind(seed):
    for look in EarlyStop.of(Bench(seed=seed), ["psnr"], 0.98).looks:
        share = len(look) * KINDS.count("hard") / len(KINDS)
        assert abs(sum(KINDS[position] == "hard" for position in look) - share) <= 1


def test_without_early_stopping_and_for_metrics_of_sets_all_images_are_looked_at():
    everything = (tuple(range(16)),)
    assert EarlyStop.of(Bench(), ["psnr"], None).looks == everything
    assert EarlyStop.of(Bench(metric=SimpleNamespace(by_image=False)), ["fid"], 0.98).looks == everything


# thresholds


def test_it_stops_where_the_answer_is_known_and_not_before():
    spread = [50.0 + (position % 5) for position in range(16)]
    assert len(judged(spread, 36).images) == 4
    assert not judged(spread, 36).missed
    assert len(judged(spread, 70).images) == 4
    assert judged(spread, 70).missed
    assert len(judged(spread, 52).images) == 16
    assert not judged(spread, 60, direction="<=").missed
    assert len(judged(spread, 36, confidence=None).images) == 16


def test_an_image_without_a_number_leaves_the_answer_open():
    assert len(judged([math.inf] * 16, 36).images) == 16
    assert not judged([math.inf] * 16, 36).missed
    bench, same = Bench(), lambda positions: torch.full((len(positions),), math.inf)
    assert len(judge(bench, same, same, [Threshold("psnr", 36, ">=")], 0.98).images) == 4  # its own reference


def verdicts(seed):
    """Of every recorded depth at some bounds: missed early, missed on all images, images that were looked at."""
    for values, bound in itertools.product(DEPTHS.values(), (20, 28, 36, 39, 45)):
        found = judged(values, bound, seed=seed)
        yield bool(found.missed), math.fsum(values) / len(values) < bound, len(found.images)


def test_embedded_depths_are_judged_as_on_all_images():
    early, whole, looked = zip(*verdicts(0), strict=True)
    assert early == whole
    assert sum(looked) < 0.7 * 16 * len(looked)


def test_over_many_draws_of_the_quarter_no_more_is_wrong_than_is_said():
    found = [early == whole for seed in range(40) for early, whole, _ in verdicts(seed)]
    assert found.count(False) / len(found) < 0.02


# lists


def walked(values, seed, confidence):
    """The found gamma, and how many images of how many lists were looked at."""
    bench, looked = Bench(seed=seed), {}
    stop = EarlyStop.of(bench, ["psnr"], confidence)

    def seen(gamma, look):
        looked[gamma] = max(looked.get(gamma, 0), len(look))
        return MetricValue(0.0, {position: values[gamma][position] for position in look})

    def score(gamma):
        return math.fsum(seen(gamma, stop.looks[-1]).per_image.values())

    def better(gamma, other):
        for look in stop.looks[:-1]:
            found = stop.better(seen(gamma, look), seen(other, look), look)
            if found is not None:
                return found
        return score(gamma) > score(other)

    score(1.0)
    found = gamma_search(score, better=better)
    return found, looked


@pytest.mark.parametrize("steps", GAMMAS)
def test_embedded_lists_are_walked_as_on_all_images(steps):
    values = GAMMAS[steps]
    plain = gamma_search(lambda gamma: math.fsum(values[gamma]))
    found, looked = walked(values, 0, 0.98)
    assert found.gamma == plain.gamma
    assert found.value == plain.value
    assert [(p.gamma, p.step, p.accepted) for p in found.probes] == [
        (p.gamma, p.step, p.accepted) for p in plain.probes
    ]
    assert sum(looked.values()) < 16 * len(values)
    assert set(looked) == set(values)
