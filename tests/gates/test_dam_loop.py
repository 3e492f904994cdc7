"""Checkpoints, dropout, batches of any kind, precision, the preset."""

import copy
import errno
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from tiny_encoders import sizes
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from masksearch import DamConfig, PlantedEvaluator, attach, attached, dam, masks
from masksearch.contracts import Batch, OneShot, Report
from masksearch.errors import HeadCountError, NonFiniteLossError, ResumeError, UnknownNameError
from masksearch.gates.dam import JointTraining, run_one_shot
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.gates import Gates
from masksearch.gates.result import DamResult
from masksearch.gates.sparsebert import PublishedGates
from masksearch.tasks.planted.process import PlantedProcess, PlantedTask
from masksearch.training.checkpoints import Checkpoints
from tests.gates.conftest import batches, model

pytestmark = pytest.mark.filterwarnings("ignore:DAM")  # a few steps prune next to nothing


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is kept at every step."""
    monkeypatch.setattr("masksearch.gates.dam.Checkpoints", partial(Checkpoints, seconds=0))


class Killed(Exception):
    """Stands for a process that ends at any point."""


def killed_at(step: int, source: Iterator[Batch]) -> Iterator[Batch]:
    for number, batch in enumerate(source):
        if number == step:
            raise Killed
        yield batch


PUBLISHED = {"control": "sum", "penalty": 1e-3, "optimiser": "lamb"}
VARIANTS = [
    {"steps": 40},
    {"steps": 40, "schedule": "sqrt", **PUBLISHED},
    {"steps": 20, "micro_batches": 2, "cooling": 0.5, "lr_warmup": 0.5},
]
VARIANTS = [pytest.param(fields, marks=pytest.mark.nightly, id=str(fields)) for fields in VARIANTS]
FROZEN = [{"steps": 14, "train": "gates"}, {"steps": 14, "train": "gates", **PUBLISHED}]


@pytest.mark.slow
@pytest.mark.parametrize("fields", [*VARIANTS, *FROZEN], ids=str)
def test_a_killed_run_ends_as_it_would_have(fields: dict[str, Any], tmp_path: Path, device: str):
    config = DamConfig(dense_warmup=0.2, density=0.3, **fields)

    def run(source: Iterator[Batch], folder: Path | None) -> tuple[list[Report], Tensor, Tensor]:
        trained, gates = model(dropout=0.1).to(device), Gates(length=8, heads=2, seed=3)
        found = [*dam(trained, source, gates, config, checkpoints=folder).curve]
        weights = torch.cat([p.detach().flatten() for p in trained.parameters()])
        return found, weights, gates.logits.detach()

    straight = run(batches(), None)
    with pytest.raises(Killed):
        run(killed_at(13, batches()), tmp_path)
    torch.manual_seed(123)  # as dropout draws from the seed of the gates alone
    again = run(batches(), tmp_path)
    assert again[0] == straight[0]
    assert torch.equal(again[1], straight[1])
    assert torch.equal(again[2], straight[2])


def test_dropout_follows_from_the_seed_of_the_gates_and_from_nothing_else():
    config = DamConfig(steps=4, dense_warmup=0.9, density=0.5, lr=1e-12, micro_batches=2)
    batch, found = next(batches()), []
    for elsewhere, seed in ((0, 3), (1, 3), (1, 4)):
        torch.manual_seed(elsewhere)
        before = torch.get_rng_state()
        trained, gates = model(dropout=0.3), Gates(length=8, heads=2, seed=seed)
        run = JointTraining(attach(trained, gates).train(), gates, config)
        for _ in range(3):
            run.set_gradients(itertools.repeat(batch), controlled=False)
            run.step += 1
        assert torch.equal(torch.get_rng_state(), before)
        found.append(run.losses)
    assert found[0] == found[1]
    assert len({*found[0], *found[2]}) == 12  # each step, micro-batch and seed has its own


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"control": "sum"}, {"dense_warmup": 0.25}], ids=str)
def test_losses_that_are_read_together_give_the_same_run(config: Any, monkeypatch: Any):
    """As on a GPU, which each look waits for: at a report, at the warm-up's watch, in 20 steps."""
    looks: list[int] = []

    class Patient(JointTraining):
        def read_losses(self) -> list[float]:
            looks.append(len(self.unread))
            return super().read_losses()

    monkeypatch.setattr("masksearch.gates.dam.REPORTS", 1)
    monkeypatch.setattr("masksearch.gates.pruning.LOOKS", 5)
    curves = []
    for most in (1, 20):
        looks.clear()
        settings = DamConfig(steps=30, density=0.3, micro_batches=2, **config)
        trained, gates = model(dropout=0.3), Gates(length=8, heads=2)
        run = Patient(attach(trained, gates).train(), gates, settings)
        run.most_unread = most
        curves.append(list(run.reports(batches(60), None)))
        if most == 1:
            assert looks == [2] * 30
        elif settings.waits:
            assert looks == [12] * 5
        else:
            assert looks == [40, 20]
    assert curves[0] == curves[1]


def test_a_loss_that_is_not_finite_names_its_step():
    run = JointTraining(model(), Gates(length=8, heads=2), DamConfig(steps=40))
    run.unread = [(step, torch.tensor(value)) for step, value in ((5, 1.0), (6, math.nan))]
    with pytest.raises(NonFiniteLossError, match="became nan at step 6 of 40; lower lr or gate"):
        run.read_losses()
    run.unread = [(step, torch.tensor(value)) for step, value in ((5, math.inf), (6, 1.0))]
    with pytest.raises(NonFiniteLossError, match=r"inf at step 5 of 40 \(seen at step 6\)"):
        run.read_losses()


@pytest.mark.slow
def test_another_run_is_not_gone_on_with(tmp_path: Path):
    config = DamConfig(steps=10, density=0.3)
    dam(model(), batches(), Gates(length=8, heads=2), config, checkpoints=tmp_path / "seeds")
    with pytest.raises(ResumeError, match=r"other batches\.seed"):
        dam(
            *(model(), batches(), Gates(length=8, heads=2), config),
            checkpoints=tmp_path / "seeds",
            seed=2,
        )

    def run(config: DamConfig, gates: Gates) -> None:
        dam(model(), batches(), gates, config, checkpoints=tmp_path)

    run(config, Gates(length=8, heads=2))
    with pytest.raises(ResumeError, match=r"other config\.gate_lr; give the same arguments"):
        run(replace(config, gate_lr=0.5), Gates(length=8, heads=2))
    with pytest.raises(ResumeError, match=r"other gates\.seed"):
        run(config, Gates(length=8, heads=2, seed=1))


OneShotRuns = tuple[Callable[[Path], Iterator[Report]], list[Report]]


@pytest.fixture
def one_shot(tmp_path: Path) -> OneShotRuns:
    """Begins a job of DAM in a folder; and its undisturbed reports."""
    evaluator = PlantedEvaluator(PlantedProcess(length=8, offsets=(3,), keys=1))
    job = OneShot({"layers": 1}, {"steps": 12, "density": 0.3, "gate_lr": 0.5})

    def start(folder: Path) -> Iterator[Report]:
        return run_one_shot(evaluator, job, seed=0, workdir=folder)

    return start, list(start(tmp_path / "straight"))


@pytest.mark.slow
def test_a_one_shot_job_goes_on_where_it_was_killed(tmp_path: Path, one_shot: OneShotRuns):
    start, straight = one_shot
    stopped = start(tmp_path / "killed")
    for _ in range(5):
        next(stopped)
    stopped.close()
    assert Checkpoints(tmp_path / "killed", "dam").files()
    assert list(start(tmp_path / "killed")) == straight
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"gates.safetensors"}
    result = DamResult.load(tmp_path / "killed" / "gates.safetensors")
    assert result.curve == tuple(straight)
    assert "held_out" in straight[-1].values


@pytest.mark.nightly
def test_a_full_disk_costs_a_warning_and_no_training_of_gates(tmp_path, monkeypatch, one_shot):
    start, straight = one_shot
    reports = start(tmp_path / "full")
    begun = [next(reports) for _ in range(5)]

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    said = "no checkpoint after step 6 .*No space left"
    problem = pytest.raises(OSError, match="cannot write")
    with pytest.warns(UserWarning, match=said) as caught, problem as end:
        begun.extend(reports)
    assert end.value.errno == errno.ENOSPC  # of the gates; the trial stays open in its study
    assert sum("no checkpoint" in str(each.message) for each in caught) == 1
    assert begun == straight
    monkeypatch.undo()
    assert list(start(tmp_path / "full")) == straight
    assert (tmp_path / "full" / "gates.safetensors").is_file()


@pytest.mark.slow
def test_batches_may_be_a_task_a_list_or_an_iterator():
    task = PlantedTask(PlantedProcess(length=8, vocabulary=8, offsets=(3,)), batch=4)
    config = DamConfig(steps=4, density=0.5)
    from_task = dam(model(), task, Gates(length=8, heads=2), config, seed=5)
    from_iterator = dam(
        model(), task.batches(5), Gates(length=8, heads=2), config, held_out=task.held_out()
    )
    assert from_task.curve == from_iterator.curve
    assert from_task.held_out is not None
    few = list(batches(3))
    again = dam(model(), few, Gates(length=8, heads=2), config)
    round_and_round = dam(model(), iter([*few, few[0]]), Gates(length=8, heads=2), config)
    assert again.curve == round_and_round.curve
    with pytest.raises(ValueError, match="the batches ended after 0 of 4 steps"):
        dam(model(), [], Gates(length=8, heads=2), config)


def test_half_precision_leaves_gates_and_costs_whole():
    gates = Gates(length=8, heads=2)
    config = DamConfig(steps=6, density=0.5, dense_warmup=0.2, precision="bfloat16")
    result = dam(model(), batches(), gates, config, held_out=list(batches(1)))
    assert gates.logits.dtype == torch.float32
    assert result.held_out is not None
    assert math.isfinite(result.held_out)
    halved = nn.ModuleList([model(), Gates(length=8, heads=2)]).bfloat16()
    assert next(halved[0].parameters()).dtype == torch.bfloat16
    assert next(halved[1].parameters()).dtype == torch.float32
    whole = dam(model(), batches(), Gates(length=8, heads=2), replace(config, precision="float32"))
    losses = [report.values["loss"] for report in whole.curve]
    assert [report.values["loss"] for report in result.curve] == pytest.approx(losses, rel=0.02)


TINY_BERT = BertConfig(**sizes(11, 16, 2, 2, 32, 8))


@pytest.mark.slow
def test_gates_on_a_hugging_face_model(tmp_path: Path):
    made = BertForMaskedLM(TINY_BERT)  # its weights are tied
    config = DamConfig(steps=5, density=0.5)
    gates = Gates(length=8, heads=2, layers=2)
    dam(made, batches(), gates, config, checkpoints=tmp_path)
    again = Gates(length=8, heads=2, layers=2)
    dam(BertForMaskedLM(TINY_BERT), batches(), again, config, checkpoints=tmp_path)
    assert torch.equal(gates.logits, again.logits)
    result = dam(made, batches(), Gates(length=8, heads=2, layers=2), config)
    assert result.probabilities.shape == (2, 2, 8, 8)


def test_the_published_algorithm_runs_on_both_losses():
    made = BertForPreTraining(TINY_BERT)
    pairs = [{**batch, "next_sentence_label": torch.tensor([0, 1, 1, 0])} for batch in batches(2)]
    short = DamConfig(steps=4, dense_warmup=0.0, schedule="sqrt", micro_batches=2, **PUBLISHED)
    gates = PublishedGates("toeplitz", length=8, heads=2)
    first = gates.logits.detach().clone()
    result = dam(made, pairs, gates, short)
    assert result.probabilities.shape == (1, 2, 8, 8)
    assert not torch.equal(gates.logits, first)
    assert result.config["control"] == "sum"


@pytest.mark.slow
def test_a_one_shot_job_may_name_the_preset(tmp_path: Path):
    evaluator = PlantedEvaluator(PlantedProcess(length=8, offsets=(3,), keys=1))
    job = OneShot(
        {"preset": "sparsebert", "structure": "symmetric"},
        {"preset": "sparsebert", "steps": 3, "micro_batches": 1},
    )
    list(run_one_shot(evaluator, job, seed=0, workdir=tmp_path))
    result = DamResult.load(tmp_path / "gates.safetensors")
    assert result.gates["structure"] == "symmetric"
    published = {"dense_warmup": 0.0, "control": "sum", "penalty": 5e-5, "optimiser": "lamb"}
    published |= {"lr": 6e-3, "gate_lr": 6e-3, "schedule": "sqrt", "lr_warmup": 0.2843}
    published |= {"weight_decay": 0.01, "clip": 1.0}
    assert result.config == asdict(DamConfig(steps=3, micro_batches=1, **published))
    for wrong in (OneShot({"preset": "sparsebrt"}), OneShot({}, {"preset": "sparsebrt"})):
        with pytest.raises(UnknownNameError, match="sparsebrt"):
            list(run_one_shot(evaluator, wrong, seed=0, workdir=tmp_path))


def test_the_chain_of_losses_leaves_everything_as_it_was():
    trained, gates = model(), Gates(length=8, heads=2, seed=1)
    held_out = list(batches(2, seed=9))
    config = DamConfig(steps=10, density=0.4, dense_warmup=0.5)
    with_chain = dam(trained, batches(), gates, config, held_out=held_out)
    other = Gates(length=8, heads=2, seed=1)
    without = dam(model(), batches(), other, config)
    assert torch.equal(gates.logits, other.logits)
    assert torch.equal(
        gates.noise_generator(torch.device("cpu")).get_state(),
        other.noise_generator(torch.device("cpu")).get_state(),
    )
    last = with_chain.curve[-1].values
    assert {"relaxed", "sampled", "held_out", "discretised"} <= set(last)
    assert {name: last[name] for name in without.curve[-1].values} == without.curve[-1].values
    assert (gates.form, gates.fixed, gates.deterministic) == ("flip", None, False)


def test_frozen_weights_leave_the_gates_alone_to_learn():
    named, frozen = model(dropout=0.5), model(dropout=0.5)
    frozen.requires_grad_(False)
    found = []
    for trained, config in ((named, DamConfig(steps=8, density=0.5, train="gates")),
                            (frozen, DamConfig(steps=8, density=0.5))):  # fmt: skip
        before = {name: value.clone() for name, value in trained.state_dict().items()}
        gates = Gates(length=8, heads=2).train(trained is named)  # they are sampled all the same
        mode = gates.training
        result = dam(trained, batches(), gates, config, held_out=list(batches(1)))
        assert all(torch.equal(before[name], v) for name, v in trained.state_dict().items())
        assert result.config["train"] == "gates"
        assert (gates.logits != 2.0).all()
        assert gates.training == mode
        assert trained.training
        found.append(result)
    assert found[0].curve == found[1].curve
    assert all(parameter.requires_grad for parameter in named.parameters())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_gates_that_do_not_fit_leave_the_mask_on_the_model():
    trained = attach(model(), masks.window(2))
    with pytest.raises(HeadCountError):
        dam(trained, batches(), Gates(length=8, heads=3), DamConfig(steps=4, density=0.5))
    assert list(attached(trained).values()) == [masks.window(2)]
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_the_rate_of_the_weights_rises_linearly():
    config = DamConfig(steps=10, lr_warmup=0.4)
    assert [config.lr_factor(step) for step in range(5)] == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 1.0]
    )
    assert DamConfig(steps=10, lr_warmup=0.0).lr_factor(0) == 1.0


@pytest.mark.parametrize("schedule", ["linear", "sqrt"])
def test_only_the_published_schedule_moves_the_rate_of_the_gates(schedule: Any):
    config = DamConfig(
        steps=9, schedule=schedule, control="sum", optimiser="lamb", lr=1.0, gate_lr=2.0
    )
    run = JointTraining(model(), Gates(length=8, heads=2), config)
    run.set_rates(0.25)
    *weights, gates = [group["lr"] for group in run.optimisers["both"].param_groups]
    assert weights == [0.25] * len(weights)
    assert gates == (0.5 if schedule == "sqrt" else 2.0)


def test_held_out_losses_are_those_of_four_readings_of_the_gates():
    gates = Gates(length=8, heads=2, seed=4)
    with torch.no_grad():
        gates.logits.normal_(generator=torch.Generator().manual_seed(0))
    (batch,) = held_out = list(batches(1, seed=9))
    probabilities = gates.probabilities().detach()

    def loss(reading: Any) -> float:
        judged = attach(model(dropout=0.3).eval(), reading)
        return float(judged(**batch).loss.detach())

    own = torch.eye(8, dtype=torch.bool) & ~(probabilities > 0.5).any(-1, keepdim=True)
    soft = Gates(length=8, heads=2, form="log", hard=False)
    soft.fixed = probabilities
    sampled, drawing = [], attach(model(dropout=0.3).eval(), copy.deepcopy(gates).train())
    drawing.get_submodule("masksearch_gates").train()
    for _ in range(4):
        sampled.append(float(drawing(**batch).loss.detach()))
    trained = attach(model(dropout=0.3).train(), gates)
    found = JointTraining(trained, gates, DamConfig(density=0.3), held_out).held_out_losses()
    assert found == pytest.approx(
        {
            "relaxed": loss(soft),
            "sampled": sum(sampled) / 4,
            "held_out": loss(masks.table((probabilities > 0.5) | own)),
            "discretised": loss(masks.table(at_sparsity(probabilities, 0.7))),
        },
        abs=1e-5,
    )
    assert len({round(value, 4) for value in found.values()}) == 4


def test_the_gates_are_as_cool_as_the_step_asks():
    gates, seen = Gates(length=8, heads=2), []

    def watched() -> Iterator[Batch]:
        for batch in batches():
            seen.append(gates.cooling)
            yield batch

    config = DamConfig(steps=5, dense_warmup=0.2, density=0.5, cooling=0.125)
    dam(model(), watched(), gates, config)
    assert seen == pytest.approx([1.0, 1.0, 0.5, 0.25, 0.125])
    assert gates.cooling == 1.0
