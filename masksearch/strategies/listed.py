"""A fixed list of masks, each on each seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from masksearch.contracts import Evaluate, Proposal, Record, Role
from masksearch.masks.core import Mask


class Listed:
    """Proposes every mask on every seed, seed by seed.

    Args:
        masks: Name -> mask.
        seeds: Evaluation seeds.
        origin: Origin of the proposals.
        role: Their role.
    """

    def __init__(
        self,
        masks: Mapping[str, Mask],
        seeds: Iterable[int],
        origin: str = "listed",
        role: Role = "trial",
    ) -> None:
        self.proposals = [
            Proposal(number, Evaluate(mask), {}, origin, seed, name=name, role=role)
            for number, (seed, (name, mask)) in enumerate(
                (seed, item) for seed in seeds for item in masks.items()
            )
        ]
        self.next = 0

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next of the list."""
        if self.next >= len(self.proposals):
            return "done"
        self.next += 1
        return self.proposals[self.next - 1]

    def tell(self, record: Record) -> None:
        """Learns that a draw is out or finished; results change nothing."""
        self.next = max(self.next, record.number + 1)
