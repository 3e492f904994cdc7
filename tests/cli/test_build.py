"""The controls that the command line adds to a comparison."""

from __future__ import annotations

import pytest

from masksearch import masks
from masksearch.cli.build import random_like


@pytest.mark.parametrize("name", masks.FAMILIES)
@pytest.mark.parametrize("length", [64, 128])
def test_random_control_is_as_dense_as_its_mask(name: str, length: int) -> None:
    mask = masks.FAMILIES[name]
    control = random_like(mask, length, seed=0)
    rows = control.dense(length).sum(-1)
    assert rows.min() == rows.max()  # every query keeps as many keys
    assert abs(int(rows.max()) - float(mask.dense(length).sum(-1).double().mean())) <= 0.5
    assert control != random_like(mask, length, seed=1)
