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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from masksearch.analysis.row_scores import ROWS
from masksearch.contracts import (
    CarriesData,
    CountsKvHeads,
    Evaluator,
    ExplainsValues,
    FreezesWeights,
    Half,
    IgnoresSeeds,
    MeasuresMasks,
    Objective,
    OffersGradients,
    ProvidesModels,
    RatesWeights,
    Report,
    Shape,
    SplitsRows,
)
from masksearch.files import write_in_one_move
from masksearch.masks.core import Mask
from masksearch.masks.measure import fingerprint

PASSED_ON: dict[Any, tuple[str, ...]] = {  # protocol -> what a wrapper offers as it is
    OffersGradients: ("differentiable",),
    FreezesWeights: ("weights_frozen",),
    RatesWeights: ("weight_lr",),
    IgnoresSeeds: ("seedless",),
    ProvidesModels: ("provide_models",),
    ExplainsValues: ("meanings",),
    MeasuresMasks: ("measure_names", "measures_of"),
    CountsKvHeads: ("kv_head_count",),
}


@dataclass(frozen=True)
class EvaluatorWrapper:
    """Base of evaluators that run another one.

    It offers gradients (`differentiable`), carries its data (`packed`) and splits its rows
    (`half`, `on`, `final`) exactly where the inner evaluator does.

    Args:
        evaluator: Any evaluator.
    """

    evaluator: Evaluator

    def __post_init__(self) -> None:
        # On the instance, and only then: isinstance(self, OffersGradients) stays truthful.
        for protocol, names in PASSED_ON.items():
            if isinstance(self.evaluator, protocol):
                for name in names:
                    object.__setattr__(self, name, getattr(self.evaluator, name))
        if isinstance(self.evaluator, CarriesData):
            object.__setattr__(self, "packed", self.pack_within)
        if isinstance(self.evaluator, SplitsRows):
            object.__setattr__(self, "half", self.evaluator.half)
            object.__setattr__(self, "on", self.around_half)
            object.__setattr__(self, "final", self.around_final)

    @property
    def shape(self) -> Shape:
        """The inner evaluator's."""
        return self.evaluator.shape

    def around_half(self, half: Half) -> Self:
        """The same around the inner evaluator on other rows; called `on` where that one splits
        them."""
        assert isinstance(self.evaluator, SplitsRows)
        inner = self.evaluator.on(half)
        return self if inner is self.evaluator else replace(self, evaluator=inner)

    def around_final(self) -> Self:
        """The same on rows that no search has seen; called `final`."""
        return self.around_half("final")

    def pack_within(self) -> Self:
        """The same around the packed inner evaluator; called `packed` where that one can be."""
        assert isinstance(self.evaluator, CarriesData)
        inner = self.evaluator.packed()
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


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cached(EvaluatorWrapper):
    """Keeps the reports of every finished run, for all studies that share the folder.

    A study answers equal masks from its own records already; this is for several studies, or a
    comparison after a search. A run is known by the fingerprint of its lowered mask, the
    evaluator's protocol and the seed: change anything that a result depends on, and it is run
    again. Reports are given again as they came, one by one, so that a scheduler sees the same
    curve, and so are the scores row by row (`rows.safetensors`). Runs that failed or were stopped
    are not kept. What else an evaluator leaves in its working folder (weights) is not there for an
    answered run.

    It offers gradients (`differentiable`), and carries its data (`packed`), exactly where the
    inner evaluator does.

    Args:
        evaluator: Any evaluator.
        folder: Where the reports lie, one JSON file a run; made where it is missing. Workers on
            other machines must see it.
    """

    folder: Path | str

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "folder", Path(self.folder).expanduser().resolve())

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The inner evaluator's."""
        return self.evaluator.objectives

    @property
    def protocol(self) -> str:
        """The inner evaluator's: an answer is worth what a run is worth."""
        return self.evaluator.protocol

    @property
    def beyond_shape(self) -> bool:
        """The inner evaluator's."""
        return bool(getattr(self.evaluator, "beyond_shape", False))

    def place(self, mask: Mask, seed: int) -> Path:
        """The file of a run, there or not."""
        own = mask.digest if self.beyond_shape else fingerprint(mask, self.shape)
        return Path(self.folder) / f"{self.protocol}-{own}-{seed}.json"

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields the reports that are kept, or runs the inner evaluator and keeps its reports.

        Args:
            mask: Any mask that fits `shape`.
            seed: The inner evaluator's.
            workdir: The inner evaluator's.
        """
        path = self.place(mask, seed)
        kept = read_reports(path)
        if kept is not None:
            copy_rows(path.with_suffix(".safetensors"), workdir / ROWS)
            yield from kept
            return
        given: list[Report] = []
        with closed_after(self.evaluator(mask, seed=seed, workdir=workdir)) as reports:
            for report in reports:
                given.append(report)
                yield report
        if given and all(math.isfinite(value) for r in given for value in r.values.values()):
            self.keep(path, given, workdir / ROWS)

    def keep(self, path: Path, reports: list[Report], rows: Path) -> None:
        """Keeps a finished run; a folder that cannot be written to costs a warning."""
        text = json.dumps({"reports": [[report.step, dict(report.values)] for report in reports]})
        try:
            copy_rows(rows, path.with_suffix(".safetensors"))
            with write_in_one_move(path) as beside:
                beside.write_text(text + "\n", "utf-8")
        except OSError as error:
            log.warning("cannot keep the result in %s: %s", path.parent, error)


def copy_rows(source: Path, target: Path) -> None:
    """Copies the scores row by row, where there are any."""
    if source.is_file():
        with write_in_one_move(target) as beside:
            shutil.copyfile(source, beside)


def read_reports(path: Path) -> list[Report] | None:
    """The reports of a file; None where there is none, or (with a warning) it is damaged."""
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return [
            Report(int(step), {str(name): float(value) for name, value in values.items()})
            for step, values in stored["reports"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged (%s); the mask is run again", path, error)
        return None
