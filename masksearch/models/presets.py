"""Published settings of whole runs, to be trained again as they were.

find_preset("sparsebert")["steps"]                  # 7,038
MlmEvaluator.preset("sparsebert", text, size="tiny", steps=800)
"""

from __future__ import annotations

from typing import Any

from masksearch.errors import check_name

MICRO = 64  # sequences of a batch here; the published batch is many of them
PRESETS: dict[str, dict[str, Any]] = {
    # BERT-base as SparseBERT's authors trained it, on books and Wikipedia: the defaults of their
    # repository (github.com/han-shi/SparseBERT: run_pretraining.py, run_glue.py, the shell scripts
    # and bert_config.json), first phase. The second phase at 512 positions is left out: the
    # published tables of gates end at 128.
    # Reference: SparseBERT, arXiv 2102.12871; You et al., arXiv 1904.00962 (LAMB).
    "sparsebert": {
        "size": "base",
        "length": 128,  # positions of a pre-training sequence
        "vocabulary": 30_522,  # token ids, uncased WordPiece
        "batch": MICRO,
        "micro_batches": 65_536 // MICRO,  # sequences of one update, over all machines
        "steps": 7_038,  # updates of pre-training
        "lr": 6e-3,  # its peak
        "optimiser": "lamb",
        "warmup": 0.2843,  # share of the updates in which the rate rises linearly
        "schedule": "sqrt",  # then it falls as in `masksearch.gates.sparsebert.published_rate`
        "pretraining": "mlm+next",  # next-sentence prediction is part of the loss
        "dropout": 0.1,  # of hidden states and attention weights
        "initializer_range": 0.02,
        "finetune_lr": 2.4e-5,  # peak
        "finetune_batch": 16,  # rows
        "epochs": 3,  # passes over a task's training rows
        "tasks": ("MNLI", "QQP", "QNLI", "SST-2", "CoLA", "STS-B", "MRPC", "RTE", "WNLI"),
        "rows": None,  # all training rows
        "dev_rows": None,  # all development rows, of both halves
        "half": "all",
        "finetune_seeds": 3,  # fine-tuning runs of a pre-training; the paper does not say how many
        "convention": "bert",  # F1 of QQP and MRPC, Spearman of STS-B
    }
}


def find_preset(name: str) -> dict[str, Any]:
    """The settings of that preset; an unknown one raises UnknownNameError with the nearest."""
    check_name("preset", name, PRESETS)
    return PRESETS[name]
