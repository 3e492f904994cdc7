"""How far to trust a short run that judges masks: rank agreement, noise ceiling, regret."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksearch.contracts import Record
from masksearch.errors import SearchError, unknown_name
from masksearch.results.proxy_observations import (
    Cells,
    Goal,
    Observation,
    Observed,
    default_goal,
    from_records,
    plain,
)
from masksearch.results.proxy_rows import (
    Budget,
    Other,
    Work,
    flat,
    longest,
    names_of,
    plain_json,
)
from masksearch.results.proxy_stats import Interval, Spread, chance, seed_mean, spread, tau_b
from masksearch.results.stats import checked_level

if TYPE_CHECKING:
    import pandas as pd

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
        from masksearch.results.proxy_wording import objections  # it imports this module

        return objections(self)

    @property
    def valid(self) -> bool:
        """Whether some budget of some schedule may be trusted."""
        return not self.objections() and any(
            self.stable_from(name) is not None for name in self.series()
        )

    def verdict(self) -> str:
        """What may be said, in plain lines; the first says valid, not valid or not decided."""
        from masksearch.results.proxy_wording import verdict_text

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
        from masksearch.results.proxy_plots import plot_proxy

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_proxy(self).savefig(path, dpi=dpi, bbox_inches="tight")
        return path
