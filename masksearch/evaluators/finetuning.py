"""What the evaluators that fine-tune share: pre-training, then copies of the encoder on tasks."""

from __future__ import annotations

import copy
import logging
import shutil
import statistics
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import Tensor, nn

from masksearch import masks
from masksearch.analysis.row_scores import ROWS, RowScores
from masksearch.attention.attach import attach, detach
from masksearch.contracts import LOW, MAJORITY, Report, mixed_seed
from masksearch.evaluators.dense_tuning import DenseTuning
from masksearch.evaluators.downstream import (
    DROPOUT,
    TaskScores,
    read_scores,
    run_seed,
    training_name,
    write_scores,
)
from masksearch.evaluators.frozen_layers import check_frozen
from masksearch.evaluators.mlm import PRETRAINING
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.heads import MaskedLanguageModel
from masksearch.tasks.text.files import short_hash
from masksearch.training.checkpoints import Checkpoints, copy_weights
from masksearch.training.distributed import group
from masksearch.training.loop import TrainConfig

log = logging.getLogger(__name__)


PRETRAINED = "pretrained"  # name of the checkpoint of a finished pre-training
SCORES = "scores.json"


@dataclass(frozen=True)
class FineTuning(DenseTuning, ABC):
    """Pre-trains like `MlmEvaluator`, then fine-tunes copies of the encoder under the mask.

    A subclass names its tasks and says how their rows become batches and scores:

        streams                             of random numbers: the head's, the order of the rows
        downstream -> tuple[str, ...]       (property) names of the tasks, in order
        task_settings() -> dict             what the scores depend on: hashes of the data, limits
        tokenize(name) -> TaskTokens        reads and tokenizes a task, once a process
        head(encoder, name, seed)           a head on `encoder`
        inputs(rows, chosen) -> Batch       those rows, padded, with what the head learns from
        scores(head, name) -> TaskScores    scores of the trained head by name; use `predict`
        summary(values) -> dict             what the last report adds to all scores (optional)

    The rest is here: reports, the working folder, seeds, frozen layers; `self.source` tokenizes,
    `self.place` is the device. A pre-training that is finished, scores of finished tasks and the
    state of the training under way are kept in the working folder and found there again, so that
    a killed run ends as it would have, on a CPU bit for bit.

    With `corpus=None` (and `weights`) nothing is pre-trained, and `adapt` says what a mask is put
    on: the checkpoint, fine-tuned under the mask from the start (`"finetune"`), or a dense model,
    which is fine-tuned without a mask once for each task and seed, and kept in the folder `dense`
    of the cache for every mask, search and process. Then the masked model is judged as it is
    (`"none"`), or after some steps under the mask (`"recover"`). A checkpoint that was fine-tuned
    on the one task already (its configuration names a class with a head, such as
    BertForSequenceClassification) is itself the dense model.

    `half` says which of the rows that are scored: `"search"`, or those that no search has seen
    (`"final"`); `"all"` = both, with the objectives of versions that knew no halves; `"test"` =
    labelled test rows. The pre-training's text is halved likewise.

    `shape.lengths` are those of the training rows, the same for every half but `"all"`, so that
    sparsity is measured over pairs of tokens. Each of several tasks weighs the same there.

    Every sequence sees the mask at the evaluator's `length`. A batch of shorter ones is computed
    on the mask's top-left corner, which gives the same numbers as padding to `length`, because
    padded keys are hidden anyway, in less time.

    Args:
        rows: Largest number of training rows of a task; a fixed sample; None = all.
        dev_rows: The same for the rows that are scored.
        finetune_lr: Peak learning rate of fine-tuning; None = 5e-4 where the model began with
            random weights, 5e-5 for a checkpoint.
        finetune_batch: Rows of a fine-tuning batch.
        epochs: Passes over the training rows.
        finetune_seeds: Fine-tuning runs of a task, from the same pre-trained weights. A score is
            their mean; with two or more, `"<score>/std"` is their standard deviation.
        frozen: Lower layers that fine-tuning leaves as they are, the embeddings included (0 =
            the embeddings alone); `"all"` = only the head is trained; None = everything is.
        adapt: What is trained under a mask: `"none"`, `"recover"` or `"finetune"`, see above.
        recover_steps: Optimiser steps under the mask, for `"recover"`.
        recover_lr: Their peak learning rate; None = `finetune_lr`.
        learn_from: What these steps, and the gates of DAM on a dense model, learn from: the
            `"labels"`, or the logits of the `"dense"` model.
    """

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields pre-training reports `{"loss": ..}`, then one with every score.

        Raises:
            DataError: Before any training, if a task cannot be read.
        """
        table, key = lower(mask, self.shape), short_hash(self.protocol, mask.digest, str(seed))
        for name in self.downstream:
            self.tokens(name)
        steps, values = 0, dict[str, float]()
        model = self.model(seed) if self.adapt == "finetune" else None
        if model is not None:
            check_frozen(model.encoder, self.frozen)
        if self.corpus is not None and model is not None:
            steps = self.steps
            for report in self.pretrain_once(model, mask, key, seed=seed, workdir=workdir):
                values = dict(report.values)
                yield report
        scores = read_scores(workdir / SCORES, key)
        if not scores:
            (workdir / ROWS).unlink(missing_ok=True)  # of another run
        for name in self.downstream:
            runs = []
            for number in range(self.finetune_seeds):
                run, own = f"{name}.{number}", run_seed(seed, number)
                if run not in scores:
                    if model is None:
                        found = self.adapted(name, table, seed=own, workdir=workdir)
                    else:
                        encoder = copy.deepcopy(model.get_submodule("encoder"))
                        found = self.finetune(encoder, name, table, seed=own, workdir=workdir)
                    scores[run] = found.values
                    if found.rows is not None and group().first:
                        found.rows.save(workdir / run)
                    write_scores(workdir / SCORES, key, scores)
                    Checkpoints(workdir, training_name(name, own)).clear()
                runs.append(scores[run])
            values |= mean_scores(runs)
            steps += self.steps_of(name)
        if group().first:
            join_rows(workdir, [(name, self.finetune_seeds) for name in self.downstream])
        yield Report(steps, values | self.summary(values))

    def pretrain_once(
        self, model: MaskedLanguageModel, mask: Mask, key: str, *, seed: int, workdir: Path
    ) -> Iterator[Report]:
        """Pre-trains in place, or loads a finished pre-training of the same mask, seed, settings.

        Yields:
            The reports of the pre-training, again where it is found. The model is then without
            a mask.
        """
        kept = Checkpoints(workdir, PRETRAINED)
        found = kept.load()
        if found is not None and found.facts["key"] == key:
            model.load_state_dict(found.tensors)
            for step, values in found.facts["curve"]:
                yield Report(step, values)
            return
        curve = []
        for report in self.pretrain(model, mask, seed=seed, workdir=workdir):
            curve.append((report.step, dict(report.values)))
            yield report
        kept.clear()  # of another run
        if self.steps and group().first:  # without a step there is nothing to keep
            kept.save(self.steps, copy_weights(model), {"key": key, "curve": curve})
        Checkpoints(workdir, PRETRAINING).clear()
        detach(model, missing_ok=True)

    def finetune(
        self, encoder: nn.Module, name: str, table: Tensor, *, seed: int, workdir: Path
    ) -> TaskScores:
        """Trains a head and the encoder below it under the mask, with checkpoints; scores it.

        Args:
            encoder: A copy of the pre-trained encoder, without a mask, to be trained in place.
            name: The task.
            table: The mask, bool `[layers, heads, length, length]`.
            seed: Seed of the head, the order of the rows and the dropout; names the checkpoints.
            workdir: Where checkpoints are kept.

        Raises:
            NonFiniteLossError: If a loss is NaN or infinite.
        """
        head = self.new_head(encoder, name, seed)
        attach(head, masks.cropped(masks.table(table), self.length))
        order = mixed_seed(self.task_seed(name, seed), self.streams[1])
        config = TrainConfig(steps=self.finetune_steps(name), lr=self.rate("finetune_lr"))
        key = short_hash(self.protocol, masks.table(table).digest, name, str(seed))
        kept = Checkpoints(workdir, training_name(name, seed))
        self.fit(head, name, config, kept, key, order=order, noise=mixed_seed(seed, DROPOUT))
        return self.scores(head, name)


def mean_scores(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of several runs' scores and, where there are two or more, their deviations."""
    values: dict[str, float] = {}
    for score in runs[0]:
        each = [run[score] for run in runs]
        values[score] = statistics.fmean(each)
        if len(each) > 1 and not score.endswith((MAJORITY, LOW)):
            values[f"{score}/std"] = statistics.stdev(each)
    return values


def join_rows(workdir: Path, runs: Sequence[tuple[str, int]]) -> None:
    """Writes the rows of all fine-tuning runs into one file, each task's mean over its runs,
    and deletes those of the single runs; nothing where some are missing.

    Args:
        workdir: The working folder.
        runs: Name of each task, and number of its runs.
    """
    paths = [[workdir / f"{name}.{number}" / ROWS for number in range(n)] for name, n in runs]
    if all(path.is_file() for each in paths for path in each):
        tasks = [RowScores.mean([RowScores.load(path) for path in each]) for each in paths]
        RowScores.joined(tasks).save(workdir)
        for path in chain.from_iterable(paths):
            shutil.rmtree(path.parent)
