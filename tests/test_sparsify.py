"""sparsify: one command from a trained encoder to a folder with a sparse mask and its weights."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from real_data import DATA, minilm, real
from safetensors.torch import load_file
from scipy.stats import pearsonr
from split_evaluators import embedding
from tiny_checkpoint import tiny_checkpoint, tiny_embedding
from tiny_encoders import sizes
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from toy_sentences import WORDS, write_lines
from transformers import AutoTokenizer

import masksearch as ms
from masksearch import Comparison, masks
from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.stats import PairedDifference
from masksearch.contracts import Evaluate, Objective, Record
from masksearch.errors import DataError, SearchError
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.models.checkpoints import verify
from masksearch.sparsifier.answers import agreement_of, beside, describe_loss
from masksearch.sparsifier.files import Sparsified, check_folder, save
from masksearch.sparsifier.request import SparsifyRequest
from masksearch.sparsifier.stages import (
    choose_candidates,
    halve,
    judge_masks,
    prepare,
    search_masks,
    shortlist,
)
from masksearch.sparsifier.ways import Measurements, Way
from masksearch.tasks.glue.columns import Columns
from masksearch.training.loop import follow_trainings

QUICK = {"epochs": 4, "finetune_lr": 3e-3, "finetune_batch": 8, "gates_batch": 8}
QUICK |= {"length": 16, "device": "cpu"}
GATES = {"gates": {"structure": "free"}, "config": {"steps": 40, "gate_lr": 0.3}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, and reviews of three classes in CSV files."""
    folder, draw = tmp_path_factory.mktemp("sparsify"), random.Random(0)
    tiny_checkpoint(folder / "checkpoint", WORDS)
    for part, count in (("train", 180), ("dev", 90)):
        lines = ["text,label"]
        for number in range(count):
            kind = number % 3
            words = draw.choices(WORDS[kind * 25 : (kind + 1) * 25], k=draw.randint(4, 9))
            lines.append(f'"{" ".join(words)}, ok",{("bad", "good", "so so")[kind]}')
        write_lines(folder / "reviews" / f"{part}.csv", lines)
    return folder


def sparsify(place: Path, out: Path, budget: float = 0.6, **changes: Any) -> Sparsified:
    given: dict[str, Any] = {
        "task": Columns(("text",), "label"),
        "strategy_options": GATES,
        "settings": QUICK,
        "recover_steps": 4,
        "seeds": 1,
        "progress": None,
    }
    model = changes.pop("model", place / "checkpoint")
    return ms.sparsify(model, place / "reviews", budget, out=out, **(given | changes))


def words_of(place: Path, out: Path, *more: str) -> list[str]:
    named = [f"--set={name}={value}" for name, value in QUICK.items() if name != "length"]
    return [
        *("sparsify", str(place / "checkpoint"), "--data", str(place / "reviews")),
        *("--text", "text", "--label", "label", "--budget", "0.6", "--out", str(out)),
        *("--length", "16", "--recover-steps", "4", *named, *more),
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks `sparsify` for, which is interrupted at once."""
    told = dict[str, Any]()

    def remember(*_: object, **named: Any) -> None:
        told.update(named)
        raise KeyboardInterrupt

    monkeypatch.setattr("masksearch.sparsifier.sparsify", remember)
    return told


def judge_of(data: Path, task: Any, weights: Path, length: int = 16) -> GlueEvaluator:
    how: dict[str, Any] = {"adapt": "none", "split": "holdout", "rows": None, "dev_rows": None}
    how |= {"length": length, "device": "cpu"}
    return GlueEvaluator(None, data, tasks=(task,), weights=weights, **how)


@pytest.mark.slow
def test_the_folder_holds_the_weights_that_were_scored_under_their_mask(place, tmp_path):
    found = sparsify(place, tmp_path / "out")
    result = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert result["answer"] == found.answer
    assert result["outcome"] == "too few seeds"
    assert "too few seeds" in found.answer
    saved = result["saved"]
    assert saved["density"] <= 0.6
    model = ms.load_pretrained(found.folder)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert [*model.config.id2label.values()] == ["bad", "good", "so so"]
    task = Columns(("text",), "label").read(place / "reviews")
    judge = judge_of(place, task, found.folder / "run" / "dense")
    rows, right = judge.tokens().dev["reviews"], 0
    for at in range(len(rows)):
        batch = judge.inputs(rows, [at])
        label = int(batch.pop("labels"))
        with torch.no_grad():
            right += int(model(**batch).logits.argmax()) == label
    assert right / len(rows) == pytest.approx(saved["score"])
    card = (found.folder / "README.md").read_text("utf-8")
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    assert tokenizer.model_max_length == ms.saved_masks(found.folder)["self"].longest == 16
    assert tokenizer.padding_side == "right"
    body = card.split("---\n", 2)[2].strip()
    assert body.startswith("**Transformers alone refuses this folder")
    assert found.answer in card
    assert (found.folder / "report.html").stat().st_size > 10_000
    assert verify(found.folder)


@pytest.mark.nightly
def test_a_fine_tuned_checkpoint_is_taken_as_it_is_and_calls_are_repeated(place, tmp_path):
    sparsify(place, tmp_path / "first")
    dense = tmp_path / "first" / "run" / "dense"
    how: dict[str, Any] = {"strategy": "random", "strategy_options": None, "trials": 2}
    found = sparsify(place, tmp_path / "out", model=dense, seeds=3, **how)
    assert not (tmp_path / "out" / "run" / "dense").exists()
    assert found.comparison.entries.keys() >= {"dense", "random"}
    advice = found.comparison.recommend(0.6)
    assert found.answer.startswith(advice.sentence)
    assert ("The same call with 5 seeds" in found.answer) == (advice.outcome == "not told apart")
    before = found.study.frame()["seconds"].tolist()
    again = sparsify(place, tmp_path / "out", model=dense, seeds=3, **how)
    assert again.answer == found.answer
    assert again.study.frame()["seconds"].tolist() == before  # nothing was trained again
    with pytest.raises(DataError, match="was begun with seed=0, got 1; give a new folder"):
        sparsify(place, tmp_path / "out", model=dense, seed=1, **how)


@pytest.mark.slow
def test_the_dense_model_is_shown_while_it_trains_and_a_call_that_goes_on_counts_the_rest(
    place, tmp_path, capsys, monkeypatch
):
    """Stopped within the search, and twice while its masks are judged."""
    said, enough, told = [], {"search": 0, "compare": 3}, ms.driver.Session.tell

    def stopped(session: Any, record: Record) -> None:
        told(session, record)
        at, *_ = session.workdir.name.split("-")
        enough[at] = enough.get(at, 0) - 1
        if enough[at] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(ms.driver.Session, "tell", stopped)
    for enough["search"] in (5, 10**6, 10**6):
        with pytest.raises(KeyboardInterrupt):
            sparsify(place, tmp_path / "out", progress="auto", seeds=3)
        said.append(capsys.readouterr().err)
        enough["compare"] = 2
    assert re.search(r"^dense model of reviews, seed 0: \d+ steps$", said[0], re.M)
    assert "a dense model (" in said[0]
    plans = [
        re.search(r"^sparsify: (.* masks are hand-designed.*)", each, re.M)[1] for each in said
    ]
    masks_left = [re.findall(r"(\d+) recoveries of 1 steps", plan) for plan in plans]
    assert int(masks_left[1][0]) == int(masks_left[0][0]) - 5
    assert ["gates (40 steps)" in plan for plan in plans] == [True, True, False]
    judged = [int(re.search(r"(\d+) that judge", plan)[1]) for plan in plans]
    assert judged == [9, 9, 7]
    assert all(" to come; " in plan for plan in plans)


@pytest.mark.nightly
def test_several_budgets_get_a_folder_each(place: Path, tmp_path: Path, command: Any) -> None:
    more = ("--budget", "0.8", "--seeds", "1", "--json")
    out, err = command(*words_of(place, tmp_path / "out", *more))
    assert "sparsify: reviews: 3 classes: bad 60, good 60, so so 60\n" in err
    assert (tmp_path / "out" / "0.6" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "0.8" / "model.safetensors").is_file()
    assert '"budget": 0.8' in out
    assert "recoveries of 1 steps" in err
    assert err.count("a dense model (") == 1  # which both share


@pytest.mark.slow
def test_one_set_of_options_names_a_table_of_ones_own_for_every_job(place, tmp_path, command):
    table = ["--data", str(place / "reviews"), "--text", "text", "--label", "label"]
    table += ["--weights", str(place / "checkpoint"), "--adapt", "none", "--length", "16"]
    settings = (f"{name}={value}" for name, value in QUICK.items() if name not in ("length",))
    table += [f"--set={each}" for each in settings if "gates" not in each]
    understood = "reviews: 3 classes: bad 60, good 60, so so 60\n"
    space, run = "masksearch.spaces:distances", str(tmp_path / "run")
    jobs = (
        ["check", space, *table],
        ["search", space, "--trials", "2", "--seed", "1", "--run", run, *table],
        ["compare", f"{run}#0", *"--controls dense --seeds 1 --run".split(), f"{run}-2", *table],
    )
    for job in jobs:
        out, err = command(*job)
        assert understood in err
        assert "#0" not in err.partition(understood)[0]  # before anything is judged
    assert f"masksearch attach MODEL {run}-2 --time --out FOLDER --budget SHARE" in out
    compared = Comparison.open(f"{run}-2")
    assert compared.entries["dense"].score.value > 0.5
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    command("resume", str(moved), "--trials", "3")  # from another folder, by absolute paths
    assert len(ms.open_study(moved).records()) == 3
    judge = GlueEvaluator(
        None, place / "reviews", tasks=(Columns(("text",), "label"),),
        weights=place / "checkpoint", adapt="none",
    )  # fmt: skip
    assert judge.describe("reviews") + "\n" == understood
    read = Columns(("text",), "label").read(place / "reviews")
    assert judge == replace(judge, glue=place, tasks=(read,))


def test_columns_are_one_task(place):
    own = Columns(("text",), "label")
    with pytest.raises(ValueError, match="is one task; got 2 tasks: give Columns alone, or"):
        GlueEvaluator(None, place / "reviews", tasks=(own, "SST-2"), weights=place / "checkpoint")


READ = "--data D --text text --label label --set"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--data D --glue G", "give --glue FOLDER --tasks NAME, or --data FOLDER"),
        ("--data D --text text --length 16", "that classifies; name the labels' column (--label)"),
        ("--data M --text text --label label", "MODEL comes first, then --data FOLDER; "),
        ("--data D --text text --label stars", "line 1: no column stars; reviews needs"),
        ("--glue D --tasks STS", "STS-B"),
        ("--glue D --tasks STS-B --label x", "--label needs --data FOLDER"),
        ("--glue D", "give --glue FOLDER --tasks NAME, or --data FOLDER"),
        ("--tasks STS-B", "--tasks needs --glue FOLDER"),
        (f"{READ} epoch=1", "epochs"),
        (f"{READ} dam.step=40", "unknown setting of dam 'step'; did you mean 'steps'"),
        (f"{READ} damm.steps=4", "unknown prefix of --set 'damm'; did you mean 'dam'"),
        (f"{READ} prune.rows=3", "prune.rows belongs to strategy prune; the strategy is 'dam'"),
        (f"{READ} units.levels=[]", "--set units.levels belongs to masksearch search; here --set"),
        (f"{READ} halving.factor=3", "here --set takes NAME=VALUE, "),
    ],
)
def test_mistakes_are_one_line(place, tmp_path, given, message, command):
    places = {"D": str(place / "reviews"), "M": str(place / "checkpoint")}
    words = [places.get(word, word) for word in given.split()]
    words = ["--budget", "0.5", "--out", str(tmp_path / "out"), *words]
    assert message in command.refused("sparsify", place / "checkpoint", *words)
    assert not (tmp_path / "out").exists()


FREE, TOEPLITZ = ({"gates": {"structure": name}} for name in ("free", "toeplitz"))


@pytest.mark.parametrize(
    ("given", "settings", "options"),
    [
        ("", {}, None),
        ("epochs=3", {"epochs": 3}, None),
        (
            "dam.steps=40 dam.densities=[.2] rows=9",
            {"rows": 9},
            FREE | {"config": {"steps": 40, "gate_lr": 0.1}, "densities": (0.2,)},
        ),
        (
            "dam.structure=toeplitz dam.density=.3 dam.gate_lr=.5",
            {},
            TOEPLITZ | {"config": {"steps": 150, "gate_lr": 0.5, "density": 0.3}},
        ),
        ("prune.rounds=5 --strategy=prune", {}, {"rounds": 5}),
    ],
)
def test_settings_reach_the_strategy(place, tmp_path, command, asked, given, settings, options):
    words = words_of(place, tmp_path / "out")
    words = [word for word in words if not word.startswith("--set=")]
    words += [word if "--" in word else f"--set={word}" for word in given.split()]
    assert command.run(*words)[0] == 130
    assert asked["settings"] == {**settings, "length": 16}
    assert asked["strategy_options"] == options


@pytest.mark.usefixtures("asked")
def test_an_interrupt_says_how_to_go_on(place, tmp_path, command):
    said = "stopped; what was finished is kept. The same command goes on\n"
    assert command.run(*words_of(place, tmp_path / "out")) == (130, "", said)


def test_a_foreign_folder_is_refused(place, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="holds something else already; give a new folder"):
        sparsify(place, tmp_path)


@pytest.mark.slow
def test_judging_rows_that_cannot_judge_are_refused_before_the_search(place, tmp_path):
    for part, count in (("train", 181), ("dev", 5)):
        rows = (place / "reviews" / f"{part}.csv").read_text("utf-8").splitlines()
        write_lines(tmp_path / "reviews" / f"{part}.csv", rows[:count])
    with pytest.raises(DataError, match=r"reviews: rows that judge \(split='holdout'\) are 1 \("):
        sparsify(tmp_path, tmp_path / "out", model=place / "checkpoint")
    assert not (tmp_path / "out" / "run" / "search").exists()


def dense_begins(run: Path) -> bool:
    return any((run / "cache" / "dense").glob("*"))


def search_goes_on(run: Path) -> bool:
    return len([*(run / "search" / "trials").glob("*")]) > 5


def comparison_goes_on(run: Path) -> bool:
    return len([*(run / "compare" / "trials").glob("*")]) > 2


@pytest.mark.nightly
@pytest.mark.parametrize("moment", [dense_begins, search_goes_on, comparison_goes_on])
def test_a_killed_command_goes_on_and_repeats_nothing(place, tmp_path, moment):
    words = [sys.executable, "-m", "masksearch", *words_of(place, tmp_path / "out")]
    run = tmp_path / "out" / "run"
    begun = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not moment(run) and begun.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert begun.poll() is None, "it ended before the moment came"
    os.kill(begun.pid, signal.SIGKILL)
    begun.wait()
    finished: dict[int, float] = {}
    if (run / "search" / "study.db").is_file():
        records = ms.open_study(run / "search").records()
        finished = {r.number: r.seconds for r in records if r.status == "done"}
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = {r.number: r.seconds for r in ms.open_study(run / "search").records()}
    assert finished.items() <= after.items()
    straight = sparsify(place, tmp_path / "straight", strategy_options=None, seeds=3)
    assert f"budget 0.6: {straight.answer}" in done.stdout
    timed = f"ms.load_pretrained({str(tmp_path / 'out')!r}), length=16)"  # of the mask
    assert timed in done.stdout


def judged(role: Any, name: str, score: float, print: str = "") -> Record:
    values = {"STS-B": score, "STS-B/majority": 0.0, "STS-B/low": score - 0.1}
    measures = {"sparsity": 0.9, "effective_sparsity": 0.9}
    about = {"measures": measures, "name": name, "role": role, "fingerprint": print or name}
    return Record(0, "done", Evaluate(masks.window(1)), values=values, **about)


OBJECTIVES = (Objective("STS-B", "max", 0.0), Objective("sparsity", "max", 0.0))


def test_of_a_kind_that_has_not_learned_in_a_few_steps_the_best_is_compared_too() -> None:
    hand = [judged("baseline", *each) for each in (("a", 0.02), ("b", 0.06), ("c", 0.04, "b"))]
    study: Any = SimpleNamespace(
        objectives=OBJECTIVES, records=lambda: [judged("trial", "", 0.8), *hand]
    )
    found, drawn = choose_candidates({"dam": study}, 0.2)
    assert [*found] == ["dam"]
    assert [each.name for each in drawn] == ["b", "a"]  # of equal masks one
    study.records = lambda: hand
    with pytest.raises(SearchError, match=r"no mask within 0\.2 .* has learned anything"):
        choose_candidates({"dam": study}, 0.2)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=21, unique=True))
def test_the_better_half_recovers_longer_and_the_better_quarter_in_full(ends: list[int]) -> None:
    """After few steps masks stand the other way round, but for the half that goes on."""
    full: Any = SimpleNamespace(recover_steps=160, keep_recovered=True)
    hand = [judged("baseline", str(end), 0.1) for end in ends]  # the best of the first rung first
    rungs = list[tuple[int, list[str]]]()

    def judge(masks: dict[str, Any], evaluator: Any, **how: Any) -> Any:
        assert not evaluator.keep_recovered
        rungs.append((evaluator.recover_steps, [*masks]))
        records = [judged("compared", name, int(name) / 10**6) for name in masks]
        return SimpleNamespace(records=records, objectives=OBJECTIVES)

    def replaced(made: Any, **changes: Any) -> Any:
        return SimpleNamespace(**(vars(made) | changes))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("masksearch.sparsifier.request.replace", replaced)
        left, kept = halve(hand, full, judge, Path("run"), lambda line: None)
    half = ends[: math.ceil(len(ends) / 2)]
    quarter = sorted(half, reverse=True)[: math.ceil(len(half) / 2)]
    assert rungs == [(80, [*map(str, half)]), (160, [*map(str, quarter)])]
    assert [each.name for each in left] == [*map(str, quarter)]
    assert [*kept] == [80, 160]


@pytest.mark.parametrize(
    ("low", "said"), [(-0.011, False), (-0.009, True), (0.001, True), (math.nan, False)]
)
def test_a_mask_that_loses_less_than_a_hundredth_as_it_is_needs_no_training(low, said):
    gap = PairedDifference(low + 0.002, low, low + 0.004, n_rows=1500, seedless=True)
    plain: Any = SimpleNamespace(entries={"dam": 1, "dense": 0}, difference=lambda a, b: gap)
    assert ("no training is needed" in describe_loss(plain, "dam")) == said
    assert f"{gap.text(signed=True)}, 1,500 rows" in describe_loss(plain, "dam")
    gap = PairedDifference(0.0, seedless=True)
    assert describe_loss(plain, "dam") == "+0.000, the same on every row."


def test_recovered_masks_stand_beside_their_scores_as_they_are(compared, objectives, shape):
    runs = {"mine": (masks.window(1), [0.6, 0.7]), "dense": (masks.full(), [0.8, 0.9])}
    after = Comparison(tuple(compared(runs, values={"STS-B": 0.5})), objectives, shape=shape)
    alone = {name: (mask, scores[:1]) for name, (mask, scores) in runs.items()}
    plain = Comparison(tuple(compared(alone)), objectives, shape=shape)
    frame = beside(after, plain).frame().set_index("mask")
    assert frame["STS-B/as it is"].to_dict() == {"mine": 0.6, "dense": 0.8}
    assert frame["glue"].to_dict() == pytest.approx({"mine": 0.65, "dense": 0.85})


@pytest.mark.slow
def test_without_recovery_masks_are_judged_and_saved_as_they_are(place, tmp_path, command):
    """Nothing is trained but the dense model and gates, and the ended call does nothing again."""
    words = words_of(place, tmp_path / "out", "--recover-steps", "0", "--seeds", "2")
    out, err = command(*words)
    assert "15 masks as they are" not in err  # two searches
    assert "gates (300 steps), 16 masks as they are (14 masks are hand-designed): about" in err
    folder = tmp_path / "out"
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert f"budget 0.6: {result['answer']}\n" in out
    assert "seed" not in result["answer"].replace("dam, seed", "")
    assert "seeds" not in out.replace("dam, seed", "")
    assert not (folder / "run" / "cache" / "recovered").exists()
    for run in ("search", "search-1", "as-it-is"):
        records = ms.open_study(folder / "run" / run).records()
        assert {record.step for record in records if record.mask is not None} == {0}
    rows = {row["mask"]: row for row in result["masks"]}
    assert {"dense", "dam, seed 0", "dam, seed 1"} < rows.keys()
    assert all("n_seeds" not in row for row in rows.values())
    assert result["saved"].keys() == {"mask", "score", "density"}
    dense = load_file(folder / "run" / "dense" / "model.safetensors")
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(weight, dense[name])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again, err = command(*words)
    assert again == out
    assert "sparsify" not in err
    written = {path for path in folder.rglob("*") if path.stat().st_mtime_ns != before.get(path)}
    assert not written


COARSE = {"gates": {"structure": "block", "block": 16}, "config": {"steps": 40}}
OPEN: dict[str, Any] = {"budget": None, "strategy_options": None, "recover_steps": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recover_steps": -1}, "recover_steps is a whole number from 0 on, got -1"),
        ({"seeds": 0}, "seeds is a whole number from 1 on, got 0"),
        ({"trials": -5}, "trials is a whole number from 1 on, got -5"),
        ({"trials": 0}, "trials is a whole number from 1 on, got 0"),
        ({"settings": {"recover_steps": 8}}, "give sparsify recover_steps itself ("),
        ({"settings": {"adapt": "none"}}, "adapt='none' is no further setting"),
        ({"settings": {"time_batch": 0}}, "time_batch must be a whole number >= 1, got 0"),
        ({"task": None}, "task=None is for an embedding model, and "),
        ({"budget": 0.01}, "a budget is at least what the diagonal costs"),
        ({"strategy_options": COARSE}, "a mask of density 0.6 has rows without a key"),
        (OPEN | {"faster": 1}, "how many times as fast as dense attention, above 1; got 1"),
        (OPEN | {"faster": 1.3, "budget": 0.2}, "give either a budget or how much faster"),
        (OPEN | {"faster": 1.3, "work": 0.2}, "give either a budget or how much faster"),
        (OPEN | {"faster": 1.3, "strategy": "dam"}, "'dam' chooses pairs, work is of tokens"),
        (OPEN | {"faster": 2, "recover_steps": 4}, "nothing under a mask, got recover_steps=4"),
        (OPEN | {"work": 0.5, "budget": 0.2}, "or work, got budget=0.2 and work=0.5"),
        (OPEN | {"work": 0.5, "faster": 2, "strategy": "dam"}, "got budget=None, work=0.5 and "),
        (OPEN | {"work": 1.5}, "budgets are shares in (0, 1] of what full attention costs, as"),
        (OPEN | {"work": 0.5, "strategy": "dam"}, "'dam' chooses pairs, work is of tokens"),
    ],
)
def test_a_request_that_is_none_is_refused(place, tmp_path, changes, message):
    with pytest.raises((SearchError, ValueError), match=re.escape(message)):
        sparsify(place, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.nightly
@real
@pytest.mark.filterwarnings("ignore:DAM", "ignore:the strategy has no more")
def test_minilm_keeps_the_printed_score_on_sts_b(tmp_path: Path) -> None:
    """Most of an hour on a core: the folder opens with the score that was printed."""
    settings = {"finetune_lr": 2e-4, "epochs": 1, "dropout": 0.0, "length": 64, "device": "cpu"}
    out = tmp_path / "out"
    found = ms.sparsify(
        minilm(), DATA / "glue", 0.12, task="STS-B", out=out, settings=settings, progress=None
    )
    print(found.answer)
    result = json.loads((out / "result.json").read_text("utf-8"))
    judge = judge_of(DATA / "glue", "STS-B", out / "run" / "dense", length=64)
    rows, model = judge.tokens().dev["STS-B"], ms.load_pretrained(out)
    labels, scores = list[float](), list[float]()
    for at in range(len(rows)):
        batch = judge.inputs(rows, [at])
        labels.append(float(batch.pop("labels")))
        with torch.no_grad():
            scores.append(float(model(**batch).logits))
    assert pearsonr(labels, scores).statistic == pytest.approx(result["saved"]["score"], abs=1e-6)
    assert result["saved"]["density"] <= 0.12
    assert found.comparison.recommend(0.12).mask == found.mask


# -- the stages ----------------------------------------------------------------------------------
@pytest.mark.slow
def test_each_stage_goes_on_from_what_it_has_left(place: Path, tmp_path: Path) -> None:
    """Alone, one after the other; a second time nothing is trained."""
    request = SparsifyRequest(
        *(place / "checkpoint", place / "reviews", 0.6, Columns(("text",), "label")),
        *(tmp_path / "out", "dam", GATES, None, 0, 2, 4, QUICK, None, None),
    )
    trained, found = [], []
    for trainings in (trained, again := []):
        with follow_trainings(lambda step, config: trainings.append(step.title)):  # noqa: B023
            full = prepare(request)
            studies = search_masks(request, full)
            candidates = shortlist(request, full, studies)
            comparison, plain = judge_masks(request, full, candidates)
        found.append([comparison.frame().to_json(), plain.frame().to_json()])
    assert len(trained) > 40
    assert again == []
    assert found[0] == found[1]
    assert [*request.searches] == ["dam"]
    assert max(candidates.rungs) == 4
    saved = save(request, full, studies, candidates.rungs, comparison, plain)
    assert saved.answer == json.loads((tmp_path / "out" / "result.json").read_text())["answer"]
    assert len(ms.saved_masks(tmp_path / "out")) == 1
    taken = json.loads((tmp_path / "out" / "result.json").read_text())["saved"]["mask"]
    reason = {"status": "failed", "values": {}, "error": "NonFiniteLossError: loss is nan"}
    lost = [
        replace(each, **reason) if (each.name, each.seed) == (taken, 1000) else each
        for each in comparison.records
    ]
    with follow_trainings(lambda step, config: again.append(step.title)):
        save(
            request,
            full,
            studies,
            candidates.rungs,
            replace(comparison, records=tuple(lost)),
            plain,
        )
    assert again == []


# -- an embedding model ------------------------------------------------------------------------
COLUMNS = Columns(("one", "two"))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> ms.EmbeddingEvaluator:
    """The evaluator of a tiny model of sentence-transformers, and texts in CSV files."""
    pytest.importorskip("sentence_transformers", reason="the extra `embed`")
    return embedding(tmp_path_factory.mktemp("embedder"))


def words_to_embed(judge: ms.EmbeddingEvaluator, out: Path, *more: str) -> list[str]:
    return [
        *("sparsify", str(judge.weights), "--data", str(judge.texts), "--text", "one"),
        *("--text", "two", "--budget", "0.5", "--out", str(out), "--length", "16"),
        *("--set", "gates_batch=4", "--set", "device=cpu", "--set", "dam.steps=5", *more),
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DAM")  # few steps miss the target
def test_an_embedding_model_is_searched_judged_and_saved_as_it_is(embedder, tmp_path, command):
    """The saved folder embeds as the model that was judged, whose weights no step has changed."""
    out, words = tmp_path / "out", words_to_embed(embedder, tmp_path / "out")
    said, _ = command(*words)
    result = json.loads((out / "result.json").read_text("utf-8"))
    answer, saved = result["answer"], result["saved"]
    assert f"budget 0.5: {answer}\n" in said
    judged = {record.name for record in ms.open_study(out / "run/search").records()}
    assert {"same token within 0.5", "offsets by head within 0.5"} <= judged
    judge, (mask,) = embedder.on("holdout"), ms.saved_masks(out).values()
    (report,) = judge(mask, seed=0, workdir=tmp_path)
    assert report.values["spearman"] == pytest.approx(saved["score"])
    kept, rows = result["agreement with the dense model"], len(judge.data.queries)
    assert (kept["value"], kept["rows"]) == (pytest.approx(saved["score"]), rows)
    figures = f"Spearman {kept['value']:.3f} [{kept['low']:.3f}, {kept['high']:.3f}]"
    pairs = f"{rows} query texts (random pairs {report.values['random_pairs']:.3f})"
    assert f"As it is it ranks near texts as the dense model does: {figures}, {pairs}." in answer
    assert re.search(r" minus .*: spearman [+-]0", answer)
    assert "lost" not in answer
    assert saved["density"] <= 0.5
    model: Any = ms.load_pretrained(out)
    assert model.max_seq_length == 16
    texts = [" ".join(WORDS[at : at + 4 + at % 20]) for at in range(30)]
    before = embedder.adapted(mask)
    before.max_seq_length = 16
    assert (model.encode(texts) == before.encode(texts)).all()
    given = load_file(Path(embedder.weights) / "model.safetensors")
    for name, weight in load_file(out / "model.safetensors").items():
        assert torch.equal(weight, given[name])
    assert "type: sentence-similarity" in (out / "README.md").read_text("utf-8")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert command(*words)[0] == said
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    other = command.refused(*words, "--seed", "1")
    assert "was begun with seed=0, got 1; give a new folder" in other


@pytest.mark.nightly
def test_a_killed_search_of_an_embedding_model_goes_on(embedder, tmp_path, monkeypatch):
    """By texts of one file, which need no columns."""
    write_lines(tmp_path / "texts.txt", [f"{one} {two}" for one in WORDS[:9] for two in WORDS])
    how: dict[str, Any] = {"strategy": "random", "trials": 2, "progress": None}
    how |= {"settings": {"length": 16, "device": "cpu", "dev_rows": 60}}
    given, told = (embedder.weights, tmp_path / "texts.txt", 0.6), ms.driver.Session.tell

    def stopped(session: Any, record: Record) -> None:
        told(session, record)
        if record.number == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ms.driver.Session, "tell", stopped)
        with pytest.raises(KeyboardInterrupt):
            ms.sparsify(*given, out=tmp_path / "out", **how)
    judged = [r.seconds for r in ms.open_study(tmp_path / "out/run/search").records()]
    found = ms.sparsify(*given, out=tmp_path / "out", **how)
    assert [record.seconds for record in found.study.records()][: len(judged)] == judged
    straight = ms.sparsify(*given, out=tmp_path / "straight", **how)
    assert found.answer == straight.answer
    assert found.comparison.entries.keys() == straight.comparison.entries.keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--recover-steps 4", "no weight of an embedding model is trained, got recover_steps=4"),
        ("--set epochs=3", "EmbeddingEvaluator has no setting 'epochs'"),
        ("--set rows=3 --set columns=one", "EmbeddingEvaluator has no setting 'column"),
    ],
)
def test_settings_of_trainings_are_none_of_an_embedding_model(
    embedder, tmp_path, command, given, message
):
    words = words_to_embed(embedder, tmp_path / "out", *given.split())
    assert message in command.refused(*words)
    assert not (tmp_path / "out").exists()


def test_several_budgets_share_no_cache_where_nothing_is_trained(
    embedder, tmp_path, command, asked
):
    words = words_to_embed(embedder, tmp_path / "out", "--budget", "0.8")
    assert command.run(*words)[0] == 130
    assert asked["settings"] == {"gates_batch": 4, "device": "cpu", "length": 16}
    assert asked["task"] == COLUMNS
    assert asked["out"] == tmp_path / "out" / "0.5"
    assert "recover_steps" not in asked


# -- a checkpoint that is fed what its own tokenizer makes ------------------------------------
def tuned_roberta(folder: Path, rows: list[tuple[str, str, int]]) -> Path:
    """A RoBERTa that has learned, by its own tokenizer, of which class the second text begins."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS]
    plain = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, "<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, cls_token="<s>", sep_token="</s>", pad_token="<pad>"
    )
    torch.manual_seed(0)
    small = sizes(len(names), 32, 2, 2, 64, 40, pad_token_id=1, initializer_range=0.2)
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.RobertaConfig(**small, **off)
    model = transformers.RobertaForSequenceClassification(config)
    steps, draw = torch.optim.AdamW(model.parameters(), 3e-3), random.Random(1)
    for _ in range(250):
        one, two, labels = zip(*draw.sample(rows, 32), strict=True)
        inputs = tokenizer([*one], [*two], padding=True, return_tensors="pt")
        model(**inputs, labels=torch.tensor(labels)).loss.backward()
        steps.step()
        steps.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.nightly
def test_the_saved_model_and_its_tokenizer_give_the_score_that_was_said(tmp_path: Path) -> None:
    """Two separators stand between RoBERTa's texts: with one it knows nothing."""
    draw, rows = random.Random(0), list[tuple[str, str, int]]()
    for _ in range(1000):
        one, two = (draw.choices(WORDS[:20], k=4) for _ in range(2))
        rows.append((" ".join(one), " ".join(two), int(two[0] in WORDS[:10])))
    for part, some in (("train", rows[:600]), ("dev", rows[600:])):
        lines = ["one\ttwo\tlabel", *("\t".join(map(str, row)) for row in some)]
        write_lines(tmp_path / "pairs" / f"{part}.tsv", lines)
    tuned = tuned_roberta(tmp_path / "tuned", rows[:600])
    columns, out = Columns(("one", "two"), "label"), tmp_path / "out"
    how = {"settings": {"length": 16, "device": "cpu"}, "progress": None}
    found = ms.sparsify(
        tuned, tmp_path / "pairs", 0.4, task=columns, recover_steps=0, out=out, **how
    )
    judged = judge_of(tmp_path / "pairs", columns, tuned).data("pairs").dev["pairs"]
    model = ms.load_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    one, two = ([*texts] for texts in zip(*judged.texts, strict=True))
    with torch.no_grad():
        guess = model(**tokenizer(one, two, padding=True, return_tensors="pt")).logits.argmax(-1)
    right = (guess == torch.tensor(judged.labels)).double().mean().item()
    assert right > 0.8
    assert found.comparison.entries["dense"].score.value > 0.95
    assert json.loads((out / "result.json").read_text())["saved"]["score"] == pytest.approx(right)


@pytest.fixture(scope="module")
def tuned(place) -> Path:
    """A model that was fine-tuned on the reviews, and texts without labels."""
    found = sparsify(place, place / "tuned", recover_steps=0)
    for part in ("train", "dev"):
        rows = (place / "reviews" / f"{part}.csv").read_text("utf-8").splitlines()
        write_lines(place / "texts" / f"{part}.csv", [row.rpartition(",")[0] for row in rows])
    return found.folder / "run" / "dense"


@pytest.mark.slow
@pytest.mark.parametrize("steps", [pytest.param("0", marks=pytest.mark.nightly), "4"])
def test_without_labels_the_model_s_own_answers_are_kept(place, tuned, tmp_path, steps, command):
    words = words_of(place, tmp_path / "out", "--recover-steps", steps, "--seeds", "2")
    at = words.index("--label")
    words = [str(place / "texts") if w == str(place / "reviews") else w for w in words]
    words = ["sparsify", str(tuned), *words[2:at], *words[at + 2 :]]
    out, _ = command(*words)
    result = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert result["answer"] in out
    kept = result["agreement with the dense model"]
    assert 30 < kept["rows"] < 60  # the half that no search has read
    assert 0 <= kept["low"] <= kept["value"] <= kept["high"] <= 1
    assert f"of {kept['rows']} rows as the dense model does [" in result["answer"]
    assert "no training is needed" not in out
    assert "inus dense attention" not in result["answer"]
    told = json.loads((tmp_path / "out" / "run" / "sparsify.json").read_text("utf-8"))
    assert told["task"] == {"texts": ["text"]}
    model = ms.load_pretrained(tmp_path / "out")
    assert [*model.config.id2label.values()] == ["bad", "good", "so so"]
    again, _ = command(*words)
    assert again == out


@pytest.mark.slow
def test_a_reranker_of_sentence_transformers_is_a_classifier(place, tuned, tmp_path, command):
    library = pytest.importorskip("sentence_transformers", reason="the extra `embed`")
    folder, out = tmp_path / "reranker", tmp_path / "out"
    library.CrossEncoder(str(tuned), device="cpu").save_pretrained(str(folder))
    assert json.loads((folder / "modules.json").read_text())[0]["type"].endswith("Transformer")
    words = words_of(place, out, "--recover-steps", "0")
    at = words.index("--label")
    data = ["sparsify", str(folder), "--data", str(place / "texts"), *words[4:at]]
    said, _ = command(*data, *words[at + 2 :])
    assert "rows as the dense model does [" in said
    model = ms.load_pretrained(out)
    assert type(model) is transformers.BertForSequenceClassification
    given = load_file(folder / "model.safetensors")
    assert all(torch.equal(part, given[name]) for name, part in model.state_dict().items())


def test_agreement_is_of_the_development_set_that_is_scored():
    """MNLI has a second one, whose answers are kept beside it."""
    scores = {"MNLI": np.ones(4), "MNLI-mm": np.ones(2)}
    digests = {"MNLI": "a", "MNLI-mm": "b"}

    def rows(*said):
        answers = {"MNLI": np.array(said), "MNLI-mm": np.zeros(2, int)}
        return SimpleNamespace(rows={0: RowScores(scores, {"MNLI": 1.0}, digests, answers)})

    plain = SimpleNamespace(entries={"dense": rows(0, 1, 2, 0)})
    found = agreement_of(plain, rows(0, 1, 1, 0))
    assert (found.value, found.rows) == (0.75, 4)


def test_a_folder_that_was_begun_by_a_version_before_goes_on(place, tmp_path):
    """Stored: the call of 0.2.0's first days, which had a task of one's own as a `repr`."""
    stored = Path(__file__).parent / "stored" / "0.2.0" / "sparsify.json"
    task, out = Columns(("text",), "label"), tmp_path / "out"
    (out / "run" / "dense").mkdir(parents=True)
    (out / "run" / "sparsify.json").write_bytes(stored.read_bytes())
    given = ["my-bert", "reviews", 0.6, task, out, "dam", None, None, 0, None, 0, {}, None, None]
    check_folder(SparsifyRequest(*given))
    with pytest.raises(DataError, match=r"was begun with budget=0.6, got 0.5"):
        check_folder(SparsifyRequest(*[*given[:2], 0.5, *given[3:]]))
    with pytest.raises(DataError, match=r"begun with task=Columns\(.*got {'texts': \['title'\]"):
        check_folder(SparsifyRequest(*[*given[:3], Columns(("title",), "label"), *given[4:]]))


def test_seconds_are_wall_time_and_a_call_that_goes_on_adds_its_own(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(SparsifyRequest, "about", {"model": "my-bert"})
    given = ["my-bert", "reviews", 0.6, Columns(("text",), "label"), tmp_path, "dam"]
    given += [None, None, 0, None, 0, {}, None, None]
    first = SparsifyRequest(*given, started=100.0)
    now = 130.0
    first.note_spent()  # refused before anything was written: it leaves no file
    assert not first.noted
    (tmp_path / "run").mkdir()
    first.note(SimpleNamespace(protocol="p"))
    assert first.spent() == 30.0
    first.note_spent()
    now = 1000.0  # between the two calls nothing runs
    second = SparsifyRequest(*given, started=1000.0)
    second.note(SimpleNamespace(protocol="p"))
    now = 1005.0
    assert replace(second, work=0.5).spent() == 35.0
    assert second.noted["protocol"] == "p"


@pytest.mark.slow
def test_a_call_on_other_rows_is_refused(place, tuned, tmp_path):
    request = SparsifyRequest(
        *(tuned, place / "reviews", 0.6, Columns(("text",), "label"), tmp_path / "out", "dam"),
        *(GATES, None, 0, None, 0, QUICK, None, None),
    )
    prepare(request)
    path = request.run / "sparsify.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"protocol": "of others"}))
    prepare(request)  # nothing was trained
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"protocol": "of others"}))
    request.search_folder(0).mkdir()
    with pytest.raises(DataError, match="was begun with other rows or another checkpoint than"):
        prepare(request)


@pytest.mark.slow
def test_a_call_that_has_ended_is_refused_on_other_rows(place, tuned, tmp_path):
    shutil.copytree(place / "reviews", tmp_path / "reviews")
    ended = sparsify(tmp_path, tmp_path / "out", model=tuned, recover_steps=0)
    assert (
        sparsify(tmp_path, tmp_path / "out", model=tuned, recover_steps=0).answer == ended.answer
    )
    path = next((tmp_path / "reviews").glob("train.*"))
    path.write_text("\n".join(path.read_text("utf-8").splitlines()[:-3]), "utf-8")
    with pytest.raises(DataError, match="was begun with other rows or another checkpoint than"):
        sparsify(tmp_path, tmp_path / "out", model=tuned, recover_steps=0)


@pytest.mark.slow
def test_the_tokenizer_that_was_given_is_the_one_that_is_saved(place, tmp_path):
    other = AutoTokenizer.from_pretrained(place / "checkpoint")
    given = Tokenizer.from_str(other.backend_tokenizer.to_str())
    given.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given.save(path := str(tmp_path / "tokenizer.json"))
    settings = QUICK | {"tokenizer": path}
    found = sparsify(place, tmp_path / "out", recover_steps=0, settings=settings)
    text = f"{WORDS[0]}, ok {WORDS[1]}"
    for folder in (found.folder, found.folder / "run" / "dense"):
        assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == given.encode(text).ids
    assert other(text)["input_ids"] != given.encode(text).ids


# -- a target of time --------------------------------------------------------------------------
FAST = {"rows sorted by length": 1.1, "bfloat16": 1.2, "drop_tokens alone": 1.1}
FAST |= {"[CLS] alone": 3.0, "prune": 1.0, "hand": 1.0}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Whatever is timed, with how fast it is said to be: as the first of these, which tests add
    to, or `FAST` says of words in its name; one layer and probed schedules by their shares."""
    seen: list[dict[str, float]] = [{}]

    def fast(name: str, way: Way, longest: int) -> float:
        if not way.plain and name[-1].isdigit() and "within" not in name:
            return 1 / float(name.rpartition(", ")[2])
        name = name if way.plain or name in ("prune", "[CLS] alone") else "hand"
        known = next((v for words, v in (FAST | seen[0]).items() if words in name), None)
        if known is not None:
            return known
        layers = seen[0].get("1 layer", 2.0) if way.layers else 1.0
        return layers * longest / (way.cut or longest)

    def time_variants(
        model: Any, dense: Any, sides: Any, repeats: int, *rest: Any
    ) -> dict[str, list[float]]:
        assert repeats >= 4  # quartiles need several passes
        assert {len(batch["input_ids"]) for batch in dense[:-1]} == {8}
        longest = max(batch["input_ids"].shape[1] for batch in dense)
        own = {}
        for name, (change, batches) in sides.items():
            way = change.__self__
            width = max(batch["input_ids"].shape[1] for batch in batches)
            assert width == min(longest, way.cut or longest)
            own[name] = fast(name, way, longest)
        seen.append(own)
        return {name: [each, each + 0.1, each + 0.2] for name, each in own.items()}

    monkeypatch.setattr("masksearch.sparsifier.ways.time_variants", time_variants)
    monkeypatch.setattr("masksearch.sparsifier.faster.computes_in_bfloat16", lambda device: True)
    return seen


def faster(place: Path, out: Path, times: float, **changes: Any) -> Sparsified:
    how: dict[str, Any] = {"strategy_options": None, "recover_steps": None, "seeds": None}
    return sparsify(place, out, None, **how | {"faster": times} | changes)


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return result


@pytest.mark.slow
def test_a_mask_is_taken_where_no_plain_way_meets_the_target(place, tuned, tmp_path, timed):
    timed[0] |= {"prune": 2.8, "cut at": 1.0, "head and tail": 1.0, "hand": 2.6}
    out = tmp_path / "out"
    found = faster(place, out, 2.5, model=tuned)
    result = result_of(out)
    assert result["answer"] == found.answer
    assert "No plain way meets 2.5 times." in found.answer
    assert f"{result['saved']['mask']} is taken: minus dense " in found.answer
    low, middle, high = result["speed"]["last timing"][result["saved"]["mask"]]
    said = f"{middle:.2f} times as fast (quartiles {low:.2f} to {high:.2f}; 50 rows of 8 to 13 "
    assert said in found.answer
    assert low >= result["speed"]["asked"] == 2.5
    ways = {each["way"]: each for each in result["ways"]}
    assert {"bfloat16", "rows sorted by length", "1 layer fewer", "prune"} <= ways.keys()
    assert all(0 <= each["rows that choose"] <= 1 for each in ways.values())
    assert [each["way"] for each in ways.values() if "rows that judge" in each] == [
        result["saved"]["mask"]
    ]
    stored = ms.saved_masks(out)["self"]
    assert stored == masks.cropped(found.mask, 16) != masks.full()
    model, tokenizer = ms.load_pretrained(out), AutoTokenizer.from_pretrained(out)
    texts = tokenizer([" ".join(WORDS[:7]), "ok"], return_tensors="pt", padding=True)
    with torch.no_grad():
        left = model(**texts).logits
        whole = ms.attach(model, ms.saved_masks(out))(**texts).logits
    assert torch.allclose(left, whole, atol=1e-5)
    page = (out / "report.html").read_text("utf-8")
    assert page.index("<svg") < page.index("<td>inputs cut at ")
    assert "in Python" in page
    assert any(name.startswith("1 layer fewer, inputs cut at ") for name in ways)
    before = len(timed)
    again = faster(place, out, 2.5, model=tuned)
    assert again.answer == found.answer
    assert again.mask == found.mask
    assert again.comparison.frame().equals(found.comparison.frame())
    (out / "result.json").unlink()
    assert faster(place, out, 2.5, model=tuned).answer == found.answer
    assert len(timed) == before
    with pytest.raises(DataError, match=r"was begun with faster=2\.5, got 2"):
        faster(place, out, 2, model=tuned)


PLAIN = {
    "1 layer fewer": ({}, 1.9),
    "inputs cut at": ({"1 layer": 1.0}, 1.3),
    "head and tail": ({"1 layer": 1.0, "inputs cut": 1.0}, 1.3),
    "rows sorted by length": (
        {"1 layer": 1.0, "cut": 1.0, "tail": 1.0, "rows sorted by length": 1.6},
        1.5,
    ),
    "bfloat16": ({"1 layer": 1.0, "cut": 1.0, "tail": 1.0, "bfloat16": 1.6}, 1.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_way_is_saved_where_no_mask_is_better(name, place, tuned, tmp_path, timed):
    """As the dense model with its length or its layers; what is saved has the score that is said,
    on rows as it is said to take them."""
    speeds, times = PLAIN[name]
    timed[0] |= speeds
    out = tmp_path / "out"
    found = faster(place, out, times, model=tuned)
    result = result_of(out)
    saved, way = result["saved"], result["saved"]["way"]
    assert name in way
    assert f"{way} is taken, and no mask" in found.answer
    assert found.answer.endswith(f"In Python: {saved['line']}")
    chosen = {each["way"]: each["rows that choose"] for each in result["ways"]}
    free = chosen[way] >= chosen["rows sorted by length"]  # whose score is that of the dense model
    assert free == ("no mask was searched" in found.answer)
    assert free != (out / "run" / "search").exists()
    assert found.mask == masks.full() == ms.saved_masks(out)["self"]
    assert json.loads((out / "masksearch.json").read_text("utf-8"))["way"] == way
    assert found.answer in (out / "README.md").read_text("utf-8")
    model, tokenizer = ms.load_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    assert model.config.num_hidden_layers == 2 - (name == "1 layer fewer")
    assert model.dtype == (torch.bfloat16 if name == "bfloat16" else torch.float32)
    most = int(re.findall(r"\d+", way)[0]) if "cut" in name or "tail" in name else 16
    assert tokenizer.model_max_length == (most if "inputs cut" in name else 16)
    judge = judge_of(place / "reviews", Columns(("text",), "label"), tuned)
    rows, right = judge.data("reviews").dev["reviews"], 0
    for (text,), label in zip(rows.texts, rows.labels, strict=True):
        ids = tokenizer(text, truncation=True).input_ids
        if name == "head and tail" and len(ids) > most:
            ids = ids[: most - most // 2] + ids[-(most // 2) :]
        with torch.no_grad():
            right += int(model(torch.tensor([ids])).logits.argmax()) == label
    assert right / len(rows.labels) == pytest.approx(saved["score"])
    before = len(timed)
    assert faster(place, out, times, model=tuned).answer == found.answer
    assert len(timed) == before


@pytest.mark.slow
def test_a_plain_way_is_taken_before_a_mask_that_is_no_better(
    place, tuned, tmp_path, timed, monkeypatch
):
    timed[0] |= {"prune": 2.0, "hand": 2.0}
    known = Measurements.score  # on this task shorter inputs lose nothing, and no mask is searched
    monkeypatch.setattr(Measurements, "score", lambda own, way: known(own, way) - (way != Way()))
    found = faster(place, tmp_path / "out", 1.5, model=tuned)
    result = result_of(tmp_path / "out")
    gap, scores = result["difference"], {}
    assert re.search(
        r"The best mask, .*, minus the best plain way, .*: .*, \d+ rows; ", found.answer
    )
    for each in result["ways"]:
        scores |= {each["way"]: each["rows that judge"]} if "rows that judge" in each else {}
    plain, mask = scores
    assert gap["value"] == pytest.approx(scores[mask] - scores[plain])
    assert result["saved"]["mask"] == (mask if gap["value"] > 0 else "dense")
    kinds = {each.name: each.kind for each in found.comparison.entries.values()}
    assert {"control", "searched"} <= {*kinds.values()}


@pytest.mark.slow
def test_a_limit_is_lowered_twice_where_masks_miss_the_target(place, tuned, tmp_path, timed):
    timed[0] |= {"prune": 1.2, "hand": 1.3, "1 layer": 1.0, "cut": 1.0, "tail": 1.0}
    with pytest.raises(ValueError, match=r"1\.6 times as fast is not to be had"):
        faster(place, tmp_path / "out", 1.6, model=tuned)
    limits = sorted((tmp_path / "out" / "run" / "search").iterdir(), reverse=True)
    assert len(limits) == 3
    first, second, third = (float(each.name) for each in limits)
    assert first > second > third


@pytest.mark.slow
def test_an_embedding_model_is_told_that_nothing_dies(tmp_path, command):
    pytest.importorskip("sentence_transformers", reason="the extra `embed`")
    folder = tiny_embedding(tmp_path / "embedder", WORDS)
    write_lines(tmp_path / "texts.txt", WORDS)
    words = ["sparsify", folder, "--data", tmp_path / "texts.txt", "--faster", "1.5"]
    code, _, err = command.run(*map(str, words), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "needs them all: nothing dies; take bfloat16, rows sorted by length" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_head_that_reads_all_tokens_has_plain_ways_alone(
    place, tuned, tmp_path, timed, monkeypatch, capsys
):
    monkeypatch.setattr("masksearch.models.pretrained.FIRST_ROW", ())
    found = faster(place, tmp_path / "out", 1.5, model=tuned, progress="auto")
    assert "none dies under a mask: plain ways alone" in capsys.readouterr().err
    assert "The head reads all tokens: none dies under a mask." in found.answer
    assert found.study is None
    assert found.mask == masks.full()
    assert "drop_tokens alone" not in {e["way"] for e in result_of(tmp_path / "out")["ways"]}
    assert faster(place, tmp_path / "out", 1.5, model=tuned).study is None


@pytest.mark.slow
def test_what_no_way_has_is_refused_with_what_is_to_be_had(
    place, tuned, tmp_path, timed, monkeypatch
):
    """Timed once for a number of threads."""
    timed[0] |= {"[CLS] alone": 1.3}
    message, counts = (
        "5 times as fast is not to be had (50 rows of 8 to 13 tokens, 8 at once, ",
        [],
    )
    for threads in (62, 63, 62):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with pytest.raises(ValueError, match=re.escape(message)) as refused:
            faster(place, tmp_path / "out", 5, model=tuned)
        assert f"{threads} threads" in str(refused.value)
        fastest = "; the fastest are 1 layer fewer, inputs cut at 8 tokens, "
        assert fastest in str(refused.value)
        assert "; 1 layer fewer, 2.10 (2.00 to 2.20), score " in str(refused.value)
        counts.append(len(timed))
    assert counts[0] < counts[1] == counts[2]
    with pytest.raises(ValueError, match="4 times as fast is not to be had"):
        faster(place, tmp_path / "out", 4, model=tuned)  # no search was begun with 5


# -- a share of the work -------------------------------------------------------------------------
@pytest.mark.slow
def test_a_share_of_the_work_takes_the_place_of_a_budget(place, tmp_path, command):
    """Words against schedules by hand, and a saved model that leaves tokens out."""
    out = tmp_path / "out"
    words = words_of(place, out, "--recover-steps", "0", "--set", "prune.rows=60", "--work", "0.5")
    del words[(at := words.index("--budget")) : at + 2]
    said, _ = command(*words)
    result = json.loads((out / "result.json").read_text("utf-8"))
    assert f"work 0.5: {result['answer']}" in said
    assert (result["budget"], result["work"]) == (None, 0.5)
    study = ms.open_study(out / "run" / "search")
    scored = [record for record in study.records() if record.scored]
    assert {record.proposer for record in scored if record.role == "trial"} == {"prune"}
    assert sum(record.role == "baseline" for record in scored) >= 3
    assert all(record.measures["work"] <= 0.5 * (1 + 1e-9) for record in scored)
    [taken] = [row for row in result["masks"] if row["mask"] == result["saved"]["mask"]]
    assert f"leaves {taken['work']:.1%} of the work." in result["answer"]
    model, tokenizer = ms.load_pretrained(out), AutoTokenizer.from_pretrained(out)
    texts = tokenizer([" ".join(WORDS[:7]), "ok"], return_tensors="pt", padding=True)
    how = "are left out, each row's own|no one looks at the others again"
    assert re.search(how, str(ms.explain(model, length=9)))
    with torch.no_grad():
        left = model(**texts).logits
        whole = ms.attach(model, ms.saved_masks(out))(**texts).logits
    assert torch.allclose(left, whole, atol=1e-5)
