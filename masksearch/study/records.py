"""The contents of an Optuna trial, and the way back to a record; the limits that records keep; and
with what a call works.

There are two attributes for people (`origin`, `mask`), `starts`, one `proposal` and one `result`
(few rows are fast to write and read), and one `observed:N` for each observation of a scheduler.

With what, where and on which data each call of `search` or `compare` works is information for
whoever reads or repeats the study: nothing in it must be equal when a search goes on
(`StudyStore.note_call`).
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from masksearch.contracts import (
    Evaluate,
    Evaluator,
    Job,
    Objective,
    OneShot,
    Prune,
    Record,
    Refused,
    Report,
)
from masksearch.errors import MaskFormatError, SearchError, check_name, without_controls
from masksearch.files import path_inside
from masksearch.masks.core import Mask
from masksearch.masks.measure import MEASURES, ROUNDING
from masksearch.masks.text import load_mask, save_mask
from masksearch.study.storage import hide_secrets, redact
from masksearch.training.parts import read_settings
from masksearch.user_code import place_of

FORMAT = 3  # of what is written; the first one that was released
INLINE = 16_384  # characters of a mask's JSON above which it is a file of its own
STATES = {
    "running": TrialState.RUNNING,
    "done": TrialState.COMPLETE,
    "reused": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
PROPOSED = ("seed", "fingerprint", "protocol", "name", "role", "source")  # stored as they are
FINISHED = ("status", "step", "seconds", "error")  # likewise, once there is a result
ANSWER = "observed:"  # + the observation's order in the study: one attribute each


@dataclass(frozen=True)
class SchedulerAnswer:
    """The report of a trial that a scheduler was shown, and its answer."""

    order: int  # among all answers in the study
    report: Report  # that it was shown
    goes_on: bool  # whether the trial went on


@dataclass(frozen=True)
class StoredTrial:
    """The study's contents for one trial."""

    record: Record
    draw: int  # the strategy's own number; -1 = no strategy drew it
    order: float  # among the finished ones; infinity where it has not finished
    answers: tuple[SchedulerAnswer, ...]


def own_version() -> str:
    """The version of this masksearch, also where it runs without being installed."""
    return str(vars(sys.modules["masksearch"])["__version__"])


def check_format(facts: Mapping[str, Any], run: Path) -> None:
    """Refuses a study that masksearch has written in another format, as its `facts` say.

    Raises:
        SearchError: Names both versions.
    """
    if facts.get("format", FORMAT) != FORMAT:
        raise SearchError(
            f"{run} was written by masksearch {facts.get('masksearch', '(unknown)')} in format "
            f"{facts['format']}; this is masksearch {own_version()}, which reads format {FORMAT}; "
            "install that version to read it, or search in a new run folder"
        )


def drawn_distributions(record: Record) -> dict[str, BaseDistribution]:
    """Parameter -> what a space drew it from; empty of a record that no space drew."""
    texts = json.loads(record.strategy_state.get("distributions", "{}"))
    return {name: json_to_distribution(text) for name, text in texts.items()}


def proposal_data(record: Record, draw: int, run: Path) -> dict[str, Any]:
    """The user attributes of a trial that begins; a big mask becomes a file in `run`."""
    return {
        "origin": record.origin,
        "mask": str(record.mask) if record.mask is not None else "",
        "starts": 1,
        "proposal": {
            "draw": draw,
            "job": _job_data(record, run),
            "measures": finite_json(record.measures),
            "params": dict(record.params),
            "memo": dict(record.strategy_state),  # its key since 0.2.0
            **{name: getattr(record, name) for name in PROPOSED},
        },
    }


def result_data(record: Record, order: int) -> dict[str, Any]:
    """The attribute `result` of a finished trial; `order` counts the finished ones."""
    return {
        "values": finite_json(record.values),
        "curve": [[report.step, finite_json(report.values)] for report in record.curve],
        "artifacts": dict(record.artifacts),
        **{name: getattr(record, name) for name in FINISHED},
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
    if state is TrialState.COMPLETE and isinstance(record.job, OneShot | Prune):
        return TrialState.PRUNED, None
    if state is not TrialState.COMPLETE:
        return state, None
    values = [float(record.value(objective.name)) for objective in objectives]
    if any(math.isnan(value) for value in values):
        raise ValueError(f"trial {record.number} has NaN for an objective; let it fail")
    return state, values


def _job_data(record: Record, run: Path) -> dict[str, Any]:
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
        case Prune(config=config):
            return {"kind": "prune", "config": dict(config)}
        case Refused(reason=reason):
            return {"kind": "refused", "reason": redact(reason)}


def read_trial(trial: FrozenTrial, run: Path) -> StoredTrial:
    """All that the study holds of one trial.

    Raises:
        SearchError: If masksearch has not written the trial, or its mask file is gone.
    """
    stored = trial.user_attrs
    proposal = stored.get("proposal")
    if proposal is None:
        raise SearchError(
            f"trial {trial.number} of {run} was not written by masksearch; "
            "keep other trials in a study of their own"
        )
    record = Record(
        number=trial.number,
        status="running",
        job=_read_job(proposal["job"], trial.number, run),
        params=proposal["params"],
        origin=without_controls(stored["origin"]),
        measures=from_json(proposal["measures"]),
        strategy_state=proposal["memo"],
        **without_controls({name: proposal[name] for name in PROPOSED}),
    )
    if not record.source:
        record = replace(record, source=trial_source(run, trial.number))
    order, result = math.inf, stored.get("result")
    if result is not None and trial.state.is_finished():
        order = result["order"]
        record = replace(
            record,
            values=from_json(result["values"]),
            curve=tuple(Report(int(at), from_json(each)) for at, each in result["curve"]),
            artifacts=without_controls(result["artifacts"]),
            **without_controls({name: result[name] for name in FINISHED if name != "error"}),
            error=redact(result["error"]),
        )
    return StoredTrial(record, proposal["draw"], order, read_answers(trial))


def trial_source(run: Path, number: int) -> str:
    """Where the mask of a search's own trial comes from; never stored: a folder may move."""
    return f"search {run}#{number}"


def _read_job(data: Mapping[str, Any], number: int, run: Path) -> Job:
    """Inverse of `_job_data`.

    Raises:
        SearchError: If its kind is unknown, or the mask's file is missing or damaged. A record
            without its mask would silently change fronts and what is reused, so no study is read
            without it.
    """
    match data["kind"]:
        case "evaluate":
            if "file" not in data:
                return Evaluate(Mask.from_dict(data["mask"]))
            try:
                return Evaluate(load_mask(path_inside(run, data["file"])))
            except (FileNotFoundError, MaskFormatError) as error:
                missing = isinstance(error, FileNotFoundError)
                what = f"missing: {run / data['file']}" if missing else f"damaged: {error}"
                raise SearchError(
                    f"the mask of trial {number} is {what}; "
                    "restore it from a copy of the run folder"
                ) from error
        case "one_shot":
            return OneShot(data["gates"], data["config"])
        case "prune":
            return Prune(data["config"])
        case "refused":
            return Refused(redact(data["reason"]))
    raise SearchError(
        f"trial {number} of {run} has a job of the kind {data['kind']!r}, which this version of "
        "masksearch does not know; read it with the version that wrote it"
    )


def read_answers(trial: FrozenTrial) -> tuple[SchedulerAnswer, ...]:
    """The answers of a scheduler about a trial."""
    stored = {key: value for key, value in trial.user_attrs.items() if key.startswith(ANSWER)}
    return tuple(
        SchedulerAnswer(int(key.removeprefix(ANSWER)), Report(step, from_json(values)), goes_on)
        for key, (step, values, goes_on) in stored.items()
    )


def finite_json(values: Mapping[str, float]) -> dict[str, float | str]:
    """Floats for JSON; infinities as text, because databases refuse them."""
    return {key: v if math.isfinite(v) else repr(v) for key, v in values.items()}


def from_json(values: Mapping[str, float | str]) -> dict[str, float]:
    """Inverse of `finite_json`."""
    return {without_controls(key): float(value) for key, value in values.items()}


PACKAGES = ("torch", "transformers", "optuna", "numpy", "scipy", "tokenizers", "ray")
PATIENCE = 5.0  # seconds that git and nvidia-smi may take
PLAIN = (str, int, float, bool, type(None))


def describe_call(
    evaluator: Evaluator, space: Callable[..., Any] | None = None, **asked: Any
) -> dict[str, Any]:
    """A call's settings, data, versions and machine; takes some hundredths of a second.

    Args:
        evaluator: Judges the masks.
        space: Draws them.
        asked: Arguments of the call that are no facts of the study (trials, seeds, ...).

    Returns:
        `evaluator` (its settings by name), `data` (hashes by name), `versions`, `machine`,
        `folder` (the working directory), and where they are known `commit` (of the git working
        tree around that folder), `script` and `space` (`FILE:NAME`).
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    facts = {
        **{name: plain(value) for name, value in asked.items()},
        "evaluator": evaluator_settings(evaluator),
        "data": dict(evaluator.data_hashes()),
        "versions": package_versions(),
        "machine": machine_name(),
        "folder": str(Path.cwd()),
        "commit": _git_commit(),
        "script": str(Path(script).resolve()) if script else "",
        "space": place_of(space),
    }
    hidden: dict[str, Any] = hide_secrets(facts)
    return {name: value for name, value in hidden.items() if value not in ("", {}, None)}


def evaluator_settings(evaluator: Any) -> dict[str, Any]:
    """The class of an evaluator and its fields, those of a wrapped one first."""
    name = type(evaluator).__name__
    inner = getattr(evaluator, "evaluator", None)
    of_inner = {} if inner is None else evaluator_settings(inner)
    of_inner["class"] = f"{name}({of_inner['class']})" if of_inner else name
    settings = read_settings(evaluator) if is_dataclass(evaluator) else {}
    return of_inner | {n: plain(value) for n, value in settings.items() if value is not inner}


def plain(value: Any) -> Any:
    """A value that JSON knows, or its text."""
    return value if isinstance(value, PLAIN) else str(value)


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of masksearch, Python and the packages that numbers depend on."""
    versions = {"masksearch": own_version(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _processor_name() -> str:
    """The processor of this machine."""
    model = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if not described.is_file():
        return model
    lines = described.read_text(encoding="utf-8", errors="replace").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, model)


def machine_name() -> str:
    """Processor, cores, GPUs and system of this machine."""
    gpus = _command_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    counted = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)]
    cores = f"{os.cpu_count()} logical CPUs"
    return ", ".join([_processor_name(), cores, *counted, platform.platform()])


def _git_commit() -> str:
    """Commit of the working tree around the current folder; empty where there is none."""
    asked = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    commit, dirty, _ = _command_output("git", "--no-optional-locks", *asked).partition("-dirty")
    return f"{commit} with uncommitted changes" if dirty else commit


def _command_output(*command: str) -> str:
    """The output of a program; empty where it is missing, slow or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip()


NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
SHARES = {  # of a mask -> the end of [0, 1] that none has, as every query keeps a key
    **{"sparsity": 1, "effective_sparsity": 1, "sparsity_off_diagonal": None},
    **{"density": 0, "block_density": 0, "kv_bytes": 0, "kv_bytes_per_head": 0, "work": 0},
}
PATTERN = re.compile(rf"\s*([\w/]+)\s*(<=|>=|<|>)\s*({NUMBER})\s*")


@dataclass(frozen=True)
class Constraint:
    """One limit on a measure of the mask or on a reported value.

    Args:
        name: `effective_sparsity`, `sparsity` (of the table), `block_density`, `hops`, ... are
            known before any training, and a mask that violates a limit on them is stopped
            without training; a limit on a reported value (a measured latency, say) is checked
            when the trial has ended.
        sign: How the value must compare.
        limit: With what.
        measured: Whether the evaluator knows it before training (`Evaluator.measures_of`).
    """

    name: str
    sign: Literal["<=", ">=", "<", ">"]
    limit: float
    measured: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.limit:g}"

    @property
    def early(self) -> bool:
        """Whether it is known before training."""
        return self.measured or self.name in MEASURES

    def holds(self, value: float) -> bool:
        """Whether a value keeps the limit, but for rounding.

        >>> Constraint("sparsity", ">=", 0.9).holds(0.95)
        True
        """
        excess, room = self.excess(value), ROUNDING * abs(self.limit)
        return excess <= room if "=" in self.sign else excess < -room

    def excess(self, value: float) -> float:
        """By how much a value violates the limit; Optuna's sign: feasible at 0 and below."""
        return value - self.limit if self.sign in ("<=", "<") else self.limit - value

    def violated_by(self, record: Record) -> str:
        """The reason why a record violates it; empty where it does not."""
        try:
            value = record.value(self.name)
        except KeyError:  # hops of a mask that follows the tokens
            return f"violates {self}: {self.name} is not known of this mask"
        return "" if self.holds(value) else f"violates {self}: {self.name} = {value:.6g}"


def read_budgets(budget: float | Sequence[float] | None) -> tuple[float, ...]:
    """One budget or several, each once, in their order; none for None.

    Raises:
        ValueError: If one is no share in (0, 1].
    """
    listed = [budget] if isinstance(budget, int | float | str) else [*(budget or ())]
    for each in listed:
        if not isinstance(each, int | float) or not 0 < each <= 1:
            raise ValueError(
                f"budgets are shares in (0, 1] of what full attention costs, as 0.3; got {each!r}"
            )
    return tuple(dict.fromkeys(map(float, listed)))


def parse_constraint(
    text: str, reported: Iterable[str] = (), measured: Collection[str] = ()
) -> Constraint:
    """`"sparsity >= 0.9"` as a constraint.

    Args:
        text: `NAME <= NUMBER`, or with `>=`, `<`, `>`.
        reported: Names of reported values that may be limited beside the measures.
        measured: Names of what the evaluator knows of a mask before training.

    Raises:
        ValueError: If the text does not read like that, or no mask has such a share.
        UnknownNameError: If NAME is neither a measure nor reported.
    """
    match = PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"a constraint reads like 'sparsity >= 0.9', got {text!r}")
    name, sign, limit = match[1], match[2], float(match[3])
    check_name("measure", name, list(dict.fromkeys((*MEASURES, *measured, *reported))))
    if name in SHARES and not 0 <= limit <= 1:
        raise ValueError(f"{name} is a share in [0, 1], as 0.9; got {text!r}")
    end = float(">" in sign)
    if name in SHARES and limit == end and ("=" not in sign or SHARES[name] == end):
        raise ValueError(f"no mask keeps {text!r}: shares are in [0, 1], and queries keep a key")
    return Constraint(name, sign, limit, name in measured)  # type: ignore[arg-type]
