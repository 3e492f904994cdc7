"""How far to trust a short run that judges masks: rank agreement, noise ceiling, regret."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from masksearch.analysis.proxy_observations import (
    CURVE,
    Goal,
    Observation,
    Observed,
    ScoreTables,
    band_edges,
    from_records,
    tidy,
)
from masksearch.analysis.rank_stats import (
    Floats,
    Interval,
    Resampling,
    Spread,
    best,
    chance,
    front,
    seed_mean,
    spread,
    tau_b,
)
from masksearch.analysis.stats import check_level
from masksearch.contracts import Record
from masksearch.errors import SearchError, unknown_name

CHANCE = 0.5  # a tau that unrelated rankings may not reach by luck (95%) where masks are enough
FEWEST = 10  # masks in one band for which `chance` is below that
LOW = 0.5  # noise ceiling below which seeds turn round a quarter of the pairs


# -- rows --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class BandPick:
    """The mask that the proxy picks in one density band, and what that costs."""

    low: float  # densities of the band: above `low`,
    high: float  # up to `high`
    masks: int
    picked: str
    best: str
    regret: float  # reference measure of the best minus that of the picked, better = positive
    at_random: float  # the same for a mask picked at random, on average


@dataclass(frozen=True)
class BudgetAgreement:
    """What the proxy at one budget says of the reference."""

    schedule: str
    budget: int  # optimiser steps
    masks: int  # that have both
    is_reference: bool  # the row compares the reference with itself
    across: Interval  # tau-b over all pairs of masks, means over seeds
    within: Interval  # tau-b over the pairs within a density band
    between_seeds: Interval  # within bands, one seed of the proxy, another of the reference
    pareto_recall: float  # share of the reference's front of (value, density)
    choices: tuple[BandPick, ...]
    spread: Spread  # of the proxy, all masks
    spread_within: Spread  # around the means of the bands

    @property
    def regret(self) -> float:
        """Mean regret over bands with at least two masks, in the reference's unit."""
        return mean([choice.regret for choice in self.choices])

    @property
    def at_random(self) -> float:
        """Mean regret of picking at random in each band."""
        return mean([choice.at_random for choice in self.choices])


@dataclass(frozen=True)
class Judgement:
    """What every row of a card is computed from: the tables, the reference, bands and draws."""

    tables: ScoreTables
    proxy: str
    target: str
    reference: tuple[str, int]
    densities: Floats
    edges: Sequence[float]
    draws: Resampling

    def budget_rows(self) -> tuple[BudgetAgreement, ...]:
        """One for every budget of the proxy at which two masks can be compared."""
        truth = self.tables.gains(*self.reference, self.target)
        found = []
        for place in self.tables.budgets(self.proxy):
            short = self.tables.gains(*place, self.proxy)
            alike = self.proxy == self.target
            again = place[0] == CURVE != self.reference[0]  # the end of the reference's own curve
            again = again and alike and np.array_equal(short, truth, equal_nan=True)
            if count_both(short, truth) > 1 and not again:
                itself = alike and place == self.reference
                found.append(self.budget_row(place, short, truth, itself))
        return tuple(found)

    def budget_row(
        self, place: tuple[str, int], short: Floats, truth: Floats, same: bool
    ) -> BudgetAgreement:
        """The proxy at one budget, `short`, against the reference, both `[masks, seeds]`."""
        x, y = seed_mean(short), seed_mean(truth)
        both = np.isfinite(x) & np.isfinite(y)
        x, y = np.where(both, x, np.nan), np.where(both, y, np.nan)
        number, bands = int(both.sum()), self.draws.bands
        wanted = front(y, self.densities)
        held = wanted & front(x, self.densities)
        own = self.tables.table(*place, self.proxy)
        return BudgetAgreement(
            *place,
            masks=number,
            is_reference=same,
            across=self.draws.tau(short, truth, banded=False),
            within=self.draws.tau(short, truth, banded=True),
            between_seeds=self.draws.tau_between_seeds(short, truth, banded=True),
            pareto_recall=len(held) / len(wanted) if wanted else math.nan,
            choices=self.band_picks(x, y),
            spread=spread(own),
            spread_within=spread(own, bands),
        )

    def band_picks(self, x: Floats, y: Floats) -> tuple[BandPick, ...]:
        """The pick in every band with at least two masks that have both measures."""
        limits = [0.0, *self.edges, 1.0]
        names = [self.tables.name[mask] for mask in self.tables.masks]
        found = []
        for band in np.unique(self.draws.bands):
            inside = np.flatnonzero((self.draws.bands == band) & np.isfinite(x))
            if len(inside) < 2:
                continue
            pick, top = inside[best(x[inside], 1)[0]], inside[best(y[inside], 1)[0]]
            regret, at_random = float(y[top] - y[pick]), float(y[top] - y[inside].mean())
            ends = limits[band], limits[band + 1]
            found.append(BandPick(*ends, len(inside), names[pick], names[top], regret, at_random))
        return tuple(found)


def mean(values: Sequence[float]) -> float:
    """Mean; NaN for none."""
    return math.fsum(values) / len(values) if values else math.nan


def count_both(x: Floats, y: Floats) -> int:
    """Masks with a value in both tables `[masks, seeds]`."""
    return int((np.isfinite(x).any(axis=1) & np.isfinite(y).any(axis=1)).sum())


# -- the card ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class ProxyAgreement:
    """A proxy judged by a reference; made by `of` and `from_observations`.

    All rank agreement is Kendall's tau-b with larger = better on both sides. Intervals are
    percentile intervals of a bootstrap of masks and seeds (`Resampling`).
    """

    proxy: str
    target: str
    goals: Mapping[str, Goal]
    reference: tuple[str, int]  # schedule and budget by which the proxy is judged
    edges: tuple[float, ...]  # inner edges of the density bands
    masks: Mapping[str, float]  # name -> density, of the masks that have a reference
    band_sizes: tuple[int, ...]  # masks in each band that holds any
    seeds: int  # of the reference
    chance: float  # |tau| within bands that unrelated rankings reach in 1 of 20 cases
    rows: tuple[BudgetAgreement, ...]
    ceiling: Interval  # two seeds of the reference, all masks
    ceiling_within: Interval  # the same within bands; NaN = one seed
    spread: Spread  # of the reference
    spread_within: Spread
    density_tau: float  # tau-b of "sparser is better" with the reference
    density_tau_within: float
    left_out: Mapping[str, int]
    fraction: float  # of the ceiling that a trusted budget keeps
    level: float
    resamples: int
    facts: tuple[str, ...] = ()
    cells: ScoreTables | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        records: Sequence[Record] | Mapping[str, Sequence[Record]],
        *,
        proxy: str = "loss",
        target: str | None = None,
        reference: str | None = None,
        **options: Any,
    ) -> Self:
        """A card of study records.

        Args:
            records: Of one study, or name -> records of several.
            proxy: The measure that is cheap.
            target: The measure that counts; None = the proxy itself, at the longest budget.
            reference: Name of the study that judges the others; needed where they come from
                several protocols.
            options: Further arguments of `from_observations`.

        Raises:
            SearchError: If no run has finished or none has a curve, or protocols are mixed.
        """
        runs = records if isinstance(records, Mapping) else {"the run": records}
        observed = from_records(runs, reference)
        return cls.from_observations(observed, proxy=proxy, target=target, **options)

    @classmethod
    def from_observations(
        cls,
        observations: pd.DataFrame | Iterable[Observation] | Observed,
        *,
        proxy: str = "loss",
        target: str | None = None,
        goals: Mapping[str, Goal] | None = None,
        reference: str | None = None,
        bands: int | Sequence[float] | None = None,
        fraction: float = 0.9,
        level: float = 0.95,
        resamples: int = 1000,
        seed: int = 0,
    ) -> Self:
        """A card of plain observations.

        Args:
            observations: A table with the columns mask, density, seed, budget, measure, value
                (and, where wanted, schedule and name), or `Observation`s.
            proxy: The measure that is cheap.
            target: The measure that counts; None = the proxy itself.
            goals: Measure -> `"min"` or `"max"`; those not named: min for a loss, else max.
            reference: Schedule whose longest budget of the target judges; None = the longest.
            bands: Density bands: None = factors of two, a number = so many of about equally
                many masks, or inner edges in (0, 1).
            fraction: Share of the noise ceiling that a trusted budget keeps, in (0, 1].
            level: Coverage of the intervals, in (0, 1).
            resamples: Draws of the bootstrap (>= 0; 0 = no intervals).
            seed: Of the bootstrap.

        Raises:
            UnknownNameError: If no such measure or schedule was observed.
            SearchError: If fewer than two masks have both the proxy and the reference, or there
                is no budget to judge.
            ValueError: If observations contradict each other, or an argument is out of range.
        """
        if not isinstance(observations, Observed):
            given = observations if isinstance(observations, pd.DataFrame) else [*observations]
            observations = Observed(given)
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is a share of the ceiling in (0, 1], got {fraction}")
        if resamples < 0:
            raise ValueError(f"resamples is at least 0, got {resamples}")
        check_level(level)
        tables, target = ScoreTables(tidy(observations.observations), goals), target or proxy
        for name in (proxy, target):
            if name not in tables.measures:
                raise unknown_name("measure", name, tables.measures)
        for measure, goal in tables.goals.items():
            if goal not in ("min", "max"):
                raise ValueError(f"the goal of {measure} is 'min' or 'max', got {goal!r}")
        judge = tables.longest(target, reference or observations.reference)
        everything = len(tables.masks)
        judged = np.asarray(np.isfinite(tables.table(*judge, target)).any(axis=1))
        tables.masks = [tables.masks[index] for index in np.flatnonzero(judged)]
        number = len(tables.masks)
        if number < 2:
            raise SearchError(
                f"{number} mask{'s have' if number != 1 else ' has'} a {target} at "
                f"{judge[1]:,} steps; a ranking needs at least 2 masks, a verdict {FEWEST} in "
                "one density band"
            )
        densities = np.array([tables.density[mask] for mask in tables.masks])
        edges = band_edges(densities, bands)
        in_band = np.digitize(densities, edges, right=True).astype(np.int64)
        draws = Resampling(in_band, len(tables.seeds), resamples, seed, level)
        work = Judgement(tables, proxy, target, judge, densities, edges, draws)
        rows = work.budget_rows()
        if all(row.is_reference for row in rows):
            raise SearchError(
                f"{proxy} was observed at no other budget than the reference's ({judge[1]:,} "
                "steps), or for one mask only; a proxy card needs reports along the way, or "
                "shorter runs of the same masks"
            )
        truth = tables.gains(*judge, target)
        seeds = int(np.isfinite(truth).any(axis=0).sum())
        left_out = {
            **observations.left_out,
            "values that are not finite": tables.not_finite,
            "masks without the reference": everything - number,
            "missing (mask, seed) cells of the reference": seeds * number
            - int(np.isfinite(truth).sum()),
        }
        return cls(
            proxy=proxy,
            target=target,
            goals=tables.goals,
            reference=judge,
            edges=tuple(edges),
            masks=names_of(tables),
            band_sizes=tuple(np.unique(in_band, return_counts=True)[1].tolist()),
            seeds=seeds,
            chance=chance(in_band),
            rows=rows,
            ceiling=draws.tau_between_seeds(truth, truth, banded=False),
            ceiling_within=draws.tau_between_seeds(truth, truth, banded=True),
            spread=spread(tables.table(*judge, target)),
            spread_within=spread(tables.table(*judge, target), in_band),
            density_tau=tau_b(-densities, seed_mean(truth)),
            density_tau_within=tau_b(-densities, seed_mean(truth), in_band),
            left_out={reason: count for reason, count in left_out.items() if count},
            fraction=fraction,
            level=level,
            resamples=resamples,
            facts=observations.facts,
            cells=tables,
        )

    # -- what it says ------------------------------------------------------------------------
    def __repr__(self) -> str:
        return f"{verdict_lines(self)[0]} ({len(self.masks)} masks; see .verdict(), .frame())"

    def series(self) -> dict[str, list[BudgetAgreement]]:
        """Schedule -> its budgets, shortest first, without the reference itself."""
        found: dict[str, list[BudgetAgreement]] = {}
        for row in self.rows:
            if not row.is_reference:
                found.setdefault(row.schedule, []).append(row)
        return found

    def follows(self, row: BudgetAgreement) -> bool:
        """Whether a budget keeps the asked share of the ceiling, and more than chance.

        Within bands: the mean tau between one seed of the proxy and another of the reference
        is at least `fraction` times the noise ceiling, and the interval of the tau of the means
        over seeds lies above 0.
        """
        ceiling = self.ceiling_within.value
        return row.between_seeds.value >= self.fraction * ceiling > 0 and row.within.low > 0

    def stable_from(self, schedule: str | None = None) -> int | None:
        """Smallest budget from which on every longer one `follows` too; None = there is none.

        Args:
            schedule: None = the first one.
        """
        series = self.series()
        found = None
        for row in reversed(series[schedule or next(iter(series))]):
            if not self.follows(row):
                break
            found = row.budget
        return found

    def objections(self) -> list[str]:
        """Why the data cannot decide; empty where they can."""
        return objection_lines(self)

    @property
    def valid(self) -> bool:
        """Whether some budget of some schedule may be trusted."""
        return not self.objections() and any(
            self.stable_from(name) is not None for name in self.series()
        )

    def verdict(self) -> str:
        """What may be said, in plain lines; the first says valid, not valid or not decided."""
        return "\n".join([*verdict_lines(self), *figure_lines(self)])

    # -- as data -----------------------------------------------------------------------------
    def frame(self) -> pd.DataFrame:
        """One row a budget: agreement with intervals, front, regret, spread.

        Columns: schedule, budget, masks, reference, then tau, within, between_seeds (each with
        `_low`, `_high`), pareto_recall, regret,
        regret_at_random (target's unit), sigma_mask, sigma_seed, reliability (proxy's unit; the
        same with `_within`).
        """
        return pd.DataFrame([columns_of(row) for row in self.rows])

    def choices(self) -> pd.DataFrame:
        """One row a budget and band: the mask picked, the best one, the regret."""
        return pd.DataFrame(
            {"schedule": row.schedule, "budget": row.budget, **asdict(choice)}
            for row in self.rows
            for choice in row.choices
        )

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON-ready data; what is not defined is None."""
        given = {name: value for name, value in vars(self).items() if name != "cells"}
        found: dict[str, Any] = plain_json(
            {
                **given,
                "valid": self.valid,
                "stable_from": {name: self.stable_from(name) for name in self.series()},
                "objections": self.objections(),
                "verdict": self.verdict(),
                "rows": [{**columns_of(row), "choices": row.choices} for row in self.rows],
            }
        )
        return found


def names_of(tables: ScoreTables) -> dict[str, float]:
    """Name -> density, densest first; equal names get the beginning of what tells them apart."""
    names = [tables.name[mask] for mask in tables.masks]
    found = {
        name if names.count(name) == 1 else f"{name} ({mask[:8]})": tables.density[mask]
        for name, mask in zip(names, tables.masks, strict=True)
    }
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def columns_of(row: BudgetAgreement) -> dict[str, Any]:
    """A row's fields as columns: an interval gives three, a spread three."""
    columns: dict[str, Any] = {}
    for entry in fields(row):
        name, value = entry.name, getattr(row, entry.name)
        name = {"across": "tau", "is_reference": "reference"}.get(name, name)
        if isinstance(value, Interval):
            columns |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif isinstance(value, Spread):
            end = name.removeprefix("spread")
            columns |= {f"{part}{end}": number for part, number in asdict(value).items()}
        elif isinstance(value, Mapping):
            columns |= value
        elif name == "choices":
            columns |= {"regret": row.regret, "regret_at_random": row.at_random}
        else:
            columns[name] = value
    return columns


def plain_json(value: Any) -> Any:
    """Dataclasses, tuples and numbers as JSON has them; what is not finite is None, else text."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


# -- words -------------------------------------------------------------------------------------
def objection_lines(card: ProxyAgreement) -> list[str]:
    """Why the data cannot decide whether the proxy is to be trusted."""
    target, ceiling, found = card.target, card.ceiling_within, []
    if card.chance > CHANCE:
        reach = "any tau" if card.chance > 1 else f"a tau of +-{card.chance:.2f}"
        *head, last = map(str, card.band_sizes)
        sizes = f"{', '.join(head)} and {last}" if head else last
        found.append(
            f"too few masks: {len(card.masks)} in density bands of {sizes}; two unrelated "
            f"rankings reach {reach} within bands in 1 of 20 cases, more than +-{CHANCE:g}; at "
            f"least {FEWEST} masks in one band, or more in several, are needed"
        )
    if card.seeds < 2 or math.isnan(ceiling.value):
        what = "one seed" if card.seeds < 2 else "no two seeds of the same masks within a band"
        found.append(
            f"{what} of {target}: the noise ceiling is unknown, so nobody can say how well any "
            "proxy could do; run the same masks with a second seed"
        )
    elif math.isnan(ceiling.low):
        found.append(
            f"no intervals were drawn ({card.resamples} resamples), and the rule asks for some; "
            "take 200 or more"
        )
    elif not ceiling.low > 0:
        found.append(
            f"two seeds of {target} do not agree within density bands (tau {ceiling}, the "
            "interval includes 0): the reference itself does not rank these masks; run more "
            "seeds or longer"
        )
    elif abs(card.density_tau_within) >= card.fraction * ceiling.value:
        found.append(
            f"density alone ranks {target} within its bands (tau {card.density_tau_within:.2f}, "
            f"ceiling {ceiling.value:.2f}): agreement within bands this wide may be density's; "
            "use narrower bands, or masks of one density"
        )
    return found


def verdict_lines(card: ProxyAgreement) -> list[str]:
    """Valid, not valid or not decided, and why."""
    what = f"{card.proxy} as a proxy of {card.target} at {card.reference[1]:,} steps"
    if reasons := card.objections():
        return [
            f"Not decided: {what}.",
            *(f"  {reason[0].upper()}{reason[1:]}." for reason in reasons),
        ]
    series = card.series()
    several = len(series) > 1
    ceiling = card.ceiling_within.value
    rule = f"{card.fraction:.0%} of the noise ceiling ({card.fraction:g} x {ceiling:.2f})"
    trusted, reasons = [], []
    for name, rows in series.items():
        last, start = rows[-1], card.stable_from(name)
        if start is not None:
            lone = len(rows) == 1 and name != card.reference[0]  # no budget on a way
            place = f"at {start:,} steps" if lone else f"from {start:,} steps on"
            trusted.append(place + (f" ({name})" if several else ""))
            when = "it" if lone else "from there on every budget"
            reason = f"{when} keeps {rule} within density bands between seeds, "
            reason += "with an interval above 0."
        elif not last.within.low > 0:
            reason = (
                f"at {last.budget:,} steps tau within density bands is {last.within}: it cannot "
                "be told from 0."
            )
        else:
            reason = (
                f"at {last.budget:,} steps one seed's ranking within density bands agrees with "
                f"another seed's {card.target} by {last.between_seeds}, below {rule}."
            )
        reasons.append(f"  {name}: {reason}" if several else f"  {reason}")
    if ceiling < LOW:
        reasons.append(
            "  The ceiling is low: most masks of one band differ by no more than seeds do. "
            "Such a ranking finds masks that stand out, and no more; use several seeds a mask."
        )
    head = f"Valid {'; '.join(trusted)}" if trusted else "Not valid"
    return [f"{head}: {what}.", *reasons]


def figure_lines(card: ProxyAgreement) -> list[str]:
    """The figures that stand behind the verdict."""
    target, lines = card.target, []
    which = "short of the reference" if card.proxy == target else "of the proxy"
    for name, rows in card.series().items():
        last = rows[-1]
        text = f"{last.across} across densities, {last.within} within density bands"
        if not math.isnan(last.between_seeds.value):
            text += f", {last.between_seeds} within bands between seeds"
        if not math.isnan(last.regret):
            text += f"; picking the best of each band by it gives away {last.regret:.3g} of "
            text += f"{target} (at random {last.at_random:.3g})"
        place = f"{last.budget:,} steps ({name}, {last.masks} masks)"
        lines.append(f"Longest budget {which}, {place}: tau-b {text}.")
    ceiling = f"{card.ceiling} across densities, {card.ceiling_within} within bands"
    known = "unknown, one seed" if card.seeds < 2 else ceiling
    lines.append(f"Noise ceiling (two seeds of {target}): {known}.")
    lines.append(
        f"Density alone ranks {target} with tau-b {decimals(card.density_tau)} (sparser is "
        f"better: +1), {decimals(card.density_tau_within)} within bands."
    )
    wide, narrow = card.spread, card.spread_within
    if math.isnan(wide.sigma_seed):
        lines.append(
            f"Standard deviation of {target} over masks: {digits(wide.sigma_mask)}; that of "
            "seeds is unknown, one seed."
        )
    else:
        lines.append(
            f"Standard deviations of {target}: masks {digits(wide.sigma_mask)} (within bands "
            f"{digits(narrow.sigma_mask)}), seeds {digits(wide.sigma_seed)}; reliability of one "
            f"seed {decimals(wide.reliability)} (within bands {decimals(narrow.reliability)}), "
            f"of {card.seeds} seeds {decimals(wide.of_seeds(card.seeds))} "
            f"({decimals(narrow.of_seeds(card.seeds))})."
        )
    lines += card.facts
    if card.left_out:
        counts = (f"{count} {what}" for what, count in card.left_out.items())
        lines.append(f"Left out: {', '.join(counts)}.")
    return lines


def decimals(value: float) -> str:
    """A correlation to two decimals; a dash where it is not defined."""
    return "-" if math.isnan(value) else f"{value:.2f}"


def digits(value: float, places: int = 3) -> str:
    """A number to so many significant digits; a dash where it is not defined."""
    return "-" if math.isnan(value) else f"{value:.{places}g}"
