"""Fields, options and names are those that totals.toml says."""

import dataclasses
import importlib
import tomllib
from pathlib import Path

import masksearch
from masksearch.contracts import Evaluator
from masksearch.training.parts import Settings
from tests.parsed import PACKAGE, every_command

HERE = Path(__file__).parent
TOTALS = tomllib.loads((HERE / "totals.toml").read_text(encoding="utf-8"))


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
        "fields": sum(len(fields(each)) for each in {*evaluators(), *Settings.__subclasses__()}),
        "options": len({each for each in options if each.startswith("--")}),
        "names": len(masksearch.__all__),
    }


def test_totals_are_those_of_the_file():
    assert measured() == TOTALS
