"""Recovery under a mask: what it learns from, what it leaves, and the class of its model."""

import copy
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_sentences import SMALL, WORDS, judged, sentence_judge, write_lines, write_sentences
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

import masksearch as ms
from masksearch import attach, masks
from masksearch.analysis.row_scores import RowScores
from masksearch.errors import DataError, UnknownNameError
from masksearch.evaluators.tuning import rescale
from masksearch.gates.gates import Gates
from masksearch.models.encoders import SequenceClassifier, encoder
from masksearch.models.pretrained import TaskModels, TunedHead, distance_of_logits
from masksearch.tasks.glue.columns import Columns
from masksearch.tasks.glue.tasks import GlueTask
from masksearch_decoders import CausalEvaluator

SCORED = GlueTask(
    "alike", texts=("one", "other"), label="score", labels=(), metrics=("pearson", "spearman")
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes of `write_sentences`, and pairs of sentences scored by the words that they share."""
    folder = write_sentences(tmp_path_factory.mktemp("recovery"))
    draw = random.Random(1)
    for part, count in (("train", 160), ("dev", 120)):
        lines = ["one\tother\tscore"]
        for _ in range(count):
            shared = draw.randint(0, 4)
            words = draw.sample(WORDS, 8)
            other = words[:shared] + words[4 : 8 - shared]
            lines.append(f"{' '.join(words[:4])}\t{' '.join(other)}\t{shared + 1}")
        write_lines(folder / "glue" / "alike" / f"{part}.tsv", lines)
    return folder


def evaluator(data: Path, **settings: Any) -> ms.GlueEvaluator:
    small = {"tasks": (SCORED,), "dropout": 0.0, "adapt": "recover", "learn_from": "both"}
    return sentence_judge(data, **(small | {"recover_steps": 5} | settings))


@pytest.fixture(autouse=True)
def untaught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense models of so few rows have learned little, which is no matter here."""
    monkeypatch.setattr("masksearch.evaluators.finetuning.check_learned", lambda *args: None)


def test_both_sources_have_half_of_the_loss(data: Path) -> None:
    judge = evaluator(data, tasks=("SST-2",))
    head = judge.begin("SST-2", 3).eval()
    teacher = judge.begin("SST-2", 4).eval()
    batch = judge.inputs(judge.tokens("SST-2").train, [0, 3, 5])
    loss = judge.trainer.imitating(teacher, labels=True)(head, batch)
    with torch.no_grad():
        output, target = head(**batch), teacher(**batch).logits
    expected = (output.loss + distance_of_logits(output.logits, target)) / 2
    assert float(loss.detach()) == pytest.approx(float(expected))
    assert float(output.loss) != pytest.approx(float(expected))


@pytest.mark.parametrize("read_out", ["first+mean", "own"])
def test_a_regression_begins_at_the_mean_of_its_labels(data: Path, read_out: str) -> None:
    judge = evaluator(data, read_out=read_out)
    rows = judge.tokens("alike").train
    *_, last = (p for n, p in judge.begin("alike", 1).named_parameters() if n.endswith("bias"))
    assert float(last.detach()) == pytest.approx(float(rows.labels.mean()))
    if read_out != "own":  # as it was recorded
        old = replace(judge, learn_from="labels").begin("alike", 1)
        *_, last = (p for n, p in old.named_parameters() if n.endswith("bias"))
        assert abs(float(last.detach())) < 1


@pytest.mark.slow
@pytest.mark.parametrize("task", [SCORED, "SST-2"])
def test_own_models_open_in_transformers_and_are_taken_as_they_are(data, tmp_path, task):
    judge = evaluator(data, read_out="own", tasks=(task,))
    (name,) = judge.downstream
    dense = judge.dense(name, 1).eval()
    assert judge.shape.read == 1  # BERT's class reads [CLS] alone
    dense.whole.save_pretrained(tmp_path / "dense")
    for file in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        if (path := data / "checkpoint" / file).is_file():
            (tmp_path / "dense" / file).write_bytes(path.read_bytes())
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    batch = judge.inputs(judge.tokens(name).train, [0, 1, 2])
    batch.pop("labels")
    with torch.no_grad():
        assert torch.equal(opened(**batch).logits, dense(**batch).logits)
    if name == "SST-2":
        assert opened.config.id2label == {0: "0", 1: "1"}
    taken = evaluator(data, weights=tmp_path / "dense", tasks=(task,))
    assert taken.shape == judge.shape
    for how in ("none", "recover"):
        first = judged(replace(judge, adapt=how), tmp_path / f"a{how}", masks.star())[0]
        second = judged(replace(taken, adapt=how), tmp_path / f"b{how}", masks.star())[0]
        assert first == second


@pytest.mark.slow
def test_kept_weights_are_scored_on_other_rows_without_training(data, tmp_path):
    judge = evaluator(data, cache=tmp_path / "cache", keep_recovered=True)
    first, steps = judged(judge, tmp_path / "a", masks.star())
    assert steps == judge.finetune_steps("alike") + 5
    final = judge.on("holdout")
    second, none = judged(final, tmp_path / "b", masks.star())
    assert none == 0
    assert second != first
    plain = replace(final, keep_recovered=False)
    assert plain.protocol == final.protocol  # the scores are the same
    assert judged(plain, tmp_path / "c", masks.star()) == (second, 5)
    assert judged(final, tmp_path / "d", masks.window(2))[1] == 5
    assert judged(replace(final, recover_steps=6), tmp_path / "e", masks.star())[1] == 6
    assert len([*(tmp_path / "cache" / "recovered").glob("*.safetensors")]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("read_out", ["first+mean", "own"])
def test_the_adapted_model_is_the_one_that_was_scored(data, tmp_path, read_out, keep):
    judge = evaluator(data, read_out=read_out, keep_recovered=keep)
    judged(judge, tmp_path / "a", masks.star())
    predicted = RowScores.load(tmp_path / "a" / "rows.safetensors").predictions["alike"]
    model = judge.adapted(masks.star(), seed=1)
    assert not model.training
    own = read_out == "own"
    assert hasattr(model, "save_pretrained") == own
    rows = judge.tokens("alike").dev["alike"]
    logits = []
    for at in range(len(rows)):
        batch = judge.inputs(rows, [at])
        batch.pop("labels")
        with torch.no_grad():
            logits.append(float(model(**batch).logits))
    assert logits == pytest.approx(predicted.tolist(), abs=1e-5)
    if own:
        ms.save_pretrained(model, tmp_path / "saved")
        opened = ms.load_pretrained(tmp_path / "saved")
        with torch.no_grad():
            assert torch.equal(opened(**batch).logits, model(**batch).logits)
        assert str(ms.saved_masks(tmp_path / "saved")) != ""


@pytest.mark.slow
def test_gates_have_a_source_and_a_batch_of_their_own(data: Path) -> None:
    judge = evaluator(data, gates_batch=4)
    batch = next(judge.differentiable(1).batches)
    assert len(batch["input_ids"]) == 4
    assert "labels" in batch
    assert "target" not in batch
    batch = next(replace(judge, gates_learn_from="dense").differentiable(1).batches)
    assert "target" in batch
    assert "labels" not in batch


def test_what_does_not_go_together_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="give adapt='recover' or 'none', got 'train'"):
        evaluator(data, read_out="own", adapt="train")
    with pytest.raises(UnknownNameError, match="gates_learn_from"):
        evaluator(data, gates_learn_from="both")
    with pytest.raises(ValueError, match="gates_batch must be at least 1, got 0"):
        evaluator(data, gates_batch=0)
    with pytest.raises(UnknownNameError, match="learn_from"):
        CausalEvaluator("recall", learn_from="both")
    scratch = ms.GlueEvaluator(data / "glue" / "SST-2", data / "glue", tasks=("SST-2",))
    with pytest.raises(DataError, match="is not made again"):
        scratch.adapted(masks.star(), seed=0)


# -- a table of one's own, in any unit -----------------------------------------------------------
def in_unit(data: Path, home: Path, mean: float, step: float, **settings: Any) -> Any:
    """A judge of texts of four words, whose score is `mean` and `step` times that of the words."""
    draw = random.Random(2)
    for part, count in (("train", 192), ("dev", 120)):
        lines = ["text\tscore"]
        for _ in range(count):
            numbers = [draw.randrange(10) for _ in range(4)]
            score = mean + step * sum(numbers) / 4
            lines.append(f"{' '.join(WORDS[at] for at in numbers)}\t{score!r}")
        write_lines(home / "own" / f"{part}.tsv", lines)
    own = {"tasks": (Columns(("text",), "score"),), "weights": data / "checkpoint"}
    small = {"dropout": 0.0, "read_out": "own", "cache": home / "cache", "recover_steps": 5}
    return ms.GlueEvaluator(None, home / "own", **{**SMALL, **own, **small, **settings})


UNITS = [(1e5, 8e4), (0.0, 1e-12), (-3e12, 1e12), (1e5, 1e-3)]


@pytest.mark.parametrize("unit", UNITS)
def test_rows_losses_and_targets_are_the_same_in_every_unit(data, tmp_path, unit):
    mean, step = unit
    one = in_unit(data, tmp_path / "one", 0.0, 1.0, adapt="none")
    other = in_unit(data, tmp_path / "other", *unit, adapt="none")
    rows = [judge.tokens() for judge in (one, other)]
    for part in ("train", "dev"):
        first, second = (
            each.train.labels if part == "train" else each.dev["own"].labels for each in rows
        )
        assert second == pytest.approx(first, abs=1e-6)
    labels = torch.tensor(one.data("own").train.labels, dtype=torch.float64)
    where, spread = float(labels.mean()), float(labels.std(correction=0))
    assert one.unit("own") == pytest.approx((where, spread))
    assert other.unit("own") == pytest.approx((mean + step * where, step * spread), rel=1e-6)
    assert one.protocol != other.protocol
    losses = [
        float(
            judge.begin("own", 1)
            .eval()(**judge.inputs(judge.tokens().train, [0, 1, 2]))
            .loss.detach()
        )
        for judge in (one, other)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["labels", "dense", "both"])
def test_a_model_learns_the_same_in_every_unit_and_answers_in_its_own(data, tmp_path, how):
    found = []
    for name, unit in (("one", (0.0, 1.0)), ("other", (1e5, 8e4))):
        judge = in_unit(data, tmp_path / name, *unit, adapt="recover", learn_from=how, epochs=1)
        judged(judge, tmp_path / name / "work", masks.star())
        rows = RowScores.load(tmp_path / name / "work" / "rows.safetensors")
        model = judge.adapted(masks.star(), seed=1)
        ms.save_pretrained(model, tmp_path / name / "saved")
        opened = ms.load_pretrained(tmp_path / name / "saved")
        some, answers = judge.tokens().dev["own"], []
        for at in range(9):
            batch = {n: p for n, p in judge.inputs(some, [at]).items() if n != "labels"}
            with torch.no_grad():
                answers.append(float(opened(**batch).logits))
        mean, spread = judge.unit("own")
        assert answers == pytest.approx(rows.predictions["own"].tolist()[:9], abs=1e-4 * spread)
        source = replace(judge, gates_learn_from="dense").differentiable(1)
        gap = float(source.model(**next(source.batches)).loss.detach())
        found.append([gap, *((rows.predictions["own"] - mean) / spread)])
    assert found[0] == pytest.approx(found[1], abs=0.01)


@pytest.mark.slow
def test_a_fine_tuned_regression_is_learnt_from_in_the_deviation_of_its_rows(data, tmp_path):
    config = BertConfig.from_pretrained(data / "checkpoint", num_labels=1)
    model = BertForSequenceClassification.from_pretrained(data / "checkpoint", config=config)
    rescale(TunedHead(model, "SequenceClassification"), (1e5, 8e4))  # a user's, in its own unit
    model.save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "vocab.txt").write_bytes((data / "checkpoint/vocab.txt").read_bytes())
    place = {"weights": tmp_path / "tuned", "read_out": "first+mean"}
    judge = in_unit(data, tmp_path, 1e5, 8e4, **place, adapt="none")
    batch = judge.inputs(judge.tokens().train, [0, 1, 2])
    inputs = {name: part for name, part in batch.items() if name != "labels"}
    (mean, spread), model = judge.unit("own"), model.eval()
    with torch.no_grad():
        theirs, ours = model(**inputs).logits.double(), judge.dense("own", 1).eval()(**batch)
        torch.testing.assert_close(
            ours.logits.double(), (theirs - mean) / spread, atol=1e-5, rtol=1e-5
        )
        saved = judge.adapted(masks.full(), seed=1)(**inputs).logits.double()
    torch.testing.assert_close(saved, theirs, atol=1e-5 * spread, rtol=1e-6)
    other = in_unit(data, tmp_path / "other", 0.0, 1.0, **place, adapt="none")
    names = {
        each.dense_models.path(each.dense_recipe("own", 1), each.dense("own", 1)).name
        for each in (judge, other)
    }
    assert len(names) == 2  # whose labels alone are alike


# -- several tasks' models as one ---------------------------------------------------------------
INPUTS = {
    "input_ids": torch.arange(2, 14).reshape(2, 6),
    "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
}


def classifiers() -> list[SequenceClassifier]:
    """Two and three classes, each on an encoder of its own."""
    bodies = [encoder("nano", 20, 8, seed=seed) for seed in (0, 1)]
    return [SequenceClassifier(body, 2 + n, seed=n) for n, body in enumerate(bodies)]


def test_every_task_is_computed_with_its_own_weights_under_one_mask() -> None:
    single = [copy.deepcopy(model).eval() for model in classifiers()]
    both = TaskModels(classifiers()).eval()
    attach(both, masks.window(1))
    for number, alone in enumerate(single):
        attach(alone, masks.window(1))
        found = both(**INPUTS, task=torch.tensor(number)).logits
        torch.testing.assert_close(found, alone(**INPUTS).logits)


def test_gates_get_gradients_from_every_task_and_weights_none() -> None:
    both = TaskModels(classifiers()).requires_grad_(False)
    gates = Gates("free", length=8, heads=2)
    attach(both, gates)
    for number in (0, 1):
        loss = both(**INPUTS, labels=torch.tensor([0, 1]), task=torch.tensor(number)).loss
        (found,) = torch.autograd.grad(loss, [gates.logits])
        assert float(found.abs().sum()) > 0


def test_one_encoder_under_several_heads_is_trained_by_all() -> None:
    body = encoder("nano", 20, 8, seed=0)
    both = TaskModels([SequenceClassifier(body, labels, seed=0) for labels in (2, 3)])
    for number in (0, 1):
        loss = both(**INPUTS, labels=torch.tensor([0, 1]), task=torch.tensor(number)).loss
        loss.backward()
        assert all(p.grad is not None for p in both.models[number].out.parameters())
    assert len({id(p) for p in both.parameters()}) == len(list(both.parameters()))


# -- logits as targets ---------------------------------------------------------------------------
tables = st.integers(1, 4).flatmap(
    lambda rows: st.lists(
        st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3), min_size=rows, max_size=rows
    )
)


def divergence(said: list[float], wanted: list[float]) -> float:
    """Kullback-Leibler divergence of softmaxes, in nats, by a loop."""
    top = [math.exp(x) / sum(map(math.exp, wanted)) for x in wanted]
    own = [math.exp(x) / sum(map(math.exp, said)) for x in said]
    return sum(p * math.log(p / q) for p, q in zip(top, own, strict=True))


@given(tables, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_distance_of_classes_is_the_divergence(wanted: list[list[float]], draw) -> None:  # type: ignore[no-untyped-def]
    said = [[draw.uniform(-5, 5) for _ in row] for row in wanted]
    expected = sum(map(divergence, said, wanted)) / len(said)
    found = distance_of_logits(torch.tensor(said), torch.tensor(wanted))
    assert float(found) == pytest.approx(expected, abs=1e-4)
    shifted = torch.tensor(said) + 3
    assert float(distance_of_logits(shifted, torch.tensor(wanted))) == pytest.approx(
        float(found), abs=1e-4
    )


def test_distance_of_scores_is_squared() -> None:
    said, wanted = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]])
    assert float(distance_of_logits(said, wanted)) == 2.5


def test_padded_positions_of_spans_count_nothing() -> None:
    def padded(logits: Tensor) -> Tensor:
        return torch.cat([logits, torch.full((2, 3, 2), -torch.inf)], 1)

    said, wanted = torch.randn(2, 2, 5, 2).unbind(0)
    said.requires_grad_()
    short = distance_of_logits(said, wanted)
    long = distance_of_logits(padded(said), padded(wanted))
    assert float(long.detach()) == pytest.approx(float(short.detach()), rel=1e-5)
    (gradient,) = torch.autograd.grad(long, [said])
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
