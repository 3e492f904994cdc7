"""What stands in an Optuna trial: its user attributes, and the way back to a record.

There are two attributes for people (`origin`, `mask`), `starts`, one `proposal` and one `result`
(few rows are fast to write and read), and one `observed:N` for each observation of a scheduler.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from masksearch.contracts import Evaluate, Job, Objective, OneShot, Record, Refused, Report, Shared
from masksearch.errors import MaskFormatError, SearchError
from masksearch.masks.core import Mask
from masksearch.masks.files import load_mask, save_mask

FORMAT = 3  # of what is written; the first one that was released
INLINE = 16_384  # characters of a mask's JSON above which it is a file of its own
STATES = {
    "running": TrialState.RUNNING,
    "done": TrialState.COMPLETE,
    "reused": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
ANSWER = "observed:"  # + the observation's order in the study: one attribute each


@dataclass(frozen=True)
class SchedulerAnswer:
    """What a scheduler was shown of a trial, and what it answered."""

    order: int  # among all answers in the study
    report: Report  # that it was shown
    goes_on: bool  # whether the trial went on


@dataclass(frozen=True)
class StoredTrial:
    """What the study holds of one trial."""

    record: Record
    draw: int  # the strategy's own number; -1 = no strategy drew it
    order: float  # among the finished ones; infinity where it has not finished
    answers: tuple[SchedulerAnswer, ...]


def own_version() -> str:
    """The version of this masksearch, also where it runs without being installed."""
    return str(vars(sys.modules["masksearch"])["__version__"])


def check_format(known: Mapping[str, Any], run: Path) -> None:
    """Refuses a study that masksearch has written in another format, as `known` says.

    Raises:
        SearchError: Names both versions.
    """
    if known.get("format", FORMAT) != FORMAT:
        raise SearchError(
            f"{run} was written by masksearch {known.get('masksearch', '(unknown)')} in format "
            f"{known['format']}; this is masksearch {own_version()}, which reads format {FORMAT}; "
            "install that version to read it, or search in a new run folder"
        )


def proposal_data(record: Record, draw: int, run: Path) -> dict[str, Any]:
    """The user attributes of a trial that begins; a big mask becomes a file in `run`."""
    return {
        "origin": record.origin,
        "mask": str(record.mask) if record.mask is not None else "",
        "starts": 1,
        "proposal": {
            "draw": draw,
            "seed": record.seed,
            "job": job_data(record, run),
            "fingerprint": record.fingerprint,
            "protocol": record.protocol,
            "measures": finite_json(record.measures),
            "params": dict(record.params),
            "memo": dict(record.memo),
            "name": record.name,
            "role": record.role,
            "source": record.source,
        },
    }


def result_data(record: Record, order: int) -> dict[str, Any]:
    """The attribute `result` of a finished trial; `order` counts the finished ones."""
    return {
        "status": record.status,
        "values": finite_json(record.values),
        "step": record.step,
        "curve": [[report.step, finite_json(report.values)] for report in record.curve],
        "artifacts": dict(record.artifacts),
        "seconds": record.seconds,
        "error": record.error,
        "order": order,
    }


def final_state(
    record: Record, objectives: Sequence[Objective]
) -> tuple[TrialState, list[float] | None]:
    """A finished record's state in Optuna, and its objectives where it has them.

    Raises:
        ValueError: If one of them is NaN.
    """
    state = STATES[record.status]
    if state is TrialState.COMPLETE and isinstance(record.job, OneShot | Shared):
        return TrialState.PRUNED, None
    if state is not TrialState.COMPLETE:
        return state, None
    values = [float(record.value(objective.name)) for objective in objectives]
    if any(math.isnan(value) for value in values):
        raise ValueError(f"trial {record.number} has NaN for an objective; let it fail")
    return state, values


def job_data(record: Record, run: Path) -> dict[str, Any]:
    """A job as plain data; a big mask becomes a file beside the study."""
    match record.job:
        case Evaluate(mask=mask):
            data = mask.to_dict()
            if len(mask.to_json()) <= INLINE:
                return {"kind": "evaluate", "mask": data}
            name = f"masks/{record.fingerprint or mask.digest}.safetensors"
            if not (run / name).is_file():
                with save_mask(mask, run / name).open("rb") as file:
                    os.fsync(file.fileno())  # the study must not outlive its masks
            return {"kind": "evaluate", "file": name}
        case OneShot(gates=gates, config=config):
            return {"kind": "one_shot", "gates": dict(gates), "config": dict(config)}
        case Shared(config=config):
            return {"kind": "shared", "config": dict(config)}
        case Refused(reason=reason):
            return {"kind": "refused", "reason": reason}


def read_trial(trial: FrozenTrial, run: Path) -> StoredTrial:
    """All that the study holds of one trial.

    Raises:
        SearchError: If masksearch has not written the trial, or its mask file is gone.
    """
    known = trial.user_attrs
    proposal = known.get("proposal")
    if proposal is None:
        raise SearchError(
            f"trial {trial.number} of {run} was not written by masksearch; "
            "keep other trials in a study of their own"
        )
    record = Record(
        number=trial.number,
        status="running",
        job=read_job(proposal["job"], trial.number, run),
        fingerprint=proposal["fingerprint"],
        protocol=proposal["protocol"],
        seed=proposal["seed"],
        params=proposal["params"],
        origin=known["origin"],
        measures=from_json(proposal["measures"]),
        memo=proposal["memo"],
        name=proposal["name"],
        role=proposal["role"],
        source=proposal["source"] or trial_source(run, trial.number),
    )
    order, result = math.inf, known.get("result")
    if result is not None and trial.state.is_finished():
        order = result["order"]
        record = replace(
            record,
            status=result["status"],
            values=from_json(result["values"]),
            step=result["step"],
            curve=tuple(Report(step, from_json(values)) for step, values in result["curve"]),
            artifacts=result["artifacts"],
            seconds=result["seconds"],
            error=result["error"],
        )
    return StoredTrial(record, proposal["draw"], order, read_answers(trial))


def trial_source(run: Path, number: int) -> str:
    """Where the mask of a search's own trial comes from; never stored: a folder may move."""
    return f"search {run}#{number}"


def read_job(data: Mapping[str, Any], number: int, run: Path) -> Job:
    """Inverse of `job_data`.

    Raises:
        SearchError: If the mask's file is missing or damaged. A record without its mask would
            silently change fronts and what is reused, so no study is read without it.
    """
    match data["kind"]:
        case "evaluate":
            if "file" not in data:
                return Evaluate(Mask.from_dict(data["mask"]))
            try:
                return Evaluate(load_mask(run / data["file"], content=False))
            except FileNotFoundError as error:
                raise SearchError(
                    f"the mask of trial {number} is missing: {run / data['file']}; "
                    "restore it from a copy of the run folder"
                ) from error
            except MaskFormatError as error:
                raise SearchError(
                    f"the mask of trial {number} is damaged: {error}; "
                    "restore it from a copy of the run folder"
                ) from error
        case "one_shot":
            return OneShot(data["gates"], data["config"])
        case "shared":
            return Shared(data["config"])
    return Refused(data["reason"])


def count_starts(trials: Iterable[FrozenTrial]) -> dict[int, int]:
    """Running trial -> how often it was begun."""
    return {
        trial.number: int(trial.user_attrs.get("starts", 1))
        for trial in trials
        if not trial.state.is_finished()
    }


def read_answers(trial: FrozenTrial) -> tuple[SchedulerAnswer, ...]:
    """What a scheduler has answered about a trial."""
    found = {key: value for key, value in trial.user_attrs.items() if key.startswith(ANSWER)}
    return tuple(
        SchedulerAnswer(int(key.removeprefix(ANSWER)), Report(step, from_json(values)), goes_on)
        for key, (step, values, goes_on) in found.items()
    )


def finite_json(values: Mapping[str, float]) -> dict[str, float | str]:
    """Floats for JSON; infinities as text, because databases refuse them."""
    return {key: v if math.isfinite(v) else repr(v) for key, v in values.items()}


def from_json(values: Mapping[str, float | str]) -> dict[str, float]:
    """Inverse of `finite_json`."""
    return {key: float(value) for key, value in values.items()}


def hash_space_source(space: Callable[..., Mask]) -> str:
    """Hash of what a space does: its source, or its byte code where there is no source."""
    text = getattr(space, "masksearch_source", None)
    if text is None:
        try:
            text = inspect.getsource(space)
        except (OSError, TypeError):
            code = getattr(space, "__code__", None)
            text = repr((code.co_code, code.co_consts)) if code else type(space).__qualname__
    return hashlib.sha256(text.encode()).hexdigest()[:16]
