"""The demonstration: four strategies look for masks whose true front is known.

Everything runs on planted data: DAM without a space, TPE, evolution and random search over one
space, once each; then the masks that they chose against dense attention, the six hand-designed
families and the mask that loses nothing, on seeds and rows that no search has used. How the
strategies do over several search seeds is read from records that come with the package.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from optuna.trial import BaseTrial

from masksearch import masks
from masksearch.cli.resuming import resumable
from masksearch.contracts import Record
from masksearch.driver import Study, compare, search
from masksearch.errors import SearchError
from masksearch.evaluators.planted import PlantedEvaluator
from masksearch.executors.local import Local
from masksearch.masks.core import Mask
from masksearch.report.collect import NOTES, report_on
from masksearch.tasks.planted.graded import GradedProcess

RECORDS = Path(__file__).with_name("demo_records.json")  # written by `masksearch demo --record`
TRIALS = 12  # masks of each strategy that proposes masks
STRATEGIES = ("dam", "tpe", "evolution", "random")
SEARCH_SEED = 100  # the comparison uses the seeds below, so that no winner is flattered
RECORDED_SEEDS = (0, 1, 2)
SEEDS = (1000, 1001, 1002)
BUDGETS = (0.9, 0.78)  # least sparsity of the masks that a strategy sends into the comparison
FARTHEST = 20  # positions
DAM_GATES = {"structure": "free", "heads": 1}  # like the space, one mask for all heads
DAM_CONFIG: dict[str, Any] = {"steps": 600, "dense_warmup": 0.5, "density": 0.15, "lr": 4e-3}
DAM_DENSITIES = (0.05, 0.08, 0.1, 0.15, 0.2)


def space(trial: BaseTrial) -> Mask:
    """The diagonal, up to three distances on both sides, and perhaps the first position."""
    distances = {0}
    for number in range(trial.suggest_int("distances", 1, 3)):
        distances.add(trial.suggest_int(f"distance {number}", 1, FARTHEST))
    mask: Mask = masks.offsets(distances)
    if trial.suggest_categorical("first position", [False, True]):
        mask = mask | masks.columns(1)
    return mask


@dataclass(frozen=True)
class DemoSettings:
    """What the demonstration runs.

    Args:
        evaluator: On a `GradedProcess`; its gates' batches hold 32 sequences.
        trials: Masks of each strategy that proposes masks.
        seeds: Evaluation seeds of the comparison.
        dam_config: Arguments of `masksearch.DamConfig`.
    """

    evaluator: PlantedEvaluator = field(
        default_factory=lambda: PlantedEvaluator.graded(gate_batch=32)
    )
    trials: int = TRIALS
    seeds: tuple[int, ...] = SEEDS
    dam_config: Mapping[str, Any] | None = None

    @property
    def process(self) -> GradedProcess:
        """The planted process.

        Raises:
            TypeError: If its true front is not known.
        """
        if not isinstance(self.evaluator.process, GradedProcess):
            raise TypeError("the demonstration needs an evaluator on a GradedProcess")
        return self.evaluator.process

    def search(self, strategy: str, run: Path, seed: int, slots: int) -> Study:
        """One search by a strategy, begun or gone on with."""
        one_shot = strategy == "dam"
        config = dict(self.dam_config or DAM_CONFIG)
        by_dam = {"gates": DAM_GATES, "config": config, "densities": DAM_DENSITIES}
        return search(
            None if one_shot else space,
            self.evaluator,
            run=run,
            trials=1 + len(DAM_DENSITIES) if one_shot else self.trials,
            strategy=strategy,
            strategy_options=by_dam if one_shot else {},
            seed=seed,
            executor=Local(slots=slots, threads=1),
        )


def volume(process: GradedProcess, points: Iterable[tuple[float, float]]) -> float:
    """Area above chance that points of (sparsity, accuracy) dominate, as a share of what the true
    front dominates.

    >>> process = GradedProcess()
    >>> volume(process, [(point.sparsity, point.accuracy) for point in process.front])
    1.0
    """

    def area(points: Iterable[tuple[float, float]]) -> float:
        total = reached = 0.0
        for sparsity, accuracy in sorted(points, reverse=True):
            total += sparsity * max(0.0, accuracy - process.chance - reached)
            reached = max(reached, accuracy - process.chance)
        return total

    return area(points) / area((point.sparsity, point.accuracy) for point in process.front)


def allowed(process: GradedProcess, mask: Mask) -> tuple[float, float]:
    """A mask's sparsity, and the exact largest accuracy that it allows."""
    return mask.sparsity(process.length), process.expected(mask)


def best_allowed(process: GradedProcess, sparsity: float) -> float:
    """Accuracy of the true front at that sparsity."""
    return max(
        (point.accuracy for point in process.front if point.sparsity >= sparsity - 1e-9),
        default=process.chance,
    )


def show_demo(run: Path, slots: int, record: Path | None = None) -> None:
    """Runs (or resumes) the demonstration, and prints its verdict and where its page is; with
    `record` the searches of every recorded seed instead, written to that file."""
    if record is not None:
        command = (
            f"masksearch demo --run {shlex.quote(str(run))} --record {shlex.quote(str(record))}"
        )
        written = record_searches(run, slots=slots, command=command)
        record.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"records: {record.resolve()}")
        return
    with resumable(run, "demo", {"run": run, "slots": slots}):
        page, lines = run_demo(run, slots=slots)
    for line in lines:
        typer.echo(line)
    typer.echo(f"report: {page.resolve()}")


def record_searches(
    run: Path,
    *,
    slots: int = 2,
    command: str = "",
    settings: DemoSettings | None = None,
    seeds: Sequence[int] = RECORDED_SEEDS,
) -> dict[str, Any]:
    """Runs every strategy with every seed; what the page needs of them.

    Args:
        run: Folder; each search is a study of its own below it.
        slots: Worker processes.
        command: What made them, for the page.
        settings: Default: those of the demonstration.
        seeds: Search seeds.
    """
    settings = settings or DemoSettings()
    searches: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for seed in seeds:
        for name in STRATEGIES:
            study = settings.search(name, run / f"{name}-{seed}", seed, slots)
            searches.setdefault(name, {})[str(seed)] = [
                {
                    "number": record.number,
                    "status": record.status,
                    "seconds": round(record.seconds, 2),
                    "step": record.step,
                    "mask": None if record.mask is None else record.mask.to_dict(),
                    **({"score": record.value("score")} if record.scored else {}),
                    **({"sparsity": record.measures["sparsity"]} if record.scored else {}),
                    **(
                        {"allowed": settings.process.expected(record.mask)}
                        if record.mask is not None
                        else {}
                    ),
                }
                for record in study.records()
            ]
    return {
        "command": command,
        "process": settings.process.digest,
        "protocol": settings.evaluator.protocol,
        "searches": searches,
    }


def run_demo(
    run: Path,
    *,
    slots: int = 2,
    settings: DemoSettings | None = None,
    records: Path = RECORDS,
) -> tuple[Path, list[str]]:
    """Runs (or resumes) the demonstration.

    Args:
        run: Folder; each part is a study of its own below it.
        slots: Worker processes.
        settings: What to run.
        records: Recorded searches, of any settings; the page names them.

    Returns:
        The page, and the verdict lines.
    """
    started = time.monotonic()
    settings = settings or DemoSettings()
    evaluator, process = settings.evaluator, settings.process
    studies = {name: settings.search(name, run / name, SEARCH_SEED, slots) for name in STRATEGIES}
    found = chosen_records(studies)
    compare(
        {"dense": masks.full(), **masks.FAMILIES, "oracle": process.oracle, **found},
        evaluator,
        run=run / "compare",
        seeds=settings.seeds,
        kinds={"oracle": "control"},
        executor=Local(slots=slots, threads=1),
    )
    recorded = json.loads(records.read_text(encoding="utf-8"))
    lines = verdict_lines(process, studies, recorded)
    notes = {
        "title": "Who comes near the true front?",
        "verdicts": lines,
        "truth": [[point.sparsity, point.accuracy] for point in process.front],
        "recorded": recorded,
        "facts": {
            "corpus": describe_process(process),
            "protocol": evaluator.protocol,
            "search seed": str(SEARCH_SEED),
            "seeds of the comparison": ", ".join(map(str, settings.seeds)),
            "worker processes": str(slots),
            "wall time of the last call": f"{time.monotonic() - started:.0f} s",
        },
    }
    (run / NOTES).write_text(json.dumps(notes, indent=1), encoding="utf-8")
    command = f"masksearch demo --run {shlex.quote(str(run))}"
    return report_on(run, run / "report.html", command=command), lines


def chosen_records(studies: Mapping[str, Study]) -> dict[str, Record]:
    """The best of each strategy at each budget that it has met."""
    chosen: dict[str, Record] = {}
    for name, study in studies.items():
        for budget in BUDGETS:
            try:
                best = study.best(sparsity=budget)
            except SearchError:  # nothing was that sparse
                continue
            if best.mask not in (record.mask for record in chosen.values()):
                chosen[f"{name} at {budget:.0%}"] = best
    return chosen


def verdict_lines(
    process: GradedProcess, studies: Mapping[str, Study], recorded: Mapping[str, Any]
) -> list[str]:
    """Who came how near to the true front with what compute, live and as recorded; and where the
    six families lie."""
    lines = []
    reached = {}
    for name, study in studies.items():
        records = study.records()
        tried = [record.mask for record in records if record.mask is not None and record.scored]
        share = volume(process, (allowed(process, mask) for mask in tried))
        reached[name] = share, sum(record.seconds for record in records), len(tried)
    for name, (share, seconds, count) in sorted(reached.items(), key=lambda item: -item[1][0]):
        lines.append(
            f"{name}: its {count} masks cover {share:.0%} of what the true front covers, after "
            f"{seconds:.0f} s of compute (search seed {SEARCH_SEED}, this run)."
        )
    shares = {}
    for name, runs in recorded["searches"].items():
        if recorded["process"] == process.digest:
            shares[name] = [
                volume(process, ((r["sparsity"], r["allowed"]) for r in run if "score" in r))
                for run in runs.values()
            ]
    if shares:
        seeds = len(next(iter(shares.values())))
        lines.append(
            f"Recorded, {seeds} search seeds, mean (least to most): "
            + "; ".join(
                f"{name} {sum(own) / len(own):.0%} ({min(own):.0%} to {max(own):.0%})"
                for name, own in sorted(shares.items(), key=lambda item: -sum(item[1]))
            )
            + "."
        )
    families = {name: allowed(process, mask) for name, mask in masks.FAMILIES.items()}
    share = volume(process, families.values())
    lines.append(
        f"The six hand-designed families together cover {share:.0%}: "
        + "; ".join(
            f"{name} allows {accuracy:.3f} at {sparsity:.0%} sparsity (true front: "
            f"{best_allowed(process, sparsity):.3f})"
            for name, (sparsity, accuracy) in families.items()
        )
        + "."
    )
    return lines


def describe_process(process: GradedProcess) -> str:
    """The planted process in a line."""
    return (
        f"planted and graded: {process.length} positions, {process.parts} parts of "
        f"{process.symbols} symbols, {len(process.planted)} dependencies, "
        f"{int(process.edges.sum())} true edges; chance {process.chance:.3f}, no mask allows more "
        f"than {process.ceiling:.3f}"
    )
