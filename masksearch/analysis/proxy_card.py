"""How far to trust a short run: does it order masks of like density as the reference does?

card = judge_proxy(observe({"runs/x": records}), proxy="loss", target="glue")
card.verdict(), card.frame, card.valid_from

Tables of one measure are float `[masks, seeds]`, NaN where nothing was observed. Agreement is
Kendall's tau-b with larger = better on both sides, over the pairs of masks of one density band:
sparse and dense masks often differ so much that any budget separates them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from masksearch.analysis.pareto import sparsity_of
from masksearch.analysis.ranks import Resampling, align_seeds, chance, seed_mean, tau_b
from masksearch.analysis.stats import Floats, Interval, check_level
from masksearch.contracts import Objective, Record, is_side_value
from masksearch.errors import SearchError, unknown_name

Goal = Literal["min", "max"]
Place = tuple[str, str, int]  # measure, schedule, budget
CURVE = "one run"  # every budget of a mask is a report along one and the same run
OWN_END = "own runs"  # every budget is the end of a run of its own
CHANCE = 0.5  # a tau that unrelated rankings may not reach by luck (95%) where masks are enough
FEWEST = 10  # masks in one band for which `chance` is below that
LOW = 0.5  # noise ceiling below which seeds turn round a quarter of the pairs
NOT_ANNEALED = (
    "Every budget is a report along one run of the full length; a run that is planned to be that "
    "short, its learning rate annealed to 0 there, may rank masks differently."
)
BOTH_KINDS = (
    f"'{OWN_END}': each budget is the end of runs of its own protocol. '{CURVE}': reports along "
    "the reference's runs, not annealed there."
)
SETTINGS = (
    "Every run folder is a setting of its own, judged at its end; steps are those under the mask."
)


# -- observations ------------------------------------------------------------------------------
def default_goal(measure: str, objectives: Iterable[Objective] = ()) -> Goal:
    """The direction in which a measure is better: its objective's, else min for a loss."""
    for objective in objectives:
        if objective.name == measure:
            return objective.goal
    lower = ("loss", "perplexity", "error", "seconds", "latency", "memory")
    return "min" if measure.lower().endswith(lower) else "max"


def observe(runs: Mapping[str, Iterable[Record]], reference: str | None = None) -> pd.DataFrame:
    """Every report of every finished run: mask, name, density, seed, schedule, budget, measure,
    value.

    Records of one protocol are merged: their curves give the lower budgets. Runs of several
    protocols (200, 800, 3,200 steps) give their ends, and the reference its curve beside them, as
    a schedule of its own. Where no run reports along the way (masks on trained models), each
    protocol is a schedule under its run's name.

    Args:
        runs: Name -> records of a study. Of several runs of one (mask, seed, protocol) the
            last one counts.
        reference: Name of the run by which the others are judged; needed for more than one
            protocol.

    Raises:
        SearchError: If nothing has finished, or several protocols come without a reference.
        UnknownNameError: If `reference` is not among the runs.
    """
    if reference is not None and reference not in runs:
        raise unknown_name("run", reference, runs)
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
    protocols = list(dict.fromkeys(protocol for protocol, *_ in finished))
    judge, several = protocols[0], len(protocols) > 1
    if several and reference is None:
        raise SearchError(
            f"the runs come from {len(protocols)} protocols, whose scores cannot be merged; "
            "say which run judges the others: --reference RUN (reference=RUN)"
        )
    if several:
        own = {record.protocol for name, record in named if name == reference and record.scored}
        if len(own) != 1:
            raise SearchError(
                f"the reference {reference} holds {len(own)} protocols of finished runs; "
                "name a run folder with one"
            )
        (judge,) = own
    at_end = all(len(record.curve) < 2 for _, record in finished.values())
    if at_end and not several:
        raise SearchError(
            f"{', '.join(runs)}: the runs hold no curves (one report each), so there is no "
            "shorter budget to judge; use an evaluator that reports along the way"
        )
    rows = []
    for (protocol, mask, _), (name, record) in finished.items():
        last = str(reference) if protocol == judge else name
        last = CURVE if not several else last if at_end else OWN_END
        reports = {(last, record.step): record.values}
        if protocol == judge and not at_end:
            curve = [report for report in record.curve if 0 < report.step < record.step]
            reports |= {(CURVE, report.step): report.values for report in curve}
        density = 1 - sparsity_of(record) if record.measures else math.nan
        rows += [
            (mask, record.name or str(record.mask), density, record.seed, *place, measure, value)
            for place, values in reports.items()
            for measure, value in values.items()
            if not is_side_value(measure)
        ]
    columns = ["mask", "name", "density", "seed", "schedule", "budget", "measure", "value"]
    table = without_repeated_ends(pd.DataFrame(rows, columns=columns))
    table.attrs["reference"] = CURVE if not several else str(reference) if at_end else OWN_END
    table.attrs["facts"] = SETTINGS if at_end else BOTH_KINDS if several else NOT_ANNEALED
    statuses = [record.status for _, record in named]
    table.attrs["left_out"] = {
        "failed runs": statuses.count("failed"),
        "runs that were stopped or are not finished": statuses.count("stopped")
        + statuses.count("running"),
    }
    return table


def without_repeated_ends(table: pd.DataFrame) -> pd.DataFrame:
    """Leaves out a last budget that only says again what the one before it said.

    An evaluator that fine-tunes reports the pre-training's loss a second time at its end; that
    is no longer budget of the loss.
    """
    for _, rows in table.groupby(["schedule", "measure"]):
        cells = rows.pivot(index=["mask", "seed"], columns="budget", values="value")
        if cells.shape[1] > 1:
            before, last = cells.iloc[:, -2], cells.iloc[:, -1].dropna()
            if before[last.index].equals(last):
                table = table.drop(index=rows.index[rows["budget"] == cells.columns[-1]])
    return table


def check_table(table: pd.DataFrame) -> pd.DataFrame:
    """Observations with a schedule and a name, each value once.

    Raises:
        ValueError: If a mask has two densities, or two values of one cell disagree.
    """
    table = table.assign(
        schedule=table.get("schedule", CURVE), name=table.get("name", table["mask"])
    )
    for mask, densities in table.groupby("mask")["density"]:
        if not math.isclose(densities.min(), densities.max()):
            raise ValueError(
                f"mask {mask} has two densities, {densities.min()} and {densities.max()}; give "
                "every mask a name of its own"
            )
    cell = ["schedule", "budget", "measure", "mask", "seed"]
    table = table.drop_duplicates([*cell, "value"])
    for row in table[np.isfinite(table["value"]) & table.duplicated(cell)].itertuples():
        raise ValueError(
            f"mask {row.name}, seed {row.seed}, {row.budget} steps has two values of "
            f"{row.measure}, one of them {row.value}; leave one out, or give runs of other "
            "protocols another schedule"
        )
    return table


def band_edges(densities: Floats, bands: int | Sequence[float] | None) -> list[float]:
    """Inner edges of the density bands, increasing, in (0, 1).

    Args:
        densities: Of the masks, in (0, 1].
        bands: None = factors of two: (1/2, 1], (1/4, 1/2], ...; a number = so many bands with
            about equally many masks; a sequence = the edges themselves.

    Raises:
        ValueError: If a number of bands is below 1 or an edge is not in (0, 1).
    """
    if bands is None:
        deepest = int(np.floor(-np.log2(densities)).max(initial=0))
        return [2.0**-power for power in range(deepest, 0, -1)]
    if isinstance(bands, int):
        if bands < 1:
            raise ValueError(f"at least 1 density band is needed, got {bands}")
        cuts = np.quantile(densities, [k / bands for k in range(1, bands)], method="lower")
        return sorted({float(cut) for cut in cuts if cut < densities.max()})
    edges = sorted(set(map(float, bands)))
    if not edges or not all(0 < edge < 1 for edge in edges):
        raise ValueError(f"edges of density bands are in (0, 1), got {list(bands)}")
    return edges


# -- the card ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class ProxyCard:
    """A cheap measure judged by the one that counts; made by `judge_proxy`.

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
        band_sizes: Masks in each band that holds any.
        ceiling: tau-b of two seeds of the reference; NaN for one seed.
        chance: The |tau| that unrelated rankings reach in 1 of 20 cases.
        density_tau: tau-b of "sparser is better" with the reference.
        fraction: Of the ceiling that a trusted budget keeps.
        resamples: Draws behind the intervals.
        left_out: Reason -> how many runs, values or masks.
        facts: How the budgets came about.
        cells: The observed tables.
    """

    proxy: str
    target: str
    reference: tuple[str, int]
    frame: pd.DataFrame
    masks: Mapping[str, float]
    densities: tuple[float, ...]
    band_sizes: tuple[int, ...]
    ceiling: Interval
    chance: float
    density_tau: float
    fraction: float
    resamples: int
    left_out: Mapping[str, int]
    facts: str
    cells: Mapping[Place, pd.DataFrame]

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
        found: dict[str, int] = {}
        for name, rows in self.series().items():
            for row in rows[::-1].to_dict("records"):
                keeps = row["between_seeds"] >= self.fraction * self.ceiling.value > 0
                if not (keeps and row["within_low"] > 0):
                    break
                found[str(name)] = int(row["budget"])
        return found

    @property
    def valid(self) -> bool:
        """Whether some budget of some schedule may be trusted."""
        return not self.objections() and bool(self.valid_from)

    def objections(self) -> list[str]:
        """Why the data cannot decide; empty where they can."""
        target, ceiling, found = self.target, self.ceiling, []
        if self.chance > CHANCE:
            reach = "any tau" if self.chance > 1 else f"a tau of +-{self.chance:.2f}"
            *head, last = map(str, self.band_sizes)
            sizes = f"{', '.join(head)} and {last}" if head else last
            found.append(
                f"too few masks: {len(self.masks)} in density bands of {sizes}; two unrelated "
                f"rankings reach {reach} within bands in 1 of 20 cases, more than +-{CHANCE:g}; "
                f"at least {FEWEST} masks in one band, or more in several, are needed"
            )
        if math.isnan(ceiling.value):
            found.append(
                f"no two seeds of {target} for the same masks within a band: the noise ceiling is "
                "unknown, so nobody can say how well any proxy could do; run the same masks with "
                "a second seed"
            )
        elif math.isnan(ceiling.low):
            found.append(
                f"no intervals were drawn ({self.resamples} resamples), and the rule asks for "
                "some; take 200 or more"
            )
        elif not ceiling.low > 0:
            found.append(
                f"two seeds of {target} do not agree within density bands (tau "
                f"{ceiling.text(decimals=2)}, the interval includes 0): the reference itself does "
                "not rank these masks; run more seeds or longer"
            )
        elif abs(self.density_tau) >= self.fraction * ceiling.value:
            found.append(
                f"density alone ranks {target} within its bands (tau {self.density_tau:.2f}, "
                f"ceiling {ceiling.value:.2f}): agreement within bands this wide may be "
                "density's; use narrower bands, or masks of one density"
            )
        return found

    def verdict(self) -> str:
        """What may be said, in plain lines; the first says valid, not valid or not decided."""
        return "\n".join([*verdict_lines(self), *figure_lines(self)])

    def __repr__(self) -> str:
        return f"{verdict_lines(self)[0]} ({len(self.masks)} masks; see .verdict(), .frame)"

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON-ready data; what is not defined is None."""
        ends = (self.ceiling.value, self.ceiling.low, self.ceiling.high)
        return {
            "proxy": self.proxy,
            "target": self.target,
            "reference": list(self.reference),
            "rows": json.loads(self.frame.to_json(orient="records", double_precision=15)),
            "masks": dict(self.masks),
            "ceiling": [None if math.isnan(end) else end for end in ends],
            "valid": self.valid,
            "valid_from": self.valid_from,
            "objections": self.objections(),
            "verdict": self.verdict(),
            "left_out": dict(self.left_out),
        }


def judge_proxy(
    table: pd.DataFrame,
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
) -> ProxyCard:
    """The card of observations, judged by the target's longest budget.

    Args:
        table: Of `observe`, or one with the columns mask, density, seed, budget, measure, value
            (and, where wanted, schedule and name).
        proxy: The measure that is cheap.
        target: The measure that counts; None = the proxy itself.
        goals: Measure -> `"min"` or `"max"`; those not named: min for a loss, else max.
        reference: Schedule whose longest budget of the target judges; None = the longest.
        bands: See `band_edges`.
        fraction: Share of the noise ceiling that a trusted budget keeps, in (0, 1].
        level: Coverage of the intervals, in (0, 1).
        resamples: Draws of masks and seeds (>= 0; 0 = no intervals).
        seed: Of the draws.

    Raises:
        UnknownNameError: If no such measure or schedule was observed.
        SearchError: If fewer than two masks have both the proxy and the reference, or there
            is no budget to judge.
        ValueError: If observations contradict each other, or an argument is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is a share of the ceiling in (0, 1], got {fraction}")
    if resamples < 0:
        raise ValueError(f"resamples is at least 0, got {resamples}")
    check_level(level)
    about, target = table.attrs, target or proxy
    table = check_table(table)
    sign: dict[str, int] = {}
    for name in (proxy, target):
        if name not in set(table["measure"]):
            raise unknown_name("measure", name, sorted(set(table["measure"])))
        goal = (goals or {}).get(name) or default_goal(name)
        if goal not in ("min", "max"):
            raise ValueError(f"the goal of {name} is 'min' or 'max', got {goal!r}")
        sign[name] = 1 if goal == "max" else -1
    finite = table[np.isfinite(table["value"])]
    reference = reference or about.get("reference")
    schedules = sorted(set(finite[finite["measure"] == target]["schedule"]))
    if reference is not None and reference not in schedules:
        raise unknown_name(f"schedule with a {target}", reference, schedules)
    cells = {
        cast("Place", place): rows.pivot(index="mask", columns="seed", values="value")
        for place, rows in finite.groupby(["measure", "schedule", "budget"])
    }
    wanted = [place for place in cells if place[0] == target and reference in (None, place[1])]
    judge = max(wanted, key=lambda place: place[2])
    masks, seeds = cells[judge].index, sorted(set(finite["seed"]))
    everything = table.drop_duplicates("mask").set_index("mask")
    if len(masks) < 2:
        raise SearchError(
            f"{len(masks)} mask{'s have' if len(masks) != 1 else ' has'} a {target} at "
            f"{judge[2]:,} steps; a ranking needs at least 2 masks, a verdict {FEWEST} in "
            "one density band"
        )
    cells = {place: each.reindex(index=masks, columns=seeds) for place, each in cells.items()}
    density = everything["density"][masks].to_numpy()
    in_band = np.digitize(density, band_edges(density, bands), right=True).astype(np.int64)
    draws = Resampling(in_band, len(seeds), resamples, seed, level)

    def gains(place: Place) -> Floats:
        return sign[place[0]] * align_seeds(cells[place].to_numpy(np.float64))

    truth = gains(judge)
    rows = []
    for place in sorted(place for place in cells if place[0] == proxy):
        short = truth if place == judge else gains(place)
        x, y = seed_mean(short), seed_mean(truth)
        both = np.isfinite(x)
        if both.sum() < 2:
            continue
        groups = [np.flatnonzero(both & (in_band == band)) for band in np.unique(in_band)]
        groups = [inside for inside in groups if len(inside) > 1]
        lost = [y[inside].max() - y[inside[x[inside].argmax()]] for inside in groups]
        guessed = [y[inside].max() - y[inside].mean() for inside in groups]
        row = {"schedule": place[1], "budget": place[2], "masks": int(both.sum())}
        row["reference"] = place == judge
        within, between = draws.tau(short, truth), draws.tau_between_seeds(short, truth)
        for name, found in (("within", within), ("between_seeds", between)):
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        mean = np.mean if groups else lambda _: math.nan
        rows.append(row | {"regret": mean(lost), "regret_at_random": mean(guessed)})
    if all(row["reference"] for row in rows):
        raise SearchError(
            f"{proxy} was observed at no other budget than the reference's ({judge[2]:,} "
            "steps), or for one mask only; a proxy card needs reports along the way, or "
            "shorter runs of the same masks"
        )
    known = np.isfinite(truth)
    left_out = {
        **about.get("left_out", {}),
        "values that are not finite": len(table) - len(finite),
        "masks without the reference": len(everything) - len(masks),
        "missing (mask, seed) cells of the reference": known.any(0).sum() * len(masks)
        - known.sum(),
    }
    names = everything["name"][masks]
    unique = names.where(~names.duplicated(False), names + " (" + names.index.str[:8] + ")")
    return ProxyCard(
        proxy,
        target,
        judge[1:],
        pd.DataFrame(rows),
        dict(sorted(zip(unique, density.tolist(), strict=True), key=lambda m: (-m[1], m[0]))),
        tuple(density.tolist()),
        tuple(np.unique(in_band, return_counts=True)[1].tolist()),
        draws.tau_between_seeds(truth, truth),
        chance(in_band),
        tau_b(-density, seed_mean(truth), in_band),
        fraction,
        resamples,
        {reason: int(count) for reason, count in left_out.items() if count},
        about.get("facts", ""),
        cells,
    )


# -- words -------------------------------------------------------------------------------------
def verdict_lines(card: ProxyCard) -> list[str]:
    """Valid, not valid or not decided, and why."""
    what = f"{card.proxy} as a proxy of {card.target} at {card.reference[1]:,} steps"
    if reasons := card.objections():
        return [f"Not decided: {what}.", *(f"  {r[0].upper()}{r[1:]}." for r in reasons)]
    ceiling, series = card.ceiling.value, card.series()
    rule = f"{card.fraction:.0%} of the noise ceiling ({card.fraction:g} x {ceiling:.2f})"
    trusted, reasons = [], []
    for name, rows in series.items():
        last, start = rows.iloc[-1], card.valid_from.get(name)
        if start is not None:
            lone = len(rows) == 1 and name != card.reference[0]  # no budget on a way
            place = f"at {start:,} steps" if lone else f"from {start:,} steps on"
            trusted.append(place + (f" ({name})" if len(series) > 1 else ""))
            reason = f"{'it' if lone else 'from there on every budget'} keeps {rule} within "
            reason += "density bands between seeds, with an interval above 0."
        elif not last["within_low"] > 0:
            reason = f"at {last.budget:,} steps tau within density bands is "
            reason += f"{interval_text(last, 'within')}: it cannot be told from 0."
        else:
            reason = f"at {last.budget:,} steps one seed's ranking within density bands agrees "
            reason += f"with another seed's {card.target} by "
            reason += f"{interval_text(last, 'between_seeds')}, below {rule}."
        reasons.append(f"  {name}: {reason}" if len(series) > 1 else f"  {reason}")
    if ceiling < LOW:
        reasons.append(
            "  The ceiling is low: most masks of one band differ by no more than seeds do. "
            "Such a ranking finds masks that stand out, and no more; use several seeds a mask."
        )
    head = f"Valid {'; '.join(trusted)}" if trusted else "Not valid"
    return [f"{head}: {what}.", *reasons]


def figure_lines(card: ProxyCard) -> list[str]:
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
    known = not math.isnan(card.ceiling.value)
    ceiling = card.ceiling.text(decimals=2) if known else "unknown, one seed"
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


def interval_text(row: pd.Series[Any], name: str) -> str:
    """A statistic of a row of the frame with its interval."""
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"]).text(decimals=2)
