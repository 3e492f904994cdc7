"""Next sentences and their order."""

import random
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_sentences import WORDS

import masksearch as ms
from masksearch.contracts import Batch, Task
from masksearch.errors import DataError
from masksearch.tasks.sentence_pairs import TextWindows, sentence_starts
from masksearch.tasks.text.corpus import Corpus

Kind = Literal["next", "order"]
KINDS: list[Kind] = ["next", "order"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Documents of numbered words: the words tell the document and the place in it."""
    folder = tmp_path_factory.mktemp("pairs")
    draw = random.Random(0)
    paragraphs = []
    for number in range(60):
        lines = [
            " ".join([f"{WORDS[number]}", *draw.choices(WORDS[60:], k=draw.randint(2, 9)), "."])
            for _ in range(draw.randint(1, 12))
        ]
        paragraphs.append("\n".join(lines))
    (folder / "a.txt").write_text("\n\n".join(paragraphs))
    (folder / "valid.txt").write_text("\n\n".join(paragraphs[:15]))
    return Corpus.load(folder, vocabulary=300, length=32, cache=folder)


def task_of(corpus: Corpus, kind: Kind = "next", **settings: Any) -> Any:
    """The task of an evaluator that holds the corpus."""
    how = {"pretraining": f"mlm+{kind}", "length": corpus.length, "split": "all"} | settings
    return ms.MlmEvaluator("text", **how).holding(corpus=corpus).task()


def restored(batch: Batch) -> list[list[int]]:
    return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"]).tolist()


def segments(corpus: Corpus, batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The two segments of each row; checks the form of the row on the way."""
    cls, sep, pad = (corpus.special[role] for role in ("cls", "sep", "pad"))
    found = []
    for row, kind, seen in zip(
        restored(batch),
        batch["token_type_ids"].tolist(),
        batch["attention_mask"].tolist(),
        strict=True,
    ):
        one, two = (at for at, token in enumerate(row) if token == sep)
        assert row[0] == cls
        assert all(token == pad for token in row[two + 1 :])
        assert kind == [0] * (one + 1) + [1] * (two - one) + [0] * (len(row) - two - 1)
        assert seen == [1] * (two + 1) + [0] * (len(row) - two - 1)
        found.append((tuple(row[1:one]), tuple(row[one + 1 : two])))
    return found


def stretches(corpus: Corpus, rows: Any) -> set[tuple[int, ...]]:
    """Every stretch of the text that stays in a document."""
    ids = rows[torch.arange(len(rows))][:, 1:-1].reshape(-1).tolist()
    begins = corpus.begins
    number = 0 if rows is corpus.train else 1
    bounds = [*begins[number].paragraphs.tolist(), len(ids)]
    return {
        tuple(ids[one:two])
        for start, stop in pairwise(bounds)
        for one in range(start, stop)
        for two in range(one + 1, min(stop, one + 30) + 1)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole_words", [False, True])
def test_pairs_are_what_their_labels_say(corpus: Corpus, kind: Kind, whole_words: bool) -> None:
    task = task_of(corpus, batch=16, kind=kind, whole_words=whole_words)
    known = stretches(corpus, corpus.train)
    followed = 0
    for batch in islice(task.batches(0), 25):
        assert all(tensor.dtype == torch.int64 for tensor in batch.values())
        assert batch["next_sentence_label"].shape == (16,)
        labels = batch["next_sentence_label"].tolist()
        for (one, two), label in zip(segments(corpus, batch), labels, strict=True):
            assert one in known
            assert two in known
            assert len(one) >= 1 <= len(two)
            if kind == "next":
                assert (one + two in known) == (label == 0)
                followed += one + two in known
            else:
                assert (two + one if label else one + two) in known
    assert kind == "order" or followed > 100


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_of_a_few_documents_is_in_two_splits(corpus: Corpus, kind: Kind) -> None:
    read = []
    for split in ("validation", "holdout"):
        windows = task_of(corpus, kind=kind, split=split).held_out_windows
        ends = zip(windows.begin.tolist(), windows.stop.tolist(), strict=True)
        read.append({token for begin, stop in ends for token in range(begin, stop)})
        assert ((windows.begin < windows.end) & (windows.end <= windows.stop)).all()
    assert min(map(len, read)) > 50
    assert not read[0] & read[1]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_even(corpus: Corpus, kind: Kind) -> None:
    task = task_of(corpus, batch=100, kind=kind)
    labels = torch.cat([batch["next_sentence_label"] for batch in islice(task.batches(1), 40)])
    assert labels.float().mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("whole_words", [False, True])
def test_scored_tokens_are_a_share_of_the_pair(corpus: Corpus, whole_words: bool) -> None:
    task = task_of(corpus, batch=32, whole_words=whole_words)
    for batch in islice(task.batches(2), 10):
        real = batch["attention_mask"].sum(1) - 3
        scored = (batch["labels"] != -100).sum(1)
        assert scored.tolist() == [max(1, round(0.15 * count)) for count in real.tolist()]
        assert scored.max() == round(0.15 * 29)


def test_an_epoch_shows_every_window_once(corpus: Corpus) -> None:
    task = task_of(corpus, batch=5, kind="order")
    count = len(task.windows)
    seen = []
    for batch in islice(task.batches(0), -(-count // 5)):
        labels = batch["next_sentence_label"].tolist()
        seen += [
            two + one if label else one + two
            for (one, two), label in zip(segments(corpus, batch), labels, strict=True)
        ]
    ids = torch.from_numpy(task.windows.ids.astype("int64"))
    bounds = zip(task.windows.begin.tolist(), task.windows.end.tolist(), strict=True)
    windows = [tuple(ids[one:two].tolist()) for one, two in bounds]
    assert sorted(seen[:count]) == sorted(windows)


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**31),
    start=st.integers(0, 60),
    kind=st.sampled_from(KINDS),
    whole_words=st.booleans(),
)
def test_batches_go_on_where_they_are_asked_to(corpus, seed, start, kind, whole_words):
    task = task_of(corpus, batch=7, kind=kind, whole_words=whole_words)
    one = next(islice(task.batches(seed), start, None))
    two = next(task.batches(seed, start=start))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_is_fixed_and_capped(corpus: Corpus, kind: Kind) -> None:
    task = task_of(corpus, batch=4, held_out_sequences=6, kind=kind)
    assert isinstance(task, Task)
    one, two = task.held_out(), task.held_out()
    assert [len(batch["labels"]) for batch in one] == [4, 2]
    assert all(torch.equal(a[name], b[name]) for a, b in zip(one, two, strict=True) for name in a)
    known = stretches(corpus, corpus.held_out)
    assert all(segment in known for row in segments(corpus, one[0]) for segment in row)
    assert task.name == f"mlm+{kind}"


def test_errors_say_what_to_do(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="at least 7 positions"):
        task_of(replace(corpus, train=corpus.train[torch.arange(9)][:, :6], length=6))
    one = replace(corpus.begins[0], paragraphs=corpus.begins[0].documents)
    whole = replace(corpus, begins=(one, one))
    with pytest.raises(DataError, match=r"holds 1 documents.*needs 2.*kind='order'"):
        next(task_of(whole).batches(0))
    next(task_of(whole, kind="order").batches(0))


# -- windows of documents and sentences ---------------------------------------------------------
@st.composite
def texts(draw: st.DrawFn) -> tuple[Any, Any, Any, int]:
    """Ids (each its own position), documents, sentences and a window's size."""
    count = draw(st.integers(1, 120))
    documents = sorted({0, *draw(st.sets(st.integers(0, count - 1), max_size=6))})
    starts = sorted(draw(st.sets(st.integers(0, count - 1), max_size=20)))
    arrays = np.arange(count), np.array(documents), np.array(starts, np.int64)
    return *arrays, draw(st.integers(4, 30))


@given(texts())
def test_windows_stay_in_their_document_and_leave_nothing_out(text: Any) -> None:
    ids, documents, starts, size = text
    made = TextWindows.cut(ids, documents, starts, size)
    bounds = [*documents.tolist(), len(ids)]
    covered = np.zeros(len(ids), bool)
    begin, end, stop = made.begin.tolist(), made.end.tolist(), made.stop.tolist()
    for one, two, last in zip(begin, end, stop, strict=True):
        number = int(np.searchsorted(documents, one, "right"))
        assert bounds[number - 1] <= one < two <= bounds[number] == last
        assert 4 <= two - one <= size
        assert two == last or two - one == size
        covered[one:two] = True
    for at in np.flatnonzero(~covered):  # only the rest of a document
        number = int(np.searchsorted(documents, at, "right"))
        assert bounds[number] - at < 4
    assert begin == sorted(set(begin))


@given(texts(), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_parts_hold_a_token_and_others_are_elsewhere(text: Any, one: float, two: float) -> None:
    ids, documents, starts, size = text
    made = TextWindows.cut(ids, documents, starts, size)
    every = torch.arange(len(made))
    middle = made.second_starts(every, torch.full((len(made),), one, dtype=torch.float64))
    assert ((made.begin < middle) & (middle < made.end)).all()
    cut = set(made.sentences.tolist())  # sentences, and the cuts of long ones
    assert {*starts.tolist(), *documents.tolist()} <= cut
    for window, at in enumerate(middle.tolist()):
        begin, end = int(made.begin[window]), int(made.end[window])
        inside = {start for start in cut if begin < start < end}
        assert at in inside or not inside
    if len(set(made.group[0].tolist())) > 1:
        other = made.other_documents(every, torch.full((len(made),), two, dtype=torch.float64))
        assert (made.group[0, other] != made.group[0]).all()


def test_elsewhere_reaches_every_other_window_alike() -> None:
    made = TextWindows.cut(np.arange(50), np.array([0, 20, 35]), np.array([], np.int64), 5)
    draw = torch.arange(0, 1, 1 / 60, dtype=torch.float64) + 1e-9
    found = made.other_documents(torch.full((60,), 4), draw)
    # windows of 5 tokens: 4 in the first document, 3 in the second, 3 in the third
    assert found.bincount().nonzero().flatten().tolist() == [0, 1, 2, 3, 7, 8, 9]
    assert found.bincount(minlength=10)[[0, 1, 2, 3, 7, 8, 9]].sub(60 / 7).abs().max() <= 1


def test_sentences_begin_behind_the_last_mark() -> None:
    ends = np.array([False, True, True])
    assert sentence_starts(np.array([0, 0, 1, 0, 2, 1, 0, 1]), ends).tolist() == [3, 6]
    assert sentence_starts(np.array([], np.int64), ends).tolist() == []
