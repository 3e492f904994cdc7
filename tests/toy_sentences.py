"""SST-2 and RTE of toy words, whose answer is in the words, and a checkpoint that knows them."""

import random
from pathlib import Path
from typing import Any

from tiny_checkpoint import tiny_checkpoint

from masksearch import GlueEvaluator, Mask, masks
from masksearch.training.loop import follow_trainings

WORDS = [first + vowel + last for first in "bdgk" for vowel in "aeiou" for last in "nrst"]

SMALL: dict[str, Any] = dict(length=32, epochs=2, finetune_batch=8, finetune_lr=3e-3, device="cpu")


def write_sentences(folder: Path) -> Path:
    """Writes `glue/SST-2`, `glue/RTE` and `checkpoint`."""
    draw = random.Random(0)
    halves = (WORDS[:40], WORDS[40:])
    for part, count in (("train", 96), ("dev", 80)):
        lines = ["sentence\tlabel"]
        for number in range(count):
            said = draw.choices(halves[number % 2], k=draw.randint(4, 10))
            lines.append(f"{' '.join(said)}\t{number % 2}")
        write_lines(folder / "glue" / "SST-2" / f"{part}.tsv", lines)
        lines = ["index\tsentence1\tsentence2\tlabel"]
        for number in range(count):
            said = [" ".join(draw.choices(halves[number % 2], k=4)) for _ in range(2)]
            label = ("entailment", "not_entailment")[number % 2]
            lines.append(f"{number}\t{said[0]}\t{said[1]}\t{label}")
        write_lines(folder / "glue" / "RTE" / f"{part}.tsv", lines)
    tiny_checkpoint(folder / "checkpoint", WORDS)
    return folder


def sentence_judge(data: Path, kind: type[GlueEvaluator] = GlueEvaluator, **settings: Any) -> Any:
    """Fine-tunes the checkpoint of `write_sentences` on its tasks, for seconds."""
    place = {"weights": data / "checkpoint", "cache": data / "cache"}
    return kind(None, data / "glue", **{"tasks": ("SST-2",), **place, **SMALL, **settings})


def judged(
    judge: Any, workdir: Path, mask: Mask | None = None, seed: int = 1
) -> tuple[dict[str, float], int]:
    """The scores of a mask, and how many optimiser steps that took."""
    steps: list[int] = []
    with follow_trainings(lambda step, config: steps.append(step.number)):
        *_, last = judge(mask or masks.star(), seed=seed, workdir=workdir)
    return dict(last.values), len(steps)


def write_lines(path: Path, lines: list[str]) -> None:
    """Writes a text file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
