"""Judges a mask by SQuAD: pre-training under the mask, then fine-tuning a span predictor under it.

    masksearch search SPACE --evaluator squad.py:SquadEvaluator --set squad=PATH --set corpus=TEXT

evaluator = SquadEvaluator("wikitext-2", "squad", length=384)
*curve, last = evaluator(masks.longformer(6, 1), seed=0, workdir=Path("run"))
print(last.values["exact"], last.values["f1"])

windows = make_windows(corpus, data.train, WindowSize(384))
windows[0].ids, windows[0].first, windows[0].span      # of the first window
windows.misplaced                                      # how many questions were left out
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from squad_data import (
    Question,
    SquadData,
    after_threshold,
    load_squad,
    question_scores,
    score,
)
from task_files import TaskFiles, read_task
from torch import Tensor, nn

from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.contracts import LOW, Batch
from masksearch.errors import DataError
from masksearch.evaluators.finetuning import FineTuning
from masksearch.evaluators.tuning import TaskScores
from masksearch.files import read_once, short_hash
from masksearch.models.encoders import Head, Output, draw_linear, span_output
from masksearch.tasks.text.files import make_absolute
from masksearch.tasks.text.layout import RowLayout
from masksearch.tasks.text.packing import IdLists, shrink
from masksearch.tasks.text.rows import RowSource, digest_in_layout
from masksearch.training.parts import at_least, refuse_missing

if TYPE_CHECKING:
    from tokenizers import Encoding

log = logging.getLogger(f"masksearch.{__name__}")  # so that the commands show it
Numbers = NDArray[Any]
TEXTS = 4_096  # texts that are tokenized at once
QUESTION, START, COUNT, FIRST, LAST = range(5)  # columns of Windows.rows


@dataclass(frozen=True)
class SquadEvaluator(FineTuning):
    """Pre-trains like `MlmEvaluator`, then fine-tunes a span predictor on SQuAD 1.1 or 2.0.

    With `corpus=None` and `weights` it only fine-tunes a checkpoint. See `FineTuning` for what is
    kept in the working folder.

    The last report holds, beside `"loss"` of a pre-training, `"exact"` and `"f1"`, official
    scores as shares of 1. Where some question has no answer (SQuAD 2.0), also `"HasAns/.."` and
    `"NoAns/.."`, and the scores at the best null threshold, `"best_exact"`, `"best_f1"` and
    `"best_../threshold"`. That threshold is found on the very held-out questions that are scored,
    as in the official script: these scores are upper bounds, and `"exact"` and `"f1"`, at
    `null_threshold`, are the ones to compare masks by. `"exact/majority"` and `"f1/majority"` are
    the better of two answers that need no question: none, and the whole paragraph. With `split`
    other than `"all"`, `"exact/low"` and `"f1/low"` are the lower ends of 95% intervals over
    questions.

    Args:
        squad: A SQuAD file, or a folder with train-v*.json and dev-v*.json. A file alone is split
            by article: see `squad_data.load_squad`; `data().source` says what was
            done.
        squad_held_out: A SQuAD file to hold out.
        max_question: Longest question in tokens, None = 64 or half of the length.
        stride: Step from one window over a paragraph to the next, in tokens, None = a third of
            the length.
        max_answer: Longest answer in tokens.
        null_threshold: No answer is given where its score exceeds the best span's by more.

    Raises:
        DataError: When it is called, or asked for its protocol, and a file is missing or
            malformed.
    """

    squad: Path | str = ""
    _: KW_ONLY
    squad_held_out: Path | str | None = None
    max_question: int | None = None
    stride: int | None = at_least(1, None)
    max_answer: int = at_least(1, 30)
    null_threshold: float = 0.0

    downstream: ClassVar[tuple[str, ...]] = ("SQuAD",)
    score_name: ClassVar[str] = "f1"
    streams: ClassVar[tuple[int, int]] = (51, 52)
    head_kind: ClassVar[str] = "QuestionAnswering"

    def __post_init__(self) -> None:
        refuse_missing(self, "squad")
        super().__post_init__()
        make_absolute(self, "squad", "squad_held_out")  # workers may run in another folder
        self.window  # noqa: B018  (checks the sizes)

    @property
    def window(self) -> WindowSize:
        """How paragraphs are cut."""
        return WindowSize(self.length, self.max_question, self.stride)

    @property
    def constant_score(self) -> float:
        """F1 of answers to the held-out questions that need no question."""
        return self.tokens().trivial["f1/majority"]

    def task_settings(self) -> dict[str, object]:
        """Hash of the questions, and how they are cut and decoded."""
        return {
            "squad": self.tokens().digest,
            "window": (self.window.longest_question, self.window.step),
            "max_answer": self.max_answer,
            "null_threshold": self.null_threshold,
        }

    @property
    def files(self) -> TaskFiles:
        """Where the questions are, and which of them are taken."""
        return TaskFiles(
            self.squad, self.squad_held_out, self.rows, self.dev_rows, self.split_seed, self.split
        )

    def data(self) -> SquadData:
        """The questions as text, read once a process."""
        data: SquadData = read_once(self.files.states, read_task, load_squad, self.files)
        return data

    def tokenize(self, name: str) -> SquadTokens:
        """The tokenized questions."""
        tokens: SquadTokens = read_once(
            self.files.states, read_tokens, self.source, self.files, self.window
        )
        return tokens

    def head(self, encoder: Any, name: str, seed: int) -> nn.Module:
        """A span predictor."""
        return SpanPredictor(encoder, seed=seed)

    def inputs(self, rows: SquadWindows, chosen: list[int]) -> Batch:
        """Those windows, padded, with first and last position of their answers."""
        windows = [rows[index] for index in chosen]
        spans = torch.tensor([row.span for row in windows])
        batch = rows.layout.pad_rows([row.ids for row in windows], [row.first for row in windows])
        return batch | {"start_positions": spans[:, 0], "end_positions": spans[:, 1]}

    def scores(self, head: nn.Module, name: str) -> TaskScores:
        """The official scores of the held-out questions."""
        data, answers = self.tokens(), self.answers(head)
        gold = {question.id: question.answers for question in data.questions}
        texts = {question: answer.text for question, answer in answers.items()}
        scores = {question: answer.null_score for question, answer in answers.items()}
        nulls = scores if data.nullable else None
        values = score(
            texts, gold, nullable=data.nullable, null_scores=nulls, threshold=self.null_threshold
        )
        raw = question_scores(texts, gold, nullable=data.nullable)
        counted = after_threshold(raw, gold, nulls, self.null_threshold)
        rows = {metric: np.array(list(each.values())) for metric, each in counted.items()}
        values |= data.trivial
        if self.split != "all":
            values |= {f"{metric}{LOW}": lower_bound(each) for metric, each in rows.items()}
        taken = [scores[question] > self.null_threshold and data.nullable for question in gold]
        spans = [
            (-1, -1) if back else (answers[question].start, len(answers[question].text))
            for question, back in zip(gold, taken, strict=True)
        ]
        digest = short_hash(*gold)
        places = {name: np.array(spans, np.int32)}  # first character and length; -1 = no answer
        return TaskScores(
            values, RowScores({name: rows["f1"]}, {name: 1.0}, {name: digest}, places)
        )

    def answers(self, head: nn.Module) -> Mapping[str, Answer]:
        """The answers to the held-out questions, by question id."""
        data = self.tokens()
        outputs = zip(self.trainer.predict(head, data.dev), data.dev.lengths, strict=True)
        tables = [logits[:length].numpy() for logits, length in outputs]
        return decode(data.dev, tables, data.questions, max_answer=self.max_answer)


@dataclass(frozen=True, eq=False)
class SquadTokens:
    """Training and held-out questions as windows; the held-out ones as text, and what answers
    that need no question score on them."""

    train: SquadWindows
    dev: SquadWindows
    questions: Sequence[Question]
    nullable: bool
    digest: str
    trivial: dict[str, float]


def trivial(questions: Sequence[Question], *, nullable: bool) -> dict[str, float]:
    """The scores of the better of two answers that need no question: none, the whole paragraph.

    Returns:
        `exact/majority` and `f1/majority`.
    """
    gold = {question.id: question.answers for question in questions}
    whole = {question.id: question.context for question in questions}
    kinds = [score(texts, gold, nullable=nullable) for texts in (dict.fromkeys(gold, ""), whole)]
    return {f"{name}/majority": max(kind[name] for kind in kinds) for name in ("exact", "f1")}


def read_tokens(source: RowSource, files: TaskFiles, window: WindowSize) -> SquadTokens:
    """The tokenized questions."""
    data: SquadData = read_once(files.states, read_task, load_squad, files)
    train = make_windows(source, data.train, window)
    if train.misplaced:
        log.warning(
            "SQuAD: %d of %d training questions are left out, as no answer stands where it says",
            train.misplaced,
            len(data.train),
        )
    if not len(train):
        raise DataError(
            f"{files.path}: no training question is left, as no answer stands where it says"
        )
    dev = make_windows(source, data.dev, window, training=False)
    least = trivial(data.dev, nullable=data.nullable)
    digest = digest_in_layout(source, data.digest)
    return SquadTokens(train, dev, data.dev, data.nullable, digest, least)


# -- the head ---------------------------------------------------------------------------------
class SpanPredictor(Head):
    """An encoder that points at the first and the last token of an answer.

    Args:
        encoder: The (pre-trained) encoder; shared, not copied.
        seed: Seed of the start and the end vector.

    Reference: BERT, arXiv 1810.04805, Section 4.2 (SQuAD); where there is no answer both point
    at [CLS], Section 4.3.
    """

    def __init__(self, encoder: Any, *, seed: int) -> None:
        super().__init__(encoder)
        config = encoder.config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.out = draw_linear(config.hidden_size, 2, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> Output:
        """Scores every position as the start and as the end of the answer.

        Args:
            input_ids: int64 `[batch, length]`.
            attention_mask: 1 for tokens, 0 for padding, `[batch, length]`.
            token_type_ids: Segment ids, `[batch, length]`.
            start_positions: int64 `[batch]`; one outside 0..length - 1, or on padding, is
                ignored (an answer outside this window).
            end_positions: The same for the last token, inclusive.

        Returns:
            logits `[batch, length, 2]` (start, end), -inf on padding; the loss is the mean of
            the two cross-entropies, 0 where every position is ignored.

        Raises:
            ValueError: If only one of the two positions is given.
        """
        logits: Tensor = self.out(self.hidden(input_ids, attention_mask, token_type_ids))
        return span_output(logits, attention_mask, start_positions, end_positions)


# -- windows ----------------------------------------------------------------------------------
# `[CLS] question [SEP] part of the paragraph [SEP]`
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
        ids: In BERT's layout `[CLS] question [SEP] part of the paragraph [SEP]`.
        first: How many of them have token type 0.
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
        layout: Special tokens, padding and largest length of a window.
        misplaced: Questions left out because no answer stands where the file says.
    """

    contexts: IdLists = field(repr=False)
    offsets: Numbers = field(repr=False)
    questions: IdLists = field(repr=False)
    asked: Numbers = field(repr=False)
    rows: Numbers = field(repr=False)
    layout: RowLayout = field(repr=False)
    misplaced: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Numbers:
        """int `[windows]`: positions of every window."""
        texts = self.questions.lengths[self.rows[:, QUESTION]] + self.rows[:, COUNT]
        lengths: Numbers = texts + self.layout.length - self.layout.room(pair=True)
        return lengths

    def __getitem__(self, index: int) -> SquadWindow:
        question, start, count, first, last = self.rows[index].tolist()
        context = self.contexts[int(self.asked[question])][start : start + count]
        ids, zeros = self.layout.join(self.questions[question], context)
        return SquadWindow(ids, zeros, (first, last))


def make_windows(
    source: RowSource,
    questions: Sequence[Question],
    size: WindowSize,
    *,
    training: bool = True,
) -> SquadWindows:
    """Tokenizes questions and paragraphs and cuts them into windows.

    Args:
        source: A corpus, or a tokenizer with a length.
        questions: The questions.
        size: How a paragraph is cut.
        training: Whether questions whose answers do not stand where the file says are left out;
            else they stay, with [CLS] as their target.
    """
    place = {context: n for n, context in enumerate(dict.fromkeys(q.context for q in questions))}
    paragraphs = tokenize(source, list(place))
    asking = source.encode([question.text for question in questions])
    offsets = [np.array(one.offsets, np.int32).reshape(-1, 2) for one in paragraphs]
    layout = replace(source.layout, length=size.length)
    room = layout.room(pair=True)
    longest = min(size.longest_question, room - 1)
    rows: list[tuple[int, int, int, int, int]] = []
    kept: list[int] = []
    for number, question in enumerate(questions):
        where = offsets[place[question.context]]
        span = answer_span(question, where)
        if span is None and question.answers and training:
            continue
        asked = min(len(asking[number]), longest)
        before = len(layout.before) + asked + len(layout.between)
        for start, end in cut_windows(len(where), room - asked, size.step):
            first = last = 0
            if span is not None and start <= span[0] and span[1] < end:
                first, last = span[0] - start + before, span[1] - start + before
            rows.append((len(kept), start, end - start, first, last))
        kept.append(number)
    return SquadWindows(
        IdLists.of([one.ids for one in paragraphs]),
        shrink(np.concatenate([np.zeros((0, 2), np.int32), *offsets])),
        IdLists.of([asking[number][:longest] for number in kept]),
        shrink(np.array([place[questions[number].context] for number in kept], np.int64)),
        shrink(np.array(rows, np.int64).reshape(-1, 5)),
        layout,
        misplaced=len(questions) - len(kept),
    )


def tokenize(source: RowSource, texts: list[str]) -> list[Encoding]:
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
    windows = [(0, min(room, tokens))]
    while windows[-1][1] < tokens:
        start = windows[-1][0] + min(step, room)
        windows.append((start, min(start + room, tokens)))
    return windows


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
    best: Numbers = np.where((at >= starts) & (at < ends), worth, -1.0).argmax(0)
    return best


@dataclass(frozen=True)
class Answer:
    """The best span for a question, beside the score of no answer.

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
    max_answer: int,
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
    """
    answers, lengths = {}, windows.lengths.tolist()
    groups = groupby(range(len(windows)), key=lambda index: int(windows.rows[index, QUESTION]))
    for number, group in groups:
        question, indices = questions[number], list(group)
        offsets = windows.offsets[windows.contexts.span(int(windows.asked[number]))]
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
