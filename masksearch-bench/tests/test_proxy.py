"""The proxy card: what it calls valid, what it refuses, and that it says why."""

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from masksearch import masks
from masksearch.contracts import Objective, Report
from masksearch.errors import SearchError, UnknownNameError
from masksearch_bench.proxy import observe, rate_proxy, tau_b

GOLDEN = json.loads((Path(__file__).parent / "proxy_card.json").read_text())
GOOD = {10: 0.0, 100: 1.0, 1000: 1.0}


def simulated(
    number: int = 24, seeds: int = 2, noise: float = 0.02, follows=GOOD, by_density: float = 0.0,
    alike: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """Losses of masks: `follows[step]` is the share of the final quality seen at a budget.

    `by_density` adds that much a nat of density; `alike` masks share each density.
    """
    random = np.random.default_rng(0)
    quality, other = random.normal(size=(2, number))
    density = np.repeat(np.geomspace(0.03, 0.97, number // alike), alike)
    rows = [
        (
            f"mask {i}", density[i], seed, step, "loss",
            5 - share * quality[i] - (1 - share) * other[i] + by_density * math.log(density[i])
            + noise * random.normal(),
        )
        for step, share in follows.items()
        for i in range(number)
        for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["mask", "density", "seed", "budget", "measure", "value"])


def card_of(table: pd.DataFrame, **options):
    return rate_proxy(table, **{"resamples": 200, **options})


def some_cells() -> pd.DataFrame:
    table = simulated(30, 3, 0.3, {10: 0.2, 100: 0.9, 1000: 1.0})
    return table[(table["seed"] != 2) | (table["mask"].str[5:].astype(int) % 3 == 0)]


@pytest.mark.parametrize(
    ("name", "table", "bands"),
    [
        ("follows", simulated(), 3),
        ("noisy", simulated(40, 3, 0.6, {10: 0.3, 100: 0.8, 1000: 1.0}), None),
        ("missing", some_cells(), 2),
        ("one seed", simulated(24, 1), 2),
    ],
)
def test_recorded_figures_have_not_moved(name, table, bands):
    """SOURCE: computed at 77cae22 on these arrays."""
    card, wanted = rate_proxy(table, bands=bands), GOLDEN[name]
    for row, expected in zip(card.frame.to_numpy().tolist(), wanted["rows"], strict=True):
        assert row[:4] == expected[:4]
        numbers = [math.nan if value is None else value for value in expected[4:]]
        assert row[4:] == pytest.approx(numbers, rel=1e-12, abs=1e-12, nan_ok=True)
    ends = [math.nan if value is None else value for value in wanted["ceiling"]]
    found = [card.ceiling.value, card.ceiling.low, card.ceiling.high]
    assert found == pytest.approx(ends, rel=1e-12, abs=1e-12, nan_ok=True)
    assert ({} if card.objections else card.valid_from) == wanted["valid_from"]
    assert card.verdict().splitlines()[0] == wanted["verdict"]


def test_agreement_that_is_all_density_is_not_valid():
    follows = {10: 0.0, 1000: 1.0}
    shared = card_of(simulated(40, 2, 0.01, follows, 30, alike=5), bands=8)
    assert abs(shared.frame["within"][0]) < 0.3
    assert shared.verdict().startswith("Not valid")
    own = card_of(simulated(40, 2, 0.01, follows, 30), bands=2)  # each has a density of its own
    assert own.frame["within_low"][0] > 0.9
    assert "use narrower bands" in own.verdict()


def test_a_proxy_that_fails_at_a_longer_budget_is_not_valid_before_it():
    late = card_of(simulated(follows={10: 1.0, 50: 0.0, 100: 1.0, 1000: 1.0}), bands=2)
    assert late.valid_from == {"one run": 100}
    card = card_of(simulated(follows={10: 1.0, 100: -1.0, 1000: 1.0}), bands=2)
    assert card.valid_from == {}
    assert "no correlation is shown" in card.verdict()


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (simulated(9), {"bands": 1}, "at least 10 masks in one band"),
        (simulated(seeds=1), {"bands": 2}, "the noise ceiling is unknown"),
        (simulated(noise=50.0), {"bands": 2}, "the interval includes 0"),
    ],
)
def test_what_cannot_be_decided_says_why(table, options, message):
    card = card_of(table, **options)
    assert not card.valid
    assert card.verdict().startswith("Not decided")
    assert message in " ".join(card.objections)


def test_another_target_is_judged_at_its_longest_budget():
    losses = simulated()
    last = losses[losses["budget"] == 1000]
    glue = last.assign(measure="glue", value=1 - last["value"] / 10, budget=1500)
    both = pd.concat([losses, glue])
    card = card_of(both, target="glue", bands=3)
    assert card.reference == ("one run", 1500)
    assert (card.frame["within"][2], card.valid_from) == (1, {"one run": 100})
    glue = [Objective("glue", "min", 1.0)]
    assert card_of(both, target="glue", objectives=glue, bands=3).frame["within"][2] == -1


def test_the_order_of_rows_changes_nothing_and_failures_are_counted():
    table = simulated(12)
    table.loc[0, "value"] = math.nan
    gone = (table["budget"] == 1000) & (
        (table["mask"] == "mask 4") | ((table["mask"] == "mask 3") & (table["seed"] == 1))
    )
    card = card_of(table[~gone], bands=1)
    assert card.left_out == {
        "values that are not finite": 1,
        "masks without the reference": 1,
        "missing (mask, seed) cells of the reference": 1,
    }
    assert len(card.masks) == 11
    again = card_of(table[~gone].sample(frac=1, random_state=0), bands=1)
    assert json.dumps(again.to_dict(), allow_nan=False) == json.dumps(card.to_dict())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"proxy": "los"}, UnknownNameError, "did you mean 'loss'"),
        ({"target": "glue"}, UnknownNameError, "unknown measure 'glue'"),
        ({"bands": 0}, ValueError, "at least 1 density band"),
        ({"fraction": 1.2}, ValueError, r"\(0, 1\]"),
        ({"resamples": 0}, ValueError, "at least 1"),
        ({"table": simulated(4).query("mask == 'mask 0'")}, SearchError, "at least 2 masks"),
        ({"table": simulated(4).query("budget == 1000")}, SearchError, "no other budget than"),
        ({"table": pd.concat([simulated(4), simulated(4, noise=1.0)])}, ValueError, "duplicate"),
        ({"table": {}}, SearchError, "no finished run"),
    ],
)
def test_messages(change, error, message):
    change = dict(change)
    table = change.pop("table", simulated(4))
    with pytest.raises(error, match=message):
        card_of(observe(table) if isinstance(table, dict) else table, **change)


# -- from records ----------------------------------------------------------------------------
@pytest.fixture
def ran(record):
    """Records of windows that learn at a pace of their own, whatever their density."""

    def make(steps: int, protocol: str, *, tuned: bool = False):
        random, found = np.random.default_rng(steps), []
        for reach in range(12):
            for seed in range(2):
                pace = 7 * reach % 12 / 1000
                curve = [
                    Report(step, {"loss": 5 - pace * step + 0.01 * random.normal()})
                    for step in sorted({10, 100, steps})
                ]
                last = dict(curve[-1].values)
                if tuned:
                    last |= {"glue": reach / 100, "SST-2": reach / 50, "SST-2/majority": 0.5}
                    curve.append(Report(steps + 60, last))
                found.append(
                    record(
                        len(found), None, masks.window(reach), status="done", seed=seed,
                        protocol=protocol, curve=tuple(curve), values=last, step=curve[-1].step,
                        name=f"window {reach}", role="compared",
                    )
                )  # fmt: skip
        return found

    return make


def budgets(card) -> list[tuple[str, int]]:
    return list(zip(card.frame["schedule"], card.frame["budget"], strict=True))


def test_the_curve_of_one_run_gives_its_lower_budgets(ran, record):
    runs = {"x": [*ran(1000, "p"), record(99, None, masks.star(), error="CUDA out of memory")]}
    card = card_of(observe(runs), bands=1)
    assert budgets(card) == [("one run", 10), ("one run", 100), ("one run", 1000)]
    assert set(card.masks) == {f"window {reach}" for reach in range(12)}
    assert card.left_out == {"runs that failed, were stopped or are not finished": 1}
    assert card.valid
    seeds = {str(seed): [r for r in runs["x"] if r.seed == seed] for seed in (0, 1)}
    assert card_of(observe(seeds), bands=1).to_dict() == card.to_dict()  # merged
    # a loss that fine-tuning only repeats is no budget
    tuned = card_of(observe({"x": ran(1000, "p", tuned=True)}), target="glue", bands=1)
    assert tuned.reference == ("one run", 1060)
    assert [budget for _, budget in budgets(tuned)] == [10, 100, 1000]


def test_runs_of_several_protocols_are_judged_at_their_ends_by_a_reference(ran):
    runs = {"short": ran(200, "a"), "long": ran(1000, "b")}
    both = {"both": [*runs["short"], *runs["long"]]}
    for recorded, reference, words in (
        (runs, None, r"2 protocols.*--reference RUN"),
        (runs, "lon", "got lon with 0 protocols"),
        (both, "both", "got both with 2 protocols"),
    ):
        with pytest.raises(SearchError, match=words):
            observe(recorded, reference)
    card = card_of(observe(runs, "long"), bands=1)
    assert budgets(card) == [("long", 1000), ("short", 200)]
    assert "Valid at 200 steps: loss" in card.verdict()
    assert card.reference == ("long", 1000)
    table = observe(runs, "long")
    table.loc[table["schedule"] == "short", "measure"] = "glue"
    with pytest.raises(UnknownNameError, match="unknown schedule with a glue"):
        card_of(table, target="glue")


def test_settings_that_are_judged_at_their_end_are_judged_one_by_one(ran):
    """As runs of several `--adapt`: one report each, steps that may agree."""

    def at_end(steps, protocol, step):
        runs = ran(steps, protocol)
        return [replace(r, curve=(Report(step, r.values),), step=step) for r in runs]

    full = at_end(1000, "full", 540)
    noise = [replace(r, values=other.values) for r, other in zip(full, full[::-1], strict=True)]
    short = [replace(r, protocol="short") for r in noise]
    runs = {"none": at_end(900, "none", 0), "short": short, "full": full}
    card = card_of(observe(runs, "full"), bands=1)
    assert sorted(budgets(card)) == [("full", 540), ("none", 0), ("short", 540)]
    assert "Valid at 0 steps (none)" in card.verdict()
    assert "short" not in card.verdict().splitlines()[0]
    with pytest.raises(SearchError, match="no curves"):
        observe({"none": runs["none"]})


# -- agreement within bands ------------------------------------------------------------------
FEW = settings(max_examples=40, deadline=None)
SMALL = st.integers(-3, 3).map(float) | st.just(math.nan)


@st.composite
def ranked(draw):
    """Two measures of some masks, with ties and missing values, their bands, and draws."""
    number = draw(st.integers(2, 12))
    values = st.lists(SMALL, min_size=number, max_size=number)
    whole = st.lists(st.integers(0, 2), min_size=number, max_size=number)
    bands = np.array(draw(whole))
    drawn = draw(st.lists(st.integers(0, number - 1), min_size=number, max_size=number))
    return np.array(draw(values)), np.array(draw(values)), bands, drawn


def oracle(x, y, bands) -> float:
    """Pooled over bands: (concordant - discordant) / sqrt(untied in x * untied in y)."""
    agreed = untied_x = untied_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        if bands[i] != bands[j] or not np.isfinite([x[i], x[j], y[i], y[j]]).all():
            continue
        product = (x[i] - x[j]) * (y[i] - y[j])
        agreed += int(product > 0) - int(product < 0)
        untied_x += x[i] != x[j]
        untied_y += y[i] != y[j]
    return agreed / math.sqrt(untied_x * untied_y) if untied_x and untied_y else math.nan


@pytest.mark.slow
@FEW
@given(ranked())
def test_tau_within_bands_matches_the_loop_over_pairs_of_drawn_masks(case):
    x, y, bands, drawn = case
    counts = np.stack([np.ones(len(x), int), np.bincount(drawn, minlength=len(x))])
    wanted = [oracle(x, y, bands), oracle(x[drawn], y[drawn], bands[drawn])]
    assert tau_b(x, y, bands, counts) == pytest.approx(wanted, nan_ok=True)
    known = np.isfinite(x + y)
    alone = tau_b(x[known], y[known], 0 * bands[known], np.ones((1, known.sum()), int))
    theirs = stats.kendalltau(x[known], y[known]).statistic if known.sum() > 1 else math.nan
    assert alone == pytest.approx(theirs, nan_ok=True)


@pytest.mark.nightly
def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Normal pairs have tau = 2/pi asin(rho); 100 samples of 40 masks, one seed."""
    random, truth, held = np.random.default_rng(1), 2 / math.pi * math.asin(0.7), 0
    for _ in range(100):
        x = random.normal(size=(40, 1))
        y = 0.7 * x + math.sqrt(1 - 0.49) * random.normal(size=(40, 1))
        row = card_of(of_tables(x, y), bands=1).frame.iloc[0]
        held += row["within_low"] <= truth <= row["within_high"]
    assert 89 <= held <= 100


def of_tables(short, long) -> pd.DataFrame:
    """The observations of two budgets, each `[masks, seeds]`."""
    rows = [
        (f"mask {m:02}", 0.5, seed, budget, "loss", value)
        for budget, table in ((10, short), (1000, long))
        for (m, seed), value in np.ndenumerate(table)
    ]
    return pd.DataFrame(rows, columns=["mask", "density", "seed", "budget", "measure", "value"])


def test_agreement_between_seeds_never_takes_a_seed_with_itself():
    x, y = np.random.default_rng(3).normal(size=(2, 15, 3))

    def mean_tau(one, other, pairs) -> float:
        return np.mean([stats.kendalltau(one[:, a], other[:, b]).statistic for a, b in pairs])

    ordered = list(itertools.permutations(range(3), 2))
    card = card_of(of_tables(x, y), bands=1)
    assert card.frame["between_seeds"][0] == pytest.approx(mean_tau(x, y, ordered))
    assert card.ceiling.value == pytest.approx(mean_tau(y, y, ordered))
    assert math.isnan(card_of(of_tables(x[:, :1], y[:, :1]), bands=1).ceiling.value)


@pytest.mark.slow
def test_too_few_masks_is_what_unrelated_rankings_reach_by_luck():
    """Against simulated permutations; nine masks of one band are too few, ten are enough."""
    assert card_of(simulated(9), bands=1).objections
    assert not card_of(simulated(10), bands=1).objections
    random, table = np.random.default_rng(0), simulated(9)
    taus = [stats.kendalltau(random.permutation(9), np.arange(9)).statistic for _ in range(2000)]
    (said,) = card_of(table, bands=1).objections
    assert float(re.search(r"tau of \+-(\S+) within", said)[1]) == pytest.approx(
        1.96 * np.std(taus), rel=0.08
    )


def test_a_seed_that_moves_all_masks_does_not_rank_them():
    table = simulated(12, noise=0.0, follows={10: 1.0, 1000: 1.0})
    table["value"] += 10 * table["seed"]
    gone = (table["mask"] > "mask 5") & (table["seed"] == 1)  # some have seed 0 alone
    assert card_of(table[~gone], bands=1).frame["within"].tolist() == [1, 1]
    assert card_of(table[~gone], bands=1).density_tau == card_of(table, bands=1).density_tau
