"""What lies on a disk may be cut, changed or exchanged: it is named, or computed again, and never used as it is."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from idcompress.errors import IdcError
from idcompress.runs import cache, files
from idcompress.runs.outputs import whole_folder
from idcompress.runs.run_dir import check_results, open_run, read_info


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The folder of a finished run with a trace, and results for each step count."""
    monkeypatch.chdir(tmp_path)
    run = open_run("evaluate", "ip2p", "tiny", "digest")
    run.trace().append({"depth": 13})
    for name in ("metrics.json", "per_image.csv", "steps_5/metrics.json", "steps_5/per_image.csv", "report.html"):
        files.write_text(run / name, '{"name": 1}\n')
    run.finish()
    return run.path


RESULTS = ("trace.jsonl", "metrics.json", "per_image.csv", "steps_5/metrics.json", "steps_5/per_image.csv")


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_results_of_a_finished_run_are_as_it_wrote_them(finished, name, harm):
    check_results(finished)
    path = finished / name
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else data.replace(b"1", b"2"))
    with pytest.raises(IdcError, match=r"missing|changed or damaged") as caught:
        check_results(finished)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_nobody_reads_again_and_runs_of_an_earlier_version_pass(finished):
    (finished / "report.html").write_text("other")
    check_results(finished)
    (finished / "metrics.json").unlink()
    info = json.loads((finished / "run.json").read_text())
    del info["results"]
    (finished / "run.json").write_text(json.dumps(info))
    check_results(finished)


@pytest.mark.parametrize(
    "change",
    [{"finished": "yes"}, {"finished_seconds": "x"}, {"digest": 3}, {"stage": None}, {"recipes": "steps_5"}],
    ids=str,
)
def test_a_run_json_with_values_of_other_types_is_none_of_ours(finished, change):
    info = json.loads((finished / "run.json").read_text())
    (finished / "run.json").write_text(json.dumps(info | change))
    assert read_info(finished) is None


ARRAYS = {"image": np.arange(6, dtype=np.float32).reshape(2, 3)}


def test_an_entry_of_the_cache_comes_back(tmp_path):
    path = tmp_path / "a.safetensors"
    assert cache.read(path, load) is None
    cache.keep(path, ARRAYS, save)
    assert np.array_equal(cache.read(path, load)["image"], ARRAYS["image"])


def test_an_entry_in_the_place_of_another_is_not_used(tmp_path):
    cache.keep(tmp_path / "a.safetensors", ARRAYS, save)
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    assert cache.read(tmp_path / "b.safetensors", load) is None


def test_the_same_bytes_in_another_shape_or_dtype_are_not_used(tmp_path):
    """As an edited header would have it, which leaves the tensors' bytes alone."""
    path = tmp_path / "a.safetensors"
    cache.keep(path, ARRAYS, save)
    data = path.read_bytes()
    for old, new in ((b"[2,3]", b"[3,2]"), (b'"F32"', b'"I32"'), (b'"image"', b'"imagf"')):
        assert old in data
        path.write_bytes(data.replace(old, new))
        assert cache.read(path, load) is None, new


def test_every_cut_and_every_changed_byte_of_an_entry_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    cache.keep(path, ARRAYS, save)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at])
        assert cache.read(path, load) is None
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        kept = cache.read(path, load)
        assert kept is None or np.array_equal(kept["image"], ARRAYS["image"])


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no /dev/zero here")
def test_a_device_is_no_entry(tmp_path):
    (tmp_path / "a.safetensors").symlink_to("/dev/zero")
    assert cache.read(tmp_path / "a.safetensors", load) is None


# What killed runs leave, and full disks.


def test_what_a_killed_export_left_goes_and_what_a_user_made_stays(tmp_path):
    left, others = tmp_path / "out.partial", tmp_path / "out.partial_2"
    for folder in (left, others):
        folder.mkdir()
        (folder / "weights").write_text("x")
    (left / ".idc-unfinished").touch()
    with whole_folder(tmp_path / "out", "export.path") as partial:
        assert partial == left and not (left / "weights").exists()
        # while the first is being filled
        with pytest.raises(RuntimeError), whole_folder(tmp_path / "out", "export.path") as second:
            assert second.name == "out.partial_3"
            raise RuntimeError
        (partial / "weights").write_text("new")
    assert (others / "weights").read_text() == "x"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights"]


def test_temporary_files_of_a_killed_run_go_when_it_is_continued(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_run("evaluate", "ip2p", "tiny", "digest")
    (run.path / "images").mkdir()
    left = [run / ".metrics.json.abcd1234", run.path / "images" / ".idc.x_y_z_12"]
    for path in left:
        path.write_text("half")
    (run / "metrics.json").write_text("{}")
    run.release()
    again = open_run("evaluate", "ip2p", "tiny", "digest")
    assert again.resumed and not any(path.exists() for path in left) and (again / "metrics.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'),
    ],
    ids=["python", "safetensors", "rust"],
)
def test_a_full_disk_names_the_file_whichever_library_wrote(tmp_path, error):
    path = tmp_path / "a.safetensors"
    path.write_text("before")
    with pytest.raises(OSError, match="No space left") as caught, files.whole(path):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
