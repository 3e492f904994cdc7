"""Carries out a one-shot job: one DAM run on the model and data of an evaluator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from masksearch.contracts import Evaluator, OffersGradients, OneShot, Report, mixed_seed
from masksearch.errors import SearchError
from masksearch.gates.bank import Gates
from masksearch.gates.dam import DamConfig, dam_reports, finished

GATES_FILE = "gates.safetensors"


def run_one_shot(
    evaluator: Evaluator, job: OneShot, *, seed: int, workdir: Path
) -> Iterator[Report]:
    """Trains gates as the job says and writes them to `workdir / "gates.safetensors"`.

    Args:
        evaluator: Gives the shape, and with `differentiable(seed)` the model and the batches.
        job: `job.gates` are arguments of `Gates` beside `length` and `heads` (layers default to
            1: shared), `job.config` those of `DamConfig`.
        seed: Seed of the weights, the data and the gates' noise.
        workdir: Made if missing.

    Yields:
        About a hundred reports, as `dam_reports`.

    Raises:
        SearchError: If the evaluator has no `differentiable`, or the job names an unknown
            argument.
    """
    if not isinstance(evaluator, OffersGradients):
        raise SearchError(
            f"DAM needs an evaluator with differentiable(seed), {type(evaluator).__name__} has "
            "none; use another strategy or, for example, a PlantedEvaluator or an MlmEvaluator"
        )
    shape = evaluator.shape
    try:
        config = DamConfig(**job.config)
        arguments = {"length": shape.length, "heads": shape.heads, "seed": mixed_seed(seed, 1)}
        gates = Gates(**{**arguments, **job.gates})
    except TypeError as error:
        raise SearchError(
            f"a one-shot job holds arguments of Gates and DamConfig: {error}"
        ) from None
    source = evaluator.differentiable(seed)
    curve: list[Report] = []
    for report in dam_reports(
        source.model, source.batches, gates, config, held_out=source.held_out
    ):
        curve.append(report)
        yield report
    workdir.mkdir(parents=True, exist_ok=True)
    finished(gates, config, curve).save(workdir / GATES_FILE)
