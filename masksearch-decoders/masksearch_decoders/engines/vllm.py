"""vLLM: layers of one window share blocks, beside the tokens that are in flight."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from masksearch_decoders.check_serving import judge_bytes
from masksearch_decoders.engine import Engine, Reading, Serving, Windows, rows

BACKEND = "write target='transformers' and serve it with --model-impl transformers"


def _reserved_keys(windows: Windows, length: int, serving: Serving) -> int:
    """Keys that it reserves room for, for one sequence of `length` tokens, over the layers.

    Layers of one window are cut into groups of equally many, the last one padded; each group is
    given blocks of its own, which are as large as if no group were padded.

    Reference: vLLM 0.33.0, v1/core/kv_cache_planning.py (`_get_kv_cache_groups_uniform_page_size`,
    `_max_memory_usage_bytes_from_groups`) and v1/kv_cache_interface.py
    (`SlidingWindowSpec.max_admission_blocks_per_request`).
    """
    kinds = Counter(windows)
    least, most = min(kinds.values()), max(kinds.values())
    size, blocks = most if most < 1.5 * least else least, 0
    for window, layers in kinds.items():
        tokens = length if window is None else min(window - 1 + serving.in_flight, length)
        groups = math.ceil(layers / size)
        blocks += groups * (math.ceil(tokens / serving.block) + (window is not None))
    return blocks * serving.block * size


def command(folder: str, serving: Mapping[str, Any]) -> str:
    """The command that starts its server as it was planned."""
    batched = max(1, serving["in_flight"] // 2)  # two batches are in flight
    return (
        f"vllm serve {shlex.quote(folder)} --max-model-len {serving['length']} "
        f"--max-num-batched-tokens {batched} --block-size {serving['block']} 2>&1 | tee server.log"
    )


def read_log(log: str, planned: Mapping[str, Any]) -> tuple[int, list[str]]:
    """The room that a request of the planned length may take, held against the plan."""
    length = re.findall(r"concurrency for ([\d,]+) tokens per", log)
    at_once = re.findall(r"tokens per request: ([\d.]+)x", log)
    room = re.findall(r"KV cache memory: ([\d.]+) GiB", log)
    size = float(room[-1]) * 2**30 / float(at_once[-1]) if at_once and room else None
    return judge_bytes(size, {"max_model_len": (length, "length")}, planned)


VLLM = Engine(
    name="vllm",
    title="vLLM",
    version="0.33.0",
    readings={
        **rows(
            llama="models/llama.py",
            smollm3="models/registry.py: the Transformers backend",
            olmo3="models/registry.py: the Transformers backend",
            gemma3_text="models/gemma3.py",
            exaone4="models/exaone4.py",
            granite_swa="models/granite.py",
            modernbert="models/modernbert.py",
        ),
        "qwen2": Reading("reads if all slide", "models/qwen2.py, engine/arg_utils.py", BACKEND),
        "qwen3": Reading("reads if all slide", "models/qwen3.py, engine/arg_utils.py", BACKEND),
        "cohere2": Reading("keeps one key more", "models/commandr.py", BACKEND),
    },
    keys=_reserved_keys,
    floor="in_flight",
    command=command,
    read_log=read_log,
)
