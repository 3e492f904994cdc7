"""Public names of earlier versions say what serves instead."""

from __future__ import annotations

import pytest

import masksearch as ms


@pytest.mark.parametrize("name", ["Together", "train_together"])
def test_a_removed_name_says_what_replaces_it(name):
    assert not hasattr(ms, name)
    with pytest.raises(AttributeError, match=rf"masksearch\.{name} was removed; .*RayTune"):
        getattr(ms, name)
