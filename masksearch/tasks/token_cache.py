"""The token cache on disk: streams of token ids and the tokenizer that made them.

write_cache(path, {"train": stream}, tokenizer.to_str())
streams, text = read_cache(path)
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor


def read_cache(path: Path) -> tuple[dict[str, Tensor], str] | None:
    """Token streams and the tokenizer's JSON, or None (with a warning) for a corrupt file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            streams = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        warnings.warn(f"cache file {path} is corrupt ({error}); it is made again", stacklevel=3)
        return None
    text = metadata.get("tokenizer", "")
    if metadata.get("checksum") != checksum(streams, text):
        warnings.warn(f"cache file {path} fails its checksum; it is made again", stacklevel=3)
        return None
    return streams, text


def checksum(streams: dict[str, Tensor], text: str) -> str:
    """SHA-256 over the streams and the tokenizer."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(streams):
        digest.update(f"{name}:{len(streams[name])};".encode())
        digest.update(streams[name].numpy().tobytes())
    return digest.hexdigest()


def write_cache(path: Path, streams: dict[str, Tensor], text: str) -> None:
    """Writes the cache in one move; a folder that cannot be written to costs a warning."""
    from safetensors.torch import save_file

    metadata = {"tokenizer": text, "checksum": checksum(streams, text)}
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(streams, partial, metadata)
        partial.replace(path)
    except OSError as error:
        warnings.warn(f"cannot cache the tokens in {path.parent}: {error}", stacklevel=3)
