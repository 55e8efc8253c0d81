"""Files that appear whole or not at all."""

import hashlib
import json
import math
import os
from pathlib import Path

import pytest

from idcompress.errors import IdcError
from idcompress.runs import files


def test_write_and_read(tmp_path):
    path = tmp_path / "deep" / "er" / "value.json"
    value = {"a": [1, 2.5, None, "ü\u2028"], "b": {"c": True}}
    assert files.write_json(path, value) == path
    assert files.read_json(path, "thing") == value
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_not_a_number_becomes_null(tmp_path):
    value = {"nan": math.nan, "list": [math.inf, (-math.inf, 1.5)], "whole": 3, 4: "key"}
    text = files.write_json(tmp_path / "v.json", value).read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "list": [None, [None, 1.5]],
        "whole": 3,
        "4": "key",
    }


def test_names_that_are_not_utf_8(tmp_path):
    value = {"name": "b\udcff.png", "\udc80": 1}
    path = files.write_json(tmp_path / "v.json", value)
    assert files.read_json(path, "thing") == value
    assert len(files.digest(value)) == 64 != files.digest({"name": "b\udcfe.png", "\udc80": 1})


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127, "字" * 85, "." * 200])
def test_a_name_that_fits_can_be_written_and_linked(tmp_path, name):
    path = files.write_text(tmp_path / name, "text")
    assert path.name == name and files.fitted(path) == path
    assert files.link(path, tmp_path / "linked" / name).read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 2


def test_longer_names_are_cut_and_stay_apart():
    paths = [files.fitted(Path("/a") / ("字" * 90) / f"{'n' * 300}{i}.png") for i in range(2)]
    assert len(set(paths)) == 2
    for path in paths:
        assert path.parts[:2] == ("/", "a") and path.suffix == ".png"
        assert all(len(os.fsencode(part)) <= 255 for part in path.parts)
        assert files.fitted(path) == path


class Stop(BaseException):
    """Not an Exception, like KeyboardInterrupt."""


@pytest.mark.parametrize("where", ["fsync", "rename"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Stop()])
def test_a_failed_write_leaves_nothing_new(tmp_path, monkeypatch, where, error):
    path = files.write_text(tmp_path / "v.txt", "before")

    def fail(*_):
        raise error

    monkeypatch.setattr(*((os, "fsync") if where == "fsync" else (Path, "replace")), fail)
    for target in (path, tmp_path / "new.txt"):
        with pytest.raises(type(error)):
            files.write_text(target, "after")
    assert [p.name for p in tmp_path.iterdir()] == ["v.txt"]
    assert path.read_text() == "before"


def test_a_value_that_is_no_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "v.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "not readable JSON"),
        (b'{"a": 1', "not readable JSON"),
        (b"\xff\xfe\x00", "not readable JSON"),
        (b"[1]", "must hold a JSON object, got list"),
        (b"null", "must hold a JSON object, got NoneType"),
    ],
)
def test_unreadable_files_are_one_clear_line(tmp_path, content, message):
    path = tmp_path / "v.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IdcError, match=message) as caught:
        files.read_json(path, "thing")
    assert str(caught.value).startswith("thing: ")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(IdcError, match="is a folder; want a file"):
        files.read_json(tmp_path, "thing")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no /dev/zero here")
def test_a_device_in_place_of_a_file_is_refused_before_it_is_read():
    with pytest.raises(IdcError, match="is a device or pipe; want a file"):
        files.read_json(Path("/dev/zero"), "thing")


def test_a_file_of_any_size_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(IdcError, match="more than any such file"):
        files.read_json(path, "thing")


HOSTILE = {
    "too deep": '{"a": ' + "[" * 100_000,
    "deep and whole": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "digits": '{"a": 1' + "0" * 5000 + "}",
    "beyond 64 bits": '{"a": 1' + "0" * 30 + "}",
    "nan": '{"a": NaN}',
    "infinity": '{"a": -Infinity}',
    "overflow": '{"a": 1e999}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_json_that_python_would_choke_on_is_one_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(IdcError, match="not readable JSON") as caught:
        files.read_json(path, "thing")
    assert len(str(caught.value)) < 400


def test_digests(tmp_path):
    one, other = {"a": 1, "b": {"x": [1, 2], "y": None}}, {"b": {"y": None, "x": [1, 2]}, "a": 1}
    assert files.digest(one) == files.digest(other)
    assert files.digest({"a": (1, 2)}) == files.digest({"a": [1, 2]})
    assert files.digest({"a": [1, 2]}) != files.digest({"a": [2, 1]})
    assert files.digest("ü") == hashlib.sha256('"ü"'.encode()).hexdigest()
    path = tmp_path / "data"
    path.write_bytes(b"x" * 100_000)
    assert files.file_digest(path) == hashlib.sha256(b"x" * 100_000).hexdigest()


def test_a_link_named_like_a_digest_is_read_all_the_same(tmp_path):
    named = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / named).write_bytes(b"other weights")
    link = tmp_path / "model.safetensors"
    link.symlink_to(tmp_path / "blobs" / named)
    assert files.file_digest(link) == hashlib.sha256(b"other weights").hexdigest()


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that counts as large, written a while ago, and how often it was read."""
    reads = []
    read = files._read_digest
    monkeypatch.setenv("IDC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_REMEMBERED_BYTES", 5)
    monkeypatch.setattr(files, "_SETTLED_NS", -1)
    monkeypatch.setattr(files, "_read_digest", lambda path: (reads.append(path), read(path))[1])
    path = tmp_path / "models" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path, reads


def test_a_large_file_is_read_once_and_again_when_it_changes(large, tmp_path):
    path, reads = large
    for _ in range(3):
        assert files.file_digest(path) == hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "link").symlink_to(path)
    assert files.file_digest(tmp_path / "link") == hashlib.sha256(b"weights").hexdigest()
    assert len(reads) == 1
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(0, 0))
    assert files.file_digest(path) == hashlib.sha256(b"WEIGHTS").hexdigest() and len(reads) == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]  # nothing lies beside it
    for kept in (tmp_path / "cache" / "digests").iterdir():
        kept.write_text("{")
    assert files.file_digest(path) == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_a_file_that_was_just_written_is_not_remembered(large, monkeypatch):
    path, reads = large
    monkeypatch.setattr(files, "_SETTLED_NS", 10**18)
    assert files.file_digest(path) == files.file_digest(path) and len(reads) == 2


def test_a_cache_that_cannot_be_written_is_done_without(large, tmp_path, monkeypatch):
    path, _ = large
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IDC_CACHE", str(tmp_path / "file"))
    assert files.file_digest(path) == hashlib.sha256(b"weights").hexdigest()


def test_infinity_is_read_where_diffusers_writes_it_and_nan_nowhere(tmp_path):
    file = tmp_path / "scheduler_config.json"
    file.write_text('{"lambda_min_clipped": -Infinity}')
    assert files.read_json(file, "model", infinite=True) == {"lambda_min_clipped": float("-inf")}
    with pytest.raises(IdcError, match="-Infinity is no number of JSON"):
        files.read_json(file, "recipe")
    file.write_text('{"lambda_min_clipped": NaN}')
    with pytest.raises(IdcError, match="NaN is no number of JSON"):
        files.read_json(file, "model", infinite=True)
