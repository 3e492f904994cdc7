"""Masked-language-model pre-training as the judge of a mask."""

import math
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from masksearch import masks
from masksearch.contracts import CarriesData, Evaluator
from masksearch.errors import DataError, EmptyRowError, UnknownNameError
from masksearch.evaluators.mlm import MlmEvaluator, report_steps
from masksearch.masks import Mask
from masksearch.tasks.corpus import Corpus, small

real = pytest.mark.skipif(
    "MASKSEARCH_DATA" not in os.environ, reason="MASKSEARCH_DATA (a data folder) is not set"
)

Outcome = Callable[[Evaluator, Mask], dict[str, Any]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words that come in pairs: the neighbour tells the word."""
    draw = random.Random(0)
    words = [first + vowel + last for first in "bdgk" for vowel in "aeiou" for last in "nrst"]
    lines = []
    for _ in range(1500):
        chosen = draw.choices(words, k=6)
        lines.append(" ".join(f"{word} {word[::-1]}" for word in chosen))
    path = tmp_path_factory.mktemp("evaluator") / "pairs.txt"
    path.write_text("\n".join(lines))
    return path


def evaluator(corpus: Path, **settings: object) -> MlmEvaluator:
    small = {
        "steps": 10,
        "size": "nano",
        "length": 16,
        "vocabulary": 200,
        "batch": 8,
        "cache": corpus.parent / "cache",
        "held_out_sequences": 32,
        "device": "cpu",
    }
    return MlmEvaluator(corpus, **(small | settings))  # type: ignore[arg-type]


def test_report_steps_double_up_to_the_last() -> None:
    assert report_steps(800, 8) == (6, 12, 25, 50, 100, 200, 400, 800)
    assert report_steps(3, 8) == (1, 3)
    assert report_steps(5, 1) == (5,)


def test_reports_are_the_same_twice(corpus: Path, tmp_path: Path) -> None:
    judge = evaluator(corpus)
    runs = [list(judge(masks.window(1), seed=seed, workdir=tmp_path)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert [report.step for report in runs[0]] == [1, 2, 5, 10]
    assert all(set(report.values) == {"loss"} for report in runs[0])


def test_loss_falls(corpus: Path, tmp_path: Path) -> None:
    first, *_, last = evaluator(corpus, steps=40)(masks.window(1), seed=0, workdir=tmp_path)
    assert last.step == 40
    assert last.values["loss"] < first.values["loss"] - 0.1


def test_masks_share_weights_data_and_masking(corpus: Path, tmp_path: Path) -> None:
    judge = evaluator(corpus)
    one, two = judge.differentiable(3), judge.differentiable(3)
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, two.model.state_dict()[name])
    assert torch.equal(next(one.batches)["input_ids"], next(two.batches)["input_ids"])
    assert torch.equal(one.held_out[0]["labels"], two.held_out[0]["labels"])
    other = judge.differentiable(4)
    assert not torch.equal(next(one.batches)["input_ids"], next(other.batches)["input_ids"])
    assert one.model(**one.held_out[0]).loss.requires_grad


def test_held_out_loss_is_the_mean_over_tokens_and_restores_the_mode(corpus: Path) -> None:
    judge = evaluator(corpus)
    parts = judge.differentiable(0)
    parts.model.train()
    mean = judge.held_out_loss(parts.model, parts.held_out)
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


def test_protocol_follows_what_the_score_depends_on(corpus: Path) -> None:
    base = evaluator(corpus)
    changes = [{"steps": 21}, {"lr": 1e-3}, {"length": 18}, {"vocabulary": 150}, {"batch": 4}]
    changes += [{"precision": "bfloat16"}, {"size": "tiny"}, {"held_out_sequences": 16}]
    changes += [{"initializer_range": 0.06}]
    seen = {base.protocol} | {evaluator(corpus, **change).protocol for change in changes}
    assert len(seen) == len(changes) + 1
    assert evaluator(corpus, reports=2, cache=corpus.parent / "two").protocol == base.protocol


def test_pickle_is_small_and_equal(corpus: Path) -> None:
    judge = evaluator(corpus)
    judge.task()
    text = pickle.dumps(judge)
    assert len(text) < 2000
    assert pickle.loads(text) == judge


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DAM")  # four steps teach no gate
def test_packed_is_the_same_where_no_file_is(
    corpus: Path, tmp_path: Path, here: Outcome, elsewhere: Outcome
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    vocabulary = folder / "vocab.txt"
    names = evaluator(corpus).task().corpus.tokenizer.get_vocab()
    vocabulary.write_text("\n".join(sorted(names, key=lambda name: names[name])))
    text = Path(shutil.copy(corpus, folder))
    judge = evaluator(text, cache=folder / "cache", tokenizer=vocabulary)
    expected, packed = here(judge, masks.star()), judge.packed()
    shutil.rmtree(folder)
    assert expected["one-shot"][::2] == ("done", "")
    assert elsewhere(packed, masks.star()) == expected


def test_packed_equals_and_is_packed_once(corpus: Path) -> None:
    judge = evaluator(corpus)
    packed = judge.packed()
    assert isinstance(judge, CarriesData)
    assert packed.packed() is packed
    assert packed is not judge
    assert type(packed) is MlmEvaluator
    assert packed == judge
    assert hash(packed) == hash(judge)
    assert repr(packed) == repr(judge)
    assert len(pickle.dumps(judge)) < 2000 < len(pickle.dumps(packed))
    assert replace(packed, length=18).task().corpus.length == 18  # reads its own corpus


def test_a_corpus_pickles_small_and_whole(corpus: Path) -> None:
    whole = evaluator(corpus).task().corpus
    shipped = pickle.dumps(whole)
    copy: Corpus = pickle.loads(shipped)
    assert torch.equal(copy.train, whole.train)
    assert torch.equal(copy.held_out, whole.held_out)
    assert copy.train.dtype == torch.int32
    assert (copy.special, copy.digest) == (whole.special, whole.digest)
    assert copy.encode(["ban nab dor"]) == whole.encode(["ban nab dor"])
    ids = whole.train.numel() + whole.held_out.numel()  # a byte each: 200 words
    assert len(shipped) < ids + len(whole.tokenizer.to_str()) + 1000
    copy.train[0, 0] = 1  # memory of its own


@pytest.mark.parametrize(
    ("largest", "kind"),
    [(0, "uint8"), (255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32")],
)
def test_ids_take_the_smallest_type_that_holds_them(largest: int, kind: str) -> None:
    ids = np.array([[0, largest]], dtype=np.int32)
    assert small(ids).dtype == kind
    assert (small(ids) == ids).all()


def test_packing_names_a_missing_corpus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such text file"):
        MlmEvaluator(tmp_path / "nowhere").packed()


def test_relative_paths_are_made_absolute(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(corpus.parent)
    assert evaluator(Path("pairs.txt")).corpus == corpus.resolve()


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


def test_errors(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'tiny'"):
        MlmEvaluator(corpus, size="tinny")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        MlmEvaluator(corpus, steps=0)
    with pytest.raises(ValueError, match="reports must be at least 1"):
        MlmEvaluator(corpus, reports=0)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        MlmEvaluator(corpus, precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no such text file"):
        _ = MlmEvaluator(tmp_path / "nowhere").protocol
    with pytest.raises(EmptyRowError):
        list(evaluator(corpus)(masks.shifts([1]), seed=0, workdir=tmp_path))


@real
@pytest.mark.slow
def test_star_learns_sooner_than_dense_on_wikitext(tmp_path: Path) -> None:
    judge = MlmEvaluator(Path(os.environ["MASKSEARCH_DATA"]) / "wikitext-2", steps=200, reports=1)
    losses = {}
    for name, mask in (("star", masks.star()), ("dense", masks.full())):
        (last,) = judge(mask, seed=0, workdir=tmp_path)
        losses[name] = last.values["loss"]
    assert losses["star"] < losses["dense"] - 0.02
