"""Judges a mask by SWAG: pre-training under the mask, then fine-tuning a choice scorer under it.

evaluator = SwagEvaluator("wikitext-2", "swag")
*curve, last = evaluator(masks.star(), seed=0, workdir=Path("run"))
print(last.values["accuracy"], last.values["accuracy/majority"])
"""

from __future__ import annotations

from collections import Counter
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.contracts import LOW, MAJORITY, Batch
from masksearch.evaluators.finetuning import FineTuning
from masksearch.evaluators.tuning import TaskFiles, TaskScores, pad_ids, read_task
from masksearch.files import short_hash
from masksearch.models.encoders import ChoiceScorer
from masksearch.tasks.swag import ChoiceRows, SwagData, load_swag, make_choices
from masksearch.tasks.text.corpus import TokenSource
from masksearch.tasks.text.files import make_absolute
from masksearch.tasks.text.packing import shrink


@dataclass(frozen=True)
class SwagEvaluator(FineTuning):
    """Pre-trains like `MlmEvaluator`, then fine-tunes a choice scorer on SWAG.

    With `corpus=None` and `weights` it only fine-tunes a checkpoint. See `FineTuning` for what is
    kept in the working folder.

    The last report holds, beside `"loss"` of a pre-training, `"accuracy"`, and under
    `"accuracy/majority"` what always naming the most frequent place earns; with `half` other than
    `"all"` also `"accuracy/low"`, the lower end of the 95% interval over items.

    Args:
        swag: A SWAG file, or a folder with a train and a val file. A file alone is split: see
            `masksearch.tasks.swag.load_swag`; `data().source` says what was done.
        swag_held_out: A SWAG file to hold out.
        split_seed: Seed of the split and the samples.

    Raises:
        DataError: When it is called, or asked for its protocol, and a file is missing or
            malformed.
    """

    swag: Path | str
    _: KW_ONLY
    swag_held_out: Path | str | None = None
    split_seed: int = 0

    downstream: ClassVar[tuple[str, ...]] = ("SWAG",)
    score_name: ClassVar[str] = "accuracy"
    streams: ClassVar[tuple[int, int]] = (53, 54)
    head_reads: ClassVar[int | None] = 1
    head_kind: ClassVar[str] = "MultipleChoice"

    def __post_init__(self) -> None:
        super().__post_init__()
        make_absolute(self, "swag", "swag_held_out")  # workers may run in another folder

    @cached_property
    def constant_score(self) -> float:
        """Accuracy of always naming the most frequent place."""
        labels = self.tokens().dev.labels.tolist()
        return max(Counter(labels).values()) / len(labels)

    def task_settings(self) -> dict[str, object]:
        """Hash of the items."""
        return {"swag": self.tokens().digest}

    @property
    def files(self) -> TaskFiles:
        """Where the items are, and which of them are taken."""
        held_out = self.swag_held_out
        return TaskFiles(self.swag, held_out, self.rows, self.dev_rows, self.split_seed, self.half)

    def data(self) -> SwagData:
        """The items as text, read once a process."""
        data: SwagData = read_task(load_swag, self.files)
        return data

    def tokenize(self, name: str) -> SwagTokens:
        """The tokenized items."""
        return read_tokens(self.source, self.files)

    def head(self, encoder: Any, name: str, seed: int) -> nn.Module:
        """A scorer of choices."""
        return ChoiceScorer(encoder, seed=seed)

    def inputs(self, rows: ChoiceRows, chosen: list[int]) -> Batch:
        """Those items: `[items, choices, width]`, and the right endings `[items]`."""
        items = [rows[index] for index in chosen]
        flat = pad_ids(
            [ids for item in items for ids in item.ids],
            [first for item in items for first in item.first],
            self.source,
        )
        batch = {name: part.reshape(len(items), rows.choices, -1) for name, part in flat.items()}
        return batch | {"labels": torch.tensor([item.label for item in items])}

    def sequence_lengths(self, rows: ChoiceRows) -> list[int]:
        """Tokens of every choice of the items."""
        return rows.sequence_lengths

    def scores(self, head: nn.Module, name: str) -> TaskScores:
        """Accuracy on the held-out items; of equal choices the first is taken."""
        data = self.tokens()
        said = torch.stack(self.training.predict(head, data.dev)).argmax(-1).numpy()
        right = (said == data.dev.labels).astype(np.float64)
        values = {
            "accuracy": int(right.sum()) / len(right),
            f"accuracy{MAJORITY}": self.constant_score,
        }
        if self.half != "all":
            values[f"accuracy{LOW}"] = lower_bound(right)
        digests, predictions = {name: data.rows_digest}, {name: shrink(said)}
        return TaskScores(values, RowScores({name: right}, {name: 1.0}, digests, predictions))


@dataclass(frozen=True, eq=False)
class SwagTokens:
    """Training and held-out items, tokenized."""

    train: ChoiceRows
    dev: ChoiceRows
    digest: str
    rows_digest: str  # of the held-out items


@lru_cache(maxsize=4)
def read_tokens(source: TokenSource, files: TaskFiles) -> SwagTokens:
    """The tokenized items, made once a process."""
    data: SwagData = read_task(load_swag, files)
    train, dev = (make_choices(source, part) for part in (data.train, data.dev))
    return SwagTokens(train, dev, data.digest, short_hash(*map(repr, data.dev)))
