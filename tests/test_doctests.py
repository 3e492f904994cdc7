"""Every example in a docstring of the package is true."""

import doctest
import importlib

import pytest

from tests.parsed import PACKAGE, SERVE

MODULES = [
    ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
    for package in (PACKAGE, SERVE[0].parent)
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
