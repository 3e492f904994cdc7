"""Masks for a trained encoder from the shell: each mistake is one line, with exit code 2."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from toy_sentences import write_sentences

import masksearch as ms

COMPARED = ("compare", "star", "--controls", "none", "--seeds", 1, "--run", "run")
SMALL = ("--length", 32, "--set", "epochs=1", "--set", "finetune_batch=8")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, a checkpoint, and folders that someone says were fine-tuned."""
    from transformers import BertForSequenceClassification

    folder = write_sentences(tmp_path_factory.mktemp("toys"))
    for name, labels in (("three", 3), ("broken", 2)):
        made = BertForSequenceClassification.from_pretrained(
            folder / "checkpoint", num_labels=labels
        )
        if name == "broken":
            with torch.no_grad():
                made.classifier.weight[0, 0] = torch.nan
        made.save_pretrained(folder / name)
        shutil.copy(folder / "checkpoint" / "vocab.txt", folder / name)
    for name, kind in (("headless", "SequenceClassification"), ("spans", "QuestionAnswering")):
        shutil.copytree(folder / "checkpoint", folder / name)
        config = folder / name / "config.json"
        config.write_text(config.read_text().replace("ForMaskedLM", f"For{kind}"))
    return folder


MISTAKES = {
    "labels": (("--weights", "three"), "a head of 3 outputs, and the task 2"),
    "two tasks": (("--weights", "three", "--tasks", "SST-2,RTE"), "one model of one task"),
    "another task": (("--weights", "spans"), "points at answers .* needs a classifier"),
    "unknown task": (("--tasks", "SST-3"), "unknown GLUE task 'SST-3'"),
    "column for a task": (
        ("--tasks", "queue"),
        r'Columns\(\("text",\), "label"\) of a table of yours',
    ),
    "missing task": (("--tasks", "MRPC"), "MRPC"),
    "size": (("--length", 64), "48 positions"),
    "head": (("--weights", "headless"), "its head is missing"),
    "heads of the mask": (("per_head([star(), star(), star()])",), "3 heads.* 2"),
    "layers of the mask": (("per_layer([star()])",), "1 layer.* 2"),
    "majority": (("--set", "finetune_lr=1e-9"), "no masks can be compared on it; fine-tune it on"),
    "NaN in training": (("--set", "finetune_lr=1e30"), "the loss became .* lower the learning"),
    "NaN in weights": (
        ("--weights", "broken"),
        "the weights of .*broken hold NaN in classifier.weight;",
    ),
    "rule": (("--adapt", "recovr"), "unknown adapt 'recovr'.*recover"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(command, monkeypatch, tmp_path, toys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    for each in toys.iterdir():
        (tmp_path / each.name).symlink_to(each)
    usual = ("--weights", "checkpoint", "--glue", "glue", "--tasks", "SST-2", "--adapt", "none")
    code, _, err = command.run(*COMPARED, *usual, *SMALL, *words)
    assert code == 2
    few = "fewer than 3 seeds decide nothing"
    *shown, error = [line for line in err.splitlines() if not line.startswith(few)]
    assert re.search(message, error), err
    before = "^(compare: .* runs? to do|dense model of SST-2, seed 1000: 12 steps)"
    assert all(re.search(before, line) for line in shown), err


def test_masks_on_dense_models_need_weights(command, toys):
    given = ("--glue", toys / "glue", "--adapt", "none")
    assert "--adapt needs --weights" in command.refused("compare", "star", *given)


@pytest.mark.nightly
def test_a_dense_model_under_another_key_is_one_line(command, monkeypatch, tmp_path, toys):
    monkeypatch.chdir(toys)
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path))
    given = ("--weights", "checkpoint", "--glue", "glue", "--tasks", "SST-2", "--adapt", "none")
    given = (*given, *SMALL[:2], "--set", "epochs=2", *SMALL[4:], "--set", "finetune_lr=3e-3")
    compared = (*COMPARED[:-2], *given, "--run")
    command(*compared, tmp_path / "a")
    (kept,) = (tmp_path / "dense").glob("*.safetensors")
    again = (*compared, tmp_path / "b", "--seeds", 2)
    command(*again)
    (other,) = set((tmp_path / "dense").glob("*.safetensors")) - {kept}
    shutil.copy(kept, other)
    code, _, err = command.run(*again[:-3], tmp_path / "c", "--seeds", 2)
    assert (code, err.count("\n")) == (2, 3)  # that one seed decides nothing, and what is planned
    assert "holds a dense model of another protocol" in err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the strategy has no more masks")
def test_a_search_by_gates_that_could_not_be_trained_is_an_error(
    command, monkeypatch, tmp_path, toys
):
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    data = ("--weights", toys / "checkpoint", "--glue", toys / "glue", "--tasks", "SST-2")
    words = ("--strategy", "dam", *data, *SMALL, "--set", "frozen=99", "--run", tmp_path / "run")
    code, _, err = command.run("search", *words)
    assert code == 2
    assert re.search("^error: strategy 'dam' has no gates, .* failed: .*frozen=99", err, re.M), err


@pytest.mark.nightly
def test_work_is_a_limit_of_searches_and_comparisons(toys, command, tmp_path, monkeypatch):
    """Words and schedules within a share of the work, and hand-designed ones beside them."""
    monkeypatch.chdir(tmp_path)
    judge = ("--weights", toys / "checkpoint", "--glue", toys / "glue", "--tasks", "SST-2",
             "--adapt", "none", *SMALL[:2], "--set", "read_out=own", "--set", "finetune_lr=3e-3",
             "--set", "epochs=3", *SMALL[4:], "--set", "cache=kept")  # fmt: skip
    limit, few = ("--work", 0.5), ("--no-baselines", "--trials", 4)
    prune = ("--strategy", "prune", "--set", "prune.rows=40", "--set", "prune.by=loss")
    said, _ = command("search", *judge, *limit, *few, *prune, "--run", "words")
    assert "masks judged within 0.5: 1; best #1, SST-2" in said
    space = ("search", "masksearch.spaces:token_schedules", "--strategy", "nsga2")
    command(*space, *judge, *limit, *few, "--run", "drawn")
    said, _ = command("compare", "words", "drawn", *judge, *limit, "--run", "compared")
    judged = ms.Comparison.open("compared")
    assert {"prune within 0.5", "nsga2 within 0.5", "dense"} < {*judged.entries}
    assert [objective.name for objective in judged.objectives] == ["glue", "work"]
    within = {each.name for each in judged.records if each.measures["work"] <= 0.5 * (1 + 1e-9)}
    limited = {name for name in judged.entries if name.endswith("within 0.5")}
    assert {name for name in limited if not name.startswith("scrambled")} <= within
    assert "--out FOLDER --budget 0.5" in said
    both = command.refused("search", *judge, *limit, "--budget", 0.5, *prune, "--run", "x")
    assert "give either a budget or work, got budget=[0.5] and work=[0.5]" in both
    pairs = command.refused("search", *judge, *limit, "--strategy", "dam", "--run", "x")
    assert "strategy 'dam' chooses pairs, work is of tokens: take strategy 'prune'" in pairs
    units = ("--strategy", "random", "--local", "star()")
    refused = command.refused("search", *judge, *limit, *units, "--run", "x")
    assert "units choose pairs, and work is of tokens: take strategy 'prune'" in refused
