"""What travels to worker processes, and what cannot."""

import functools
import threading

import pytest
from contracts.toy import ToyEvaluator, space
from optuna.samplers import RandomSampler

import masksearch as ms
from masksearch.errors import SearchError
from masksearch.study.status import read_status, status_lines


class Locked(ToyEvaluator):
    @functools.cached_property
    def lock(self):
        return threading.RLock()

    @property
    def protocol(self):
        with self.lock:
            return "locked"


class Around(ToyEvaluator):
    def __init__(self):
        object.__setattr__(self, "parts", {"inner": [Locked()]})
        assert self.parts["inner"][0].protocol


class Rows(ToyEvaluator):
    def __init__(self):
        object.__setattr__(self, "rows", (row for row in "abc"))


class Remedied(Locked):
    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "lock"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (Locked(), r"Locked\.lock is a _thread\.RLock, which cannot be pickled"),
        (Around(), r"Around\.parts\['inner'\]\[0\]\.lock is a _thread\.RLock"),
        (Rows(), r"Rows\.rows is a builtins\.generator"),
    ],
)
def test_evaluator_that_cannot_travel_is_refused_before_the_first_trial(
    tmp_path, evaluator, message
):
    run = tmp_path / "run"
    with pytest.raises(SearchError, match=f"the evaluator cannot travel .*{message}") as caught:
        ms.search(space, evaluator, run=run, trials=2, executor=ms.Local(slots=2), progress=None)
    assert "__getstate__" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not ms.Study(run).records()
    said = " ".join(" ".join(status_lines(run, read_status(run))).split())  # lines are wrapped
    assert "stopped: the evaluator cannot travel" in said
    assert "masksearch resume" not in said


@pytest.mark.ray
def test_evaluator_that_cannot_travel_is_refused_before_ray_starts(tmp_path):
    with pytest.raises(SearchError, match=r"Locked\.lock is a _thread\.RLock"):
        ms.search(space, Locked(), run=tmp_path / "run", trials=2, executor=ms.RayTune())


@pytest.mark.slow
def test_the_remedy_of_the_message_works(tmp_path):
    evaluator = Remedied()
    assert evaluator.protocol
    study = ms.search(
        space, evaluator, run=tmp_path / "run", trials=2, executor=ms.Local(slots=2), progress=None
    )
    assert len(study.records()) == 2


@pytest.mark.slow
def test_strategy_and_space_stay_where_they_are(tmp_path):
    lock = threading.Lock()

    class Sampler(RandomSampler):
        def __init__(self):
            super().__init__(seed=0)
            self.lock = lock

    def locked(trial):
        with lock:
            return space(trial)

    study = ms.search(
        locked,
        ToyEvaluator(),
        run=tmp_path / "run",
        trials=2,
        strategy=Sampler(),
        executor=ms.Local(slots=2),
        progress=None,
    )
    assert len(study.records()) == 2
