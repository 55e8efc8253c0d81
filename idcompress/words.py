"""What a user writes after `key=`, where the key's value is text: taken letter by letter, and written for Hydra.

Hydra reads values by a grammar of its own, in which an apostrophe, a comma or a letter beyond ASCII is a mistake and
1e3 is a number. The keys whose values are prompts, paths and names are marked in config.py by a `Text`; this module
stands between the command line and Hydra and puts their values into quotes. Four things are no plain text:

- A value that is quoted as Hydra wants it, "..." or '...', is what the quotes hold.
- [a,b] is a list, for keys that take several; an entry that holds a comma or a bracket needs quotes.
- With -m, a,b are two values of a sweep.
- null is no value, for keys that have no value by default and are no prompts; `~key` says the same for all keys.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import IdcError

Value = str | list[str] | None

# What Hydra's grammar and OmegaConf's leave as it is.
_SIMPLE = re.compile(r"[A-Za-z_/][\w./-]*( [\w./-]+)*", re.ASCII)
_NO_STRINGS = ("null", "true", "false", "inf", "nan")
_KEY = re.compile(r"(\+{0,2})([\w.-]+)", re.ASCII)
_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag|str|int|float|bool)\s*\(.*\)", re.DOTALL)
# OmegaConf takes ??? for a value that is still to be given; this reads as the text.
_MISSING = "???"
_NOT_MISSING = "${oc.select:_,???}"


@dataclass(frozen=True)
class Text:
    """A mark in an annotation of config.py: the key's value is text.

    Attributes:
        path: `~` at its start is the home folder.
        several: [a,b] is a list of them.
        prompt: `null` is a word like any other, and `@FILE` names a file of them.
        hydra: ${...} is Hydra's; the key is one of its own, which no sweep is over.
    """

    path: bool = False
    several: bool = False
    prompt: bool = False
    hydra: bool = False


@dataclass(frozen=True)
class Word:
    """One word of the command line.

    Attributes:
        key: without Hydra's prefix.
        values: what the key was given, one value unless it is swept over, none where only Hydra can tell; as it was
            written where the key's value is no text.
        hydra: the word as Hydra reads it.
    """

    key: str
    values: tuple[Value, ...]
    hydra: str


def read(word: str, text_of: Callable[[str], Text | None], *, sweep: bool) -> Word:
    """Read `key=value`, or another word of Hydra's.

    Args:
        text_of: the mark of a key, None where its value is no text.
        sweep: whether commas separate the values of a sweep.

    Raises:
        IdcError: a sweep or a list has an empty entry, or what is no path is not UTF-8.
    """
    left, equals, written = word.partition("=")
    if not equals:
        deleted = left.removeprefix("~")
        resets = left != deleted and text_of(deleted) is not None
        return Word(deleted, (None,), f"{deleted}=null") if resets else Word(left, (), word)
    match = _KEY.fullmatch(left)
    text = text_of(match[2]) if match else None
    if match is None or text is None:
        return Word(left.lstrip("+"), (written,), word)
    if sweep and not text.hydra and _FUNCTION.fullmatch(written):
        return Word(match[2], (), word)
    parts = _split(written, nested=text.several) if sweep and not text.hydra else None
    if parts is None or len(parts) == 1:
        values = [_one(written, text, left)]
    else:
        _no_empty_entry(parts, left, written)
        values = [_one(_entry(part), text, left) for part in parts]
    if text.path:
        values = [home(value) for value in values]
    elif not (text.prompt and is_file_of_prompts(written)):
        values = [_as_utf8(value, left) for value in values]
    return Word(match[2], tuple(values), f"{left}={','.join(_for_hydra(value, text) for value in values)}")


def override(key: str, value: str) -> str:
    """The word that gives a key this very text: for Hydra, for a child process, or for `read`."""
    return f"{key}={_for_hydra(value, Text())}"


def for_the_shell(key: str, value: str) -> str:
    """How a user writes this very text."""
    return shlex.quote(f"{key}={quoted(escaped(value))}")


def home(value: Any) -> Any:
    """A path, or a list of them, with the home folder for `~`; anything else as it is."""
    if isinstance(value, list):
        return [home(entry) for entry in value]
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111  a path keeps its letters


def _as_utf8(value: Value, key: str) -> Value:
    """A text whose bytes Python did not take for letters, as under an ASCII locale, as the UTF-8 that they are.

    Raises:
        IdcError: they are not UTF-8.
    """
    if isinstance(value, list):
        return [str(_as_utf8(entry, key)) for entry in value]
    if value is None or is_unicode(value):
        return value
    try:
        return os.fsencode(value).decode("utf-8")
    except UnicodeError:
        raise IdcError(f"{key}={value} is not UTF-8 text; type it in a terminal that is set to UTF-8") from None


def is_unicode(text: str) -> bool:
    """Whether a text is made of letters alone: bytes of another encoding, and halves of letters, are none."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def prompts(value: str) -> list[str]:
    """The prompts that `prompt=` stands for: itself, or with @FILE the file's lines; @@ begins a prompt with an @.

    Raises:
        IdcError: the file is missing, empty or not UTF-8.
    """
    if not value.startswith("@"):
        return [value]
    if value.startswith("@@"):
        return [value[1:]]
    path = Path(home(value[1:]))
    literal = f"a prompt that begins with @ is written {shlex.quote(f'prompt=@{value}')}"
    if not path.is_file():
        raise IdcError(f"prompt={value}: there is no file {value[1:]!r} of prompts, a line each; {literal}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise IdcError(f"prompt={value}: the file is not UTF-8 text; save it as UTF-8, a prompt a line") from None
    found = [line.removesuffix("\r") for line in lines if line.strip()]
    if not found:
        raise IdcError(f"prompt={value}: the file holds no prompt; write one a line")
    return found


def is_file_of_prompts(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("@") and not value.startswith("@@")


# Hydra's quotes ------------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """The text in double quotes as Hydra's grammar reads it: only backslashes before a quote are doubled."""
    inside = re.sub(r'(\\*)"', r'\1\1\\"', text)
    trailing = len(inside) - len(inside.rstrip("\\"))
    return f'"{inside}{chr(92) * trailing}"'


def unquoted(written: str) -> str | None:
    """What a value in Hydra's quotes holds; None if it is not in quotes from its first letter to its last."""
    if not written or written[0] not in "'\"" or _end_of_quotes(written, 0) != len(written):
        return None
    quote = written[0]

    def halve(run: re.Match[str]) -> str:
        return "\\" * ((len(run[0]) - 1) // 2) + quote

    return re.sub(rf"\\+{quote}", halve, written[1:])[:-1]


def _end_of_quotes(written: str, start: int) -> int | None:
    """The position after the quote that closes the one at `start`; None if none does."""
    backslashes = 0
    for at in range(start + 1, len(written)):
        if written[at] == written[start] and backslashes % 2 == 0:
            return at + 1
        backslashes = backslashes + 1 if written[at] == "\\" else 0
    return None


def escaped(text: str) -> str:
    """The text as a configuration value that OmegaConf reads as this text, not as an interpolation or a gap."""
    if text == _MISSING:
        return _NOT_MISSING
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def unescaped(text: str) -> str:
    """The text that `escaped` made a configuration value of; an interpolation is left as it is."""
    if text == _NOT_MISSING:
        return _MISSING
    return re.sub(r"(\\*)\$\{", lambda run: "\\" * ((len(run[0]) - 2) // 2) + "${", text)


def _for_hydra(value: Value, text: Text) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(_for_hydra(entry, text) for entry in value)}]"
    if _SIMPLE.fullmatch(value) and value.lower() not in _NO_STRINGS:
        return value
    return quoted(value if text.hydra else escaped(value))


# What is written -----------------------------------------------------------------------------------------------------


def _one(written: str, text: Text, key: str) -> Value:
    """One value: null, what quotes hold, a list, or the letters themselves."""
    if written == "null" and not text.prompt:
        return None
    held = unquoted(written)
    if held is not None:
        return held if text.hydra else unescaped(held)
    if text.several and len(written) > 1 and written[0] == "[" and written[-1] == "]":
        parts = _split(written[1:-1], nested=True)
        if parts is not None:
            if len(parts) == 1 and not parts[0].strip():
                return []
            _no_empty_entry(parts, key, written)
            words = [_entry(part) for part in parts]
            return [unescaped(inside) if (inside := unquoted(word)) is not None else word for word in words]
    return written


def _entry(part: str) -> str:
    """An entry of a list or a sweep: without the spaces around it, and \\, as a comma where it is not quoted."""
    stripped = part.strip()
    return stripped if unquoted(stripped) is not None else stripped.replace("\\,", ",")


def _no_empty_entry(parts: Sequence[str], key: str, written: str) -> None:
    if not all(part.strip() for part in parts):
        raise IdcError(
            f"{key}={written} has an entry without text between its commas; as one text it is written "
            f'{for_the_shell(key, written)}, and an empty entry is written ""'
        )


def _split(written: str, *, nested: bool) -> list[str] | None:
    """The parts between commas that are outside of quotes; None if brackets do not match.

    An apostrophe within an entry is a letter: quotes count only around a whole entry.

    Args:
        nested: whether brackets count, and keep what is between them together.
    """
    parts: list[str] = []
    start = at = depth = 0
    while True:
        if at == start:
            begin = at + len(written[at:]) - len(written[at:].lstrip())
            if begin < len(written) and written[begin] in "'\"":
                end = _end_of_quotes(written, begin)
                if end is not None and re.match(r"\s*(,|\Z)", written[end:]):
                    at = end
        if at >= len(written):
            break
        letter = written[at]
        if nested and letter in "[]":
            depth += 1 if letter == "[" else -1
            if depth < 0:
                return None
        if letter == "," and depth == 0 and not written[:at].endswith("\\"):
            parts.append(written[start:at])
            start = at + 1
        at += 1
    parts.append(written[start:])
    return parts if depth == 0 else None
