"""Which rows of GLUE each evaluator gets: what searches read, and what judges.

STS-B's scores, 0 to 5, are written less 2.5: a correlation is blind to that, and a new head, which
begins at 0, has not to learn their mean first.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tables import PLAN

from masksearch.tasks.glue.read import read_rows
from masksearch.tasks.glue.tasks import TASKS

Row = tuple[tuple[str, ...], bytes]  # the texts, the line
MIDDLE = 2.5  # of STS-B's scores
CENTRED = replace(TASKS["STS-B"], score_range=(-MIDDLE, MIDDLE))


def read(path: Path, task: str) -> tuple[bytes, list[Row]]:
    """Header and rows of a file in GLUE's layout."""
    header, *lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    if task == "STS-B":
        parts = (line.rpartition(b"\t") for line in lines)
        lines = [b"%s\t%.3f" % (rest, float(score) - MIDDLE) for rest, _, score in parts]
    return header, list(zip(read_rows(path, TASKS[task]).texts, lines, strict=True))


def write(path: Path, header: bytes, rows: list[Row]) -> None:
    """Those rows in the same layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join([header, *(line for _, line in rows)]) + b"\n")


def order(text: str) -> bytes:
    """Where a text comes in an order that knows nothing of it."""
    return hashlib.sha256(text.encode()).digest()


def groups(rows: list[Row]) -> list[list[Row]]:
    """Rows that are joined by sentences, directly or through others, in the order of a hash."""
    texts = np.array([[texts[0], texts[-1]] for texts, _ in rows])
    names, ends = np.unique(texts, return_inverse=True)
    first, last = ends.reshape(-1, 2).T
    links = coo_array((np.ones(len(rows)), (first, last)), shape=(len(names), len(names)))
    found: dict[int, list[Row]] = {}
    for row, group in zip(rows, connected_components(links)[1][first], strict=True):
        found.setdefault(group, []).append(row)
    return sorted(found.values(), key=lambda group: order(min(group[0][0])))


def deal(data: Path, out: Path) -> None:
    """Writes two GLUE folders: `search/STS-B` has two parts of STS-B's training file that share no
    sentence; `judge` the training files (of MRPC and SST-2 a sample), and each development set
    under the name test.tsv, too."""
    glue, plan = data / "glue", PLAN["rows"]
    header, rows = read(glue / "STS-B" / "train.tsv", "STS-B")
    parts: dict[str, list[Row]] = {"train": [], "dev": []}
    most = min(plan["scored"], len(rows) // 4)
    for group in groups(rows):
        few = len(group) <= plan["largest_group"] and len(parts["dev"]) < most
        parts["dev" if few else "train"].extend(group)
    for name, part in parts.items():
        write(out / "search" / "STS-B" / f"{name}.tsv", header, part)
    for task in PLAN["judge"]["tasks"]:
        header, rows = read(glue / task / "train.tsv", task)
        most = plan["train"].get(task, len(rows))
        chosen = sorted(rows, key=lambda row: order(row[0][0]))[:most]
        write(out / "judge" / task / "train.tsv", header, chosen)
        for name in ("dev.tsv", "test.tsv"):
            write(out / "judge" / task / name, *read(glue / task / "dev.tsv", task))
