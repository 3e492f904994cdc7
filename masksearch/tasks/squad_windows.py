"""Questions and paragraphs as sequences: `[CLS] question [SEP] part of the paragraph [SEP]`.

windows = make_windows(corpus, data.train)
windows[0].ids, windows[0].first, windows[0].span      # of the first window
windows.misplaced                                      # how many questions were left out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from masksearch.tasks.squad import Question
from masksearch.tasks.text.corpus import TokenSource
from masksearch.tasks.text.packing import IdLists, shrink

if TYPE_CHECKING:
    from tokenizers import Encoding

Numbers = NDArray[Any]
TEXTS = 4_096  # texts that are tokenized at once
QUESTION, START, COUNT, FIRST, LAST = range(5)  # columns of Windows.rows


@dataclass(frozen=True)
class WindowSize:
    """How a paragraph is cut, in tokens.

    Args:
        length: Positions of a window (>= 8).
        question: Longest question, None = 64 or half of the length; the rest is cut off.
        stride: Step from one window to the next, None = a third of the length: 128 at 384
            positions, as in BERT's run_squad.
    """

    length: int
    question: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.length < 8:
            raise ValueError(f"a window needs at least 8 positions, got {self.length}")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride must be at least 1 token, got {self.stride}")
        if not 1 <= self.longest_question <= self.length - 4:
            raise ValueError(
                f"a question of {self.longest_question} tokens does not fit into {self.length} "
                "positions beside [CLS], two [SEP] and at least one token of the paragraph; "
                f"max_question is at least 1 and here at most {self.length - 4}"
            )

    @property
    def longest_question(self) -> int:
        """Tokens of the longest question."""
        return min(64, self.length // 2) if self.question is None else self.question

    @property
    def step(self) -> int:
        """Tokens from the start of one window to the next."""
        return max(1, self.length // 3) if self.stride is None else self.stride


@dataclass(frozen=True)
class SquadWindow:
    """One sequence.

    Args:
        ids: `[CLS] question [SEP] part of the paragraph [SEP]`.
        first: Positions of the first segment, with its `[SEP]`.
        span: First and last position of the answer; (0, 0), the place of [CLS], where the
            window does not hold it.
    """

    ids: list[int]
    first: int
    span: tuple[int, int]


@dataclass(frozen=True, eq=False)
class SquadWindows:
    """Every window of some questions, in arrays; a window is made where it is read.

    Args:
        contexts: Token ids of the paragraphs that are asked about.
        offsets: int `[tokens, 2]`: first character, and the one after the last, of every token of
            `contexts` in its own paragraph.
        questions: Token ids of the questions.
        asked: Each question's paragraph.
        rows: int `[windows, 5]`: question; first token of the paragraph and number of tokens
            that the window holds; first and last position of the answer in the window.
        special: Token ids by role.
        length: Largest length of a window.
        misplaced: Questions left out because no answer stands where the file says.
    """

    contexts: IdLists = field(repr=False)
    offsets: Numbers = field(repr=False)
    questions: IdLists = field(repr=False)
    asked: Numbers = field(repr=False)
    rows: Numbers = field(repr=False)
    special: dict[str, int] = field(repr=False)
    length: int
    misplaced: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Numbers:
        """int `[windows]`: positions of every window."""
        found: Numbers = self.questions.lengths[self.rows[:, QUESTION]] + self.rows[:, COUNT] + 3
        return found

    def __getitem__(self, index: int) -> SquadWindow:
        question, start, count, first, last = self.rows[index].tolist()
        sep = self.special["sep"]
        ids = [self.special["cls"], *self.questions[question], sep]
        context = self.contexts[int(self.asked[question])][start : start + count]
        return SquadWindow([*ids, *context, sep], len(ids), (first, last))


def make_windows(
    source: TokenSource,
    questions: Sequence[Question],
    size: WindowSize | None = None,
    *,
    training: bool = True,
) -> SquadWindows:
    """Tokenizes questions and paragraphs and cuts them into windows.

    Args:
        source: A corpus, or a tokenizer with a length.
        questions: The questions.
        size: How a paragraph is cut; None = windows of the source's length.
        training: Whether questions whose answers do not stand where the file says are left out;
            else they stay, with [CLS] as their target.
    """
    size = size or WindowSize(source.length)
    place = {context: n for n, context in enumerate(dict.fromkeys(q.context for q in questions))}
    paragraphs = tokenize(source, list(place))
    asking = source.encode([question.text for question in questions])
    offsets = [np.array(one.offsets, np.int32).reshape(-1, 2) for one in paragraphs]
    rows: list[tuple[int, int, int, int, int]] = []
    kept: list[int] = []
    for number, question in enumerate(questions):
        where = offsets[place[question.context]]
        span = answer_span(question, where)
        if span is None and question.answers and training:
            continue
        before = min(len(asking[number]), size.longest_question) + 2
        for start, end in cut_windows(len(where), size.length - before - 1, size.step):
            first = last = 0
            if span is not None and start <= span[0] and span[1] < end:
                first, last = span[0] - start + before, span[1] - start + before
            rows.append((len(kept), start, end - start, first, last))
        kept.append(number)
    return SquadWindows(
        IdLists.of([one.ids for one in paragraphs]),
        shrink(np.concatenate([np.zeros((0, 2), np.int32), *offsets])),
        IdLists.of([asking[number][: size.longest_question] for number in kept]),
        shrink(np.array([place[questions[number].context] for number in kept], np.int64)),
        shrink(np.array(rows, np.int64).reshape(-1, 5)),
        source.special,
        size.length,
        misplaced=len(questions) - len(kept),
    )


def tokenize(source: TokenSource, texts: list[str]) -> list[Encoding]:
    """The texts with token ids and character offsets, without special tokens."""
    return [
        one
        for start in range(0, len(texts), TEXTS)
        for one in source.tokenizer.encode_batch(
            texts[start : start + TEXTS], add_special_tokens=False
        )
    ]


def answer_span(question: Question, offsets: Numbers) -> tuple[int, int] | None:
    """First and last token of the first answer that stands where the file says.

    Blanks may differ (BERT's run_squad compares words, too). The tokens are those that share a
    character with the answer: where it ends inside a token, the span is wider.

    Args:
        question: With its answers and its paragraph.
        offsets: int `[tokens, 2]`: each token's characters.

    Returns:
        None where no answer does, or none touches a token.
    """
    for answer, start in zip(question.answers, question.starts, strict=True):
        end = start + len(answer)
        if question.context[start:end].split() != answer.split():
            continue
        first = int(np.searchsorted(offsets[:, 1], start, side="right"))
        last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
        if first <= last:
            return first, last
    return None


def cut_windows(tokens: int, room: int, step: int) -> list[tuple[int, int]]:
    """Start and end of every window over a paragraph; every token is in at least one.

    >>> cut_windows(10, 6, 3)
    [(0, 6), (3, 9), (6, 10)]
    """
    found = [(0, min(room, tokens))]
    while found[-1][1] < tokens:
        start = found[-1][0] + min(step, room)
        found.append((start, min(start + room, tokens)))
    return found


def window_of_most_context(pieces: Sequence[tuple[int, int]], tokens: int) -> Numbers:
    """For every token the window that shows most of its surroundings: int `[tokens]`.

    A token's worth in a window is the smaller of the tokens on its left and right there, plus
    0.01 per token of the window; of equal windows the first is taken.

    Reference: BERT's run_squad.py (maximum context).

    Args:
        pieces: Start and end of every window.
        tokens: Tokens of the paragraph.
    """
    starts, ends = np.array(pieces).T[:, :, None]
    at = np.arange(tokens)
    worth = np.minimum(at - starts, ends - 1 - at) + 0.01 * (ends - starts)
    found: Numbers = np.where((at >= starts) & (at < ends), worth, -1.0).argmax(0)
    return found


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
        max_answer: Largest number of tokens of an answer (>= 1).

    Returns:
        Question id -> answer.

    Reference: BERT, arXiv 1810.04805, Sections 4.2 and 4.3.

    Raises:
        ValueError: If the windows are not those of the questions.
    """
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
