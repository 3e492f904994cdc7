"""Proxy encoders from scratch: BERT and its relatives, small to base, or of any size.

encoder("tiny", vocabulary=4096, length=128, seed=0)
encoder("4x128x4", vocabulary=4096, length=128, seed=0)  # layers x width x heads
encoder("base", vocabulary=50_265, length=512, seed=0, architecture="roberta", pad=1)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from masksearch.errors import check_name, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Size:
    """Layers, hidden width and heads of an encoder; the feed-forward part is 4 x width.

    Raises:
        ValueError: If one is no whole number of at least 1, or the heads do not share the width
            evenly.

    >>> str(Size(layers=4, width=128, heads=4))
    '4x128x4'
    """

    layers: int
    width: int
    heads: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{field.name} of a model is a whole number of at least 1, got {value!r}"
                )
        if self.width % self.heads:
            below = self.width - self.width % self.heads
            near = " or ".join(str(width) for width in (below, below + self.heads) if width)
            raise ValueError(
                f"the width of a model is a multiple of its heads, got width {self.width} with "
                f"{self.heads} heads; {near} is"
            )

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}x{self.heads}"


AnySize = str | Size | Mapping[str, int]  # as people give it
WRITTEN = re.compile(r"(\d+) *x *(\d+) *x *(\d+)")  # layers x width x heads

SIZES = {
    "nano": Size(layers=1, width=64, heads=2),  # the planted corpus
    "tiny": Size(layers=2, width=128, heads=4),
    "mini": Size(layers=4, width=256, heads=4),
    "small": Size(layers=4, width=512, heads=8),
    "medium": Size(layers=8, width=512, heads=8),
    "base": Size(layers=12, width=768, heads=12),  # SparseBERT's model
}

ARCHITECTURES = {  # name -> first part of the class names in transformers
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "modernbert": "ModernBert",
}


def find_size(size: AnySize) -> Size:
    """The size that is meant: a name of `SIZES`, text such as "4x128x4" (layers x width x heads),
    a mapping with these three, or a `Size`.

    Raises:
        UnknownNameError: If a text is neither a name nor such numbers.
        ValueError: If a mapping has other keys, or no model has that size; see `Size`.

    >>> find_size({"layers": 4, "width": 128, "heads": 4})
    Size(layers=4, width=128, heads=4)
    """
    if isinstance(size, Size):
        return size
    if isinstance(size, str):
        written = WRITTEN.fullmatch(size.strip())
        if written is not None:
            return Size(*map(int, written.groups()))
        if size not in SIZES:
            example = "layers x width x heads such as 4x128x4"
            raise unknown_name("model size", size, [*SIZES, example])
        return SIZES[size]
    if not isinstance(size, Mapping) or set(size) != {"layers", "width", "heads"}:
        raise ValueError(
            'a model size is a name, "4x128x4" or {"layers": 4, "width": 128, "heads": 4}, got '
            f"{size!r}"
        )
    return Size(**size)


def size_name(size: AnySize) -> str:
    """The one text of a size: the name that it has in `SIZES`, or its numbers.

    >>> size_name("1x64x2"), size_name({"layers": 4, "width": 128, "heads": 4})
    ('nano', '4x128x4')
    """
    found = find_size(size)
    return next((name for name, known in SIZES.items() if known == found), str(found))


def initial_spread(width: int) -> float:
    """Standard deviation of the initial weights at a width: BERT's 0.02 at 768, as 1/sqrt."""
    return 0.02 * math.sqrt(768 / width)


def encoder(
    size: AnySize,
    vocabulary: int,
    length: int,
    *,
    seed: int,
    dropout: float = 0.0,
    initializer_range: float | None = None,
    architecture: str = "bert",
    pad: int = 0,
) -> PreTrainedModel:
    """A bare Hugging Face encoder with random weights drawn from `seed` alone.

    Where architectures differ, the published base model's choice scales with the width:
    ModernBERT's gated feed-forward part is 1.5 x width, ELECTRA's embeddings are as wide as its
    hidden states. ModernBERT's layers are all global here (the released ones alternate with
    local windows), so that a mask is the only limit on who attends to whom.

    Args:
        size: A name of `SIZES`, "4x128x4" (layers x width x heads), a mapping or a `Size`.
        vocabulary: Number of token ids.
        length: Longest sequence, in positions.
        seed: Seed of the weights; the global generator is left as it was.
        dropout: Probability, for hidden states and attention weights alike.
        initializer_range: Standard deviation of the initial weights; None = BERT's 0.02 at a
            width of 768, scaled by 1 / sqrt(width): narrow models learn sooner from it.
        architecture: A name of `ARCHITECTURES`.
        pad: Token id of the padding. RoBERTa numbers its positions from `pad` + 1 and gives
            that token none, so it must be the tokenizer's.

    Raises:
        UnknownNameError: If there is no such size or architecture.
        ValueError: If `pad` is not a token id, or no model has that size.
    """
    import transformers

    size = find_size(size)
    check_name("architecture", architecture, ARCHITECTURES)
    if architecture == "modernbert" and size.width // size.heads % 2:
        raise ValueError(
            f"a head of modernbert is an even number wide (rotary positions come in pairs), got "
            f"{size.width // size.heads} in {size}"
        )
    if not 0 <= pad < vocabulary:
        raise ValueError(f"pad must be a token id in 0..{vocabulary - 1}, got {pad}")
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
        "max_position_embeddings": length,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": initial_spread(size.width)
        if initializer_range is None
        else initializer_range,
        "pad_token_id": pad,
    }
    bare = {"add_pooling_layer": False} if architecture in ("bert", "roberta") else {}
    if architecture == "roberta":  # one segment, as released; no sequence starts at position 0
        settings |= {"max_position_embeddings": length + pad + 1, "type_vocab_size": 1}
        settings |= {"bos_token_id": None, "eos_token_id": None}
    elif architecture == "electra":
        settings["embedding_size"] = size.width
    elif architecture == "distilbert":
        settings["hidden_dim"] = settings.pop("intermediate_size")
        settings["dropout"] = settings.pop("hidden_dropout_prob")
        settings["attention_dropout"] = settings.pop("attention_probs_dropout_prob")
    elif architecture == "modernbert":
        del settings["hidden_dropout_prob"], settings["attention_probs_dropout_prob"]
        settings |= {f"{part}_dropout": dropout for part in ("attention", "embedding", "mlp")}
        settings |= {"intermediate_size": 3 * size.width // 2}
        settings |= {"layer_types": ["full_attention"] * size.layers}
        settings |= {f"{name}_token_id": None for name in ("bos", "eos", "cls", "sep")}
    name = ARCHITECTURES[architecture]
    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made: PreTrainedModel = getattr(transformers, f"{name}Model")(config, **bare)
    return made


# -- published settings of whole runs, to be trained again as they were ------------------------
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
