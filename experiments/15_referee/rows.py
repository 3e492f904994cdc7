"""Which rows a task's dense models are fitted to, which selectors get, and which judge.

    python experiments/15_referee/rows.py --data FOLDER [--runs FOLDER]

Writes four GLUE folders: `fit` (training rows of the dense models), `select` (4,800 training
rows, the same for every selector), `judge` (development rows that share no text with either) and
`choose` (those of the same files that share none with the other three; see the plan's amendment).
A hash of a row's first text says where it goes.
"""

from __future__ import annotations

import argparse
import hashlib
import tomllib
from collections.abc import Iterable
from pathlib import Path

from masksearch.tasks.glue.read import read_rows
from masksearch.tasks.glue.tasks import TASKS
from masksearch.tasks.splits import in_holdout

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
Row = tuple[tuple[str, ...], bytes]  # the texts, the line


def read(path: Path, task: str) -> tuple[bytes, list[Row]]:
    """Header and rows of a file in GLUE's layout, in the order of the hashes."""
    header, *lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    texts = read_rows(path, TASKS[task]).texts
    found = list(zip(texts, lines, strict=True))
    return header, sorted(found, key=lambda row: hashlib.sha256(row[0][0].encode()).digest())


def write(folder: Path, names: Iterable[str], header: bytes, rows: Iterable[Row]) -> None:
    """The same rows under each of the names."""
    folder.mkdir(parents=True, exist_ok=True)
    text = b"\n".join([header, *(line for _, line in rows)]) + b"\n"
    for name in names:
        (folder / name).write_bytes(text)


def deal(task: str, data: Path, out: Path) -> dict[str, int]:
    """Writes the four folders of a task; how many rows each has."""
    source, place = PLAN["tasks"][task], data / "glue" / task
    header, train = read(place / "train.tsv", task)
    select = train[: PLAN["rows"]["select"]]
    given = {text for texts, _ in select for text in texts}
    rest = train[len(select) :]
    fit = train if source["fit_all"] else [row for row in rest if given.isdisjoint(row[0])]
    known = given | {text for texts, _ in fit for text in texts}
    judge, held_out = list[Row](), list[Row]()
    for name in source["judge"]:
        _, rows = read(place / name, task)
        held_out += rows
        if source["half"] == "final":
            rows = [row for row in rows if in_holdout(row[0][0])]
        judge += [row for row in rows if known.isdisjoint(row[0])]
        judge = judge[: PLAN["rows"]["judge"]]
    known |= {text for texts, _ in judge for text in texts}
    choose = [row for row in held_out if known.isdisjoint(row[0])]
    dev = next(iter(TASKS[task].dev_files.values()))[0]
    test = dev.replace("dev", "test")
    write(out / "fit" / task, ["train.tsv"], header, fit)
    write(out / "fit" / task, [dev, test], header, select)
    write(out / "select" / task, ["train.tsv", dev, test], header, select)
    for folder, held in (("judge", judge), ("choose", choose)):
        write(out / folder / task, ["train.tsv", dev], header, select)
        write(out / folder / task, [test], header, held)
    return {"fit": len(fit), "select": len(select), "judge": len(judge), "choose": len(choose)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--runs", type=Path, default=Path("runs/15_referee"))
    given = parser.parse_args()
    for task in PLAN["tasks"]:
        print(task, deal(task, given.data, given.runs / "rows"))


if __name__ == "__main__":
    main()
