"""Which rows of a task are trained on, which searches read, which choose, which judge."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tables import PLAN

from masksearch.tasks.glue.read import read_rows
from masksearch.tasks.glue.tasks import TASKS

Row = tuple[tuple[str, ...], bytes]  # the texts, in small letters; the line


def read(path: Path, task: str) -> tuple[bytes, list[Row]]:
    """Header and rows of a file in GLUE's layout, each text pair once, in the order of a hash."""
    header, *lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    texts = [tuple(text.lower() for text in row) for row in read_rows(path, TASKS[task]).texts]
    least = PLAN["tasks"][task].get("least_words", 0)
    rows = dict(zip(texts, lines, strict=True))
    long = [(row, line) for row, line in rows.items() if len(" ".join(row).split()) >= least]
    return header, sorted(long, key=lambda row: order(" ".join(row[0])))


def order(text: str) -> bytes:
    """Where a text comes in an order that knows nothing of it."""
    return hashlib.sha256(text.encode()).digest()


def deal(data: Path, out: Path, task: str) -> dict[str, int]:
    """Writes a GLUE folder of one task. test.tsv judges; dev.tsv is held out of the training file
    (searches read half of it, the other half chooses opponents); train.tsv shares no text with
    either, and of single texts none that lies in a held-out one, or holds one.

    Args:
        data: Holds `glue/`.
        out: The folder of the task's folder.
        task: GLUE's name.

    Returns:
        File name -> rows.
    """
    plan, sizes, folder = PLAN["tasks"][task], PLAN["rows"], data / "glue" / task
    _, judging = read(folder / plan["judge"], task)
    header, rows = read(folder / plan["train"], task)
    judging = judging[: sizes["judge"]]
    seen = {text for texts, _ in judging for text in texts}
    rows = [row for row in rows if seen.isdisjoint(row[0])]
    held = rows[: sizes["held_out"]]
    seen = {text for texts, _ in held for text in texts}
    train = [row for row in rows[len(held) :] if seen.isdisjoint(row[0])]
    if len(TASKS[task].texts) == 1:
        train = [row for row in train if not overlaps(row[0][0], seen)]
    parts = {"train": train[: sizes["train"]], "dev": held, "test": judging}
    for name, part in parts.items():
        path = out / task / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\n".join([header, *(line for _, line in part)]) + b"\n")
    return {name: len(part) for name, part in parts.items()}


def overlaps(text: str, others: set[str]) -> bool:
    """Whether a text lies in one of the others, or holds it."""
    return any(text in other or other in text for other in others)
