"""A cut: what is left of a model, as a value that compares, hashes and is JSON. Prune methods make and apply them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cut:
    """What a prune method keeps of a pipeline.

    Attributes:
        method: registered name of the prune method.
        choice: the method's own words for what it keeps, plain JSON values; {"depth": 9} for depth-skip.
    """

    method: str
    choice: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not self.method:
            raise ValueError(f"a cut's method must be a name, got {self.method!r}")
        if "method" in self.choice:
            raise ValueError("a cut's choice cannot have a field that is called method")
        object.__setattr__(self, "choice", dict(self.choice))

    def __hash__(self) -> int:
        # By names alone: values may be lists, which have no hash. Cuts of one method are few, so that they may collide.
        return hash((self.method, frozenset(self.choice)))

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, **self.choice}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cut":
        """The cut that `to_json` wrote; its method checks the rest when it applies it.

        Raises:
            ValueError: not an object with a method's name.
        """
        if not isinstance(value, Mapping) or "method" not in value:
            raise ValueError(f"a cut must be an object with its method, got {value!r}")
        return cls(value["method"], {name: entry for name, entry in value.items() if name != "method"})
