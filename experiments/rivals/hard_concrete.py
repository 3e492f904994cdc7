"""Gates that are exactly 0 or 1 with some probability: L0 regularisation.

gates = HardConcreteGates("free", length=32, heads=2, form="log", hard=False)

Reference: Louizos et al., arXiv 1712.01312, Section 2.2.
"""

from __future__ import annotations

import math

from torch import Tensor

from masksearch.gates.gates import Gates

STRETCH = 0.1  # a gate is stretched by this much on either side of [0, 1], and clamped


class HardConcreteGates(Gates):
    """Soft gates whose Gumbel-sigmoid is stretched to (-0.1, 1.1) and clamped."""

    def sample(self) -> Tensor:
        """A value in [0, 1] for every gate, `[layers, heads, gates]`, with its gradient."""
        return (super().sample() * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)

    def open_chance(self, logits: Tensor) -> Tensor:
        """Chance that a gate with that logit is not closed, at the uncooled temperature."""
        return (logits - self.temperature * math.log(STRETCH / (1 + STRETCH))).sigmoid()
