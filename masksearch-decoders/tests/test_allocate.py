"""Allocation on toy landscapes whose best allocation is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import masksearch as ms
from masksearch import Local, Units, masks
from masksearch.contracts import Evaluate, Evaluator, Objective, Proposal, Record, Report, Shape
from masksearch.errors import (
    EmptyRowError,
    HeadCountError,
    MaskSearchError,
    ResumeError,
    SearchError,
    UnknownNameError,
)
from masksearch.gates.gates import Gates
from masksearch.gates.result import DamResult
from masksearch.masks.lower import lower
from masksearch.masks.measure import effective_density, pair_weights
from masksearch.strategies.build import build_strategy
from masksearch.tasks.planted.process import PlantedProcess
from masksearch_decoders.allocation import Costs, ranked_path

pytestmark = pytest.mark.filterwarnings("ignore:the strategy has no more masks")

SHAPE = Shape(length=8, layers=2, heads=3)
STAR, FULL = masks.star(), masks.full()
OBJECTIVE = Objective("score", "max", 0.0)
WORTH = (3.0, 0.0, 1.0, 7.0, 2.0, 5.0)  # of each head, full


@dataclass(frozen=True)
class Landscape(Evaluator):
    """Score = what the full heads are worth, and what pairs of them are worth together."""

    worth: tuple[float, ...] = WORTH
    together: Mapping[tuple[int, int], float] = field(default_factory=dict)

    shape = SHAPE
    objectives = (OBJECTIVE, Objective("sparsity", "max", 0.0))
    protocol = "landscape"

    def score(self, full: set[int]) -> float:
        pairs = sum(v for pair, v in self.together.items() if set(pair) <= full)
        return sum(self.worth[unit] for unit in full) + pairs

    def __call__(self, mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        whole = mask.dense(8, 2, 3).flatten(0, 1).all(-1).all(-1)
        yield Report(1, {"score": self.score({u for u in range(6) if whole[u]})})


REDUNDANT = Landscape((10.0, 9.0, 9.0, 2.0, 1.0, 1.0), {(0, 1): -9, (0, 2): -9, (1, 2): -9})
"""Heads 0, 1 and 2 do the same: each alone is worth most, two together no more than one."""


def best_scores(landscape: Landscape) -> list[float]:
    """The best score of every number of full heads, by trying all 64."""
    sizes = [itertools.combinations(range(6), count) for count in range(7)]
    return [max(landscape.score(set(full)) for full in sets) for sets in sizes]


def allocation(landscape: Landscape, **options):
    """The strategy over stars and full heads."""
    options = {"levels": "star()", **options}
    return build_strategy("allocate", None, landscape, seed=0, run=Path(), options=options)


def follow(strategy, score) -> list[Record]:
    """The records of a whole allocation, without a study; a mask whose score is NaN has failed."""
    records = []
    while isinstance(proposal := strategy.ask(), Proposal):
        assert isinstance(proposal.job, Evaluate)
        values = {"score": score(proposal.params)}
        status = "failed" if math.isnan(values["score"]) else "done"
        how = {"params": proposal.params, "values": values}
        records.append(Record(proposal.number, status, proposal.job, **how))
        strategy.tell(records[-1])
    assert len(records) <= strategy.most_trials
    return records


def full_units(params: Mapping[str, int]) -> set[int]:
    return {Units(SHAPE, (STAR, FULL)).names.index(name) for name in params}


def judge(landscape: Landscape, **options) -> list[Record]:
    """The records of stars and full heads."""
    strategy = allocation(landscape, **options)
    return follow(strategy, lambda params: landscape.score(full_units(params)))


def found_scores(records: Sequence[Record]) -> list[float | None]:
    """The best score of every number of full heads among the trials."""
    found: list[float | None] = [None] * 7
    for record in records:
        count, score = len(record.params), record.values["score"]
        before = found[count]
        found[count] = score if before is None else max(score, before)
    return found


def search(run, landscape=None, *, space=None, levels="star()", how=None, **options) -> ms.Study:
    """A study of stars and full heads; `how` goes to the search, `options` to the strategy."""
    given = {"trials": 99, "strategy_options": {"levels": levels, **options}} | (how or {})
    judge = landscape or Landscape()
    return ms.search(space, judge, run=run, strategy="allocate", progress=None, **given)


# -- units -------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 2), min_size=6, max_size=6))
@settings(max_examples=40)
def test_units_mask_has_the_level_of_each_unit(levels):
    each = (STAR, masks.longformer(2, 1), FULL)
    units = Units(SHAPE, each)
    table = units.mask(levels).dense(8, 2, 3).flatten(0, 1)
    assert all(table[u].equal(each[at].dense(8)[0, 0]) for u, at in enumerate(levels))
    assert units.allocation(units.params(levels)) == tuple(levels)


@pytest.mark.slow
@given(st.lists(st.integers(0, 1), min_size=6, max_size=6))
@settings(max_examples=40)
def test_units_take_masks_that_tell_heads_and_layers_apart(levels):
    local = masks.per_layer(
        [masks.per_head([STAR, masks.window(2), masks.window(0)]), masks.stride(3)]
    )
    units = Units(SHAPE, (local, FULL))
    table, part = units.mask(levels).dense(8, 2, 3), local.dense(8, 2, 3)
    for unit, level in enumerate(levels):
        plane = divmod(unit, 3)
        assert table[plane].all() if level else table[plane].equal(part[plane])
    table = Units(SHAPE, (local, FULL), "layer").mask(levels[:2]).dense(8, 2, 3)
    for layer, level in enumerate(levels[:2]):
        assert table[layer].all() if level else table[layer].equal(part[layer])


@pytest.mark.parametrize("read", [None, 1])
def test_the_own_and_the_first_key_are_a_local_mask_of_two_keys_a_query(read):
    shape = Shape(length=16, layers=2, heads=2, lengths={9: 1, 16: 1}, read=read)
    units = Units(shape, (masks.parse("window(0) | columns(1)"), FULL))
    table = lower(units.mask([0] * len(units.names)), shape)  # no row is empty
    assert table.sum(-1).unique().tolist() == [1, 2]
    assert len(units.names) == 4
    if read is None:
        assert units.least == pytest.approx((2 * 9 - 1 + 2 * 16 - 1) / (81 + 256))


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (((FULL, STAR),), ValueError, r"in l0\.h0, star\(\) keeps .* full\(\) 1; order them"),
        (((FULL,),), ValueError, r"two masks or more.*got 1"),
        (((STAR, FULL), "heads"), UnknownNameError, r"'heads'.*did you mean.*head"),
        (((masks.per_head([STAR] * 2), FULL),), HeadCountError, "2 heads"),
        (((masks.without_diagonal(masks.window(0)), FULL),), EmptyRowError, "keeps no key"),
    ],
)
def test_units_refuse_what_cannot_be_allocated(given, error, said):
    with pytest.raises(error, match=said):
        Units(SHAPE, *given)


@pytest.mark.slow
def test_random_draws_of_units_reach_every_size_alike():
    units = Units(SHAPE, (STAR, FULL))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sizes = []
    for _ in range(700):
        kept = units(study.ask()).dense(8, 2, 3).flatten(0, 1).all(-1).all(-1)
        sizes.append(int(kept.sum()))
    counts = [sizes.count(size) for size in range(7)]  # 100 each, sd 9.3
    assert min(counts) > 60
    assert max(counts) < 140


# -- masks that do not contain one another -----------------------------------------------------
DRAWN = tuple(
    masks.window(0) | each
    for each in (masks.columns(1), masks.shifts([-1, -2]), masks.shifts([1, 2]), masks.stride(2))
)
TASTES = (1, 2, 0, 3, 0, 2)  # the level that each head gains from
GAIN = (4.0, 3.0, 0.0, 9.0, 0.0, 5.0)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("greedy", {}),
        ("greedy", {"tries": 2}),
        ("restore", {}),
        ("ablate", {}),
        ("restore", {"budgets": [0.45]}),
        ("ablate", {"budgets": [0.45]}),
        ("greedy", {"budgets": [0.45]}),
    ],
)
def test_each_head_gets_the_mask_that_it_gains_from_in_any_order(method, options):
    units = Units(SHAPE, DRAWN)
    strategy = allocation(Landscape(), levels=list(map(str, DRAWN)), method=method, **options)

    def gained(params: Mapping[str, int]) -> float:
        own = zip(units.allocation(params), TASTES, GAIN, strict=True)
        return sum(gain for level, taste, gain in own if level == taste)

    judged = [units.allocation(record.params) for record in follow(strategy, gained)]
    assert TASTES in judged
    assert len(judged) == len(set(judged))


@pytest.mark.parametrize(
    "takes_rising",
    [
        lambda: Units(SHAPE, DRAWN)(optuna.trial.FixedTrial({"raised": 0})),
        lambda: Gates("switch", length=8, heads=3, layers=2, levels=DRAWN, unit="head"),
    ],
)
def test_gates_and_spaces_refuse_masks_that_do_not_rise(takes_rising):
    with pytest.raises(ValueError, match=r"each of which keeps more than the one before: in l0"):
        takes_rising()


# -- the strategy ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "trials"),
    [
        ({}, 2 + 6 + 4),  # the ends, the scores, and what is new of the path
        ({"method": "ablate"}, 2 + 6 + 4),
        ({"method": "greedy"}, 2 + 6 + 5 + 4 + 3 + 2),
        ({"method": "greedy", "tries": 2}, 2 + 6 + 4 * 2),
    ],
)
def test_finds_the_best_of_every_size_where_worths_add_up(options, trials):
    records = judge(Landscape(), **options)
    assert found_scores(records) == best_scores(Landscape())
    assert len(records) == trials


def test_greedy_is_better_where_scores_of_units_do_not_add_up():
    """The three heads that are best alone are redundant: ranking takes all of them first."""
    best = best_scores(REDUNDANT)
    ranked = found_scores(judge(REDUNDANT))
    greedy = found_scores(judge(REDUNDANT, method="greedy"))
    assert greedy == best
    assert ranked[3] is not None
    assert ranked[3] < best[3] - 5


def test_several_masks_a_unit_go_up_by_gain_per_pair():
    costs = [[0.1, 0.1], [0.3, 0.3], [1.0, 1.0]]
    path = ranked_path([[0.0, 2.0, 2.1], [0.0, 0.5, 9.0]], costs)
    # unit 1 gains most per pair at once to the top: its middle is under its hull
    assert path == [(0, 0), (1, 0), (1, 2), (2, 2)]


@given(st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=1, max_size=5))
def test_ranked_path_only_rises_from_end_to_end(worth):
    costs = [[share] * len(worth) for share in (0.1, 0.35, 1.0)]
    path = ranked_path(worth, costs)
    assert (path[0], path[-1]) == ((0,) * len(worth), (2,) * len(worth))
    for before, after in itertools.pairwise(path):
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert all(a <= b for a, b in zip(before, after, strict=True))


@pytest.mark.slow
def test_few_trials_are_spread_over_the_sizes(tmp_path):
    study = search(tmp_path, how={"trials": 9})  # 2 ends, 6 scores, and the middle of the path
    assert len(study.records()[-1].params) == 3


@pytest.mark.nightly
def test_too_few_trials_to_choose_anything_are_said(tmp_path):
    with pytest.warns(UserWarning, match=r"judges about 8 masks before it chooses.*trials is 3"):
        search(tmp_path / "few", how={"trials": 3})
    two = {"method": "exchange", "budgets": [0.7, 0.8]}
    with pytest.warns(UserWarning, match=r"by their scores, and trials is 12; .*budgets, fewer"):
        search(tmp_path / "exchange", how={"trials": 12}, **two)


def test_given_scores_cost_no_trial():
    units = Units(SHAPE, (STAR, FULL))
    score = {name: [0.0, worth] for name, worth in zip(units.names, WORTH, strict=True)}
    records = judge(Landscape(), method=score)
    assert found_scores(records) == best_scores(Landscape())
    assert len(records) == 7


@pytest.mark.slow
def test_scores_from_a_table_and_from_gates(tmp_path):
    table = torch.tensor(WORTH).view(2, 3, 1, 1).expand(2, 3, 8, 8) / 10
    units = Units(SHAPE, (STAR, FULL))
    found = units.scores_of(table)
    added = 64 - int(STAR.dense(8).sum())
    assert [levels[1] for levels in found.values()] == pytest.approx(
        [w / 10 * added for w in WORTH]
    )
    path = DamResult(table, (), 0.5).save(tmp_path / "gates.safetensors")
    study = search(tmp_path / "run", method=str(path))
    assert found_scores(study.records()) == best_scores(Landscape())
    DamResult(1 - table, (), 0.5).save(path)
    with pytest.raises(ResumeError, match="strategy_source: was"):
        search(tmp_path / "run", method=str(path))
    with pytest.raises(ValueError, match=r"table of 2 x 3 x 8 x 8 values, got 1 x 1 x 8 x 8"):
        units.scores_of(table[:1, :1])


@pytest.mark.nightly
def test_constraint_or_budget_ends_the_rounds(tmp_path):
    three = 0.45 * STAR.sparsity(8)  # 3 of 6 full, not 4
    within = {"constraints": [f"sparsity >= {three}"]}
    by_constraint = search(tmp_path / "constraint", method="greedy", how=within)
    by_budget = search(tmp_path / "budget", method="greedy", budgets=[1 - three])
    for study in (by_constraint, by_budget):
        scored = [r for r in study.records() if r.scored]
        assert max(len(r.params) for r in scored if len(r.params) < 6) == 3
        assert max(r.values["score"] for r in scored if len(r.params) < 6) == 15.0


@pytest.mark.nightly
def test_goes_on_where_it_was_interrupted(tmp_path):
    whole = judge(Landscape(), method="greedy", tries=1)
    for trials in (9, 11, 99):
        study = search(tmp_path, method="greedy", tries=1, how={"trials": trials})
    assert [r.params for r in study.records()] == [r.params for r in whole]
    assert {record.origin for record in study.records()} == {"allocate"}


@pytest.mark.nightly
def test_slots_find_what_one_finds(tmp_path):
    one = search(tmp_path / "one", method="greedy").records()
    slots = {"executor": Local(slots=3)}
    three = search(tmp_path / "three", method="greedy", how=slots).records()
    assert {str(r.params) for r in one} == {str(r.params) for r in three}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"levels": None}, r"need a local mask.*give levels='star\(\)'"),
        ({"method": "greed"}, r"'greed'; did you mean 'greedy'.*greedy, exchange, gates"),
        ({"method": "greedy", "tries": 0}, r"1 or more; got 0"),
        ({"tries": 3}, r"method='greedy' judges.* got 3 for 'restore'"),
        ({"method": {"l0.h0": [0.0, 1.0]}}, r"got nothing for l0\.h1"),
        ({"method": {"l9.h0": [0.0, 1.0]}}, r"'l9\.h0'"),
        ({"level": "star()"}, r"'level'.*levels"),
        ({"method": "none.safetensors"}, r"no gates at none"),
        ({"gates": {"layers": 2}}, r"belong to method='gates'"),
        ({"method": "gates"}, r"Landscape has none: take 'restore', 'ablate' or 'greedy'"),
        ({"budgets": [1.5]}, r"shares in \(0, 1\]"),
        ({"budgets": [0.2]}, r"at least what the cheapest.*cost, 0.5312.*got 0.2"),
        ({"budgets": [0.5], "cost": "kv_bytes"}, r"'kv_bytes'.*density"),
    ],
)
def test_bad_options_are_refused(options, problem, tmp_path):
    with pytest.raises((SearchError, ValueError, FileNotFoundError), match=problem):
        search(tmp_path / "x", **options)


def test_a_space_is_refused(tmp_path):
    with pytest.raises(SearchError, match=r"takes no space"):
        search(tmp_path / "y", space=Units(SHAPE, (STAR, FULL)))


PLANTED = ms.PlantedEvaluator(
    PlantedProcess(length=12, offsets=(4,), vocabulary=4),
    size="2x16x2",
    steps=2,
    downstream_steps=1,
)


@pytest.mark.parametrize(
    ("unit", "gates", "config", "problem"),
    [
        ("head", {}, {"density": 0.01}, r"every unit at its lowest mask.*0\.01"),
        ("head", {"structure": "free"}, {"density": 0.01}, r"at least .*0\.01"),
        ("head", {"layers": 1}, {}, r"2 layers of 2 heads, got layers=1, heads=2; leave both out"),
        ("head", {"heads": 1}, {}, r"each head's own.* got layers=2, heads=1; leave both out"),
        ("layer", {"layers": 1}, {}, r"each layer's own.* got layers=1, heads=2; leave both out"),
        ("layer", {"layers": 3}, {}, r"3 layers, the model 2; give layers=2"),
        ("head", {"preset": "sparsebert"}, {}, r"share those of preset='sparsebert'; leave the p"),
    ],
)
def test_gates_that_cannot_be_scores_are_refused_before_any_training(
    unit, gates, config, problem, tmp_path
):
    options = {"levels": "window(1)", "unit": unit, "method": "gates"}
    with pytest.raises((MaskSearchError, ValueError), match=problem):
        search(tmp_path / "run", PLANTED, **options, gates=gates, config=config)
    assert not list(tmp_path.glob("run/trials/*"))


def test_gates_that_all_heads_share_score_layers():
    assert allocation(PLANTED, unit="layer", method="gates", gates={"heads": 1}).ask()


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:DAM", "ignore:nothing learned")
def test_gates_fill_a_budget_whatever_their_odds(tmp_path):
    """A strong push closes all of them: odds below one."""
    config = {"steps": 20, "dense_warmup": 0.1, "gate_lr": 0.5, "strength": 5.0}
    how = {"trials": 9, "budget": [0.8, 0.4], "baselines": {}}
    options = {"levels": "window(0)", "method": "gates", "config": config}
    study = search(tmp_path, PLANTED, how=how, **options)
    full = [len(record.params) for record in study.records()[3:]]
    assert sorted(full) == [1, 3]  # of four heads, a local one at 1/12


def test_failed_units_are_passed_over():
    """Head 3, the best, cannot be judged when it is full."""
    strategy = allocation(Landscape(), method="greedy")

    def score(params: Mapping[str, int]) -> float:
        full = full_units(params)
        return math.nan if 3 in full else Landscape().score(full)

    done = [r.params for r in follow(strategy, score) if r.status == "done"]
    assert {0, 1, 2, 4, 5} in map(full_units, done)


def test_units_cost_what_reaches_the_output():
    """Of the last layer one row of 8 is read; its mean with the other layer's 8 is 4.5."""
    shape = replace(SHAPE, read=1)
    units = Units(shape, (masks.window(0), FULL))
    assert len(units.names) == 6
    assert units.shares[1].tolist() == pytest.approx([8 / 27] * 3 + [1 / 27] * 3)
    for level, mask in enumerate(units.levels):
        assert units.shares[level].sum().item() == pytest.approx(effective_density(mask, shape))
    scores = units.scores_of(torch.ones(2, 3, 8, 8) * pair_weights(shape))
    assert [scores["l0.h0"], scores["l1.h2"]] == [[0.0, 56.0], [0.0, 7.0]]


@pytest.mark.parametrize("unit", ["head", "layer"])
def test_a_last_layer_in_which_nothing_is_chosen_has_no_units(unit):
    """In its one row a star keeps what full attention keeps."""
    shape = replace(SHAPE, read=1)
    units = Units(shape, (masks.window(1), STAR, FULL), unit)
    assert units.names == (("l0",) if unit == "layer" else ("l0.h0", "l0.h1", "l0.h2"))
    whole = units.mask([2] * len(units.names))
    assert effective_density(whole, shape) == 1
    assert whole.of_layer(1) == STAR
    assert set(units.scores_of(torch.ones(2, 3, 8, 8))) == set(units.names)
    assert units.mask([0] * len(units.names)).of_layer(1) == STAR
    with pytest.raises(ValueError, match="keeps less than any other"):
        Units(Shape(8, 1, 3, read=1), (STAR, FULL))


# -- budgets -----------------------------------------------------------------------------------
@pytest.mark.slow
@given(
    st.lists(st.lists(st.integers(-20, 20), min_size=3, max_size=3), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=5, max_size=5),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_solve_is_the_best_of_all_allocations(worth, rises, share):
    """Multiple choice, whole numbers: every allocation is looked at."""
    count = len(worth)
    costs = [[1 + sum(rises[unit][:level]) for unit in range(count)] for level in range(3)]
    least, most = sum(costs[0]), sum(costs[2])
    budget = least + share * (most - least)
    every = itertools.product(range(3), repeat=count)

    def cost(levels):
        return sum(costs[level][unit] for unit, level in enumerate(levels))

    def value(levels):
        return sum(worth[unit][level] for unit, level in enumerate(levels))

    [found] = Costs(costs).solve(worth, budget)
    assert cost(found) <= budget + 1e-6
    assert value(found) == max(value(each) for each in every if cost(each) <= budget + 1e-6)
    with pytest.raises(ValueError, match=r"at least what the cheapest masks of all units cost"):
        Costs(costs).solve(worth, 0.9 * least)


@pytest.mark.slow
def test_masks_within_budgets_are_trials(tmp_path):
    star = int(STAR.dense(8).sum())
    budgets = [(star * (6 - k) + 64 * k) / 384 for k in (0, 2, 3)]
    study = search(tmp_path, budgets=budgets)
    best = best_scores(Landscape())
    for count, budget in zip((0, 2, 3), budgets, strict=True):
        inside = [r for r in study.records() if r.measures["density"] <= budget + 1e-9]
        assert max(record.values["score"] for record in inside) == best[count]
    assert len(study.records()) == 2 + 6 + 2


@pytest.mark.parametrize(
    "options",
    [{}, {"budgets": [0.7]}, {"method": "greedy"}, {"method": "greedy", "budgets": [0.8]},
     {"method": "greedy", "tries": 2, "budgets": [0.8]}],
)  # fmt: skip
def test_the_number_of_masks_is_known_before_the_first(options):
    judged = len(judge(Landscape(), **options))
    # a mask that is known is not judged again
    assert judged <= allocation(Landscape(), **options).most_trials <= judged + 4
