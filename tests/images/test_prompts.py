"""Prompts beside photographs reach them letter by letter, and what has none is told."""

import json

import numpy as np
import pytest
from PIL import Image

from idcompress.errors import IdcError
from idcompress.images import pictures, prompts
from idcompress.images.photo_sets import from_folder


@pytest.fixture
def told(monkeypatch):
    """The lines that were said."""
    lines = []
    monkeypatch.setattr(pictures, "warn", lines.append)
    return lines


def photo(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for value, name in enumerate("abc"):
        photo(tmp_path / f"{name}.png", value)
    return tmp_path


def jsonl(path, *rows, end="\n"):
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode())


def found(folder):
    return {photo.name: photo.prompt for photo in from_folder(folder)}


@pytest.mark.parametrize("split", ["train", "validation", "val", "test", "deep/train"])
def test_tables_in_split_folders(tmp_path, told, split):
    photo(tmp_path / split / "a.png")
    photo(tmp_path / "other" / "sub" / "b.png")
    jsonl(tmp_path / split / "metadata.jsonl", {"file_name": "a.png", "text": "one"})
    (tmp_path / "other" / "metadata.csv").write_text("file_name,text\nsub/b.png,two\n")
    assert found(tmp_path) == {f"{split}/a": "one", "other/sub/b": "two"}
    assert told == []


def test_the_nearest_table_counts(tmp_path, told):
    photo(tmp_path / "train" / "a.png")
    photo(tmp_path / "train" / "b.png")
    jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "train/a.png", "text": "far"},
        {"file_name": "train/b.png", "text": "only"},
    )
    jsonl(tmp_path / "train" / "metadata.jsonl", {"file_name": "a.png", "text": "near"}, {"file_name": "b.png"})
    assert found(tmp_path) == {"train/a": "near", "train/b": "only"}
    assert len(told) == 1 and "train/a.png" in told[0]


@pytest.mark.parametrize("key", [*prompts.PROMPT_KEYS, "Caption", " TEXT "])
def test_the_usual_keys(folder, told, key):
    jsonl(folder / "metadata.jsonl", *({"file_name": f"{name}.png", key: f"x {name}", "label": 3} for name in "abc"))
    assert found(folder) == {name: f"x {name}" for name in "abc"}
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(f"file_name,{key}\n" + "".join(f"{name}.png,y {name}\n" for name in "abc"))
    assert found(folder) == {name: f"y {name}" for name in "abc"}
    assert told == []


def test_of_a_list_the_first_counts(folder, told):
    jsonl(
        folder / "metadata.jsonl",
        {"file_name": "a.png", "text": ["", "one", "two"]},
        {"file_name": "b.png", "caption": []},
        {"file_name": "c.png", "caption": None},
    )
    assert found(folder) == {"a": "one", "b": "", "c": ""}
    assert told == [f"data.path={folder}: 2 of 3 photographs have no prompt: b, c"]


def test_rows_of_files_that_are_not_there_are_left_out_and_counted(folder, told):
    rows = ({"file_name": f"{name}.png", "text": name} for name in ("a", "gone", "b", "c", "lost"))
    jsonl(folder / "metadata.jsonl", *rows)
    assert found(folder) == {name: name for name in "abc"}
    assert told == [f"{folder / 'metadata.jsonl'}: 2 rows name files that are not there: gone.png, lost.png"]


def test_several_keys_are_told(folder, told):
    jsonl(folder / "metadata.jsonl", *({"file_name": f"{n}.png", "caption": "dog", "edit": "cat"} for n in "abc"))
    assert set(found(folder).values()) == {"cat"}
    assert len(told) == 1 and "edit and caption" in told[0]


def test_several_prompts_of_a_photograph_are_told(folder, told):
    jsonl(
        folder / "metadata.jsonl",
        *({"file_name": f"{name}.png", "text": f"{name} {i}"} for name in "abc" for i in "01"),
    )
    assert found(folder) == {name: f"{name} 0" for name in "abc"}
    assert len(told) == 1 and "several prompts for a.png, b.png, c.png" in told[0]


@pytest.mark.parametrize(
    "sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\\n", "é", "e\u0301", "😀"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_signs_inside_strings(folder, told, sign, end):
    rows = [{"file_name": f"{name}.png", "text": f"one{sign}two {name}"} for name in "abc"]
    raw = "".join(f'{{"file_name": "{row["file_name"]}", "text": "{row["text"]}"}}{end}' for row in rows)
    if sign in "\x0b\x0c\x1c\x1d\x1e":  # JSON wants these written by their number
        raw = "".join(json.dumps(row) + end for row in rows)
    (folder / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + raw.encode())
    wanted = {name: f"one{sign}two {name}".replace("\\n", "\n") for name in "abc"}
    assert found(folder) == wanted
    (folder / "metadata.jsonl").unlink()
    cells = "".join(f'{name}.png,"{text}"{end}' for name, text in wanted.items())
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + f"file_name,text{end}{cells}".encode())
    assert found(folder) == wanted
    assert told == []


def test_cells_of_a_csv(folder, told):
    (folder / "metadata.csv").write_bytes(
        b'file_name,label,text\r\na.png,1,"one, ""two""\r\nthree"\r\n\r\nb.png,2,2024\r\nc.png,3\r\n'
    )
    assert found(folder) == {"a": 'one, "two"\r\nthree', "b": "2024", "c": ""}
    assert told == [f"data.path={folder}: 1 of 3 photographs have no prompt: c"]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_marks_between_cells(folder, mark):
    (folder / "metadata.csv").write_text(f"text{mark}file_name\none, two{mark}a.png\n")
    assert found(folder)["a"] == "one, two"


@pytest.mark.parametrize(
    ("table", "text", "words"),
    [
        ("metadata.csv", "file_name,text\na.png,one, two\n", "line 2 has more cells"),
        ("metadata.csv", 'file_name,text\na.png,"one\nb.png,two\n', "no CSV"),
        ("metadata.csv", "name,text\na.png,one\n", "line 2 has no file_name"),
        ("metadata.csv", "file_name,text, Text\na.png,one,two\n", "has the column text twice"),
        ("metadata.csv", "file_name,text\ngone.png,one\n", "line 2 names gone.png, and there is no such file"),
        (
            "metadata.csv",
            "file_name,beschreibung\na.png,ein Haus\n",
            r"no prompt under a known name, but beschreibung; want",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "alt": ["a house"]}',
            r"no prompt under a known name, but alt; want",
        ),
        ("metadata.jsonl", '{"file_name": "../a.png", "text": "x"}', "names ../a.png"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": {"de": "x"}}', "text must be a text, got dict"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"} {', "line 1 is not JSON"),
    ],
)
def test_mistakes_in_tables_are_one_line(folder, table, text, words):
    (folder / table).write_text(text)
    with pytest.raises(IdcError, match=words) as error:
        from_folder(folder)
    assert "\n" not in str(error.value) and table in str(error.value)


def test_labels_are_no_prompts(folder, told):
    (folder / "metadata.csv").write_text("file_name,label\na.png,0\nb.png,1\n")
    assert set(found(folder).values()) == {""}


def test_names_are_found_in_other_spellings(tmp_path):
    photo(tmp_path / "sub" / "cafe\u0301.png")
    photo(tmp_path / "sub" / "b.png")
    jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "sub/caf\u00e9.png", "text": "one"},
        {"file_name": ".\\sub\\b.png", "text": "two"},
    )
    assert set(found(tmp_path).values()) == {"one", "two"}


def test_text_files(tmp_path, told):
    for name in "abcd":
        photo(tmp_path / f"{name}.x.png")
    (tmp_path / "a.x.txt").write_bytes(b"\xef\xbb\xbfone\xe2\x80\xa8more\r\n")
    (tmp_path / "b.x.caption").write_text("two")
    (tmp_path / "c.x.png.txt").write_text("three")
    assert found(tmp_path) == {"a.x": "one\u2028more", "b.x": "two", "c.x": "three", "d.x": ""}
    assert told == [f"data.path={tmp_path}: 1 of 4 photographs have no prompt: d.x"]


def test_photographs_without_any_prompt_are_no_news(folder, told):
    assert set(found(folder).values()) == {""}
    assert told == []


def test_a_table_that_is_not_read_is_told(folder, told):
    (folder / "metadata.parquet").write_bytes(b"x")
    found(folder)
    assert len(told) == 1 and "metadata.parquet is not read" in told[0]


def test_names_that_are_not_utf_8(tmp_path, told):
    photo(tmp_path / "a.png")
    photo(tmp_path / "b\udcff.png", 9)
    (tmp_path / "b\udcff.txt").write_text("one")
    photographs = from_folder(tmp_path)
    assert [photograph.prompt for photograph in photographs] == ["", "one"]
    assert len(photographs.digest) == 64 and len(photographs[1].digest) == 64
    assert photographs[1].open().size == (4, 4)
