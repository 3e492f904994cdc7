"""Block-gather attention equals dense attention with the same mask, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import HEADS, LAYERS, sized_trees
from torch import Tensor

from masksearch import masks
from masksearch.errors import HeadCountError, LengthError
from masksearch.models.kernels import SHARED_BY, GatherPlan, gather_attention

SCALING = 0.3


def states(heads: int, length: int, batch: int = 2, width: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (batch, heads, length, width)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def outcome(attend, given: list[Tensor]) -> list[Tensor]:
    """The result and the gradients of queries, keys and values under a weighted sum."""
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    result = attend(*leaves)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    if not result.requires_grad:  # no query keeps a key: nothing was computed
        return [result, *(torch.zeros_like(leaf) for leaf in leaves)]
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves)]


def check(plan: GatherPlan, table: Tensor, batch: int = 2) -> None:
    """Compares with dense attention under the table, bool `[heads, n, n]`."""
    given = states(table.shape[0], table.shape[1], batch)
    dense = outcome(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, table[None], scale=SCALING), given
    )
    ours = outcome(lambda q, k, v: gather_attention(q, k, v, plan, scaling=SCALING), given)
    for mine, reference in zip(ours, dense, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=35)
@given(sized_trees(longest=9), st.integers(1, 4))
def test_gather_equals_dense_on_random_masks(sized, block):
    length, mask = sized
    table = mask.dense(length, LAYERS, HEADS)
    for layer in (0, LAYERS - 1):
        check(GatherPlan.of_mask(mask, length, block, layer), table[layer])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 11), st.integers(1, 3), st.floats(0, 1), st.integers(0))
def test_gather_equals_dense_on_random_tables(length, block, heads, density, seed):
    generator = torch.Generator().manual_seed(seed % 2**63)
    table = torch.rand(heads, length, length, generator=generator) < density
    check(GatherPlan.of_table(table, block), table, batch=1)


@pytest.mark.parametrize("length", [64, 96, 100, 129])
@pytest.mark.parametrize(
    "mask",
    [
        masks.full(),
        masks.window(0),
        masks.window(16),
        masks.causal(),
        masks.bigbird(4, 8, 3),
        masks.blocks(16),
        masks.per_head([masks.window(3), masks.star(), masks.blocks(32)]),
    ],
    ids=str,
)
def test_gather_equals_dense_on_families(mask, length):
    table = mask.dense(length, 1, 3)[0]
    check(GatherPlan.of_mask(mask, length, block=16), table)


def test_a_table_and_its_mask_have_the_same_plan():
    mask = masks.per_head([masks.window(9), masks.star()])
    one = GatherPlan.of_mask(mask, 50, block=8)
    other = GatherPlan.of_table(mask.dense(50)[0], block=8)
    assert torch.equal(one.order, other.order)
    assert len(one.bundles) == len(other.bundles)
    for mine, theirs in zip(one.bundles, other.bundles, strict=True):
        assert torch.equal(mine.rows, theirs.rows)
        assert torch.equal(mine.keys, theirs.keys)
        assert (mine.bias is None) == (theirs.bias is None)
        assert mine.bias is None or torch.equal(mine.bias, theirs.bias)


def test_float32_and_bfloat16_agree_within_their_precision():
    mask = masks.window(20) | masks.global_tokens(1)
    plan, table = GatherPlan.of_mask(mask, 100, block=16), mask.dense(100)
    for dtype, error in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2)):
        q, k, v = (tensor.to(dtype) for tensor in states(4, 100))
        dense = F.scaled_dot_product_attention(q, k, v, table, scale=SCALING)
        ours = gather_attention(q, k, v, plan, scaling=SCALING)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, dense, rtol=error, atol=error)


def test_queries_without_keys_give_zero_and_no_gradient():
    table = torch.zeros(1, 12, 12, dtype=torch.bool)
    table[0, 5, 7] = True
    q, k, v = (tensor.requires_grad_() for tensor in states(1, 12))
    result = gather_attention(q, k, v, GatherPlan.of_table(table, 4), scaling=1.0)
    torch.testing.assert_close(result[:, :, 5], v[:, :, 7])
    assert result[:, :, [row for row in range(12) if row != 5]].eq(0).all()
    grads = torch.autograd.grad(result.sum(), (q, k, v))
    assert all(grad.isfinite().all() for grad in grads)


def test_block_masks_need_no_bias_and_no_padding():
    layout = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.4
    table = layout.repeat_interleave(4, 1).repeat_interleave(4, 2)
    plan = GatherPlan.of_table(table, block=4)
    assert all(bundle.bias is None for bundle in plan.bundles)
    assert plan.pairs == int(layout.sum())
    check(plan, table)


def test_like_rows_share_one_bias():
    plan = GatherPlan.of_mask(masks.window(64), 4096, block=64)
    shared = [bundle for bundle in plan.bundles if bundle.bias is not None]
    assert max(len(bundle.rows) for bundle in shared) == 62
    assert plan.bytes < 4096 * 64  # far below one byte a cell of the table
    assert SHARED_BY < 62


def test_padding_of_a_bundle_is_small():
    generator = torch.Generator().manual_seed(2)
    table = torch.rand(2, 128, 128, generator=generator) < 0.05
    plan = GatherPlan.of_table(table, block=4)
    kept = table.view(2, 32, 4, 32, 4).any(4).any(2).sum()
    assert kept <= plan.pairs <= kept / 0.875
    check(plan, table)


def test_no_tensor_of_all_pairs_is_made():
    length, largest = 4096, 0

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.untyped_storage().nbytes() > largest:
                largest = result.untyped_storage().nbytes()
            return result

    with Sizes():
        plan = GatherPlan.of_mask(masks.window(64), length, block=64)
        q, k, v = (tensor.float() for tensor in states(1, length, batch=1))
        gather_attention(q, k, v, plan, scaling=1.0)
    assert 0 < largest < length * length / 2  # a bool table alone would be length x length


def test_wrong_lengths_heads_and_tables_are_refused():
    plan = GatherPlan.of_mask(masks.per_head([masks.window(1), masks.full()]), 8, block=4)
    with pytest.raises(LengthError, match="plan holds 8 positions"):
        gather_attention(*states(2, 9), plan, scaling=1.0)
    with pytest.raises(HeadCountError, match="plan has 2 heads, the queries have 3"):
        gather_attention(*states(3, 8), plan, scaling=1.0)
    with pytest.raises(ValueError, match=r"bool table \[heads, n, n\]"):
        GatherPlan.of_table(torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="block must be at least 1"):
        GatherPlan.of_mask(masks.full(), 8, block=0)
    with pytest.raises(LengthError):
        GatherPlan.of_mask(masks.table(torch.ones(4, 4, dtype=torch.bool)), 8)
