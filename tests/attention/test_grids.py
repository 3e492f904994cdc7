"""Axial masks on image models: which patches an output depends on."""

import pytest
import torch
from transformers import DeiTConfig, DeiTModel, ViTConfig, ViTModel

from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.errors import LengthError

SIZES = {
    "image_size": (8, 16),
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
ROWS, COLUMNS = 2, 4


@pytest.mark.parametrize(
    ("kind", "config", "prefix"), [(ViTModel, ViTConfig, 1), (DeiTModel, DeiTConfig, 2)]
)
def test_a_patch_sees_its_row_its_column_and_the_class_tokens(kind, config, prefix):
    torch.manual_seed(0)
    model = kind(config(**SIZES), add_pooling_layer=False).eval()
    pixels = torch.randn(1, 3, 8, 16, requires_grad=True)
    attach(model, masks.axial(ROWS, COLUMNS, prefix), inputs={"pixel_values": pixels.detach()})
    states = model(pixel_values=pixels).last_hidden_state[0]
    assert len(states) == prefix + ROWS * COLUMNS
    for place, state in enumerate(states):
        (grad,) = torch.autograd.grad(state[0], pixels, retain_graph=True)
        seen = grad[0].abs().sum(0).view(ROWS, 4, COLUMNS, 4).sum((1, 3)) > 0
        wanted = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
        if place >= prefix:
            row, column = divmod(place - prefix, COLUMNS)
            wanted = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
            wanted[row] = wanted[:, column] = True
        assert torch.equal(seen, wanted), place


def test_a_grid_that_forgets_the_class_token_is_refused():
    model = ViTModel(ViTConfig(**SIZES), add_pooling_layer=False).eval()
    pixels = {"pixel_values": torch.zeros(1, 3, 8, 16)}
    attach(model, masks.axial(ROWS, COLUMNS), inputs=pixels)
    with pytest.raises(LengthError, match=r"axial\(2, 4, 0\) has 8 positions, asked for 9"):
        model(**pixels)
