"""Allocation of layers, KV heads and heads of decoders."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

import masksearch as ms
from masksearch import Units, masks
from masksearch.contracts import Objective, Record, Shape
from masksearch.errors import SearchError
from masksearch.masks.lower import lower
from masksearch.strategies.build import build_strategy
from masksearch_bench.tree import tree_values
from masksearch_decoders import CausalEvaluator, kv_bytes
from masksearch_decoders.allocation import (
    AllocateStrategy,
    Costs,
    totals_by_count,
)
from masksearch_decoders.tasks.recall import Recall

pytestmark = pytest.mark.filterwarnings("ignore:the strategy has no more masks")


def build_allocate(options, evaluator, run):
    """The strategy of a search with these options."""
    return build_strategy("allocate", None, evaluator, seed=0, run=run, options=options)


LOCAL = masks.window(2) | masks.columns(1)
LENGTH, LAYERS, HEADS, KV_HEADS = 12, 3, 4, 2
SHAPE = Shape(LENGTH, LAYERS, HEADS, causal=True)


def evaluator(place: Path, **settings) -> CausalEvaluator:
    small = {"length": LENGTH, "cache": place / "cache", "device": "cpu", "batch": 4}
    return CausalEvaluator(place / "text", weights=place / "model", **(small | settings))


class Accounts:
    """Stands for an evaluator that counts bytes alone."""

    shape, kv_head_count = SHAPE, KV_HEADS
    measure_names = ("kv_bytes", "kv_bytes_per_head")
    objectives = (Objective("loss", "min", 99.0), Objective("kv_bytes", "min", 1.0))
    config = LlamaConfig(
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS
    )

    def measures_of(self, mask):
        by_layer, by_head = (
            kv_bytes(mask, self.config, LENGTH, cache_layout=one).share for one in ("mask", "head")
        )
        return {"kv_bytes": by_layer, "kv_bytes_per_head": by_head}


# -- units -------------------------------------------------------------------------------------
def test_a_kv_head_is_all_heads_that_share_its_keys():
    units = Units(SHAPE, (LOCAL, masks.full()), "kv_head", KV_HEADS)
    assert units.names == ("l0.kv0", "l0.kv1", "l1.kv0", "l1.kv1", "l2.kv0", "l2.kv1")
    table = lower(units.mask((0, 1, 0, 0, 1, 1)), SHAPE)
    full = (table == torch.ones(LENGTH, LENGTH).tril().bool()).all(-1).all(-1)
    assert full.int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]
    heads = Units(SHAPE, (LOCAL, masks.full()))
    assert units.shares[:, 0].tolist() == pytest.approx((2 * heads.shares[:, 0]).tolist())
    worth = torch.rand(LAYERS, HEADS)
    pooled = worth.view(LAYERS, KV_HEADS, 2).sum(-1)
    assert units.pool(worth).tolist() == pytest.approx(pooled.flatten().tolist())
    with pytest.raises(ValueError, match=r"number of KV heads is not known: give kv_heads"):
        Units(SHAPE, (LOCAL, masks.full()), "kv_head")
    with pytest.raises(ValueError, match=r"divides the heads of a layer \(4\), got 3"):
        Units(SHAPE, (LOCAL, masks.full()), "kv_head", 3)


# -- budgets -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("unit", "cost", "levels"),
    [
        ("layer", "kv_bytes", (LOCAL, masks.full())),
        ("layer", "kv_bytes", (masks.window(1), masks.window(4), masks.full())),
        ("kv_head", "kv_bytes_per_head", (LOCAL, masks.full())),
    ],
)
def test_an_exact_mask_is_the_best_of_all_within_its_bytes(unit, cost, levels):
    options = {"unit": unit, "levels": levels, "cost": cost, "budgets": [0.5]}
    strategy = build_allocate(options, Accounts(), Path())
    units = strategy.units
    draw = torch.Generator().manual_seed(1)
    worth = torch.randn(len(units.names), len(levels), generator=draw).tolist()
    every = list(itertools.product(range(len(levels)), repeat=len(units.names)))
    shares = {each: Accounts().measures_of(units.mask(each))[cost] for each in every}
    for budget in (0.45, 0.5, 0.7, 1.0):
        [found] = strategy.costs.solve(worth, budget)

        def value(levels):
            return sum(worth[unit][level] for unit, level in enumerate(levels))

        best = max(value(each) for each in every if shares[each] <= budget + 1e-9)
        assert shares[found] <= budget + 1e-9
        assert value(found) == pytest.approx(best)


def test_bytes_that_do_not_add_up_are_refused():
    for unit in ("head", "kv_head"):
        options = {"unit": unit, "levels": LOCAL, "cost": "kv_bytes", "budgets": [0.5]}
        with pytest.raises(SearchError, match=r"kv_bytes does not add up .*take unit='layer'"):
            build_allocate(options, Accounts(), Path())


class Engine(Accounts):
    """A decoder of 12 layers whose cache is vLLM's."""

    shape = ms.Shape(LENGTH, 12, HEADS, causal=True)
    measure_names = ("kv_bytes",)

    def measures_of(self, mask):
        config = copy.copy(self.config)
        config.num_hidden_layers = 12
        how = {"cache_layout": "vllm", "in_flight": 16}
        return {"kv_bytes": kv_bytes(mask, config, 4096, **how).share}


def test_layers_that_an_engine_groups_are_counted_by_their_number():
    units = Units(Engine.shape, (LOCAL, masks.full()), "layer")
    [totals] = totals_by_count(units, Engine(), "kv_bytes")
    size = [12, 1, 2, 3, 4, 7, 6, 7, 4, 3, 2, 1, 12]  # of a group; 7 is 5 or 7, padded
    groups = [(1, 0), (11, 1), (5, 1), (3, 1), (2, 1), (1, 1), (1, 1)]  # of windows, of full ones
    groups += [(full, window) for window, full in groups[5::-1]]
    blocks = [sliding * 3 + full * 256 for sliding, full in groups]
    assert totals == [n * each / (12 * 256) for n, each in zip(size, blocks, strict=True)]
    assert totals[5] > totals[6]  # five layers cost more than six, which divide
    draw = torch.Generator().manual_seed(1)
    worth = torch.randn(12, 2, generator=draw).tolist()
    for budget in (0.02, 0.2, 0.3, 0.52, 0.6, 1.0):
        [found] = Costs(units.shares.tolist(), [totals]).solve(worth, budget)
        value = {
            each: sum(worth[unit][level] for unit, level in enumerate(each))
            for each in itertools.product((0, 1), repeat=12)
            if totals[sum(each)] <= budget
        }
        assert value[found] == pytest.approx(max(value.values()))
    levels = (LOCAL, masks.window(60), masks.full())
    three = Units(Engine.shape, levels, "layer")
    both = totals_by_count(three, Engine(), "kv_bytes")
    assert both[0] == totals
    assert both[1][-1] == 1
    assert all(narrow < wide for narrow, wide in zip(both[0][:-1], both[1][:-1], strict=True))
    options = {"unit": "layer", "levels": levels, "budgets": [0.5]}
    with pytest.raises(SearchError, match=r"add up .*two masks a layer and strategy='allocate'"):
        build_allocate(options, Engine(), Path())
    for method in ("restore", "greedy", {name: (0.0, 1.0, 2.0) for name in three.names}):
        with pytest.raises(ValueError, match=r"one window .* several only method='exchange' ch"):
            build_allocate(options | {"one_window": True, "method": method}, Engine(), Path())


@pytest.mark.parametrize("method", ["restore", "greedy"])
def test_a_budget_of_an_engine_is_met_by_numbers_that_divide(method, tmp_path):
    options = {"unit": "layer", "levels": LOCAL, "method": method}
    # five layers cost .59, six .51
    strategy = build_allocate(options | {"budgets": [0.45, 0.52]}, Engine(), tmp_path)
    units = strategy.units
    judged = {}
    while (asked := strategy.ask()) != "done":
        raised = units.allocation(asked.params)
        judged[raised] = sum(level * (unit + 1) for unit, level in enumerate(raised))
        values, number = {"loss": 1 - judged[raised] / 100}, len(judged)
        strategy.tell(Record(number, "done", asked.job, params=asked.params, values=values))
    for budget, full in ((0.45, 4), (0.52, 6)):
        inside = [each for each in judged if strategy.costs.of(each) <= budget]
        assert max(inside, key=judged.get) == (0,) * (12 - full) + (1,) * full
    assert len(judged) <= strategy.most_trials
    with pytest.raises(ValueError, match=r"at least what the cheapest .* 0\.01172; got 0\.01"):
        build_allocate(options | {"budgets": [0.01]}, Engine(), tmp_path)


# -- levels ------------------------------------------------------------------------------------
WINDOWS = (masks.window(1), masks.window(3), masks.window(6), masks.full())
SLOPES = (0.0, 0.3, 0.7, 1.0)  # of what a unit at the top is worth, by level
BUDGETS = (0.3, 0.45, 0.7)


def judge_all(strategy, loss) -> dict[tuple[int, ...], float]:
    """Every allocation that a strategy asks for, with its loss."""
    judged = {}
    while (asked := strategy.ask()) != "done":
        each = strategy.units.allocation(asked.params)
        judged[each] = loss(each)
        values = {"loss": judged[each]}
        strategy.tell(Record(asked.number, "done", asked.job, params=asked.params, values=values))
    assert len(judged) <= strategy.most_trials
    return judged


def exchanged(loss, levels, layers, *, one_window=False, budgets=BUDGETS):
    """The strategy and what it judges on a decoder of some layers."""
    judge = Accounts()
    judge.config = LlamaConfig(num_hidden_layers=layers, num_attention_heads=HEADS)
    judge.shape, judge.kv_head_count = Shape(LENGTH, layers, HEADS, causal=True), HEADS
    options = {"unit": "layer", "levels": levels, "method": "exchange", "budgets": budgets}
    strategy = build_allocate(options | {"one_window": one_window}, judge, Path())
    return strategy, judge_all(strategy, loss), judge


def draw_losses(layers, levels, seed, *, together):
    """The loss of each allocation: layers add, and pairs of them are worth more `together`."""
    draw = torch.Generator().manual_seed(seed)
    worth = torch.rand(layers, generator=draw).tolist()
    pairs = (together * torch.randn(layers, layers, generator=draw)).tolist()

    def loss(allocation):
        kept = [SLOPES[-1] if at == levels - 1 else SLOPES[at] for at in allocation]
        alone = sum(each * share for each, share in zip(worth, kept, strict=True))
        both = sum(pairs[a][b] * kept[a] * kept[b] for b in range(layers) for a in range(b))
        return 20 - alone - both

    return loss


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0, 1), pytest.param((2, 3), marks=pytest.mark.nightly)])
@pytest.mark.parametrize("one_window", [False, True])
@pytest.mark.parametrize("levels", [3, 4])
def test_exchange_is_within_bytes_and_never_worse_than_one_window(levels, one_window, seeds):
    """Against every allocation of five layers."""
    kinds = [*WINDOWS[: levels - 1], masks.full()]
    gained = most = 0.0
    for seed in seeds:
        loss = draw_losses(5, levels, seed, together=0.3)
        strategy, judged, judge = exchanged(loss, kinds, 5, one_window=one_window)
        every = list(itertools.product(range(levels), repeat=5))
        if one_window:
            every = [each for each in every if len({*each} - {levels - 1}) < 2]
            assert {*judged} <= {*every}
        shares = {e: judge.measures_of(strategy.units.mask(e))["kv_bytes"] for e in every}
        assert all(strategy.costs.of(each) == pytest.approx(shares[each]) for each in every)
        for budget in BUDGETS:
            inside = [each for each in every if shares[each] <= budget + 1e-9]
            found = min(loss(each) for each in judged if each in inside)
            alike = min(loss(each) for each in inside if len({*each}) == 1)
            optimum = min(map(loss, inside))
            assert optimum <= found <= alike
            gained += alike - found
            most += alike - optimum
    assert gained >= 0.9 * most > 0


@pytest.mark.slow
def test_exchange_is_the_exact_solution_where_worths_add_up():
    loss = draw_losses(6, 4, 7, together=0.0)
    strategy, judged, _ = exchanged(loss, WINDOWS, 6)
    alone = [[tuple(at * (u == unit) for u in range(6)) for at in range(4)] for unit in range(6)]
    worth = [[-loss(each) for each in unit] for unit in alone]
    for budget in BUDGETS:
        exact = loss(*strategy.costs.solve(worth, budget))
        assert min(judged[e] for e in judged if strategy.costs.of(e) <= budget + 1e-9) == (
            pytest.approx(exact)
        )


def test_exchange_stays_where_nothing_is_better():
    """Each layer loses more below the window of all than any gains above it."""

    def loss(allocation):
        return sum(0.0 if at >= 1 else 5.0 for at in allocation) - 0.01 * sum(allocation)

    strategy, judged, _ = exchanged(loss, WINDOWS, 6, budgets=[3 / 12])
    inside = {each: judged[each] for each in judged if strategy.costs.of(each) <= 3 / 12 + 1e-9}
    assert min(inside, key=inside.get) == (1,) * 6


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"budgets": ()}, r"'exchange' moves what a budget pays for: give budgets"),
        ({"tries": 2}, r"a round of method='greedy' judges"),
        ({"budgets": [0.05]}, r"at least what the cheapest masks of .* 0\.08333; got 0\.05"),
    ],
)
def test_exchange_refuses(options, problem):
    usual = {"unit": "layer", "levels": WINDOWS, "method": "exchange", "budgets": [0.5]}
    with pytest.raises(ValueError, match=problem):
        build_allocate(usual | options, Accounts(), Path())


# -- searches ----------------------------------------------------------------------------------
def search(place, run, judge=None, **options):
    return ms.search(
        None,
        judge or evaluator(place, cost="kv_bytes"),
        run=run,
        trials=99,
        strategy="allocate",
        strategy_options={"levels": str(LOCAL), "unit": "layer", **options},
        progress=None,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "judged"), [("restore", 2 + 3 + 1), ("ablate", 2 + 3 + 2)])
def test_a_search_judges_the_mask_of_each_budget(place, tmp_path, method, judged):
    budgets = [0.5, 0.8]  # local layers hold 3 or 4 of 12 keys: none or one full; two
    records = search(place, tmp_path, method=method, budgets=budgets).records()
    shares = [record.measures["kv_bytes"] for record in records if record.mask is not None]
    assert sum(share <= 0.8 for share in shares) >= 2
    assert {record.status for record in records} == {"done"}
    assert all(0 < r.measures["kv_bytes_per_head"] <= r.measures["kv_bytes"] for r in records[1:3])
    assert len(records) <= judged  # a mask that is known already is not asked for again


@pytest.mark.nightly
def test_kv_heads_within_their_bytes(place, tmp_path):
    judge = evaluator(place, cost="kv_bytes_per_head")
    options = {"unit": "kv_head", "budgets": [0.5]}
    records = search(place, tmp_path / "exact", judge, **options).records()
    assert records[-1].measures["kv_bytes_per_head"] <= 0.5
    assert set(records[1].params) == {f"l{a}.kv{b}" for a in range(3) for b in range(2)}
    greedy = search(place, tmp_path / "greedy", judge, **options, method="greedy", tries=1)
    share = [r.measures["kv_bytes_per_head"] for r in greedy.records() if len(r.params) < 6]
    assert len(share) >= 2
    assert max(share[:1] + share[7:]) <= 0.5  # but for units that are judged alone
    with pytest.raises(
        SearchError, match=r"kv_bytes does not add up over units of the kind 'head"
    ):
        search(place, tmp_path / "x", unit="head", budgets=[0.5])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(draws of|without an effect)")
@pytest.mark.parametrize("strategy", ["random", "tpe"])
def test_several_windows_are_a_space_for_other_strategies(place, tmp_path, strategy):
    judge = evaluator(place, cost="kv_bytes", adapt="none")
    units = Units(judge.shape, WINDOWS, "layer")
    how = {"trials": 3, "strategy": strategy, "budget": 0.75, "progress": None, "baselines": {}}
    records = ms.search(units, judge, run=tmp_path, **how).records()
    assert len([record for record in records if record.status == "done"]) == 3
    assert all(record.measures["kv_bytes"] <= 0.75 + 1e-9 for record in records)
    assert {level for record in records for level in map(str, record.mask.of)} - {"full()"}


RECALL = Path(__file__).parents[2] / "masksearch-bench/masksearch_bench/checkpoints/recall-1"


@pytest.mark.nightly
def test_windows_of_a_decoder_that_looks_up_what_it_was_told():
    """Pairs of heads of four levels, against all 4,096 choices on 8 rows."""
    judge = CausalEvaluator(Recall(), weights=RECALL, held_out_sequences=8, device="cpu")
    levels = (*map(masks.window, (7, 15, 31)), masks.full())
    units = Units(judge.shape, levels, "kv_head", 2)
    units = dataclasses.replace(units, costs=[[w / 56 / 6] * 6 for w in (8, 16, 32, 56)])
    every = list(itertools.product(range(4), repeat=6))
    losses = {each: values["nll"] for each, values in tree_values(judge, units, every)}
    for budget in (0.3, 0.5):
        strategy = AllocateStrategy(
            units, Objective("loss", "min", 9.0), method="exchange", budgets=[budget]
        )
        judged = judge_all(strategy, losses.__getitem__)
        inside = [each for each in every if strategy.costs.of(each) <= budget + 1e-9]
        found = min(losses[each] for each in judged if each in inside)
        assert found <= min(losses[each] for each in inside) + 0.01
        assert found < min(losses[each] for each in inside if len({*each}) == 1) - 1


@pytest.mark.nightly
def test_gates_choose_among_several_windows(tmp_path):
    how = {"weights": RECALL, "held_out_sequences": 32, "device": "cpu", "cost": "kv_bytes"}
    windows = [*map(masks.window, (7, 14, 28))]
    options = {"unit": "layer", "levels": [*windows, masks.full()], "method": "gates"}
    study = ms.search(
        None,
        CausalEvaluator(Recall(), **how),
        run=tmp_path,
        trials=4,
        strategy="allocate",
        strategy_options={**options, "config": {"steps": 60, "gate_lr": 0.1}},
        budget=[0.5],
        baselines={"uniform": windows[-1]},
        progress=None,
    )
    [uniform] = [record for record in study.records() if record.role == "baseline"]
    assert uniform.measures["kv_bytes"] == 0.5
    plan = study.records()[-1]  # after the gates and both ends
    assert plan.measures["kv_bytes"] <= 0.5
    assert plan.values["nll"] < uniform.values["nll"] - 0.5
