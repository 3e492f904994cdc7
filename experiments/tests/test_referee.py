"""15_referee: the amendment's verdict, and its arms at smoke size."""

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from experiment_scripts import load_script, run_script
from tiny_checkpoint import tiny_checkpoint
from toy_sentences import WORDS, write_lines


def write_pairs(folder: Path) -> Path:
    """`glue/STS-B`, whose pairs are alike where both are of one half of the words, and a
    checkpoint."""
    draw = random.Random(0)
    halves = (WORDS[:40], WORDS[40:])
    for part, count in (("train", 160), ("dev", 200)):
        lines = ["index\tsentence1\tsentence2\tscore"]
        for number in range(count):
            texts = [" ".join(draw.choices(halves[number % 2], k=21)) for _ in range(2)]
            lines.append(f"{number}\t{texts[0]}\t{texts[1]}\t{5 * (number % 2)}")
        write_lines(folder / "glue" / "STS-B" / f"{part}.tsv", lines)
    tiny_checkpoint(folder / "checkpoint", WORDS)
    return folder


BUDGETS, SHARES = (0.5, 0.3, 0.15), (0.2 / 0.7, 0.5, 0.15 / 0.7)  # the trapezoids' weights


def write_amended(out: Path, seeds: dict[str, list[int]], arms: dict[str, float]) -> None:
    """Rows of every arm, right as often as it says where the budget is .5 and less below, and the
    scores by which a head arm is chosen."""
    draw, lines = np.random.default_rng(0), []
    out.mkdir(parents=True)
    for task, searches in seeds.items():
        stacks = {}
        for arm, right in arms.items():
            for budget in BUDGETS:
                rows = draw.random((len(searches), 400)) < right * (0.7 + 0.6 * budget)
                stacks[f"{arm}|{budget}|{','.join(map(str, searches))}"] = rows.astype(np.uint8)
                lines += [(task, arm, budget, seed, right) for seed in searches]
        np.savez(out / f"rows_{task}.npz", **stacks)
    table = pd.DataFrame(lines, columns=["task", "arm", "budget", "search", "score"])
    table[table.arm.isin(["greedy", "swept_gates", "tpe"])].to_csv(
        out / "choosing.csv", index=False
    )


def test_the_amendment_sets_the_head_arm_that_other_rows_chose_against_dam(tmp_path):
    tables, out = load_script("15_referee/tables.py"), tmp_path / "results" / "amended"
    seeds = tables.AMENDED["seeds"]
    right = {"dam": 0.9, "fisher_rounds": 0.8, "greedy": 0.5, "swept_gates": 0.7, "tpe": 0.4}
    write_amended(out, seeds, right)
    (tmp_path / "results" / "rows_STS-B.npz").write_bytes((out / "rows_STS-B.npz").read_bytes())
    (tmp_path / "results" / "rows_QNLI.npz").write_bytes((out / "rows_QNLI.npz").read_bytes())
    assert tables.unjudged(out) == []
    found = tables.contrasts(out)
    primary = found[found.kind == "primary"]
    assert [*zip(primary.task, primary.arm, primary["minus"], strict=True)] == [
        ("STS-B", "swept_gates", "dam"),
        ("QNLI", "swept_gates", "dam"),
        ("QNLI", "dam", "fisher_rounds"),
    ]
    assert (primary.pairs == 5).all()
    stacks = np.load(out / "rows_QNLI.npz")
    key = ",".join(map(str, seeds["QNLI"]))
    areas = {
        arm: sum(
            w * stacks[f"{arm}|{b}|{key}"].mean() for w, b in zip(SHARES, BUDGETS, strict=True)
        )
        for arm in right
    }
    for line in found[
        (found.task == "QNLI") & (found.kind != "without the last budget")
    ].itertuples():
        assert line.value == pytest.approx(areas[line.arm] - areas[line.minus], abs=1e-5)
        assert line.low < line.value < line.high
    alone = found[(found.kind == "alone") & (found.task == "QNLI")].set_index(["arm", "minus"])
    for line in primary[primary.task == "QNLI"].itertuples():  # Holm: no less than alone
        assert line.p >= alone.loc[(line.arm, line.minus), "p"]


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:nothing learned")
def test_amended_referee_smoke(tmp_path):
    data, runs = write_pairs(tmp_path / "data"), tmp_path / "runs"
    words = ["rows", "sweep", "search", "choose", "judge", "tables", "--amended", "--smoke"]
    words += ["--tasks", "STS-B", "--seeds", "0"]
    words += ["--data", data, "--weights", data / "checkpoint", "--runs", runs]
    run_script("15_referee/run.py", *words, cache=tmp_path / "cache")
    swept = pd.read_csv(runs / "results" / "amended" / "sweep.csv")
    assert len(swept) == 8 * 3
    chosen = pd.read_csv(runs / "results" / "amended" / "choosing.csv")
    assert set(chosen.arm) == {"greedy", "swept_gates", "tpe"}
    assert (chosen.density <= chosen.budget + 1e-3).all()
