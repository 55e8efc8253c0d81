"""Run folders whose files have the right names and another content: one line that names the folder or the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import run_folders

from idcompress.errors import IdcError
from idcompress.report import page
from idcompress.report.collect import as_written, collect

METRICS = ("evaluate/metrics.json", "depth_search/metrics.json", "tsopt/metrics.json")


def make(evaluation: Path) -> str:
    """The page, as `idc report` makes it."""
    with as_written(evaluation):
        return page.to_html(page.compose(collect(evaluation, 1)))


@pytest.mark.parametrize("harm", ["half", "a row short", "no UTF-8", "a folder", "gone"])
def test_a_damaged_table_of_images_is_named(tmp_path: Path, harm: str) -> None:
    path = run_folders.compress_run(tmp_path, [3]) / "evaluate/per_image.csv"
    data = path.read_bytes()
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm != "gone":
        rows = b"".join(data.splitlines(keepends=True)[:-1])
        path.write_bytes({"half": data[: len(data) // 2], "a row short": rows, "no UTF-8": b"\xff" + data}[harm])
    with pytest.raises(IdcError, match=r"per_image\.csv") as caught:
        make(path.parent)
    assert "\n" not in str(caught.value)


def changed(value: object, place: tuple[object, ...], new: object) -> object:
    """A JSON value with another one at a place."""
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)  # type: ignore[call-overload]
    copy[place[0]] = changed(copy[place[0]], place[1:], new)  # type: ignore[index]
    return copy


def places(value: object) -> list[tuple[object, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, child in inside for rest in places(child))]


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_another_form_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    top = run_folders.compress_run(tmp_path, [3])
    whole, refused = json.loads((top / name).read_text()), 0
    found = places(whole)
    for place in found[:: 1 + len(found) // 6]:
        for new in (None, "x", []):
            (top / name).write_text(json.dumps(changed(whole, place, new)))
            try:
                make(top / "evaluate")
            except IdcError as error:
                refused += 1
                assert "\n" not in str(error) and str(top) in str(error)
    assert refused
