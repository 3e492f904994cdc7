"""Examples of pages and docstrings: what they call is there and takes what they give it, and those
with a prompt are true."""

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import TEXTS, blocks

from tests.parsed import DECODERS, FILES, PACKAGE

PROMPT = re.compile(r"^(>>>|\.\.\.) ?", re.M)
USUAL = {"ms": "masksearch", "masks": "masksearch.masks"}  # where an example imports nothing


def parsed(code: str) -> ast.Module | None:
    """None where it is no Python."""
    try:
        return ast.parse(textwrap.dedent(code))
    except SyntaxError:
        return None


def of_page(path: Path) -> ast.Module:
    """The blocks of a page as one program, which shares its imports."""
    trees = [parsed(PROMPT.sub("", code)) for code in blocks(TEXTS[path], "python")]
    assert all(trees), f"{path.name} has a block that is no Python"
    return ast.Module([line for tree in trees if tree for line in tree.body], [])


def of_module(path: Path) -> Iterator[ast.Module]:
    """The paragraphs of docstrings that are Python and call something."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                tree = parsed(paragraph)
                if tree and any(isinstance(each, ast.Call) for each in ast.walk(tree)):
                    yield tree


def imported(tree: ast.Module) -> dict[str, Any]:
    """What a program imports of masksearch, by the names that it has there."""
    names = {name: importlib.import_module(place) for name, place in USUAL.items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("masksearch"):
            module = importlib.import_module(str(node.module))
            for each in node.names:
                names[each.asname or each.name] = getattr(module, each.name)
    return names


def named(node: ast.expr, names: dict[str, Any]) -> Any:
    """What a dotted name is; None where it does not begin with an import of masksearch."""
    if isinstance(node, ast.Attribute):
        owner = named(node.value, names)
        return None if owner is None else getattr(owner, node.attr)
    return names.get(node.id) if isinstance(node, ast.Name) else None


def check_calls(tree: ast.Module) -> int:
    """Fails where a name is not there or does not take the arguments; returns what was checked."""
    names, checked = imported(tree), 0
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)
                and isinstance(node.ctx, ast.Store)}  # fmt: skip
    names = {name: value for name, value in names.items() if name not in assigned}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = named(call.func, names)
        given = [each.arg for each in call.keywords]
        if function is None or None in given or any(map(is_open, call.args)):
            continue
        try:
            inspect.signature(function).bind(*call.args, **dict.fromkeys(map(str, given)))
        except TypeError as error:
            raise AssertionError(f"{ast.unparse(call)}: {error}") from error
        checked += 1
    return checked


def is_open(node: ast.expr) -> bool:
    """Whether an example leaves arguments out, or has them in a sequence."""
    dots = isinstance(node, ast.Constant) and node.value is ...
    return dots or isinstance(node, ast.Starred)


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_calls_of_pages_are_taken():
    assert sum(check_calls(of_page(path)) for path in TEXTS) > 100


@pytest.mark.slow
def test_calls_of_docstrings_are_taken():
    paths = [*FILES, *DECODERS]
    assert sum(check_calls(tree) for path in paths for tree in of_module(path)) > 10


@pytest.mark.parametrize("code", ["masks.windo(2)", "masks.window(reach=2, gap=3)", "ms.search()"])
def test_a_call_that_fails_is_seen(code):
    with pytest.raises((AssertionError, AttributeError)):
        check_calls(ast.parse(code))


# -- with a prompt -------------------------------------------------------------------------------
MODULES = [
    ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
    for package in (PACKAGE, DECODERS[0].parent)
    for path in sorted(package.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]
SLOW = {"masksearch.driver"}  # it searches and compares


@pytest.mark.parametrize(
    "module", [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW)) for m in MODULES]
)
def test_examples_of_docstrings(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    found = doctest.testmod(importlib.import_module(module))
    assert found.failed == 0  # what is false is printed
    assert found.attempted > 0, f"{module} holds >>> where doctest finds no example"
