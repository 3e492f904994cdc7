"""Evaluators whose data has a search split, a final split and test rows, at sizes of a second."""

import json
import random
from pathlib import Path
from typing import Any

from tiny_checkpoint import tiny_embedding
from tiny_decoder import tiny_decoder
from toy_questions import SquadEvaluator, SwagEvaluator, squad_json, swag_rows, write_squad
from toy_sentences import write_lines
from toy_words import WORDS

import masksearch as ms
from masksearch.tasks.planted.process import PlantedProcess
from masksearch_decoders import CausalEvaluator
from masksearch_decoders.tasks.recall import Recall

SMALL = dict(steps=2, size="nano", length=24, vocabulary=80, batch=4, held_out_sequences=400)


def write_text(folder: Path) -> Path:
    """A folder of train.txt, valid.txt and test.txt, in paragraphs."""
    draw = random.Random(0)
    for name, count in (("train", 60), ("valid", 40), ("test", 20)):
        paragraphs = (
            "\n".join(" ".join(draw.choices(WORDS, k=9)) for _ in range(6)) for _ in range(count)
        )
        (folder / "text").mkdir(exist_ok=True)
        (folder / "text" / f"{name}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return folder / "text"


def write_glue(folder: Path) -> Path:
    draw = random.Random(1)
    for name, count in (("train", 16), ("dev", 30), ("test", 12)):
        rows = [
            f"{' '.join(draw.choices(WORDS, k=5))}\t{draw.randint(0, 1)}" for _ in range(count)
        ]
        write_lines(folder / "glue" / "SST-2" / f"{name}.tsv", ["sentence\tlabel", *rows])
    return folder / "glue"


def text(folder: Path, **more: Any) -> ms.MlmEvaluator:
    return ms.MlmEvaluator(write_text(folder), cache=folder / "cache", **SMALL, **more)


def pairs(folder: Path) -> ms.MlmEvaluator:
    return text(folder, pretraining="mlm+next")


def glue(folder: Path) -> ms.GlueEvaluator:
    place, more = write_glue(folder), {"cache": folder / "cache", "epochs": 1}
    return ms.GlueEvaluator(write_text(folder), place, tasks=("SST-2",), **SMALL, **more)


def squad(folder: Path) -> Any:
    for seed, (name, articles) in enumerate((("train", 4), ("dev", 20), ("test", 3))):
        made = squad_json(articles, 2, seed=seed)
        write_squad(folder / "squad" / f"{name}-v1.1.json", made)
    more = {"cache": folder / "cache", "epochs": 1}
    return SquadEvaluator(write_text(folder), folder / "squad", **SMALL, **more)


def swag(folder: Path) -> Any:
    (folder / "swag").mkdir()
    for seed, (name, count) in enumerate((("train", 8), ("val", 20), ("test", 6))):
        rows = "\n".join(json.dumps(row) for row in swag_rows(count, seed=seed))
        (folder / "swag" / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    more = {"cache": folder / "cache", "epochs": 1}
    return SwagEvaluator(write_text(folder), folder / "swag", **SMALL, **more)


def causal(folder: Path) -> CausalEvaluator:
    settings = {"length": 24, "vocabulary": 80, "size": "1x16x2", "held_out_sequences": 400}
    place = {"batch": 4, "steps": 2, "cache": folder / "cache"}
    return CausalEvaluator(write_text(folder), **settings, **place)


def decoder(folder: Path) -> CausalEvaluator:
    weights = tiny_decoder(folder / "decoder", list(WORDS))
    settings = {"length": 24, "held_out_sequences": 400, "batch": 4, "cache": folder / "cache"}
    return CausalEvaluator(write_text(folder), weights=weights, **settings)


def embedding(folder: Path) -> ms.EmbeddingEvaluator:
    draw = random.Random(3)
    for name, count in (("train", 30), ("dev", 60), ("test", 20)):
        cells = [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(2 * count)]
        rows = [f"{one},{two}" for one, two in zip(cells[::2], cells[1::2], strict=True)]
        write_lines(folder / "texts" / f"{name}.csv", ["one,two", *rows])
    weights = tiny_embedding(folder / "embedder", list(WORDS))
    settings = {"columns": ("one", "two"), "length": 16, "gates_batch": 4, "device": "cpu"}
    return ms.EmbeddingEvaluator(folder / "texts", weights, **settings)


def recall(folder: Path) -> CausalEvaluator:
    task = Recall(pairs=3, keys=16, values=16, middle=12)
    settings = {"size": "1x16x2", "held_out_sequences": 40, "batch": 4, "steps": 2}
    return CausalEvaluator(task, cache=folder / "cache", **settings)


def planted(folder: Path) -> ms.PlantedEvaluator:
    process = PlantedProcess(length=24, offsets=(5,), vocabulary=8)
    return ms.PlantedEvaluator(process, steps=2, downstream_steps=1, held_out_sequences=64)
