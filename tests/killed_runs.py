"""Evaluator runs that are killed in the middle of a step."""

from contextlib import suppress
from pathlib import Path

from masksearch import Mask
from masksearch.contracts import Evaluator, Report
from masksearch.training.loop import Step, TrainConfig, follow_trainings


class Killed(Exception):
    """Ends a run from outside."""


def reports_until(
    judge: Evaluator, workdir: Path, steps: int, mask: Mask, seed: int
) -> list[Report]:
    """The reports of a run that is killed after so many optimiser steps of all its parts."""
    count, found = 0, []

    def kill(step: Step, config: TrainConfig) -> None:
        nonlocal count
        count += 1
        if count == steps:
            raise Killed

    with follow_trainings(kill), suppress(Killed):
        for report in judge(mask, seed=seed, workdir=workdir):
            found.append(report)
    return found
