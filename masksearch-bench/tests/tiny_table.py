"""A decoder of four heads that has learned a little, in half a second."""

from pathlib import Path

import torch

import masksearch as ms
from masksearch import masks
from masksearch_bench import TableSpec
from masksearch_decoders import CausalEvaluator
from masksearch_decoders.tasks.recall import Recall

TASK = Recall(pairs=2, keys=4, values=4, fillers=4, middle=8)


def learn(architecture: str, folder: Path) -> Path:
    model = CausalEvaluator(TASK, size="2x32x2", architecture=architecture).build_model(0)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    batches = TASK.batches(0, 32)
    for _ in range(60):
        optimiser.zero_grad()
        model(**next(batches)).loss.backward()
        optimiser.step()
    model.model.save_pretrained(folder)
    return folder


def spec_of(folder: Path, **given) -> TableSpec:
    """All 16 choices of the heads of a decoder."""
    judge = CausalEvaluator(
        TASK, weights=folder, held_out_sequences=16, kl=True, device="cpu", bands=()
    )
    units = ms.Units(judge.shape, (masks.window(2), masks.full()), given.pop("unit", "head"))
    given = {"name": "tiny", "block": 6, "lengths": (64, 128), **given}
    return TableSpec(judge=judge, units=units, what="a tiny decoder", **given)
