"""An evaluator that takes no time: named on the command line, and in recipes.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import masksearch as ms


@dataclass(frozen=True)
class Formula(ms.Evaluator):
    """Loss = |sparsity - 0.6| + 1 / step + seed / 100, reported at the steps 1, 2 and 4."""

    length: int = 16
    layers: int = 2
    heads: int = 2

    objectives = (ms.Objective("loss", "min", 10.0), ms.Objective("sparsity", "max", 0.0))
    protocol = "formula"

    @property
    def shape(self) -> ms.Shape:
        """What a mask is lowered to."""
        return ms.Shape(self.length, self.layers, self.heads)

    def __call__(self, mask: ms.Mask, *, seed: int, workdir: Path) -> Iterator[ms.Report]:
        """Yields three reports."""
        sparsity = mask.sparsity(self.length)
        for step in (1, 2, 4):
            yield ms.Report(step, {"loss": abs(sparsity - 0.6) + 1 / step + seed / 100})


def formula() -> Formula:
    """The evaluator of the study `command`."""
    return Formula()
