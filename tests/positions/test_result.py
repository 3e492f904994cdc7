"""Importance at a prompt: figures in a line, floats where there is one number."""

import math

import pytest
import torch

from masksearch import AttentionMaps, Importance
from masksearch.positions.result import Measured, Profile, without_interval


def profile(layers: int, at: tuple[int, ...]) -> Profile:
    mean = torch.full((layers, 1, len(at)), 4.9e-05)
    return Profile(at, mean, mean - 1e-5, mean + 1e-5, torch.ones(len(at)))


def test_one_number_reads_as_one():
    found = profile(1, (-1, 0, 1)).one(0)
    assert repr(found) == "4.9e-05 [3.9e-05, 5.9e-05]"
    assert float(found) == pytest.approx(4.9e-05)
    assert repr(without_interval(torch.tensor([[0.25]]))) == "0.25"


def test_several_are_told_by_their_range():
    mean = torch.tensor([[0.5], [0.125]])
    assert repr(Measured(mean, mean, mean)) == "2 x 1 means, 0.125 to 0.5"
    with pytest.raises((RuntimeError, ValueError), match="2 elements"):
        float(Measured(mean, mean, mean))


def test_maps_fit_a_line_or_two():
    even, table = torch.full((2, 4), 1 / 64), torch.rand(2, 4, 64, 64)
    offsets, by_offset = tuple(range(-63, 64)), torch.rand(2, 4, 127)
    maps = AttentionMaps(
        table, offsets, by_offset, even, even, {"[CLS]": even}, {"[CLS]": even}, 9
    )
    assert repr(maps) == (
        "AttentionMaps(2 x 4 x 64 x 64, 9 sequences; diagonal 0.0156 (evenly 0.0156), "
        "[CLS] 0.0156 (evenly 0.0156))"
    )


@pytest.mark.parametrize("layers", [1, 12])
def test_importance_fits_a_line_or_two(layers):
    units = tuple(range(-63, 64))
    values = torch.rand(layers, 1, 64, 64)
    found = Importance(
        "drop", "model", 64, values, profile(layers, units), profile(layers, units[:64]),
        {"[CLS]": profile(layers, (0,)).one(0)}, {"[CLS]": 64.0}, 2.5, 20,
    )  # fmt: skip
    assert len(repr(found)) <= 240
    assert "Importance(drop, per model, 64 positions, 20 batches, loss 2.5; nats a token" in repr(
        found
    )
    assert "tensor" not in repr(found.by_offset)
    assert not math.isnan(found.loss)
