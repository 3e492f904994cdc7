"""From the scores of every window to one answer a question, cut from the paragraph's own text.

answers = decode(windows, logits, data.dev)
answers["56be4db0acb8001400a502ec"].text, answers["56be4db0acb8001400a502ec"].null_score
"""

from __future__ import annotations

from collections.abc import Sequence
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
class Answer:
    """What is answered to a question.

    Args:
        text: The best span, cut from the paragraph; `""` where the paragraph has no token.
        start: Its first character in the paragraph.
        score: Logit of its first token as a start plus that of its last one as an end.
        null_score: The score of no answer (both ends on [CLS], the lowest of all windows) minus
            the score of the best span.
    """

    text: str
    start: int
    score: float
    null_score: float


def decode(
    windows: SquadWindows,
    logits: Sequence[Numbers],
    questions: Sequence[Question],
    *,
    max_answer: int = 30,
) -> dict[str, Answer]:
    """Finds each question's best span over all of its windows.

    A span starts no later than it ends, holds at most `max_answer` tokens, lies in the
    paragraph's part of one window, and starts at a token of which that window shows most
    context. All such spans are compared, not only those among the best starts and ends; of equal
    ones the first is taken.

    Args:
        windows: Made with `training=False` from the same questions.
        logits: For every window, float `[positions, 2]`: of the start and of the end; padding
            behind the window's own positions is passed over.
        questions: The questions.
        max_answer: Largest number of tokens of an answer.

    Returns:
        Question id -> answer.

    Reference: BERT, arXiv 1810.04805, Sections 4.2 and 4.3.

    Raises:
        ValueError: If the windows are not those of the questions, or `max_answer` is below 1.
    """
    if max_answer < 1:
        raise ValueError(f"max_answer is at least 1, got {max_answer}")
    if len(logits) != len(windows) or len(windows.asked) != len(questions):
        raise ValueError(
            f"{len(logits)} tables of logits and {len(questions)} questions for {len(windows)} "
            f"windows of {len(windows.asked)} questions; make the windows with training=False"
        )
    answers, lengths = {}, windows.lengths.tolist()
    groups = groupby(range(len(windows)), key=lambda index: int(windows.rows[index, QUESTION]))
    for number, group in groups:
        question, indices = questions[number], list(group)
        offsets = windows.offsets[windows.contexts.place(int(windows.asked[number]))]
        pieces = [
            (start, start + count)
            for start, count in windows.rows[indices][:, [START, COUNT]].tolist()
        ]
        owner = window_of_most_context(pieces, len(offsets))
        null, best, begin, end = np.inf, -np.inf, 0, 0
        for piece, (index, (first, last)) in enumerate(zip(indices, pieces, strict=True)):
            table = logits[index].astype(np.float64)
            null = min(null, float(table[0].sum()))
            before = lengths[index] - (last - first) - 1
            part = table[before : before + last - first]
            part[owner[first:last] != piece, 0] = -np.inf
            score, start, stop = best_span(part, max_answer)
            if score > best:
                best = score
                begin = int(offsets[first + start, 0])
                end = int(offsets[first + stop, 1])
        text = question.context[begin:end]
        begin += len(text) - len(text.lstrip())
        answers[question.id] = Answer(text.strip(), begin, best, null - best)
    return answers


def best_span(part: Numbers, longest: int) -> tuple[float, int, int]:
    """The highest sum of a start and an end at most `longest` tokens apart, the first of equals.

    Args:
        part: float `[tokens, 2]`: start and end logits; -inf = no such start.
        longest: Most tokens from start to end, both counted.

    Returns:
        The sum (-inf where there is no token), the start and the end.
    """
    if not len(part):
        return -np.inf, 0, 0
    reach = min(longest, len(part))
    ends = np.concatenate([part[:, 1], np.full(reach - 1, -np.inf)])
    sums = part[:, :1] + np.lib.stride_tricks.sliding_window_view(ends, reach)
    start, more = divmod(int(sums.argmax()), reach)
    return float(sums[start, more]), start, start + more
