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

A step (`JointTraining.advance`): rates and temperature, the gradient of the loss, the push on the
gates towards the density, the optimisers. With two levels the gates learn in a second half of the
step, from batches of their own; of frozen weights only the gates learn, from the first step on.
When the warm-up ends is told by the configuration, or found by a `WarmupWatch`.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from masksearch.contracts import (
    Batch,
    Evaluator,
    OffersGradients,
    OneShot,
    Report,
    Task,
    mixed_seed,
)
from masksearch.errors import (
    LayerCountError,
    NonFiniteLossError,
    ResumeError,
    SearchError,
    unknown_name,
)
from masksearch.gates.config import (
    AUTO,
    FORMER_WARMUP,
    DamConfig,
    build_config,
    todays_names,
)
from masksearch.gates.config import preset as preset_named
from masksearch.gates.density import DensityControl
from masksearch.gates.diagnostics import CollapseWatch, entropy_bits
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.gates import Gates
from masksearch.gates.result import DamResult as DamResult
from masksearch.gates.sparsebert import PublishedGates
from masksearch.gates.warmup import AttentionLoss, Verdict, WarmupWatch
from masksearch.training.checkpoints import (
    Checkpoints,
    restore_random,
    restore_state,
    training_state,
)
from masksearch.training.lamb import Lamb
from masksearch.training.loop import (
    keeping_modes,
    model_loss,
    on_device,
    parameter_groups,
)

Batches = Iterable[Batch] | Task
REPORTS = 100  # of a run, about
TEST_ROWS = 256  # held-out sequences, about, on which attention is taken away
SAMPLES = 4  # samples of the gates whose losses are averaged at the end
GATE_EPS = 1e-20  # of Adam on the gates: far below any gradient, so that their scale is free
CHECKPOINT_SECONDS = 60.0  # wall time between two checkpoints
GATES_FILE = "gates.safetensors"  # what a one-shot job leaves


class JointTraining:
    """Trains the weights of a model and the gates that are attached to it.

    Args:
        model: In training mode, with the gates on it.
        gates: Trained in place.
        config: Steps, rates and target.
        held_out: Batches for the losses of the last report.
    """

    def __init__(
        self, model: nn.Module, gates: Gates, config: DamConfig, held_out: Sequence[Batch] = ()
    ) -> None:
        self.model, self.gates, self.config, self.held_out = model, gates, config, held_out
        self.device = next(model.parameters()).device
        self.weights: list[Tensor] = []  # those that are trained
        self.optimisers = self.build_optimisers()
        self.control = DensityControl(config, gates)
        self.warmup = WarmupWatch(config)
        if config.waits:
            self.control.pause(0)  # until pruning begins
        self.tested = few_rows(held_out, TEST_ROWS)  # batches for the tests of attention
        self.latest: Batch = {}  # that the weights were trained on
        self.step = 0  # optimiser steps that are done
        self.losses: list[float] = []  # since the last report
        self.curve: list[Report] = []

    def build_optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name: `both` for LAMB, otherwise `weights` (if any) and `gates`."""
        config, logits = self.config, self.gates.logits
        groups: list[dict[str, Any]] = []
        for group in parameter_groups(self.model, config.weight_decay):
            members = [p for p in cast("list[Tensor]", group["params"]) if p is not logits]
            if members:
                self.weights += members
                groups.append({**group, "params": members, "lr": config.lr})
        if config.optimiser == "lamb":
            groups.append({"params": [logits], "lr": config.gate_lr, "weight_decay": 0.0})
            return {"both": Lamb(groups, max_grad_norm=config.clip)}
        found: dict[str, torch.optim.Optimizer] = {}
        if groups:
            found["weights"] = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        found["gates"] = torch.optim.Adam([logits], config.gate_lr, eps=GATE_EPS, fused=True)
        return found

    def reports(
        self,
        batches: Iterator[Batch],
        gate_batches: Iterator[Batch] | None,
        checkpoints: Checkpoints | None,
        checkpoint_seconds: float,
    ) -> Iterator[Report]:
        """Trains to the end; of a run that goes on, the earlier reports come first."""
        own = batches if gate_batches is None else gate_batches
        if checkpoints is not None:
            self.restore(checkpoints)
        for step in range(self.step):  # what the steps that are done have used
            for _ in range(self.config.micro_batches):
                self.next_batch(batches, step)
                if self.config.levels == 2 and self.warmup.acts(step):
                    self.next_batch(own, step)
        yield from tuple(self.curve)
        saved = time.monotonic()
        while self.step < self.config.steps:
            report = self.advance(batches, own)
            if checkpoints is not None and time.monotonic() - saved >= checkpoint_seconds:
                checkpoints.save(self.step, *self.state())
                saved = time.monotonic()
            if report is not None:
                yield report

    def advance(self, batches: Iterator[Batch], gate_batches: Iterator[Batch]) -> Report | None:
        """One optimiser step of the weights and, after the warm-up, of the gates."""
        config, gates, step = self.config, self.gates, self.step
        if step == 0 and self.tested:
            self.follow(self.warmup.at_start(self.attention_loss))
        gates.enabled = self.warmup.acts(step)
        gates.cooling = config.temperature_factor(step, self.warmup.begin)
        self.set_rates(config.lr_factor(step))
        joint = gates.enabled and config.levels == 1
        count = len(self.losses)
        cost = self.set_gradients(batches, controlled=joint)
        of_step = self.losses[count:]  # of the weights' batches
        if config.optimiser == "adamw":
            torch.nn.utils.clip_grad_norm_(self.weights, config.clip)
        for name, optimiser in self.optimisers.items():
            if name != "gates" or joint:
                optimiser.step()
        if gates.enabled and not joint:  # the second level
            cost = self.set_gradients(gate_batches, controlled=True)
            self.optimisers["gates"].step()
        self.step += 1
        self.follow(self.warmup.look(self.step, of_step, self.attention_loss))
        if self.step % max(1, config.steps // REPORTS) and self.step < config.steps:
            return None
        self.curve.append(self.report(cost))
        return self.curve[-1]

    def follow(self, verdict: Verdict) -> None:
        """Does what the warm-up's watch says is due before the next step."""
        if verdict == "begin":
            self.control.begin(self.step)
        elif verdict == "pause":
            self.control.pause(self.step)
        elif verdict == "go on":
            self.control.go_on(self.step)

    @torch.no_grad()
    def attention_loss(self) -> AttentionLoss:
        """What the model loses when every query sees itself alone, in eval mode; on the held-out
        batches, or where there are none on the latest training batch."""
        model, gates, before = self.model, self.gates, self.gates.enabled
        batches = self.tested or [self.latest]

        def mean() -> float:
            return sum(self.loss(batch).item() for batch in batches) / len(batches)

        with keeping_modes(model, gates):
            model.eval()
            gates.enabled = False
            try:
                dense = mean()
                gates.alone = True
                return AttentionLoss(dense, mean())
            finally:
                gates.alone, gates.enabled = False, before

    def set_rates(self, factor: float) -> None:
        """Sets the learning rates of a step; the gates have a schedule only where "sqrt"."""
        config = self.config
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                if group["params"][0] is not self.gates.logits:
                    group["lr"] = config.lr * factor
                elif config.schedule == "sqrt":
                    group["lr"] = config.gate_lr * factor

    def set_gradients(self, batches: Iterator[Batch], *, controlled: bool) -> float:
        """Computes the gradients of weights and gates, a mean over the micro-batches.

        Args:
            batches: One is taken for each micro-batch.
            controlled: Whether the gates are also pushed towards their density.

        Returns:
            What the density control added to the loss, in nats.
        """
        count, cost = self.config.micro_batches, 0.0
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        if controlled:
            self.control.update_multiplier(self.gates, self.step)
        for _ in range(count):
            self.latest = self.next_batch(batches, self.step)
            loss = self.loss(self.latest)
            value = loss.item()
            self.losses.append(value)
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"the loss became {value} at step {self.step + 1} of {self.config.steps}; "
                    "lower lr or gate_lr"
                )
            if controlled:
                term = self.control.cost(self.gates, self.step)
                cost += term.item() / count
                loss = loss + term
            (loss / count).backward()  # type: ignore[no-untyped-call]
        return cost + self.control.push(self.gates, self.step) if controlled else cost

    def next_batch(self, batches: Iterator[Batch], step: int) -> Batch:
        """The next batch; an error where there is none."""
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"the batches ended after {step} of {self.config.steps} steps")
        return batch

    def loss(self, batch: Batch) -> Tensor:
        """Loss of a batch at the run's precision."""
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return model_loss(self.model, on_device(self.model, batch))

    def report(self, cost: float) -> Report:
        """The report after this step."""
        gates = self.gates
        values = {
            "loss": sum(self.losses) / len(self.losses),
            "density": gates.whole_density().item(),
            "target": self.control.target(self.step - 1).mean().item(),
            "entropy": entropy_bits(gates.probabilities().detach(), gates.weights).item(),
            "control": cost,
        }
        self.losses.clear()
        if self.config.waits:
            values |= self.warmup.values(self.step)
        if self.step == self.config.steps and self.held_out:
            values |= self.held_out_losses()
        return Report(self.step, values)

    @torch.no_grad()
    def held_out_losses(self) -> dict[str, float]:
        """Mean held-out loss in eval mode, under four readings of the same gates.

        Returns:
            In nats: `relaxed` (every gate at its probability), `sampled` (mean over four
            samples), `held_out` (every gate rounded), `discretised` (the mask of exactly the
            target density; at least one key a row).
        """
        model, gates = self.model, self.gates
        before = gates.form, gates.deterministic, gates.enabled
        noise = gates.noise_generator(self.device)
        state = noise.get_state()

        def mean() -> float:
            return sum(self.loss(batch).item() for batch in self.held_out) / len(self.held_out)

        found: dict[str, float] = {}
        with keeping_modes(model, gates):
            model.eval()
            gates.enabled = True
            probabilities = gates.probabilities()
            sparsity = 1 - max(self.config.target, gates.least_density)
            weights = None if gates.weights is None else gates.weights.cpu()
            try:
                gates.fixed = probabilities
                if gates.form == "flip":  # which rounds
                    gates.form = "log"
                found["relaxed"] = mean()
                gates.form, gates.fixed = before[0], None
                gates.train()
                gates.deterministic = False
                found["sampled"] = sum(mean() for _ in range(SAMPLES)) / SAMPLES
                gates.eval()
                gates.deterministic = True
                found["held_out"] = mean()
                cut = at_sparsity(probabilities.cpu(), sparsity, weights=weights)
                gates.fixed = cut.to(probabilities)
                found["discretised"] = mean()
            finally:
                gates.fixed = None
                gates.form, gates.deterministic, gates.enabled = before
                noise.set_state(state)
        return found

    # -- checkpoints ---------------------------------------------------------------------------
    def identity(self) -> dict[str, Any]:
        """Configuration and gates as plain data: a checkpoint of others is refused."""
        found = {"config": asdict(self.config), "gates": self.gates.arguments}
        return dict(json.loads(json.dumps(found)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain facts from which `restore` goes on."""
        tensors = training_state(self.model, self.optimisers)
        if self.config.train == "gates":  # the weights are whoever called's, as they were
            own = {id(tensor) for tensor in self.gates.state_dict(keep_vars=True).values()}
            for name, tensor in self.model.state_dict(keep_vars=True).items():
                if id(tensor) not in own:
                    del tensors[f"model.{name}"]
        tensors["random.gates"] = self.gates.noise_generator(self.device).get_state()
        facts = {
            "run": self.identity(),
            "losses": self.losses,
            "curve": [asdict(report) for report in self.curve],
            "control": self.control.state(),
            "warmup": self.warmup.state(),
        }
        return tensors, facts

    def restore(self, checkpoints: Checkpoints) -> None:
        """Goes on from the newest checkpoint, if there is one."""
        found = checkpoints.load()
        if found is None:
            return
        facts, tensors = found.facts, dict(found.tensors)
        earlier = {**facts["run"], "config": {"train": "both", **facts["run"]["config"]}}
        earlier["config"] = todays_names(earlier["config"])
        if self.config.waits and "warmup" not in facts:
            self.go_on_without_waiting(earlier["config"].get("dense_warmup"))
        differing = [
            f"{part}.{name}"
            for part, ours in self.identity().items()
            for name in ours
            if earlier[part].get(name) != ours[name]
        ]
        if differing:
            raise ResumeError(
                f"{checkpoints.folder} holds the checkpoint of a run with other "
                f"{', '.join(differing)}; give the same arguments, or another folder"
            )
        as_given = {f"model.{name}": part for name, part in self.model.state_dict().items()}
        restore_state(as_given | tensors, self.model, self.optimisers)
        restore_random(tensors, self.device)
        self.gates.noise_generator(self.device).set_state(tensors["random.gates"])
        self.losses = list(facts["losses"])
        self.curve = [Report(item["step"], item["values"]) for item in facts["curve"]]
        vars(self.control).update(facts["control"])
        self.warmup.restore(facts.get("warmup", {}))
        self.step = found.step

    def go_on_without_waiting(self, share: object) -> None:
        """Takes over the default of the versions without "auto": their runs end as they would."""
        if share == FORMER_WARMUP and self.config.dense_warmup == AUTO:
            self.config = replace(self.config, dense_warmup=FORMER_WARMUP)
            self.control.config = self.config
            self.control.begin(self.config.warmup_steps)
            self.warmup = WarmupWatch(self.config)


def few_rows(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """The first batches with about so many rows; the last is cut where all of it has a first axis
    of rows."""
    found: list[Batch] = []
    for batch in batches:
        sizes = {len(v) if isinstance(v, Tensor) and v.ndim else None for v in batch.values()}
        (size,) = sizes if len(sizes) == 1 else (None,)
        if size is not None and size > rows:
            batch = {name: value[:rows] for name, value in batch.items()}
            size = rows
        found.append(batch)
        rows -= 1 if size is None else size
        if rows <= 0:
            break
    return found


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
        gate_batches: For two levels.
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
            for report in run.reports(
                endless(batches, seed),
                None if gate_batches is None else endless(gate_batches, seed),
                checkpoints,
                checkpoint_seconds,
            ):
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
    for problem in result.health()["problems"]:
        warnings.warn(f"DAM: {problem}", stacklevel=2)
    return result


def config_for(config: DamConfig, model: nn.Module, gates: Gates) -> DamConfig:
    """Checks a configuration against model and gates; frozen weights make it train="gates".

    Raises:
        LayerCountError: If there are targets for another number of layers.
        ValueError: If the gates cannot reach a target density.
    """
    if len(config.targets) > 1 and len(config.targets) != gates.layers:
        raise LayerCountError(
            f"density names {len(config.targets)} layers, the gates have {gates.layers}; "
            "give one share for all, or one for each layer of the gates"
        )
    if config.holds_density and min(config.targets) < gates.least_density:
        least = "1/n = " if gates.weights is None else ""
        raise ValueError(
            f"every row keeps a key, so density is at least {least}{gates.least_density:.6g} at "
            f"length {gates.length}, got {config.density}"
        )
    return config if trainable_weights(model, gates) else replace(config, train="gates")


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
    gate_batches: Batches | None = None,
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
    reports = dam_reports(
        model,
        batches,
        gates,
        config,
        held_out=held_out or (),
        gate_batches=gate_batches,
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
        config = build_config(job.config)
        arguments = {**shape.to_dict(), "seed": mixed_seed(seed, 1)}
        del arguments["layers"]  # shared, unless the job says otherwise
        if job.gates.get("layers", 1) != shape.layers or "preset" in job.gates:
            arguments.pop("read", None)  # other layers need the rows that the last one does not
        gates = build_gates({**arguments, **job.gates})
    except TypeError as error:
        raise SearchError(
            f"a one-shot job holds arguments of Gates and DamConfig: {error}"
        ) from None
    source = evaluator.differentiable(seed)
    batches, gate_batches = source.batches, None
    if config.levels == 2 and source.halves is not None:
        batches, gate_batches = source.halves
    checkpoints = Checkpoints(workdir, "dam")
    result = yield from dam_reports(
        source.model,
        batches,
        gates,
        config,
        held_out=source.held_out,
        gate_batches=gate_batches,
        checkpoints=checkpoints,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    workdir.mkdir(parents=True, exist_ok=True)
    result.save(workdir / GATES_FILE)
    checkpoints.clear()


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
