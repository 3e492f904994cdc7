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

`dam_reports` puts the gates on the model and takes them off again; `JointTraining.advance` is one
step: rates and temperature, the gradient of the loss, the push on the gates towards the density,
the optimisers. Of frozen weights only the gates learn, from the first step on.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from masksearch.attention.probe import keeping_modes
from masksearch.contracts import Batch, Evaluator, OneShot, Report, Task, mixed_seed
from masksearch.errors import ResumeError
from masksearch.gates.config import DamConfig, one_shot_parts, refuse_unreachable
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.gates import Gates
from masksearch.gates.pruning import (
    AttentionLoss,
    DensityControl,
    Verdict,
    WarmupWatch,
    changing,
)
from masksearch.gates.result import DamResult
from masksearch.gates.units import as_shares, cut_switches
from masksearch.training.checkpoints import Checkpoints, restore_state, training_state
from masksearch.training.lamb import Lamb
from masksearch.training.loop import (
    UNREAD,
    model_loss,
    on_device,
    parameter_groups,
    read_losses,
    save_or_warn,
    seeded_noise,
)

Batches = Iterable[Batch] | Task
GATES_FILE = "gates.safetensors"  # what a one-shot job leaves
REPORTS = 100  # of a run, about
TEST_ROWS = 256  # held-out sequences, about, on which attention is taken away
SAMPLES = 4  # samples of the gates whose losses are averaged at the end
GATE_EPS = 1e-20  # of Adam on the gates: far below any gradient, so that their scale is free


def dam(
    model: nn.Module,
    batches: Batches,
    gates: Gates,
    config: DamConfig | None = None,
    *,
    held_out: Sequence[Batch] | None = None,
    seed: int = 0,
    on_report: Callable[[Report], None] | None = None,
    checkpoints: Path | str | None = None,
) -> DamResult:
    """Trains weights and gates together and returns what the gates have learned.

    Dropout draws from the gates' seed; torch's global generators stay as they were.

    Args:
        model: A Hugging Face model, or a module holding one, whose `model(**batch).loss` is
            differentiable; from scratch or pre-trained. Trained in place and left without the
            gates (unless it had them). Where all its weights are frozen, only the gates learn.
        batches: Batches (mappings of tensors) in any iterable, begun again where it ends, or a
            Task.
        gates: Trained in place.
        config: Steps, rates and target; None = `DamConfig()`. The published algorithm is
            `masksearch.gates.config.preset("sparsebert")`.
        held_out: Batches for the losses of the health card; a Task brings its own.
        seed: Of a Task's batches.
        on_report: Called about a hundred times with a `Report`.
        checkpoints: A folder in which the state is kept every minute; a run that was killed goes
            on there and gives the same result bit for bit on one machine, if model and data are
            the same again. Each model, and each text, needs a folder of its own.

    Returns:
        Probabilities, curve, masks at any sparsity, and `health()`.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite.
        ResumeError: If the folder holds another run's checkpoints.
        LengthError, HeadCountError, LayerCountError: If the gates do not fit the model.
        ValueError: If the target density is below one key a row, or the batches end too early.

    Reference: SparseBERT, arXiv 2102.12871, Section 4 (the idea; gradient and density control
        are our own).
    """
    reports = dam_reports(
        model,
        batches,
        gates,
        config or DamConfig(),
        held_out=held_out or (),
        seed=seed,
        checkpoints=None if checkpoints is None else Checkpoints(Path(checkpoints), "dam"),
    )
    with closing(reports):  # takes the gates off, too, where `on_report` raises
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
    )
    workdir.mkdir(parents=True, exist_ok=True)
    result.save(workdir / GATES_FILE)
    checkpoints.clear()


def dam_reports(
    model: nn.Module,
    batches: Batches,
    gates: Gates,
    config: DamConfig,
    *,
    held_out: Sequence[Batch] = (),
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
) -> Generator[Report, None, DamResult]:
    """Runs DAM step by step, yielding reports; closing the generator stops it. See `dam`.

    Warns at its end where everything is pruned, nothing is, or the loss is lost.

    Args:
        model: As for `dam`, and so are those up to `seed`.
        batches: An iterator cannot be begun again, and must hold enough.
        gates: Trained in place.
        config: Steps, rates and target.
        held_out: For the losses of the last report.
        seed: Of a Task's batches.
        checkpoints: Where the state is kept; a run that is found there goes on, and ends exactly
            as it would have, given the same batches from their beginning.

    Yields:
        About a hundred reports with `loss` (mean over the batches since the last report),
        `density`, `target`, `entropy` (bits), `control` (the term added to the loss), with
        `dense_warmup="auto"` also those of `WarmupWatch.values`, and with held-out batches at the
        end what `JointTraining.held_out_losses` returns.

    Returns:
        The result (`result = yield from dam_reports(..)`).
    """
    refuse_unreachable(config, gates)
    if not _trained_weights(model, gates):
        config = replace(config, train="gates")
    if isinstance(batches, Task) and not held_out:
        held_out = batches.held_out()
    with _gates_on(model, gates, config):
        run = JointTraining(model, gates, config, held_out, seed)
        yield from run.reports(endless(batches, seed), checkpoints)
    probabilities = gates.probabilities().detach().float().cpu()
    curve = tuple(run.curve)
    result = DamResult(probabilities, curve, config.density, gates.arguments, asdict(config))
    for problem in result.health().problems.values():
        warnings.warn(f"DAM: {problem}", stacklevel=2)
    return result


@contextmanager
def _gates_on(model: nn.Module, gates: Gates, config: DamConfig) -> Iterator[None]:
    """Attaches the gates (unless they are part of the model) and sets modes and what is frozen;
    afterwards all that is as it was."""
    from masksearch.attention.attach import attach, detach  # loads transformers

    gates.to(next(model.parameters()).device)
    frozen = _trained_weights(model, gates) if config.train == "gates" else []
    ours = all(module is not gates for module in model.modules())
    if ours:
        attach(model, gates)
    with keeping_modes(model, gates):
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            model.train(config.train == "both")
            gates.train()
            yield
        finally:
            gates.enabled, gates.cooling = True, 1.0
            if ours:
                detach(model, missing_ok=True)
            for parameter in frozen:
                parameter.requires_grad_(True)


def _trained_weights(model: nn.Module, gates: Gates) -> list[nn.Parameter]:
    """The model's parameters that require a gradient, without those of the gates."""
    return [p for p in model.parameters() if p.requires_grad and p is not gates.logits]


def endless(batches: Batches, seed: int = 0) -> Iterator[Batch]:
    """The batches as one iterator; what can be begun again is, whenever it ends."""
    if isinstance(batches, Task):
        yield from batches.batches(seed)
    elif isinstance(batches, Iterator):
        yield from batches
    else:
        empty = False
        while not empty:
            empty = True
            for batch in batches:
                empty = False
                yield batch


class JointTraining:
    """Trains the weights of a model and the gates that are attached to it.

    Args:
        model: In training mode, with the gates on it.
        gates: Trained in place.
        config: Steps, rates and target.
        held_out: Batches for the losses of the last report.
        seed: Of a Task's batches.
    """

    def __init__(
        self,
        model: nn.Module,
        gates: Gates,
        config: DamConfig,
        held_out: Sequence[Batch] = (),
        seed: int = 0,
    ) -> None:
        self.model, self.gates, self.config, self.held_out = model, gates, config, held_out
        self.seed = seed
        self.device = next(model.parameters()).device
        self.weights: list[Tensor] = []  # those that are trained
        self.optimisers = self._build_optimisers()
        self.control = DensityControl(config, gates)
        self.warmup = WarmupWatch(config)
        if config.waits:
            self.control.pause(0)  # until pruning begins
        self.tested = _few_rows(held_out, TEST_ROWS)  # batches for the tests of attention
        self.latest: Batch = {}  # that the weights were trained on
        self.step = 0  # optimiser steps that are done
        self.losses: list[float] = []  # since the last report
        self.unread: list[tuple[int, Tensor]] = []  # steps and losses nobody has looked at
        self.most_unread = UNREAD if self.device.type == "cuda" else 1  # steps
        self.terms: list[Tensor] = []  # what the density control added to the step's losses
        self.curve: list[Report] = []

    def _build_optimisers(self) -> dict[str, torch.optim.Optimizer]:
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
        optimisers: dict[str, torch.optim.Optimizer] = {}
        if groups:
            optimisers["weights"] = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        optimisers["gates"] = torch.optim.Adam([logits], config.gate_lr, eps=GATE_EPS, fused=True)
        return optimisers

    def reports(
        self, batches: Iterator[Batch], checkpoints: Checkpoints | None
    ) -> Iterator[Report]:
        """Trains to the end; of a run that goes on, the earlier reports come first."""
        if checkpoints is not None:
            self.restore(checkpoints)
        for step in range(self.step):  # what the steps that are done have used
            for _ in range(self.config.micro_batches):
                self.next_batch(batches, step)
        yield from tuple(self.curve)
        saved, full = time.monotonic(), False
        while self.step < self.config.steps:
            report = self.advance(batches)
            since = time.monotonic() - saved
            if checkpoints is not None and not self.unread and since >= checkpoints.seconds:
                full = save_or_warn(checkpoints, self.step, *self.state(), warned=full)
                saved = time.monotonic()
            if report is not None:
                yield report

    def advance(self, batches: Iterator[Batch]) -> Report | None:
        """One optimiser step of the weights and, after the warm-up, of the gates."""
        config, gates, step = self.config, self.gates, self.step
        if step == 0 and self.tested:
            self.follow(self.warmup.at_start(self._attention_loss))
        gates.enabled = self.warmup.acts(step)
        gates.cooling = config.temperature_factor(step, self.warmup.begin)
        self.set_rates(config.lr_factor(step))
        reports = (step + 1) % max(1, config.steps // REPORTS) == 0 or step + 1 == config.steps
        losses = self.set_gradients(batches, controlled=gates.enabled, reports=reports)
        push = self.control.push(gates, step) if gates.enabled else 0.0
        if config.optimiser == "adamw":
            torch.nn.utils.clip_grad_norm_(self.weights, config.clip)
        for name, optimiser in self.optimisers.items():
            if name != "gates" or gates.enabled:
                optimiser.step()
        self.step += 1
        self.follow(self.warmup.look(self.step, losses, self._attention_loss))
        if not reports:
            return None
        self.curve.append(self.report(push))
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
    def _attention_loss(self) -> AttentionLoss:
        """The model's loss where every query sees itself alone, in eval mode; on the held-out
        batches, or where there are none on the latest training batch."""
        model, gates, before = self.model, self.gates, self.gates.enabled
        batches = self.tested or [self.latest]
        with keeping_modes(model, gates):
            model.eval()
            gates.enabled = False
            try:
                dense = self._mean_loss(batches)
                gates.alone = True
                return dense, self._mean_loss(batches)
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

    def set_gradients(
        self, batches: Iterator[Batch], *, controlled: bool, reports: bool = False
    ) -> list[float]:
        """Computes the gradients of weights and gates, a mean over the micro-batches.

        Args:
            batches: One is taken for each micro-batch.
            controlled: Whether the gates are also pushed towards their density.
            reports: Whether the step ends with a report.

        Returns:
            The losses of all batches since the last step that returned some, in nats: each look
            at them waits for a GPU, and is for a report, the warm-up's watch, or 20 steps.

        Raises:
            NonFiniteLossError: If one is NaN or infinite.
        """
        config, step = self.config, self.step + 1
        self.terms = []
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        for number in range(config.micro_batches):
            self.latest = self.next_batch(batches, self.step)
            with seeded_noise(self.device, self.gates.seed, self.step, number):  # of dropout
                loss = self.loss(self.latest)
                self.unread.append((step, loss.detach()))
                if controlled:
                    term = self.control.cost(self.gates)
                    self.terms.append(term.detach())
                    loss = loss + term
                (loss / config.micro_batches).backward()  # type: ignore[no-untyped-call]
        watched = config.waits and step % self.warmup.every == 0
        if reports or watched or len(self.unread) >= self.most_unread * config.micro_batches:
            return self.read_losses()
        return []

    def read_losses(self) -> list[float]:
        """Looks at the losses since the last look, with one wait for a GPU."""
        unread, self.unread = self.unread, []
        values = read_losses(unread, self.config.steps, "lower lr or gate_lr")
        self.losses += values
        return values

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

    def _mean_loss(self, batches: Sequence[Batch]) -> float:
        """Mean over the batches."""
        return sum(self.loss(batch).item() for batch in batches) / len(batches)

    def report(self, push: float | Tensor) -> Report:
        """The report after this step, in which the density control pushed the gates that much."""
        gates, cost = self.gates, 0.0
        for term in self.terms:
            cost += term.item() / self.config.micro_batches
        values = {
            "loss": sum(self.losses) / len(self.losses),
            "density": gates.whole_density().item(),
            "target": self.control.target(self.step - 1).item(),
            "entropy": gates.entropy().item(),
            "control": cost + float(push),
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
        form, enabled = gates.form, gates.enabled
        noise = gates.noise_generator(self.device)
        state, losses = noise.get_state(), dict[str, float]()
        with keeping_modes(model, gates):
            model.eval()
            gates.enabled = True
            probabilities = gates.probabilities()
            try:
                gates.fixed = probabilities[..., :: gates.block[0], :: gates.block[1]]
                if gates.form == "flip":  # which rounds
                    gates.form = "log"
                losses["relaxed"] = self._mean_loss(self.held_out)
                gates.form, gates.fixed = form, None
                gates.train()
                samples = [self._mean_loss(self.held_out) for _ in range(SAMPLES)]
                losses["sampled"] = sum(samples) / SAMPLES
                gates.deterministic = True
                losses["held_out"] = self._mean_loss(self.held_out)
                gates.fixed = self.cut(probabilities.cpu()).to(probabilities)
                losses["discretised"] = self._mean_loss(self.held_out)
            finally:
                gates.fixed, gates.deterministic = None, False
                gates.form, gates.enabled = form, enabled
                noise.set_state(state)
        return losses

    def cut(self, probabilities: Tensor) -> Tensor:
        """The mask of the target density, in the form of `Gates.drawn`."""
        gates, density = self.gates, max(self.config.density, self.gates.least_density)
        if gates.units is not None:
            allocation = cut_switches(gates.units, probabilities, density)
            return as_shares(gates.units, allocation, probabilities.shape)
        weights = None if gates.weights is None else gates.weights.cpu()
        kept = at_sparsity(probabilities, 1 - density, weights=weights, block=gates.block)
        return kept[..., :: gates.block[0], :: gates.block[1]]

    # -- checkpoints ---------------------------------------------------------------------------
    def identity(self) -> dict[str, Any]:
        """Configuration, gates and seed as plain data: a checkpoint of others is refused."""
        facts = {"config": asdict(self.config), "gates": self.gates.arguments}
        facts["batches"] = {"seed": self.seed}
        return dict(json.loads(json.dumps(facts)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain facts from which `restore` goes on."""
        tensors = training_state(self.model, self.optimisers)
        if self.config.train == "gates":  # the weights are whoever called's, as they were
            of_gates = {id(tensor) for tensor in self.gates.state_dict(keep_vars=True).values()}
            for name, tensor in self.model.state_dict(keep_vars=True).items():
                if id(tensor) not in of_gates:
                    del tensors[f"model.{name}"]
        tensors["random.gates"] = self.gates.noise_generator(self.device).get_state()
        facts = {
            "run": self.identity(),
            "losses": self.losses,
            "curve": [asdict(report) for report in self.curve],
            "control": changing(self.control),
            "warmup": changing(self.warmup),
        }
        return tensors, facts

    def restore(self, checkpoints: Checkpoints) -> None:
        """Goes on from the newest checkpoint, if there is one."""
        stored = checkpoints.load()
        if stored is None:
            return
        facts, tensors = stored.facts, dict(stored.tensors)
        differing = [
            f"{part}.{name}"
            for part, ours in self.identity().items()
            for name in ours
            if facts["run"].get(part, {}).get(name) != ours[name]
        ]
        if differing:
            raise ResumeError(
                f"{checkpoints.folder} holds the checkpoint of a run with other "
                f"{', '.join(differing)}; give the same arguments, or another folder"
            )
        as_given = {f"model.{name}": part for name, part in self.model.state_dict().items()}
        restore_state(as_given | tensors, self.model, self.optimisers)
        self.gates.noise_generator(self.device).set_state(tensors["random.gates"])
        self.losses = list(facts["losses"])
        self.curve = [Report(item["step"], item["values"]) for item in facts["curve"]]
        vars(self.control).update(facts["control"])
        vars(self.warmup).update(facts["warmup"])
        self.step = stored.step


def _few_rows(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """The first batches with about so many rows (the first axis of all but scalars)."""
    shorter: list[Batch] = []
    for batch in batches:
        if rows <= 0:
            break
        shorter.append({n: value[:rows] if value.ndim else value for n, value in batch.items()})
        rows -= max(len(value) for value in batch.values() if value.ndim)
    return shorter
