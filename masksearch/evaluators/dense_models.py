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
from safetensors import SafetensorError
from torch import nn

from masksearch.contracts import Batch
from masksearch.errors import DataError, SearchError
from masksearch.files import read_weights, write_weights
from masksearch.training.checkpoints import Checkpoints, copy_weights

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


def restore_dense(head: nn.Module, path: Path, key: str) -> bool:
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
