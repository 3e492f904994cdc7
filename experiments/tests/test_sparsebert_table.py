"""Experiment 12's table beside runs: what is matched, what is said, the laws of its figures."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from experiment_scripts import load_script
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluator, Objective, Report
from masksearch.tasks.glue.tasks import glue_score, reported

script = load_script("12_sparsebert_table/table.py")
COLUMNS, ROWS, compare_published = script.COLUMNS, script.ROWS, script.compare_published
BY_NAME = {row.name: row for row in ROWS}
METRICS = {"QQP": ("accuracy", "f1"), "MRPC": ("accuracy", "f1"), "STS-B": ("pearson", "spearman")}
LENGTH = 32
DAM = {row.name: masks.window(place) for place, row in enumerate(ROWS) if not row.family}


def values_of(name: str, shift: float, columns: tuple[str, ...]) -> dict[str, float]:
    """What an evaluator would report of a mask that scores as printed, plus a shift."""
    found: dict[str, float] = {"glue": 0.5 + shift}
    for column in columns:
        value = BY_NAME[name].scores[column] / 100 + shift
        if column in METRICS:
            one, two = METRICS[column]
            found |= reported(column, {one: 0.123, two: value})
        else:
            found[column] = value
    return found


@dataclass(frozen=True)
class Printed(Evaluator):
    """Scores the masks of the table as printed; each seed shifts all scores of a mask."""

    columns: tuple[str, ...] = COLUMNS
    shift: Callable[[str, int], float] = lambda name, seed: 0.01 * (seed % 3 - 1)
    protocol: str = "printed"
    names: dict[str, str] = field(default_factory=dict)  # expression -> name in the table

    shape = ms.Shape(length=LENGTH, layers=2, heads=2)
    objectives = (Objective("glue", "max", 0.0),)

    def __call__(self, mask, *, seed, workdir):
        name = self.names[str(mask)]
        yield Report(1, values_of(name, self.shift(name, seed), self.columns))


NAMED = {row.name: masks.FAMILIES[row.family] for row in ROWS if row.family} | DAM
BY_TEXT = {str(mask): name for name, mask in NAMED.items()}


def judged(run: Path, named: dict[str, masks.Mask] = NAMED, **settings) -> Path:
    """A comparison of these masks, three seeds."""
    seeds = settings.pop("seeds", range(3))
    ms.compare(named, Printed(names=BY_TEXT, **settings), run=run, seeds=seeds, progress=None)
    return run


def test_the_14_averages_are_the_printed_ones() -> None:
    """Source: see the file; the printed averages are up to .09 off the means of their columns."""
    assert len(ROWS) == 14
    for row in ROWS:
        assert row.mean(COLUMNS) == pytest.approx(row.average, abs=0.1)
        assert glue_score(row.scores).nine == pytest.approx(row.mean(COLUMNS))
    without = [column for column in COLUMNS if column != "RTE"]
    assert BY_NAME["DAM_u 1e-4"].mean(without) == pytest.approx(83.40, abs=0.005)
    assert BY_NAME["Strided"].mean(without) == pytest.approx(82.84, abs=0.005)


def test_families_have_the_printed_sparsity() -> None:
    for row in ROWS:
        if row.family:
            found = 100 * masks.FAMILIES[row.family].sparsity(128)
            assert found == pytest.approx(row.sparsity, abs=0.15)


@pytest.mark.nightly
def test_a_run_that_scores_as_printed_differs_in_nothing(tmp_path: Path) -> None:
    beside = compare_published(judged(tmp_path / "r"))
    frame = beside.frame()
    assert list(frame["mask"]) == [row.name for row in ROWS]
    assert set(frame["n_seeds"]) == {3}
    assert list(beside.quantities) == ["average", "without RTE", *COLUMNS]
    for name in beside.quantities:
        assert frame[f"{name} ours"].to_numpy() == pytest.approx(frame[f"{name} published"])
        assert frame[f"{name} difference"].to_numpy() == pytest.approx(0, abs=1e-6)
        assert frame[f"{name} error"].to_numpy() == pytest.approx(1 / math.sqrt(3))
        tau = beside.agreement(beside.quantities[name])
        assert (tau.value, tau.low, tau.high) == pytest.approx((1, 1, 1))
    assert frame["average published"].to_numpy() == pytest.approx(
        frame["printed average"], abs=0.1
    )
    assert "no run holds" not in "\n".join(beside.notes())


@pytest.mark.nightly
def test_what_is_missing_is_said(tmp_path: Path) -> None:
    some = {name: NAMED[name] for name in ("Star", "Fixed", "DAM_u 1e-2")}
    beside = compare_published(
        judged(tmp_path / "r", some, columns=("CoLA", "RTE", "MRPC"), seeds=[0, 1])
    )
    frame = beside.frame().set_index("mask")
    assert beside.common == ["CoLA", "MRPC", "RTE"]
    assert frame.loc["Star", "average published"] == pytest.approx((59.6 + 83.9 + 60.3) / 3)
    assert frame.loc["Star", "without RTE published"] == pytest.approx((59.6 + 83.9) / 2)
    assert frame.loc["Strided", "n_seeds"] == 0
    assert math.isnan(frame.loc["Strided", "average ours"])
    said = "\n".join(beside.notes())
    assert "over the 3 columns that all our masks have (CoLA, MRPC, RTE)" in said
    assert "no run holds Strided, Longformer," in said
    assert "CoLA" in frame.columns[8 + 8]


@pytest.mark.nightly
def test_masks_are_matched_by_bits_and_by_name(tmp_path: Path) -> None:
    other = masks.longformer(3)
    named = {"mine": masks.star(), "longformer": other, "dam_s(0.0001)": masks.window(9)}
    texts = {str(masks.star()): "Star", str(other): "Longformer"}
    texts[str(masks.window(9))] = "DAM_s 1e-4"
    ms.compare(named, Printed(names=texts), run=tmp_path, seeds=[0, 1], progress=None)
    beside = compare_published([tmp_path])
    assert {row: own.name for row, own in beside.ours.items()} == {
        "Star": "mine", "Longformer": "longformer", "DAM_s 1e-4": "dam_s(0.0001)"
    }  # fmt: skip
    assert [own.exact for own in beside.ours.values()] == [True, False, False]
    assert f"Longformer: by its name; ours is {other}, not" in "\n".join(beside.notes())


@given(st.integers(0, 10_000), st.integers(2, 14))
def test_tau_is_scipys_and_lies_in_its_interval(seed: int, number: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.integers(0, 5, (2, number)).astype(float)
    found = script.tau_of_means(x, y, random.normal(size=(50, number)))
    expected = stats.kendalltau(x, y).statistic
    assert found.value == pytest.approx(expected, nan_ok=True)
    if not math.isnan(expected):
        assert -1 <= found.low <= found.value <= found.high <= 1
    silent = script.tau_of_means(x, y, np.zeros((5, number)))
    assert silent.low == pytest.approx(expected, nan_ok=True)


@pytest.mark.slow
@given(
    st.lists(st.floats(-0.05, 0.05), min_size=14, max_size=14),
    st.floats(0.1, 3),
    st.integers(2, 5),
)
def test_differences_are_in_standard_errors_of_ours(shifts, spread, seeds):
    ours = {}
    for row, shift in zip(ROWS, shifts, strict=True):
        own = script.OurScores(row.name, "", True, row.sparsity, row.sparsity)
        for column in COLUMNS:
            own.values[column] = {
                seed: row.scores[column] + 100 * shift + spread * seed for seed in range(seeds)
            }
        ours[row.name] = own
    frame = script.Comparison(ours).frame()
    middle = spread * (seeds - 1) / 2
    error = spread * np.std(range(seeds), ddof=1) / math.sqrt(seeds)
    for name in ("average", "without RTE", "RTE"):
        assert frame[f"{name} difference"].to_numpy() == pytest.approx(
            [(100 * shift + middle) / error for shift in shifts], abs=1e-6
        )
