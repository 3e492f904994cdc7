"""The guides' files and commands, from the first space to the last line, with fewer steps."""

import re
import shlex
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from toy import ToyEvaluator

import masksearch as ms

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(?:\{code-cell\} )?(\w+)\n(.*?)^```$", re.M | re.S)


def blocks(page: str, language: str) -> list[str]:
    """The code of a page in a language, in its order."""
    found = BLOCK.findall((DOCS / page).read_text("utf-8"))
    return [code for name, code in found if name.startswith(language)]


def lines(code: str) -> list[str]:
    """The commands of a block, each on one line."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]


def test_home_and_guides_tell_the_same_story():
    space = next(code for code in blocks("guide_space.md", "python") if "def judge" in code)
    assert [code for code in blocks("index.md", "python") if "def judge" in code] == [space]
    [home] = blocks("index.md", "bash")
    told = [line for page in ("search", "comparing") for line in
            lines(blocks(f"{page}.md", "bash")[0])]  # fmt: skip
    assert lines(home) == told


@pytest.mark.nightly
def test_the_story_runs(monkeypatch, command, tmp_path):
    monkeypatch.chdir(tmp_path)
    space = next(code for code in blocks("guide_space.md", "python") if "def judge" in code)
    (tmp_path / "my_space.py").write_text(space.replace("steps=240", "steps=12"))
    for page, count in (("search.md", 2), ("comparing.md", 1)):
        for line in lines("\n".join(blocks(page, "bash")[:count])):
            line = line.replace("--slots 2", "--slots 1").replace("--trials 24", "--trials 17")
            command(*shlex.split(line, comments=True)[1:])
    assert (tmp_path / "runs" / "compared" / "report.html").is_file()
    assert (tmp_path / "mask.json").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(budget|drew a mask)")
def test_a_space_keeps_budgets_by_one_line(tmp_path):
    names = {}
    for code in blocks("guide_space.md", "python"):
        if "import masksearch" in code or "def heads" in code:
            exec(code, names)

    class Judge(ToyEvaluator):
        shape = ms.Shape(24, 2, 4)

    refused = {}
    for name in ("heads", "heads_within"):
        told = {"trials": 4, "strategy": "random", "budget": 0.3, "baselines": {}}
        study = ms.search(names[name], Judge(), run=tmp_path / name, progress=None, **told)
        refused[name] = sum(record.refused for record in study.records())
    assert refused["heads"] > 3 > refused["heads_within"] == 0


def test_trackers_take_each_finished_trial_with_its_curve(monkeypatch, tmp_path):
    [code] = [code for code in blocks("running.md", "python") if "def to_mlflow" in code]
    mlflow, wandb = MagicMock(), MagicMock()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    exec(code, names := {})
    study = ms.search(
        lambda trial: ms.masks.window(trial.suggest_int("reach", 0, 9)),
        ToyEvaluator(),
        **{"trials": 2, "strategy": "random", "run": tmp_path, "progress": None},
        baselines={},
        listeners=[names["to_mlflow"], names["to_wandb"]],
    )
    titles = [f"trial {record.number}" for record in study.records()]
    assert [each.kwargs["run_name"] for each in mlflow.start_run.call_args_list] == titles
    assert [each.kwargs["name"] for each in wandb.init.call_args_list] == titles
    for record in study.records():
        for report in record.curve:
            mlflow.log_metrics.assert_any_call(dict(report.values), step=report.step)
            wandb.init().log.assert_any_call(dict(report.values), step=report.step)


@pytest.mark.nightly
def test_a_plain_model_learns_and_takes_a_mask():
    code = "\n".join(blocks("plain_pytorch.md", "python"))
    with torch.random.fork_rng():
        exec(compile(code, "docs/plain_pytorch.md", "exec"), {"__name__": "plain"})
