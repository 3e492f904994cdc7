"""Says whether an engine serves this folder as it was planned, from what the engine logs.

python check_serving.py server.log

Reads serving.json beside it; needs Python alone. Exit code 0: it does; 1: it does not; 2: the log
does not say.
"""

from __future__ import annotations

import json
import re  # noqa: F401 (of the engine's own function, which stands below in a folder)
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

NEAR = 0.02  # of the bytes: logs round them


def judge_bytes(
    size: float | None,
    logged: Mapping[str, tuple[Sequence[str], str]],
    planned: Mapping[str, Any],
) -> tuple[int, list[str]]:
    """The exit code, and what was found, by the bytes that an engine holds.

    Args:
        size: Of the cache, in bytes, as it logs it; None = no line says it.
        logged: Name of a setting -> all values in the log, and its name in the plan.
        planned: serving.json.
    """
    if size is None:
        return 2, ["the log has no line about the cache; give it from the start of the server"]
    for name, (values, setting) in logged.items():
        planned_value = planned["settings"][setting]
        if values and int(values[-1].replace(",", "")) != planned_value:
            return 2, [f"{name} is {values[-1]}, planned for {planned_value}: see SERVING.md"]
    lines = [f"cache of keys and values: {size:,.0f} bytes, planned {planned['kv_bytes']:,}"]
    lines.append(f"dense: {planned['dense_kv_bytes']:,}")
    return int(abs(size / planned["kv_bytes"] - 1) > NEAR), lines


def main(read_log: Callable[[str, Mapping[str, Any]], tuple[int, list[str]]]) -> None:
    """Reads the log that is named, or what is piped in."""
    planned = json.loads(Path(__file__).with_name("serving.json").read_text(encoding="utf-8"))
    log = Path(sys.argv[1]).read_text(errors="replace") if sys.argv[1:] else sys.stdin.read()
    code, lines = read_log(log, planned)
    print("; ".join(lines))
    print(("as planned", "NOT as planned: SERVING.md says what was", "undecided")[code])
    sys.exit(code)
