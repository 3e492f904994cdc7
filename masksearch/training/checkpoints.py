"""Checkpoints of a run that may be killed at any moment, as safetensors, never pickle.

    kept = Checkpoints(workdir)
    found = kept.load()                      # None at the first start
    ...
    kept.save(step, tensors, {"loss": 2.5})  # replaces the older of two

Two generations are kept, so that a file that was damaged later costs one of them, not the run.
Of several processes the first one writes and removes; all read (see `accumulation`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from masksearch.files import read_weights, write_weights
from masksearch.training.accumulation import group

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after `step` steps.

    Args:
        step: Optimiser steps that are done.
        tensors: Name -> tensor, of any shape and dtype.
        facts: Plain data (JSON): counters, random states, reports so far.
    """

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The two newest checkpoints of one trial, in its own folder.

    Args:
        folder: The trial's folder (`workdir` of an evaluator).
        name: First part of the file names, where a trial keeps several kinds.
    """

    def __init__(self, folder: Path, name: str = "checkpoint") -> None:
        self.folder, self.name = folder, name

    def files(self) -> list[Path]:
        """The files that are there, newest step first."""
        found = self.folder.glob(f"{self.name}-*.safetensors")
        return sorted(found, key=step_of, reverse=True)

    def save(
        self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None
    ) -> Path:
        """Writes a checkpoint in one step: it is there as a whole, or not at all.

        Args:
            step: Optimiser steps that are done (>= 0).
            tensors: Name -> tensor.
            facts: Plain data (JSON).

        Raises:
            OSError: If the disk is full; the earlier checkpoints stay.
        """
        text = json.dumps({"step": step, "facts": dict(facts or {})}, sort_keys=True)
        plain = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
        path = self.folder / f"{self.name}-{step:09d}.safetensors"
        write_weights(path, plain, {"state": text, "digest": digest(text, plain)})
        for old in self.files()[2:]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none.

        A damaged file (truncated, changed bytes, another format) is passed over with a warning
        in the log, and the one before it is taken.
        """
        for path in self.files():
            try:
                tensors, metadata = read_weights(path)
                text = metadata["state"]
                if metadata["digest"] != digest(text, tensors):
                    raise ValueError("its contents do not match its digest")
                state = json.loads(text)
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                log.warning("checkpoint %s is damaged and passed over: %s", path, error)
                continue
            return Checkpoint(state["step"], tensors, state["facts"])
        return None

    def clear(self) -> None:
        """Removes every checkpoint, when the run has its result."""
        if not group().first:
            return
        for path in self.files():
            path.unlink(missing_ok=True)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name; -1 for a foreign file."""
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the facts and every tensor's name, type, shape and bytes."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


# -- the state of a training ---------------------------------------------------------------------
def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's tensors: tied ones share memory, which files cannot."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def training_state(
    model: nn.Module, optimisers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Weights, buffers, optimiser states and the state of torch's global generators.

    Args:
        model: On one device, whose global generator (of dropout) is part of the state.
        optimisers: Name -> optimiser; a name holds no dot.

    Returns:
        `model.<name>`, `<optimiser>.<number of the parameter>.<what>`, `random` and, for a model
        on a GPU, `random.cuda`. Weights are copies.
    """
    tensors = {f"model.{name}": value for name, value in copy_weights(model).items()}
    tensors["random"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    for name, optimiser in optimisers.items():
        for place, entry in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{place}.{key}": value for key, value in entry.items()}
    return tensors


def restore_state(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimisers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Puts back weights, buffers and optimiser states, in place; learning rates stay.

    The generators are put back by `restore_random`, when the training goes on.
    """
    model.load_state_dict(
        {
            name.removeprefix("model."): value
            for name, value in tensors.items()
            if name.startswith("model.")
        }
    )
    for name, optimiser in optimisers.items():
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"{name}."):
                _, place, part = key.split(".")
                entries.setdefault(int(place), {})[part] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": entries})


def restore_random(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Puts back torch's global generators, of the CPU and of a GPU."""
    torch.set_rng_state(tensors["random"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
