"""Masks judged side by side over the same seeds, and the comparisons that were declared."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from masksearch.analysis.candidates import Discovery
from masksearch.analysis.compared_fronts import ComparedFronts, compare_fronts
from masksearch.analysis.pareto import SPARSITIES, beats_constant, sparsity_of
from masksearch.analysis.row_scores import ROWS, RowScores
from masksearch.analysis.stats import (
    Interval,
    PairedDifference,
    correct_family,
    diverged_score,
    estimate,
    paired_difference,
)
from masksearch.analysis.verdict import FAMILY, verdict_text
from masksearch.contracts import Objective, Record, Shape, is_side_value
from masksearch.errors import unknown_name
from masksearch.masks import FAMILIES, full
from masksearch.masks.core import Mask

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["searched", "hand-designed", "candidate", "control"]
Outcome = Literal["better", "worse", "not distinguishable", "too few seeds"]
Against = Literal["nearest", "all"]
KINDS: tuple[Kind, ...] = ("searched", "hand-designed", "candidate", "control")
MATCHED = 0.01  # sparsities within one point count as equal
CLOSE = 1e-3  # rows whose mean is farther from the score, relative to it, are of another run


# -- kinds -------------------------------------------------------------------------------------
def kind_of_mask(mask: Mask | None) -> Kind:
    """What a mask is where nobody has said it, by its value and never by its name.

    Returns:
        `"hand-designed"` for one of `masks.FAMILIES`, `"control"` for full attention, else
        `"candidate"`: a mask of which it is not known where it comes from.
    """
    if mask in FAMILIES.values():
        return "hand-designed"
    return "control" if mask == full() else "candidate"


def draws_keys(mask: Mask) -> bool:
    """Whether a mask, or a part of it, keeps keys that are drawn at random."""
    return mask.kind == "random_keys" or any(map(draws_keys, mask.parts))


def check_kinds(kinds: Mapping[str, str], names: Collection[str]) -> dict[str, Kind]:
    """The kinds that a caller gives, if they are kinds and the masks are there.

    Raises:
        UnknownNameError: If a name is not among `names`, or a kind is none.
    """
    for name, kind in kinds.items():
        if name not in names:
            raise unknown_name("mask of the comparison in kinds=", name, names)
        if kind not in KINDS:
            raise unknown_name(f"kind of mask {name!r}:", kind, KINDS)
    return cast("dict[str, Kind]", dict(kinds))


def read_kinds(facts: Mapping[str, str], names: Iterable[str]) -> dict[str, Kind]:
    """Kinds of the masks of a stored comparison.

    Args:
        facts: Of the study; `kinds` holds them as JSON.
        names: Of its masks. Comparisons that were made before kinds were stored went by their
            names: dense, oracle and random ones were controls, all unknown ones searched.
    """
    if "kinds" in facts:
        return dict(json.loads(facts["kinds"]))
    kinds: dict[str, Kind] = {}
    for name in names:
        control = name in ("dense", "oracle") or name.startswith("random")
        hand: Kind = "hand-designed" if name in FAMILIES else "searched"
        kinds[name] = "control" if control else hand
    return kinds


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
    kind: Kind
    expression: str
    fingerprint: str
    at_random: bool  # its mask keeps keys drawn at random
    sparsity: float  # over the pairs that real tokens form, in [0, 1]; NaN where no run has it
    table_sparsity: float  # over the n x n cells
    block_density: float
    scores: Mapping[int, float]
    diverged: tuple[int, ...]  # seeds
    row_files: Mapping[int, Path]  # seed -> scores row by row, as far as the run has kept them
    values: Mapping[str, Mapping[int, float]]
    at_majority: frozenset[str]
    learned_nothing: bool  # it reports what constant answers earn, and beats none of them
    failed: int  # seeds that failed, and have not diverged
    unfinished: int  # seeds that are still running or were stopped

    @cached_property
    def rows(self) -> dict[int, RowScores]:
        """Seed -> its scores row by row, where they can be read."""
        found = {s: read_rows(path, self.scores[s]) for s, path in self.row_files.items()}
        return {seed: rows for seed, rows in found.items() if rows is not None}

    @cached_property
    def score(self) -> Interval:
        """Mean score, with its interval over seeds and, where they are known, over rows."""
        return estimate(list(self.scores.values()), rows=self.rows.values())

    @property
    def tested(self) -> bool:
        """Whether the comparison is about this mask: a searched one, or a candidate."""
        return self.kind in ("searched", "candidate")


@dataclass(frozen=True)
class Finding:
    """One declared comparison: a searched mask, or a candidate, against another one."""

    mask: str
    against: str
    role: str  # why it is compared with that one
    outcome: Outcome
    difference: PairedDifference  # mask - other; its interval agrees with Holm's test
    adjusted: float  # Holm's adjusted p-value
    gap: float  # sparsity of the mask - sparsity of the other
    same: bool  # equal bits

    @property
    def fair(self) -> bool:
        """Whether a win over that mask is one: it keeps no more cells than that mask."""
        return self.outcome != "better" or self.gap >= -MATCHED or self.role == "reference"


@dataclass(frozen=True)
class ComparedMasks:
    """The runs of a comparison: every mask trained with every seed.

    Args:
        records: `name` is the mask's, `seed` the seed.
        objectives: The first one is the score.
        run: Folder of the runs, if there is one.
        notes: Facts to print in the report (protocol, command, machine).
        shape: What the masks were lowered to; without it the report draws no masks.
        kinds: Name -> `"searched"` (it comes from a search), `"hand-designed"`, `"control"` or
            `"candidate"` (nobody says where it comes from); for those not named see
            `kind_of_mask`.
        meanings: Reported value -> what it measures, in a few words, for the verdict.
        half: Which rows judged; empty where the evaluator has no halves, or it is not known.
        found_with: Searched mask -> how it was found, as far as it is known.
        promised: Mask of a search's front that is judged again -> its score in the search; None
            where that is of another protocol.
        against: Whether a mask is set against the `"nearest"` hand-designed one, or `"all"`.
        seedless: Whether every seed gives a mask the same scores, so that rows alone decide.

    Raises:
        ValueError: If there is no objective, a record names no mask, or the records come from
            more than one protocol.
    """

    records: tuple[Record, ...]
    objectives: tuple[Objective, ...]
    run: Path | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    shape: Shape | None = None
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    meanings: Mapping[str, str] = field(default_factory=dict)
    half: str = ""
    found_with: Mapping[str, Discovery] = field(default_factory=dict)
    promised: Mapping[str, float | None] = field(default_factory=dict)
    against: Against = "nearest"
    seedless: bool = False

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

    @cached_property
    def entries(self) -> dict[str, MaskRuns]:
        """Mask name -> its runs, in the order of the records."""
        names = dict.fromkeys(record.name for record in self.records)
        return {name: self.entry(name) for name in names}

    def entry(self, name: str) -> MaskRuns:
        """Collects the runs of one mask; of several runs of one seed the last one counts."""
        runs = [record for record in self.records if record.name == name]
        # Every record whose mask is known says how sparse it is, a failed one too.
        known = next((record for record in runs if record.scored), runs[0])
        score = self.objectives[0].name
        by_seed = {r.seed: r for r in runs if r.scored and math.isfinite(r.value(score))}
        lost = {record.seed: record for record in runs if record.seed not in by_seed}
        diverged = tuple(seed for seed, record in lost.items() if has_diverged(record, score))
        scores = {seed: record.value(score) for seed, record in by_seed.items()}
        if math.isfinite(self.worst):
            scores |= dict.fromkeys(diverged, self.worst)
        values: dict[str, dict[int, float]] = {}
        for seed, record in by_seed.items():
            for key, value in record.values.items():
                if math.isfinite(value):
                    values.setdefault(key, {})[seed] = value
        beaten = beats_constant({key: mean(each) for key, each in values.items()})
        return MaskRuns(
            name=name,
            kind=self.kinds.get(name) or kind_of_mask(known.mask),
            expression="" if known.mask is None else str(known.mask),
            fingerprint=known.fingerprint,
            at_random=known.mask is not None and draws_keys(known.mask),
            sparsity=sparsity_of(known) if known.measures else math.nan,
            table_sparsity=known.measures.get("sparsity", math.nan),
            block_density=known.measures.get("block_density", math.nan),
            scores=scores,
            diverged=diverged,
            row_files={s: path for s, r in by_seed.items() if (path := self.rows_of(r))},
            values=values,
            at_majority=frozenset(task for task, beats in beaten.items() if not beats),
            learned_nothing=bool(beaten) and not any(beaten.values()),
            failed=sum(r.status == "failed" for s, r in lost.items() if s not in diverged),
            unfinished=sum(r.status in ("running", "stopped") for r in lost.values()),
        )

    @cached_property
    def worst(self) -> float:
        """The score of a diverged run; NaN where nothing tells it."""
        name = self.objectives[0].name
        scores = [record.value(name) for record in self.records if record.scored]
        try:
            return diverged_score(self.objectives[0], scores)
        except ValueError:
            return math.nan

    def rows_of(self, record: Record) -> Path | None:
        """The file with a run's scores row by row; that of the run that a reused one repeats."""
        return None if self.run is None else rows_file(self.run, record)

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
    def tasks(self) -> list[str]:
        """Every reported value that is not itself an objective, a measure or a side value, nor a
        task's own score under its metric's name (`MRPC/accuracy` beside `MRPC`)."""
        taken = {*SPARSITIES, "block_density"} | {objective.name for objective in self.objectives}
        keys = dict.fromkeys(key for entry in self.entries.values() for key in entry.values)
        each = [entry.values for entry in self.entries.values()]
        taken |= {k for k in keys if all(v.get(k) == v.get(k.rpartition("/")[0]) for v in each)}
        return [key for key in keys if key not in taken and not is_side_value(key)]

    @cached_property
    def fronts(self) -> ComparedFronts | None:
        """The front of a search that was judged again, and its rivals; None without one."""
        return compare_fronts(self)

    def frame(self, per: Literal["mask", "seed"] = "mask") -> pd.DataFrame:
        """One row per mask, densest first; or `per="seed"`, one row per run of a mask and seed.

        Columns of runs: mask, kind, seed, status, sparsity (of the table), effective_sparsity
        (over the pairs that real tokens form), block_density, every reported value, step,
        seconds, expression, fingerprint, error.

        Columns of masks: mask, kind, expression, sparsity, effective_sparsity, block_density,
        n_seeds, diverged, failed, unfinished; for each objective that is not a measure its mean
        (`glue`) and 95% interval over seeds, and over rows where they are known (`glue low`,
        `glue high`); diverged runs count as the worst score; for every other
        reported value its mean, and for tasks with a majority score the bool `<task> at
        majority` (see `MaskRuns`). Where there are such tasks, the bool `learned_nothing`: at
        the majority on all of them. Where a search's front was judged again, `score in search`
        (NaN for other masks) and `p on front`: the probability of being on the front of all.
        """
        import pandas as pd

        if per == "seed":
            return pd.DataFrame(
                {
                    "mask": record.name,
                    "kind": self.entries[record.name].kind,
                    "seed": record.seed,
                    "status": record.status,
                    "sparsity": record.measures.get("sparsity", math.nan),
                    "effective_sparsity": sparsity_of(record) if record.measures else math.nan,
                    "block_density": record.measures.get("block_density", math.nan),
                    **record.values,
                    "step": record.step,
                    "seconds": record.seconds,
                    "expression": "" if record.mask is None else str(record.mask),
                    "fingerprint": record.fingerprint,
                    "error": record.reason,
                }
                for record in self.records
            )
        rows: list[dict[str, Any]] = []
        judged = [o.name for o in self.objectives if o.name not in (*SPARSITIES, "block_density")]
        marked = {t for t in [*judged, *self.tasks] if self.has_majority(t)}
        for entry in sorted(self.entries.values(), key=lambda e: (e.sparsity, e.name)):
            row: dict[str, Any] = {
                "mask": entry.name,
                "kind": entry.kind,
                "expression": entry.expression,
                "sparsity": entry.table_sparsity,
                "effective_sparsity": entry.sparsity,
                "block_density": entry.block_density,
                "n_seeds": len(entry.scores),
                "diverged": len(entry.diverged),
                "failed": entry.failed,
                "unfinished": entry.unfinished,
                **({"learned_nothing": entry.learned_nothing} if marked else {}),
            }
            for name in judged:
                found = entry.score
                if name != self.objectives[0].name:
                    found = estimate(list(entry.values.get(name, {}).values()))
                row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
                if name in marked:
                    row[f"{name} at majority"] = name in entry.at_majority
            if self.fronts is not None:
                promised = self.promised.get(entry.name)
                row["score in search"] = math.nan if promised is None else promised
                row["p on front"] = self.fronts.chances.get(entry.name, math.nan)
            for task in self.tasks:
                row[task] = mean(entry.values.get(task, {}))
                if task in marked:
                    row[f"{task} at majority"] = task in entry.at_majority
            rows.append(row)
        return pd.DataFrame(rows)

    def has_majority(self, task: str) -> bool:
        """Whether any run reports the constant answer's score of that task."""
        return any(f"{task}/majority" in entry.values for entry in self.entries.values())

    def surpassing(self, entry: MaskRuns) -> MaskRuns | None:
        """The hand-designed mask with the best mean, among those that are as sparse and have a
        better mean than a mask; None where there is none."""
        sign = 1 if self.objectives[0].goal == "max" else -1
        above = [
            other
            for other in self.entries.values()
            if other.kind == "hand-designed"
            and other.scores
            and other.sparsity >= entry.sparsity - MATCHED
            and sign * (other.score.value - entry.score.value) > 0
        ]
        return max(above, key=lambda other: sign * other.score.value, default=None)

    # -- verdict -----------------------------------------------------------------------------
    def opponents(
        self, mine: MaskRuns, reference: str, against: Against
    ) -> list[tuple[str, MaskRuns]]:
        """(role, mask) of each declared comparison of one searched mask or candidate.

        Hand-designed masks (unless `against` says all of them) and controls are taken nearest
        in sparsity among those that the mask is not denser than by more than one point; a
        hand-designed one is taken from the sparser side only where there is no other, and said
        to be so. Of the controls of equal sparsity
        those that are drawn at random go first.
        """
        scored = [each for each in self.entries.values() if each.scores and each is not mine]

        def distance(other: MaskRuns) -> tuple[float, str]:
            return abs(other.sparsity - mine.sparsity), other.name

        found: list[tuple[str, MaskRuns]] = []
        hand = [each for each in scored if each.kind == "hand-designed"]
        fair = [each for each in hand if mine.sparsity >= each.sparsity - MATCHED]
        if against == "all":
            families = {str(mask) for mask in FAMILIES.values()} <= {e.expression for e in hand}
            found += [(FAMILY if families else "hand-designed", each) for each in hand]
        elif hand:
            found.append(("hand-designed, nearest in sparsity", min(fair or hand, key=distance)))
        controls = [
            each
            for each in scored
            if each.kind == "control" and each.name != reference and distance(each)[0] <= MATCHED
        ]
        if drawn := [each for each in controls if each.at_random]:
            found.append(("random control of equal sparsity", min(drawn, key=distance)))
        elif controls:
            found.append(("control of equal sparsity", min(controls, key=distance)))
        other = self.entries.get(reference)
        if other in scored and all(other is not each for _, each in found):
            found.append(("reference", other))
        return found

    def findings(self, reference: str = "dense", against: Against | None = None) -> list[Finding]:
        """Every declared comparison, corrected together (Holm, 5%); none of a `mixture`.

        Args:
            reference: Name of the mask that each of them is also compared with; left out where
                it was not run.
            against: As the field; None = what the comparison was made with.

        Raises:
            UnknownNameError: If `reference` is neither `"dense"` nor in the comparison, or
                `against` is unknown.
        """
        if reference != "dense" and reference not in self.entries:
            raise unknown_name("mask of the comparison", reference, self.entries)
        against = check_against(against or self.against)
        pairs = [
            (mine, role, other)
            for mine in self.entries.values()
            if mine.tested and mine.scores and not self.mixture
            for role, other in self.opponents(mine, reference, against)
        ]
        found = correct_family(
            pairs, lambda pair, level: compare_runs(pair[0], pair[2], level, self.seedless)
        )
        sign = 1 if self.objectives[0].goal == "max" else -1
        findings: list[Finding] = []
        for (mine, role, other), (difference, p) in zip(pairs, found, strict=True):
            gap = mine.sparsity - other.sparsity
            same = bool(mine.fingerprint) and mine.fingerprint == other.fingerprint
            outcome: Outcome = "not distinguishable"
            if not difference.decides:
                outcome = "too few seeds"
            elif p <= 0.05 and not same:
                better = sign * difference.value > 0
                if not (mine if better else other).learned_nothing:  # or else nobody has won
                    outcome = "better" if better else "worse"
            findings.append(
                Finding(mine.name, other.name, role, outcome, difference, p, gap, same)
            )
        return findings

    def verdict(self, reference: str = "dense", against: Against | None = None) -> str:
        """What the runs say of every searched mask and every candidate, in plain words.

        Each of them is set against the hand-designed mask nearest in sparsity (which it may be
        denser than by one point at most) or against all, the random control of equal sparsity
        where there is one, and `reference`: better, worse or not distinguishable by the paired
        difference over common seeds, Holm-corrected over all these comparisons (5%). Below
        three common seeds nothing is decided.

        Args:
            reference: See `findings`.
            against: See `findings`.

        Raises:
            UnknownNameError: See `findings`.
        """
        return verdict_text(self, self.findings(reference, against), reference)


def check_against(against: str) -> Against:
    """The name itself, if it says which hand-designed masks are opponents.

    Raises:
        UnknownNameError: If it does not.
    """
    if against not in get_args(Against):
        raise unknown_name("choice of hand-designed masks in against=", against, get_args(Against))
    return cast("Against", against)


def compare_runs(
    mine: MaskRuns, other: MaskRuns, level: float = 0.95, seedless: bool = False
) -> PairedDifference:
    """The paired difference of two masks' scores, over seeds and known rows."""
    tick = max((rows.tick for rows in (*mine.rows.values(), *other.rows.values())), default=0.0)
    return paired_difference(
        *(mine.scores, other.scores, level),
        tick=tick,
        rows_a=mine.rows,
        rows_b=other.rows,
        seedless=seedless,
    )


def has_diverged(record: Record, score: str) -> bool:
    """Whether a run ended in a loss or a score that is not finite."""
    if record.scored:
        return not math.isfinite(record.value(score))
    kind = re.split("[: ]", record.reason)[0].rpartition(".")[2]
    return record.status == "failed" and kind in ("NonFiniteLossError", "FloatingPointError")


def rows_file(run: Path, record: Record) -> Path | None:
    """The file with a record's scores row by row, in its run folder; None where it has none."""
    if "reused_from" in record.artifacts:
        return run / "trials" / record.artifacts["reused_from"] / ROWS
    return run / record.artifacts["rows"] if "rows" in record.artifacts else None


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
