"""Published settings of whole runs, to be trained again as they were.

SPARSEBERT.steps * SPARSEBERT.batch        # 461 million sequences of 128 positions
replace(SPARSEBERT, size="tiny", steps=800)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from masksearch.errors import unknown_name


@dataclass(frozen=True)
class Published:
    """How a published model was pre-trained and fine-tuned.

    Args:
        size: A name of `masksearch.models.encoders.SIZES`.
        length: Positions of a pre-training sequence.
        vocabulary: Token ids (uncased WordPiece).
        batch: Sequences of one update, over all machines and micro-batches.
        steps: Updates of pre-training.
        lr: Peak learning rate of pre-training.
        optimiser: `"lamb"` or `"adamw"`.
        warmup: Share of the updates in which the rate rises linearly, in [0, 1]; then it falls
            as sqrt(1 - progress) (`masksearch.gates.sparsebert.published_rate`).
        weight_decay: Of the weights; biases and norms have none.
        pairs: Whether next-sentence prediction is part of the loss.
        finetune_lr: Peak learning rate of fine-tuning.
        finetune_batch: Rows of a fine-tuning batch.
        epochs: Passes over a task's training rows.
        dropout: Of hidden states and attention weights, in [0, 1).
        initializer_range: Standard deviation of the initial weights.
    """

    size: str
    length: int
    vocabulary: int
    batch: int
    steps: int
    lr: float
    optimiser: str
    warmup: float
    weight_decay: float
    pairs: bool
    finetune_lr: float
    finetune_batch: int
    epochs: int
    dropout: float
    initializer_range: float


SPARSEBERT = Published(
    size="base",
    length=128,
    vocabulary=30_522,
    batch=65_536,
    steps=7_038,
    lr=6e-3,
    optimiser="lamb",
    warmup=0.2843,
    weight_decay=0.01,
    pairs=True,
    finetune_lr=2.4e-5,
    finetune_batch=16,
    epochs=3,
    dropout=0.1,
    initializer_range=0.02,
)
"""BERT-base as SparseBERT's authors trained it, on books and Wikipedia: the defaults of their
repository (github.com/han-shi/SparseBERT: run_pretraining.py, run_glue.py, the shell scripts and
bert_config.json), first phase. The second phase at 512 positions is left out: the published
tables of gates end at 128.

Reference: SparseBERT, arXiv 2102.12871; You et al., arXiv 1904.00962 (LAMB).
"""


MICRO = 64  # sequences of a batch; the published batch is many of them
PRESETS: dict[str, dict[str, Any]] = {
    "sparsebert": {
        "size": SPARSEBERT.size,
        "length": SPARSEBERT.length,
        "vocabulary": SPARSEBERT.vocabulary,
        "batch": MICRO,
        "micro_batches": SPARSEBERT.batch // MICRO,
        "steps": SPARSEBERT.steps,
        "lr": SPARSEBERT.lr,
        "optimiser": SPARSEBERT.optimiser,
        "warmup": SPARSEBERT.warmup,
        "schedule": "sqrt",
        "pretraining": "mlm+next" if SPARSEBERT.pairs else "mlm",
        "dropout": SPARSEBERT.dropout,
        "initializer_range": SPARSEBERT.initializer_range,
        "finetune_lr": SPARSEBERT.finetune_lr,
        "finetune_batch": SPARSEBERT.finetune_batch,
        "epochs": SPARSEBERT.epochs,
    }
}


def preset_named(name: str) -> dict[str, Any]:
    """The settings of that preset; an unknown one raises UnknownNameError with the nearest."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]
