"""Judges a mask by SQuAD: pre-training under the mask, then fine-tuning a span predictor under it.

evaluator = SquadEvaluator("wikitext-2", "squad", length=384)
*curve, last = evaluator(masks.longformer(6, 1), seed=0, workdir=Path("run"))
print(last.values["exact"], last.values["f1"])
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.contracts import LOW, Batch
from masksearch.errors import DataError
from masksearch.evaluators.finetuning import FineTuning
from masksearch.evaluators.tuning import TaskFiles, TaskScores, pad_ids, read_task
from masksearch.files import short_hash
from masksearch.models.encoders import SpanPredictor
from masksearch.tasks.squad import (
    Question,
    SquadData,
    after_threshold,
    load_squad,
    question_scores,
    score,
)
from masksearch.tasks.squad_windows import Answer, SquadWindows, WindowSize, decode, make_windows
from masksearch.tasks.text.corpus import TokenSource
from masksearch.tasks.text.files import make_absolute

log = logging.getLogger(__name__)


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
    the better of two answers that need no question: none, and the whole paragraph. With `half`
    other than `"all"`, `"exact/low"` and `"f1/low"` are the lower ends of 95% intervals over
    questions.

    Args:
        squad: A SQuAD file, or a folder with train-v*.json and dev-v*.json. A file alone is split
            by article: see `masksearch.tasks.squad.load_squad`; `data().source` says what was
            done.
        squad_held_out: A SQuAD file to hold out.
        split_seed: Seed of the split and the samples.
        max_question: Longest question in tokens, None = 64 or half of the length.
        stride: Step from one window over a paragraph to the next, in tokens, None = a third of
            the length.
        max_answer: Longest answer in tokens.
        null_threshold: No answer is given where its score exceeds the best span's by more.

    Raises:
        DataError: When it is called, or asked for its protocol, and a file is missing or
            malformed.
    """

    squad: Path | str
    _: KW_ONLY
    squad_held_out: Path | str | None = None
    split_seed: int = 0
    max_question: int | None = None
    stride: int | None = None
    max_answer: int = 30
    null_threshold: float = 0.0

    downstream: ClassVar[tuple[str, ...]] = ("SQuAD",)
    score_name: ClassVar[str] = "f1"
    streams: ClassVar[tuple[int, int]] = (51, 52)
    head_kind: ClassVar[str] = "QuestionAnswering"

    def __post_init__(self) -> None:
        super().__post_init__()
        make_absolute(self, "squad", "squad_held_out")  # workers may run in another folder
        if self.max_answer < 1:
            raise ValueError(f"max_answer must be at least 1, got {self.max_answer}")
        self.window  # noqa: B018  (checks the sizes)

    @property
    def window(self) -> WindowSize:
        """How paragraphs are cut."""
        return WindowSize(self.length, self.max_question, self.stride)

    @cached_property
    def constant_score(self) -> float:
        """F1 of answers to the held-out questions that need no question."""
        data = self.tokens()
        return trivial(data.questions, nullable=data.nullable)["f1/majority"]

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
            self.squad, self.squad_held_out, self.rows, self.dev_rows, self.split_seed, self.half
        )

    def data(self) -> SquadData:
        """The questions as text, read once a process."""
        data: SquadData = read_task(load_squad, self.files)
        return data

    def tokenize(self, name: str) -> SquadTokens:
        """The tokenized questions."""
        return read_tokens(self.source, self.files, self.window)

    def head(self, encoder: Any, name: str, seed: int) -> nn.Module:
        """A span predictor."""
        return SpanPredictor(encoder, seed=seed)

    def inputs(self, rows: SquadWindows, chosen: list[int]) -> Batch:
        """Those windows, padded, with first and last position of their answers."""
        found = [rows[index] for index in chosen]
        spans = torch.tensor([row.span for row in found])
        batch = pad_ids([row.ids for row in found], [row.first for row in found], self.source)
        return batch | {"start_positions": spans[:, 0], "end_positions": spans[:, 1]}

    def scores(self, head: nn.Module, name: str) -> TaskScores:
        """The official scores of the held-out questions."""
        data, found = self.tokens(), self.answers(head)
        gold = {question.id: question.answers for question in data.questions}
        texts = {question: answer.text for question, answer in found.items()}
        scores = {question: answer.null_score for question, answer in found.items()}
        nulls = scores if data.nullable else None
        values = score(
            texts, gold, nullable=data.nullable, null_scores=nulls, threshold=self.null_threshold
        )
        raw = question_scores(texts, gold, nullable=data.nullable)
        counted = after_threshold(raw, gold, nulls, self.null_threshold)
        rows = {metric: np.array(list(each.values())) for metric, each in counted.items()}
        values |= trivial(data.questions, nullable=data.nullable)
        if self.half != "all":
            values |= {f"{metric}{LOW}": lower_bound(each) for metric, each in rows.items()}
        taken = [scores[question] > self.null_threshold and data.nullable for question in gold]
        spans = [
            (-1, -1) if back else (found[question].start, len(found[question].text))
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
        said = zip(self.training.predict(head, data.dev), data.dev.lengths, strict=True)
        tables = [logits[:length].numpy() for logits, length in said]
        return decode(data.dev, tables, data.questions, max_answer=self.max_answer)


@dataclass(frozen=True, eq=False)
class SquadTokens:
    """Training and held-out questions as windows, and the held-out ones as text."""

    train: SquadWindows
    dev: SquadWindows
    questions: Sequence[Question]
    nullable: bool
    digest: str


def trivial(questions: Sequence[Question], *, nullable: bool) -> dict[str, float]:
    """What the better of two answers that need no question earns: none, the whole paragraph.

    Returns:
        `exact/majority` and `f1/majority`.
    """
    gold = {question.id: question.answers for question in questions}
    whole = {question.id: question.context for question in questions}
    kinds = [score(said, gold, nullable=nullable) for said in (dict.fromkeys(gold, ""), whole)]
    return {f"{name}/majority": max(kind[name] for kind in kinds) for name in ("exact", "f1")}


@lru_cache(maxsize=4)
def read_tokens(source: TokenSource, files: TaskFiles, window: WindowSize) -> SquadTokens:
    """The tokenized questions, made once a process."""
    data: SquadData = read_task(load_squad, files)
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
    return SquadTokens(train, dev, data.dev, data.nullable, data.digest)
