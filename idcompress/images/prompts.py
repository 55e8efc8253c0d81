"""Prompts beside photographs: metadata.jsonl and metadata.csv of any folder, and text files of an image's stem."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import IdcError
from .pictures import some, warn_once

PROMPT_KEYS = ("prompt", "edit_prompt", "edit", "instruction", "text", "caption")
_TABLES = ("metadata.jsonl", "metadata.csv")
_UNREAD = "metadata.parquet"
_WANTED = f'"file_name" and one of {", ".join(PROMPT_KEYS)}'
_TEXT_FILES = (".txt", ".caption")


def prompt_in(row: Mapping[Any, Any], place: str, keys: Sequence[str] = PROMPT_KEYS) -> str:
    """The prompt of a row by the first of the usual keys that it has, "" where it has none.

    Of a list the first that is not empty counts.

    Raises:
        IdcError: it is no text.
    """
    named = {str(key).strip().lower(): value for key, value in row.items()}
    for key in keys:
        value = named.get(key)
        if isinstance(value, list):
            value = next((entry for entry in value if entry not in ("", None)), None)
        if value is not None and not isinstance(value, str):
            raise IdcError(f"{place}: {key} must be a text, got {type(value).__name__}")
        if value and value.strip():
            return value
    return ""


def read_csv(path: Path, text: str, wanted: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with their line numbers; cells are split by commas, or semicolons or tabs where `wanted` is then
    a column. Line breaks inside quoted cells belong to them.

    Raises:
        IdcError: a column comes twice, a row has more cells than the header, or its quotes do not end.
    """
    header = text.partition("\n")[0]
    split = next((mark for mark in ",;\t" if wanted in [name.strip(' "\r') for name in header.split(mark)]), ",")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=split, strict=True, skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    twice = [name for name, number in Counter(map(str.lower, reader.fieldnames)).items() if name and number > 1]
    if twice:
        raise IdcError(f"{path} has the column {twice[0]} twice; rename or remove one")
    try:
        for row in reader:
            if row.pop(None, None):  # type: ignore[call-overload]
                raise IdcError(
                    f"{path}, line {reader.line_num} has more cells than the header has columns; put a text with "
                    f"{split!r} in it between double quotes"
                )
            yield reader.line_num, {name: cell or "" for name, cell in row.items()}
    except csv.Error as error:
        raise IdcError(f"{path}, line {reader.line_num} is no CSV ({error}); a double quote in a text is two") from None


def prompts_of(root: Path, listed: Collection[str]) -> dict[str, str]:
    """Prompts by an image's file name, relative to the folder, "" where a table has none for it.

    Args:
        listed: the folder's files, those of subfolders included.

    Raises:
        IdcError: a row is wrong, rows name files that are not there and no prompt is left, or a table's texts have other names than `PROMPT_KEYS`.
    """
    found: dict[str, str] = {}
    plain = {unicodedata.normalize("NFC", name): name for name in listed}
    # The table nearest to an image counts, so the deepest ones come last.
    for name in sorted(listed, key=lambda name: (name.count("/"), name)):
        folder, _, base = name.rpartition("/")
        if base == _UNREAD and not any(f"{folder}/{table}".lstrip("/") in plain for table in _TABLES):
            warn_once(f"{root / name} is not read; its prompts count as {' or '.join(_TABLES)}")
        if base in _TABLES:
            found |= _of_table(root, name, plain, found)
    return found


def _of_table(root: Path, table: str, plain: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    path, folder = root / table, table.rpartition("/")[0]
    found: dict[str, str] = {}
    gone: list[tuple[str, str]] = []
    repeated: list[str] = []
    other: Counter[str] = Counter()
    used: set[str] = set()
    for place, row in _rows(path):
        named = {str(key).strip().lower(): value for key, value in row.items()}
        given = named.get("file_name")
        if not isinstance(given, str) or not given:
            raise IdcError(f'{place} has no file_name; want {{"file_name": "photo.png", "prompt": "..."}}')
        image = _listed(given, folder, plain)
        if image is None:
            gone.append((place, given))
            continue
        prompt = prompt_in(named, place)
        used |= {key for key in PROMPT_KEYS if named.get(key)}
        if not prompt:
            other.update(key for key, value in named.items() if key not in ("file_name", *PROMPT_KEYS) and _text(value))
        if found.setdefault(image, prompt) != prompt:
            repeated.append(given)
            found[image] = found[image] or prompt
    if gone and not any(found.values()):
        raise IdcError(f"{gone[0][0]} names {gone[0][1]}, and there is no such file in {path.parent}")
    if gone:  # as in a partial download
        warn_once(f"{path}: {len(gone)} rows name files that are not there: {some([given for _, given in gone])}")
    if other and not any(found.values()):
        raise IdcError(f"{path} has no prompt under a known name, but {', '.join(other)}; want {_WANTED}")
    if len(used) > 1:
        first, *rest = (key for key in PROMPT_KEYS if key in used)
        warn_once(f"{path} has {first} and {', '.join(rest)}; prompts are the first that a row has in this order")
    if repeated:
        warn_once(f"{path} has several prompts for {some(repeated)}; the first counts")
    both = [image for image in found if found[image] and before.get(image) not in (None, "", found[image])]
    if both:
        warn_once(f"{path} and another table have prompts for {some(both)}; this one's count")
    return {image: prompt or before.get(image, "") for image, prompt in found.items()}


def _rows(path: Path) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Rows of a table, each with its place in words."""
    wanted = "one JSON object per line" if path.suffix == ".jsonl" else "a table with the columns file_name and prompt"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise IdcError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise IdcError(f"{path} is not UTF-8 text; want {wanted}") from None
    if path.suffix == ".csv":
        for number, cells in read_csv(path, text, "file_name"):
            if any(cells.values()):
                yield f"{path}, line {number}", cells
        return
    # Not splitlines(): it cuts at characters that JSON allows inside strings.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise IdcError(f"{path}, line {number} is not JSON ({error})") from None
        yield f"{path}, line {number}", row if isinstance(row, dict) else {}


def _listed(given: str, folder: str, plain: Mapping[str, str]) -> str | None:
    """The listed file that a row names, from its table's folder; spelled with backslashes or other accents too."""
    for spelled in (given, given.replace("\\", "/")):
        parts = [part for part in spelled.split("/") if part not in ("", ".")]
        name = plain.get(unicodedata.normalize("NFC", "/".join([*([folder] if folder else []), *parts])))
        if name is not None:
            return name
    return None


def _text(value: Any) -> bool:
    """Whether a value looks like words, not like a number or a label."""
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def text_file_prompt(image: Path) -> str:
    """What the text file beside an image says: photo.txt, photo.caption or photo.png.txt; "" if there is none."""
    for path in _text_files(image):
        text = _read_text(path)
        if text:
            return text
    return ""


def has_text_file(image: str, listed: Collection[str]) -> bool:
    """Whether a text file lies beside a listed image."""
    return any(str(path) in listed for path in _text_files(Path(image)))


def _text_files(image: Path) -> list[Path]:
    return [*(image.with_suffix(suffix) for suffix in _TEXT_FILES), image.with_name(f"{image.name}.txt")]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno == 36:  # the longer name is none that the file system takes, so there is no such file
            return ""
        raise IdcError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise IdcError(f"{path} is not UTF-8 text; want a caption") from None


def count_missing(place: str, missing: Sequence[str], number: int) -> None:
    """Say how many photographs of a set have no prompt, where others have one."""
    if 0 < len(missing) < number:
        warn_once(f"{place}: {len(missing)} of {number} photographs have no prompt: {some(missing)}")
