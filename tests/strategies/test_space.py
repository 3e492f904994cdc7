"""Search spaces: mistakes are told with their place before anything is spent on them; given
parameters are judged first."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import outcome
from optuna.trial import BaseTrial
from toy import ToyEvaluator, Windows
from toy import space as toy_space

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Proposal, Record
from masksearch.errors import HeadCountError, LayerCountError, SpaceError
from masksearch.strategies.build import build_strategy


# -- mistakes ------------------------------------------------------------------------------------
def reached(trial):
    return masks.window(trial.suggest_int("reach", 1, 8))


def changing(first, second):
    """A space that asks for its parameter in another way from the second draw on."""
    draws = []

    def space(trial):
        draws.append(trial.number)
        return masks.window(first(trial) if len(draws) <= 2 else second(trial))

    return space  # the first call is the one before the search


CHANGES = {
    "range": (lambda trial: trial.suggest_int("reach", 1, 8),
        lambda trial: trial.suggest_int("reach", 1, 9),
        r"suggest_int\(1, 8\), draw 1 for suggest_int\(1, 9\)"),
    "kind": (lambda trial: trial.suggest_int("reach", 1, 8),
        lambda trial: trial.suggest_categorical("reach", [1, 2]),
        r"suggest_int\(1, 8\), draw 1 for suggest_categorical\(\[1, 2\]\)"),
    "choices": (lambda trial: trial.suggest_categorical("reach", [1, 2, 3]),
        lambda trial: trial.suggest_categorical("reach", [1, 2]),
        r"suggest_categorical\(\[1, 2, 3\]\), draw 1 for suggest_categorical\(\[1, 2\]\)"),
    "log": (lambda trial: int(trial.suggest_float("reach", 1, 8)),
        lambda trial: int(trial.suggest_float("reach", 1, 8, log=True)),
        r"suggest_float\(1.0, 8.0\), draw 1 for suggest_float\(1.0, 8.0, log=True\)"),
    "step": (lambda trial: trial.suggest_int("reach", 2, 8),
        lambda trial: trial.suggest_int("reach", 2, 8, step=2),
        r"suggest_int\(2, 8\), draw 1 for suggest_int\(2, 8, step=2\)"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_parameter_that_changes_is_refused_at_the_second_draw(tmp_path, change):
    first, second, message = CHANGES[change]
    how = {"run": tmp_path / "run", "trials": 9, "progress": None}
    with pytest.raises(SpaceError, match=rf"'reach' of the space has changed: draw 0 .*{message}"):
        ms.search(changing(first, second), ToyEvaluator(), **how)
    assert len(ms.Study(tmp_path / "run").records()) == 1


def narrow(trial):
    return masks.window(trial.suggest_int("reach", 1, 5))


def proposer(space, strategy):
    return build_strategy(strategy, space, ToyEvaluator(), seed=0, run=Path(), options={})


def drawn(space, strategy, number):
    """A record of the first draw, as a study holds it."""
    asked = proposer(space, strategy).ask()
    assert isinstance(asked, Proposal)
    measured = {"sparsity": 0.5}
    known = {"params": asked.params, "strategy_state": asked.strategy_state, "measures": measured}
    return Record(number, "done", asked.job, values={"loss": 1.0}, **known)


def test_parameter_that_changes_after_a_pause_is_refused():
    resumed = proposer(narrow, "tpe")
    resumed.tell(drawn(reached, "tpe", 0))
    with pytest.raises(SpaceError, match="'reach' of the space has changed"):
        resumed.ask()


@pytest.mark.filterwarnings("ignore:strategy .nsga2. on a conditional space")
@pytest.mark.parametrize("strategy", ["tpe", "gp"])
@pytest.mark.nightly
def test_parameters_that_appear_only_sometimes_are_fine(tmp_path, strategy):
    def space(trial):
        assert isinstance(trial, BaseTrial)
        mask = masks.window(trial.suggest_int("reach", 0, 3, log=False))
        if trial.suggest_categorical("far", [False, True]):
            mask |= masks.offsets([trial.suggest_int("far/distance", 4, 9)])
        return mask

    study = ms.search(
        space, ToyEvaluator(), run=tmp_path / "run", trials=12, strategy=strategy, progress=None
    )
    assert sum(record.status == "done" for record in study.records()) == 12


def misspelt(trial):
    return masks.windw(3)


def wrong_parameter(trial):
    return masks.longformer(width=3)


def wrong_parameter_of_a_leaf(trial):
    return masks.block_columns(width=3)


def undefined(trial):
    return window(3)  # noqa: F821


def a_table(trial):
    return torch.ones(16, 16, dtype=torch.bool)


def nothing(trial):
    masks.window(3)


PLACE = r"in .*test_space\.py, line \d+"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "message"),
    [
        (misspelt, f"AttributeError {PLACE}: .* no 'windw'; did you mean 'window'"),
        (wrong_parameter, f"{PLACE}: .*'width'; masks.longformer takes reach, count"),
        (wrong_parameter_of_a_leaf, f"{PLACE}: .*'width'; masks.block_columns takes size, last"),
        (undefined, f"NameError {PLACE}: name 'window' is not defined"),
        (a_table, r"returned Tensor, not a Mask; .*`return masks\.table\(tensor\)`"),
        (nothing, r"returned NoneType, not a Mask; .*`return masks\.window\(reach\)`"),
    ],
)
def test_mistake_in_a_space_ends_the_search_before_it_begins(tmp_path, space, message):
    run, judge = tmp_path / "run", ToyEvaluator(log=tmp_path / "log")
    with pytest.raises(SpaceError, match=message):
        ms.search(space, judge, run=run, trials=9, baselines=ms.masks.FAMILIES)
    assert not (tmp_path / "log").exists()
    study = ms.search(reached, ToyEvaluator(), run=run, trials=1, progress=None)  # mended
    assert len(study.records()) == 1


@pytest.mark.nightly
def test_mistake_in_a_branch_fails_its_trials_with_their_place(tmp_path):
    def space(trial):
        reach = trial.suggest_int("reach", 0, 9)
        return masks.window(reach) if reach < 7 else masks.windw(reach)

    study = ms.search(
        space, ToyEvaluator(), run=tmp_path / "run", trials=9, strategy="random", progress=None
    )
    failed = [record for record in study.records() if record.status == "failed"]
    assert failed
    for record in failed:
        assert "did you mean 'window'?" in record.reason
        assert "test_space.py, line" in record.reason
    assert len({record.fingerprint for record in study.records()} - {""}) == 7  # and it ends


def test_unknown_names_of_the_modules_have_the_nearest_one():
    with pytest.raises(AttributeError, match="no 'windw'; did you mean 'window'"):
        masks.windw  # noqa: B018
    with pytest.raises(AttributeError, match="'serch'; did you mean 'search'"):
        ms.serch  # noqa: B018
    assert not hasattr(masks, "__wrapped__")


def test_study_whose_parameter_has_changed_already_goes_on():
    """Earlier versions let ranges change."""
    resumed = proposer(reached, "tpe")
    resumed.tell(drawn(reached, "tpe", 0))
    resumed.tell(drawn(narrow, "tpe", 1))
    assert resumed.ask().params["reach"] in range(1, 9)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (masks.per_layer([masks.window(1)] * 6), "6 layers, asked for 2; .*--size 6x64x2"),
        (masks.per_head([masks.window(1)] * 4), "4 heads, asked for 2; .*--size 2x128x4"),
    ],
)
def test_a_space_for_another_model_is_refused_with_the_size_that_it_fits(mask, said, tmp_path):
    trained = []

    class Provides(ToyEvaluator):
        def provide_models(self, seed):
            trained.append(seed)

    with pytest.raises((LayerCountError, HeadCountError), match=said):
        ms.search(lambda trial: mask, Provides(), run=tmp_path / "run", trials=2)
    assert not trained


# -- values that are more than JSON --------------------------------------------------------------
REACHES = list(np.arange(1, 5))
CHOICES = {
    "tuples": [(0, 1), (0, 2), (0, 3, 4)],
    "nested": [[0, (1, 2)], [0, (3, 4)]],
    "lists": [[0, 1], [0, 2]],
    "arrays": [np.array([0, 1]), np.array([0, 2])],
    "numbers": REACHES,
    "floats": [np.float32(0.1), np.float64(0.2), float("nan"), float("inf")],
    "booleans": [np.bool_(False), np.bool_(True)],
    "texts": [np.str_("a"), "b", None],
    "dicts": [{"a": (1, 2)}, {"a": (1, 3)}],
}


def choosing(choices):
    """A space that draws among such choices, each of them a mask of its own."""

    def space(trial):
        drawn = trial.suggest_categorical("value", choices)
        index = next(at for at, each in enumerate(choices) if each is drawn)
        return masks.window(1 + index) | masks.stride(trial.suggest_int("gap", 2, 9))

    return space


@pytest.mark.parametrize("strategy", ["tpe", "qmc"])
@pytest.mark.parametrize("name", CHOICES)
def test_a_space_gets_its_own_values_and_studies_hold_plain_ones(name, strategy):
    whole = proposer(choosing(CHOICES[name]), strategy)
    asked = []
    for number in range(8):
        proposal = whole.ask()
        asked.append(proposal)
        record = Record(
            number=number,
            status="done",
            job=proposal.job,
            params=json.loads(json.dumps(dict(proposal.params))),
            strategy_state=json.loads(json.dumps(dict(proposal.strategy_state))),
            values={each.name: number / 8 for each in ToyEvaluator().objectives},
        )
        whole.tell(record)
        assert repr(record.params) == repr(dict(proposal.params))
    stored = {}  # the choice, which the mask tells -> the value that stands for it
    for each in asked:
        (window, _), value = each.job.mask.parts, repr(each.params["value"])
        assert each.job.mask == window | masks.stride(each.params["gap"])
        assert stored.setdefault(window, value) == value
    assert len({*stored.values()}) == len(stored) > 1


@pytest.mark.parametrize(
    "choices", [[masks.window(1), masks.window(2)], [1, {1, 2}], [object(), 1], [b"a", b"b"]]
)
def test_values_that_no_study_can_hold_are_refused_at_the_first_draw(choices):
    def space(trial):
        return trial.suggest_categorical("mask", choices)

    with pytest.raises(SpaceError, match=r"'mask' .* no study can hold .*list\(CHOICES\)\)"):
        proposer(space, "random").ask()


@pytest.mark.parametrize(
    ("choices", "equal"),
    [
        ([True, 1, 2], "True and 1"),
        ([3, 1, 1.0], r"1 and 1\.0"),
        ([0, "0", False], "0 and False"),
        (["a", "b", "a"], "'a' and 'a'"),
        ([(0, 1), [0, 1]], r"\(0, 1\) and \[0, 1\]"),
        ([np.int64(2), 2.0], r".*2\)? and 2\.0"),
    ],
)
def test_choices_that_are_equal_are_refused_before_anything_is_stored(tmp_path, choices, equal):
    space, run = choosing(choices), tmp_path / "run"
    with pytest.raises(SpaceError, match=f"'value' of the space: its choices {equal} are equal"):
        ms.search(space, ToyEvaluator(), run=run, trials=2, progress=None)
    assert not run.exists()


@pytest.mark.slow
def test_a_search_over_tuples_goes_on_and_takes_given_ones(tmp_path):
    def space(trial):
        near = trial.suggest_categorical("near", [(0, 1), (0, 2), (0, 3, 4)])
        assert isinstance(near, tuple)
        return masks.offsets(near) | masks.window(
            trial.suggest_int("reach", np.int64(0), np.int64(9), log=np.bool_(False))
        )

    def run(name, trials):
        given = [{"near": (0, 2), "reach": np.int64(3)}, {"near": [0, 1], "reach": 4}]
        settings = dict(run=tmp_path / name, trials=trials, progress=None)
        return ms.search(space, ToyEvaluator(), enqueue=given, **settings).records()

    whole = [(record.mask, record.params) for record in run("whole", 6)]
    run("parts", 3)
    assert [(record.mask, record.params) for record in run("parts", 6)] == whole
    assert [params["near"] for _, params in whole[:2]] == ["[0, 2]", "[0, 1]"]
    assert whole[0][0] == masks.offsets((0, 2)) | masks.window(3)


# -- given parameters ----------------------------------------------------------------------------
GIVEN = [{"family": "window", "reach": 3}, {"family": "stride", "period": 5}]


def search_toy(run, trials, **settings):
    settings = dict(enqueue=GIVEN, strategy="random") | settings
    return ms.search(toy_space, ToyEvaluator(), run=run, trials=trials, progress=None, **settings)


@pytest.mark.nightly  # continuous integration runs it
@pytest.mark.parametrize("strategy", ["tpe", Windows])
def test_given_parameters_come_first_and_resume(tmp_path, strategy):
    def made():
        return strategy if isinstance(strategy, str) else strategy()

    study = search_toy(tmp_path / "run", 9, strategy=made())
    first = study.records()[:2]
    assert [record.params for record in first] == GIVEN
    assert [record.origin for record in first] == ["enqueued"] * 2
    assert [record.mask for record in first] == [masks.window(3), masks.stride(5)]
    trained = [record for record in study.records() if record.status == "done"]
    assert len(trained) == 9  # a mask that is drawn again counts as none
    for trials in (1, 2, 5, 9):
        parts = search_toy(tmp_path / "parts", trials, strategy=made())
    assert outcome(parts) == outcome(study)


@pytest.mark.nightly
def test_samplers_learn_from_them(tmp_path):
    study = search_toy(tmp_path / "run", 8, strategy="tpe")
    other = [{"family": "window", "reach": 0}, {"family": "window", "reach": 12}]
    apart = search_toy(tmp_path / "apart", 8, strategy="tpe", enqueue=other)
    assert outcome(study) != outcome(apart)
    assert study.optuna.trials[0].params == GIVEN[0]  # and so does Optuna


@pytest.mark.slow
def test_own_strategies_number_their_draws_as_ever(tmp_path):
    study = search_toy(tmp_path / "run", 4, strategy=Windows())
    assert [r.mask for r in study.records()[2:]] == [masks.window(0), masks.window(1)]


@pytest.mark.slow
def test_other_given_parameters_are_another_search(tmp_path):
    search_toy(tmp_path / "run", 2)
    with pytest.raises(ms.errors.ResumeError, match="enqueue: was"):
        search_toy(tmp_path / "run", 4, enqueue=GIVEN[:1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"enqueue\[1\] lacks 'family'; the space asks for suggest_categorical"),
        ({"family": "window"}, r"lacks 'reach'; the space asks for suggest_int\(0, 12\)"),
        ({"family": "star"}, r"family = 'star' cannot be drawn; .*'window', 'stride'"),
        ({"family": "window", "reach": 13}, r"reach = 13 cannot be drawn; .*\(0, 12\)"),
        ({"family": "window", "reach": 2.0}, r"reach = 2\.0 cannot be drawn"),
        ({"family": "window", "reach": True}, r"reach = True cannot be drawn"),
        (GIVEN[0] | {"gap": 2}, r"does not ask for 'gap' \(= 2\) .* asks for family, reach"),
        ("window", r"maps parameters to values, got 'window'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_the_first_trial(tmp_path, given, message):
    with pytest.raises(ms.errors.SearchError, match=message):
        search_toy(tmp_path / "run", 4, enqueue=[GIVEN[0], given])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_the_space_makes_of_it_must_fit(tmp_path):
    def narrow(trial):
        mask = masks.shifts([trial.suggest_int("shift", 0, 2)])
        trial.suggest_int("one", 1, 1)
        return mask

    def run(**given):
        settings = dict(run=tmp_path / "run", trials=1, enqueue=[given], progress=None)
        return ms.search(narrow, ToyEvaluator(), **settings)

    with pytest.raises(ms.errors.SearchError, match=r"enqueue\[0\] = .*'shift': 2.* keeps no key"):
        run(shift=2, one=1)
    with pytest.raises(ms.errors.SearchError, match=r"one = 3 cannot be drawn; .*int\(1, 1\)"):
        run(shift=0, one=3)
    assert run(shift=0, one=1).records()[0].params == {"shift": 0, "one": 1}
    with pytest.raises(ms.errors.SearchError, match="this search has none"):
        ms.search(None, ToyEvaluator(), run=tmp_path / "b", trials=1, enqueue=[{"a": 1}])
