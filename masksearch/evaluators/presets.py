"""Published settings by name, as arguments of evaluators (`MlmEvaluator.preset`)."""

from __future__ import annotations

from typing import Any

from masksearch.errors import unknown_name
from masksearch.models.published import SPARSEBERT

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
