"""Costs of a mask against loops over its cells; measured ones by their relations only."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import HEADS, LAYERS, sized_trees

from masksearch import CostEvaluator, masks
from masksearch.attention.kernels.gather import GatherPlan
from masksearch.errors import UnknownNameError
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


MISTAKES = {
    "an unknown measure": (
        dict(measure=("latencie",)),
        UnknownNameError,
        "did you mean 'latency'",
    ),
    "a measure twice": (dict(measure=("flops", "flops")), ValueError, "each once"),
    "no measure": (dict(measure=()), ValueError, "one or more"),
    "block": (dict(block=0), ValueError, "block must be at least 1, got 0"),
    "length": (dict(length=0), ValueError, "length must be a whole number >= 1, got 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_settings_are_refused(name):
    given, kind, said = MISTAKES[name]
    with pytest.raises(kind, match=said):
        CostEvaluator(**given)
