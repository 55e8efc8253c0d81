"""What every field of a recipe.json must be, in words and as a test: a stranger may have written the file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any, get_args

from .. import registry
from ..core.plan import Fill, Passes

GUIDANCE = ("guidance_scale", "image_guidance_scale")
MOST_STEPS = 1000
_LONGEST_TEXT = 4096
_DIGEST = re.compile(r"[0-9a-f]{64}")

Check = Callable[[Any], bool]
Checks = dict[str, tuple[str, Check]]


def checks(version: int) -> Checks:
    """What every field of a version must be."""
    shared: Checks = {
        "version": (f"{version}", lambda found: found == version),
        "task": ("a name", is_name),
        "model": (
            "an object with a name, and of its place a path, or repositories by component with their revision",
            lambda found: holds(found, name=is_name) and has(found, _MODEL),
        ),
        "weights": (
            "an object of {file, sha256} by component, each file one beside the recipe",
            lambda found: (
                each(found, lambda entry: holds(entry, file=is_file_name, sha256=is_digest))
                and all(map(is_name, found))
            ),
        ),
        "parent": ("null or a digest", or_null(is_digest)),
        "provenance": (
            "a list of objects, each with its stage and values of the right types",
            lambda found: isinstance(found, list) and all(_is_row(entry) for entry in found),
        ),
    }
    if version == 1:
        return shared | {
            "prune": ("a registered prune method", lambda found: found in registry.names("prune")),
            "depth": ("null or an integer >= 1", or_null(is_positive)),
            "timesteps": ("null or a list of integers that never increases", or_null(_is_timesteps)),
            "num_inference_steps": (f"an integer from 1 to {MOST_STEPS}", _is_step_count),
            "guidance": (f"numbers under {' and '.join(GUIDANCE)}", is_guidance),
        }
    return shared | {
        "cut": (
            "null or an object with its method, a registered one",
            or_null(lambda found: holds(found, method=is_name) and found["method"] in registry.names("prune")),
        ),
        "plan": (
            f"null or an object with its steps, at most {MOST_STEPS}, a sampler of `idc ls samplers`, and guidance "
            f"under {' and '.join(GUIDANCE)}",
            or_null(lambda found: isinstance(found, dict) and is_plan(found)),
        ),
        "free_steps": ("true or false", is_flag),
    }


def is_plan(found: dict[str, Any]) -> bool:
    """The types in a plan, and what a plan of any length and sampler does not check of itself."""
    steps, rows = found.get("steps"), found.get("coefficients")
    return (
        isinstance(steps, list)
        and len(steps) <= MOST_STEPS
        and all(isinstance(step, dict) and has(step, _STEP) for step in steps)
        and found.get("fill", "zero") in get_args(Fill)
        and found.get("sampler", "ddim") in registry.names("sampler")
        and is_guidance(found.get("guidance", {}))
        and (rows is None or (isinstance(rows, list) and all(_is_list_of_numbers(row) for row in rows)))
    )


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return is_int(value) or isinstance(value, float)


def is_positive(value: Any) -> bool:
    return is_int(value) and value >= 1


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and "\0" not in value


def is_name(value: Any) -> bool:
    """What can be a part of a path, a key and a word of the command line."""
    return is_text(value) and re.fullmatch(r"[\w.+-]+", value) is not None and value.strip(".") != ""


def is_file_name(value: Any) -> bool:
    """A file's name without any folder: what it names lies beside the recipe."""
    return is_text(value) and value not in ("", ".", "..") and "/" not in value and "\\" not in value


def is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def is_guidance(value: Any) -> bool:
    return each(value, is_number) and value.keys() <= set(GUIDANCE)


def holds(value: Any, **fields: Check) -> bool:
    """Whether a value is an object that has these fields, each of which passes its check."""
    return isinstance(value, dict) and all(name in value and check(value[name]) for name, check in fields.items())


def has(value: dict[str, Any], fields: dict[str, Check]) -> bool:
    """Whether the fields that an object has pass their checks; others are nobody's."""
    return all(check(value[name]) for name, check in fields.items() if name in value)


def each(container: Any, check: Check) -> bool:
    return isinstance(container, dict) and all(map(check, container.values()))


def or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_weights(value: Any) -> bool:
    return holds(value, file=is_file_name, sha256=is_digest)


def _is_step_count(value: Any) -> bool:
    return is_positive(value) and value <= MOST_STEPS


def _is_timesteps(value: Any) -> bool:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_STEPS or not all(is_int(t) and t >= 0 for t in value):
        return False
    return all(a >= b for a, b in itertools.pairwise(value))


def _is_row(entry: Any) -> bool:
    """A row of the provenance: what any code reads of it has its type, the rest is for people."""
    return holds(entry, stage=is_name) and has(entry, _ROW)


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


_STEP: dict[str, Check] = {
    "timestep": is_number,
    "depth": or_null(is_positive),
    "passes": lambda value: value in get_args(Passes),
    "refresh": is_flag,
    "skip": lambda value: isinstance(value, list) and all(map(is_name, value)),
}
_MODEL: dict[str, Check] = {
    "path": or_null(lambda value: is_text(value) and value != ""),
    "given_path": or_null(is_text),
    "repositories": or_null(lambda value: each(value, is_text)),
    "revision": or_null(is_text),
    "digest": or_null(is_text),
    "folder": or_null(is_text),
}
_ROW: dict[str, Check] = {
    "config_digest": is_text,
    "seed": is_int,
    "options": lambda value: isinstance(value, dict),
    "sampler": is_name,
    "code": is_text,
    "photographs": lambda value: each(value, is_text),
    "strategy": is_name,
    "depth": or_null(is_positive),
    "kept": is_text,
    "resolution_px": is_positive,
    "base": lambda value: holds(value, name=is_name) and has(value, _MODEL),
    "files": lambda value: each(value, is_digest),
    "fit": lambda value: holds(value, key=lambda key: holds(key, guidance=lambda scales: each(scales, is_number))),
    "data": lambda value: isinstance(value, dict),
}
