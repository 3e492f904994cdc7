"""21_recovered: the planned contrasts of made-up lines, and its stages at a toy size."""

import base64
import json
import random
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from experiment_scripts import load_script, run_script
from scipy import stats
from tiny_checkpoint import tiny_checkpoint
from toy_sentences import WORDS, write_lines

BUDGETS, SEEDS = (0.2, 0.12, 0.25), range(4)
MASKS = {  # name -> score on search rows, on judging rows, and with the longer schedule
    "dam": (0.80, 0.81, None),
    "random": (0.70, 0.72, None),
    "full heads": (0.75, 0.74, 0.78),
    "heads each way": (0.60, 0.90, None),  # search rows do not choose it
    "random keys": (0.40, 0.41, None),
}


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    return {name: load_script(f"21_recovered/{name}.py") for name in ("tables", "figures")}


def moved(seed: int, budget: float, name: str) -> float:
    """What a seed and budget add to a mask's score: not the same to each of them."""
    return 0.003 * seed * len(name) - budget / 10


def made_up() -> dict[int, list[dict[str, Any]]]:
    """Seed -> lines as the stages write them."""
    lines: dict[int, list[dict[str, Any]]] = {}
    for seed in SEEDS:
        lines[seed] = own = []
        for budget in BUDGETS:
            for name, scores in MASKS.items():
                more = moved(seed, budget, name)
                halves = [("full", "search"), ("full", "test"), ("longer", "test")]
                for (steps, half), score in [*zip(halves, scores, strict=True),
                                             (("none", "test"), scores[1] / 2)]:  # fmt: skip
                    if score is None:
                        continue
                    rows = np.full(50, score + more) + np.linspace(-0.1, 0.1, 50)
                    about = {"stage": "judge", "steps": steps, "half": half, "density": budget}
                    packed = base64.b85encode(rows.astype("<f2").tobytes()).decode()
                    own.append(
                        about | {"name": f"{name} {budget}", "score": score + more, "rows": packed}
                    )
        own += [
            dict(own[1], name="dense 1", steps=steps, density=1.0) for steps in ("full", "none")
        ]
    return lines


def test_contrasts_are_those_of_the_plan(scripts):
    found = scripts["tables"].primary(made_up())
    first, second, headline = found.to_dict("records")

    def mean(name: str, column: int, budgets: tuple[float, ...], seed: int) -> float:
        return fmean(MASKS[name][column] + moved(seed, b, name) for b in budgets)

    for row, other, column in ((first, "full heads", 2), (second, "random", 1)):
        gaps = [
            mean("dam", 1, BUDGETS[:2], seed) - mean(other, column, BUDGETS[:2], seed)
            for seed in SEEDS
        ]
        assert row["difference"] == pytest.approx(fmean(gaps), abs=1e-9)
        assert row["seeds"] == len(SEEDS)
        assert row["low"] <= fmean(gaps) <= row["high"]
        assert row["p"] >= stats.ttest_1samp(gaps, 0).pvalue  # rows add to what seeds leave open
    assert max(first["adjusted_p"], second["adjusted_p"]) >= max(first["p"], second["p"])
    gaps = [mean("dam", 1, (0.12,), s) - mean("full heads", 1, (0.25,), s) for s in SEEDS]
    assert headline["difference"] == pytest.approx(fmean(gaps), abs=1e-9)


def test_bounds_and_scores_as_they_are(scripts):
    lines = made_up()
    found = scripts["tables"].scores(lines).set_index(["arm", "budget"])["score"]
    assert found["hand, best", 0.2] > found["hand", 0.2]  # the one that judging rows prefer
    bare = scripts["tables"].scores(lines, "none").set_index(["arm", "budget"])["score"]
    more = fmean(moved(seed, 0.2, "dam") for seed in SEEDS)
    assert bare["dam", 0.2] == pytest.approx(MASKS["dam"][1] / 2 + more)


@pytest.mark.slow
def test_the_figure_is_drawn_from_the_lines(scripts, tmp_path):
    for seed, own in made_up().items():
        write_lines(tmp_path / f"seed_{seed}.jsonl", list(map(json.dumps, own)))
    shown = [
        {"arm": arm, "budget": 0.12, "title": arm, "shares": [[1, 0], [0.5, 1]]}
        for arm in ("hand", "dam", "random", "random keys")
    ]
    (tmp_path / "masks.json").write_text(json.dumps(shown))
    scripts["figures"].write(tmp_path)
    assert (tmp_path / "front.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "primary.csv")) == 3


@pytest.mark.slow
@pytest.mark.ray
def test_recovered_smoke(tmp_path):
    draw = random.Random(0)
    header = (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    )
    for part, count in (("train", 400), ("dev", 100)):
        lines = [header]
        for number in range(count):
            near = draw.randint(0, 4)
            words = draw.choices(WORDS[:40], k=near) + draw.choices(WORDS[40:], k=4 - near)
            words += draw.choices(WORDS[:40] if near > 2 else WORDS[40:], k=4)
            texts = " ".join(words[:4]), " ".join(words[4:])
            lines.append("\t".join([str(number), *["-"] * 6, *texts, f"{near + 1:.3f}"]))
        write_lines(tmp_path / "data/glue/STS-B" / f"{part}.tsv", lines)
    tiny_checkpoint(tmp_path / "checkpoint", WORDS)
    words = ["--data", tmp_path / "data", "--weights", tmp_path / "checkpoint"]
    words += ["--seeds", "0", "--budgets", "0.7", "--runs", tmp_path / "runs", "--smoke"]
    for _ in range(2):  # the second call finds every line
        run_script("21_recovered/run.py", "all", "shares", *words, cache=tmp_path / "cache")
        lines = (tmp_path / "runs/seed_0/results/seed_0.jsonl").read_text().splitlines()
    records = list(map(json.loads, lines))
    assert len({(r["stage"], r.get("steps"), r.get("half"), r.get("name"), r.get("arm"),
                 r.get("number")) for r in records}) == len(records)  # fmt: skip
    assert {r["steps"] for r in records} == {"none", "trial", "full", "longer"}
    shown = json.loads((tmp_path / "runs/seed_0/results/masks.json").read_text())
    assert [each["arm"] for each in shown] == ["hand", "dam", "random", "random keys"]
