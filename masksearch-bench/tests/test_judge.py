"""Selectors judged on tables, and searches that are replayed on them."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import masksearch as ms
from masksearch_bench import judge, strategy, summary
from masksearch_bench.judging import seal
from masksearch_bench.table import Table


def exhaustive(known):
    for choice in itertools.product(range(known.levels), repeat=known.units):
        known.loss(choice)
    return [(budget, known.best(budget)) for budget in known.budgets]


def other(table, shift):
    """A table whose test tokens say something else."""
    cells = table.cells.copy()
    cells["test/nll"] *= 1 + shift
    return Table(table.sheet.__class__(**{**vars(table.sheet), "name": f"other-{shift}"}), cells)


def test_exhaustive_search_has_no_regret_and_costs_every_cell(table):
    rows = judge(exhaustive, [table], (0.3, 0.5))
    assert rows.regret.eq(0).all()
    assert rows.evaluations.eq(4096).all()
    assert rows.oracle.ge(0).all()
    assert rows.choice.tolist() == [table.optimum(budget).choice for budget in (0.3, 0.5)]


def test_losses_are_counted_once_and_costs_are_free(table):
    def few(known):
        known.share("1" * 12)
        assert (known.units, known.levels, known.budgets, known.seed) == (12, 2, (0.3, 0.5), 4)
        assert known.loss("0" * 12) == known.loss([0] * 12)
        known.loss("1" * 12)
        return [(budget, known.best(budget)) for budget in known.budgets]

    rows = judge(few, [table], (0.5, 0.3), seeds=(4,))
    assert rows.evaluations.tolist() == [2, 2]
    assert rows.choice.tolist() == ["0" * 12] * 2


# -- sealed answers ------------------------------------------------------------------------------
def optimum_of_test_tokens(known):
    for budget in known.budgets:
        yield budget, known.table.optimum(budget, known.cost, "test").choice


def reads_losses(known):
    for budget in known.budgets:
        yield budget, min(known.losses, key=known.losses.get)


def goes_through_its_account(known):
    known.asked["0" * 12] = -1.0
    return [(budget, known.best(budget)) for budget in known.budgets]


def looks_inside(known):
    [table] = [each for each in vars(known).values() if isinstance(each, Table)]
    return [(budget, table.optimum(budget, tokens="test").choice) for budget in known.budgets]


def opens_what_a_method_belongs_to(known):
    table = known.loss.__self__.table
    return [(budget, table.optimum(budget, tokens="test").choice) for budget in known.budgets]


def changes_its_budgets(known):
    known.budgets = (1.0,)
    return [(1.0, "1" * known.units)]


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (optimum_of_test_tokens, r"may use units, .*, share, loss, best, got 'table'.*own code"),
        (reads_losses, "got 'losses'"),
        (goes_through_its_account, "got 'asked'"),
        (looks_inside, "__dict__"),
        (opens_what_a_method_belongs_to, "__self__"),
        (changes_its_budgets, "budgets"),
    ],
)
def test_a_selector_reaches_no_answer(table, selector, message):
    with pytest.raises((AttributeError, TypeError), match=message):
        judge(selector, [table], (0.4, 0.5))


@pytest.mark.slow
def test_a_strategy_is_charged_for_every_mask_that_it_judges(table):
    rows = judge(strategy("random", 7), [table], (0.4,), seeds=(0, 1))
    searched = table.simulate("random", seeds=(0, 1), trials=7, budget=(0.4,))
    assert rows.evaluations.tolist() == searched.groupby("seed").size().tolist()
    assert (rows.selector == "random").all()
    kept = searched[searched.share <= 0.4]
    best = kept.loc[kept.groupby("seed").nll.idxmin()]
    assert rows.choice.tolist() == best.choice.tolist()


def test_nothing_is_the_best_below_the_cheapest_choice(table):
    known, _ = seal(table)
    least = known.share("0" * 12)
    assert known.best(least) == known.best(least * (1 - 1e-12)) == "0" * 12
    message = (
        r"cheapest choice of table recall-1 costs 0\.2632 .* budget=0\.01; give at least that"
    )
    with pytest.raises(ValueError, match=message):
        known.best(0.01)


@pytest.mark.slow
def test_the_interval_is_students_over_tables(table):
    tables = [other(table, shift) for shift in (0.0, 0.1, 0.3)]

    def drawn(known):
        random = np.random.default_rng(known.seed)
        while known.share(choice := random.integers(2, size=12).tolist()) > 0.5:
            pass
        yield 0.5, choice

    rows = judge(drawn, tables, (0.5,), seeds=(0, 1))
    assert len(rows) == 6
    each = rows.groupby("table").regret.mean()
    [found] = summary(rows).itertuples()
    low, high = stats.t.interval(0.95, 2, each.mean(), stats.sem(each))
    assert (found.tables, found.regret) == (3, pytest.approx(each.mean()))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.family == "other"
    assert "low" not in summary(judge(exhaustive, [table], (0.5,)))
    both = summary(judge(exhaustive, [table, *tables], (0.5,)))
    assert dict(zip(both.family, both.tables, strict=True)) == {"recall": 1, "other": 3}


def test_selectors_that_break_the_rules(table):
    with pytest.raises(ms.errors.SearchError, match=r"dear gave no choice for the budget 0\.5"):
        judge(lambda known: [(0.3, "0" * 12)], [table], (0.3, 0.5), name="dear")
    with pytest.raises(ValueError, match="more than the budget"):
        judge(lambda known: [(0.5, "1" * 12)], [table], (0.5,))


# -- replayed searches, against selectors of ten lines ------------------------------------------
ALONE = [tuple(int(u == at) for u in range(12)) for at in range(12)]
BUDGETS = [0.33, 0.39, 0.45, 0.51]  # of the pairs: 1, 2, 3, 4 heads


@pytest.fixture(scope="module")
def loss(table):
    return table.cells["calibration/nll"].to_dict()


def text(choice):
    return "".join(map(str, choice))


def allocated(table, method, **options):
    """What `allocate` judges, and the best of it within each budget."""
    levels = table.units.levels
    told = {"unit": "head", "levels": levels, "method": method, **options}
    how = {"seeds": [0], "trials": 400, "budget": BUDGETS, "strategy_options": told}
    found = table.simulate("allocate", **how)
    kept = [found[found.share <= budget] for budget in BUDGETS]
    return found, [each.choice[each.nll.idxmin()] for each in kept]


def oracle_restore(loss):
    """Alone raised, then the best ones together."""
    order = sorted(ALONE, key=lambda choice: loss[text(choice)])
    return [text(np.sum(order[:count], 0)) for count in (1, 2, 3, 4)]


def oracle_ablate(loss):
    """Alone lowered, then the worst losses together."""
    order = sorted(ALONE, key=lambda alone: -loss[text(1 - np.array(alone))])
    return [text(np.sum(order[:count], 0)) for count in (1, 2, 3, 4)]


def oracle_greedy(loss):
    """One more in each round."""
    chosen, path = np.zeros(12, int), []
    for _ in range(4):
        more = [chosen + np.array(alone) for alone in ALONE if not chosen[np.argmax(alone)]]
        chosen = min(more, key=lambda choice: loss[text(choice)])
        path.append(text(chosen))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "oracle", "evaluations"),
    [
        ("restore", oracle_restore, 2 + 12 + 3),  # the best alone was judged
        ("ablate", oracle_ablate, 2 + 12 + 4),
        ("greedy", oracle_greedy, 2 + 12 + 11 + 10 + 9),
    ],
)
def test_allocate_chooses_as_ten_lines_do(table, loss, method, oracle, evaluations):
    found, chosen = allocated(table, method)
    assert chosen == oracle(loss)
    assert len(found) == evaluations
    assert found.evaluation.tolist() == list(range(1, evaluations + 1))


@pytest.mark.nightly
def test_slots_change_the_order_of_results_not_what_a_plan_asks_for(table):
    alone, _ = allocated(table, "greedy")
    options = {"unit": "head", "levels": table.units.levels, "method": "greedy"}
    how = {"seeds": [0], "trials": 400, "budget": BUDGETS, "strategy_options": options}
    pd.testing.assert_frame_equal(alone, table.simulate("allocate", slots=4, **how))


@pytest.mark.slow
def test_a_sampler_with_slots_knows_less(table):
    """TPE begins to learn behind ten results: with as many slots as trials it has none."""
    how = {"trials": 14, "seeds": [0]}
    blind = table.simulate("tpe", slots=14, **how)
    learning = table.simulate("tpe", slots=1, **how)
    assert blind.choice.tolist() != learning.choice.tolist()


@pytest.mark.slow
def test_rows_say_what_the_table_says(table):
    found = table.simulate("random", seeds=[1, 2], trials=5)
    assert found.seed.tolist() == [1] * 5 + [2] * 5
    for row in found.itertuples():
        assert row.nll == table.query(row.choice)["nll"]
        assert row.test == table.query(row.choice, "test")["nll"]


@pytest.mark.nightly
def test_strategies_beat_random_search_over_thirty_seeds(table):
    """Of equally many evaluations, mean regret at three heads; the sign test at 95 % of 30."""

    def regrets(name, seeds=range(30)):
        found = table.simulate(name, seeds=seeds, trials=30, budget=BUDGETS)
        kept = found[found.share <= BUDGETS[2]]
        best = kept.loc[kept.groupby("seed").nll.idxmin()]
        return np.array([table.regret(choice, BUDGETS[2]) for choice in best.choice])

    random = regrets("random")
    assert regrets("tpe").mean() < random.mean()
    options = {"unit": "head", "levels": table.units.levels}
    how = {"trials": 30, "seeds": [0], "budget": BUDGETS, "strategy_options": options}
    found = table.simulate("allocate", **how)
    kept = found[found.share <= BUDGETS[2]]
    own = table.regret(kept.choice[kept.nll.idxmin()], BUDGETS[2])
    assert (own < random).sum() >= 20
