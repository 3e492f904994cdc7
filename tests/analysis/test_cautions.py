"""What a search says against itself."""

import re
import warnings

import pytest
from contracts.toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.analysis.pareto import search_cautions
from masksearch.contracts import Evaluate, Record, Report
from masksearch.study.status import read_status, status_lines


class Tasks(ToyEvaluator):
    """Reports the accuracies of two tasks, and what a constant answer earns there."""

    def __init__(self, easy=0.5092, hard=0.5):
        object.__setattr__(self, "scores", {"easy": easy, "hard": hard})

    def __call__(self, mask, *, seed, workdir):
        [*_, last] = super().__call__(mask, seed=seed, workdir=workdir)
        known = {"easy/majority": 0.5092, "hard/majority": 0.5}
        yield Report(last.step, {**last.values, **self.scores, **known})


def warned(run, space=space, evaluator=None, **options):
    """What a search warns of, and its study."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arguments = {"trials": 12, "strategy": "random", "progress": None} | options
        study = ms.search(space, evaluator or ToyEvaluator(), run=run, **arguments)
    caught = [warning for warning in caught if warning.category is UserWarning]  # not a library's
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught], study


def wide(trial):
    return masks.window(trial.suggest_int("reach", 0, 15))


def one(trial):
    return masks.window(trial.suggest_int("reach", 3, 3))


def four(trial):
    return masks.window(trial.suggest_int("reach", 1, 4))


@pytest.mark.nightly
def test_scores_of_a_constant_prediction_are_said_early_and_at_the_end(tmp_path):
    said, study = warned(tmp_path / "run", wide, Tasks(), trials=9)
    early, late = (text for text in said if "constant answer" in text)
    assert re.match(r"nothing learned: none of the [45] finished trials scores better", early)
    assert "constant answer on easy or hard" in early
    count = len(study.records())
    assert late.startswith(f"nothing learned: none of the {count} finished trials")
    state = "\n".join(status_lines(study.run, read_status(study.run)))
    assert f"warning: nothing learned: none of the {count}" in state


@pytest.mark.nightly
def test_a_task_that_was_learnt_is_not_named(tmp_path):
    said, _ = warned(tmp_path / "a", wide, Tasks(easy=0.7), trials=5)
    assert said
    assert all("better on hard than a constant" in text for text in said)
    said, _ = warned(tmp_path / "b", wide, Tasks(easy=0.7, hard=0.51), trials=5)
    assert not said


@pytest.mark.nightly
@pytest.mark.parametrize(("drawn", "count"), [(one, 1), (four, 4)])
def test_a_space_of_few_masks_says_so_and_known_masks_are_no_trials(tmp_path, drawn, count):
    said, study = warned(tmp_path / "run", drawn)
    draws = len(study.records())
    assert sum(record.status == "done" for record in study.records()) == count
    assert draws >= count + 200
    assert re.match(
        r"\d+ of the \d+ draws of random were of a mask that had been trained", said[0]
    )
    assert f"{draws - count} of the {draws} draws of random" in said[1]
    assert f"({count} different masks in all)" in said[1]
    assert len(said) == 3
    assert any("warning: " in line for line in status_lines(study.run, read_status(study.run)))


@pytest.mark.parametrize("strategy", ["random", "tpe", "nsga2", "qmc"])
@pytest.mark.nightly
def test_search_ends_when_its_space_is_spent(tmp_path, monkeypatch, strategy):
    monkeypatch.setattr("masksearch.study.session.SPENT", 25)
    log = tmp_path / "log"
    options = {"strategy": strategy, "trials": 300, "evaluator": ToyEvaluator(log=log)}
    said, study = warned(tmp_path / "run", four, **options)
    records = study.records()
    known = len({record.fingerprint for record in records})
    assert len(log.read_text().splitlines()) == known
    assert known + 24 < len(records) < 300
    assert all(record.status == "reused" for record in records[-25:])
    assert said[-1] == (
        "the space is spent: the last 25 masks drawn were all known already "
        f"({known} different ones in all); search a larger space, or with another strategy"
    )
    state = "\n".join(status_lines(study.run, read_status(study.run)))
    assert "warning: the space is spent" in state
    monkeypatch.setattr("masksearch.study.session.Session.ask_strategy", None)  # not asked
    again, study = warned(tmp_path / "run", four, **{**options, "trials": 400})
    assert said[-1] in again
    assert study.records() == records


@pytest.mark.slow
def test_masks_that_violate_a_constraint_again_and_again_spend_a_space(tmp_path, monkeypatch):
    monkeypatch.setattr("masksearch.study.session.SPENT", 25)
    said, study = warned(tmp_path / "run", four, trials=300, constraints=["sparsity >= 0.99"])
    assert "the space is spent" in said[-1]
    assert {record.status for record in study.records()} == {"stopped"}
    assert len(study.records()) < 300


@pytest.mark.nightly
def test_space_is_spent_with_several_slots(tmp_path, monkeypatch):
    monkeypatch.setattr("masksearch.study.session.SPENT", 25)
    said, study = warned(tmp_path / "run", four, trials=600, executor=ms.Local(slots=2))
    assert "the space is spent: the last 25 masks drawn" in said[-1]
    assert len(study.records()) < 100


@pytest.mark.nightly
def test_strategy_that_ends_early_says_so(tmp_path):
    from optuna.samplers import GridSampler

    said, _ = warned(tmp_path / "run", four, strategy=GridSampler({"reach": [1, 2, 3]}))
    assert said == ["the strategy has no more masks: 3 of 12 trials"]


def idle(trial):
    base, growth = trial.suggest_int("base", 0, 9), trial.suggest_int("growth", 0, 1)
    gap = trial.suggest_int("gap", 1, 9)
    return masks.window(base + (growth * gap if trial.suggest_int("far", 0, 1) else 0))


@pytest.mark.nightly
def test_parameters_without_an_effect_are_named(tmp_path):
    drawn = [(1, 0, 1, 1), (1, 0, 2, 1), (1, 0, 3, 1), (2, 1, 1, 1), (1, 1, 1, 1)]
    names = ("base", "growth", "gap", "far")
    enqueue = [dict(zip(names, each, strict=True)) for each in drawn]
    said, _ = warned(tmp_path / "run", idle, trials=5, enqueue=enqueue)
    assert said == [
        "parameters without an effect on the mask (in so many draws): gap in 2; let the space ask "
        "for a parameter only where it has one"
    ]


@pytest.mark.slow
def test_nothing_is_said_where_nothing_is_wrong(tmp_path):
    said, study = warned(tmp_path / "run", wide, trials=6)
    assert not said
    assert not search_cautions(study.records())


def test_baselines_and_comparisons_do_not_count_as_draws():
    def record(number, role):
        status = "reused" if number else "done"
        return Record(number, status, Evaluate(masks.full()), role=role)

    assert not search_cautions([record(number, "baseline") for number in range(9)])
    assert not search_cautions([record(number, "compared") for number in range(9)])
    assert search_cautions([record(number, "trial") for number in range(9)])
