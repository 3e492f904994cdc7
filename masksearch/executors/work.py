"""Carries out one proposal: from a job to a record. Every executor calls this, and only this."""

from __future__ import annotations

import math
import time
import traceback
from pathlib import Path

from masksearch.contracts import Evaluate, Evaluator, OneShot, Proposal, Record, Report
from masksearch.errors import MaskSearchError
from masksearch.gates.oneshot import run_one_shot
from masksearch.masks.measure import MEASURES


def carry_out(
    proposal: Proposal, evaluator: Evaluator, *, seed: int, workdir: Path, folder: str
) -> Record:
    """Runs a job to its end; whatever goes wrong in it becomes a failed record.

    Args:
        proposal: The job and its number.
        evaluator: Judges masks.
        seed: Seed of the evaluation where the proposal names none.
        workdir: The run folder.
        folder: Folder of this trial below `workdir`; artifacts are recorded relative to it.

    Returns:
        A record with status "done" or "failed". Its fingerprint and measures are left to the
        driver, which knows them already.
    """
    started, curve, error = time.monotonic(), list[Report](), ""
    seed = seed if proposal.seed is None else proposal.seed
    place = workdir / folder
    try:
        place.mkdir(parents=True, exist_ok=True)
        match proposal.job:
            case Evaluate(mask=mask):
                reports = evaluator(mask, seed=seed, workdir=place)
            case OneShot():
                reports = run_one_shot(evaluator, proposal.job, seed=seed, workdir=place)
            case _:
                raise ValueError(f"{type(proposal.job).__name__} is no job to run")
        for report in reports:
            check_finite(report)
            curve.append(report)
        if isinstance(proposal.job, Evaluate):
            check_complete(curve, evaluator, proposal)
    except MaskSearchError as problem:
        error = f"{type(problem).__name__}: {problem}"
    except Exception:  # the record keeps the traceback; the search goes on
        error = traceback.format_exc()
    gates = place / "gates.safetensors"
    return Record(
        number=proposal.number,
        status="failed" if error else "done",
        job=proposal.job,
        protocol=evaluator.protocol,
        seed=seed,
        params=proposal.params,
        origin=proposal.origin,
        values={} if error or not curve else dict(curve[-1].values),
        step=curve[-1].step if curve else 0,
        curve=tuple(curve),
        artifacts={} if error or not gates.is_file() else {"gates": f"{folder}/{gates.name}"},
        seconds=time.monotonic() - started,
        error=error,
        memo=proposal.memo,
    )


def check_finite(report: Report) -> None:
    """A NaN or infinite figure is a failure, never a result."""
    for name, value in report.values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the evaluator reported {name} = {value} at step {report.step}; "
                "results are finite numbers"
            )


def check_complete(curve: list[Report], evaluator: Evaluator, proposal: Proposal) -> None:
    """The last report must hold every objective that is not a measure of the mask."""
    if not curve:
        raise ValueError("the evaluator reported nothing; yield at least one Report")
    missing = [
        o.name
        for o in evaluator.objectives
        if o.name not in curve[-1].values and o.name not in MEASURES
    ]
    if missing:
        raise ValueError(
            f"the last report of trial {proposal.number} lacks {', '.join(missing)}; "
            f"it holds {', '.join(curve[-1].values)}"
        )
