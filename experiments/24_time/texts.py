"""The rows of both tasks: which are trained on, which searches read, which choose, which judge.

    python experiments/24_time/texts.py --data FOLDER --out FOLDER --weights FOLDER

`imdb-long` has film reviews, `which-author` passages of ten novels whose names are one word. Each
is a folder of TSV tables, columns text and label. Of dev.tsv searches read the rows of the split
"validation" and the others choose, as `masksearch.tasks.splits` says; test.tsv judges.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import AutoTokenizer

from masksearch.tasks.splits import in_holdout
from masksearch.tasks.tables import tidy

PLAN = tomllib.loads(Path(__file__).with_name("plan.toml").read_text(encoding="utf-8"))
NAME = "someone"  # stands for every name
LETTERS = re.compile(r"[^\W\d_]+")
BEGINS = re.compile(r"[.!?:;\"]|\s'")  # between two words, before a sentence or a quotation
TITLES = {"Mr", "Mrs", "Ms", "Dr", "St", "Messrs", "Mme", "Capt", "Rev", "Hon"}
TOKENS = {"to 512": 0, "to 768": 513, "to 1,024": 769, "more, cut": 1025}  # from so many on
BATCH = PLAN["target"]["batch"]  # rows that are read together
Row = tuple[str, str]  # text and label
Parts = dict[str, list[Row]]


def without_names(text: str) -> str:
    """A novel with one word in place of each name: of words that stand capitalised within a
    sentence more often than they stand in small letters, wherever they are."""
    inside, small = Counter[str](), Counter[str]()
    before, end = "", 0
    for match in LETTERS.finditer(text):
        word, gap = match[0], text[end : match.start()]
        abbreviated = gap.startswith(".") and (before in TITLES or len(before) == 1)
        if not word[0].isupper():
            small[word] += 1
        elif before and (abbreviated or not BEGINS.search(gap)):
            inside[word] += 1
        before, end = word, match.end()
    names = {word for word, count in inside.items() if count > small[word.lower()]} - {"I"}
    return LETTERS.sub(lambda match: NAME if match[0] in names else match[0], text)


def passages(text: str, words: int) -> list[str]:
    """A novel cut into passages of so many words, which do not overlap; the rest is left out."""
    each = text.split()
    return [" ".join(each[at : at + words]) for at in range(0, len(each) - words + 1, words)]


def novels(data: Path, plan: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """The passages of the first two thirds of each novel, and those of the last third; between
    them one is left out. Sorted by a hash."""
    early: list[Row] = []
    late: list[Row] = []
    for novel in plan["novels"]:
        text = (data / "english-novels" / f"{novel}.txt").read_text("utf-8-sig")
        made = passages(without_names(text), plan["words"])
        rows, third = [(each, novel.partition("_")[0]) for each in made], 2 * len(made) // 3
        early += rows[:third]
        late += rows[third + 1 :]
    return sorted(early, key=order), sorted(late, key=order)


def order(row: Row) -> bytes:
    """Where a row stands in an order that knows nothing of it."""
    return hashlib.sha256(row[0].encode()).digest()


def reviews(path: Path) -> list[Row]:
    """The rows of a file of reviews, each once."""
    lines = path.read_text("utf-8").removesuffix("\n").split("\n")[1:]
    pairs = [line.split("\t") for line in lines]
    return [*dict.fromkeys((tidy(text), label) for text, label in pairs)]


def deal(data: Path, task: str, plan: Mapping[str, Any]) -> Parts:
    """The rows of a task by what they are for: train, search, choice and judge.

    Args:
        data: Holds `imdb-long/` and `english-novels/`.
        task: A table of the plan's `tasks`.
        plan: That table: how many rows, and of novels their names and the words of a passage.
    """
    if task == "imdb-long":
        early = late = reviews(data / task / "train.tsv")
        judging = reviews(data / task / "dev.tsv")
    else:
        early, late = novels(data, plan)
        judging = late
    search = [row for row in early if not in_holdout(row[0])][: plan["search"]]
    choice = [row for row in late if in_holdout(row[0])][: plan["choice"]]
    held_out = {*search, *choice}
    train = [row for row in early if row not in held_out][: plan["train"]]
    judge = [row for row in judging if row not in held_out][: plan["judge"]]
    return {"train": train, "search": search, "choice": choice, "judge": judge}


def write(parts: Parts, folder: Path) -> None:
    """Writes the tables of a task."""
    folder.mkdir(parents=True, exist_ok=True)
    dev = parts["search"] + parts["choice"]
    for name, rows in {"train": parts["train"], "dev": dev, "test": parts["judge"]}.items():
        lines = ["text\tlabel", *map("\t".join, rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def sizes_of(rows: list[Row], tokenizer: Any) -> list[int]:
    """The tokens of each row's text."""
    return list(map(len, tokenizer([text for text, _ in rows])["input_ids"]))


def by_tokens(sizes: Mapping[str, list[int]]) -> pd.DataFrame:
    """How many rows of each part have how many tokens."""
    edges = [*TOKENS.values(), np.inf]
    table = {name: np.histogram(own, edges)[0] for name, own in sizes.items()}
    return pd.DataFrame(table, index=[*TOKENS]).T


def padded(sizes: Sequence[int]) -> dict[str, float]:
    """Tokens a row, cut at the model's length: of the text, and with padding to the longest row of
    a batch, rows as they come and sorted by length."""
    cut = [min(size, PLAN["model"]["length"]) for size in sizes]
    counts = {"text": sum(cut) / len(cut)}
    for name, rows in {"as they come": cut, "sorted": sorted(cut)}.items():
        batches = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
        counts[name] = sum(len(batch) * max(batch) for batch in batches) / len(rows)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="imdb-long/, english-novels/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tasks' folders")
    parser.add_argument("--weights", type=Path, required=True, help="whose tokens are counted")
    given = parser.parse_args()
    tokenizer, counts, padding = AutoTokenizer.from_pretrained(given.weights), {}, {}
    for task, plan in PLAN["tasks"].items():
        parts = deal(given.data, task, plan)
        write(parts, given.out / task)
        sizes = {name: sizes_of(rows, tokenizer) for name, rows in parts.items()}
        counts[task], padding[task] = by_tokens(sizes), padded(sizes["judge"])
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    for name, table in {
        "tokens": pd.concat(counts, names=["task", "rows"]),
        "padding": pd.DataFrame(padding).T.rename_axis("task"),
    }.items():
        table.to_csv(folder / f"{name}.csv", float_format="%.2f")
        print(table.to_string())


if __name__ == "__main__":
    main()
