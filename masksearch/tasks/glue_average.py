"""The GLUE average of SparseBERT's table: nine columns, or an honest partial mean.

found = glue_score(last.values)
found.nine, found.without_rte                # None as long as a column is missing
found.partial, found.columns, found.missing  # what there is
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from masksearch.errors import unknown_name
from masksearch.tasks.glue_table import TASKS, GlueTask

# SparseBERT's columns, in its order; WNLI is not among them.
COLUMNS = ("MNLI", "MNLI-mm", "QQP", "QNLI", "SST-2", "CoLA", "STS-B", "MRPC", "RTE")
LEFT_OUT = "RTE"  # 277 development rows: its score swings most
Convention = Literal["primary", "bert", "leaderboard"]


@dataclass(frozen=True)
class GlueScore:
    """A GLUE average, and what it is an average of; in the unit of the values.

    Args:
        values: Value of each column that is in, in the order of `COLUMNS`.
        convention: Which metric stands for a task with two official ones.
    """

    values: Mapping[str, float]
    convention: Convention = "primary"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are in."""
        return tuple(self.values)

    @property
    def missing(self) -> tuple[str, ...]:
        """The columns that are not."""
        return tuple(name for name in COLUMNS if name not in self.values)

    @property
    def nine(self) -> float | None:
        """Mean of all nine columns; None where one is missing."""
        return None if self.missing else mean(self.values)

    @property
    def without_rte(self) -> float | None:
        """Mean of the eight columns other than RTE; None where one of those is missing."""
        if set(self.missing) - {LEFT_OUT}:
            return None
        return mean({name: value for name, value in self.values.items() if name != LEFT_OUT})

    @property
    def partial(self) -> float:
        """Mean of the columns that are in. It compares only with a mean of the same columns."""
        return mean(self.values)

    def __str__(self) -> str:
        if self.nine is not None:
            return f"GLUE (9 columns): {self.nine:.4g}, without RTE: {self.without_rte:.4g}"
        return (
            f"mean of {len(self.values)} of 9 GLUE columns ({', '.join(self.values)}): "
            f"{self.partial:.4g}; missing: {', '.join(self.missing)}"
        )


def glue_score(values: Mapping[str, float], convention: Convention = "primary") -> GlueScore:
    """The average that SparseBERT's table prints: nine columns, MNLI-m and MNLI-mm apart.

    Which metric the table uses for MRPC, QQP and STS-B is not said beside it; its figures (QQP
    at 87, MRPC at 88) are those of BERT's convention. So a comparison with the table takes
    `"bert"`; a comparison of masks can take any, as long as it is one.

    Args:
        values: What an evaluator reports, or anything like it: a column's primary metric under
            its name (`"MNLI"` is the matched set), and for the other conventions each metric
            under `"<column>/<metric>"` (see `reported`). Other names are ignored, WNLI and the
            planted tasks among them. Fractions or percent, not both.
        convention: `"primary"`: the value under the column's own name: accuracy for MRPC and
            QQP, Pearson for STS-B, Matthews for CoLA. `"bert"`: F1 for MRPC and QQP, Spearman
            for STS-B, the primary one for the others. `"leaderboard"`: the mean of both metrics
            for those three, as the GLUE leaderboard has it.

    Returns:
        The average with the columns that are in; see `GlueScore`.

    Raises:
        ValueError: If no column is there, a value is not finite, or the convention needs a
            metric that is missing.

    Reference: SparseBERT, arXiv 2102.12871, table of GLUE results; BERT, arXiv 1810.04805,
        Table 1; GLUE, arXiv 1804.07461, Section 4.

    >>> found = glue_score({"CoLA": 0.5, "SST-2": 0.9, "WNLI": 0.6})
    >>> found.nine, found.partial, found.columns
    (None, 0.7, ('SST-2', 'CoLA'))
    """
    if convention not in get_args(Convention):
        raise unknown_name("GLUE convention", convention, get_args(Convention))
    found = {
        column: column_value(values, column, convention) for column in COLUMNS if column in values
    }
    if not found:
        raise ValueError(
            f"no GLUE column in {', '.join(values) or 'an empty mapping'}; the average is one of "
            f"{', '.join(COLUMNS)}"
        )
    for column, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"{column} is {value}; leave it out, and the mean says so")
    return GlueScore(found, convention)


def reported(column: str, scores: Mapping[str, float]) -> dict[str, float]:
    """A column's scores under the names that `glue_score` reads.

    Args:
        column: `"MRPC"`, say.
        scores: What `score` returns, the primary metric first.

    >>> reported("MRPC", {"accuracy": 0.8, "f1": 0.9})
    {'MRPC': 0.8, 'MRPC/accuracy': 0.8, 'MRPC/f1': 0.9}
    """
    primary = next(iter(scores.values()))
    return {column: primary, **{f"{column}/{metric}": scores[metric] for metric in scores}}


def column_value(values: Mapping[str, float], column: str, convention: Convention) -> float:
    """A column's value under a convention."""
    task = task_of(column)
    if convention == "primary" or task.bert is None:
        return values[column]
    wanted = (task.bert,) if convention == "bert" else task.metrics
    names = [f"{column}/{metric}" for metric in wanted]
    lacking = [name for name in names if name not in values]
    if lacking:
        raise ValueError(
            f"the {convention!r} average needs {', '.join(lacking)}; report them (`reported`) or "
            "take the convention 'primary'"
        )
    return math.fsum(values[name] for name in names) / len(names)


def task_of(column: str) -> GlueTask:
    """The task that a column belongs to."""
    return next(task for task in TASKS.values() if column in task.dev_files)


def mean(values: Mapping[str, float]) -> float:
    """Mean of the values."""
    return math.fsum(values.values()) / len(values)
