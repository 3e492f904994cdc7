"""Scores of units from a trained model."""

from __future__ import annotations

import pytest
import torch

from masksearch import masks
from masksearch.contracts import Objective, Shape
from masksearch.errors import UnknownNameError
from masksearch.gates.units import Units
from masksearch.positions.analysis import importance
from masksearch.strategies.allocate import AllocateStrategy
from masksearch.strategies.unit_scores import score_units
from tests.positions.conftest import HEADS, LAYERS, LENGTH, bert, random_batches

LEVELS = (masks.window(1), masks.longformer(1, 1), masks.full())
SHAPE = Shape(LENGTH, LAYERS, HEADS)


def test_mass_is_the_attention_that_a_local_mask_would_take_away():
    model, (batch,) = bert(implementation="eager"), random_batches(1, padded=False)
    found = score_units(Units(SHAPE, LEVELS), model, [batch])
    with torch.no_grad():
        maps = model(**batch, output_attentions=True).attentions  # [batch, heads, n, n] a layer
    for layer in range(LAYERS):
        for head in range(HEADS):
            mean = maps[layer][:, head].mean(0)
            pairs = [(q, k) for q in range(LENGTH) for k in range(LENGTH) if abs(q - k) > 1]
            hub = sum(mean[q, k] for q, k in pairs if 0 in (q, k)).item()
            everything = sum(mean[q, k] for q, k in pairs).item()
            assert found[f"l{layer}.h{head}"] == pytest.approx([0, hub, everything], rel=1e-4)


@pytest.mark.parametrize("method", ["gradient", "flip"])
def test_first_order_scores_add_up_over_the_heads_of_a_layer(method):
    model, batches = bert(), random_batches(2)
    heads = score_units(Units(SHAPE, LEVELS), model, batches, method=method)
    layers = score_units(Units(SHAPE, LEVELS, "layer"), model, batches, method=method)
    values = importance(model, batches, method=method).values
    assert values is not None
    for layer in range(LAYERS):
        far = sum(
            values[layer, :, q, k].sum().item()
            for q in range(LENGTH)
            for k in range(LENGTH)
            if abs(q - k) > 1
        )
        assert layers[f"l{layer}"] == pytest.approx([0, layers[f"l{layer}"][1], far], abs=1e-5)
        parts = [heads[f"l{layer}.h{head}"] for head in range(HEADS)]
        assert layers[f"l{layer}"] == pytest.approx([sum(c) for c in zip(*parts, strict=True)])


def test_scores_are_taken_by_the_strategy_and_from_a_file(tmp_path):
    model, batches = bert(), random_batches(1)
    units = Units(SHAPE, LEVELS)
    found = score_units(units, model, batches, method="flip")
    AllocateStrategy(units, Objective("score", "max", 0.0), score=found)
    path = importance(model, batches, method="flip").save(tmp_path / "flip.safetensors")
    read = units.read_scores(path)
    assert all(read[name] == pytest.approx(found[name], abs=1e-5) for name in units.names)
    pooled = importance(model, batches, per="model").save(tmp_path / "pooled.safetensors")
    with pytest.raises(ValueError, match=r"measure each head apart"):
        units.read_scores(pooled)


def test_batches_may_be_shorter_than_the_units():
    longer = Units(Shape(LENGTH + 3, LAYERS, HEADS), LEVELS)
    model, batches = bert(), random_batches(1, padded=False)
    for method in ("mass", "flip"):
        short = score_units(Units(SHAPE, LEVELS), model, batches, method=method)
        assert score_units(longer, model, batches, method=method) == short
    with pytest.raises(ValueError, match=f"table of .* {LENGTH - 1} values, got"):
        score_units(Units(Shape(LENGTH - 1, LAYERS, HEADS), LEVELS), model, batches)


def test_wrong_method_and_wrong_sizes_are_refused():
    units = Units(SHAPE, LEVELS)
    with pytest.raises(UnknownNameError, match=r"'mas'.*mass"):
        score_units(units, bert(), random_batches(1), method="mas")
    with pytest.raises(ValueError, match=r"table of 2 x 2 x 7 x 7 values, got 2 x 3 x 7 x 7"):
        score_units(Units(Shape(LENGTH, 2, 2), LEVELS), bert(), random_batches(1))
