"""A super-net judges, the best are trained: the job, the order, the study."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import masksearch as ms
from masksearch import Constraint, masks
from masksearch.contracts import Evaluate, Record, Shared
from masksearch.errors import MaskFormatError, SearchError, UnknownNameError
from masksearch.strategies.supernet import (
    Candidate,
    SharedStrategy,
    order_of_training,
    read_ranking,
    run_shared,
    write_ranking,
)

EVALUATOR = ms.PlantedEvaluator(
    ms.PlantedProcess(length=12, offsets=(4,), vocabulary=4),
    steps=4,
    downstream_steps=2,
    held_out_sequences=32,
    gate_batch=8,
)
OPTIONS = {"steps": 6, "candidates": 20, "bands": 3}


def space(trial):
    """11 windows, each with and without a global token."""
    mask = masks.window(trial.suggest_int("reach", 0, 10))
    return mask | masks.global_tokens(1) if trial.suggest_categorical("hub", [0, 1]) else mask


def search(run, trials=4, **more):
    settings = {"strategy": "shared+tpe", "strategy_options": OPTIONS, **more}
    return ms.search(space, EVALUATOR, run=run, trials=trials, **settings)


def outcome(study):
    return [(r.number, r.status, r.fingerprint, dict(r.values)) for r in study.records()]


@pytest.mark.nightly
def test_super_net_is_one_trial_and_the_best_of_each_band_follow(tmp_path):
    study = search(tmp_path / "run", trials=7)
    first, *trained = study.records()
    assert isinstance(first.job, Shared)
    assert first.job.config["net"] == {"steps": 6}
    assert first.status == "done"
    assert first.seconds > 0
    assert first.curve[0].step == 1
    assert "supernet_loss" in first.curve[0].values
    assert first.values["judged"] <= 20
    ranking = read_ranking(tmp_path / "run" / first.artifacts["ranking"])
    assert len(ranking) == first.values["judged"]
    assert [c.loss for c in ranking] == sorted(c.loss for c in ranking)
    assert ranking[0].loss == first.values["shared_loss"]
    assert len(trained) == 6
    assert all(record.scored for record in trained)
    by_mask = {candidate.mask: candidate for candidate in ranking}
    for record in trained:
        assert float(record.memo["shared_loss"]) == by_mask[record.mask].loss
        assert record.origin == "shared+tpe"
    assert [record.memo["band"] for record in trained] == ["2", "1", "0"] * 2
    assert all(record.scored for record in study.frontier())


@pytest.mark.parametrize("strategy", ["shared+random", "shared+evolution"])
def test_other_samplers_propose_to_the_super_net(tmp_path, strategy):
    study = search(tmp_path / "run", trials=2, strategy=strategy)
    assert [record.status for record in study.records()] == ["done", "done"]


@pytest.mark.slow
def test_search_goes_on_where_it_stopped(tmp_path):
    whole = search(tmp_path / "a", trials=4)
    search(tmp_path / "b", trials=1)
    search(tmp_path / "b", trials=3)
    parts = search(tmp_path / "b", trials=4)
    values = [row[:3] for row in outcome(whole)]
    assert values == [row[:3] for row in outcome(parts)]


def test_constraint_keeps_masks_from_being_ranked(tmp_path):
    study = search(tmp_path / "run", trials=3, constraints=["sparsity >= 0.5", "score >= 0"])
    first, *trained = study.records()
    ranking = read_ranking(tmp_path / "run" / first.artifacts["ranking"])
    assert ranking
    assert all(candidate.density <= 0.5 for candidate in ranking)
    assert all(record.status == "done" for record in trained)


def test_failed_super_net_ends_the_search_with_its_reason(tmp_path):
    options = {**OPTIONS, "masks_per_step": 9}
    for _ in range(2):  # and says so again when it is resumed
        with pytest.raises(SearchError, match=r"training failed: .*cannot carry 9 masks"):
            search(tmp_path / "run", strategy_options=options)
    (record,) = ms.Study(tmp_path / "run").records()
    assert record.status == "failed"


@pytest.mark.nightly
def test_worker_processes_are_given_the_space(tmp_path):
    """A space that no worker can import."""
    code = textwrap.dedent(
        """
        from masksearch import masks
        REACH = 10
        def space(trial):
            return masks.window(trial.suggest_int("reach", 0, REACH))
        """
    )
    (tmp_path / "hidden_space.py").write_text(code)
    study = ms.search(
        ms.load_function(f"{tmp_path / 'hidden_space.py'}:space"),
        EVALUATOR,
        run=tmp_path / "run",
        trials=3,
        strategy="shared+tpe",
        strategy_options=OPTIONS,
        executor=ms.Local(slots=2, threads=1),
    )
    assert [record.status for record in study.records()] == ["done"] * 3


@pytest.mark.nightly
def test_killed_in_the_super_net_goes_on_there(tmp_path):
    code = f"""
import os, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
torch.set_num_threads(1)
from test_supernet import EVALUATOR, OPTIONS, search
import masksearch.evaluators.shared as module
from masksearch.contracts import Evaluate
from dataclasses import replace
from pathlib import Path
run, kill = Path(sys.argv[1]), sys.argv[2] == "kill"
plain = module.SharedWeights.prepare
def prepared(self):
    object.__setattr__(self, "checkpoint_seconds", 0.0)
    for report in plain(self):
        yield report
        if kill and report.step == 4:
            os.kill(os.getpid(), 9)
module.SharedWeights.prepare = prepared
for record in search(run, trials=3).records():
    print(record.number, record.status, record.fingerprint, record.step, dict(record.values))
"""

    def ran(folder: str, how: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", code, str(tmp_path / folder / "run"), how]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    whole = ran("a", "go on")
    assert whole.returncode == 0, whole.stderr
    assert ran("b", "kill").returncode == -9
    kept = list((tmp_path / "b" / "run" / "trials" / "0" / "supernet").glob("*/training-*"))
    assert kept
    resumed = ran("b", "go on")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout


# -- the order -----------------------------------------------------------------------------------
POINTS = st.lists(
    st.tuples(st.integers(1, 11), st.integers(0, 6)), min_size=1, max_size=24, unique=True
)


def candidates(points):
    return [
        Candidate(masks.window(index), {}, density / 11, float(loss))
        for index, (density, loss) in enumerate(points)
    ]


@given(POINTS)
def test_fronts_are_those_of_taking_the_front_away(points):
    left, expected, number = set(points), {}, 0
    while left:
        front = {
            p for p in left if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in left)
        }
        expected |= dict.fromkeys(front, number)
        left, number = left - front, number + 1
    fronts = {
        candidate.mask: candidate.front for candidate in order_of_training(candidates(points), 4)
    }
    assert [fronts[c.mask] for c in candidates(points)] == [expected[point] for point in points]


@given(POINTS, st.integers(1, 6), st.randoms())
def test_order_takes_bands_in_turn_and_does_not_depend_on_the_listing(points, bands, random):
    found = candidates(points)
    order = order_of_training(found, bands)
    assert {c.mask for c in order} == {c.mask for c in found}
    assert len(order) == len(found)
    shuffled = found[:]
    random.shuffle(shuffled)
    assert order_of_training(shuffled, bands) == order
    used = sorted({c.band for c in order}, reverse=True)
    assert [c.band for c in order[: len(used)]] == used  # one of each band first
    for band in used:
        own = [c for c in order if c.band == band]
        assert [(c.front, c.loss) for c in own] == sorted((c.front, c.loss) for c in own)
        others = [c.density for c in order if c.band > band]
        assert not others or max(c.density for c in own) < min(others)


# -- the job and its file ------------------------------------------------------------------------
def test_ranking_reads_back(tmp_path):
    written = [
        Candidate(masks.star(), {"a": 1}, 0.5, 2.0),
        Candidate(masks.per_head([masks.full(), masks.window(2)]), {}, 0.25, 1.0),
    ]
    write_ranking(tmp_path / "ranking.json", written, "p")
    assert read_ranking(tmp_path / "ranking.json") == written[::-1]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "other", "ranking": []}', '{"format": 1}']
)
def test_foreign_ranking_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(MaskFormatError, match=r"r\.json holds no ranking"):
        read_ranking(tmp_path / "r.json")


def job(**changes):
    config = {"sampler": "random", "candidates": 5, "constraints": [], "net": {"steps": 2}}
    return {**config, **changes}


def test_job_needs_its_space(tmp_path):
    with pytest.raises(SearchError, match="needs its space"):
        next(run_shared(EVALUATOR, Shared(job()), seed=0, workdir=tmp_path))


def test_job_in_which_no_mask_can_be_judged_says_why(tmp_path):
    work = Shared(job(constraints=["sparsity >= 2"]), space)
    with pytest.raises(SearchError, match="judged no mask: violates sparsity >= 2"):
        list(run_shared(EVALUATOR, work, seed=0, workdir=tmp_path))


def test_space_that_raises_now_and_then_is_passed_over(tmp_path):
    def moody(trial):
        if (reach := trial.suggest_int("reach", 0, 10)) > 5:
            raise ValueError("too wide")
        return masks.window(reach)

    list(run_shared(EVALUATOR, Shared(job(candidates=24), moody), seed=0, workdir=tmp_path))
    ranking = read_ranking(tmp_path / "ranking.json")
    assert {c.params["reach"] for c in ranking} <= set(range(6))
    assert ranking


def test_job_runs_twice_alike(tmp_path):
    texts = []
    for name in "ab":
        list(run_shared(EVALUATOR, Shared(job(), space), seed=1, workdir=tmp_path / name))
        texts.append((tmp_path / name / "ranking.json").read_text())
    assert texts[0] == texts[1]
    shutil.rmtree(tmp_path / "b" / "supernet")
    list(run_shared(EVALUATOR, Shared(job(), space), seed=2, workdir=tmp_path / "b"))
    assert (tmp_path / "b" / "ranking.json").read_text() != texts[0]


def test_jobs_are_equal_by_their_settings_and_equipped_by_the_strategy(tmp_path):
    strategy = SharedStrategy(tmp_path, space, options=OPTIONS)
    proposal = strategy.ask()
    assert proposal.job.space is space
    assert json.loads(json.dumps(proposal.job.config)) == proposal.job.config
    stored = Shared(proposal.job.config)
    assert stored == proposal.job
    assert stored.space is None
    assert strategy.equipped(stored).space is space
    other = Evaluate(masks.full())
    assert strategy.equipped(other) is other
    assert strategy.ask() == "wait"


def test_early_constraints_alone_go_into_the_job(tmp_path):
    limits = [Constraint("sparsity", ">=", 0.5), Constraint("score", ">=", 0.7)]
    strategy = SharedStrategy(tmp_path, space, constraints=limits)
    assert strategy.config["constraints"] == ["sparsity >= 0.5"]


def test_super_net_without_a_ranking_ends_the_strategy(tmp_path):
    strategy = SharedStrategy(tmp_path, space)
    strategy.tell(Record(0, "failed", Shared(strategy.config), error="Traceback\nMemoryError: 3"))
    with pytest.raises(SearchError, match=r"'shared\+tpe' has no super-net.*MemoryError: 3"):
        strategy.ask()


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'candidates'"):
        search(tmp_path / "run", strategy_options={"candidate": 3})
    with pytest.raises(UnknownNameError, match="unknown strategy 'shared\\+tp'"):
        search(tmp_path / "run", strategy="shared+tp")
    with pytest.raises(UnknownNameError, match="option of strategy 'shared\\+tpe'"):
        search(tmp_path / "run", strategy_options={"gates": {}})
    with pytest.raises(ValueError, match="bands must be at least 1, got 0"):
        SharedStrategy(tmp_path, space, options={"bands": 0})
    with pytest.raises(SearchError, match="needs a space"):
        ms.search(None, EVALUATOR, run=tmp_path / "x", trials=1, strategy="shared+tpe")
