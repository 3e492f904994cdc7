"""How far to trust a short run that judges masks: rank agreement, noise ceiling, regret."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksearch.analysis.proxy_observations import (
    Cells,
    Goal,
    Observation,
    Observed,
    band_edges,
    band_of,
    default_goal,
    from_records,
    plain,
)
from masksearch.analysis.rank_stats import (
    Bands,
    Floats,
    Interval,
    Resampling,
    Spread,
    aligned,
    best,
    chance,
    front,
    overlap,
    seed_mean,
    spearman,
    spread,
    tau_b,
)
from masksearch.analysis.stats import checked_level
from masksearch.contracts import Record
from masksearch.errors import SearchError, unknown_name

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Choice:
    """The mask that the proxy picks in one density band, and what that costs."""

    low: float  # densities of the band: above `low`,
    high: float  # up to `high`
    masks: int
    picked: str
    best: str
    regret: float  # reference measure of the best minus that of the picked, better = positive
    at_random: float  # the same for a mask picked at random, on average


@dataclass(frozen=True)
class Budget:
    """What the proxy at one budget says of the reference."""

    schedule: str
    budget: int  # optimiser steps
    masks: int  # that have both
    is_reference: bool  # the row compares the reference with itself
    across: Interval  # tau-b over all pairs of masks, means over seeds
    within: Interval  # tau-b over the pairs within a density band
    between_seeds: Interval  # within bands, one seed of the proxy, another of the reference
    spearman: float
    spearman_within: float
    overlaps: Mapping[str, float]  # share of the reference's best k that the proxy's best k hold
    pareto_recall: float  # share of the reference's front of (value, density)
    choices: tuple[Choice, ...]
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
class Other:
    """The proxy against another measure at the same budget (its last value up to there)."""

    measure: str
    schedule: str
    budget: int
    proxy_budget: int
    masks: int
    across: Interval
    within: Interval
    spearman: float
    ceiling: Interval  # of the other measure: two of its seeds, within bands


class Work:
    """Computes a card's rows from its cells."""

    def __init__(
        self, cells: Cells, proxy: str, target: str, goals: Mapping[str, Goal],
        judge: tuple[str, int], bands: int | Sequence[float] | None, top: Sequence[float],
        resamples: int, seed: int, level: float,
    ) -> None:  # fmt: skip
        self.cells, self.proxy, self.target, self.goals = cells, proxy, target, goals
        self.judge, self.top = judge, top
        self.densities = np.array([cells.density[mask] for mask in cells.masks])
        self.edges = band_edges(self.densities, bands)
        self.bands: Bands = band_of(self.densities, self.edges)
        self.draws = Resampling(self.bands, len(cells.seeds), resamples, seed, level)

    def value(self, schedule: str, budget: int, measure: str) -> Floats:
        """Table of a measure, larger = better, seeds made comparable (`aligned`)."""
        table = aligned(self.cells.table(schedule, budget, measure))
        return table if self.goals[measure] == "max" else -table

    def rows(self) -> tuple[Budget, ...]:
        """One for every budget of the proxy at which two masks can be compared."""
        truth = self.value(*self.judge, self.target)
        found = []
        for schedule, budget in self.cells.budgets(self.proxy):
            plain = self.cells.table(schedule, budget, self.proxy)
            short = self.value(schedule, budget, self.proxy)
            x, y = seed_mean(short), seed_mean(truth)
            both = np.isfinite(x) & np.isfinite(y)
            same = self.proxy == self.target and np.array_equal(short, truth, equal_nan=True)
            if both.sum() < 2 or (same and schedule != self.judge[0]):
                continue
            sizes = {self.label(k): self.count(k, int(both.sum())) for k in self.top}
            known = np.where(both, y, np.nan)
            found.append(
                Budget(
                    schedule,
                    budget,
                    int(both.sum()),
                    same,
                    self.draws.tau(short, truth, banded=False),
                    self.draws.tau(short, truth, banded=True),
                    self.draws.tau_between_seeds(short, truth, banded=True),
                    spearman(x, y),
                    spearman(x, y, self.bands),
                    {
                        name: overlap(np.where(both, x, np.nan), known, size)
                        for name, size in sizes.items()
                    },
                    self.recall(np.where(both, x, np.nan), known),
                    self.choose(x, known),
                    spread(plain),
                    spread(plain, self.bands),
                )
            )
        return tuple(found)

    @staticmethod
    def label(k: float) -> str:
        """Name of a best set."""
        return f"top {100 * k:g}%" if k < 1 else f"top {k:g}"

    @staticmethod
    def count(k: float, masks: int) -> int:
        """Size of a best set."""
        return max(1, math.ceil(k * masks)) if k < 1 else int(k)

    def recall(self, x: Floats, y: Floats) -> float:
        """Share of the reference's front that is also on the proxy's."""
        wanted = front(y, self.densities)
        return len(wanted & front(x, self.densities)) / len(wanted) if wanted else math.nan

    def choose(self, x: Floats, y: Floats) -> tuple[Choice, ...]:
        """The pick in every band with at least two masks."""
        limits = [0.0, *self.edges, 1.0]
        names = [self.cells.name[mask] for mask in self.cells.masks]
        found = []
        for band in np.unique(self.bands):
            inside = np.flatnonzero((self.bands == band) & np.isfinite(x) & np.isfinite(y))
            if len(inside) < 2:
                continue
            pick, top = inside[best(x[inside], 1)[0]], inside[best(y[inside], 1)[0]]
            found.append(
                Choice(
                    limits[band], limits[band + 1], len(inside), names[pick], names[top],
                    float(y[top] - y[pick]), float(y[top] - y[inside].mean()),
                )
            )  # fmt: skip
        return tuple(found)

    def others(self) -> tuple[Other, ...]:
        """Every further measure against the proxy, at each budget of its own."""
        found = []
        for measure in self.cells.measures():
            for schedule, budget in self.cells.budgets(measure):
                reached = [
                    shorter
                    for name, shorter in self.cells.budgets(self.proxy)
                    if name == schedule and shorter <= budget
                ]
                if measure == self.proxy or not reached:
                    continue
                x = self.value(schedule, max(reached), self.proxy)
                y = self.value(schedule, budget, measure)
                both = np.isfinite(seed_mean(x)) & np.isfinite(seed_mean(y))
                if both.sum() < 2:
                    continue
                found.append(
                    Other(
                        measure,
                        schedule,
                        budget,
                        max(reached),
                        int(both.sum()),
                        self.draws.tau(x, y, banded=False),
                        self.draws.tau(x, y, banded=True),
                        spearman(seed_mean(x), seed_mean(y)),
                        self.draws.tau_between_seeds(y, y, banded=True),
                    )
                )
        return tuple(found)


def mean(values: Sequence[float]) -> float:
    """Mean; NaN for none."""
    return math.fsum(values) / len(values) if values else math.nan


def longest(cells: Cells, measure: str, schedule: str | None) -> tuple[str, int]:
    """(schedule, budget) of the longest budget at which a measure was observed.

    Raises:
        UnknownNameError: If the measure was never observed under that schedule.
    """
    found = cells.budgets(measure)
    if schedule is not None:
        known = sorted({name for name, _ in found})
        if schedule not in known:
            raise unknown_name(f"schedule with a {measure}", schedule, known)
        found = [place for place in found if place[0] == schedule]
    return max(found, key=lambda place: place[1])


def names_of(cells: Cells) -> dict[str, float]:
    """Name -> density of the masks; equal names get the beginning of what tells them apart."""
    names = [cells.name[mask] for mask in cells.masks]
    return {
        name if names.count(name) == 1 else f"{name} ({mask[:8]})": cells.density[mask]
        for name, mask in zip(names, cells.masks, strict=True)
    }


def flat(row: Any) -> dict[str, Any]:
    """A row's fields as columns: an interval gives three, a spread three."""
    columns: dict[str, Any] = {}
    names = {"across": "tau", "is_reference": "reference"}
    for entry in fields(row):
        name, value = names.get(entry.name, entry.name), getattr(row, entry.name)
        if isinstance(value, Interval):
            columns |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif isinstance(value, Spread):
            end = name.removeprefix("spread")
            columns |= {f"{part.name}{end}": getattr(value, part.name) for part in fields(value)}
        elif isinstance(value, Mapping):
            columns |= value
        elif name == "choices":
            columns |= {"regret": row.regret, "regret_at_random": row.at_random}
        else:
            columns[name] = value
    return columns


def plain_json(value: Any) -> Any:
    """Dataclasses, tuples and numbers as JSON has them; what is not finite is None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: plain_json(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


CHANCE = 0.5  # a tau that unrelated rankings may not reach by luck (95%) where masks are enough
FEWEST = 10  # masks in one band for which `chance` is below that


@dataclass(frozen=True)
class ProxyCard:
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
    rows: tuple[Budget, ...]
    others: tuple[Other, ...]
    ceiling: Interval  # two seeds of the reference, all masks
    ceiling_within: Interval  # the same within bands; NaN = one seed
    proxy_ceiling: float  # reliability across: two seeds of the proxy's longest budget, in bands
    spread: Spread  # of the reference
    spread_within: Spread
    density_tau: float  # tau-b of "sparser is better" with the reference
    density_tau_within: float
    left_out: Mapping[str, int]
    fraction: float  # of the ceiling that a trusted budget keeps
    level: float
    resamples: int
    facts: tuple[str, ...] = ()
    cells: Cells | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        records: Sequence[Record] | Mapping[str, Sequence[Record]],
        *,
        proxy: str = "loss",
        target: str | None = None,
        reference: str | None = None,
        **options: Any,
    ) -> ProxyCard:
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
        top: Sequence[float] = (1, 3, 0.25),
        fraction: float = 0.9,
        level: float = 0.95,
        resamples: int = 1000,
        seed: int = 0,
    ) -> ProxyCard:
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
            top: Sizes of the best sets that are compared: counts (>= 1), or shares (< 1).
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
            observations = Observed(tuple(plain(observations)))
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is a share of the ceiling in (0, 1], got {fraction}")
        if resamples < 0:
            raise ValueError(f"resamples is at least 0, got {resamples}")
        if not top or any(k <= 0 or (k > 1 and k != int(k)) for k in top):
            raise ValueError(f"top holds counts (>= 1) or shares (< 1), got {list(top)}")
        checked_level(level)
        target = target or proxy
        cells = Cells(observations.observations)
        for name in (proxy, target):
            if name not in cells.measures():
                raise unknown_name("measure", name, cells.measures())
        goals = {m: (goals or {}).get(m) or default_goal(m) for m in cells.measures()}
        for measure, goal in goals.items():
            if goal not in ("min", "max"):
                raise ValueError(f"the goal of {measure} is 'min' or 'max', got {goal!r}")
        judge = longest(cells, target, reference or observations.reference)
        known = np.isfinite(cells.table(*judge, target)).any(axis=1)
        everything = len(cells.masks)
        kept = cells.masks = [cells.masks[index] for index in np.flatnonzero(known)]
        if len(kept) < 2:
            raise SearchError(
                f"{len(kept)} mask{'s have' if len(kept) != 1 else ' has'} a {target} at "
                f"{judge[1]:,} steps; a ranking needs at least 2 masks, a verdict {FEWEST} in "
                "one density band"
            )
        work = Work(cells, proxy, target, goals, judge, bands, top, resamples, seed, level)
        rows = work.rows()
        if all(row.is_reference for row in rows):
            raise SearchError(
                f"{proxy} was observed at no other budget than the reference's ({judge[1]:,} "
                "steps), or for one mask only; a proxy card needs reports along the way, or "
                "shorter runs of the same masks"
            )
        truth = work.value(*judge, target)
        density = -np.array([cells.density[mask] for mask in kept])
        last = work.value(*longest(cells, proxy, None), proxy)
        seeds = int(np.isfinite(truth).any(axis=0).sum())
        missing = seeds * len(kept) - int(np.isfinite(truth).sum())
        return cls(
            proxy=proxy,
            target=target,
            goals=goals,
            reference=judge,
            edges=tuple(work.edges),
            masks=dict(sorted(names_of(cells).items(), key=lambda item: (-item[1], item[0]))),
            band_sizes=tuple(np.unique(work.bands, return_counts=True)[1].tolist()),
            seeds=seeds,
            chance=chance(work.bands),
            rows=rows,
            others=work.others(),
            ceiling=work.draws.tau_between_seeds(truth, truth, banded=False),
            ceiling_within=work.draws.tau_between_seeds(truth, truth, banded=True),
            proxy_ceiling=work.draws.tau_between_seeds(last, last, banded=True).value,
            spread=spread(cells.table(*judge, target)),
            spread_within=spread(cells.table(*judge, target), work.bands),
            density_tau=tau_b(density, seed_mean(truth)),
            density_tau_within=tau_b(density, seed_mean(truth), work.bands),
            left_out={
                **{reason: count for reason, count in observations.left_out.items() if count},
                **({"values that are not finite": cells.not_finite} if cells.not_finite else {}),
                **({"masks without the reference": everything - len(kept)}
                   if everything > len(kept) else {}),
                **({"missing (mask, seed) cells of the reference": missing} if missing else {}),
            },
            fraction=fraction,
            level=level,
            resamples=resamples,
            facts=observations.facts,
            cells=cells,
        )  # fmt: skip

    # -- what it says ------------------------------------------------------------------------
    def series(self) -> dict[str, list[Budget]]:
        """Schedule -> its budgets, shortest first, without the reference itself."""
        found: dict[str, list[Budget]] = {}
        for row in self.rows:
            if not row.is_reference:
                found.setdefault(row.schedule, []).append(row)
        return found

    def follows(self, row: Budget) -> bool:
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
        from masksearch.analysis.proxy_card import objections  # it imports this module

        return objections(self)

    @property
    def valid(self) -> bool:
        """Whether some budget of some schedule may be trusted."""
        return not self.objections() and any(
            self.stable_from(name) is not None for name in self.series()
        )

    def verdict(self) -> str:
        """What may be said, in plain lines; the first says valid, not valid or not decided."""
        from masksearch.analysis.proxy_card import verdict_text

        return verdict_text(self)

    # -- as data -----------------------------------------------------------------------------
    def frame(self) -> pd.DataFrame:
        """One row a budget: agreement with intervals, best sets, front, regret, spread.

        Columns: schedule, budget, masks, reference, then tau, within, between_seeds (each with
        `_low`, `_high`), spearman, spearman_within, `top K`, pareto_recall, regret,
        regret_at_random (target's unit), sigma_mask, sigma_seed, reliability (proxy's unit; the
        same with `_within`).
        """
        import pandas as pd

        return pd.DataFrame([flat(row) for row in self.rows])

    def choices(self) -> pd.DataFrame:
        """One row a budget and band: the mask picked, the best one, the regret."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"schedule": row.schedule, "budget": row.budget, **asdict(choice)}
                for row in self.rows
                for choice in row.choices
            ]
        )

    def others_frame(self) -> pd.DataFrame:
        """One row a further measure and budget: its agreement with the proxy there."""
        import pandas as pd

        return pd.DataFrame([flat(other) for other in self.others])

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON-ready data; what is not defined is None."""
        given = {
            name: value
            for name, value in vars(self).items()
            if name not in ("cells", "rows", "others")
        }
        found: dict[str, Any] = plain_json(
            {
                **given,
                "valid": self.valid,
                "stable_from": {name: self.stable_from(name) for name in self.series()},
                "objections": self.objections(),
                "verdict": self.verdict(),
                "rows": [{**flat(row), "choices": row.choices} for row in self.rows],
                "others": [flat(other) for other in self.others],
            }
        )
        return found

    def plot(self, path: Path | str, dpi: int = 150) -> Path:
        """Writes the figure (`.png`, `.pdf`, ...); folders are made."""
        from masksearch.report.figures.proxy import plot_proxy

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_proxy(self).savefig(path, dpi=dpi, bbox_inches="tight")
        return path


LOW = 0.5  # noise ceiling below which seeds turn round a quarter of the pairs
HIGH = 0.9  # reliability beside which a low ceiling needs a word


def objections(card: ProxyCard) -> list[str]:
    """Why the data cannot decide whether the proxy is to be trusted."""
    from masksearch.analysis.proxy_card import CHANCE, FEWEST  # it imports this module lazily

    found = []
    if card.chance > CHANCE:
        reach = "any tau" if card.chance > 1 else f"a tau of +-{card.chance:.2f}"
        found.append(
            f"too few masks: {len(card.masks)} in density bands of {listed(card.band_sizes)}; two "
            f"unrelated rankings reach {reach} within bands in 1 of 20 cases, more than "
            f"+-{CHANCE:g}; at least {FEWEST} masks in one band, or more in several, are needed"
        )
    if card.seeds < 2 or math.isnan(card.ceiling_within.value):
        what = "one seed" if card.seeds < 2 else "no two seeds of the same masks within a band"
        found.append(
            f"{what} of {card.target}: the noise ceiling is unknown, so nobody can say how well "
            "any proxy could do; run the same masks with a second seed"
        )
    elif not card.ceiling_within.low > 0:
        found.append(
            f"two seeds of {card.target} do not agree within density bands (tau "
            f"{card.ceiling_within}, the interval includes 0): the reference itself does not "
            "rank these masks; run more seeds or longer"
        )
    elif abs(card.density_tau_within) >= card.fraction * card.ceiling_within.value:
        found.append(
            f"density alone ranks {card.target} within its bands (tau "
            f"{card.density_tau_within:.2f}, ceiling {card.ceiling_within.value:.2f}): agreement "
            "within bands this wide may be density's; use narrower bands, or masks of one density"
        )
    return found


def verdict_text(card: ProxyCard) -> str:
    """The verdict and the figures that it rests on, one a line."""
    budget = card.reference[1]
    what = f"{card.proxy} as a proxy of {card.target} at {budget:,} steps"
    reasons = card.objections()
    lines = []
    if reasons:
        lines.append(f"Not decided: {what}.")
        lines += [f"  {reason[0].upper()}{reason[1:]}." for reason in reasons]
    else:
        good = {name: card.stable_from(name) for name in card.series()}
        found = [
            f"from {start:,} steps on" + (f" ({name})" if len(good) > 1 else "")
            for name, start in good.items()
            if start is not None
        ]
        head = f"Valid {'; '.join(found)}" if found else "Not valid"
        low = card.ceiling_within.value < LOW
        lines.append(f"{head}: {what}.")
        rule = f"{card.fraction:.0%} of the noise ceiling ({card.fraction:g} x "
        rule += f"{card.ceiling_within.value:.2f})"
        for name, start in good.items():
            label = f"{name}: " if len(good) > 1 else ""
            if start is not None:
                lines.append(
                    f"  {label}from there on every budget keeps {rule} within density bands "
                    "between seeds, with an interval above 0."
                )
            else:
                lines.append(f"  {label}{shortfall(card, card.series()[name], rule)}")
        if low:
            lines.append(
                "  The ceiling is low: most masks of one band differ by no more than seeds do. "
                "Such a ranking finds masks that stand out, and no more; use several seeds a mask."
            )
    lines += figures(card)
    return "\n".join(lines)


def shortfall(card: ProxyCard, rows: list[Budget], rule: str) -> str:
    """Why no budget of a schedule is trusted, by its longest one."""
    last = rows[-1]
    if not last.within.low > 0:
        return (
            f"at {last.budget:,} steps tau within density bands is {last.within}: it cannot be "
            "told from 0."
        )
    return (
        f"at {last.budget:,} steps one seed's ranking within density bands agrees with another "
        f"seed's {card.target} by {last.between_seeds}, below {rule}."
    )


def figures(card: ProxyCard) -> list[str]:
    """What stands behind the verdict."""
    lines = []
    same = card.proxy == card.target
    which = "Longest budget short of the reference" if same else "Longest budget of the proxy"
    for name, rows in card.series().items():
        last = rows[-1]
        text = f"{last.across} across densities, {last.within} within density bands"
        if not math.isnan(last.between_seeds.value):
            text += f", {last.between_seeds} within bands between seeds"
        if not math.isnan(last.regret):
            text += f"; picking the best of each band by it gives away {last.regret:.3g} of "
            text += f"{card.target} (at random {last.at_random:.3g})"
        lines.append(f"{which}, {last.budget:,} steps ({name}, {last.masks} masks): tau-b {text}.")
    if card.seeds < 2:
        lines.append(f"Noise ceiling (two seeds of {card.target}): unknown, one seed.")
    else:
        lines.append(
            f"Noise ceiling (two seeds of {card.target}): {card.ceiling} across densities, "
            f"{card.ceiling_within} within bands."
        )
    lines.append(
        f"Density alone ranks {card.target} with tau-b {number(card.density_tau)} (sparser is "
        f"better: +1), {number(card.density_tau_within)} within bands."
    )
    wide, narrow = card.spread, card.spread_within
    if math.isnan(wide.sigma_seed):
        lines.append(
            f"Standard deviation of {card.target} over masks: {number(wide.sigma_mask, 3)}; that "
            "of seeds is unknown, one seed."
        )
    else:
        lines.append(
            f"Standard deviations of {card.target}: masks {number(wide.sigma_mask, 3)} (within "
            f"bands {number(narrow.sigma_mask, 3)}), seeds {number(wide.sigma_seed, 3)}; "
            f"reliability of one seed {number(wide.reliability)} (within bands "
            f"{number(narrow.reliability)}), of {card.seeds} seeds "
            f"{number(wide.of_seeds(card.seeds))} ({number(narrow.of_seeds(card.seeds))})."
        )
        if narrow.reliability > HIGH and card.ceiling_within.value < LOW:
            lines.append(
                "A few masks far from the rest make that reliability; the noise ceiling counts "
                "every pair of masks alike, and most of them lie close together."
            )
    lines += list(card.facts)
    if card.left_out:
        lines.append(
            "Left out: " + ", ".join(f"{count} {what}" for what, count in card.left_out.items())
            + "."
        )  # fmt: skip
    return lines


def number(value: float, places: int = 2) -> str:
    """A figure; a dash where it is not defined."""
    return "-" if math.isnan(value) else f"{value:.{places}g}" if places > 2 else f"{value:.2f}"


def listed(sizes: tuple[int, ...]) -> str:
    """Sizes with an "and" before the last."""
    *head, last = map(str, sizes)
    return f"{', '.join(head)} and {last}" if head else last
