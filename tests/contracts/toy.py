"""A search that takes milliseconds: an evaluator with a known landscape, and a space."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksearch import masks
from masksearch.contracts import (
    Evaluate,
    Evaluator,
    Objective,
    Proposal,
    Record,
    Report,
    Shape,
    Strategy,
)
from masksearch.masks import Mask

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class ToyEvaluator(Evaluator):
    """Loss = |sparsity - 0.6| + 1 / step + seed / 100; every call is written to `log`."""

    name: str = "toy"
    nan_at: float | None = None  # sparsity from which on the loss is NaN
    fails: bool = False
    log: Path | None = None

    shape = Shape(length=16, layers=2, heads=2)
    objectives = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))

    @property
    def protocol(self) -> str:
        return self.name

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{mask} {seed}\n")
        if self.fails:
            raise RuntimeError("the toy is broken")
        sparsity = mask.sparsity(self.shape.length)
        for step in (1, 2, 4):
            loss = abs(sparsity - 0.6) + 1 / step + seed / 100
            if self.nan_at is not None and sparsity > self.nan_at and step == 4:
                loss = float("nan")
            yield Report(step, {"loss": loss})


class Windows:
    """A strategy of a user's own, which asks for window(0), window(1), ..., and begins again."""

    def __init__(self, period: int = 99) -> None:
        self.next, self.period = 0, period

    def ask(self) -> Proposal:
        self.next += 1
        mask = masks.window((self.next - 1) % self.period)
        return Proposal(self.next - 1, Evaluate(mask), {}, "windows")

    def tell(self, record: Record) -> None:
        self.next = max(self.next, record.number + 1)


def space(trial: BaseTrial) -> Mask:
    """Conditional: a window, or a stride with the diagonal; 19 masks."""
    if trial.suggest_categorical("family", ["window", "stride"]) == "window":
        return masks.window(trial.suggest_int("reach", 0, 12))
    return masks.stride(trial.suggest_int("period", 2, 7))


@dataclass
class PlainTrials:
    """What an executor gets, without a study: a strategy's jobs, and lists of what is said."""

    strategy: Strategy
    evaluator: Evaluator
    workdir: Path
    goes_on: Callable[[int, Report], bool] = lambda number, report: True
    records: list[Record] = field(default_factory=list)
    reports: list[tuple[int, int]] = field(default_factory=list)  # (trial number, step)
    seeds: Sequence[int] = (0,)

    def ask(self) -> Any:
        return self.strategy.ask()

    def report(self, number: int, report: Report) -> bool:
        self.reports.append((number, report.step))
        return self.goes_on(number, report)

    def tell(self, record: Record) -> None:
        self.records.append(record)
        self.strategy.tell(record)

    def note_waiting(self, numbers: Collection[int]) -> None:
        self.waiting = set(numbers)


def built(
    name: Any,
    space: Any,
    objectives: Sequence[Objective],
    *,
    seed=0,
    constraints=(),
    shape: Shape = ToyEvaluator.shape,
    **options: Any,
) -> Strategy:
    """The strategy of that name, or around that sampler, for these objectives."""
    from masksearch.strategies.build import build_strategy  # workers need no Optuna

    facts = {"objectives": tuple(objectives), "shape": shape}
    judge = type("Judge", (ToyEvaluator,), facts)()
    return build_strategy(
        name, space, judge, seed=seed, run=Path(), options=options, constraints=constraints
    )
