"""Traces: appended row by row, complete rows never touched, a cut-off one dropped."""

import json
import math

import pytest

from idcompress.errors import IdcError
from idcompress.runs.trace import Trace

ROWS = [{"depth": 13, "passed": True, "metrics": {"psnr": None}}, {"depth": 12, "passed": False, "missed": ["größer"]}]


@pytest.fixture
def path(tmp_path):
    trace = Trace(tmp_path / "run" / "trace.jsonl")
    for row in ROWS:
        trace.append(row)
    return trace.path


def test_rows_come_back(path):
    assert Trace(path).rows == ROWS
    assert path.read_bytes().count(b"\n") == 2
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == ROWS


def test_opening_writes_nothing(tmp_path, path):
    before = path.read_bytes()
    Trace(path)
    assert path.read_bytes() == before
    assert Trace(tmp_path / "other.jsonl").rows == []
    assert not (tmp_path / "other.jsonl").exists()


def test_appending_leaves_earlier_bytes_alone(path):
    before = path.read_bytes()
    trace = Trace(path)
    assert trace.append({"depth": 11}) == {"depth": 11}
    assert path.read_bytes()[: len(before)] == before
    assert Trace(path).rows == [*ROWS, {"depth": 11}]


def test_every_cut_of_the_last_row_is_dropped(path):
    """Cut at each byte, as an interrupted write would: whole rows stay, byte for byte, and the next one fits on."""
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for end in range(len(data)):
        path.write_bytes(data[:end])
        kept = data[:first] if end >= first else b""
        trace = Trace(path)
        assert path.read_bytes() == data[:end], "looking at a trace, for a report say, changed it"
        assert trace.rows == ROWS[: kept.count(b"\n")]
        trace.append(ROWS[1])
        assert path.read_bytes() == kept + data[first:]
    path.write_bytes(data[:-4])
    Trace(path).append(ROWS[1])
    assert path.read_bytes() == data


@pytest.mark.parametrize("text", ["a\u2028b", "a\u0085b", "a\nb\r\x0b\x0c\x1c"])
def test_any_text_fits_in_a_row(path, text):
    """JSON lines end at a line feed and nowhere else."""
    Trace(path).append({"note": text})
    assert Trace(path).rows == [*ROWS, {"note": text}]


def test_not_a_number_becomes_null(path):
    trace = Trace(path)
    row = trace.append({"psnr": math.inf, "list": (math.nan, 1.0), "evaluation_seconds": 0.25})
    assert row == {"psnr": None, "list": [None, 1.0], "evaluation_seconds": 0.25}
    assert trace.rows[-1] == row == Trace(path).rows[-1]
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_floats_are_kept_exactly(path):
    value = 0.1 + 0.2
    Trace(path).append({"gamma": value})
    assert Trace(path).find(gamma=value) == {"gamma": value}


def test_find(path):
    trace = Trace(path)
    trace.append({"depth": 12, "passed": True})
    assert trace.find(depth=12) == ROWS[1]  # the first
    assert trace.find(depth=12, passed=True) == {"depth": 12, "passed": True}
    assert trace.find(depth=5) is None
    assert trace.find(depth=12, steps=4) is None
    trace.append({"timesteps": [999, 5]})
    assert trace.find(timesteps=[999, 5]) == {"timesteps": [999, 5]}


@pytest.mark.parametrize(
    "line", [b'{"depth": 11', b"not json", b"", b"7", b'"text"', b"\xff\xfe"], ids=lambda b: repr(b)
)
def test_a_damaged_line_is_named(path, line):
    data = path.read_bytes()
    path.write_bytes(data + line + b"\n" + data)
    with pytest.raises(IdcError, match="line 3") as caught:
        Trace(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == data + line + b"\n" + data
