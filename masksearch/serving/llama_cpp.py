"""llama.cpp itself, as the package llama-cpp-python builds it: what a GGUF file loses there.

with LlamaCpp("model.gguf", Serving(length=8192, ubatch=64)) as engine:
    engine.losses(tokens).mean(), engine.cache_bytes
"""

from __future__ import annotations

import ctypes
import re
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from masksearch.errors import NativeError, install_command
from masksearch.serving.engines import Serving

BUFFER = r"llama_kv_cache: size =\s+([\d.]+) MiB"  # as check_serving.py reads it
CHUNK = 512  # tokens that are decoded at once; their logits are in memory


class LlamaCpp:
    """A GGUF file, opened by llama.cpp on the CPU, with a cache of its own.

    Args:
        path: The file.
        serving: How it is run; `length` is its context (None = 512).
        threads: Of the CPU (>= 1).

    Attributes:
        log: What it says while it opens the file and makes the cache.
        version: Of llama-cpp-python.

    Raises:
        NativeError: If llama.cpp cannot open the file.
        ImportError: If llama-cpp-python is missing.
    """

    def __init__(self, path: str | Path, serving: Serving, threads: int = 1) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise ImportError(
                f"llama.cpp is run by llama-cpp-python: {install_command('llamacpp')} "
                "(it is built from source: ten minutes to an hour)"
            ) from error
        self.version = llama_cpp.__version__
        lines: list[str] = []

        def keep(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
            lines.append(text.decode(errors="replace"))

        kind = getattr(llama_cpp, f"GGML_TYPE_{serving.cache_type.upper()}")
        self.kept = llama_cpp.llama_log_callback(keep)  # or Python frees what C still calls
        llama_cpp.llama_log_set(self.kept, ctypes.c_void_p(0))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.engine = llama_cpp.Llama(
                    *(str(path),),
                    n_ctx=serving.length or CHUNK,
                    n_batch=max(CHUNK, serving.ubatch),
                    n_ubatch=serving.ubatch,
                    type_k=kind,
                    type_v=kind,
                    flash_attn=serving.cache_type != "f16",  # llama.cpp's rule for packed values
                    n_threads=threads,
                    n_threads_batch=threads,
                    swa_full=False,
                    logits_all=True,
                    verbose=False,
                )
        except ValueError as error:
            raise NativeError(f"{error}: {''.join(lines[-3:]).strip()}") from error
        self.log = "".join(lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.engine.close()

    @property
    def cache_bytes(self) -> float:
        """Bytes of the cache of keys and values, as the log has them: to .01 MiB a buffer."""
        return sum(map(float, re.findall(BUFFER, self.log))) * 2**20

    def losses(self, tokens: Tensor) -> Tensor:
        """Negative log-likelihood of each token but the first, in nats.

        Args:
            tokens: int64 `[positions]`, at most `serving.length`.

        Returns:
            float32 `[positions - 1]`.
        """
        self.engine.reset()
        found = []
        for at in range(0, len(tokens) - 1, CHUNK):
            said, asked = tokens[at : at + CHUNK], tokens[at + 1 : at + CHUNK + 1]
            self.engine.eval(said.tolist())
            logits = torch.from_numpy(self.engine.scores[at : at + len(asked)])
            found.append(torch.nn.functional.cross_entropy(logits, asked, reduction="none"))
        return torch.cat(found)
