"""The front of a search, judged again on several seeds: who is on it, how large it is beside
hand-designed and scrambled masks, and how much of what the search had promised is left.

Arrays `gains` are float `[masks, seeds, objectives]`; more is better in every column, and 0 is
the objective's `worst`. A seed is the same draw of weights, data order and rows for every mask.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from masksearch.analysis.pareto import dominated_volume, on_front
from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.runs import ComparedRuns, MaskRuns, names_alike
from masksearch.analysis.stats import (
    CLAIM_SEEDS,
    Floats,
    Interval,
    PairedDifference,
    VolumeFinding,
    estimate,
    format_estimate,
    format_p,
    judge_volumes,
    paired_difference,
    stack_rows,
)
from masksearch.contracts import Objective
from masksearch.masks.families import SCRAMBLED

DRAWS = 4000  # of the means, for the probability of being on the front
SURE, DOUBTFUL = 0.9, 0.5  # probabilities that the sentences count
EACH, GROUPS = 30, 10  # so few rows stand for seeds one by one; more than these in so many groups


@dataclass(frozen=True)
class Arm:
    """One kind of masks of a comparison of fronts.

    Args:
        masks: Those that were judged.
        front: Those of them that have learned something and that no other one beats in its
            means, sparsest last.
        hypervolume: Of their front, from the objectives' `worst`; without most of the bias that
            noise gives it (`fronts.jackknife`).
    """

    masks: tuple[str, ...]
    front: tuple[str, ...]
    hypervolume: Interval


@dataclass(frozen=True)
class SeedVolumes:
    """Hypervolumes of one arm by draw: the first, second, .. seed, or group of rows where every
    seed gives the same.

    Args:
        corrected: Draw -> pseudo-value of the front of means (`fronts.jackknife`).
        single: Draw -> hypervolume of that draw's own scores.
        rows: Draw -> what each row adds to it, where draws are seeds and rows are known.
    """

    corrected: Mapping[int, float]
    single: Mapping[int, float]
    rows: Mapping[int, RowScores]


@dataclass(frozen=True)
class ComparedFronts:
    """The fronts of a search and its opponents, compared.

    Args:
        seeds: Common to all masks.
        groups: Of rows, which decide where every seed gives the same; else 0.
        arms: `"searched"`, `"hand-designed"`, `"scrambled"` -> its front.
        chances: Mask -> its probability of being on the front of all of them.
        lost: Mean over the search's masks of what it had promised and fresh runs do not give, in
            units of the score; None where it is not known.
        findings: The searched front against each other arm.
    """

    seeds: tuple[int, ...]
    groups: int
    arms: Mapping[str, Arm]
    chances: Mapping[str, float]
    lost: Interval | None
    findings: tuple[VolumeFinding, ...]


def arm_of(entry: MaskRuns, promised: Collection[str]) -> str:
    """Whose front a mask may be on, in figures, tables and claims; empty for nobody's.

    Controls are on no front; those that were drawn at random have one of their own. Where the
    front of a search is judged again, masks of other searches are on none.

    Args:
        entry: The mask.
        promised: Names of the masks of the search's front; empty without one.
    """
    if entry.name in promised:
        return "searched"
    if any(entry.name in names_alike(name) for name in promised):
        return SCRAMBLED
    if entry.kind == "control":
        return SCRAMBLED if entry.at_random and not promised else ""
    return entry.kind if entry.kind == "hand-designed" or not promised else ""


def compare_fronts(comparison: ComparedRuns) -> ComparedFronts | None:
    """Judges the fronts of a comparison that was made with `front_of`.

    Masks of other searches are on none of these fronts. Masks that have learned nothing are on
    no front either, and add no hypervolume. Only seeds that all masks have count; where every
    seed gives the same scores, groups of rows stand for seeds.

    Returns:
        None for other comparisons, and where no mask has finished.
    """
    entries = [entry for entry in comparison.entries.values() if entry.scores]
    if not comparison.promised or not entries:
        return None
    seeds = sorted(set.intersection(*(set(entry.scores) for entry in entries)))
    if not seeds:
        return None
    gains = _gains_by_seed(comparison, entries, seeds)
    sign = comparison.sign
    rows = [[entry.rows[s] for s in seeds if s in entry.rows] for entry in entries]
    tables = stack_rows(rows) if all(len(runs) == len(seeds) for runs in rows) else None
    grouped = tables is not None and comparison.seedless
    if grouped:
        gains = gains_by_rows(gains, [runs[0] for runs in rows], sign)
    learned = [m for m, entry in enumerate(entries) if not entry.learned_nothing]
    chances = np.zeros(len(entries))
    if learned:
        noise = None
        if tables is not None and not grouped and len(seeds) > 1:
            noise = tables.covariance()[np.ix_(learned, learned)]
        chances[learned] = membership(gains[learned], noise)

    arms: dict[str, Arm] = {}
    volumes: dict[str, SeedVolumes] = {}
    arm_by_place = [arm_of(entry, comparison.promised) for entry in entries]
    for name in ("searched", "hand-designed", SCRAMBLED):
        indices = [index for index, arm in enumerate(arm_by_place) if arm == name]
        if not indices:
            continue
        alive = [m for m in indices if m in learned]
        means = gains[alive].mean(1)
        by_row: dict[int, RowScores] = {}
        if tables is not None and not grouped:  # what a row adds, by the slopes of the front
            slopes = dict(zip(alive, (sign * volume_slopes(means)).tolist(), strict=True))
            shares = [slopes.get(m, 0.0) for m in indices]
            for draw in range(len(seeds)):
                by_row[draw] = _mix_rows([rows[m][draw] for m in indices], shares)
        volumes[name] = volumes_of(gains[alive], by_row)
        best = [m for m, kept in zip(alive, on_front(means), strict=True) if kept]
        best.sort(key=lambda m: entries[m].sparsity)
        arms[name] = Arm(
            tuple(entries[m].name for m in indices),
            tuple(entries[m].name for m in best),
            estimate(list(volumes[name].corrected.values()), rows=by_row.values()),
        )
    return ComparedFronts(
        tuple(seeds),
        gains.shape[1] if grouped else 0,
        arms,
        {entry.name: float(p) for entry, p in zip(entries, chances, strict=True)},
        _lost_promise(comparison, entries, seeds, sign),
        tuple(compare_volumes(volumes).values()),
    )


def _gains_by_seed(
    comparison: ComparedRuns, entries: Sequence[MaskRuns], seeds: Sequence[int]
) -> Floats:
    """`[masks, seeds, objectives]`, measured from the objectives' `worst`; more is better.

    A diverged run has the score of `entry.scores`, and the mean of its mask's other runs in every
    other objective that is reported.
    """
    scored = {(r.name, r.seed): r for r in comparison.records if r.scored}
    gains = np.empty((len(entries), len(seeds), len(comparison.objectives)))
    for row, entry in enumerate(entries):
        for column, objective in enumerate(comparison.objectives):
            finite = {
                seed: scored[entry.name, seed].value(objective.name)
                for seed in seeds
                if (entry.name, seed) in scored
            }
            finite = {s: value for s, value in finite.items() if math.isfinite(value)}
            if column == 0:
                finite = dict(entry.scores)
            usual = float(np.mean(list(finite.values()))) if finite else objective.worst
            values = np.array([finite.get(seed, usual) for seed in seeds])
            sign = 1.0 if objective.goal == "max" else -1.0
            gains[row, :, column] = sign * (values - objective.worst)
    return gains


def gains_by_rows(gains: Floats, rows: Sequence[RowScores], sign: float) -> Floats:
    """The gains of one seed, `[masks, groups, objectives]`: the score is each group's of rows.

    Neighbouring rows, which may belong together, are in one group (batch means). A group's score
    is measured such that the mean over groups is the score of all rows.

    Args:
        gains: `[masks, 1, objectives]`.
        rows: Of each mask, all of the same rows.
        sign: -1 where less is better.
    """
    fewest = min(len(values) for values in rows[0].scores.values())
    count = fewest if fewest <= EACH else GROUPS
    score = np.zeros((len(rows), count))
    for part, weight in rows[0].weights.items():
        values = np.stack([each.scores[part] for each in rows])
        groups = np.array_split(values, count, axis=1)
        share = count / values.shape[1]
        score += weight * share * np.stack([group.sum(1) for group in groups], 1)
    result = np.repeat(gains, count, axis=1)
    result[..., 0] += sign * (score - score.mean(1, keepdims=True))
    return result


def _lost_promise(
    comparison: ComparedRuns, entries: Sequence[MaskRuns], seeds: Sequence[int], sign: float
) -> Interval | None:
    """Mean of (score in the search - fresh score), positive where the search had flattered."""
    promised = {n: score for n, score in comparison.promised.items() if score is not None}
    chosen = [entry for entry in entries if entry.name in promised]
    if not chosen:
        return None
    left = [
        float(np.mean([sign * (promised[e.name] - e.scores[s]) for e in chosen])) for s in seeds
    ]
    rows: list[RowScores] = []
    if all(seed in entry.rows for entry in chosen for seed in seeds):
        shares = [-sign / len(chosen)] * len(chosen)
        rows = [_mix_rows([entry.rows[seed] for entry in chosen], shares) for seed in seeds]
    return estimate(left, rows=rows)


def volumes_of(gains: Floats, rows: Mapping[int, RowScores]) -> SeedVolumes:
    """Hypervolumes of one arm; `gains` as those of `jackknife`."""
    single = [dominated_volume(gains[:, draw]) for draw in range(gains.shape[1])]
    return SeedVolumes(dict(enumerate(jackknife(gains).tolist())), dict(enumerate(single)), rows)


def compare_volumes(volumes: Mapping[str, SeedVolumes]) -> dict[str, VolumeFinding]:
    """The searched hypervolume against each other arm's, paired over seeds (Holm, 5%)."""
    if "searched" not in volumes:
        return {}
    searched = volumes["searched"]
    return judge_volumes(
        [name for name in volumes if name != "searched"],
        lambda name, level: _volume_difference(searched, volumes[name], level),
    )


def _volume_difference(mine: SeedVolumes, other: SeedVolumes, level: float) -> PairedDifference:
    """The difference of two hypervolumes, which two paired t-tests must agree on.

    That of the jackknife's pseudo-values alone claims too often where the masks of a front are
    nearly equal (its error is then taken too small), that of single seeds where one front has
    more nearly equal masks than the other (their noise adds to its size). The p-value is the
    larger one, the interval spans both.
    """
    whole, each = (
        paired_difference(*pair, level, rows_a=mine.rows, rows_b=other.rows)
        for pair in ((mine.corrected, other.corrected), (mine.single, other.single))
    )
    p_value = max(whole.p_value, each.p_value) if whole.value * each.value > 0 else 1.0
    if math.isnan(whole.p_value) or math.isnan(each.p_value):
        p_value = math.nan
    return replace(
        whole, low=min(whole.low, each.low), high=max(whole.high, each.high), p_value=p_value
    )


# -- hypervolume ----------------------------------------------------------------------------------
def jackknife(gains: Floats) -> Floats:
    """Pseudo-values of the hypervolume of means: their mean is it without most of its bias.

    The hypervolume of noisy means is too large, because their maximum is. `S * f(all) - (S - 1) *
    f(all but one)` has that bias in the order of 1 / S^2, and its mean over seeds a t-interval.

    Args:
        gains: `[masks, seeds, objectives]`.

    Returns:
        One pseudo-value a seed; of one seed the hypervolume itself.

    Reference: Quenouille, Biometrika 43, 353 (1956); Tukey, Annals of Mathematical Statistics 29,
    614 (1958).
    """
    seeds = gains.shape[1]
    whole = dominated_volume(gains.mean(1))
    if seeds < 2:
        return np.full(seeds, whole)
    without = [dominated_volume(np.delete(gains, seed, 1).mean(1)) for seed in range(seeds)]
    values: Floats = seeds * whole - (seeds - 1) * np.asarray(without)
    return values


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


def _mix_rows(rows: Sequence[RowScores], shares: Sequence[float]) -> RowScores:
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
def _draw_means(gains: Floats, rows: Floats | None = None, draws: int = DRAWS) -> Floats:
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
    means: Floats = centre + np.einsum("ds,mso->dmo", weights, gains - centre[:, None])
    if rows is not None:
        values, vectors = np.linalg.eigh(rows)
        noise = random.standard_normal((draws, len(rows)))
        means[..., 0] += noise @ (vectors * np.sqrt(values.clip(0))).T
    return means


def membership(gains: Floats, rows: Floats | None = None, draws: int = DRAWS) -> Floats:
    """The probability of each mask to be on the front of the true means.

    Args:
        gains: `[masks, seeds, objectives]`.
        rows: See `_draw_means`.
        draws: Of the means.

    Returns:
        float `[masks]` in [0, 1]: the share of draws in which no other mask dominates it; NaN for
        fewer than 2 seeds.
    """
    if gains.shape[1] < 2:
        return np.full(len(gains), math.nan)
    drawn = [on_front(means) for means in _draw_means(gains, rows, draws)]
    result: Floats = np.mean(drawn, axis=0)
    return result


# -- words -------------------------------------------------------------------------------------
def describe_fronts(fronts: ComparedFronts | None, objectives: Sequence[Objective]) -> list[str]:
    """The front of the search in plain sentences with their numbers; details are indented."""
    if fronts is None:
        return []
    searched = fronts.arms.get("searched")
    if searched is None:
        return ["No mask of the search's front has a finished run."]
    others = " and ".join(
        f"{len(arm.masks)} {name}" for name, arm in fronts.arms.items() if name != "searched"
    )
    masks, seeds = len(searched.masks), len(fronts.seeds)
    common = f"{seeds} common seed{'s' * (seeds != 1)}"
    if fronts.groups:
        common = f"{fronts.groups} groups of rows, since every seed gives the same scores"
    lines = [
        f"The front of the search, judged again: {masks} mask{'s' * (masks != 1)} beside "
        f"{others or 'no others'}, {common}; {len(searched.front)} on the front of their own "
        "means."
    ]
    details = [_promise_line(fronts, objectives[0]), *_chance_lines(fronts, searched)]
    volumes = ", ".join(
        f"{name} {arm.hypervolume.text() if arm.front else '0 (nothing learned)'}"
        for name, arm in fronts.arms.items()
    )
    worst = ", ".join(f"{o.name} {o.worst:g}" for o in objectives)
    details.append(f"hypervolume from {worst} with 95% intervals: {volumes}")
    drawn = "rows" if fronts.groups else "seeds"
    details += [_volume_line(finding, drawn) for finding in fronts.findings]
    return lines + ["  " + line for line in details if line]


def _promise_line(fronts: ComparedFronts, score: Objective) -> str:
    """States how much of the search's scores fresh runs lost."""
    lost = fronts.lost
    if lost is None:
        return (
            "the search had scored its masks by another protocol, so what it promised cannot be "
            "compared"
        )
    shown = lost.text(signed=True)
    text = f"the search's own scores minus these: {shown} {score.name}, mean over its masks"
    if math.isnan(lost.low):
        return f"{text}, without an interval"
    if lost.low > 0:
        return f"{text}: so much is lost; a front is chosen by its luck too"
    if lost.high < 0:
        return f"{text}: it had promised less"
    return f"{text}: no loss that these seeds can tell"


def _chance_lines(fronts: ComparedFronts, searched: Arm) -> list[str]:
    """How many of the search's masks are on the true front, and which probably are not."""
    chances = {name: fronts.chances[name] for name in searched.masks}
    if any(map(math.isnan, chances.values())):
        return ["one seed does not show which masks are on the true front"]
    sure = sum(chance >= SURE for chance in chances.values())
    doubted = {name: chance for name, chance in chances.items() if chance < DOUBTFUL}
    line = (
        f"on the true front of all masks judged here with a probability of {SURE:.0%} or more: "
        f"{sure} of {len(chances)}"
    )
    if doubted:
        named = ", ".join(f"{name} ({chance:.2f})" for name, chance in doubted.items())
        line += f"; rather not than yes: {named}"
    return [line]


def _volume_line(finding: VolumeFinding, drawn: str) -> str:
    """One comparison of hypervolumes, over seeds or rows."""
    d = finding.difference
    name = f"hypervolume, searched minus {finding.against}"
    if d.n < CLAIM_SEEDS:
        return (
            f"{name}: {format_estimate(d.value, signed=True)}; {d.n} common {drawn} decide "
            f"nothing, {'run' if drawn == 'seeds' else 'take'} {CLAIM_SEEDS} or more"
        )
    return f"{name}: {d.text(signed=True)}, p {format_p(finding.adjusted)}, {finding.outcome}"
