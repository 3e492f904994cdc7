"""What has ended, as lines of small files from which a fresh clone goes on."""

from __future__ import annotations

import base64
import json
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tables
from tables import Line

from masksearch.analysis.row_scores import RowScores

EARLIER = runpy.run_path(str(Path(__file__).parents[1] / "19_front" / "kept.py"))
packed, unpacked = EARLIER["packed"], EARLIER["unpacked"]  # a mask in one word, and back


class Lines:
    """The lines of one file.

    Args:
        path: The file; made with its first line.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, tables.read(path)

    def of(self, **about: Any) -> list[Line]:
        """The lines with those values."""
        return [
            line for line in self.lines if all(line.get(name) == about[name] for name in about)
        ]

    def add(self, line: Line) -> None:
        """Writes a line."""
        self.lines.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


def row_scores(path: Path) -> str:
    """The scores row by row in one word: bits where every row is right or wrong, else half
    floats."""
    (values,) = RowScores.load(path).scores.values()
    plain = np.isin(values, (0, 1)).all()
    packed = np.packbits(values.astype(bool)) if plain else values.astype("<f2")
    return f"{len(values)}{'b' if plain else 'f'}{base64.b85encode(packed.tobytes()).decode()}"


def best_hand(own: Iterable[Line], budget: float) -> str:
    """The name of the hand-designed mask that the choosing rows prefer."""
    return tables.best(tables.scored(own, "choice", f"hand {budget}: "))["name"]
