"""transformers: applies a configuration by itself, in Python."""

from __future__ import annotations

from masksearch_decoders.engine import Engine, Reading, Serving, Windows, rows


def held_keys(windows: Windows, length: int, _: Serving) -> int:
    """Keys that its cache holds after `length` tokens, summed over the layers: of a window all but
    the query's own, which comes next. Its static cache has room for that one too."""
    return sum(length if window is None else min(window - 1, length) for window in windows)


TRANSFORMERS = Engine(
    name="transformers",
    title="transformers",
    version="5.23.0",
    readings={
        **dict.fromkeys(
            ["qwen2", "qwen3", "smollm3", "olmo3", "gemma3_text", "exaone4", "cohere2"],
            Reading("reads", "masking_utils.py, cache_utils.py"),
        ),
        **rows(granite_swa="models/granite_swa", modernbert="models/modernbert"),
        **rows(gpt_oss="models/gpt_oss", mimo_v2_flash="models/mimo_v2_flash"),
        "llama": Reading("drops keys", "cache_utils.py: sliding layers by layer_types"),
    },
    keys=held_keys,
    check="transformers applies the configuration by itself; its cache holds these bytes.",
)
