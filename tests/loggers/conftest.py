"""The records of a search as loggers are told them."""

from dataclasses import replace

from masksearch import masks
from masksearch.contracts import Evaluate, Objective, Record, Report

OBJECTIVES = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))


def record(number: int, loss: float | None, sparsity: float = 0.5, **fields) -> Record:
    """A trial of window(number), and its curve; without a loss it has failed."""
    done = Record(
        number,
        "failed" if loss is None else "done",
        Evaluate(masks.window(number)),
        fingerprint=f"f{number}",
        protocol="p",
        seed=7,
        params={"reach": number, "kind": "window"},
        origin="tpe",
        measures={"sparsity": sparsity, "hops": float("inf")},
        seconds=1.5,
        error="Traceback\nValueError: a, b" if loss is None else "",
    )
    if loss is not None:
        curve = tuple(Report(s, {"loss": loss + (1 / s if s < 3 else 0)}) for s in (1, 2, 3))
        done = replace(done, values={"loss": loss}, step=3, curve=curve)
    return replace(done, **fields)


RECORDS = [
    record(0, 2.0),
    record(2, 1.0),
    record(1, None),
    record(3, 3.0, sparsity=0.2),
    record(4, 1.5, sparsity=0.7, status="stopped"),
    record(5, 1.5, sparsity=0.6),
]
