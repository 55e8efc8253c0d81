"""The values that numbers of the configuration may have: one table, and one check of every key.

A number that no run can mean (a negative rate, half a step, NaN for a bound) is refused before anything begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from .errors import IdcError, shown

INFINITY = math.inf
_MANY = 10**9  # a bound that is only there so that nothing runs over


class Range(NamedTuple):
    """The values from `low` to `high`, both included.

    Attributes:
        whole: whole numbers alone.
        null: null is a value, too.
        above: `low` itself is none.
    """

    low: float
    high: float = INFINITY
    whole: bool = False
    null: bool = False
    above: bool = False

    def holds(self, value: Any) -> bool:
        if value is None:
            return self.null
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def refusal(self, value: Any) -> str:
        """What a value that does not hold should be, in words."""
        null = ", or null" if self.null else ""
        if value is None or isinstance(value, (bool, str, list, dict)) or (self.whole and not isinstance(value, int)):
            return f"a {'whole ' if self.whole else ''}number, {self._span()}{null}"
        return (
            f"finite, {self._span()}{null}"
            if isinstance(value, float) and not math.isfinite(value)
            else self._span() + null
        )

    def _span(self) -> str:
        if self.high in (_MANY, INFINITY):
            return f"{'above' if self.above else 'at least'} {self.low:g}"
        low, high = (f"{bound}" if isinstance(bound, int) else f"{bound:g}" for bound in (self.low, self.high))
        return f"between {low} and {high}"


COUNT = Range(1, _MANY, whole=True)
STEPS = Range(1, 1000, whole=True)
SHARE = Range(0, 1)
SIDE_PX = Range(1, 2**16, whole=True, null=True)

RANGES = {
    **dict.fromkeys(("batch_size", "depth_search.num_samples", "depth_search.min_depth", "tsopt.num_samples"), COUNT),
    **dict.fromkeys(("plan.num_fitted", "plan.num_searched", "plan.num_validated", "plan.max_step_images"), COUNT),
    **dict.fromkeys(("evaluate.num_samples", "profile.batch_size", "profile.repeats", "finetune.batch_size"), COUNT),
    **dict.fromkeys(("finetune.checkpoint_every_n_steps", "finetune.num_samples", "report.num_images"), COUNT),
    **dict.fromkeys(("num_inference_steps", "depth_search.num_inference_steps", "tsopt.reference_steps"), STEPS),
    "finetune.num_inference_steps": STEPS,
    "profile.limit_s": Range(0, above=True),
    "plan.num_certified": Range(0, _MANY, whole=True),
    **dict.fromkeys(("plan.ms", "plan.bytes"), Range(0, null=True, above=True)),
    "seed": Range(-(2**63), 2**63 - 1, whole=True),
    "evaluate.num_alternatives": Range(1, _MANY, whole=True, null=True),
    **dict.fromkeys(("devices", "num_nodes"), Range(1, 1024, whole=True)),
    "threads": Range(0, 1024, whole=True),
    "cache_gb": Range(0),
    "early_stop": Range(0, 1 - 1e-12, null=True, above=True),
    "depth": Range(1, _MANY, whole=True, null=True),
    **dict.fromkeys(("resolution_px", "profile.resolution_px", "finetune.resolution"), SIDE_PX),
    **dict.fromkeys(("guidance_scale", "image_guidance_scale"), Range(0, 1e4, null=True)),
    "finetune.warmup_steps": Range(0, _MANY, whole=True),
    "finetune.ema_decay": Range(0, 1, null=True),
    "finetune.conditioning_dropout": Range(0, 1, null=True),
    "finetune.num_workers": Range(0, 1024, whole=True),
    **dict.fromkeys(("loss.task", "loss.output", "loss.features"), Range(0)),
    "compress.fewer_levels": Range(0, 10**4, whole=True),
    "trainer.accumulate_grad_batches": COUNT,
    "trainer.val_check_interval": COUNT,
    "trainer.log_every_n_steps": COUNT,
    "trainer.num_nodes": COUNT,
    "trainer.max_steps": Range(-1, _MANY, whole=True),
    "trainer.gradient_clip_val": Range(0, null=True),
    "finetune.optimizer.lr": Range(0, above=True),
    "finetune.optimizer.weight_decay": Range(0),
    "timesteps.gamma": Range(0, 1e6, null=True, above=True),
    "timesteps.bias": Range(0, 1e6),
    "timesteps.c": Range(0, 1e6, null=True, above=True),
    "timesteps.factor": Range(1, 1e6, above=True),
    "timesteps.tolerance": Range(0),
    "timesteps.mutation_rate": SHARE,
    **dict.fromkeys(("timesteps.budget", "timesteps.population", "timesteps.epochs", "timesteps.parents"), COUNT),
    **dict.fromkeys(("timesteps.mutations", "timesteps.crossovers"), Range(0, _MANY, whole=True)),
    "timesteps.search_seed": Range(-(2**63), 2**63 - 1, whole=True),
    "timesteps.trunc_num": Range(0, 1000, whole=True, null=True),
}
# Bounds that always hold, and what belongs to Lightning.
_MAY_BE_INFINITE = ("depth_search.thresholds", "depth_search.fallbacks", "task.models", "trainer")


def check_numbers(tree: dict[str, Any]) -> None:
    """Check every number of the tree: those of RANGES by their range, all others for being finite.

    Args:
        tree: the configuration as nested dictionaries and lists.

    Raises:
        IdcError: with the key, what was got and what it may be.
    """
    for key, allowed in RANGES.items():
        found, value = _at(tree, key)
        if found:
            check_number(key, value, allowed)
    for key, number in _floats(tree):
        if math.isnan(number) or (math.isinf(number) and not key.startswith(_MAY_BE_INFINITE)):
            raise IdcError(f"{key} must be a finite number, got {number}")


def check_number(key: str, value: Any, allowed: Range) -> None:
    """Raise IdcError unless a key's value lies in its range."""
    if not allowed.holds(value):
        raise IdcError(f"{key} must be {allowed.refusal(value)}, got {shown(value)}")


def _at(tree: Any, key: str) -> tuple[bool, Any]:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False, None
        tree = tree[part]
    return True, tree


def _floats(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every floating-point number of the tree with its dotted key."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, (dict, list)):
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _floats(child, f"{key}.{name}" if key else str(name))
