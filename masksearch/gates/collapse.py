"""Says while gates are being trained that the run collapsed.

watch = CollapseWatch(config.target, initial, config.warmup_steps, config.steps)
for report in dam_reports(..):
    if line := watch.look(report):
        warnings.warn(line)
"""

from __future__ import annotations

from masksearch.contracts import Report

RISE = 0.3  # nats by which a loss must rise, at least, to count as lost function
RISE_SHARE = 0.2  # and the share of the loss at the end of the warm-up
FALL_SHARE = 0.5  # and the share of what the warm-up had gained
PATIENCE = 5  # reports in a row above that
SMOOTH = 3  # reports whose mean is the loss at the end of the warm-up


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
        level: The loss that they are held against; None = not known yet.
        latest: Loss of the last report.
    """

    def __init__(
        self, config_target: float, initial: float, warmup_steps: int, steps: int
    ) -> None:
        self.config_target, self.initial = config_target, initial
        self.warmup_steps, self.steps = warmup_steps, steps
        self.losses: list[float] = []  # of the reports that make up the level
        self.first: float | None = None
        self.level: float | None = None
        self.latest: float | None = None
        self.above = 0
        self.said: set[str] = set()

    def look(self, report: Report) -> str | None:
        """Takes the next report (`loss`, `density`, `target`); returns a new warning or None."""
        self.follow(report)
        if report.step <= self.warmup_steps:
            return None
        values = report.values
        density, target = values["density"], values.get("target", self.config_target)
        asked = max(target, self.config_target)
        halfway = self.warmup_steps + (self.steps - self.warmup_steps) / 2
        if "pruned away" not in self.said and density < asked / 4:
            self.said.add("pruned away")
            return (
                f"step {report.step}: nearly everything is pruned (density {density:.4g}, target "
                f"now {asked:.4g}); lower gate_lr, or use control='hinge'"
            )
        if (
            "nothing pruned" not in self.said
            and report.step >= halfway
            and density > 0.9 * self.initial
            and target < 0.9 * self.initial
        ):
            self.said.add("nothing pruned")
            return (
                f"step {report.step}: nothing is pruned yet (density {density:.4g}, at the start "
                f"{self.initial:.4g}, target now {target:.4g}); raise gate_lr or the control's "
                "strength"
            )
        if "function lost" not in self.said and self.above >= PATIENCE:
            self.said.add("function lost")
            return (
                f"step {report.step}: the loss has risen to {values['loss']:.4g} from "
                f"{self.level:.4g} before the gates; edges go faster than the weights can follow: "
                "train for more steps, lower gate_lr, or ask for a higher density"
            )
        return None

    def follow(self, report: Report) -> None:
        """Keeps the level of the loss, and counts reports above it."""
        loss = report.values.get("loss")
        if loss is None:
            return
        self.latest = loss
        self.first = loss if self.first is None else self.first
        warm = report.step <= self.warmup_steps
        if self.level is not None and not warm:
            self.above = self.above + 1 if self.lost(loss) else 0
        if warm or not self.warmup_steps:
            self.losses = [*self.losses, loss][-SMOOTH:]
            recent = sum(self.losses) / len(self.losses)
            if warm:
                self.level = recent
            elif len(self.losses) == SMOOTH:
                self.level = recent if self.level is None else min(self.level, recent)

    def lost(self, loss: float) -> bool:
        """Whether a loss lies so far above the level that the function counts as lost."""
        if self.level is None or self.first is None:
            return False
        fall = self.first - self.level
        return loss > self.level + max(RISE, RISE_SHARE * self.level, FALL_SHARE * fall)
