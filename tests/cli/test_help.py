"""`--help`: groups, every default, examples that parse; `--version`."""

import inspect
import json
import re
import shlex
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from cli_runs import write_toys
from other_process import python
from transformers import LlamaConfig

import masksearch as ms
from masksearch_bench import proxy_card
from masksearch_decoders import CausalEvaluator, allocate, kv_bytes
from tests.parsed import every_command

COMMANDS = every_command()
JUDGES = (ms.MlmEvaluator, ms.GlueEvaluator, CausalEvaluator, ms.PlantedEvaluator, ms.RayTune)


def examples(command: str) -> list[list[str]]:
    """The words of each example of a command, without the program's name."""
    lines = COMMANDS[command].help.partition("Examples:\n")[2].replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip()]


@pytest.fixture
def wide(command, monkeypatch):
    """The help of a command, each option's help on one line."""

    def text(*words):
        monkeypatch.setenv("COLUMNS", "120")
        whole = any(each.name == "help_all" for each in COMMANDS[words[0]].params)
        return " ".join(command(*words, "--help-all" if whole else "--help")[0].split())

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
    assert (code, out) == (0, f"report: {page}")


@pytest.mark.nightly
def test_examples_of_training_work(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    shutil.copy(Path(__file__).parents[2] / "README.md", tmp_path)
    for name, number in (("compare", 2), ("pretrain", 0)):
        command(*examples(name)[number])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_readable_in_80_columns(command, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = command(name, "--help")
    body, _, shown = out.partition("\nExamples:\n")
    assert max(map(len, body.splitlines())) <= 80
    assert shown.count("masksearch ") >= 2
    assert body.count("\nOutput:\n") == 1


@pytest.mark.parametrize("name", ["search", "compare", "sparsify"])
def test_a_short_help_has_what_a_first_run_needs_and_names_the_long_one(command, name):
    short, _ = command(name, "--help")
    whole, _ = command(name, "--help-all")
    assert len(short.splitlines()) <= 70 < len(whole.splitlines())
    assert "\n  --help-all " in short
    for parameter in COMMANDS[name].params:
        shown = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
        assert f"\n  {shown} " in f"{whole} ", shown
    of_examples = {word for words in examples(name) for word in words if word.startswith("--")}
    described = set(re.findall(r"^  (--[\w-]+)", short, re.M))
    assert {"--data", "--budget"} <= described
    unusual = {"--glue", "--tasks", "--front", "--controls", "--steps"}
    assert of_examples - unusual <= described
    assert short.partition("Examples:")[2] == whole.partition("Examples:")[2]


@pytest.mark.slow
def test_tab_completes_commands_and_options_that_the_short_help_leaves_out(monkeypatch):
    code = "import sys; sys.argv = ['masksearch']; from masksearch.__main__ import main; main()"
    monkeypatch.setenv("_MASKSEARCH_COMPLETE", "complete_bash")
    for line, completed in (("sea", "search"), ("search --halv", "--halving")):
        monkeypatch.setenv("COMP_WORDS", f"masksearch {line}")
        monkeypatch.setenv("COMP_CWORD", str(len(line.split())))
        assert python("-c", code, check=True).stdout.split() == [completed]


def usual(kind: type) -> dict[str, object]:
    """The default of each setting of an evaluator."""
    return {name: each.default for name, each in inspect.signature(kind).parameters.items()}


def test_defaults_are_those_of_the_evaluators(wide):
    mlm, planted = usual(ms.MlmEvaluator), usual(ms.PlantedEvaluator)
    for command in ("search", "compare"):
        said = wide(command)
        for name in ("steps", "size"):
            assert f"[default: {mlm[name]};" in said
            assert f"planted corpus: {planted[name]}]" in said
        assert f"[default: {', '.join(usual(ms.GlueEvaluator)['tasks'])}]" in said
    said = wide("pretrain")
    for name in ("length", "steps"):
        option = said.partition(f"--{name} ")[2]
        assert option.partition("[default: ")[2].startswith(f"{mlm[name]}]"), name


def test_options_say_what_the_docstring_says():
    for command in ("search", "compare"):
        options = {option.name: option for option in COMMANDS[command].params}
        assert options["steps"].help.startswith("Optimiser steps of pre-training.  [default: 800;")
        assert options["weights"].help.endswith("[default: random weights]")
    options = {option.name: option for option in COMMANDS["search"].params}
    assert options["seed"].help.endswith("[default: 0]")


@pytest.mark.slow
def test_version_is_quick_and_names_what_matters():
    code = """
import sys
from masksearch.cli.main import app
from masksearch_decoders.command import AllocateOptions

app(["--version"], standalone_mode=False)
assert not {"torch", "optuna", "transformers"} & set(sys.modules)
"""
    done = python("-c", code, check=True)
    for name in ("masksearch", "torch", "optuna", "transformers"):
        assert f"{name} {metadata.version(name)}" in done.stdout
    assert len(done.stdout.splitlines()) == 2


NUMBERS = {"bool": bool, "int": int, "float": float}  # others are given as text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("search", (ms.search, *JUDGES)),
        ("compare", (ms.compare, *JUDGES)),
        ("allocate", (allocate,)),
        ("proxy-card", (proxy_card,)),
        ("resume", (ms.resume,)),
        ("sparsify", (ms.sparsify,)),
    ],
)
def test_options_have_the_types_of_the_arguments_that_describe_them(name, targets):
    options = {option.name: option for option in COMMANDS[name].params}
    for target in targets:
        for argument in inspect.signature(target).parameters.values():
            words = re.findall(r"\w+", str(argument.annotation))
            kind = next((NUMBERS[word] for word in NUMBERS if word in words), None)
            if kind is not None and argument.name in options:
                taken = options[argument.name].type_descriptor.annotation
                assert taken in (kind, list[kind]), (argument.name, target)


HERE = (  # examples that run as they stand, in an empty folder
    'masksearch export "longformer(16, 2)" --out layout.npy --block 16 --length 128',
    'masksearch report "bigbird(2,1,2) | window(3)" --length 48',
    "masksearch doctor",
)


@pytest.mark.slow
@pytest.mark.parametrize("example", HERE)
def test_examples_that_need_nothing_run(example, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(example)[1:]
    assert [name, *words] in examples(name)
    out, _ = command(name, *words)
    assert out


def test_the_engine_of_the_example_of_allocate_leaves_room_for_its_budget():
    """The floor of llama.cpp at the printed settings, on any Llama."""
    [words] = [each for each in examples("allocate") if "--serving" in each]
    told = {name: words[words.index(f"--{name}") + 1] for name in ("budget", "length", "serving")}
    serving = json.loads(told["serving"])
    local = ms.masks.window(int(told["length"]) // 8 - 1)
    settings = {"cache_layout": "llama.cpp", "ubatch": serving["ubatch"]}
    llama = LlamaConfig(num_hidden_layers=4)
    held = kv_bytes(local, llama, serving["length"], **settings)
    assert held.share <= float(told["budget"])
