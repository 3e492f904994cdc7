"""What follows from the lines of results/: what is chosen, and what the plan compares."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
Line = dict[str, Any]  # of results/, or of a table


def read(path: Path) -> list[Line]:
    """The lines of a file; none where there is no file."""
    return list(map(json.loads, path.read_text("utf-8").splitlines())) if path.is_file() else []


def scored(lines: Iterable[Line], rows: str, name: str = "") -> list[Line]:
    """The lines of masks whose name begins so, scored on those rows."""
    return [
        line
        for line in lines
        if line["stage"] == "score" and line["rows"] == rows and line["name"].startswith(name)
    ]


def best(lines: Iterable[Line]) -> Line:
    """The best score, of equal ones the sparsest."""
    return max(lines, key=lambda line: (line["score"], -line["density"]))
