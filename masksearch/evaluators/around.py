"""What an evaluator around another one has in common with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from masksearch.contracts import CarriesData, Evaluator, OffersGradients, Shape


@dataclass(frozen=True)
class Around:
    """Base of evaluators that run another one.

    It offers gradients (`differentiable`), and carries its data (`packed`), exactly where the
    inner evaluator does.

    Args:
        evaluator: Any evaluator.
    """

    evaluator: Evaluator

    def __post_init__(self) -> None:
        if isinstance(self.evaluator, OffersGradients):
            # On the instance, and only then: isinstance(self, OffersGradients) stays truthful.
            object.__setattr__(self, "differentiable", self.evaluator.differentiable)
        if isinstance(self.evaluator, CarriesData):
            object.__setattr__(self, "packed", self.packed_within)

    @property
    def shape(self) -> Shape:
        """The inner evaluator's."""
        return self.evaluator.shape

    def packed_within(self) -> Self:
        """The same around the packed inner evaluator; called `packed` where that one can be.

        Raises:
            TypeError: If the inner evaluator cannot carry its data.
        """
        if not isinstance(self.evaluator, CarriesData):
            raise TypeError(
                f"{type(self.evaluator).__name__} has no packed(): its data cannot travel; give "
                "it one (masksearch.contracts.CarriesData), or a file system that workers share"
            )
        inner = self.evaluator.packed()
        return self if inner is self.evaluator else replace(self, evaluator=inner)
