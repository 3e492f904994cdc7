"""Numbers hidden in running text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_decoder import byte_tokenizer

import masksearch as ms
from masksearch.tasks.next_token import NextTokenText, hide_passkeys


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> NextTokenText:
    folder = tmp_path_factory.mktemp("passkeys")
    articles = [f" = {n} = \n" + f"about {n} the cat sat on it and went. " * 40 for n in range(40)]
    for name in ("train", "valid"):
        (folder / f"{name}.txt").write_text("\n".join(articles))
    tokenizer = byte_tokenizer(folder / "letters")
    return NextTokenText.load(folder, tokenizer=tokenizer, length=160, cache=folder)


def test_the_number_stands_once_before_its_question(text: NextTokenText) -> None:
    rows = hide_passkeys(text, "search", 6)
    assert rows.tokens.shape == (6, 160)
    depths = []
    for tokens, needs in zip(rows.tokens, rows.needs, strict=True):
        said = text.tokenizer.decode(tokens.tolist())
        number = said[-5:]
        assert number.isdigit()
        assert said.endswith(f"\nWhat is the pass key? The pass key is {number}")
        assert said.count(f"\nThe pass key is {number}. Remember it.\n") == 1
        assert said.count(number) == 2
        asked = needs.nonzero().flatten().tolist()
        assert asked == list(range(154, 160))
        assert all(tokens[at] == tokens[at - int(needs[at])] for at in asked)
        depths.append(said.index("\nThe pass key is"))
    assert depths == sorted(depths)
    assert depths[-1] - depths[0] > 30
    scored = rows.labels != -100
    assert rows.answers is not None
    assert torch.equal(scored, rows.answers)


def test_halves_have_other_numbers(text: NextTokenText) -> None:
    search, final = (hide_passkeys(text, half, 5) for half in ("search", "final"))
    assert not torch.equal(search.tokens[:, -6:], final.tokens[:, -6:])
    assert hide_passkeys(text, "search", 5).digest() == search.digest()


def test_what_cannot_hide_a_number_says_why(text: NextTokenText, tmp_path: Path) -> None:
    folder = Path(tmp_path)
    (folder / "text.txt").write_text("the cat sat on the mat and went home. " * 200)
    short = NextTokenText.load(
        folder / "text.txt", tokenizer=byte_tokenizer(folder / "letters"), length=40, cache=folder
    )
    with pytest.raises(ms.errors.DataError, match=r"take \d+ tokens, and a sequence has 40"):
        hide_passkeys(short, "all", 2)
    words = NextTokenText.load(folder / "text.txt", vocabulary=40, length=40, cache=folder)
    with pytest.raises(ms.errors.DataError, match="several digits the same ids"):
        hide_passkeys(words, "all", 2)
