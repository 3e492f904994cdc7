"""Tests of the promises that evaluators, strategies, executors and masks of your own keep.

from masksearch.testing import StrategyContract

class TestClimbing(StrategyContract):
    @pytest.fixture
    def make(self):
        return lambda: Climbing(seed=0)

pytest runs the promises of each class below. What is tested comes from a fixture `make`, a
function that makes one; with `pytest.mark.parametrize("make", ..)` a class tests several.
"""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from masksearch import masks
from masksearch.contracts import (
    Evaluate,
    Evaluator,
    Executor,
    Objective,
    Proposal,
    Record,
    Refused,
    Report,
    Shape,
    Strategy,
)
from masksearch.errors import EmptyRowError, HeadCountError, LengthError
from masksearch.masks.core import Mask, Points
from masksearch.strategies.opening import FixedQueue

Status = Literal["done", "stopped", "reused", "failed"]
STATUSES: tuple[Status, ...] = ("done", "done", "stopped", "reused", "failed", "done")
MEASURES = ("sparsity", "effective_sparsity", "density", "block_density", "hops")


class EvaluatorContract:
    """The promises of an evaluator; `make(folder)` makes one, whose data may lie in the folder."""

    def test_ends_with_its_objectives_alike_twice_and_leaves_the_global_generator(
        self, make: Callable[[Path], Evaluator], tmp_path: Path
    ) -> None:
        """One seed gives one result, whatever else draws random numbers."""
        evaluator = make(tmp_path)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = list(evaluator(masks.star(), seed=3, workdir=new_folder(tmp_path, "a")))
        assert torch.equal(torch.get_rng_state(), state), "it draws from torch's global generator"
        steps = [report.step for report in first]
        assert steps == sorted(steps)
        for objective in evaluator.objectives:
            names = {*first[-1].values, *MEASURES, *evaluator.measure_names}
            assert objective.name in names, f"no report holds {objective.name}"
            assert math.isfinite(objective.worst)
        assert all(math.isfinite(v) for report in first for v in report.values.values())
        torch.manual_seed(2)
        again = list(evaluator(masks.star(), seed=3, workdir=new_folder(tmp_path, "b")))
        assert again == first, "the same seed gives another result"

    def test_survives_pickling_with_its_protocol(
        self, make: Callable[[Path], Evaluator], tmp_path: Path
    ) -> None:
        """A worker's copy, and one that holds its data, are the same evaluator."""
        evaluator = make(tmp_path)
        packed = evaluator.packed()
        assert packed.packed() is packed
        for other in (pickle.loads(pickle.dumps(evaluator)), packed):
            assert other.protocol == evaluator.protocol
            assert (other.shape, other.objectives) == (evaluator.shape, evaluator.objectives)

    def test_closing_the_generator_stops_it(
        self, make: Callable[[Path], Evaluator], tmp_path: Path
    ) -> None:
        """A scheduler stops a trial so."""
        reports: Any = make(tmp_path)(masks.star(), seed=0, workdir=new_folder(tmp_path, "work"))
        next(reports)
        reports.close()
        assert list(reports) == []

    def test_masks_that_do_not_fit_are_refused(
        self, make: Callable[[Path], Evaluator], tmp_path: Path
    ) -> None:
        """Before anything is trained: other heads, empty rows, another length."""
        evaluator = make(tmp_path)
        for wrong, error in (
            (masks.per_head([masks.full()] * (evaluator.shape.heads + 1)), HeadCountError),
            (masks.full() - masks.full(), EmptyRowError),
            (masks.table(torch.ones(2, 2, dtype=torch.bool)), LengthError),
        ):
            try:
                next(evaluator(wrong, seed=0, workdir=new_folder(tmp_path, "work")))
            except error:
                continue
            raise AssertionError(f"a mask that does not fit raises no {error.__name__}")


class StrategyContract:
    """The promises of a strategy that draws at least 56 masks; `make()` makes one."""

    def test_same_seed_same_proposals_numbered_from_zero(
        self, make: Callable[[], Strategy]
    ) -> None:
        """Two strategies of the same arguments draw the same."""
        first, second = run(make(), 12), run(make(), 12)
        assert list(map(essence, first)) == list(map(essence, second))
        assert [proposal.number for proposal in first] == list(range(12))

    def test_resumed_copy_asks_what_the_original_asks(self, make: Callable[[], Strategy]) -> None:
        """The law: its state is a function of arguments and records."""
        assert_law(make, 50)

    def test_running_record_is_not_drawn_again(self, make: Callable[[], Strategy]) -> None:
        """A draw that a resumed search knows to be running is counted."""
        strategy, copy = make(), make()
        proposals = [asked(strategy) for _ in range(3)]
        copy.tell(replace(record_of(proposals[1]), status="running", values={}))
        copy.tell(record_of(proposals[2]))
        copy.tell(record_of(proposals[0]))
        assert asked(copy).number == 3

    def test_takes_failed_and_stopped_records(self, make: Callable[[], Strategy]) -> None:
        """A record without a score is no reason to end."""
        strategy = make()
        for index in range(21):
            status: Status = "failed" if index < 9 else "stopped" if index < 18 else "done"
            strategy.tell(record_of(asked(strategy), status))
        assert asked(strategy).number == 21


class ExecutorContract:
    """The promises of an executor; `make()` makes one."""

    def test_runs_every_job_once_and_one_failure_is_its_own(
        self, make: Callable[[], Executor], tmp_path: Path
    ) -> None:
        """A trial that raises is a failed record, and the others are done."""
        work = ListedTrials(tmp_path)
        make().run(work)
        statuses = {record.number: record.status for record in work.records}
        assert len(work.records) == len(statuses) == 4
        assert statuses == {0: "done", 1: "done", 2: "failed", 3: "done"}
        assert "window(2) is not for me" in next(r.error for r in work.records if r.number == 2)
        for record in work.records:
            if record.status == "done":
                assert record.values == {"loss": record.number / 2}

    def test_a_job_that_is_told_to_stop_does(
        self, make: Callable[[], Executor], tmp_path: Path
    ) -> None:
        """Its reports arrive in order, and none after the answer False."""
        work = ListedTrials(tmp_path, stops=(1, 1))
        make().run(work)
        heard = {n: [step for number, step in work.heard if number == n] for n in (0, 1, 3)}
        assert heard == {0: [1, 2], 1: [1], 3: [1, 2]}
        assert next(r.status for r in work.records if r.number == 1) == "stopped"


class MaskContract:
    """The promises of a mask, such as a leaf of one's own; `make()` makes one of `length`."""

    length = 12

    def test_keeps_in_every_form_what_it_keeps_of_single_points(
        self, make: Callable[[], Mask]
    ) -> None:
        """`allows` broadcasts: rows, columns and single numbers say the same."""
        mask, length = make(), self.length
        table = mask.dense(length)
        for layer, head, query, key in torch.cartesian_prod(
            *map(torch.arange, table.shape)
        ).tolist():
            at = Points(torch.tensor(query), torch.tensor(key), length, layer, head)
            assert bool(mask.allows(at)) == bool(table[layer, head, query, key]), (query, key)
        assert mask.kept(length) == int(table.sum())
        assert not (~mask & mask).dense(length).any()

    def test_is_equal_after_text_json_and_pickle(self, make: Callable[[], Mask]) -> None:
        """A mask of equal fields is the same mask, wherever it was stored."""
        mask = make()
        back = (Mask.from_json(mask.to_json()), masks.parse(str(mask)), make())
        for each in (*back, pickle.loads(pickle.dumps(mask))):
            assert (each, hash(each), each.digest) == (mask, hash(mask), mask.digest)
            assert torch.equal(each.dense(self.length), mask.dense(self.length))


# -- what the contracts run ----------------------------------------------------------------------
def new_folder(folder: Path, name: str) -> Path:
    """A folder, made where it is missing."""
    (made := folder / name).mkdir(exist_ok=True)
    return made


def record_of(proposal: Proposal, status: Status = "done", length: int = 16) -> Record:
    """The record of a proposal: the loss is NaN where it failed, partial where it stopped."""
    known: dict[str, Any] = {"params": proposal.params, "strategy_state": proposal.strategy_state}
    if isinstance(proposal.job, Refused):
        return Record(proposal.number, "failed", proposal.job, **known)
    assert isinstance(proposal.job, Evaluate)
    sparsity = proposal.job.mask.sparsity(length)
    loss = math.nan if status == "failed" else abs(sparsity - 0.6)
    return Record(
        proposal.number,
        status,
        proposal.job,
        values={"loss": loss, "cost": float(len(proposal.params))},
        step=2,
        measures={"sparsity": sparsity},
        error="broken" if status == "failed" else "",
        **known,
    )


def asked(strategy: Strategy) -> Proposal:
    """Its next proposal, where there must be one."""
    proposal = strategy.ask()
    assert isinstance(proposal, Proposal), f"a proposal is expected, got {proposal!r}"
    return proposal


def run(strategy: Strategy, draws: int) -> list[Proposal]:
    """One slot; every kind of outcome."""
    proposals = []
    for index in range(draws):
        proposals.append(asked(strategy))
        strategy.tell(record_of(proposals[-1], STATUSES[index % len(STATUSES)]))
    return proposals


def _run_in_slots(
    strategy: Strategy, draws: int, slots: int = 3
) -> tuple[list[Record], list[Record]]:
    """Several slots that finish in any order; the told records, and those still running."""
    order, told, running = random.Random(0), list[Record](), list[Record]()
    for index in range(draws):
        running.append(record_of(asked(strategy), STATUSES[index % len(STATUSES)]))
        if len(running) == slots:
            told.append(running.pop(order.randrange(slots)))
            strategy.tell(told[-1])
    return told, running


def resumed(
    make: Callable[[], Strategy], told: Sequence[Record], running: Sequence[Record]
) -> Strategy:
    """As a session resumes: what has finished, in that order, then what is still out."""
    copy = make()
    for record in told:
        copy.tell(record)
    for record in running:
        copy.tell(replace(record, status="running", values={}, step=0, error=""))
    return copy


def essence(proposal: Proposal) -> tuple[object, ...]:
    """The fields that equal proposals share."""
    return proposal.number, proposal.job, dict(proposal.params), dict(proposal.strategy_state)


def assert_law(
    make: Callable[[], Strategy],
    draws: int,
    content: Callable[[Strategy], object] = lambda strategy: None,
    *,
    any_order: bool = False,
) -> None:
    """An original and a copy of it go on alike, and know the same (`content`); with `any_order`
    one that is told in another order, too."""
    original = make()
    told, running = _run_in_slots(original, draws)
    copies = [resumed(make, told, running)]
    if any_order:
        copies.append(resumed(make, random.Random(1).sample(told, len(told)), running[::-1]))
    for record in [*running, None, None]:
        wanted = asked(original)
        for copy in copies:
            assert essence(asked(copy)) == essence(wanted), "a resumed copy draws something else"
            assert content(copy) == content(original)
        for strategy in [original, *copies]:
            if record is not None:
                strategy.tell(record)


class Halving(Evaluator):
    """Reports the reach of a window, then half of it, and refuses a reach of 2."""

    shape = Shape(length=8, layers=1, heads=1)
    objectives = (Objective("loss", "min", 10.0),)
    protocol = "halving-1"

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields two reports."""
        reach = next(each for each in range(4) if mask == masks.window(each))
        if reach == 2:
            raise ValueError(f"{mask} is not for me")
        yield Report(1, {"loss": float(reach)})
        yield Report(2, {"loss": reach / 2})


@dataclass
class ListedTrials:
    """Four windows, as an executor gets them, without a study.

    Args:
        workdir: The run folder.
        stops: Trial and step of the report that is answered with False.
    """

    workdir: Path
    stops: tuple[int, int] = (-1, -1)
    evaluator: Evaluator = field(default_factory=Halving)
    seeds: Sequence[int] = (0,)
    records: list[Record] = field(default_factory=list)
    heard: list[tuple[int, int]] = field(default_factory=list)  # trial and step of each report

    def __post_init__(self) -> None:
        self.listed = FixedQueue({f"w{reach}": masks.window(reach) for reach in range(4)}, [0])

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next window."""
        return self.listed.ask()

    def report(self, number: int, report: Report) -> bool:
        """Whether the trial goes on."""
        self.heard.append((number, report.step))
        return self.heard[-1] != self.stops

    def tell(self, record: Record) -> None:
        """Keeps a record."""
        self.records.append(record)
        self.listed.tell(record)

    def note_waiting(self, numbers: Collection[int]) -> None:
        """Nothing waits for a display."""
