"""The types that every part speaks. Read this first.

A search is seven hops: `space(trial) -> Mask -> evaluator -> Report* -> Record -> study ->
frontier -> report`, and back from a Record to the strategy that proposes the next mask.
An evaluator inherits from `Evaluator`; what implements the protocols below only has their methods.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from masksearch.errors import EvaluatorError, SearchError
from masksearch.files import own_numbers
from masksearch.masks.checks import whole
from masksearch.masks.core import Mask
from masksearch.masks.shape import Shape as Shape
from masksearch.masks.text import short_text

Batch = dict[str, Tensor]
Status = Literal["running", "done", "stopped", "failed", "reused"]
Role = Literal["trial", "baseline", "compared", "control"]
Split = Literal["validation", "holdout", "test", "all"]
STORED_SPLITS: dict[Split, str] = {  # as protocols and studies write them, under the key "half"
    "validation": "search",
    "holdout": "final",
    "test": "test",
    "all": "all",
}


def read_split(stored: str) -> str:
    """The split of that stored name; any other text as it is."""
    return next((split for split, name in STORED_SPLITS.items() if name == stored), stored)


MAJORITY = "/majority"  # ends the name of a reported value: what a constant answer earns
NLL_INCREASE = "nll_increase"  # under a mask, of text or of a group of tasks: nll_increase/text
MAX_NLL_INCREASE = "max_nll_increase"  # the largest of these
LOW = "/low"  # likewise: lower end of the score's 95% interval over the rows of its data
BEYOND = "beyond its budget"  # begins the error of a draw that is refused for what it costs


def is_side_value(name: str) -> bool:
    """Whether a reported value only stands beside a score, and is none itself."""
    return name.endswith((MAJORITY, LOW))


RANDOM = "random"  # the strategy that others are measured against
POINT = 0.01  # margin of accuracies, F1 and correlations: what papers on sparse models call small
NATS = 0.05  # margin of a loss a token: five percent of perplexity


@dataclass(frozen=True)
class Objective:
    """A quantity that a search improves.

    Args:
        name: A key of the last report's values or, failing that, of the record's measures
            (`sparsity`, `block_density`, `hops`), which are known before any training.
        goal: `"min"` or `"max"`.
        worst: Reference for the hypervolume; a record beyond it adds nothing.
        margin: How much of this score a mask may lose to dense attention for a comparison to call
            it small, in the score's units: `POINT` of accuracy or correlation, `NATS` of a loss a
            token; None = nothing is known, and a comparison tests against no difference.
    """

    name: str
    goal: Literal["min", "max"]
    worst: float
    margin: float | None = None

    def __post_init__(self) -> None:
        own_numbers(self)
        if self.goal not in ("min", "max"):
            raise ValueError(f"goal must be 'min' or 'max', got {self.goal!r}")
        if self.worst != self.worst:  # NaN
            raise ValueError(f"worst must be a number, the worst {self.name} that counts, got nan")


@dataclass(frozen=True)
class Report:
    """The values that an evaluator has measured after `step` optimiser steps.

    Values are what `float()` takes: numbers, NumPy's too, and tensors of one element. Anything
    else raises an EvaluatorError, which says what to write; so do no values, and a step that is no
    whole number of at least 0.

    >>> Report(2, {"loss": torch.tensor(0.5)})
    Report(step=2, values={'loss': 0.5})
    """

    step: int
    values: Mapping[str, float]

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping) or not self.values:
            empty = "an empty " if isinstance(self.values, Mapping) else ""
            raise EvaluatorError(
                f"a Report holds values by name, got {empty}{type(self.values).__name__}: yield "
                'ms.contracts.Report(step, {"accuracy": accuracy})'
            )
        for name in self.values:
            if not isinstance(name, str):
                raise EvaluatorError(f"reported names are text, as {str(name)!r}; got {name!r}")
        plain = {name: _plain_number(name, value) for name, value in self.values.items()}
        own_numbers(self)
        if whole(self.step) is None or self.step < 0:
            raise EvaluatorError(f"a Report's step is a whole number >= 0, got {self.step!r}")
        object.__setattr__(self, "values", plain)


def _plain_number(name: str, value: Any) -> float:
    """A reported value as Python's own number; an EvaluatorError names the line to write."""
    if type(value) in (float, int, bool):
        return value  # type: ignore[no-any-return]
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(value, "shape", None)
        kind = type(value).__name__ if shape is None else f"a {type(value).__name__} {[*shape]}"
        raise EvaluatorError(
            f"the reported value {name!r} is {kind}, not a number: write "
            f"ms.contracts.Report(step, {{{name!r}: float(value)}}), of a tensor value.mean()"
        ) from None


@dataclass(frozen=True)
class Evaluate:
    """Job: train and score a model under one mask."""

    mask: Mask

    def __repr__(self) -> str:
        return f"Evaluate({short_text(self.mask, 80)})"


@dataclass(frozen=True)
class OneShot:
    """Job: train gates and weights together (DAM); leaves its gates as an artifact.

    All fields are plain data, so that a job can be stored: `gates` are the arguments of
    `masksearch.Gates` that the evaluator's shape does not already fix, `config` those of
    `masksearch.DamConfig`.
    """

    gates: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prune:
    """Job: measure every edge of a trained model by its first-order effect; leaves their order.

    `config` is plain data: `rows`, `rounds`, `per` and the least `density` (see
    `strategies.prune`), or of words as keys `unit="word"`, `rows` and `by`.
    """

    FILE: ClassVar[str] = "order.safetensors"  # in the trial's folder
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """Job that cannot be carried out: the space raised, or returned no mask."""

    reason: str


Job = Evaluate | OneShot | Prune | Refused


@dataclass(frozen=True)
class Proposal:
    """A strategy's request for one job.

    Args:
        number: Draw number of the strategy, from 0.
        job: What to do.
        params: The parameters that the space suggested (empty where there was no space).
        origin: Who proposes: a strategy's name, `"baselines"`, `"compare"`.
        seed: Seed of the evaluation; None = the study's.
        strategy_state: Strings that the strategy wants back in the record.
        starts: How often it was begun before without coming to an end (killed runs).
        name: Of the mask, where it has one: that of a baseline, of a compared mask.
        role: Whether it is a strategy's own (`"trial"`), a `"baseline"` beside a search, or in a
            comparison `"compared"` or a `"control"` (dense, random keys, the planted mask).
        source: Where the mask comes from: `"hand"` (a hand-designed family), `"search RUN#7"`
            (trial 7 of a search), `"control"`, `"own"` (the caller's).
    """

    number: int
    job: Job
    params: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    seed: int | None = None
    strategy_state: Mapping[str, str] = field(default_factory=dict, repr=False)
    starts: int = 0
    name: str = ""
    role: Role = "trial"
    source: str = ""


@dataclass(frozen=True)
class Record:
    """The result of one proposal: all that tables, figures and strategies read.

    Args:
        number: Trial number in the study (told to a strategy: its own draw number).
        status: `"running"` only while nobody has finished it; `"reused"` copies the values of
            an equal (fingerprint, protocol, seed) that had been run before.
        job: The job that was proposed.
        fingerprint: Hash of the lowered mask's bits and shape; empty for other jobs.
        protocol: The evaluator's protocol hash.
        seed: Seed of the evaluation.
        params: What the space suggested.
        origin: Who proposed; name, role and source as in `Proposal`.
        values: The last report's values.
        step: Optimiser step of the last report.
        curve: Every report, oldest first.
        measures: What is known of the mask without training: sparsity, block density, hops.
        artifacts: Name -> path, relative to the run folder.
        seconds: Wall time of the job.
        error: Reason of a failure (with the traceback) or of a stop; empty otherwise.
        strategy_state: What the proposal's strategy wanted back.
    """

    number: int
    status: Status
    job: Job
    fingerprint: str = ""
    protocol: str = ""
    seed: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    curve: tuple[Report, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    strategy_state: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    role: Role = "trial"
    source: str = ""

    def __repr__(self) -> str:
        """One line: number, status, origin, seed, up to four figures, and the mask."""
        scores = ((name, v) for name, v in self.values.items() if not is_side_value(name))
        figures = dict([*scores][:3])
        table = self.measures.get("sparsity")
        figures |= {
            name: value
            for name, value in self.measures.items()
            if name == "sparsity" or (name == "effective_sparsity" and value != table)
        }
        parts = [f"trial {self.number}", self.status, self.proposer, f"seed {self.seed}"]
        parts += [f"{name} {value:.4g}" for name, value in figures.items()]
        text = f"Record({', '.join(part for part in parts if part)}"
        what = self.mask if self.mask is not None else type(self.job).__name__
        return f"{text}, {short_text(what, max(16, 117 - len(text)))})"

    @property
    def mask(self) -> Mask | None:
        """The mask that was evaluated, or None for a job without one."""
        return self.job.mask if isinstance(self.job, Evaluate) else None

    @property
    def proposer(self) -> str:
        """Who proposed it, for people: `"tpe"`, or `"baseline star"`."""
        return f"baseline {self.name}" if self.role == "baseline" else self.origin

    @property
    def scored(self) -> bool:
        """Whether the record holds a full-fidelity result (done or reused) of a mask."""
        return self.status in ("done", "reused") and isinstance(self.job, Evaluate)

    @property
    def refused(self) -> bool:
        """Whether it is a draw beyond its budget: it was not trained, and counts as no trial."""
        return self.status == "stopped" and self.error.startswith(BEYOND)

    @property
    def known(self) -> bool:
        """Whether it is a draw of a mask that was known: it is answered from that mask's trial,
        and counts as none."""
        return self.role == "trial" and "reused_from" in self.artifacts

    @property
    def reason(self) -> str:
        """The last line of the error that says something; empty where there is none."""
        lines = [line for line in self.error.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    def value(self, name: str) -> float:
        """The reported value of that name or, failing that, the measure of that name.

        Raises:
            KeyError: If the record holds neither; the message lists what it holds.
        """
        if name in self.values:
            return self.values[name]
        if name in self.measures:
            return self.measures[name]
        names = ", ".join([*self.values, *self.measures]) or "nothing"
        raise KeyError(f"record {self.number} holds no {name!r}; it holds {names}")


Listener = Callable[[Record], None]


@runtime_checkable
class RemembersRecords(Protocol):
    """A listener that also wants the records that a resumed study holds already."""

    def restore(self, records: Sequence[Record]) -> None:
        """Takes the finished records, in the order of their completion, before any new one."""
        ...


@runtime_checkable
class FollowsReports(Protocol):
    """A listener that also wants the reports of trials while they run."""

    def reported(self, number: int, report: Report) -> None:
        """Takes a report of trial `number`, in the driver's process. Each step of a trial comes
        once in a call, also where the trial is begun again."""
        ...


class Evaluator:
    """Judges a mask by training a model under it: the base of every evaluator.

    A subclass has `shape`, `objectives` and `protocol`, as attributes or as properties, and is
    called; whatever else an evaluator may offer has a default here. Calling it returns a generator
    of reports; the last report is the result, closing the generator stops the run. Checkpoints go
    to `workdir` and are found there again. Evaluators are cheap to pickle: data is loaded where
    they run, or travels with them (`packed`).
    """

    if TYPE_CHECKING:  # properties, so that a subclass may have a property, a field, an attribute

        @property
        def shape(self) -> Shape:
            """The sizes that a mask is lowered to."""

        @property
        def objectives(self) -> tuple[Objective, ...]:
            """The objectives that a search improves; the first is the score."""

        @property
        def protocol(self) -> str:
            """Text that changes whenever a score could, beside mask and seed."""

        @property
        def split(self) -> Split | None:
            """Which rows judge; None = the data is not split. The splits are dealt by a hash
            of each row's text: `"validation"` (unless told otherwise), `"holdout"`, which no
            search has seen, `"test"` (where the data has labelled test rows) and `"all"`: both
            splits together, with the objectives and protocol ids of versions that knew no
            splits."""

        @property
        def seedless(self) -> bool:
            """Whether every seed gives a mask the same scores, as where nothing is trained; a
            comparison then takes one seed, and its rows decide."""

        @property
        def meanings(self) -> Mapping[str, str]:
            """Name of a value -> what it measures, in a few words; a verdict prints it."""

        @property
        def measure_names(self) -> tuple[str, ...]:
            """Names that `measures_of` returns; `kv_bytes` is a decoder's share of the dense
            cache."""

        @property
        def beyond_shape(self) -> bool:
            """Whether a mask is looked at beyond `shape` (at another length), where masks of
            equal cells may differ."""

        @property
        def kv_head_count(self) -> int | None:
            """KV heads of a layer of the decoder that is judged on; None = not known."""

        @property
        def weights_frozen(self) -> bool:
            """Whether the weights of the `differentiable` model are frozen, so that gates alone
            are trained."""

        @property
        def weight_lr(self) -> float | None:
            """Peak learning rate of these weights beside gates; None = that of `DamConfig`."""

    else:
        split = kv_head_count = weight_lr = None
        seedless = beyond_shape = weights_frozen = False
        meanings, measure_names = MappingProxyType({}), ()

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields reports of a model under the mask; a subclass has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")

    def measures_of(self, mask: Mask) -> Mapping[str, float]:
        """The measures of a mask that fits the shape before any training, beside every record's
        measures. Records carry these measures too: they serve as objectives, and a mask that
        violates a constraint on one is not trained."""
        return {}

    def on(self, split: Split) -> Evaluator:
        """The same evaluator on other rows, with another protocol id and the same training.

        Raises:
            EvaluatorError: If it does not split its rows.
            DataError: If the data has no such rows.
        """
        raise EvaluatorError(
            f"{type(self).__name__} does not split its rows, so there is no "
            f"split={split!r} to judge by; give it `split` and `on(split)` "
            "(docs/write_your_own.md), or leave split out"
        )

    def packed(self) -> Evaluator:
        """The same evaluator holding its data in memory, for machines that do not see its files.

        Its shape, objectives, protocol and reports are those of the evaluator itself, here and
        in any process that unpickles it. Packing a packed one changes nothing.
        """
        return self

    def data_hashes(self) -> Mapping[str, str]:
        """Name of each data set -> hash of what was read, for a report to name."""
        return {}

    def provide_models(self, seed: int) -> None:
        """Trains, or finds, what all evaluations of that seed share; called before the first
        trial, so that what would make every trial fail is said (a MaskSearchError) before
        anything else is paid for."""

    def differentiable(self, seed: int) -> Differentiable:
        """The model and batches of a one-shot search (DAM); SearchError where there are none."""
        raise SearchError(
            f"{type(self).__name__} has no differentiable(seed), which trains gates and weights; "
            "use another strategy or, for example, a PlantedEvaluator or an MlmEvaluator"
        )

    def offers(self, name: Literal["differentiable", "provide_models"]) -> bool:
        """Whether the evaluator has a method of that name of its own."""
        return getattr(type(self), name) is not getattr(Evaluator, name)


@dataclass(frozen=True)
class Differentiable:
    """The model and batches that a one-shot search trains on.

    Args:
        model: Its `model(**batch).loss` is differentiable.
        batches: Training batches, endless.
        held_out: Held-out batches, always the same.
        steps: Optimiser steps that an evaluation trains such a model for; None = not said.
        lr: Their peak learning rate; None = not said.
    """

    model: nn.Module
    batches: Iterator[Batch]
    held_out: list[Batch]
    steps: int | None = None
    lr: float | None = None


class Strategy(Protocol):
    """Proposes masks. LAW: its state is a function of its constructor's arguments and of the
    records told so far, in their order. A record told with status "running" says that this
    draw is out (a resumed search tells those first). One that chooses nothing before it has judged
    so many masks says so: `least_trials`; one that itself keeps within budgets: `own_budgets`; one
    that learns from draws of its space that are not its own: `learns_from_starts`."""

    def ask(self) -> Proposal | Literal["wait", "done"]: ...
    def tell(self, record: Record) -> None: ...


class Scheduler(Protocol):
    """Decides at each report whether a trial goes on (multi-fidelity).

    LAW: its state is a function of its constructor's arguments and of the observations so far,
    in their order. An observation of a (number, step) that was seen before changes nothing and
    gets the answer that it got then. `repr` names every argument: a search that is resumed with
    another scheduler is refused.
    """

    def observe(self, number: int, report: Report, measures: Mapping[str, float]) -> bool:
        """Takes one report of a trial.

        Args:
            number: Trial number in the study.
            report: What the evaluator has reported (not its last report).
            measures: What is known of the mask without training (`sparsity`, ...).

        Returns:
            False = the trial ends here, with status "stopped".
        """
        ...


class Trials(Protocol):
    """The trials of a search or comparison, as an executor gets them.

    The driver answers: it writes every proposal and every result to the study, so an executor
    only runs what it is given. Proposals carry the trial's number in the study and its seed.
    `workdir` is the run folder; trial 7 works in `trials/7` below it, or where it is begun again
    in a folder below that. `seeds` are those of the evaluations that are to come, for
    `Evaluator.provide_models`.
    """

    @property
    def evaluator(self) -> Evaluator: ...
    @property
    def workdir(self) -> Path: ...
    @property
    def seeds(self) -> Sequence[int]: ...

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next job; "wait" = none before another record is told, "done" = none at all
        unless a running trial's record brings new ones."""
        ...

    def report(self, number: int, report: Report) -> bool:
        """Takes a running trial's report, its last one too. False = close the job's generator;
        its record is "stopped"."""
        ...

    def tell(self, record: Record) -> None:
        """Takes the one record of a proposal."""
        ...

    def note_waiting(self, numbers: Collection[int]) -> None:
        """Takes the numbers of the trials that wait for a free slot now. An executor that starts
        every trial at once has none, and need not call this."""
        ...


class Executor(Protocol):
    """Runs the jobs of `work` until it answers "done" and every record has been told.

    The smallest one is four lines:

        def run(self, work):
            while (proposal := work.ask()) != "done":
                job = JobRun(proposal, work.evaluator, work.workdir)
                work.tell(job.run(work.report))

    with `masksearch.executors.job.JobRun`, which makes a record of whatever goes wrong.
    """

    def run(self, work: Trials) -> None: ...


@runtime_checkable
class Task(Protocol):
    """A source of training and held-out batches for `model(**batch).loss`."""

    @property
    def name(self) -> str: ...
    def batches(self, seed: int) -> Iterator[Batch]: ...
    def held_out(self) -> list[Batch]: ...


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, the same on every machine (SplitMix64)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded by `mixed_seed(*parts)`."""
    return torch.Generator().manual_seed(mixed_seed(*parts))
