"""Numbers in README.md and docs/benchmarks.md are those of the stored results."""

import json
import re

import pytest

from scripts.benchmarks import BLOCK, DOCUMENTS, RESULTS, SOURCE, cell, read, rendered, renewed

CODE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)
MEASURED = re.compile(r"\d+\.\d+(?!\.)|\d+(?:\.\d+)? ?(?:dB|%)")
NOT_MEASURED = {"3.11", "2.0", "2401.17547"}  # Python, licence, paper


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_table_is_its_result(document):
    """`make benchmarks` renews them."""
    text = document.read_text()
    assert renewed(text) == text
    assert text.count("<!-- result ") == len(BLOCK.findall(text)) == text.count("<!-- end -->")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_measured_number_stands_elsewhere(document):
    prose = CODE.sub("", BLOCK.sub("", document.read_text()))
    assert set(MEASURED.findall(prose)) <= NOT_MEASURED


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.json")))
def test_every_result_says_where_it_comes_from_and_is_shown(name):
    result = read(name)
    assert all(str(result[key]) for key in SOURCE)
    shown = {match[1:3] for document in DOCUMENTS for match in BLOCK.findall(document.read_text())}
    assert name in {found[0] for found in shown}


def test_a_changed_number_is_noticed(tmp_path):
    text = "<!-- result toy rows -->\n<!-- end -->\n"
    toy = {"command": "make toy", "commit": "abc", "date": "2026-01-01", "machine": "a machine", "seed": 0}
    for value in (12.345, 12.36):
        (tmp_path / "toy.json").write_text(json.dumps({**toy, "values": {"rows": [{"name": "a", "dB": value}]}}))
        changed = renewed(text, tmp_path)
        assert changed != text
        assert renewed(changed, tmp_path) == changed
        text = changed
    assert "| a | 12.4 |" in text
    (tmp_path / "toy.json").write_text(json.dumps({"values": {}}))
    with pytest.raises(ValueError, match="lacks command, commit"):
        renewed(text, tmp_path)


def test_how_cells_are_written():
    difference = {"mean": 2.9061, "interval": [1.878, 3.987], "verdict": "better"}
    written = [cell(value) for value in (None, 1318448, 0.9298, 12345.6, "50 to 10", difference)]
    assert written == ["", "1,318,448", "0.93", "12,346", "50 to 10", "2.91 [1.88, 3.99]"]
    assert rendered({"values": {"console": ["a", "b"]}}, "console") == "```text\na\nb\n```\n"
