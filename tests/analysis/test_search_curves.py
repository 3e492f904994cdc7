import math
from dataclasses import replace

import numpy as np
import pytest

from masksearch import masks
from masksearch.analysis.search_curves import (
    band_of,
    compare_searches,
    curves_of,
    describe_searches,
    reached,
    without_rte,
)
from masksearch.contracts import Evaluate, Objective, OneShot, Record
from masksearch.report.tables import searches_table

OBJECTIVES = (Objective("glue", "max", 0.5), Objective("sparsity", "max", 0.0))
JOB = Evaluate(masks.star())


def search(scores: list[float], seconds: float = 1.0) -> list[Record]:
    """A search whose k-th trial has that score and is half sparse, after a perfect baseline."""
    hand = Record(99, "done", JOB, role="baseline", values={"glue": 1.0}, seconds=50.0)
    own = [
        Record(k, "done", JOB, origin="tpe", values={"glue": score}, seconds=seconds)
        for k, score in enumerate(scores)
    ]
    return [replace(record, measures={"sparsity": 0.5}) for record in [hand, *own]]


def test_a_band_is_mean_and_interval_of_the_searches_at_equal_compute():
    runs = {0: search([0.6, 0.8]), 1: search([0.7, 0.7, 0.9]), 2: search([0.5, 0.6])}
    (curves,) = curves_of({"tpe": runs}, OBJECTIVES).values()
    band = band_of(curves, "trials")
    assert list(band) == [1, 2]  # from the first masks to where the shortest one ends
    assert [v.value for v in band.values()] == pytest.approx([0.05, 0.1])  # (score - .5) / 2
    half = 4.302653 * np.std([0.15, 0.1, 0.05], ddof=1) / np.sqrt(3)
    assert band[2].high - band[2].value == pytest.approx(half, rel=1e-5)
    alone = band_of({0: curves[0]}, "seconds")
    assert [v.value for v in alone.values()] == pytest.approx([0.05, 0.15])
    assert all(math.isnan(v.low) for v in alone.values())
    assert math.isnan(band_of({0: curves[0], 1: curves[1]}, "trials")[2].high)  # two: no band
    far = {seed: search([score]) for seed, score in enumerate((0.5, 0.5, 0.9))}
    (wide,) = band_of(curves_of({"a": far}, OBJECTIVES)["a"], "trials").values()
    assert wide.low == 0 < wide.value < wide.high  # no hypervolume is negative


def test_a_band_of_few_places_is_that_of_all_at_these_places():
    (curves,) = curves_of(
        {"tpe": {0: search([0.6] * 50), 1: search([0.8] * 40)}}, OBJECTIVES
    ).values()
    every, some = band_of(curves, "trials"), band_of(curves, "trials", 7)
    assert list(some) == [1, 7, 14, 20, 27, 33, 40]
    assert {at: volume.value for at, volume in some.items()} == {
        at: every[at].value for at in some
    }


def test_strategies_are_compared_where_every_search_still_ran():
    slow = {s: search([0.6 + s / 100, 0.9, 0.9], seconds=2.0) for s in range(4)}
    quick = {s: search([0.7 + s / 90, 0.8 + s / 80, 0.8]) for s in range(4)}
    found = compare_searches(curves_of({"tpe": slow, "random": quick}, OBJECTIVES))
    tpe, random = found
    assert (random.outcome, random.finding) == ("reference", None)
    assert tpe.at_trials.value == pytest.approx(0.2)
    assert tpe.at_seconds.value == pytest.approx(0.0575)  # 3 seconds: one trial
    assert tpe.finding.difference.value == pytest.approx(0.0575 - (0.15 + 1.5 / 160))
    assert (tpe.finding.difference.n, tpe.outcome) == (4, "smaller")
    (line,) = describe_searches(found)
    assert line.startswith("Hypervolume at equal compute, tpe minus random: -0.10")
    assert "smaller (4 search seeds)" in line


def test_no_number_is_given_where_a_strategy_has_no_mask_yet():
    """In 3 seconds random has trained three masks, DAM its gates (for 9), and TPE two masks."""
    gates = Record(7, "done", OneShot({}), origin="dam", values={"loss": 1.0}, seconds=9.0)
    runs = {
        "random": {s: search([0.6, 0.7, 0.7 + s / 100]) for s in range(3)},
        "dam": {s: [gates, *search([0.9])] for s in range(3)},
        "tpe": {s: search([0.8, 0.8], seconds=1.5) for s in range(3)},
    }
    curves = curves_of(runs, OBJECTIVES)
    found = {each.strategy: each for each in compare_searches(curves)}
    assert math.isnan(found["dam"].at_seconds.value)
    assert (found["dam"].outcome, found["dam"].seeds) == ("no mask yet", 3)
    assert list(band_of(curves["dam"], "seconds")) == [10]
    assert band_of({0: curves["dam"][0], 1: curves["tpe"][0]}, "seconds") == {}
    assert found["tpe"].at_seconds.value == pytest.approx(0.15)  # (.8 - .5) / 2
    dam, tpe = describe_searches([*found.values()])
    assert dam == (
        "Hypervolume at equal compute, dam minus random: no number, because dam had no mask yet."
    )
    assert tpe.startswith("Hypervolume at equal compute, tpe minus random: +0.0")
    table = searches_table(runs, OBJECTIVES)
    assert [c.text for c in table.rows[1]][4:6] == ["-", "-"]
    assert "0.000" not in [cell.text for row in table.rows for cell in row]
    dull = {"RTE": 0.5, "RTE/majority": 0.5}
    nothing = [replace(r, values={**r.values, **dull}) for r in search([0.6])]
    assert reached(curves_of({"a": {0: nothing}}, OBJECTIVES)["a"][0], 1, "trials") == 0.0


def test_two_search_seeds_decide_nothing():
    runs = {name: {0: search([0.6]), 1: search([0.61])} for name in ("random", "tpe")}
    runs["tpe"][1] = search([0.9])
    found = compare_searches(curves_of(runs, OBJECTIVES))
    assert found[1].outcome == "too few seeds"
    assert "claims need 3" in describe_searches(found)[0]
    assert compare_searches({}) == []
    assert compare_searches(curves_of({"tpe": {0: []}}, OBJECTIVES)) == []


def test_the_score_without_rte_is_measured_where_every_run_reports_it():
    runs = {"tpe": {0: search([0.6])}}
    assert without_rte(runs, OBJECTIVES) is None
    values = {"glue": 0.6, "glue/without_rte": 0.7}
    both = {"tpe": {0: [replace(record, values=values) for record in runs["tpe"][0]]}}
    others = without_rte(both, OBJECTIVES)
    (curve,) = curves_of(both, others)["tpe"].values()
    assert curve[-1].hypervolume == pytest.approx(0.1)
