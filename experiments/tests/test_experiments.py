"""Experiments: each has a command, a README and small results; its smoke run ends."""

import importlib
import itertools
import json
import os
import random
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from experiment_scripts import EXPERIMENTS, load_script, run_script
from real_data import DATA, real
from tiny_checkpoint import tiny_checkpoint
from tiny_decoder import tiny_decoder, written_text
from toy_sentences import write_sentences

from masksearch import masks
from masksearch.analysis.stats import PairedDifference
from masksearch.tasks.glue import load_glue

FOLDERS = sorted(path.parent for path in EXPERIMENTS.glob("*/run.py"))
LARGEST = 200_000  # bytes of a result that is kept
WORDS = {"21_recovered": 1_000, "22_as_it_is": 1_000}  # of a page, where it may have more than 900


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_experiment_is_documented_and_its_results_are_small(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"experiments/{folder.name}/run.py" in text
    assert len(text.split()) <= WORDS.get(folder.name, 900), "details go into results/notes.md"
    for path in (folder / "results").rglob("*"):
        assert path.stat().st_size <= LARGEST, f"{path} is too large to keep"


@pytest.mark.nightly
@real
@pytest.mark.filterwarnings("ignore:DAM")
def test_first_search_smoke(tmp_path):
    words = ["band", "dam", "compare", "tables", "--data", DATA, "--smoke"]
    printed = run_script("01_first_search/run.py", *words, "--runs", tmp_path / "runs")
    assert "dam" in printed
    assert (tmp_path / "runs" / "results" / "compare.csv").is_file()


@pytest.fixture
def importance(monkeypatch):
    """Loads a module of 02_importance."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "02_importance"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in ("stacked", "approximation", "controls"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("length", "depth"), list(itertools.product((2, 3, 4), (1, 2, 3))))
def test_importance_predicts_whose_token_reaches_whom(importance, length, depth):
    stacked, arms = importance("stacked"), importance("approximation").ARMS
    size = stacked.Size(length, vocabulary=3, depth=depth, width=8, heads=2, inner=8)
    weights = stacked.weights(size, [0] * len(arms))
    x = torch.tensor([[0, 1, 2, 0][:length]])
    before = stacked.logits(weights, size, arms, x)
    for key in range(length):
        other = x.clone()
        other[0, key] = (x[0, key] + 1) % 3
        moved = (stacked.logits(weights, size, arms, other) - before).abs().amax((1, 3)) > 1e-4
        for arm, changed in zip(arms, moved, strict=True):
            assert changed.equal(stacked.influences(arm, length, depth)[:, key]), (arm, key)


def test_importance_ceiling_counts_what_is_left_to_guess(importance):
    approximation = importance("approximation")
    x = approximation.all_sequences(3)
    everything = torch.ones(3, 3, dtype=torch.bool)
    others = ~torch.eye(3, dtype=torch.bool)
    for name in approximation.MAPS:
        assert approximation.ceiling(x, approximation.target(name, x, 0), everything) == 1
    assert approximation.ceiling(x, x, others) == 1 / 4  # a token of four is guessed
    assert approximation.ceiling(x, x.roll(-1, 1), others) == 1


def test_importance_models_of_a_stack_stay_apart(importance):
    stacked, approximation = importance("stacked"), importance("approximation")
    x = approximation.all_sequences(3)
    size = stacked.Size(3, vocabulary=4, depth=1, width=8, heads=2, inner=8)
    maps = torch.stack([approximation.target(name, x, 0) for name in ("sorting", "parity")])
    arms = [approximation.ARMS[1], approximation.ARMS[3]]
    settings = {"steps": 12, "batch": 16, "lr": 4e-3, "every": 4}
    both = stacked.fit(size, arms, [5, 6], x, maps, **settings)
    for model in (0, 1):
        alone = stacked.fit(size, arms[model:][:1], [5 + model], x, maps[model:][:1], **settings)
        assert alone[0].tokens == pytest.approx(both[model].tokens, abs=0.02)
    assert both[0] != both[1]


@pytest.mark.parametrize("mask", [masks.full(), masks.star()], ids=str)
def test_importance_random_cells_are_as_many_as_the_diagonal(importance, mask):
    controls = importance("controls")
    whole = mask.dense(12)[0, 0]
    draws = [controls.without_random(mask, 12, seed).dense(12)[0, 0] for seed in (0, 1)]
    for left in draws:
        gone = whole & ~left
        assert (gone.sum(1) == 1).all()
        assert not gone.diagonal().any()
        assert not (left & ~whole).any()
    assert not draws[0].equal(draws[1])


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.01, 0.01, "equivalent"),
        (0.001, 0.019, "equivalent"),
        (0.01, 0.03, "more"),
        (-0.03, -0.01, "less"),
        (-0.03, 0.01, "undecided"),
        (float("nan"), float("nan"), "one seed decides nothing"),
    ],
)
def test_importance_verdict_needs_the_whole_interval_inside_the_margin(
    importance, low, high, word
):
    difference = PairedDifference((low + high) / 2, low, high, 0.5, 4)
    assert importance("controls").verdict(difference, 0.02) == word


@pytest.mark.nightly
def test_importance_smoke(tmp_path):
    stages, files = ["approximation", "planted"], ["approximation.csv", "planted.png"]
    arguments = ["--smoke", "--runs", tmp_path / "runs"]
    if "MASKSEARCH_DATA" in os.environ:
        stages += ["text", "importance"]
        files += ["text_differences.csv", "importance_text.png", "dynamics_planted.csv"]
        arguments += ["--data", DATA]
    run_script("02_importance/run.py", *stages, *arguments)
    results = tmp_path / "runs" / "results"
    for name in files:
        assert (results / name).is_file()
    said = set(pd.read_csv(results / "planted_differences.csv").verdict)
    assert said <= {"equivalent", "more", "less", "undecided", "one seed decides nothing"}


@pytest.mark.nightly
@real
def test_dam_text_smoke(tmp_path):
    words = ["find", "judge", "table", "--data", DATA, "--seeds", "0", "--smoke"]
    run_script("06_dam_text/run.py", *words, "--runs", tmp_path)
    rows = (tmp_path / "results" / "judged.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"dam", "star", "by hand"}


@pytest.mark.nightly
def test_sparsebert_table_smoke(tmp_path):
    words, draw = [f"w{number}" for number in range(60)], random.Random(0)
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    for part in ("train", "dev"):  # the answer is in the words
        said = [(draw.choices(words[n % 2 :: 2], k=draw.randint(4, 10)), n % 2) for n in range(96)]
        lines = ["sentence\tlabel", *(f"{' '.join(text)}\t{label}" for text, label in said)]
        (tmp_path / "glue" / "SST-2" / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    run_script(
        "12_sparsebert_table/run.py",
        *("dense", "gates", "none", "finetune", "table", "--smoke"),
        *("--data", tmp_path, "--runs", tmp_path / "runs"),
        *("--weights", tiny_checkpoint(tmp_path / "checkpoint", words)),
        *("--tasks", "SST-2", "--seeds", "0"),
        *("--masks", "dense", "star", "DAM_u 1e-4"),
    )
    rows = (tmp_path / "runs" / "results" / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3


@pytest.mark.nightly
@real
def test_random_text_smoke(tmp_path):
    words = ["search", "judge", "table", "--data", DATA, "--smoke"]
    run_script("13_random_text/run.py", *words, "--runs", tmp_path)
    rows = (tmp_path / "results" / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 6


@pytest.mark.nightly
def test_planted_recall_smoke(tmp_path):
    assert "no table" in run_script(
        "14_planted_recall/run.py", "table", "--smoke", "--runs", tmp_path / "nothing"
    )
    stages = ["train", "judge", "find", "draw", "table"]
    run_script("14_planted_recall/run.py", *stages, "--smoke", "--runs", tmp_path)
    found = pd.read_csv(tmp_path / "results" / "regret.csv")
    assert {"dam switches", "allocate gates", "tpe", "last heads"} <= {*found.method}
    assert (found.regret > -1e-6).all()
    greedy = found[(found.method == "allocate greedy addition") & (found.budget == 1)]
    assert greedy.regret.item() == pytest.approx(0, abs=1e-6)  # it judges each head alone


@pytest.mark.nightly
def test_shared_weights_smoke(tmp_path):
    run_script("08_shared_weights/run.py", "--smoke", "--run", tmp_path)
    (line,) = (tmp_path / "results" / "table.csv").read_text().splitlines()[1:]
    assert line.startswith("graded,smoke,100,9,")


@pytest.mark.parametrize("density", [0.1, 0.29, 0.3, 0.84, 0.85, 0.0])
def test_shared_weights_bands_are_half_open(monkeypatch, density):
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "08_shared_weights"))
    truth = importlib.import_module("truth")
    sys.modules.pop("truth")
    band = truth.band_of(density, (0.1, 0.3, 0.85))
    assert band == {0.1: 0, 0.29: 0, 0.3: 1, 0.84: 1}.get(density)


@pytest.mark.slow
@real
@pytest.mark.parametrize("task", ["QQP", "QNLI"])
def test_rows_of_selectors_models_and_judges_share_no_text(task, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "15_referee"))
    rows = importlib.import_module("rows")
    sizes = rows.deal(task, DATA, tmp_path)
    assert sizes["select"] == 4_800
    dealt = []
    for folder, name in (("fit", "train"), ("select", "train"), ("judge", "test")):
        path = tmp_path / folder / task / f"{name}.tsv"
        found = rows.read(path, task)[1]
        dealt.append({text for texts, _ in found for text in texts})
    for one, two in itertools.combinations(dealt, 2):
        assert one.isdisjoint(two)
    sys.modules.pop("rows")


@pytest.mark.slow
@real
def test_rows_that_judge_selectors_were_judged_before_as_often_as_the_page_says(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "15_referee"))
    rows = importlib.import_module("rows")
    page = (EXPERIMENTS / "15_referee" / "README.md").read_text(encoding="utf-8")
    glue, seen = DATA / "glue", {}

    def texts(folder: Path, task: str, **part: object) -> set[tuple[str, ...]]:
        return {*next(iter(load_glue(folder, task, **part).dev.values())).texts}

    for task in ("STS-B", "QNLI"):
        rows.deal(task, DATA, tmp_path)
        judging = texts(tmp_path / "judge", task, dev_rows=2_000, split="test")
        final = texts(glue, task, dev_rows=1_000, split="holdout")
        search = texts(glue, task, dev_rows=400, split="validation")
        seen[task] = [len(judging), len(judging & final), len(judging & search)]
    assert seen["STS-B"] == [607, 607, 0]
    assert "All 607 judging rows of STS-B are among the final rows" in page
    told = (
        "{:,} judging rows {} are among the final rows there, and {} among those of its searches"
    )
    assert told.format(*seen["QNLI"]) in " ".join(page.split())
    sys.modules.pop("rows")


def run_glue_fronts(folder: Path, script: str, *arguments: str) -> Path:
    """Runs a script of 11_glue_fronts at smoke size on planted data; returns its results."""
    data, runs = write_sentences(folder), folder / "runs"
    sentences = (folder / "glue" / "SST-2" / "train.tsv").read_text().splitlines()[1:]
    (folder / "wikitext-2").mkdir()
    for part in ("train", "valid"):
        text = "\n".join(line.split("\t")[0] for line in sentences * 4)
        (folder / "wikitext-2" / f"{part}.txt").write_text(text)
    given = ["--data", data, "--weights", data / "checkpoint", "--tasks", "SST-2"]
    given += [*arguments, "--smoke", "--runs", runs]
    run_script(f"11_glue_fronts/{script}", *given, cache=folder / "cache")
    return runs / "results"


@pytest.mark.nightly
def test_glue_fronts_smoke(tmp_path):
    stages = ["dense", "search", "judge", "predict", "recover", "finetune"]
    stages += ["pretrain", "tables"]
    arms = ["--seeds", "0", "--arms", "dam,dam layers,random,allocate restore"]
    results = run_glue_fronts(tmp_path, "run.py", *stages, *arms)
    scores = pd.read_csv(results / "scores.csv")
    assert set(scores.model) == {"own", "fresh"}
    trained = {"judged", "recovered", "finetuned_1", "finetuned_3", "pretrained"}
    assert set(scores.stage) == trained
    found = set(scores["mask"])
    assert {"dense", "dam 0.3", "random keys 0.15", "hand-designed 0.5", "attention 0.3"} <= found
    assert (scores[scores["mask"] == "dense"].effective_density == 1).all()
    assert pd.read_csv(results / "predicted.csv").spearman.between(-1, 1).all()


@pytest.mark.slow
@pytest.mark.ray
def test_glue_fronts_go_on_when_a_node_is_killed(tmp_path):
    found = pd.read_csv(run_glue_fronts(tmp_path, "two_nodes.py") / "two_nodes.csv")
    assert (found.killed_nodes == 1).all()
    assert (found.judged == found.masks).all()
    assert (found.masks == 4).all()
    assert (found.equal_scores == found.also_judged_alone).all()
    assert found.also_judged_alone.max() > 0


def write_novels(folder: Path, length: int) -> Path:
    """english-novels/, and a decoder that predicts them: its folder."""
    words = ["=", *(f"w{number}" for number in range(12))]
    model = tiny_decoder(
        folder / "model", words, num_hidden_layers=4, initializer_range=0.05,
        max_position_embeddings=512,
    )  # fmt: skip
    text = written_text(model, folder / "text", words, length=length)
    articles = [
        line for path in sorted(text.glob("*.txt")) for line in path.read_text().split("=")
    ]
    novels = folder / "english-novels"
    novels.mkdir()
    for number, article in enumerate(each for each in articles if len(each) > 500):
        (novels / f"novel{number:02}.txt").write_text(article)
    return model


@pytest.mark.nightly
def test_served_smoke(tmp_path):
    model = write_novels(tmp_path, 600)
    options = ["--data", tmp_path, "--weights", model, "--runs", tmp_path / "runs"]
    run_script("17_served/run.py", "judge", "tables", "--smoke", *options)
    bands = pd.read_csv(tmp_path / "runs" / "results" / "bands.csv")
    assert {"dense", "6 128 attached", "6 128 tuned", "6 128 logits", "12 128 window"} <= {
        *bands.form
    }
    means = bands[bands["from"] == 0].groupby("form").nats.mean()
    # within the window the mask and a window alone are dense attention
    assert means["6 128 attached"] == pytest.approx(means["dense"], abs=1e-4)
    assert means["6 128 window"] == pytest.approx(means["dense"], abs=1e-4)
    run_script("17_served/run_windows.py", "--smoke", *options)
    judged = pd.read_csv(tmp_path / "runs/windows/windows.csv").set_index("form")
    assert judged.share["dense"].eq(1).all()
    assert len(judged.loc["searched"]) == len(judged.loc["dense"]) > 1
    assert judged.nats.notna().all()


@pytest.mark.nightly
def test_smollm2_smoke(tmp_path):
    model = write_novels(tmp_path, 300)
    stages = ["search", "judge", "longer", "recover", "native", "windows", "tables"]
    options = ["--data", tmp_path, "--weights", model, "--runs", tmp_path / "runs"]
    options += ["--arms", "restore,switch,random"]
    run_script("10_smollm2/run.py", *stages, "--smoke", *options)
    results = tmp_path / "runs" / "results"
    judged = pd.read_csv(results / "judged.csv").set_index("mask")
    assert {"dense", "restore 2", "first 2", "random layers 0 2"} <= {*judged.index}
    assert judged.kv_bytes["dense"] == 1
    native = json.loads((results / "native.json").read_text())
    recovered = pd.read_csv(results / "recovered.csv").set_index("mask")
    assert {*recovered.index} == {"restore 2", "every n-th 2", "dense"}
    windows = pd.read_csv(results / "windows.csv").set_index("mask")
    assert windows.kv_bytes["widest window 2"] <= windows.kv_bytes["restore 2"]
    assert len(pd.read_csv(results / "windows_recovered.csv")) == 1
    bare = pd.read_csv(results / "bare.csv").set_index("mask")
    assert native["nll"] == pytest.approx(
        bare.nll["restore 2, no sinks"], abs=0.1
    )  # 256 tokens on
    assert len(native["novels"]) == len(judged.filter(like="novel_").columns)
    novel = judged.filter(like="novel_")
    assert (judged.nll - novel.mean(axis=1)).abs().max() < 1e-4


# -- the cards of 07_proxy -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def card_script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS / "07_proxy")  # its helper lies beside it
        return load_script("07_proxy/card.py")


@pytest.fixture
def trained(tmp_path):
    scores = []
    for index in range(12):
        for seed in (0, 1):
            facts = {
                "mask": f"m{index}",
                "density": 0.1 + index % 2 / 100,
                "seed": seed,
                "curve": {"100": 5 - index / 20 - seed / 100, "400": 4 - index / 10},
            }
            (tmp_path / f"m{index}-{seed}.json").write_text(json.dumps(facts))
            for task, majority in (("SST-2", 0.5), ("QQP", 0.62)):
                row = {"mask": f"m{index}", "seed": seed, "step": 400, "setting": "full"}
                row |= {"task": task, "score": majority + index / 100, "majority": majority}
                scores.append(row)
    scores.append({**scores[0], "mask": "unknown"})
    scores.append({**scores[0], "score": scores[0]["score"] + 0.2})  # a second fine-tuning
    (tmp_path / "scores-0.json").write_text(json.dumps(scores))
    return tmp_path


def test_curves_and_scores_become_observations(card_script, trained):
    losses = card_script.curves(trained)
    assert len(losses) == 12 * 2 * 2
    densities = {mask: density for mask, density, *_ in losses}
    tuned = card_script.of_scores(card_script.scores(trained), densities)
    values = {(mask, seed, measure): value for mask, _, seed, _, measure, value in tuned}
    assert values["m0", 0, "SST-2 (full)"] == pytest.approx(0.6)  # mean of two fine-tunings
    assert values["m3", 1, "mean of the GLUE tasks (full)"] == pytest.approx((0.53 + 0.65) / 2)
    assert "unknown" not in {mask for mask, *_ in tuned}
    learned = card_script.at_majority(card_script.scores(trained)).set_index("task")["learned"]
    assert learned.to_dict() == {"SST-2": True, "QQP": True}


@pytest.mark.nightly
def test_cards_are_written(card_script, trained, monkeypatch, capsys, tmp_path):
    results = tmp_path / "results"
    words = ["card.py", "--runs", trained, "--results", results, "--bands", 1]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    card_script.main()
    out = capsys.readouterr().out
    assert "Valid from 100 steps on: loss as a proxy of loss at 400 steps." in out
    for name in ("loss.png", "loss.csv", "glue_full.txt", "observations.csv", "learned.csv"):
        assert (results / name).is_file()


def test_recorded_curves_are_read(card_script):
    place = EXPERIMENTS / "04_halving_replay" / "results" / "text_400.csv"
    found = card_script.recorded(place, "loss")
    assert len({mask for mask, *_ in found}) == 24
    assert sorted({budget for *_, budget, _, _ in found}) == [3, 6, 12, 25, 50, 100, 200, 400]
