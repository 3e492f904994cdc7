"""llama.cpp: opens one GGUF file; and itself, as the package llama-cpp-python builds it.

with LlamaCpp("model.gguf", Serving(length=8192, ubatch=64)) as engine:
    engine.losses(tokens).mean(), engine.cache_bytes
"""

from __future__ import annotations

import ctypes
import re
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from masksearch.errors import NativeError, install_command
from masksearch_decoders.check_serving import judge_bytes
from masksearch_decoders.engine import CACHE_TYPES, GGUF, Engine, Reading, Serving, Windows, rows

OLDEST = (0, 3, 36)  # llama-cpp-python that was read; older ones need not read arrays
ARRAYS = "a llama.cpp from 17 September 2026 on (change 29042; in llama-cpp-python 0.3.36)"


def pad(cells: int) -> int:
    """The next multiple of 256."""
    return -(-cells // 256) * 256


def _allocated_keys(windows: Windows, length: int, serving: Serving) -> int:
    """Cells that it allocates for a context of `length` positions, over the layers.

    Reference: llama.cpp in llama-cpp-python 0.3.36, src/llama-context.cpp (`n_ctx_seq`) and
    src/llama-kv-cache-iswa.cpp (`size_swa`), with swa_full off and n_batch >= n_ubatch.
    """
    streams = 1 if serving.unified else serving.sequences
    whole = pad(pad(length) // streams)
    beside, ubatch = serving.sequences // streams, min(serving.ubatch, length)
    return streams * sum(
        whole if window is None else min(whole, pad(window * beside + ubatch))
        for window in windows
    )


def _packed_bytes(width: int, _: int, serving: Serving) -> int:
    """Bytes of a key and its value in one KV head, in blocks of packed numbers.

    Raises:
        ValueError: If a head's numbers are no whole blocks.
    """
    size, numbers = CACHE_TYPES[serving.cache_type]
    if width % numbers:
        raise ValueError(
            f"cache_type={serving.cache_type!r} packs {numbers} numbers, and heads have {width}; "
            "llama.cpp then starts with f16 alone"
        )
    return 2 * width * size // numbers


def command(folder: str, serving: Mapping[str, Any]) -> str:
    """The command that starts its server as it was planned."""
    kind, cache = serving["cache_type"], ""
    if kind != "f16":
        cache = f" --cache-type-k {kind} --cache-type-v {kind} --flash-attn on"
    buffers = " --kv-unified" if serving["unified"] else ""
    return (
        f"llama-server -m {shlex.quote(f'{folder}/{GGUF}')} --ctx-size {serving['length']} "
        f"--ubatch-size {serving['ubatch']} --parallel {serving['sequences']}{buffers}{cache} "
        "--verbosity 5 2>&1 | tee server.log"
    )


def read_log(log: str, planned: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Which layers slide, as its loader says, and the buffers that it has allocated. It stands
    alone in a folder, so that it pads a context by itself, as `_allocated_keys` does."""
    names = {"n_ctx": "length", "n_ubatch": "ubatch", "n_seq_max": "sequences"}
    logged = {  # of the context; a slot of a server logs its own n_ctx within a line
        name: (re.findall(rf"(?:^|: ){name} +=\s*(\d+)", log, re.MULTILINE), setting)
        for name, setting in names.items()
    }
    settings = planned["settings"]
    streams = 1 if settings.get("unified") else settings["sequences"]
    parts = -(-settings["length"] // 256) * 256 // streams
    whole = streams * -(-parts // 256) * 256
    settings = settings | {"length": whole, "ubatch": min(settings["ubatch"], whole)}
    planned = {**planned, "settings": settings}
    slides = dict(re.findall(r"layer +(\d+) assigned to [^\n]*, is_swa = (\d)", log))
    plan = {str(layer): str(int(each)) for layer, each in enumerate(planned.get("slides", []))}
    wrong = [layer for layer, each in plan.items() if slides.get(layer, each) != each]
    if wrong:
        return 1, [f"layers {', '.join(wrong)} slide and should not, or the other way round"]
    sizes = re.findall(r"llama_kv_cache: size =\s*([\d.]+) MiB", log)
    size = sum(map(float, sizes)) * 2**20 if sizes else None
    code, lines = judge_bytes(size, logged, planned)
    if code == 0 and not plan.keys() <= slides.keys():
        return 2, [*lines, "no line says is_swa of each layer: start it with --verbosity 5"]
    return code, lines


LLAMA_CPP = Engine(
    name="llama.cpp",
    title="llama.cpp",
    version="(in llama-cpp-python 0.3.36)",
    readings={  # the architectures of GGUF files; sliding_window_pattern is an array
        **rows(
            ARRAYS,
            olmo3="src/models/olmo2.cpp",
            gemma3_text="src/models/gemma3.cpp",
            cohere2="src/models/cohere2.cpp",
            modernbert="src/models/modern-bert.cpp",
        ),
        **rows(granite_swa="src/models/granite-swa.cpp"),
        "exaone4": Reading("reads", "src/models/exaone4.cpp", layers=64, since=ARRAYS),
    },
    keys=_allocated_keys,
    key_bytes=_packed_bytes,
    floor="ubatch",
    one_window=True,
    gguf=True,
    command=command,
    read_log=read_log,
    before=(
        "Compare first: a dense cache in q8_0 (`--cache-type-k q8_0 --cache-type-v q8_0`, "
        "53 % of the bytes; q4_0: 28 %) needs no mask, and goes with one.\n\n"
    ),
    after=(
        "\nSmaller weights: `llama-quantize model.gguf model-q8_0.gguf q8_0`. This and "
        "`llama-server` come with llama.cpp (its releases, or `brew install llama.cpp`), not with "
        "masksearch.\n"
    ),
    extras={
        "decoders": ("gguf", "to_gguf, files for llama.cpp"),
        "llamacpp": ("llama_cpp", "GGUF files, run as llama.cpp runs them"),
    },
)


BUFFER = r"llama_kv_cache: size =\s+([\d.]+) MiB"  # as `read_log` reads it
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

    def __exit__(self, *_: object) -> None:
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
        parts = []
        for at in range(0, len(tokens) - 1, CHUNK):
            seen, asked = tokens[at : at + CHUNK], tokens[at + 1 : at + CHUNK + 1]
            self.engine.eval(seen.tolist())
            logits = torch.from_numpy(self.engine.scores[at : at + len(asked)])
            parts.append(torch.nn.functional.cross_entropy(logits, asked, reduction="none"))
        return torch.cat(parts)
