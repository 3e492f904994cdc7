"""Trials as a search stores them, without a search."""

import math
from dataclasses import replace
from pathlib import Path

from masksearch import masks
from masksearch.contracts import Evaluate, Job, Objective, Record, Report
from masksearch.study.store import StudyStore

OBJECTIVES = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))
FACTS = {"kind": "search", "shape": '{"length": 16, "layers": 2, "heads": 2}', "protocol": "p"}


def running(job: Job | None = None) -> Record:
    """A trial that begins."""
    return Record(
        number=-1,
        status="running",
        job=job or Evaluate(masks.window(2)),
        fingerprint="f" * 64,
        protocol="p",
        seed=3,
        params={"reach": 2, "kind": "a"},
        origin="tpe",
        source="own",
        measures={"sparsity": 0.7, "hops": math.inf},
        strategy_state={"note": "kept"},
    )


def finished(number: int, job: Job | None = None, **settings: object) -> Record:
    """The same at its end."""
    values = dict(
        status="done",
        values={"loss": 0.25},
        step=4,
        curve=(Report(2, {"loss": 0.5}), Report(4, {"loss": 0.25})),
        artifacts={"gates": f"trials/{number}/gates.safetensors"},
        seconds=1.5,
    )
    return replace(running(job), number=number, **(values | settings))


def made(run: Path, storage=None, trials: int = 0) -> StudyStore:
    """An open study with so many finished trials."""
    store = StudyStore(run, storage)
    store.create(OBJECTIVES, FACTS)
    for draw in range(trials):
        store.finish(finished(store.begin(running(), draw)))
    return store
