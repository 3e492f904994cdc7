"""Syntax trees of the package's files, each parsed once by the tests that read them."""

import ast
import functools
from pathlib import Path
from typing import Any

import typer.main

from masksearch.cli import main as cli

PACKAGE = Path(__file__).parents[1] / "masksearch"
FILES = sorted(PACKAGE.rglob("*.py"))
DECODERS = sorted((PACKAGE.parent / "masksearch-decoders" / "masksearch_decoders").rglob("*.py"))
BENCH = sorted((PACKAGE.parent / "masksearch-bench" / "masksearch_bench").glob("*.py"))


def every_command() -> dict[str, Any]:
    """Name -> command of `masksearch`, those of distributions beside it too."""
    program: Any = typer.main.get_command(cli.app)
    program.list_commands(None)
    return dict(program.commands)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Every node of it."""
    return tuple(ast.walk(tree_of(path)))
