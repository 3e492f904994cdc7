"""The demonstration: three strategies look for a planted mask, and the page says who found it.

Everything runs on the embedded corpus: random search and TPE over one space, DAM without a
space, then every mask that they chose against dense attention, the six hand-designed families,
random keys and the planted mask itself, on seeds that no search has used.
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from optuna.trial import BaseTrial
from torch import Tensor

from masksearch import masks
from masksearch.cli.resuming import resumable
from masksearch.driver import Study, compare, search
from masksearch.evaluators.planted import PlantedEvaluator
from masksearch.executors.local import Local
from masksearch.masks.core import Mask
from masksearch.report.collect import NOTES, report_on
from masksearch.tasks.planted.process import PlantedProcess

TRIALS = 16  # masks of random search and of TPE, each
SEARCH_SEED = 100  # the comparison uses the seeds below, so that no winner is flattered
SEEDS = (0, 1, 2)
ENOUGH = 0.8  # least sparsity of the mask that a strategy sends into the comparison
TIE = 0.005  # scores that close are equal: the sparser mask is chosen
GENEROUS = 2.0  # a mask counts as found up to this multiple of the planted mask's density
DAM_GATES = {"structure": "toeplitz+global", "global_count": 2}
DAM_CONFIG: dict[str, Any] = {"steps": 1500, "dense_warmup": 0.4, "density": 0.1}
DAM_DENSITIES = (0.15, 0.2, 0.1)


def space(trial: BaseTrial) -> Mask:
    """The diagonal, one or two distances on both sides, and perhaps a global token."""
    distances = {0, trial.suggest_int("first", 1, 20)}
    if trial.suggest_categorical("two", [False, True]):
        distances.add(trial.suggest_int("second", 1, 20))
    mask: Mask = masks.offsets(distances)
    if trial.suggest_categorical("hub", [False, True]):
        mask = mask | masks.global_tokens(1)
    return mask


@dataclass(frozen=True)
class PlantedRecovery:
    """How much of the planted structure a mask keeps."""

    name: str
    kept: int  # planted edges that the mask keeps
    edges: int  # planted edges
    density: float
    planted_density: float

    @property
    def found(self) -> bool:
        """Every planted edge kept, at no more than `GENEROUS` times the planted density."""
        return self.kept == self.edges and self.density <= GENEROUS * self.planted_density

    def __str__(self) -> str:
        verdict = "found the planted mask" if self.found else "did not find the planted mask"
        return (
            f"{self.name} {verdict}: it keeps {self.kept} of {self.edges} planted edges at "
            f"density {self.density:.3f} (planted: {self.planted_density:.3f})."
        )


def compare_with_truth(
    name: str, mask: Mask, process: PlantedProcess, heads: int
) -> PlantedRecovery:
    """Compares a mask with the truth; an edge counts where any head keeps it."""
    table: Tensor = mask.dense(process.length, 1, heads)
    kept = table.any(1)[0] & process.edges
    return PlantedRecovery(
        name,
        int(kept.sum()),
        int(process.edges.sum()),
        float(table.double().mean()),
        process.oracle.density(process.length),
    )


def show_demo(run: Path, slots: int) -> None:
    """Runs (or resumes) the demonstration, and prints its verdict and where its page is."""
    with resumable(run, "demo", {"run": run, "slots": slots}):
        page, lines = run_demo(run, slots=slots)
    for line in lines:
        typer.echo(line)
    typer.echo(f"report: {page.resolve()}")


def run_demo(
    run: Path,
    *,
    slots: int = 2,
    evaluator: PlantedEvaluator | None = None,
    trials: int = TRIALS,
    seeds: tuple[int, ...] = SEEDS,
    dam_config: dict[str, Any] | None = None,
) -> tuple[Path, list[str]]:
    """Runs (or resumes) the demonstration.

    Args:
        run: Folder; each part is a study of its own below it.
        slots: Worker processes.
        evaluator: Default: the planted corpus at its default size.
        trials: Masks of random search and of TPE, each.
        seeds: Evaluation seeds of the comparison.
        dam_config: Arguments of `masksearch.DamConfig`.

    Returns:
        The page, and the verdict lines.
    """
    started = time.monotonic()
    evaluator = evaluator or PlantedEvaluator()
    process, executor = evaluator.process, Local(slots=slots, threads=1)
    by_dam = {"gates": DAM_GATES, "config": dam_config or DAM_CONFIG, "densities": DAM_DENSITIES}
    studies: dict[str, Study] = {}
    for name in ("dam", "tpe", "random"):
        one_shot = name == "dam"
        count = 1 + len(DAM_DENSITIES) if one_shot else trials
        studies[name] = search(
            None if one_shot else space,
            evaluator,
            run=run / name,
            trials=count,
            strategy=name,
            strategy_options=by_dam if one_shot else {},
            seed=SEARCH_SEED,
            executor=executor,
        )
    chosen = {name: choose_mask(study) for name, study in studies.items()}
    found = {f"found by {name}": mask for name, mask in chosen.items() if mask is not None}
    count = round(process.oracle.density(process.length) * process.length)
    candidates = {
        "dense": masks.full(),
        **masks.FAMILIES,
        "random keys": masks.random_keys(count, seed=0),
        "oracle": process.oracle,
        **found,
    }
    kinds = dict.fromkeys(("random keys", "oracle"), "control")
    compare(
        candidates,
        evaluator,
        run=run / "compare",
        seeds=seeds,
        kinds={**kinds, **dict.fromkeys(found, "searched")},
        executor=executor,
    )
    lines = verdict_lines(chosen, studies, evaluator)
    notes = {
        "title": "Who finds the planted mask?",
        "verdicts": lines,
        "facts": {
            "corpus": describe_process(process),
            "protocol": evaluator.protocol,
            "search seed": str(SEARCH_SEED),
            "seeds of the comparison": ", ".join(map(str, seeds)),
            "worker processes": str(slots),
            "wall time of the last call": f"{time.monotonic() - started:.0f} s",
        },
    }
    (run / NOTES).write_text(json.dumps(notes, indent=1), encoding="utf-8")
    command = f"masksearch demo --run {shlex.quote(str(run))}"
    return report_on(run, run / "report.html", command=command), lines


def choose_mask(study: Study) -> Mask | None:
    """The sparsest mask within `TIE` of the best score at a sparsity of at least `ENOUGH`; None
    where nothing was that sparse."""
    sparse = [r for r in study.records() if r.scored and r.measures["sparsity"] >= ENOUGH]
    top = max((record.value("score") for record in sparse), default=0.0)
    best = [record for record in sparse if record.value("score") >= top - TIE]
    return max(best, key=lambda r: r.measures["sparsity"]).mask if best else None


def verdict_lines(
    chosen: dict[str, Mask | None],
    studies: dict[str, Study],
    evaluator: PlantedEvaluator,
) -> list[str]:
    """Who found the planted mask, with what compute."""
    lines = []
    for name, mask in chosen.items():
        if mask is None:
            lines.append(f"{name} did not find the planted mask: nothing was sparse enough.")
            continue
        recovery = compare_with_truth(name, mask, evaluator.process, evaluator.shape.heads)
        seconds = sum(record.seconds for record in studies[name].records())
        lines.append(f"{recovery} Compute: {seconds:.0f} s.")
    hand = {
        name: compare_with_truth(name, mask, evaluator.process, 1)
        for name, mask in masks.FAMILIES.items()
    }
    covering = [name for name, found in hand.items() if found.kept == found.edges]
    lines.append(
        "Of the six hand-designed families, "
        + (f"{' and '.join(covering)} keep" if covering else "none keeps")
        + " every planted edge."
    )
    return lines


def describe_process(process: PlantedProcess) -> str:
    """The planted process in a line."""
    return (
        f"planted: {process.length} positions, {process.vocabulary} tokens, partners at "
        f"distance {', '.join(map(str, process.offsets))}, {process.keys} permutations chosen by "
        f"position 0; {int(process.edges.sum())} true edges"
    )
