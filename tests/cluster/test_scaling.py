"""The simulator of benchmarks/scaling.py: laws, and an oracle for list scheduling."""

import heapq
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import driver_costs, scaling

seconds = st.floats(0.1, 100)
lengths = st.lists(seconds, min_size=1, max_size=40)
small = st.floats(0, 3)
costs = st.builds(
    lambda ask, slope, begin, dispatch, report, finish, latency: scaling.Costs(
        ask=((0, ask), (10, ask + slope)),
        begin=begin,
        dispatch=dispatch,
        report=report,
        finish=finish,
        latency=latency,
    ),
    *[small] * 7,
)


@given(lengths, costs, st.integers(0, 5))
def test_one_slot_takes_the_sum_of_everything(durations: list[float], cost: Any, n: int) -> None:
    outcome = scaling.simulate(durations, 1, cost, reports=n)
    driver = sum(sum(cost.of_trial(number, n).values()) for number in range(len(durations)))
    expected = sum(durations) + driver + cost.latency * len(durations)
    assert outcome.seconds == pytest.approx(expected)
    assert outcome.busy == pytest.approx(driver)
    assert outcome.ideal == pytest.approx(sum(durations))


@given(lengths, st.integers(1, 50))
def test_free_driver_packs_like_list_scheduling(durations: list[float], slots: int) -> None:
    ends = [0.0] * slots
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    outcome = scaling.simulate(durations, slots, scaling.Costs(), reports=3)
    assert outcome.seconds == pytest.approx(max(ends))
    assert outcome.efficiency == pytest.approx(1)
    assert outcome.bottleneck == "trials"


@given(lengths, costs, st.integers(1, 20), st.integers(0, 3))
def test_more_slots_lengthen_a_costly_search_by_a_queue_at_most(durations, cost, slots, n):
    """Messages of more trials may stand in front of the last one's, never longer than that."""
    one, more = (
        scaling.simulate(durations, n_slots, cost, reports=n).seconds
        for n_slots in (slots, slots + 1)
    )
    dearest = max(sum(cost.of_trial(k, n).values()) for k in range(len(durations)))
    assert more <= one + (slots + 1) * dearest + 1e-9


@given(lengths, costs, st.integers(1, 20))
def test_no_search_beats_its_bounds(durations: list[float], cost: Any, slots: int) -> None:
    outcome = scaling.simulate(durations, slots, cost, reports=2)
    assert outcome.seconds >= max(outcome.busy, sum(durations) / slots, max(durations)) - 1e-9
    assert 0 <= outcome.utilisation <= 1 + 1e-9
    assert sum(outcome.parts.values()) == pytest.approx(outcome.busy)


def test_driver_bound_search_runs_at_one_over_the_cost() -> None:
    cost = scaling.Costs(ask=((0, 0.02),), begin=0.01, dispatch=0.035, report=0.004, finish=0.015)
    outcome = scaling.simulate([5.0] * 4000, 1000, cost, reports=5)
    assert 4000 / outcome.seconds == pytest.approx(1 / 0.1, rel=0.02)
    assert outcome.utilisation > 0.98
    assert outcome.bottleneck == "dispatch"


@pytest.mark.slow
def test_stored_measurement_gives_a_row_for_every_case(tmp_path: Path) -> None:
    found = json.loads(scaling.RESULTS.read_text())
    rows = scaling.curves(found, (1, 16), 50)
    assert len(rows) == len(scaling.LENGTHS) * len(found["ask"]) * len(found["storage"]) * 2
    assert all(0 < row["efficiency"] <= 1 + 1e-9 for row in rows)
    scaling.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.nightly
def test_measuring_measures(tmp_path: Path) -> None:
    table = driver_costs.asked("tpe", (10, 20), repeats=2)
    assert all(cost > 0 for _, cost in table)
    disk = driver_costs.stored(tmp_path / "run", None, count=3)
    assert set(disk) == {"begin", "observe", "finish"}
    assert min(disk.values()) > 0
