"""Answers from a folder what any run has judged before: (mask, protocol, seed) is run once.

evaluator = Cached(MlmEvaluator("wikitext-2"), "~/.cache/judged")
ms.search(space, evaluator, run="runs/a", trials=40)
ms.search(space, evaluator, run="runs/b", trials=40, strategy="random")   # reuses what "a" ran
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

from masksearch.analysis.row_scores import ROWS
from masksearch.contracts import Evaluator, Objective, Report, Split
from masksearch.errors import SearchError
from masksearch.files import write_in_one_move, write_text_in_one_move
from masksearch.gates.unit_costs import WORK
from masksearch.masks.core import Mask
from masksearch.masks.measure import fingerprint
from masksearch.study.records import read_budgets


def inner(name: str) -> Any:
    """A property or method of a wrapper that is its inner evaluator's."""
    return property(attrgetter(f"evaluator.{name}"))


@dataclass(frozen=True)
class EvaluatorWrapper(Evaluator):
    """Base of evaluators that run another one, passing on its rows, data and models.

    Args:
        evaluator: Any evaluator.
    """

    evaluator: Evaluator

    shape, objectives, protocol, split = map(inner, ("shape", "objectives", "protocol", "split"))
    seedless, beyond_shape = inner("seedless"), inner("beyond_shape")
    meanings, measure_names = inner("meanings"), inner("measure_names")
    kv_head_count = inner("kv_head_count")
    weights_frozen, weight_lr = inner("weights_frozen"), inner("weight_lr")
    measures_of, data_hashes = inner("measures_of"), inner("data_hashes")
    provide_models, differentiable = inner("provide_models"), inner("differentiable")
    offers = inner("offers")

    def on(self, split: Split) -> Self:
        """The same around the inner evaluator on other rows."""
        return self.around(self.evaluator.on(split))

    def packed(self) -> Self:
        """The same around the packed inner evaluator."""
        return self.around(self.evaluator.packed())

    def around(self, inner: Evaluator) -> Self:
        """The same around another evaluator."""
        return self if inner is self.evaluator else replace(self, evaluator=inner)


@contextmanager
def closed_after(reports: Iterator[Report]) -> Iterator[Iterator[Report]]:
    """Stops a run, by closing its reports, where the wrapper that reads them is closed."""
    try:
        yield reports
    finally:
        close = getattr(reports, "close", None)
        if close is not None:
            close()


@dataclass(frozen=True)
class CountsWork(EvaluatorWrapper):
    """Wraps an evaluator: the work that a mask leaves is its second objective, in the place of
    sparsity, and so what budgets count."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The score and the work (worst: that of dense attention)."""
        return self.evaluator.objectives[0], Objective(WORK, "min", 1.0)

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """The inner evaluator's reports."""
        return self.evaluator(mask, seed=seed, workdir=workdir)


def read_limits(
    evaluator: Evaluator,
    budget: float | Sequence[float] | None,
    work: float | Sequence[float] | None,
) -> tuple[Evaluator, tuple[float, ...]]:
    """The evaluator, which counts work where that is limited, and the budgets.

    Args:
        evaluator: Judges masks.
        budget: As of `masksearch.search`.
        work: As there.

    Raises:
        ValueError: If both are given, or one is no share in (0, 1].
        SearchError: If the evaluator knows no work of masks.
    """
    if work is None:
        return evaluator, read_budgets(budget)
    if budget is not None:
        raise ValueError(f"give either a budget or work, got budget={budget} and work={work}")
    if WORK not in evaluator.measure_names:
        raise SearchError(
            "work is left out where a fine-tuned encoder's head reads some rows alone, as "
            f"[CLS]'s, and {type(evaluator).__name__} knows no such model here: give budget="
        )
    return CountsWork(evaluator), read_budgets(work)


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cached(EvaluatorWrapper):
    """Wraps an evaluator: keeps its finished runs in a folder, where other studies find them.

    A study answers equal masks from its own records already; this is for several studies, or a
    comparison after a search. A run is known by the fingerprint of its lowered mask, the
    evaluator's protocol and the seed: change anything that a result depends on, and it is run
    again. Reports are given again as they came, one by one, so that a scheduler sees the same
    curve, and so are the scores row by row (`rows.safetensors`). Runs that failed or were stopped
    are not kept. What else an evaluator leaves in its working folder (weights) is not there for an
    answered run.

    Args:
        evaluator: Any evaluator.
        folder: Where the reports lie, one JSON file a run; made where it is missing. Workers on
            other machines must see it.
    """

    folder: Path | str

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).expanduser().resolve())

    def path_of(self, mask: Mask, seed: int) -> Path:
        """The file of a run, there or not."""
        mask_key = mask.digest if self.beyond_shape else fingerprint(mask, self.shape)
        return Path(self.folder) / f"{self.protocol}-{mask_key}-{seed}.json"

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields the reports that are kept, or runs the inner evaluator and keeps its reports.

        Args:
            mask: Any mask that fits `shape`.
            seed: The inner evaluator's.
            workdir: The inner evaluator's.
        """
        path = self.path_of(mask, seed)
        kept = _read_reports(path)
        if kept is not None:
            _copy_rows(path.with_suffix(".safetensors"), workdir / ROWS)
            yield from kept
            return
        history: list[Report] = []
        with closed_after(self.evaluator(mask, seed=seed, workdir=workdir)) as reports:
            for report in reports:
                history.append(report)
                yield report
        if history and all(math.isfinite(value) for r in history for value in r.values.values()):
            self.keep(path, history, workdir / ROWS)

    def keep(self, path: Path, reports: list[Report], rows: Path) -> None:
        """Keeps a finished run; a folder that cannot be written to costs a warning."""
        text = json.dumps({"reports": [[report.step, dict(report.values)] for report in reports]})
        try:
            _copy_rows(rows, path.with_suffix(".safetensors"))
            write_text_in_one_move(path, text + "\n")
        except OSError as error:
            log.warning("cannot keep the result in %s: %s", path.parent, error)


def _copy_rows(source: Path, target: Path) -> None:
    """Copies the scores row by row, where there are any."""
    if source.is_file():
        with write_in_one_move(target) as beside:
            shutil.copyfile(source, beside)


def _read_reports(path: Path) -> list[Report] | None:
    """The reports of a file; None where there is none, or (with a warning) it is damaged."""
    if not path.is_file():
        return None
    try:
        return [
            Report(int(step), {str(name): float(value) for name, value in values.items()})
            for step, values in json.loads(path.read_text(encoding="utf-8"))["reports"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged (%s); the mask is run again", path, error)
        return None
