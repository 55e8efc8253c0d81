"""Times of parts: exclusive, complete, and summing to the wall time whatever is nested."""

import json
import random

import pytest

from idcompress.runs import timing


@pytest.fixture
def tick(monkeypatch):
    """A clock that only moves when it is told to."""
    now = [100.0]
    monkeypatch.setattr(timing, "clock", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_the_inner_part_pauses_the_outer(tick):
    with timing.record() as seconds:
        tick(1)
        with timing.part("original"):
            tick(2)
            with timing.part("denoise"):
                tick(4)
            tick(8)
        tick(16)
        with timing.part("original"), timing.part("denoise"):
            tick(32)
    assert seconds == {"other": 17, "original": 10, "original/denoise": 36}


def test_parts_sum_to_the_wall_time_whatever_is_nested(tick):
    rng, wall = random.Random(0), 0.0

    def work(depth):
        nonlocal wall
        for _ in range(3):
            wall += (took := rng.random())
            tick(took)
            if depth < 3 and rng.random() < 0.7:
                with timing.part(rng.choice("abc")):
                    work(depth + 1)

    with timing.record() as seconds:
        work(0)
    assert sum(seconds.values()) == pytest.approx(wall, abs=1e-9)
    assert timing.summary(seconds)["wall_seconds"] == pytest.approx(wall, abs=1e-9)


def test_a_record_inside_knows_its_own_names_only_and_an_error_closes_what_is_open(tick):
    with timing.record() as outer:
        with pytest.raises(RuntimeError), timing.part("tsopt"), timing.record() as inner, timing.part("load"):
            tick(3)
            raise RuntimeError
        tick(1)
    assert inner == {"load": 3, "other": 0}
    assert outer == {"tsopt/load": 3, "tsopt": 0, "other": 1}
    tick(5)
    with timing.record() as later:
        tick(2)
    assert later == {"other": 2}


def test_a_part_is_a_decorator_too(tick):
    @timing.part("measure")
    def measure():
        tick(2)
        return 7

    with timing.record() as seconds:
        assert measure() + measure() == 14
    assert seconds["measure"] == 4


def test_what_is_written(tick, tmp_path):
    timing.save({"load": 1.5, "other": 0.25}, tmp_path)
    found = json.loads((tmp_path / "timing.json").read_text())
    assert found == {"version": 1, "wall_seconds": 1.75, "seconds": {"load": 1.5, "other": 0.25}}
