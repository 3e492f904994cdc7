"""Every strategy keeps the same promises."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from toy import ToyEvaluator, space

from masksearch import masks
from masksearch.contracts import Evaluate, Proposal, Record, Strategy
from masksearch.strategies.listed import Listed
from masksearch.strategies.optuna_study import SAMPLERS, OptunaStrategy

OBJECTIVES = ToyEvaluator.objectives


def optuna_strategy(name: str, seed: int = 0) -> Strategy:
    return OptunaStrategy(space, OBJECTIVES, sampler=SAMPLERS[name], seed=seed, name=name)


MAKERS: dict[str, Callable[[], Strategy]] = {
    "random": lambda: optuna_strategy("random"),
    "tpe": lambda: optuna_strategy("tpe"),
    "listed": lambda: Listed({f"w{r}": masks.window(r) for r in range(40)}, [0]),
}


def record_of(proposal: Proposal, status: str = "done") -> Record:
    assert isinstance(proposal.job, Evaluate)
    sparsity = proposal.job.mask.sparsity(16)
    values = {"loss": abs(sparsity - 0.6)} if status in ("done", "reused") else {}
    return Record(
        proposal.number,
        status,  # type: ignore[arg-type]
        proposal.job,
        params=proposal.params,
        values=values,
        measures={"sparsity": sparsity},
        memo=proposal.memo,
        error="broken" if status == "failed" else "",
    )


def asked(strategy: Strategy) -> Proposal:
    proposal = strategy.ask()
    assert isinstance(proposal, Proposal)
    return proposal


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
class TestStrategy:
    def test_numbers_its_draws_from_zero(self, make):
        strategy = make()
        for number in range(5):
            proposal = asked(strategy)
            assert proposal.number == number
            strategy.tell(record_of(proposal))

    def test_same_seed_same_proposals(self, make):
        first, second = make(), make()
        for _ in range(20):
            a, b = asked(first), asked(second)
            assert (a.job, a.params) == (b.job, b.params)
            first.tell(record_of(a))
            second.tell(record_of(b))

    def test_resumed_copy_asks_what_the_original_asks(self, make):
        original, told = make(), []
        for index in range(14):
            proposal = asked(original)
            record = record_of(proposal, ["done", "failed", "stopped", "reused"][index % 4])
            original.tell(record)
            told.append(record)
        copy = make()
        for record in told:
            copy.tell(record)
        for _ in range(3):
            a, b = asked(original), asked(copy)
            assert (a.number, a.job, a.params) == (b.number, b.job, b.params)

    def test_running_record_is_not_drawn_again(self, make):
        original = make()
        proposals = [asked(original) for _ in range(3)]
        copy = make()
        copy.tell(record_of(proposals[0]))
        copy.tell(record_of(proposals[2]))
        copy.tell(replace(record_of(proposals[1]), status="running", values={}))
        assert asked(copy).number == 3

    def test_takes_failed_and_stopped_records(self, make):
        strategy = make()
        for status in ["failed"] * 6 + ["stopped"] * 6 + ["done"] * 3:
            strategy.tell(record_of(asked(strategy), status))
        assert asked(strategy).number == 15


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_proposals_equal_those_of_another_process(name):
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_strategies import asked, optuna_strategy, record_of
strategy = optuna_strategy({name!r})
found = []
for _ in range(12):
    proposal = asked(strategy)
    found.append(dict(proposal.params))
    strategy.tell(record_of(proposal))
print(json.dumps(found))
"""
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    strategy, here = optuna_strategy(name), []
    for _ in range(12):
        proposal = asked(strategy)
        here.append(dict(proposal.params))
        strategy.tell(record_of(proposal))
    assert json.loads(output) == here


def test_other_seed_draws_others():
    draws = [
        [asked(optuna_strategy("random", seed)).params for _ in range(1)] for seed in range(9)
    ]
    assert len({json.dumps(draw, sort_keys=True) for draw in draws}) > 3


def test_tpe_beats_random_on_the_toy():
    """TPE must use what it is told: its later draws lie nearer to the optimum."""

    def late_loss(name: str, seed: int) -> float:
        strategy, losses = optuna_strategy(name, seed), []
        for _ in range(40):
            record = record_of(asked(strategy))
            losses.append(record.values["loss"])
            strategy.tell(record)
        return sum(losses[20:]) / 20

    tpe = sum(late_loss("tpe", seed) for seed in range(3))
    random = sum(late_loss("random", seed) for seed in range(3))
    assert tpe < random


def test_sampler_object_is_used_as_it_is():
    sampler = optuna.samplers.RandomSampler(seed=5)
    strategy = OptunaStrategy(space, OBJECTIVES, sampler=sampler, seed=0, name="mine")
    assert asked(strategy).origin == "mine"
    assert strategy.study.sampler is sampler
