"""Streams of ids, and rows over them that stand for a tensor."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masksearch.tasks.text.packing import (
    Boundaries,
    TokenStream,
    encode_stream,
    id_type,
    read_stream,
)
from masksearch.tasks.text.tokenizer import word_piece

TEXT, PARAGRAPH, DOCUMENT = 0, 1, 2  # what begins with a piece
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "c", "."]


def rows(count: int = 23, length: int = 6) -> tuple[Any, torch.Tensor]:
    ids = np.arange(5, 5 + count * (length - 2) + 1, dtype=np.uint16)
    body = torch.from_numpy(ids[:-1].astype(np.int32)).view(count, length - 2)
    edge = torch.ones(count, 1, dtype=torch.int32)
    begins = Boundaries(len(ids), np.array([0]), np.array([0]))
    made, _ = TokenStream(ids, begins).packed(length, (2,), (3,))
    return made, torch.cat([edge * 2, body, edge * 3], 1)


@pytest.mark.parametrize("chosen", [[3, 0, 22, 3], [], range(23)])
def test_rows_are_copies_of_those_of_the_tensor(chosen: Sequence[int]) -> None:
    lazy, whole = rows()
    assert lazy.shape == whole.shape
    assert len(lazy) == len(whole)
    found = lazy[torch.tensor([*chosen], dtype=torch.int64)]
    assert torch.equal(found, whole[[*chosen]])
    assert found.dtype == torch.int32
    found.zero_()
    assert torch.equal(lazy[torch.arange(23)], whole)
    with pytest.raises(IndexError, match="index 23 is out of bounds"):
        lazy[torch.tensor([23])]


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
def test_stream_and_boundaries_match_a_loop(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("masksearch.tasks.text.packing.CHUNK", chunk)
    draw = random.Random(1)
    marks = [DOCUMENT, *draw.choices([TEXT, PARAGRAPH, DOCUMENT], k=60)]
    texts = [(mark, " ".join(draw.choices(["a", "bb", ".", "", "z"], k=5))) for mark in marks]
    made = word_piece({token: number for number, token in enumerate(TOKENS)})
    count = encode_stream(made, iter(texts), tmp_path, "train")
    stream = read_stream(tmp_path, "train", count, id_type(made))
    ids: list[int] = []
    documents, paragraphs = set(), set()
    for mark, text in texts:
        documents |= {len(ids)} if mark == DOCUMENT else set()
        paragraphs |= {len(ids)} if mark != TEXT else set()
        ids += made.encode(text, add_special_tokens=False).ids
    assert stream.ids.tolist() == ids
    assert stream.begins.documents.tolist() == sorted(at for at in documents if at < len(ids))
    assert stream.begins.paragraphs.tolist() == sorted(at for at in paragraphs if at < len(ids))


@given(st.sets(st.integers(1, 40)), st.integers(0, 40), st.integers(0, 40))
def test_part_counts_from_its_start(inner: set[int], one: int, two: int) -> None:
    start, stop = min(one, two), max(one, two)
    begins = Boundaries(41, np.array([0]), np.array(sorted({0, *inner})))
    part = begins.part(start, stop)
    expected = {0} | {at - start for at in inner if start < at < stop} if stop > start else set()
    assert part.paragraphs.tolist() == sorted(expected)
    assert part.tokens == stop - start
