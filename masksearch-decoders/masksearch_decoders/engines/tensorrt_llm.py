"""TensorRT-LLM, its PyTorch backend: one pool of blocks for the windows, one for everything.

Read in its repository of September 2026, and not run. The attention keeps as many keys of a window
as transformers, the query's own with them (cpp/kernels/fmha_v2/src/fmha/mask.h, and for the cache
runtime/kv_cache_manager_v2/_life_cycle_registry.py), in those classes that pass the window. The
cache frees the keys behind it by `layer_types`, whether the class passes a window or not
(_torch/pyexecutor/_util.py, `_derive_layer_type_attention_windows`, since pull request 18767): of
classes that do not, keys are lost that the attention wants. Without a full layer, and with several
windows, it frees none. It has no class of GraniteSWA, so it serves no sinks. Its other backends
(AutoDeploy, TensorRT) were not read.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from masksearch.errors import NativeError
from masksearch_decoders.engine import Engine, Reading, Serving, Windows, rows

LOST = "_torch/models/{}.py passes no window, and the cache frees its keys"


def held_keys(windows: Windows, length: int, serving: Serving) -> int:
    """Keys of the blocks that one sequence holds when token `length` is computed, over the layers.
    NativeError where it has no blocks of that size.

    While a prompt is computed, the tokens of its chunk (at most `max_num_tokens`) are held
    besides; how large the pools are is its own choice, which these bytes do not say.

    Reference: tensorrt_llm/runtime/kv_cache_manager_v2: _life_cycle_registry.py
    (`AttnLifeCycle.get_stale_range`), _storage_manager.py (`_compute_slots_for_batch`).
    """
    size, freed = serving.block, 0
    if size < 2 or size & (size - 1):
        raise NativeError(f"blocks of TensorRT-LLM have 2, 4, 8, .. positions, got block={size}")
    if None in windows:
        freed = sum(max(0, length - each) // size for each in windows if each is not None)
    return size * (len(windows) * -(-length // size) - freed)


def command(folder: str, serving: Mapping[str, Any]) -> str:
    """The command that starts its server as it was planned."""
    return (
        f"trtllm-serve {shlex.quote(folder)} --max_seq_len {serving['length']} "
        "--set kv_cache_config.use_kv_cache_manager_v2=true "
        f"--set kv_cache_config.tokens_per_block={serving['block']}"
    )


TENSORRT_LLM = Engine(
    name="tensorrt-llm",
    title="TensorRT-LLM",
    version="(September 2026)",
    readings={
        **rows(
            gemma3_text="_torch/models/modeling_gemma3.py",
            cohere2="_torch/models/modeling_cohere2.py",
        ),
        "qwen2": Reading("drops keys", LOST.format("modeling_qwen")),
        "qwen3": Reading("drops keys", LOST.format("modeling_qwen3")),
        "exaone4": Reading("ignores", "_torch/models/modeling_exaone4.py: a period"),
        "gpt_oss": Reading("ignores", "_torch/models/modeling_gpt_oss.py: every other layer"),
    },
    keys=held_keys,
    one_window=True,
    command=command,
    check=(
        "Nothing reads its log here: it may hold more, for blocks that other requests reuse and "
        "for the prompt that it computes."
    ),
)
