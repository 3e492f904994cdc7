"""The Ray Tune executor, on one small Ray that all tests share."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from other_process import python
from ray_fixtures import STEPS, Erratic, Troubled, Unloadable, begin_ray, listed
from toy import PlainTrials, ToyEvaluator, space
from toy_sentences import sentence_judge, write_sentences

from masksearch import (
    GlueEvaluator,
    Local,
    ParetoHalving,
    PlantedEvaluator,
    RayTune,
    compare,
    masks,
    search,
)
from masksearch.contracts import Record
from masksearch.errors import SearchError, install_command
from masksearch.executors.ray import (
    ClusterWatch,
    FirstError,
    TuneScheduler,
    temporary_storage,
    tolerate_losses,
)
from masksearch.strategies.opening import FixedQueue
from masksearch.tasks.planted.process import PlantedProcess
from masksearch.user_code import load_function

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.ray
PACKAGE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        begin_ray()
    yield ray
    ray.shutdown()


class Run:
    """One call of the executor, with all that it said."""

    def __init__(self, folder, evaluator, count=4, *goes_on, strategy=None, **options):
        work = PlainTrials(strategy or listed(count), evaluator, folder, *goes_on)
        self.records, self.reports = work.records, work.reports
        RayTune(**({"slots": 2} | options)).run(work)

    def by_number(self) -> dict[int, Record]:
        assert len({r.number for r in self.records}) == len(self.records), "a record came twice"
        return {r.number: r for r in self.records}

    def steps(self, number: int) -> list[int]:
        return [step for n, step in self.reports if n == number]


def free_cpus(seconds: float = 120.0) -> float:
    """CPUs that no trial holds, once Ray has noticed."""
    end = time.monotonic() + seconds
    while (free := ray.available_resources().get("CPU", 0.0)) < 2 and time.monotonic() < end:
        time.sleep(0.2)
    return free


# -- one run in which much goes wrong ----------------------------------------------------------
HOW = {1: "raise", 2: "nan", 3: "exit", 4: "kill once", 5: "hang", 6: "spin"}


@pytest.fixture(scope="module")
def troubled(cluster, tmp_path_factory):
    diary = tmp_path_factory.mktemp("diary")
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGUSR1)]
    environ = dict(os.environ)
    run = Run(
        tmp_path_factory.mktemp("run"),
        Troubled(HOW, diary=str(diary)),
        count=10,
        max_failures=1,
        limit_seconds=4.0,
    )
    run.diary = {
        int(path.name): [line.split() for line in path.read_text().splitlines()]
        for path in diary.iterdir()
        if path.suffix == ""
    }
    run.restored = handlers == [
        signal.getsignal(n) for n in (signal.SIGINT, signal.SIGUSR1)
    ] and environ == dict(os.environ)
    return run


def test_others_are_not_affected(troubled):
    records = troubled.by_number()
    for number in (0, 7, 8, 9):
        assert records[number].status == "done", records[number].error
        assert records[number].values == {"loss": 100.0 * number + STEPS}
        assert troubled.steps(number) == [1, 2, 3, 4]
        assert [r.step for r in records[number].curve] == [1, 2, 3, 4]


def test_a_failing_trial_keeps_its_traceback(troubled):
    record = troubled.by_number()[1]
    assert record.status == "failed"
    assert 'raise ValueError(f"trial {number} is broken")' in record.error
    assert "\nValueError: trial 1 is broken\n" in record.error
    assert re.fullmatch(r"ValueError in .*ray_fixtures.py, line \d+: .*broken", record.reason)
    assert record.values == {}


def test_nan_is_a_failure(troubled):
    record = troubled.by_number()[2]
    assert record.status == "failed"
    assert "loss = nan at step 2" in record.error


def test_a_dying_process_is_tried_again_and_then_a_failure(troubled):
    record = troubled.by_number()[3]
    assert record.status == "failed"
    assert record.reason.startswith("the worker process died 2 times in this trial: ")
    assert len({pid for _, pid, _ in troubled.diary[3]}) == 2


def test_a_process_that_is_killed_once_costs_nothing(troubled):
    record = troubled.by_number()[4]
    assert record.status == "done"
    assert record.values == {"loss": 404.0}
    steps = [int(step) for step, _, _ in troubled.diary[4]]
    assert steps == [1, 2, 2, 3, 4]  # its checkpoint was found again


@pytest.mark.parametrize("number", [5, 6])  # in Python; in C code that holds the interpreter
def test_a_trial_that_hangs_is_ended_at_the_limit_and_not_tried_again(troubled, number):
    record = troubled.by_number()[number]
    assert record.status == "failed"
    assert record.reason == "ran longer than the time limit of 4 s"
    assert "in go_wrong" in record.error
    assert [r.step for r in record.curve] == [1]
    assert len({pid for _, pid, _ in troubled.diary[number]}) == 1
    assert 4.0 <= record.seconds < 100


def test_a_process_takes_no_trial_after_a_failure(troubled):
    ends = {lines[-1][1]: number for number, lines in troubled.diary.items() if number in HOW}
    for number, lines in troubled.diary.items():
        for _, pid, _ in lines:
            if pid in ends and ends[pid] != number and HOW[ends[pid]] != "kill once":
                assert number < ends[pid], f"trial {number} ran after {ends[pid]} in {pid}"


def test_environment_and_signals_are_put_back(troubled):
    assert troubled.restored


# -- the same results as the executor of one machine -----------------------------------------
def essence(record: Record):
    params, values = sorted(record.params.items()), sorted(record.values.items())
    return record.number, record.status != "failed", str(record.mask), params, values, record.curve


def searched(folder, judge=None, drawn=space, slots=2, **how):
    """One search by this process's workers, and one by Ray's."""
    for name, executor in {"local": Local(), "ray": RayTune(slots=slots)}.items():
        yield search(drawn, judge or ToyEvaluator(), run=folder / name, executor=executor, **how)


def test_random_search_equals_local(cluster, tmp_path):
    local, on_ray = (
        sorted(essence(r)[1:] for r in study.records())
        for study in searched(tmp_path, trials=9, strategy="random", seed=3)
    )
    assert on_ray == local


class Heard:
    """A listener that counts the reports of a trial before its record."""

    def __init__(self) -> None:
        self.reports: Counter[int] = Counter()
        self.before: list[int] = []

    def reported(self, number, report) -> None:
        self.reports[number] += 1

    def __call__(self, record) -> None:
        self.before.append(self.reports[record.number])


def test_compare_equals_local(cluster, tmp_path):
    candidates = {f"w{i}": masks.window(i) for i in range(3)}
    found = {}
    for name, executor in {"local": Local(), "ray": RayTune(slots=2)}.items():
        heard = Heard()
        result = compare(
            candidates,
            ToyEvaluator(),
            run=tmp_path / name,
            seeds=range(2),
            executor=executor,
            listeners=[heard],
        )
        found[name] = sorted(essence(r)[1:5] for r in result.records)
        assert heard.before == [3] * 6  # all its reports
    assert found["ray"] == found["local"]


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", ["random", "tpe"])
def test_what_has_no_finite_loss_fails_as_on_one_machine(cluster, tmp_path, strategy):
    how = {"judge": Erratic(), "drawn": one_window, "slots": 1, "strategy": strategy}
    local, on_ray = searched(tmp_path, trials=6, seed=1, **how)
    records = on_ray.records()
    assert [*map(essence, records)] == [*map(essence, local.records())]
    said = {1: "loss = nan at step 2", 2: "loss = inf at step 2", 3: " is broken"}
    for record in records:
        kind = record.params["reach"] % 7
        assert (record.status == "failed") == (kind in said)
        assert said.get(kind, "") in record.error
    assert {record.status for record in records} > {"done"}
    scored = [record for record in records if record.scored]
    assert on_ray.best().params["reach"] == min(each.params["reach"] for each in scored)
    assert {each.number for each in on_ray.frontier()} <= {each.number for each in scored}


def one_window(trial):
    return masks.window(trial.suggest_int("reach", 0, 15))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:strategy 'nsga2' on a conditional space")
@pytest.mark.parametrize("strategy", ["tpe", "nsga2", "qmc", "gp"])
def test_every_strategy_equals_local_with_one_slot(cluster, tmp_path, strategy):
    how = {"strategy": strategy, "trials": 12}
    local, on_ray = (
        [(r.status, *essence(r)) for r in study.records()]
        for study in searched(tmp_path, slots=1, scheduler=ParetoHalving(rungs=(2,)), **how)
    )
    assert on_ray == local
    assert {row[0] for row in on_ray} > {"done"}


@pytest.mark.filterwarnings("ignore:DAM")
def test_dam_equals_local(cluster, tmp_path):
    """Also with two slots: its masks wait for its gates, which come back as an artifact."""
    evaluator = PlantedEvaluator(
        PlantedProcess(length=12, offsets=(4,), vocabulary=4),
        steps=6,
        downstream_steps=2,
        held_out_sequences=32,
    )
    options = {
        "config": {"steps": 12, "density": 0.3, "dense_warmup": 0.5},
        "densities": (0.4, 0.3),
    }
    places = {"local": Local(), "ray": RayTune(slots=2, storage_path=str(tmp_path / "scratch"))}
    found = {}
    for name, executor in places.items():
        study = search(
            None,
            evaluator,
            run=tmp_path / name,
            trials=3,
            strategy="dam",
            strategy_options=options,
            executor=executor,
        )
        found[name] = [essence(r)[1:] for r in study.records()]
        assert (tmp_path / name / study.records()[0].artifacts["gates"]).is_file()
    assert found["ray"] == found["local"]


def test_many_quick_trials_are_told_once_each_and_share_processes(cluster, tmp_path):
    """Tune asks for a worker and drops it where another one has become free meanwhile."""
    diary = tmp_path / "diary"
    diary.mkdir()
    run = Run(tmp_path / "run", Troubled(diary=str(diary)), count=25)
    assert sorted(run.by_number()) == list(range(25))
    assert all(r.status == "done" for r in run.records)
    pids = {line.split()[1] for path in diary.iterdir() for line in path.read_text().splitlines()}
    assert len(pids) <= 3
    for number in range(25):
        assert run.steps(number) == [1, 2, 3, 4]


# -- ends --------------------------------------------------------------------------------------
def test_on_report_ends_a_trial(cluster, tmp_path):
    run = Run(tmp_path, Troubled(), 4, lambda number, report: (number, report.step) != (2, 2))
    records = run.by_number()
    assert [records[n].status for n in range(4)] == ["done", "done", "stopped", "done"]
    assert records[2].values == {"loss": 202.0}
    assert len(records[2].curve) == 2
    assert run.steps(2) == [1, 2]


@pytest.mark.nightly
@pytest.mark.parametrize("problem", [SearchError("enough"), KeyboardInterrupt()], ids=repr)
def test_what_a_strategy_raises_comes_out_as_it_is(cluster, tmp_path, problem):
    class Angry(FixedQueue):
        def tell(self, record):
            raise problem

    strategy = Angry({f"w{i}": masks.window(i) for i in range(4)}, [0])
    with pytest.raises(type(problem)) as caught:
        Run(tmp_path, Troubled(seconds=0.3), strategy=strategy)
    assert caught.value is problem
    assert free_cpus() == 2


@pytest.mark.nightly
def test_what_on_report_raises_ends_long_trials_too(cluster, tmp_path):
    def goes_on(number, report):
        raise KeyError(number)

    began = time.monotonic()
    with pytest.raises(KeyError):
        Run(tmp_path, Troubled({1: "hang"}, seconds=0.2), 2, goes_on)
    assert free_cpus() == 2
    assert time.monotonic() - began < 300  # the trial would hang for 600


@pytest.mark.nightly
def test_an_evaluator_that_cannot_be_loaded_stops_the_search(cluster, tmp_path):
    with pytest.raises(SearchError, match="cannot load the evaluator"):
        Run(tmp_path, Unloadable())


# -- where trials work -------------------------------------------------------------------------
def test_a_full_disk_ends_the_search_and_the_trial_stays_open(cluster, tmp_path):
    told: list[int] = []

    class Telling(FixedQueue):
        def tell(self, record: Record) -> None:
            told.append(record.number)
            super().tell(record)

    strategy = Telling({f"w{i}": masks.window(i) for i in range(6)}, [0])
    with pytest.raises(SearchError, match=r"the disk is full at .*trials/2"):
        Run(tmp_path, Troubled({2: "full"}), strategy=strategy)
    assert 2 not in told


@pytest.mark.nightly
def test_folders_that_travel(cluster, tmp_path):
    storage, run_folder, diary = (tmp_path / name for name in ("storage", "run", "diary"))
    diary.mkdir()
    evaluator = Troubled({0: "kill once", 1: "gates", 2: "raise"}, diary=str(diary), seconds=0.1)
    run = Run(run_folder, evaluator, count=3, storage_path=str(storage), checkpoint_seconds=0.0)
    records = run.by_number()
    assert [records[n].status for n in range(3)] == ["done", "done", "failed"], records
    lines = [line.split() for line in (diary / "0").read_text().splitlines()]
    assert [int(step) for step, _, _ in lines] == [1, 2, 2, 3, 4]
    assert len({folder for _, _, folder in lines}) == 2, "the checkpoint was not carried over"
    assert not any(Path(folder).is_relative_to(tmp_path) for _, _, folder in lines)
    assert not any(Path(folder).exists() for _, _, folder in lines[2:]), "scratch is left behind"
    gates = run_folder / records[1].artifacts["gates"]
    assert gates.read_bytes() == b"gates of 1"
    assert list(storage.iterdir()) == []


@pytest.mark.nightly
def test_a_storage_path_may_be_named_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with temporary_storage("~/files") as (folder, _):
        assert folder == f"{tmp_path}/files"


def test_user_code_that_was_named_by_path(cluster, tmp_path):
    file = tmp_path / "my_own_proxy.py"
    file.write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        from masksearch.contracts import Evaluator, Objective, Report, Shape
        from masksearch.masks import Mask

        LOSS = 7.0

        @dataclass(frozen=True)
        class Mine(Mask):
            kind = "mine"
            def allows(self, at):
                return at.offset.abs() <= 1

        @dataclass(frozen=True)
        class Proxy(Evaluator):
            shape = Shape(length=16, layers=1, heads=1)
            objectives = (Objective("loss", "min", 10.0),)
            protocol = "mine"
            def __call__(self, mask, *, seed, workdir):
                assert isinstance(mask, Mine)
                yield Report(1, {"loss": LOSS})

        def proxy():
            return Proxy()

        def mine():
            return Mine()
    """)
    )
    evaluator, mask = load_function(f"{file}:proxy")(), load_function(f"{file}:mine")()
    evaluator = type(mask).allows.__globals__["Proxy"]()
    file.unlink()
    run = Run(tmp_path / "run", evaluator, strategy=FixedQueue({"mine": mask}, [0]))
    assert [(r.status, dict(r.values)) for r in run.records] == [("done", {"loss": 7.0})], (
        run.records
    )
    assert run.records[0].mask == mask


# -- whole processes ---------------------------------------------------------------------------
def script(name, folder, **settings):
    """The facts that `ray_scripts.py` prints, one a line; and all that it printed."""
    environ = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "TUNE_"))}
    paths = [str(PACKAGE), str(Path(__file__).parent), *filter(None, sys.path)]
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "ray_scripts.py"), name, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ | {"PYTHONPATH": os.pathsep.join(paths)} | settings,
    )


def facts_of(process, timeout=300):
    out, _ = process.communicate(timeout=timeout)
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {name: value for line in lines for name, value in line.items()}, out


@pytest.mark.parametrize("niceness", [None, "7"])
def test_a_ray_that_does_not_start_in_time_says_so_and_the_remedy(monkeypatch, tmp_path, niceness):
    seen: list[str] = []

    def too_slow(**arguments: object) -> None:
        seen.append(os.environ["RAY_worker_niceness"])
        raise Exception("The current node timed out during startup.")  # as Ray raises it

    monkeypatch.setattr(ray, "init", too_slow)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    if niceness is not None:
        monkeypatch.setenv("RAY_worker_niceness", niceness)
    with pytest.raises(SearchError, match=r"did not start .* --slots 2 without --exec"):
        Run(tmp_path, ToyEvaluator())
    assert seen == [niceness or "0"]
    assert os.environ.get("RAY_worker_niceness") == niceness


def test_a_mistake_in_ray_itself_is_no_late_start(monkeypatch, tmp_path):
    monkeypatch.setattr(ray, "init", lambda **arguments: [][0])
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(IndexError):
        Run(tmp_path, ToyEvaluator())


@pytest.mark.slow
def test_a_ray_of_its_own_listens_at_home_says_nothing_and_goes(tmp_path):
    facts, out = facts_of(script("alone", tmp_path))
    assert facts["status"] == ["done", "failed"], out
    assert set(facts["listening"]) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert facts["niceness"] == 0  # Ray's workers would stand behind every other process
    assert not facts["ray"]
    assert set(facts["environ"]) <= {"RAY_CLIENT_MODE"}  # set where ray is imported
    assert all(line.startswith("{") for line in out.splitlines()), out


@pytest.mark.slow
@pytest.mark.parametrize("which", ["raylet", "gcs_server"])
def test_a_ray_that_dies_at_its_start_is_told_at_once_with_the_remedy(tmp_path, which):
    facts, out = facts_of(script("killed", tmp_path, KILL=which, WHEN="start"))
    assert facts["said"] - facts["killed"] < 15, out
    assert re.match(rf"Ray's {which} ended \(exit code -9\); .* --slots 2 without", facts["text"])
    assert facts["error"] == facts["text"]


@pytest.mark.slow
def test_a_raylet_that_dies_ends_the_search_in_words(tmp_path):
    facts, out = facts_of(script("killed", tmp_path, KILL="raylet", WHEN="trial"))
    assert facts["said"] - facts["killed"] < 15, out
    assert facts["error"] == facts["text"], out


@pytest.mark.slow
def test_a_home_that_cannot_be_written(tmp_path):
    facts, out = facts_of(script("alone", tmp_path, HOME="/nonexistent/home"))
    assert facts.get("status") == ["done", "failed"], out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_trials_and_ray(tmp_path, number):
    process = script("interrupted", tmp_path)
    reports = 0
    for line in process.stdout:
        reports += '"report"' in line
        if reports == 2:
            break
    began = time.monotonic()
    process.send_signal(number)
    facts, out = facts_of(process)
    assert facts.get("interrupted"), out
    assert not facts["ray"]
    assert facts["restored"]
    assert time.monotonic() - began < 300  # the trials would hang for 600
    assert process.returncode == 0


@pytest.mark.slow
def test_a_lost_node_costs_no_record(tmp_path):
    facts, out = facts_of(script("node_lost", tmp_path))
    assert facts.get("lost"), out
    assert facts["nodes"] == 2
    assert facts["values"] == [[n, "done", 100.0 * n + STEPS] for n in range(12)]


@pytest.mark.nightly
def test_without_ray_the_remedy_is_named(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None; from masksearch import *; import masksearch as ms;"
        "print(ms.RayTune(slots=3));"
        f"ms.compare({{'w': masks.window(1)}}, ms.PlantedEvaluator(), run={str(tmp_path)!r},"
        " executor=ms.RayTune())"
    )
    done = python("-c", code)
    assert "RayTune(address=None, slots=3" in done.stdout
    assert install_command("ray") in done.stderr
    assert "SearchError" in done.stderr


# -- what cannot work --------------------------------------------------------------------------
def test_ray_client_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(SearchError, match=r"ray job submit.*address='auto'"):
        Run(tmp_path, Troubled(), address="ray://head:10001")


def test_resources_that_nobody_has_are_refused(cluster, tmp_path):
    with pytest.raises(SearchError, match="no node has the resources of one trial"):
        Run(tmp_path, Troubled(), resources={"cpu": 1, "gpu": 64})


@pytest.mark.nightly
def test_slots_beyond_the_room_are_refused_or_said_where_nodes_may_join(cluster, tmp_path):
    said = r"slots = 3 of \{'cpu': 1\}, and there is room for 2 now"
    with pytest.raises(SearchError, match=f"{said}; lower them"):
        RayTune(slots=3).check_room(least=3)  # as on a Ray of its own
    with pytest.warns(UserWarning, match=f"{said}; waiting for nodes to join"):
        run = Run(tmp_path, Troubled(), slots=3)
    assert len(run.by_number()) == 4


@pytest.mark.nightly
def test_a_folder_that_a_node_does_not_see_is_refused(cluster, tmp_path, monkeypatch):
    run = Run(tmp_path / "seen", Troubled(), 1, address="auto")
    assert [record.status for record in run.records] == ["done"]
    assert not [*(tmp_path / "seen").glob(".*")]  # what the nodes have tried
    monkeypatch.setattr(  # as in a node that has another folder of that name
        "masksearch.executors.ray.copy_marker", lambda *_: "10.0.0.1 says: No such file"
    )
    said = r"do not share the folder .*made: 10\.0\.0\.1 says: No such file.*storage_path"
    with pytest.raises(SearchError, match=said):
        Run(tmp_path / "made", Troubled(), address="auto")
    assert [*(tmp_path / "made").iterdir()] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots must be a whole number >= 1, got 0"),
        ({"slots": "2"}, "slots must be a whole number >= 1, got '2'"),
        ({"max_failures": -1}, "max_failures must be at least 0, got -1"),
        ({"limit_seconds": 0.0}, "limit_seconds must be positive, got 0.0"),
        ({"resources": {"gpu": -1}}, "resources must not be negative"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        RayTune(**options)


def test_a_clock_that_is_set_back_gives_no_negative_seconds(tmp_path):
    from ray.exceptions import RayActorError

    lost, error, begun = [], tmp_path / "error", time.time() + 7200
    error.write_bytes(pickle.dumps(RayActorError()))
    pool = SimpleNamespace(on_worker_lost=lambda name, loss: lost.append(loss), running={})
    scheduler = TuneScheduler(FirstError(pool), ClusterWatch(pool, 1))
    trial = SimpleNamespace(trial_id="0", pickled_error_file=error, checkpoint=None)
    trial.run_metadata = SimpleNamespace(start_time=begun)
    scheduler.on_trial_error(None, trial)
    assert [each.seconds for each in lost] == [0.0]


def test_every_loss_of_a_worker_ends_its_trial_only():
    from ray.air.execution._internal import RayActorManager
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

    seen = []
    before = RayActorManager._actor_task_failed
    try:
        RayActorManager._actor_task_failed = lambda self, tracked_actor_task, exception: (
            seen.append(exception)
        )
        with tolerate_losses():
            manager = RayActorManager.__new__(RayActorManager)
            for error in (OutOfMemoryError("memory"), NodeDiedError("node"), RayActorError()):
                manager._actor_task_failed(tracked_actor_task=None, exception=error)
    finally:
        RayActorManager._actor_task_failed = before
    assert [type(error) for error in seen] == [RayActorError] * 3
    assert [str(error) for error in seen[:2]] == [
        "OutOfMemoryError: memory",
        "NodeDiedError: node",
    ]


# -- models that all trials share --------------------------------------------------------------
class Counted(GlueEvaluator):
    """Writes a file for every training."""

    @property
    def trainer(self):
        trainer = super().trainer

        class Noted(type(trainer)):
            def fit(self, *given, **named):
                folder = Path(self.inputs.__self__.cache).parent / "trainings"
                folder.mkdir(exist_ok=True)
                (folder / f"{os.getpid()}-{time.time_ns()}").touch()
                super().fit(*given, **named)

        return Noted(**vars(trainer))


QUIETLY = {"executor": RayTune(slots=2), "progress": None}


def frozen_judge(folder, **settings):
    return sentence_judge(folder, Counted, adapt="none", **settings)


def test_workers_share_one_dense_model_that_comes_first(cluster, tmp_path, capsys):
    folder = write_sentences(tmp_path)
    windows = lambda trial: masks.window(trial.suggest_int("reach", 1, 12))  # noqa: E731
    how = {"strategy": "random", "executor": RayTune(slots=2), "seed": 3}
    study = search(windows, frozen_judge(folder), run=tmp_path / "run", trials=4, **how)
    assert [r.status for r in study.records() if r.status != "reused"].count("done") >= 3
    (training,) = (folder / "trainings").iterdir()
    assert not training.name.startswith(f"{os.getpid()}-")
    said = capsys.readouterr().err  # where no terminal draws its bar
    assert re.search(r"^dense model of \S+, seed 3: \d+ steps$", said, re.M), said


@pytest.mark.nightly
def test_a_dense_model_at_the_majority_ends_a_search_on_ray(cluster, tmp_path):
    judge = frozen_judge(write_sentences(tmp_path), finetune_lr=1e-9, epochs=1)
    with pytest.raises(SearchError, match=r"^the dense model of SST-2 .* no masks can be comp"):
        compare({"star": masks.star()}, judge, run=tmp_path / "run", seeds=[0, 1], **QUIETLY)
    assert not (tmp_path / "run" / "trials").exists()


@pytest.mark.nightly
def test_a_worker_that_cannot_provide_its_models_ends_a_search(cluster, tmp_path):
    judge = frozen_judge(write_sentences(tmp_path), finetune_lr=1e30)
    with pytest.raises(SearchError, match="the loss became"):
        search(lambda trial: masks.star(), judge, run=tmp_path / "run", trials=2, **QUIETLY)
