"""Judges a mask by SQuAD: pre-training under the mask, then fine-tuning a span predictor under it.

evaluator = SquadEvaluator("wikitext-2", "squad", length=384)
*curve, last = evaluator(masks.longformer(6, 1), seed=0, workdir=Path("run"))
print(last.values["exact"], last.values["f1"])
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from masksearch.contracts import Batch, Objective
from masksearch.errors import DataError
from masksearch.evaluators.finetuning import FineTuning
from masksearch.evaluators.token_rows import TaskFiles, pad_ids, read_task
from masksearch.models.heads import SpanPredictor
from masksearch.tasks.squad.data import Question, SquadData, load_squad
from masksearch.tasks.squad.decode import Answer, decode
from masksearch.tasks.squad.metrics import score
from masksearch.tasks.squad.windows import SquadWindows, WindowSize, make_windows
from masksearch.tasks.text.tokenizer import TokenSource

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
    the better of two answers that need no question: none, and the whole paragraph.

    Args:
        squad: A SQuAD file, or a folder with train-v*.json and dev-v*.json. A file alone is split
            by article: see `masksearch.tasks.squad.data.load_squad`; `data().source` says what was
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

    streams: ClassVar[tuple[int, int]] = (51, 52)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.make_absolute("squad", "squad_held_out")
        if self.max_answer < 1:
            raise ValueError(f"max_answer must be at least 1, got {self.max_answer}")
        self.window  # noqa: B018  (checks the sizes)

    @property
    def window(self) -> WindowSize:
        """How paragraphs are cut."""
        return WindowSize(self.length, self.max_question, self.stride)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """F1 of the held-out answers, and the mask's sparsity."""
        return (Objective("f1", "max", 0.0), Objective("sparsity", "max", 0.0))

    @property
    def downstream(self) -> tuple[str, ...]:
        """The one task."""
        return ("SQuAD",)

    def task_settings(self) -> dict[str, object]:
        """Hash of the questions, and how they are cut and decoded."""
        return {
            "squad": (self.data() if self.packed_tasks is None else self.tokens()).digest,
            "window": (self.window.longest_question, self.window.step),
            "max_answer": self.max_answer,
            "null_threshold": self.null_threshold,
        }

    @property
    def files(self) -> TaskFiles:
        """Where the questions are, and which of them are taken."""
        held_out = self.squad_held_out
        return TaskFiles(
            self.squad, held_out, self.rows, self.dev_rows, self.split_seed, self.half
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

    def scores(self, head: nn.Module, name: str) -> dict[str, float]:
        """The official scores of the held-out questions."""
        data, found = self.tokens(), self.answers(head)
        gold = {question.id: question.answers for question in data.questions}
        nulls = {question: answer.null_score for question, answer in found.items()}
        values = score(
            {question: answer.text for question, answer in found.items()},
            gold,
            nullable=data.nullable,
            null_scores=nulls if data.nullable else None,
            threshold=self.null_threshold,
        )
        return values | trivial(data.questions, nullable=data.nullable)

    def answers(self, head: nn.Module) -> Mapping[str, Answer]:
        """The answers to the held-out questions, by question id."""
        data = self.tokens()
        tables = [
            logits[:length].numpy()
            for logits, length in zip(self.predict(head, data.dev), data.dev.lengths, strict=True)
        ]
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
            "SQuAD: %d of %d training questions are left out, because no answer stands where the "
            "file says",
            train.misplaced,
            len(data.train),
        )
    if not len(train):
        raise DataError(
            f"{files.path}: no training question is left, because no answer stands where the "
            "file says"
        )
    dev = make_windows(source, data.dev, window, training=False)
    return SquadTokens(train, dev, data.dev, data.nullable, data.digest)
