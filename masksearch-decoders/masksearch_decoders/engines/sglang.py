"""SGLang: one pool for all requests, and a second one where it frees the keys of windows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from masksearch_decoders.engine import SLIDING, Engine, Reading, rows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ON_REQUEST = ("olmo3", "gemma3_text")  # whose keys it frees where a configuration asks for it


def entries(config: PreTrainedConfig) -> dict[str, Any]:
    """The entries that ask it to free the keys of windows (configs/model_config.py)."""
    types, pattern = config.layer_types, None
    if config.model_type in ON_REQUEST and SLIDING in types:
        pattern = [int(kind == SLIDING) for kind in types]
    return {"is_hybrid_swa": pattern and True, "hybrid_layer_pattern": pattern}


def command(folder: str, serving: Mapping[str, Any]) -> str:
    """The command that starts its server."""
    return (
        f"python -m sglang.launch_server --model-path {shlex.quote(folder)} --context-length "
        f"{serving['length']} 2>&1 | tee server.log"
    )


def read_log(log: str, _: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Whether windows have a pool of their own."""
    pools = re.findall(r"SWAKVPool mem usage: [\d.]+ GB, swa size: (\d+), full size: (\d+)", log)
    if pools:
        swa, full = pools[-1]
        return 0, [f"windows have a pool of {swa} tokens of their own, full layers {full}"]
    if re.search(r"KV Cache is allocated", log):
        return 1, ["one pool for all layers: the keys of windows are not freed"]
    return 2, ["the log has no line about the pools; give it from the start of the server"]


SGLANG = Engine(
    name="sglang",
    title="SGLang",
    version="0.5.23",
    readings={
        **rows(
            olmo3="models/olmo2.py",
            gemma3_text="models/gemma3_causal.py",
            granite_swa="models/granite.py",
        ),
        "cohere2": Reading("keeps one key more", "models/commandr.py"),
        "exaone4": Reading("ignores", "models/exaone4.py: a period, by the text 'LLLG'"),
        "smollm3": Reading("ignores", "models/transformers.py: by attention backend"),
    },
    biases=False,
    entries=entries,
    command=command,
    read_log=read_log,
)
