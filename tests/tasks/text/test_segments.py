"""Windows of documents and sentences."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from masksearch.tasks.sentence_pairs import TextWindows, sentence_starts


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
