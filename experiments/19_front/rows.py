"""Which rows of GLUE each evaluator gets: what searches read, and what judges.

    python experiments/19_front/rows.py --data FOLDER --runs FOLDER

`search/STS-B` holds two parts of STS-B's training file that share no sentence. `judge/` has the
training files (of MRPC and SST-2 a sample), and each development set under the name test.tsv.

STS-B's scores, 0 to 5, are written less 2.5: a correlation is blind to that, and a new head, which
begins at 0, has not to learn their mean first.
"""

from __future__ import annotations

import argparse
import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path

from masksearch.tasks.glue.read import read_rows
from masksearch.tasks.glue.tasks import TASKS

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
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
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while (above := parent.setdefault(text, text)) != text:
            parent[text] = text = parent[above]
        return text

    for texts, _ in rows:
        parent[root(texts[0])] = root(texts[-1])
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(root(row[0][0]), []).append(row)
    return sorted(found.values(), key=lambda group: order(min(group[0][0])))


def deal(data: Path, out: Path) -> None:
    """Writes both folders."""
    glue, plan = data / "glue", PLAN["rows"]
    header, rows = read(glue / "STS-B" / "train.tsv", "STS-B")
    train: list[Row] = []
    scored: list[Row] = []
    most = min(plan["scored"], len(rows) // 4)
    for group in groups(rows):
        few = len(group) <= plan["largest_group"] and len(scored) < most
        (scored if few else train).extend(group)
    write(out / "search" / "STS-B" / "train.tsv", header, train)
    write(out / "search" / "STS-B" / "dev.tsv", header, scored)
    for task in PLAN["judge"]["tasks"]:
        header, rows = read(glue / task / "train.tsv", task)
        most = plan["train"].get(task, len(rows))
        chosen = sorted(rows, key=lambda row: order(row[0][0]))[:most]
        write(out / "judge" / task / "train.tsv", header, chosen)
        for name in ("dev.tsv", "test.tsv"):
            write(out / "judge" / task / name, *read(glue / task / "dev.tsv", task))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--runs", type=Path, default=Path("runs/19_front"))
    given = parser.parse_args()
    deal(given.data, given.runs / "rows")


if __name__ == "__main__":
    main()
