import math
from dataclasses import replace

import numpy as np
import pytest
from page_text import page_of

from masksearch import masks
from masksearch.analysis.search_curves import band_of, compare_searches, curves_of
from masksearch.contracts import Evaluate, Objective, OneShot, Record
from masksearch.report.curves import draw_volumes
from masksearch.report.section import Section

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


def page(runs):
    """What the page says of searches: strategy -> search seed -> records."""
    studies = {f"{name} {seed}": r for name, each in runs.items() for seed, r in each.items()}
    return page_of(Section(studies, OBJECTIVES, searches=runs))


def volumes(runs):
    """Score -> the hypervolume at the end of the first line of its figure."""
    studies = {f"{name} {seed}": r for name, each in runs.items() for seed, r in each.items()}
    figures = draw_volumes(Section(studies, OBJECTIVES, searches=runs))
    return {score: figure.axes[0].get_lines()[0].get_ydata()[-1] for score, figure in figures}


def bands(runs, by="trials", most=None):
    """Strategy -> trials or seconds -> mean, low and high of the hypervolume."""
    curves = curves_of(runs, OBJECTIVES)
    return {
        name: {at: (v.value, v.low, v.high) for at, v in band_of(each, by, most).items()}
        for name, each in curves.items()
    }


def test_a_band_is_mean_and_interval_of_the_searches_at_equal_compute():
    runs = {0: search([0.6, 0.8]), 1: search([0.7, 0.7, 0.9]), 2: search([0.5, 0.6])}
    band = bands({"tpe": runs})["tpe"]
    assert list(band) == [1, 2]  # from the first masks to where the shortest one ends
    assert [mean for mean, *_ in band.values()] == pytest.approx([0.05, 0.1])  # (score - .5) / 2
    half = 4.302653 * np.std([0.15, 0.1, 0.05], ddof=1) / np.sqrt(3)
    assert band[2][2] - band[2][0] == pytest.approx(half, rel=1e-5)
    alone = bands({"tpe": {0: runs[0]}}, "seconds")["tpe"]
    assert [mean for mean, *_ in alone.values()] == pytest.approx([0.05, 0.15])
    assert all(math.isnan(low) for _, low, _ in alone.values())
    assert math.isnan(bands({"tpe": {0: runs[0], 1: runs[1]}})["tpe"][2][2])  # two: no band
    far = {seed: search([score]) for seed, score in enumerate((0.5, 0.5, 0.9))}
    ((mean, low, high),) = bands({"a": far})["a"].values()
    assert low == 0 < mean < high  # no hypervolume is negative


def test_a_band_of_few_places_is_that_of_all_at_these_places():
    runs = {"tpe": {0: search([0.6] * 50), 1: search([0.8] * 40)}}
    every = bands(runs)["tpe"]
    some = bands(runs, most=7)["tpe"]
    assert list(some) == [1, 7, 14, 20, 27, 33, 40]
    assert {at: mean for at, (mean, *_) in some.items()} == {at: every[at][0] for at in some}


def test_strategies_are_compared_where_every_search_still_ran():
    slow = {s: search([0.6 + s / 100, 0.9, 0.9], seconds=2.0) for s in range(4)}
    quick = {s: search([0.7 + s / 90, 0.8 + s / 80, 0.8]) for s in range(4)}
    runs = {"tpe": slow, "random": quick}
    tpe, random = compare_searches(curves_of(runs, OBJECTIVES))
    assert (random.outcome, random.finding) == ("reference", None)
    assert tpe.at_trials.value == pytest.approx(0.2)
    assert tpe.at_seconds.value == pytest.approx(0.0575)  # 3 seconds: one trial
    assert tpe.finding.difference.value == pytest.approx(0.0575 - (0.15 + 1.5 / 160))
    assert (tpe.finding.difference.n, tpe.outcome) == (4, "smaller")
    line, *_ = page(runs)["verdicts"]
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
    found = {each.strategy: each for each in compare_searches(curves_of(runs, OBJECTIVES))}
    assert math.isnan(found["dam"].at_seconds.value)
    assert (found["dam"].outcome, found["dam"].seeds) == ("no mask yet", 3)
    assert list(bands(runs, "seconds")["dam"]) == [10]
    both = {"random": runs["random"], "mixed": {0: runs["dam"][0], 1: runs["tpe"][0]}}
    assert bands(both, "seconds")["mixed"] == {}
    assert found["tpe"].at_seconds.value == pytest.approx(0.15)  # (.8 - .5) / 2
    dam, tpe, *_ = page(runs)["verdicts"]
    assert dam == (
        "Hypervolume at equal compute, dam minus random: no number, because dam had no mask yet."
    )
    assert tpe.startswith("Hypervolume at equal compute, tpe minus random: +0.0")
    table = page(runs)["searches"]
    assert [c.text for c in table.rows[1]][4:6] == ["-", "-"]
    assert "0.000" not in [cell.text for row in table.rows for cell in row]
    dull = {"RTE": 0.5, "RTE/majority": 0.5}
    nothing = [replace(r, values={**r.values, **dull}) for r in search([0.6])]
    (curve,) = curves_of({"a": {0: nothing}}, OBJECTIVES)["a"].values()
    assert curve[-1].hypervolume == 0.0


def test_two_search_seeds_decide_nothing():
    runs = {name: {0: search([0.6]), 1: search([0.61])} for name in ("random", "tpe")}
    runs["tpe"][1] = search([0.9])
    assert compare_searches(curves_of(runs, OBJECTIVES))[1].outcome == "too few seeds"
    assert "claims need 3" in page(runs)["verdicts"][0]
    assert compare_searches({}) == []
    assert compare_searches(curves_of({"tpe": {0: []}}, OBJECTIVES)) == []


def test_the_score_without_rte_is_measured_where_every_run_reports_it():
    runs = {"tpe": {0: search([0.6])}}
    assert volumes(runs).keys() == {"glue"}
    values = {"glue": 0.6, "glue/without_rte": 0.7}
    both = {"tpe": {0: [replace(record, values=values) for record in runs["tpe"][0]]}}
    assert volumes(both) == {"glue": pytest.approx(0.05), "glue/without_rte": pytest.approx(0.1)}
