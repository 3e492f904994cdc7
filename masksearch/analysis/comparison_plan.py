"""What a comparison could show, said before it is run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from masksearch.analysis.compare import Against, ComparedMasks, Finding, Kind, compare_runs
from masksearch.analysis.planning import POWER, detectable_difference, seeds_needed
from masksearch.analysis.stats import CLAIM_SEEDS, decimals_for
from masksearch.contracts import Evaluate, Objective, Record, Shape
from masksearch.errors import CandidateError
from masksearch.masks.core import Mask
from masksearch.masks.measure import fingerprint, measures

USUAL = 0.0116  # sd of differences where none is known: of mean GLUE scores (docs/statistics.md)


@dataclass(frozen=True)
class SpreadOfDifferences:
    """How much differences of two masks vary.

    Args:
        sd: Over seeds, of the paired difference.
        row_error: Standard error that more seeds leave: from the draw of the rows.
        rows: Of the evaluation data; 0 = not known, and `row_error` neither.
        source: Where these numbers come from.
    """

    sd: float
    row_error: float = 0.0
    rows: int = 0
    source: str = "given"


@dataclass(frozen=True)
class ComparisonPlan:
    """What these masks, seeds and rows could show.

    Args:
        declared: The comparisons that would be made.
        score: What is compared.
        seeds: How many each mask gets.
        spread: How much differences vary.
    """

    declared: tuple[Finding, ...]
    score: str
    seeds: int
    spread: SpreadOfDifferences

    @property
    def detectable(self) -> float:
        """The true difference that is found with a probability of 0.8; infinite below 3 seeds."""
        return self.difference_for(self.seeds)

    @property
    def seeds_for_half(self) -> int | None:
        """Seeds that find half of that (half of what 3 seeds find, where there are fewer)."""
        half = self.difference_for(max(self.seeds, CLAIM_SEEDS)) / 2
        family, spread = max(1, len(self.declared)), self.spread
        return seeds_needed(half, family, sd=spread.sd, row_error=spread.row_error)

    def difference_for(self, seeds: int) -> float:
        """The difference that so many seeds find with a probability of 0.8."""
        spread = self.spread
        rows = spread.rows or None
        excess = spread.row_error**2 * spread.rows
        family = max(1, len(self.declared))
        return detectable_difference(seeds, rows, family, sd=spread.sd, disagreement=excess)

    def to_dict(self) -> dict[str, Any]:
        """As plain data; None for what no number of seeds finds."""
        detectable = self.detectable
        return {
            "score": self.score,
            "seeds": self.seeds,
            "comparisons": [[finding.mask, finding.against] for finding in self.declared],
            "detectable": detectable if math.isfinite(detectable) else None,
            "seeds_for_half": self.seeds_for_half,
            **asdict(self.spread),
        }

    def __str__(self) -> str:
        against: dict[str, list[str]] = {}
        for finding in self.declared:
            against.setdefault(finding.mask, []).append(finding.against)
        lines = [f"{name} against {', '.join(others)}" for name, others in against.items()]
        family = len(self.declared)
        if not family:
            lines.append("No mask is searched or a candidate, so there is nothing to compare.")
        least = self.difference_for(max(self.seeds, CLAIM_SEEDS))
        places = decimals_for([least])
        if self.seeds < CLAIM_SEEDS:
            lines.append(
                f"Below {CLAIM_SEEDS} seeds nothing is claimed; {CLAIM_SEEDS} would find:"
            )
        lines.append(
            f"A true difference in {self.score} of {least:.{places}f} is found with probability "
            f"{POWER:g}: {max(self.seeds, CLAIM_SEEDS)} seeds, {max(1, family)} comparison"
            f"{'s' * (family > 1)} (Holm, 5%)."
        )
        half, needed = f"{least / 2:.{places}f}", self.seeds_for_half
        lines.append(
            f"Half of it, {half}, takes {needed} seeds."
            if needed is not None
            else f"Half of it, {half}, takes more rows: no number of seeds finds it on these."
        )
        spread = self.spread
        lines.append(
            f"Taken for that: differences vary by sd {spread.sd:.{places + 1}f} over seeds "
            f"({spread.source})"
            + (
                f", and {spread.rows:,} rows add a standard error of "
                f"{spread.row_error:.{places + 1}f}."
                if spread.rows
                else "; what the draw of the rows adds is not known, and comes on top."
            )
        )
        return "\n".join(lines)


def measured_spread(comparison: ComparedMasks) -> SpreadOfDifferences:
    """How much differences vary in an earlier comparison: the mean over all pairs of its masks.

    Masks with a diverged run are left out.

    Raises:
        CandidateError: If no two of its masks have two seeds in common.
    """
    whole = [entry for entry in comparison.entries.values() if not entry.diverged]
    pairs = [compare_runs(a, b) for a, b in combinations(whole, 2) if a.scores and b.scores]
    known = [pair for pair in pairs if pair.n_seeds >= 2]
    if not known:
        raise CandidateError(
            f"no two masks of {comparison.run or 'the comparison'} have two seeds in common, so "
            "it does not say how much differences vary; give an sd"
        )
    by_rows = [pair.row_error**2 for pair in known if pair.by_rows]
    return SpreadOfDifferences(
        root_mean(pair.sd**2 for pair in known),
        root_mean(by_rows) if by_rows else 0.0,
        max(entry.n_rows for entry in whole) if by_rows else 0,
        f"measured in {comparison.run}" if comparison.run else "measured",
    )


def root_mean(squares: Iterable[float]) -> float:
    """Square root of the mean."""
    values = list(squares)
    return math.sqrt(math.fsum(values) / len(values))


def declare_comparisons(
    masks: Mapping[str, Mask],
    shape: Shape,
    objectives: tuple[Objective, ...],
    *,
    kinds: Mapping[str, Kind],
    reference: str = "dense",
    against: Against = "nearest",
) -> tuple[Finding, ...]:
    """The comparisons that a verdict on these masks would make; nothing is run.

    Args:
        masks: Name -> mask.
        shape: What they are lowered to.
        objectives: The first one is the score.
        kinds: Of those whose kind does not follow from the mask.
        reference: As in `ComparedMasks.findings`.
        against: Likewise.

    Raises:
        EmptyRowError, HeadCountError, ...: If a mask does not fit the shape.
    """
    score = objectives[0].name
    blank = Record(0, "done", Evaluate(next(iter(masks.values()))), values={score: 0.0})
    records = [
        replace(
            blank,
            job=Evaluate(mask),
            name=name,
            fingerprint=fingerprint(mask, shape),
            measures=measures(mask, shape),
        )
        for name, mask in masks.items()
    ]
    planned = ComparedMasks(tuple(records), objectives, shape=shape, kinds=kinds)
    return tuple(planned.findings(reference, against))
