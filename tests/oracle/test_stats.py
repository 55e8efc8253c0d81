"""The bootstrap interval and the paired comparison, against distributions whose truth is known.

A percentile interval covers a little less than it promises, the more so the fewer and the more skewed the values. The
samples here have 120 values, for which one percent is allowed beside the chance of a binomial count.
"""

import math

import pytest
import torch

from idcompress.bench.comparison import paired
from idcompress.core.stats import bootstrap_interval
from idcompress.metrics._metric import MetricValue

DRAWS, SIZE = 300, 120
# name -> (n, generator) -> n values, and their true mean
DISTRIBUTIONS = {
    "normal": (lambda n, g: 3 + 2 * torch.randn(n, generator=g, dtype=torch.float64), 3.0),
    "uniform": (lambda n, g: torch.rand(n, generator=g, dtype=torch.float64), 0.5),
    "exponential": (lambda n, g: torch.empty(n, dtype=torch.float64).exponential_(generator=g), 1.0),
    "coin": (lambda n, g: torch.randint(2, (n,), generator=g).double(), 0.5),
}


def sample(name, number, size=SIZE):
    return DISTRIBUTIONS[name][0](size, torch.Generator().manual_seed(1000 + number)).tolist()


def assert_share(hits, of, share):
    """A count lies within 3.3 standard deviations of a binomial one, the percentile interval's one percent allowed."""
    spread = 3.3 * math.sqrt(share * (1 - share) / of)
    assert share - 0.01 - spread <= hits / of <= share + spread, f"{hits} of {of}, want {share:.0%}"


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_interval_covers_the_mean_as_often_as_it_says(name, level):
    mean = DISTRIBUTIONS[name][1]
    hits = 0
    for number in range(DRAWS):
        low, high = bootstrap_interval(sample(name, number), level=level, resamples=500, seed=number)
        hits += low <= mean <= high
    assert_share(hits, DRAWS, level)


def test_the_interval_misses_on_both_sides_alike():
    misses = [0, 0]
    for number in range(DRAWS):
        low, high = bootstrap_interval(sample("normal", number), level=0.8, resamples=500, seed=number)
        misses[0] += high < 3
        misses[1] += low > 3
    for missed in misses:
        assert abs(missed / DRAWS - 0.1) <= 0.01 + 3.3 * math.sqrt(0.1 * 0.9 / DRAWS)


def test_the_interval_is_as_wide_as_the_normal_one():
    """For many values it is the mean plus and minus 1.96 standard errors."""
    values = sample("normal", 0, 2000)
    data = torch.tensor(values, dtype=torch.float64)
    half = 1.96 * float(data.std(correction=0)) / math.sqrt(len(values))
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(float(data.mean()) - half, abs=0.1 * half)
    assert high == pytest.approx(float(data.mean()) + half, abs=0.1 * half)


@pytest.mark.parametrize(
    ("level", "wanted"), [(0.2, (0.5, 0.5)), (0.4, (0.5, 0.5)), (0.6, (0.0, 1.0)), (0.95, (0.0, 1.0))]
)
def test_two_values_by_hand(level, wanted):
    """The mean of two draws out of 0 and 1 is 0, 1/2, 1/2 or 1, so its quartiles are the interval's only choices."""
    assert bootstrap_interval([0.0, 1.0], level=level) == wanted


def test_one_value_and_equal_values_have_an_interval_without_width():
    assert bootstrap_interval([2.5]) == (2.5, 2.5)
    assert bootstrap_interval([2.5] * 7) == (2.5, 2.5)


def test_shift_and_scale_pass_through():
    values = sample("exponential", 0)
    low, high = bootstrap_interval(values, seed=4)
    moved = bootstrap_interval([10 - 2 * value for value in values], seed=4)
    assert moved == pytest.approx((10 - 2 * high, 10 - 2 * low))
    assert bootstrap_interval([value + 7 for value in values], seed=4) == pytest.approx((low + 7, high + 7))


def test_higher_levels_enclose_lower_ones():
    bounds = [bootstrap_interval(sample("normal", 1), level=level) for level in (0.5, 0.8, 0.95, 0.99)]
    lows, highs = zip(*bounds, strict=True)
    assert sorted(lows, reverse=True) == list(lows) and sorted(highs) == list(highs)
    assert len({*lows}) == len({*highs}) == 4


def test_the_seed_decides_and_nothing_else_does():
    values = sample("normal", 2)
    torch.manual_seed(1)
    first = bootstrap_interval(values, seed=3)
    torch.manual_seed(2)
    assert bootstrap_interval(values, seed=3) == first
    assert bootstrap_interval(values, seed=4) != first


def test_small_differences_of_large_values_survive():
    """In float32 all of these would be the same number."""
    low, high = bootstrap_interval([1e8 + 0.1 * step for step in range(10)])
    assert 1e8 < low < 1e8 + 0.45 < high < 1e8 + 0.9


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])


# The paired comparison.


def value_of(per_image):
    return MetricValue(math.fsum(per_image.values()) / len(per_image), per_image)


def compare(one, other, *, higher_is_better=True, seed=0):
    found = paired(value_of(one), value_of(other), "difference", higher_is_better=higher_is_better, seed=seed)
    assert found.keys() <= {"difference"}
    return found.get("difference", {})


def numbered(values):
    return dict(enumerate(values))


def test_a_difference_by_hand():
    found = compare({0: 30.0, 1: 25.0}, {0: 29.0, 1: 22.0})
    assert found == {"mean": 2.0, "interval": [1.0, 3.0], "num_images": 2, "verdict": "better"}


def test_images_are_paired_by_their_index_whatever_the_order():
    """Pairing by position would find differences of 9 and -7."""
    found = compare({5: 20.0, 3: 12.0}, {3: 11.0, 5: 19.0})
    assert (found["mean"], found["interval"]) == (1.0, [1.0, 1.0])


def test_an_image_that_only_one_side_has_is_left_out():
    found = compare({0: 1.0, 1: 50.0, 2: 3.0}, {0: 0.0, 2: 2.0, 9: -50.0})
    assert (found["mean"], found["num_images"]) == (1.0, 2)
    assert compare({0: 1.0}, {1: 2.0}) == {}


@pytest.mark.parametrize("seed", range(5))
def test_pairing_finds_what_lies_far_below_the_spread_between_images(seed):
    """A gain of 0.1 on every image, where images differ by 10: their separate intervals overlap, the pairs say it."""
    generator = torch.Generator().manual_seed(seed)
    base = 30 + 10 * torch.randn(40, generator=generator, dtype=torch.float64)
    better = base + 0.1 + 0.05 * torch.randn(40, generator=generator, dtype=torch.float64)
    one, other = (numbered(values.tolist()) for values in (better, base))
    assert bootstrap_interval([*one.values()])[0] < bootstrap_interval([*other.values()])[1]
    assert compare(one, other)["verdict"] == "better"
    assert compare(other, one)["verdict"] == "worse"
    assert compare(one, other, higher_is_better=False)["verdict"] == "worse"
    assert compare(other, one, higher_is_better=False)["verdict"] == "better"


def test_the_verdict_is_rarely_wrong_where_there_is_no_difference():
    """In 95 % of all comparisons of the same quality there is no gain, and both errors are as frequent."""
    found = {"better": 0, "worse": 0, "no gain": 0}
    for number in range(200):
        noise = sample("normal", number)
        one, other = numbered(noise), numbered([3.0] * SIZE)
        found[compare(one, other, seed=number)["verdict"]] += 1
    assert_share(found["no gain"], 200, 0.95)
    assert found["better"] and found["worse"]


def test_the_verdict_is_no_gain_where_zero_lies_on_the_bound():
    """Differences of 0 and 1 have the interval [0, 1]."""
    assert compare({0: 1.0, 1: 1.0}, {0: 0.0, 1: 1.0})["verdict"] == "no gain"


def test_equal_images_have_no_difference():
    assert compare({0: 1.0, 1: 2.0}, {1: 2.0, 0: 1.0}) == {}
