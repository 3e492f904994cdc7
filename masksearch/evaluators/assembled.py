"""Evaluators that train a model share this: which rows are scored, data in memory, rates.

class MlmEvaluator(TextConfig, ModelConfig, EncoderConfig, MachineConfig, TrainingBase, ..): ...
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast, get_args

import torch

from masksearch.contracts import Split
from masksearch.errors import check_name
from masksearch.training.loop import TrainConfig, find_device, find_precision
from masksearch.training.parts import RATES, MachineConfig, TrainingConfig

NO_CORPUS = "there is no corpus; give a text file or a folder"


@dataclass(frozen=True, kw_only=True)
class TrainingBase(TrainingConfig):
    """The settings of a training, and which held-out rows are scored.

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

    @property
    def torch_device(self) -> torch.device:
        """The device that trains."""
        return find_device(self.device if isinstance(self, MachineConfig) else "cpu")
