"""Evaluators that train a model share this: which rows are scored, data in memory, rates.

class MlmEvaluator(EncoderBase, Evaluator): ...
"""

from __future__ import annotations

import copy
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self, cast, get_args

import torch

from masksearch.contracts import Shape, Split
from masksearch.errors import check_name
from masksearch.files import State, short_hash, state_of
from masksearch.masks.core import Mask
from masksearch.masks.live import work
from masksearch.models.encoders import ARCHITECTURES, PRESETS
from masksearch.models.pretrained import Pretrained, open_pretrained
from masksearch.tasks.text.files import hub_folder, is_hub
from masksearch.training.loop import TrainConfig, find_device, find_precision
from masksearch.training.parts import (
    PLANTED,
    RATES,
    EncoderConfig,
    MachineConfig,
    ModelConfig,
    Settings,
    TextConfig,
    TrainingConfig,
    settings_fields,
)

TEXTS, TOKENIZERS = "*.[ctj]*", "*.[jmt]*"  # .txt .csv .tsv .jsonl; .json .jinja .model .txt
NO_CORPUS = "there is no corpus; give a text file or a folder"


@dataclass(frozen=True, kw_only=True)
class RowsBase(Settings):
    """Which held-out rows are scored, and data in memory.

    Args:
        split: Which held-out rows are scored: `"validation"`, or those that no search has seen
            (`"holdout"`). `"all"` = both, as versions without splits had it; `"test"` = the data's
            test rows. Nothing that is trained depends on it.
    """

    split: Split = "validation"

    held: ClassVar[Mapping[str, Any]] = {}  # in a packed evaluator the data that it holds

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("split", self.split, get_args(Split))
        if isinstance(self, MachineConfig):  # once: a worker's GPU is not asked again
            precision = find_precision(self.precision, self.device)
            object.__setattr__(self, "precision", precision)

    @property
    def measure_names(self) -> tuple[str, ...]:
        """`work`, as `masks.work`, where some rows alone are read: tokens can then be left out."""
        shape: Shape = cast(Any, self).shape
        return ("work",) if shape.read is not None and shape.intermediate_size else ()

    def measures_of(self, mask: Mask) -> dict[str, float]:
        """Those measures of a mask."""
        return {name: work(mask, cast(Any, self).shape) for name in self.measure_names}

    def on(self, split: Split) -> Self:
        """The same evaluator on other rows: another protocol, and the same training.

        Args:
            split: `"validation"`, `"holdout"`, `"test"` or `"all"`.

        Raises:
            DataError: If the data has no such rows.
        """
        if split == self.split:
            return self
        made = replace(self, split=split)
        _ = cast(Any, made).protocol  # reads the rows, and so refuses an empty split
        return made

    def holding(self, **data: Any) -> Self:
        """The same evaluator with data in memory (`held`); a `dataclasses.replace` of it holds
        none, since other settings may read other data."""
        made = copy.copy(self)
        object.__setattr__(made, "held", data)
        return made

    @cached_property
    def _states(self) -> dict[tuple[str, str], State]:
        """Files as this evaluator found them first: what it judges by stays the same."""
        return {}

    def states(self, *places: object, pattern: str = TEXTS) -> tuple[State, ...]:
        """The states of files, of folders (of their files of that pattern) and of data sets
        `hf:FOLDER`, for `read_once`; of anything else none."""
        paths = [(str(each), pattern) for each in places if isinstance(each, Path | str)]
        for place, _ in (each for each in paths if each not in self._states):
            folder, files = Path(place), pattern
            if is_hub(place):
                folder, files = hub_folder(re.split("[@#?]", place)[0]) or folder, "**/*"
            self._states[place, pattern] = state_of(folder, files)
        return tuple(self._states[each] for each in paths)

    @property
    def torch_device(self) -> torch.device:
        """The device that trains."""
        return find_device(self.device if isinstance(self, MachineConfig) else "cpu")


@dataclass(frozen=True, kw_only=True)
class TrainingBase(RowsBase, TrainingConfig):
    """The settings of a training, and which held-out rows are scored."""

    @property
    def scratch(self) -> bool:
        """Whether the weights are random."""
        return True

    @property
    def peak_lr(self) -> float:
        """Peak learning rate of a training of all weights."""
        return RATES[not self.scratch] if self.lr is None else self.lr

    @property
    def train_config(self) -> TrainConfig:
        """Settings of a training of all weights."""
        return TrainConfig(
            steps=self.steps,
            lr=self.peak_lr,
            warmup=self.warmup,
            micro_batches=self.micro_batches,
            optimiser=self.optimiser,
            schedule=self.schedule,
        )

    @property
    def weight_lr(self) -> float | None:
        """Peak learning rate of a checkpoint's weights beside gates; None from random weights."""
        return None if self.scratch else self.peak_lr


@dataclass(frozen=True, kw_only=True)
class EncoderBase(TextConfig, ModelConfig, EncoderConfig, MachineConfig, TrainingBase):
    """The common part of evaluators of encoders on text: checkpoint, presets, protocol.

    Raises:
        UnknownNameError: If its architecture is none of an encoder.
        ValueError: If it is given planted recall in place of a text.
    """

    def __post_init__(self) -> None:
        check_name("architecture", self.architecture, ARCHITECTURES)
        if self.corpus == PLANTED or not isinstance(self.corpus, Path | str | None):
            raise ValueError(
                f"{type(self).__name__} reads text, and planted recall is a task of decoders; a "
                "file or folder of that name is './recall'"
            )
        super().__post_init__()

    @classmethod
    def preset(cls, name: str, *args: Any, **changes: Any) -> Self:
        """An evaluator with published settings.

        evaluator = MlmEvaluator.preset("sparsebert", "wikipedia", device="cuda")

        Args:
            name: `"sparsebert"`: BERT-base as in SparseBERT (arXiv 2102.12871), whose batches
                of 65,536 sequences are 1,024 batches of 64 each step; change `batch` and
                `micro_batches` together.
            args: Positional arguments of the evaluator, such as the corpus.
            changes: Settings in place of the preset's.

        Raises:
            UnknownNameError: If there is no such preset.
        """
        check_name("preset", name, PRESETS)
        known = settings_fields(cls)
        settings = {key: value for key, value in PRESETS[name].items() if key in known}
        return cls(*args, **(settings | changes))

    @property
    def start(self) -> Pretrained:
        """The checkpoint that the training starts from, opened once a process.

        Raises:
            DataError: If it cannot be opened.
        """
        return self.held.get("start") or read_weights(self.weights)

    @property
    def protocol(self) -> str:
        """Hash of the data, the model and the training; reads the data."""
        return short_hash("mlm-1", repr(self.settings()))

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """Everything that a score depends on, beside mask and seed."""


@lru_cache(maxsize=4)
def read_weights(name_or_folder: str | Path | None) -> Pretrained:
    """A checkpoint, opened once a process; see `open_pretrained`.

    Raises:
        ValueError: If there is none.
    """
    if name_or_folder is None:
        raise ValueError("this evaluator trains from scratch; it has no weights to open")
    return open_pretrained(name_or_folder)
