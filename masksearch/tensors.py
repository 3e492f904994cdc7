"""Tensors in safetensors files: reads result files by their format, and names a full disk."""

from __future__ import annotations

import errno
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


def disk_error(error: Exception, what: str, path: Path) -> OSError:
    """The OSError behind what safetensors says of a file that it could not write.

    Args:
        error: Its SafetensorError, which holds the system's words alone.
        what: That failed, for the message.
        path: The file or folder.
    """
    full = "os error 28" in str(error) or "No space left" in str(error)
    return OSError(errno.ENOSPC if full else errno.EIO, f"{what}: {error}", str(path))
