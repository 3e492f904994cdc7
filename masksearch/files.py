"""Files written in one move, so that whoever reads one finds all of it or what lay there before;
hashes of files and settings; tensors in safetensors files; the end of a pipe."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksearch.errors import DataError, MaskFormatError, SearchError, without_controls

if TYPE_CHECKING:
    from torch import Tensor


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share, `ulimit -f`
LARGEST = 2**26  # bytes of a settings file that is read


@contextmanager
def write_in_one_move(path: Path) -> Iterator[Path]:
    """A file beside `path` to write into, which takes its place when the block ends without an
    error. Folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)  # a link, in a stranger's folder
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text_in_one_move(path: Path, text: str) -> None:
    """Writes a text file, UTF-8."""
    with write_in_one_move(path) as beside:
        beside.write_text(text, encoding="utf-8")


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes those of the folders, the innermost first, that hold nothing."""
    for folder in folders:
        with suppress(OSError):  # it holds something, or was never made
            folder.rmdir()


def object_in(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty where it holds something else.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_object(path: Path, remedy: str, **kinds: type) -> dict[str, Any]:
    """The JSON object of a run folder's small file, without control characters.

    Args:
        path: The file.
        remedy: What helps where it cannot be read, for the message.
        kinds: What it holds at least: name -> type.

    Raises:
        SearchError: If it is a link, too large, damaged or of another form; gives file and remedy.
    """
    try:
        if path.is_symlink() or path.stat().st_size > LARGEST:
            raise ValueError(f"it is a link, or has more than {LARGEST} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
        if strange := [name for name, kind in kinds.items() if not isinstance(data[name], kind)]:
            raise TypeError(f"{strange[0]!r} is of another type")
        return dict(without_controls(data))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise SearchError(f"{path} is damaged ({error}); {remedy}") from error


def cell_text(value: Any) -> Any:
    """A cell of a CSV file: a text that programs would take for a formula begins with '.

    >>> [cell_text(each) for each in ("=cmd()", "@x", "-x", "-0.5", "a=b", -0.5)]
    ["'=cmd()", "'@x", "'-x", '-0.5', 'a=b', -0.5]
    """
    formula = isinstance(value, str) and re.match(r"[=@]|[+-](?![\d.])", value)
    return without_controls(f"'{value}" if formula else value)


def own_numbers(settings: Any) -> None:
    """Makes NumPy's numbers in a frozen dataclass Python's own, so that they are stored, shown and
    hashed alike; in its tuples, too."""
    for name, value in vars(settings).items():
        values = value if type(value) is tuple else (value,)
        if any(isinstance(each, Number) and hasattr(each, "item") for each in values):
            plain = tuple(each.item() if hasattr(each, "item") else each for each in values)
            object.__setattr__(settings, name, plain if values is value else plain[0])


def path_inside(folder: Path, name: str) -> Path:
    """A file that a folder's own data name: in that folder.

    Raises:
        MaskFormatError: If it is named by an absolute path or one with `..`.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise MaskFormatError(f"{folder} names {name!r}, a file outside of itself; it is not read")
    return folder / name


State = tuple[str, str, tuple[tuple[str, int, int], ...]]  # place, pattern, files


def state_of(place: Path, pattern: str = "*") -> State:
    """Names, sizes and times of change (ns) of a file, or of a folder's files of that pattern;
    of no files where nothing lies there."""
    files = sorted(place.glob(pattern)) if place.is_dir() else [place]
    stats = ((str(each), each.stat()) for each in files if each.is_file())
    facts = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    return str(place), pattern, facts


@lru_cache(maxsize=64)
def read_once(states: tuple[State, ...], read: Callable[..., Any], *given: Any, **how: Any) -> Any:
    """The result of `read(*given, **how)`, called once a process for each state of its files.

    Raises:
        DataError: If they are in another state by now, and were not read before.
    """
    for place, pattern, files in states:
        if state_of(Path(place), pattern)[2] != files:
            raise DataError(
                f"{place} has changed since it was opened; open it again, in a new process"
            )
    return read(*given, **how)


def content_hash(files: list[Path]) -> str:
    """Hash of the bytes of the files, in order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def short_hash(*parts: str) -> str:
    """16 hexadecimal digits of SHA-256 over the parts, which cannot run into each other."""
    return text_hash(json.dumps(parts))


def text_hash(text: str) -> str:
    """Hash of a text: 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_folder(chosen: Path | str | None) -> Path:
    """Where what is computed once is kept: the given folder, `$MASKSEARCH_CACHE`, or
    `~/.cache/masksearch`."""
    folder = chosen or os.environ.get("MASKSEARCH_CACHE") or "~/.cache/masksearch"
    return Path(folder).expanduser().absolute()


def read_tensors(
    path: str | Path, *, what: str, expected: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a result file.

    Args:
        path: A `.safetensors` file.
        what: What it should hold, for the messages.
        expected: The `format` that its metadata must name.

    Raises:
        FileNotFoundError: If there is no such file.
        MaskFormatError: If it is not readable, or of another format.
    """
    from safetensors import SafetensorError

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        tensors, metadata = read_weights(path)
    except SafetensorError as error:
        raise MaskFormatError(f"{path} is not a readable .safetensors file: {error}") from None
    if metadata.get("format") != expected:
        raise MaskFormatError(
            f"{path} holds no {what} (format {metadata.get('format')!r}, expected {expected!r})"
        )
    return tensors, metadata


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], *, what: str
) -> Path:
    """Writes a result file, which `read_tensors` reads; folders are made.

    Args:
        path: A `.safetensors` file.
        tensors: By name, on any device.
        metadata: With the `format`.
        what: It holds, for the message.

    Raises:
        ValueError: If the path has another ending.
        OSError: If the disk is full; what lay there before stays.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a file of {what} ends in .safetensors, got {path.name!r}; rename it")
    write_weights(path, tensors, metadata)
    return path


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes the tensors of a training in one move; folders are made.

    Args:
        path: A `.safetensors` file.
        weights: By name, none of which share memory.
        metadata: Texts by name.

    Raises:
        OSError: If the disk is full; what lay there before stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored = {name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}
    try:
        with write_in_one_move(path) as beside:
            save_file(stored, beside, metadata)
    except SafetensorError as error:
        raise disk_error(error, "cannot write the weights", path) from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata.

    Raises:
        SafetensorError: If it is damaged.
        OSError: If it cannot be read.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def disk_error(error: Exception, what: str, path: Path) -> OSError:
    """The OSError behind what safetensors says of a file that it could not write.

    Args:
        error: Its SafetensorError, which holds the system's words alone.
        what: That failed, for the message.
        path: The file or folder.
    """
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]) if number else errno.EIO, f"{what}: {error}", str(path))


def wait_for_hang_up(pipe: int) -> None:
    """Returns when the other end of a pipe is closed, as by the death of its process.

    Args:
        pipe: File descriptor of this end; it may be in use.
    """
    watch = select.poll()
    watch.register(pipe, 0)  # nothing but its being hung up
    watch.poll()
