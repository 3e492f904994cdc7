import math
from pathlib import Path

import numpy as np
import pytest

from masksearch.analysis.fronts import (
    compare_volumes,
    jackknife,
    membership,
    volume_slopes,
    volumes_of,
)
from masksearch.analysis.pareto import hypervolume, nondominated_ranks
from masksearch.analysis.stats import estimate
from masksearch.contracts import Objective

GOALS = (Objective("score", "max", 0.0), Objective("sparsity", "max", 0.0))
SEED_SD = 0.0082  # of one mask's score over seeds, and about that over masks (GLUE, 3 tasks)


def landscape(draws: np.random.Generator, masks: int) -> np.ndarray:
    """True scores, which fall a little with sparsity: `[masks, 2]`."""
    sparsity = np.sort(draws.uniform(0.5, 0.98, masks))
    scores = 0.6 - 0.02 * (sparsity - 0.5) + draws.normal(0, 0.0085, masks)
    return np.stack([scores, sparsity], -1)


def judge(draws: np.random.Generator, true: np.ndarray, seeds: int) -> np.ndarray:
    """What seeds say of these masks, `[masks, seeds, 2]`; they share a fifth of the variance."""
    own = draws.normal(0, SEED_SD * math.sqrt(0.8), (len(true), seeds))
    shared = draws.normal(0, SEED_SD * math.sqrt(0.2), seeds)
    gains = np.repeat(true[:, None], seeds, 1)
    gains[..., 0] += own + shared
    return gains


def test_pseudo_values_of_a_mean_are_the_values():
    values = np.random.default_rng(0).random(size=(1, 5, 1))  # the volume of one is its value
    assert jackknife(values) == pytest.approx(values[0, :, 0])
    assert jackknife(values[:, :1]) == values[0, 0, 0]


@pytest.mark.slow
def test_the_jackknife_takes_most_of_the_bias_off_a_hypervolume():
    draws = np.random.default_rng(1)
    plain, corrected = [], []
    for _ in range(1000):
        true = landscape(draws, 8)
        gains = judge(draws, true, 3)
        plain.append(hypervolume(gains.mean(1), GOALS) - hypervolume(true, GOALS))
        corrected.append(jackknife(gains).mean() - hypervolume(true, GOALS))
    assert np.mean(plain) > 2 * abs(np.mean(corrected))


def test_slopes_are_the_widths_of_the_steps_of_a_front():
    # sparsity .5, .8, .9; the middle one is beaten by the last
    means = np.array([(0.7, 0.5), (0.4, 0.8), (0.5, 0.9)])
    assert volume_slopes(means) == pytest.approx([0.5, 0.0, 0.4], abs=1e-4)


@pytest.mark.slow
def test_membership_needs_two_seeds_and_knows_clear_cases():
    gains = np.array([[[0.9, 0.1]], [[0.5, 0.5]], [[0.4, 0.4]]])
    assert np.isnan(membership(gains)).all()
    several = np.repeat(gains, 4, 1)
    several[:, :, 0] += np.random.default_rng(0).normal(0, 1e-3, (3, 4))
    assert membership(several).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.nightly
def test_membership_of_two_masks_is_the_p_value_of_their_difference():
    """One of two equally sparse masks is on the front where its mean is the greater one."""
    from scipy import stats

    draws = np.random.default_rng(2)
    scores = draws.normal([[0.4], [0.0]], 1.0, (2, 4))
    gains = np.stack([scores, np.ones_like(scores)], -1)
    p = stats.ttest_1samp(scores[0] - scores[1], 0.0, alternative="less").pvalue
    assert membership(gains, draws=40_000) == pytest.approx([p, 1 - p], abs=0.01)


@pytest.mark.nightly
def test_a_front_judged_again_covers_the_truth_and_its_probabilities_are_right():
    """Searches of 100 masks with one seed; their fronts' masks on 3, 5 and 10 fresh seeds."""
    draws = np.random.default_rng(5)
    table: list[list[str]] = []
    for seeds in (3, 5, 10):
        covered, once_covered, volumes, left = [], [], [], []
        p, truth = [], []
        for _ in range(400):
            every = landscape(draws, 100)
            once = judge(draws, every, 1)[:, 0]
            found = nondominated_ranks(once) == 0
            true, gains = every[found], judge(draws, every[found], seeds)
            for scores, score in zip(gains[..., 0], true[:, 0], strict=True):
                each = estimate(scores.tolist())
                covered.append(each.low <= score <= each.high)
            once_covered += list(np.abs(once - every)[found, 0] <= 1.96 * SEED_SD)
            p += list(membership(gains, draws=800))
            truth += list(nondominated_ranks(true) == 0)
            volume = estimate(jackknife(gains).tolist())
            volumes.append(volume.low <= hypervolume(true, GOALS) <= volume.high)
            promise = estimate((once[found, :1] - gains[..., 0]).mean(0).tolist())
            left.append(promise.low <= (once - every)[found, 0].mean() <= promise.high)
        chance, is_member = np.asarray(p), np.asarray(truth)
        brier, brier_once = np.mean((chance - is_member) ** 2), np.mean(~is_member)
        shares = [f"{np.mean(each):.3f}" for each in (covered, once_covered, volumes, left)]
        members = f"{chance[is_member].mean():.2f} / {chance[~is_member].mean():.2f}"
        table.append([*shares, members, f"{brier:.3f} ({brier_once:.3f})"])
        assert np.mean(covered) >= 0.93
        assert np.mean(once_covered) < 0.9
        assert np.mean(left) >= 0.93
        assert np.mean(volumes) >= 0.91
        assert chance[is_member].mean() > chance[~is_member].mean() + 0.2
        assert brier < 0.8 * brier_once
        fifths = [(chance >= low) & (chance <= low + 0.2) for low in np.arange(0, 1, 0.2)]
        for near in fifths:  # the search's choice is not in it, so it errs to the low side
            assert -0.05 < is_member[near].mean() - chance[near].mean() < 0.2
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "statistics.md").read_text(encoding="utf-8")
    for row in zip(*table, strict=True):  # of 3, 5 and 10 seeds
        print(*row, sep=" | ")
        assert f"| {' | '.join(row)} |" in page


@pytest.mark.nightly
def test_no_front_is_larger_where_both_are_equal():
    """Claims about hypervolumes of three arms whose masks are equally good, 2 comparisons."""
    draws = np.random.default_rng(6)
    for masks, spread in ((4, True), (8, True), (8, False)):
        for seeds in (3, 5, 10):
            claims = 0
            for _ in range(400):
                true = landscape(draws, masks)
                true[:, 0] = true[:, 0] if spread else 0.6
                arms = judge(draws, np.concatenate([true] * 3), seeds).reshape(3, masks, seeds, 2)
                names = ("searched", "hand-designed", "random")
                found = compare_volumes(
                    {n: volumes_of(a, {}) for n, a in zip(names, arms, strict=True)}
                )
                claims += any(
                    finding.outcome in ("larger", "smaller") for finding in found.values()
                )
            print(f"{masks} masks an arm, {seeds} seeds: claims {claims / 400:.3f}")
            assert claims / 400 <= 0.06


def test_a_front_that_is_better_by_far_is_larger():
    draws = np.random.default_rng(7)
    true = landscape(draws, 6)
    better = true + np.array([0.05, 0.0])
    both = judge(draws, np.concatenate([better, true]), 5)
    (found,) = compare_volumes(
        {"searched": volumes_of(both[:6], {}), "random": volumes_of(both[6:], {})}
    ).values()
    volume = hypervolume(better, GOALS) - hypervolume(true, GOALS)
    assert found.outcome == "larger"
    assert found.difference.low <= volume <= found.difference.high
    (other,) = compare_volumes(
        {"searched": volumes_of(both[6:], {}), "random": volumes_of(both[:6], {})}
    ).values()
    assert other.outcome == "smaller"


def test_two_seeds_claim_nothing_about_hypervolumes():
    few = np.array([[[1.0], [1.1]]]), np.array([[[0.1], [0.3]]])
    searched, hand = (volumes_of(each, {}) for each in few)
    (found,) = compare_volumes({"searched": searched, "hand-designed": hand}).values()
    assert found.outcome == "too few seeds"
