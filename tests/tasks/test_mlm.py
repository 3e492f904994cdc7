"""BERT's masking."""

import hashlib
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_sentences import WORDS

import masksearch as ms
from masksearch.errors import DataError
from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.tasks.mlm import Masking, mark_scored
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.tokenizer import word_piece


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("mlm")
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=10)) for _ in range(1_200)]
    (folder / "a.txt").write_text("\n".join(lines))
    return Corpus.load(folder / "a.txt", vocabulary=120, length=32, cache=folder)


def task_of(corpus: Corpus, probability: float = 0.15, **settings: Any) -> Any:
    """The task of an evaluator that holds the corpus."""
    judge = ms.MlmEvaluator("text", length=corpus.length, split="all", **settings)
    return replace(judge.holding(corpus=corpus).task(), probability=probability)


def test_shares_are_80_10_10(corpus: Corpus) -> None:
    task = task_of(corpus, batch=64)
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
    task = task_of(corpus, batch=8, probability=1.0)
    batch = next(task.batches(3))
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert (batch["labels"][:, 1:-1] != -100).all()
    assert (batch["labels"][:, [0, -1]] == -100).all()
    rows = {tuple(row) for row in corpus.train[torch.arange(len(corpus.train))][:, 1:-1].tolist()}
    assert all(tuple(row) in rows for row in batch["labels"][:, 1:-1].tolist())


def test_batches_follow_from_the_seed_alone(corpus: Corpus) -> None:
    task = task_of(corpus, batch=16)
    state = torch.random.get_rng_state()
    first, again, other = (list(islice(task.batches(seed), 40)) for seed in (5, 5, 6))
    assert torch.equal(state, torch.random.get_rng_state())
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(first[0]["input_ids"], other[0]["input_ids"])


def test_an_epoch_shows_every_sequence_once(corpus: Corpus) -> None:
    task = task_of(corpus, batch=7)
    count = len(corpus.train)
    seen: list[tuple[int, ...]] = []
    for batch in islice(task.batches(1), -(-2 * count // 7)):
        whole = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
        seen += [tuple(row) for row in whole.tolist()]
    rows = sorted(tuple(row) for row in corpus.train[torch.arange(count)].tolist())
    assert sorted(seen[:count]) == rows
    assert sorted(seen[count : 2 * count]) == rows
    assert seen[:count] != seen[count : 2 * count]


def test_held_out_is_fixed_and_capped(corpus: Corpus) -> None:
    task = task_of(corpus, batch=4, held_out_sequences=6)
    one, two = task.held_out(), task.held_out()
    assert [len(batch["labels"]) for batch in one] == [4, 2]
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(one, two, strict=True))
    everything = task_of(corpus, held_out_sequences=10**6).held_out()
    assert sum(len(batch["labels"]) for batch in everything) == len(corpus.held_out)


@pytest.mark.parametrize(("probability", "count"), [(0.001, 1), (0.15, 4), (0.5, 15), (1, 30)])
def test_every_sequence_scores_the_same_number(corpus, probability, count):
    task = task_of(corpus, batch=5, probability=probability)
    for batch in islice(task.batches(0), 20):
        assert ((batch["labels"] != -100).sum(1) == count).all()


def test_every_position_is_scored_alike(corpus: Corpus) -> None:
    task = task_of(corpus, batch=64)
    labels = torch.cat([batch["labels"] for batch in islice(task.batches(0), 100)])
    shares = (labels[:, 1:-1] != -100).float().mean(0)
    assert (shares - 4 / 30).abs().max() < 5 * (0.133 * 0.867 / len(labels)) ** 0.5


def test_draws_are_those_of_recorded_experiments() -> None:
    """SOURCE: the task before it could hide whole words, on the same rows."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(95))]
    body = torch.randint(
        5, 100, (50, 14), generator=torch.Generator().manual_seed(0), dtype=torch.int32
    )
    edge = torch.ones(50, 1, dtype=torch.int32)
    rows = torch.cat([edge * 2, body, edge * 3], 1)
    special = {"pad": 0, "unknown": 1, "cls": 2, "sep": 3, "mask": 4}
    made = word_piece({name: number for number, name in enumerate(names)})
    task = task_of(Corpus(made, special, 16, "x", rows[:40], rows[40:]), batch=16)
    digest = hashlib.sha256()
    for batch in [*islice(task.batches(3), 12), *task.held_out()]:
        for name in ("input_ids", "labels"):
            digest.update(batch[name].numpy().tobytes())
    assert digest.hexdigest()[:16] == "ef58ecc392ac6749"


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**31),
    start=st.integers(0, 90),
    batch=st.sampled_from([1, 7, 64, 300]),
    whole_words=st.booleans(),
)
def test_batches_go_on_where_they_are_asked_to(corpus, seed, start, batch, whole_words):
    task = task_of(corpus, batch=batch, whole_words=whole_words)
    start = start if batch < 300 else start % 6  # more than an epoch in either case
    undisturbed = islice(task.batches(seed), start, start + 2)
    for one, two in zip(undisturbed, islice(task.batches(seed, start=start), 2), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_whole_words_are_hidden_together(tmp_path: Path) -> None:
    """A vocabulary of syllables: every word is two tokens."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    syllables = [first + vowel for first in "bdgk" for vowel in "aeiou"]
    (tmp_path / "vocab.txt").write_text(
        "\n".join([*names, *syllables, *("##" + s for s in syllables)])
    )
    draw = random.Random(0)
    words = ["".join(draw.choices(syllables, k=2)) for _ in range(4_000)]
    (tmp_path / "a.txt").write_text(" ".join(words))
    settings = {"tokenizer": tmp_path / "vocab.txt", "length": 34, "cache": tmp_path}
    corpus = Corpus.load(tmp_path / "a.txt", **settings)  # type: ignore[arg-type]
    for batch in islice(task_of(corpus, probability=0.25, whole_words=True).batches(0), 10):
        scored = (batch["labels"] != -100)[:, 1:-1].view(len(batch["labels"]), 16, 2)
        assert torch.equal(scored[..., 0], scored[..., 1])
        assert (scored.sum((1, 2)) == 8).all()


def test_whole_words_need_marks(corpus: Corpus) -> None:
    from tokenizers import Tokenizer, models

    names = corpus.tokenizer.get_vocab()
    plain = Tokenizer(models.WordLevel(names, "[UNK]"))
    task = task_of(replace(corpus, tokenizer=plain), whole_words=True)
    with pytest.raises(DataError, match="whole words cannot be told"):
        next(task.batches(0))


# -- which tokens are hidden --------------------------------------------------------------------
SPECIAL = {"pad": 0, "unknown": 1, "cls": 2, "sep": 3, "mask": 4}
STARTS = torch.tensor([True] * 20 + [False] * 20)  # ids from 20 on go on with a word


def rows(data: st.DataObject) -> torch.Tensor:
    """Rows of words and continuations, some parted by [SEP], some padded."""
    length = data.draw(st.integers(3, 24))
    seed = data.draw(st.integers(0, 2**32))
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 40, (5, length), generator=random)
    tokens[:, 0] = 2
    tokens[:, -1] = 3
    tokens[1, length // 2] = 3
    tokens[2, length // 2 :] = 0
    return tokens


def words_of(row: list[int]) -> list[list[int]]:
    """Positions of each word, by a loop."""
    words: list[list[int]] = []
    for at, token in enumerate(row):
        if token in (0, 2, 3):
            words.append([])
        elif token < 20 or not words[-1]:
            words.append([at])
        else:
            words[-1].append(at)
    return [word for word in words if word]


@given(data=st.data())
def test_whole_words_are_taken_greedily_in_the_order_of_their_draws(data: st.DataObject) -> None:
    tokens = rows(data)
    counts = torch.tensor(data.draw(st.lists(st.integers(1, 12), min_size=5, max_size=5)))
    draw = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1))
    draw = draw.masked_fill(torch.isin(tokens, torch.tensor([0, 2, 3])), 2.0)
    scored = Masking(40, SPECIAL, 0.15, STARTS).whole_words(tokens, draw, counts)
    for row, count in enumerate(counts.tolist()):
        words = sorted(words_of(tokens[row].tolist()), key=lambda word: float(draw[row, word[0]]))
        taken: list[int] = []
        rest: list[int] = []
        for word in words:
            if len(taken) + len(word) <= count:
                taken += word
            else:
                rest += word
        taken += rest[: count - len(taken)]
        assert scored[row].nonzero().flatten().tolist() == sorted(taken)


@given(data=st.data(), whole=st.booleans(), alike=st.booleans())
def test_the_number_of_scored_tokens_is_met(data: st.DataObject, whole: bool, alike: bool) -> None:
    tokens = rows(data)
    count = data.draw(st.integers(1, tokens.shape[1]))
    given = torch.tensor(count) if alike else torch.full((5,), count)
    masking = Masking(40, SPECIAL, 0.15, STARTS if whole else None)
    batch = masking(tokens, given, torch.Generator().manual_seed(0))
    scored = batch["labels"] != -100
    plain = ~torch.isin(tokens, torch.tensor([0, 2, 3]))
    assert torch.equal(scored.sum(1), plain.sum(1).clamp(max=count))
    assert not (scored & ~plain).any()
    assert torch.equal(torch.where(scored, batch["labels"], batch["input_ids"]), tokens)


def test_counts_of_rows_choose_as_one_count_does() -> None:
    tokens = torch.randint(5, 40, (64, 30), generator=torch.Generator().manual_seed(0))
    masking = Masking(40, SPECIAL)
    one = masking(tokens, torch.tensor(5), torch.Generator().manual_seed(3))
    each = masking(tokens, torch.full((64,), 5), torch.Generator().manual_seed(3))
    assert torch.equal(one["labels"], each["labels"])


# -- where scored tokens stand is told with the batch -------------------------------------------
SMALL = "1x16x2"


def batch_of(labels: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = torch.arange(len(labels) * len(labels[0])).view(len(labels), -1) % 40
    return {"input_ids": ids, "labels": torch.tensor(labels)}


def model(pairs: bool = False) -> MaskedLanguageModel:
    return MaskedLanguageModel(encoder(SMALL, 40, 8, seed=0), seed=1, pairs=pairs)


EVEN = [[-100, 4, -100, 9], [7, -100, -100, 3], [-100, -100, 0, 2]]
UNEVEN = [[-100, 4, -100, 9], [7, -100, -100, -100]]


@pytest.mark.parametrize("pairs", [False, True])
def test_located_batches_give_equal_logits_loss_and_gradients(pairs: bool):
    plain = batch_of(EVEN)
    (told,) = mark_scored(iter([plain]))
    assert told["scored"].tolist() == [[1, 3], [0, 3], [2, 3]]
    assert set(plain) == {"input_ids", "labels"}  # the task's own batch is left as it was
    found = []
    for batch in (plain, told):
        made = model(pairs)
        out = made(**batch)
        out.loss.backward()
        gradients = [part.grad for part in made.parameters() if part.grad is not None]
        assert len(gradients) > 20
        found.append((out.logits, out.loss, *gradients))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_parts_of_a_located_batch_stay_located():
    (told,) = mark_scored(iter([batch_of(EVEN)]))
    part = {name: tensor[1::2] for name, tensor in told.items()}
    plain = {name: part[name] for name in ("input_ids", "labels")}
    assert torch.equal(model()(**part).logits, model()(**plain).logits)


def test_rows_with_different_numbers_of_scored_tokens_are_left_to_the_model():
    (told,) = mark_scored(iter([batch_of(UNEVEN)]))
    assert set(told) == {"input_ids", "labels"}


def test_a_located_batch_needs_no_look_at_the_data():
    (told,) = mark_scored(iter([batch_of(EVEN)]))
    blind = model().to("meta")  # a device without data: what has to look fails
    there = {name: tensor.to("meta") for name, tensor in told.items()}
    assert blind(**there).logits.shape == (6, 40)
    del there["scored"]
    with pytest.raises(NotImplementedError, match="nonzero"):
        blind(**there)
