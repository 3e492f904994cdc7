"""search and compare: resume, reuse, refusals, failures. Nothing that was computed is lost."""

import itertools
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from killing import outcome
from optuna.trial import BaseTrial
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Objective, Record, Report
from masksearch.errors import EmptyRowError, ResumeError, SearchError, UnknownNameError
from masksearch.executors.job import JobRun
from masksearch.masks.measure import fingerprint
from masksearch.study.status import read_status
from masksearch.study.store import StudyStore


@pytest.mark.slow
def test_a_run_folder_may_be_named_from_the_home_folder(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    study = drawn("~/run", trials=2, progress=None)
    assert study.run == home / "run"
    assert outcome(ms.open_study("~/run")) == outcome(study)
    each = {"a": masks.full(), "b": masks.window(2)}
    compared = ms.compare(each, ToyEvaluator(), run="~/compared", progress=None)
    assert ms.Comparison.open("~/compared").entries.keys() == compared.entries.keys()
    assert ms.Comparison.open("~/compared").report() == home / "compared" / "report.html"
    assert (home / "compared" / "report.html").is_file()
    with pytest.raises(ValueError, match="has no run folder; give a path"):
        replace(compared, run=None).report()
    assert {path.name for path in home.iterdir()} >= {"run", "compared"}
    assert not list(here.iterdir())


@pytest.mark.parametrize("address", ["journal:{}/shared.log", "sqlite:///{}/shared.db"])
def test_a_driver_that_fails_removes_no_storage_that_others_use(tmp_path, address):
    """It came first, and so made the file."""
    storage, other = address.format(tmp_path), tmp_path / "other"
    first = StudyStore(tmp_path / "failed", storage)
    drawn(other, storage=storage, trials=2, progress=None)
    first.close(undo=True)
    assert len(ms.open_study(other, storage).records()) == 2
    assert not (tmp_path / "failed").exists()


@pytest.mark.slow
def test_another_baseline_of_an_old_name_is_refused(tmp_path):
    study = drawn(tmp_path, trials=1, baselines={"mine": masks.window(1)})
    drawn(tmp_path, trials=2, baselines={"mine": masks.window(1), "star": masks.star()})
    message = r"'mine' is star\(\) here, and was judged as window\(1\); give it another name"
    with pytest.raises(SearchError, match=message):
        drawn(tmp_path, trials=3, baselines={"mine": masks.star()})
    assert len(study.records()) == 4


def drawn(run, judge=None, **settings) -> ms.Study:
    """A random search of the toy's space."""
    return ms.search(space, judge or ToyEvaluator(), run=run, strategy="random", **settings)


def test_search_stores_every_trial_as_a_record(tmp_path):
    study = ms.search(space, ToyEvaluator(), run=tmp_path / "run", trials=6, strategy="tpe")
    records = study.records()
    assert sum(record.status == "done" for record in records) == 6
    assert {record.status for record in records} <= {"done", "reused"}
    first = records[0]
    assert [report.step for report in first.curve] == [1, 2, 4]
    assert first.values["loss"] == first.curve[-1].values["loss"]
    assert first.measures["sparsity"] == pytest.approx(first.mask.sparsity(16))
    assert first.fingerprint == fingerprint(first.mask, ToyEvaluator.shape)
    frame = study.frame()
    assert list(frame["number"]) == list(range(len(records)))
    assert {"loss", "sparsity", "block_density", "hops", "params.family"} <= set(frame.columns)


@pytest.mark.slow
def test_search_and_compare_show_themselves_on_standard_error(tmp_path, capsys):
    ms.search(space, ToyEvaluator(), run=tmp_path / "run", trials=4, strategy="random")
    out, err = capsys.readouterr()
    assert out == ""
    shown = dict.fromkeys(line.split("  ")[0] for line in err.splitlines())
    assert [name for name in shown if name != "random 0/4"] == [  # said where the first takes long
        f"random {k}/4" for k in (1, 2, 3, 4)
    ]
    ms.compare({"a": masks.full()}, ToyEvaluator(), run=tmp_path / "compare", seeds=range(3))
    assert "compare 3/3" in capsys.readouterr().err
    ms.search(space, ToyEvaluator(), run=tmp_path / "quiet", trials=2, progress=None)
    ms.compare({"a": masks.full()}, ToyEvaluator(), run=tmp_path / "q", progress=None)
    assert capsys.readouterr() == ("", "")


def test_time_left_counts_what_is_trained_once_for_no_mask(tmp_path, capsys, monkeypatch):
    clock, told = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Shares(ToyEvaluator):
        def provide_models(self, seed):
            clock[0] += 600.0

        def __call__(self, mask, *, seed, workdir):
            yield from super().__call__(mask, seed=seed, workdir=workdir)
            clock[0] += 10.0

    def listen(record):
        told.append(read_status(tmp_path)["seconds_left"])

    each = {f"w{reach}": masks.window(reach) for reach in range(3)}
    how = {"seeds": [0], "executor": ms.Local(isolate=False), "listeners": [listen]}
    ms.compare(each, Shares(), run=tmp_path, **how)
    lines = capsys.readouterr().err.splitlines()
    assert [part for line in lines for part in line.split("  ") if " left" in part] == [
        *("0:20 left", "0:10 left")
    ]
    assert told == [20.0, 10.0, 0.0]


class Follower:
    """A listener that also follows reports."""

    def __init__(self) -> None:
        self.said: list[tuple[int, object]] = []

    def reported(self, number: int, report: Report) -> None:
        self.said.append((number, report.step))

    def __call__(self, record: Record) -> None:
        self.said.append((record.number, record.status))


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2])
def test_listeners_get_reports_while_a_trial_runs(tmp_path, slots):
    follower = Follower()
    candidates = {"a": masks.full(), "b": masks.window(2), "same": masks.full()}
    how = {"seeds": [0], "executor": ms.Local(slots=slots), "listeners": [follower]}
    ms.compare(candidates, ToyEvaluator(), run=tmp_path / "run", **how)
    for number in (0, 1):
        assert [said for n, said in follower.said if n == number] == [1, 2, 4, "done"]
    assert (2, "reused") in follower.said


def test_a_trial_that_is_begun_again_reports_each_step_once(tmp_path):
    class Twice:
        """An executor whose worker is lost after two reports."""

        def run(self, work):
            while (proposal := work.ask()) != "done":
                lost = JobRun(proposal, work.evaluator, work.workdir)
                for _ in range(2):
                    work.report(proposal.number, lost.next_report())
                work.tell(JobRun(proposal, work.evaluator, work.workdir).run(work.report))

    follower = Follower()
    how = {"seeds": [0], "executor": Twice(), "listeners": [follower]}
    ms.compare({"a": masks.full()}, ToyEvaluator(), run=tmp_path / "run", **how)
    assert follower.said == [(0, 1), (0, 2), (0, 4), (0, "done")]


@pytest.mark.slow
def test_equal_masks_are_not_trained_twice(tmp_path):
    log = tmp_path / "log"
    study = drawn(tmp_path / "run", ToyEvaluator(log=log), trials=9)
    calls = log.read_text().splitlines()
    prints = [record.fingerprint for record in study.records()]
    assert len(calls) == len(set(calls)) == len(set(prints)) == 9  # what is known counts as none
    reused = [record for record in study.records() if record.status == "reused"]
    assert len(reused) == len(prints) - 9 > 0
    by_print = {r.fingerprint: r for r in study.records() if r.status == "done"}
    assert all(record.values == by_print[record.fingerprint].values for record in reused)
    assert all("reused_from" in record.artifacts for record in reused)


@pytest.mark.nightly
def test_different_expressions_of_one_mask_are_one_mask(tmp_path):
    def twice(trial: BaseTrial) -> masks.Mask:
        if trial.suggest_categorical("form", ["a", "b"]) == "a":
            return masks.window(2)
        return masks.window(2) | masks.window(1)

    study = ms.search(twice, ToyEvaluator(), run=tmp_path / "run", trials=8, strategy="random")
    assert Counter(r.status for r in study.records()) == {"done": 1, "reused": 200}


@pytest.mark.slow
def test_masks_that_differ_beyond_the_shape_are_not_one(tmp_path):
    class Longer(ToyEvaluator):
        beyond_shape = True  # costs, say, are taken at another length

    candidates = {"a": masks.full(), "b": masks.window(15), "c": masks.full()}  # equal at n = 16
    one = ms.compare(candidates, ToyEvaluator(), run=tmp_path / "one", seeds=[0])
    assert [r.status for r in one.records] == ["done", "reused", "reused"]
    more = ms.compare(candidates, Longer(), run=tmp_path / "more", seeds=[0])
    assert [r.status for r in more.records] == ["done", "done", "reused"]


@pytest.mark.slow
def test_constraint_on_a_reported_value_is_checked_at_the_end(tmp_path):
    study = drawn(tmp_path / "run", trials=9, constraints=["loss <= 0.4", "sparsity >= 0.3"])
    seen = Counter()
    for record in study.records():
        if record.measures["sparsity"] < 0.3:
            assert (record.status, record.curve) == ("stopped", ())  # before any training
        elif record.values["loss"] > 0.4:
            assert record.status == "stopped"
            assert record.error.startswith("violates loss <= 0.4: loss = ")
        else:
            assert record.status in ("done", "reused")
        seen[record.status] += 1
    assert seen["stopped"] > 3
    assert seen["done"]
    assert all(record.values["loss"] <= 0.4 for record in study.frontier())


@pytest.mark.slow
def test_scheduler_stops_trials_and_its_observations_are_kept(tmp_path):
    halving = {"scheduler": ms.ParetoHalving((1, 2))}
    study = drawn(tmp_path / "run", trials=6, **halving)
    stopped = [r for r in study.records() if r.status == "stopped" and r.curve]
    assert stopped
    assert all(r.step == r.curve[-1].step <= 2 for r in stopped)
    assert all(r.status in ("done", "reused") for r in study.frontier())
    whole = drawn(tmp_path / "whole", trials=9, **halving)
    assert outcome(drawn(tmp_path / "run", trials=9, **halving)) == outcome(whole)
    with pytest.raises(ResumeError, match=r"scheduler: was ParetoHalving"):
        drawn(tmp_path / "run", trials=10)


@pytest.mark.slow
def test_scheduler_never_ends_baselines(tmp_path):
    class Strict:
        """Ends everything at once."""

        def observe(self, number, report, measures):
            return False

        def __repr__(self):
            return "Strict()"

    above = {"star": masks.star(), "w": masks.window(1)}
    study = drawn(tmp_path / "run", trials=3, scheduler=Strict(), baselines=above)
    statuses = [(r.role, r.name, r.status, r.step) for r in study.records()]
    assert statuses[:2] == [("baseline", "star", "done", 4), ("baseline", "w", "done", 4)]
    assert {row[2:] for row in statuses[2:]} <= {("stopped", 1), ("reused", 4)}


@pytest.mark.slow
def test_listener_that_remembers_is_told_what_a_resumed_study_holds(tmp_path):
    class Remembering:
        def __init__(self) -> None:
            self.old: list[int] = []
            self.new: list[int] = []

        def restore(self, records: list[Record]) -> None:
            self.old = [record.number for record in records]

        def __call__(self, record: Record) -> None:
            self.new.append(record.number)

    for trials, old, new in ((3, [], [0, 1, 2]), (5, [0, 1, 2], [3, 4, 5])):  # 4 is known
        listener = Remembering()
        ms.search(space, ToyEvaluator(), run=tmp_path / "run", trials=trials, listeners=[listener])
        assert (listener.old, listener.new) == (old, new)


@pytest.mark.slow
def test_interrupted_equal_masks_are_trained_once_after_resuming(tmp_path):
    """Two open trials of one mask: the first runs, the second is answered from it."""
    evaluator, mask = ToyEvaluator(), masks.window(3)
    once = ms.compare({"a": mask}, evaluator, run=tmp_path / "once", seeds=[0])
    store = StudyStore(tmp_path / "run")
    store.create(evaluator.objectives, once.notes)
    for name in "ab":
        store.begin(replace(once.records[0], number=-1, status="running", name=name), -1)
    store.close()
    how = {"run": tmp_path / "run", "seeds": [0], "executor": ms.Local(slots=2)}
    comparison = ms.compare({"a": mask, "b": mask}, evaluator, **how)
    assert [r.status for r in comparison.records] == ["done", "reused"]


@pytest.mark.nightly
def test_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    whole = ms.search(space, ToyEvaluator(), run=tmp_path / "a", trials=6, seconds=100)
    jumps = itertools.cycle([0.0, -3e6, 5e7, -1e8])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    jumped = ms.search(space, ToyEvaluator(), run=tmp_path / "b", trials=6, seconds=100)
    assert outcome(jumped) == outcome(whole)
    assert all(0 <= record.seconds < 60 for record in jumped.records())


@pytest.mark.slow
def test_baselines_come_first_and_on_top(tmp_path):
    arguments = dict(run=tmp_path / "run", baselines=ms.masks.FAMILIES)
    study = ms.search(space, ToyEvaluator(), trials=4, **arguments)
    told = [(record.origin, record.name, record.source) for record in study.records()]
    assert told[:-4] == [("baselines", name, "hand") for name in ms.masks.FAMILIES]
    assert told[-4:] == [("tpe", "", f"search {study.run}#{6 + k}") for k in range(4)]
    again = ms.search(space, ToyEvaluator(), trials=6, **arguments)
    assert Counter(r.status for r in again.records())["done"] == len(ms.masks.FAMILIES) + 6


@pytest.mark.slow
def test_best_is_what_the_strategy_proposed(tmp_path):
    arguments = dict(run=tmp_path / "run", baselines={"best": masks.window(3)})
    study = ms.search(space, ToyEvaluator(), trials=0, **arguments)
    with pytest.raises(ms.errors.SearchError, match=r"only baselines .* \(1\), nothing that"):
        study.best()
    assert study.best(baselines=True).name == "best"


@pytest.mark.slow
def test_frontier_and_best(tmp_path):
    study = ms.search(space, ToyEvaluator(), run=tmp_path / "run", trials=8, strategy="random")
    front = study.frontier()
    for record in study.records():
        assert any(
            f.values["loss"] <= record.values["loss"]
            and f.measures["sparsity"] >= record.measures["sparsity"]
            for f in front
        )
    best = study.best(sparsity=0.7)
    sparse = [r for r in study.records() if r.measures["sparsity"] >= 0.7]
    assert best.values["loss"] == min(r.values["loss"] for r in sparse)
    sparsest = max(record.measures["sparsity"] for record in study.records())
    with pytest.raises(SearchError, match=rf"0\.999 or more; the sparsest has {sparsest:.4g}"):
        study.best(sparsity=0.999)


@pytest.mark.slow
def test_workers_give_what_one_process_gives(tmp_path):
    alone = drawn(tmp_path / "a", trials=6, seed=2)
    pool = drawn(tmp_path / "b", trials=6, seed=2, executor=ms.Local(slots=2))
    assert [r[2:] for r in outcome(alone)] == [r[2:] for r in outcome(pool)]


# -- failures -----------------------------------------------------------------------------------
@pytest.mark.slow
def test_failing_trials_are_recorded_and_the_search_goes_on(tmp_path):
    def sometimes(trial: BaseTrial) -> masks.Mask:
        kind = trial.suggest_categorical("kind", ["good", "raises", "none", "empty", "heads"])
        if kind == "raises":
            raise KeyError("my own bug")
        if kind == "none":
            return None  # type: ignore[return-value]
        if kind == "empty":
            return masks.shifts([-1])
        if kind == "heads":
            return masks.per_head([masks.full()] * 3)
        return masks.window(trial.suggest_int("reach", 0, 15))

    study = ms.search(sometimes, ToyEvaluator(), run=tmp_path / "r", trials=6, strategy="random")
    records = study.records()
    assert sum(record.status == "done" for record in records) == 6
    errors = {r.params["kind"]: r.error for r in records if r.status == "failed"}
    assert "KeyError: 'my own bug'" in errors["raises"]
    assert "the space returned NoneType, not a Mask" in errors["none"]
    assert "EmptyRowError: layer 0, head 0, row 0 keeps no key" in errors["empty"]
    assert "HeadCountError: the mask has 3 heads, asked for 2" in errors["heads"]


@pytest.mark.slow
def test_nan_is_a_failure_not_a_result(tmp_path):
    study = drawn(tmp_path / "run", ToyEvaluator(nan_at=0.7), trials=8)
    failed = [record for record in study.records() if record.status == "failed"]
    assert failed
    assert all(not record.values for record in failed)
    assert all("loss = nan at step 4" in record.error for record in failed)
    assert all(record.status in ("done", "reused") for record in study.frontier())


def raises(*words, error=ValueError):
    def call(mask, seed, workdir):
        number = int(workdir.name)
        raise error(words[number] if number < len(words) else words[-1])
        yield

    return call


def lacks_a_key(mask, seed, workdir):
    yield Report(1, {"losses": 0.5})


def returns_a_report(mask, seed, workdir):
    return Report(1, {"loss": 0.5})


LACKS = "lacks loss; it holds losses; did you mean 'losses'.*test_driver.py:.*Broken.__call__"
BROKEN = {  # what the evaluator does -> trials until the search stops, and what it says
    "lacks a key": (lacks_a_key, 1, LACKS),
    "yields nothing": (lambda *_: iter(()), 1, "reported nothing"),
    "returns": (returns_a_report, 1, "returns Report: yield ms.contracts.Report"),
    "the same line and words": (raises("broken"), 2, "first 2 trials all failed; .*: broken"),
    "other words": (raises(*"abcde"), 5, "first 5 trials all failed; .*: a "),
    "no memory": (raises("DefaultCPUAllocator: can't allocate memory"), 5, "first 5 trials"),
    "no memory of a GPU": (raises("", error=torch.OutOfMemoryError), 5, "first 5 trials"),
    "a limit of time": (raises("late", error=TimeoutError), 5, "first 5 trials"),
    "its process ends": (raises(3, error=SystemExit), 5, "first 5 trials"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_evaluator_costs_as_few_trials_as_show_it(tmp_path, case):
    fails, trials, says = BROKEN[case]

    class Broken(ToyEvaluator):
        def __call__(self, mask, *, seed, workdir):
            return fails(mask, seed, workdir)

    with pytest.raises(SearchError, match=says):
        ms.search(different, Broken(), run=tmp_path / "run", trials=50, strategy="random")
    assert [r.status for r in ms.Study(tmp_path / "run").records()] == ["failed"] * trials


def different(trial: BaseTrial) -> masks.Mask:
    return masks.window(trial.number)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fails", [pytest.param(lacks_a_key, marks=pytest.mark.nightly), raises("broken")]
)
def test_a_search_in_which_a_trial_has_succeeded_goes_on(tmp_path, fails):
    class Sometimes(ToyEvaluator):
        def __call__(self, mask, *, seed, workdir):
            runs = super().__call__(mask, seed=seed, workdir=workdir)
            return runs if mask.reach < 2 else fails(mask, seed, workdir)

    with pytest.raises(SearchError, match="last 20 trials all failed"):
        ms.search(different, Sometimes(), run=tmp_path / "run", trials=4, strategy="random")
    statuses = [record.status for record in ms.Study(tmp_path / "run").records()]
    assert statuses == ["done"] * 2 + ["failed"] * 20


class OldExecutor:
    def run(self, strategy, evaluator, *, budget, seed, workdir, on_record, on_report):
        raise AssertionError("not called")


UNKNOWN = UnknownNameError
MISTAKES = {
    "strategy": ({"strategy": "tpee"}, UNKNOWN,
        r"'tpee'; did you mean 'tpe'\? Known: random, tpe"),
    "option": ({"strategy": "prune", "strategy_options": {"round": 3}}, UNKNOWN,
        "did you mean 'rounds'"),
    "foreign option": ({"strategy_options": {"gates": {}}}, UNKNOWN,
        r"option of strategy 'tpe': 'gates'"),
    "no gradients": ({"space": None, "strategy": "dam"}, SearchError,
        r"needs an evaluator with differentiable\(seed\)"),
    "executor": ({"executor": OldExecutor()}, SearchError,
        r"OldExecutor\.run\(strategy, .*run\(self, work: .*Trials\)"),
    "no end": ({"trials": None}, SearchError, "give trials= or seconds="),
    "progress": ({"progress": "atuo"}, UNKNOWN, "auto"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_before_anything_runs(tmp_path, mistake):
    given, error, message = MISTAKES[mistake]
    log = tmp_path / "log"
    settings = {"space": space, "run": tmp_path / "run", "trials": 1} | given
    with pytest.raises(error, match=message):
        ms.search(evaluator=ToyEvaluator(log=log), **settings)
    assert not log.exists()


@pytest.mark.slow
def test_executor_of_four_lines_searches(tmp_path):
    class Mine:
        def run(self, work):
            while (proposal := work.ask()) != "done":
                job = JobRun(proposal, work.evaluator, work.workdir)
                work.tell(job.run(work.report))

    mine = ms.search(space, ToyEvaluator(), run=tmp_path / "a", trials=5, executor=Mine())
    local = ms.search(space, ToyEvaluator(), run=tmp_path / "b", trials=5)
    assert outcome(mine) == outcome(local)


@pytest.mark.slow
def test_seconds_end_a_search_between_trials(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(
        "masksearch.study.session.time", SimpleNamespace(monotonic=lambda: clock[0])
    )

    class TenSeconds(ToyEvaluator):
        def __call__(self, mask, *, seed, workdir):
            clock[0] += 10.0
            yield from super().__call__(mask, seed=seed, workdir=workdir)

    here = ms.Local(isolate=False)
    study = drawn(tmp_path / "run", TenSeconds(), seconds=25, executor=here)
    trained = [record for record in study.records() if record.status == "done"]
    assert len(trained) == 3


def test_unwritable_folder_is_said_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SearchError, match="cannot write to the run folder"):
        ms.search(space, ToyEvaluator(), run=tmp_path / "file" / "run", trials=1)


# -- resume -------------------------------------------------------------------------------------
@pytest.mark.slow
def test_resume_refuses_another_space_evaluator_or_seed(tmp_path):
    run = tmp_path / "run"
    ms.search(space, ToyEvaluator(), run=run, trials=2)

    def other(trial: BaseTrial) -> masks.Mask:
        return masks.window(trial.suggest_int("reach", 0, 3))

    for changed, said in (
        ({"space": other}, r"belongs to another search \(space: was"),
        ({"evaluator": ToyEvaluator("other")}, "protocol: was toy, now other"),
        ({"seed": 1}, "seed: was 0, now 1"),
        ({"strategy": "random"}, "strategy: was tpe, now random"),
    ):
        with pytest.raises(ResumeError, match=said):
            ms.search(**{"space": space, "evaluator": ToyEvaluator()} | changed, run=run, trials=3)
    assert len(ms.Study(run).records()) == 2


@pytest.mark.slow
def test_study_without_a_trial_belongs_to_whoever_begins_it(tmp_path):
    run = tmp_path / "run"

    class Lazy:
        def ask(self):
            raise SearchError("not today")

        def tell(self, record):
            pass

    class Alone(ToyEvaluator):
        objectives = (Objective("loss", "max", 0.0),)

    with pytest.raises(SearchError, match="not today"):
        ms.search(space, Alone("other"), run=run, trials=2, strategy=Lazy(), progress=None)
    study = ms.search(space, ToyEvaluator(), run=run, trials=2, seed=1, progress=None)
    assert len(study.records()) == 2
    assert len(study.objectives) == 2


@pytest.mark.slow
def test_interrupted_trial_runs_again_under_its_own_number(tmp_path):
    whole = ms.search(space, ToyEvaluator(), run=tmp_path / "a", trials=6)

    class Interrupted(ToyEvaluator):
        def __call__(self, mask, *, seed, workdir):
            if len(Interrupted.seen) == 3:
                raise KeyboardInterrupt
            Interrupted.seen.append(mask)
            yield from super().__call__(mask, seed=seed, workdir=workdir)

        seen: list[masks.Mask] = []  # noqa: RUF012

    with pytest.raises(KeyboardInterrupt) as stop:
        ms.search(
            space, Interrupted(), run=tmp_path / "b", trials=6, executor=ms.Local(isolate=False)
        )
    (note,) = stop.value.__notes__
    assert note.startswith(f"what was finished is kept in {tmp_path / 'b'}; go on with: the same")
    left = [r for r in ms.Study(tmp_path / "b").records() if r.status == "running"]
    assert len(left) == 1
    resumed = ms.search(space, ToyEvaluator(), run=tmp_path / "b", trials=6)
    assert outcome(resumed) == outcome(whole)


# -- compare ------------------------------------------------------------------------------------
@pytest.mark.slow
def test_compare_runs_each_mask_on_each_seed_once(tmp_path):
    log = tmp_path / "log"
    candidates = {"dense": masks.full(), **ms.masks.FAMILIES, "mine": masks.window(4)}
    arguments = dict(run=tmp_path / "run", seeds=range(3))
    comparison = ms.compare(candidates, ToyEvaluator(log=log), **arguments)
    assert len(comparison.records) == 3 * len(candidates)
    frame = comparison.frame()
    assert set(frame["mask"]) == set(candidates)
    assert set(frame["n_seeds"]) == {3}
    ms.compare(candidates, ToyEvaluator(log=log), **arguments)
    assert len(log.read_text().splitlines()) == 3 * len(candidates)
    more = ms.compare(candidates | {"new": masks.window(6)}, ToyEvaluator(log=log), **arguments)
    assert len(log.read_text().splitlines()) == 3 * len(candidates) + 3
    assert "new" in set(more.frame()["mask"])


@pytest.mark.slow
def test_compare_remembers_what_kind_each_mask_is(tmp_path):
    found = ms.search(space, ToyEvaluator(), run=tmp_path / "search", trials=2).best()
    arguments = dict(run=tmp_path / "run", seeds=[1, 2])
    candidates = {
        "found": found,
        "random idea": masks.window(4),
        "keys": masks.random_keys(3, seed=0),
        "star": masks.star(),
        "dense": masks.full(),
    }
    said = {"keys": "control"}
    comparison = ms.compare(candidates, ToyEvaluator(), kinds=said, **arguments)
    kinds = {name: entry.kind for name, entry in comparison.entries.items()}
    assert kinds == {
        "found": "searched",
        "random idea": "candidate",
        "keys": "control",
        "star": "hand-designed",
        "dense": "control",
    }
    stored = ms.Comparison.open(tmp_path / "run")
    assert {n: e.kind for n, e in stored.entries.items()} == kinds
    again = ms.compare({"found": found.mask, "mine": masks.window(3)}, ToyEvaluator(), **arguments)
    assert {n: e.kind for n, e in again.entries.items()} == {
        "found": "searched",
        "mine": "candidate",
    }
    with pytest.raises(ms.errors.UnknownNameError, match="did you mean 'searched'"):
        ms.compare(candidates, ToyEvaluator(), kinds={"keys": "search"}, **arguments)
    with pytest.raises(ms.errors.UnknownNameError, match="did you mean 'keys'"):
        ms.compare(candidates, ToyEvaluator(), kinds={"key": "control"}, **arguments)


def test_compare_refuses_what_does_not_fit_before_training(tmp_path):
    log, pair = tmp_path / "log", {"good": masks.full(), "bad": masks.shifts([-1])}
    with pytest.raises(EmptyRowError):
        ms.compare(pair, ToyEvaluator(log=log), run=tmp_path / "run")
    assert not log.exists()


@pytest.mark.parametrize(
    ("candidates", "seeds", "said"),
    [
        ({}, [0], "at least one mask, got an empty mapping"),
        ([masks.full()], [0], r'masks by name, such as \{"mine": masks.window\(3\)\}, got list'),
        ({"a": None}, [0], "'a' is to be a mask, .* got None"),
        ({"a": masks.window(1).dense(16)}, [0], r"'a' .* got a tensor .*masks.table\(tensor\)"),
        ({"a": masks.window}, [0], "'a' .* itself: call it"),
        ({"a": "windw(3)"}, [0], "did you mean 'window'"),
        ({"a": masks.full()}, 3, r"seeds are several .* got 3: give seeds=range\(3\)"),
        ({"a": masks.full()}, [], "at least one seed"),
        ({"a": masks.full()}, [0.5], r"each a whole number .* got \[0.5\]"),
        ({"a": masks.full()}, None, r"each a whole number .* got \[None\]"),
    ],
)
def test_compare_says_what_it_takes_before_training(tmp_path, candidates, seeds, said):
    log = tmp_path / "log"
    with pytest.raises(ValueError, match=said) as raised:
        ms.compare(candidates, ToyEvaluator(log=log), run=tmp_path / "run", seeds=seeds)
    assert "\n" not in str(raised.value)
    assert not log.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mask_is_searched_because_someone_says_so_never_for_its_name(tmp_path):
    toy, arguments = ToyEvaluator(), {"seeds": [1], "progress": None}
    study = drawn(tmp_path / "s", trials=3, baselines={"w": masks.window(2)}, progress=None)
    *_, proposed = study.records()
    baseline = next(r for r in study.records() if r.name == "w")
    given = {
        "random search": masks.window(4),
        "random like mine": masks.window(5),
        "control": masks.window(6),
        "oracle": masks.window(7),
        "proposed": proposed,
        "baseline": baseline,
        "of a run": str(tmp_path / "s"),
        "trial": f"{tmp_path / 's'}#{baseline.number}",
    }
    said = {"random search": "searched"}
    found = ms.compare(given, toy, run=tmp_path / "c", kinds=said, **arguments)
    kinds = {name: entry.kind for name, entry in found.entries.items()}
    assert kinds == dict.fromkeys(given, "candidate") | {
        "random search": "searched",
        "proposed": "searched",
        "of a run": "searched",
    }
    assert "random search: " in found.verdict()
    nobody = ms.compare({"random": masks.window(4)}, toy, run=tmp_path / "n", **arguments)
    assert 'kinds={"random": "searched"}' in nobody.verdict()
    none = ms.compare({"star": masks.star()}, toy, run=tmp_path / "o", **arguments)
    assert "nothing to decide" in none.verdict()
    assert "kinds=" in none.verdict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ms.search(space, ToyEvaluator(), run="r", trial=2),
         "search takes no trial=; did you mean 'trials'"),
        (lambda: ms.search(masks.window(3), ToyEvaluator()),
         r"search takes a function that draws a mask .*, got window\(3\)"),
        (lambda: ms.compare({}, ToyEvaluator(), run="r", seed=[2]),
         "compare takes no seed=; did you mean 'seeds'"),
        (lambda: ms.search(None, ToyEvaluator(), run="r", sampler=object()),
         "search takes no sampler=; here it is strategy=, which takes an Optuna sampler"),
        (lambda: ms.search(None, ToyEvaluator()), "search needs run=, the folder of its run"),
        (lambda: ms.attach("bert", masks.window(3)), "got 'bert'; open it first, as Auto"),
        (lambda: ms.save_pretrained("folder", None), "the model comes first, then the folder"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_told_with_the_right_one(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.slow
def test_compare_of_a_changed_mask_forgets_the_old_one(tmp_path):
    arguments = dict(run=tmp_path / "run", seeds=[0])
    ms.compare({"mine": masks.window(4)}, ToyEvaluator(), **arguments)
    comparison = ms.compare({"mine": masks.window(5)}, ToyEvaluator(), **arguments)
    assert [str(record.mask) for record in comparison.records] == ["window(5)"]


@pytest.mark.slow
def test_failed_runs_of_a_comparison_are_tried_again(tmp_path):
    arguments = dict(run=tmp_path / "run", seeds=[0, 1])
    broken = ms.compare({"mine": masks.window(4)}, ToyEvaluator(fails=True), **arguments)
    assert [record.status for record in broken.records] == ["failed", "failed"]
    mended = ms.compare({"mine": masks.window(4)}, ToyEvaluator(), **arguments)
    assert mended.frame()["n_seeds"].tolist() == [2]


@pytest.mark.slow
def test_a_failure_leaves_its_traceback_in_the_trials_folder(tmp_path):
    with pytest.raises(ms.errors.SearchError, match=r"0: RuntimeError .*toy\.py, line \d+: the"):
        ms.search(space, ToyEvaluator(fails=True), run=tmp_path / "run", trials=2)
    text = (tmp_path / "run" / "trials" / "0" / "traceback.txt").read_text()
    assert text.startswith("Traceback")
    assert "toy is broken" in text


@pytest.mark.slow
def test_where_nothing_has_finished_another_search_begins_anew(tmp_path):
    class Killed(ToyEvaluator):
        def __call__(self, mask, *, seed, workdir):
            (workdir / "left").touch()
            raise KeyboardInterrupt
            yield

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ms.search(space, Killed(), run=run, trials=2, executor=ms.Local(isolate=False))
    assert [record.status for record in ms.open_study(run).records()] == ["running"]
    study = ms.search(space, ToyEvaluator(), run=run, trials=2, seed=1)
    assert [(record.status, record.seed) for record in study.records()] == [("done", 1)] * 2
    assert not (run / "trials" / "0" / "left").exists()


@pytest.mark.slow
def test_a_result_that_cannot_be_stored_is_a_failed_trial(tmp_path, monkeypatch):
    finish = StudyStore.finish

    def fails(self, record):
        if record.number == 0 and record.status == "done":
            raise TypeError("Object of type Tensor is not JSON serializable")
        finish(self, record)

    monkeypatch.setattr(StudyStore, "finish", fails)
    first, second = ms.search(space, ToyEvaluator(), run=tmp_path / "r", trials=1).records()
    assert (first.status, second.status) == ("failed", "done")
    assert "cannot be stored: Object of type Tensor" in first.reason


@pytest.mark.slow
def test_slips_of_who_knows_optuna_have_a_remedy(tmp_path, monkeypatch):
    """Names of an Optuna study, a strategy in capitals, an executor by its name."""
    taken: list[ms.Local] = []

    class Ray(ms.Local):
        def run(self, work):
            taken.append(self)
            super().run(work)

    monkeypatch.setattr("masksearch.executors.ray.RayTune", Ray)
    how = {"run": tmp_path, "trials": 2, "strategy": "random", "progress": None}
    study = ms.search(space, ToyEvaluator(), executor="ray", **how)
    assert len(taken) == 1
    assert len(ms.search(space, ToyEvaluator(), executor="local", **how).records()) == 2
    for name in ("best_params", "trials"):
        with pytest.raises(AttributeError, match=rf"no '{name}'; Optuna's is study.optuna.{name}"):
            getattr(study, name)
        assert name in dir(type(ms.open_study(tmp_path).optuna))
    with pytest.raises(AttributeError, match=r"no 'nonsense'$"):
        _ = study.nonsense
    with pytest.raises(UnknownNameError, match="did you mean 'tpe'"):
        ms.search(space, ToyEvaluator(), **{**how, "strategy": "TPE", "run": tmp_path / "b"})
    with pytest.raises(SearchError, match=r"use ms.Local\(slots=2\)"):
        ms.search(space, ToyEvaluator(), executor="slurm", **{**how, "run": tmp_path / "c"})
