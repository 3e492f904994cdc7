"""Deliberate mistakes on the command line: one line each, with the rule, and exit code 2."""

from pathlib import Path

import pytest

FILES = {
    "space.py": """
from masksearch import masks


def space(trial):
    return masks.window(trial.suggest_int("reach", 0, 12))
""",
    "judge.py": f"""
import sys

sys.path.insert(0, {str(Path(__file__).parent / "contracts")!r})
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
    "neighbour.py": "def broken(:\n",
    "imports.py": """
import sys

sys.path.insert(0, {folder!r})
import neighbour


def space(trial):
    return None
""",
}
MISTAKES = {
    "no trials": ("--trials 0", "trials must be a whole number >= 1 (0 with baselines), got 0"),
    "negative trials": ("--trials -3", "trials must be a whole number >= 1"),
    "no time": ("--seconds 0", "seconds must be positive, got 0"),
    "no slots": ("--slots 0", "slots must be a whole number >= 1, got 0"),
    "empty constraint": ("--constraint {empty}", "a constraint reads like 'sparsity >= 0.9'"),
    "unknown measure": ("--constraint sparsty>=1", "did you mean 'sparsity'"),
    "run is a file": ("--run space.py", "space.py is a file; --run names a folder"),
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
    "syntax of a neighbour": ("imports.py:space",
        "SyntaxError: invalid syntax (neighbour.py, line 1)"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_with_exit_code_2(mistake, tmp_path, command, monkeypatch):
    options, message = MISTAKES[mistake]
    for name, text in FILES.items():
        text = text.replace("{folder!r}", repr(str(tmp_path))) if name == "imports.py" else text
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    given = [word.replace("{empty}", "") for word in options.split()]
    arguments = [] if given[0].endswith("space") else ["space.py:space"]
    usual = {"--run": "run", "--evaluator": "judge.py:Judge", "--trials": "2"}
    if "--seconds" in given:
        del usual["--trials"]
    for option, value in usual.items():
        arguments += [] if option in given else [option, value]
    said = command.refused("search", *arguments, *given)
    assert said.startswith("error: ")
    assert message in said


@pytest.mark.slow
def test_command_of_a_search_that_never_began_is_replaced(tmp_path, command, monkeypatch):
    for name in ("space.py", "judge.py"):
        (tmp_path / name).write_text(FILES[name])
    (tmp_path / "wrong.py").write_text("def space(trial):\n    return None\n")
    monkeypatch.chdir(tmp_path)
    codes = lambda *words: command.run(*words)[0]  # noqa: E731
    common = ("--evaluator", "judge.py:Judge", "--run", "run")
    assert codes("search", "wrong.py:space", "--trials", "3", *common) == 2
    assert codes("search", "space.py:space", "--trials", "2", *common) == 0
    assert "space.py:space" in (tmp_path / "run" / "command.json").read_text()
    assert codes("search", "space.py:space", "--trials", "9", "--seed", "4", *common) == 2
    assert '"seed": null' in (tmp_path / "run" / "command.json").read_text()
    assert codes("resume", "run", "--trials", "3") == 0
