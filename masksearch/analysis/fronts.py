"""Fronts of masks that were judged on several seeds: who is on them, how large they are, and how
much of what the search had promised is left.

Arrays `gains` are float `[masks, seeds, objectives]`; more is better in every column, and 0 is
the objective's `worst`. A seed is the same draw of weights, data order and rows for every mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from masksearch.analysis.pareto import dominated_volume
from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.stats import Floats

DRAWS = 4000  # of the means, for the probability of being on the front
AT_A_TIME = 200  # draws whose dominance is held in memory


# -- hypervolume ----------------------------------------------------------------------------------
def jackknife(values: Floats, statistic: Callable[[Floats], float]) -> Floats:
    """Pseudo-values of a statistic of means: their mean is the statistic without most of its bias.

    The hypervolume of noisy means is too large, because their maximum is. `S * f(all) - (S - 1) *
    f(all but one)` has that bias in the order of 1 / S^2, and its mean over seeds a t-interval.

    Args:
        values: `[masks, seeds, objectives]`.
        statistic: Of means over seeds, `[masks, objectives]`.

    Returns:
        One pseudo-value a seed; of one seed the statistic itself.

    Reference: Quenouille, Biometrika 43, 353 (1956); Tukey, Annals of Mathematical Statistics 29,
    614 (1958).
    """
    seeds = values.shape[1]
    whole = statistic(values.mean(1))
    if seeds < 2:
        return np.full(seeds, whole)
    without = [statistic(np.delete(values, seed, 1).mean(1)) for seed in range(seeds)]
    found: Floats = seeds * whole - (seeds - 1) * np.asarray(without)
    return found


def volume_slopes(means: Floats) -> Floats:
    """By how much a front's hypervolume grows with the first objective of each mask.

    Args:
        means: `[masks, objectives]`, measured from the objectives' `worst`.

    Returns:
        float `[masks]`; 0 for a mask that is not on the front.
    """
    step = 1e-7 * max(1e-12, float(np.abs(means[:, 0]).max(initial=0.0)))
    whole = dominated_volume(means)
    slopes = np.zeros(len(means))
    for mask in range(len(means)):
        moved = means.copy()
        moved[mask, 0] += step
        slopes[mask] = (dominated_volume(moved) - whole) / step
    return slopes


def mix_rows(rows: Sequence[RowScores], shares: Sequence[float]) -> RowScores:
    """The sum of scores that were given to the same rows, each times its share.

    Args:
        rows: With equal parts, weights and digests.
        shares: As many.
    """
    first = rows[0]
    scores = {
        part: sum(
            (share * each.scores[part] for each, share in zip(rows, shares, strict=True)),
            np.zeros(len(first.scores[part])),
        )
        for part in first.scores
    }
    return RowScores(scores, first.weights, first.digests)


# -- the probability of being on the front ------------------------------------------------------
def draw_means(gains: Floats, rows: Floats | None = None, draws: int = DRAWS) -> Floats:
    """Means that other seeds (and rows) could have given.

    A bootstrap whose weights of seeds are normal, so that every mask's draws spread as Student's t
    with as many degrees of freedom as the seeds leave: resampling 3 seeds would pretend to know
    too much. All masks share the weights, as they share the seeds.

    Args:
        gains: `[masks, seeds, objectives]`, 2 seeds or more.
        rows: Covariance of the first objective from the choice of rows, `[masks, masks]`.
        draws: How many.

    Returns:
        `[draws, masks, objectives]`.

    Reference: seeds and rows as two crossed samples, Multi-Bootstrap, arXiv 2106.16163, Section 3;
    weights in place of resampling, Rubin, Annals of Statistics 9, 130 (1981).
    """
    seeds = gains.shape[1]
    random = np.random.default_rng(0)
    centre = gains.mean(1)
    weights = random.standard_normal((draws, seeds)) / math.sqrt(seeds * (seeds - 1))
    weights *= np.sqrt((seeds - 1) / random.chisquare(seeds - 1, draws))[:, None]
    found: Floats = centre + np.einsum("ds,mso->dmo", weights, gains - centre[:, None])
    if rows is not None:
        values, vectors = np.linalg.eigh(rows)
        noise = random.standard_normal((draws, len(rows)))
        found[..., 0] += noise @ (vectors * np.sqrt(values.clip(0))).T
    return found


def membership(gains: Floats, rows: Floats | None = None, draws: int = DRAWS) -> Floats:
    """The probability of each mask to be on the front of the true means.

    Args:
        gains: `[masks, seeds, objectives]`.
        rows: See `draw_means`.
        draws: Of the means.

    Returns:
        float `[masks]` in [0, 1]: the share of draws in which no other mask dominates it; NaN for
        fewer than 2 seeds.
    """
    if gains.shape[1] < 2:
        return np.full(len(gains), math.nan)
    counts = np.zeros(len(gains))
    means = draw_means(gains, rows, draws)
    for begin in range(0, draws, AT_A_TIME):
        some = means[begin : begin + AT_A_TIME]
        here, there = some[:, :, None], some[:, None]
        beaten = (there >= here).all(-1) & (there > here).any(-1)  # [draws, mask, by which]
        counts += (~beaten.any(-1)).sum(0)
    result: Floats = counts / draws
    return result
