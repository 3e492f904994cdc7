"""Runs jobs with Ray Tune: on this machine, or on the nodes of a cluster.

The study is the truth: every call makes a fresh Tuner, and Ray's own snapshots are never
restored. Tune places the trials and says how they end; retries are counted by the `Desk`,
because Tune fails a trial for good when the idle worker that it was given had been lost.
This is the only module that imports ray.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cloudpickle

from masksearch.contracts import Evaluator, Listener, OnReport, Strategy
from masksearch.errors import SearchError
from masksearch.executors.desk import Death, Desk, Parcel
from masksearch.executors.environment import (
    environment,
    interruptible,
    loaded_by_path,
    logging_at,
    own_token,
    replaced,
    shelf,
)
from masksearch.executors.on_ray import RayTune
from masksearch.executors.outpost import Crew, Outpost, carried

try:
    import ray
    from ray import tune
    from ray._private import ray_constants
    from ray.air.execution._internal import RayActorManager
    from ray.exceptions import RayActorError, RayError, RayTaskError
    from ray.tune.result import SHOULD_CHECKPOINT
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher
except ImportError as problem:
    raise SearchError(
        f'RayTune needs Ray Tune ({problem}): pip install "masksearch[ray]"'
    ) from problem

TUNE_SETTINGS = {  # read by Tune from the environment, while it runs
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables are printed even at verbose=0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of an evaluator stay what they are
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no result.json, CSV or TensorBoard files
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would swallow Ctrl-C
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # no snapshots of the experiment
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they are in the records
}


class Tuning:
    """One search on Ray Tune, as its settings say."""

    def __init__(self, settings: RayTune) -> None:
        self.settings = settings

    def run(
        self,
        strategy: Strategy,
        evaluator: Evaluator,
        *,
        seed: int,
        workdir: Path,
        on_record: Listener,
        on_report: OnReport,
    ) -> None:
        """See `RayTune.run`."""
        workdir = workdir.resolve()
        desk = Desk(
            strategy,
            evaluator,
            seed=seed,
            workdir=workdir,
            on_record=on_record,
            on_report=on_report,
            max_failures=self.settings.max_failures,
            limit_seconds=self.settings.limit_seconds,
        )
        with (
            environment(TUNE_SETTINGS, ("RAY_", "TUNE_")),
            loaded_by_path(),
            silence(self.settings.quiet),
            losses(),
            self.cluster(),
        ):
            self.check_room()
            desk.crew = ray.put(self.crew(evaluator, seed, workdir))
            with shelf(self.settings.storage_path) as place, interruptible(desk.interrupt):
                self.tuner(desk, *place).fit()
        if desk.problem is not None:
            raise desk.problem

    def crew(self, evaluator: Evaluator, seed: int, workdir: Path) -> Crew:
        """What all trials share."""
        return Crew(
            carried(evaluator),
            seed,
            workdir=str(workdir) if self.settings.storage_path is None else None,
            limit_seconds=self.settings.limit_seconds,
            checkpoint_seconds=self.settings.checkpoint_seconds,
            threads=max(1, int(self.settings.needs.get("cpu", 1))),
            gpu=self.settings.needs.get("gpu", 0.0),
            reuse=self.settings.reuse,
            paths=tuple(sys.path),
        )

    def tuner(self, desk: Desk, folder: str, name: str) -> tune.Tuner:
        """A fresh Tuner whose searcher, scheduler and stopper speak for the desk."""
        watching = Watching(desk)
        return tune.Tuner(
            tune.with_resources(Worker, dict(self.settings.needs)),
            tune_config=tune.TuneConfig(
                search_alg=Asking(desk),
                scheduler=watching,
                num_samples=-1,
                max_concurrent_trials=self.settings.slots,
                reuse_actors=self.settings.reuse,
                trial_name_creator=str,
                trial_dirname_creator=lambda trial: trial.config["parcel"].name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=folder,
                verbose=0,
                stop=Stopping(desk, watching),
                failure_config=tune.FailureConfig(max_failures=0),  # see Desk.bury
                checkpoint_config=tune.CheckpointConfig(num_to_keep=2, checkpoint_at_end=False),
            ),
        )

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """A Ray that answers; what was started or joined here is left again at the end."""
        client: Any = ray.util.client.ray  # not typed in Ray
        if (self.settings.address or "").startswith("ray://") or client.is_connected():
            raise SearchError(
                "RayTune must run on a node of the cluster, not as a client of it (ray://): "
                "Ray would carry the search itself to the head node, away from its study. "
                "Start it there with `ray job submit -- masksearch search ...`, or in a shell "
                "of the head node with address='auto'"
            )
        if ray.is_initialized():
            yield
            return
        arguments: dict[str, Any] = {"address": self.settings.address}
        if self.settings.address is None:
            cpus = math.ceil(self.settings.slots * self.settings.needs.get("cpu", 1))
            arguments = {
                "address": "local",
                "num_cpus": max(cpus, os.cpu_count() or 1),
                "include_dashboard": self.settings.dashboard,
                "dashboard_host": "127.0.0.1",
                "_node_ip_address": "127.0.0.1",
            }
        if self.settings.quiet:
            arguments |= {"log_to_driver": False, "logging_level": logging.CRITICAL}
        near = replaced(ray_constants, "ENABLE_RAY_CLUSTER", self.settings.address is not None)
        settings = {"RAY_USAGE_STATS_ENABLED": "0"}
        with environment(settings | (own_token() if self.settings.address is None else {})):
            try:
                with near:  # a Ray of this machine alone listens on 127.0.0.1, as on macOS
                    ray.init(**arguments)
            except (RayError, RuntimeError, ValueError, OSError) as error:
                raise SearchError(
                    f"Ray at address={self.settings.address!r} does not answer: {error}"
                ) from error
            try:
                yield
            finally:
                ray.shutdown()

    def check_room(self) -> None:
        """A trial that no node could ever hold would wait for ever.

        Raises:
            SearchError: If no node is big enough and none can be added.
        """
        names = {"cpu": "CPU", "gpu": "GPU"}
        needs = {names.get(key, key): amount for key, amount in self.settings.needs.items()}
        listed: Any = ray.nodes  # not typed in Ray
        nodes = [node["Resources"] for node in listed() if node["Alive"]]
        if any(all(has.get(k, 0) >= v for k, v in needs.items()) for has in nodes):
            return
        text = f"no node has the resources of one trial, {dict(self.settings.needs)}"
        if self.settings.address is None:
            raise SearchError(f"{text}; lower them with RayTune(resources=...)")
        warnings.warn(f"{text}; waiting for one to join the cluster", stacklevel=3)


class Asking(Searcher):
    """Tune's searcher: hands out what the strategy proposes."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk = desk

    def suggest(self, trial_id: str) -> Any:
        """A trial's configuration, None = later, FINISHED = never again."""
        parcel = self.desk.ask(trial_id)
        if isinstance(parcel, Parcel):
            return {"parcel": parcel}
        return None if parcel == "wait" else str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: records are told as they come in (see `Watching`)."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the searcher's memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is the searcher's memory."""


class Watching(FIFOScheduler):
    """Tune's scheduler: hears every report before the next step is asked for."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.desk = desk
        self.trials: dict[str, Any] = {}  # those that have not ended

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its configuration."""
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial is about to be placed."""
        self.trials[trial.trial_id] = trial

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        """A trial has ended."""
        self.trials.pop(trial.trial_id, None)

    def kill(self) -> None:
        """Ends the processes of all trials now: Tune would wait for them, up to 15 s."""
        for trial in self.trials.values():
            if trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)
        self.trials = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        message = result["message"]
        goes_on = self.desk.hear(trial.trial_id, message)
        message.files = {}  # Tune keeps every trial's last result
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A worker process has ended, or failed outside of its job."""
        self.trials.pop(trial.trial_id, None)
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        death = Death(
            reason=str(error),
            process=isinstance(error, RayActorError) and not error.actor_init_failed,
            counts=not getattr(error, "preempted", False),
            started=trial.run_metadata.start_time,
            checkpoint=trial.checkpoint,
        )
        self.desk.bury(trial.trial_id, death)


class Stopping(tune.Stopper):
    """Tune's stopper: ends the experiment once something has been raised."""

    def __init__(self, desk: Desk, watching: Watching) -> None:
        self.desk, self.watching = desk, watching

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Asked at every step."""
        if self.desk.problem is not None:
            self.watching.kill()
        return self.desk.problem is not None


class Worker(tune.Trainable):
    """A worker process as Tune knows it. Tune may start one and stop it before it had a trial."""

    def setup(self, config: dict[str, Any]) -> None:
        """Takes the first trial."""
        self.outpost = Outpost(ray.get)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes another trial."""
        self.config: dict[str, Any] = {}  # or it would come back with every result
        self.outpost.take(new_config["parcel"], Path(self.logdir))
        return True

    def step(self) -> dict[str, Any]:
        """Runs the job to its next report, or to its end."""
        message = self.outpost.step()
        return {"message": message, SHOULD_CHECKPOINT: self.outpost.due()}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copies the trial's folder; Ray carries it to the storage."""
        self.outpost.save(Path(checkpoint_dir))

    def cleanup(self) -> None:
        """Closes the trial."""
        self.outpost.leave()


@contextmanager
def losses() -> Iterator[None]:
    """Every way in which Ray loses a worker ends its trial only.

    Tune raises RuntimeError, and with it ends the whole experiment, where a worker was ended
    for lack of memory, or its answer was lost with a node: these are no `RayActorError`.
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
            stack.enter_context(replaced(RayActorManager, name, handler))
        yield


@contextmanager
def silence(quiet: bool) -> Iterator[None]:
    """Keeps Ray's loggers, and what it prints on this process's output, away."""
    if not quiet:
        yield
        return
    printer = "print_to_stdstream"  # a report of every lost worker, on the standard output
    with (
        logging_at("ray", logging.CRITICAL),
        replaced(ray._private.worker, printer, lambda *line, **named: None),
    ):
        yield
