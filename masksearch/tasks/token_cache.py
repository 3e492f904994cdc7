"""The token cache on disk: streams of token ids and the tokenizer that made them.

One Arrow IPC file, read as a memory map: processes on one machine share its pages, and a stream
larger than the memory can be trained on.

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

from masksearch.tasks.packing import Boundaries, TokenStream


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
    """What the file holds, mapped; None (with a warning) for a file that is corrupt."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
            metadata = {k.decode(): v.decode() for k, v in (file.schema.metadata or {}).items()}
            streams = {}
            for number in range(file.num_record_batches):
                batch = file.get_batch(number)
                ids, *begins = (
                    batch.column(name).values.to_numpy()
                    for name in ("ids", "documents", "paragraphs")
                )
                streams[batch.column("stream")[0].as_py()] = TokenStream(
                    ids, Boundaries(len(ids), *begins)
                )
        text, content = metadata["tokenizer"], metadata["content"]
        if metadata["checksum"] == checksum(streams, text, content):
            return Cached(streams, text, json.loads(content))
        reason = "it fails its checksum"
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    warnings.warn(f"cache file {path} is corrupt ({reason}); it is made again", stacklevel=3)
    return None


def checksum(streams: dict[str, TokenStream], text: str, content: str) -> str:
    """SHA-256 over the streams, the tokenizer and the hashes of the text."""
    digest = hashlib.sha256(json.dumps([text, content]).encode())
    for name in sorted(streams):
        stream = streams[name]
        for array in (stream.ids, stream.begins.documents, stream.begins.paragraphs):
            digest.update(f"{name}:{array.dtype}:{len(array)};".encode())
            digest.update(array.data)
    return digest.hexdigest()


def write_cache(
    path: Path, streams: dict[str, TokenStream], text: str, content: list[str]
) -> None:
    """Writes the cache in one move; a folder that cannot be written to costs a warning."""
    import pyarrow as pa

    hashes = json.dumps(content)
    metadata = {
        "tokenizer": text,
        "content": hashes,
        "checksum": checksum(streams, text, hashes),
    }
    names = ["stream", "ids", "documents", "paragraphs"]
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            writer = None
            for name, stream in streams.items():
                arrays = [stream.ids, stream.begins.documents, stream.begins.paragraphs]
                columns = [pa.array([name]), *map(one_list, arrays)]
                batch = pa.record_batch(columns, names=names).replace_schema_metadata(metadata)
                if writer is None:
                    writer = stack.enter_context(pa.ipc.new_file(str(partial), batch.schema))
                writer.write_batch(batch)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        warnings.warn(f"cannot cache the tokens in {path.parent}: {error}", stacklevel=3)


def one_list(values: NDArray[Any]) -> Any:
    """An Arrow array of one list over the memory of `values`; nothing is copied."""
    import pyarrow as pa

    kind = pa.from_numpy_dtype(values.dtype)
    held = pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), held)


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
