"""How far to trust a short run: does it order masks of like density as the reference does?

Tables of one measure are float `[masks, seeds]`, NaN where nothing was observed, larger = better.
Agreement is Kendall's tau-b over the pairs of masks of one density band: sparse and dense masks
often differ so much that any budget separates them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from optuna.storages import BaseStorage

from masksearch.analysis.pareto import default_goal, sparsity_of
from masksearch.analysis.stats import Floats, Interval
from masksearch.contracts import Objective, Record, is_side_value, mixed_seed
from masksearch.errors import SearchError, check_name, unknown_name
from masksearch.report.collect import StoredStudy, studies_in
from masksearch.report.tables import interval_text

CellKey = tuple[str, str, int]  # measure, schedule, budget
Counts = NDArray[np.int64]
CURVE = "one run"  # every budget of a mask is a report along one and the same run
CHANCE = 0.5  # a tau that unrelated rankings may not reach by luck (95%) where masks are enough
FEWEST = 10  # masks in one band for which `chance` is below that
RESAMPLES = 300  # draws of the bootstrap of a page's card
PAGE_MASKS = 500  # that a page's card is judged on; its pairs are compared one by one
LOW = 0.5  # noise ceiling below which seeds turn round a quarter of the pairs
NOT_ANNEALED = (
    "Every budget is a report along one run of the full length; a run that is planned to be that "
    "short, its learning rate annealed to 0 there, may rank masks differently."
)
SETTINGS = (
    "Every run folder is a setting of its own, judged at its end; steps are those under the mask."
)


# -- observations ------------------------------------------------------------------------------
def observe(runs: Mapping[str, Iterable[Record]], reference: str | None = None) -> pd.DataFrame:
    """Every report of every finished run, a row a value.

    Records of one protocol are merged: their curves give the lower budgets. Of several protocols
    (200, 800 and 3,200 steps, or trained models that are adapted or not) each gives its end, as a
    schedule under its run's name.

    Args:
        runs: Name -> records of a study. Of several runs of one (mask, seed, protocol) the
            last one counts.
        reference: Name of the run by which the others are judged; needed for more than one
            protocol.

    Raises:
        SearchError: If nothing has finished, several protocols come without a reference, or the
            runs of one protocol have no curves.
    """
    named = [(name, record) for name, records in runs.items() for record in records]
    finished = {
        (record.protocol, record.fingerprint or str(record.mask), record.seed): (name, record)
        for name, record in named
        if record.scored and record.values
    }
    if not finished:
        raise SearchError(
            f"no finished run of a mask in {', '.join(runs) or 'nothing'}; a proxy card needs "
            "runs that report along the way"
        )
    protocols = {protocol for protocol, *_ in finished}
    judges = {protocol for (protocol, *_), (name, _) in finished.items() if name == reference}
    several = len(protocols) > 1
    if several and len(judges) != 1:
        raise SearchError(
            f"the runs come from {len(protocols)} protocols, whose scores cannot be merged; "
            "say which run, of one protocol, judges the others: --reference RUN (reference=RUN), "
            f"got {reference} with {len(judges)} protocols of finished runs"
        )
    if not several and all(len(record.curve) < 2 for _, record in finished.values()):
        raise SearchError(
            f"{', '.join(runs)}: the runs hold no curves (one report each), so there is no "
            "shorter budget to judge; use an evaluator that reports along the way"
        )
    rows = []
    for (protocol, mask, _), (name, record) in finished.items():
        reports = {record.step: record.values}
        if not several:
            curve = [report for report in record.curve if 0 < report.step < record.step]
            reports |= {report.step: report.values for report in curve}
        schedule = CURVE if not several else str(reference) if protocol in judges else name
        density = 1 - sparsity_of(record) if record.measures else math.nan
        about = mask, record.name or str(record.mask), density, record.seed, schedule
        rows += [
            (*about, step, measure, value)
            for step, values in reports.items()
            for measure, value in values.items()
            if not is_side_value(measure)
        ]
    columns = ["mask", "name", "density", "seed", "schedule", "budget", "measure", "value"]
    table = _without_repeated_ends(pd.DataFrame(rows, columns=columns))
    lost = sum(record.status in ("failed", "stopped", "running") for _, record in named)
    table.attrs = {
        "reference": str(reference) if several else CURVE,
        "facts": SETTINGS if several else NOT_ANNEALED,
        "left_out": {"runs that failed, were stopped or are not finished": lost},
    }
    return table


def _without_repeated_ends(table: pd.DataFrame) -> pd.DataFrame:
    """Leaves out a last budget that only says again what the one before it said.

    An evaluator that fine-tunes reports the pre-training's loss a second time at its end.
    """
    for _, rows in table.groupby(["schedule", "measure"]):
        cells = rows.pivot(index=["mask", "seed"], columns="budget", values="value")
        if cells.shape[1] > 1:
            before, last = cells.iloc[:, -2], cells.iloc[:, -1].dropna()
            if before[last.index].equals(last):
                table = table.drop(index=rows.index[rows["budget"] == cells.columns[-1]])
    return table


def bands_of(densities: Floats, number: int | None) -> NDArray[np.int64]:
    """The density band of each mask.

    Args:
        densities: Of the masks, in (0, 1].
        number: Of bands with about equally many masks; None = factors of two: (1/2, 1],
            (1/4, 1/2], ...
    """
    edges = 2.0 ** -np.arange(1, 64)
    if number is not None:
        if number < 1:
            raise ValueError(f"at least 1 density band is needed, got {number}")
        edges = np.quantile(densities, [k / number for k in range(1, number)], method="lower")
    return np.digitize(densities, np.unique(edges), right=True).astype(np.int64)


# -- rank agreement ----------------------------------------------------------------------------
def tau_b(x: Floats, y: Floats, bands: NDArray[np.int64], counts: Counts) -> Floats:
    """Kendall's tau-b over the pairs of masks that lie in one band.

    With P concordant and Q discordant pairs, and T_x, T_y the pairs not tied in x, in y, each
    counted within bands and summed over them: `sum (P - Q) / sqrt(sum T_x * sum T_y)`. Pairs of
    masks of two bands count nowhere, so a difference between bands cannot raise it.

    Args:
        x: float `[masks]`; a mask that is NaN in x or y is left out.
        y: float `[masks]`.
        bands: Band of each mask.
        counts: How often each mask is taken, `[draws, masks]`. A mask and its own copy are no
            pair: they would be tied in both measures.

    Returns:
        float `[draws]` in [-1, 1]; NaN where x or y is tied in every pair.

    Reference: Kendall, Biometrika 33, 1945 (tau-b); Simon, JASA 73, 1978 (pairs of one stratum).
    """
    finite = np.isfinite(x) & np.isfinite(y)
    pairs = finite[:, None] & finite & (bands[:, None] == bands)
    above, beyond = (np.sign(v[:, None] - v) * pairs for v in (np.nan_to_num(x), np.nan_to_num(y)))
    weights = np.asarray(counts, np.float64)
    terms = (above * beyond, np.abs(above), np.abs(beyond))
    agreed, free_x, free_y = (((weights @ term) * weights).sum(1) for term in terms)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(agreed / np.sqrt(free_x * free_y))


def seed_mean(values: Floats, counts: Counts | int = 1) -> Floats:
    """Mean of each mask over its seeds, `[masks]`; `counts` say how often each seed is taken."""
    weights = np.isfinite(values) * counts
    with np.errstate(invalid="ignore"):
        return np.asarray((np.nan_to_num(values) * weights).sum(1) / weights.sum(1))


def align_seeds(values: Floats) -> Floats:
    """The table with each seed's shift taken out where masks have different seeds.

    A seed moves all masks, so a mean over seed 0 alone is not comparable with one over seeds 0
    and 1. The shift of a seed is the median, over the masks that both have, of its difference
    from the seed with the most masks; 0 where they share none.
    """
    finite = np.isfinite(values)
    if (finite == finite[0]).all():
        return values
    base = int(finite.sum(axis=0).argmax())
    both = finite & finite[:, [base]]
    moved = values.copy()
    for seed in np.flatnonzero(both.any(0)):
        shared = both[:, seed]
        moved[:, seed] -= np.median(values[shared, seed] - values[shared, base])
    return moved


def chance(bands: NDArray[np.int64]) -> float:
    """Half-width of the 95% range of tau-b within bands between two unrelated rankings.

    1.96 sd of tau when every order is equally likely: in a band of n masks P - Q has a variance of
    n (n - 1) (2 n + 5) / 18. Infinite where no band holds two.
    """
    sizes = np.unique(bands, return_counts=True)[1].astype(np.float64)
    pairs = float((sizes * (sizes - 1) / 2).sum())
    variance = float((sizes * (sizes - 1) * (2 * sizes + 5) / 18).sum())
    return 1.96 * math.sqrt(variance) / pairs if pairs else math.inf


class Resampling:
    """Draws of masks and seeds, the same for every statistic of a card.

    Each draw takes as many masks as there are, with replacement, within every band, and
    independently as many seeds as there are, for every mask and both measures (a proxy and its
    reference come from the same run), so both stay paired.
    Reference: the Multi-Bootstrap, Sellam et al., arXiv 2106.16163.

    Args:
        bands: Band of each mask.
        seeds: Number of seeds.
        resamples: Number of draws.
    """

    def __init__(self, bands: NDArray[np.int64], seeds: int, resamples: int) -> None:
        self.bands = bands
        random = np.random.default_rng(mixed_seed(0, len(bands), seeds))

        def draw(groups: NDArray[np.int64]) -> Counts:
            """`[1 + resamples, masks]`: each mask once, then draws that keep a group's size."""
            counts = np.ones((1 + resamples, len(groups)), dtype=np.int64)
            for inside in (np.flatnonzero(groups == group) for group in np.unique(groups)):
                share = np.full(len(inside), 1 / len(inside))
                counts[1:, inside] = random.multinomial(len(inside), share, size=resamples)
            return counts

        # of all masks first, for whoever asks for agreement across bands
        self.across, self.within = draw(np.zeros_like(bands)), draw(bands)
        drawn = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
        self.seeds = np.vstack([np.ones((1, seeds), np.int64), drawn])

    def tau(self, x: Floats, y: Floats) -> Interval:
        """tau-b between the means over seeds; masks and seeds are drawn."""
        taus = np.empty(len(self.within))
        for taken in np.unique(self.seeds, axis=0):
            here = (self.seeds == taken).all(1)
            means = seed_mean(x, taken), seed_mean(y, taken)
            taus[here] = tau_b(*means, self.bands, self.within[here])
        return percentiles(taus[0], taus[1:])

    def tau_between_seeds(self, x: Floats, y: Floats) -> Interval:
        """Mean tau-b between one seed of x and ANOTHER seed of y, over all ordered pairs.

        Where y is x, this is the noise ceiling: how well one run tells what another run of the
        same protocol will say. A proxy and a reference of the same run share its luck; taken from
        two seeds they do not. Masks are drawn, seeds are not: the interval is for these seeds.
        """
        choose = itertools.combinations if x is y else itertools.permutations
        pairs = choose(range(x.shape[1]), 2)
        each = [tau_b(x[:, a], y[:, b], self.bands, self.within) for a, b in pairs]
        defined = np.array([taus for taus in each if math.isfinite(taus[0])])
        if not len(defined):
            return Interval(math.nan)
        with np.errstate(invalid="ignore"):
            means = np.nan_to_num(defined).sum(axis=0) / np.isfinite(defined).sum(axis=0)
        return percentiles(np.mean(defined[:, 0]), means[1:])


def percentiles(value: np.floating, draws: Floats) -> Interval:
    """A value with the 95% interval of the draws that are defined; none where half are not."""
    defined = draws[np.isfinite(draws)]
    if math.isnan(value) or 2 * len(defined) < len(draws):
        return Interval(float(value))
    low, high = np.quantile(defined, [(1 - 0.95) / 2, 1 - (1 - 0.95) / 2])
    return Interval(float(value), float(low), float(high))


# -- the card ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class ProxyCard:
    """How well a cheap measure ranks masks as the one that counts does.

    Args:
        proxy: The measure that is cheap.
        target: The measure that counts.
        reference: Schedule and budget of the target by which the proxy is judged.
        frame: One row a budget of the proxy: schedule, budget, masks, reference (whether it is
            the reference itself), within (tau-b of the means over seeds), between_seeds (one seed
            of the proxy, another of the reference; each with `_low` and `_high`), regret (mean
            over bands of what the reference loses where the proxy picks the best mask, in its
            unit) and regret_at_random.
        masks: Name -> density, densest first, of the masks that have a reference.
        densities: Of the masks of `cells`, in their order.
        ceiling: tau-b of two seeds of the reference; NaN for one seed.
        density_tau: tau-b of "sparser is better" with the reference.
        fraction: Of the ceiling that a trusted budget keeps.
        objections: Why the data cannot decide; empty where they can.
        left_out: Reason -> how many runs, values or masks.
        facts: How the budgets came about.
        cells: The observed tables, which figures draw.
    """

    proxy: str
    target: str
    reference: tuple[str, int]
    frame: pd.DataFrame
    masks: Mapping[str, float]
    densities: tuple[float, ...]
    ceiling: Interval
    density_tau: float
    fraction: float
    objections: tuple[str, ...]
    left_out: Mapping[str, int]
    facts: str
    cells: Mapping[CellKey, pd.DataFrame]

    def series(self) -> dict[str, pd.DataFrame]:
        """Schedule -> its budgets, shortest first, without the reference itself."""
        rows = self.frame[~self.frame["reference"]]
        return {name: rows[rows["schedule"] == name] for name in dict.fromkeys(rows["schedule"])}

    @property
    def valid_from(self) -> dict[str, int]:
        """Schedule -> the budget from which on every longer one is trusted.

        Trusted: between seeds it keeps `fraction` of the ceiling, and the interval of `within`
        lies above 0.
        """
        least = self.fraction * self.ceiling.value
        budgets: dict[str, int] = {}
        for name, rows in self.series().items():
            kept = (rows["between_seeds"] >= least) & (rows["within_low"] > 0) & (least > 0)
            trusted = rows["budget"][kept[::-1].cummin()]
            if len(trusted):
                budgets[name] = int(trusted.min())
        return budgets

    @property
    def valid(self) -> bool:
        """Whether some budget of some schedule may be trusted."""
        return not self.objections and bool(self.valid_from)

    def verdict(self) -> str:
        """The verdict in plain lines; the first says valid, not valid or not decided."""
        what = f"{self.proxy} as a proxy of {self.target} at {self.reference[1]:,} steps"
        if self.objections:
            reasons = [f"  {each[0].upper()}{each[1:]}." for each in self.objections]
            return "\n".join([f"Not decided: {what}.", *reasons, *_figure_lines(self)])
        several, trusted, reasons = len(self.series()) > 1, [], []
        for name, rows in self.series().items():
            where, reason = _judge_schedule(self, name, rows)
            reasons.append(f"  {name}: {reason}" if several else f"  {reason}")
            if where:
                trusted.append(f"{where} ({name})" if several else where)
        if self.ceiling.value < LOW:
            reasons.append(
                "  The ceiling is low: most masks of one band differ by no more than seeds do. "
                "Such a ranking finds masks that stand out, and no more; use several seeds a mask."
            )
        head = f"Valid {'; '.join(trusted)}" if trusted else "Not valid"
        return "\n".join([f"{head}: {what}.", *reasons, *_figure_lines(self)])

    def __repr__(self) -> str:
        line = self.verdict().splitlines()[0]
        return f"{line} ({len(self.masks)} masks; see .verdict(), .frame)"

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON-ready data; what is not defined is None."""
        ends = (self.ceiling.value, self.ceiling.low, self.ceiling.high)
        return {
            **{name: getattr(self, name) for name in ("proxy", "target", "valid", "valid_from")},
            "reference": list(self.reference),
            "rows": json.loads(self.frame.to_json(orient="records", double_precision=15)),
            "masks": dict(self.masks),
            "ceiling": [None if math.isnan(end) else end for end in ends],
            "objections": list(self.objections),
            "verdict": self.verdict(),
            "left_out": dict(self.left_out),
        }


def _rate_budgets(
    cells: Mapping[CellKey, pd.DataFrame],
    reference: CellKey,
    proxy: str,
    objectives: Sequence[Objective],
    draws: Resampling,
) -> tuple[Floats, list[dict[str, Any]]]:
    """The reference's values, more is better, and for each budget of the proxy how far it agrees.

    Args:
        cells: Measure, schedule and budget -> a value for each mask and seed.
        reference: The cells that the others are compared with.
        proxy: The measure that is cheap.
        objectives: Say which measures are better where they are lower.
        draws: Of masks and seeds.

    Raises:
        SearchError: If there is no budget to judge.
    """

    def gains(cell: CellKey) -> Floats:
        sign = 1 if default_goal(cell[0], objectives) == "max" else -1
        return sign * align_seeds(cells[cell].to_numpy(np.float64))

    truth = gains(reference)
    rows = []
    for cell in sorted(cell for cell in cells if cell[0] == proxy):
        short = truth if cell == reference else gains(cell)
        count = int(np.isfinite(seed_mean(short)).sum())
        if count >= 2:
            row = {"schedule": cell[1], "budget": cell[2], "masks": count}
            row["reference"] = cell == reference
            rows.append(row | agreement(short, truth, draws))
    if all(row["reference"] for row in rows):
        raise SearchError(
            f"{proxy} was observed at no other budget than the reference's ({reference[2]:,} "
            "steps), or for one mask only; a proxy card needs reports along the way, or shorter "
            f"runs, of at least 2 masks (a verdict of {FEWEST} in one density band)"
        )
    return truth, rows


def rate_proxy(
    table: pd.DataFrame,
    *,
    proxy: str = "loss",
    target: str | None = None,
    objectives: Sequence[Objective] = (),
    bands: int | None = None,
    fraction: float = 0.9,
    resamples: int = 1000,
) -> ProxyCard:
    """The card of observations, judged by the target's longest budget.

    Args:
        table: Of `observe`, or one with the columns mask, density, seed, budget, measure, value
            (and, where wanted, schedule and name). `attrs["reference"]` is the schedule whose
            longest budget of the target judges; without it the longest of all does.
        proxy: The measure that is cheap.
        target: The measure that counts; None = the proxy itself.
        objectives: Say which measures are better where they are lower; see `default_goal`.
        bands: See `bands_of`.
        fraction: Share of the noise ceiling that a trusted budget keeps, in (0, 1].
        resamples: Draws of masks and seeds (>= 1).

    Raises:
        UnknownNameError: If no such measure or schedule was observed.
        SearchError: If fewer than two masks have both the proxy and the reference, or there
            is no budget to judge.
        ValueError: If a (mask, seed, budget) has two values of a measure, or an argument is out
            of range.
    """
    if not 0 < fraction <= 1 or resamples < 1:
        raise ValueError(
            "fraction is a share of the ceiling in (0, 1], resamples at least 1; got "
            f"{fraction} and {resamples}"
        )
    about, target = table.attrs, target or proxy
    table = table.assign(
        schedule=table.get("schedule", CURVE), name=table.get("name", table["mask"])
    ).drop_duplicates(["schedule", "budget", "measure", "mask", "seed", "value"])
    for name in (proxy, target):
        check_name("measure", name, sorted(set(table["measure"])))
    finite = table[np.isfinite(table["value"])]
    cells = {
        cast("CellKey", cell): rows.pivot(index="mask", columns="seed", values="value")
        for cell, rows in finite.groupby(["measure", "schedule", "budget"])
    }
    reference = _choose_reference(cells, target, about.get("reference"))
    masks, seeds = cells[reference].index, sorted(set(finite["seed"]))
    everything = table.drop_duplicates("mask").set_index("mask")
    cells = {cell: each.reindex(index=masks, columns=seeds) for cell, each in cells.items()}
    density = everything["density"][masks].to_numpy()
    in_band = bands_of(density, bands)
    draws = Resampling(in_band, len(seeds), resamples)
    truth, rows = _rate_budgets(cells, reference, proxy, objectives, draws)
    complete = np.isfinite(truth)
    left_out = {
        **about.get("left_out", {}),
        "values that are not finite": len(table) - len(finite),
        "masks without the reference": len(everything) - len(masks),
        "missing (mask, seed) cells of the reference": complete.any(0).sum() * len(masks)
        - complete.sum(),
    }
    names = everything["name"][masks]
    unique = names.where(~names.duplicated(False), names + " (" + names.index.str[:8] + ")")
    ceiling = draws.tau_between_seeds(truth, truth)
    density_tau = float(tau_b(-density, seed_mean(truth), in_band, draws.within[:1])[0])
    return ProxyCard(
        proxy,
        target,
        reference[1:],
        pd.DataFrame(rows),
        dict(sorted(zip(unique, density.tolist(), strict=True), key=lambda m: (-m[1], m[0]))),
        tuple(density.tolist()),
        ceiling,
        density_tau,
        fraction,
        tuple(_objections_to(target, in_band, ceiling, density_tau, fraction)),
        {reason: int(count) for reason, count in left_out.items() if count},
        about.get("facts", ""),
        cells,
    )


def _choose_reference(
    cells: Mapping[CellKey, pd.DataFrame], target: str, schedule: str | None
) -> CellKey:
    """The longest budget of the target, of a schedule or of all; its masks are ranked.

    Raises:
        UnknownNameError: If the target was not observed on that schedule.
    """
    chosen = [cell for cell in cells if cell[0] == target and schedule in (None, cell[1])]
    if not chosen:
        schedules = sorted({cell[1] for cell in cells if cell[0] == target})
        raise unknown_name(f"schedule with a {target}", str(schedule), schedules)
    return max(chosen, key=lambda cell: cell[2])


def agreement(short: Floats, truth: Floats, draws: Resampling) -> dict[str, float]:
    """How far a budget ranks masks as the reference does, by both's gains `[masks, seeds]`: a part
    of a card's row."""
    x, y = seed_mean(short), seed_mean(truth)
    both = np.isfinite(x)
    in_bands = [np.flatnonzero(both & (draws.bands == band)) for band in np.unique(draws.bands)]
    regrets = [
        (y[inside].max() - y[inside[x[inside].argmax()]], y[inside].max() - y[inside].mean())
        for inside in in_bands
        if len(inside) > 1
    ]
    regret, at_random = np.mean(regrets, axis=0) if regrets else (math.nan, math.nan)
    row: dict[str, float] = {}
    taus = {
        "within": draws.tau(short, truth),
        "between_seeds": draws.tau_between_seeds(short, truth),
    }
    for name, tau in taus.items():
        row |= {name: tau.value, f"{name}_low": tau.low, f"{name}_high": tau.high}
    return row | {"regret": regret, "regret_at_random": at_random}


# -- words -------------------------------------------------------------------------------------
def _objections_to(
    target: str, bands: NDArray[np.int64], ceiling: Interval, density_tau: float, fraction: float
) -> list[str]:
    """Why the data cannot decide; empty where they can. Arguments as the fields of a card."""
    objections = []
    if (reached := chance(bands)) > CHANCE:
        reach = "any tau" if reached > 1 else f"a tau of +-{reached:.2f}"
        sizes = ", ".join(map(str, np.unique(bands, return_counts=True)[1].tolist()))
        objections.append(
            f"too few masks: {len(bands)} in density bands of {sizes}; two unrelated "
            f"rankings reach {reach} within bands in 1 of 20 cases, more than +-{CHANCE:g}; "
            f"at least {FEWEST} masks in one band, or more in several, are needed"
        )
    if math.isnan(ceiling.value):
        objections.append(
            f"no two seeds of {target} for the same masks within a band: the noise ceiling is "
            "unknown, so nobody can say how well any proxy could do; run the same masks with "
            "a second seed"
        )
    elif not ceiling.low > 0:
        objections.append(
            f"two seeds of {target} do not agree within density bands (tau "
            f"{ceiling.text(decimals=2)}, the interval includes 0): the reference itself does "
            "not rank these masks; run more seeds or longer"
        )
    elif abs(density_tau) >= fraction * ceiling.value:
        objections.append(
            f"density alone ranks {target} within its bands (tau {density_tau:.2f}, "
            f"ceiling {ceiling.value:.2f}): agreement within bands this wide may be "
            "density's; use narrower bands, or masks of one density"
        )
    return objections


def _judge_schedule(card: ProxyCard, name: str, rows: pd.DataFrame) -> tuple[str, str]:
    """From where on a schedule is trusted (empty: nowhere), and why."""
    ceiling, last, start = card.ceiling.value, rows.iloc[-1], card.valid_from.get(name)
    rule = f"{card.fraction:.0%} of the noise ceiling ({card.fraction:g} x {ceiling:.2f})"
    if start is not None:
        lone = len(rows) == 1 and name != card.reference[0]  # no budget on a way
        return f"at {start:,} steps" if lone else f"from {start:,} steps on", (
            f"{'it' if lone else 'from there on every budget'} keeps {rule} within density bands "
            "between seeds, with an interval above 0."
        )
    if not last["within_low"] > 0:
        within = f"tau within density bands is {interval_text(last, 'within')}"
        return "", f"at {last.budget:,} steps {within}: no correlation is shown."
    return "", (
        f"at {last.budget:,} steps one seed's ranking within density bands agrees with another "
        f"seed's {card.target} by {interval_text(last, 'between_seeds')}, below {rule}."
    )


def _figure_lines(card: ProxyCard) -> list[str]:
    """The figures that stand behind the verdict."""
    lines, target = [], card.target
    for name, rows in card.series().items():
        last = rows.iloc[-1]
        text = f"{last.budget:,} steps ({name}, {last.masks} masks), within density bands: tau-b "
        text += interval_text(last, "within")
        if not math.isnan(last["between_seeds"]):
            text += f", {interval_text(last, 'between_seeds')} between seeds"
        if not math.isnan(last["regret"]):
            text += f"; picking the best of each band by it gives away {last['regret']:.3g} of "
            text += f"{target} (at random {last['regret_at_random']:.3g})"
        lines.append(f"{text}.")
    unknown = math.isnan(card.ceiling.value)
    ceiling = "unknown, one seed" if unknown else card.ceiling.text(decimals=2)
    lines.append(f"Noise ceiling (two seeds of {target}): {ceiling} within bands.")
    if not math.isnan(card.density_tau):
        lines.append(
            f"Density alone ranks {target} with tau-b {card.density_tau:.2f} within bands "
            "(sparser is better: +1)."
        )
    if card.facts:
        lines.append(card.facts)
    if card.left_out:
        counts = (f"{count} {what}" for what, count in card.left_out.items())
        lines.append(f"Left out: {', '.join(counts)}.")
    return lines


# -- stored runs ---------------------------------------------------------------------------------
def proxy_card(
    runs: Path | str | Sequence[Path | str],
    *,
    proxy: str = "loss",
    target: str | None = None,
    reference: Path | str | None = None,
    bands: int | None = None,
    fraction: float = 0.9,
    resamples: int = 1000,
    storage: str | BaseStorage | None = None,
) -> ProxyCard:
    """Judges short runs: whether they rank masks as longer ones, or another score, do.

    Ranks the masks of finished runs by a cheap measure at every budget and compares that with
    the reference: the same measure at the longest budget, or another one that counts (the GLUE
    score). Within density bands, against the noise ceiling (two seeds).

    Args:
        runs: Run folders of searches and comparisons (or folders that hold several).
        proxy: The cheap measure, by the name it is reported under.
        target: The measure that counts, likewise; None = the proxy at the longest budget.
        reference: Run folder to compare the others with; None = none. It is needed where the runs
            come from several protocols (of 200, 800 and 3,200 steps, say), each of which is then
            judged at its end, and need not be among `runs`.
        bands: Density bands of about equally many masks; None = factors of two.
        fraction: Share of the noise ceiling that a trusted budget keeps, in (0, 1].
        resamples: Draws of the bootstrap behind the 95% intervals (>= 1).
        storage: One outside of the run folders that these may name.

    Returns:
        With `.verdict()`, `.frame`, `.valid_from` and `.to_dict()`.

    Raises:
        SearchError: If a folder holds no run, runs have no curves, protocols are mixed without
            a reference, or fewer than two masks can be compared.
        UnknownNameError: If no run reports such a measure.
        ValueError: If an argument is out of range.
    """
    folders = [runs] if isinstance(runs, Path | str) else list(runs)
    named = {Path(each).resolve(): str(each) for each in folders}
    compared_with = (
        None if reference is None else named.setdefault(Path(reference).resolve(), str(reference))
    )
    for folder, name in named.items():
        if not folder.is_dir():
            raise SearchError(f"{name}: no such run folder")
    studies = {n: studies_in(Path(n), storage, alone=False) for n in named.values()}
    return rate_proxy(
        observe(
            {n: [r for each in of_name for r in each.records] for n, of_name in studies.items()},
            compared_with,
        ),
        proxy=proxy,
        target=target,
        objectives=[
            o for of_name in studies.values() for each in of_name for o in each.objectives
        ],
        bands=bands,
        fraction=fraction,
        resamples=resamples,
    )


def card_of_studies(studies: Sequence[StoredStudy]) -> ProxyCard | None:
    """The card of a report's own studies; None where their runs cannot give one, or decide none.

    The first objective is the target; the proxy is the loss where it is reported along the
    way, else the objective itself. Of many masks it takes every so many (`_some_masks`).
    """
    scored = [record for study in studies for record in study.records if record.scored]
    target = studies[0].objectives[0].name
    along = {name for r in scored for report in r.curve[:-1] for name in report.values}
    proxy = "loss" if "loss" in along else target
    if len({record.fingerprint for record in scored}) < FEWEST or proxy not in along:
        return None
    try:
        card = rate_proxy(
            observe({str(study.run): _some_masks(study.records) for study in studies}),
            proxy=proxy,
            target=target,
            objectives=studies[0].objectives,
            resamples=RESAMPLES,
        )
    except SearchError:  # too few masks have both values, or there is no shorter budget
        return None
    return None if card.objections else card  # nobody has asked: undecided, it stays away


def _some_masks(records: Sequence[Record]) -> list[Record]:
    """The records of at most `PAGE_MASKS` masks, evenly over their order, with all their seeds."""
    masks = list(dict.fromkeys(record.fingerprint for record in records))
    some = {*masks[:: -(-len(masks) // PAGE_MASKS) or 1]}
    return [record for record in records if record.fingerprint in some]
