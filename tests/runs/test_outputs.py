"""Results beside other people's files: free names, own files known again, folders that appear whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import idcompress
from idcompress.errors import IdcError
from idcompress.runs.outputs import RECORD, OutputFolder, whole_folder
from idcompress.runs.run_dir import open_run
from idcompress.stages.translate import output_name, output_stems


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(digest="digest"):
    return open_run("translate", "ip2p", "tiny", digest)


def written(folder: OutputFolder, *stems: str, data: bytes = b"ours") -> list[str]:
    return [folder.write(stem, ".png", data).name for stem in folder.choose(stems, [".png"])]


def test_a_strangers_file_keeps_its_name():
    out = Path("out")
    out.mkdir()
    (out / "a.png").write_bytes(b"theirs")
    assert written(OutputFolder(out, run_of()), "a", "b") == ["a_2.png", "b.png"]
    assert (out / "a.png").read_bytes() == b"theirs"


@pytest.mark.parametrize("taken", ["link", "dangling", "folder"])
def test_whatever_has_the_name_keeps_it(taken):
    out = Path("out")
    out.mkdir()
    Path("elsewhere.png").write_bytes(b"theirs")
    target = Path("../elsewhere.png") if taken == "link" else Path("nowhere")
    (out / "a.png").mkdir() if taken == "folder" else (out / "a.png").symlink_to(target)
    assert written(OutputFolder(out, run_of()), "a") == ["a_2.png"]
    assert Path("elsewhere.png").read_bytes() == b"theirs" and (taken == "folder" or (out / "a.png").is_symlink())


def test_a_rerun_replaces_what_the_same_command_made_and_nothing_else():
    out = Path("out")
    first = run_of()
    assert written(OutputFolder(out, first), "a", "b", data=b"first") == ["a.png", "b.png"]
    first.finish()
    (out / "b.png").write_bytes(b"edited by hand")
    again = run_of()
    assert not again.resumed
    assert written(OutputFolder(out, again), "a", "b", data=b"second") == ["a.png", "b_2.png"]
    assert (out / "a.png").read_bytes() == b"second" and (out / "b.png").read_bytes() == b"edited by hand"


def test_another_command_leaves_results_alone():
    out, first = Path("out"), run_of()
    written(OutputFolder(out, first), "a")
    first.finish()
    assert written(OutputFolder(out, run_of("another")), "a") == ["a_2.png"]


def test_an_interrupted_run_knows_its_files():
    out, first = Path("out"), run_of()
    written(OutputFolder(out, first), "a")
    first.release()
    again = run_of()
    assert again.resumed and (again / RECORD).is_file()
    assert written(OutputFolder(out, again), "a") == ["a.png"]
    assert [path.name for path in out.iterdir()] == ["a.png"]


def test_a_run_beside_this_one_takes_the_next_name():
    """Both chose the name while it was free."""
    one, other = (OutputFolder(Path("out"), run_of(digest)) for digest in ("one", "other"))
    assert one.choose(["a"], [".png"]) == other.choose(["a"], [".png"]) == ["a"]
    assert [folder.write("a", ".png", b"x").name for folder in (one, other)] == ["a.png", "a_2.png"]


WRITER = """
import sys, time
from pathlib import Path
from idcompress.runs.outputs import OutputFolder
from idcompress.runs.run_dir import open_run
mine = sys.argv[1]
folder = OutputFolder(Path("out"), open_run("translate", "ip2p", "tiny", mine))
stems = folder.choose([f"{number}" for number in range(40)], [".png"])
Path(mine).touch()
while not (Path("one").exists() and Path("other").exists()):
    time.sleep(0.01)
for number, stem in enumerate(stems):
    print(number, folder.write(stem, ".png", f"{mine} {number}".encode() * 500).name)
"""


def test_processes_that_write_at_once_lose_and_mix_nothing():
    environment = os.environ | {"PYTHONPATH": str(Path(idcompress.__file__).parents[1])}
    processes = {
        mine: subprocess.Popen([sys.executable, "-c", WRITER, mine], env=environment, stdout=subprocess.PIPE, text=True)
        for mine in ("one", "other")
    }
    names = []
    for mine, process in processes.items():
        lines = process.communicate(timeout=60)[0].split("\n")[:-1]
        assert len(lines) == 40 and process.returncode == 0
        for line in lines:
            number, name = line.split()
            assert Path("out", name).read_bytes() == f"{mine} {number}".encode() * 500
            names.append(name)
    assert len(set(names)) == 80 and {path.name for path in Path("out").iterdir()} == set(names)


def test_a_free_name_is_no_other_results_name():
    out = Path("out")
    out.mkdir()
    (out / "a.png").touch()
    assert written(OutputFolder(out, run_of()), "a", "a_2") == ["a_3.png", "a_2.png"]


def test_all_files_of_a_result_share_a_free_stem():
    out = Path("out")
    out.mkdir()
    (out / "report.md").touch()
    assert OutputFolder(out, run_of()).choose(["report"], [".html", ".md"]) == ["report_2"]


def test_overwriting_is_for_those_who_mean_it_and_never_of_an_input():
    out = Path("out")
    out.mkdir()
    (out / "a.png").write_bytes(b"theirs")
    folder = OutputFolder(out, run_of(), overwrite=True, keep=[out / "b.png"])
    assert written(folder, "a") == ["a.png"] and (out / "a.png").read_bytes() == b"ours"
    with pytest.raises(IdcError, match=r"b\.png would overwrite its input; choose another output\.path"):
        folder.choose(["b"], [".png"])
    (out / "c.png").mkdir()
    with pytest.raises(IdcError, match=r"c\.png is a folder"):
        folder.choose(["c"], [".png"])


def test_a_file_in_the_folders_place_is_named():
    Path("out").touch()
    with pytest.raises(IdcError, match=r"output\.path=out is a file"):
        OutputFolder(Path("out"), run_of())


def test_a_long_name_is_shortened_where_a_number_is_added():
    out, stem = Path("out"), "ä" * 125
    out.mkdir()
    (out / f"{stem}.png").touch()
    (name,) = written(OutputFolder(out, run_of()), stem)
    assert name.endswith("_2.png") and len(os.fsencode(name)) <= 255


# names of a translation's results


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.png"],
        ["a.jpg", "a.jpg"],
        ["A.jpg", "a.jpg"],
        ["one/a.jpg", "two/a.jpg", "a_0.jpg", "a_1.png"],
        ["x.jpg", "x_compare.jpg", "x_compare_compare.jpg", "X_Compare.png"],
        ["x.jpg", "x_compare_1.jpg", "x_compare.jpg"],
        ["\u00e4.jpg", "a\u0308.jpg"],
        ["stra\u00dfe.png", "STRASSE.png"],
        [f"{'n' * 250}.jpg", f"{'n' * 250}.png"],
    ],
)
def test_no_two_results_share_a_name(names):
    paths = [Path(name) for name in names]
    stems = output_stems(paths)
    made = [f"{stem}{ending}".casefold() for stem in stems for ending in (".png", "_compare.png")]
    assert len(set(made)) == 2 * len(paths)
    assert output_name(paths[0], paths) == f"{stems[0]}.png"


def test_a_stem_that_nobody_shares_stays():
    assert output_stems([Path("b.jpg"), Path("sub/a.jpg"), Path("a.png")]) == ["b", "a_1", "a_2"]


# folders that appear whole


def test_a_folder_appears_whole_and_a_strangers_is_left():
    Path("new.partial").mkdir()
    Path("new.partial/theirs").touch()
    with whole_folder(Path("new"), "export.path") as partial:
        (partial / "file").touch()
        assert not Path("new").exists()
    assert [path.name for path in Path("new").iterdir()] == ["file"]
    assert Path("new.partial/theirs").is_file() and not Path("new.partial_2").exists()


def test_what_fails_leaves_nothing():
    with pytest.raises(ZeroDivisionError), whole_folder(Path("new"), "export.path"):
        1 / 0  # noqa: B018
    assert not list(Path().glob("new*"))


def test_a_folder_that_was_filled_meanwhile_is_left():
    with pytest.raises(IdcError, match=r"export\.path=new was filled"), whole_folder(Path("new"), "export.path"):
        Path("new").mkdir()
        Path("new/theirs").touch()
    assert [path.name for path in Path().iterdir()] == ["new"]


# run folders that the user chose


@pytest.mark.parametrize("name", ["config.yaml", "recipe.json", "log.txt", "unet.safetensors"])
def test_a_run_folder_with_a_strangers_file_of_a_runs_name_is_refused(name):
    Path("mine").mkdir()
    Path("mine", name).write_text("theirs")
    with pytest.raises(IdcError, match=rf"mine holds {name}, which no run has made"):
        open_run("tsopt", "ip2p", "tiny", "digest", Path("mine"))
    assert Path("mine", name).read_text() == "theirs" and len(list(Path("mine").iterdir())) == 1


def test_a_strangers_folder_matters_where_the_stage_makes_it():
    Path("mine/images").mkdir(parents=True)
    with pytest.raises(IdcError, match="mine holds images"):
        open_run("evaluate", "ip2p", "tiny", "digest", Path("mine"))
    assert open_run("translate", "ip2p", "tiny", "digest", Path("mine")).path == Path("mine")
