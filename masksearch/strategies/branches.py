"""Which parameters of a conditional space have occurred together."""

from __future__ import annotations

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial


class Branches:
    """Which parameters have occurred together, trial by trial.

    Two parameters are of one group if the same sets of parameters hold them: each has a number
    with a bit for each set, and equal numbers make a group, whatever the order of the trials.
    """

    def __init__(self) -> None:
        self.known: set[int] = set()  # trials
        self.bits: dict[tuple[str, ...], int] = {}  # a set of parameters -> its bit
        self.held_by: dict[str, int] = {}  # a parameter -> the bits of the sets that hold it
        self.kinds: dict[str, tuple[int, BaseDistribution]] = {}  # with the earliest trial

    def add(self, trial: FrozenTrial) -> None:
        """Takes a trial, unless it is known."""
        if trial.number in self.known:
            return
        self.known.add(trial.number)
        kinds = trial.distributions
        names = tuple(sorted(kinds))
        bit = self.bits.setdefault(names, 1 << len(self.bits))
        for name in names:
            self.held_by[name] = self.held_by.get(name, 0) | bit
            if name not in self.kinds or trial.number < self.kinds[name][0]:
                self.kinds[name] = (trial.number, kinds[name])

    def groups(self) -> list[dict[str, BaseDistribution]]:
        """The groups, by their first name."""
        found: dict[int, dict[str, BaseDistribution]] = {}
        for name in sorted(self.held_by):
            kind = self.kinds[name][1]
            if not kind.single():
                found.setdefault(self.held_by[name], {})[name] = kind
        return list(found.values())
