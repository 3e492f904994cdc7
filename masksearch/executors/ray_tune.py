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
import secrets
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from masksearch.contracts import Budget, Evaluator, Listener, OnReport, Strategy
from masksearch.errors import SearchError
from masksearch.executors.desk import Death, Desk, Parcel
from masksearch.executors.outpost import Crew, Outpost
from masksearch.executors.surroundings import (
    environment,
    interruptible,
    loaded_by_path,
    logging_at,
)

try:
    import pyarrow.fs  # type: ignore[import-untyped, unused-ignore]
    import ray
    from ray import tune
    from ray.air.execution._internal import RayActorManager
    from ray.exceptions import RayActorError, RayTaskError
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


@dataclass(frozen=True)
class RayTune:
    """Executor for one machine or a cluster, through Ray Tune.

    Args:
        address: None = use the Ray that this process has started already, else start one on
            this machine, bound to 127.0.0.1, and stop it at the end; `"auto"` = join the
            cluster that this machine belongs to; `"HOST:PORT"` = join that one.
        slots: Trials at a time.
        resources: What a trial occupies, such as `{"cpu": 4, "gpu": 0.5}`; None = one CPU.
        storage_path: None = every node sees the run folder (one machine, or NFS), and trials
            work there. A path or URI such as `"s3://bucket/runs"`: trials work in a folder of
            their node; it is copied there for a retry on another node, and artifacts come
            back with the result.
        max_failures: So often a trial is begun again when its process or its node dies.
        limit_seconds: Wall time after which a trial's process is ended; None = no limit.
        reuse: Whether a worker process takes another trial after one that went well.
        checkpoint_seconds: With `storage_path`: least time between two copies, in seconds.
        dashboard: Whether a Ray that is started here serves its dashboard (on 127.0.0.1).
        quiet: Keeps Ray's own messages away.

    Raises:
        SearchError: At `run`, if Ray cannot be reached or no node could hold a trial.
    """

    address: str | None = None
    slots: int = 2
    resources: Mapping[str, float] | None = None
    storage_path: str | None = None
    max_failures: int = 2
    limit_seconds: float | None = None
    reuse: bool = True
    checkpoint_seconds: float = 30.0
    dashboard: bool = False
    quiet: bool = True

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")
        if self.max_failures < 0:
            raise ValueError(f"max_failures must be at least 0, got {self.max_failures}")
        if self.limit_seconds is not None and self.limit_seconds <= 0:
            raise ValueError(f"limit_seconds must be positive, got {self.limit_seconds}")
        if any(amount < 0 for amount in self.needs.values()):
            raise ValueError(f"resources must not be negative, got {dict(self.needs)}")

    @property
    def needs(self) -> Mapping[str, float]:
        """What a trial occupies."""
        return {"cpu": 1} if self.resources is None else self.resources

    def run(
        self,
        strategy: Strategy,
        evaluator: Evaluator,
        *,
        budget: Budget,
        seed: int,
        workdir: Path,
        on_record: Listener,
        on_report: OnReport,
    ) -> None:
        """Asks until the strategy is done; see `masksearch.contracts.Executor`."""
        with loaded_by_path():
            self.carry_out(strategy, evaluator, seed, workdir.resolve(), on_record, on_report)

    def carry_out(
        self,
        strategy: Strategy,
        evaluator: Evaluator,
        seed: int,
        workdir: Path,
        on_record: Listener,
        on_report: OnReport,
    ) -> None:
        """See `run`."""
        crew = Crew(
            cloudpickle.dumps(evaluator),
            seed,
            workdir=str(workdir) if self.storage_path is None else None,
            limit_seconds=self.limit_seconds,
            checkpoint_seconds=self.checkpoint_seconds,
            threads=max(1, int(self.needs.get("cpu", 1))),
            gpu=self.needs.get("gpu", 0.0),
            reuse=self.reuse,
            paths=tuple(sys.path),
        )
        desk = Desk(
            strategy,
            evaluator,
            seed=seed,
            workdir=workdir,
            on_record=on_record,
            on_report=on_report,
            max_failures=self.max_failures,
            limit_seconds=self.limit_seconds,
        )
        level = logging.CRITICAL if self.quiet else None
        with environment(TUNE_SETTINGS), logging_at("ray", level), self.cluster():
            self.check_room()
            desk.crew = ray.put(crew)
            with self.experiment() as (folder, name), interruptible(desk.interrupt), losses():
                self.tuner(desk, folder, name).fit()
        if desk.problem is not None:
            raise desk.problem

    def tuner(self, desk: Desk, folder: str, name: str) -> tune.Tuner:
        """A fresh Tuner whose searcher, scheduler and stopper speak for the desk."""
        return tune.Tuner(
            tune.with_resources(Worker, dict(self.needs)),
            tune_config=tune.TuneConfig(
                search_alg=Asking(desk),
                scheduler=Watching(desk),
                num_samples=-1,
                max_concurrent_trials=self.slots,
                reuse_actors=self.reuse,
                trial_name_creator=str,
                trial_dirname_creator=lambda trial: trial.config["parcel"].name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=folder,
                verbose=0,
                stop=Stopping(desk),
                failure_config=tune.FailureConfig(max_failures=0),  # see Desk.bury
                checkpoint_config=tune.CheckpointConfig(num_to_keep=2, checkpoint_at_end=False),
            ),
        )

    @contextmanager
    def experiment(self) -> Iterator[tuple[str, str]]:
        """Where Tune keeps its files while it runs: (folder or URI, name)."""
        name = f"masksearch-{secrets.token_hex(4)}"
        if self.storage_path is None:
            with tempfile.TemporaryDirectory(prefix="masksearch-") as folder:
                yield folder, name
            return
        folder = self.storage_path
        if "://" not in folder:
            folder = str(Path(folder).resolve())
        try:
            yield folder, name
        finally:
            files, path = pyarrow.fs.FileSystem.from_uri(folder)
            files.delete_dir(f"{path}/{name}")

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """A Ray that answers; what was started or joined here is left again at the end."""
        if self.address is not None and self.address.startswith("ray://"):
            raise SearchError(
                f"RayTune must run on a node of the cluster, got address={self.address!r}: "
                "Ray would carry the search itself to the head node, away from its study. "
                "Start it there with `ray job submit -- masksearch search ...`, or in a shell "
                "of the head node with address='auto'"
            )
        if ray.is_initialized():
            yield
            return
        arguments: dict[str, Any] = {"address": self.address}
        if self.address is None:
            cpus = math.ceil(self.slots * self.needs.get("cpu", 1))
            arguments = {
                "address": "local",
                "num_cpus": max(cpus, os.cpu_count() or 1),
                "include_dashboard": self.dashboard,
                "dashboard_host": "127.0.0.1",
                "_node_ip_address": "127.0.0.1",
            }
        if self.quiet:
            arguments |= {"log_to_driver": False, "logging_level": logging.CRITICAL}
        with environment({"RAY_USAGE_STATS_ENABLED": "0", **token(self.address)}):
            try:
                ray.init(**arguments)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise SearchError(
                    f"Ray at address={self.address!r} does not answer: {error}"
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
        needs = {names.get(key, key): amount for key, amount in self.needs.items()}
        listed: Any = ray.nodes  # not typed in Ray
        nodes = [node["Resources"] for node in listed() if node["Alive"]]
        if any(all(has.get(k, 0) >= v for k, v in needs.items()) for has in nodes):
            return
        text = f"no node has the resources of one trial, {dict(self.needs)}"
        if self.address is None:
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

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        message = result["message"]
        goes_on = self.desk.hear(trial.trial_id, message)
        message.files = {}  # Tune keeps every trial's last result
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A worker process has ended, or failed outside of its job."""
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

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Asked at every step."""
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
    names = ("_actor_task_failed", "_actor_start_failed")
    before = {name: getattr(RayActorManager, name) for name in names}

    def patched(original: Callable[..., None]) -> Callable[..., None]:
        def handle(self: Any, *task: Any, exception: Exception, **named: Any) -> None:
            if not isinstance(exception, RayActorError | RayTaskError):
                exception = RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
            original(self, *task, exception=exception, **named)

        return handle

    for name, original in before.items():
        setattr(RayActorManager, name, patched(original))
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(RayActorManager, name, original)


def token(address: str | None) -> dict[str, str]:
    """Environment of a Ray started here whose token cannot be written to the home folder."""
    named = any(
        n in os.environ for n in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    )
    home = Path.home() / ".ray"
    if address is not None or named or (home / "auth_token").is_file():
        return {}
    place = home if home.is_dir() else Path.home()
    if place.is_dir() and os.access(place, os.W_OK):
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
