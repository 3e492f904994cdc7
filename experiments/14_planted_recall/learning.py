"""Trains a decoder on planted recall until it answers.

How long a decoder guesses before it looks up differs from seed to seed, so the rate stays high
until it answers, and only then falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import clip_grad_norm_

from masksearch.contracts import generator, mixed_seed
from masksearch_decoders import CausalEvaluator
from masksearch_decoders.decoders import NextTokenModel

WARMUP, FALL, LOOK = 100, 200, 50  # steps: the rate rises, falls; between two looks at answers
ANSWERED = 0.95  # share of right answers from which on the rate falls
ORDER, HEAD = 91, 92  # streams of random numbers
LOOKED = 64  # rows of a look
SPREAD = 0.05  # standard deviation of initial weights


@dataclass(frozen=True)
class LookupEvaluator(CausalEvaluator):
    """Judges masks on a decoder that `learn` has trained; the file of a seed is in `cache`."""

    def file_of(self, seed: int) -> Path:
        """Where the weights of a seed are."""
        assert self.cache is not None
        return (
            self.cache / f"{self.architecture}-{self.task().digest}-{self.size}-{seed}.safetensors"
        )

    def build_model(self, seed: int) -> NextTokenModel:
        """Random weights; the output embeddings are not tied, as that delays looking up."""
        made = super().build_model(seed)
        head = cast(Any, made.model).lm_head
        drawn = torch.randn(head.weight.shape, generator=generator(seed, HEAD))
        head.weight = nn.Parameter(drawn * SPREAD)
        made.config.tie_word_embeddings = False
        return made

    def dense(self, seed: int) -> NextTokenModel:
        """The trained decoder, a fresh copy."""
        made = self.build_model(seed)
        made.load_state_dict(load_file(self.file_of(seed)))
        return made.eval().requires_grad_(False)


def learn(judge: LookupEvaluator, seed: int) -> int:
    """Trains the decoder of a seed and writes it to `judge.file_of(seed)`.

    Args:
        judge: Its `steps` are the most at the full rate; `batch` and `lr` are its own.
        seed: Of weights and data.

    Returns:
        How many steps it took; `judge.steps` where it has not come to answer.
    """
    model, task = judge.build_model(seed), judge.task()
    batches = task.batches(mixed_seed(seed, ORDER), judge.batch)
    looked = task.rows(LOOKED, torch.Generator().manual_seed(seed))
    optimiser = torch.optim.AdamW(model.parameters(), judge.lr, (0.9, 0.98), weight_decay=0.01)
    step, end = 0, judge.steps
    while step < end:
        for group in optimiser.param_groups:
            rising, falling = (step + 1) / WARMUP, (end - step) / FALL
            group["lr"] = judge.lr * min(1.0, rising, falling if end != judge.steps else 1.0)
        optimiser.zero_grad()
        model(**next(batches)).loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % LOOK == 0 and end == judge.steps:
            right = answered(model, looked)
            print(f"step {step}: {right:.3f} answered", flush=True)
            if right >= ANSWERED:
                end = step + FALL
    path = judge.file_of(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return step


@torch.no_grad()
def answered(model: NextTokenModel, rows: Any) -> float:
    """The share of right answers."""
    said = model(rows.tokens).logits[:, :-1].argmax(-1)
    asked = rows.answers[:, 1:]
    return float((said == rows.tokens[:, 1:])[asked].float().mean())
