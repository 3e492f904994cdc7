"""FlexAttention under a mask equals SDPA with that mask; what it cannot do, it says."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch import masks
from masksearch.attention.kernels.flex import FlexPlan, flex_attention_under
from masksearch.errors import HeadCountError, LengthError

SCALING = 0.3


def states(
    length: int, heads: int = 4, key_heads: int | None = None, batch: int = 2, device: str = "cpu"
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(batch, count, length, 32, generator=generator).to(device)
        for count in (heads, key_heads or heads, key_heads or heads)
    ]


def layout(heads: int, blocks: int, block: int, density: float) -> masks.Mask:
    """Random blocks and the diagonal, as a table."""
    generator = torch.Generator().manual_seed(blocks)
    tiles = torch.rand(heads, blocks, blocks, generator=generator) < density
    return masks.table(tiles.repeat_interleave(block, 1).repeat_interleave(block, 2)) | (
        masks.window(0)
    )


def right(length: int) -> Tensor:
    visible = torch.ones(2, length, dtype=torch.bool)
    visible[1, length - 70 :] = False
    return visible


def sides(
    mask: masks.Mask,
    length: int,
    visible: Tensor | None,
    key_heads: int | None = None,
    device: str = "cpu",
):
    """Ours and SDPA's result."""
    query, key, value = states(length, key_heads=key_heads, device=device)
    plan = FlexPlan.of_mask(mask, length, block=64, device=device)  # 128 on a card
    visible = None if visible is None else visible.to(device)
    with torch.no_grad():
        ours = flex_attention_under(query, key, value, plan, scaling=SCALING, visible=visible)
    table = mask.dense(length)[0].to(device)
    table = table if visible is None else table & visible[:, None, None]
    theirs = F.scaled_dot_product_attention(
        query, key, value, table.expand(2, 4, -1, -1), scale=SCALING, enable_gqa=True
    )
    return ours, theirs


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("mask", "length", "padding"),
    [
        (masks.window(20), 256, None),
        (masks.window(20), 300, None),
        (masks.window(20), 256, "right"),
        (masks.window(20), 256, "left"),
        (masks.longformer(16, 1), 208, "right"),
        (layout(4, 4, 64, 0.4), 256, None),
        (layout(4, 4, 64, 0.4), 256, "right"),
        (masks.per_head([masks.window(9), masks.star(), masks.causal(), masks.full()]), 256, None),
        (masks.bigbird(8, 1, 3), 256, None),
        (masks.shifts([40]) | masks.blocks(100), 300, None),
        (masks.shifts([-1]), 130, None),  # the first query has no key: zero, as by SDPA
    ],
    ids=str,
)
def test_equals_sdpa(mask, length, padding, device):
    visible = None if padding is None else right(length)
    visible = visible.flip(1) if padding == "left" else visible
    ours, theirs = sides(mask, length, visible, device=device)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.nightly
def test_key_heads_are_shared(device):
    mask = masks.per_head([masks.window(9), masks.star(), masks.blocks(64), masks.causal()])
    ours, theirs = sides(mask, 256, right(256), key_heads=2, device=device)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.nightly
def test_autocast_brings_all_to_one_type():
    query, key, value = states(256)
    mask = masks.window(20)
    plan = FlexPlan.of_mask(mask, 256)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours = flex_attention_under(query, key, value.bfloat16(), plan, scaling=SCALING)
    theirs = F.scaled_dot_product_attention(query, key, value, mask.dense(256)[0], scale=SCALING)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), theirs, rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("visible", [None, right(256)], ids=["all", "padded"])
def test_trains_on_cuda(visible):
    mask = masks.window(20) | layout(4, 4, 64, 0.3)
    plan = FlexPlan.of_mask(mask, 256, block=128, device="cuda")
    table = mask.dense(256)[0] if visible is None else mask.dense(256)[0] & visible[:, None, None]
    found = []
    for ours in (True, False):
        leaves = [state.requires_grad_() for state in states(256, device="cuda")]
        if ours:
            seen = None if visible is None else visible.cuda()
            result = flex_attention_under(*leaves, plan, scaling=SCALING, visible=seen)
        else:
            bits = table.expand(2, 4, -1, -1).cuda()
            result = F.scaled_dot_product_attention(*leaves, bits, scale=SCALING)
        weights = torch.linspace(-1, 1, result.numel(), device="cuda").view_as(result)
        found.append([result, *torch.autograd.grad((result * weights).sum(), leaves)])
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference, rtol=5e-3, atol=5e-3)


def test_padding_makes_blocks_partial_only_where_it_is():
    plan = FlexPlan.of_mask(masks.full(), 256, block=64)
    assert plan.whole.all()
    visible = torch.ones(3, 256, dtype=torch.bool)
    visible[2, 200:] = False
    blocks = plan.padded(visible).blocks
    assert blocks.kv_num_blocks.flatten().tolist() == [1] * 4
    assert blocks.kv_indices[0, 0, :, 0].tolist() == [3] * 4
    assert blocks.full_kv_num_blocks.flatten().tolist() == [3] * 4
    batch, key = torch.arange(3)[:, None], torch.arange(256)[None]
    found = blocks.mask_mod(batch, torch.tensor(0), torch.tensor(5), key)
    assert torch.equal(found, visible)


def test_ragged_blocks_are_never_whole():
    plan = FlexPlan.of_mask(masks.full(), 150, block=64)
    assert plan.whole.int().tolist() == [[[1, 1, 0], [1, 1, 0], [0, 0, 0]]]
    assert (plan.whole | plan.partial).all()


@pytest.mark.parametrize(
    ("change", "length", "settings", "error", "message"),
    [
        (lambda q, k, v: (q.double(), k.double(), v.double()), 64, {}, NotImplementedError,
         r"got torch.float64; take the backend 'gather'"),
        (None, 48, {}, LengthError, "the plan holds 48 positions"),
        (None, 64, {"heads": 3}, HeadCountError, "the plan has 3 heads, the queries have 4"),
        (lambda q, k, v: (q, k[:, :3], v[:, :3]), 64, {}, HeadCountError,
         "4 query heads cannot share 3 KV heads"),
        (None, 64, {"visible": torch.ones(2, 63) > 0}, ValueError,
         r"visible is bool \[batch, n\] = \[2, 64\], got"),
        (None, 64, {"device": "meta"}, ValueError, "the plan lies on meta, the queries on cpu"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, length, settings, error, message):
    mask = masks.window(3)
    mask = masks.per_head([mask] * settings["heads"]) if "heads" in settings else mask
    plan = FlexPlan.of_mask(mask, length, device=settings.get("device", "cpu"))
    given = states(64) if change is None else change(*states(64))
    with pytest.raises(error, match=message):
        flex_attention_under(*given, plan, scaling=1.0, visible=settings.get("visible"))


def test_lengths_that_processors_without_avx512_get_wrong_are_refused(monkeypatch):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    plan = FlexPlan.of_mask(masks.window(3), 24)
    with pytest.raises(NotImplementedError, match=r"8 modulo 16 .*got 24; take the backend 'gat"):
        flex_attention_under(*states(24), plan, scaling=1.0)
