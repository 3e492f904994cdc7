"""Pre-training by distillation: a checkpoint under a mask imitates itself without one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_sentences import WORDS, write_sentences

import masksearch as ms
from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.contracts import OneShot, Report
from masksearch.gates.dam import run_one_shot
from masksearch.gates.result import DamResult

NARROW = masks.window(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy GLUE tasks, a checkpoint, and text of its words."""
    folder = write_sentences(tmp_path_factory.mktemp("distil"))
    lines = [" ".join(WORDS[(7 * at + 3 * step) % 80] for step in range(9)) for at in range(400)]
    (folder / "text.txt").write_text("\n\n".join(lines))
    return folder


def settings(data: Path, **changes: Any) -> dict[str, Any]:
    small = {"length": 16, "batch": 4, "steps": 6, "held_out_sequences": 8, "dropout": 0.0}
    small |= {"pretraining": "distil", "weights": data / "checkpoint", "lr": 1e-3}
    return small | {"cache": data / "cache", "device": "cpu", **changes}


def text(data: Path, **changes: Any) -> ms.MlmEvaluator:
    return ms.MlmEvaluator(data / "text.txt", **settings(data, **changes))


def glue(data: Path, **changes: Any) -> ms.GlueEvaluator:
    some = {"tasks": ("RTE",), "rows": 32, "epochs": 1, "finetune_batch": 8}
    return ms.GlueEvaluator(
        data / "text.txt", glue=data / "glue", **settings(data, **some, **changes)
    )


@pytest.mark.slow
def test_a_checkpoint_under_the_full_mask_loses_nothing_and_training_helps_others(data, tmp_path):
    (whole,) = text(data, steps=0)(masks.full(), seed=0, workdir=tmp_path / "full")
    (before,) = text(data, steps=0)(NARROW, seed=0, workdir=tmp_path / "narrow")
    *_, after = text(data, steps=40)(NARROW, seed=0, workdir=tmp_path / "trained")
    assert whole.values["loss"] == pytest.approx(0, abs=1e-10)
    assert 0 < after.values["loss"] < 0.5 * before.values["loss"]


@pytest.mark.slow
def test_the_loss_is_each_tokens_error_by_its_targets_size(data, tmp_path):
    """An independent loop over tokens, with the checkpoint opened by transformers alone."""
    from transformers import AutoModel

    judge = text(data, steps=0)
    *_, last = judge(NARROW, seed=0, workdir=tmp_path)
    teacher = AutoModel.from_pretrained(data / "checkpoint", add_pooling_layer=False).eval()
    student = judge.start.encoder(dropout=0.0).eval()
    attach(student, NARROW)
    corpus, errors, wanted = judge.task().corpus, list[float](), list[torch.Tensor]()
    for row in judge.task().held_out_rows:
        ids = corpus.held_out[row[None]].long()
        with torch.no_grad():
            states, targets = (m(ids).last_hidden_state[0] for m in (student, teacher))
        pairs = zip(states, targets, strict=True)
        errors += [float((state - target).norm() / target.norm()) ** 2 for state, target in pairs]
        wanted += list(targets.double())
    assert last.values["loss"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    of_mean = torch.stack(wanted)
    shares = (of_mean - of_mean.mean(0)).square().sum(1) / of_mean.square().sum(1)
    assert 0 < last.values["loss/majority"] <= float(shares.mean()) + 1e-9


def test_only_the_masked_model_has_a_gradient(data):
    made = text(data).differentiable(0)
    batch = next(made.batches)
    assert set(batch) == {"input_ids", "target"}
    assert not batch["target"].requires_grad
    attach(made.model, NARROW)
    made.model(**batch).loss.backward()
    grads = {name: part.grad for name, part in made.model.named_parameters()}
    assert all(name.startswith("encoder.") for name in grads)
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in grads.values()) > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DAM")
def test_gates_learn_from_it(data, tmp_path):
    def reports() -> Iterator[Report]:
        gates = {"structure": "toeplitz+global", "signed": True, "layers": 2, "heads": 1}
        job = OneShot(gates, {"steps": 12, "gate_lr": 0.5, "density": 0.4, "lr": 1e-4})
        return run_one_shot(glue(data), job, seed=0, workdir=tmp_path)

    *_, last = reports()
    assert 0 < last.values["discretised"] < 1
    made = DamResult.load(tmp_path / "gates.safetensors")
    assert made.probabilities.std() > 0.01


@pytest.mark.parametrize("make", [text, glue])
def test_without_a_checkpoint_there_is_nothing_to_imitate(data, make):
    with pytest.raises(ValueError, match=r"imitates a .*; give the checkpoint as weights="):
        make(data, weights=None)


def test_it_is_a_protocol_of_its_own_scored_between_zero_and_one(data):
    assert len({text(data, pretraining=kind).protocol for kind in ("mlm", "distil")}) == 2
    loss, _ = text(data).objectives
    assert (loss.name, loss.goal, loss.worst, loss.margin) == ("loss", "min", 1.0, None)
