"""An evaluator with costs on top: reports, objectives, gradients, lengths."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from masksearch import CostEvaluator, masks
from masksearch.contracts import Differentiable, Evaluator, Objective, Report, Shape
from masksearch.errors import LengthError, SearchError
from masksearch.evaluators.cost import WithCost
from masksearch.masks import Mask
from masksearch.masks.lower import lower

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


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="no cost is chosen"):
        WithCost(Inner(), latency=False)
    with pytest.raises(ValueError, match="latency is True, False"):
        WithCost(Inner(), latency="seconds")
    with pytest.raises(ValueError, match=r"objective already: .*latency_ratio"):
        WithCost(WithCost(Inner()))
