"""What a proxy card leaves out: agreement across densities, the front, how far seeds scatter."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from masksearch.analysis.pareto import default_goal, on_front
from masksearch.analysis.stats import Floats, Interval
from masksearch_bench.proxy import (
    ProxyCard,
    Resampling,
    align_seeds,
    bands_of,
    seed_mean,
)


def measured(card: ProxyCard, place: tuple[str, str, int]) -> Floats:
    """Values `[masks, seeds]` at a budget of a measure, larger = better."""
    sign = -1 if default_goal(place[0]) == "min" else 1
    return sign * align_seeds(card.cells[place].to_numpy(np.float64))


def all_pairs(card: ProxyCard, bands: int | None) -> Resampling:
    """The card's draws, of all masks in place of those within a band."""
    in_band = bands_of(np.array(card.densities), bands)
    seeds = next(iter(card.cells.values())).shape[1]
    draws = Resampling(in_band, seeds, 1000)
    draws.bands, draws.within = np.zeros_like(in_band), draws.across
    return draws


def front(values: Floats, densities: Floats) -> set[int]:
    """Masks of which no other is as sparse and as good, and better in one of the two."""
    kept = on_front(np.stack([values, -densities], axis=1)) & np.isfinite(values)
    return set(np.flatnonzero(kept).tolist())


def frame(card: ProxyCard, bands: int | None) -> pd.DataFrame:
    """The card's rows with `tau` (across densities) and its interval, the share of the
    reference's front that the proxy has, and the standard deviations over masks and seeds."""
    draws, truth = all_pairs(card, bands), measured(card, (card.target, *card.reference))
    densities, rows = np.array(card.densities), []
    for row in card.frame.to_dict("records"):
        short = measured(card, (card.proxy, row["schedule"], row["budget"]))
        tau, x, y = draws.tau(short, truth), seed_mean(short), seed_mean(truth)
        wanted = front(np.where(np.isfinite(x), y, np.nan), densities)
        held = wanted & front(x, densities)
        over_masks, over_seeds = scatter(short)
        rows.append(
            {
                **row,
                **{"tau": tau.value, "tau_low": tau.low, "tau_high": tau.high},
                "pareto_recall": len(held) / len(wanted) if wanted else math.nan,
                "sigma_mask": over_masks,
                "sigma_seed": over_seeds,
            }
        )
    return pd.DataFrame(rows)


def scatter(values: Floats) -> tuple[float, float]:
    """Standard deviations between masks and between seeds of one mask, `[masks, seeds]`.

    Random effects `value = mean + mask + seed` with unequal numbers of seeds: the mean squares
    are set equal to their expectations (Searle, Casella, McCulloch, Variance Components, 1992,
    section 3.6). NaN for seeds where no mask has two.
    """
    number, means = np.isfinite(values).sum(axis=1), seed_mean(values)
    within = float(np.nansum((values - means[:, None]) ** 2))
    n, own = number[number > 0], means[number > 0]
    freedom = int((n - 1).sum())
    between = float((n * (own - (n * own).sum() / n.sum()) ** 2).sum()) / max(1, len(n) - 1)
    if freedom == 0:
        return math.sqrt(between), math.nan
    size = (n.sum() - (n**2).sum() / n.sum()) / max(1, len(n) - 1)
    of_mask = max(0.0, (between - within / freedom) / size)
    return math.sqrt(of_mask), math.sqrt(within / freedom)


def lines(card: ProxyCard, bands: int | None) -> list[str]:
    """Agreement across densities, in sentences."""
    last = frame(card, bands).query("not reference").iloc[-1]
    tau = Interval(last.tau, last.tau_low, last.tau_high).text(decimals=2)
    truth = measured(card, (card.target, *card.reference))
    ceiling = all_pairs(card, bands).tau_between_seeds(truth, truth)
    found = [f"Longest budget, {last.budget:,} steps: tau-b {tau} across densities."]
    if math.isfinite(ceiling.value):
        found.append(
            f"Noise ceiling (two seeds of {card.target}): {ceiling.text(decimals=2)} across "
            f"densities, {card.ceiling.text(decimals=2)} within bands."
        )
    return found
