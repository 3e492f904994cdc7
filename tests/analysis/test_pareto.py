from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masksearch import masks
from masksearch.analysis.pareto import hypervolume, hypervolume_curve, pareto
from masksearch.contracts import Evaluate, Objective, OneShot, Record

JOB = Evaluate(masks.star())
coordinate = st.integers(0, 6).map(float)  # few values, so that ties and duplicates are common


def objectives_of(goals: str) -> tuple[Objective, ...]:
    """'x' = max from 1, 'n' = min from 5."""
    return tuple(
        Objective(f"o{i}", "max", 1.0) if goal == "x" else Objective(f"o{i}", "min", 5.0)
        for i, goal in enumerate(goals)
    )


def records_of(points: list[tuple[float, ...]]) -> list[Record]:
    return [
        Record(n, "done", JOB, values={f"o{i}": x for i, x in enumerate(point)}, seconds=1.0)
        for n, point in enumerate(points)
    ]


cases = st.integers(1, 4).flatmap(
    lambda d: st.tuples(
        st.text("xn", min_size=d, max_size=d),
        st.lists(st.tuples(*[coordinate] * d), max_size=8),
    )
)


def better(a: tuple[float, ...], b: tuple[float, ...], goals: str) -> bool:
    """Whether a dominates b, said the long way."""
    signed = [(x - y) if goal == "x" else (y - x) for x, y, goal in zip(a, b, goals, strict=True)]
    return min(signed) >= 0 and max(signed) > 0


def union_by_inclusion_exclusion(points: list[tuple[float, ...]], goals: str) -> float:
    boxes = [
        [max(0.0, x - 1.0 if goal == "x" else 5.0 - x) for x, goal in zip(p, goals, strict=True)]
        for p in points
    ]
    total = 0.0
    for size in range(1, len(boxes) + 1):
        for chosen in itertools.combinations(boxes, size):
            total -= (-1) ** size * math.prod(min(sides) for sides in zip(*chosen, strict=True))
    return total


@given(cases)
def test_pareto_matches_brute_force(case):
    goals, points = case
    expected = {
        n
        for n, p in enumerate(points)
        if not any(better(q, p, goals) for q in points) and p not in points[:n]
    }
    front = pareto(records_of(points), objectives_of(goals))
    assert {record.number for record in front} == expected
    first = [record.values["o0"] * (1 if goals[0] == "x" else -1) for record in front]
    assert first == sorted(first, reverse=True)


@given(cases, st.randoms(use_true_random=False))
def test_pareto_does_not_depend_on_the_order(case, rng):
    goals, points = case
    records = records_of(points)
    shuffled = list(records)
    rng.shuffle(shuffled)
    objectives = objectives_of(goals)
    assert pareto(shuffled, objectives) == pareto(records, objectives)


@given(cases)
def test_hypervolume_matches_inclusion_exclusion(case):
    goals, points = case
    found = hypervolume(points, objectives_of(goals))
    assert found == pytest.approx(union_by_inclusion_exclusion(points, goals))


@given(cases)
def test_hypervolume_of_the_front_is_that_of_all(case):
    goals, points = case
    objectives = objectives_of(goals)
    front = [
        [record.values[o.name] for o in objectives]
        for record in pareto(records_of(points), objectives)
    ]
    assert hypervolume(front, objectives) == pytest.approx(hypervolume(points, objectives))


@given(cases)
def test_hypervolume_curve_is_the_hypervolume_of_every_prefix(case):
    goals, points = case
    objectives = objectives_of(goals)
    curve = hypervolume_curve(records_of(points), objectives)
    for k, progress in enumerate(curve, start=1):
        assert progress.hypervolume == pytest.approx(hypervolume(points[:k], objectives))
        assert (progress.trials, progress.seconds) == (k, float(k))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_hypervolume_agrees_with_monte_carlo(seed):
    source = torch.Generator().manual_seed(seed)
    points = torch.rand(12, 4, generator=source)
    draws = torch.rand(40_000, 4, generator=source)
    share = (draws[:, None] <= points).all(-1).any(-1).double().mean().item()
    objectives = [Objective(f"o{i}", "max", 0.0) for i in range(4)]
    assert hypervolume(points.tolist(), objectives) == pytest.approx(share, abs=0.02)


def test_front_holds_full_fidelity_masks_only():
    best = {"o0": 6.0}
    records = [
        Record(0, "done", JOB, values={"o0": 2.0}),
        Record(1, "stopped", JOB, values=best),
        Record(2, "failed", JOB, values=best),
        Record(3, "running", JOB, values=best),
        Record(4, "done", OneShot(), values=best),
        Record(5, "done", JOB, values={"o0": math.nan}),
        Record(6, "done", JOB, values={"o0": math.inf}),
        Record(7, "reused", JOB, values={"o0": 3.0}),
    ]
    assert [record.number for record in pareto(records, objectives_of("x"))] == [7]
    curve = hypervolume_curve(records, objectives_of("x"))
    assert [progress.hypervolume for progress in curve] == [1, 1, 1, 1, 1, 1, 2]
    assert [progress.trials for progress in curve] == [1, 2, 2, 3, 4, 5, 6]


def test_measures_serve_as_objectives(record, objectives):
    sparse = record(0, 0.7, masks.star())
    dense = record(1, 0.8, masks.full())
    beaten = record(2, 0.6, masks.window(3))
    assert pareto([sparse, dense, beaten], objectives) == [dense, sparse]


@pytest.mark.parametrize("goals", ["x", "xn", "xnx"])
def test_nothing_dominates_nothing(goals):
    objectives = objectives_of(goals)
    assert pareto([], objectives) == []
    assert hypervolume([], objectives) == 0
    assert hypervolume([[1.0 if goal == "x" else 5.0 for goal in goals]], objectives) == 0


def test_messages():
    two = objectives_of("xx")
    mixed = [Record(n, "done", JOB, protocol=p, values={"o0": 1.0}) for n, p in enumerate("ab")]
    with pytest.raises(ValueError, match=r"one protocol, got 'a', 'b'; filter them"):
        pareto(mixed, objectives_of("x"))
    with pytest.raises(ValueError, match="at least one objective"):
        pareto([], ())
    with pytest.raises(ValueError, match="at least one objective"):
        hypervolume([], ())
    with pytest.raises(ValueError, match="2 objectives need as many values, got 1"):
        hypervolume([[1.0]], two)
    with pytest.raises(ValueError, match="must be finite"):
        hypervolume([[1.0, math.nan]], two)
    with pytest.raises(ValueError, match="needs a finite reference"):
        hypervolume([[1.0]], [Objective("loss", "min", math.inf)])
    with pytest.raises(KeyError, match="holds no 'o1'"):
        pareto(mixed[:1], two)
