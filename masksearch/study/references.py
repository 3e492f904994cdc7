"""Masks that are named by the run that holds them: `RUN`, `RUN@0.9`, `RUN#7`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import BaseStorage

from masksearch.analysis.pareto import (
    HAND,
    describe_none_within,
    has_rival,
    ranked,
    sparsity_of,
)
from masksearch.analysis.recommendation import UNRIVALLED
from masksearch.analysis.runs import Candidate
from masksearch.contracts import Objective, Record
from masksearch.errors import SearchError, warn
from masksearch.masks.core import Mask
from masksearch.masks.text import names_run
from masksearch.study.store import StudyStore


@dataclass(frozen=True)
class Reference:
    """A mask of a run: that of a trial or, where none is named, the best of a least sparsity."""

    run: Path
    trial: int | None = None
    sparsity: float = 0.0  # least one, in [0, 1]


def parse_reference(text: str) -> Reference:
    """`RUN`, `RUN@SPARSITY` or `RUN#TRIAL`, in its parts.

    Raises:
        SearchError: If there is no such folder, or what follows # or @ is no trial or sparsity.

    >>> parse_reference(".@0.9")
    Reference(run=PosixPath('.'), trial=None, sparsity=0.9)
    """
    if Path(text).is_dir():
        return Reference(Path(text))
    match = re.fullmatch(r"(.+)([#@])([^#@/]*)", text)
    folder, sign, rest = match.groups() if match else (text, "", "")
    if not Path(folder).is_dir():
        raise SearchError(f"{folder!r} is no run folder, no mask file and no mask")
    if sign == "#":
        if not rest.isdecimal():
            raise SearchError(f"a trial is named as RUN#7, got {text!r}")
        return Reference(Path(folder), trial=int(rest))
    try:
        sparsity = float(rest)
        if not 0 <= sparsity <= 1:
            raise ValueError
    except ValueError:
        raise SearchError(f"a least sparsity in [0, 1] is named RUN@0.9, got {text!r}") from None
    return Reference(Path(folder), sparsity=sparsity)


def read_run_record(text: str, storage: str | BaseStorage | None = None) -> Record:
    """The record that a reference names; it has a mask.

    Args:
        text: The reference.
        storage: One outside of the run folder that the folder may name.

    Raises:
        SearchError: If there is no such run, or it has no such trial or mask; says which it has.
    """
    at = parse_reference(text)
    store = StudyStore(at.run, write=False, allowed=storage)
    records = store.records()
    with_mask = [record.number for record in records if record.mask is not None]
    if at.trial is None:
        if store.facts().get("kind") == "compare":
            raise SearchError(
                f"{at.run} is a comparison, in which every mask has several trials; name one "
                f"by its trial, such as {at.run}#{with_mask[0] if with_mask else 0}"
            )
        try:
            return choose_best(records, store.objectives(), at.sparsity)
        except SearchError as error:
            raise SearchError(f"{at.run}: {error}") from None
    if at.trial >= len(records):
        has = f"trials 0 to {len(records) - 1}" if records else "no trial yet"
        raise SearchError(f"{at.run} has no trial {at.trial}; it has {has}")
    record = records[at.trial]
    if record.mask is None:
        reason = f" ({record.reason})" if record.reason else ""
        raise SearchError(
            f"trial {at.trial} of {at.run} has no mask{reason}; the trials that have one: "
            f"{', '.join(map(str, with_mask)) or 'none'}"
        )
    return record


def rival_note(text: str) -> str:
    """Results of hand-designed masks of the same cost as the mask that a reference names."""
    record, store = read_run_record(text), StudyStore(parse_reference(text).run, write=False)
    if has_rival(record, store.records(), store.objectives()):
        return "hand-designed masks of the same cost are in that run, too"
    return f"of this mask {UNRIVALLED}: masksearch compare {text} --budget SHARE"


def within_budgets(
    candidates: Mapping[str, Candidate],
    budgets: Sequence[float],
    objectives: Sequence[Objective],
    storage: str | BaseStorage | None = None,
) -> tuple[dict[str, Candidate], dict[str, str], dict[str, float]]:
    """Candidates, where each whole run stands for its best mask within each budget.

    Args:
        candidates: By name.
        budgets: Shares of what dense attention costs.
        objectives: Of the comparison; the second one may be what budgets count (`cost_of`).
        storage: As in `read_run_record`.

    Returns:
        The candidates; name -> reason of those that a run has no mask for; and name -> budget of
        both.

    Raises:
        SearchError: If there is no such run, or its trials do not know what budgets count.
    """
    kept: dict[str, Candidate] = {}
    missing: dict[str, str] = {}
    limits: dict[str, float] = {}
    for name, each in candidates.items():
        run = parse_reference(each) if isinstance(each, str) and names_run(each) else None
        if run is None or run != Reference(run.run):
            kept[name] = each
            continue
        store = StudyStore(run.run, write=False, allowed=storage)
        trials = [record for record in store.records() if record.role == "trial"]
        goals = counted_as(store, objectives)
        for budget in budgets:
            full_name = f"{name} within {budget:g}"
            limits[full_name] = budget
            if inside := ranked(trials, goals, budget=budget):
                kept[full_name] = inside[0]
            else:
                missing[full_name] = describe_none_within(trials, goals, budget)
    return kept, missing, limits


def counted_as(store: StudyStore, objectives: Sequence[Objective]) -> list[Objective]:
    """A search's score, and what costs in a comparison; raises SearchError where no trial of the
    search knows that."""
    known = [{*each.measures, *each.values} for each in store.records() if each.scored]
    for cost in objectives[1:2]:
        if known and cost.name not in set.union(*known):
            raise SearchError(f"{store.run} has no {cost.name} of its masks: search anew for it")
    return [store.objectives()[0], *objectives[1:2]]


def best_baselines(
    candidates: Mapping[str, Candidate],
    budget: float,
    objectives: Sequence[Objective],
    storage: str | BaseStorage | None = None,
) -> dict[str, Record]:
    """The best two hand-designed masks within a budget of the first run that had that budget, and
    so has evaluated those of its cost.

    Args:
        candidates: By name; those that are whole runs count.
        budget: Share of what dense attention costs.
        objectives: As of `within_budgets`.
        storage: As in `read_run_record`.

    Returns:
        Name -> record, the best score in that search first; empty where no run has any.
    """
    for each in candidates.values():
        if not isinstance(each, str) or not names_run(each):
            continue
        store = StudyStore(parse_reference(each).run, write=False, allowed=storage)
        goals = counted_as(store, objectives)
        if budget not in json.loads(store.facts().get("budget") or "[]"):
            continue
        hand = [record for record in store.records() if record.source == HAND]
        if inside := ranked(hand, goals, budget=budget, baselines=True):
            return {record.name: record for record in inside[:2]}
    return {}


def read_run_mask(text: str, storage: str | BaseStorage | None = None) -> Mask:
    """The mask that a reference names; see `masksearch.masks.parse`, which calls it."""
    mask = read_run_record(text, storage).mask
    assert mask is not None
    return mask


def choose_best(
    records: Sequence[Record],
    objectives: Sequence[Objective],
    sparsity: float = 0.0,
    *,
    baselines: bool = False,
) -> Record:
    """The first of `ranked`, or why there is none.

    Where every finished trial of that sparsity scores no better than a constant answer, it is
    the best of those, with a warning.

    Raises:
        SearchError: If no finished trial is as sparse; says the sparsest that there is.
    """
    if order := ranked(records, objectives, sparsity, baselines=baselines):
        return order[0]
    if order := ranked(records, objectives, sparsity, baselines=baselines, learned=False):
        warn(
            f"trial {order[0].number} has learned nothing, like all others that could be chosen: "
            "its score is no better than that of a constant answer, so another mask would do as "
            "well; train longer"
        )
        return order[0]
    scored = [record for record in records if record.scored]
    counted = [record for record in scored if baselines or record.role != "baseline"]
    problem = f"no finished trial has a sparsity of {sparsity} or more"
    if counted:
        sparsest = max(map(sparsity_of, counted))
        raise SearchError(f"{problem}; the sparsest has {sparsest:.4f}")
    if scored:
        raise SearchError(
            f"only baselines have finished ({len(scored)}), nothing that the strategy proposed; "
            "search on, or take a baseline with study.best(baselines=True)"
        )
    raise SearchError(f"{problem}; none has finished")
