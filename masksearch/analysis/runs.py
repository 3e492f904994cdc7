"""The masks that a comparison is given, what they are (searched, a control), and their runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

from torch import Tensor

from masksearch.analysis.pareto import (
    HAND,
    beats_constant,
    cost_of,
    keeps_budget,
    pareto,
    score_title,
    sparsity_of,
)
from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.stats import (
    Interval,
    MarginOutcome,
    PairedDifference,
    diverged_score,
    estimate,
)
from masksearch.contracts import Objective, Record, Shape, read_split
from masksearch.errors import CandidateError, check_name, without_controls
from masksearch.files import path_inside
from masksearch.masks import FAMILIES, full, parse
from masksearch.masks.checks import whole
from masksearch.masks.core import Mask
from masksearch.masks.families import FIRST_KEY, SCRAMBLED, random_like, sweep_families
from masksearch.masks.leaves import RandomKeys
from masksearch.masks.measure import effective_density

Candidate = Mask | Record | str  # a mask, what a search recorded of it, or its expression
MaskGroup = Literal["searched", "hand-designed", "candidate", "control"]
Against = str | Sequence[str]  # one of OPPONENTS, or names of masks
OPPONENTS = ("named", "nearest", "all")
Outcome = Literal["better", "worse", "not distinguishable", "too few seeds"] | MarginOutcome
SOURCES: dict[MaskGroup, str] = {  # a kind -> what a record says of a mask that no search recorded
    "searched": "search",
    "hand-designed": HAND,
    "candidate": "own",
    "control": "control",
}
NOTHING = "a mask that has learned nothing decides nothing"
MATCHED = 0.01  # sparsities within one point count as equal
CLOSE = 1e-3  # rows whose mean is farther from the score, relative to it, are of another run


# -- kinds -------------------------------------------------------------------------------------
def group_of_mask(mask: Mask | None) -> MaskGroup:
    """The kind of a mask where nobody has said it, by its value and never by its name.

    Returns:
        `"hand-designed"` for one of `masks.FAMILIES`, `"control"` for full attention, else
        `"candidate"`: a mask of which it is not known where it comes from.
    """
    if mask in FAMILIES.values():
        return "hand-designed"
    return "control" if mask == full() else "candidate"


def draws_keys(mask: Mask) -> bool:
    """Whether a mask, or a part of it, keeps keys that are drawn at random."""
    return (isinstance(mask, RandomKeys) and mask.count > 0) or any(map(draws_keys, mask.parts))


def check_kinds(kinds: Mapping[str, str], names: Collection[str]) -> dict[str, MaskGroup]:
    """The kinds that a caller gives, if they are kinds and the masks are there.

    Raises:
        UnknownNameError: If a name is not among `names`, or a kind is none.
    """
    for name, kind in kinds.items():
        check_name("mask of the comparison in kinds=", name, names)
        check_name(f"kind of mask {name!r}:", kind, SOURCES)
    return cast("dict[str, MaskGroup]", dict(kinds))


class Found(NamedTuple):
    """How searches found a mask of a comparison."""

    seeds: tuple[int, ...]  # that they scored it with
    same_rows: bool  # whether one of these judged by rows of the comparison
    score: float | None = None  # the last one's, on the rows of its search
    protocol: str = ""  # of that score


# -- runs of masks -----------------------------------------------------------------------------
@dataclass(frozen=True)
class MaskRuns:
    """All runs of one mask.

    `scores` maps each seed to its score, a diverged one to the worst; `values` likewise for
    every reported value, without the diverged seeds. `at_majority` names the tasks that do not
    beat a constant answer: the mean over seeds of the lower bounds over rows is not above the
    mean of the constant's score (see `pareto.beats_constant`).
    """

    name: str
    kind: MaskGroup
    expression: str
    fingerprint: str
    at_random: bool  # its mask keeps keys drawn at random
    sparsity: float  # over the non-padding query-key pairs, in [0, 1]; NaN where no run has it
    table_sparsity: float  # over the n x n cells
    block_density: float
    work: float  # `masks.work`; NaN where it is not known
    cost: float  # as a share of dense attention's (`cost_of`)
    budgets: frozenset[float]  # the one that it stands for, else all that it keeps
    scores: Mapping[int, float]
    diverged: tuple[int, ...]  # seeds
    row_files: Mapping[int, Path]  # seed -> scores row by row, as far as the run has kept them
    values: Mapping[str, Mapping[int, float]]
    at_majority: frozenset[str]
    learned_nothing: bool  # it reports what constant answers earn, and beats none of them
    failed: int  # seeds that failed, and have not diverged
    unfinished: int  # seeds that are still running or were stopped
    most: float  # that the score can be, where it is known; else infinite

    @cached_property
    def rows(self) -> dict[int, RowScores]:
        """Seed -> its scores row by row, where they can be read."""
        tables = {s: read_rows(path, self.scores[s]) for s, path in self.row_files.items()}
        return {seed: rows for seed, rows in tables.items() if rows is not None}

    @cached_property
    def score(self) -> Interval:
        """Mean score, with its interval over seeds and, where they are known, over rows."""
        return estimate(list(self.scores.values()), rows=self.rows.values())

    @property
    def shown(self) -> Interval:
        """The same as people read it: no interval goes beyond what a score can be."""
        return replace(self.score, high=min(self.score.high, self.most))

    @property
    def tested(self) -> bool:
        """Whether the comparison is about this mask: a searched one, or a candidate."""
        return self.kind in ("searched", "candidate")

    @property
    def family(self) -> bool:
        """Whether it is a hand-designed mask, of whatever kind it is here."""
        return self.expression in {str(mask) for mask in FAMILIES.values()}

    @property
    def hand(self) -> bool:
        """Whether it is there as a hand-designed mask, also where it was asked about."""
        return self.kind == "hand-designed" or (self.kind == "candidate" and self.family)


Pair = tuple[MaskRuns, str, MaskRuns]  # a mask, why it is compared with the other one, that one


@dataclass(frozen=True)
class Finding:
    """One declared comparison: a searched mask, or a candidate, against another one."""

    mask: str
    against: str
    role: str  # why it is compared with that one
    outcome: Outcome
    difference: PairedDifference  # mask - other; its interval agrees with Holm's test
    adjusted: float  # Holm's adjusted p-value; one-sided where a margin is tested
    gap: float  # sparsity of the mask - sparsity of the other
    same: bool  # equal bits
    margin: float | None = None  # of losing to the reference; None = a test of no difference

    @property
    def words(self) -> str:
        """The outcome, with the margin where one was tested."""
        if self.same:
            return "the same mask"
        if self.outcome == "not distinguishable" and self.adjusted <= 0.05:
            return f"{self.outcome}: {NOTHING}"
        ends = "" if self.margin is None or self.outcome == "undecided" else f" {self.margin:g}"
        return f"{self.outcome}{ends}"

    @property
    def fair(self) -> bool:
        """Whether a win over that mask is one: it keeps no more cells than that mask."""
        return self.outcome != "better" or self.gap >= -MATCHED or self.role == "reference"


@dataclass(frozen=True)
class ComparedRuns:
    """The runs of a comparison: every mask trained with every seed.

    Args:
        records: `name` is the mask's, `seed` the seed.
        objectives: The first one is the score.
        run: Folder of the runs, if there is one.
        notes: Facts to print in the report (protocol, command, machine); `answer` begins its page.
        shape: What the masks were lowered to; without it the report draws no masks.
        kinds: Name -> `"searched"` (it comes from a search), `"hand-designed"`, `"control"` or
            `"candidate"` (nobody says where it comes from); for those not named see
            `group_of_mask`.
        meanings: Reported value -> what it measures, in a few words, for the verdict.
        split: Which rows judged; empty where the evaluator has no splits, or it is not known.
        read_out: What heads read of the encoder, where it is not the default.
        found_with: Searched mask -> how it was found, as far as it is known.
        promised: Mask of a search's front that is judged again -> its score in the search; None
            where that is of another protocol.
        against: Which masks a searched one, or a candidate, is set against; see
            `masksearch.compare`.
        seedless: Whether every seed gives a mask the same scores, so that rows alone decide.
        margin: How much a mask may lose to the reference, in units of the score; None = each is
            only tested for a difference from it.
        budgets: Mask of a run -> the budget within which it is the run's best.
        storage: Where the study of `run` is, if the caller has named it.

    Raises:
        ValueError: If there is no objective, a record names no mask, or the records come from
            more than one protocol.
    """

    records: tuple[Record, ...]
    objectives: tuple[Objective, ...]
    run: Path | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    shape: Shape | None = None
    kinds: Mapping[str, MaskGroup] = field(default_factory=dict)
    meanings: Mapping[str, str] = field(default_factory=dict)
    split: str = ""
    read_out: str = ""
    found_with: Mapping[str, Found] = field(default_factory=dict)
    promised: Mapping[str, float | None] = field(default_factory=dict)
    against: Against = "nearest"
    seedless: bool = False
    margin: float | None = None
    budgets: Mapping[str, float] = field(default_factory=dict)
    storage: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", tuple(self.records))
        object.__setattr__(self, "objectives", tuple(self.objectives))
        if not self.objectives:
            raise ValueError("a comparison needs at least one objective: the score")
        nameless = [record.number for record in self.records if not record.name]
        if nameless:
            raise ValueError(
                f"records {nameless[:5]} name no mask; a comparison's records have a `name`, as "
                "those of masksearch.compare do"
            )
        protocols = sorted({record.protocol for record in self.records if record.scored})
        if len(protocols) > 1:
            raise ValueError(
                f"scores of the protocols {', '.join(map(repr, protocols))} cannot be compared; "
                "run every mask under one of them"
            )

    # -- in a run folder -----------------------------------------------------------------------
    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        objectives: Sequence[Objective],
        facts: Mapping[str, str],
        *,
        run: Path | None = None,
        shape: Shape | None = None,
        storage: Any = None,
    ) -> Self:
        """The comparison of a study's records; of several masks with one name the last counts.

        Args:
            records: Of the study.
            objectives: Of the study.
            facts: Of the study, as `facts` writes them.
            run: Its folder.
            shape: What masks are lowered to.
            storage: Where the study is, if the caller has named it.
        """
        current = {r.name: r.fingerprint for r in records if r.name and r.fingerprint}
        latest = [r for r in records if r.name and r.fingerprint in ("", current.get(r.name, ""))]
        settings = without_controls(json.loads(facts.get("comparison", "{}")))
        sources, promised = settings.pop("found_with", {}), settings.pop("promised", {})
        budgets, names = settings.pop("budgets", {}), {record.name for record in records}
        return cls(
            tuple(latest),
            tuple(objectives),
            run,
            shape=shape,
            split=read_split(facts.get("half", "")),
            read_out=facts.get("read_out", ""),
            found_with={n: Found(tuple(s), *r) for n, (s, *r) in sources.items() if n in current},
            promised={name: score for name, score in promised.items() if name in current},
            budgets={name: limit for name, limit in budgets.items() if name in names},
            storage=storage,
            **settings,
        )

    @property
    def facts(self) -> dict[str, str]:
        """Facts that a study stores beside the records, as JSON; read again by `of`."""
        names = ["kinds", "meanings", "found_with", "promised", "against", "seedless", "margin"]
        values = {name: getattr(self, name) for name in [*names, "budgets"]}
        return {"comparison": json.dumps(values, default=dict)}

    # -- masks -----------------------------------------------------------------------------------
    @cached_property
    def entries(self) -> dict[str, MaskRuns]:
        """Mask name -> its runs, in the order of the records."""
        names = dict.fromkeys(record.name for record in self.records)
        return {name: self.entry(name) for name in names}

    def entry(self, name: str) -> MaskRuns:
        """Collects the runs of one mask; of several runs of one seed the last one counts."""
        runs = [record for record in self.records if record.name == name]
        # Every record whose mask is known says how sparse it is, a failed one too.
        record = next((record for record in runs if record.scored), runs[0])
        score = self.objectives[0].name
        by_seed = {r.seed: r for r in runs if r.scored and math.isfinite(r.value(score))}
        lost = {record.seed: record for record in runs if record.seed not in by_seed}
        diverged = tuple(seed for seed, record in lost.items() if _has_diverged(record, score))
        scores = {seed: record.value(score) for seed, record in by_seed.items()}
        if math.isfinite(self.worst):
            scores |= dict.fromkeys(diverged, self.worst)
        values: dict[str, dict[int, float]] = {}
        for seed, record in by_seed.items():
            for key, value in record.values.items():
                if math.isfinite(value):
                    values.setdefault(key, {})[seed] = value
        beaten = beats_constant({key: mean(each) for key, each in values.items()})
        shares = beaten and max(scores.values(), default=1.0) <= 1
        limits, objectives = self.budgets, self.objectives
        kept = [limit for limit in limits.values() if keeps_budget(record, objectives, limit)]
        return MaskRuns(
            name=name,
            kind=self.kind(name, record.mask),
            expression="" if record.mask is None else str(record.mask),
            fingerprint=record.fingerprint,
            at_random=record.mask is not None and draws_keys(record.mask),
            sparsity=sparsity_of(record) if record.measures else math.nan,
            table_sparsity=record.measures.get("sparsity", math.nan),
            block_density=record.measures.get("block_density", math.nan),
            work=record.measures.get("work", math.nan),
            cost=cost_of(record, objectives),
            budgets=frozenset([limits[name]] if name in limits else kept),
            scores=scores,
            diverged=diverged,
            row_files={s: path for s, r in by_seed.items() if (path := rows_file(self.run, r))},
            values=values,
            at_majority=frozenset(task for task, beats in beaten.items() if not beats),
            learned_nothing=bool(beaten) and not any(beaten.values()),
            failed=sum(r.status == "failed" for s, r in lost.items() if s not in diverged),
            unfinished=sum(r.status in ("running", "stopped") for r in lost.values()),
            most=1.0 if shares and self.sign > 0 else math.inf,
        )

    def reference_tells_nothing(self, reference: str) -> bool:
        """Whether the 95% interval of the reference's mean is wider than any two masks that have
        learned something differ in theirs."""
        judged = [entry for entry in self.entries.values() if entry.scores]
        means = [entry.score.value for entry in judged if not entry.learned_nothing]
        if reference not in self.entries or not means:
            return False
        whole = self.entries[reference].score
        return whole.high - whole.low > max(means) - min(means)  # False for NaN

    @cached_property
    def subjects(self) -> list[MaskRuns]:
        """The masks that are compared: searched ones, then candidates.

        Where there are none, a few hand-designed ones stand for themselves.
        """
        tested = [entry for entry in self.entries.values() if entry.tested]
        tested.sort(key=lambda entry: entry.kind != "searched")
        hand = [entry for entry in self.entries.values() if entry.kind == "hand-designed"]
        few = self.against == "named" and 2 <= len(hand) < len(FAMILIES)
        return tested or (hand if few else [])

    def kind(self, name: str, mask: Mask | None) -> MaskGroup:
        """The kind of a mask of that name: as declared, else by its value."""
        return self.kinds.get(name) or group_of_mask(mask)

    @cached_property
    def title(self) -> str:
        """The name of the score for readers."""
        return score_title(self.objectives[0].name, self.records)

    @cached_property
    def worst(self) -> float:
        """The score of a diverged run; NaN where nothing tells it."""
        name = self.objectives[0].name
        scores = [record.value(name) for record in self.records if record.scored]
        return diverged_score(self.objectives[0], scores)

    @property
    def mixture(self) -> str:
        """Why the scores cannot be compared; empty where they can."""
        steps = sorted({record.step for record in self.records if record.scored})
        if len(steps) < 2:
            return ""
        return (
            f"scores after {steps[0]:,} and after {steps[-1]:,} steps cannot be compared: a "
            "comparison is of runs of one length; judge the masks again in a new folder"
        )

    @property
    def sign(self) -> Literal[1, -1]:
        """1 where more of the score is better, else -1."""
        return 1 if self.objectives[0].goal == "max" else -1

    def best_hand(self, entry: MaskRuns) -> MaskRuns | None:
        """The hand-designed mask with the best mean, among those that are as sparse as a mask and
        have learned something; None where there is none."""
        as_sparse = [
            other
            for other in self.entries.values()
            if other.hand
            and other.scores
            and not other.learned_nothing
            and other.sparsity >= entry.sparsity - MATCHED
        ]
        return max(as_sparse, key=lambda other: self.sign * other.score.value, default=None)


def _has_diverged(record: Record, score: str) -> bool:
    """Whether a run ended in a loss or a score that is not finite."""
    if record.scored:
        return not math.isfinite(record.value(score))
    kind = re.split("[: ]", record.reason)[0].rpartition(".")[2]
    return record.status == "failed" and kind in ("NonFiniteLossError", "FloatingPointError")


def rows_file(run: Path | None, record: Record) -> Path | None:
    """The file with a run's scores row by row; that of the run that a reused one repeats."""
    name = record.artifacts.get("rows")
    return path_inside(run, name) if run and name is not None else None


def read_rows(path: Path, score: float) -> RowScores | None:
    """A run's scores row by row; None where the file is missing, damaged or of another run."""
    from safetensors import SafetensorError

    try:
        rows = RowScores.load(path)
        return rows if math.isclose(rows.score, score, rel_tol=CLOSE, abs_tol=CLOSE) else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def mean(values: Mapping[int, float]) -> float:
    """Mean over seeds; NaN for none."""
    return math.fsum(values.values()) / len(values) if values else math.nan


# -- what a comparison is given ----------------------------------------------------------------
def masks_of_candidates(candidates: Mapping[str, Candidate]) -> dict[str, Mask]:
    """The masks to compare, by name.

    Raises:
        CandidateError: If there are none, or one is no mask; says what to give instead.
        MaskFormatError: If an expression cannot be read.
    """
    if not isinstance(candidates, Mapping):
        raise CandidateError(
            'compare takes masks by name, such as {"mine": masks.window(3)}, got '
            f"{type(candidates).__name__}"
        )
    if not candidates:
        raise CandidateError("compare needs at least one mask, got an empty mapping")
    return {name: _read_candidate(name, each) for name, each in candidates.items()}


def _read_candidate(name: str, candidate: Candidate) -> Mask:
    """One mask; `name` is for the error."""
    if isinstance(candidate, Mask):
        return candidate
    if isinstance(candidate, str):
        return parse(candidate)
    if isinstance(candidate, Record):
        if candidate.mask is not None:
            return candidate.mask
        raise CandidateError(f"{name!r}: trial {candidate.number} has no mask; choose another")
    text = f"a {type(candidate).__name__}"
    if candidate is None:
        text = "None"
    elif isinstance(candidate, Tensor):
        text = f"a tensor {list(candidate.shape)}; masks.table(tensor) makes a mask of it"
    elif callable(candidate):
        text = f"{getattr(candidate, '__name__', candidate)} itself: call it, and give the mask"
    raise CandidateError(
        f"{name!r} is to be a mask, a record of a study, or an expression such as 'window(3)', "
        f"got {text}"
    )


def read_seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds, as a list.

    Raises:
        CandidateError: If they are not whole numbers, there are none, or one comes twice.
    """
    if (count := whole(seeds)) is not None:
        raise CandidateError(
            f"seeds are several whole numbers, got {count}: give seeds=range({max(count, 2)}) for "
            f"{max(count, 2)} seeds"
        )
    items = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    numbers = [number for seed in items if (number := whole(seed)) is not None]
    if not items or len({*numbers}) < len(items):
        raise CandidateError(
            "compare needs at least one seed, each a whole number and no seed twice, as "
            f"seeds=range(3), got {items}"
        )
    return numbers


def describe_reuse(sources: Mapping[str, Found], seeds: Collection[int], split: str) -> list[str]:
    """Says what flatters masks of searches: seeds and rows that found them and judge them too.

    Args:
        sources: How each was found.
        seeds: Those of the comparison.
        split: Of the rows that judge; empty where the evaluator has no splits.
    """
    lines: list[str] = []
    for name, each in sources.items():
        if both := sorted(set(each.seeds) & set(seeds)):
            lines.append(
                f"{name} was found with seed {', '.join(map(str, both))}, which judges it too: "
                "its score is flattered; judge by other seeds"
            )
        if each.same_rows and split:
            lines.append(
                f"{name} was found on rows that judge it too (split={split!r}): its score is "
                "flattered; judge by rows that no search has seen (split='holdout' or 'test')"
            )
    return lines


# -- the front of a search ---------------------------------------------------------------------
def names_alike(name: str) -> tuple[str, str]:
    """Names of the scrambled masks that a mask is judged beside: without and with the first key
    in every row."""
    return f"{SCRAMBLED} {name}", f"{SCRAMBLED} {name}{FIRST_KEY}"


def read_front(
    run: object, records: Sequence[Record], objectives: Sequence[Objective]
) -> dict[str, Record]:
    """`"front #7"` (trial 7) -> its record, for the front of what a search's strategy proposed.

    Args:
        run: Folder of the search, for the error.
        records: Of the search.
        objectives: Of the search.

    Raises:
        CandidateError: If the search has no front.
    """
    front = pareto([record for record in records if record.role != "baseline"], objectives)
    if not front:
        raise CandidateError(
            f"{run} has no front to judge: none of its {len(records)} trials is a finished one of "
            "its strategy that has learned something; search on"
        )
    return {f"front #{record.number}": record for record in front}


def join_front(
    front: Mapping[str, Record], candidates: Mapping[str, Candidate], shape: Shape
) -> tuple[dict[str, Candidate], dict[str, MaskGroup]]:
    """A front, its opponents and a caller's own candidates; and what the first two are.

    As many members of `masks.FAMILIES`, and as many scrambled masks without and with the first key
    in every row, have the front's densities.

    Args:
        front: Of `read_front`.
        candidates: The caller's own.
        shape: What the comparison lowers masks to; densities are effective ones.

    Raises:
        CandidateError: If one of these has the name of another mask.
    """
    masks = {name: record.mask for name, record in front.items() if record.mask is not None}
    hand = sweep_families(shape, [effective_density(mask, shape) for mask in masks.values()])
    alike = {
        other: random_like(mask, shape, seed, first_key=other.endswith(FIRST_KEY))
        for seed, (name, mask) in enumerate(masks.items())
        for other in names_alike(name)
    }
    added: dict[str, Candidate] = {**front, **hand, **alike}
    for name, candidate in candidates.items():
        if added.get(name, candidate) != candidate:
            raise CandidateError(
                f"{name!r} is the name of a mask that front_of= adds itself; give yours another"
            )
    kinds: dict[str, MaskGroup] = {**dict.fromkeys(front, "searched")}
    kinds |= {**dict.fromkeys(hand, "hand-designed"), **dict.fromkeys(alike, "control")}
    return {**added, **candidates}, kinds
