"""Searches that are replayed on a table, against selectors of ten lines."""

import numpy as np
import pandas as pd
import pytest

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
    for name in ("tpe", "evolution"):
        assert regrets(name).mean() < random.mean()
    options = {"unit": "head", "levels": table.units.levels}
    how = {"trials": 30, "seeds": [0], "budget": BUDGETS, "strategy_options": options}
    found = table.simulate("allocate", **how)
    kept = found[found.share <= BUDGETS[2]]
    own = table.regret(kept.choice[kept.nll.idxmin()], BUDGETS[2])
    assert (own < random).sum() >= 20
