"""Every strategy keeps the same promises."""

import json
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from toy import ToyEvaluator, built
from toy import space as conditional

from masksearch import masks, testing
from masksearch.contracts import Objective, OneShot, Proposal, Record, Shape, Strategy
from masksearch.errors import SearchError
from masksearch.gates.result import DamResult
from masksearch.gates.units import Units
from masksearch.strategies.dam import Cut, DamStrategy
from masksearch.strategies.opening import FixedQueue
from masksearch.study.records import Constraint
from masksearch.testing import STATUSES, StrategyContract, asked, essence, record_of, resumed, run
from masksearch_decoders.allocation import AllocateStrategy

OBJECTIVES = {
    1: (Objective("loss", "min", 10.0),),
    2: ToyEvaluator.objectives,
    3: (*ToyEvaluator.objectives, Objective("cost", "min", 20.0)),
}
NAMES = ("random", "tpe", "nsga2", "nsga3", "qmc")  # gp is slow: a few cases
SPARSE = Constraint("sparsity", ">=", 0.3)

pytestmark = pytest.mark.filterwarnings("ignore:strategy 'nsga")


def flat(trial):
    """Every mask has both parameters: 60 draws, fewer masks."""
    reach, count = trial.suggest_int("reach", 0, 11), trial.suggest_int("count", 1, 5)
    return masks.window(reach) | masks.global_tokens(count)


def unshaped(trial):
    """Four digits; what is feasible is a matter of their sum."""
    digits = [trial.suggest_int(f"digit{index}", 0, 9) for index in range(4)]
    return masks.window(sum(digits))


def build(
    name, *, seed=0, space=conditional, objectives=OBJECTIVES[2], constraints=()
) -> Strategy:
    return built(name, space, objectives, seed=seed, constraints=constraints)


def listed() -> FixedQueue:
    return FixedQueue({f"w{reach}": masks.window(reach) for reach in range(90)}, [0])


MAKERS: dict[str, Callable[[], Strategy]] = {
    **{name: lambda name=name: build(name) for name in NAMES},
    **{f"{name}-flat": lambda name=name: build(name, space=flat) for name in NAMES},
    **{
        f"{name}-constrained": lambda name=name: build(name, space=flat, constraints=(SPARSE,))
        for name in ("tpe", "nsga2")
    },
    "listed": listed,
}


def content(strategy: Strategy):
    """Everything that a sampler can read of the study in memory."""
    if not hasattr(strategy, "sampler"):
        return None
    trials = [
        (t.number, t.state, t.params, t.distributions, t.values, t.system_attrs)
        for t in strategy.study.get_trials()
    ]
    return trials, strategy.study.attributes()


def assert_law(make: Callable[[], Strategy], draws: int) -> None:
    """Told in any order, and with what a sampler can read."""
    testing.assert_law(make, draws, content, any_order=True)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
class TestStrategy(StrategyContract):
    @pytest.mark.slow
    def test_resumed_copy_asks_what_the_original_asks(self, make):
        assert_law(make, 50)


def test_allocate_with_gates_keeps_the_law(tmp_path):
    likely = torch.rand(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    DamResult(likely, (), 0.5).save(tmp_path / "gates.safetensors")
    units = Units(Shape(16, 2, 2), (masks.star(), masks.full()))

    def make():
        training = OneShot({"layers": 2}, {})
        return AllocateStrategy(units, OBJECTIVES[2][0], training=training, run=tmp_path)

    original = make()
    first = asked(original)
    assert first.job == OneShot({"layers": 2}, {})
    assert original.ask() == "wait"
    running = Record(0, "running", first.job, origin="allocate")
    assert resumed(make, [], [running]).ask() == "wait"
    trained = replace(running, status="done", artifacts={"gates": "gates.safetensors"})
    original.tell(trained)
    told = [trained]
    for count in range(5):  # both ends, and what lies between
        proposal = asked(original)
        assert proposal.number == count + 1
        told.append(record_of(proposal))
        original.tell(told[-1])
        again = resumed(make, told[::-1], [])
        twin = resumed(make, told[:-1], [told[-1]])
        if count < 4:
            assert essence(asked(again)) == essence(asked(resumed(make, told, [])))
            assert twin.ask() != "done"
    sizes = [len(record.params) for record in told[1:]]
    assert sizes == [0, 4, 2, 1, 3]
    most = max(units.scores_of(likely).items(), key=lambda item: item[1][1])[0]
    assert dict(told[4].params) == {most: 1}
    lost = make()
    lost.tell(replace(running, status="failed", error="ValueError: no gates"))
    with pytest.raises(SearchError, match="training of its gates failed: ValueError: no gates"):
        lost.ask()


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "ablate"}, {"method": "greedy"}, {"method": "greedy", "tries": 3},
     pytest.param({"method": "exchange", "budgets": [0.5, 0.8]}, marks=pytest.mark.nightly)],
    ids=str,
)  # fmt: skip
@pytest.mark.slow
def test_allocate_keeps_the_law(options, slots):
    """Slots that finish in any order; "wait" only while something is out; every kind of end."""
    levels = (masks.star(), masks.longformer(3, 1), masks.full())
    units = Units(Shape(16, 2, 2), levels)

    def make():
        return AllocateStrategy(units, OBJECTIVES[2][0], **options)

    original, order = make(), random.Random(slots)
    told: list[Record] = []
    running: list[Record] = []
    copies: list[Strategy] = []
    while (answer := original.ask()) != "done" or running:
        for copy in copies:
            twin = copy.ask()
            if isinstance(answer, Proposal) and isinstance(twin, Proposal):
                assert essence(twin) == essence(answer)
            else:
                assert twin == answer
        if isinstance(answer, Proposal):
            running.append(record_of(answer, STATUSES[answer.number % len(STATUSES)]))
        else:
            assert running, "a strategy waits only for what is out"
        if len(running) == slots or not isinstance(answer, Proposal):
            told.append(running.pop(order.randrange(len(running))))
            original.tell(told[-1])
        shuffled = random.Random(1).sample(told, len(told))
        copies = [resumed(make, told, running), resumed(make, shuffled, running[::-1])]
    assert sorted(record.number for record in told) == list(range(len(told)))
    assert len({json.dumps(dict(record.params)) for record in told}) == len(told) > 12


@pytest.mark.parametrize("count", OBJECTIVES)
@pytest.mark.parametrize("name", NAMES)
def test_takes_one_two_and_three_objectives(name, count):
    make = lambda: build(name, space=flat, objectives=OBJECTIVES[count])  # noqa: E731
    assert len({json.dumps(p.params) for p in run(make(), 26)}) > 5


@pytest.mark.nightly
@pytest.mark.parametrize("count", [1, 2, 3])
def test_gp_keeps_the_law(count):
    constraints = () if count == 3 else (SPARSE, Constraint("cost", "<=", 5))
    objectives = OBJECTIVES[count]
    assert_law(
        lambda: build("gp", space=flat, objectives=objectives, constraints=constraints),
        16 if count == 1 else 19,
    )


@pytest.mark.nightly
def test_proposals_equal_those_of_another_process():
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_strategies import NAMES, build, flat, run
print(json.dumps({{n: [p.params for p in run(build(n, space=flat), 32)] for n in NAMES}}))
"""
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    here = {name: [dict(p.params) for p in run(build(name, space=flat), 32)] for name in NAMES}
    assert json.loads(output) == here


@pytest.mark.parametrize("name", NAMES)
def test_other_seed_draws_others(name):
    draws = [[p.params for p in run(build(name, seed=seed, space=flat), 6)] for seed in range(5)]
    assert len({json.dumps(draw, sort_keys=True) for draw in draws}) == 5


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_learns_what_is_feasible_from_stopped_masks(name):
    """Feasible is one draw in 40; a mask that is not feasible is stopped without a score."""
    limit = Constraint("sparsity", ">=", 0.8)

    def share(name: str) -> float:
        feasible = []
        for seed in range(2):
            strategy = build(name, seed=seed, space=unshaped, constraints=(limit,))
            for _ in range(100):
                proposal = asked(strategy)
                sparsity = sum(proposal.params.values()) / 36
                feasible.append(limit.holds(sparsity))
                record = replace(record_of(proposal), measures={"sparsity": sparsity})
                if not feasible[-1]:
                    record = replace(record, status="stopped", values={}, step=0)
                strategy.tell(record)
        return sum(feasible) / len(feasible)

    assert share(name) > 3 * share("random")


@pytest.mark.nightly
def test_later_draws_are_better_than_random_ones():
    """Who uses what it is told comes nearer to the best of 10,000 masks."""

    def late_loss(name: str, seed: int) -> float:
        strategy = build(name, seed=seed, space=unshaped, objectives=OBJECTIVES[1])
        losses = []
        for _ in range(40):
            proposal = asked(strategy)
            digits = zip(proposal.params.values(), (3, 1, 4, 1), strict=True)
            losses.append(sum(abs(digit - best) for digit, best in digits) / 10)
            strategy.tell(replace(record_of(proposal), values={"loss": losses[-1]}))
        return sum(losses[20:])

    searched, drawn = (sum(late_loss(n, seed) for seed in range(3)) for n in ("tpe", "random"))
    assert searched < 0.9 * drawn


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
@pytest.mark.filterwarnings("always:strategy 'nsga")
def test_genetic_sampler_warns_once_on_a_conditional_space(name):
    with pytest.warns(UserWarning, match=rf"'{name}' on a conditional space.*use 'tpe'") as w:
        run(build(name), 20)
    assert len(w) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(build(name, space=flat), 20)


def test_sampler_object_is_used_as_it_is():
    sampler = optuna.samplers.RandomSampler(seed=5)
    strategy = built(sampler, conditional, OBJECTIVES[2])
    assert asked(strategy).origin == "RandomSampler"
    assert strategy.study.sampler is sampler


def test_exhausted_grid_is_done():
    grid = {"reach": [1, 2, 3], "count": [1, 2]}
    sampler = optuna.samplers.GridSampler(grid, seed=0)
    strategy = built(sampler, flat, OBJECTIVES[2])
    drawn = {json.dumps(p.params) for p in run(strategy, 6)}
    assert len(drawn) == 6
    assert strategy.ask() == "done"


def test_dam_keeps_the_law(tmp_path):
    likely = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    DamResult(likely, (), 0.5).save(tmp_path / "gates.safetensors")

    def make():
        return DamStrategy(
            tmp_path, gates={}, config={}, target=0.5, length=16, cut=Cut((0.5, 0.4, 0.3))
        )

    original = make()
    first = asked(original)
    assert isinstance(first.job, OneShot)
    assert original.ask() == "wait"
    gates = {"gates": "gates.safetensors"}
    trained = Record(0, "done", first.job, artifacts=gates, origin="dam")
    original.tell(trained)
    cut = asked(original)
    copy = resumed(make, [trained], [record_of(cut, length=8)])
    assert essence(asked(copy)) == essence(asked(original))
    for strategy in (original, copy):
        asked(strategy)
        assert strategy.ask() == "done"
