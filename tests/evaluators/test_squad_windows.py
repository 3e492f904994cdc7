"""Windows over paragraphs, and answers cut back out of them."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from real_data import DATA, real
from toy_questions import WORDS, squad_json, toy_corpus, write_squad

from masksearch.evaluators.squad import (
    WindowSize,
    cut_windows,
    decode,
    make_windows,
    window_of_most_context,
)
from masksearch.tasks.squad import Question, read_squad, score
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.tokenizer import open_tokenizer, special_ids

CORPUS = toy_corpus(32)


def asked(
    context: str, answer: str, start: int | None = None, text: str = "what"
) -> list[Question]:
    place = context.index(answer) if start is None else start
    return [Question("q", text, context, "T", (answer,), (place,))]


def shown(windows: Any, index: int) -> list[str]:
    tokens = [CORPUS.tokenizer.id_to_token(number) for number in windows[index].ids]
    assert None not in tokens
    return [token for token in tokens if token]


def pointing(windows: Any, strength: float = 9.0) -> list[np.ndarray]:
    """Logits that point at the target of every window; at [CLS] less strongly."""
    tables = []
    for window in windows:
        table = np.zeros((len(window.ids) + 3, 2), np.float32)  # three positions of padding
        high = strength if any(window.span) else strength / 2
        table[window.span[0], 0] = table[window.span[1], 1] = high
        table[len(window.ids) :] = -np.inf
        tables.append(table)
    return tables


def test_a_window_by_hand() -> None:
    questions = asked("ban zo bar, bas. bat", "bar, bas", text="what comes after zo ?")
    windows = make_windows(CORPUS, questions)
    assert len(windows) == 1
    question = ["[CLS]", "what", "comes", "after", "zo", "?", "[SEP]"]
    assert shown(windows, 0) == [*question, *"ban zo bar , bas . bat [SEP]".split()]
    assert (windows[0].first, windows[0].span) == (7, (9, 11))


def test_the_answer_is_in_every_window_that_holds_it_whole() -> None:
    words = [*WORDS[:20], "zo", "zu", *WORDS[20:30]]
    questions = asked(" ".join(words), "zo zu", text="what")
    windows = make_windows(CORPUS, questions, WindowSize(16, stride=4))
    room = 16 - 4
    starts = [int(row[1]) for row in windows.rows]
    assert starts == [0, 4, 8, 12, 16, 20]
    for start, window in zip(starts, windows, strict=True):
        whole = start <= 20 and 21 < min(start + room, 32)
        expected = (20 - start + 3, 21 - start + 3) if whole else (0, 0)
        assert window.span == expected
    assert {window.span == (0, 0) for window in windows} == {True, False}


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 30))
def test_cuts_leave_no_token_out(tokens: int, room: int, step: int) -> None:
    found = cut_windows(tokens, room, step)
    assert {at for start, end in found for at in range(start, end)} == set(range(tokens))
    assert all(end - start <= room for start, end in found)
    assert sorted(set(found)) == found
    assert [end for _, end in found].count(tokens) == 1


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 30))
def test_most_context_matches_a_loop(tokens: int, room: int, step: int) -> None:
    pieces = cut_windows(tokens, room, step)
    owner = window_of_most_context(pieces, tokens)
    for token in range(tokens):
        best, at = -1.0, None
        for index, (start, end) in enumerate(pieces):
            if not start <= token < end:
                continue
            worth = min(token - start, end - token - 1) + 0.01 * (end - start)
            if worth > best:
                best, at = worth, index
        assert owner[token] == at


@pytest.mark.parametrize(
    ("context", "answer", "tokens"),
    [
        ("ban bar.", "bar", (1, 1)),
        ("Ban  BAR", "BAR", (1, 1)),  # capitals and two blanks
        ("café bar", "Café", None),  # another letter: not where the file says
        ("Café bar", "Café", (0, 0)),  # the accent is dropped by the tokenizer only
        ("18ing bar", "ing", (1, 1)),  # begins inside a word, at a piece of it
        ("ban undo bar", "undoing", None),
        ("undoing", "do", (1, 1)),
        ("kitkat ban", "kat", (0, 0)),  # inside a token that no piece ends: the whole of it
        ("ban\u00a0bar", "ban bar", (0, 1)),
        ("ban \u200b bar", "\u200b", None),  # the tokenizer drops it: no token
    ],
)
def test_characters_become_tokens(context, answer, tokens):
    blanks = context.replace("\u00a0", " ").lower()
    start = max(0, blanks.find(answer.lower()))
    question = Question("q", "?", context, "T", (answer,), (start,))
    (window,) = make_windows(CORPUS, [question], training=False)
    assert window.span == ((0, 0) if tokens is None else (3 + tokens[0], 3 + tokens[1]))


def test_misplaced_answers_are_left_out_of_training_alone() -> None:
    context = "ban bar bas bat"
    right = Question("r", "?", context, "T", ("bar",), (4,))
    wrong = Question("w", "?", context, "T", ("bas",), (4,))
    late = Question("l", "?", context, "T", ("bas", "bat"), (4, 12))  # its second answer is right
    none = Question("n", "?", context, "T")
    questions = [wrong, right, late, none]
    training = make_windows(CORPUS, questions)
    assert (training.misplaced, len(training)) == (1, 3)
    assert [window.span for window in training] == [(4, 4), (6, 6), (0, 0)]
    scored = make_windows(CORPUS, questions, training=False)
    assert (scored.misplaced, len(scored)) == (0, 4)
    assert scored[0].span == (0, 0)


def test_long_questions_are_cut() -> None:
    questions = asked("ban zo bar", "bar", text=" ".join(WORDS))
    windows = make_windows(CORPUS, questions, WindowSize(32, question=6))
    assert len(windows) == 1
    assert shown(windows, 0)[:9] == ["[CLS]", *WORDS[:6], "[SEP]", "ban"]
    assert WindowSize(384).longest_question == 64
    assert WindowSize(384).step == 128


def test_answers_come_back_from_their_windows(tmp_path: Path) -> None:
    for words, length in ((9, 32), (70, 24)):
        content = squad_json(3, 8, seed=words, words=words, impossible=0.3)
        questions = read_squad(write_squad(tmp_path / "x.json", content))
        windows = make_windows(CORPUS, questions, WindowSize(length), training=False)
        assert len(windows) == len(windows.lengths)
        assert windows.lengths.tolist() == [len(window.ids) for window in windows]
        found = decode(windows, pointing(windows), questions)
        gold = {question.id: question.answers for question in questions}
        said = {name: answer.text for name, answer in found.items()}
        null = {name: answer.null_score for name, answer in found.items()}
        values = score(said, gold, nullable=True, null_scores=null)
        assert values["HasAns/exact"] == values["NoAns/f1"] == 1.0
        held = pickle.loads(pickle.dumps(windows))
        assert list(held) == list(windows)


def brute(windows: Any, tables: list[np.ndarray], tokens: int, longest: int) -> list[float]:
    """Scores of all allowed spans of a single question, best first."""
    pieces = [(int(row[1]), int(row[1] + row[2])) for row in windows.rows]
    owner = window_of_most_context(pieces, tokens)
    scores = []
    for piece, (start, end) in enumerate(pieces):
        for first in range(start, end):
            for last in range(first, min(end, first + longest)):
                before = windows[piece].first - start
                if owner[first] == piece:
                    table = tables[piece].astype(np.float64)
                    scores.append(table[first + before, 0] + table[last + before, 1])
    return sorted(scores, reverse=True)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**20))
def test_decoding_finds_the_best_of_all_spans(tokens: int, longest: int, seed: int) -> None:
    context = " ".join(WORDS[index] for index in range(tokens))
    questions = asked(context, WORDS[0])
    windows = make_windows(CORPUS, questions, WindowSize(16, stride=5), training=False)
    draw = np.random.default_rng(seed)
    tables = [draw.normal(size=(len(w.ids) + 2, 2)).astype(np.float32) for w in windows]
    scores = brute(windows, tables, tokens, longest)
    found = decode(windows, tables, questions, max_answer=longest)["q"]
    assert found.score == pytest.approx(scores[0])
    null = min(float(table[0].sum()) for table in tables)
    assert found.null_score == pytest.approx(null - scores[0], abs=1e-5)
    assert context[found.start :].startswith(found.text)
    assert 1 <= len(found.text.split()) <= longest


def test_answers_are_cut_from_the_paragraph_itself() -> None:
    context = "Ban  Zo,\tBÁR bas"
    questions = asked(context, "Zo,\tBÁR")
    windows = make_windows(CORPUS, questions, training=False)
    assert decode(windows, pointing(windows), questions)["q"].text == "Zo,\tBÁR"


def test_a_paragraph_without_a_token() -> None:
    questions = [Question("q", "?", " ", "T"), Question("r", "?", "ban", "T")]
    windows = make_windows(CORPUS, questions, training=False)
    found = decode(windows, pointing(windows), questions)
    nothing = found["q"]
    assert (nothing.text, nothing.score, nothing.null_score) == ("", -np.inf, np.inf)
    assert found["r"].text == "ban"


@pytest.mark.nightly
@real
@pytest.mark.parametrize("length", [128, 384])
def test_every_real_question(length: int) -> None:
    folder = DATA
    tokenizer = open_tokenizer(folder / "bert-vocab" / "vocab.txt")
    ids = torch.zeros(2, length, dtype=torch.int32)
    corpus = Corpus(ids, ids, tokenizer, special_ids(tokenizer), "real")
    questions = read_squad(folder / "squad" / "dev-v1.1.json")
    training = make_windows(corpus, questions)
    assert training.misplaced == 0
    windows = make_windows(corpus, questions, training=False)
    assert windows.lengths.max() <= length
    assert len(windows.asked) == len(questions) == 10_570
    seen = [np.zeros(count, bool) for count in windows.contexts.lengths[windows.asked]]
    for question, start, count, _, _ in windows.rows.tolist():
        seen[question][start : start + count] = True
    assert all(part.all() for part in seen)
    found = decode(windows, pointing(windows), questions, max_answer=64)
    missed = [q for q in questions if not any_exact(found[q.id].text, q)]
    # These 23 answers start or end inside a word ("gold" of "golden"): no token ends there.
    assert len(missed) == 23
    assert all(question.answers[0] in found[question.id].text for question in missed)
    values = score(
        {name: answer.text for name, answer in found.items()},
        {question.id: question.answers for question in questions},
    )
    assert values["exact"] == 1 - 23 / 10_570
    assert values["f1"] > 0.998


def any_exact(text: str, question: Question) -> bool:
    return score({"q": text}, {"q": question.answers})["exact"] == 1
