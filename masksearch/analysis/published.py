"""Tables of scores that papers have printed; they are files in this folder.

table = read_published("sparsebert")
table.row("DAM_s 1e-4").mean(table.columns)     # 80.9 is printed
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from masksearch.errors import unknown_name

TABLES = ("sparsebert",)


@dataclass(frozen=True)
class PublishedRow:
    """A mask of a published table.

    Args:
        name: As printed; of several runs of one method with the setting that differs.
        sparsity: 1 - kept cells / n^2, in percent.
        scores: Column -> score, in percent.
        average: Of all columns, as printed.
        family: Name in `masks.FAMILIES` of a hand-designed mask; empty for others.
        structure: Of the gates (see `masksearch.Gates`) of a mask that DAM found; else empty.
        penalty: lambda of that search; 0 for others.
    """

    name: str
    sparsity: float
    scores: Mapping[str, float]
    average: float
    family: str = ""
    structure: str = ""
    penalty: float = 0.0

    def mean(self, columns: Iterable[str]) -> float:
        """Mean of the printed scores of these columns."""
        chosen = [self.scores[column] for column in columns]
        return math.fsum(chosen) / len(chosen)


@dataclass(frozen=True)
class PublishedTable:
    """Scores of masks as a paper has printed them.

    Args:
        name: Of the table.
        source: Where the figures are printed.
        about: What they are of.
        columns: Names of the tasks' development sets.
        rows: The masks, in the order of the table.
    """

    name: str
    source: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]

    def row(self, name: str) -> PublishedRow:
        """The row of that name; an unknown one raises UnknownNameError with the nearest."""
        rows = {row.name: row for row in self.rows}
        if name not in rows:
            raise unknown_name(f"mask of the table {self.name!r}:", name, rows)
        return rows[name]

    def named(self, name: object) -> PublishedRow | None:
        """The row of a mask's name as people write it; None where there is none.

        >>> read_published("sparsebert").named("log_sparse").name
        'LogSparse'
        """
        rows = {plain_name(n): row for row in self.rows for n in (row.name, row.family) if n}
        return rows.get(plain_name(name))


def read_published(name: str) -> PublishedTable:
    """The published table of that name; an unknown one raises UnknownNameError.

    >>> round(read_published("sparsebert").row("Star").mean(["CoLA", "RTE"]), 2)
    59.95
    """
    if name not in TABLES:
        raise unknown_name("published table", name, TABLES)
    text = resources.files("masksearch.analysis").joinpath(f"{name}.json").read_text("utf-8")
    found = json.loads(text)
    columns = tuple(found["columns"])
    rows = []
    for row in found["rows"]:
        scores = dict(zip(columns, row.pop("scores"), strict=True))
        rows.append(PublishedRow(scores=scores, **row))
    return PublishedTable(name, found["source"], found["about"], columns, tuple(rows))


def plain_name(name: object) -> str:
    """A name without what people write differently.

    >>> plain_name("DAM_u 1e-4") == plain_name("dam_u(0.0001)"), plain_name("LogSparse")
    (True, 'logsparse')
    """
    numbers = re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", lambda m: f"{float(m[0]):f}", str(name).lower())
    return "".join(letter for letter in numbers if letter.isalnum())


def describe_cut(params: Mapping[str, Any]) -> str:
    """A line on a mask that was cut from DAM's gates at a printed sparsity.

    Args:
        params: Of its record: `mask` (its name), `reached` and `sparsity` (shares).

    >>> describe_cut({"mask": "DAM_s 1e-1", "reached": 0.52, "sparsity": 0.935})
    'DAM_s 1e-1: its gates have reached a sparsity of 52.0%, the mask is cut at 93.5%'
    """
    reached, cut = (f"{100 * float(params[name]):.1f}%" for name in ("reached", "sparsity"))
    name = params["mask"]
    return f"{name}: its gates have reached a sparsity of {reached}, the mask is cut at {cut}"
