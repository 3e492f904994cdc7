"""Runs the command line in this process, and the toy files that its tests search with."""

import sys

import pytest

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


def run(monkeypatch, capsys, *arguments: object, program=cli.main) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of one command."""
    monkeypatch.setattr(sys, "argv", ["masksearch", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        program()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err
