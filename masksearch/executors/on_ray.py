"""Runs jobs with Ray Tune: the settings, which can be made and shown without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from masksearch.contracts import Budget, Evaluator, Listener, OnReport, Strategy


@dataclass(frozen=True)
class RayTune:
    """Executor for one machine or a cluster, through Ray Tune.

    Args:
        address: None = use the Ray that this process has joined already, else start one here
            (on 127.0.0.1) and stop it at the end; `"auto"` or `"HOST:PORT"` = join a cluster.
        slots: Trials at a time.
        resources: What a trial occupies, such as `{"cpu": 4, "gpu": 0.5}`; None = one CPU. A
            trial that shall use a GPU must ask for one, or for a share of its memory.
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
        """Asks until the strategy is done; see `masksearch.contracts.Executor`.

        Raises:
            SearchError: If Ray is not installed or does not answer, or no node could hold a trial.
        """
        from masksearch.executors.ray import Tuning

        Tuning(self).run(
            strategy,
            evaluator,
            seed=seed,
            workdir=workdir,
            on_record=on_record,
            on_report=on_report,
        )
