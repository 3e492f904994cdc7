"""Decoders in GGUF files (llama.cpp), written once as a folder that everything here reads.

folder = convert_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))     # minutes, then from the cache
open_decoder(folder)                                               # or of the file itself
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from masksearch.errors import DataError
from masksearch.models.checkpoints import UNREADABLE, hash_file, quiet
from masksearch.tasks.text.corpus import cache_folder


def convert_gguf(path: Path, cache: Path | None = None) -> Path:
    """The folder with configuration, safetensors and tokenizer of a GGUF file.

    transformers' own reader turns quantised weights into float32. That takes minutes for a small
    model, so the folder stays in the cache, under a hash of the file's bytes.

    Args:
        path: The file.
        cache: Folder of the cache; default `$MASKSEARCH_CACHE` or `~/.cache/masksearch`.

    Raises:
        DataError: If there is no such file, the package gguf is missing, transformers cannot read
            the file (not every architecture has a reader), or the folder cannot be written.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    found = path.stat()
    digest = hash_file(path, found.st_size, found.st_mtime_ns)[:16]
    target = cache_folder(cache) / f"gguf-{digest}"
    partial = target.with_suffix(".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not target.is_dir():
                shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
                write_folder(path, partial)
                partial.rename(target)
    except OSError as error:
        raise DataError(
            f"the model of {path} cannot be kept in {target.parent}: {error}; set "
            "MASKSEARCH_CACHE to a folder that can be written and has room"
        ) from error
    return target


def write_folder(path: Path, folder: Path) -> None:
    """Reads a GGUF file, and writes model and tokenizer.

    Raises:
        DataError: If it cannot be read.
    """
    models: Any = AutoModelForCausalLM
    tokenizers: Any = AutoTokenizer
    place = {"gguf_file": path.name, "trust_remote_code": False}
    try:
        with quiet():
            read = models.from_pretrained(
                path.parent, dtype=torch.float32, local_files_only=True, **place
            )
            config = read.config
            for name in ("quantization_config", "_pre_quantization_dtype"):
                vars(config).pop(name, None)  # else the new folder would be taken for quantised
            made = models.from_config(config)
            made.load_state_dict(read.state_dict())
            tokenizer = tokenizers.from_pretrained(path.parent, **place)
    except ImportError as error:
        raise DataError(
            f"{path.name} is read by transformers with the package gguf, which is missing "
            f"({error}); pip install gguf"
        ) from error
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{path}: transformers cannot read this GGUF file ({reason}); give a folder with "
            "config.json and model.safetensors"
        ) from error
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
