"""20_long: its made-up language, its tables, and a run at smoke size."""

import random
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from experiment_scripts import load_script, run_script


@pytest.fixture(scope="module")
def scripts():
    return {name: load_script(f"20_long/{name}.py") for name in ("plant", "tables")}


def test_what_comes_again_in_a_document_is_as_it_was(scripts):
    said: dict[str, str] = {}
    tokens = [*scripts["plant"].document(random.Random(3))]
    for token, behind in pairwise(tokens):
        if token[0] in "kp":
            assert said.setdefault(token, behind) == behind
    assert len(said) >= 3
    marks = [token for token in tokens if token[0] == "m" and token != "most"]
    asked = {b for a, b in pairwise(tokens) if a == "most"}
    assert asked == {max({*marks}, key=marks.count)}


def rows(decoder: str, arm: str, sample: int, nats: np.ndarray) -> pd.DataFrame:
    about = {"decoder": decoder, "sample": sample, "budget": 0.25, "arm": arm}
    return pd.DataFrame({**about, "row": range(len(nats)), "tasks": nats})


def test_an_arm_is_set_against_one_window_over_searches_and_rows(scripts):
    draw, parts = np.random.default_rng(0), []
    for decoder in ("planted-0", "planted-1"):
        window = 2 + draw.random(64)
        parts.append(rows(decoder, "uniform", 0, window))
        for sample in range(5):
            parts.append(rows(decoder, "levels", sample, window - 0.5 + draw.random(64) / 10))
    found = scripts["tables"].minus(pd.concat(parts), "levels", "tasks")
    assert found.value == pytest.approx(-0.45, abs=0.01)
    assert found.low < found.value < found.high < -0.42
    assert found.n == 5
    alone = scripts["tables"].minus(
        pd.concat(each[each["sample"] == 0] for each in parts), "levels", "tasks"
    )
    assert alone.seedless
    assert alone.high < -0.4


@pytest.mark.nightly
def test_far_smoke(tmp_path):
    stages = ["plant", "check", "search", "judge", "longest", "tables"]
    words = [*stages, "--smoke", "--runs", tmp_path]
    for _ in range(2):  # the second goes on where nothing is left
        run_script("20_long/run.py", *words, cache=tmp_path / "cache")
    out = tmp_path / "results"
    searches = pd.read_csv(out / "searches.csv")
    assert (searches["share"] <= searches.budget + 1e-6).all()
    assert not searches.duplicated(["decoder", "sample", "budget", "arm"]).any()
    judged = {path.stem.split("_")[2] for path in out.glob("judge_planted-1_*.csv")}
    assert judged == {"dense", "uniform", "levels", "narrow", "random"}
    found = pd.read_csv(out / "differences.csv")
    assert {*found.value} == {"tasks", "text", "right"}
    ranks = pd.read_csv(out / "correlations.csv")
    assert ((ranks["low"] <= ranks["rank"]) & (ranks["rank"] <= ranks["high"])).all()
