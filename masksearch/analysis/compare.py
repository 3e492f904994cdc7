"""Masks judged side by side over the same seeds, and the comparisons that were declared."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from masksearch.analysis.fronts import ComparedFronts, compare_fronts
from masksearch.analysis.pareto import SPARSITIES, keeps_budget, sparsity_of
from masksearch.analysis.recommendation import Recommendation, recommend
from masksearch.analysis.runs import (
    MATCHED,
    OPPONENTS,
    Against,
    ComparedRuns,
    Finding,
    MaskRuns,
    Outcome,
    Pair,
    mean,
)
from masksearch.analysis.stats import (
    PairedDifference,
    correct_family,
    estimate,
    judge_margins,
    paired_difference,
)
from masksearch.analysis.verdict import FAMILY, verdict_text
from masksearch.contracts import Objective, is_side_value
from masksearch.errors import check_name, unknown_name
from masksearch.masks import FAMILIES
from masksearch.masks.families import SCRAMBLED

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class ComparedMasks(ComparedRuns):
    """Each mask's run with each seed, tables of them, and a verdict."""

    @property
    def tasks(self) -> list[str]:
        """Every reported value that is not itself an objective, a measure or a side value, nor a
        task's own score under its metric's name (`MRPC/accuracy` beside `MRPC`)."""
        taken = {*SPARSITIES, "block_density", "work"} | {
            objective.name for objective in self.objectives
        }
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
        (over the non-padding query-key pairs), block_density, every reported value, step,
        seconds, expression, fingerprint, error.

        Columns of masks: mask, kind, expression, sparsity, effective_sparsity, block_density,
        work (where it is known; of runs too), n_seeds, diverged, failed, unfinished; for each
        objective that is not a measure its mean (`glue`) and 95% interval over seeds, and over
        rows where they are known (`glue low`, `glue high`); diverged runs count as the worst
        score; for every other reported value its mean, and for tasks with a majority score the
        bool `<task> at majority` (see `MaskRuns`). Where there are such tasks, the bool
        `learned_nothing`: at the majority on all of them. Where a search's front was judged
        again, `score in search` (NaN for other masks) and `p on front`: the probability of being
        on the front of all.
        """
        import pandas as pd

        works = any("work" in record.measures for record in self.records)
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
                    **({"work": record.measures.get("work", math.nan)} if works else {}),
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
        shares = (*SPARSITIES, "block_density", "work")
        judged = [o.name for o in self.objectives if o.name not in shares]
        values = {name for entry in self.entries.values() for name in entry.values}
        marked = {t for t in [*judged, *self.tasks] if f"{t}/majority" in values}
        for entry in sorted(self.entries.values(), key=lambda e: (e.sparsity, e.name)):
            row: dict[str, Any] = {
                "mask": entry.name,
                "kind": entry.kind,
                "expression": entry.expression,
                "sparsity": entry.table_sparsity,
                "effective_sparsity": entry.sparsity,
                "block_density": entry.block_density,
                **({"work": entry.work} if works else {}),
                "n_seeds": len(entry.scores),
                "diverged": len(entry.diverged),
                "failed": entry.failed,
                "unfinished": entry.unfinished,
                **({"learned_nothing": entry.learned_nothing} if marked else {}),
            }
            for name in judged:
                score = entry.shown
                if name != self.objectives[0].name:
                    score = estimate(list(entry.values.get(name, {}).values()))
                row |= {name: score.value, f"{name} low": score.low, f"{name} high": score.high}
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

    # -- verdict -----------------------------------------------------------------------------
    def difference(self, mine: MaskRuns, other: MaskRuns, level: float = 0.95) -> PairedDifference:
        """One mask's score minus another's, over common seeds and, where they are known, rows."""
        rows = [*mine.rows.values(), *other.rows.values()]
        return paired_difference(
            *(mine.scores, other.scores, level),
            tick=max((run.tick for run in rows), default=0.0),
            rows_a=mine.rows,
            rows_b=other.rows,
            seedless=self.seedless,
        )

    def recommend(self, budget: float = 1.0) -> Recommendation:
        """The mask to take within a budget: the better mean of searched and hand-designed (printed
        alike, the hand-designed one); and, apart from that, which is shown to be better.

        Of each kind it is the one with the best score in its search, and these two are compared
        on the rows of this comparison. Where such scores are missing the best means are compared,
        and the interval is at the level of all pairs that could have been. A mask that has learned
        nothing is never taken.

        Args:
            budget: Share of dense attention's cost, in (0, 1], as of `masksearch.search`.

        Raises:
            SearchError: If no searched or hand-designed mask within the budget has learned
                anything.
        """
        within = {r.name for r in self.records if keeps_budget(r, self.objectives, budget)}
        entries = [entry for entry in self.entries.values() if entry.name in within]
        return recommend(self, entries, self.difference, self.title)

    def opponents(
        self, mine: MaskRuns, reference: str, against: Against
    ) -> list[tuple[str, MaskRuns]]:
        """(role, mask) of each declared comparison of one searched mask or candidate.

        Masks that `against` names are the opponents, and no other ones but the reference where
        there is a margin. Otherwise, of the masks with a budget in common (`MaskRuns.budgets`):
        each other searched mask and candidate where `against` is `"named"`, and each candidate of
        a searched mask where it is `"all"`. Hand-designed masks (unless `against` is `"all"`, or
        `"named"` and there are fewer than the families) and controls are taken nearest in
        sparsity among those that the mask is not denser than by more than one point; a
        hand-designed one is taken from the sparser side only where there is no other, and said
        to be so, and not where it has learned nothing and the mask has. Of the controls of equal
        sparsity those that are drawn at random go first, and of these the one that scores best.
        """
        scored = [each for each in self.entries.values() if each.scores and each is not mine]

        def distance(other: MaskRuns) -> tuple[float, str]:
            return abs(other.sparsity - mine.sparsity), other.name

        other = self.entries.get(reference)
        if against not in OPPONENTS:
            names = (against,) if isinstance(against, str) else against
            rivals = [("named", each) for each in scored if each.name in names]
            bounded = self.margin is not None and other in scored
            return rivals + [("reference", other)] * bounded if other else rivals
        inside = [e for e in scored if not self.budgets or mine.budgets & e.budgets]
        named: list[MaskRuns] = []
        if against == "named" and not self.promised:
            named = [each for each in inside if each.tested]
            if mine.family and not all(each.family for each in self.subjects):
                return [("named", each) for each in named]  # it is there for the others
        elif against == "all" and mine.kind == "searched":
            named = [each for each in inside if each.kind == "candidate" and not each.family]
        pairs = [("named", each) for each in named]
        hand = [each for each in inside if each.hand and each not in named]
        every = sum(each.hand for each in [*inside, mine])
        learned = [each for each in hand if each.learned_nothing <= mine.learned_nothing]
        fair = [each for each in learned if mine.sparsity >= each.sparsity - MATCHED]
        if against == "all":
            families = {str(mask) for mask in FAMILIES.values()} <= {e.expression for e in hand}
            pairs += [(FAMILY if families else "hand-designed", each) for each in hand]
        elif against == "named" and every < len(FAMILIES):
            pairs += [("hand-designed", each) for each in hand]
        elif learned:
            nearest = min(fair or learned, key=distance)
            pairs.append(("hand-designed, nearest in sparsity", nearest))
        controls = [
            each
            for each in scored
            if each.kind == "control" and each.name != reference and distance(each)[0] <= MATCHED
        ]
        if drawn := [each for each in controls if each.at_random]:
            best = max(drawn, key=lambda each: self.sign * each.score.value)
            pairs.append((f"{SCRAMBLED} control of equal sparsity", best))
        elif controls:
            pairs.append(("control of equal sparsity", min(controls, key=distance)))
        unlisted = all(other is not each for _, each in pairs)  # unless it is an opponent already
        if other in scored and (unlisted or self.margin is not None):
            pairs.append(("reference", other))
        return pairs

    def pairs(self, reference: str = "dense", against: Against | None = None) -> list[Pair]:
        """Every declared comparison: a mask, the role of its opponent, and the opponent.

        Two masks meet once; none of a `mixture` do. Arguments and errors are those of `findings`.
        """
        if reference != "dense" and reference not in self.entries:
            raise unknown_name("mask of the comparison", reference, self.entries)
        against = check_against(self.against if against is None else against, self.entries)
        pairs: list[Pair] = []
        for mine in self.subjects:
            if not (mine.scores or mine.failed) or self.mixture:
                continue
            before = {(one.name, other.name) for one, _, other in pairs}
            pairs += [
                (mine, role, other)
                for role, other in self.opponents(mine, reference, against)
                if role == "reference" or (other.name, mine.name) not in before
            ]
        return pairs

    def findings(self, reference: str = "dense", against: Against | None = None) -> list[Finding]:
        """Every declared comparison; none of a `mixture`.

        Those with opponents are tests of no difference, corrected together (Holm, 5%), and so
        are those with the reference unless there is a margin (`judge_margins`). Then their
        intervals hold together (Bonferroni).

        Args:
            reference: Name of the mask that each of them is also compared with; left out where
                it was not run.
            against: As the field; None = what the comparison was made with.

        Raises:
            UnknownNameError: If `reference` is neither `"dense"` nor in the comparison, or
                `against` is unknown.
        """
        pairs = self.pairs(reference, against)

        def differ(pair: Pair, level: float) -> PairedDifference:
            return self.difference(pair[0], pair[2], level)

        tested = [pair for pair in pairs if self.margin is None or pair[1] != "reference"]
        bounded = [pair for pair in pairs if self.margin is not None and pair[1] == "reference"]
        outcomes: list[tuple[Outcome, PairedDifference, float]] = []
        for difference, p in correct_family(tested, differ):
            outcome: Outcome = "better" if self.sign * difference.value > 0 else "worse"
            outcomes.append((outcome if p <= 0.05 else "not distinguishable", difference, p))
        if self.margin is not None and bounded:
            together = [differ(pair, 1 - 0.05 / len(bounded)) for pair in bounded]
            judged = judge_margins(together, self.margin, self.sign)
            outcomes += [(word, d, p) for d, (word, p) in zip(together, judged, strict=True)]
        findings: dict[tuple[str, str, str], Finding] = {}
        for (mine, role, other), (outcome, difference, p) in zip(
            [*tested, *bounded], outcomes, strict=True
        ):
            gap = mine.sparsity - other.sparsity
            same = bool(mine.fingerprint) and mine.fingerprint == other.fingerprint
            margin = self.margin if role == "reference" else None
            empty = {  # what says nothing where that mask has learned nothing
                "better": mine, "gains more than": mine, "worse": other,
                "loses at most": other, "loses more than": other,
            }  # fmt: skip
            if not difference.decides:
                outcome = "too few seeds"
            elif same or (outcome in empty and empty[outcome].learned_nothing):
                outcome = "not distinguishable" if margin is None else "undecided"
            findings[mine.name, role, other.name] = Finding(
                mine.name, other.name, role, outcome, difference, p, gap, same, margin
            )
        return [findings[mine.name, role, other.name] for mine, role, other in pairs]

    def findings_to_show(
        self, reference: str = "dense", against: Against | None = None
    ) -> list[Finding]:
        """The findings that a page shows: all, but for the margins where these are all undecided
        and the reference is known no better than the masks differ (`reference_tells_nothing`)."""
        findings = self.findings(reference, against)
        kept = [finding for finding in findings if finding.margin is None]
        bounded = [finding for finding in findings if finding.margin is not None]
        idle = all(finding.outcome == "undecided" and not finding.same for finding in bounded)
        alone = {finding.mask for finding in bounded} - {finding.mask for finding in kept}
        return kept if idle and not alone and self.reference_tells_nothing(reference) else findings

    def verdict(
        self, reference: str = "dense", against: Against | None = None, *, verbose: bool = True
    ) -> str:
        """The outcome of every searched mask and every candidate, in plain words.

        Each of them is set against the hand-designed mask nearest in sparsity (which it may be
        denser than by one point at most) or against all, the scrambled control of equal sparsity
        where there is one: better, worse or not distinguishable by the paired difference over
        common seeds, Holm-corrected over all these comparisons (5%). Against `reference` it loses
        at most the margin, loses more, gains more, or is undecided. Below three common seeds
        nothing is decided.

        Args:
            reference: See `findings`.
            against: See `findings`.
            verbose: Whether opponents that nobody has named (hand-designed masks, controls) have
                a line each; False = one line of their differences.

        Raises:
            UnknownNameError: See `findings`.
        """
        findings = self.findings(reference, against)
        return verdict_text(self, self.fronts, findings, reference, verbose)


def check_against(against: Against, names: Collection[str]) -> Against:
    """The choice of opponents, if it is one.

    Raises:
        UnknownNameError: If it names no mask of `names`.
        ValueError: If it is empty.
    """
    if isinstance(against, str):
        check_name("opponents in against=", against, [*OPPONENTS, *names])
        return against
    if not against:
        raise ValueError(f"against= is one of {', '.join(OPPONENTS)}, or names masks; got none")
    for name in against:
        check_name("mask of the comparison in against=", name, names)
    return against


def check_margin(margin: float | None, score: Objective) -> float | None:
    """The margin, or that of the score where none is given.

    Raises:
        ValueError: If it is not above 0, or as large as the score's whole range.
    """
    if margin is None:
        return score.margin
    best = 0.0 if score.goal == "min" else max(1.0, score.worst)
    room = abs(best - score.worst) if score.margin is not None else math.inf
    if not 0 < margin < room:
        within = f"between 0 and {room:g}, the range of" if math.isfinite(room) else "above 0, of"
        raise ValueError(
            f"a margin is what a mask may lose, {within} {score.name}, got {margin:g}; give such "
            f"as margin={score.margin or 0.01:g}"
        )
    return margin
