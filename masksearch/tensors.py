"""Reads result files: tensors and JSON metadata in safetensors, each kind under its own format."""

from __future__ import annotations

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
