"""Tensors in safetensors files: writes and reads result files, and names a full disk."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from masksearch.errors import MaskFormatError


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
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("format") != expected:
                raise MaskFormatError(
                    f"{path} holds no {what} of masksearch (format "
                    f"{metadata.get('format')!r}, expected {expected!r})"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except SafetensorError as error:
        raise MaskFormatError(f"{path} is not a readable .safetensors file: {error}") from None


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
    """
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a file of {what} ends in .safetensors, got {path.name!r}; rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, path, metadata=metadata)
    return path


def disk_error(error: Exception, what: str, path: Path) -> OSError:
    """The OSError behind what safetensors says of a file that it could not write.

    Args:
        error: Its SafetensorError, which holds the system's words alone.
        what: That failed, for the message.
        path: The file or folder.
    """
    full = "os error 28" in str(error) or "No space left" in str(error)
    return OSError(errno.ENOSPC if full else errno.EIO, f"{what}: {error}", str(path))
