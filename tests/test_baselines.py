"""A search with a budget begins at the masks that anyone would draw by hand at that cost."""

from collections import Counter
from dataclasses import dataclass

import pytest
from toy import ToyEvaluator

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Objective
from masksearch.errors import ResumeError, SearchError
from masksearch.masks.baselines import whole_heads
from masksearch.masks.measure import effective_density
from masksearch.report.section import shell_line
from masksearch.user_code import load_function

ROLES = load_function("masksearch.spaces:head_roles")
TOLD = {"budget": [0.3, 0.5], "progress": None, "seed": 3}
TOLD |= {"executor": ms.Local(isolate=False)}


class Judge(ToyEvaluator):
    """Fewer layers than heads, so that a budget pays for several masks of whole heads."""

    shape = ms.Shape(16, 2, 4, lengths={9: 2, 16: 1})


@dataclass(frozen=True)
class Stops(Judge):
    """Is interrupted once it has judged so many masks."""

    after: int = 0

    def __call__(self, mask, *, seed, workdir):
        if len(self.log.read_text().splitlines() if self.log.exists() else []) == self.after:
            raise KeyboardInterrupt
        yield from super().__call__(mask, seed=seed, workdir=workdir)


def split(study):
    """Its baselines, and the strategy's own."""
    records = study.records()
    return [r for r in records if r.role == "baseline"], [r for r in records if r.role == "trial"]


def outcome(study):
    return [(r.name, r.role, r.params, r.fingerprint, r.values) for r in study.records()]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["tpe", "random"])
def test_they_come_first_and_on_top_and_are_trained_once(strategy, tmp_path):
    log = tmp_path / "log"
    how = {"run": tmp_path / "run", "strategy": strategy, "trials": 4, **TOLD}
    study = ms.search(ROLES, Judge(log=log), scheduler=ms.ParetoHalving(rungs=(1, 2)), **how)
    first, own = split(study)
    assert study.records()[: len(first)] == first
    assert {r.source for r in first} == {"hand"}
    assert {r.status for r in first} <= {"done", "reused"}  # a scheduler ends none of them
    assert sum(not r.known for r in own) == 4
    assert max(Counter(log.read_text().splitlines()).values()) == 1
    best = study.best(baselines=True)
    assert best.value("loss") == min(r.value("loss") for r in study.records() if r.scored)
    assert study.best().role == "trial"
    assert not any(record.role == "baseline" for record in study.within(0.5))


@pytest.mark.slow
def test_samplers_learn_from_those_that_the_space_holds(tmp_path):
    study = ms.search(ROLES, Judge(), run=tmp_path / "run", strategy="tpe", trials=1, **TOLD)
    first, own = split(study)
    drawn = [record for record in first if record.params]
    assert {r.name for r in drawn} == {*whole_heads(r.name for r in first)}
    assert len(drawn) > 6
    for record in drawn:
        density = effective_density(record.mask, Judge.shape)
        assert record.params["budget"] == pytest.approx(density)
        assert "distributions" in record.strategy_state
    free = ms.search(
        ROLES, Judge(), run=tmp_path / "free", strategy="tpe", trials=1, baselines={}, **TOLD
    )
    assert {r.role for r in free.records()} == {"trial"}
    assert own[0].params != split(free)[1][0].params  # TPE has a model from its first draw on


@pytest.mark.slow
@pytest.mark.parametrize(
    "after", [16, *(pytest.param(number, marks=pytest.mark.nightly) for number in (3, 21))]
)
def test_a_killed_search_goes_on_as_if_it_had_not_been(after, tmp_path):
    how = {"strategy": "tpe", "trials": 4, **TOLD}
    whole = ms.search(ROLES, Judge(), run=tmp_path / "whole", **how)
    dying = Stops(log=tmp_path / "log", after=after)
    with pytest.raises(KeyboardInterrupt):
        ms.search(ROLES, dying, run=tmp_path / "run", **how)
    again = ms.search(ROLES, Judge(), run=tmp_path / "run", **how)
    assert outcome(again) == outcome(whole)


@pytest.mark.slow
def test_a_run_that_began_without_goes_on_without(tmp_path):
    how = {"run": tmp_path / "run", "strategy": "tpe", **TOLD}
    study = ms.search(ROLES, Judge(), trials=2, baselines={}, **how)
    facts = study.store.facts()
    del facts["starts"]  # as earlier versions wrote
    study.optuna.set_user_attr("facts", facts)
    again = ms.search(ROLES, Judge(), trials=4, **how)
    assert {record.role for record in again.records()} == {"trial"}
    how |= {"run": tmp_path / "whole", "baselines": {}}
    assert outcome(again) == outcome(ms.search(ROLES, Judge(), trials=4, **how))


@pytest.mark.slow
def test_a_run_that_began_at_them_does_not_go_on_without(tmp_path):
    how = {"run": tmp_path / "run", "strategy": "tpe", "trials": 1, **TOLD}
    ms.search(ROLES, Judge(), **how)
    with pytest.raises(ResumeError, match="starts: was"):
        ms.search(ROLES, Judge(), baselines={}, **how)


@pytest.mark.slow
def test_without_trials_they_alone_are_judged(tmp_path):
    study = ms.search(ROLES, Judge(), run=tmp_path / "run", trials=0, **TOLD)
    first, own = split(study)
    assert not own
    assert len({r.mask for r in first}) == len(first)
    for record in first:  # each under the smallest budget that pays
        limit = float(record.name.rpartition(" ")[2])
        assert effective_density(record.mask, Judge.shape) <= limit + 1e-9
    least = {r.name.removesuffix(" within 0.3") for r in first if r.name.endswith(" 0.3")}
    assert least == {*masks.equal_cost_baselines(0.3, Judge.shape)}
    with pytest.raises(SearchError, match=">= 1"):
        ms.search(ROLES, Judge(), run=tmp_path / "b", trials=0, baselines={}, **TOLD)


@pytest.mark.slow
def test_without_a_budget_there_are_none(tmp_path):
    study = ms.search(ROLES, Judge(), run=tmp_path / "run", trials=1, progress=None)
    assert [record.role for record in study.records()] == ["trial"]


@dataclass(frozen=True)
class Bytes(Judge):
    """A decoder whose budgets count something else."""

    shape = ms.Shape(16, 4, 2, causal=True)
    objectives = (ToyEvaluator.objectives[0], Objective("bytes", "min", 1.0))
    measure_names = ("bytes",)

    def measures_of(self, mask):
        return {"bytes": 0.2 + 0.8 * effective_density(mask, self.shape)}


def windows(starts):
    """A space that says where a search begins."""

    def space(trial):
        return masks.window(trial.suggest_int("reach", 0, 3))

    space.starts = starts
    return space


def test_they_cost_what_the_budget_counts(tmp_path):
    space = windows(lambda shape, budget: [{"reach": 1}])
    told = TOLD | {"budget": [0.6, 0.8], "trials": 1}
    study = ms.search(space, Bytes(), run=tmp_path / "run", **told)
    first, _ = split(study)
    assert {"widest window within 0.8", "last within 0.8"} <= {r.name for r in first}
    assert all(record.measures["bytes"] <= 0.8 for record in first)
    assert not any(record.params for record in first)  # starts count pairs


@dataclass(frozen=True)
class Work(Judge):
    """An encoder whose head reads one row, and whose budgets count the work."""

    shape = ms.Shape(16, 4, 2, read=1, hidden_size=8, intermediate_size=32)
    objectives = (ToyEvaluator.objectives[0], Objective("work", "min", 1.0))
    measure_names = ("work",)

    def measures_of(self, mask):
        return {"work": masks.work(mask, self.shape)}


@pytest.mark.slow
def test_of_work_they_are_schedules_of_live_tokens(tmp_path):
    told = TOLD | {"budget": [0.4, 0.6], "trials": 1}
    study = ms.search(windows(None), Work(), run=tmp_path / "run", **told)
    first, _ = split(study)
    for limit in (0.4, 0.6):
        drawn = masks.equal_cost_baselines(limit, Work.shape, cost=masks.work)
        named = {r.mask: r for r in first if r.name.endswith(f" within {limit:g}")}
        assert set(drawn.values()) >= named.keys() != set()
        assert all(limit - 0.1 < record.measures["work"] <= limit for record in named.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("starts", "problem"),
    [
        (lambda shape, budget: [{"reach": 99}], r"starts\[0\]: reach = 99 cannot be drawn"),
        (lambda shape, budget: shape.nothing, "starts of the space is called with shape, budget"),
    ],
)
def test_wrong_starts_are_named(starts, problem, tmp_path):
    with pytest.raises((SearchError, ValueError), match=problem):
        ms.search(windows(starts), Judge(), run=tmp_path / "run", trials=1, **TOLD)


@pytest.mark.slow
def test_starts_that_equal_no_baseline_are_left_out(tmp_path):
    space = windows(lambda shape, budget: [{"reach": 1}, {"reach": 2}])
    study = ms.search(space, Judge(), run=tmp_path, strategy="tpe", trials=1, **TOLD)
    assert not any(record.params for record in split(study)[0])


def test_a_stored_command_says_whether_there_are_any():
    stored = {"command": "search", "options": {"space": "a.py:space", "baselines": False}}
    assert shell_line(stored) == "masksearch search a.py:space --no-baselines"
