"""Synthetic records: plain data, no model behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from masksearch import masks
from masksearch.contracts import Evaluate, Objective, OneShot, Record, Report, Shape
from masksearch.masks import Mask
from masksearch.masks.measure import fingerprint

SHAPE = Shape(length=16, layers=2, heads=2)
STAR = masks.star()
OBJECTIVES = (Objective("glue", "max", 0.5), Objective("sparsity", "max", 0.0))


@pytest.fixture(scope="session")
def shape() -> Shape:
    return SHAPE


@pytest.fixture(scope="session")
def objectives() -> tuple[Objective, ...]:
    return OBJECTIVES


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    """A record of a mask with a score; `values` are merged in."""

    def make(number: int, score: float | None, mask: Mask = STAR, **fields: Any) -> Record:
        values = dict(fields.pop("values", {}))
        if score is not None:
            values["glue"] = score
        defaults: dict[str, Any] = {
            "status": "done" if score is not None else "failed",
            "origin": "random",
            "protocol": "p",
            "seconds": 2.0,
            "fingerprint": fingerprint(mask, SHAPE),
            "measures": {"sparsity": mask.sparsity(16), "block_density": 1.0},
        }
        return Record(number, job=Evaluate(mask), values=values, **(defaults | fields))

    return make


@pytest.fixture(scope="session")
def compared(record: Callable[..., Record]) -> Callable[..., list[Record]]:
    """Records of a comparison: name -> (mask, one score per seed; None = failed)."""

    def make(
        runs: Mapping[str, tuple[Mask, Sequence[float | None]]], **fields: Any
    ) -> list[Record]:
        records: list[Record] = []
        for name, (mask, scores) in runs.items():
            for seed, score in enumerate(scores):
                error = "" if score is not None else "CUDA out of memory"
                records.append(
                    record(
                        len(records), score, mask, seed=seed, origin="compare",
                        params={"mask": name}, error=error, **fields,
                    )
                )  # fmt: skip
        return records

    return make


@pytest.fixture(scope="session")
def one_shot() -> Record:
    """A DAM record with a curve and no mask."""
    curve = tuple(
        Report(step, {"loss": 5 - step / 100, "density": 0.9**step + 0.05, "target": 0.1})
        for step in range(1, 40)
    )  # fmt: skip
    return Record(
        0, "done", OneShot({"structure": "free"}), protocol="p", origin="dam", curve=curve,
        values=dict(curve[-1].values), seconds=60.0,
    )  # fmt: skip
