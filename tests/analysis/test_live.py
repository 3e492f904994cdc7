"""The live front against the front of all records so far."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masksearch import masks
from masksearch.analysis.pareto import LiveFront, hypervolume, hypervolume_curve, pareto
from masksearch.contracts import Evaluate, Objective, OneShot, Record

JOB = Evaluate(masks.star())
NAMES = "abcd"
FIGURE = st.integers(0, 4).map(float) | st.floats(-10, 10) | st.just(math.nan)
STATUS = st.sampled_from(["done", "done", "done", "reused", "stopped", "failed", "running"])


@st.composite
def searches(draw):
    """Objectives, and records in an order of completion that is not that of their numbers."""
    count = draw(st.integers(1, 4))
    objectives = tuple(
        Objective(name, draw(st.sampled_from(["min", "max"])), draw(st.floats(-5, 5)))
        for name in NAMES[:count]
    )
    size = draw(st.integers(0, 14))
    records = [
        Record(
            number,
            draw(STATUS),
            JOB if draw(st.integers(0, 9)) else OneShot(),
            values={name: draw(FIGURE) for name in NAMES[:count]},
            seconds=draw(st.floats(0, 9)),
        )
        for number in draw(st.permutations(range(size)))
    ]
    return objectives, records


def agrees(snapshot, records, objectives):
    front = pareto(records, objectives)
    assert [r.number for r in snapshot.front] == [r.number for r in front]
    points = [[r.value(o.name) for o in objectives] for r in front]
    assert snapshot.hypervolume == pytest.approx(hypervolume(points, objectives), rel=1e-9)
    ended = [r for r in records if r.status != "running"]
    assert snapshot.finished == len(ended) == sum(snapshot.statuses.values())
    assert snapshot.seconds == pytest.approx(sum(r.seconds for r in ended))
    assert snapshot.count("failed") == sum(r.status == "failed" for r in ended)
    assert snapshot.best == (front[0] if front else None)


@given(searches())
def test_live_front_equals_the_front_of_all_records_so_far(search):
    objectives, records = search
    live = LiveFront(objectives)
    for index, record in enumerate(records):
        snapshot = live.update(record)
        agrees(snapshot, records[: index + 1], objectives)
        assert snapshot.joined == (record.number in {r.number for r in snapshot.front})


@given(searches(), st.data())
def test_restored_front_goes_on_as_if_nothing_had_happened(search, data):
    objectives, records = search
    cut = data.draw(st.integers(0, len(records)))
    live = LiveFront(objectives)
    for record in records[cut:]:  # forgotten by restore
        live.update(record)
    snapshot = live.restore(records[:cut])
    assert not snapshot.joined
    for record in records[cut:]:
        snapshot = live.update(record)
    agrees(snapshot, records, objectives)


@pytest.mark.parametrize("shape", ["line", "cloud", "ball"])
def test_ten_thousand_records_are_quick(shape):
    draws = torch.rand(10_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    objectives = tuple(
        Objective(name, "max", -1.0) for name in NAMES[: 3 if shape == "ball" else 2]
    )
    if shape == "line":  # every record joins the front, which is the worst case
        draws[:, 1] = 1 - draws[:, 0]
    if shape == "ball":
        draws = draws.pow(2)
    records = [
        Record(number, "done", JOB, values=dict(zip(NAMES, row, strict=False)))
        for number, row in enumerate(draws.tolist())
    ]
    live = LiveFront(objectives)
    started = time.process_time()
    for record in records:
        snapshot = live.update(record)
    assert time.process_time() - started < 5  # 0.2 s to 1 s where it was written
    assert (len(snapshot.front) == 10_000) == (shape == "line")
    if shape == "line":
        points = [[r.value(o.name) for o in objectives] for r in records]
        assert snapshot.hypervolume == pytest.approx(hypervolume(points, objectives), rel=1e-9)
    else:
        curve = hypervolume_curve(records, objectives)
        assert snapshot.hypervolume == pytest.approx(curve[-1].hypervolume, rel=1e-9)
        assert list(snapshot.front) == pareto(records, objectives)


def test_front_without_finite_reference_has_no_hypervolume():
    live = LiveFront((Objective("a", "min", math.inf),))
    snapshot = live.update(Record(0, "done", JOB, values={"a": 1.0}))
    assert snapshot.joined
    assert math.isnan(snapshot.hypervolume)


def test_front_refuses_two_protocols_and_no_objective():
    live = LiveFront((Objective("a", "min", 1.0),))
    live.update(Record(0, "done", JOB, protocol="p", values={"a": 1.0}))
    with pytest.raises(ValueError, match="one protocol, got 'p' and then 'q'"):
        live.update(Record(1, "done", JOB, protocol="q", values={"a": 1.0}))
    with pytest.raises(KeyError, match="holds no 'a'"):
        live.update(Record(1, "done", JOB, protocol="p"))
    with pytest.raises(ValueError, match="at least one objective"):
        LiveFront(())
