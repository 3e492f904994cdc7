"""Collects what a run folder holds and writes its page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from optuna.storages import BaseStorage

from masksearch.analysis.compare import ComparedMasks, read_kinds
from masksearch.analysis.proxy_card import FEWEST, ProxyAgreement
from masksearch.analysis.proxy_observations import goals_of
from masksearch.contracts import Objective, OneShot, Record, Shape
from masksearch.errors import MaskFormatError, SearchError
from masksearch.gates.config import warmup_steps
from masksearch.gates.result import DamResult
from masksearch.report.dam import DamCard, DamRuns
from masksearch.report.figures.dam import Sweep
from masksearch.report.page import write_comparison, write_report
from masksearch.study.store import StudyStore

NOTES = "notes.json"  # facts and verdicts that a program left in the run folder


@dataclass(frozen=True)
class Found:
    """One study of a run folder."""

    run: Path
    kind: str  # "search" or "compare"
    name: str  # of the strategy, or of the folder
    records: list[Record]
    objectives: tuple[Objective, ...]
    shape: Shape
    facts: Mapping[str, str]


def studies_in(run: Path, storage: str | BaseStorage | None = None) -> list[Found]:
    """The study of a run folder, or those of its direct subfolders.

    Args:
        run: The folder.
        storage: Where the run's study lies, if it is not the folder's own database.

    Raises:
        SearchError: If there is none.
    """
    if storage is not None:
        return [read_study(run, storage)]
    folders = [run] if (run / "study.db").is_file() else sorted(run.glob("*/"))
    found = [read_study(folder) for folder in folders if (folder / "study.db").is_file()]
    if not found:
        raise SearchError(
            f"{run} holds no study (no study.db in it or directly below); "
            "name the folder that was given to --run"
        )
    names = [study.name for study in found if study.kind == "search"]
    return [
        replace(study, name=study.run.name) if names.count(study.name) > 1 else study
        for study in found
    ]


def read_study(folder: Path, storage: str | BaseStorage | None = None) -> Found:
    """Reads one study."""
    store = StudyStore(folder, storage, write=False)
    facts = store.facts()
    name = facts.get("strategy", folder.name)
    return Found(
        folder, facts["kind"], name, store.told(), store.objectives(), store.shape(), facts
    )


def comparison_of(study: Found) -> ComparedMasks:
    """A stored comparison; of several masks that had one name, the last one counts."""
    current: dict[str, str] = {}
    for record in study.records:
        if "mask" in record.params and record.fingerprint:
            current[record.params["mask"]] = record.fingerprint
    records = tuple(
        record
        for record in study.records
        if "mask" in record.params
        and record.fingerprint in ("", current.get(record.params["mask"], ""))
    )
    kinds = read_kinds(study.facts, current)
    return ComparedMasks(
        records,
        study.objectives,
        study.run,
        shape=study.shape,
        kinds=kinds,
        meanings=json.loads(study.facts.get("meanings", "{}")),
    )


def limits_of(searches: Sequence[Found]) -> dict[str, str]:
    """What the searches were not allowed, or ended early, for the page."""
    found: dict[str, str] = {}
    for study in searches:
        constraints = ", ".join(json.loads(study.facts.get("constraints", "[]")))
        scheduler = study.facts.get("scheduler", "")
        for label, text in (("constraints", constraints), ("early stopping", scheduler)):
            if text and text not in found.get(label, ""):
                found[label] = f"{found[label]}; {text}" if label in found else text
    return found


def report_on(
    run: Path,
    path: Path,
    *,
    command: str = "",
    storage: str | BaseStorage | None = None,
) -> Path:
    """Writes the page of a run folder, with its figures beside it.

    Searches stand together; a comparison with the same objectives is drawn over their fronts,
    one with others gets a page of its own beside the first.

    Args:
        run: A run folder, or one whose direct subfolders are runs.
        path: Of the page.
        command: How to reproduce it; printed on the page.
        storage: Where the run's study lies, if it is not the folder's own database.

    Returns:
        The path of the (first) page.
    """
    found = studies_in(run, storage)
    searches = [study for study in found if study.kind == "search"]
    comparisons = [study for study in found if study.kind == "compare"]
    main = searches[0] if searches else comparisons[0]
    for other in searches:
        if other.objectives != main.objectives or other.shape != main.shape:
            raise SearchError(
                f"{other.run} and {main.run} have other objectives or another shape; "
                "report each of them alone"
            )
    beside = [study for study in comparisons if study.objectives == main.objectives]
    notes = read_notes(run)
    facts = {
        "protocol": main.facts.get("protocol", ""),
        **limits_of(searches),
        **notes.get("facts", {}),
        "command": command or f"masksearch report {run}",
    }
    page = write_report(
        path,
        title=notes.get("title", "Attention masks: sparsity against score"),
        studies={study.name: study.records for study in searches},
        objectives=main.objectives,
        comparison=comparison_of(beside[0]) if beside else None,
        facts=facts,
        shape=main.shape,
        verdicts=notes.get("verdicts", []),
        dam=dam_health(searches),
        proxy=card_of_studies(found),
    )
    for study in comparisons:
        if not beside or study is not beside[0]:
            write_comparison(comparison_of(study), path.with_name(f"{study.run.name}.html"))
    return page


def card_of_studies(studies: Sequence[Found], resamples: int = 300) -> ProxyAgreement | None:
    """The card of a report's own studies; None where their runs cannot give one.

    The first objective is the target; the proxy is the loss where it is reported along the
    way, else the objective itself. Only studies of the first one's protocol go in.
    """
    scored = [record for study in studies for record in study.records if record.scored]
    if not scored:
        return None
    protocol = scored[0].protocol
    records = {
        str(study.run): [r for r in study.records if r.protocol == protocol or not r.scored]
        for study in studies
    }
    alike = [record for record in scored if record.protocol == protocol]
    target = studies[0].objectives[0].name
    steps = {(name, report.step) for r in alike for report in r.curve for name in report.values}
    along = {name for name, step in steps if any(step < other for _, other in steps)}
    proxy = "loss" if "loss" in along else target
    if len({record.fingerprint for record in alike}) < FEWEST or proxy not in along:
        return None
    objectives = [objective for study in studies for objective in study.objectives]
    try:
        return ProxyAgreement.of(
            records,
            proxy=proxy,
            target=target,
            goals=goals_of(records, objectives),
            resamples=resamples,
        )
    except SearchError:  # too few masks have both values, or there is no shorter budget
        return None


def dam_health(searches: Sequence[Found]) -> DamRuns | None:
    """The health cards of every one-shot job that left its gates, and what they say together.

    Runs whose jobs are equal differ in their seed: their agreement is measured. Runs with equal
    gates and several settings of one density control are a sweep. None where no gates are.
    """
    found: list[tuple[str, Record, DamResult, float | None]] = []
    missing: list[str] = []
    for study in searches:
        for record in study.records:
            if not isinstance(record.job, OneShot) or "gates" not in record.artifacts:
                continue
            name = f"{study.name}, trial {record.number} (seed {record.seed})"
            try:
                result = DamResult.load(study.run / record.artifacts["gates"])
            except (FileNotFoundError, MaskFormatError) as error:
                missing.append(f"{name}: {error}.")
                continue
            found.append((name, record, result, retrained_loss(study.records, result.target)))
    if not found and not missing:
        return None
    cards = []
    agreements: dict[str, Mapping[str, Any]] = {}
    for index, (name, record, result, retrained) in enumerate(found):
        twins = [
            place
            for place, (_, other, table, _) in enumerate(found)
            if other.job == record.job
            and table.probabilities.shape == result.probabilities.shape
            and table.target == result.target
        ]
        others = [found[place][2] for place in twins if place != index]
        card = result.health(others=others, retrained=retrained)
        if card["agreement"] is not None and twins[0] == index:
            agreements[f"{gates_name(result)}, {100 * result.target:.3g}%"] = card["agreement"]
        title = f"{name}: {gates_name(result)} gates, target {100 * result.target:.3g}%"
        cards.append(
            DamCard(title, record, card, result.probabilities, warmup_steps(result.config))
        )
    return DamRuns(cards, agreements, sweeps([result for _, _, result, _ in found]), missing)


def gates_name(result: DamResult) -> str:
    """The structure of a result's gates, in a word or two."""
    name = str(result.gates.get("structure", "free"))
    return f"{name}, signed" if result.gates.get("signed") else name


def retrained_loss(records: Sequence[Record], target: float) -> float | None:
    """The loss of the mask that DAM cut nearest to the target density, trained from scratch.

    None unless its evaluator reports a `loss` and its density is within a tenth of the target.
    """
    cut = [
        (abs(math.log(density / target)), record.values["loss"])
        for record in records
        if record.origin == "dam"
        and record.scored
        and math.isfinite(record.values.get("loss", math.nan))
        and (density := float(record.params.get("density", 0.0))) > 0
    ]
    distance, loss = min(cut, default=(math.inf, math.nan))
    return loss if distance <= math.log(1.1) else None


def sweeps(results: Sequence[DamResult]) -> list[Sweep]:
    """One for each density control that was tried at several settings."""
    groups: dict[str, list[DamResult]] = {}
    for result in results:
        if "control" in result.config:
            kind = json.dumps([result.config["control"], {**result.gates, "seed": None}])
            groups.setdefault(kind, []).append(result)
    found = []
    for group in groups.values():
        control = group[0].config["control"]
        setting = "penalty" if control in ("penalty", "sum") else "density"
        points = [
            (float(np.mean(r.config[setting])), r.probabilities.mean().item(), r.held_out)
            for r in group
        ]
        points.sort(key=lambda point: point[:2])
        if points[0][0] < points[-1][0]:
            found.append(Sweep(control, setting, points))
    return found


def read_notes(run: Path) -> dict[str, Any]:
    """What a program wrote into `notes.json`; empty where there is none."""
    place = run / NOTES
    if not place.is_file():
        return {}
    notes: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return notes
