"""Texts that searches read, and texts that judge: WikiText cut to the lengths of those that judge,
STS-B's sentences, SQuAD's questions and paragraphs."""

from __future__ import annotations

import csv
import json
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PLAN, AMENDMENT = (
    tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8"))
    for name in ("plan", "amendment")
)
PARTS: dict[str, dict[str, Any]] = PLAN["parts"] | AMENDMENT["parts"]
LEAST_WORDS = 8  # of a line of WikiText


class Retrieval(NamedTuple):
    """Questions, the number of each one's paragraph, and the paragraphs, each once."""

    questions: list[str]
    right: list[int]
    paragraphs: list[str]


class Pairs(NamedTuple):
    """Pairs of sentences, and how near people find them."""

    ones: list[str]
    others: list[str]
    scores: list[float]


def squad(data: Path) -> Retrieval:
    """SQuAD's development set."""
    articles = json.loads((data / "squad" / "dev-v1.1.json").read_text("utf-8"))["data"]
    found = Retrieval([], [], [])
    for paragraph in (each for article in articles for each in article["paragraphs"]):
        for asked in paragraph["qas"]:
            found.questions.append(asked["question"].strip())
            found.right.append(len(found.paragraphs))
        found.paragraphs.append(paragraph["context"].strip())
    return found


def sts(data: Path, part: str) -> Pairs:
    """Rows of STS-B."""
    with (data / "glue" / "STS-B" / f"{part}.tsv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    ones, others = ([row[name] for row in rows] for name in ("sentence1", "sentence2"))
    return Pairs(ones, others, [float(row["score"]) for row in rows])


def judging_texts(data: Path, part: str) -> list[str]:
    """All texts that judge a part, as often as they are embedded; or SQuAD's paragraphs alone."""
    if part.startswith("squad"):
        found = squad(data)
        return [*(found.questions if part == "squad" else ()), *found.paragraphs]
    pairs = sts(data, "dev")
    return [*pairs.ones, *pairs.others]


def wikitext(data: Path) -> Iterator[str]:
    """The paragraphs of WikiText-2's training text, without headings."""
    for line in (data / "wikitext-2" / "train.txt").read_text("utf-8").splitlines():
        if len(line.split()) >= LEAST_WORDS and not line.strip().startswith("="):
            yield line.strip().replace(" @-@ ", "-").replace("<unk>", "something")


def like(data: Path, part: str, tokenizer: Any, length: int, count: int, seed: int) -> list[str]:
    """Beginnings of WikiText's paragraphs, of as many tokens as texts that judge, which are drawn;
    each once.

    Args:
        data: Holds the folders of the shared data.
        part: `"squad"`, `"squad, paragraphs"` or `"sts-b"`.
        tokenizer: Of the model, which says how long a text is.
        length: Tokens of a text, at most.
        count: How many.
        seed: Of the draw.
    """
    draw = random.Random(seed)
    judging = tokenizer(judging_texts(data, part), truncation=True, max_length=length)["input_ids"]
    sizes = draw.choices([len(row) for row in judging], k=2 * count)
    paragraphs = [*wikitext(data)]
    draw.shuffle(paragraphs)
    made: dict[str, None] = {}
    for at, size in enumerate(sizes):
        text = paragraphs[at % len(paragraphs)]
        row = tokenizer(text, truncation=True, max_length=size, return_offsets_mapping=True)
        end = max(last for _, last in row["offset_mapping"])
        if len(row["input_ids"]) == size:
            made[text[:end]] = None
        if len(made) == count:
            break
    return [*made]
