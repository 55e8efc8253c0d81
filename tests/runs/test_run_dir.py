"""Run folders: new, continued, set aside or refused; and which recipe is the latest."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from idcompress.errors import IdcError
from idcompress.runs.run_dir import OUTPUTS, environment, latest_recipes, open_run, recipes_of

HOLD = """
import sys
from pathlib import Path
from idcompress.runs.run_dir import open_run
explicit = Path(sys.argv[1]) if len(sys.argv) > 1 else None
run = open_run("tsopt", "ip2p", "tiny", "digest", explicit)
print(run.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(digest="digest", stage="tsopt", **arguments):
    return open_run(stage, "ip2p", "tiny", digest, **arguments)


def leave(run):
    """What the end of a process does to its locks."""
    run._lock.close()


class Held:
    """Another process that holds a run folder until it is killed."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )

    def __enter__(self):
        self.path = Path(self.process.stdout.readline().strip())
        return self

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __exit__(self, *_):
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


def test_a_new_run():
    run = opened()
    assert not run.resumed
    assert not run.finished
    assert run.path.parent == OUTPUTS / "ip2p" / "tiny" / "tsopt"
    assert json.loads((run / "run.json").read_text())["digest"] == "digest"
    assert run.trace().path == run.path / "trace.jsonl"


def test_the_same_command_continues_an_unfinished_run():
    first = opened()
    run_trace = first.trace()
    run_trace.append({"depth": 13})
    leave(first)
    again = opened()
    assert again.resumed
    assert again.path == first.path
    assert again.trace().rows == [{"depth": 13}]


def test_another_command_starts_its_own():
    first = opened()
    leave(first)
    assert opened("other").path != first.path
    assert opened(stage="evaluate").path.parent.name == "evaluate"


def test_the_newest_unfinished_run_is_continued():
    folders = [opened(), opened(), opened()]  # each is still held when the next opens
    assert len({run.path for run in folders}) == 3
    for run in folders:
        leave(run)
    assert opened().path == max(run.path for run in folders)


def test_a_finished_run_is_left_alone():
    first = opened()
    (first / "result").write_text("kept")
    first.finish()
    assert first.finished
    second = opened()
    assert not second.resumed
    assert second.path != first.path
    assert (first / "result").read_text() == "kept"
    third_info = json.loads((first / "run.json").read_text())
    assert third_info["finished"]
    assert isinstance(third_info["finished_seconds"], float)


def test_a_folder_in_use_by_another_process_is_never_entered():
    with Held() as other:
        mine = opened()
        assert mine.path.resolve() != other.path.resolve()
        assert not mine.resumed
        leave(mine)
        other.kill()
        assert opened().resumed


def test_a_killed_run_is_continued():
    with Held() as other:
        other.kill()
        run = opened()
        assert run.resumed
        assert run.path.resolve() == other.path.resolve()


def test_an_explicit_folder(here):
    run = opened(explicit=here / "mine")
    assert run.path == here / "mine"
    assert not run.resumed
    (run / "partial").write_text("p")
    leave(run)
    again = opened(explicit=here / "mine")
    assert again.resumed
    assert (again / "partial").exists()
    assert not (here / OUTPUTS).exists()


@pytest.mark.parametrize("finished", [True, False])
def test_an_explicit_folder_sets_other_results_aside(here, finished):
    for number in range(3):
        run = opened(f"digest{number}", explicit=here / "mine")
        assert not run.resumed
        assert sorted(p.name for p in run.path.iterdir()) == [".lock", "run.json"]
        (run / "result").write_text(str(number))
        run.finish() if finished else leave(run)
    assert (here / "mine" / "result").read_text() == "2"
    assert (here / "mine.1" / "result").read_text() == "0"
    assert (here / "mine.2" / "result").read_text() == "1"


def test_a_finished_explicit_run_is_set_aside_by_the_same_command(here):
    opened(explicit=here / "mine").finish()
    assert not opened(explicit=here / "mine").resumed
    assert (here / "mine.1" / "run.json").is_file()


def test_an_explicit_folder_with_the_users_files_keeps_them(here):
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("n")
    run = opened(explicit=here / "mine")
    assert (run / "notes.txt").read_text() == "n"


def test_an_explicit_folder_in_use_is_refused(here):
    with Held(here / "mine"):
        for digest in ("digest", "other"):
            with pytest.raises(IdcError, match=r"another run is using .*mine; choose another hydra\.run\.dir"):
                opened(digest, explicit=here / "mine")
    assert opened(explicit=here / "mine").resumed


def test_nowhere_to_write(here):
    (here / OUTPUTS).write_text("a file where the folder should be")
    with pytest.raises(IdcError, match=r"cannot write the run folder under outputs .*set hydra\.run\.dir"):
        opened()
    with pytest.raises(IdcError, match=r"cannot write the run folder under .*set hydra\.run\.dir"):
        opened(explicit=here / OUTPUTS / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(here):
    (here / "locked").mkdir(mode=0o555)
    with pytest.raises(IdcError, match="Permission denied"):
        opened(explicit=here / "locked" / "run")


def test_a_damaged_run_file_is_named():
    run = opened()
    leave(run)
    (run / "run.json").write_text("{")
    with pytest.raises(IdcError, match=r"run folder: .*run\.json"):
        opened()


def test_children_are_kept_once_finished():
    run = opened(stage="compress")
    child = run.child("tsopt", "child")
    assert child.path == run / "tsopt"
    assert not child.finished
    child.finish()
    assert run.child("tsopt", "child").finished
    assert not run.finished
    with pytest.raises(IdcError, match="belongs to another configuration"):
        run.child("tsopt", "other")


def test_a_mistake_before_any_work_leaves_nothing(here):
    run = opened()
    (run / "log.txt").write_text("")
    run.discard_if_empty()
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("explicit", [False, True])
def test_a_result_is_never_discarded(here, explicit):
    folder = here / "mine" if explicit else None
    run = opened(explicit=folder)
    run.trace().append({"depth": 13})
    run.discard_if_empty()
    assert (run / "trace.jsonl").is_file()
    resumed = opened(explicit=folder)
    assert resumed.resumed
    (resumed / "trace.jsonl").unlink()
    resumed.discard_if_empty()
    assert resumed.path.is_dir()


def test_a_folder_that_the_user_made_is_never_removed(here):
    (here / "mine" / "sub").mkdir(parents=True)
    run = opened(explicit=here / "mine")
    run.discard_if_empty()
    assert (here / "mine" / "sub").is_dir()


def test_the_working_folder_is_never_moved_away(here):
    """hydra.run.dir=. in a folder with other things in it."""
    (here / "notes.txt").write_text("n")
    opened("one", explicit=here).finish()
    with contextlib.suppress(IdcError):
        opened("two", explicit=here)
    assert (here / "notes.txt").is_file()


def test_discarding_stops_at_folders_that_hold_something():
    other = opened("other")
    run = opened(stage="evaluate")
    run.discard_if_empty()
    assert other.path.is_dir()
    assert not run.path.parent.exists()


# which recipe is the latest


def finished(stage, name, seconds, recipes=("recipe.json",), done=True, order=()):
    folder = OUTPUTS / "ip2p" / "tiny" / stage / name
    for recipe in recipes:
        (folder / recipe).parent.mkdir(parents=True, exist_ok=True)
        (folder / recipe).write_text("{}")
    folder.mkdir(parents=True, exist_ok=True)
    info = {"stage": stage, "digest": name, "finished": done, "finished_seconds": seconds, "recipes": list(order)}
    (folder / "run.json").write_text(json.dumps(info))
    return folder


def latest(stage):
    return latest_recipes(stage, "ip2p", "tiny")


def test_no_recipe_yet():
    assert latest("tsopt") == latest("evaluate") == []


def test_only_earlier_stages_count():
    searched = finished("depth_search", "a", 1.0)
    tuned = finished("finetune", "b", 2.0)
    timed = finished("tsopt", "c", 3.0)
    whole = finished("compress", "d", 4.0)
    assert latest("depth_search") == latest("compress") == []
    assert latest("finetune") == [searched / "recipe.json"]
    assert latest("tsopt") == [tuned / "recipe.json"]
    for stage in ("evaluate", "translate", "export", "profile", "report"):
        assert latest(stage) == [whole / "recipe.json"]
    finished("tsopt", "c", 5.0)
    assert latest("evaluate") == [timed / "recipe.json"]


def test_the_newest_finished_run_wins_whatever_its_stage():
    finished("tsopt", "a", 5.0)
    searched = finished("depth_search", "b", 9.0)
    assert latest("evaluate") == [searched / "recipe.json"]


def test_unfinished_runs_and_runs_without_a_recipe_do_not_count():
    old = finished("depth_search", "2026-01-01_00-00-00", 1.0)
    finished("depth_search", "2026-01-02_00-00-00", 2.0, done=False)
    finished("depth_search", "2026-01-03_00-00-00", 3.0, recipes=())
    (OUTPUTS / "ip2p" / "tiny" / "depth_search" / "stray").mkdir()
    (OUTPUTS / "ip2p" / "tiny" / "depth_search" / "stray.txt").write_text("")
    assert latest("tsopt") == [old / "recipe.json"]


def test_ties_go_to_the_later_name():
    finished("depth_search", "2026-01-01_00-00-00", 7.0)
    later = finished("depth_search", "2026-01-01_00-00-00_2", 7.0)
    assert latest("tsopt") == [later / "recipe.json"]


def test_other_tasks_and_models_do_not_count():
    finished("depth_search", "a", 1.0)
    assert latest_recipes("tsopt", "controlnet", "tiny") == []
    assert latest_recipes("tsopt", "ip2p", "official") == []


def test_several_step_counts_keep_their_order():
    names = [f"steps_{n}/recipe.json" for n in (20, 5, 10)]
    folder = finished("tsopt", "a", 1.0, recipes=names, order=("steps_20", "steps_5", "steps_10"))
    assert recipes_of(folder) == latest("evaluate") == [folder / name for name in names]


def test_the_environment_is_told():
    found = environment()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "diffusers", "idcompress"} <= set(found["packages"])
    json.dumps(found)


# distributed runs


def test_further_ranks_join_the_folder_and_write_nothing(here, monkeypatch):
    main = opened(explicit=here / "mine")
    before = (main / "run.json").read_bytes()
    monkeypatch.setenv("LOCAL_RANK", "1")
    joined = opened(explicit=here / "mine")
    assert joined.path == main.path
    assert (main / "run.json").read_bytes() == before
    with pytest.raises(IdcError, match=r"hydra\.run\.dir"):
        opened()
