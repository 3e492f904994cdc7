"""From the scores of every window to one answer a question, cut from the paragraph's own text.

answers = decode(windows, logits, data.dev)
answers["56be4db0acb8001400a502ec"].text, answers["56be4db0acb8001400a502ec"].null_score
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from masksearch.tasks.squad.data import Question
from masksearch.tasks.squad.windows import (
    COUNT,
    QUESTION,
    START,
    Numbers,
    SquadWindows,
    window_of_most_context,
)


@dataclass(frozen=True)
class Span:
    """A possible answer.

    Args:
        text: Cut from the paragraph.
        start: Its first character in the paragraph.
        score: Logit of its first token as a start plus that of its last one as an end.
    """

    text: str
    start: int
    score: float


@dataclass(frozen=True)
class Answer:
    """What is answered to a question.

    Args:
        spans: The best spans with different texts, the best one first; none where the paragraph
            has no token.
        null_score: The score of no answer (both ends on [CLS], the lowest of all windows) minus
            the score of the best span.
    """

    spans: tuple[Span, ...]
    null_score: float

    @property
    def text(self) -> str:
        """The best span's text; `""` where there is none."""
        return self.spans[0].text if self.spans else ""


def decode(
    windows: SquadWindows,
    logits: Sequence[Numbers],
    questions: Sequence[Question],
    *,
    best: int = 1,
    max_answer: int = 30,
) -> dict[str, Answer]:
    """Finds each question's best spans over all of its windows.

    A span starts no later than it ends, holds at most `max_answer` tokens, lies in the
    paragraph's part of one window, and starts at a token of which that window shows most
    context. All such spans are compared, not only those among the best starts and ends.

    Args:
        windows: Made with `training=False` from the same questions.
        logits: For every window, float `[positions, 2]`: of the start and of the end; padding
            behind the window's own positions is passed over.
        questions: The questions.
        best: Number of spans in an answer.
        max_answer: Largest number of tokens of an answer.

    Returns:
        Question id -> answer.

    Reference: BERT, arXiv 1810.04805, Sections 4.2 and 4.3.

    Raises:
        ValueError: If the windows are not those of the questions, or `best` or `max_answer` is
            below 1.
    """
    if best < 1 or max_answer < 1:
        raise ValueError(f"best and max_answer are at least 1, got {best} and {max_answer}")
    if len(logits) != len(windows) or len(windows.asked) != len(questions):
        raise ValueError(
            f"{len(logits)} tables of logits and {len(questions)} questions for {len(windows)} "
            f"windows of {len(windows.asked)} questions; make the windows with training=False"
        )
    found, lengths = {}, windows.lengths.tolist()
    groups = groupby(range(len(windows)), key=lambda index: int(windows.rows[index, QUESTION]))
    for number, group in groups:
        question = questions[number]
        offsets = windows.offsets[windows.contexts.place(int(windows.asked[number]))]
        indices, null = list(group), np.inf
        candidates: list[tuple[float, int, int]] = []
        pieces = [
            (start, start + count)
            for start, count in windows.rows[indices][:, [START, COUNT]].tolist()
        ]
        owner = window_of_most_context(pieces, len(offsets))
        for piece, index in enumerate(indices):
            table, (start, end) = logits[index], pieces[piece]
            null = min(null, float(table[0, 0]) + float(table[0, 1]))
            before = lengths[index] - (end - start) - 1
            part = table[before : before + end - start].astype(np.float64)
            part[owner[start:end] != piece, 0] = -np.inf
            candidates += [
                (score, first + start, last + start)
                for score, first, last in best_pairs(part, best, max_answer)
            ]
        candidates.sort(key=lambda one: (-one[0], one[1:]))
        spans: dict[str, Span] = {}
        for score, first, last in candidates:
            begin = int(offsets[first, 0])
            text = question.context[begin : int(offsets[last, 1])]
            begin += len(text) - len(text.lstrip())
            spans.setdefault(text.strip(), Span(text.strip(), begin, score))
            if len(spans) == best:
                break
        top = candidates[0][0] if candidates else -np.inf
        found[question.id] = Answer(tuple(spans.values()), null - top)
    return found


def best_pairs(part: Numbers, count: int, longest: int) -> Iterator[tuple[float, int, int]]:
    """The highest sums of a start and an end at most `longest` tokens apart, best first.

    Args:
        part: float `[tokens, 2]`: start and end logits; -inf = no such start.
        count: How many.
        longest: Most tokens from start to end, both counted.
    """
    if not len(part):
        return
    reach = min(longest, len(part))
    ends = np.concatenate([part[:, 1], np.full(reach - 1, -np.inf)])
    sums = (part[:, :1] + np.lib.stride_tricks.sliding_window_view(ends, reach)).ravel()
    if count == 1:
        order = sums.argmax()[None]
    else:
        order = np.argsort(-sums, kind="stable")[: 4 * count]  # texts may repeat
    for index in order.tolist():
        if sums[index] > -np.inf:
            yield float(sums[index]), index // reach, index // reach + index % reach
