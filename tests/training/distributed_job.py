"""Trainings for `torch.distributed.run`: `python distributed_job.py CASE,CASE,.. FOLDER`.

Writes the loss curve and the weights of this process; also runs alone, without torchrun.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from masksearch import attach, masks
from masksearch.contracts import Batch
from masksearch.models.encoders import MaskedLanguageModel, SequenceClassifier, encoder
from masksearch.training.accumulation import Group, group, join_processes
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import TrainConfig, train

LENGTH, VOCABULARY, STEPS, KILLED_AT = 8, 20, 12, 7


def language(seed: int, rows: int) -> Iterator[Batch]:
    """Batches with another number of hidden tokens in every row."""
    drawn = torch.Generator().manual_seed(seed)
    while True:
        given = torch.randint(3, VOCABULARY, (rows, LENGTH), generator=drawn)
        labels = torch.where(torch.rand(given.shape, generator=drawn) < 0.3, given, -100)
        labels[0, 0] = given[0, 0]
        yield {"input_ids": given, "labels": labels}


def uneven(seed: int) -> Iterator[Batch]:
    """Labelled rows: 5, 4, .., 1 and again, so that a process is sometimes left without one."""
    drawn = torch.Generator().manual_seed(seed)
    while True:
        for rows in (5, 4, 3, 2, 1):
            given = torch.randint(3, VOCABULARY, (rows, LENGTH), generator=drawn)
            yield {"input_ids": given, "labels": (given[:, 1] > 10).long()}


def body() -> nn.Module:
    return encoder("1x16x2", VOCABULARY, LENGTH, seed=0, dropout=0.0)


def case(name: str) -> tuple[nn.Module, Iterator[Batch], TrainConfig]:
    """Model, batches and settings."""
    if name == "classes":
        return SequenceClassifier(body(), 2, seed=0), uneven(0), TrainConfig(steps=STEPS)
    parts = 2 if name == "micro" else 1
    config = TrainConfig(
        steps=STEPS, lr=1e-2, micro_batches=parts, optimiser="lamb" if name == "lamb" else "adamw"
    )
    model: nn.Module = MaskedLanguageModel(body(), seed=0)
    if name == "mask":
        attach(model, masks.window(1) | masks.global_tokens(1))
    return model, language(0, 3 if parts == 2 else 6), config


class Tight(nn.Module):
    """Has memory for two rows of the first process, for any number of the others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor):
        if len(input_ids) > 2 and group().first:
            raise torch.OutOfMemoryError("no memory for that")
        return self.model(input_ids=input_ids, labels=labels)


def carry_out(name: str, group: Group, folder: Path) -> None:
    """One training."""
    folder.mkdir(parents=True, exist_ok=True)
    model, batches, config = case(name)
    if name == "memory":
        model = Tight(model)
    kept = None
    if name in ("killed", "apart"):
        kept = Checkpoints(folder / (str(group.rank) if name == "apart" else "kept"), seconds=0)
    losses = []
    for step in train(model, batches, config, checkpoints=kept):
        losses.append([step.number, step.loss])
        if name == "nan" and step.number == 3 and group.rank == 1:
            next(model.head.parameters()).data.fill_(torch.nan)
        if name == "error" and step.number == 3 and group.rank == 1:
            raise ValueError("this process alone has failed")
        if name == "killed" and step.number == KILLED_AT and not (folder / "again").exists():
            if not group.first:
                time.sleep(60)  # torchrun ends it
            (folder / "again").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if kept is not None:
        kept.clear()
    facts = {"losses": losses, "size": group.size}
    (folder / f"{group.rank}.json").write_text(json.dumps(facts))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    save_file(weights, folder / f"{group.rank}.safetensors")


def main(names: str, folder: Path) -> None:
    torch.set_num_threads(1)
    with join_processes() as group:
        for name in names.split(","):
            carry_out(name, group, folder / name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
