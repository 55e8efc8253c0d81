"""What a cost is: a number of a network's own, where a metric is of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import nn


class Cost(ABC):
    """A cost of networks; less is better.

    Attributes:
        unit: of every value.
    """

    unit: ClassVar[str]

    @abstractmethod
    def measure(
        self, modules: Sequence[nn.Module], inputs: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, float]:
        """The cost of one call of each of `modules`, summed, by counting rule.

        Args:
            modules: networks on any device, the meta device included where nothing is timed.
            inputs: keyword arguments of each network's call; None: what `network_inputs` makes.
        """
