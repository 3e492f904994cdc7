"""sparsify: one command from a trained encoder to a folder with a sparse mask and its weights."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from real_data import DATA, minilm, real
from scipy.stats import pearsonr
from tiny_checkpoint import tiny_checkpoint
from toy_sentences import WORDS, write_lines

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, Objective, Record
from masksearch.errors import DataError, SearchError
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.models.checkpoints import verify
from masksearch.sparsifier import Sparsified, choose_candidates
from masksearch.tasks.glue.columns import Columns

QUICK = {
    "epochs": 4,
    "finetune_lr": 3e-3,
    "recover_steps": 4,
    "finetune_batch": 8,
    "gates_batch": 8,
    "length": 16,
    "device": "cpu",
}
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
        *("--length", "16", *named, *more),
    ]


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
    judge = GlueEvaluator(
        None,
        place,
        tasks=(Columns(("text",), "label").read(place / "reviews"),),
        weights=found.folder / "run" / "dense",
        adapt="none",
        split="holdout",
        length=16,
        rows=None,
        dev_rows=None,
    )
    rows, right = judge.tokens().dev["reviews"], 0
    for at in range(len(rows)):
        batch = judge.inputs(rows, [at])
        label = int(batch.pop("labels"))
        with torch.no_grad():
            right += int(model(**batch).logits.argmax()) == label
    assert right / len(rows) == pytest.approx(saved["score"])
    card = (found.folder / "README.md").read_text("utf-8")
    body = card.split("---\n", 2)[2].strip()
    assert body.startswith("**A program that does not know masksearch, plain transformers too")
    assert found.answer in card
    assert (found.folder / "report.html").stat().st_size > 10_000
    assert verify(found.folder)


@pytest.mark.slow
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
def test_several_budgets_get_a_folder_each(place: Path, tmp_path: Path, command: Any) -> None:
    more = ("--budget", "0.8", "--seeds", "1", "--json")
    out, err = command(*words_of(place, tmp_path / "out", *more))
    assert "sparsify: reviews: 3 classes: bad 60, good 60, so so 60\n" in err
    assert (tmp_path / "out" / "0.6" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "0.8" / "model.safetensors").is_file()
    assert '"budget": 0.8' in out
    assert "short recoveries of 1 steps" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data", "D", "--glue", "G"], "give --glue FOLDER --tasks NAME, or --data FOLDER"),
        (["--data", "D", "--text", "text"], "--data needs --label"),
        (
            ["--data", "M", "--text", "text", "--label", "label"],
            "MODEL comes first, then --data FOLDER; ",
        ),
        (
            ["--data", "D", "--text", "text", "--label", "stars"],
            "line 1: no column stars; reviews needs",
        ),
        (["--glue", "D", "--tasks", "STS"], "STS-B"),
        (["--glue", "D", "--tasks", "STS-B", "--label", "x"], "--glue has no use for --label"),
        (["--data", "D", "--text", "text", "--label", "label", "--set", "epoch=1"], "epochs"),
    ],
)
def test_mistakes_are_one_line(place, tmp_path, given, message, command):
    places = {"D": str(place / "reviews"), "M": str(place / "checkpoint")}
    words = [places.get(word, word) for word in given]
    words = ["--budget", "0.5", "--out", str(tmp_path / "out"), *words]
    assert message in command.refused("sparsify", place / "checkpoint", *words)


def test_an_interrupt_says_how_to_go_on(place, tmp_path, command, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("masksearch.sparsifier.sparsify_within", interrupted)
    said = "stopped; what was finished is kept. The same command goes on\n"
    assert command.run(*words_of(place, tmp_path / "out")) == (130, "", said)


@pytest.mark.slow
def test_a_budget_below_the_diagonal_and_a_foreign_folder_are_refused(place, tmp_path):
    with pytest.raises(ValueError, match="a budget is at least what the diagonal costs"):
        sparsify(place, tmp_path / "out", 0.01)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="holds something else already; give a new folder"):
        sparsify(place, tmp_path / "full")


def dense_begins(run: Path) -> bool:
    return any((run / "cache" / "dense").glob("*"))


def search_goes_on(run: Path) -> bool:
    return len([*(run / "search-0.6" / "trials").glob("*")]) > 5


def comparison_goes_on(run: Path) -> bool:
    return len([*(run / "compare-0.6" / "trials").glob("*")]) > 2


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
    if (run / "search-0.6" / "study.db").is_file():
        records = ms.open_study(run / "search-0.6").records()
        finished = {r.number: r.seconds for r in records if r.status == "done"}
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = {r.number: r.seconds for r in ms.open_study(run / "search-0.6").records()}
    assert finished.items() <= after.items()
    straight = sparsify(place, tmp_path / "straight", strategy_options=None, seeds=3)
    assert f"budget 0.6: {straight.answer}" in done.stdout


def test_of_a_kind_that_has_not_learned_in_a_few_steps_the_best_is_compared_too() -> None:
    def judged(role: Any, name: str, score: float) -> Record:
        values = {"STS-B": score, "STS-B/majority": 0.0, "STS-B/low": score - 0.1}
        measures = {"sparsity": 0.9, "effective_sparsity": 0.9}
        return Record(
            0,
            "done",
            Evaluate(masks.window(1)),
            values=values,
            measures=measures,
            name=name,
            role=role,
        )

    hand = [judged("baseline", name, score) for name, score in (("a", 0.02), ("b", 0.06))]
    objectives = (Objective("STS-B", "max", 0.0), Objective("sparsity", "max", 0.0))
    study: Any = SimpleNamespace(
        objectives=objectives, records=lambda: [judged("trial", "", 0.8), *hand]
    )
    assert [*choose_candidates(study, "dam", 0.2)] == ["dam", "b"]
    study.records = lambda: hand
    with pytest.raises(
        SearchError, match=r"no mask within 0\.2 of the pairs has learned anything"
    ):
        choose_candidates(study, "dam", 0.2)


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
    judge = GlueEvaluator(
        None,
        DATA / "glue",
        tasks=("STS-B",),
        weights=out / "run" / "dense",
        adapt="none",
        split="holdout",
        rows=None,
        dev_rows=None,
        length=64,
        device="cpu",
    )
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
