"""Searches that a program recorded earlier, as a section of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from masksearch.contracts import Evaluate, Objective, Record, Refused, Shape
from masksearch.masks.core import Mask
from masksearch.report.section import Section


def recorded_searches(
    recorded: Mapping[str, Any], objectives: Sequence[Objective], shape: Shape | None
) -> Section:
    """A section with the curves of recorded searches, apart from those of the run at hand.

    Args:
        recorded: `searches` (strategy -> search seed -> trials with `number`, `status`,
            `seconds`, `mask`, and where they were scored `score` and `sparsity`), `command`,
            `protocol` and `process`.
        objectives: Of the searches.
        shape: What their masks were lowered to.
    """
    protocol = str(recorded["protocol"])
    searches = {
        name: {
            int(seed): [record_of(trial, protocol, objectives[0].name) for trial in trials]
            for seed, trials in runs.items()
        }
        for name, runs in recorded["searches"].items()
    }
    studies = {
        f"{name}, seed {seed}": records
        for name, runs in searches.items()
        for seed, records in runs.items()
    }
    return Section(
        studies,
        objectives,
        title="recorded searches",
        facts={
            "recorded": "these searches were not run now; their records come with the package",
            "made by": str(recorded["command"]),
            "planted process": str(recorded["process"]),
            "protocol": protocol,
        },
        shape=shape,
        searches=searches,
    )


def record_of(trial: Mapping[str, Any], protocol: str, score: str) -> Record:
    """A trial as it was recorded."""
    mask = trial.get("mask")
    return Record(
        int(trial["number"]),
        trial["status"],
        Evaluate(Mask.from_dict(mask)) if mask else Refused("the training of gates"),
        protocol=protocol,
        values={score: trial["score"]} if "score" in trial else {},
        measures={"sparsity": trial["sparsity"]} if "score" in trial else {},
        step=int(trial["step"]),
        seconds=float(trial["seconds"]),
    )
