"""The proxy card: what it calls valid, what it refuses, and that it says why."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from masksearch import masks
from masksearch.analysis.proxy_observations import (
    CURVE,
    OWN_END,
    Observation,
    ScoreTables,
    band_edges,
    default_goal,
    from_records,
    tidy,
)
from masksearch.contracts import Report
from masksearch.errors import SearchError, UnknownNameError
from masksearch.report.proxy import ProxyCard
from masksearch.report.tables import budgets_table

STEPS = (10, 100, 1000)


def simulated(
    number: int = 24,
    seeds: int = 2,
    *,
    noise: float = 0.02,
    follows: dict[int, float] | None = None,
    by_density: float = 0.0,
    alike: int = 1,
) -> list[Observation]:
    """Losses of masks: `follows[step]` is the share of the final quality seen at a budget.

    `by_density` adds that much a nat of density; `alike` masks share each density.
    """
    random = np.random.default_rng(0)
    follows = follows or {10: 0.0, 100: 1.0, 1000: 1.0}
    quality, other = random.normal(size=(2, number))
    density = np.repeat(np.geomspace(0.03, 0.97, number // alike), alike)
    return [
        Observation(
            f"mask {i}", density[i], seed, step, "loss",
            5 - share * quality[i] - (1 - share) * other[i] + by_density * math.log(density[i])
            + noise * random.normal(),
        )
        for step, share in follows.items()
        for i in range(number)
        for seed in range(seeds)
    ]  # fmt: skip


def card_of(observations, **options) -> ProxyCard:
    return ProxyCard.from_observations(observations, **{"resamples": 200, **options})


def test_a_proxy_that_follows_is_valid_from_its_budget_on():
    card = card_of(simulated(), bands=3)
    assert card.valid
    assert card.stable_from() == 100
    assert card.verdict().startswith("Valid from 100 steps on: loss as a proxy of loss at 1,000")
    assert card.objections() == []
    first, second, last = card.rows
    assert (first.budget, second.budget, last.budget) == STEPS
    assert last.is_reference
    assert last.across.value == last.within.value == 1
    assert last.between_seeds == card.ceiling_within  # the reference is judged by its own ceiling
    assert second.within.value > 0.9 > 0.3 > first.within.value
    assert second.regret < 0.1 < first.at_random
    assert card.spread.sigma_seed == pytest.approx(0.02, rel=0.5)
    assert card.spread.sigma_mask == pytest.approx(1, rel=0.5)


def test_agreement_that_is_all_density_is_not_valid():
    follows = {10: 0.0, 1000: 1.0}
    shared = simulated(40, follows=follows, by_density=30, noise=0.01, alike=5)
    card = card_of(shared, bands=8)
    row = card.rows[0]
    assert row.across.value > 0.8
    assert abs(row.within.value) < 0.3
    assert not card.valid
    assert card.verdict().startswith("Not valid")
    assert card.density_tau > 0.85


def test_bands_within_which_density_still_ranks_are_not_decided():
    follows = {10: 0.0, 1000: 1.0}
    card = card_of(simulated(40, follows=follows, by_density=30, noise=0.01), bands=2)
    assert card.rows[0].within.low > 0.9  # every mask has a density of its own
    assert not card.valid
    assert "use narrower bands" in " ".join(card.objections())


def test_a_proxy_that_fails_at_a_longer_budget_is_not_stable_before_it():
    follows = {10: 1.0, 50: 0.0, 100: 1.0, 1000: 1.0}
    assert card_of(simulated(follows=follows), bands=2).stable_from() == 100
    turned = {10: 1.0, 100: -1.0, 1000: 1.0}
    card = card_of(simulated(follows=turned), bands=2)
    assert card.stable_from() is None
    assert "cannot be told from 0" in card.verdict()


def test_a_card_fits_a_line():
    text = repr(card_of(simulated()))
    assert text.startswith("Valid from 100 steps on: loss as a proxy of loss at 1,000 steps.")
    assert text.endswith("(24 masks; see .verdict(), .frame())")
    assert len(text) <= 120


def test_too_few_masks_are_not_decided():
    card = card_of(simulated(9), bands=1)
    assert not card.valid
    assert card.verdict().startswith("Not decided")
    assert "too few masks: 9" in card.objections()[0]
    assert "at least 10 masks in one band" in card.objections()[0]
    assert card_of(simulated(10), bands=1).valid


def test_one_seed_is_not_decided():
    card = card_of(simulated(seeds=1), bands=2)
    assert not card.valid
    assert math.isnan(card.ceiling.value)
    assert "one seed of loss: the noise ceiling is unknown" in card.objections()[0]
    assert "unknown, one seed" in card.verdict()
    assert "that of seeds is unknown" in card.verdict()


def test_a_reference_that_is_noise_is_not_decided():
    card = card_of(simulated(noise=50.0), bands=2)
    assert "the interval includes 0" in " ".join(card.objections())
    assert not card.valid


def test_another_target_is_judged_at_its_longest_budget():
    losses = simulated()
    glue = [
        replace(o, measure="glue", value=1 - o.value / 10, budget=1500)
        for o in losses
        if o.budget == 1000
    ]
    card = card_of([*losses, *glue], target="glue", bands=3)
    assert card.reference == (CURVE, 1500)
    assert [row.is_reference for row in card.rows] == [False] * 3
    assert card.rows[2].across.value == 1
    assert card.stable_from() == 100
    worse = card_of([*losses, *glue], target="glue", goals={"glue": "min"}, bands=3)
    assert worse.rows[2].across.value == -1


def test_rows_in_another_order_and_other_units_change_nothing():
    observations = simulated()
    card = card_of(observations, bands=3)
    random = np.random.default_rng(0)
    shuffled = [observations[i] for i in random.permutation(len(observations))]
    again = card_of(shuffled, bands=3)
    assert again.to_dict() == card.to_dict()
    table = pd.DataFrame([vars(o) for o in shuffled]).drop(columns=["schedule", "name"])
    assert card_of(table, bands=3).frame().equals(card.frame())
    nats = [replace(o, value=2 * o.value + 3) for o in observations]
    for row, other in zip(card.rows, card_of(nats, bands=3).rows, strict=True):
        assert other.within == row.within
        assert other.regret == pytest.approx(2 * row.regret)


def test_missing_cells_and_failures_are_left_out_and_counted():
    observations = simulated(12)
    observations[0] = replace(observations[0], value=math.nan)
    gone = [o for o in observations if (o.mask, o.seed, o.budget) != ("mask 3", 1, 1000)]
    gone = [o for o in gone if (o.mask, o.budget) != ("mask 4", 1000)]
    card = card_of(gone, bands=1)
    assert card.left_out == {
        "values that are not finite": 1,
        "masks without the reference": 1,
        "missing (mask, seed) cells of the reference": 1,
    }
    assert "Left out: 1 values that are not finite" in card.verdict()
    assert len(card.masks) == 11
    assert "mask 4" not in card.masks


def test_tables_and_json_hold_the_same():
    card = card_of(simulated(), bands=3)
    frame = card.frame()
    assert list(frame["budget"]) == list(STEPS)
    assert {"tau_low", "within_high", "sigma_seed_within"} <= set(frame)
    assert len(card.choices()) == 9
    assert (card.choices()["regret"] >= 0).all()
    text = json.dumps(card.to_dict(), allow_nan=False)
    loaded = json.loads(text)
    assert loaded["stable_from"] == {CURVE: 100}
    assert loaded["rows"][1]["within"] == pytest.approx(frame["within"][1])
    assert loaded["valid"] is True
    assert len(budgets_table(card).rows) == 3
    alone = card_of(simulated(seeds=1), bands=2).to_dict()
    assert alone["ceiling"]["value"] is None


@pytest.mark.slow
def test_the_figure_of_two_masks_is_written(tmp_path):
    assert card_of(simulated(2, 1)).plot(tmp_path / "small.pdf").is_file()


def test_without_intervals_nothing_is_said_of_the_seeds():
    said = card_of(simulated(), bands=3, resamples=0).verdict()
    assert "No intervals were drawn (0 resamples)" in said
    assert "do not agree" not in said


def test_the_figure_is_written(tmp_path):
    card = card_of(simulated(), bands=3)
    path = card.plot(tmp_path / "new" / "card.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"proxy": "los"}, UnknownNameError, "did you mean 'loss'"),
        ({"target": "glue"}, UnknownNameError, "unknown measure 'glue'"),
        ({"reference": "long"}, UnknownNameError, "unknown schedule with a loss"),
        ({"goals": {"loss": "down"}}, ValueError, "'min' or 'max', got 'down'"),
        ({"bands": 0}, ValueError, "at least 1 density band"),
        ({"bands": (0.1, 1.5)}, ValueError, r"in \(0, 1\)"),
        ({"fraction": 1.2}, ValueError, r"\(0, 1\]"),
        ({"resamples": -1}, ValueError, "at least 0"),
        ({"level": 1.0}, ValueError, "level"),
    ],
)
def test_mistakes_are_named(change, error, message):
    with pytest.raises(error, match=message):
        card_of(simulated(4), **change)


def test_observations_that_cannot_be_used_are_named():
    observations = simulated(4)
    with pytest.raises(SearchError, match=r"1 mask has a loss at 1,000 steps.*at least 2 masks"):
        card_of([o for o in observations if o.mask == "mask 0"])
    with pytest.raises(SearchError, match="no other budget than the reference's"):
        card_of([o for o in observations if o.budget == 1000])
    with pytest.raises(ValueError, match="missing: value"):
        card_of(pd.DataFrame([vars(o) for o in observations]).drop(columns="value"))
    with pytest.raises(ValueError, match="two values of loss"):
        card_of([*observations, replace(observations[0], value=9.0)])
    with pytest.raises(ValueError, match="two densities"):
        card_of([*observations, replace(observations[0], density=0.5, seed=7)])
    with pytest.raises(ValueError, match=r"density is in \(0, 1\], got 0"):
        card_of([replace(observations[0], density=0.0)])
    with pytest.raises(ValueError, match="at least 0 steps"):
        card_of([replace(observations[0], budget=-1)])


def band_of(densities, edges):
    return np.digitize(densities, edges, right=True)


def test_bands_are_factors_of_two_unless_said():
    densities = np.array([1.0, 0.51, 0.5, 0.26, 0.2, 0.03])
    edges = band_edges(densities, None)
    assert edges == [0.03125, 0.0625, 0.125, 0.25, 0.5]
    assert band_of(densities, edges).tolist() == [5, 5, 4, 4, 3, 0]
    assert band_edges(np.array([0.9, 1.0]), None) == []
    halves = band_of(densities, band_edges(densities, 2))
    assert sorted(np.bincount(halves)) == [3, 3]
    assert band_of(np.full(4, 0.2), band_edges(np.full(4, 0.2), 3)).tolist() == [0] * 4


def test_goals_follow_the_name():
    assert default_goal("loss") == default_goal("latency") == "min"
    assert default_goal("SST-2") == "max"


# -- from records ----------------------------------------------------------------------------
@pytest.fixture
def ran(record):
    """Records of windows that learn at a pace of their own, whatever their density."""

    def make(steps: int, protocol: str, *, seeds: int = 2, number: int = 12, tuned: bool = False):
        random, found = np.random.default_rng(steps), []
        for reach in range(number):
            for seed in range(seeds):
                curve = [
                    Report(
                        step, {"loss": 5 - 7 * reach % 12 * step / 1000 + 0.01 * random.normal()}
                    )
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
                        name=f"window {reach}", origin="compare",
                    )
                )  # fmt: skip
        return found

    return make


def test_the_curve_of_one_run_gives_its_lower_budgets(ran, record):
    records = [*ran(1000, "p"), record(99, None, masks.star(), error="CUDA out of memory")]
    card = ProxyCard.of(records, bands=1, resamples=100)
    assert [row.budget for row in card.rows] == [10, 100, 1000]
    assert set(card.masks) == {f"window {reach}" for reach in range(12)}
    assert card.left_out == {"failed runs": 1}
    assert "not annealed" in card.verdict()
    assert card.valid


def test_a_loss_that_fine_tuning_only_repeats_is_no_budget(ran):
    card = ProxyCard.of(ran(1000, "p", tuned=True), target="glue", bands=1, resamples=50)
    assert card.reference == (CURVE, 1060)
    assert [row.budget for row in card.rows] == [10, 100, 1000]


def test_runs_of_several_protocols_need_a_reference(ran):
    runs = {"short": ran(200, "a"), "long": ran(1000, "b")}
    with pytest.raises(SearchError, match=r"2 protocols.*--reference RUN"):
        ProxyCard.of(runs)
    with pytest.raises(UnknownNameError, match="unknown run 'lon'"):
        ProxyCard.of(runs, reference="lon")
    with pytest.raises(SearchError, match="holds 2 protocols"):
        ProxyCard.of({"both": [*runs["short"], *runs["long"]]}, reference="both")
    card = ProxyCard.of(runs, reference="long", bands=1, resamples=50)
    assert [(row.schedule, row.budget) for row in card.rows] == [
        (CURVE, 10),
        (CURVE, 100),
        (OWN_END, 200),
        (OWN_END, 1000),
    ]
    assert "from 200 steps on (own runs)" in card.verdict()
    assert card.reference == (OWN_END, 1000)


def test_settings_that_are_judged_at_their_end_are_judged_one_by_one(ran, tmp_path):
    """As runs of `--adapt none`, `recover`, `finetune`: one report each, steps that may agree."""

    def at_end(steps, protocol, step):
        runs = ran(steps, protocol)
        return [replace(r, curve=(Report(step, r.values),), step=step) for r in runs]

    full = at_end(1000, "full", 540)
    noise = [replace(r, values=other.values) for r, other in zip(full, full[::-1], strict=True)]
    runs = {
        "runs/none": at_end(900, "none", 0),
        "runs/short": [replace(r, protocol="short") for r in noise],
        "runs/full": full,
    }
    card = ProxyCard.of(runs, reference="runs/full", bands=1, resamples=50)
    assert sorted((row.schedule, row.budget, row.is_reference) for row in card.rows) == [
        ("runs/full", 540, True),
        ("runs/none", 0, False),
        ("runs/short", 540, False),
    ]
    assert "Valid at 0 steps (runs/none)" in card.verdict()
    assert "runs/short" not in card.verdict().splitlines()[0]
    assert card.plot(tmp_path / "card.png").stat().st_size > 1000


def test_runs_of_one_protocol_are_merged(ran):
    records = ran(1000, "p")
    halves = {"a": [r for r in records if r.seed == 0], "b": [r for r in records if r.seed == 1]}
    merged = ProxyCard.of(halves, bands=1, resamples=50)
    assert merged.to_dict() == ProxyCard.of(records, bands=1, resamples=50).to_dict()


def test_runs_without_curves_are_a_mistake(ran):
    records = [replace(r, curve=r.curve[-1:]) for r in ran(1000, "p")]
    with pytest.raises(SearchError, match="no curves"):
        ProxyCard.of(records)
    with pytest.raises(SearchError, match="no finished run"):
        ProxyCard.of([])
    observed = from_records({"x": ran(1000, "p", number=2)})
    cells = ScoreTables(tidy(observed.observations))
    assert cells.table(CURVE, 10, "loss").shape == (2, 2)
