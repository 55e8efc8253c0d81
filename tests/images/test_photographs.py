"""Sources of photographs: found offline, split without overlap, with prompts where a folder has them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from idcompress.errors import IdcError
from idcompress.images import photo_sets
from idcompress.images.photo_sets import Photograph


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for value, name in enumerate(("d.png", "a.png", "c.png", "sub/b.png", "e.png")):
        write(tmp_path / name, value)
    return tmp_path


def test_packaged_photographs_are_there_and_disjoint():
    search, evaluate = photo_sets.packaged("search"), photo_sets.packaged("evaluate")
    assert {p.name for p in search} == {"chelsea", "rocket", "motorcycle_left", "flower"}
    assert {p.name for p in evaluate} == {"astronaut", "coffee", "hubble_deep_field", "china", "grace_hopper"}
    assert not {p.digest for p in search} & {p.digest for p in evaluate}
    for photograph in (*search, *evaluate):
        image = photograph.open()
        assert image.mode == "RGB"
        assert min(image.size) >= 256
        assert len(photograph.digest) == 64


def test_packaged_photographs_cost_no_import():
    code = (
        "import sys; from idcompress.images.photo_sets import packaged; packaged('search'); packaged('evaluate');"
        "print([m for m in ('skimage', 'sklearn', 'matplotlib', 'diffusers', 'scipy') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(photo_sets, "find_spec", lambda name: None)
    with pytest.raises(IdcError, match=r"scikit-image.*data\.path"):
        photo_sets.packaged("search")


def test_a_folder_gives_sorted_photographs_with_unique_names(folder):
    write(folder / "a.bmp", 9)
    found = photo_sets.from_folder(folder)
    assert [p.name for p in found] == ["a.bmp", "a.png", "c", "d", "e", "sub/b"]
    assert all(p.prompt == "" for p in found)


def test_empty_files_are_left_out_and_counted(folder, monkeypatch):
    lines = []
    monkeypatch.setattr("idcompress.images.pictures.warn", lines.append)
    (folder / "c.png").write_bytes(b"")
    assert [p.name for p in photo_sets.from_folder(folder)] == ["a", "d", "e", "sub/b"]
    assert lines == [f"{folder}: 1 of 5 images are empty and are left out: c.png"]
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(IdcError, match="5 images, and all are empty"):
        photo_sets.from_folder(folder)


def test_halves_are_disjoint_and_complete(folder):
    found = photo_sets.from_folder(folder)
    search, evaluate = (found.half(name) for name in photo_sets.HALVES)
    assert [p.name for p in search] == ["a", "d", "sub/b"]
    assert [p.name for p in evaluate] == ["c", "e"]


def test_copies_of_a_photograph_never_land_in_both_halves(folder):
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    found = photo_sets.from_folder(folder)
    search, evaluate = (found.half(name) for name in photo_sets.HALVES)
    assert not {p.digest for p in search} & {p.digest for p in evaluate}
    assert len(search) + len(evaluate) == 5
    left = photo_sets.without(found, {search[0].digest})
    assert list(left) == [p for p in found if p.digest != search[0].digest]


def test_too_few_photographs_and_unknown_halves(tmp_path):
    write(tmp_path / "a.png", 1)
    write(tmp_path / "copy.png", 1)
    found = photo_sets.from_folder(tmp_path)
    with pytest.raises(IdcError, match="at least 2 different ones; got 1"):
        found.half("search")
    for call in (lambda: found.half("serach"), lambda: photo_sets.packaged("serach")):
        with pytest.raises(IdcError, match="did you mean 'search'"):
            call()


def test_metadata_gives_prompts(folder):
    rows = [
        {"file_name": "a.png", "prompt": "make it warmer"},
        {"file_name": "sub/b.png", "text": "a grey square"},
        {"file_name": "./c.png", "caption": "another", "extra": 1},
        {"file_name": "d.png"},
    ]
    (folder / "metadata.jsonl").write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows))
    prompts = {p.name: p.prompt for p in photo_sets.from_folder(folder)}
    assert prompts == {"a": "make it warmer", "sub/b": "a grey square", "c": "another", "d": "", "e": ""}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{'file_name': 'a.png'}", "line 2 is not JSON"),
        ('["a.png"]', "line 2 has no file_name"),
        ('{"prompt": "x"}', "line 2 has no file_name"),
        ('{"file_name": "gone.png"}', "line 2 names gone.png"),
        ('{"file_name": "a.png", "prompt": 3}', "prompt must be a text, got int"),
    ],
)
def test_a_bad_line_of_metadata_is_named(folder, line, text):
    (folder / "metadata.jsonl").write_text('{"file_name": "c.png"}\n' + line)
    with pytest.raises(IdcError, match=text) as error:
        photo_sets.from_folder(folder)
    assert "\n" not in str(error.value)
    assert "metadata.jsonl" in str(error.value)


def test_metadata_that_is_no_text_is_a_line(folder):
    (folder / "metadata.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IdcError, match="UTF-8"):
        photo_sets.from_folder(folder)


def test_a_photograph_is_told_by_content(folder):
    one, same = Photograph("x", folder / "a.png"), Photograph("y", folder / "a.png")
    assert one.digest == same.digest != Photograph("z", folder / "c.png").digest
