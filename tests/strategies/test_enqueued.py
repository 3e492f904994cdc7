"""Given parameters are judged first, through the space."""

import pytest
from killing import outcome
from toy import ToyEvaluator, Windows, space

import masksearch as ms
from masksearch import masks

GIVEN = [{"family": "window", "reach": 3}, {"family": "stride", "period": 5}]


def search(run, trials, **settings):
    settings = dict(enqueue=GIVEN, strategy="random") | settings
    return ms.search(space, ToyEvaluator(), run=run, trials=trials, progress=None, **settings)


@pytest.mark.nightly  # continuous integration runs it
@pytest.mark.parametrize("strategy", ["tpe", "evolution", Windows])
def test_given_parameters_come_first_and_resume(tmp_path, strategy):
    def made():
        return strategy if isinstance(strategy, str) else strategy()

    study = search(tmp_path / "run", 9, strategy=made())
    first = study.records()[:2]
    assert [record.params for record in first] == GIVEN
    assert [record.origin for record in first] == ["enqueued"] * 2
    assert [record.mask for record in first] == [masks.window(3), masks.stride(5)]
    trained = [record for record in study.records() if record.status == "done"]
    assert len(trained) == 9  # a mask that is drawn again counts as none
    for trials in (1, 2, 5, 9):
        parts = search(tmp_path / "parts", trials, strategy=made())
    assert outcome(parts) == outcome(study)


@pytest.mark.nightly
def test_samplers_learn_from_them(tmp_path):
    study = search(tmp_path / "run", 8, strategy="tpe")
    other = [{"family": "window", "reach": 0}, {"family": "window", "reach": 12}]
    apart = search(tmp_path / "apart", 8, strategy="tpe", enqueue=other)
    assert outcome(study) != outcome(apart)
    assert study.optuna.trials[0].params == GIVEN[0]  # and so does Optuna


@pytest.mark.slow
def test_own_strategies_number_their_draws_as_ever(tmp_path):
    study = search(tmp_path / "run", 4, strategy=Windows())
    assert [r.mask for r in study.records()[2:]] == [masks.window(0), masks.window(1)]


@pytest.mark.slow
def test_other_given_parameters_are_another_search(tmp_path):
    search(tmp_path / "run", 2)
    with pytest.raises(ms.errors.ResumeError, match="enqueue: was"):
        search(tmp_path / "run", 4, enqueue=GIVEN[:1])


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
        search(tmp_path / "run", 4, enqueue=[GIVEN[0], given])
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
    with pytest.raises(
        ms.errors.SearchError, match=r"one = 3 cannot be drawn; .*suggest_int\(1, 1\)"
    ):
        run(shift=0, one=3)
    assert run(shift=0, one=1).records()[0].params == {"shift": 0, "one": 1}
    with pytest.raises(ms.errors.SearchError, match="this search has none"):
        ms.search(None, ToyEvaluator(), run=tmp_path / "b", trials=1, enqueue=[{"a": 1}])
