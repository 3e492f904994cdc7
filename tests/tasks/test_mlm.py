"""BERT's masking."""

import random
from itertools import islice
from pathlib import Path

import pytest
import torch

from masksearch.tasks.corpus import Corpus
from masksearch.tasks.mlm import MlmTask


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("mlm")
    draw = random.Random(0)
    words = [first + vowel + last for first in "bdgk" for vowel in "aeiou" for last in "nrst"]
    lines = [" ".join(draw.choices(words, k=10)) for _ in range(1_200)]
    (folder / "a.txt").write_text("\n".join(lines))
    return Corpus.load(folder / "a.txt", vocabulary=120, length=32, cache=folder)


def test_shares_are_80_10_10(corpus: Corpus) -> None:
    task = MlmTask(corpus, batch=64)
    batches = list(islice(task.batches(0), 100))
    shown = torch.cat([batch["input_ids"] for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    inner = shown[:, 1:-1].numel()
    scored = labels != -100
    assert scored.sum() / inner == pytest.approx(4 / 30)
    hidden = shown[scored] == corpus.special["mask"]
    same = shown[scored] == labels[scored]
    assert hidden.float().mean() == pytest.approx(0.8, abs=0.01)
    assert same.float().mean() == pytest.approx(0.1 + 0.1 / 120, abs=0.01)


def test_labels_are_the_text_and_specials_are_not_scored(corpus: Corpus) -> None:
    task = MlmTask(corpus, batch=8, probability=1.0)
    batch = next(task.batches(3))
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert (batch["labels"][:, 1:-1] != -100).all()
    assert (batch["labels"][:, [0, -1]] == -100).all()
    rows = {tuple(row) for row in corpus.train[:, 1:-1].tolist()}
    assert all(tuple(row) in rows for row in batch["labels"][:, 1:-1].tolist())


def test_unscored_tokens_are_shown(corpus: Corpus) -> None:
    batch = next(MlmTask(corpus, batch=8).batches(3))
    kept = batch["labels"] == -100
    rows = {tuple(row) for row in corpus.train.tolist()}
    text_rows = torch.where(kept, batch["input_ids"], batch["labels"])
    assert all(tuple(row) in rows for row in text_rows.tolist())


def test_batches_follow_from_the_seed_alone(corpus: Corpus) -> None:
    task = MlmTask(corpus, batch=16)
    state = torch.random.get_rng_state()
    first, again, other = (list(islice(task.batches(seed), 40)) for seed in (5, 5, 6))
    assert torch.equal(state, torch.random.get_rng_state())
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(first[0]["input_ids"], other[0]["input_ids"])


def test_an_epoch_shows_every_sequence_once(corpus: Corpus) -> None:
    task = MlmTask(corpus, batch=7)
    count = len(corpus.train)
    seen: list[tuple[int, ...]] = []
    for batch in islice(task.batches(1), -(-2 * count // 7)):
        whole = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
        seen += [tuple(row) for row in whole.tolist()]
    rows = sorted(tuple(row) for row in corpus.train.tolist())
    assert sorted(seen[:count]) == rows
    assert sorted(seen[count : 2 * count]) == rows
    assert seen[:count] != seen[count : 2 * count]


def test_held_out_is_fixed_and_capped(corpus: Corpus) -> None:
    task = MlmTask(corpus, batch=4, held_out_sequences=6)
    one, two = task.held_out(), task.held_out()
    assert [len(batch["labels"]) for batch in one] == [4, 2]
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(one, two, strict=True))
    everything = MlmTask(corpus, held_out_sequences=10**6).held_out()
    assert sum(len(batch["labels"]) for batch in everything) == len(corpus.held_out)


@pytest.mark.parametrize(("probability", "count"), [(0.001, 1), (0.15, 4), (0.5, 15), (1, 30)])
def test_every_sequence_scores_the_same_number(
    corpus: Corpus, probability: float, count: int
) -> None:
    task = MlmTask(corpus, batch=5, probability=probability)
    for batch in islice(task.batches(0), 20):
        assert ((batch["labels"] != -100).sum(1) == count).all()


def test_every_position_is_scored_alike(corpus: Corpus) -> None:
    task = MlmTask(corpus, batch=64)
    labels = torch.cat([batch["labels"] for batch in islice(task.batches(0), 100)])
    shares = (labels[:, 1:-1] != -100).float().mean(0)
    assert (shares - 4 / 30).abs().max() < 5 * (0.133 * 0.867 / len(labels)) ** 0.5


def test_arguments_are_checked(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch must be at least 1"):
        MlmTask(corpus, batch=0)
    with pytest.raises(ValueError, match="probability is a share"):
        MlmTask(corpus, probability=0)
    with pytest.raises(ValueError, match="held_out_sequences"):
        MlmTask(corpus, held_out_sequences=0)
