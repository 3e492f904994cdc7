"""Collects what a run folder holds and writes its page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from masksearch.contracts import Objective, OneShot, Record, Shape
from masksearch.errors import SearchError
from masksearch.gates.result import DamResult
from masksearch.results.comparison import Comparison
from masksearch.results.report import write_report
from masksearch.results.study_store import StudyStore

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
        return [opened(run, storage)]
    folders = [run] if (run / "study.db").is_file() else sorted(run.glob("*/"))
    found = [opened(folder) for folder in folders if (folder / "study.db").is_file()]
    if not found:
        raise SearchError(
            f"{run} holds no study (no study.db in it or directly below); "
            "name the folder that was given to --run"
        )
    names = [study.name for study in found if study.kind == "search"]
    return [
        Found(**{**vars(study), "name": study.run.name}) if names.count(study.name) > 1 else study
        for study in found
    ]


def opened(folder: Path, storage: str | BaseStorage | None = None) -> Found:
    """Reads one study."""
    store = StudyStore(folder, storage, write=False)
    facts = store.facts()
    name = facts.get("strategy", folder.name)
    return Found(
        folder, facts["kind"], name, store.told(), store.objectives(), store.shape(), facts
    )


def comparison_of(study: Found) -> Comparison:
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
    return Comparison(records, study.objectives, study.run, shape=study.shape)


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
        dam_health=dam_health(searches),
    )
    for study in comparisons:
        if not beside or study is not beside[0]:
            comparison_of(study).report(path.with_name(f"{study.run.name}.html"))
    return page


def dam_health(searches: Sequence[Found]) -> dict[str, float] | None:
    """The health card of the last one-shot job that left its gates."""
    health: dict[str, float] | None = None
    for study in searches:
        for record in study.records:
            if isinstance(record.job, OneShot) and "gates" in record.artifacts:
                card = DamResult.load(study.run / record.artifacts["gates"]).health()
                health = {
                    name: float(value)
                    for name, value in card.items()
                    if isinstance(value, int | float)
                }
    return health


def read_notes(run: Path) -> dict[str, Any]:
    """What a program wrote into `notes.json`; empty where there is none."""
    place = run / NOTES
    if not place.is_file():
        return {}
    notes: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return notes
