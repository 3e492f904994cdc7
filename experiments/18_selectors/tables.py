"""The tables of this experiment, as `masksearch bench build tables.py:recall` takes them.

Checkpoints are in the folder that CHECKPOINTS names (`train.py` writes them).
"""

import os
from pathlib import Path

from train import KINDS, task_of

import masksearch as ms
from masksearch import masks
from masksearch.bench import TableSpec

CHECKPOINTS = Path(os.environ.get("CHECKPOINTS", "runs/18_selectors/checkpoints"))
ROWS = 128  # of each set of tokens
WINDOW = masks.window(7)
LIMITS = (
    "A synthetic task whose answers need one step of retrieval, a decoder of 12 heads, 128 rows "
    "a set. What selects well here need not do so on large decoders of text."
)


def recall() -> list[TableSpec]:
    """All decoders that have learned planted recall."""
    return [
        recall_of(int(path.name.split("-")[1])) for path in sorted(CHECKPOINTS.glob("recall-*"))
    ]


def recall_of(number: int) -> TableSpec:
    """The table of one decoder."""
    task, kind = task_of(number), KINDS[number % 10]
    place = CHECKPOINTS / f"recall-{number}"
    judge = ms.CausalEvaluator(task, weights=place, held_out_sequences=ROWS, kl=True, device="cpu")
    units = ms.Units(judge.shape, (WINDOW, masks.full()))
    far = f"{task.pairs} pairs of a key and a value, {task.middle} fillers, {task.pairs} questions"
    name = "Qwen3" if kind == "qwen3" else "Llama"
    what = f"{name} of 3 layers and 4 heads, 64 wide, that has learned planted recall: {far}"
    return TableSpec(f"recall-{number}", judge, units, what, limits=LIMITS)
