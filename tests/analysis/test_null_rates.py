"""How often the verdict claims something of equal masks, and of different ones, by simulation.

`python -m pytest -m "slow or nightly" tests/analysis/test_null_rates.py -s` prints the tables of
docs/results/verdict_rates.txt, and fails where it holds other figures; docs/statistics.md
shows rows of them. Draws are made by the thousand with numpy; that this decides as the project's
own code does is tested on some of them.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from masksearch import Comparison, masks
from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.stats import PairedDifference, holm, paired_difference, power
from masksearch.contracts import Evaluate, Objective, Record

Floats = NDArray[np.float64]
Pairs = list[tuple[int, int]]  # (mask, the one that it is compared with), places in the scores

DRAWS = 20_000
ALLOWED = 0.06  # share of comparisons of equal masks that may hold any claim
SEEDS = (3, 5, 10)
SD = 0.0082  # over seeds, of the mean GLUE score of the masks of experiment 01
SCORE = Objective("glue", "max", 0.0)
DOCS = Path(__file__).parents[2] / "docs"
TABLES = DOCS / "results" / "verdict_rates.txt"
FAMILIES = dict(
    strided=0.57, longformer=0.59, fixed=0.66, log_sparse=0.72, bigbird=0.75, star=0.85
)
SEARCHED = {1: [0.85], 4: [0.57, 0.66, 0.75, 0.85]}  # how many searched masks -> sparsities
NAMED = (3, 5)  # masks named by a user, each against every other and dense attention
Setting = dict[str, tuple[str, float]]  # mask -> what it is, sparsity


def below(limit: float, draws: int = DRAWS) -> float:
    """The limit, and three standard errors of a rate found in so many draws."""
    return limit + 3 * math.sqrt(limit * (1 - limit) / draws)


# -- the project's own verdict ------------------------------------------------------------------
def setting(searched: int) -> Setting:
    """9 masks with 3 comparisons, or 15 with 12."""
    found: Setting = {}
    for at, sparsity in enumerate(SEARCHED[searched]):
        found[f"found {at}"] = ("searched", sparsity)
        found[f"random {at}"] = ("control", sparsity)
    hands: Setting = {n: ("hand-designed", s) for n, s in FAMILIES.items()}
    return found | hands | {"dense": ("control", 0.0)}


def named_setting(size: int) -> Setting:
    """Masks that a user names, and dense attention: 6 comparisons of 3, 15 of 5."""
    mine: Setting = {f"mine {at}": ("candidate", 0.5 + at / 10) for at in range(size)}
    return mine | {"dense": ("control", 0.0)}


def judge(compared: Setting, scores: Floats) -> list[Any]:
    """Findings of a comparison; `scores` are `[masks, seeds]`."""
    return comparison_of(compared, scores).findings()


def comparison_of(compared: Setting, scores: Floats) -> Comparison:
    """A comparison of masks with those scores, `[masks, seeds]`."""
    records: list[Record] = []
    for (name, (_, sparsity)), row in zip(compared.items(), scores, strict=True):
        mask = masks.random_keys(2, seed=0) if name.startswith("random") else masks.star()
        for seed, score in enumerate(row):
            records.append(
                Record(
                    len(records), "done", Evaluate(mask), seed=seed, protocol="p",
                    fingerprint=name, measures={"sparsity": sparsity},
                    name=name, values={"glue": float(score)},
                )
            )  # fmt: skip
    kinds = {name: kind for name, (kind, _) in compared.items()}
    against = "named" if "candidate" in kinds.values() else "nearest"
    return Comparison(tuple(records), (SCORE,), kinds=kinds, against=against)


def declared(compared: Setting) -> Pairs:
    """The comparisons that the verdict declares, the hand-designed opponents first."""
    names = list(compared)
    some = np.random.default_rng(0).normal(size=(len(names), 3))
    pairs = [(names.index(f.mask), names.index(f.against)) for f in judge(compared, some)]
    return sorted(pairs, key=lambda pair: names[pair[1]] not in FAMILIES)


# -- the same, thousands at a time --------------------------------------------------------------
def rejected(t: Floats, df: int) -> NDArray[np.bool_]:
    """Holm's step-down test at 5 %; `t` is `[draws, comparisons]` of Student's t."""
    size = t.shape[1]
    order = np.argsort(-np.abs(t), axis=1)
    edges = scipy_stats.t.isf(0.025 / (size - np.arange(size)), df)
    enough = np.take_along_axis(np.abs(t), order, 1) >= edges
    found = np.zeros(t.shape, bool)
    np.put_along_axis(found, order, np.logical_and.accumulate(enough, 1), 1)
    return found


def claims(scores: Floats, pairs: Pairs) -> Floats:
    """+1 better, -1 worse, 0 no claim, `[draws, comparisons]`.

    `scores` are `[draws, masks, seeds]`.
    """
    mine, others = np.transpose(pairs)
    d = scores[:, mine] - scores[:, others]
    gaps = np.diff(np.sort(d, axis=2), axis=2)
    gaps = np.where(gaps > 1e-9, gaps, np.inf).min(2)  # unknown ticks show by repetition
    sd = np.maximum(d.std(2, ddof=1), np.where(np.isinf(gaps), 0, gaps))
    usable = sd > 1e-9
    t = np.where(usable, d.mean(2) / np.where(usable, sd, 1), 0) * math.sqrt(d.shape[2])
    return np.sign(t) * rejected(t, d.shape[2] - 1)


def pooled_claims(scores: Floats, pairs: Pairs) -> Floats:
    """The same by an error pooled over all masks, which the verdict does not use."""
    mine, others = np.transpose(pairs)
    _, size, seeds = scores.shape
    means = scores.mean(2, keepdims=True)
    rest = scores - means - scores.mean(1, keepdims=True) + scores.mean((1, 2), keepdims=True)
    df = (size - 1) * (seeds - 1)
    error = np.sqrt(2 * (rest**2).sum((1, 2)) / df / seeds)[:, None]
    t = (means[:, mine, 0] - means[:, others, 0]) / error
    return np.sign(t) * rejected(t, df)


# -- equal masks --------------------------------------------------------------------------------
Draw = Callable[[np.random.Generator, tuple[int, int, int]], Floats]  # draws, masks, seeds


def rows_counted(rows: int) -> Draw:
    """Accuracies: every run is right on its own binomial number of rows."""
    return lambda draws, shape: draws.binomial(rows, 0.6, shape) / rows


def rows_rounded(rows: int, sd: float) -> Draw:
    """Accuracies whose sd over seeds is as measured: rounded to one row more or less."""

    def draw(draws: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
        start = draws.random((shape[0], 1, 1))
        return np.round(0.6 * rows + start + rows * sd * draws.normal(size=shape)) / rows

    return draw


def plateau(draws: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """15 % of the runs have not learned."""
    return np.where(draws.random(shape) < 0.15, 0.5, 0.6 + SD * draws.normal(size=shape))


def seed_effect(draws: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """0.8 of the sd is common to all masks of a seed."""
    common = draws.normal(size=(shape[0], 1, shape[2]))
    return 0.6 + SD * (0.8 * common + 0.6 * draws.normal(size=shape))


def unequal(draws: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """The sd differs by mask, from a quarter to four times."""
    sds = 4.0 ** draws.uniform(-1, 1, (*shape[:2], 1))
    return 0.6 + SD * sds * draws.normal(size=shape)


def one_sided(draws: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Every second mask has a long tail to one side, the others hardly vary; equal means."""
    sds = np.where(np.arange(shape[1]) % 2, 1, 0.1)[:, None]
    return 0.6 + SD * sds * (draws.exponential(size=shape) - 1)


EQUAL: dict[str, Draw] = {
    "normal": lambda draws, shape: 0.6 + SD * draws.normal(size=shape),
    "seed effect 0.8": seed_effect,
    "heavy tails, t(3)": lambda draws, shape: 0.6 + SD * draws.standard_t(3, size=shape),
    "plateau, 15 % of runs": plateau,
    "unequal sd, 1/4 to 4": unequal,
    **{f"accuracy, {rows} rows": rows_counted(rows) for rows in (71, 277, 408, 1000)},
    **{f"{rows} rows, sd {SD}": rows_rounded(rows, SD) for rows in (71, 277, 408, 1000)},
    "277 rows, sd half a row": rows_rounded(277, 0.5 / 277),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_draws_are_decided_as_the_verdict_does(name):
    draws = np.random.default_rng(1)
    for compared, seeds, repeats in (
        (setting(1), 3, 6),
        (setting(4), 5, 2),
        (named_setting(3), 3, 2),
    ):
        names, pairs = list(compared), declared(compared)
        scores = EQUAL[name](draws, (repeats, len(names), seeds))
        scores[::2, 0] += 8 * SD  # so that there are claims to agree on
        for decided, one in zip(claims(scores, pairs), scores, strict=True):
            findings = judge(compared, one)
            for each in findings:  # an interval excludes 0 exactly where Holm's test claims
                beyond = each.difference.low > 0 or each.difference.high < 0
                assert beyond == (each.outcome != "not distinguishable")
            own = {(f.mask, f.against): f.outcome for f in findings}
            words = {1: "better", -1: "worse", 0: "not distinguishable"}
            assert own == {
                (names[a], names[b]): words[int(claim)]
                for (a, b), claim in zip(pairs, decided, strict=True)
            }


def test_few_draws_of_equal_masks():
    for name in ("normal", "277 rows, sd half a row"):
        scores = EQUAL[name](np.random.default_rng(0), (4000, 9, 3))
        assert claims(scores, declared(setting(1))).any(1).mean() <= below(ALLOWED, 4000), name


def rates(decide: Callable[[Floats, Pairs], Floats], draw: Draw) -> list[tuple[float, float]]:
    """Shares with any claim, and with one of "better than a hand-designed mask".

    Of 3, 5 and 10 seeds, each with 9 masks (3 comparisons) and 15 (12).
    """
    draws = np.random.default_rng(0)
    found = []
    for seeds in SEEDS:
        for searched in SEARCHED:
            scores = draw(draws, (DRAWS, len(setting(searched)), seeds))
            decided = decide(scores, declared(setting(searched)))
            better = decided[:, :searched] > 0
            found.append((float(decided.any(1).mean()), float(better.any(1).mean())))
    return found


CASES = " | ".join(f"{seeds} seeds, {size} masks" for seeds in SEEDS for size in (9, 15))


def show(head: str, rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Prints a table in Markdown, and finds it among those that are kept."""
    lines = [
        f"| {' | '.join(cells)} |" for cells in (head.split(" | "), *([n, *c] for n, c in rows))
    ]
    lines.insert(1, "|---" * (len(rows[0][1]) + 1) + "|")
    text = "\n".join(lines)
    print(f"\n\n{text}")
    assert text in TABLES.read_text(encoding="utf-8"), f"{TABLES.name} has another table"


def test_the_page_shows_rows_of_the_tables():
    part = (DOCS / "statistics.md").read_text("utf-8").partition("## How often a verdict errs")[2]
    page, kept = (
        {line for line in text.splitlines() if line.startswith("| ")}
        for text in (part, TABLES.read_text("utf-8"))
    )
    assert len(page) > 10
    assert not page - kept


@pytest.mark.nightly
def test_equal_masks():
    found = {name: rates(claims, draw) for name, draw in EQUAL.items()}
    beyond = rates(claims, one_sided)
    show(
        f"any claim / better than a hand-designed one | {CASES}",
        [
            (name, [f"{any_claim:.3f} / {better:.3f}" for any_claim, better in each])
            for name, each in (found | {"one-sided tails against steady masks": beyond}).items()
        ],
    )
    worst = {name: max(any_claim for any_claim, _ in each) for name, each in found.items()}
    assert {name: rate for name, rate in worst.items() if rate > below(ALLOWED)} == {}


@pytest.mark.nightly
def test_equal_masks_that_a_user_names():
    compared = {size: named_setting(size) for size in NAMED}
    found: dict[str, list[float]] = {}
    for name, draw in EQUAL.items():
        draws = np.random.default_rng(0)
        found[name] = [
            float(claims(draw(draws, (DRAWS, size + 1, seeds)), pairs).any(1).mean())
            for seeds in SEEDS
            for size, pairs in ((size, declared(each)) for size, each in compared.items())
        ]
    cases = " | ".join(f"{seeds} seeds, {size} masks" for seeds in SEEDS for size in NAMED)
    show(
        f"any claim, masks named | {cases}",
        [(name, [f"{rate:.3f}" for rate in each]) for name, each in found.items()],
    )
    worst = {name: max(each) for name, each in found.items()}
    assert {name: rate for name, rate in worst.items() if rate > below(ALLOWED)} == {}


@pytest.mark.nightly
def test_equal_masks_by_the_pooled_error():
    names = ["normal", "heavy tails, t(3)", "plateau, 15 % of runs", "unequal sd, 1/4 to 4"]
    found = {name: rates(pooled_claims, EQUAL[name]) for name in names}
    show(
        f"any claim, by the pooled error | {CASES}",
        [(name, [f"{any_claim:.3f}" for any_claim, _ in each]) for name, each in found.items()],
    )
    assert max(any_claim for any_claim, _ in found["normal"]) <= below(ALLOWED)


# -- masks that are equal in the population, and share the rows of a sample ---------------------
def answer_rows(
    draws: np.random.Generator, shape: tuple[int, int, int, int], between: float, within: float
) -> NDArray[np.bool_]:
    """Whether each run answers each row rightly, `[draws, masks, seeds, rows]`.

    70 % of the answers are right. A mask has its own answer to some rows, and a run to others,
    so many that runs of two masks disagree on `between` of the rows and two of one on `within`.
    """
    repeats, size, _, rows = shape

    def bytes_of(*shape: int) -> NDArray[np.uint8]:
        return np.frombuffer(draws.bytes(math.prod(shape)), np.uint8).reshape(shape)

    right = round(256 * 0.7)
    kept = 1 - within / 0.42  # 0.42 = 2 * 0.7 * 0.3: independent answers differ on so many
    by_run = round(256 * (1 - math.sqrt(kept)))
    by_mask = round(256 * (1 - math.sqrt((1 - between / 0.42) / kept)))
    answers = bytes_of(repeats, 1, rows) < right
    own = bytes_of(repeats, size, rows) < by_mask
    answers = np.where(own, bytes_of(repeats, size, rows) < right, answers)[:, :, None]
    own = bytes_of(*shape) < by_run
    return np.where(own, bytes_of(*shape) < right, answers)


def error_parts(right: NDArray[np.bool_], a: int, b: int) -> tuple[Floats, Floats, Floats]:
    """Mean difference of two masks, and the parts of its variance: over seeds, over rows."""
    d = right[:, a].astype(np.int8) - right[:, b].astype(np.int8)
    _, seeds, rows = d.shape
    by_seed, by_row = d.mean(2), d.sum(1, dtype=np.int16) / seeds
    mean = by_seed.mean(1)
    square = (d != 0).sum((1, 2)) + seeds * rows * mean**2
    rest = square - rows * (by_seed**2).sum(1) - seeds * (by_row**2).sum(1)
    rest /= (seeds - 1) * (rows - 1)
    over_rows = np.maximum(0, by_row.var(1, ddof=1) - rest / seeds) / rows
    over_seeds = np.maximum(by_seed.var(1, ddof=1), 1 / rows**2) / seeds
    return mean, over_seeds, over_rows


def edges_of(
    parts: Sequence[Floats], dfs: Sequence[int], ts: Sequence[float], alpha: float
) -> dict[str, Floats]:
    """The least difference that is a claim, by three rules; `parts` over seeds, over rows."""
    both = parts[0] + parts[1]
    df = both**2 / (parts[0] ** 2 / dfs[0] + parts[1] ** 2 / dfs[1])
    return {
        "seeds alone": ts[0] * np.sqrt(parts[0]),
        "Satterthwaite": scipy_stats.t.isf(alpha, df) * np.sqrt(both),
        "the verdict": np.sqrt(ts[0] ** 2 * parts[0] + ts[1] ** 2 * parts[1]),
    }


def shared_row_claims(right: NDArray[np.bool_], pairs: Pairs) -> dict[str, NDArray[np.bool_]]:
    """Whether any comparison holds a claim, by three rules; Holm's first step decides that."""
    seeds, rows = right.shape[2:]
    alpha = 0.025 / len(pairs)
    ts = tuple(float(scipy_stats.t.isf(alpha, n - 1)) for n in (seeds, rows))
    found: dict[str, list[NDArray[np.bool_]]] = {}
    for a, b in pairs:
        mean, *parts = error_parts(right, a, b)
        for rule, edge in edges_of(parts, (seeds - 1, rows - 1), ts, alpha).items():
            found.setdefault(rule, []).append(np.abs(mean) > edge)
    return {rule: np.any(each, 0) for rule, each in found.items()}


def test_row_draws_are_decided_as_paired_difference_does():
    right = answer_rows(np.random.default_rng(0), (6, 3, 4, 500), 0.29, 0.17)
    pairs = [(0, 1), (0, 2)]
    right[::2, 0, :, :90] = True
    decided = shared_row_claims(right, pairs)["the verdict"]
    for one, claim in zip(right.astype(float), decided, strict=True):
        runs = [
            {s: RowScores({"RTE": row}, {"RTE": 1.0}, {"RTE": "a"}) for s, row in enumerate(each)}
            for each in one
        ]
        scores = [{seed: rows.score for seed, rows in each.items()} for each in runs]
        p_values = [
            paired_difference(scores[a], scores[b], rows_a=runs[a], rows_b=runs[b]).p_value
            for a, b in pairs
        ]
        assert (min(holm(p_values)) <= 0.05) == claim
    assert 0 < decided.sum() < 6


@pytest.mark.nightly
def test_equal_masks_that_share_rows():
    draws, batch, rows = 1000, 20, 1000
    source = np.random.default_rng(0)
    lines: dict[tuple[str, str], list[str]] = {}
    worst = 0.0
    for between, within in ((0.29, 0.17), (0.23, 0.19), (0.20, 0.19)):
        for seeds in SEEDS:
            for searched in SEARCHED:
                pairs, size = declared(setting(searched)), len(setting(searched))
                hits: dict[str, float] = {}
                for _ in range(draws // batch):
                    right = answer_rows(source, (batch, size, seeds, rows), between, within)
                    for rule, claim in shared_row_claims(right, pairs).items():
                        hits[rule] = hits.get(rule, 0) + float(claim.sum()) / draws
                for rule, rate in hits.items():
                    case = (
                        f"{100 * between:.0f} % between masks, {100 * within:.0f} % between seeds"
                    )
                    lines.setdefault((case, rule), []).append(f"{rate:.3f}")
                worst = max(worst, hits["the verdict"])
    table = [(f"{case}: {rule}", cells) for (case, rule), cells in lines.items()]
    show(f"rows answered otherwise: rule | {CASES}", table)
    assert worst <= below(0.07, draws)


# -- masks whose loss is the margin -------------------------------------------------------------
ROWS_THERE, MARGIN, PAIRED = 730, 0.01, SD * math.sqrt(2)  # rows, margin, sd of a difference
ROW_EFFECTS = {  # error over rows, in errors of the mean over three seeds
    "no row effect": 0.0,
    "rows err as much as 3 seeds": 1.0,
    "rows err thrice as much": 3.0,
}


def gains_at(
    draws: np.random.Generator, gain: float, shape: tuple[int, int], seeds: int, rows: float
) -> tuple[Floats, Floats, Floats]:
    """Mean gains of independent masks, and the parts of their variance as they are estimated.

    The sums of squares of a balanced design of normal effects are independent of one another and
    of the mean, so that they are drawn at once.

    Args:
        draws: Random numbers.
        gain: The true one.
        shape: Draws, masks.
        seeds: Of each.
        rows: Error over rows, see `ROW_EFFECTS`.
    """
    row = rows * PAIRED * math.sqrt(ROWS_THERE / 3)  # sd of a row's own effect
    rest = 0.3  # sd of what neither explains
    dfs = (seeds - 1, ROWS_THERE - 1, (seeds - 1) * (ROWS_THERE - 1))
    expected = (PAIRED**2 + rest**2 / ROWS_THERE, seeds * row**2 + rest**2, rest**2)
    squares = [m * draws.chisquare(df, shape) / df for m, df in zip(expected, dfs, strict=True)]
    error = math.sqrt(expected[0] / seeds + row**2 / ROWS_THERE)
    over_rows = np.maximum(0, squares[1] - squares[2]) / seeds / ROWS_THERE
    over_seeds = np.maximum(squares[0], 1 / ROWS_THERE**2) / seeds
    return gain + error * draws.normal(size=shape), over_seeds, over_rows


def margin_claims(
    means: Floats, parts: Sequence[Floats], seeds: int, edge: float, sign: int
) -> NDArray[np.bool_]:
    """Whether any mask is said to gain more than an edge (sign 1), or less (-1); Holm's first
    step decides that."""
    alpha = 0.025 / means.shape[1]
    ts = [float(scipy_stats.t.isf(alpha, n - 1)) for n in (seeds, ROWS_THERE)]
    half = np.sqrt(ts[0] ** 2 * parts[0] + ts[1] ** 2 * parts[1])
    return (sign * (means - edge) > half).any(1)


@pytest.mark.slow
def test_margins_are_decided_as_the_package_does():
    draws = np.random.default_rng(0)
    for seeds, rows in ((3, 0.0), (5, 1.0), (5, 3.0)):
        means, *parts = gains_at(draws, -MARGIN / 2, (40, 3), seeds, rows)
        decided = margin_claims(means, parts, seeds, -MARGIN, 1)
        for mean, over_seeds, over_rows, claim in zip(means, *parts, decided, strict=True):
            found = [
                PairedDifference(
                    float(m),
                    errors=(
                        SimpleNamespace(variance=s, df=seeds - 1),
                        SimpleNamespace(variance=r, df=ROWS_THERE - 1),
                    ),
                )
                for m, s, r in zip(mean, over_seeds, over_rows, strict=True)
            ]
            p_values = holm([each.p_above(-MARGIN) for each in found])
            assert (min(p_values) <= 0.025) == claim


@pytest.mark.nightly
def test_masks_whose_loss_is_the_margin():
    draws, cases = np.random.default_rng(0), [(n, s) for n in (1, 9, 18, 30) for s in (3, 5)]
    false: dict[str, list[str]] = {}
    true: dict[str, list[str]] = {}
    for name, rows in ROW_EFFECTS.items():
        for size, seeds in cases:
            at_edge = gains_at(draws, -MARGIN, (DRAWS, size), seeds, rows)
            at_most, more = (
                float(margin_claims(at_edge[0], at_edge[1:], seeds, -MARGIN, sign).mean())
                for sign in (1, -1)
            )
            assert max(at_most, more) <= below(0.025), (name, size, seeds)
            false.setdefault(name, []).append(f"{at_most:.3f} / {more:.3f}")
            as_good = gains_at(draws, 0.0, (DRAWS, size), seeds, rows)
            first = [as_good[0][:, :1], *(part[:, :1] for part in as_good[1:])]
            alpha = 0.025 / size
            ts = [float(scipy_stats.t.isf(alpha, n - 1)) for n in (seeds, ROWS_THERE)]
            half = np.sqrt(ts[0] ** 2 * first[1] + ts[1] ** 2 * first[2])
            true.setdefault(name, []).append(f"{float((first[0] + MARGIN > half).mean()):.2f}")
    head = " | ".join(f"{size} masks, {seeds} seeds" for size, seeds in cases)
    show(f'any false "loses at most" / "more than" | {head}', list(false.items()))
    show(f'a mask that loses nothing "loses at most" | {head}', list(true.items()))


# -- runs that diverge --------------------------------------------------------------------------
@pytest.mark.slow
def test_a_mask_that_diverges_in_its_worst_fifth_is_not_better():
    cells: dict[str, list[str]] = {}
    rules = {
        "left out": None,
        "counted, worst 0": Objective("glue", "max", 0.0),
        "counted, worst 0.55": Objective("glue", "max", 0.55),
        "counted, worst -inf": Objective("glue", "max", -math.inf),
    }
    for seeds in SEEDS:
        scores = EQUAL["normal"](np.random.default_rng(0), (4000, 2, seeds))
        lost = scores[:, 0] < 0.6 + SD * scipy_stats.norm.ppf(0.2)
        for rule, objective in rules.items():
            if objective is None:
                kept = [
                    {seed: score for seed, score in enumerate(one) if not gone[seed]}
                    for one, gone in zip(scores[:1000, 0], lost, strict=False)
                ]
                others = [dict(enumerate(one)) for one in scores[:1000, 1]]
                found = [paired_difference(a, b) for a, b in zip(kept, others, strict=True)]
                rate = float(np.mean([f.p_value <= 0.05 and f.value > 0 for f in found]))
            else:
                counted = scores.copy()
                for one, gone in zip(counted, lost, strict=True):
                    scores_left = [objective.worst, *one[1], *one[0, ~gone]]
                    one[0, gone] = min(score for score in scores_left if math.isfinite(score))
                rate = float((claims(counted, [(0, 1)]) > 0).mean())
                assert rate <= below(ALLOWED, 4000), (rule, seeds)
            cells.setdefault(rule, []).append(f"{rate:.3f}")
    head = " | ".join(f"{seeds} seeds" for seeds in SEEDS)
    show(f"diverged runs | {head}", list(cells.items()))


# -- different masks ----------------------------------------------------------------------------
@pytest.mark.nightly
def test_power():
    effects = (0.5, 1, 2, 4, 8)
    lines: list[tuple[str, list[str]]] = []
    for searched in SEARCHED:
        pairs, size = declared(setting(searched)), len(setting(searched))
        for seeds in SEEDS:
            cells = []
            for effect in effects:
                draws = np.random.default_rng(0)
                scores = EQUAL["normal"](draws, (DRAWS, size, seeds))
                scores[:, 0] += effect * SD
                rate = float((claims(scores, pairs)[:, 0] > 0).mean())
                cells.append(f"{rate:.2f}")
                alone = power(effect, seeds, len(pairs), sd=math.sqrt(2))
                assert rate >= alone - 0.02  # Holm's first level is the strictest
            lines.append((f"verdict, {size} masks, {seeds} seeds", cells))
    head = " | ".join(f"{effect} sd" for effect in effects)
    show(f"rule | {head}", lines)


@pytest.mark.slow
def test_detectable_difference_is_detected():
    edge, seeds, sd, over_rows = 0.033, 5, 0.0116, math.sqrt(0.04 / 1000)
    source = np.random.default_rng(0)
    d = edge + sd * source.normal(size=(DRAWS, seeds)) + over_rows * source.normal(size=(DRAWS, 1))
    t, z = scipy_stats.t.isf(0.025 / 3, seeds - 1), scipy_stats.norm.isf(0.025 / 3)
    half = np.sqrt(t**2 * d.var(1, ddof=1) / seeds + z**2 * over_rows**2)
    found = power(edge, seeds, 3, sd=sd, row_error=over_rows)
    assert (d.mean(1) > half).mean() == pytest.approx(found, abs=0.015)


# -- the mask that is taken ---------------------------------------------------------------------
Scores = Callable[[np.random.Generator, tuple[int, int]], Floats]  # of one mask: draws, seeds


def steady(mean: float, sd: float = 0.01) -> Scores:
    """Runs that vary a little."""
    return lambda draws, shape: mean + sd * draws.normal(size=shape)


def fails_at_times(draws: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """A fifth of the runs hardly begins to learn (.15), the others reach .76; mean .638."""
    return np.where(draws.random(shape) < 0.2, 0.15, 0.76 + 0.07 * draws.normal(size=shape))


MIXED = "a fifth at .15, else .76"
PAIRS: dict[str, tuple[Scores, float, Scores, float]] = {  # searched, its true mean; hand-designed
    "equal, sd .01": (steady(0.83), 0.83, steady(0.83), 0.83),
    "equal means: .638; " + MIXED: (steady(0.638), 0.638, fails_at_times, 0.638),
    ".83; .45, sd .25": (steady(0.83), 0.83, steady(0.45, 0.25), 0.45),
    ".83; .82": (steady(0.83), 0.83, steady(0.82), 0.82),
    ".82; .83": (steady(0.82), 0.82, steady(0.83), 0.83),
    ".819; " + MIXED: (steady(0.819), 0.819, fails_at_times, 0.638),
    MIXED + "; .83": (fails_at_times, 0.638, steady(0.83), 0.83),
}


def draw_pairs(name: str, draws: int, seeds: int) -> Floats:
    """Scores of a searched and a hand-designed mask, `[draws, 2, seeds]`."""
    source, (searched, _, hand, _) = np.random.default_rng(0), PAIRS[name]
    return np.stack([each(source, (draws, seeds)) for each in (searched, hand)], 1)


@pytest.mark.parametrize("name", PAIRS)
def test_the_mask_that_is_taken_is_the_better_mean_of_draws_too(name):
    compared: Setting = {"mine": ("searched", 0.5), "hand": ("hand-designed", 0.5)}
    for seeds in (3, 5):
        scores = draw_pairs(name, 5, seeds)
        for one, shown in zip(scores, claims(scores, [(0, 1)])[:, 0], strict=True):
            advice = comparison_of(compared, one).recommend()
            assert advice.outcome == {1: "better", -1: "worse", 0: "not told apart"}[int(shown)]
            assert advice.name == ["hand", "mine"][int(one[0].mean() > one[1].mean())]


@pytest.mark.nightly
def test_the_score_that_is_lost_by_the_mask_that_is_taken():
    draws, lines = 100_000, list[tuple[str, list[str]]]()
    for name, (_, mean, _, other) in PAIRS.items():
        cells = []
        for seeds in (3, 5):
            scores = draw_pairs(name, draws, seeds)
            shown = claims(scores, [(0, 1)])[:, 0]
            ahead = scores[:, 0].mean(1) > scores[:, 1].mean(1)
            lost = [
                max(mean, other) - np.where(taken, mean, other).mean()
                for taken in (ahead, shown > 0)
            ]
            cells += [f"{(shown > 0).mean():.3f} / {(shown < 0).mean():.3f}"]
            cells += [" / ".join(f"{each:.4f}" for each in lost)]
        lines.append((name, cells))
    heads = "shown better / worse", "lost by the better mean / by the shown one"
    cases = " | ".join(f"{head}, {seeds} seeds" for seeds in (3, 5) for head in heads)
    show(f"true means: searched; hand-designed | {cases}", lines)


@pytest.mark.nightly
def test_a_second_look_calls_equal_masks_better_more_often():
    scores = draw_pairs("equal, sd .01", 1_000_000, 5)
    first, second = (claims(scores[:, :, :seeds], [(0, 1)])[:, 0] > 0 for seeds in (3, 5))
    rates = first.mean(), (first | second).mean()
    show("equal masks are called better | one look, 3 seeds | or a second, 5 seeds",
         [("by", [f"{rate:.3f}" for rate in rates])])  # fmt: skip
