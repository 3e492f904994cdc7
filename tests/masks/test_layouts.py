"""Block layouts per layer and head, as text, of NumPy and under FlexAttention."""

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention

from masksearch import masks
from masksearch.errors import HeadCountError, LayerCountError, MaskFormatError
from masksearch.masks.lower import flex_block_mask


def generated(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) > 0.5


@pytest.mark.nightly
def test_compiled_flex_attention_takes_every_layout():
    bits = generated(2, 8, 8) | torch.eye(8, dtype=torch.bool)
    query, key, value = torch.randn(3, 1, 2, 128, 16, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(flex_attention)
    for mask in (
        masks.block_layout(bits, 16),
        masks.axial(9, 14, prefix=2),
        masks.butterfly(4),
        masks.vertical_slash([0, 50], [0, 3]),
    ):
        block = flex_block_mask(mask, 128, block=32)
        with torch.no_grad():
            found = compiled(query, key, value, block_mask=block)
        kept = mask.dense(128, 1, 2)[0]
        wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, kept)
        assert torch.allclose(found, wanted, atol=1e-5), str(mask)


def test_block_layout_per_layer_and_head():
    bits = generated(2, 3, 4, 4)
    mask = masks.block_layout(bits, 4)
    assert (mask.layers, mask.heads, mask.length) == (2, 3, None)
    dense = mask.dense(15)
    wanted = bits.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :15, :15]
    assert torch.equal(dense, wanted)
    for layer in range(2):
        single = masks.layer_of(mask, layer)
        assert torch.equal(single.dense(15)[0], wanted[layer])
        made = create_mask(single.mask_mod(15), 1, 3, 15, 15, device="cpu")
        assert torch.equal(made[0], wanted[layer])
    with pytest.raises(LayerCountError):
        mask.counts(3, 3)
    with pytest.raises(HeadCountError):
        mask.counts(2, 4)


def test_numpy_bools_are_taken():
    bits = generated(2, 4, 4).numpy()
    for made in (masks.table(bits), masks.table(np.asfortranarray(bits)), masks.table(bits[::-1])):
        assert torch.equal(made.dense(4)[0, 0], torch.tensor(made.bits[0].tolist()))
    assert masks.table(bits) == masks.table(torch.from_numpy(bits))
    assert masks.toeplitz(bits[0, 0]) == masks.toeplitz(torch.from_numpy(bits[0, 0]))
    assert masks.block_layout(bits, 2) == masks.block_layout(torch.from_numpy(bits), 2)
    kept = masks.table(bits)
    bits[:] = False
    assert kept.kept(4) > 0


def test_str_of_long_layouts_shows_shape_and_digest():
    mask = masks.block_layout(generated(2, 16, 16), 8)
    assert str(mask) == f"block_layout(2x16x16, 8, {mask.digest[:8]})"
    with pytest.raises(MaskFormatError):
        masks.parse(str(mask))
    assert str(masks.block_layout(torch.eye(2) > 0, 8)) == "block_layout([[1,0],[0,1]], 8)"
    assert str(masks.a_shape(4, 8)) == "columns(4) | window(8)"
    assert str(masks.vertical_slash([3], [0])) == "columns(positions=[3]) | offsets([0])"
    assert masks.parse("a_shape(4, 8) & causal") == masks.a_shape(4, 8) & masks.causal()
