"""The token cache on disk: streams of token ids and the tokenizer that made them.

One Arrow IPC stream with its SHA-256 behind it, read as a memory map: processes on one machine
share its pages, and a text larger than the memory can be trained on.

write_cache(path, {"train": stream}, tokenizer.to_str(), ["hash of the text"])
streams, text, content = read_cache(path)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from masksearch.tasks.text.packing import Boundaries, TokenStream

DIGEST = 32  # bytes of SHA-256
COLUMNS = ["ids", "documents", "paragraphs"]


class Cached(NamedTuple):
    """What a cache file holds."""

    streams: dict[str, TokenStream]
    tokenizer: str  # its JSON
    content: list[str]  # hashes of the text


class TokenSpool:
    """Collects token ids in a nameless file, so that memory holds none; in memory where no file
    can be written (a warning says so).

    Args:
        folder: Where the file lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts = folder, list[NDArray[Any]]()
        self.bytes = 0
        self.file: IO[bytes] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=folder, buffering=0)
        except OSError as error:
            warnings.warn(f"cannot cache the tokens in {folder}: {error}", stacklevel=4)

    def append(self, ids: NDArray[Any]) -> None:
        """Adds ids at the end, all of one type."""
        if self.file is None:
            self.parts.append(ids)
            return
        data = memoryview(ids.data).cast("B")
        try:
            while data:
                data = data[self.file.write(data) :]
        except OSError as error:
            warnings.warn(
                f"cannot cache the tokens in {self.folder}: {error}; they stay in memory",
                stacklevel=4,
            )
            self.file.seek(0)
            self.parts = [np.frombuffer(self.file.read(self.bytes), ids.dtype), ids]
            self.file.close()
            self.file = None
        else:
            self.bytes += ids.nbytes

    def finished(self, kind: np.dtype[Any]) -> NDArray[Any]:
        """All ids in one array, which is mapped where they lie in a file."""
        if self.file is None:
            return np.concatenate([np.empty(0, kind), *self.parts])
        with self.file:
            return np.memmap(self.file, kind, "r") if self.bytes else np.empty(0, kind)


def read_cache(path: Path) -> Cached | None:
    """What the file holds, mapped; None (with a warning) for a file that is corrupt.

    The checksum is looked at before anything else is: Arrow follows the addresses in a file
    without a doubt, and a wrong one would end the process.
    """
    import pyarrow as pa

    reason = "it fails its checksum"
    try:
        with pa.memory_map(str(path)) as source:
            whole = source.read_buffer()
        end = whole.size - DIGEST
        if (
            end >= 0
            and hashlib.sha256(memoryview(whole)[:end]).digest() == whole[end:].to_pybytes()
        ):
            return cached(whole[:end])
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    warnings.warn(f"cache file {path} is corrupt ({reason}); it is made again", stacklevel=3)
    return None


def cached(whole: Any) -> Cached:
    """What an Arrow buffer holds; its arrays lie in the buffer."""
    import pyarrow as pa

    streams = {}
    with pa.ipc.open_stream(whole) as reader:
        metadata = reader.schema.metadata
        for name, batch in zip(json.loads(metadata[b"streams"]), reader, strict=True):
            ids, *begins = (in_place(batch.column(column).values) for column in COLUMNS)
            streams[name] = TokenStream(ids, Boundaries(len(ids), *begins))
    content = json.loads(metadata[b"content"])
    return Cached(streams, metadata[b"tokenizer"].decode(), content)


def write_cache(
    path: Path, streams: dict[str, TokenStream], text: str, content: list[str]
) -> None:
    """Writes the cache in one move; a folder that cannot be written to costs a warning.

    Args:
        path: The file.
        streams: Token streams by name, at least one, all of one integer type.
        text: The tokenizer's JSON.
        content: Hashes of the text.
    """
    import pyarrow as pa

    about = {"tokenizer": text, "content": json.dumps(content), "streams": json.dumps([*streams])}
    batches = []
    for stream in streams.values():
        arrays = [stream.ids, stream.begins.documents, stream.begins.paragraphs]
        made = pa.RecordBatch.from_arrays([one_list(array) for array in arrays], names=COLUMNS)
        batches.append(made.replace_schema_metadata(about))
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb+") as file:
            with pa.ipc.new_stream(file, batches[0].schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            file.seek(0)
            file.write(hashlib.file_digest(file, "sha256").digest())  # at its end
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        warnings.warn(f"cannot cache the tokens in {path.parent}: {error}", stacklevel=3)


def one_list(values: NDArray[Any]) -> Any:
    """An Arrow array of one list over the memory of `values`; nothing is copied."""
    import pyarrow as pa  # its ways from and to numpy would load pandas

    def flat(array: NDArray[Any]) -> Any:
        kind = pa.from_numpy_dtype(array.dtype)
        return pa.Array.from_buffers(kind, len(array), [None, pa.py_buffer(array)])

    return pa.LargeListArray.from_arrays(flat(np.array([0, len(values)])), flat(values))


def in_place(values: Any) -> NDArray[Any]:
    """An Arrow array of integers as a numpy array over its memory."""
    return np.frombuffer(values.buffers()[1], str(values.type), len(values))


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time makes the cache file of that path; where no lock can be had, several
    may, and the last one's file stays."""
    from filelock import FileLock

    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):
        pass  # the warning comes when the file is written
    try:
        yield
    finally:
        lock.release()
