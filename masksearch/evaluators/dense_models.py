"""Dense models that are fine-tuned once, and shared by every mask, search and process.

A model lies in one safetensors file, named after its task and the hash of everything that its
weights depend on. Whoever needs it first holds a lock file beside it while it is fine-tuned;
others wait and read it. A killed fine-tuning goes on from its checkpoint, whoever begins it again.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from masksearch.contracts import Batch
from masksearch.errors import DataError, SearchError
from masksearch.training.checkpoints import Checkpoints

FOLDER = "dense"  # in the folder of the cache


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
    if restore_dense(head, path, key):
        return
    with hold_lock(path):
        if restore_dense(head, path, key):  # by the process that held the lock
            return
        checkpoints = Checkpoints(path.parent, f"{path.stem}.training")
        finetune(checkpoints)
        keep_dense(head, path, key)
        checkpoints.clear()


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Holds the lock file of a kept file, waiting for whoever holds it; makes the folder.

    Raises:
        SearchError: If the folder cannot be written.
    """
    lock = filelock.FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise SearchError(
            f"cannot keep a dense model in {path.parent}: {error.strerror or error}; give another "
            "cache folder (cache=, or MASKSEARCH_CACHE), or free space"
        ) from error
    try:
        yield
    finally:
        lock.release()


def keep_dense(head: nn.Module, path: Path, key: str) -> None:
    """Writes the weights of a model, in one move.

    Raises:
        SearchError: If the disk is full or cannot be written.
    """
    partial = path.with_suffix(".partial")
    weights = {name: weight.detach().cpu().clone() for name, weight in head.state_dict().items()}
    try:
        save_file(weights, partial, {"key": key})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise SearchError(
            f"cannot keep the dense model {path}: {error}; give another cache "
            "folder (cache=, or MASKSEARCH_CACHE), or free space"
        ) from error


def restore_dense(head: nn.Module, path: Path, key: str) -> bool:
    """Loads weights that were kept under the same key; whether there are any.

    A damaged file is as good as none, with a warning.

    Raises:
        DataError: If the file holds a model of another key.
    """
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("key")
            if found != key:
                raise DataError(
                    f"{path} holds a dense model of another protocol ({found}, not {key}); remove "
                    "it, or give another cache folder (cache=, or MASKSEARCH_CACHE)"
                )
            weights = {name: file.get_tensor(name) for name in file.keys()}
        if not all(torch.isfinite(weight).all() for weight in weights.values()):
            raise ValueError("it holds numbers that are not finite")
        head.load_state_dict(weights)
    except DataError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        warnings.warn(
            f"{path} is damaged ({reason}); its dense model is fine-tuned again", stacklevel=4
        )
        return False
    return True


def hash_batches(batches: Iterable[Batch]) -> str:
    """16 hexadecimal digits of SHA-256 over names, types, shapes and numbers of all tensors."""
    total = hashlib.sha256()
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            total.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
            total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()[:16]
