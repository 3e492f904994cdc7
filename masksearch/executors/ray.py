"""Runs jobs with Ray Tune: on this machine, or on the nodes of a cluster.

Tune has the placement, the resources and the dashboard; the study is the truth. Every call makes
a fresh Tuner, Ray's own snapshots are never restored, and retries are counted by the `Pool`,
because Tune fails a trial for good when the idle worker that it was given had been lost.

    a task before the first trial               -> evaluator.provide_models, where it has them
    Tune asks `TuneSearcher.suggest`            -> Pool.next_trial
    a worker runs `TuneWorker.step`             -> one report
    Tune calls `TuneScheduler.on_trial_result`  -> Pool.on_step: CONTINUE or STOP
    a worker dies: `TuneScheduler.on_trial_error` -> Pool.on_worker_lost

This is the only module that imports ray. It can be imported, and a `RayTune` made and shown,
where Ray is not installed: `RayTune.run` then says what to install.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle

from masksearch.contracts import Trials
from masksearch.errors import MaskSearchError, SearchError, install_command, warn
from masksearch.executors.environment import (
    catch_interrupt,
    in_main_thread,
    replace_attribute,
    set_environment,
)
from masksearch.executors.pool import Pool, WorkerLoss
from masksearch.executors.worker import (
    TrialRunner,
    TrialSpec,
    WorkerConfig,
    check_gpus,
    pickle_by_value,
    pickle_for_workers,
)
from masksearch.files import own_numbers
from masksearch.masks.checks import at_least
from masksearch.training.loop import FOLLOWERS, Step, TrainConfig, follow_trainings
from masksearch.user_code import describe_error

TOKEN = secrets.token_hex(32)  # one a process: Ray remembers the first
MISSING = ""  # what there is to say where Ray is not installed
try:
    import ray
    from pyarrow import fs
    from ray import tune
    from ray._private import ray_constants, services
    from ray._private.services import canonicalize_bootstrap_address as find_address
    from ray.air.execution._internal import RayActorManager
    from ray.exceptions import RayActorError, RayError, RayTaskError
    from ray.tune import Stopper, Trainable
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.result import SHOULD_CHECKPOINT
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    FAILURES = RayError, RuntimeError, ValueError, OSError  # of a Ray that does not answer
except ImportError as problem:
    MISSING = f"RayTune needs Ray Tune ({problem}): {install_command('ray')}"
    Searcher = FIFOScheduler = Stopper = Trainable = object

TUNE_SETTINGS = {  # read by Tune from the environment, while it runs
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables are printed even at verbose=0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of an evaluator stay what they are
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no result.json, CSV or TensorBoard files
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would swallow Ctrl-C
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # no snapshots of the experiment
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they are in the records
}
KEEPALIVE = {  # so soon a driver asks whether a silent line still stands; Ray: after 300 s
    "RAY_grpc_client_keepalive_time_ms": "20000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
}
ALONE = {"RAY_worker_niceness": "0"}  # of the workers of a Ray that starts here; Ray's own is 15
REMEDY = (
    "try again when less runs here, or without it: ms.Local(slots=2), on the command line --slots "
    "2 without --executor"
)


@dataclass(frozen=True)
class RayTune:
    """Executor for one machine or a cluster, through Ray Tune.

    Args:
        address: The cluster to join: `"auto"`, or `"HOST:PORT"`. None = the Ray that this process
            has joined already, else one of its own on this machine (127.0.0.1), which ends with
            the search.
        slots: Trials at a time.
        resources: What a trial occupies, such as `{"cpu": 4, "gpu": 0.5}`; None = one CPU. A
            trial sees the GPUs that it has asked for alone: without a share, none.
        storage_path: A path or URI such as `"s3://bucket/runs"`, through which files travel where
            nodes do not share the run folder. Trials then work in a folder of their node; it is
            copied there for a retry on another node, and artifacts come back with the result.
            None = every node sees the run folder (one machine, or NFS), and trials work there.
        max_failures: So often a trial is begun again when its process or its node dies.
        limit_seconds: Wall time after which a trial's process is ended; None = no limit.
        checkpoint_seconds: With `storage_path`: least time between two copies, in seconds.
        dashboard: Whether a Ray that is started here serves its dashboard (on 127.0.0.1).
        quiet: Keeps Ray's own messages away.
    """

    address: str | None = None
    slots: int = 2
    resources: Mapping[str, float] | None = None
    storage_path: str | None = None
    max_failures: int = 2
    limit_seconds: float | None = None
    checkpoint_seconds: float = 30.0
    dashboard: bool = False
    quiet: bool = True

    def __post_init__(self) -> None:
        own_numbers(self)
        at_least("slots", self.slots, 1)
        if self.max_failures < 0:
            raise ValueError(f"max_failures must be at least 0, got {self.max_failures}")
        if self.limit_seconds is not None and self.limit_seconds <= 0:
            raise ValueError(f"limit_seconds must be positive, got {self.limit_seconds}")
        if any(amount < 0 for amount in self.needs.values()):
            raise ValueError(f"resources must not be negative, got {dict(self.needs)}")
        check_gpus(self.gpus)

    @property
    def needs(self) -> Mapping[str, float]:
        """The resources that a trial occupies."""
        return {"cpu": 1} if self.resources is None else self.resources

    @property
    def gpus(self) -> float:
        """GPUs of a trial."""
        return self.needs.get("gpu", self.needs.get("GPU", 0.0))

    def run(self, work: Trials) -> None:
        """Asks until the search is done; see `masksearch.contracts.Executor`.

        Raises:
            SearchError: If Ray is not installed or does not answer, or no node could hold a
                trial.
        """
        if MISSING:
            raise SearchError(MISSING)
        with pickle_by_value():  # before a cluster is started
            shared = self._worker_config(work)
        least = 1 if ray.is_initialized() else self.slots  # what was joined before may grow
        with (
            set_environment(TUNE_SETTINGS, "RAY_", "TUNE_"),
            pickle_by_value(),
            _silence_ray(self.quiet),
            tolerate_losses(),
            _keep_starting_workers(),
            _join_cluster(self),
            temporary_storage(self.storage_path) as (folder, name),
        ):
            nodes = self.check_room(least)
            if self.address is not None:
                uri = str(work.workdir.resolve()) if self.storage_path is None else folder
                check_folder(uri, nodes)
            config = ray.put(shared)
            if work.evaluator.offers("provide_models"):
                self.provide_models(config, work.seeds)
            guard = FirstError(
                Pool(
                    work,
                    max_failures=self.max_failures,
                    limit_seconds=self.limit_seconds,
                    config=config,
                )
            )
            with catch_interrupt(guard.interrupt):
                self._make_tuner(guard, folder, name).fit()
            if guard.error is not None:
                raise guard.error

    def provide_models(self, config: Any, seeds: Sequence[int]) -> None:
        """Has the models that evaluations share provided where a trial would run.

        Args:
            config: Ray's reference to the `WorkerConfig`.
            seeds: Of the evaluations; at most `slots` at a time.

        Raises:
            SearchError: If no mask can be judged on one of them, or its worker was lost.
        """
        needs = dict(self.needs)
        options: dict[str, Any] = {"max_retries": self.max_failures}
        for name, option in (("cpu", "num_cpus"), ("gpu", "num_gpus"), ("memory", "memory")):
            options[option] = needs.pop(name, needs.pop(name.upper(), 0))
        provide = ray.remote(**options, resources=needs)(_provide_shared_models)
        steps = Queue(actor_options={"num_cpus": 0})
        for first in range(0, len(seeds), self.slots):
            some = seeds[first : first + self.slots]
            started = [provide.remote(config, s, None if s != some[0] else steps) for s in some]
            try:
                while ray.wait(started, num_returns=len(started), timeout=1)[1] or steps.qsize():
                    for step in steps.get_nowait_batch(steps.qsize()):
                        for follow in FOLLOWERS.get():  # whoever shows this process's trainings
                            follow(*step)
                refused = [reason for reason in ray.get(started) if reason]
            except RayError as error:
                raise SearchError(
                    f"the worker that provides the models of all trials was lost: {error}"
                ) from error
            if refused:
                raise SearchError(refused[0])

    def _worker_config(self, work: Trials) -> WorkerConfig:
        """The setup of all trials. An evaluator travels with its data, where it offers that, so
        that no node has to see its files."""
        return WorkerConfig(
            pickle_for_workers(work.evaluator.packed(), "the evaluator"),
            str(work.workdir.resolve()) if self.storage_path is None else None,
            threads=max(1, int(self.needs.get("cpu", 1))),
            limit_seconds=self.limit_seconds,
            gpu=self.gpus,
            checkpoint_seconds=self.checkpoint_seconds,
            paths=tuple(sys.path),
        )

    def _make_tuner(self, guard: FirstError, folder: str, name: str) -> tune.Tuner:
        """A fresh Tuner whose searcher, scheduler and stopper speak for the pool."""
        scheduler = TuneScheduler(guard, ClusterWatch(guard.pool, self.slots))
        return tune.Tuner(
            tune.with_resources(TuneWorker, dict(self.needs)),
            tune_config=tune.TuneConfig(
                search_alg=TuneSearcher(guard),
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=self.slots,
                reuse_actors=True,
                trial_name_creator=str,
                trial_dirname_creator=lambda trial: trial.config["spec"].name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=folder,
                verbose=0,
                stop=TuneStopper(guard, scheduler),
                failure_config=tune.FailureConfig(max_failures=0),  # the pool counts them
                checkpoint_config=tune.CheckpointConfig(num_to_keep=2, checkpoint_at_end=False),
            ),
        )

    def check_room(self, least: int) -> list[str]:
        """The nodes that can hold a trial; says how many trials at a time they can.

        Args:
            least: Trials at a time without which it is refused, where no address is given.

        Raises:
            SearchError: If there are fewer, and no node can be added.
        """
        names = {"cpu": "CPU", "gpu": "GPU"}
        needs = {names.get(key, key): amount for key, amount in self.needs.items() if amount}
        nodes = list_nodes()
        room = {
            node: int(
                min((has["Resources"].get(k, 0) / v + 1e-6 for k, v in needs.items()), default=9e9)
            )
            for node, has in nodes.items()
        }
        cards = sum(has["Resources"].get("GPU", 0) for has in nodes.values())
        if cards and not self.gpus:
            warn(f"no trial sees one of the {cards:g} cards; --gpus 1 gives a trial a card")
        total = sum(room.values())
        text = f"no node has the resources of one trial, {dict(self.needs)}"
        if total:
            text = f"slots = {self.slots} of {dict(self.needs)}, and there is room for {total} now"
        if total < least and self.address is None:
            raise SearchError(f"{text}; lower them with RayTune(slots=..., resources=...)")
        if total < self.slots:
            warn(f"{text}; waiting for nodes to join")
        return [node for node, trials in room.items() if trials]


def _provide_shared_models(config: WorkerConfig, seed: int, steps: Any) -> str:
    """Provides the models of a seed in a process of Ray's; why it cannot, or nothing. A step a
    second of its trainings goes to the queue `steps`, where there is one."""
    due = 0.0

    def send(step: Step, config: TrainConfig) -> None:
        nonlocal due
        if time.monotonic() >= due or step.number == config.steps:
            due = time.monotonic() + 1
            steps.put((replace(step, value=step.loss), config))

    try:
        with follow_trainings(send) if steps is not None else nullcontext():
            TrialRunner(config).load_evaluator().provide_models(seed)
    except MaskSearchError as error:
        return str(error)
    except Exception as error:  # told to the driver, which stops the search with it
        return f"a worker cannot provide the models of seed {seed}: {describe_error(error)}"
    return ""


# -- what Tune calls ---------------------------------------------------------------------------
class FirstError:
    """Keeps the first thing that is raised, which Tune would swallow, and ends the search."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.error: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its configuration; a study cannot be, and need not be."""
        return {}

    def call(self, method: Callable[..., Any], *args: Any, otherwise: Any) -> Any:
        """A method's answer; `otherwise` once anything has been raised."""
        if self.error is None:
            try:
                return method(*args)
            except BaseException as error:  # raised again by `RayTune.run`
                self.error = error
        return otherwise

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.error = self.error or KeyboardInterrupt()


class TuneSearcher(Searcher):
    """Hands out the trials of the pool."""

    def __init__(self, guard: FirstError) -> None:
        super().__init__()
        self.guard = guard

    def suggest(self, trial_id: str) -> Any:
        """A trial's configuration, None = later, FINISHED = never again."""
        spec = self.guard.call(self.guard.pool.next_trial, trial_id, otherwise="done")
        if isinstance(spec, TrialSpec):
            return {"spec": spec}
        return None if spec == "wait" else str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: records are told as they come in (see `TuneScheduler`)."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the searcher's memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is the searcher's memory."""


class TuneScheduler(FIFOScheduler):
    """Takes every report before the next step is asked for, and every loss of a worker.

    Workers take further trials, but one that failed may be unsound and is asked once more, which
    ends its process (see `TrialRunner`).

    Args:
        guard: Around the pool.
        watch: Says what the cluster lacks.
    """

    def __init__(self, guard: FirstError, watch: ClusterWatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.guard, self.watch = guard, watch
        self.trials: dict[str, Any] = {}  # those that have not ended
        self.began: dict[str, float] = {}  # when each was placed, by the monotonic clock
        self.resetting: Collection[Any] = ()  # trials that a free worker takes just now

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its configuration."""
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial is about to be placed."""
        self.trials[trial.trial_id] = trial
        self.resetting = getattr(tune_controller, "_resetting_trials", ())

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        """A trial has ended."""
        self.trials.pop(trial.trial_id, None)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        step = result["step"]
        goes_on = self.guard.call(self.guard.pool.on_step, trial.trial_id, step, otherwise=False)
        step.files = {}  # Tune keeps every trial's last result
        goes_on |= bool(step.error) and self.guard.error is None
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A worker process has ended, or failed outside of its job."""
        self.trials.pop(trial.trial_id, None)
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        self.guard.call(self.watch.note_loss, trial.trial_id, error, otherwise=None)
        now = time.monotonic()
        loss = WorkerLoss(
            reason=" ".join(str(error).split()),  # Ray tells it in several lines
            died=isinstance(error, RayActorError) and not error.actor_init_failed,
            counts=not getattr(error, "preempted", False),
            seconds=now - self.began.get(trial.trial_id, now),
            checkpoint=trial.checkpoint,
        )
        self.guard.call(self.guard.pool.on_worker_lost, trial.trial_id, loss, otherwise=None)

    def look(self) -> None:
        """Notes which trials were placed; has the watch look, once a second."""
        now = time.monotonic()
        placed = {t.trial_id for t in self.trials.values() if t.status != "PENDING"}
        self.began |= dict.fromkeys(placed - self.began.keys(), now)
        if now < self.watch.looked + 1:
            return
        placed |= {trial.trial_id for trial in self.resetting}
        running = self.guard.pool.running.items()
        self.watch.look([each.proposal.number for name, each in running if name not in placed])

    def kill_workers(self) -> None:
        """Ends the processes of all trials now: Tune would wait for them, up to 15 s."""
        for trial in self.trials.values():
            if trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)
        self.trials = {}


class ClusterWatch:
    """Says which nodes were lost, with the trials that run again, and whether slots stand still.

    Args:
        pool: The trials.
        slots: Trials at a time.
    """

    def __init__(self, pool: Pool, slots: int) -> None:
        self.pool, self.slots = pool, slots
        self.nodes: dict[str, Any] = {}  # by id, those that lived at the last look
        self.gone: dict[str, Any] = {}  # those that did not live any more
        self.losses: list[tuple[float, str | None, int]] = []  # when, node, trial
        self.looked = self.busy = time.monotonic()  # the last look; at which all slots worked

    def note_loss(self, name: str, error: Exception) -> None:
        """Takes a trial whose worker was lost; its node may be found to be lost later."""
        trial, actor = self.pool.running.get(name), getattr(error, "actor_id", None)
        if trial is not None and actor is not None:
            address = ray._private.state.actors(actor).get("Address", {})
            self.losses.append((time.monotonic(), address.get("NodeID"), trial.proposal.number))

    def look(self, waiting: Sequence[int]) -> None:
        """Looks at the cluster, once a second.

        Args:
            waiting: The trials that no worker runs yet.
        """
        now, alive = time.monotonic(), list_nodes()
        for node, facts in self.gone.items():  # a second ago: all its trials are known by now
            again = sorted({n for at, where, n in self.losses if where == node and now - at < 120})
            lost = f"{facts['NodeManagerAddress']} was lost"
            warn(f"{lost}; trials that run again: {', '.join(map(str, again)) or 'none'}")
        self.gone = {node: self.nodes[node] for node in self.nodes.keys() - alive.keys()}
        self.looked, self.nodes = now, alive
        self.pool.work.note_waiting(waiting)
        if not waiting:
            self.busy = now
        elif self.busy < now - 60:
            self.busy = math.inf  # said once, until all slots have worked again
            warn(
                f"{len(self.pool.running) - len(waiting)} of {self.slots} slots have worked for a "
                f"minute; trials that wait for a node: {', '.join(map(str, waiting))} (`ray "
                "status` lists the nodes; one that was cut off needs `ray start` again)"
            )


class TuneStopper(Stopper):
    """Ends the experiment once something has been raised."""

    def __init__(self, guard: FirstError, scheduler: TuneScheduler) -> None:
        self.guard, self.scheduler = guard, scheduler

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Asked at every step."""
        self.guard.call(self.scheduler.look, otherwise=None)
        if self.guard.error is not None:
            self.scheduler.kill_workers()
        return self.guard.error is not None


class TuneWorker(Trainable):
    """A worker process as Tune knows it. Tune may start one and stop it before it had a trial."""

    runner: TrialRunner | None = None

    def setup(self, config: dict[str, Any]) -> None:
        """Takes the first trial."""
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes another trial."""
        spec: TrialSpec = new_config["spec"]
        self.config: dict[str, Any] = {}  # or it would come back with every result
        self.runner = self.runner or TrialRunner(ray.get(spec.config))
        self.runner.take(spec, Path(self.logdir))
        return True

    def step(self) -> dict[str, Any]:
        """Runs the job to its next report, or to its end."""
        assert self.runner is not None
        return {"step": self.runner.step(), SHOULD_CHECKPOINT: self.runner.checkpoint_due()}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copies the trial's folder; Ray carries it to the storage."""
        assert self.runner is not None
        self.runner.save_checkpoint(Path(checkpoint_dir))

    def cleanup(self) -> None:
        """Closes the trial."""
        if self.runner is not None:
            self.runner.close()


# -- Ray itself --------------------------------------------------------------------------------
@contextmanager
def _join_cluster(settings: RayTune) -> Iterator[None]:
    """A Ray that answers; what was started or joined here is left again at the end."""
    client: Any = ray.util.client.ray  # not typed in Ray
    if (settings.address or "").startswith("ray://") or client.is_connected():
        raise SearchError(
            "RayTune must run on a node of the cluster, not as a client of it (ray://): "
            "Ray would carry the search itself to the head node, away from its study. "
            "Start it there with `ray job submit -- masksearch search ...`, or in a shell "
            "of the head node with address='auto'"
        )
    if ray.is_initialized():
        yield
        return
    alone = settings.address is None
    arguments: dict[str, Any] = {"address": settings.address}
    if alone:
        cpus = math.ceil(settings.slots * settings.needs.get("cpu", 1))
        arguments = {
            "address": "local",
            "num_cpus": max(cpus, os.cpu_count() or 1),
            "include_dashboard": settings.dashboard,
            "dashboard_host": "127.0.0.1",
            "_node_ip_address": "127.0.0.1",
        }
    if settings.quiet:
        arguments |= {"log_to_driver": False, "logging_level": logging.CRITICAL}
    handler, main = signal.getsignal(signal.SIGTERM), in_main_thread()
    watch = DaemonWatch()
    known = {n: os.environ.get(n, value) for n, value in (ALONE if alone else KEEPALIVE).items()}
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0"} | known | (_own_token() if alone else {}))
    try:
        # a Ray of this machine alone listens on 127.0.0.1, as Ray itself does on macOS;
        # Ray reads its own variable for that once, when it is imported
        with (
            replace_attribute(ray_constants, "ENABLE_RAY_CLUSTER", not alone),
            replace_attribute(ray_constants, "NUM_REDIS_GET_RETRIES", 20 if alone else 2),
            replace_attribute(services, "start_ray_process", watch.start),
        ):
            # Ray itself waits minutes for an address at which nobody listens
            if settings.address and (address := find_address(settings.address)):
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()
            ray.init(**arguments)
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, FAILURES):
            raise
        if alone:  # Ray raises Exception itself where it does not start in time
            why = f"Ray did not start on this machine: {error}".rstrip(".")
            raise SearchError(watch.ended or f"{why}; {REMEDY}") from error
        raise SearchError(
            f"Ray at address={settings.address!r} does not answer: {error}; this process "
            "needs the address (`ray status`), the token, RAY_AUTH_MODE=token if there is "
            "one, and the versions of Ray and Python that the head has"
        ) from error
    try:
        if main:  # Ray has put its own in its place, which ends the process
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        yield
    except BaseException as error:
        if watch.ended:
            raise SearchError(watch.ended) from error
        raise
    finally:
        watch.over = True
        ray.shutdown()
        if main:
            signal.signal(signal.SIGTERM, handler)


class DaemonWatch:
    """Says at once that a Ray that starts here has ended, and interrupts the search: Ray waits
    half a minute for its own processes, and may end this process without a word."""

    def __init__(self) -> None:
        self.over, self.ended, self.start_process = False, "", services.start_ray_process
        self.interrupts = in_main_thread()

    def start(self, command: Any, kind: str, *given: Any, **how: Any) -> Any:
        """Starts a process as Ray does, and follows it."""
        started = self.start_process(command, kind, *given, **how)
        if kind in ("gcs_server", "raylet"):
            threading.Thread(target=self.follow, args=(kind, started.process), daemon=True).start()
        return started

    def follow(self, kind: str, process: Any) -> None:
        """Waits for the end of a process."""
        while process.poll() is None and not self.over:
            time.sleep(0.1)
        if not (self.over or self.ended):
            self.ended = f"Ray's {kind} ended (exit code {process.returncode}); {REMEDY}"
            warn(self.ended)
            if self.interrupts and ray.is_initialized():
                interrupt_main()


def list_nodes() -> dict[str, Any]:
    """The nodes that live, by their ids."""
    listed: Any = ray.nodes  # not typed in Ray
    return {node["NodeID"]: node for node in listed() if node["Alive"]}


def check_folder(uri: str, nodes: Sequence[str]) -> None:
    """Has every node read a file of this process in a folder, and write another one.

    Args:
        uri: The folder, a path or URI.
        nodes: Ids; one that does not answer in 20 s is not waited for.

    Raises:
        SearchError: If a node cannot.
    """
    files, path = fs.FileSystem.from_uri(uri)
    marker = f"{path}/.masksearch-{secrets.token_hex(8)}"
    files.create_dir(path, recursive=True)
    files.open_output_stream(marker).close()
    ask = ray.remote(num_cpus=0)(copy_marker)
    here = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    try:
        asked = [ask.options(scheduling_strategy=each).remote(uri, marker) for each in here]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=20)
        for each in answered:
            try:
                reason = ray.get(each)
            except RayError:
                continue  # the node has just been lost
            if reason:
                raise SearchError(
                    f"the nodes do not share the folder {uri}: {reason}; name one that all see "
                    "under this path, or storage_path (--storage-path), such as s3://bucket/runs"
                )
    finally:
        files.delete_file(marker)


def copy_marker(uri: str, marker: str) -> str:
    """Why this node cannot read a file of the driver, or not write beside it; or nothing."""
    node, (files, _) = ray.get_runtime_context().get_node_id(), fs.FileSystem.from_uri(uri)
    try:
        files.copy_file(marker, f"{marker}-{node}")
        files.delete_file(f"{marker}-{node}")
    except OSError as error:
        return f"{list_nodes()[node]['NodeManagerAddress']} says: {error}"
    return ""


@contextmanager
def tolerate_losses() -> Iterator[None]:
    """Makes every way in which Ray loses a worker end its trial only.

    Tune raises RuntimeError, and with it ends the whole experiment, where a worker was ended
    for lack of memory, or its answer was lost with a node: these are no `RayActorError`. It has
    no public setting for that.
    """

    def tolerant(original: Callable[..., None]) -> Callable[..., None]:
        def handle(self: Any, *task: Any, exception: Exception, **named: Any) -> None:
            if not isinstance(exception, RayActorError | RayTaskError):
                exception = RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
            original(self, *task, exception=exception, **named)

        return handle

    with ExitStack() as stack:
        for name in ("_actor_task_failed", "_actor_start_failed"):
            handler = tolerant(getattr(RayActorManager, name))
            stack.enter_context(replace_attribute(RayActorManager, name, handler))
        yield


@contextmanager
def _keep_starting_workers() -> Iterator[None]:
    """Lets a worker that has room on a node start, whichever worker becomes free meanwhile.

    Tune gives the free worker to the trial whose own one is starting, and ends that one. Where
    trials are shorter than a start, a node that joins late would start workers for ever. There
    is no public setting for that.
    """
    reuse = getattr(TuneController, "_maybe_reuse_cached_actor", None)

    def reuse_unless_starting(self: Any, trial: Any) -> bool:
        worker = self._trial_to_actor.get(trial)
        placed = worker is not None and self._actor_manager.is_actor_started(worker)
        return not (placed and trial not in self._resetting_trials) and reuse(self, trial)  # type: ignore[misc]

    with replace_attribute(TuneController, "_maybe_reuse_cached_actor", reuse_unless_starting):
        yield


@contextmanager
def _silence_ray(quiet: bool) -> Iterator[None]:
    """Keeps Ray's loggers away, and what it prints on this process's output: a report of every
    lost worker, on the standard output, which Ray has no public setting for."""
    if not quiet:
        yield
        return
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    printing = ray._private.worker, "print_to_stdstream", lambda *line, **named: None
    try:
        with replace_attribute(*printing):
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def temporary_storage(storage_path: str | None) -> Iterator[tuple[str, str]]:
    """A folder or URI, and a new name in it for files that are removed at the end.

    Args:
        storage_path: Where it is to be; None = among this machine's temporary files.
    """
    name = f"masksearch-{secrets.token_hex(4)}"
    if storage_path is None:
        with tempfile.TemporaryDirectory(prefix="masksearch-") as folder:
            yield folder, name
        return
    uri = storage_path if "://" in storage_path else str(Path(storage_path).expanduser().resolve())
    try:
        yield uri, name
    finally:
        files, path = fs.FileSystem.from_uri(uri)
        if files.get_file_info(f"{path}/{name}").type == fs.FileType.Directory:
            files.delete_dir(f"{path}/{name}")


def _own_token() -> dict[str, str]:
    """Environment of a Ray that starts here, where its token cannot be kept in the home folder.

    Ray asks every process for a token, which it keeps in `~/.ray/auth_token`; where that cannot
    be written, this search gets a token of its own.
    """
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    folder = Path.home() / ".ray"
    if any(name in os.environ for name in names) or (folder / "auth_token").is_file():
        return {}
    home = folder if folder.is_dir() else Path.home()
    return {} if home.is_dir() and os.access(home, os.W_OK) else {"RAY_AUTH_TOKEN": TOKEN}
