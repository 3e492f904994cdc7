"""DAM: weights and attention gates trained together, from dense attention to a sparse mask.

    result = dam(model, batches, Gates("free", length=32, heads=2), DamConfig(density=0.05))
    result.mask(sparsity=0.95)

A run has three phases. Gates that are pruned before attention has learned are pruned at random,
so the weights begin with dense attention; then the gates are sampled once a forward pass, learn
from the loss, and are pushed together towards the target density; at the end they are only read.

    step       0 ........ warm-up ............. + anneal ........ steps ........ afterwards
    attention  dense              under a sample of the gates                   under the mask
    weights    learn              learn              learn
    gates      at rest            learn              learn                      cut
    density    as it began        its target sinks   held at the target         exactly as asked

`JointTraining` is what happens in a step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from masksearch.contracts import (
    Batch,
    Evaluator,
    OneShot,
    Report,
    Shape,
    Task,
    mixed_seed,
)
from masksearch.errors import HeadCountError, LayerCountError, SearchError, unknown_name
from masksearch.gates.config import DamConfig, build_config
from masksearch.gates.config import preset as preset_named
from masksearch.gates.gates import Gates
from masksearch.gates.joint_training import JointTraining
from masksearch.gates.result import DamResult as DamResult
from masksearch.gates.sparsebert import PublishedGates
from masksearch.gates.warmup import CollapseWatch
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import keeping_modes

Batches = Iterable[Batch] | Task
CHECKPOINT_SECONDS = 60.0  # wall time between two checkpoints
GATES_FILE = "gates.safetensors"  # what a one-shot job leaves


def dam_reports(
    model: nn.Module,
    batches: Batches,
    gates: Gates,
    config: DamConfig,
    *,
    held_out: Sequence[Batch] = (),
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Generator[Report, None, DamResult]:
    """Runs DAM step by step, yielding reports; closing the generator stops it. See `dam`.

    Warns while it goes on, and at its end, where everything is pruned, nothing is, or the loss is
    lost. The gates are attached to the model unless they are part of it already; what was
    attached here is detached at the end.

    Args:
        model: As for `dam`, and so are those up to `seed`.
        batches: An iterator cannot be begun again, and must hold enough.
        gates: Trained in place.
        config: Steps, rates and target.
        held_out: For the losses of the last report.
        seed: Of a Task's batches.
        checkpoints: Where the state is kept; a run that is found there goes on, and ends exactly
            as it would have, given the same batches from their beginning.
        checkpoint_seconds: Wall time between two checkpoints.

    Yields:
        About a hundred reports with `loss` (mean over the batches since the last report),
        `density`, `target`, `entropy` (bits), `control` (the term added to the loss), with
        `dense_warmup="auto"` also those of `WarmupWatch.values`, and with held-out batches at the
        end what `JointTraining.held_out_losses` returns.

    Returns:
        The result (`result = yield from dam_reports(..)`).
    """
    from masksearch.attention.attach import attach, detach  # loads transformers

    config = config_for(config, model, gates)
    if isinstance(batches, Task) and not held_out:
        held_out = batches.held_out()
    gates.to(next(model.parameters()).device)
    frozen = trainable_weights(model, gates) if config.train == "gates" else []
    ours = all(module is not gates for module in model.modules())
    if ours:
        attach(model, gates)
    with keeping_modes(model, gates):
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            model.train(config.train == "both")
            gates.train()
            run = JointTraining(model, gates, config, held_out)
            first = gates.whole_density().item()
            watch = CollapseWatch(config.target, first, config.warmup_steps, config.steps)
            for report in run.reports(endless(batches, seed), checkpoints, checkpoint_seconds):
                begun = run.warmup.begin
                watch.warmup_steps = run.config.steps if begun is None else begun
                problem = watch.look(report)
                if problem is not None:
                    warnings.warn(f"DAM: {problem}", stacklevel=2)
                yield report
        finally:
            gates.enabled, gates.cooling = True, 1.0
            if ours:
                detach(model, missing_ok=True)
            for parameter in frozen:
                parameter.requires_grad_(True)
    probabilities = gates.probabilities().detach().float().cpu()
    curve = tuple(run.curve)
    result = DamResult(probabilities, curve, config.target, gates.arguments, asdict(run.config))
    for problem in result.health().problems.values():
        warnings.warn(f"DAM: {problem}", stacklevel=2)
    return result


def config_for(config: DamConfig, model: nn.Module, gates: Gates) -> DamConfig:
    """Checks a configuration against model and gates; frozen weights make it train="gates".

    Raises:
        As `refuse_unreachable`.
    """
    refuse_unreachable(config, gates)
    return config if trainable_weights(model, gates) else replace(config, train="gates")


def refuse_unreachable(config: DamConfig, gates: Gates) -> None:
    """Refuses targets that gates cannot reach.

    Raises:
        LayerCountError: If there are targets for another number of layers.
        ValueError: If a target density is too low, or the control counts what the gates lack.
    """
    check_targets(config, gates)
    if config.control == "sum" and gates.units is not None:
        raise ValueError(
            "control='sum' counts open edges, and a switch has none; use control='hinge'"
        )
    if config.holds_density and min(config.targets) < gates.least_density:
        if gates.units is not None:
            gates.units.refuse_less(min(config.targets))
        least = "1/n = " if gates.weights is None else ""
        raise ValueError(
            f"every row keeps a key, so density is at least {least}{gates.least_density:.6g} at "
            f"length {gates.length}, got {config.density}"
        )


def check_targets(config: DamConfig, gates: Gates) -> None:
    """Raises LayerCountError if there are targets for another number of layers."""
    if len(config.targets) > 1 and len(config.targets) != gates.layers:
        raise LayerCountError(
            f"density names {len(config.targets)} layers, the gates have {gates.layers}; "
            "give one share for all, or one for each layer of the gates"
        )


def trainable_weights(model: nn.Module, gates: Gates) -> list[nn.Parameter]:
    """The model's parameters that require a gradient, without those of the gates."""
    return [p for p in model.parameters() if p.requires_grad and p is not gates.logits]


def endless(batches: Batches, seed: int = 0) -> Iterator[Batch]:
    """The batches as one iterator; what can be begun again is, whenever it ends."""
    if isinstance(batches, Task):
        yield from batches.batches(seed)
    elif isinstance(batches, Iterator):
        yield from batches
    else:
        found = True
        while found:
            found = False
            for batch in batches:
                found = True
                yield batch


def dam(
    model: nn.Module,
    batches: Batches,
    gates: Gates,
    config: DamConfig | None = None,
    *,
    preset: str | None = None,
    held_out: Sequence[Batch] | None = None,
    seed: int = 0,
    on_report: Callable[[Report], None] | None = None,
    checkpoints: Path | str | None = None,
) -> DamResult:
    """Trains weights and gates together and returns what the gates have learned.

    Args:
        model: A Hugging Face model, or a module holding one, whose `model(**batch).loss` is
            differentiable; from scratch or pre-trained. Trained in place and left without the
            gates (unless it had them). Where all its weights are frozen, only the gates learn.
        batches: Batches (mappings of tensors) in any iterable, begun again where it ends, or a
            Task.
        gates: Trained in place.
        config: Steps, rates and target; None = `DamConfig()`.
        preset: `"sparsebert"`: the published algorithm, see `masksearch.gates.sparsebert`.
        held_out: Batches for the losses of the health card; a Task brings its own.
        seed: Of a Task's batches.
        on_report: Called about a hundred times with a `Report`.
        checkpoints: A folder in which the state is kept every minute; a run that was killed goes
            on there and gives the same result bit for bit on one machine.

    Returns:
        Probabilities, curve, masks at any sparsity, and `health()`.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite.
        ResumeError: If the folder holds another run's checkpoints.
        LengthError, HeadCountError, LayerCountError: If the gates do not fit the model.
        UnknownNameError: For an unknown preset.
        ValueError: If a target density is below one key a row, or the batches end too early.

    Reference: SparseBERT, arXiv 2102.12871, Section 4 (the idea; gradient and density control
        are our own).
    """
    if preset is not None and config is not None:
        raise ValueError(
            f"preset={preset!r} is a config of its own; give one of the two (a changed preset is "
            "dataclasses.replace(masksearch.gates.config.preset(..), ..))"
        )
    config = config or (DamConfig() if preset is None else preset_named(preset))
    reports = dam_reports(
        model,
        batches,
        gates,
        config,
        held_out=held_out or (),
        seed=seed,
        checkpoints=None if checkpoints is None else Checkpoints(Path(checkpoints), "dam"),
    )
    while True:
        try:
            report = next(reports)
        except StopIteration as end:
            return cast(DamResult, end.value)
        if on_report:
            on_report(report)


def run_one_shot(
    evaluator: Evaluator, job: OneShot, *, seed: int, workdir: Path
) -> Iterator[Report]:
    """Trains gates as the job says and writes them to `workdir / "gates.safetensors"`.

    The state is kept in `workdir` every minute; a job that was killed goes on from there.

    Args:
        evaluator: Gives the shape, and with `differentiable(seed)` the model and the batches.
        job: See `one_shot_parts`.
        seed: Seed of the weights, the data and the gates' noise.
        workdir: Made if missing.

    Yields:
        About a hundred reports, as `dam_reports`.

    Raises:
        SearchError: If the evaluator has no `differentiable`, or the job names an unknown
            argument.
    """
    config, gates = one_shot_parts(job, evaluator.shape, mixed_seed(seed, 1))
    source = evaluator.differentiable(seed)
    checkpoints = Checkpoints(workdir, "dam")
    result = yield from dam_reports(
        source.model,
        source.batches,
        gates,
        config,
        held_out=source.held_out,
        checkpoints=checkpoints,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    workdir.mkdir(parents=True, exist_ok=True)
    result.save(workdir / GATES_FILE)
    checkpoints.clear()


def one_shot_parts(job: OneShot, shape: Shape, seed: int) -> tuple[DamConfig, Gates]:
    """Settings and gates of a job.

    Args:
        job: `job.gates` are arguments of `Gates` beside `length` and `heads`, `job.config` those
            of `DamConfig`; `"preset": "sparsebert"` in the one makes them `PublishedGates`, in
            the other starts from the published settings. Where `layers` is not given, all layers
            share their gates, but switches, and gates that are trained alone, are each layer's
            own: frozen layers cannot adapt to one another's masks.
        shape: Of the model.
        seed: Of the gates' noise.

    Raises:
        SearchError: If the job names an unknown argument.
        LayerCountError, HeadCountError: If the gates, or the densities of layers, do not fit.
        UnknownNameError, ValueError: If a value is none of those that it may be.
    """
    try:
        config = build_config(job.config)
        arguments = {**shape.to_dict(), "seed": seed}
        if "preset" in job.gates:
            del arguments["layers"]
        elif config.train != "gates" and job.gates.get("structure") != "switch":
            arguments["layers"] = 1
        arguments |= job.gates
        if arguments.get("layers") != shape.layers:
            arguments.pop("read", None)  # other layers need the rows that the last one does not
        gates = build_gates(arguments)
    except TypeError as error:
        raise SearchError(
            f"a one-shot job holds arguments of Gates and DamConfig: {error}"
        ) from None
    for name, misfit in (("layers", LayerCountError), ("heads", HeadCountError)):
        own, wanted = getattr(gates, name), getattr(shape, name)
        if own not in (1, wanted):
            raise misfit(
                f"these gates have {own} {name}, the model {wanted}; give {name}={wanted}, or "
                f"{name}=1 to share them"
            )
    check_targets(config, gates)
    return config, gates


def build_gates(arguments: Mapping[str, Any]) -> Gates:
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
