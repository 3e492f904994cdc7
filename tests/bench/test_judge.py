"""Selectors judged on tables, in Python and on the command line."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from cli_runs import run
from scipy import stats

import masksearch as ms
from masksearch.bench import judge, load, strategy, summary
from masksearch.bench.judge import seal
from masksearch.bench.table import Table, natural, write_table

SELECTOR = """
def last_layers(known):
    for budget in known.budgets:
        choice = [0] * known.units
        for unit in reversed(range(known.units)):
            raised = [*choice[:unit], 1, *choice[unit + 1 :]]
            if known.share(raised) <= budget:
                choice = raised
        yield budget, choice
"""


def exhaustive(known):
    for choice in itertools.product(range(known.levels), repeat=known.units):
        known.loss(choice)
    return [(budget, known.best(budget)) for budget in known.budgets]


@pytest.fixture(scope="module")
def table():
    return load("recall-1")


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
        yield budget, known.table.optimum(budget, known.account, "test").choice


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


# -- the command ---------------------------------------------------------------------------------
@pytest.fixture
def bench(monkeypatch, capsys, tmp_path):
    """Exit code, output and errors of `masksearch bench ..` in a folder with a selector."""
    (tmp_path / "mine.py").write_text(SELECTOR)
    monkeypatch.chdir(tmp_path)
    return lambda *words: run(monkeypatch, capsys, "bench", *words)


@pytest.mark.slow
def test_the_command_judges_a_file_of_ones_own(bench):
    told = ["--tables", "recall-1", "--budget", "0.5", "--json"]
    code, out, _ = bench("judge", "mine.py:last_layers", *told)
    [row] = json.loads(out)
    assert (code, row["budget"], row["evaluations"]) == (0, 0.5, 0)
    assert row["regret"] > 1  # the last heads of this decoder look nothing up
    code, out, _ = bench(
        "judge", "random", "--tables", "recall-1", "--budget", "0.5", "--trials", 5
    )
    assert code == 0
    assert out.startswith("random on recall-1\n")
    assert "oracle" in out


@pytest.mark.slow
def test_the_command_judges_allocate_as_its_help_says(bench, table):
    """Told the table's own units and masks."""
    told = ["--tables", "recall-1", "--budget", "0.4", "--trials", 100, "--json"]
    code, out, _ = bench("judge", "allocate", *told)
    [row] = json.loads(out)
    assert code == 0
    best = table.cells[table.shares() <= 0.4]["test/nll"].min()
    exact = table.optimum(0.4)
    assert abs(row["regret"]) <= 0.01
    assert row["evaluations"] < 100
    assert table.query(exact.choice, "test")["nll"] - best == pytest.approx(row["oracle"])


def test_names_are_in_the_order_of_their_numbers():
    assert sorted(["b-10", "b-9", "a", "b-1", "a-2"], key=natural) == [
        "a",
        "a-2",
        "b-1",
        "b-9",
        "b-10",
    ]


@pytest.mark.slow
def test_the_command_takes_a_family(bench, monkeypatch, table, tmp_path):
    """And leaves tables out that a strategy cannot search."""
    free = dataclasses.replace(table.sheet, name="part-1", free=table.sheet.free[1:], planned=2048)
    cells = table.cells[table.cells.choice.str.startswith("1")]
    part = Table(free, cells.assign(choice=cells.choice.str[1:]))
    folder = tmp_path / "tables"
    folder.mkdir()
    write_table(part, folder / "part-1.parquet")
    for number in (1, 2):
        twin = Table(dataclasses.replace(table.sheet, name=f"twin-{number}"), table.cells)
        write_table(twin, folder / f"twin-{number}.parquet")
    monkeypatch.setattr("masksearch.bench.table.HERE", folder)
    told = ["--budget", "0.5"]
    for words, wanted in (
        (["mine.py:last_layers", "--tables", "twin"], "twin-1, twin-2"),
        (["mine.py:last_layers"], "part-1, twin-1, twin-2"),
        (["random", "--trials", 3], "twin-1, twin-2"),
    ):
        code, out, _ = bench("judge", *words, *told)
        assert code == 0
        assert wanted in out.splitlines()[0]
        assert ("part" in out) == ("part" in wanted)
    with pytest.raises(ValueError, match=r"part-1 is about 11 of 12: search it by table\.obj"):
        part.simulate("random", trials=2)


def test_the_command_lists_tables(bench):
    code, out, _ = bench()
    assert code == 0
    [line] = [line for line in out.splitlines() if line.startswith("recall-1 ")]
    assert line.split()[:4] == ["recall-1", "4096", "complete", "Llama"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["judge"], "bench judge needs FILE.py:NAME"),
        (["judge", "random", "--tables", "recal-1"], "did you mean 'recall-1'"),
        (["judge", "mine.py:last_layers", "--budget", "0.1"], "costs 0.2632 of dense pairs"),
        (["judge", "randm"], "name it as file.py:function"),
        (["build", "none.py:tables"], "none.py"),
        (["list", "mine.py"], "bench list does not read mine.py: it belongs to bench build and"),
        (["list", "--budget", "0.4"], "bench list does not read --budget: it belongs to bench ju"),
        (["list", "--trials", "7"], "does not read --trials"),
        (["list", "--tables", "nonsense"], "does not read --tables"),
        (["list", "--slots", "2"], "does not read --slots: it belongs to bench build"),
        (["build", "mine.py:x", "--json"], "bench build does not read --json: it belongs to"),
        (["judge", "random", "--out", "x"], "bench judge does not read --out: it belongs to"),
        (["judge", "mine.py:last_layers", "--trials", "7"], "--trials belongs to a strategy"),
    ],
)
def test_mistakes_are_one_line(bench, words, message):
    code, _, err = bench(*words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
