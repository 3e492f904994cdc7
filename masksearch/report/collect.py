"""Collects what a run folder holds and writes its page."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from masksearch.analysis.compare import ComparedMasks
from masksearch.analysis.pareto import SPARSITIES
from masksearch.analysis.verdict import count
from masksearch.contracts import Objective, OneShot, Record, Shape, read_split
from masksearch.errors import MaskFormatError, MaskSearchError, SearchError, without_controls
from masksearch.files import path_inside, read_object
from masksearch.gates.result import DamResult
from masksearch.neighbours import load_part
from masksearch.report.dam import DamCard, DamRuns
from masksearch.report.page import write_report
from masksearch.report.section import Recipe, Section, recipe_of
from masksearch.study.status import NAME as STATUS
from masksearch.study.storage import hide_secrets
from masksearch.study.store import StudyStore, holds_study

NOTES = "notes.json"  # facts and verdicts that a program left in the run folder
COMMAND = "command.json"  # what the command line left there
LONGEST = 40  # characters of a setting that may stand in a section's title
ROWS = {  # by which rows masks were judged -> how a section says it
    "validation": "what the searches saw",
    "holdout": "judged again on unseen rows",
    "test": "judged on test rows",
    "all": "judged on all rows",
}


@dataclass(frozen=True)
class StoredStudy:
    """One study of a run folder."""

    run: Path
    kind: str  # "search" or "compare"
    name: str  # of the strategy, or of the folder
    records: list[Record]
    objectives: tuple[Objective, ...]
    shape: Shape
    facts: Mapping[str, str]
    calls: Sequence[Mapping[str, Any]] = ()  # with what each call that ran trials worked
    command: Mapping[str, Any] | None = None  # as the command line was given, where it was
    ended: bool = True  # False while it runs, and where it was interrupted

    @property
    def recipe(self) -> Recipe:
        """How it was made."""
        title = f"{'Search' if self.kind == 'search' else 'Comparison'} in {self.run}"
        return recipe_of(title, self.facts, self.calls, self.command)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The evaluator's settings by name."""
        return self.calls[0].get("evaluator", {}) if self.calls else {}


def studies_in(
    run: Path, storage: str | BaseStorage | None = None, *, alone: bool = True
) -> list[StoredStudy]:
    """The study of a run folder, or those of its direct subfolders that can be read.

    A subfolder that cannot be read is left out with a warning.

    Args:
        run: The folder.
        storage: Where the run's study lies, if it is not the folder's own database.
        alone: Whether that is said of this run; else of those among several that name it.

    Raises:
        SearchError: If there is none, or none can be read.
    """
    studies, unread = _read_folders(run, storage, alone=alone)
    for line in unread:
        warnings.warn(line, stacklevel=2)
    return studies


def _read_folders(
    run: Path, storage: str | BaseStorage | None = None, *, alone: bool = True
) -> tuple[list[StoredStudy], list[str]]:
    """See `studies_in`; also gives a line for each subfolder that cannot be read."""
    is_study = holds_study(run)
    parts = [] if is_study else list(filter(holds_study, sorted(run.glob("*/"))))
    if alone and storage is not None and not parts:
        return [_read_study(run, storage)], []
    if is_study:
        return [_read_study(run, allowed=storage)], []
    studies: list[StoredStudy] = []
    unread: list[str] = []
    for folder in parts:
        try:
            studies.append(_read_study(folder, allowed=storage))
        except MaskSearchError as problem:  # the others are reported all the same
            unread.append(f"{folder} is left out: {problem}")
    if not studies:
        raise SearchError(
            "; ".join(unread)
            or f"{run} holds no study (no study.db or study.json in it or directly below); "
            "name the folder that was given to --run"
        )
    return _tell_apart(studies), unread


def _tell_apart(studies: Sequence[StoredStudy]) -> list[StoredStudy]:
    """The studies; those of one name under the ends of their folders, as short as tells them
    apart."""
    short = [study.name for study in studies]
    names, parts = short, 0
    while len(set(names)) < len(names) and parts < max(len(study.run.parts) for study in studies):
        parts += 1
        ends = ["/".join(study.run.parts[-parts:]) for study in studies]
        names = [end if short.count(n) > 1 else n for n, end in zip(short, ends, strict=True)]
    return [replace(study, name=name) for study, name in zip(studies, names, strict=True)]


def _read_study(
    folder: Path,
    storage: str | BaseStorage | None = None,
    allowed: str | BaseStorage | None = None,
) -> StoredStudy:
    """Reads one study; its storage as in `StudyStore`.

    Raises:
        SearchError: If it cannot be read, or nothing describes it.
    """
    store = StudyStore(folder, storage, write=False, allowed=allowed)
    facts, called, status = without_controls(store.facts()), folder / COMMAND, folder / STATUS
    if "kind" not in facts:
        raise SearchError(
            f"nothing says what the study of {folder} is; its search was ended before it began, "
            "or another program has written it"
        )
    return StoredStudy(
        folder,
        facts["kind"],
        facts.get("strategy", folder.name),
        store.told(),
        store.objectives(),
        store.shape(),
        facts,
        hide_secrets(store.calls()),
        hide_secrets(read_object(called, "delete it", options=dict)) if called.is_file() else None,
        not status.is_file() or read_object(status, "delete it", state=str)["state"] == "ended",
    )


def _limits_of(searches: Sequence[StoredStudy]) -> dict[str, str]:
    """The constraints and early stopping of the searches, for the page."""
    limits: dict[str, str] = {}
    for study in searches:
        constraints = ", ".join(json.loads(study.facts.get("constraints", "[]")))
        scheduler = study.facts.get("scheduler", "")
        for label, text in (("constraints", constraints), ("early stopping", scheduler)):
            if text and text not in limits.get(label, ""):
                limits[label] = f"{limits[label]}; {text}" if label in limits else text
    return limits


def report_on(
    runs: Path | Sequence[Path],
    path: Path,
    *,
    command: str = "",
    storage: str | BaseStorage | None = None,
) -> Path:
    """Writes the page of run folders, with its data, figures and tables beside it.

    Studies of one protocol share a section; each protocol has one, named by what sets it apart.

    Args:
        runs: Run folders, or folders whose direct subfolders are runs; those that cannot be read
            are named on the page and in a warning.
        path: Of the page.
        command: Writes the page again.
        storage: Where the run's study lies, if it is not the folder's own database; of several
            runs, those that name it.

    Returns:
        The path of the page.
    """
    runs = [runs] if isinstance(runs, Path) else list(runs)
    every: list[StoredStudy] = []
    unread: list[str] = []
    for run in runs:
        studies, problems = _read_folders(run, storage, alone=len(runs) == 1)
        every, unread = every + studies, unread + problems
    if len(runs) > 1:
        every = _tell_apart(every)
    for line in unread:
        warnings.warn(line, stacklevel=2)
    notes: dict[str, Any] = {}
    if len(runs) == 1 and (written := runs[0] / NOTES).is_file():
        notes = read_object(written, "delete it")
    groups: dict[tuple[Any, ...], list[StoredStudy]] = {}
    for study in every:
        key = (study.facts.get("protocol", ""), study.objectives, study.shape)
        groups.setdefault(key, []).append(study)
    titles = name_groups(list(groups.values()))
    sections = [
        _section_on(studies, title, {} if index else notes.get("facts", {}))
        for index, (studies, title) in enumerate(zip(groups.values(), titles, strict=True))
    ]
    if truth := [(sparsity, score) for sparsity, score in notes.get("truth", [])]:
        sections = [replace(section, truth=truth) for section in sections]
    return write_report(
        path,
        sections,
        title=notes.get("title", "Attention masks: sparsity against score"),
        about=notes.get("about", []),
        verdicts=notes.get("verdicts", []),
        unread=unread,
        command=command or shlex.join(["masksearch", "report", *map(str, runs)]),
    )


def write_comparison(comparison: ComparedMasks, path: Path | str) -> Path:
    """Writes the page of a comparison alone, which begins with its answer; see `write_report`."""
    facts, recipes = dict(comparison.notes), []
    about = [facts.pop("answer")] if "answer" in facts else []
    if comparison.run is not None:
        with contextlib.suppress(MaskSearchError):  # the page is about the comparison at hand
            recipes.append(_read_study(comparison.run, comparison.storage).recipe)
    section = Section(
        *({}, comparison.objectives, {"": comparison}),
        facts=facts, shape=comparison.shape, recipes=recipes,
    )  # fmt: skip
    return write_report(path, [section], title="Masks compared", about=about)


def _section_on(studies: Sequence[StoredStudy], title: str, facts: Mapping[str, str]) -> Section:
    """The section of studies of one protocol."""
    main, searches = studies[0], [study for study in studies if study.kind == "search"]
    compared = [study for study in studies if study.kind == "compare"]
    strategies = [study.facts.get("strategy", study.name) for study in searches]
    names = [
        name if strategies.count(name) == 1 else study.name
        for name, study in zip(strategies, searches, strict=True)
    ]
    pairs = [*zip(names, searches, strict=True)]
    unfinished = [name for name, study in pairs if not study.ended]
    unfinished = unfinished if len(unfinished) < len(searches) else []  # no other to compare with
    return Section(
        {name: study.records for name, study in pairs},
        main.objectives,
        {
            s.name: ComparedMasks.of(s.records, s.objectives, s.facts, run=s.run, shape=s.shape)
            for s in compared
        },
        title,
        {"protocol": main.facts.get("protocol", ""), **_limits_of(searches), **facts},
        main.shape,
        dam_health(searches),
        judge(studies) if (judge := load_part("parts", "proxy-card", "part")) else None,
        [study.recipe for study in studies],
        _searches_of([study for name, study in pairs if name not in unfinished]),
        unfinished=unfinished,
    )


def _searches_of(studies: Sequence[StoredStudy]) -> dict[str, dict[int, list[Record]]]:
    """Strategy -> search seed -> records; empty where no strategy was run with several seeds.

    Searches belong together where they differ in nothing but their seed.
    """
    groups: dict[str, dict[int, list[Record]]] = {}
    names: dict[str, str] = {}  # what searches of a group share -> its name
    for study in studies:
        seed = int(study.facts.get("seed", 0))
        alike = json.dumps({**study.facts, "seed": ""}, sort_keys=True)
        strategy = study.facts.get("strategy", study.name)
        taken = strategy in groups and alike not in names
        name = names.setdefault(alike, f"{strategy} ({study.name})" if taken else strategy)
        groups.setdefault(name, {}).setdefault(seed, study.records)
    return groups if any(len(runs) > 1 for runs in groups.values()) else {}


def name_groups(groups: Sequence[Sequence[StoredStudy]]) -> list[str]:
    """A title for the studies of each protocol: what sets them apart; empty for one alone.

    Score, model, length, steps and split are looked at first, then the evaluator's other settings,
    for those that are still alike; the protocol's id only tells apart what nothing else does.
    """
    if len(groups) == 1:
        return [""]
    described = []
    of_groups = [{k: v for study in each for k, v in study.settings.items()} for each in groups]
    stated = all("steps" in settings for settings in of_groups)
    for studies, settings in zip(groups, of_groups, strict=True):
        main = studies[0]
        last = max((r.step for study in studies for r in study.records if r.scored), default=0)
        steps = settings["steps"] if stated else last
        described.append(
            {
                "score": ", ".join(o.name for o in main.objectives if o.name not in SPARSITIES),
                "tasks": str(settings.get("tasks", "")).strip("()").replace("'", ""),
                "model": f"{count(main.shape.layers, 'layer')}, {count(main.shape.heads, 'head')}",
                "length": f"length {main.shape.length}",
                "steps": f"{steps} steps" if steps else "",
                "split": ROWS.get(
                    read_split(str(settings.get("split", settings.get("half")))), ""
                ),
                **{
                    name: f"{name} {value}"
                    for name, value in settings.items()
                    if name not in ("tasks", "size", "length", "steps", "split", "half")
                    and len(str(value)) <= LONGEST
                },
            }
        )
    first = ("score", "tasks", "model", "length", "steps", "split")
    rest = [name for each in described for name in each if name not in first]
    titles = [""] * len(groups)
    for name in dict.fromkeys([*first, *rest]):
        named = [(t, each.get(name, "")) for t, each in zip(titles, described, strict=True)]
        titles = [
            ", ".join(filter(None, (title, text)))
            if any(other != text and (name in first or same == title) for same, other in named)
            else title
            for title, text in named
        ]
    return [
        title if title and titles.count(title) == 1
        else ", ".join(filter(None, [title, f"protocol {studies[0].facts.get('protocol', '')}"]))
        for title, studies in zip(titles, groups, strict=True)
    ]  # fmt: skip


def dam_health(searches: Sequence[StoredStudy]) -> DamRuns:
    """The health cards of every one-shot job that left its gates, and what they say together.

    Runs whose jobs are equal differ in their seed: their agreement is measured.
    """
    runs: list[tuple[str, Record, DamResult, float | None]] = []
    missing: list[str] = []
    for study in searches:
        for record in study.records:
            if not isinstance(record.job, OneShot) or "gates" not in record.artifacts:
                continue
            name = f"{study.name}, trial {record.number} (seed {record.seed})"
            try:
                result = DamResult.load(path_inside(study.run, record.artifacts["gates"]))
            except (FileNotFoundError, MaskFormatError) as error:
                missing.append(f"{name}: {error}.")
                continue
            retrained = _retrained_loss(study.records, record.origin, result.target)
            runs.append((name, record, result, retrained))
    cards = []
    agreements: dict[str, Mapping[str, Any]] = {}
    for index, (name, record, result, retrained) in enumerate(runs):
        twins = [
            number
            for number, (_, other, table, _) in enumerate(runs)
            if other.job == record.job
            and table.probabilities.shape == result.probabilities.shape
            and table.target == result.target
        ]
        others = [runs[number][2] for number in twins if number != index and result.units is None]
        card = result.health(others=others, retrained=retrained)
        if card.agreement is not None and twins[0] == index:
            alike = f"{_gates_name(result)}, {100 * result.target:.3g}%"
            agreements[f"{alike} ({name})" if alike in agreements else alike] = card.agreement
        title = f"{name}: {_gates_name(result)} gates, target {100 * result.target:.3g}%"
        cards.append(DamCard(title, record, card, result.probabilities, result.warmup_steps))
    return DamRuns(cards, agreements, missing)


def _gates_name(result: DamResult) -> str:
    """The structure of a result's gates, in a word or two."""
    name = str(result.gates.get("structure", "free"))
    return f"{name}, signed" if result.gates.get("signed") else name


def _retrained_loss(records: Sequence[Record], origin: str, target: float) -> float | None:
    """The loss of the mask cut nearest to the target density, trained from scratch.

    `origin` is the strategy that cut it. None unless its evaluator reports a `loss` and its
    density is within a tenth of the target.
    """
    cut = [
        (abs(math.log(density / target)), record.values["loss"])
        for record in records
        if record.origin == origin
        and record.scored
        and math.isfinite(record.values.get("loss", math.nan))
        and (density := float(record.params.get("density", 0.0))) > 0
    ]
    distance, loss = min(cut, default=(math.inf, math.nan))
    return loss if distance <= math.log(1.1) else None
