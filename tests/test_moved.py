"""Imports of earlier module names: they work, warn, and give today's objects."""

from __future__ import annotations

import importlib
import sys

import pytest

from masksearch.moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_earlier_names_import_what_lives_elsewhere_now(name):
    sys.modules.pop(f"masksearch.{name}", None)
    with pytest.warns(DeprecationWarning, match=f"import masksearch.{MOVED[name]}"):
        module = importlib.import_module(f"masksearch.{name}")
    today = importlib.import_module(f"masksearch.{MOVED[name]}")
    public = [key for key in vars(today) if not key.startswith("__")]
    assert public
    assert all(getattr(module, key) is getattr(today, key) for key in public)


def test_other_names_are_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("masksearch.results.nothing")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("masksearch.nothing")


@pytest.mark.filterwarnings("ignore:masks that follow the tokens")  # ContentMask
def test_every_public_name_loads():
    import masksearch as ms

    assert "search" in ms.__all__
    for name in ms.__all__:
        assert getattr(ms, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ms.nothing
