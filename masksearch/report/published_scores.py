"""A published table beside runs: its scores, ours, and how far the two orders agree.

beside = compare_published(["runs/table"])
beside.frame()                  # pandas; beside.latex(), beside.agreement(beside.common)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from masksearch.analysis.compare import read_rows, rows_file
from masksearch.analysis.crossed import ErrorPart, RowTables, seed_error
from masksearch.analysis.pareto import sparsity_of
from masksearch.analysis.published import (
    PublishedRow,
    PublishedTable,
    describe_cut,
    read_published,
)
from masksearch.analysis.rank_stats import Interval, tau_of_means
from masksearch.contracts import Record
from masksearch.errors import SearchError
from masksearch.masks import FAMILIES
from masksearch.masks.lower import lower
from masksearch.masks.measure import table_fingerprint
from masksearch.report.collect import Found, studies_in
from masksearch.report.paper import latex_table
from masksearch.report.tables import DASH, TextTable, text_table
from masksearch.tasks.glue.metrics import LEFT_OUT, column_value, find_task

if TYPE_CHECKING:
    import pandas as pd

AVERAGE, WITHOUT = "average", f"without {LEFT_OUT}"
ACROSS = 5  # columns of a terminal's table
DRAWS = 2000  # of the means' errors, for the intervals of tau
SAID = ("weights", "corpus", "size", "adapt", "half", "rows", "dev_rows", "epochs")
SAME = 1e-3  # rows whose mean is farther from a score than this are of another metric

Rows = NDArray[np.float64]


@dataclass
class OurScores:
    """What runs say of one mask of a published table; scores and errors in percent.

    Args:
        name: Of the mask in its run.
        expression: The mask.
        exact: Whether it is the table's mask, bit for bit; False where the name alone says so.
        sparsity: Of the n x n cells, in percent, as the table counts it.
        effective: Of the pairs that real tokens form, in percent.
        values: Column -> seed -> score.
        by_row: Column -> seed -> scores row by row, where the run has kept them.
        fine_tuning: Column -> standard error of a seed's mean over its fine-tuning runs.
        cut: A sentence on the gates that it was cut from, where the run knows them.
    """

    name: str
    expression: str
    exact: bool
    sparsity: float
    effective: float
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    by_row: dict[str, dict[int, Rows]] = field(default_factory=dict)
    fine_tuning: dict[str, float] = field(default_factory=dict)
    cut: str = ""

    def seeds(self, columns: Iterable[str]) -> list[int]:
        """Seeds with a score in every one of these columns."""
        return sorted(set.intersection(*(set(self.values.get(c, {})) for c in columns)))

    def scores(self, columns: Sequence[str], seeds: Iterable[int] | None = None) -> Rows:
        """Mean over the columns, `[seeds]`."""
        chosen = self.seeds(columns) if seeds is None else seeds
        return np.array([np.mean([self.values[c][seed] for c in columns]) for seed in chosen])

    def rows(self, column: str, seeds: Sequence[int]) -> Rows | None:
        """Scores row by row, `[seeds, rows]`; None where a seed has none."""
        kept = self.by_row.get(column, {})
        found = [kept[seed] for seed in seeds if seed in kept]
        alike = found and len(found) == len(seeds) and len({len(each) for each in found}) == 1
        return np.stack(found) if alike else None

    def error(self, columns: Sequence[str]) -> float:
        """Standard error of the mean over seeds, and over rows where they are known; NaN where
        nothing tells it."""
        seeds, weight = self.seeds(columns), 1 / len(columns)
        if not seeds:
            return math.nan
        tables = {c: found for c in columns if (found := self.rows(c, seeds)) is not None}
        parts = RowTables(tables, dict.fromkeys(tables, weight)).errors()
        if len(seeds) > 1:
            tick = max((100 * weight / each.shape[1] for each in tables.values()), default=0.0)
            parts.append(seed_error(self.scores(columns).tolist(), tick))
        elif set(columns) <= self.fine_tuning.keys():
            own = math.fsum((weight * self.fine_tuning[column]) ** 2 for column in columns)
            parts.append(ErrorPart(own, 1))
        return math.sqrt(math.fsum(part.variance for part in parts)) or math.nan


@dataclass(frozen=True)
class PublishedComparison:
    """A published table and what runs say of its masks, by BERT's convention, in percent.

    Args:
        table: What was printed.
        ours: Name of a mask of the table -> our scores, of those that the runs hold.
        settings: How ours were made, in words.
    """

    table: PublishedTable
    ours: Mapping[str, OurScores]
    settings: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> list[str]:
        """The table's columns that any of our masks has."""
        return [
            c for c in self.table.columns if any(c in own.values for own in self.ours.values())
        ]

    @cached_property
    def common(self) -> list[str]:
        """Those that all of our masks have: the averages are over these."""
        return [c for c in self.columns if all(own.seeds([c]) for own in self.ours.values())]

    @cached_property
    def quantities(self) -> dict[str, list[str]]:
        """What is set side by side: averages with and without RTE, then columns -> their columns.

        Without RTE among the common columns there is one average.
        """
        rest = [column for column in self.common if column != LEFT_OUT]
        averages = {AVERAGE: self.common, WITHOUT: rest if rest != self.common else []}
        found = {name: columns for name, columns in averages.items() if columns}
        return found | {column: [column] for column in self.columns}

    def agreement(self, columns: Sequence[str]) -> Interval:
        """Kendall's tau-b of the published and our order of the masks by these columns' mean.

        The interval is over our seeds (where two or more are common to all masks) and rows
        (where they are known), not over masks, and not over the published scores, whose error
        is not known. Errors are drawn from normal distributions; those of few seeds are wider
        by Student's t.
        """
        found = [
            (row, own)
            for row in self.table.rows
            if (own := self.ours.get(row.name)) is not None and own.seeds(columns)
        ]
        if len(found) < 2:
            return Interval(math.nan)
        random = np.random.default_rng(0)
        theirs = np.array([row.mean(columns) for row, _ in found])
        means = np.array([own.scores(columns).mean() for _, own in found])
        noise, known = np.zeros((DRAWS, len(found))), False
        shared = sorted(set.intersection(*(set(own.seeds(columns)) for _, own in found)))
        if (n := len(shared)) > 1:
            known, table = True, np.stack([own.scores(columns, shared) for _, own in found])
            wider = stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975)
            off = (table - table.mean(1, keepdims=True)) * wider / math.sqrt(n * (n - 1))
            noise += random.normal(size=(DRAWS, n)) @ off.T
        for column in columns:
            rows = [own.rows(column, own.seeds(columns)) for _, own in found]
            means_of_rows = [each.mean(0) for each in rows if each is not None]
            if len(means_of_rows) < len(found) or len({*map(len, means_of_rows)}) > 1:
                continue
            known, table = True, np.stack(means_of_rows) / len(columns)
            error = np.atleast_2d(np.cov(table)) / table.shape[1]
            noise += random.multivariate_normal(
                np.zeros(len(found)), error, DRAWS, check_valid="ignore", method="eigh"
            )
        if not known:
            return Interval(tau_of_means(theirs, means, noise[:1]).value)
        return tau_of_means(theirs, means, noise)

    def frame(self) -> pd.DataFrame:
        """One row a mask of the table, in its order, in percent; NaN for what runs lack.

        Columns: mask, name (in our run), expression, n_seeds, sparsity (published), our sparsity
        (of the table), our effective sparsity, printed average; then of each quantity (average,
        without RTE, each task) `Q published`, `Q ours` (mean over seeds), `Q error` (standard
        error of ours) and `Q difference` (ours - published, in standard errors of ours).
        """
        import pandas as pd

        rows: list[dict[str, object]] = []
        for row in self.table.rows:
            own = self.ours.get(row.name)
            line: dict[str, object] = {
                "mask": row.name,
                "name": "" if own is None else own.name,
                "expression": "" if own is None else own.expression,
                "n_seeds": 0 if own is None else len(own.seeds(self.common or self.columns)),
                "sparsity": row.sparsity,
                "our sparsity": math.nan if own is None else own.sparsity,
                "our effective sparsity": math.nan if own is None else own.effective,
                "printed average": row.average,
            }
            for name, columns in self.quantities.items():
                theirs, mean, error = row.mean(columns), math.nan, math.nan
                if own is not None and own.seeds(columns):
                    mean, error = float(own.scores(columns).mean()), own.error(columns)
                line |= {f"{name} published": theirs, f"{name} ours": mean, f"{name} error": error}
                line[f"{name} difference"] = (mean - theirs) / error
            rows.append(line)
        return pd.DataFrame(rows)

    def notes(self) -> list[str]:
        """What must be said beside the figures: source, settings, what is missing."""
        lost = [row.name for row in self.table.rows if row.name not in self.ours]
        out = [column for column in self.table.columns if column not in self.common]
        lines = [
            f"published: {self.table.source}",
            f"published: {self.table.about}",
            *(f"ours: {line}" for line in self.settings),
            "differences: ours - published, in standard errors of ours (over seeds, and rows "
            "where they are known); the published scores' own error is not known",
            "published averages: means of the printed columns; up to .1 off those printed",
        ]
        if out:
            lines.append(
                f"averages, the published ones too, are over the {len(self.common)} columns that "
                f"all our masks have ({', '.join(self.common)}), without {', '.join(out)}"
            )
        if lost:
            lines.append(f"no run holds {', '.join(lost)}")
        for row in self.table.rows:
            own = self.ours.get(row.name)
            if own is not None and row.family and not own.exact:
                lines.append(
                    f"{row.name}: by its name; ours is {own.expression}, not "
                    f"{FAMILIES[row.family]}"
                )
            if own is not None and own.cut:
                lines.append(own.cut)
        return lines

    def orders(self) -> list[str]:
        """Kendall's tau-b of the published and our order of the masks, by each quantity."""
        each = [f"{name} {self.agreement(columns)}" for name, columns in self.quantities.items()]
        return [f"tau-b of the published and our order, with 95% interval: {', '.join(each)}"]

    def tables(self) -> list[TextTable]:
        """The averages, then the columns, for a terminal."""
        frame = self.frame().to_dict("records")
        averages = [name for name in (AVERAGE, WITHOUT) if name in self.quantities]
        head = ["mask", "sparsity", "ours", "effective", "seeds"]
        head += [title for name in averages for title in (name, "ours", "error", "difference")]
        sparsities = ("sparsity", "our sparsity", "our effective sparsity")
        rows = [
            [
                str(row["mask"]),
                *(digits(row[name]) for name in sparsities),
                str(row["n_seeds"] or "missing"),
                *(text for name in averages for text in four(row, name)),
            ]
            for row in frame
        ]
        found = [text_table(head, rows, text=("mask",))]
        for start in range(0, len(self.columns), ACROSS):
            several = self.columns[start : start + ACROSS]
            head = ["mask", *(t for name in several for t in (name, "ours", "difference"))]
            rows = [
                [str(row["mask"]), *(text for name in several for text in three(row, name))]
                for row in frame
            ]
            found.append(text_table(head, rows, text=("mask",)))
        return found

    def latex(self) -> str:
        """The table for print: our score, the published one in brackets; averages with their
        difference in standard errors."""
        averages = [name for name in (AVERAGE, WITHOUT) if name in self.quantities]
        head = ["mask", "sparsity (%)", *self.columns]
        head += [each for name in averages for each in (name, "diff.")]
        rows = []
        for row in self.frame().to_dict("records"):
            cells = [str(row["mask"]), digits(row["sparsity"])]
            cells += [bracketed(row, column) for column in self.columns]
            for name in averages:
                cells += [bracketed(row, name), digits(row[f"{name} difference"], signed=True)]
            rows.append(cells)
        taus = {name: str(self.agreement(of)) for name, of in self.quantities.items()}
        last = [taus[column] for column in self.columns]
        last += [text for name in averages for text in (taus[name], "")]
        rows.append(["Kendall's tau-b", "", *last])
        caption = " ".join(f"{line[:1].upper()}{line[1:]}." for line in self.notes())
        return latex_table(text_table(head, rows, text=("mask",)), f"Ours (published). {caption}")


def compare_published(
    runs: Iterable[Path | str] | Path | str, table: str = "sparsebert"
) -> PublishedComparison:
    """Sets a published table beside the scores of runs.

    A mask of a run stands for one of the table's if it has the same bits, or the same name
    ("LogSparse" or "log_sparse", "DAM_u 1e-4" or "dam_u(0.0001)").

    Args:
        runs: Folders of searches or comparisons. They may hold different masks, seeds or tasks.
        table: Name of the table; `"sparsebert"` is the only one.

    Raises:
        SearchError: If the runs hold no mask or no task of the table, or scores of one task
            under two protocols.
        UnknownNameError: For an unknown table.
    """
    published = read_published(table)
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    ours: dict[str, OurScores] = {}
    protocols: dict[str, dict[str, Path]] = {}
    settings: dict[str, None] = {}
    for study in (study for folder in folders for study in studies_in(folder)):
        bits = {
            row.name: table_fingerprint(lower(FAMILIES[row.family], study.shape))
            for row in published.rows
            if row.family
        }
        used = False
        for record in chosen_records(study, published, bits):
            row, exact = record_row(record, published, bits)
            assert row is not None
            own = ours.setdefault(row.name, describe_mask(record, exact))
            columns = [column for column in published.columns if column in record.values]
            for column in columns:
                protocols.setdefault(column, {}).setdefault(record.protocol, study.run)
                add_scores(own, record, column, study)
            used = used or bool(columns)
        if used:
            settings[describe_settings(study)] = None
    if not protocols:
        held = ", ".join(row.name for row in published.rows)
        raise SearchError(
            f"{', '.join(map(str, folders))}: no mask of the table {table!r} has a score on one "
            f"of {', '.join(published.columns)} there; it is about {held}: judge them with "
            "masksearch compare --glue FOLDER"
        )
    for column, each in protocols.items():
        if len(each) > 1:
            raise SearchError(
                f"{column} was judged by several protocols, in "
                f"{', '.join(map(str, each.values()))}: such scores do not compare; give runs of "
                "one"
            )
    return PublishedComparison(published, ours, tuple(settings))


def record_row(
    record: Record, table: PublishedTable, bits: Mapping[str, str]
) -> tuple[PublishedRow | None, bool]:
    """The mask of the table that a record is of, and whether its bits say so.

    Args:
        record: Of a run.
        table: The published one.
        bits: Name of a hand-designed mask of the table -> its fingerprint.
    """
    named = table.named(record.params.get("mask", ""))
    alike = [
        row
        for row in table.rows
        if record.fingerprint and bits.get(row.name) == record.fingerprint
    ]
    if named in alike or not alike:
        return named, named in alike
    return alike[0], True


def chosen_records(study: Found, table: PublishedTable, bits: Mapping[str, str]) -> list[Record]:
    """The scored records of masks of the table; of several masks for one row, that with its bits,
    or else the last one."""
    found: dict[str, list[tuple[bool, Record]]] = {}
    for record in study.records:
        row, exact = record_row(record, table, bits)
        if row is not None and record.scored:
            found.setdefault(row.name, []).append((exact, record))
    chosen = []
    for each in found.values():
        best = max(enumerate(each), key=lambda item: (item[1][0], item[0]))[1][1].fingerprint
        chosen += [record for _, record in each if record.fingerprint == best]
    return chosen


def describe_mask(record: Record, exact: bool) -> OurScores:
    """Our mask without its scores."""
    return OurScores(
        name=str(record.params.get("mask", "") or f"trial {record.number}"),
        expression=str(record.mask),
        exact=exact,
        sparsity=100 * record.measures.get("sparsity", math.nan),
        effective=100 * sparsity_of(record),
        cut=describe_cut(record.params) if "reached" in record.params else "",
    )


def add_scores(own: OurScores, record: Record, column: str, study: Found) -> None:
    """Adds a record's score of one column, its rows, and the spread of its fine-tuning runs."""
    task = find_task(column)
    value = column_value(record.values, column, task, "bert")
    if not math.isfinite(value):
        return
    own.values.setdefault(column, {})[record.seed] = 100 * value
    metric = column if task.bert_metric is None else f"{column}/{task.bert_metric}"
    number = int(study.settings.get("finetune_seeds") or 1)
    if (spread := record.values.get(f"{metric}/std")) is not None and number > 1:
        own.fine_tuning[column] = 100 * spread / math.sqrt(number)
    path = rows_file(study.run, record)
    kept = path and read_rows(path, record.value(study.objectives[0].name))
    rows = kept.scores.get(column) if kept else None
    if rows is not None and math.isclose(float(rows.mean()), value, abs_tol=SAME):
        own.by_row.setdefault(column, {})[record.seed] = 100 * rows.astype(np.float64)


def describe_settings(study: Found) -> str:
    """How a run was made, as far as it says it."""
    given = {**study.settings, "half": study.settings.get("half") or study.facts.get("half")}
    known = [f"{name} {given[name]}" for name in SAID if given.get(name) not in (None, "", False)]
    return f"{study.run}: {', '.join(known) or 'settings not recorded'}"


# -- cells -------------------------------------------------------------------------------------
def digits(value: float, signed: bool = False) -> str:
    """A figure with one decimal; a dash for NaN."""
    return DASH if math.isnan(value) else f"{value:+.1f}" if signed else f"{value:.1f}"


def four(row: Mapping[Any, Any], name: str) -> list[str]:
    """Published, ours, its error, and the difference."""
    theirs, mean = row[f"{name} published"], row[f"{name} ours"]
    error, difference = row[f"{name} error"], row[f"{name} difference"]
    shown = DASH if math.isnan(error) else f"{error:.2f}"
    return [digits(theirs), digits(mean), shown, digits(difference, signed=True)]


def three(row: Mapping[Any, Any], name: str) -> list[str]:
    """Published, ours, and the difference."""
    theirs, mean, _, difference = four(row, name)
    return [theirs, mean, difference]


def bracketed(row: Mapping[Any, Any], name: str) -> str:
    """Ours (published)."""
    return f"{digits(row[f'{name} ours'])} ({digits(row[f'{name} published'])})"
