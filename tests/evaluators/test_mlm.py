"""Masked-language-model pre-training as the judge of a mask."""

import inspect
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_data import DATA, real
from tiny_checkpoint import tiny_checkpoint
from torch._dynamo.testing import CompileCounter
from toy_sentences import WORDS, write_sentences

import masksearch as ms
from masksearch import MlmEvaluator, masks
from masksearch.analysis.pareto import learned_nothing
from masksearch.analysis.row_scores import RowScores
from masksearch.attention.attach import attach
from masksearch.contracts import Evaluate, OneShot, Record, Report, Shape
from masksearch.errors import DataError, LengthError, NonFiniteLossError, UnknownNameError
from masksearch.gates.dam import run_one_shot
from masksearch.gates.result import DamResult
from masksearch.gates.sparsebert import published_rate
from masksearch.training.loop import follow_trainings


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words that come in pairs: the neighbour tells the word."""
    draw = random.Random(0)
    lines = []
    for _ in range(1500):
        chosen = draw.choices(WORDS, k=6)
        lines.append(" ".join(f"{word} {word[::-1]}" for word in chosen))
    path = tmp_path_factory.mktemp("evaluator") / "pairs.txt"
    path.write_text("\n".join(lines))
    return path


def evaluator(corpus: Path, **settings: object) -> MlmEvaluator:
    small = {"steps": 10, "size": "nano", "length": 16, "vocabulary": 200, "batch": 8}
    small |= {"cache": corpus.parent / "cache", "held_out_sequences": 32, "device": "cpu"}
    return MlmEvaluator(corpus, **(small | settings))  # type: ignore[arg-type]


@pytest.mark.slow
def test_reports_are_about_even_and_the_last_says_what_a_constant_answer_earns(corpus, tmp_path):
    *curve, last = evaluator(corpus)(masks.window(1), seed=0, workdir=tmp_path)
    assert [report.step for report in (*curve, last)] == [1, 2, 5, 10]
    assert all(set(report.values) == {"loss"} for report in curve)
    assert set(last.values) == {"loss", "loss/majority", "loss/low"}


def test_a_held_out_loss_that_is_not_finite_names_the_remedy(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="loss became nan at step 1 of 4; lower the le"):
        list(evaluator(corpus, steps=4, lr=1e30)(masks.full(), seed=0, workdir=tmp_path))


def test_what_no_context_tells_is_the_loss_of_a_table_of_tokens(corpus: Path) -> None:
    """An independent count: of each shown token, how often each token was the right one."""
    task = evaluator(corpus, vocabulary=100, held_out_sequences=10_000).task()
    text = task.corpus.train[torch.arange(len(task.corpus.train))]
    random, counts = torch.Generator().manual_seed(0), Counter[tuple[int, int]]()
    for _ in range(5):
        batch = task.mask_tokens(text, random)
        scored = batch["labels"] != -100
        shown, labels = batch["input_ids"][scored].tolist(), batch["labels"][scored].tolist()
        counts.update(zip(shown, labels, strict=True))
    seen = Counter[int]()
    for (shown, _), number in counts.items():
        seen[shown] += number
    losses = []
    for batch in task.held_out():
        scored = batch["labels"] != -100
        shown, labels = batch["input_ids"][scored].tolist(), batch["labels"][scored].tolist()
        losses += [
            -math.log((counts[s, y] + 0.1) / (seen[s] + 0.1 * 100))
            for s, y in zip(shown, labels, strict=True)
        ]
    assert task.context_free_loss == pytest.approx(np.mean(losses), rel=0.05)


@pytest.mark.nightly
def test_a_mask_without_context_learns_nothing(corpus: Path, tmp_path: Path) -> None:
    judge = evaluator(corpus, steps=500, lr=5e-3, batch=16, initializer_range=0.15, reports=1)
    for mask, nothing in ((masks.window(0), True), (masks.window(1), False)):
        (last,) = judge(mask, seed=0, workdir=tmp_path / str(nothing))
        record = Record(0, "done", Evaluate(mask), values=last.values)
        assert learned_nothing(record) == nothing
        assert last.values["loss/low"] > last.values["loss"]


def test_both_halves_together_report_what_versions_without_halves_did(corpus, tmp_path):
    *_, last = evaluator(corpus, split="all")(masks.window(1), seed=0, workdir=tmp_path)
    assert set(last.values) == {"loss"}


def test_one_held_out_sequence_is_enough(corpus: Path, tmp_path: Path) -> None:
    *_, last = evaluator(corpus, held_out_sequences=1)(masks.star(), seed=0, workdir=tmp_path)
    assert all(map(math.isfinite, last.values.values()))
    assert RowScores.load(tmp_path / "rows.safetensors").score == pytest.approx(
        last.values["loss"]
    )


def test_held_out_loss_is_the_mean_over_tokens_and_restores_the_mode(corpus: Path) -> None:
    judge = evaluator(corpus)
    parts = judge.differentiable(0)
    parts.model.train()
    mean = judge.held_out_values(parts.model, parts.held_out)["loss"]
    assert parts.model.training
    losses = []
    for batch in parts.held_out:
        for row in range(len(batch["labels"])):
            for position in (batch["labels"][row] != -100).nonzero().flatten().tolist():
                label = torch.full((1, judge.length), -100)
                label[0, position] = batch["labels"][row, position]
                shown = batch["input_ids"][row : row + 1]
                losses.append(parts.model(input_ids=shown, labels=label).loss.item())
    assert mean == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_a_changed_copy_of_a_packed_one_reads_its_own_corpus(corpus: Path) -> None:
    packed = evaluator(corpus).packed()
    assert replace(packed, length=18).task().corpus.length == 18


def test_a_text_that_has_changed_is_read_again(corpus: Path, tmp_path: Path) -> None:
    path, found = tmp_path / "text.txt", []
    for change in (str.lower, str.upper, str.lower):
        path.write_text(change(corpus.read_text()) if found else corpus.read_text())
        found.append(evaluator(path).protocol)
    assert found[0] == found[2] != found[1]


def test_shape_and_objectives() -> None:
    judge = MlmEvaluator("anything", size="mini", length=64, vocabulary=1000)
    assert (judge.shape.length, judge.shape.layers, judge.shape.heads) == (64, 4, 4)
    loss, sparsity = judge.objectives
    assert (loss.name, loss.goal, loss.worst) == ("loss", "min", pytest.approx(math.log(1000)))
    assert (sparsity.name, sparsity.goal, sparsity.worst) == ("sparsity", "max", 0.0)


def test_bfloat16_trains(corpus: Path, tmp_path: Path) -> None:
    judge = evaluator(corpus, precision="bfloat16", steps=5, reports=1)
    (last,) = judge(masks.full(), seed=0, workdir=tmp_path)
    assert math.isfinite(last.values["loss"])


# -- what is pre-trained, and how ----------------------------------------------------------------
def test_pairs_are_reported_beside_the_loss(corpus: Path, tmp_path: Path) -> None:
    judge = evaluator(corpus, pretraining="mlm+order", steps=4)
    *_, last = judge(masks.full(), seed=0, workdir=tmp_path)
    assert set(last.values) == {
        *("loss", "pair_loss", "pair_accuracy", "loss/majority", "loss/low")
    }
    assert 0 <= last.values["pair_accuracy"] <= 1
    parts = judge.differentiable(0)
    batch = next(parts.batches)
    both = judge.losses(parts.model, batch)
    assert both.shape == (2,)
    assert parts.model(**batch).loss.item() == pytest.approx(both.sum().item(), rel=1e-6)


@pytest.mark.slow
def test_dropout_changes_what_is_learnt(corpus: Path, tmp_path: Path) -> None:
    dropping = evaluator(corpus, dropout=0.3)
    first = list(dropping(masks.star(), seed=0, workdir=tmp_path))
    assert list(evaluator(corpus)(masks.star(), seed=0, workdir=tmp_path)) != first


def test_micro_batches_are_one_step(corpus: Path) -> None:
    judge = evaluator(corpus, micro_batches=3)
    seen: list[int] = []
    with follow_trainings(lambda step, config: seen.append(step.tokens)):
        list(judge(masks.full(), seed=0, workdir=corpus.parent / "micro"))
    assert seen == [3 * 8 * 16] * 10


def test_other_architectures_train(corpus: Path, tmp_path: Path) -> None:
    judge = evaluator(corpus, architecture="distilbert", steps=3)
    assert type(judge.build_model(0).encoder).__name__ == "DistilBertModel"
    *_, last = judge(masks.star(), seed=0, workdir=tmp_path)
    assert math.isfinite(last.values["loss"])


def test_preset_is_the_published_run(corpus: Path) -> None:
    judge = MlmEvaluator.preset("sparsebert", corpus)
    config = judge.train_config
    assert judge.shape == Shape(128, 12, 12)
    assert (judge.batch * judge.micro_batches, config.steps) == (65_536, 7_038)
    assert (config.optimiser, config.schedule, config.lr) == ("lamb", "sqrt", 6e-3)
    assert inspect.signature(published_rate).parameters["warmup"].default == judge.warmup
    assert (judge.size, judge.initializer_range) == ("base", 0.02)
    assert (judge.pretraining, judge.dropout, judge.vocabulary) == ("mlm+next", 0.1, 30_522)
    assert MlmEvaluator.preset("sparsebert", corpus, steps=5, batch=2).steps == 5
    with pytest.raises(UnknownNameError, match=r"unknown preset 'sparse'; .* 'sparsebert'"):
        MlmEvaluator.preset("sparse", corpus)


# -- from a checkpoint ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [*WORDS, *(word[::-1] for word in WORDS)]
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), sorted(set(words)))


@pytest.mark.slow
def test_weights_bring_shape_tokenizer_and_vocabulary(corpus, checkpoint, tmp_path):
    judge = evaluator(corpus, weights=checkpoint, size="base", steps=4)
    assert judge.shape == Shape(16, 2, 2)
    assert judge.task().corpus.vocabulary == judge.start.vocabulary
    assert judge.objectives[0].worst == math.log(judge.start.vocabulary)
    stored = judge.start.encoder(dropout=0.0).state_dict()
    for name, weight in judge.build_model(0).encoder.state_dict().items():
        assert torch.equal(weight, stored[name])
    as_it_is = evaluator(corpus, weights=checkpoint, steps=0)
    (report,) = as_it_is(masks.full(), seed=0, workdir=tmp_path)
    held_out = judge.task().held_out()
    assert report.step == 0
    assert report.values["loss"] == judge.held_out_values(judge.build_model(0), held_out)["loss"]
    assert list(judge(masks.full(), seed=0, workdir=tmp_path))[-1].step == 4
    seen = {judge.protocol, as_it_is.protocol, evaluator(corpus, steps=4).protocol}
    assert len(seen) == 3
    assert evaluator(corpus, weights=checkpoint, steps=4).protocol == judge.protocol


def test_a_checkpoint_is_trained_at_a_lower_rate_unless_one_is_given(corpus, checkpoint):
    scratch, trained = evaluator(corpus), evaluator(corpus, weights=checkpoint)
    assert trained.train_config.lr < scratch.train_config.lr / 10
    again = replace(trained, lr=trained.train_config.lr)
    assert again.protocol == trained.protocol
    for judge in (scratch, trained):
        given = replace(judge, lr=7e-4)
        assert given.train_config.lr == 7e-4
        assert given.protocol != judge.protocol


def test_what_does_not_fit_is_refused_before_training(corpus, checkpoint, tmp_path):
    larger = tiny_checkpoint(tmp_path / "larger", ["ban", "dar"], more=3)
    device = "no device '{}' on this machine; take 'auto'"
    for settings, error, said in (
        ({"weights": checkpoint, "length": 64}, LengthError, "48 positions, asked for 64"),
        ({"weights": larger}, DataError, "the tokenizer has 10 ids"),
        ({"weights": tmp_path / "nowhere"}, DataError, "nowhere"),
        ({"device": "cuda:99"}, ValueError, device.format("cuda:99")),
        ({"device": "gpu"}, ValueError, device.format("gpu")),
    ):
        with pytest.raises(error, match=said):
            next(evaluator(corpus, **settings)(masks.full(), seed=0, workdir=tmp_path))


@pytest.mark.nightly
def test_a_compiled_model_learns_the_same(corpus: Path, tmp_path: Path) -> None:
    runs = [
        evaluator(corpus, compile=compiled, steps=4, reports=1)(
            masks.star(), seed=0, workdir=tmp_path
        )
        for compiled in (False, True)
    ]
    losses = [report.values["loss"] for run in runs for report in run]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


@pytest.mark.nightly
def test_every_mask_of_a_worker_is_compiled(corpus, tmp_path, monkeypatch):
    """With a compiler that does nothing, and room for the graphs of one mask alone."""
    counter = CompileCounter()
    as_counted = partialmethod(torch.nn.Module.compile, backend=counter)
    monkeypatch.setattr(torch.nn.Module, "compile", as_counted)
    graphs = []
    with torch._dynamo.config.patch(recompile_limit=2):
        for number in range(2):
            judge = evaluator(corpus, compile=True, steps=1, reports=1)
            list(judge(masks.window(number + 1), seed=0, workdir=tmp_path / str(number)))
            graphs.append(counter.frame_count)
    assert graphs[0] > 0
    assert graphs[1] == 2 * graphs[0]


@real
@pytest.mark.nightly
def test_star_learns_sooner_than_dense_on_wikitext(tmp_path: Path) -> None:
    judge = MlmEvaluator(DATA / "wikitext-2", steps=200, reports=1)
    losses = {}
    for name, mask in (("star", masks.star()), ("dense", masks.full())):
        (last,) = judge(mask, seed=0, workdir=tmp_path)
        losses[name] = last.values["loss"]
    assert losses["star"] < losses["dense"] - 0.02


# -- distillation: a checkpoint under a mask imitates itself without one ------------------------
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
