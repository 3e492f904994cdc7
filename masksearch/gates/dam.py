"""DAM: weights and attention gates trained together, from dense attention to a sparse mask.

    result = dam(model, batches, Gates("free", length=32, heads=2), DamConfig(density=0.05))
    result.mask(sparsity=0.95)

The weights first learn with dense attention (gates that are pruned before attention has learned
are pruned at random); then the gates are sampled, learn from the loss, and are pushed together
towards the target density.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn

from masksearch.checkpoints import Checkpoints
from masksearch.contracts import Batch, Report, Task
from masksearch.errors import LayerCountError
from masksearch.gates.bank import Gates
from masksearch.gates.collapse import CollapseWatch
from masksearch.gates.config import DamConfig as DamConfig
from masksearch.gates.config import preset as preset_named
from masksearch.gates.joint import JointTraining
from masksearch.gates.result import DamResult as DamResult

Batches = Iterable[Batch] | Task
CHECKPOINT_SECONDS = 60.0  # wall time between two checkpoints


def dam_reports(
    model: nn.Module,
    batches: Batches,
    gates: Gates,
    config: DamConfig,
    *,
    held_out: Sequence[Batch] = (),
    gate_batches: Batches | None = None,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Iterator[Report]:
    """Trains in place and reports about a hundred times; stop by closing the iterator.

    Warns while it goes on where everything is pruned, nothing is, or the loss is lost. The gates
    are attached to the model unless they are part of it already; what was attached here is
    detached at the end.

    Args:
        model: A Hugging Face model, or a module holding one, whose `model(**batch).loss` is
            differentiable.
        batches: Batches (mappings of tensors) in any iterable, begun again where it ends (an
            iterator cannot be, and must hold enough), or a Task.
        gates: Trained in place; read them afterwards.
        config: Steps, rates and target.
        held_out: Batches on which the last report's `held_out` losses are measured; a Task
            brings its own.
        gate_batches: What the gates learn on where `config.levels` is 2; None = every other one
            of `batches`.
        seed: Of a Task's batches.
        checkpoints: Where the state is kept; a run that is found there goes on, and ends exactly
            as it would have, given the same batches from their beginning.
        checkpoint_seconds: Wall time between two checkpoints.

    Yields:
        Reports with `loss` (mean over the batches since the last report), `density`, `target`,
        `entropy` (bits), `control` (the term added to the loss) and, with gates at work on the
        held-out batches, at the end `held_out` (gates rounded), `relaxed`, `sampled` and
        `discretised`, see `masksearch.gates.joint`.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite; names the step.
        ResumeError: If the checkpoints are of another run.
        LayerCountError: If there are targets for another number of layers.
        LengthError: If a batch is longer than the gates.
        ValueError: If a target density is below one key a row, or the batches end too early.
    """
    check_targets(gates, config)
    from masksearch.models.attach import attach, detach

    if isinstance(batches, Task) and not held_out:
        held_out = batches.held_out()
    device = next(model.parameters()).device
    gates.to(device)
    ours = all(module is not gates for module in model.modules())
    training = model.training
    model.train()
    if ours:
        attach(model, gates)
    try:
        run = JointTraining(model, gates, config, held_out)
        first = gates.density().mean().item()
        watch = CollapseWatch(config.target, first, config.warmup_steps, config.steps)
        for report in run.reports(
            endless(batches, seed),
            None if gate_batches is None else endless(gate_batches, seed),
            checkpoints,
            checkpoint_seconds,
        ):
            problem = watch.look(report)
            if problem is not None:
                warnings.warn(f"DAM: {problem}", stacklevel=2)
            yield report
    finally:
        gates.enabled, gates.cooled = True, 1.0
        if ours:
            detach(model)
        model.train(training)


def check_targets(gates: Gates, config: DamConfig) -> None:
    """Whether the gates can reach the target densities."""
    if len(config.targets) > 1 and len(config.targets) != gates.layers:
        raise LayerCountError(
            f"density names {len(config.targets)} layers, the gates have {gates.layers}; "
            "give one share for all, or one for each layer of the gates"
        )
    if config.aims and min(config.targets) * gates.length < 1:
        raise ValueError(
            f"every row keeps a key, so density is at least 1/n = {1 / gates.length:.6g} at "
            f"length {gates.length}, got {config.density}"
        )


def endless(batches: Batches, seed: int) -> Iterator[Batch]:
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


def finished(gates: Gates, config: DamConfig, curve: Sequence[Report]) -> DamResult:
    """The result of gates after `dam_reports`; warns where the run collapsed."""
    probabilities = gates.probabilities().detach().float().cpu()
    result = DamResult(probabilities, tuple(curve), config.target, gates.arguments, asdict(config))
    for problem in result.health()["problems"]:
        warnings.warn(f"DAM: {problem}", stacklevel=3)
    return result


def dam(
    model: nn.Module,
    batches: Batches,
    gates: Gates,
    config: DamConfig | None = None,
    *,
    preset: str | None = None,
    held_out: Sequence[Batch] | None = None,
    gate_batches: Batches | None = None,
    seed: int = 0,
    on_report: Callable[[Report], None] | None = None,
    checkpoints: Path | str | None = None,
) -> DamResult:
    """Trains weights and gates together and returns what the gates have learned.

    Args:
        model: A Hugging Face model, or a module holding one, whose `model(**batch).loss` is
            differentiable; from scratch or pre-trained. Trained in place and left without the
            gates (unless it had them).
        batches: Batches (mappings of tensors) in any iterable, begun again where it ends, or a
            Task.
        gates: Trained in place.
        config: Steps, rates and target; None = `DamConfig()`.
        preset: `"sparsebert"`: the published algorithm, see `masksearch.gates.published`.
        held_out: Batches for the losses of the health card; a Task brings its own.
        gate_batches: What the gates learn on where `config.levels` is 2; None = every other one
            of `batches`.
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
    curve = []
    kept = Checkpoints(Path(checkpoints), "dam") if checkpoints is not None else None
    for report in dam_reports(
        model,
        batches,
        gates,
        config,
        held_out=held_out or (),
        gate_batches=gate_batches,
        seed=seed,
        checkpoints=kept,
    ):
        curve.append(report)
        if on_report:
            on_report(report)
    return finished(gates, config, curve)
