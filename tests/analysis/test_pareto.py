import dataclasses
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksearch import masks
from masksearch.analysis.pareto import (
    Snapshot,
    crowding,
    hypervolume,
    nondominated_ranks,
    pareto,
    ranked,
)
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
        st.text("xn", min_size=d, max_size=d), st.lists(st.tuples(*[coordinate] * d), max_size=8)
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


@given(cases)
def test_hypervolume_matches_inclusion_exclusion(case):
    goals, points = case
    found = hypervolume(points, objectives_of(goals))
    assert found == pytest.approx(union_by_inclusion_exclusion(points, goals))


# -- functions of arrays -------------------------------------------------------------------------
def test_an_infinite_side_has_an_infinite_volume():
    points = [(math.inf, 2.0, 3.0), (2.0, math.inf, 3.0), (3.0, 3.0, 2.0), (-math.inf, 9.0, 9.0)]
    assert hypervolume(points, objectives_of("xxx")) == math.inf
    assert hypervolume(points[2:], objectives_of("xxx")) == 4.0


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_a_point_with_a_nan_is_beside_all_others(objectives):
    points = [(float(n),) * objectives for n in range(4)]
    unknown = [(math.nan, *(9.0,) * (objectives - 1)), (*(-9.0,) * (objectives - 1), math.nan)]
    assert nondominated_ranks([*points, *unknown]).tolist() == [3, 2, 1, 0, 0, 0]


FEW = st.integers(0, 6).map(float) | st.sampled_from([-math.inf, math.inf])
POINTS = st.integers(1, 4).flatmap(
    lambda d: st.lists(st.tuples(*[FEW] * d), min_size=1, max_size=14)
)


def beats(a, b) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


@given(POINTS)
def test_ranks_match_a_recursive_oracle(points):
    def depth(point) -> int:  # the longest chain of points, each dominated by the one before
        return max((1 + depth(other) for other in points if beats(other, point)), default=0)

    assert nondominated_ranks(points).tolist() == [depth(point) for point in points]


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=12))
def test_crowding_matches_a_loop(points):
    points = list({x: (float(x), float(y)) for x, y in points}.values())  # distinct first values
    points = list({y: (x, y) for x, y in points}.values())  # and second ones
    assert crowding([*points, points[0]])[-1] == 0  # a copy
    for index, distance in enumerate(crowding(points)):
        expected = 0.0
        for axis in (0, 1):
            values = sorted(point[axis] for point in points)
            place = values.index(points[index][axis])
            if place in (0, len(values) - 1):
                expected = math.inf
            else:
                expected += (values[place + 1] - values[place - 1]) / (values[-1] - values[0])
        assert distance == pytest.approx(expected)


def test_an_infinite_objective_neither_crowds_nor_warns():
    assert crowding([(1.0, -math.inf), (2.0, -math.inf)]).tolist() == [math.inf, math.inf]
    assert crowding([(1.0, 3.0), (2.0, 2.0), (3.0, -math.inf)])[1] == 1.0


# -- functions of records ------------------------------------------------------------------------
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
    states = [Snapshot(objectives_of("x")).after(*records[:count]) for count in (1, 4, 6, 8)]
    assert [state.hypervolume for state in states] == [1, 1, 1, 2]
    assert [state.trials for state in states] == [1, 2, 4, 6]


@pytest.mark.parametrize("goals", ["x", "xn", "xnx"])
def test_nothing_dominates_nothing(goals):
    objectives = objectives_of(goals)
    assert pareto([], objectives) == nondominated_ranks([]).tolist() == []
    assert hypervolume([], objectives) == 0
    assert hypervolume([[1.0 if goal == "x" else 5.0 for goal in goals]], objectives) == 0


# -- the state of a search -----------------------------------------------------------------------
STATUS = st.sampled_from(["done", "done", "done", "reused", "stopped", "failed", "running"])


@given(cases, st.data())
def test_snapshot_is_the_front_of_all_records_so_far(case, data):
    goals, points = case
    objectives = objectives_of(goals)
    records = [
        dataclasses.replace(
            record,
            status=data.draw(STATUS),
            job=JOB if data.draw(st.integers(0, 9)) else OneShot(),
        )
        for record in data.draw(st.permutations(records_of(points)))
    ]
    cut = data.draw(st.integers(0, len(records)))  # a resumed search takes several at once
    snapshot = Snapshot(objectives).after(*records[:cut])
    for index, record in enumerate(records[cut:], start=cut + 1):
        snapshot = snapshot.after(record)
        assert snapshot.joined == any(record is kept for kept in snapshot.front)
        ended = [r for r in records[:index] if r.status != "running"]
        assert snapshot.finished == len(ended) == sum(snapshot.statuses.values())
        assert snapshot.seconds == float(len(ended))
    front = pareto(records, objectives)
    assert list(snapshot.front) == front
    assert snapshot.best == (front[0] if front else None)
    values = [[r.value(o.name) for o in objectives] for r in records if r.scored]
    assert snapshot.hypervolume == pytest.approx(hypervolume(values, objectives))
    assert snapshot.count("failed") == sum(r.status == "failed" for r in records)


POINTS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 0.9])), max_size=8)


@pytest.mark.parametrize("by_sparsity", [True, False])
@given(points=POINTS, least=st.sampled_from([0.0, 0.5, 0.95]))
def test_best_record_is_never_dominated_and_ties_go_to_the_sparser(by_sparsity, points, least):
    score, sparsity = Objective("score", "max", 0.0), Objective("sparsity", "max", 0.0)
    objectives = (score, sparsity) if by_sparsity else (score,)
    records = [
        Record(n, "done", JOB, values={"score": float(s)}, measures={"sparsity": sparse})
        for n, (s, sparse) in enumerate(points)
    ]
    found = next(iter(ranked(records, objectives, least)), None)
    keys = [(s, sparse) for s, sparse in points if sparse >= least]
    if not keys:
        assert found is None
    else:
        assert (found.values["score"], found.measures["sparsity"]) == max(keys)
        assert found.number == points.index(max(keys))


def test_best_record_is_a_baseline_only_where_it_may_be():
    objectives = (Objective("score", "max", 0.0),)
    ours, given = (
        Record(n, "done", JOB, role=role, values={"score": score}, measures={"sparsity": 0.5})
        for n, (role, score) in enumerate([("trial", 1.0), ("baseline", 2.0)])
    )
    assert ranked([ours, given], objectives)[0] == ours
    assert ranked([ours, given], objectives, baselines=True)[0] == given
    assert ranked([given], objectives) == []
    assert Snapshot(objectives).after(given, ours).best == ours


def test_snapshot_without_finite_reference_has_no_hypervolume():
    snapshot = Snapshot((Objective("a", "min", math.inf),))
    snapshot = snapshot.after(Record(0, "done", JOB, values={"a": 1.0}))
    assert snapshot.joined
    assert math.isnan(snapshot.hypervolume)


TWO = objectives_of("xx")
ENDLESS = (Objective("loss", "min", math.inf),)
MIXED = [Record(n, "done", JOB, protocol=p, values={"o0": 1.0}) for n, p in enumerate("ab")]


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: pareto(MIXED, TWO[:1]), ValueError, "one protocol, got 'a', 'b'; filter them"),
        (lambda: pareto(MIXED[:1], TWO), KeyError, "holds no 'o1'"),
        (lambda: pareto([], ()), ValueError, "at least one objective"),
        (lambda: Snapshot(()), ValueError, "at least one objective"),
        (lambda: hypervolume([[1.0]], ENDLESS), ValueError, "needs a finite reference"),
    ],
)
def test_messages(act, error, message):
    with pytest.raises(error, match=message):
        act()
