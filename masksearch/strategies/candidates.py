"""The masks of a comparison, their proposals, and the rows that judge them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from optuna.storages import BaseStorage

from masksearch.analysis.compare import ComparedMasks
from masksearch.analysis.pareto import keeps_budget
from masksearch.analysis.runs import (
    SOURCES,
    Candidate,
    Found,
    MaskGroup,
    check_kinds,
    join_front,
    masks_of_candidates,
    read_front,
)
from masksearch.analysis.verdict import beyond_budgets, count, plan_of_tests
from masksearch.contracts import Evaluate, Evaluator, Proposal, Record, Refused, Role, Split
from masksearch.errors import unknown_name
from masksearch.masks.core import Mask
from masksearch.masks.measure import effective_density, fingerprint
from masksearch.masks.text import names_run
from masksearch.strategies.opening import FixedQueue
from masksearch.study.references import counted_as, read_run_record, within_budgets
from masksearch.study.status import clock
from masksearch.study.store import StudyStore

JUDGED = ("trial", "baseline")  # roles of the masks that a search scores


@dataclass(frozen=True)
class Candidates:
    """The masks that a comparison judges.

    Args:
        masks: Name -> mask.
        missing: Name -> why a run has no mask within a budget.
        found: Name -> what a search recorded of the mask, which it has proposed or judged beside.
        kinds: Name -> kind, where it is known.
        promised: Of a front that is judged again: name -> its score in the search, None of
            another protocol.
        prints: Name -> fingerprint; empty of what is missing.
        budgets: Name -> the budget within which it is a run's best.
    """

    masks: Mapping[str, Mask]
    missing: Mapping[str, str]
    found: Mapping[str, Record]
    kinds: Mapping[str, MaskGroup]
    promised: Mapping[str, float | None]
    prints: Mapping[str, str]
    budgets: Mapping[str, float]

    def queue(self, judged: ComparedMasks, seeds: Sequence[int]) -> list[Proposal]:
        """The runs that a comparison lacks."""
        before = judged.records
        ended = {
            (r.name, r.fingerprint, r.seed)
            for r in before
            if r.status in ("done", "reused", "running")
        }
        return [
            _as_compared(each, judged.kind(each.name, self.masks[each.name]), self.found)
            for each in FixedQueue(self.masks, seeds, "compare", "compared").proposals
            if (each.name, self.prints[each.name], each.seed) not in ended
        ] + [
            Proposal(-1, Refused(reason), {}, "compare", seeds[0], name=name, role="compared")
            for name, reason in self.missing.items()
            if all(each.name != name for each in before)
        ]

    def plan(
        self,
        judged: ComparedMasks,
        seeds: Sequence[int],
        evaluator: Evaluator,
        left: int,
        slots: int,
    ) -> list[str]:
        """Lines on the runs to come: how many, for about how long, and what they will tell.

        Args:
            judged: The comparison as it stands.
            seeds: Of the evaluations.
            evaluator: Judges the masks.
            left: Runs to do.
            slots: Of these at a time.
        """
        shape, score = evaluator.shape, evaluator.objectives[0].name
        planned = replace(
            judged,
            records=tuple(
                Record(
                    number,
                    "done",
                    Evaluate(mask),
                    seed=seeds[0],
                    name=name,
                    fingerprint=self.prints[name],
                    values={score: 0.0},
                    measures={
                        **evaluator.measures_of(mask),
                        "effective_sparsity": 1 - effective_density(mask, shape),
                    },
                )
                for number, (name, mask) in enumerate(self.masks.items())
            ),
        )
        beside = (len(planned.entries) - len(planned.subjects)) * len(seeds)
        whole = f"{count(len(self.prints), 'mask')} x {count(len(seeds), 'seed')}"
        text = f"{whole}: {count(left, 'run')} to do"
        alike = _protocols_of_splits(evaluator)
        timed = [r.seconds for r in (*judged.records, *self.found.values()) if r.protocol in alike]
        if left and timed:
            text += f", about {clock(left * math.fsum(timed) / len(timed) / slots)}"
        if 0 < beside < len(self.prints) * len(seeds):
            text += f" ({beside} are of hand-designed masks and controls)"
        tests = plan_of_tests(planned.pairs(), len(seeds), judged)
        beyond = {n: beyond_budgets(planned, each) for n, each in planned.entries.items()}
        lines = [f"{name}: {words}" for name, words in beyond.items() if words]
        return [text, tests, *lines] if len(self.prints) > 1 else [text]


def read_candidates(
    candidates: Mapping[str, Candidate],
    evaluator: Evaluator,
    front_of: StudyStore | None,
    budgets: Sequence[float],
    kinds: Mapping[str, str],
    storage: str | BaseStorage | None,
) -> Candidates:
    """The masks that candidates stand for, and those of a front; arguments and errors are those of
    `compare`."""
    promised: dict[str, float | None] = {}
    of_front: dict[str, MaskGroup] = {}
    missing: dict[str, str] = {}
    limits: dict[str, float] = {}
    if isinstance(candidates, Mapping):  # what else is given is refused below
        if budgets:
            about = budgets, evaluator.objectives, storage
            candidates, missing, limits = within_budgets(candidates, *about)
        candidates = {name: _open_run(each, storage) for name, each in candidates.items()}
    if front_of is not None:
        goals, most = front_of.objectives(), max(budgets, default=math.inf)
        costs = counted_as(front_of, evaluator.objectives) if budgets else goals
        inside = [each for each in front_of.records() if keeps_budget(each, costs, most)]
        front = read_front(front_of.run, inside, goals)
        candidates, of_front = join_front(front, candidates, evaluator.shape)
        alike, score = _protocols_of_splits(evaluator), evaluator.objectives[0].name
        promised = {
            n: r.values.get(score) if r.protocol in alike else None for n, r in front.items()
        }
    chosen = masks_of_candidates(candidates) if candidates or not missing else {}
    found = {n: r for n, r in candidates.items() if isinstance(r, Record) and r.role in JUDGED}
    named: dict[str, MaskGroup] = {**dict.fromkeys(missing, "searched"), **of_front}
    named |= {n: "searched" for n, r in found.items() if r.role == "trial"}
    named |= {n: "hand-designed" for n, r in found.items() if r.source == SOURCES["hand-designed"]}
    named |= check_kinds(kinds, candidates)
    prints = {name: fingerprint(mask, evaluator.shape) for name, mask in chosen.items()}
    prints |= dict.fromkeys(missing, "")
    return Candidates(chosen, missing, found, named, promised, prints, limits)


def remember_found(
    earlier: ComparedMasks, compared: Candidates, protocols: Collection[str]
) -> dict[str, Found]:
    """How the masks of a comparison were found, in this call and in earlier ones.

    Args:
        earlier: The comparison so far; a name that now has another mask loses what it says.
        compared: Those of this call.
        protocols: Ids of what judges by rows of the comparison.
    """
    same = {
        record.name
        for record in earlier.records
        if compared.prints.get(record.name, record.fingerprint) == record.fingerprint
    }
    sources = {name: each for name, each in earlier.found_with.items() if name in same}
    score = earlier.objectives[0].name
    for name, record in compared.found.items():
        before = sources.get(name, Found((), False))
        sources[name] = Found(
            tuple(sorted({*before.seeds, record.seed})),
            before.same_rows or record.protocol in protocols,
            record.values.get(score),
            record.protocol,
        )
    return sources


def _as_compared(proposal: Proposal, kind: MaskGroup, records: Mapping[str, Record]) -> Proposal:
    """A comparison's proposal with its role, and where its mask comes from."""
    source = records[proposal.name].source if proposal.name in records else ""
    role: Role = "control" if kind == "control" else "compared"
    return replace(proposal, role=role, source=source or SOURCES[kind])


def _open_run(candidate: Candidate, storage: str | BaseStorage | None) -> Candidate:
    """The record that a candidate such as "runs/x#7" names; any other candidate as it is."""
    named = isinstance(candidate, str) and names_run(candidate)
    return read_run_record(str(candidate), storage) if named else candidate


# -- which rows judge: a search's own, or those that no search has seen -------------------------
def on_split(evaluator: Evaluator, split: Split | None) -> Evaluator:
    """The evaluator on the rows by which a comparison judges.

    Args:
        evaluator: Any one; where it has no splits, it stays as it is.
        split: None = `"holdout"` for an evaluator on its validation split, else the one that it
        has.

    Raises:
        EvaluatorError: If a split is asked of an evaluator that has none.
        UnknownNameError: If there is no such split.
    """
    if split is not None and split not in get_args(Split):
        raise unknown_name("split", split, get_args(Split))
    chosen = split or ("holdout" if evaluator.split == "validation" else evaluator.split)
    return evaluator if chosen == evaluator.split or chosen is None else evaluator.on(chosen)


def protocols_of_rows(evaluator: Evaluator) -> set[str]:
    """Protocol ids whose scores come from rows of this evaluator: its own, and those of splits
    that hold some of them."""
    protocols = {evaluator.protocol}
    if evaluator.split is not None:
        search, whole = evaluator.on("validation").protocol, evaluator.on("all").protocol
        if evaluator.split in ("validation", "all"):
            protocols |= {search, whole}
        elif evaluator.split == "holdout" and whole != search:
            protocols.add(whole)
    return protocols


def _protocols_of_splits(evaluator: Evaluator) -> set[str]:
    """Protocol ids whose scores differ from this evaluator's in their rows at most."""
    protocols = {evaluator.protocol}
    if evaluator.split is not None:
        protocols |= {evaluator.on(split).protocol for split in ("validation", "all")}
    return protocols
