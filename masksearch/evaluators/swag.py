"""Judges a mask by SWAG: pre-training under the mask, then fine-tuning a choice scorer under it.

evaluator = SwagEvaluator("wikitext-2", "swag")
*curve, last = evaluator(masks.star(), seed=0, workdir=Path("run"))
print(last.values["accuracy"], last.values["accuracy/majority"])
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch, Objective, mixed_seed
from masksearch.evaluators.finetuning import FineTuning
from masksearch.evaluators.token_rows import batches_an_epoch, bucketed, padded_ids
from masksearch.models.heads import ChoiceScorer
from masksearch.tasks.swag import ChoiceRows, SwagData, load_swag, make_choices
from masksearch.tasks.text.tokenizer import TokenSource

SCORER, ITEM_ORDER = 53, 54  # streams of random numbers
TASK = "SWAG"

log = logging.getLogger(__name__)


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
        rows: Largest number of training items; a fixed sample.
        dev_rows: The same for the held-out items; None = all.
        split_seed: Seed of the split and the samples.

    Raises:
        DataError: When it is called, or asked for its protocol, and a file is missing or
            malformed.
    """

    swag: Path | str
    _: KW_ONLY
    swag_held_out: Path | str | None = None
    rows: int | None = 10_000
    dev_rows: int | None = 2_000
    split_seed: int = 0
    carried_swag: SwagTokens | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("swag", "swag_held_out"):
            if getattr(self, name) is not None:
                place = Path(getattr(self, name)).expanduser().resolve()
                object.__setattr__(self, name, place)
        for limit in ("rows", "dev_rows"):
            value = getattr(self, limit)
            if value is not None and value < 1:
                raise ValueError(f"{limit} must be at least 1, got {value}")
        if self.length < 8:
            raise ValueError(f"SWAG needs a length of at least 8 positions, got {self.length}")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Accuracy on the held-out items, and the mask's sparsity."""
        return (Objective("accuracy", "max", 0.0), Objective("sparsity", "max", 0.0))

    @property
    def downstream(self) -> tuple[str, ...]:
        """The one task."""
        return (TASK,)

    def task_settings(self) -> dict[str, object]:
        """Hash of the items."""
        carried = self.carried_swag
        return {"swag": self.data().digest if carried is None else carried.digest}

    @property
    def places(self) -> tuple[Path | str, Path | str | None, int | None, int | None, int]:
        """What `read_data` reads."""
        return self.swag, self.swag_held_out, self.rows, self.dev_rows, self.split_seed

    def data(self) -> SwagData:
        """The items as text, read once a process."""
        return read_data(*self.places)

    def tokens(self) -> SwagTokens:
        """The tokenized items: the carried ones, or made once a process."""
        if self.carried_swag is not None:
            return self.carried_swag
        return read_tokens(self.source, *self.places)

    def prepare(self) -> None:
        """Reads and tokenizes the items."""
        self.tokens()

    def packed(self) -> Self:
        """The same evaluator with corpus and tokenized items in memory."""
        made = super().packed()
        if made.carried_swag is None:
            object.__setattr__(made, "carried_swag", self.tokens())
        return made

    def finetune_steps(self, name: str) -> int:
        """Optimiser steps of the fine-tuning."""
        return self.epochs * batches_an_epoch(len(self.tokens().train), self.finetune_batch)

    def finetune(
        self, encoder: nn.Module, name: str, table: Tensor, *, seed: int, workdir: Path
    ) -> dict[str, float]:
        """Fine-tunes on the training items; scores the held-out ones."""
        data = self.tokens()
        head = ChoiceScorer(encoder, seed=mixed_seed(seed, SCORER))  # type: ignore[arg-type]
        order = mixed_seed(seed, ITEM_ORDER)
        self.finetuned(
            head,
            lambda start: self.batches(data.train, order, start),
            self.finetune_steps(name),
            table,
            name=name,
            seed=seed,
            workdir=workdir,
        )
        labels = data.dev.labels.tolist()
        right = [
            int(said == label) for said, label in zip(self.predict(head), labels, strict=True)
        ]
        return {
            "accuracy": sum(right) / len(labels),
            "accuracy/majority": max(Counter(labels).values()) / len(labels),
        }

    def batches(self, rows: ChoiceRows, seed: int, start: int = 0) -> Iterator[Batch]:
        """Endless batches of items of similar length; every item comes once an epoch."""
        for chosen in bucketed(rows.lengths, self.finetune_batch, seed, start):
            yield self.inputs(rows, chosen)

    def inputs(self, rows: ChoiceRows, chosen: list[int]) -> Batch:
        """Those items: the inputs `[items, choices, width]`, and `labels` `[items]`."""
        items = [rows[index] for index in chosen]
        flat = padded_ids(
            [ids for item in items for ids in item.ids],
            [first for item in items for first in item.first],
            self.source,
        )
        batch = {name: part.reshape(len(items), rows.choices, -1) for name, part in flat.items()}
        return batch | {"labels": torch.tensor([item.label for item in items])}

    def predict(self, head: nn.Module) -> list[int]:
        """The chosen ending of every held-out item, in their order; of equals the first."""
        rows = self.tokens().dev
        found = [0] * len(rows)
        for chosen, logits in self.predicted(head, rows.lengths, partial(self.inputs, rows)):
            for index, choice in zip(chosen, logits.argmax(-1).tolist(), strict=True):
                found[index] = choice
        return found


@dataclass(frozen=True, eq=False)
class SwagTokens:
    """Training and held-out items, tokenized."""

    train: ChoiceRows
    dev: ChoiceRows
    digest: str


@lru_cache(maxsize=4)
def read_data(
    swag: Path | str,
    held_out: Path | str | None,
    rows: int | None,
    dev_rows: int | None,
    seed: int,
) -> SwagData:
    """The items, read once a process; the log says where both parts come from."""
    data = load_swag(swag, held_out, rows=rows, dev_rows=dev_rows, seed=seed)
    log.info("SWAG: %s", data.source)
    return data


@lru_cache(maxsize=4)
def read_tokens(
    source: TokenSource,
    swag: Path | str,
    held_out: Path | str | None,
    rows: int | None,
    dev_rows: int | None,
    seed: int,
) -> SwagTokens:
    """The tokenized items, made once a process."""
    data = read_data(swag, held_out, rows, dev_rows, seed)
    return SwagTokens(
        make_choices(source, data.train), make_choices(source, data.dev), data.digest
    )
