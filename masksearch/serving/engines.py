"""What engines make of the windows that a configuration names, and the room that they reserve.

Read in the source of these releases, in the file that each row names; a new release is a changed
row. `to_native(target=)` refuses what a row does not serve, and a test holds every exported
configuration against the table. `kv_bytes(account=)` multiplies the room by bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

from transformers import PreTrainedConfig

from masksearch.errors import check_name

SLIDING, FULL = "sliding_attention", "full_attention"  # the names in `layer_types`

Target = Literal["transformers", "vllm", "sglang", "llama.cpp"]
Does = Literal["reads", "reads if all slide", "ignores", "keeps one key more", "drops keys"]
BACKEND = "write target='transformers' and serve it with --model-impl transformers"


@dataclass(frozen=True)
class Reading:
    """What one engine does with `layer_types` and the window of one family.

    Args:
        does: `"reads"`: as transformers. `"reads if all slide"`: else it stops with an error.
            `"ignores"`: every layer is full. `"drops keys"`: masks are full, caches slide.
        source: The file of the release.
        instead: What works; empty = the families that the engine reads.
        layers: The only number of layers for which it does that, and ignores all others.
    """

    does: Does
    source: str
    instead: str = ""
    layers: int | None = None


def rows(**sources: str) -> dict[str, Reading]:
    """Families that are read, by the file that reads them."""
    return {family: Reading("reads", source) for family, source in sources.items()}


READINGS: Mapping[Target, Mapping[str, Reading]] = MappingProxyType(
    {
        "transformers": {
            **dict.fromkeys(
                ["qwen2", "qwen3", "smollm3", "olmo3", "gemma3_text", "exaone4", "cohere2"],
                Reading("reads", "masking_utils.py, cache_utils.py"),
            ),
            **rows(granite_swa="models/granite_swa", modernbert="models/modernbert"),
            **rows(gpt_oss="models/gpt_oss", mimo_v2_flash="models/mimo_v2_flash"),
            "llama": Reading("drops keys", "cache_utils.py: sliding layers by layer_types"),
        },
        "vllm": {
            **rows(
                llama="models/llama.py",
                smollm3="models/registry.py: the Transformers backend",
                olmo3="models/registry.py: the Transformers backend",
                gemma3_text="models/gemma3.py",
                exaone4="models/exaone4.py",
                granite_swa="models/granite.py",
                modernbert="models/modernbert.py",
            ),
            "qwen2": Reading(
                "reads if all slide", "models/qwen2.py, engine/arg_utils.py", BACKEND
            ),
            "qwen3": Reading(
                "reads if all slide", "models/qwen3.py, engine/arg_utils.py", BACKEND
            ),
            "cohere2": Reading("keeps one key more", "models/commandr.py", BACKEND),
        },
        "sglang": {
            **rows(
                olmo3="models/olmo2.py",
                gemma3_text="models/gemma3_causal.py",
                granite_swa="models/granite.py",
            ),
            "cohere2": Reading("keeps one key more", "models/commandr.py"),
            "exaone4": Reading("ignores", "models/exaone4.py: a period, by the text 'LLLG'"),
            "smollm3": Reading("ignores", "models/transformers.py: by attention backend"),
        },
        "llama.cpp": {  # the architectures of GGUF files; sliding_window_pattern is an array
            **rows(
                olmo3="src/models/olmo2.cpp",
                gemma3_text="src/models/gemma3.cpp",
                cohere2="src/models/cohere2.cpp",
                granite_swa="src/models/granite-swa.cpp",
                modernbert="src/models/modern-bert.cpp",
            ),
            "exaone4": Reading("reads", "src/models/exaone4.cpp", layers=64),
        },
    }
)
VERSIONS: Mapping[Target, str] = MappingProxyType(
    {
        "transformers": "transformers 5.23.0",
        "vllm": "vLLM 0.33.0",
        "sglang": "SGLang 0.5.23",
        "llama.cpp": "llama.cpp (in llama-cpp-python 0.3.36)",
    }
)
# SGLang frees keys in these two if the configuration asks for it (configs/model_config.py); older
# programs, such as text-embeddings-inference, compute ModernBERT's layers from a period.
ON_REQUEST, POOL = ("olmo3", "gemma3_text"), ("is_hybrid_swa", "hybrid_layer_pattern")
BY_PERIOD = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")


def unserved(target: Target, config: PreTrainedConfig) -> str:
    """Why an engine does not serve the windows of a configuration, and what works instead.

    Returns:
        A sentence; empty if it serves them, or there are none.
    """
    types: Sequence[str] = getattr(config, "layer_types", None) or ()
    if SLIDING not in types:
        return ""
    known, family = READINGS[target], config.model_type
    found = known.get(family, Reading("ignores", "no class of it reads them"))
    does = found.does if found.layers in (None, len(types)) else "ignores"
    if does == "reads" or (does == "reads if all slide" and FULL not in types):
        return ""
    where = f" with {len(types)} layers" if found.layers else ""
    others = ", ".join(sorted(name for name, each in known.items() if each.does == "reads"))
    return (
        f"of the windows of {family}{where} {VERSIONS[target]} {does} ({found.source}); "
        f"{found.instead or f'windows of these families are served: {others}'}; sinks= makes a "
        "Llama a GraniteSWA"
    )


def write_entries(target: Target, config: PreTrainedConfig) -> None:
    """Writes what programs read beside `layer_types`, and removes what contradicts it."""
    for name in (*POOL, *BY_PERIOD):
        config.__dict__.pop(name, None)
    types, family = config.layer_types, config.model_type
    if target == "sglang" and family in ON_REQUEST and SLIDING in types:
        config.is_hybrid_swa = True
        config.hybrid_layer_pattern = [int(kind == SLIDING) for kind in types]
    if SLIDING in types and family in ("qwen2", "qwen3"):
        config.max_window_layers = 0  # of another number vLLM's classes may serve full layers
    for period in range(1, len(types) + 1) if family == "modernbert" else ():
        if all((kind == FULL) == (layer % period == 0) for layer, kind in enumerate(types)):
            thetas = [config.rope_parameters[kind]["rope_theta"] for kind in (FULL, SLIDING)]
            for name, value in zip(BY_PERIOD, (period, *thetas), strict=True):
                setattr(config, name, value)
            return


# -- the room that engines reserve ---------------------------------------------------------------
CACHE_TYPES = {"f16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32)}  # bytes of so many numbers


@dataclass(frozen=True)
class Serving:
    """How an engine is run, as far as the size of its cache depends on it.

    Args:
        in_flight: vLLM: tokens that are scheduled and not yet settled, `max_num_batched_tokens` x
            concurrent batches (>= 1). Its server's default is 2,048 x 2, on GPUs such as the H100
            8,192 x 2, from 160 GiB on 16,384 x 2.
        block: vLLM: positions of a block (>= 1).
        ubatch: llama.cpp: `n_ubatch`, tokens that are computed at once (>= 1).
        sequences: llama.cpp: `n_seq_max`, which share the positions (>= 1).
        unified: llama.cpp: `kv_unified`, whether they share one buffer.
        cache_type: llama.cpp: of keys and values: `"f16"`, `"q8_0"` or `"q4_0"`.
        length: Positions that are counted (>= 1); None = as many as a mask is judged on.

    Raises:
        ValueError: If a number is below 1.
        UnknownNameError: If there is no such type.
    """

    in_flight: int = 4096
    block: int = 16
    ubatch: int = 512
    sequences: int = 1
    unified: bool = False
    cache_type: str = "f16"
    length: int | None = None

    def __post_init__(self) -> None:
        check_name("cache_type", self.cache_type, CACHE_TYPES)
        for name in ("in_flight", "block", "ubatch", "sequences", "length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `kv_bytes`."""
        return {name: value for name, value in asdict(self).items() if name != "length"}


def transformers_keys(windows: Sequence[int | None], length: int, _: Serving) -> int:
    """Keys that transformers' cache holds after `length` tokens, summed over the layers: of a
    window all but the query's own, which comes next.

    Args:
        windows: Of each layer, in keys with the query's own; None = everything.
        length: Positions.
    """
    return sum(length if window is None else min(window - 1, length) for window in windows)


def vllm_keys(windows: Sequence[int | None], length: int, serving: Serving) -> int:
    """Keys that vLLM reserves room for, for one sequence of `length` tokens, over the layers.

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


def llama_cpp_keys(windows: Sequence[int | None], length: int, serving: Serving) -> int:
    """Cells that llama.cpp allocates for a context of `length` positions, over the layers.

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


HELD: Mapping[str, Callable[[Sequence[int | None], int, Serving], int]] = MappingProxyType(
    {"transformers": transformers_keys, "vllm": vllm_keys, "llama.cpp": llama_cpp_keys}
)


# The setting that lowers what an engine holds of the narrowest window, as a longer context does.
FLOORS: Mapping[str, str] = MappingProxyType({"vllm": "in_flight", "llama.cpp": "ubatch"})


def pad(cells: int) -> int:
    """The next multiple of 256."""
    return -(-cells // 256) * 256
