import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.planted_runs import recovery
from masksearch import DamConfig, Mask, PlantedEvaluator, attach, dam
from masksearch.contracts import Evaluator, OneShot, Report
from masksearch.errors import MaskFormatError, NonFiniteLossError, SearchError, UnknownNameError
from masksearch.gates.dam import run_one_shot
from masksearch.gates.gates import Gates
from masksearch.gates.pruning import DensityControl
from masksearch.gates.result import DamResult
from tests.gates.conftest import batches, model


def found(evaluator: PlantedEvaluator, gates: Gates, config: DamConfig, seed: int) -> DamResult:
    source = evaluator.differentiable(seed)
    return dam(source.model, source.batches, gates, config, held_out=source.held_out)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dam_finds_planted_edges(seed: int):
    evaluator = PlantedEvaluator()
    gates = Gates(length=24, heads=2, seed=seed)
    result = found(evaluator, gates, DamConfig(), seed)
    auroc, precision = recovery(result.probabilities, evaluator.process.edges)
    assert auroc >= 0.995
    assert precision >= 0.97
    assert result.health().problems == {}
    assert result.held_out < math.log(evaluator.process.vocabulary)


@pytest.mark.nightly
def test_toeplitz_gates_find_the_planted_offset_and_column():
    evaluator = PlantedEvaluator()
    gates = Gates("toeplitz+global", length=24, heads=2)
    found(evaluator, gates, DamConfig(steps=800, lr=4e-3, density=0.08), seed=0)
    best = gates.logits.detach().amax((0, 1))
    offsets, columns = best[1:24], best[-4:]
    assert int(offsets.argmax()) + 1 == 11
    assert int(columns.argmax()) == 0


@pytest.mark.slow
def test_reports_are_about_a_hundred_and_reach_the_target():
    gates = Gates(length=8, heads=2, layers=2)
    config = DamConfig(steps=200, density=0.25, gate_lr=0.1, dense_warmup=0.1)
    reports: list[Report] = []
    dam(model(2), batches(), gates, config, on_report=reports.append)
    assert len(reports) == 100
    assert set(reports[0].values) == {"loss", "density", "target", "entropy", "control"}
    assert reports[-1].step == 200
    assert reports[-1].values["density"] < 0.27
    assert gates.probabilities().shape == (2, 2, 8, 8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DAM")
def test_warmup_leaves_gates_alone_and_trains_weights():
    trained, gates = model(), Gates(length=8, heads=2)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    config = DamConfig(steps=20, dense_warmup=0.5, density=0.2)
    moved: dict[int, bool] = {}

    def look(report: Report) -> None:
        moved[report.step] = bool((gates.logits != 2.0).any())

    dam(trained, batches(), gates, config, on_report=look)
    assert not moved[10]
    assert (gates.logits != 2.0).any()
    assert any(
        not torch.equal(before[name], value) for name, value in trained.state_dict().items()
    )


@pytest.mark.filterwarnings("ignore:DAM")
def test_gates_are_attached_only_for_the_run():
    trained, gates = model(), Gates(length=8, heads=2)

    def stop(report: Report) -> None:
        assert any(module is gates for module in trained.modules())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:  # and its frames
        dam(trained, batches(), gates, DamConfig(steps=50, density=0.5), on_report=stop)
    assert kept.tb is not None
    assert all(module is not gates for module in trained.modules())
    attach(trained, gates)
    dam(trained, batches(), gates, DamConfig(steps=5, density=0.9))
    assert any(module is gates for module in trained.modules())


def test_optimisation_of_the_gates_ignores_weight_decay():
    gates = Gates(length=8, heads=2, initial=3.0)
    config = DamConfig(
        steps=20,
        dense_warmup=0.5,
        density=0.2,
        control="sum",
        penalty=0.0,
        weight_decay=1e3,
        lr=1e-9,
    )
    trained = model()
    attach(trained, gates)
    dam(trained, batches(), gates, config)
    assert (gates.logits - 3.0).abs().max() <= 20 * config.gate_lr + 1e-4


def noisy_density(scale: float, shape: tuple[int, int, int]) -> float:
    """Where a control brings gates whose task is nothing but noise of that size."""
    length, heads, layers = shape
    config = DamConfig(steps=600, dense_warmup=0.0, density=0.1)
    gates = Gates("toeplitz", length=length, heads=heads, layers=layers)
    keeper = DensityControl(config, gates)
    optimiser = torch.optim.Adam(gates.parameters(), lr=config.gate_lr, eps=1e-20)
    noise = torch.Generator().manual_seed(0)
    for step in range(config.steps):
        optimiser.zero_grad()
        task = torch.randn(gates.logits.shape, generator=noise) * gates.logits.sigmoid()
        (scale * (task * gates.logits).mean()).backward()
        keeper.push(gates, step)
        optimiser.step()
    return gates.density().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "shape"),
    [
        *((scale, (8, 2, 1)) for scale in (1e-6, 1.0, 1e6)),
        (1.0, (32, 3, 2)),
        *(pytest.param(scale, (32, 3, 2), marks=pytest.mark.nightly) for scale in (1e-6, 1e6)),
    ],
)
def test_the_hinge_reaches_its_target_at_any_scale_and_size(scale, shape):
    assert noisy_density(scale, shape) == pytest.approx(0.1, abs=0.005)


@pytest.mark.slow
def test_the_hinge_pulls_up_what_the_task_has_closed():
    config = DamConfig(steps=400, dense_warmup=0.0, density=0.3, anneal=0.2)
    gates = Gates("toeplitz", length=8, heads=2)
    keeper = DensityControl(config, gates)
    optimiser = torch.optim.Adam(gates.parameters(), lr=config.gate_lr, eps=1e-20)
    for step in range(config.steps):
        optimiser.zero_grad()
        (1e-3 * gates.logits.sigmoid().sum()).backward()  # a task that wants everything closed
        keeper.push(gates, step)
        optimiser.step()
        if step == 150:
            assert gates.density().mean().item() < 0.3
    assert gates.density().mean().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.filterwarnings("ignore:DAM")
def test_collapse_is_said():
    gates, config = Gates(length=8, heads=2), DamConfig(steps=5, dense_warmup=0.5, density=0.2)
    with pytest.warns(UserWarning, match="DAM: nothing is pruned"):
        slow = dam(model(), batches(), gates, config)
    assert "nothing_pruned" in slow.health().problems
    gates = Gates(length=8, heads=2, initial=-9.0)
    with pytest.warns(UserWarning, match="DAM: nearly everything is pruned"):
        empty = dam(model(), batches(), gates, config)
    assert "pruned_away" in empty.health().problems


def test_runs_that_cannot_go_on_say_why():
    gates, broken = Gates(length=8, heads=2), model()
    nn.init.constant_(next(broken.head.parameters()), math.nan)
    with pytest.raises(NonFiniteLossError, match="nan at step 1 of 2500; lower lr"):
        dam(broken, batches(), gates, DamConfig(density=0.2))
    with pytest.raises(ValueError, match="the batches ended after 3 of 10 steps"):
        dam(model(), batches(3), gates, DamConfig(steps=10, density=0.2))
    with pytest.raises(ValueError, match=r"at least 1/n = 0.125 at length 8, got 0.1"):
        dam(model(), batches(), gates, DamConfig(density=0.1))


SHARE = r"density must be a share of the edges in \(0, 1\)"
MISTAKES: list[tuple[dict[str, Any], str]] = [
    *(({"density": density}, SHARE) for density in (0.0, 1.0, -1.0, math.nan)),
    ({"dense_warmup": 1.0}, "dense_warmup .*got 1.0"),
    ({"anneal": 0.0}, "anneal .*got 0.0"),
    ({"lr": 0.0}, "lr .*got 0.0"),
    ({"penalty": -1.0}, "penalty .*got -1.0"),
    ({"steps": 1}, "steps must be at least 2, got 1"),
    ({"micro_batches": 0}, "micro_batches .*got 0"),
    ({"cooling": 0.0}, "cooling .*got 0.0"),
    ({"optimiser": "lamb"}, "takes control='sum', got control='hinge'"),
    ({"dense_warmup": "never"}, r"dense_warmup is in \[0, 1\) or 'auto'"),
    ({"control": "hinges"}, "did you mean 'hinge'"),
    *(({name: "sgd"}, f"DAM {name} 'sgd'") for name in ("optimiser", "precision", "schedule")),
]


@pytest.mark.parametrize(("given", "said"), MISTAKES, ids=str)
def test_wrong_settings_are_refused(given: dict[str, Any], said: str):
    unknown = "sgd" in given.values() or "hinges" in given.values()
    with pytest.raises(UnknownNameError if unknown else ValueError, match=said):
        DamConfig(**given)


def sample_result() -> DamResult:
    probabilities = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    curve = (Report(1, {"loss": 2.0, "density": 0.8}), Report(2, {"loss": 1.0, "density": 0.5}))
    gates = Gates("toeplitz", length=4, heads=2).arguments
    return DamResult(probabilities, curve, 0.3, gates, {"steps": 2})


def test_result_survives_saving(tmp_path: Path):
    result = sample_result()
    again = DamResult.load(result.save(tmp_path / "gates.safetensors"))
    assert torch.equal(again.probabilities, result.probabilities)
    assert (again.curve, again.target) == (result.curve, result.target)
    assert (again.gates, again.config) == (result.gates, result.config)
    assert again.mask(sparsity=0.5) == result.mask(sparsity=0.5)
    with pytest.raises(ValueError, match=r"ends in \.safetensors, got 'gates\.pt'"):
        result.save(tmp_path / "gates.pt")
    with pytest.raises(FileNotFoundError, match="no gates at"):
        DamResult.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(MaskFormatError, match="not a readable"):
        DamResult.load(tmp_path / "bad.safetensors")


def test_result_cuts_masks():
    result = sample_result()
    mask = result.mask(sparsity=0.5)
    assert int(mask.dense(4, heads=2).sum()) == 16
    assert result.mask(threshold=1.0).dense(4, heads=2).sum(-1).eq(1).all()
    with pytest.raises(ValueError, match="exactly one of sparsity and threshold, got none"):
        result.mask()
    with pytest.raises(ValueError, match="threshold, got both"):
        result.mask(sparsity=0.5, threshold=0.5)


def test_masks_by_head_and_merged():
    result = sample_result()
    by_head = result.mask(sparsity=0.5, per="head").dense(4, heads=2)
    assert by_head.sum((-2, -1)).eq(8).all()
    merged = result.mask(threshold=0.6, merge_heads=True)
    assert merged.heads is None or merged.heads == 1
    p = result.probabilities[0]
    for query in range(4):
        best = max(float(p[h, query, k]) for h in (0, 1) for k in range(4))
        for key in range(4):
            likely = max(float(p[0, query, key]), float(p[1, query, key]))
            kept = bool(merged.dense(4)[0, 0, query, key])
            assert kept == (likely >= 0.6 or (best < 0.6 and likely == best))


def test_only_a_control_that_holds_the_density_can_miss_its_target():
    for control, missed in (("hinge", True), ("sum", False)):
        result = replace(sample_result(), config={"steps": 2, "control": control})
        assert ("target_missed" in result.health().problems) == missed


class NoGradients(Evaluator):
    shape = PlantedEvaluator().shape
    objectives = ()
    protocol = ""

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        yield Report(0, {"loss": 0.0})


def test_one_shot_messages(tmp_path: Path):
    with pytest.raises(SearchError, match=r"^NoGradients has no differentiable"):
        next(run_one_shot(NoGradients(), OneShot(), seed=0, workdir=tmp_path))
    for job in (OneShot({"lenght": 3}, {}), OneShot({}, {"step": 3})):
        with pytest.raises(SearchError, match=r"arguments of Gates and DamConfig: .*unexpected"):
            next(run_one_shot(PlantedEvaluator(), job, seed=0, workdir=tmp_path))


def test_result_fits_a_line_and_is_a_picture_in_a_notebook():
    result = sample_result()
    assert len(repr(result)) <= 200
    assert repr(result).startswith("DamResult(1 x 2 x 4 x 4 probabilities of ")
    assert "data:image/png;base64," in result._repr_html_()
    assert len(result._repr_html_()) < 50_000
