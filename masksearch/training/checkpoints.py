"""Checkpoints of a run that may be killed at any moment, as safetensors, never pickle.

    kept = Checkpoints(workdir)
    found = kept.load()                      # None at the first start
    ...
    kept.save(step, tensors, {"loss": 2.5})  # replaces the older of two

Two generations are kept, so that a file that was damaged later costs one of them, not the run.
Of several processes the first one writes and removes; all read (see `accumulation`).

    provide_dense(model, folder / "STS-B-1f3a.safetensors", key, train)  # trains it, or loads it

A finished model that many searches put masks on lies in one file, named after the hash of
everything that its weights depend on. Whoever needs it first holds a lock file beside it while it
is trained; others wait and read it. A killed training goes on from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from masksearch.errors import DataError, SearchError
from masksearch.files import read_weights, write_weights
from masksearch.training.accumulation import group

log = logging.getLogger(__name__)
DENSE = "dense"  # folder of finished models in that of the cache


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


@dataclass(frozen=True)
class Checkpoints:
    """The two newest checkpoints of one trial, in its own folder.

    Args:
        folder: The trial's folder (`workdir` of an evaluator).
        name: First part of the file names, where a trial keeps several kinds.
        key: Of the run: a training passes over a checkpoint under another key, with a warning in
            the log, and removes it.
        seconds: Wall time between two checkpoints of a training; 0 = after every step.
    """

    folder: Path
    name: str = "checkpoint"
    key: str = ""
    seconds: float = 60.0

    def files(self) -> list[Path]:
        """The files that are there, newest step first."""
        pattern = f"{escape(self.name)}-*.safetensors"
        return sorted(self.folder.glob(pattern), key=_step_of, reverse=True)

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
        files = self.files()  # later ones are damaged, or of a run before
        at = files.index(path)
        for old in (*files[:at], *files[at + 2 :]):
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


def _step_of(path: Path) -> int:
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
        for number, entry in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{number}.{key}": value for key, value in entry.items()}
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
                _, number, part = key.split(".")
                entries.setdefault(int(number), {})[part] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": entries})


def restore_random(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Puts back torch's global generators, of the CPU and of a GPU."""
    torch.set_rng_state(tensors["random"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)


# -- weights that all processes share -----------------------------------------------------------
def provide_dense(
    head: nn.Module, path: Path, key: str, finetune: Callable[[Checkpoints], None]
) -> None:
    """Gives a model its fine-tuned weights: those that are kept, or else new ones, then kept.

    Args:
        head: Head and encoder; changed in place.
        path: Where the weights are kept, a `.safetensors` file; its folder is made if missing.
        key: Hash of everything that the weights depend on.
        finetune: Trains `head` in place, with its checkpoints there.

    Raises:
        DataError: If the file holds a model of another key.
        SearchError: If the folder cannot be written.
    """
    if _restore_dense(head, path, key):
        return
    with hold_lock(path):
        if _restore_dense(head, path, key):  # by the process that held the lock
            return
        checkpoints = Checkpoints(path.parent, f"{path.stem}.training", key)
        finetune(checkpoints)
        with naming_remedy(path):
            write_weights(path, copy_weights(head), {"key": key})
        checkpoints.clear()


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Holds the lock file of a kept file, waiting for whoever holds it; makes the folder.

    Raises:
        SearchError: If the folder cannot be written.
    """
    lock = filelock.FileLock(path.with_suffix(".lock"))
    with naming_remedy(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def naming_remedy(path: Path) -> Iterator[None]:
    """Says what to do where a file of a dense model cannot be written.

    Raises:
        SearchError: If the disk is full or cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise SearchError(
            f"cannot keep a dense model in {path.parent}: {error.strerror or error}; give another "
            "cache folder (cache=, or MASKSEARCH_CACHE), or free space"
        ) from error


def _restore_dense(head: nn.Module, path: Path, key: str) -> bool:
    """Loads weights that were kept under the same key; whether there are any.

    A damaged file is as good as none, with a warning.

    Raises:
        DataError: If the file holds a model of another key.
    """
    if not path.is_file():
        return False
    try:
        weights, metadata = read_weights(path)
        if metadata.get("key") != key:
            raise DataError(
                f"{path} holds a dense model of another protocol ({metadata.get('key')}, not "
                f"{key}); remove it, or give another cache folder (cache=, or MASKSEARCH_CACHE)"
            )
        if not all(torch.isfinite(weight).all() for weight in weights.values()):
            raise ValueError("it holds numbers that are not finite")
        head.load_state_dict(weights)
    except DataError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"{path} is damaged ({reason}); its model is fine-tuned again", stacklevel=4)
        return False
    return True
