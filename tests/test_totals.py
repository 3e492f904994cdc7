"""What the package holds stands in totals.toml, and grows only where a line there says why."""

import ast
import dataclasses
import importlib
import tomllib
from pathlib import Path

import masksearch
from masksearch.contracts import Evaluator
from masksearch.training.parts import Settings
from tests.parsed import BENCH, DECODERS, FILES, PACKAGE, every_command, nodes_of

HERE = Path(__file__).parent
TOTALS = tomllib.loads((HERE / "totals.toml").read_text(encoding="utf-8"))
SLACK = {
    "code": 150,
    "tests": 600,
    "tests_beside": 600,
}  # lines that may go before the total follows


def code_lines(path: Path) -> int:
    """Lines of a file without docstrings, comments and blanks."""
    text = path.read_text(encoding="utf-8")
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    held = {number for number, line in lines if line and not line.startswith("#")}
    for node in nodes_of(path):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                first = node.body[0]
                held -= {*range(first.lineno, (first.end_lineno or 0) + 1)}
    return len(held)


def raw_lines(path: Path) -> int:
    """Lines of a file, as they are."""
    return len(path.read_text("utf-8").splitlines())


def evaluators(kind: type = Evaluator) -> set[type]:
    """Every evaluator of the package, abstract ones too."""
    for path in (PACKAGE / "evaluators").glob("*.py"):
        importlib.import_module(f"masksearch.evaluators.{path.stem}")
    importlib.import_module("masksearch_decoders.served")
    rooms = ("masksearch.evaluators.", "masksearch_decoders.")
    below = [each for each in kind.__subclasses__() if each.__module__.startswith(rooms)]
    return {*below}.union(*map(evaluators, below))


def fields(kind: type) -> set[str]:
    """Names that a class declares, and no parent of it."""

    def taken(each: type) -> set[str]:
        known = dataclasses.fields(each) if dataclasses.is_dataclass(each) else ()
        return {field.name for field in known if field.init}

    return taken(kind).difference(*map(taken, kind.__bases__))


def measured() -> dict[str, int]:
    commands = every_command().values()
    options = {name for each in commands for option in each.params for name in option.opts}
    return {
        "code": sum(map(code_lines, FILES)),
        "files": len(FILES),
        "bench": sum(map(code_lines, BENCH)),
        "decoders": sum(map(code_lines, DECODERS)),
        "fields": sum(len(fields(each)) for each in {*evaluators(), *Settings.__subclasses__()}),
        "options": len({each for each in options if each.startswith("--")}),
        "names": len(masksearch.__all__),
        "tests": sum(map(raw_lines, HERE.rglob("*.py"))),
        "tests_beside": sum(map(raw_lines, HERE.parent.glob("*/tests/*.py"))),
    }


def test_totals_are_those_of_the_file():
    found = measured()
    assert found.keys() == TOTALS.keys()
    for name, total in TOTALS.items():
        assert found[name] <= total, f"{name}: {found[name]}; say in tests/totals.toml what for"
        assert total - found[name] <= SLACK.get(name, 0), (
            f"{name} is {found[name]}: lower its total"
        )
