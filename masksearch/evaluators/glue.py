"""Judges a mask by GLUE: pre-training under the mask, then fine-tuning under it.

evaluator = GlueEvaluator("wikitext-2", "glue", tasks=("SST-2", "QQP"))
*curve, last = evaluator(masks.star(), seed=0, workdir=Path("run"))
print(last.values["glue"], at_majority(last.values))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from masksearch.analysis.pareto import beats_constant
from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.contracts import LOW, MAJORITY, Batch, Objective, Split, mixed_seed
from masksearch.errors import DataError, check_name, warn
from masksearch.evaluators.answers import write_answers
from masksearch.evaluators.dense_models import DenseRecipe
from masksearch.evaluators.finetuning import FineTuning
from masksearch.evaluators.tuning import TaskScores, begin_at
from masksearch.files import cache_folder, read_once, short_hash
from masksearch.models.encoders import READ_OUT, ReadOut, SequenceClassifier
from masksearch.models.pretrained import begin_tuned
from masksearch.tasks.glue.columns import Columns
from masksearch.tasks.glue.read import SHOWN, GlueData, describe_rows, glue_source, load_glue
from masksearch.tasks.glue.tasks import (
    ANSWER,
    COLUMNS,
    Convention,
    GlueTask,
    column_metrics,
    column_value,
    constant_scores,
    glue_score,
    majority,
    reported,
    row_scores,
    score,
    task_named,
    task_number,
)
from masksearch.tasks.splits import is_part
from masksearch.tasks.text.files import is_hub
from masksearch.tasks.text.packing import shrink
from masksearch.tasks.text.rows import RowSource, TokenRows, sample_tokens, tokenize_rows
from masksearch.training.parts import refuse_missing


@dataclass(frozen=True)
class GlueEvaluator(FineTuning):
    """Pre-trains like `MlmEvaluator`, then fine-tunes a copy of the encoder on each task.

    With `corpus=None` and `weights` it only fine-tunes a checkpoint; rows are then tokenized by
    the checkpoint's own tokenizer. See `FineTuning` for what is kept in the working folder.

    The last report holds, beside `"loss"` of a pre-training, each development set's primary
    metric under its name (`"SST-2"`, .., and `"MNLI-mm"`), each of several official metrics under
    `"<set>/<metric>"`, under `"<set>/majority"` what a constant answer earns, and `"glue"`: where
    all nine columns of the GLUE average are there, that average (and `"glue/without_rte"`; see
    `glue_score`), otherwise the mean over `tasks` of their metrics. With `split` other than
    `"all"` there is also `"<set>/low"`, the lower end of the primary metric's 95% interval over
    rows, and the score's reference for hypervolumes is that of constant answers.

    Args:
        glue: Folder with one folder a task, official TSV layout; or `"hf:..."`, see
            `masksearch.tasks.glue.load_glue`; with `Columns` a folder of one's own with
            train.tsv and dev.tsv (or .csv), whose texts need no labels where `weights` is
            fine-tuned already and masks are put on it.
        tasks: GLUE's tasks by name, one or several, or in Python `GlueTask`s of one's own, or the
            `Columns` of such a folder.
        convention: Which metric of MRPC, QQP and STS-B counts in `"glue"`: `"primary"` (accuracy,
            Pearson), `"bert"` (F1, Spearman: as SparseBERT's table) or `"leaderboard"` (the mean
            of both); see `glue_score`.
        read_out: What the head reads of the last hidden states: `"first+mean"`, or of pairs of
            texts `"pair"`, which compares them outside of attention; see `SequenceClassifier`.
            `"own"` is the class that `AutoModelForSequenceClassification` takes, whose
            models anyone opens; with weights and adapt="none" or "recover". (`read` is how many
            rows of them reach a score.)
    """

    glue: Path | str = ""
    tasks: Sequence[str | GlueTask | Columns] = ("SST-2", "QQP", "MNLI")
    _: KW_ONLY
    convention: Convention = "primary"
    read_out: ReadOut = READ_OUT

    score_name: ClassVar[str] = "glue"
    streams: ClassVar[tuple[int, int]] = (21, 22)
    head_kind: ClassVar[str] = "SequenceClassification"

    def __post_init__(self) -> None:
        refuse_missing(self, "glue")
        super().__post_init__()
        given, glue = cast(Any, self.tasks), self.glue
        tasks = (given,) if isinstance(given, str | GlueTask | Columns) else tuple(given)
        for own in [each for each in tasks if isinstance(each, Columns)]:
            if len(tasks) > 1:
                raise ValueError(
                    "Columns are those of one folder, which is one task; got "
                    f"{len(tasks)} tasks: give Columns alone, or `GlueTask`s"
                )
            folder = Path(glue).expanduser().resolve()
            if own.label is None:
                around, task = self.answered(own, folder)
            else:
                around, task = folder.parent, own.read(folder)
            glue, tasks = around, (task,)
        object.__setattr__(self, "glue", glue_source(glue))
        object.__setattr__(self, "tasks", tasks)
        check_name("GLUE convention", self.convention, get_args(Convention))
        names = self.downstream
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tasks must be at least one name, each once, got {names}")
        if self.split_seed:
            raise ValueError("GLUE's tasks come split, and so have no split_seed; leave it out")
        check_name("read-out", self.read_out, get_args(ReadOut))
        single = [name for name in names if len(self._glue_task(name).texts) == 1]
        if self.read_out == "pair" and single:
            raise ValueError(
                f"read_out='pair' compares two texts, and {', '.join(single)} has one; leave it "
                "out, or take tasks of pairs"
            )
        if self.read_out == "own" and not self.weights_frozen:
            raise ValueError(
                "read_out='own' is of a model that is fine-tuned first; give adapt='recover' or "
                f"'none', got {self.adapt!r}"
            )

    def answered(self, columns: Columns, folder: Path) -> tuple[Path, GlueTask]:
        """The task of keeping the answers of `weights`, a fine-tuned model, to texts without
        labels: see `write_answers`. Gates and recovery learn from its logits."""
        if not self.weights_frozen:
            raise ValueError(
                "without labels what is kept are a fine-tuned model's own answers: give "
                f"adapt='none' or 'recover' (--adapt), got {self.adapt!r}; or name the labels"
            )
        for name in ("learn_from", "gates_learn_from"):
            object.__setattr__(self, name, "dense")
        cache = cache_folder(self.cache)
        return write_answers(columns, folder, self.start, self.source, self.trainer, cache)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """As of `FineTuning`; no loss of agreement with the dense model counts as small."""
        score, *others = super().objectives
        return (replace(score, margin=None) if self.keeps_answers else score, *others)

    @property
    def keeps_answers(self) -> bool:
        """Whether the labels are the dense model's own answers."""
        return any(task.label == ANSWER for task in self._glue_tasks)

    @cached_property
    def constant_score(self) -> float:
        """The GLUE score of constant answers to the rows that are scored."""
        values: dict[str, float] = {}
        for name in self.downstream:
            for part, rows in self.tokens(name).dev.items():
                constant = constant_scores(self._glue_task(name), rows.labels.tolist())
                values |= reported(part, constant)
        return self.summary(values)["glue"]

    @property
    def downstream(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(task.name for task in self._glue_tasks)

    @cached_property
    def _glue_tasks(self) -> tuple[GlueTask, ...]:
        """The tasks."""
        return tuple(task_named(task) for task in self.tasks if not isinstance(task, Columns))

    def _glue_task(self, name: str) -> GlueTask:
        """The task of that name among `tasks`."""
        return self._glue_tasks[self.downstream.index(name)]

    def describe(self, name: str) -> str:
        """How the labels of a task's rows were understood."""
        whose = "the model's own answers, " if self.keeps_answers else ""
        return f"{name}: {whose}{describe_rows(self._glue_task(name), self.data(name).train)}"

    def task_settings(self) -> dict[str, object]:
        """Hashes of the tasks' data and row limits."""
        digests = {name: self.tokens(name).digest for name in self.downstream}
        settings: dict[str, object] = {"glue": digests}
        return settings | ({} if self.convention == "primary" else {"convention": self.convention})

    def settings(self) -> dict[str, object]:
        """As of `FineTuning`; DataError where a checkpoint's own head has another read-out."""
        settings = super().settings()
        if self.read_out == READ_OUT or (self.read_out == "own" and self.is_tuned):
            return settings
        if self.weights_frozen and self.is_tuned:
            raise DataError(
                f"{self.weights} is fine-tuned already and has a head of its own, so there "
                f"is no read_out={self.read_out!r}; leave it out, or give a pre-trained checkpoint"
            )
        return settings | {"read_out": self.read_out}

    def data(self, name: str) -> GlueData:
        """A task's rows as text, read once a process, and again where its files have changed."""
        return cast(GlueData, read_once(*self._reading(name)))

    def _reading(self, name: str) -> tuple[Any, ...]:
        """The arguments of `read_once` for a task's rows as text."""
        files = self.states(self.glue if is_hub(self.glue) else Path(self.glue) / name)
        rows = self.rows, self.dev_rows, self.split
        return files, _load_rows, self.glue, self._glue_task(name), *rows

    def tokenize(self, name: str) -> GlueTokens:
        """A task's tokenized rows."""
        files, *_ = given = self._reading(name)
        made: GlueTokens = read_once(files, read_tokens, self.source, self.weights_frozen, *given)
        if self.read_out == "pair" and (made.train.firsts == made.train.ids.lengths).any():
            raise DataError(
                "read_out='pair' tells two texts apart by their token types, and the tokenizer of "
                f"{self.tokenizer or self.weights} gives both 0; leave it out"
            )
        return made

    @cached_property
    def token_rows(self) -> Tensor:
        """Some training rows of each task; see `sample_tokens`."""
        return sample_tokens([self.tokens(name).train for name in self.downstream], self.length)

    def task_seed(self, name: str, seed: int) -> int:
        """Every task has its own numbers, whichever others there are."""
        return mixed_seed(seed, task_number(self._glue_task(name)))

    @property
    def own_head(self) -> str | None:  # type: ignore[override]
        """The kind of transformers' own head, where `read_out` says so."""
        return self.head_kind if self.read_out == "own" else None

    def head(self, encoder: Any, name: str, seed: int) -> nn.Module:
        """A classifier, or a regression where the task has no classes: of recovery from both
        sources it begins at the mean of the training labels."""
        labels = max(1, len(self._glue_task(name).labels))
        head = SequenceClassifier(encoder, labels, seed=seed, read_out=self.read_out)
        if self._centred(name):
            begin_at(head, float(self.tokens(name).train.labels.mean()))
        return head

    def _centred(self, name: str) -> bool:
        """Whether a head of ours begins at the mean of the training labels."""
        return self._glue_task(name).regression and self.learn_from == "both"

    def dense_recipe(self, name: str, seed: int) -> DenseRecipe:
        """As of `FineTuning`, with where the head begins."""
        centred = self.read_out != "own" and self._centred(name)
        return replace(super().dense_recipe(name, seed), centred=centred)

    def begin(self, name: str, seed: int) -> nn.Module:
        """As of `FineTuning`, with `read_out="own"` under transformers' own head; a regression
        then begins at the mean of the training labels."""
        if self.read_out != "own":
            return super().begin(name, seed)
        labels, dropout = self._glue_task(name).labels, self.dropout
        drawn = mixed_seed(self.task_seed(name, seed), self.streams[0])
        where = self.start.locate(), self.head_kind, labels
        head = begin_tuned(*where, seed=drawn, dropout=dropout)
        if not labels:
            begin_at(head, float(self.tokens(name).train.labels.mean()))
        return head.to(self.torch_device)

    def class_names(self, name: str) -> tuple[Sequence[str], Sequence[str]]:
        """The labels as the task's files spell them, and as the Hub does."""
        task = self._glue_task(name)
        return task.labels, () if task.hub is None else task.hub.names

    def inputs(self, rows: TokenRows, chosen: list[int]) -> Batch:
        """Those rows, padded, with their classes or scores."""
        return rows.batch(chosen)

    def scores(self, head: nn.Module, name: str) -> TaskScores:
        """The metrics of every development set."""
        data, values = self.tokens(name), dict[str, float]()
        task, weights = data.task, self._column_weights
        scores, predictions = dict[str, NDArray[Any]](), dict[str, NDArray[Any]]()
        for part, rows in data.dev.items():
            logits = torch.stack(self.trainer.predict(head, rows))
            outputs = logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1)
            labels, guess = rows.labels.tolist(), [float(each) for each in outputs.tolist()]
            metrics = score(task, guess, labels)
            if len(metrics) > 1:
                values |= reported(part, metrics)
            else:
                values[part] = metrics[task.primary]
            values[f"{part}{MAJORITY}"] = majority(task, labels)
            names = {task.primary, *column_metrics(task, self.convention)}
            each = {m: row_scores(task, m, guess, labels, metrics[m]) for m in names}
            least = 0.0 if task.primary in ("accuracy", "agreement", "f1") else -1.0
            if self.split != "all":
                values[f"{part}{LOW}"] = lower_bound(each[task.primary], least)
            counted = [each[metric] for metric in column_metrics(task, self.convention)]
            scores[part] = np.mean(counted, axis=0)
            if data.unit is not None:
                outputs = outputs.double() * data.unit[1] + data.unit[0]
            predictions[part] = outputs.numpy() if task.regression else shrink(outputs.numpy())
        part_weights = {part: weights[part] for part in scores if part in weights}
        return TaskScores(values, RowScores(scores, part_weights, data.digests, predictions))

    @property
    def _column_weights(self) -> dict[str, float]:
        """Weight of each development set in the GLUE score: of the nine columns where all are
        there, else of the tasks' own sets."""
        parts = [part for name in self.downstream for part in self.tokens(name).dev]
        counted = COLUMNS if set(COLUMNS) <= set(parts) else self.downstream
        return dict.fromkeys(counted, 1 / len(counted))

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """The GLUE score."""
        if set(COLUMNS) <= set(values):
            score = glue_score(values, self.convention)
            assert score.nine is not None
            assert score.without_rte is not None
            return {"glue": score.nine, "glue/without_rte": score.without_rte}
        columns = [
            column_value(values, name, self._glue_task(name), self.convention)
            for name in self.downstream
        ]
        return {"glue": math.fsum(columns) / len(columns)}


@dataclass(frozen=True, eq=False)
class GlueTokens:
    """A task with its tokenized rows, their scores in `unit`; otherwise like `GlueData`."""

    task: GlueTask
    train: TokenRows
    dev: Mapping[str, TokenRows]
    digest: str
    digests: Mapping[str, str]  # of the rows of each development set
    unit: tuple[float, float] | None = None


def _load_rows(
    folder: Path | str, task: GlueTask, rows: int | None, dev_rows: int | None, split: Split
) -> GlueData:
    """A task's rows as text."""
    return load_glue(folder, task, rows, dev_rows=dev_rows, split=split)


def read_tokens(source: RowSource, floor: bool, *reading: Any) -> GlueTokens:
    """A task's tokenized rows, of those that `read_once` reads."""
    data, split = cast(GlueData, read_once(*reading)), reading[-1]
    check_judged(data, split, floor=floor)
    train, *dev = (
        tokenize_rows(source, part.texts, part.labels) for part in (data.train, *data.dev.values())
    )
    if (unit := data.unit) is not None:  # in float64, before they are tensors
        train, *dev = (
            replace(part, labels=(part.labels - unit[0]) / unit[1]) for part in (train, *dev)
        )
    digests = {
        name: short_hash(*map(repr, zip(part.texts, part.labels, strict=True)))
        for name, part in data.dev.items()
    }
    others = [part.digest for part in (train, *dev)]
    digest = short_hash(data.digest, *others) if any(others) else data.digest
    tokenized = dict(zip(data.dev, dev, strict=True))
    return GlueTokens(data.task, train, tokenized, digest, digests, unit)


def check_judged(data: GlueData, split: Split, *, floor: bool = True) -> None:
    """Checks that the rows that judge can tell models apart.

    A class of the training rows that they lack is warned of.

    Args:
        data: Its development sets hold the rows of the split.
        split: Which one.
        floor: Whether a dense model has to beat a constant answer on them.

    Raises:
        DataError: If all have one label, or with a floor that right answers would not pass.
    """
    task, more = data.task, ", or split='all' (--set split=all)" if is_part(split) else ""
    for name, rows in data.dev.items():
        labels, values = rows.labels, {name: 1.0, f"{name}{MAJORITY}": majority(task, rows.labels)}
        if (several := len(set(labels)) > 1) and split != "all":
            values[name + LOW] = lower_bound(row_scores(task, task.primary, labels, labels, 1.0))
        counts = f"{len(rows)} ({describe_rows(task, rows)})"
        said = f"{name}: rows that judge (split={split!r}) are {counts}"
        if not several or (floor and not beats_constant(values)[name]):
            raise DataError(
                f"{said}: even right answers do not beat a constant one on them; give more rows, "
                f"of several labels{more}"
            )
        lacking = sorted({*data.train.labels} - {*labels}) if task.labels else []
        if names := ", ".join(repr(task.labels[int(at)]) for at in lacking[:SHOWN]):
            warn(f"{said}: none has the label {names}, which is not judged; give rows of it")
