"""Says whether an engine serves this folder as it was planned, from what the engine logs.

python check_serving.py server.log

Reads serving.json beside it; needs Python alone. Exit code 0: it does; 1: it does not; 2: the log
does not say.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

NEAR = 0.02  # of the bytes: logs round them
GIB = 2**30


def judge_log(log: str, planned: dict[str, Any]) -> tuple[int, list[str]]:
    """The exit code, and what was found.

    Args:
        log: What the engine has written.
        planned: serving.json.
    """
    engine, settings = planned["engine"], planned["settings"]
    if engine == "llama.cpp":
        found = {
            "n_ctx": re.findall(r"n_ctx +=\s*(\d+)", log),
            "n_ubatch": re.findall(r"n_ubatch +=\s*(\d+)", log),
            "n_seq_max": re.findall(r"n_seq_max +=\s*(\d+)", log),
        }
        wanted = {
            "n_ctx": settings["length"],
            "n_ubatch": settings["ubatch"],
            "n_seq_max": settings["sequences"],
        }
        sizes = re.findall(r"llama_kv_cache: size =\s*([\d.]+) MiB", log)
        bytes_held = sum(map(float, sizes)) * 2**20
    elif engine == "vllm":
        found = {"max_model_len": re.findall(r"concurrency for ([\d,]+) tokens per", log)}
        wanted = {"max_model_len": settings["length"]}
        at_once = re.findall(r"tokens per request: ([\d.]+)x", log)
        room = re.findall(r"KV cache memory: ([\d.]+) GiB", log)
        sizes = at_once and room
        bytes_held = float(room[-1]) * GIB / float(at_once[-1]) if sizes else 0
    else:  # SGLang has one pool for all requests, and a second one where it frees windows
        pools = re.findall(
            r"SWAKVPool mem usage: [\d.]+ GB, swa size: (\d+), full size: (\d+)", log
        )
        if pools:
            swa, full = pools[-1]
            return 0, [f"windows have a pool of {swa} tokens of their own, full layers {full}"]
        if re.search(r"KV Cache is allocated", log):
            return 1, ["one pool for all layers: the keys of windows are not freed"]
        return 2, ["the log has no line about the pools; give it from the start of the server"]
    if not sizes:
        return 2, ["the log has no line about the cache; give it from the start of the server"]
    for name, value in wanted.items():
        if found[name] and int(found[name][-1].replace(",", "")) != value:
            return 2, [f"{name} is {found[name][-1]}, planned for {value}: see SERVING.md"]
    said = [f"cache of keys and values: {bytes_held:,.0f} bytes, planned {planned['kv_bytes']:,}"]
    said.append(f"dense: {planned['dense_kv_bytes']:,}")
    return int(abs(bytes_held / planned["kv_bytes"] - 1) > NEAR), said


def main() -> None:
    """Reads the log that is named, or what is piped in."""
    planned = json.loads(Path(__file__).with_name("serving.json").read_text(encoding="utf-8"))
    log = Path(sys.argv[1]).read_text(errors="replace") if sys.argv[1:] else sys.stdin.read()
    code, said = judge_log(log, planned)
    print("; ".join(said))
    print(("as planned", "NOT as planned: SERVING.md says what was", "undecided")[code])
    sys.exit(code)


if __name__ == "__main__":
    main()
