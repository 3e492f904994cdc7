"""Costs of a mask against loops over its cells; measured ones by their relations only."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import HEADS, LAYERS, sized_trees
from torch import nn

from masksearch import CostEvaluator, masks
from masksearch.attention.kernels.gather import GatherPlan
from masksearch.contracts import Differentiable, Evaluator, Objective, Report, Shape
from masksearch.errors import LengthError, SearchError, UnknownNameError
from masksearch.evaluators.cost import WithCost
from masksearch.masks import Mask
from masksearch.masks.lower import lower
from masksearch.masks.measure import hops

MEASURED = ("latency_ratio", "latency")
EXACT = ("density", "sparsity", "effective_sparsity", "sparsity_off_diagonal", "block_density")
ANALYTIC = (*EXACT, "hops", "flops", "memory")
RACE = "masksearch.evaluators.cost.race_kernels"
SMALL = CostEvaluator(length=40, layers=2, heads=3, width=8, block=16)


def values(evaluator: CostEvaluator, mask: masks.Mask) -> dict[str, float]:
    [report] = evaluator(mask, seed=0, workdir=Path("unused"))
    return dict(report.values)


@settings(deadline=None, max_examples=25)
@given(sized_trees(longest=9), st.integers(1, 4))
@pytest.mark.nightly
def test_analytic_costs_match_the_table(sized, block):
    length, mask = sized
    evaluator = CostEvaluator(length, LAYERS, HEADS, width=4, block=block, measure=ANALYTIC)
    found = evaluator.costs(mask)
    table = mask.dense(length, LAYERS, HEADS).double()  # rows may be empty
    density = table.mean().item()
    blocks = torch.nn.functional.max_pool2d(table.flatten(0, 1), block, ceil_mode=True)
    off = table[..., ~torch.eye(length, dtype=torch.bool)].mean().item() if length > 1 else 1
    known = dict(zip(EXACT, (density, *[1 - density] * 2, 1 - off, blocks.mean()), strict=True))
    for name in EXACT:
        assert found[name] == pytest.approx(float(known[name]), abs=1e-6)
    steps, unreached = hops(mask, length), LAYERS * length
    assert found["hops"] == min(steps, unreached)
    assert steps == math.inf or steps < unreached
    tiles = [masks.to_block_layout(masks.layer_of(mask, n), length, block) for n in range(LAYERS)]
    pairs = sum(int(each.expand(HEADS, -1, -1).sum()) for each in tiles)
    assert found["flops"] == pytest.approx(2 * 4 * block * block * pairs)


def test_memory_is_scores_and_plan():
    mask = masks.window(3)
    plan = GatherPlan.of_mask(mask, 40, block=16)
    pairs = 7 * 2 * 3  # 7 of 9 blocks, 2 layers, 3 heads
    found = values(replace(SMALL, measure=("memory",)), mask)
    assert found == {"memory": 4 * 16 * 16 * pairs + plan.bytes}


def test_only_what_was_chosen_is_reported_in_that_order():
    evaluator = replace(SMALL, measure=("flops", "sparsity"))
    assert list(values(evaluator, masks.star())) == ["flops", "sparsity"]
    assert [objective.name for objective in evaluator.objectives] == ["flops", "sparsity"]
    assert [objective.goal for objective in evaluator.objectives] == ["min", "max"]


def test_dense_attention_is_the_worst():
    evaluator = replace(SMALL, length=48, measure=(*ANALYTIC, *MEASURED))
    chosen = set(ANALYTIC) - {"memory", "hops"}
    found = replace(evaluator, measure=tuple(chosen)).costs(masks.full())
    for objective in evaluator.objectives:
        assert math.isfinite(objective.worst)
        if objective.name in chosen:
            assert found[objective.name] == pytest.approx(objective.worst)


def test_latency_is_the_faster_kernel_for_all_layers():
    evaluator = replace(SMALL, length=64, layers=2, measure=("latency",), repeats=2)
    threads = torch.get_num_threads()
    for mask in (masks.window(3), masks.per_layer([masks.window(3), masks.star()])):
        found = values(evaluator, mask)
        total = sum(found[f"latency_{kernel}"] for kernel in ("masked", "gather"))
        assert 0 < found["latency"] <= min(found["latency_masked"], found["latency_gather"])
        assert found["latency"] < total
        assert found["latency_ratio"] == found["latency"] / found["latency_dense"]
        assert torch.get_num_threads() == threads


def test_times_are_added_over_the_layers(monkeypatch):
    spent = iter([[4e-3, 5e-3, 1e-3], [4e-3, 3e-3, 9e-3]])
    monkeypatch.setattr(RACE, lambda kernels, repeats: next(spent))
    evaluator = replace(SMALL, measure=("latency_ratio",))
    found = values(evaluator, masks.per_layer([masks.window(3), masks.star()]))
    assert found == pytest.approx(
        {
            "latency_ratio": 0.5,
            "latency": 4.0,
            "latency_dense": 8.0,
            "latency_masked": 8.0,
            "latency_gather": 10.0,
        }
    )
    spent = iter([[4e-3, 5e-3, 1e-3]])
    assert values(evaluator, masks.star())["latency"] == pytest.approx(2.0)  # both layers alike


def test_a_full_mask_is_dense_attention(monkeypatch):
    monkeypatch.setattr(RACE, lambda kernels, repeats: [2e-3, 3e-3, 7e-3])
    assert values(replace(SMALL, measure=("latency_ratio",)), masks.full())["latency_ratio"] == 1.0


# -- an evaluator with costs on top -------------------------------------------------------------
TIMES = {"latency", "latency_ratio", "latency_dense", "latency_masked", "latency_gather"}


@dataclass(frozen=True)
class Inner(Evaluator):
    """Three reports; counts how it ends in `log`."""

    log: Path | None = None
    shape = Shape(length=160, layers=1, heads=2)
    objectives = (Objective("score", "max", 0.0), Objective("sparsity", "max", 0.0))
    protocol = "inner"

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        lower(mask, self.shape)
        try:
            for step in (1, 2, 3):
                yield Report(step, {"score": step / 3 + seed})
        finally:
            if self.log is not None:
                self.log.write_text("closed")


@dataclass(frozen=True)
class Learning(Inner):
    """The same, and it offers gradients."""

    def differentiable(self, seed: int) -> Differentiable:
        return Differentiable(nn.Linear(seed, 1), iter([]), [])


@dataclass(frozen=True)
class Carrying(Learning):
    """The same, and its data can travel."""

    data: bytes = b""

    def packed(self) -> "Carrying":
        return self if self.data else replace(self, data=bytes(10_000))


def reports(evaluator: WithCost, mask: Mask) -> list[Report]:
    return list(evaluator(mask, seed=2, workdir=Path("unused")))


def test_every_report_holds_its_own_values_and_the_costs():
    evaluator = WithCost(Inner(), memory=True)
    inner = list(Inner()(masks.star(), seed=2, workdir=Path("unused")))
    found = reports(evaluator, masks.star())
    assert [report.step for report in found] == [report.step for report in inner]
    for mine, own in zip(found, inner, strict=True):
        assert set(mine.values) == {"score", "memory"} | TIMES
        assert mine.values["score"] == own.values["score"]
        assert {name: mine.values[name] for name in TIMES} == {
            name: found[-1].values[name] for name in TIMES
        }


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["latency_ratio"]),
        ({"latency": "ratio"}, ["latency_ratio"]),
        ({"latency": "milliseconds"}, ["latency"]),
        ({"memory": True}, ["latency_ratio", "memory"]),
        ({"latency": False, "memory": True}, ["memory"]),
    ],
    ids=str,
)
def test_objectives_are_the_inner_ones_and_the_chosen_costs(settings, names):
    evaluator = WithCost(Inner(), **settings)
    assert evaluator.objectives[:2] == Inner.objectives
    added = evaluator.objectives[2:]
    assert [objective.name for objective in added] == names
    assert all(o.goal == "min" and math.isfinite(o.worst) for o in added)
    last = reports(evaluator, masks.star())[-1]
    assert set(names) <= set(last.values)


def test_it_offers_gradients_exactly_where_the_inner_one_does():
    assert not WithCost(Inner()).offers("differentiable")
    learning = WithCost(Learning())
    assert learning.offers("differentiable")
    assert learning.differentiable(5).model.in_features == 5
    assert not replace(learning, evaluator=Inner()).offers("differentiable")
    with pytest.raises(SearchError, match=r"^Inner has no differentiable"):
        WithCost(Inner()).differentiable(0)


def test_it_carries_data_exactly_where_the_inner_one_does():
    assert (plain := WithCost(Learning())).packed() is plain
    evaluator = WithCost(Carrying(), latency=False, memory=True)
    packed = evaluator.packed()
    assert packed == replace(evaluator, evaluator=Carrying().packed())
    assert packed.packed() is packed
    assert packed.protocol == evaluator.protocol
    assert packed.objectives == evaluator.objectives
    outer = WithCost(evaluator)  # wrapped twice
    assert outer.packed().evaluator == packed


def test_protocol_joins_the_inner_one_and_the_settings(monkeypatch):
    evaluator = WithCost(Inner(), memory=True)
    changes = (
        {"cost_length": 32},
        {"memory": False},
        {"latency": False},
        {"latency": "milliseconds"},
    )
    others = [evaluator, *(replace(evaluator, **change) for change in changes)]
    assert len({other.protocol for other in others}) == len(others)
    before = evaluator.protocol
    monkeypatch.setattr(Inner, "protocol", "another")
    assert evaluator.protocol != before
    before = evaluator.protocol
    monkeypatch.setattr("masksearch.evaluators.cost.machine", lambda: "another")
    assert evaluator.protocol != before


def test_closing_it_closes_the_run_within(tmp_path):
    log = tmp_path / "log"
    running = WithCost(Inner(log))(masks.star(), seed=0, workdir=tmp_path)
    next(running)
    assert not log.exists()
    running.close()
    assert log.read_text() == "closed"
    assert list(running) == []


def memory_at(length: int | None, mask: Mask) -> float:
    evaluator = WithCost(Inner(), latency=False, memory=True, cost_length=length)
    return reports(evaluator, mask)[-1].values["memory"]


def test_a_cost_that_stands_alone_is_the_only_one():
    assert CostEvaluator(measure="hops") == CostEvaluator(measure=("hops",))


def test_costs_are_taken_at_their_own_length():
    own = CostEvaluator(256, 1, 2, measure=("memory",))
    assert memory_at(256, masks.window(3)) == own.costs(masks.window(3))["memory"]
    assert memory_at(256, masks.window(3)) > memory_at(None, masks.window(3))


def test_a_table_is_cropped_to_a_shorter_length_and_refused_at_a_longer_one():
    table = masks.table(torch.ones(160, 160, dtype=torch.bool))
    shorter = CostEvaluator(100, 1, 2, measure=("memory",))
    assert memory_at(100, table) == shorter.costs(masks.full())["memory"]
    with pytest.raises(LengthError, match=r"taken at 200 positions.*cost_length=None"):
        memory_at(200, table)
    bits = masks.toeplitz(torch.ones(160, dtype=torch.bool))
    assert memory_at(100, bits) == shorter.costs(masks.full())["memory"]
    with pytest.raises(LengthError, match=r"taken at 200 positions.*cost_length=None"):
        memory_at(200, bits)
    with pytest.raises(LengthError, match="Table holds 8 positions, asked for 160"):
        memory_at(None, masks.table(torch.ones(8, 8, dtype=torch.bool)))


MISTAKES = {
    "an unknown measure": (CostEvaluator, {"measure": ("latencie",)}, "did you mean 'latency'"),
    "a measure twice": (CostEvaluator, {"measure": ("flops", "flops")}, "each once"),
    "no measure": (CostEvaluator, {"measure": ()}, "one or more"),
    "block": (CostEvaluator, {"block": 0}, "block must be at least 1, got 0"),
    "length": (CostEvaluator, {"length": 0}, "length must be a whole number >= 1, got 0"),
    "no cost": (WithCost, {"evaluator": Inner(), "latency": False}, "no cost is chosen"),
    "a unit": (WithCost, {"evaluator": Inner(), "latency": "s"}, "latency is True, False"),
    "twice": (WithCost, {"evaluator": WithCost(Inner())}, r"objective already: .*latency_ratio"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_settings_are_refused(name):
    make, given, said = MISTAKES[name]
    with pytest.raises(UnknownNameError if "unknown" in name else ValueError, match=said):
        make(**given)
