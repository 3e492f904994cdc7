"""Carries out a one-shot job: one DAM run on the model and data of an evaluator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from masksearch.checkpoints import Checkpoints
from masksearch.contracts import Evaluator, OffersGradients, OneShot, Report, mixed_seed
from masksearch.errors import SearchError, unknown_name
from masksearch.gates.bank import Gates
from masksearch.gates.config import configured
from masksearch.gates.dam import CHECKPOINT_SECONDS, dam_reports, finished
from masksearch.gates.published import PublishedGates

GATES_FILE = "gates.safetensors"


def run_one_shot(
    evaluator: Evaluator, job: OneShot, *, seed: int, workdir: Path
) -> Iterator[Report]:
    """Trains gates as the job says and writes them to `workdir / "gates.safetensors"`.

    The state is kept in `workdir` every minute; a job that was killed goes on from there.

    Args:
        evaluator: Gives the shape, and with `differentiable(seed)` the model and the batches.
        job: `job.gates` are arguments of `Gates` beside `length` and `heads` (layers default to
            1: shared), `job.config` those of `DamConfig`; `"preset": "sparsebert"` in the one
            makes them `PublishedGates`, in the other starts from the published settings.
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
        config = configured(job.config)
        arguments = {"length": shape.length, "heads": shape.heads, "seed": mixed_seed(seed, 1)}
        gates = built({**arguments, **job.gates})
    except TypeError as error:
        raise SearchError(
            f"a one-shot job holds arguments of Gates and DamConfig: {error}"
        ) from None
    source = evaluator.differentiable(seed)
    batches, gate_batches = source.batches, None
    if config.levels == 2 and source.halves is not None:
        batches, gate_batches = source.halves
    checkpoints = Checkpoints(workdir, "dam")
    curve: list[Report] = []
    for report in dam_reports(
        source.model,
        batches,
        gates,
        config,
        held_out=source.held_out,
        gate_batches=gate_batches,
        checkpoints=checkpoints,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    ):
        curve.append(report)
        yield report
    workdir.mkdir(parents=True, exist_ok=True)
    finished(gates, config, curve).save(workdir / GATES_FILE)
    checkpoints.clear()


def built(arguments: Mapping[str, Any]) -> Gates:
    """Gates from plain data: arguments of `Gates`, or of `PublishedGates` where a preset is named.

    Raises:
        UnknownNameError: For another preset than "sparsebert".
    """
    arguments = dict(arguments)
    name = arguments.pop("preset", None)
    if name is None:
        return Gates(**arguments)
    if name != "sparsebert":
        raise unknown_name("gate preset", name, ("sparsebert",))
    return PublishedGates(**arguments)
