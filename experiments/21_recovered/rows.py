"""Which rows of a task are trained on, which searches read, and which judge."""

from __future__ import annotations

import runpy
from pathlib import Path

import tables  # noqa: F401  (the module of that name which the earlier rows.py then finds)

from masksearch.tasks.glue.read import read_rows
from masksearch.tasks.glue.tasks import TASKS

EARLIER = runpy.run_path(str(Path(__file__).parents[1] / "19_front" / "rows.py"))
groups, write = EARLIER["groups"], EARLIER["write"]
Row = tuple[tuple[str, ...], bytes]  # the texts, the line
LARGEST = 20  # rows that share sentences; larger groups are trained on


def read(path: Path, task: str) -> tuple[bytes, list[Row]]:
    """Header and rows of a file in GLUE's layout, as they are."""
    header, *lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    return header, list(zip(read_rows(path, TASKS[task]).texts, lines, strict=True))


def deal(data: Path, out: Path, task: str, held_out: int) -> dict[str, int]:
    """Writes a GLUE folder of one task: train.tsv and dev.tsv are parts of its training file that
    share no sentence (searches read half of dev.tsv); test.tsv is its development set, which
    judges.

    Args:
        data: Holds `glue/`.
        out: The folder of the task's folder.
        task: GLUE's name.
        held_out: Rows of dev.tsv, about; at most a quarter of the file's.

    Returns:
        File name -> rows.
    """
    header, rows = read(data / "glue" / task / "train.tsv", task)
    parts: dict[str, list[Row]] = {"train": [], "dev": []}
    most = min(held_out, len(rows) // 4)
    for group in groups(rows):
        few = len(group) <= LARGEST and len(parts["dev"]) < most
        parts["dev" if few else "train"].extend(group)
    parts["test"] = read(data / "glue" / task / "dev.tsv", task)[1]
    for name, part in parts.items():
        write(out / task / f"{name}.tsv", header, part)
    return {name: len(part) for name, part in parts.items()}
