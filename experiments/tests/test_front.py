"""19_front: rows that stay apart, lines from which a search goes on, and its analysis."""

import json
import os
from itertools import combinations
from pathlib import Path
from statistics import fmean
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
from experiment_scripts import EXPERIMENTS, load_script, run_script
from scipy import stats
from toy_sentences import WORDS, write_lines, write_sentences

import masksearch as ms
from masksearch import masks
from masksearch.masks.lower import lower
from masksearch.masks.measure import effective_density, fingerprint
from masksearch.tasks.glue import load_glue

FOLDER = EXPERIMENTS / "19_front"
DATA = os.environ.get("MASKSEARCH_DATA")


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    return {name: load_script(f"19_front/{name}.py") for name in ("rows", "kept", "tables", "run")}


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="MASKSEARCH_DATA names no folder with real data")
def test_searches_train_and_score_on_rows_that_share_no_sentence(scripts, tmp_path):
    rows = scripts["rows"]
    rows.deal(Path(str(DATA)), tmp_path)
    parts, count = {}, 0
    for name in ("train", "dev"):
        path = tmp_path / "search" / "STS-B" / f"{name}.tsv"
        texts = load_glue(tmp_path / "search", rows.CENTRED)
        found = texts.train if name == "train" else texts.dev["STS-B"]
        assert len(found) == len(path.read_bytes().splitlines()) - 1
        count += len(found)
        parts[name] = {text for row in found.texts for text in row}
        assert max(map(abs, found.labels)) == 2.5
    assert parts["train"].isdisjoint(parts["dev"])
    assert count == len(load_glue(Path(str(DATA)) / "glue", "STS-B").train)  # nothing else is read
    dev = load_glue(Path(str(DATA)) / "glue", "STS-B").dev["STS-B"]
    judge = load_glue(tmp_path / "judge", rows.CENTRED, split="test").dev["STS-B"]
    assert judge.texts == dev.texts
    assert judge.labels == pytest.approx([label - 2.5 for label in dev.labels], abs=1e-3)


@pytest.mark.nightly
def test_names_of_drawn_masks_are_those_that_were_judged(scripts):
    """What is hand-designed grows; what this experiment has judged does not."""
    shape, run = ms.Shape(64, 6, 12, lengths={28: 1}), scripts["run"]
    front = SimpleNamespace(proxy=SimpleNamespace(shape=shape), budgets=[0.5, 0.3, 0.2, 0.12])
    names = {name.rpartition(" ")[0] for name in run.Front.drawn_masks(front)}
    assert names <= {*run.DRAWN, "window", "signed shifts"}
    recorded = {
        line["name"]: line["fingerprint"]
        for line in map(json.loads, (FOLDER / "results/judged_heads.jsonl").open(encoding="utf-8"))
    }
    made = run.Front.whole_heads(front)
    assert {name: fingerprint(mask, shape) for name, mask in made.items()} == recorded


def test_masks_go_through_a_line(scripts):
    kept = scripts["kept"]
    for mask in (
        masks.bigbird(),
        masks.table(masks.star().dense(9)),
        masks.per_layer([masks.full()]),
    ):
        assert kept.unpacked(kept.packed(mask)) == mask


def test_shares_by_layer_are_those_of_the_masks_that_were_chosen(scripts):
    """What the page says of DAM's layers, pair by pair at 28 tokens."""
    results = FOLDER / "results"
    stored = pd.read_csv(results / "layers.csv").set_index(["search", "budget"])
    lines = scripts["tables"].read(results / "dam_3.jsonl")
    mask = scripts["kept"].unpacked(scripts["tables"].best_within(lines, 0.2)["mask"])
    shares = []
    for heads in mask.dense(64, 6, 12):
        kept = [
            bool(head[query, key]) for head in heads for query in range(28) for key in range(28)
        ]
        shares.append(sum(kept) / len(kept))
    assert stored.loc[(3, 0.2)]["share"].tolist() == pytest.approx(shares, abs=1e-5)


def test_searches_are_compared_with_the_best_family_of_each_budget(scripts, tmp_path):
    tables = scripts["tables"]
    judged = {("drawn", "star 0.5"): 0.3, ("drawn", "bigbird 0.5"): 0.4}
    judged |= {("drawn", "signed shifts 0.5"): 0.9, ("drawn", "dense 1"): 1.0}  # are no families
    judged |= {("drawn", "star 0.2"): 0.2}
    for number, arm in enumerate(tables.ARMS):
        for search in (0, 1):
            found = [{"score": 0.1, "density": at} for at in (0.5, 0.2)]
            text = "".join(json.dumps(line | {"setting": ""}) + "\n" for line in found)
            (tmp_path / f"{arm}_{search}.jsonl").write_text(text)
            judged[f"search {search}", f"{arm} 0.5"] = 0.5 + number / 10 + search / 10
            judged[f"search {search}", f"{arm} 0.2"] = 0.1 * search
    lines = [
        {"where": where, "name": name, "density": 0.5, "score": score}
        for (where, name), score in judged.items()
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "judged_STS-B_card.jsonl").write_text(text)
    found = tables.above_families(tmp_path, [0.5, 0.2]).set_index(["measure", "arm"])["value"]
    for number, arm in enumerate(tables.ARMS):
        half, fifth = 0.55 + number / 10 - 0.4, 0.05 - 0.2
        assert [found[at, arm] for at in ("0.5", "0.2", "mean")] == pytest.approx(
            [half, fifth, (half + fifth) / 2]
        )


def test_permutation_counts_the_ways_to_deal_the_searches(scripts):
    one, other = [0.31, 0.4, 0.38, 0.36], [0.3, 0.37, 0.28, 0.33, 0.29]
    expected = stats.permutation_test(
        (one, other), lambda a, b: a.mean() - b.mean(), n_resamples=10_000
    )
    doubled = scripts["tables"].permutation(one, other)
    assert scripts["tables"].permutation([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == 2 / 252
    assert doubled == pytest.approx(expected.pvalue, abs=0.02)
    pooled, ways = {*one, *other}, list(combinations([*one, *other], len(one)))
    gaps = [abs(fmean(way) - fmean(pooled - {*way})) for way in ways]
    assert doubled == sum(gap >= gaps[0] - 1e-12 for gap in gaps) / len(ways)


def test_a_budget_without_a_mask_counts_as_a_constant_answer(scripts):
    tables = scripts["tables"]
    picked = pd.DataFrame(
        {"arm": "dam", "search": [0, 0, 1, 1], "budget": [0.5, 0.2] * 2,
         "proxy": [0.3, None, 0.3, 0.2]}
    )  # fmt: skip
    scores = pd.DataFrame(
        {"arm": ["dam", "dam"], "where": ["search 0", "search 1"], "budget": 0.5,
         "score": [0.6, 0.5]}
    )  # fmt: skip
    found = tables.by_search(picked, scores)
    assert found.to_dict("records") == [{"arm": "dam", "search": 0, "score": 0.3}]  # 1: not whole


def test_what_is_chosen_is_within_its_budget(scripts):
    lines = [{"score": 0.5, "density": 0.31}, {"score": 0.4, "density": 0.3}]
    best = scripts["tables"].best_within
    assert [best(lines, budget) for budget in (0.35, 0.3, 0.2)] == [*lines, None]


@pytest.mark.slow
def test_the_drawn_masks_and_controls_of_the_run_are_within(scripts):
    run, shape = scripts["run"], ms.Shape(32, 2, 4, lengths={12: 3, 30: 1})
    for budget in (0.6, 0.3):
        for make in (
            lambda width: run.tiles(4, width), lambda count: run.random_keys(2, 4, count)
        ):  # fmt: skip
            mask = run.densest(budget, lambda m: effective_density(m, shape), make, range(1, 30))
            assert 0.5 * budget < effective_density(mask, shape) <= budget
            assert lower(mask, shape).any(-1).all()


def write_pairs(folder: Path) -> Path:
    """`glue/` with STS-B and MRPC beside SST-2, and `wikitext-2/`, of toy words."""
    write_sentences(folder)
    sentences = [" ".join(WORDS[at : at + 5]) for at in range(70)]
    names = {
        "STS-B": "index\tsentence1\tsentence2\tscore",
        "MRPC": "Quality\t#1 String\t#2 String",
    }
    for task, header in names.items():
        for part, first in (("train", 0), ("dev", 300)):
            rows = [header]
            for at in range(first, first + 160):
                pair = f"{sentences[at % 70]} {at}\t{sentences[(at * 7) % 70]} {at + 1_000}"
                rows.append(f"{at}\t{pair}\t{at % 6}" if task == "STS-B" else f"{at % 2}\t{pair}")
            write_lines(folder / "glue" / task / f"{part}.tsv", rows)
    for part in ("train", "valid", "test"):
        write_lines(folder / "wikitext-2" / f"{part}.txt", [f"{each} ." for each in sentences * 9])
    return folder


@pytest.mark.slow
@pytest.mark.ray
def test_front_smoke(tmp_path):
    data, runs = write_pairs(tmp_path / "data"), tmp_path / "runs"
    stages = ["card", "search", "drawn", "judge", "tables"]
    words = [*stages, "--data", data, "--runs", runs, "--weights", data / "checkpoint", "--smoke"]
    run_script("19_front/run.py", *words, cache=tmp_path / "cache")
    chosen = pd.read_csv(runs / "results" / "chosen.csv")
    assert set(chosen["arm"]) == {"random", "tpe", "dam"}
    assert (chosen["density"] <= chosen["budget"] + 1e-6).all()
    judged = pd.read_csv(runs / "results" / "scores_STS-B.csv")
    assert {"dense", "random", "tpe", "dam"} <= set(judged["arm"])
    costs = pd.read_csv(runs / "results" / "costs.csv")
    assert (costs["tokens"] > 0).all()
