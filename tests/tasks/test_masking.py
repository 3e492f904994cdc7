"""Which tokens are hidden."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from masksearch.tasks.mlm import Masking

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
