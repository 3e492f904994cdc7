"""`--help`: groups, every default, examples that parse; `--version`."""

import dataclasses
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import get_type_hints

import pytest
from cli_runs import write_toys

import masksearch as ms
from masksearch.cli import search
from masksearch.cli.build import load_kind, setting_hints
from masksearch.cli.main import ResumeOptions
from masksearch.cli.report import ProxyCardOptions
from masksearch.cli.search import CompareOptions, SearchOptions
from masksearch.training.parts import usual_settings
from masksearch_serve.command import AllocateOptions
from tests.parsed import every_command

COMMANDS = every_command()


def examples(command: str) -> list[list[str]]:
    """The words of each example of a command, without the program's name."""
    lines = COMMANDS[command].help.partition("Examples:\n")[2].replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip()]


@pytest.fixture
def wide(command, monkeypatch):
    """The help of a command, each option's help on one line."""

    def text(*words):
        monkeypatch.setenv("COLUMNS", "120")
        return " ".join(command(*words, "--help")[0].split())

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
    assert len(found) >= 2
    for command, *words in found:
        assert command == name
        COMMANDS[name].make_context(name, list(words))


@pytest.mark.nightly
def test_examples_about_a_run_work(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_toys(tmp_path)
    search = ("search", "my_space.py:space", "--evaluator", "my_proxy.py:toy", "--trials", 3)
    command(*search)  # writes runs/search, as the example does
    for words in [*examples("status"), *examples("resume"), examples("report")[-1]]:
        if "--slots" not in words:
            command(*words)
    code, out, _ = command.run(*examples("report")[0])
    page = f"{tmp_path}/runs/search/report.html\n"
    assert (code, out) == (
        0, f"watching; the page loads itself again: {page}report: {page}"
    )  # fmt: skip


@pytest.mark.nightly
def test_examples_of_training_work(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    shutil.copy(Path(__file__).parents[2] / "README.md", tmp_path)
    for name, number in (("compare", 2), ("pretrain", 0), ("attach", 1)):
        command(*examples(name)[number])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_readable_in_80_columns(command, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = command(name, "--help")
    body, _, shown = out.partition("\nExamples:\n")
    assert max(map(len, body.splitlines())) <= 80
    assert shown.count("masksearch ") >= 2
    assert body.count("\nOutput:\n") == 1


def test_defaults_are_those_of_the_evaluators(wide):
    mlm, planted = usual_settings(ms.MlmEvaluator), usual_settings(ms.PlantedEvaluator)
    for command in ("search", "compare"):
        said = wide(command)
        for name in ("steps", "size"):
            assert f"[default: {mlm[name]};" in said
            assert f"planted corpus: {planted[name]}]" in said
        assert f"[default: {', '.join(usual_settings(ms.GlueEvaluator)['tasks'])}]" in said
    said = wide("pretrain")
    for name in ("length", "steps"):
        option = said.partition(f"--{name} ")[2]
        assert option.partition("[default: ")[2].startswith(f"{mlm[name]}]"), name


def test_options_say_what_the_docstring_says():
    for command in ("search", "compare"):
        options = {option.name: option for option in COMMANDS[command].params}
        assert options["steps"].type_descriptor.annotation is int
        assert options["steps"].help.startswith("Optimiser steps of pre-training.  [default: 800;")
        assert options["weights"].help.endswith("[default: random weights]")
    options = {option.name: option for option in COMMANDS["search"].params}
    assert options["seed"].help.endswith("[default: 0]")
    assert [options[name].type_descriptor.annotation for name in ("seed", "trials")] == [int, int]


def test_commands_are_listed_in_the_order_of_use(command):
    out, _ = command()
    places = [out.index(f"\n  {name} ") for name in ("demo", "search", "status", "report")]
    assert places == sorted(places)
    assert out.count(":\n") >= 5  # options, and commands by job
    shown = re.findall(r"^  \$ masksearch (\S+)", out, re.M)
    assert shown == ["demo", "search", "compare", "attach"]  # an example of each job


@pytest.mark.slow
def test_version_is_quick_and_names_what_matters():
    code = """
import sys
from masksearch.cli.main import app
from masksearch.training.parts import usual_settings
from masksearch_serve.command import AllocateOptions

app(["--version"], standalone_mode=False)
assert not {"torch", "optuna", "transformers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("masksearch", "torch", "optuna", "transformers"):
        assert f"{name} {metadata.version(name)}" in done.stdout
    assert len(done.stdout.splitlines()) == 2


PLAIN = {"str": str, "bool": bool, "int": int, "float": float}  # others are given as text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "described"),
    [
        (SearchOptions, search.TAKEN_FROM),
        (CompareOptions, search.TAKEN_FROM),
        (AllocateOptions, {"": "masksearch_serve.planner:allocate"}),
        (ProxyCardOptions, {"": "masksearch.report.collect:proxy_card"}),
        (ResumeOptions, {"": "masksearch.cli.main:resume"}),
    ],
)
def test_described_options_have_the_types_of_the_arguments_that_describe_them(options, described):
    hints = get_type_hints(options)
    for target in map(load_kind, described.values()):
        if isinstance(target, type) and issubclass(target, ms.contracts.Evaluator):
            types = setting_hints(target)
        else:
            types = {n: p.annotation for n, p in inspect.signature(target).parameters.items()}
        for each in dataclasses.fields(options):
            if "group" in each.metadata and each.name in types:
                words = re.findall(r"\w+", str(types[each.name]))
                kind = next((PLAIN[word] for word in PLAIN if word in words), str)
                taken = {kind | None, list[kind] | None}  # the second where it is repeatable
                assert hints[each.name] in taken, (each.name, target)
