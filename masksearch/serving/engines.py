"""What engines make of the windows that a configuration names: data, by released version.

Read in the source of these releases, in the file that each row names; a new release is a changed
row. `to_native(target=)` refuses what a row does not serve, and a test holds every exported
configuration against the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from transformers import PreTrainedConfig

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
        f"{found.instead or f'windows of these families are served: {others}'}"
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
