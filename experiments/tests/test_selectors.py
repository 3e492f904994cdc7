"""The selectors of experiment 18, each against a few lines that say the same in other words."""

import dataclasses
import math

import pandas as pd
import pytest
import torch
from experiment_scripts import load_script
from tiny_table import learn, spec_of

import masksearch as ms
from masksearch_bench import Table, judge, load

BUDGETS = (0.09, 0.17, 0.26, 0.34)  # 1 to 4 of 12 heads
HOW = {"cost": "head/8192"}
selectors = load_script("18_selectors/selectors_of_heads.py")


@pytest.fixture(scope="module")
def table() -> Table:
    return load("recall-1")


@pytest.fixture(scope="module")
def loss(table):
    """Calibration loss of a set of heads in full."""
    cells = table.cells["calibration/nll"].to_dict()
    return lambda heads: cells["".join("01"[unit in heads] for unit in range(12))]


def no_model():
    raise AssertionError("this selector looks into no model")


def chosen(table: Table, selector) -> list[set[int]]:
    """The heads in full at each budget."""
    rows = judge(selector, [table], BUDGETS, **HOW)
    return [{u for u, level in enumerate(choice) if int(level)} for choice in rows.choice]


def ranked(worth: dict[int, float]) -> list[set[int]]:
    """The best one to four by their worth."""
    order = sorted(worth, key=lambda unit: (-worth[unit], unit))
    return [set(order[:count]) for count in range(1, 5)]


def test_selectors_by_place(table):
    assert chosen(table, selectors.first_units) == [set(range(n)) for n in range(1, 5)]
    assert chosen(table, selectors.last_units) == [set(range(12 - n, 12)) for n in range(1, 5)]
    assert chosen(table, selectors.middle_units) == [{5}, {5, 6}, {4, 5, 6}, {4, 5, 6, 7}]
    for count, places in enumerate(chosen(table, selectors.periodic), 1):
        assert len(places) == count
        gaps = [b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
        assert all(12 // count - 1 <= gap <= math.ceil(12 / count) + 1 for gap in gaps)


def test_scores_of_single_heads(table, loss):
    whole = set(range(12))
    alone = {unit: loss(set()) - loss({unit}) for unit in whole}
    assert chosen(table, selectors.restore_one) == ranked(alone)
    missed = {unit: loss(whole - {unit}) - loss(whole) for unit in whole}
    assert chosen(table, selectors.leave_one_out) == ranked(missed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["greedy rounds", "allocate greedy"])
def test_greedy_rounds(table, loss, name):
    found, wanted = set(), []
    for _ in range(4):
        found |= {min(set(range(12)) - found, key=lambda unit: loss(found | {unit}))}
        wanted.append(set(found))
    several = {"greedy rounds": (selectors.forward, False)}
    several |= selectors.every(table, no_model, BUDGETS, **HOW)
    best = chosen(table, several[name][0])
    for one, other in zip(best, wanted, strict=True):
        assert loss(one) <= loss(other)
    assert best == wanted or name == "allocate greedy"  # which keeps the best that it has judged


def test_greedy_removal(table, loss):
    found, path = set(range(12)), {}
    while found:
        found = min((found - {unit} for unit in found), key=loss)
        path[len(found)] = found
    assert chosen(table, selectors.backward) == [path[n] for n in range(1, 5)]


def test_exact_is_the_optimum(table):
    rows = judge(selectors.exact, [table], BUDGETS, **HOW)
    assert rows.choice.tolist() == [table.optimum(b, **HOW).choice for b in BUDGETS]
    assert rows.evaluations.eq(4096).all()


@pytest.mark.slow
def test_selectors_of_some_units_look_into_the_model(tmp_path):
    """Scores of heads that are not free are left out."""
    folder = learn("llama", tmp_path)
    spec = spec_of(folder, free=("l0.h1", "l1.h0"), rest=0)
    rows = [{"choice": f"{n:02b}", "calibration/nll": n, "test/nll": n} for n in range(4)]
    table = load_part(spec, rows)
    shares = table.shares()
    for name, (selector, _) in selectors.of_some_layers(table, lambda: spec.judge).items():
        for row in judge(selector, [table], (0.6, 1.0)).itertuples():
            assert shares[row.choice] <= row.budget, name


def load_part(spec, rows) -> Table:
    """A table of two free heads of four."""
    sheet = load("recall-1").sheet
    told = {"name": "part-0", "shape": spec.units.shape.to_dict(), "free": spec.names, "rest": 0}
    told |= {"levels": tuple(map(str, spec.units.levels)), "planned": 4, "kv_heads": 2}
    cells = pd.DataFrame(rows)
    cells["pairs"] = [
        spec.units.density(spec.allocation(tuple(map(int, c)))) for c in cells.choice
    ]
    return Table(dataclasses.replace(sheet, **told), cells)


@pytest.mark.slow
def test_fishers_gates_begin_as_the_model_and_their_derivatives_are_right(tmp_path):
    spec = spec_of(learn("llama", tmp_path))
    source = spec.judge.differentiable(0)
    [batch, *_] = source.held_out
    model, bank = source.model.eval(), selectors.FarGates(spec.units)
    row = {name: part[:1] for name, part in batch.items()}
    before = model(**row).loss.item()
    ms.attach(model, bank, inputs=row)
    try:
        loss = model(**row).loss
        assert loss.item() == pytest.approx(before, abs=1e-5)
        [derivative] = torch.autograd.grad(loss, bank.gates)
        step = 0.02
        for layer, head in ((0, 0), (1, 1)):
            ends = []
            for moved in (step, -step):
                with torch.no_grad():
                    bank.gates[layer, head] += moved
                    ends.append(model(**row).loss.item())
                    bank.gates[layer, head] -= moved
            slope = (ends[0] - ends[1]) / (2 * step)
            assert derivative[layer, head].item() == pytest.approx(slope, abs=2e-3)
    finally:
        ms.detach(model)
