"""Passkeys: a number hidden in running text, and asked for at its end.

rows = hide_passkeys(text, "search", 32)     # NextTokenRows; the number is all that is scored

Whether a decoder repeats it says whether its attention still reaches that far back: the number
is random, so nothing else in the text says it.
"""

from __future__ import annotations

import numpy as np
import torch

from masksearch.contracts import Half, generator
from masksearch.errors import DataError
from masksearch.tasks.next_token import NextTokenRows, NextTokenText
from masksearch.tasks.text.tokenizer import encode

NUMBERS = 67  # stream of random numbers
DRAWS = {"search": 0, "final": 1, "test": 2, "all": 3}
LEAST, MOST = 10_000, 100_000  # numbers of five digits
HIDDEN = ("\nThe pass key is", " {}", ". Remember it.\n")  # before, the number, behind
ASKED = "\nWhat is the pass key? The pass key is"


def hide_passkeys(text: NextTokenText, half: Half, count: int) -> NextTokenRows:
    """Held-out sequences, each with a sentence that names a number and, at the end, the question.

    The sentences lie at depths spread evenly from the begin to the end; the text around them is
    cut, so that every sequence keeps its length.

    Args:
        text: The running text.
        half: Which of its held-out sequences, and which draw of numbers.
        count: Sequences; the text's repeat where it has fewer.

    Returns:
        Labels, `answers` and `needs` are of the number's tokens alone.

    Raises:
        DataError: If the tokenizer tells no digits apart, or a sequence is too short for sentence
            and question.

    Reference: Mohtashami and Jaggi, arXiv 2305.16300, Section 4.2.
    """
    digits = encode(text.tokenizer, [f" {digit}" for digit in range(10)])
    if len(set(map(tuple, digits))) < 10:
        raise DataError(
            "the tokenizer gives several digits the same ids, so passkeys cannot be told apart; "
            "use one that knows digits, or leave passkeys out"
        )
    base = text.held_out(half, count)
    front = len(text.prefix)
    numbers = torch.randint(LEAST, MOST, (count,), generator=generator(NUMBERS, DRAWS[half]))
    tokens = np.empty((count, text.length), np.int64)
    needs = torch.zeros(count, text.length, dtype=torch.int64)
    for row, number in enumerate(numbers.tolist()):
        before, said, behind, asked = encode(
            text.tokenizer, [*(part.format(number) for part in HIDDEN), ASKED]
        )
        body = base.tokens[row % len(base.tokens), front:].tolist()
        room = text.length - front - len([*before, *said, *behind, *asked, *said])
        if room < 0:
            raise DataError(
                f"a passkey and its question take {text.length - front - room} tokens, and a "
                f"sequence has {text.length}; give a larger length, or leave passkeys out"
            )
        depth = round((row + 0.5) / count * room)
        hidden = [*body[:depth], *before, *said, *behind, *body[depth:room], *asked, *said]
        tokens[row] = [*text.prefix, *hidden]
        back = text.length - len(said) - (front + depth + len(before))
        needs[row, -len(said) :] = back
    made = torch.from_numpy(tokens)
    answers = needs > 0
    documents = base.documents[np.arange(count) % len(base.tokens)]
    return NextTokenRows(made, torch.where(answers, made, -100), documents, needs, answers)
