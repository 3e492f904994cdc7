"""`--help`: groups, every default, examples that parse; `--version`."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import pytest
import typer.main
from cli_runs import EVALUATOR, SPACE, run

from masksearch.cli.help import EXAMPLES
from masksearch.cli.main import app
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.evaluators.mlm import MlmEvaluator
from masksearch.evaluators.planted import PlantedEvaluator
from masksearch.gates.config import DamConfig
from masksearch.models.encoders import SIZES
from masksearch.training.loop import RATES

COMMANDS = typer.main.get_command(app).commands


def examples(command: str) -> list[list[str]]:
    """The words of each example of a command, without the program's name."""
    lines = COMMANDS[command].help.partition(EXAMPLES)[2].replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip()]


def defaults(kind: type) -> dict[str, object]:
    return {field.name: field.default for field in fields(kind)}


@pytest.fixture
def wide(monkeypatch):
    """The help of a command, each option's help on one line."""

    def text(capsys, *command):
        monkeypatch.setenv("COLUMNS", "120")
        code, out, _ = run(monkeypatch, capsys, *command, "--help")
        assert code == 0
        return " ".join(out.split())

    return text


@pytest.mark.parametrize("name", COMMANDS)
def test_options_have_a_group_and_a_default(name):
    for parameter in COMMANDS[name].params:
        assert parameter.rich_help_panel, f"{name}: {parameter.name} stands in no group"
        if parameter.param_type_name == "argument" or parameter.is_flag or parameter.required:
            continue
        said = "[default: " in parameter.help or parameter.default is not None
        assert said or parameter.multiple, f"{name}: --{parameter.name} says no default"


@pytest.mark.parametrize("name", COMMANDS)
def test_two_examples_parse(name):
    found = examples(name)
    assert len(found) == 2
    for command, *words in found:
        assert command == name
        COMMANDS[name].make_context(name, list(words))


@pytest.mark.slow
def test_examples_about_a_run_work(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_space.py").write_text(SPACE)
    toy = str(Path(__file__).parents[1] / "contracts")
    (tmp_path / "my_proxy.py").write_text(EVALUATOR.format(folder=toy))
    search = ("search", "my_space.py:space", "--evaluator", "my_proxy.py:toy", "--trials", 3)
    assert run(monkeypatch, capsys, *search)[0] == 0  # writes runs/search, as the example does
    for words in [*examples("show"), *examples("status"), *examples("resume")]:
        if "--slots" not in words:
            assert run(monkeypatch, capsys, *words)[0] == 0, words
    code, out, _ = run(monkeypatch, capsys, *examples("report")[0])
    page = f"{tmp_path}/runs/search/report.html\n"
    assert (code, out) == (
        0, f"watching; the page loads itself again: {page}report: {page}"
    )  # fmt: skip


@pytest.mark.slow
def test_examples_of_training_work(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    shutil.copy(Path(__file__).parents[2] / "README.md", tmp_path)
    for name, number in (("evaluate", 1), ("pretrain", 0), ("attach", 1)):
        words = examples(name)[number]
        assert run(monkeypatch, capsys, *words)[0] == 0, words


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_readable_in_80_columns(monkeypatch, capsys, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(monkeypatch, capsys, name, "--help")
    assert code == 0
    body, _, shown = out.partition("\nExamples:\n")
    assert max(map(len, body.splitlines())) <= 80
    assert shown.count("masksearch ") >= 2
    assert body.count("\nOutput:\n") == 1


def test_defaults_in_words_are_the_evaluators(capsys, wide):
    said, mlm, planted = wide(capsys, "search"), defaults(MlmEvaluator), defaults(PlantedEvaluator)
    for name in ("steps", "batch"):
        assert f"[default: {mlm[name]}; planted corpus: {planted[name]}]" in said
    lr, trained = RATES["lr"]
    said_of_lr = f"[default: {lr}; from a checkpoint: {trained}; planted corpus: {planted['lr']}]"
    assert said_of_lr in said
    length = PlantedEvaluator().shape.length
    assert f"[default: {mlm['length']}; the planted corpus has {length}]" in said
    assert f"[default: {mlm['vocabulary']}]" in said
    assert f"[default: {mlm['size']}; planted corpus: {planted['size']}]" in said
    assert all(f"{name} = {size}" in said for name, size in SIZES.items())
    glue, gates = defaults(GlueEvaluator), defaults(DamConfig)
    assert f"[default: {','.join(glue['tasks'])}]" in said
    assert f"[default: {glue['rows']}]" in said
    for name in ("epochs", "finetune_batch", "finetune_seeds"):
        assert f"{name}={glue[name]}" in said
    scratch, trained = RATES["finetune_lr"]
    assert f"finetune_lr={scratch} ({trained} for a checkpoint)" in said
    assert f"[default: {gates['density']}]" in said
    assert f"[default: {gates['steps']}]" in said


def test_defaults_in_words_are_those_of_pretraining(capsys, wide):
    said, mlm = wide(capsys, "pretrain"), defaults(MlmEvaluator)
    lr, trained = RATES["lr"]
    mlm["lr"] = f"{lr}; from a checkpoint: {trained}"
    names = (
        *("architecture", "length", "vocabulary", "pretraining", "steps", "batch", "lr"),
        *("micro_batches", "warmup", "schedule", "optimiser", "precision", "reports"),
    )
    for name in names:
        option = said.partition(f"--{name.replace('_', '-')} ")[2]
        assert option.partition("[default: ")[2].startswith(f"{mlm[name]}]"), name


def test_commands_are_listed_in_the_order_of_use(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys)
    assert code == 0
    places = [out.index(f"\n  {name} ") for name in ("demo", "show", "search", "status", "report")]
    assert places == sorted(places)
    assert out.count(":\n") >= 4  # options, and groups of commands


def test_version_is_quick_and_names_what_matters():
    code = """
import sys
from masksearch.cli.main import app

app(["--version"], standalone_mode=False)
assert not {"torch", "optuna", "transformers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("masksearch", "torch", "optuna", "transformers"):
        assert f"{name} {metadata.version(name)}" in done.stdout
    assert len(done.stdout.splitlines()) == 2
