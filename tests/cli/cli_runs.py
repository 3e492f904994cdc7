"""Runs the command line in this process, and the toy files that its tests search with."""

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from masksearch import driver
from masksearch.cli import main as cli

SPACE = """
from masksearch import masks

def space(trial):
    return masks.window(trial.suggest_int("reach", 0, 12))
"""
EVALUATOR = """
import sys
sys.path.insert(0, {folder!r})
from toy import ToyEvaluator

def toy():
    return ToyEvaluator()
"""


def write_toys(folder: Path) -> None:
    """Writes `my_space.py`, with a space, and `my_proxy.py`, with `toy`."""
    (folder / "my_space.py").write_text(SPACE)
    contracts = str(Path(__file__).parents[1] / "contracts")
    (folder / "my_proxy.py").write_text(EVALUATOR.format(folder=contracts))


class Commands:
    """Runs commands in this process."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path
    ) -> None:
        self.given, self.place = (monkeypatch, capsys), place

    def run(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        return run(*self.given, *arguments)

    def __call__(self, *arguments: object) -> tuple[str, str]:
        """Standard output and standard error of a command that works."""
        code, out, err = self.run(*arguments)
        assert code == 0, err
        return out, err

    def refused(self, *arguments: object) -> str:
        """What is said of a mistake: one line, with exit code 2."""
        self.given[1].readouterr()  # of what ran before
        code, out, err = self.run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), out + err
        return err

    def files(self) -> set[Path]:
        """What lies in the test's folder and in the working folder's `runs`, but for what Python
        compiles."""
        found = {*self.place.rglob("*"), *Path("runs").absolute().rglob("*")}
        return {path for path in found if "__pycache__" not in path.parts}

    def called(self, *arguments: object) -> dict[str, Any]:
        """The arguments of the `search` or `compare` that a command calls, which is stopped there
        as by Ctrl-C: the command can be resumed."""
        given: dict[str, Any] = {}

        def stopped(function: Any) -> Any:
            def stop(*positional: object, **named: object) -> None:
                given.update(inspect.signature(function).bind(*positional, **named).arguments)
                raise KeyboardInterrupt

            return stop

        with pytest.MonkeyPatch.context() as patch:
            for name in ("search", "compare"):
                patch.setattr(driver, name, stopped(getattr(driver, name)))
            code, _, err = self.run(*arguments)
        assert code == 130, err
        return given


@pytest.fixture
def command(monkeypatch, capsys, tmp_path) -> Commands:
    """Commands of masksearch that run in this process."""
    return Commands(monkeypatch, capsys, tmp_path)


def run(monkeypatch, capsys, *arguments: object, program=cli.main) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of one command."""
    monkeypatch.setattr(sys, "argv", ["masksearch", *map(str, arguments)])
    monkeypatch.setattr(cli, "SOON", 600.0)  # a busy machine is no news here
    with pytest.raises(SystemExit) as stop:
        program()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err
