"""Says while a DAM run goes on that it collapses: all pruned, nothing pruned, or the loss lost."""

from __future__ import annotations

import math
from statistics import fmean

from masksearch.contracts import Report

RISE = 0.3  # nats by which a loss must rise, at least, to count as lost function
RISE_SHARE = 0.2  # and the share of the loss at the end of the warm-up
FALL_SHARE = 0.5  # and the share of what the warm-up had gained
PATIENCE = 5  # reports in a row above that
SMOOTH = 3  # reports whose mean is the loss at the end of the warm-up
PRUNE_MORE = "train for more steps, or raise gate_lr or the control's strength"


class CollapseWatch:
    """Says while a run is going on that it collapses, once for each kind of collapse.

    - Everything is pruned: density below a quarter of that step's target.
    - Nothing is pruned: after half of the steps with gates the density is above 0.9 of the first
      one, although that step's target is lower.
    - The function is lost: for `PATIENCE` reports in a row the loss lies above that at the end
      of the warm-up (mean of its last `SMOOTH` reports; without a warm-up: the lowest mean of
      `SMOOTH` reports so far) by more than the largest of 0.3 nats, 20% of it, and half of
      what it had fallen by since the first report. (The noise of sampled gates alone took back
      a third of that in a run whose mask was good.)

    Args:
        config_target: Density that is asked for at the end, in (0, 1).
        initial: Density at the start.
        warmup_steps: Steps before the gates act.
        steps: Optimiser steps of the run.

    Attributes:
        above: Reports in a row, up to the last one, whose loss counts as lost function.
        level: The loss that they are held against; infinite while it is not known.
    """

    def __init__(
        self, config_target: float, initial: float, warmup_steps: int, steps: int
    ) -> None:
        self.config_target, self.initial = config_target, initial
        self.warmup_steps, self.steps = warmup_steps, steps
        self.first, self.level = math.nan, math.inf
        self.recent: list[float] = []  # losses that the level is made of
        self.above = 0
        self.said: set[str] = set()

    def look(self, report: Report) -> str | None:
        """Takes the next report (`loss`, `density`, `target`); returns a new warning or None."""
        values = report.values
        self.follow(report.step, values["loss"])
        if report.step <= self.warmup_steps:
            return None
        target = values.get("target", self.config_target)
        found = self.problems(report.step, values["loss"], values["density"], target)
        for kind, words in found.items():
            if kind not in self.said:
                self.said.add(kind)
                return f"step {report.step}: {words}"
        return None

    def problems(self, step: int, loss: float, density: float, target: float) -> dict[str, str]:
        """Kind of each collapse that holds after a step -> what happens and the remedy.

        Kinds are `"pruned_away"`, `"nothing_pruned"` and `"function_lost"`.

        Args:
            step: Optimiser steps that are done.
            loss: In nats; one that `follow` has seen.
            density: That of the gates.
            target: That step's target density.
        """
        found = {}
        asked = max(target, self.config_target)
        if density < asked / 4:
            found["pruned_away"] = (
                f"nearly everything is pruned (density {density:.4g}, target {asked:.4g}); "
                "lower gate_lr, or use control='hinge'"
            )
        halfway = step >= (self.warmup_steps + self.steps) / 2
        if halfway and density > 0.9 * self.initial and target < 0.9 * self.initial:
            found["nothing_pruned"] = (
                f"nothing is pruned (density {density:.4g}, at the start {self.initial:.4g}, "
                f"target {target:.4g}); {PRUNE_MORE}"
            )
        if self.above >= PATIENCE:
            found["function_lost"] = (
                f"the loss has risen to {loss:.4g} from {self.level:.4g} before the gates; edges "
                "go faster than the weights can follow: train for more steps, lower gate_lr, or "
                "ask for a higher density"
            )
        return found

    def follow(self, step: int, loss: float) -> None:
        """Updates the level of the loss, and counts the reports that lie above it."""
        warm = step <= self.warmup_steps
        if math.isnan(self.first):
            self.first = loss
        if not warm:
            self.above = self.above + 1 if self.lost(loss) else 0
        if warm or not self.warmup_steps:
            self.recent = [*self.recent, loss][-SMOOTH:]
            if warm:
                self.level = fmean(self.recent)
            elif len(self.recent) == SMOOTH:
                self.level = min(self.level, fmean(self.recent))

    def lost(self, loss: float) -> bool:
        """Whether a loss lies so far above the level that the function counts as lost."""
        fall = self.first - self.level
        return loss > self.level + max(RISE, RISE_SHARE * self.level, FALL_SHARE * fall)
