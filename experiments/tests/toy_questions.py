"""Tiny SQuAD and SWAG files whose answers follow a local rule, and a tokenizer that fits them."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from experiment_scripts import EXPERIMENTS
from real_data import DATA
from toy_words import MARKERS, TOKENS, WORDS

from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.tokenizer import special_ids, word_piece
from masksearch.user_code import load_object

PLACE = EXPERIMENTS / "12_sparsebert_table"
SquadEvaluator = load_object(f"{PLACE}/squad.py:SquadEvaluator")  # as `--evaluator` loads it
SwagEvaluator = load_object(f"{PLACE}/swag.py:SwagEvaluator")
SpanPredictor = sys.modules["squad"].SpanPredictor
score = sys.modules["squad"].score
ChoiceScorer = sys.modules["swag"].ChoiceScorer
GOOD, BAD = WORDS[:20], WORDS[40:]


def toy_corpus(length: int) -> Corpus:
    """A lower-case WordPiece tokenizer of whole words; the sequences are of no interest."""
    made = word_piece({name: number for number, name in enumerate(TOKENS)})
    ids = torch.zeros(2, length, dtype=torch.int32)
    return Corpus(made, special_ids(made), length, f"toy-{length}", ids, ids)


def squad_json(
    articles: int, questions: int, *, seed: int, impossible: float = 0.0, words: int = 7
) -> dict[str, Any]:
    """The official form: the answer is the word after the marker that the question names.

    A share of `impossible` has no marker in the paragraph, and no answer.
    """
    draw = random.Random(seed)
    flags = [draw.random() < impossible for _ in range(articles * questions)]
    data = []
    for number in range(articles):
        paragraphs = []
        for index in range(questions):
            text, marker = draw.choices(WORDS, k=words), draw.choice(MARKERS)
            place = draw.randrange(words - 1)
            missing = flags[number * questions + index]
            if not missing:
                text[place] = marker
            start = len(" ".join(text[: place + 1])) + 1
            entry: dict[str, Any] = {
                "id": f"s{seed}-{number}-{index}",
                "question": f"what comes after {marker} ?",
                "answers": [] if missing else [{"text": text[place + 1], "answer_start": start}],
            }
            if impossible:
                entry["is_impossible"] = missing
            paragraphs.append({"context": " ".join(text) + ".", "qas": [entry]})
        data.append({"title": f"article {number} of {seed}", "paragraphs": paragraphs})
    return {"version": "v2.0" if impossible else "1.1", "data": data}


def swag_rows(count: int, *, seed: int) -> list[dict[str, Any]]:
    """The right ending is made of the first words of the list, the others of its last ones."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        answer = draw.randrange(4)
        choices = [
            " ".join(draw.choices(GOOD if index == answer else BAD, k=draw.randint(2, 5)))
            for index in range(4)
        ]
        start = " ".join(draw.choices(WORDS, k=draw.randint(3, 6)))
        rows.append({"startphrase": start, "answer": answer, "choices": choices})
    return rows


def write_text(folder: Path, lines: int = 200) -> None:
    """Text over the same words, `text.txt`, to pre-train on, and its `vocab.txt`."""
    draw = random.Random(0)
    rows = (" ".join(draw.choices(WORDS, k=8)) for _ in range(lines))
    (folder / "text.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")


def write_squad(path: Path, content: Any) -> Path:
    """Writes one JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_swag(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def task_judge(kind: str, path: Path, held_out: Path | None = None, **settings: Any) -> Any:
    """An evaluator of questions or endings, of all rows unless told otherwise."""
    how = {"weights": "none", "split": "all", "rows": None, "dev_rows": None, **settings}
    if kind == "squad":
        return SquadEvaluator(None, path, squad_held_out=held_out, **how)
    return SwagEvaluator(None, path, swag_held_out=held_out, **how)


def of_real_text(cache: Path) -> dict[str, Any]:
    """Settings of an evaluator of real text, for seconds."""
    words = {"corpus": DATA / "wikitext-2" / "valid.txt", "cache": cache / "cache"}
    words["tokenizer"] = DATA / "bert-vocab" / "vocab.txt"
    steps = {"steps": 5, "held_out_sequences": 32, "reports": 1, "epochs": 1}
    return words | steps | {"device": "cpu"}


def small(data: Path) -> dict[str, object]:
    """Settings of a second, for an evaluator of the text in that folder."""
    return {
        "steps": 2,
        "reports": 1,
        "size": "nano",
        "length": 32,
        "tokenizer": data / "vocab.txt",
        "batch": 8,
        "epochs": 1,
        "cache": data / "cache",
        "held_out_sequences": 8,
        "device": "cpu",
        "split": "all",  # of so few rows
    }
