"""Recovery under a mask: what it learns from, what it leaves, and the class of its model."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_sentences import WORDS, judged, sentence_judge, write_lines, write_sentences
from transformers import AutoModelForSequenceClassification

import masksearch as ms
from masksearch import masks
from masksearch.analysis.row_scores import RowScores
from masksearch.errors import DataError, UnknownNameError
from masksearch.models.pretrained import distance_of_logits
from masksearch.tasks.glue.tasks import GlueTask

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


def test_gates_have_a_source_and_a_batch_of_their_own(data: Path) -> None:
    judge = evaluator(data, gates_batch=4)
    batch = next(judge.differentiable(1).batches)
    assert len(batch["input_ids"]) == 4
    assert "labels" in batch
    assert "target" not in batch
    batch = next(replace(judge, gates_learn_from="dense").differentiable(1).batches)
    assert "target" in batch
    assert "labels" not in batch
    changes = ({}, {"gates_batch": 5}, {"gates_learn_from": "dense"}, {"gates_batch": None})
    assert len({replace(judge, **change).protocol for change in changes}) == 4


def test_what_does_not_go_together_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="give adapt='recover' or 'none', got 'train'"):
        evaluator(data, read_out="own", adapt="train")
    with pytest.raises(UnknownNameError, match="gates_learn_from"):
        evaluator(data, gates_learn_from="both")
    with pytest.raises(ValueError, match="gates_batch must be at least 1, got 0"):
        evaluator(data, gates_batch=0)
    with pytest.raises(UnknownNameError, match="learn_from"):
        ms.CausalEvaluator("recall", learn_from="both")
    scratch = ms.GlueEvaluator(data / "glue" / "SST-2", data / "glue", tasks=("SST-2",))
    with pytest.raises(DataError, match="is not made again"):
        scratch.adapted(masks.star(), seed=0)
