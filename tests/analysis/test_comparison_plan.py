from __future__ import annotations

import math
from dataclasses import replace

import pytest
from toy import ToyEvaluator

import masksearch as ms
from masksearch import masks
from masksearch.analysis.comparison_plan import measured_spread
from masksearch.analysis.planning import detectable_difference, power
from masksearch.driver import Comparison
from masksearch.errors import CandidateError

CANDIDATES = {"dense": masks.full(), **ms.FAMILIES, "mine": masks.window(1)}


def test_a_plan_declares_what_the_verdict_will(tmp_path):
    for against in ("nearest", "all"):
        plan = ms.plan_comparison(CANDIDATES, ToyEvaluator(), against=against)
        run = tmp_path / against
        found = ms.compare(
            CANDIDATES, ToyEvaluator(), run=run, against=against, seeds=[5], progress=None
        ).findings()
        pairs = [(f.mask, f.against, f.role) for f in found]
        assert [(f.mask, f.against, f.role) for f in plan.declared] == pairs
    assert "mine against strided, fixed, longformer, log_sparse, bigbird, star, dense" in str(plan)


def test_detectable_difference_is_that_of_the_test():
    plan = ms.plan_comparison(CANDIDATES, ToyEvaluator(), seeds=range(5), sd=0.02)
    assert len(plan.declared) == 2
    assert plan.detectable == detectable_difference(5, None, 2, sd=0.02)
    assert power(plan.detectable, 5, 2, sd=0.02) == pytest.approx(0.8, abs=1e-3)
    assert power(plan.detectable / 2, plan.seeds_for_half, 2, sd=0.02) >= 0.8
    assert power(plan.detectable / 2, plan.seeds_for_half - 1, 2, sd=0.02) < 0.8
    text = str(plan)
    assert f"in loss of {plan.detectable:.4f} is found with probability 0.8: 5 seeds" in text
    assert f"takes {plan.seeds_for_half} seeds." in text


def test_more_seeds_show_less_and_two_show_nothing():
    plans = [ms.plan_comparison(CANDIDATES, ToyEvaluator(), seeds=range(n)) for n in (2, 3, 10)]
    assert math.isinf(plans[0].detectable)
    assert "Below 3 seeds nothing is claimed" in str(plans[0])
    assert plans[1].detectable > plans[2].detectable
    with pytest.raises(CandidateError, match="sd must be positive"):
        ms.plan_comparison(CANDIDATES, ToyEvaluator(), sd=0.0)


def test_an_earlier_comparison_says_how_much_differences_vary(compared, objectives, tmp_path):
    runs = {
        "mine": (masks.window(1), [0.7, 0.72, 0.71]),
        "star": (masks.star(), [0.6, 0.61, 0.65]),
        "lost": (masks.window(2), [0.6, 0.1, math.nan]),
    }
    earlier = Comparison(tuple(compared(runs)), objectives)
    spread = measured_spread(earlier)
    differences = [0.1, 0.11, 0.06]
    centre = sum(differences) / 3
    assert spread.sd == pytest.approx(math.sqrt(sum((d - centre) ** 2 for d in differences) / 2))
    assert spread.rows == 0
    plan = ms.plan_comparison(CANDIDATES, ToyEvaluator(), like=earlier)
    assert plan.spread == spread
    assert "not known, and comes on top" in str(plan)
    rows = replace(plan, spread=replace(spread, row_error=0.02, rows=277))
    assert rows.detectable > plan.detectable
    assert "and 277 rows add a standard error of 0.02" in str(rows)
    alone = Comparison(tuple(compared({"star": (masks.star(), [0.5, 0.6])})), objectives)
    with pytest.raises(CandidateError, match="no two masks of the comparison have two seeds"):
        measured_spread(alone)


def test_rows_bound_what_seeds_can_show():
    plan = ms.plan_comparison(CANDIDATES, ToyEvaluator(), seeds=range(10))
    few = replace(plan, spread=replace(plan.spread, row_error=0.05, rows=71))
    assert few.seeds_for_half is None
    assert "takes more rows: no number of seeds finds it on these" in str(few)
