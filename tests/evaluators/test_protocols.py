"""Protocol ids: recorded results are found by them, so they stay, whatever is rebuilt."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from split_evaluators import causal, decoder, glue, pairs, planted, recall, squad, swag, text
from tiny_checkpoint import tiny_checkpoint
from tiny_decoder import tiny_decoder
from toy_words import WORDS

import masksearch as ms
from masksearch.contracts import STORED_SPLITS

# Computed by the last version whose evaluators were floors of classes (2026-11-22); of those that
# train a head of masked words by the first in which it is transformers' own (2026-12-01).
PINNED = json.loads((Path(__file__).parents[1] / "golden" / "protocols.json").read_text())
SPLITS = ("validation", "holdout", "test", "all")
Maker = Callable[[Path], Any]


def settled(folder: Path) -> Path:
    """A checkpoint whose bytes depend on no version of a library and on no random numbers."""
    config = json.loads((folder / "config.json").read_text())
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    names += ("hidden_size", "intermediate_size", "max_position_embeddings", "vocab_size")
    names += ("model_type", "architectures")
    kept = {name: config[name] for name in names if name in config}
    (folder / "config.json").write_text(json.dumps(kept))
    weights = load_file(folder / "model.safetensors")
    for weight in weights.values():
        weight.copy_((torch.arange(weight.numel()).view(weight.shape) * 7919 % 1000 - 500) / 8192)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def encoder(make: Maker, **changes: Any) -> Maker:
    """An evaluator of tasks on a checkpoint, without a text."""

    def made(folder: Path) -> Any:
        weights = settled(tiny_checkpoint(folder / "checkpoint", list(WORDS)))
        given = {"corpus": None, "weights": weights, "length": 16, **changes}
        return replace(make(folder), **given)

    return made


def changed(make: Maker, **changes: Any) -> Maker:
    return lambda folder: replace(make(folder), **changes)


def from_weights(folder: Path) -> Any:
    weights = settled(tiny_checkpoint(folder / "checkpoint", list(WORDS)))
    return replace(text(folder), weights=weights, length=16)


def trained_decoder(folder: Path) -> Any:
    made = decoder(folder)
    weights = settled(tiny_decoder(folder / "settled", list(WORDS)))
    return replace(made, weights=weights)


RECOVER: dict[str, Any] = {"adapt": "recover", "recover_steps": 3, "learn_from": "dense"}
MAKERS: dict[str, Maker] = {
    "planted": planted,
    "graded": lambda folder: ms.PlantedEvaluator.graded(),
    "text": text,
    "text, pairs": pairs,
    "text, whole words": changed(text, whole_words=True, dropout=0.1, lr=1e-3),
    "text, weights": from_weights,
    **{
        f"{name}, {adapt}": encoder(make, **given)
        for name, make in {"glue": glue, "squad": squad, "swag": swag}.items()
        for adapt, given in {
            "none": {"adapt": "none"},
            "recover": RECOVER,
            "train": {"finetune_seeds": 2, "frozen": 1, "rows": 12},
        }.items()
    },
    "glue, text": changed(glue, convention="bert"),
    "squad, text": changed(squad, null_threshold=0.5),
    "swag, text": swag,
    "decoder, train": causal,
    "decoder, none": trained_decoder,
    "decoder, kl": changed(trained_decoder, kl=True, bands=(4, 8)),
    "decoder, recover": changed(trained_decoder, adapt="recover", recover_tokens=300),
    "decoder, weights trained": changed(trained_decoder, adapt="train", steps=3),
    "recall, train": recall,
    "recall, none": changed(recall, adapt="none"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_protocol_ids_do_not_move(name: str, tmp_path: Path) -> None:
    evaluator = MAKERS[name](tmp_path)
    if name == "cost":
        assert {"all": evaluator.protocol} == PINNED[name]
    else:
        found = {STORED_SPLITS[split]: evaluator.on(split).protocol for split in SPLITS}
        assert found == PINNED[name]


def test_the_default_planted_evaluator_says_its_settings_in_one_way() -> None:
    assert ms.PlantedEvaluator().protocol == "a669c0e73487edd9"
    assert ms.PlantedEvaluator(split="all").protocol == "a669c0e73487edd9"
    for size in ("1x64x2", {"layers": 1, "width": 64, "heads": 2}):
        assert ms.PlantedEvaluator(size=size) == ms.PlantedEvaluator()


# Of each evaluator: settings that make other protocols, and those that make the same.
CHANGES: dict[str, tuple[Maker, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "text": (
        text,
        [
            *({"steps": 21}, {"lr": 1e-3}, {"length": 18}, {"vocabulary": 90}, {"batch": 5}),
            *({"precision": "bfloat16"}, {"size": "tiny"}, {"held_out_sequences": 16}),
            *({"initializer_range": 0.06}, {"pretraining": "mlm+next"}, {"whole_words": True}),
            *({"architecture": "roberta"}, {"dropout": 0.1}, {"micro_batches": 2}),
            *({"optimiser": "lamb"}, {"warmup": 0.1}, {"schedule": "sqrt"}, {"compile": True}),
        ],
        [{"reports": 2}, {"checkpoint_seconds": 1.0}],
    ),
    "glue": (
        glue,
        [{"rows": 10}, {"dev_rows": 9}, {"epochs": 2}, {"finetune_lr": 1e-3}, {"steps": 5}],
        [],
    ),
    "glue, weights": (
        encoder(glue),
        [
            *({"adapt": "none"}, {"adapt": "none", "learn_from": "dense"}, {"adapt": "recover"}),
            *({"adapt": "recover", "learn_from": "dense"}, {"gates_batch": 5}),
            *({"adapt": "recover", "recover_steps": 4}, {"adapt": "recover", "recover_lr": 1e-4}),
            {"gates_learn_from": "dense"},
        ],
        [{"recover_steps": 50}, {"finetune_lr": 5e-5}],
    ),
    "squad": (
        squad,
        [
            *({"rows": 6}, {"dev_rows": 9}, {"epochs": 2}, {"stride": 5}, {"max_question": 9}),
            *({"max_answer": 4}, {"null_threshold": 1.0}, {"finetune_lr": 1e-3}, {"steps": 5}),
            {"split_seed": 1},
        ],
        [],
    ),
    "swag": (
        swag,
        [{"rows": 6}, {"dev_rows": 9}, {"epochs": 2}, {"finetune_lr": 1e-4}, {"split_seed": 1}],
        [],
    ),
    "planted": (
        planted,
        [
            *({"process": ms.PlantedEvaluator().process}, {"steps": 9}, {"size": "tiny"}),
            *({"batch": 6}, {"lr": 1e-3}, {"downstream_steps": 3}, {"downstream_batch": 6}),
            *({"downstream_lr": 1e-3}, {"initializer_range": 0.1}, {"held_out_sequences": 128}),
        ],
        [{"reports": 1}],
    ),
    "decoder": (
        trained_decoder,
        [
            *({"length": 16}, {"bands": (4,)}, {"kl": True}, {"adapt": "train"}),
            *({"adapt": "train", "lr": 2e-3}, {"adapt": "recover"}, {"held_out_sequences": 3}),
            *({"adapt": "recover", "recover_tokens": 5}, {"weights": None}),
            {"weights": None, "steps": 5},
        ],
        [{"batch": 3}, {"size": "mini"}, {"steps": 4}, {"recover_tokens": 9}, {"adapt": "none"}],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_settings_that_scores_depend_on_make_other_protocols(name: str, tmp_path: Path) -> None:
    make, others, same = CHANGES[name]
    base = make(tmp_path)
    protocols = [base.protocol, *(replace(base, **change).protocol for change in others)]
    assert len(set(protocols)) == len(protocols)
    assert {replace(base, **change).protocol for change in same} <= {base.protocol}
