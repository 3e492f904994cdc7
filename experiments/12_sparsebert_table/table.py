"""SparseBERT's printed table beside runs: its scores, ours, and how far the two orders agree.

    python experiments/12_sparsebert_table/table.py RUN... [--out FOLDER]

prints, for each of the 14 masks, the printed and our scores with the difference in standard errors
of ours, then Kendall's tau-b of the two orders and what must be said beside the figures. `--out`
also writes them as CSV and LaTeX. The printed figures are in printed.json, with their source.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from masksearch.analysis.pareto import sparsity_of
from masksearch.analysis.runs import read_rows, rows_file
from masksearch.analysis.stats import ErrorPart, Interval, RowTables, seed_error
from masksearch.contracts import Record
from masksearch.errors import SearchError
from masksearch.masks import FAMILIES
from masksearch.masks.measure import fingerprint
from masksearch.report.collect import StoredStudy, studies_in
from masksearch.strategies.dam import describe_cut, is_published_dam
from masksearch.tasks.glue.tasks import LEFT_OUT, column_value, find_task

AVERAGE, WITHOUT = "average", f"without {LEFT_OUT}"
DRAWS = 2000  # of the means' errors, for the intervals of tau
SAID = ("weights", "corpus", "size", "adapt", "half", "rows", "dev_rows", "epochs")
SAME = 1e-3  # rows whose mean is farther from a score than this are of another metric

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class PrintedRow:
    """A mask of the table.

    Args:
        name: As printed; DAM's with lambda.
        sparsity: 1 - kept cells / n^2, in percent.
        scores: Column -> score, in percent.
        average: Of all columns, as printed.
        family: Name in `masks.FAMILIES` of a hand-designed mask; empty for others.
    """

    name: str
    sparsity: float
    scores: Mapping[str, float]
    average: float
    family: str = ""

    def mean(self, columns: Iterable[str]) -> float:
        """Mean of the printed scores of these columns."""
        chosen = [self.scores[column] for column in columns]
        return math.fsum(chosen) / len(chosen)


PRINTED = json.loads((Path(__file__).parent / "printed.json").read_text(encoding="utf-8"))
COLUMNS = tuple(PRINTED["columns"])  # names of the tasks' development sets
ROWS = tuple(
    PrintedRow(scores=dict(zip(COLUMNS, scores, strict=True)), **row)
    for row in PRINTED["rows"]
    for scores in [row.pop("scores")]
)


def row_named(name: object) -> PrintedRow | None:
    """The row of a mask's name as people write it; None where there is none.

    >>> row_named("log_sparse").name, row_named("dam_u(0.0001)").name
    ('LogSparse', 'DAM_u 1e-4')
    """
    return {plain_name(n): row for row in ROWS for n in (row.name, row.family) if n}.get(
        plain_name(name)
    )


def plain_name(name: object) -> str:
    """A name without what people write differently."""
    numbers = re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", lambda m: f"{float(m[0]):f}", str(name).lower())
    return "".join(letter for letter in numbers if letter.isalnum())


@dataclass
class OurScores:
    """What runs say of one mask of the table; scores and errors in percent.

    Args:
        name: Of the mask in its run.
        expression: The mask.
        exact: Whether it is the table's mask, bit for bit; False where the name alone says so.
        sparsity: Of the n x n cells, in percent, as the table counts it.
        effective: Of the non-padding query-key pairs, in percent.
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
        parts = RowTables(
            {c: found[None] for c, found in tables.items()}, dict.fromkeys(tables, weight)
        ).errors()
        if len(seeds) > 1:
            tick = max((100 * weight / each.shape[1] for each in tables.values()), default=0.0)
            parts.append(seed_error(self.scores(columns).tolist(), tick))
        elif set(columns) <= self.fine_tuning.keys():
            own = math.fsum((weight * self.fine_tuning[column]) ** 2 for column in columns)
            parts.append(ErrorPart(own, 1))
        return math.sqrt(math.fsum(part.variance for part in parts)) or math.nan


@dataclass(frozen=True)
class Comparison:
    """The table and what runs say of its masks, by BERT's convention, in percent.

    Args:
        ours: Name of a mask of the table -> our scores, of those that the runs hold.
        settings: How ours were made, in words.
    """

    ours: Mapping[str, OurScores]
    settings: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> list[str]:
        """The table's columns that any of our masks has."""
        return [c for c in COLUMNS if any(c in own.values for own in self.ours.values())]

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
            for row in ROWS
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
        rows: list[dict[str, object]] = []
        for row in ROWS:
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
        lost = [row.name for row in ROWS if row.name not in self.ours]
        out = [column for column in COLUMNS if column not in self.common]
        lines = [
            f"published: {PRINTED['source']}",
            f"published: {PRINTED['about']}",
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
        for row in ROWS:
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
        each = [
            f"{name} {self.agreement(columns).text(decimals=2)}"
            for name, columns in self.quantities.items()
        ]
        return [f"tau-b of the published and our order, with 95% interval: {', '.join(each)}"]


def tau_of_means(theirs: Rows, ours: Rows, noise: Rows, level: float = 0.95) -> Interval:
    """tau-b of a fixed order and one of measured means, with an interval over their error.

    Noise on top of noise makes orders agree less than they do, so that an interval of percentiles
    lies too low (where the true orders are equal it hardly ever holds 1). The interval given here
    is the smallest that holds both the percentiles and their mirror image at tau. In simulations
    with 14 masks and 3 or 5 seeds it held the tau of the true means in 92% to 100% of cases; in
    81% to 85% where the orders are equal and seeds scatter more than masks do.

    Args:
        theirs: float `[masks]`, known without error.
        ours: float `[masks]`, means.
        noise: float `[draws, masks]`: errors that the means may have.
        level: Coverage, in (0, 1).

    >>> tau_of_means(np.arange(4.0), np.arange(4.0), np.zeros((10, 4))).low
    1.0
    """
    value = float(stats.kendalltau(theirs, ours).statistic)
    one, two = np.triu_indices(len(theirs), 1)
    drawn = ours + noise
    printed, measured = np.sign(theirs[one] - theirs[two]), np.sign(drawn[:, one] - drawn[:, two])
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = measured @ printed / np.sqrt(np.abs(measured).sum(1) * np.abs(printed).sum())
    draws = draws[np.isfinite(draws)]
    if math.isnan(value) or len(draws) == 0:
        return Interval(value)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
    low, high = min(low, 2 * value - high), max(high, 2 * value - low)
    return Interval(value, max(-1.0, low), min(1.0, high))


def compare_published(runs: Iterable[Path | str] | Path | str) -> Comparison:
    """Sets the printed table beside the scores of runs.

    A mask of a run stands for one of the table's if it has the same bits, or the same name
    ("LogSparse" or "log_sparse", "DAM_u 1e-4" or "dam_u(0.0001)").

    Args:
        runs: Folders of searches or comparisons. They may hold different masks, seeds or tasks.

    Raises:
        SearchError: If the runs hold no mask or no task of the table, or scores of one task
            under two protocols.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    ours: dict[str, OurScores] = {}
    protocols: dict[str, dict[str, Path]] = {}
    settings: dict[str, None] = {}
    for study in (study for folder in folders for study in studies_in(folder)):
        bits = {
            row.name: fingerprint(FAMILIES[row.family], study.shape) for row in ROWS if row.family
        }
        used = False
        for record in chosen_records(study, bits):
            row, exact = record_row(record, bits)
            assert row is not None
            own = ours.setdefault(row.name, describe_mask(record, exact))
            columns = [column for column in COLUMNS if column in record.values]
            for column in columns:
                protocols.setdefault(column, {}).setdefault(record.protocol, study.run)
                add_scores(own, record, column, study)
            used = used or bool(columns)
        if used:
            settings[describe_settings(study)] = None
    if not protocols:
        held = ", ".join(row.name for row in ROWS)
        raise SearchError(
            f"{', '.join(map(str, folders))}: no mask of the table has a score on one "
            f"of {', '.join(COLUMNS)} there; it is about {held}: judge them with "
            "masksearch compare --glue FOLDER"
        )
    for column, each in protocols.items():
        if len(each) > 1:
            raise SearchError(
                f"{column} was judged by several protocols, in "
                f"{', '.join(map(str, each.values()))}: such scores do not compare; give runs of "
                "one"
            )
    return Comparison(ours, tuple(settings))


def record_row(record: Record, bits: Mapping[str, str]) -> tuple[PrintedRow | None, bool]:
    """The mask of the table that a record is of, and whether its bits say so.

    Args:
        record: Of a run.
        bits: Name of a hand-designed mask of the table -> its fingerprint.
    """
    named = row_named(record.name)
    alike = [
        row for row in ROWS if record.fingerprint and bits.get(row.name) == record.fingerprint
    ]
    if named in alike or not alike:
        return named, named in alike
    return alike[0], True


def chosen_records(study: StoredStudy, bits: Mapping[str, str]) -> list[Record]:
    """The scored records of masks of the table; of several masks for one row, that with its bits,
    or else the last one."""
    found: dict[str, list[tuple[bool, Record]]] = {}
    for record in study.records:
        row, exact = record_row(record, bits)
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
        name=record.name or f"trial {record.number}",
        expression=str(record.mask),
        exact=exact,
        sparsity=100 * record.measures.get("sparsity", math.nan),
        effective=100 * sparsity_of(record),
        cut=describe_cut(record) if is_published_dam(record) else "",
    )


def add_scores(own: OurScores, record: Record, column: str, study: StoredStudy) -> None:
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


def describe_settings(study: StoredStudy) -> str:
    """How a run was made, as far as it says it."""
    own = study.settings
    given = {**own, "half": own.get("split") or own.get("half") or study.facts.get("half")}
    known = [f"{name} {given[name]}" for name in SAID if given.get(name) not in (None, "", False)]
    return f"{study.run}: {', '.join(known) or 'settings not recorded'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of comparisons or searches")
    parser.add_argument("--out", type=Path, help="also write table.csv and table.tex there")
    given = parser.parse_args()
    beside = compare_published(given.runs)
    frame = beside.frame()
    print(frame.round(2).set_index("mask").T.to_string())
    print("\n".join([*beside.orders(), *beside.notes()]))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(given.out / "table.csv", index=False)
        shown = frame.drop(columns=["name", "expression"]).style.format(
            precision=1, escape="latex"
        )
        shown.hide(axis="index").to_latex(given.out / "table.tex", hrules=True)


if __name__ == "__main__":
    main()
