"""A task of one text in GLUE's layout, which the words alone tell, and where to begin from."""

import random
from pathlib import Path

import torch
from tiny_checkpoint import tiny_checkpoint
from toy_sentences import WORDS, write_lines
from transformers import BertConfig, BertForMaskedLM


def write_two_classes(folder: Path) -> None:
    """Writes train.tsv and dev.tsv: each class has 40 words of its own."""
    draw = random.Random(0)
    for part, count in (("train", 900), ("dev", 120)):
        rows = [
            f"{' '.join(draw.choices(WORDS[40 * (n % 2) :][:40], k=14))}\t{n % 2}"
            for n in range(count)
        ]
        write_lines(folder / f"{part}.tsv", ["sentence\tlabel", *rows])


def deep_checkpoint(folder: Path) -> Path:
    """A tiny checkpoint of six layers."""
    start = tiny_checkpoint(folder, WORDS)
    config = BertConfig.from_pretrained(start, num_hidden_layers=6)
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(start)
    return start
