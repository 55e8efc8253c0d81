"""Quality thresholds: a metric, a bound and a direction each; all must hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import registry
from ..errors import IdcError, shown
from ..metrics._metric import MetricValue

AT_LEAST, AT_MOST = ">=", "<="
_WORDS = {">=": AT_LEAST, "at_least": AT_LEAST, "min": AT_LEAST, "<=": AT_MOST, "at_most": AT_MOST, "max": AT_MOST}


@dataclass(frozen=True)
class Threshold:
    """`metric` must lie on the `direction` side of `bound`."""

    metric: str
    bound: float
    direction: str

    def __str__(self) -> str:
        return f"{self.metric} {self.direction} {self.bound:g}"

    def holds(self, value: MetricValue) -> bool:
        if value.perfect:
            return True
        if value.value is None:
            raise IdcError(f"the threshold on {self.metric} cannot be judged: {value.note}")
        return value.value >= self.bound if self.direction == AT_LEAST else value.value <= self.bound

    def missed_by(self, value: MetricValue) -> str:
        """A failed threshold in words."""
        assert value.value is not None
        gap = abs(value.value - self.bound)
        return f"{self.metric} is {value.value:.4g}, want {self.direction} {self.bound:g}: missed by {gap:.3g}"


def parse_thresholds(value: Any, key: str = "depth_search.thresholds") -> list[Threshold]:
    """Read thresholds from the configuration.

    Args:
        value: a list of {metric, bound, direction}, or {metric: bound}. Directions are "at_least" or ">=",
            "at_most" or "<="; without one it is the metric's own.

    Raises:
        IdcError: none given, or one of another form.
    """
    if isinstance(value, dict):
        entries = [{"metric": k, **v} if isinstance(v, dict) else {"metric": k, "bound": v} for k, v in value.items()]
    else:
        entries = value
    wanted = f"{key} must be like [{{metric: psnr, bound: 30, direction: at_least}}]"
    if not isinstance(entries, list) or not entries:
        raise IdcError(f"{wanted}, got {value!r}")
    return [_one(entry, key, wanted) for entry in entries]


def missed(thresholds: Sequence[Threshold], values: Mapping[str, MetricValue]) -> list[str]:
    """Those that fail, in words; empty where all hold."""
    return [t.missed_by(values[t.metric]) for t in thresholds if not t.holds(values[t.metric])]


def _one(entry: Any, key: str, wanted: str) -> Threshold:
    if not isinstance(entry, dict) or not {"metric", "bound"} <= entry.keys() <= {"metric", "bound", "direction"}:
        raise IdcError(f"{wanted}, got {entry!r}")
    metric, bound = entry["metric"], entry["bound"]
    if not isinstance(metric, str):
        raise IdcError(f"{key}: a metric is chosen by its name, got {shown(metric)}")
    if not isinstance(bound, (int, float)) or isinstance(bound, bool) or math.isnan(bound):
        raise IdcError(f"{key}: the bound of {metric} must be a number, got {shown(bound)}")
    higher = registry.load("metric", metric, key).Metric.higher_is_better
    direction = entry.get("direction") or (AT_LEAST if higher else AT_MOST)
    if direction not in _WORDS:
        raise IdcError(f"{key}: the direction of {metric} must be at_least or at_most, got {direction!r}")
    return Threshold(metric, float(bound), _WORDS[direction])
