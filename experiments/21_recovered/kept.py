"""Runs that have ended as lines of a small file, from which a fresh clone goes on."""

from __future__ import annotations

import base64
import json
import runpy
from pathlib import Path
from typing import Any

import tables

from masksearch.analysis.row_scores import RowScores
from masksearch.contracts import Record

EARLIER = runpy.run_path(str(Path(__file__).parents[1] / "19_front" / "kept.py"))
packed, unpacked = EARLIER["packed"], EARLIER["unpacked"]  # a mask in one word, and back


class Lines:
    """The lines of one file.

    Args:
        path: The file; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, tables.read(path)

    def of(self, **about: Any) -> list[tables.Line]:
        """The lines with those values."""
        return [
            line for line in self.lines if all(line.get(name) == about[name] for name in about)
        ]

    def add(
        self, record: Record, *, whole: bool = False, run: Path | None = None, **about: Any
    ) -> None:
        """Writes the line of a record, once; failures are kept as such.

        Args:
            record: What has ended.
            whole: Whether the mask is written, where nothing else tells it.
            run: The run folder, where the scores row by row are written, too.
            about: Which line it is, beside its number or its name.
        """
        known = (
            {**about, "name": record.name} if record.name else {**about, "number": record.number}
        )
        if record.refused or self.of(**known):
            return
        values = dict(record.curve[-1].values) if record.curve else {}
        line: tables.Line = {
            **known,
            "status": record.status,
            "seconds": round(record.seconds, 1),
            "density": round(1 - record.measures.get("effective_sparsity", 0.0), 5),
            "score": record.values.get("glue"),
            "values": {name: float(f"{value:.7g}") for name, value in values.items()},
            "params": dict(record.params),
            "seed": record.seed,
            "mask": packed(record.mask) if record.mask is not None and whole else None,
            "protocol": record.protocol,
            "fingerprint": record.fingerprint,
        }
        if run is not None and "rows" in record.artifacts:
            line["rows"] = row_scores(run / record.artifacts["rows"])
        self.lines.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


def row_scores(path: Path) -> str:
    """The scores row by row, as half floats in one word."""
    (values,) = RowScores.load(path).scores.values()
    return base64.b85encode(values.astype("<f2").tobytes()).decode()
