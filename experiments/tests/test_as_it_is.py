"""22_as_it_is: how rows are dealt, the planned contrasts of made-up lines, its stages at a toy
size."""

import base64
import itertools
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

TASKS, BUDGETS, SEEDS, ROWS = ("SST-2", "STS-B"), (0.2, 0.12), range(4), 64
MASKS = {  # name -> score on choosing rows, on judging rows
    "dam": (0.80, 0.81),
    "prune": (0.70, 0.79),
    "tpe": (0.75, 0.70),  # the other search that choosing rows prefer, not judging ones
    "hand: full heads": (0.60, 0.55),
    "hand: star": (0.50, 0.65),
}


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    names = ("tables", "figures", "rows", "lines")
    return {name: load_script(f"22_as_it_is/{name}.py") for name in names}


def moved(seed: int, name: str) -> float:
    """What a model adds to a mask's score: not the same to each mask."""
    return 0.004 * seed * (len(name) % 5 - 1)


def packed(score: float, task: str) -> str:
    """Scores of rows whose mean is about that: right or wrong, or real numbers."""
    if task == "SST-2":
        bits = np.packbits(np.arange(ROWS) < round(score * ROWS))
        return f"{ROWS}b{base64.b85encode(bits.tobytes()).decode()}"
    values = np.full(ROWS, score) + np.linspace(-0.1, 0.1, ROWS)
    return f"{ROWS}f{base64.b85encode(values.astype('<f2').tobytes()).decode()}"


def made_up() -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Task and seed -> lines as the run writes them."""
    lines: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for task, seed in itertools.product(TASKS, SEEDS):
        lines[task, seed] = own = []

        def add(name: str, rows: str, score: float, own=own, task=task, **about: Any) -> None:
            own.append(
                {"stage": "score", "rows": rows, "name": name, "score": score, "density": 0.1,
                 "density_judged": 0.11, "constant": 0.5, "seconds": 2.0,
                 "each": packed(score, task), **about}
            )  # fmt: skip

        for budget, (name, scores) in itertools.product(BUDGETS, MASKS.items()):
            kind, _, mask = name.partition(": ")
            full = f"hand {budget}: {mask}" if mask else f"{kind} {budget}"
            for rows, score in zip(("choice", "judge"), scores, strict=True):
                add(full, rows, score + moved(seed, name))
        add("dam 0.2 of STS-B 9", "judge", 0.8, arm="reuse")
        add("dam 0.2, consensus of 3", "judge", 0.7, arm="reuse")
        for rows in ("choice", "judge"):
            add("dense", rows, 0.85)
    return lines


def test_contrasts_are_those_of_the_plan(scripts):
    found = scripts["tables"].primary(made_up()).set_index(["task", "budget", "contrast"])
    rivals = {"dam - hand-designed": "hand: full heads", "dam - other search": "tpe"}
    for (_task, _, contrast), row in found.iterrows():
        rival = rivals[contrast]
        gaps = [
            MASKS["dam"][1] + moved(s, "dam") - MASKS[rival][1] - moved(s, rival) for s in SEEDS
        ]
        assert row["difference"] == pytest.approx(fmean(gaps), abs=1e-9)
        assert row["ahead"] == sum(gap > 0 for gap in gaps)
        assert row["low"] <= fmean(gaps) <= row["high"]
        assert row["p"] >= stats.ttest_1samp(gaps, 0).pvalue  # rows add to what models leave open
    family = found.xs("dam - other search", level="contrast")
    assert (family["adjusted_p"] >= family["p"]).all()
    assert len(family) == 2 * len(TASKS)
    assert found.xs("dam - hand-designed", level="contrast")["adjusted_p"].isna().all()


def test_a_margin_is_held_against_the_one_sided_bound(scripts):
    found = scripts["tables"].against_dense(made_up())
    loss = fmean(0.85 - MASKS["dam"][1] - moved(seed, "dam") for seed in SEEDS)
    assert np.allclose(found["difference"], -loss)
    assert (found["within"] == (found["low_90"] > -found["margin"])).all()
    assert (found["low"] < found["low_90"]).all()


def test_tasks_are_in_by_their_dense_models(scripts):
    lines = made_up()
    assert scripts["tables"].tasks_in(lines) == dict.fromkeys(TASKS, True)
    for line in lines["STS-B", 3]:
        line["constant"] = 0.71
    assert scripts["tables"].tasks_in(lines) == {"SST-2": True, "STS-B": False}


def test_a_dense_model_that_has_not_learned_is_named_and_counts_nowhere(scripts):
    tables, lines = scripts["tables"], made_up()
    before = tables.primary(lines)
    lines["SST-2", 9] = [{"stage": "out", "why": "has the SST-2 0.5"}]
    assert tables.out(lines) == [("SST-2", 9)]
    assert tables.tasks_in(lines) == {"SST-2": False, "STS-B": True}
    pd.testing.assert_frame_equal(tables.primary(lines), before)


def test_reuse_is_held_against_the_mask_searched_there(scripts):
    found = scripts["tables"].reuse(made_up()).set_index(["task", "masks of"])
    own = fmean(MASKS["dam"][1] + moved(seed, "dam") for seed in SEEDS)
    assert found.loc[("SST-2", "STS-B"), "difference"] == pytest.approx(0.8 - own)
    assert found.loc[("STS-B", "consensus"), "difference"] == pytest.approx(0.7 - own)


def test_row_scores_come_back(scripts):
    tables = scripts["tables"]
    for task in TASKS:
        kept = tables.rows_of({"each": packed(0.75, task)})
        assert len(kept.scores["rows"]) == ROWS
        assert kept.score == pytest.approx(0.75, abs=1e-3)


@pytest.mark.slow
def test_the_figure_is_drawn_from_the_lines(scripts, tmp_path):
    for (task, seed), own in made_up().items():
        write_lines(tmp_path / f"{task}_{seed}.jsonl", list(map(json.dumps, own)))
    scripts["figures"].write(tmp_path)
    assert (tmp_path / "as_it_is.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "primary.csv")) == 4 * len(TASKS)


def sst(texts: list[str]) -> list[str]:
    """Lines of a file in SST-2's layout."""
    return ["sentence\tlabel", *(f"{text}\t{len(text) % 2}" for text in texts)]


@pytest.mark.slow
def test_rows_that_judge_and_choose_share_no_text_with_those_trained_on(scripts, tmp_path):
    draw = random.Random(0)
    long = [" ".join(draw.choices(WORDS, k=draw.randint(12, 20))) for _ in range(2500)]
    cut = [" ".join(text.split()[:-1]) for text in long if len(text.split()) > 13]
    short = ["too few words"]
    folder = tmp_path / "glue" / "SST-2"
    write_lines(folder / "train.tsv", sst([*long, *cut, *short, long[0].upper()]))
    write_lines(folder / "dev.tsv", sst([*long[:50], *long[:5]]))
    sizes = scripts["rows"].deal(tmp_path, tmp_path / "out", "SST-2")
    parts = {
        name: [line.split("\t")[0].lower() for line in
               (tmp_path / "out" / "SST-2" / f"{name}.tsv").read_text().splitlines()[1:]]
        for name in ("train", "dev", "test")
    }  # fmt: skip
    assert sizes == {name: len(part) for name, part in parts.items()}
    assert (sizes["dev"], sizes["test"]) == (1400, 50)
    assert sizes["train"] > 500
    for name, part in parts.items():
        assert len({*part}) == len(part), f"{name} repeats a text"
        assert min(len(text.split()) for text in part) >= 12
    assert {*parts["test"]}.isdisjoint(parts["train"] + parts["dev"])
    assert not any(a in b or b in a for a in parts["train"] for b in parts["dev"])


def test_the_amendment_s_contrasts(scripts):
    amended = load_script("22_as_it_is/amended.py")
    lines = made_up()
    for own in lines.values():
        for line in [each for each in own if each["name"].startswith("prune")]:
            budget, worse = line["name"].split()[1], {"score": line["score"] - 0.05}
            own.append(line | {"name": f"effects, 4800 rows {budget}"})
            own.append(line | worse | {"name": f"effects, ten rounds {budget}"})
            own.append(line | worse | {"name": f"hand {budget}: same token"})
        own.append({"stage": "ended"})
    lines["SST-2", 9] = lines["SST-2", 0][:-1]  # has not ended
    found = amended.contrasts(lines).set_index(["contrast", "task", "budget"])
    tested = found.loc["dam - effects", "SST-2", 0.12]
    scored = scripts["tables"].named
    gaps = [
        scored(lines["SST-2", seed], "judge", "dam 0.12")["score"]
        - scored(lines["SST-2", seed], "judge", "effects, 4800 rows 0.12")["score"]
        for seed in SEEDS
    ]
    assert tested.difference == pytest.approx(fmean(gaps))
    assert tested.models == len(SEEDS)
    assert tested.level == 0.95  # QQP is not there, so the family has one test
    assert tested.adjusted_p == pytest.approx(tested.p)
    assert ("dam - drawn", "SST-2", 0.2) not in found.index  # the plan draws words alone there
    assert found.loc["dam - drawn", "STS-B", 0.2].difference > 0.05
    kept = amended.kept(lines).set_index(["task", "budget", "arm"])
    assert kept.loc["STS-B", 0.2, "dense"]["of dense"] == pytest.approx(1)
    assert set(amended.moved(lines)["difference"]) == {
        0.85 - scored(own, "choice", "dense")["score"]
        for model, own in scripts["tables"].all_lines().items()
        if model in lines and scored(own, "choice", "dense")
    }


@pytest.mark.parametrize("name", ["contrasts", "kept", "moved"])
def test_the_amendment_s_tables_are_those_of_its_lines(name):
    amended = load_script("22_as_it_is/amended.py")
    results = amended.RESULTS
    found = getattr(amended, name)(amended.all_lines(results / "amended"))
    stored = pd.read_csv(results / f"amended_{name}.csv")
    pd.testing.assert_frame_equal(stored, found, check_dtype=False, atol=1e-5, rtol=0)


def made_up_pairs(tmp_path):
    """A folder of toy pairs of sentences, and a checkpoint of their words."""
    draw = random.Random(0)
    header = (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    )
    for part, count in (("train", 2000), ("dev", 100)):
        lines = [header]
        for number in range(count):
            near = draw.randint(0, 4)
            words = draw.choices(WORDS[:40], k=near) + draw.choices(WORDS[40:], k=4 - near)
            words += draw.choices(WORDS[:40] if near > 2 else WORDS[40:], k=4)
            texts = " ".join(words[:4]), " ".join(words[4:])
            lines.append("\t".join([str(number), *["-"] * 6, *texts, f"{near + 1:.3f}"]))
        write_lines(tmp_path / "data/glue/STS-B" / f"{part}.tsv", lines)
    tiny_checkpoint(tmp_path / "checkpoint", WORDS)


def test_masks_to_take_are_those_of_the_lines(tmp_path, monkeypatch):
    take = load_script("22_as_it_is/take.py")
    kept, written = take.FOLDER, pd.read_csv(take.RESULTS / "masks.csv").set_index("file")
    monkeypatch.setattr(take, "FOLDER", tmp_path)
    rows = {
        file: take.take({at: each for at, each in lines.items() if at[0] == task}, task, budget)
        for task in ("STS-B", "QQP")
        for lines in [take.all_lines(take.TASKS[task])]
        for budget, file in ((0.2, f"{task}_20.json"), (0.12, f"{task}_12.json"))
    }
    for file, row in rows.items():
        assert (tmp_path / file).read_text("utf-8") == (kept / file).read_text("utf-8")
        for name, value in written.loc[file].dropna().items():
            assert value == (
                row[name] if isinstance(value, str) else pytest.approx(row[name], abs=6e-6)
            )


@pytest.mark.nightly
def test_as_it_is_smoke(tmp_path):
    made_up_pairs(tmp_path)
    words = ["--data", tmp_path / "data", "--weights", tmp_path / "checkpoint", "--tasks", "STS-B"]
    words += ["--seeds", "0", "1", "--budgets", "0.7", "--smoke"]
    words += ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    for _ in range(2):  # the second call finds every line
        run_script("22_as_it_is/run.py", *words, cache=tmp_path / "cache")
        lines = (tmp_path / "results/STS-B_0.jsonl").read_text().splitlines()
    records = list(map(json.loads, lines))
    known = [(r["stage"], r.get("rows"), r.get("name"), r.get("arm")) for r in records]
    assert len({*known}) == len(known)
    tables = load_script("22_as_it_is/tables.py")
    arms = [record["arm"] for record in records if record["stage"] == "search"]
    assert arms == [*tables.PLAN["arms"]]
    names = [line["name"] for line in tables.scored(records, "judge")]
    assert {"dense", "dam 0.7", "dam 0.7 of STS-B 1", "dam 0.7, consensus of 1"} < {*names}


@pytest.mark.nightly
def test_the_amendment_s_smoke(tmp_path):
    made_up_pairs(tmp_path)
    plan = tmp_path / "amendment.toml"
    plan.write_text(
        """
        [tasks]
        STS-B = { drawn = "all" }
        [models]
        each = 2
        tried = 4
        budgets = [0.7]
        [arms."effects, 4800 rows"]
        strategy = "prune"
        space = false
        trials = 2
        budgets = [0.7]
        tasks = ["STS-B"]
        options = { rows = 400, rounds = 2 }
        """
    )
    words = ["--data", tmp_path / "data", "--weights", tmp_path / "checkpoint", "--smoke"]
    words += ["--plan", plan, "--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    for _ in range(2):  # the second call finds every line
        run_script("22_as_it_is/amend.py", *words, cache=tmp_path / "cache")
    files = sorted((tmp_path / "results").glob("STS-B_*.jsonl"))
    each = [list(map(json.loads, file.read_text().splitlines())) for file in files]
    ended = [lines for lines in each if lines[-1]["stage"] == "ended"]
    assert len(ended) == 2
    for lines in ended:
        names = [line["name"] for line in lines if line.get("rows") == "judge"]
        assert {"dense", "dam 0.7", "effects, 4800 rows 0.7"} < {*names}
        assert any("same token" in name for name in names)
        assert len(names) == len({*names})
