"""Mistakes on the command line: one line each, with the rule, and exit code 2."""

import re
from pathlib import Path

import pytest
from cli_runs import write_toys


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """A working folder with a space and evaluators."""
    write_toys(tmp_path)
    for name, text in OWN.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


NOWHERE = ("--evaluator", "nowhere.py:judge")  # which would be refused next
MISTAKES = {
    "unknown family": (["report", "bigbrd(2)"], "did you mean 'bigbird'"),
    "long": (["report", "window(3)", "--length", "99999999"],
        r"length of what is counted cell by cell must be at most 2\*\*17, got 99999999"),
    "code": (["report", "__import__('os').system('x')"], "unknown mask|cannot stand in a mask"),
    "unknown option": (["report", "star", "--lenght", "3"], "--lenght; did you mean '--length'"),
    "nearest of several": (["search", "--trails", "3"], "--trails; did you mean '--trials'"),
    "unknown command": (["serch"], "did you mean 'search'|Did you mean 'search'"),
    "a run behind --run": (["report", "--run", "runs/x"], "the run stands alone: .* report RUN"),
    "no run or mask": (["report"], "Missing argument .*; see: .* report --help"),
    "share in per cent": (["search", "my_space.py:space", "--budget", "12%"],
        "valid number.*; write 12% as 0.12$"),
    "times in per cent": (["sparsify", "m", "--faster", "130%"], "; write 130% as 1.3$"),
    "list of seeds": (["compare", "star", "--seeds", "1000,1001"],
        "--seeds says how many, as --seeds 3$"),
    "option before its command": (["--out", "x", "sparsify", "m"],
        "--out; --out stands behind its command: .* sparsify ..$"),
    "setting as an option": (["sparsify", "m", "--epochs", "3"],
        "--epochs; if it is a setting: --set epochs=3$"),
    "setting that is like an option": (["sparsify", "m", "--lr=3e-4"],
        "if it is a setting: --set finetune_lr=3e-4$"),
    "setting in two words": (["sparsify", "m", "--out", "x", "--set", "finetune_lr", "1e-3"],
        "extra argument.*; write --set finetune_lr=1e-3$"),
    "share of a run": (["attach", "m", "runs/try", "0.8"], "so sparse is runs/try@0.8$"),
    "command of Optuna": (["importances", "runs/x"], "that is masksearch report RUN$"),
    "no space": (["search"], "strategy 'tpe' needs a space"),
    "missing space file": (["search", "nowhere.py:space"], "no such file"),
    "no function": (["search", "my_space.py:spac"], "did you mean 'space'"),
    "no colon": (["search", "my_space.py"], "needs the name of .*: my_space.py:space"),
    "setting of another strategy": (["search", "my_space.py:space", "--set", "prune.rows=3"],
        "--set prune.rows belongs to strategy prune; the strategy is 'tpe'"),
    "setting of dam": (
        ["search", "--strategy", "allocate", "--local", "star()", "--set", "dam.density=0.1"],
        "--set dam.density belongs to strategy dam, and to allocate by gates",
    ),
    "setting that is unknown": (
        ["search", "--strategy", "prune", "--set", "prune.row=3"],
        "unknown setting of prune 'row'; did you mean 'rows'",
    ),
    "halving setting, before the evaluator is built": (
        ["search", "my_space.py:space", "--halving", "2", "--set", "halving.metrc=x", *NOWHERE],
        "unknown setting of ParetoHalving 'metrc'; did you mean 'metric'",
    ),
    "halving value, before the evaluator is built": (
        ["search", "my_space.py:space", "--halving", "2", "--set", "halving.factor=1", *NOWHERE],
        "factor must be above 1, got 1",
    ),
    **{f"setting of a search, for {words[0]}": (
        [*words, "--set", "dam.steps=3"],
        "--set dam.steps belongs to masksearch search; here --set takes NAME=VALUE$",
    ) for words in (["compare", "star"], ["check", "my_space.py:space"],
        ["pretrain", "star", "--corpus", "my_space.py", "--out", "made"])},
    "setting of nothing": (["search", "my_space.py:space", "--set", "damm.steps=3"],
        "unknown prefix of --set 'damm'; did you mean 'dam'"),
    "units beside a space": (["search", "my_space.py:space", "--local", "star()"],
        "are a space of their own; drop my_space.py:space"),
    "masks of units beside other ones": (
        ["search", "--local", "star()", "--local", "full()", "--set", 'units.levels=["star()"]'],
        r"units.levels begins with --local, star\(\), full\(\); got star\(\)",
    ),
    "units without a local mask": (["search", "--strategy", "random", "--unit", "layer"],
        "--unit goes with --local"),
    "unit that is none": (
        ["search", "--strategy", "allocate", "--local", "star()", "--unit", "heads"],
        "unknown unit 'heads'",
    ),
    "space of dam": (["search", "my_space.py:space", "--strategy", "dam"],
        "strategy 'dam' takes no space; drop my_space.py:space"),
    "enqueued file that is none": (
        ["search", "my_space.py:space", "--strategy", "random", "--enqueue", "nosuch.json"],
        "--enqueue nosuch.json: there is no such file",
    ),
    "two masks of one name": (["compare", "x=star", "x=window(3)"],
        "'x' names two masks; give one another name"),
    "dam setting": (["search", "--strategy", "dam", "--set", "dam.densty=2"],
        "did you mean 'density'"),
    "dam setting that is no number": (["search", "--strategy", "dam", "--set", "dam.gate_lr=fast"],
        "--set dam.gate_lr takes a number, got 'fast'"),
    "block of dam in words": (["search", "--strategy", "dam", "--set", "dam.block=64x16"],
        "--set dam.block takes a whole number or a list .* or \\[64, 16\\] or null, got '64x16'"),
    "setting of a strategy that is no whole number": (
        ["search", "--strategy", "prune", "--set", "prune.rows=.5"],
        "--set prune.rows takes a whole number",
    ),
    "length without corpus": (["compare", "star", "--length", "8"], "needs --corpus"),
    "missing corpus": (["compare", "star", "--corpus", "nowhere"], "nowhere"),
    "one run is missing": (["report", ".", "nowhere"], "nowhere: no such run folder"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_line_and_exit_code_2(command, arguments, message):
    before = command.files()
    err = command.refused(*arguments)
    assert re.search(message, err), err
    assert command.files() == before  # nothing is left behind


# -- in a user's own code, and in what a search is given ------------------------------------------
OWN = {
    "judge.py": f"""
import sys

sys.path.insert(0, {str(Path(__file__).parents[1] / "contracts")!r})
from toy import ToyEvaluator


class Judge(ToyEvaluator):
    pass


class Folder(ToyEvaluator):
    def __init__(self, folder):
        self.folder = folder


class Broken(ToyEvaluator):
    def __init__(self):
        raise KeyError("rows")


class Careless:
    def __init__(self, space):
        self.space = space

    def ask(self):
        return {{}}.missing

    def tell(self, record):
        pass


class Stubborn(Careless):
    def __init__(self, space):
        raise TypeError("no")
""",
    "spaces.py": """
from masksearch import masks


def deep_space(trial):
    return masks.per_layer([masks.window(trial.suggest_int("reach", 1, 4))] * 7)


def priced_space(trial):
    return masks.window(trial.suggest_int("budget", 1, 4))


def equal_space(trial):
    return masks.window(int(trial.suggest_categorical("reach", [True, 1])))
""",
    "neighbour.py": "def broken(:\n",
    "imports.py": """
import neighbour


def space(trial):
    return None
""",
}
OF_A_SEARCH = {  # beside a space, an evaluator, a number of trials and a run
    "no trials": ("--trials 0", "trials must be a whole number >= 1 (0 with baselines), got 0"),
    "negative trials": ("--trials -3", "trials must be a whole number >= 1"),
    "no time": ("--seconds 0", "seconds must be positive, got 0"),
    "no slots": ("--slots 0", "slots must be a whole number >= 1, got 0"),
    "empty constraint": ("--constraint {empty}", "a constraint reads like 'sparsity >= 0.9'"),
    "unknown measure": ("--constraint sparsty>=1", "did you mean 'sparsity'"),
    "run is a file": ("--run judge.py", "judge.py is a file; --run names a folder"),
    "no server": ("--storage postgresql://nobody@127.0.0.1:1/x",
        "cannot open the storage postgresql://nobody@127.0.0.1:1/x"),
    "no such evaluator": ("--evaluator judge.py:missing",
        "unknown function or class in judge.py 'missing'. Known: Judge, Folder, Broken"),
    "evaluator with arguments": ("--evaluator judge.py:Folder",
        "judge.py:Folder is called without arguments and raised TypeError: "),
    "evaluator that breaks": ("--evaluator judge.py:Broken",
        "KeyError in judge.py, line 19: 'rows'"),
    "strategy that breaks": ("--strategy judge.py:Stubborn", "TypeError in judge.py, line 35: no"),
    "strategy that breaks later": ("--strategy judge.py:Careless",
        "Careless.ask() raised AttributeError in judge.py, line 27: 'dict' object"),
    "no executor": ("--executor judge.py:Judge", "a Judge is no executor: it has no `def run("),
    "mask of another depth": ("spaces.py:deep_space", "has 7 layers"),
    "equal choices, in another folder": ("spaces.py:equal_space --run new/folder",
        "its choices True and 1 are equal"),
    "parameter that is the budget": ("spaces.py:priced_space --budget .5",
        "'budget' is what a draw may cost: give that parameter another name"),
    "syntax of a neighbour": ("imports.py:space",
        "SyntaxError: invalid syntax (neighbour.py, line 1)"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mistake", OF_A_SEARCH)
def test_mistake_of_a_search_is_one_line_with_exit_code_2(mistake, command):
    options, message = OF_A_SEARCH[mistake]
    given = [word.replace("{empty}", "") for word in options.split()]
    usual = {"--run": "run", "--evaluator": "judge.py:Judge", "--trials": "2"}
    if "--seconds" in given:
        del usual["--trials"]
    arguments = [] if given[0].endswith("space") else ["my_space.py:space"]
    for option, value in usual.items():
        arguments += [] if option in given else [option, value]
    before = command.files()
    said = command.refused("search", *arguments, *given)
    assert not command.files() - before
    assert said.startswith("error: ")
    assert message in said


@pytest.mark.slow
def test_command_of_a_search_that_never_began_is_replaced(files, command):
    (files / "wrong.py").write_text("def space(trial):\n    return None\n")
    codes = lambda *words: command.run(*words)[0]  # noqa: E731
    common = ("--evaluator", "judge.py:Judge", "--run", "run")
    assert codes("search", "wrong.py:space", "--trials", "3", *common) == 2
    assert codes("search", "my_space.py:space", "--trials", "2", *common) == 0
    assert "my_space.py:space" in (files / "run" / "command.json").read_text()
    assert codes("search", "my_space.py:space", "--trials", "9", "--seed", "4", *common) == 2
    assert '"seed": null' in (files / "run" / "command.json").read_text()
    assert codes("resume", "run", "--trials", "3") == 0
