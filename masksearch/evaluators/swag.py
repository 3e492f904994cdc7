"""Judges a mask by SWAG: pre-training under the mask, then fine-tuning a choice scorer under it.

evaluator = SwagEvaluator("wikitext-2", "swag")
*curve, last = evaluator(masks.star(), seed=0, workdir=Path("run"))
print(last.values["accuracy"], last.values["accuracy/majority"])
"""

from __future__ import annotations

from collections import Counter
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from masksearch.contracts import Batch, Objective
from masksearch.evaluators.finetuning import FineTuning
from masksearch.evaluators.token_rows import TaskFiles, pad_ids, read_task
from masksearch.models.heads import ChoiceScorer
from masksearch.tasks.swag import ChoiceRows, SwagData, load_swag, make_choices
from masksearch.tasks.text.tokenizer import TokenSource


@dataclass(frozen=True)
class SwagEvaluator(FineTuning):
    """Pre-trains like `MlmEvaluator`, then fine-tunes a choice scorer on SWAG.

    With `corpus=None` and `weights` it only fine-tunes a checkpoint. See `FineTuning` for what is
    kept in the working folder.

    The last report holds, beside `"loss"` of a pre-training, `"accuracy"`, and under
    `"accuracy/majority"` what always naming the most frequent place earns.

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

    streams: ClassVar[tuple[int, int]] = (53, 54)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.make_absolute("swag", "swag_held_out")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Accuracy on the held-out items, and the mask's sparsity."""
        return (Objective("accuracy", "max", 0.0), Objective("sparsity", "max", 0.0))

    @property
    def downstream(self) -> tuple[str, ...]:
        """The one task."""
        return ("SWAG",)

    def task_settings(self) -> dict[str, object]:
        """Hash of the items."""
        return {"swag": (self.data() if self.packed_tasks is None else self.tokens()).digest}

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

    def scores(self, head: nn.Module, name: str) -> dict[str, float]:
        """Accuracy on the held-out items; of equal choices the first is taken."""
        rows = self.tokens().dev
        labels = rows.labels.tolist()
        said = torch.stack(self.predict(head, rows)).argmax(-1).tolist()
        right = sum(one == label for one, label in zip(said, labels, strict=True))
        return {
            "accuracy": right / len(labels),
            "accuracy/majority": max(Counter(labels).values()) / len(labels),
        }


@dataclass(frozen=True, eq=False)
class SwagTokens:
    """Training and held-out items, tokenized."""

    train: ChoiceRows
    dev: ChoiceRows
    digest: str


@lru_cache(maxsize=4)
def read_tokens(source: TokenSource, files: TaskFiles) -> SwagTokens:
    """The tokenized items, made once a process."""
    data: SwagData = read_task(load_swag, files)
    return SwagTokens(
        make_choices(source, data.train), make_choices(source, data.dev), data.digest
    )
