"""Running text and planted recall for decoders."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_decoder import byte_tokenizer, tiny_decoder
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from masksearch.errors import UnknownNameError
from masksearch_decoders.tasks.next_token import NextTokenText, repeat_distances
from masksearch_decoders.tasks.recall import Recall

WORDS = [f"w{number}" for number in range(40)]


def write_documents(folder: Path, count: int = 30) -> Path:
    """A text of WikiText articles, 100 words each, the first of which is the article's number."""
    lines = []
    for number in range(count):
        lines.append(f" = w{number} = ")
        lines += [" ".join(WORDS[(number * i) % 40] for i in range(1, 51)) for _ in range(2)]
    path = folder / "text.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> NextTokenText:
    folder = tmp_path_factory.mktemp("text")
    tokenizer = tiny_decoder(folder / "model", [*WORDS, "="])
    path = write_documents(folder)
    settings = {"tokenizer": tokenizer, "length": 12, "cache": folder, "held_out": path}
    train = folder / "train.txt"
    train.write_text(path.read_text() * 2, encoding="utf-8")
    return NextTokenText.load(train, **settings)


def test_every_sequence_is_trained_on_once_a_round(text: NextTokenText) -> None:
    batches = text.batches(0, 8)
    seen = torch.cat([next(batches)["input_ids"] for _ in range(len(text.train) // 8)])
    assert len(seen) == len(text.train) // 8 * 8
    again = text.batches(0, 8, start=3)
    assert torch.equal(next(again)["input_ids"], seen[24:32])
    own = sorted(map(tuple, text.train[torch.arange(len(text.train))].tolist()))
    assert all(tuple(row) in own for row in seen.tolist())


def test_an_unknown_split_is_refused_not_taken_for_all(text):
    with pytest.raises(UnknownNameError, match="unknown split 'search'"):
        text.held_out("search", 9)


def test_no_sequence_begins_in_a_document_of_the_other_split(text: NextTokenText) -> None:
    search, final = (text.held_out(split, 999) for split in ("validation", "holdout"))
    assert not set(search.documents) & set(final.documents)
    both = text.held_out("all", 999)
    assert len(both.tokens) == len(search.tokens) + len(final.tokens) == len(text.held)
    assert len(set(both.documents)) == 30
    few = text.held_out("validation", 5)
    assert len(few.tokens) == 5
    assert few.digest() != search.digest()
    assert (search.labels[:, 0] == -100).all()
    assert (search.labels[:, 1:] == search.tokens[:, 1:]).all()


def test_frequencies_are_those_of_the_training_text(text: NextTokenText) -> None:
    ids, counts = np.unique(text.train.body, return_counts=True)
    share = text.frequencies
    assert share.sum().item() == pytest.approx(1)
    expected = (counts + 1) / (text.train.body.size + text.vocabulary)
    assert share[torch.from_numpy(ids.astype(int))].tolist() == pytest.approx(expected.tolist())


def test_a_text_pickles_with_its_ids(text: NextTokenText) -> None:
    twin = pickle.loads(pickle.dumps(text))
    assert twin.digest == text.digest
    assert twin.held_out("holdout", 9).digest() == text.held_out("holdout", 9).digest()


def test_what_a_tokenizer_puts_in_front_is_in_front_of_every_sequence(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model", [*WORDS, "="])
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.post_processor = TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 0)])
    made.save(str(folder / "tokenizer.json"))
    read = NextTokenText.load(
        write_documents(tmp_path), tokenizer=folder, length=12, cache=tmp_path
    )
    rows = read.held_out("all", 9)
    assert (rows.tokens[:, 0] == 0).all()
    assert read.length == rows.tokens.shape[1] == 12


def test_paragraphs_end_with_a_blank_line(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "bytes")
    path = tmp_path / "text.txt"
    path.write_bytes(b"one\r\ntwo\r\n\r\n\r\nthree\nfour\n\nfive\n" * 9)
    read = NextTokenText.load(path, tokenizer=tokenizer, length=100, cache=tmp_path)
    said = read.tokenizer.decode(read.train.body.reshape(-1).tolist())
    assert said.startswith("one\ntwo\n\nthree\nfour\n\nfive\none\ntwo\n\nthree")
    (tmp_path / "folder").mkdir()
    for name in ("train", "test"):
        (tmp_path / "folder" / f"{name}.txt").write_bytes(path.read_bytes())
    place = {"tokenizer": tokenizer, "length": 100, "cache": tmp_path, "test": True}
    tested = NextTokenText.load(tmp_path / "folder", **place)
    assert tested.tokenizer.decode(tested.held.body[0].tolist()) == said[:100]
    plain = NextTokenText.load(tmp_path / "folder", **(place | {"test": False}))
    assert tested.train_digest == plain.train_digest
    assert len({tested.digest, tested.train_digest, plain.digest}) == 2


@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3))
def test_the_nearest_repeat_is_that_of_a_loop(rows: list[list[int]]) -> None:
    found = repeat_distances(torch.tensor(rows))
    for row, distances in zip(rows, found.tolist(), strict=True):
        for t, distance in enumerate(distances):
            earlier = [s for s in range(1, t) if row[s - 1 : s + 1] == row[t - 1 : t + 1]]
            assert distance == (t - earlier[-1] if earlier else 0)


# -- planted recall -----------------------------------------------------------------------------
SMALL = Recall(pairs=3, keys=6, values=5, fillers=4, middle=7)


@given(
    st.builds(
        Recall,
        pairs=st.integers(1, 4),
        keys=st.integers(4, 6),
        values=st.integers(2, 5),
        middle=st.integers(2, 9),
        follow=st.floats(0, 1),
    ),
    st.integers(0, 99),
)
def test_every_answer_stands_behind_its_key_as_far_back_as_said(task, seed):
    rows = task.rows(3, torch.Generator().manual_seed(seed))
    assert rows.tokens.shape == (3, task.length)
    assert 0 <= rows.tokens.min()
    assert rows.tokens.max() < task.vocabulary
    assert (rows.answers.sum(1) == task.pairs).all()
    for row, needs, answers in zip(rows.tokens, rows.needs, rows.answers, strict=True):
        for at in answers.nonzero().flatten().tolist():
            back = int(needs[at])
            assert task.middle + 2 <= back <= task.middle + 4 * task.pairs - 2
            assert row[at - back] == row[at]
            assert row[at - back - 1] == row[at - 1] < task.keys
    assert ((rows.labels != -100) == (rows.needs > 0)).all()
    assert (rows.labels != -100).sum() == 3 * (task.pairs + task.middle - 1)


def test_an_answer_is_told_once_before() -> None:
    """So nothing but the pair itself says it: where the question is, its key stood once before."""
    rows = SMALL.held_out("validation", 50)
    assert torch.equal(repeat_distances(rows.tokens)[rows.answers], rows.needs[rows.answers])


def test_the_floor_is_what_the_rule_leaves() -> None:
    task = replace(SMALL, middle=2000, pairs=1)
    rows = task.rows(100, torch.Generator().manual_seed(0))
    first = task.keys + task.values
    filler = rows.tokens[:, 2:2002] - first
    named = filler[:, 1:] == task.rule[filler[:, :-1]]
    other = (1 - task.follow) / task.fillers
    share = torch.where(named, task.follow + other, other)
    total = -share.log().sum() / (100 * (1999 + task.pairs))
    assert total.item() == pytest.approx(task.floor, rel=0.03)
    assert replace(SMALL, follow=1.0).floor == 0
    even = replace(SMALL, follow=0.0)
    assert even.floor == pytest.approx(math.log(4) * 6 / 9)


def test_frequencies_are_those_of_the_scored_tokens() -> None:
    rows = SMALL.rows(4000, torch.Generator().manual_seed(1))
    labels = rows.labels[rows.labels != -100]
    found = torch.bincount(labels, minlength=SMALL.vocabulary) / len(labels)
    assert torch.allclose(found.double(), SMALL.frequencies, atol=0.01)


def test_batches_are_a_function_of_the_seed() -> None:
    first, again = (SMALL.batches(3, 4) for _ in range(2))
    several = [next(first)["input_ids"] for _ in range(4)]
    assert torch.equal(next(again)["input_ids"], several[0])
    assert torch.equal(next(SMALL.batches(3, 4, start=2))["input_ids"], several[2])
    assert not torch.equal(next(SMALL.batches(4, 4))["input_ids"], several[0])
    assert SMALL.digest != replace(SMALL, middle=8).digest


def test_what_is_no_task_says_why() -> None:
    with pytest.raises(ValueError, match="keys must be at least 20"):
        Recall(pairs=20)
    with pytest.raises(ValueError, match="follow is a probability"):
        Recall(follow=1.5)
    with pytest.raises(ValueError, match=r"length of at least 34, got 20"):
        Recall.of_length(20)
    assert Recall.of_length(80).length == 80


@pytest.mark.parametrize("begin", [True, False])
def test_ids_are_those_of_the_folders_own_tokenizer(tmp_path: Path, begin: bool) -> None:
    """Every sequence begins as the tokenizer begins a text; between them no id is lost."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<bos>"])
    if begin:
        bos = [("<bos>", made.token_to_id("<bos>"))]
        made.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=bos)
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>").save_pretrained(tmp_path)
    path = tmp_path / "one.txt"
    path.write_text("the caf\u00e9 of w1 and w2 " * 40, encoding="utf-8")
    held = tmp_path / "held.txt"
    held.write_text(path.read_text("utf-8"), encoding="utf-8")
    text = NextTokenText.load(path, tokenizer=tmp_path, length=12, cache=tmp_path, held_out=held)
    theirs = AutoTokenizer.from_pretrained(tmp_path)(path.read_text("utf-8"))["input_ids"]
    rows = text.train[torch.arange(len(text.train))].tolist()
    assert [row[0] for row in rows] == [theirs[0]] * len(rows) or not begin
    ids = [number for row in rows for number in row[begin:]]
    assert ids == theirs[begin : begin + len(ids)]
    assert len(theirs) - len(ids) < 12 + begin
