"""Where no bar is drawn, a long run says where it is; what it says of going on is true."""

import threading

import pytest

from idcompress import console
from idcompress.runs import timing


@pytest.fixture
def lines(monkeypatch):
    """What is said, and an event that is set by every line."""
    said, event = [], threading.Event()
    monkeypatch.setattr(console, "_SILENCE_S", 0.02)
    monkeypatch.setattr(console.log, "info", lambda line: (said.append(line), event.set()))
    return said, event


def test_a_run_that_draws_no_bar_says_where_it_is(lines):
    said, event = lines
    with console.heartbeat(timing.running):
        with timing.part("load"):
            assert event.wait(10)
        for number in console.progress(range(5), "full model", 5):
            if number == 3:
                del said[:]
                event.clear()
                assert event.wait(10)
                counted = said[:]
    assert counted[0].startswith("  full model: 3 of 5, after ") and counted[0].endswith(" min")
    assert console._counted == []


def test_its_parts_are_named_where_nothing_is_counted(lines):
    said, event = lines
    with console.heartbeat(timing.running), timing.part("load"):
        assert event.wait(10)
    assert said[0].startswith("  load, after ")
    del said[:]
    event.clear()
    assert not event.wait(0.2), "the run is over"


def test_a_terminal_gets_its_bar_and_no_lines(lines, monkeypatch):
    said, event = lines
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with console.heartbeat(timing.running):
        assert not event.wait(0.2)
    assert said == []


def test_fine_tuning_of_nothing_cut_is_one_line(idc, random_model):
    common = ("experiment=smoke", f"model.path={random_model('ip2p')}", "recipe=none", "trainer.accelerator=cpu")
    result = idc("finetune", *common)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "nothing is cut, so there is nothing to recover" in result.err and "loading" not in result.out
    result = idc("finetune", *common, "depth=13", "loss=distill")
    assert result.code == 2 and "depth 13 is the whole model, so there is nothing to recover" in result.err
    result = idc("compress", *common, "compress.stages=[finetune,tsopt]", "timesteps=uniform")
    assert result.code == 0 and "finetune: left out, because nothing is cut" in result.out, result.err


@pytest.mark.parametrize("there", [True, False])
def test_only_a_checkpoint_is_continued_at(tmp_path, there):
    from types import SimpleNamespace

    from idcompress.adapters.checkpoints import CHECKPOINT
    from idcompress.stages.finetune import _continues

    if there:
        (tmp_path / CHECKPOINT).touch()
    wanted = "continues at the last checkpoint" if there else "starts again, because no checkpoint was written yet"
    assert _continues(SimpleNamespace(default_root_dir=tmp_path), None) == wanted
