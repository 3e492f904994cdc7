"""Successive halving: laws, independent oracles, and the sparse end that it must not lose."""

import math
import random
from dataclasses import replace

import pytest
from experiment_scripts import run_script
from hypothesis import example, given
from hypothesis import strategies as st

from masksearch import ParetoHalving
from masksearch.contracts import Report
from masksearch.errors import SearchError, UnknownNameError

RANKINGS = ("nondominated", "strata", "metric")
FEW = st.integers(0, 6).map(float)  # few values, so that ties and equal points are frequent
TRIALS = st.lists(  # loss and sparsity of each trial
    st.tuples(st.integers(0, 8), st.integers(0, 15)), min_size=1, max_size=25
).map(lambda pairs: [(loss / 4, sparsity / 16) for loss, sparsity in pairs])
FACTORS = st.sampled_from([1.5, 2, 3, 4])
RANKS = st.sampled_from(RANKINGS)


def dominates(a, b) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


def arrivals(scheduler: ParetoHalving, trials, step: int = 10) -> list[bool]:
    """The answers to trials that arrive one after the other at one step."""
    return [
        scheduler.observe(number, Report(step, {"loss": loss}), {"sparsity": sparsity})
        for number, (loss, sparsity) in enumerate(trials)
    ]


def rungs_table(scheduler: ParetoHalving) -> list[tuple[int, int, int]]:
    """Step of each rung, trials that have reached it, and those that were stopped there."""
    return [
        (rung, len(entries), sum(not entry.goes_on for entry in entries.values()))
        for rung, entries in zip(scheduler.rungs, scheduler.entries, strict=True)
    ]


# -- laws ----------------------------------------------------------------------------------------
def test_an_infinite_measure_neither_crowds_nor_warns():
    scheduler = ParetoHalving(rungs=(10,), against=("hops",))
    for number, hops in enumerate([math.inf, 3.0, math.inf, math.inf]):
        scheduler.observe(number, Report(10, {"loss": 1.0}), {"hops": hops})
    assert rungs_table(scheduler) == [(10, 4, 2)]


@given(TRIALS, FACTORS, RANKS)
def test_the_same_observations_give_the_same_answers(trials, factor, ranking):
    scheduler = ParetoHalving(rungs=(10,), factor=factor, ranking=ranking)
    answers = arrivals(scheduler, trials)
    assert arrivals(replace(scheduler), trials) == answers  # rebuilt from the stored order
    table = rungs_table(scheduler)
    assert arrivals(scheduler, trials) == answers  # repeated
    assert rungs_table(scheduler) == table == [(10, len(trials), answers.count(False))]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20), FEW, FEW), max_size=30),
    FACTORS,
    RANKS,
)
def test_an_observation_is_answered_once(observations, factor, ranking):
    scheduler = ParetoHalving(rungs=(4, 9, 16), factor=factor, ranking=ranking)
    first: dict[tuple[int, int], bool] = {}
    stopped: dict[int, int] = {}  # number -> earliest step at which it was stopped
    for number, step, loss, sparsity in observations:
        report = Report(step, {"loss": loss})
        answer = scheduler.observe(number, report, {"sparsity": sparsity / 7})
        assert first.setdefault((number, step), answer) == answer
        if number in stopped and step >= stopped[number]:
            assert not answer
        if not answer:
            stopped[number] = min(step, stopped.get(number, step))


@given(TRIALS, FACTORS)
def test_no_trial_goes_on_where_one_that_dominates_it_would_not(trials, factor):
    scheduler = ParetoHalving(rungs=(10,), factor=factor, grace=1)
    if not arrivals(replace(scheduler), trials)[-1]:
        return
    for other in trials[:-1]:
        if other[0] <= trials[-1][0] and other[1] >= trials[-1][1] and other != trials[-1]:
            exchanged = [trial for trial in trials if trial is not other] + [other]
            assert arrivals(replace(scheduler), exchanged)[-1]


@given(TRIALS, FACTORS)
@example([(0.0, 0.5), (0.0, 0.5), (1.0, 0.75)], 2)  # copies do not crowd out the sparsest
def test_a_nondominated_trial_is_stopped_only_where_the_front_is_crowded(trials, factor):
    scheduler = ParetoHalving(rungs=(10,), factor=factor)
    for number, answer in enumerate(arrivals(scheduler, trials)):
        seen = [(-loss, sparsity) for loss, sparsity in trials[: number + 1]]
        front = [p for p in seen if not any(dominates(other, p) for other in seen)]
        if seen[-1] in front and len(front) <= math.ceil(len(seen) / factor):
            assert answer
        best = [all(seen[-1][axis] > p[axis] for p in seen[:-1]) for axis in (0, 1)]
        if any(best) and len(seen) > factor:  # the best of a kind always goes on
            assert answer


@given(TRIALS, FACTORS)
def test_metric_matches_a_sorted_list(trials, factor):
    answers = arrivals(ParetoHalving(rungs=(10,), factor=factor, ranking="metric"), trials)
    for number, answer in enumerate(answers):
        seen = [loss for loss, _ in trials[: number + 1]]
        before = sorted(range(number + 1), key=lambda index: (seen[index], index)).index(number)
        assert answer == (len(seen) < factor or before < len(seen) / factor)


@given(TRIALS, FACTORS)
def test_strata_are_halved_each_by_itself(trials, factor):
    trials = [(loss, min(sparsity, 15 / 16)) for loss, sparsity in trials]
    answers = arrivals(ParetoHalving(rungs=(10,), factor=factor, ranking="strata"), trials)
    for lowest in (0.5, 0.25, 0.125, 0.0625, 0.0):
        inside = [lowest < 1 - sparsity <= (2 * lowest or 0.0625) for _, sparsity in trials]
        alone = [trial for trial, own in zip(trials, inside, strict=True) if own]
        expected = arrivals(ParetoHalving(rungs=(10,), factor=factor, ranking="metric"), alone)
        assert [a for a, own in zip(answers, inside, strict=True) if own] == expected


@given(TRIALS, RANKS)
def test_the_goal_only_turns_the_sign(trials, ranking):
    down = ParetoHalving(rungs=(10,), ranking=ranking)
    up = replace(down, metric="accuracy", goal="max")
    for number, (loss, sparsity) in enumerate(trials):
        measures = {"sparsity": sparsity}
        answer = down.observe(number, Report(10, {"loss": loss}), measures)
        assert up.observe(number, Report(10, {"accuracy": -loss}), measures) == answer


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("factor", [2, 4])
def test_one_in_factor_goes_on_in_the_long_run(ranking, factor):
    rng = random.Random(factor)
    trials = [(rng.random(), 1 - 2 ** -rng.uniform(0, 3)) for _ in range(400)]
    scheduler = ParetoHalving(rungs=(10,), factor=factor, ranking=ranking)
    went_on = arrivals(scheduler, trials).count(True)
    assert 1 / factor - 0.05 < went_on / len(trials) < 1 / factor + 0.08


# -- what it is for ------------------------------------------------------------------------------
@pytest.mark.slow
def test_loss_alone_kills_the_sparse_end_and_the_others_do_not():
    """64 synthetic masks, about 8 under 10 % density, whose loss rises as they get sparser."""
    kept = {ranking: 0 for ranking in RANKINGS}
    for seed in range(20):
        rng = random.Random(seed)
        trials = []
        for _ in range(64):
            density = 2 ** -rng.uniform(0, 3.8)
            trials.append((2 - 0.3 * math.log(density) + rng.gauss(0, 0.1), 1 - density))
        for ranking in RANKINGS:
            scheduler = ParetoHalving(rungs=(10,), factor=4, ranking=ranking)
            answers = arrivals(scheduler, trials)
            pairs = zip(answers, trials, strict=True)
            kept[ranking] += sum(on and sparsity > 0.9 for on, (_, sparsity) in pairs)
    assert kept["metric"] <= 0.3 * 20  # only among the first few arrivals
    assert kept["nondominated"] >= 2 * 20
    assert kept["strata"] >= 2 * 20


def test_a_report_that_passes_rungs_enters_them_all():
    scheduler = ParetoHalving(rungs=(2, 4, 8))
    assert scheduler.observe(
        0, Report(1, {"loss": 9.0}), {}
    )  # before the first rung: nothing is read
    scheduler.observe(0, Report(5, {"loss": 1.0}), {"sparsity": 0.5})
    assert [seen for _, seen, _ in rungs_table(scheduler)] == [1, 1, 0]
    assert not scheduler.observe(1, Report(2, {"loss": 2.0}), {"sparsity": 0.5})
    assert rungs_table(scheduler)[0] == (2, 2, 1)


def test_grace_lets_the_first_trials_go_on():
    worse_and_worse = [(float(loss), 0.5) for loss in range(8)]
    answers = arrivals(ParetoHalving(rungs=(10,), grace=5), worse_and_worse)
    assert answers == [True] * 4 + [False] * 4
    answers = arrivals(ParetoHalving(rungs=(10,), factor=3), worse_and_worse)
    assert answers == [True] * 2 + [False] * 6


# -- messages ------------------------------------------------------------------------------------
def test_a_missing_metric_names_what_the_report_holds():
    scheduler = ParetoHalving(metric="perplexity")
    with pytest.raises(SearchError, match=r"'perplexity'.* trial 3 at 62 .* loss, accuracy"):
        scheduler.observe(3, Report(62, {"loss": 1.0, "accuracy": 0.5}), {"sparsity": 0.5})
    assert rungs_table(scheduler)[0][1] == 0


@pytest.mark.parametrize("ranking", ["nondominated", "strata"])
def test_a_missing_measure_is_named(ranking):
    scheduler = ParetoHalving(ranking=ranking)
    with pytest.raises(SearchError, match=r"measures of trial 0 .* holds nothing"):
        scheduler.observe(0, Report(62, {"loss": 1.0}), {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rungs": ()}, "rungs are rising"),
        ({"rungs": (4, 2)}, r"rising steps from 1 on, got \(4, 2\)"),
        ({"rungs": (0, 2)}, "from 1 on"),
        ({"factor": 1}, "factor must be above 1, got 1"),
        ({"factor": math.inf}, "factor must be above 1, got inf"),
        ({"strata": 1.0}, "strata must be above 1"),
        ({"grace": 0}, "grace must be at least 1"),
        ({"goal": "lower"}, "goal must be 'min' or 'max', got 'lower'"),
        ({"against": ()}, "ranking='metric'"),
        ({"against": "sparsity"}, r"against is a list, got 'sparsity'"),
        ({"ranking": "non-dominated"}, "did you mean 'nondominated'"),
        ({"against": ("densty",)}, "did you mean 'density'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    unknown = "did you mean" in message
    with pytest.raises(UnknownNameError if unknown else ValueError, match=message):
        ParetoHalving(**arguments)


def test_repr_names_every_argument_and_no_state():
    scheduler = ParetoHalving(rungs=[1, 2])
    arrivals(scheduler, [(1.0, 0.5)])
    text = repr(scheduler)
    assert text == (
        "ParetoHalving(rungs=(1, 2), metric='loss', goal='min', factor=2, "
        "ranking='nondominated', against=('sparsity',), strata=2, grace=None)"
    )
    assert scheduler == eval(text)


@pytest.mark.nightly
def test_the_replay_smoke():
    assert "planted seed 1, 8 slots" in run_script("04_halving_replay/run.py", "--smoke")
