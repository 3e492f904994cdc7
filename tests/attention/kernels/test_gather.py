"""Block-gather attention equals dense attention with the same mask, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from mask_trees import HEADS, LAYERS, sized_trees
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from masksearch import masks
from masksearch.attention.kernels.gather import GatherPlan, gather_attention
from masksearch.errors import HeadCountError, LengthError

SCALING = 0.3
KERNELS = "masksearch.attention.kernels"


def plan_of(table: Tensor, block: int = 64) -> GatherPlan:
    """Of one layer's table, bool `[heads, n, n]`."""
    return GatherPlan.of_mask(masks.table(table), table.shape[1], block)


def states(
    heads: int, length: int, batch: int = 2, width: int = 8, key_heads: int | None = None
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    counts = (heads, key_heads or heads, key_heads or heads)
    return [
        torch.randn(batch, count, length, width, generator=generator, dtype=torch.float64)
        for count in counts
    ]


def outcome(attend, given: list[Tensor]) -> list[Tensor]:
    """The result and the gradients of queries, keys and values under a weighted sum."""
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    result = attend(*leaves)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    weights = weights.to(result.device)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves)]


def dense_outcome(given: list[Tensor], table: Tensor) -> list[Tensor]:
    """The same by masked SDPA; fewer KV heads are repeated."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, table, scale=SCALING)

    return outcome(attend, given)


def check(
    plan: GatherPlan,
    table: Tensor,
    batch: int = 2,
    visible: Tensor | None = None,
    given: list[Tensor] | None = None,
    device: str = "cpu",
) -> None:
    """Compares with dense attention under the table, bool `[heads, n, n]`."""
    given = given or states(table.shape[0], table.shape[1], batch)
    table = table[None] if visible is None else table & visible[:, None, None]
    plan, table, given = plan.to(device), table.to(device), [each.to(device) for each in given]
    visible = None if visible is None else visible.to(device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return gather_attention(q, k, v, plan, scaling=SCALING, visible=visible)

    dense = dense_outcome(given, table)
    ours = [attend(*given), *outcome(attend, given)]
    for mine, reference in zip(ours, [dense[0], *dense], strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(sized_trees(longest=9), st.integers(1, 4))
def test_gather_equals_dense_on_random_masks(sized, block):
    length, mask = sized
    table = mask.dense(length, LAYERS, HEADS)
    for layer in (0, LAYERS - 1):
        check(GatherPlan.of_mask(masks.layer_of(mask, layer), length, block), table[layer])


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
def test_gather_equals_dense_on_families(mask, length, device):
    table = mask.dense(length, 1, 3)[0]
    check(GatherPlan.of_mask(mask, length, block=16), table, device=device)


@settings(deadline=None, max_examples=60)
@pytest.mark.slow
@given(
    st.sampled_from([(2, 1), (4, 1), (4, 2), (6, 2), (6, 3)]),
    st.integers(1, 40),
    st.sampled_from(
        [
            "window(3)",
            "window(3) | global_tokens(1)",
            "blocks(5)",
            "window(4) & causal()",
            "stride(5)",
        ]
    ),
    st.floats(0, 0.2),
    st.sampled_from([(1, 1), (2, 2), (2, 1), (4, 2), (4, 1)]),
    st.sampled_from(["none", "left", "right", "random"]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_gather_equals_dense_in_units(shape, length, text, density, heads, padding, own, seed):
    """Blocks of several units: split rows, runs, padding, shared keys, one or all heads."""
    (block, unit), (queries, keys) = shape, heads
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(queries if own else 1, length, length, generator=generator) < density
    table = masks.parse(text).dense(length)[0] | noise
    visible = None
    if padding != "none":
        real = torch.randint(0, length + 1, (2, 1), generator=generator)
        at = torch.arange(length)
        visible = {
            "left": at >= length - real,
            "right": at < real,
            "random": torch.rand(2, length, generator=generator) < 0.6,
        }[padding]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{KERNELS}.plan.UNITS", (unit,))
        most = int(torch.randint(1, 3000, (), generator=generator))
        patch.setattr(f"{KERNELS}.gather.IN_CACHE", most)
        plan = plan_of(table, block)
        given = states(queries, length, key_heads=keys)
        check(plan, table.expand(queries, -1, -1), visible=visible, given=given)


def test_the_parts_for_other_devices_equal_dense(monkeypatch, device):
    monkeypatch.setattr(f"{KERNELS}.gather.InCache.apply", None)
    monkeypatch.setattr(f"{KERNELS}.gather.ON_DEVICE", 2000)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    table = (masks.window(20) | masks.global_tokens(1)).dense(100, 1, 4)[0]
    table[:, 40:80, 5:] = False
    visible = torch.arange(100) < torch.tensor([[100], [3], [0]])
    given = states(4, 100, 3)
    check(plan_of(table, 16), table, visible=visible, given=given, device=device)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 2e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)]
)
def test_lower_precision_agrees_with_double(dtype, error, device):
    mask = masks.window(20) | masks.global_tokens(1) | masks.random_keys(1, 0)
    plan = GatherPlan.of_mask(mask, 100, block=16).to(device)
    given = [tensor.to(device) for tensor in states(4, 100)]
    visible = (torch.arange(100) < torch.tensor([[100], [70]])).to(device)
    ours = outcome(
        lambda *given: gather_attention(*given, plan, scaling=SCALING, visible=visible),
        [tensor.to(dtype) for tensor in given],
    )
    dense = dense_outcome(given, mask.dense(100).to(device) & visible[:, None, None])
    for mine, reference in zip(ours, dense, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), reference, rtol=error, atol=error)


def test_autocast_computes_in_its_type():
    plan = GatherPlan.of_mask(masks.window(20), 64, block=16)
    given = [tensor.float() for tensor in states(2, 64)]
    with torch.autocast("cpu", torch.bfloat16):
        ours = outcome(lambda *some: gather_attention(*some, plan, scaling=SCALING), given)
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16] + 3 * [torch.float32]
    low = outcome(
        lambda *some: gather_attention(*[s.bfloat16() for s in some], plan, scaling=SCALING), given
    )
    assert all(map(torch.equal, ours, low))


def test_pieces_of_few_keys_equal_dense_in_each_type_without_a_gradient(device):
    """Blocks of 64 that read one block are computed by other calls than those that read more."""
    layout = torch.eye(4, dtype=torch.bool).repeat(2, 1, 1)
    layout[0, 1, 3] = layout[1, 0] = layout[1, 2, 0] = True
    table = layout.repeat_interleave(64, 1).repeat_interleave(64, 2)
    plan, given = plan_of(table).to(device), [each.to(device) for each in states(2, 256)]
    dense = F.scaled_dot_product_attention(*given, table.to(device), scale=SCALING)
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 1e-2)):
        low = [tensor.to(dtype) for tensor in given]
        mine = gather_attention(*low, plan, scaling=SCALING)
        torch.testing.assert_close(mine.double(), dense, rtol=error, atol=error)


def test_a_plan_serves_several_shapes_and_keeps_its_parts_for_few():
    mask = masks.per_head([masks.window(5), masks.random_keys(1, 0)])
    plan = GatherPlan.of_mask(mask, 150, block=16)
    for batch in (1, 2, 3, 4, 5):
        check(plan, mask.dense(150, 1, 2)[0], batch=batch)
    assert len(plan.kept) <= 4
    moved = plan.to("cpu")
    assert not moved.kept
    check(moved, mask.dense(150, 1, 2)[0])


def test_transposed_inputs_and_checkpointing_change_nothing(device):
    plan = GatherPlan.of_mask(masks.window(5) | masks.global_tokens(1), 70, block=16).to(device)
    given = [tensor.to(device) for tensor in states(4, 70)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return gather_attention(q, k, v, plan, scaling=SCALING)

    def transposed(*some: Tensor) -> Tensor:
        return attend(*(s.transpose(1, 2).contiguous().transpose(1, 2) for s in some))

    plain = outcome(attend, given)
    assert all(map(torch.equal, plain, outcome(transposed, given)))
    again = outcome(lambda *some: checkpoint(attend, *some, use_reentrant=False), given)
    assert all(map(torch.equal, plain, again))


@pytest.mark.slow
def test_dropout_drops_that_share_and_keeps_the_mean():
    mask = masks.window(6) | masks.global_tokens(1)
    plan, rate = GatherPlan.of_mask(mask, 32, block=16), 0.25
    query, key, _ = (tensor.float() for tensor in states(2, 32, batch=1, width=32))
    identity = torch.eye(32).expand(1, 2, 32, 32)  # the result is the attention weights
    given = (query, key, identity)
    weights = gather_attention(*given, plan, scaling=SCALING)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.stack(
            [gather_attention(*given, plan, scaling=SCALING, dropout=rate) for _ in range(300)]
        )
    some = weights > 0
    assert torch.equal(some, mask.dense(32, 1, 2))
    dropped = (drawn == 0)[:, some].float()
    assert abs(float(dropped.mean()) - rate) < 0.01
    assert float((dropped.mean(0) - rate).abs().max()) < 5 * (rate * (1 - rate) / 300) ** 0.5
    left = drawn[:, some] / weights[some]
    torch.testing.assert_close(left[left > 0], torch.full_like(left[left > 0], 1 / (1 - rate)))


@pytest.mark.nightly
def test_compiled_attention_equals_eager(device):
    plan = GatherPlan.of_mask(masks.window(9), 64, block=16).to(device)
    given = [tensor.to(device) for tensor in states(2, 64)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return gather_attention(q * 2, k, v, plan, scaling=SCALING) + 1

    compiled = outcome(torch.compile(attend, fullgraph=True), given)
    for mine, reference in zip(compiled, outcome(attend, given), strict=True):
        torch.testing.assert_close(mine, reference)


def test_queries_without_keys_give_zero_and_no_gradient(device):
    table = torch.zeros(1, 12, 12, dtype=torch.bool)
    table[0, 5, 7] = True
    q, k, v = (tensor.to(device).requires_grad_() for tensor in states(1, 12))
    result = gather_attention(q, k, v, plan_of(table, 4).to(device), scaling=1.0)
    torch.testing.assert_close(result[:, :, 5], v[:, :, 7])
    assert result[:, :, [row for row in range(12) if row != 5]].eq(0).all()
    grads = torch.autograd.grad(result.sum(), (q, k, v))
    assert all(grad.isfinite().all() for grad in grads)


def test_no_tensor_of_all_pairs_is_made():
    length = 4096
    with LargestTensor() as largest:
        plan = GatherPlan.of_mask(masks.window(64), length, block=64)
        q, k, v = (tensor.float() for tensor in states(1, length, batch=1))
        gather_attention(q, k, v, plan, scaling=1.0)
    assert 0 < largest.bytes < length * length / 2  # a bool table alone would be length x length


def test_wrong_lengths_heads_and_tables_are_refused():
    plan = GatherPlan.of_mask(masks.per_head([masks.window(1), masks.full()]), 8, block=4)
    with pytest.raises(LengthError, match="plan holds 8 positions"):
        gather_attention(*states(2, 9), plan, scaling=1.0)
    with pytest.raises(HeadCountError, match="plan has 2 heads, the queries have 3"):
        gather_attention(*states(3, 8), plan, scaling=1.0)
    with pytest.raises(HeadCountError, match="2 query heads cannot share 3 KV heads"):
        gather_attention(*states(2, 8, key_heads=3), plan, scaling=1.0)
    for visible in (torch.ones(2, 7, dtype=torch.bool), torch.ones(2, 8)):
        with pytest.raises(ValueError, match=r"visible is bool \[batch, n\] = \[2, 8\]"):
            gather_attention(*states(2, 8), plan, scaling=1.0, visible=visible)
    with pytest.raises(ValueError, match="block must be at least 1"):
        GatherPlan.of_mask(masks.full(), 8, block=0)
    with pytest.raises(LengthError):
        GatherPlan.of_mask(masks.table(torch.ones(4, 4, dtype=torch.bool)), 8)


def pairs(plan):
    """Computed cells over the heads, padding included, in tiles of block x block."""
    cells = sum(each.queries.numel() * each.keys.shape[1] for each in plan.bundles)
    return cells * plan.unit**2 / plan.block**2


def test_padding_of_a_bundle_is_small():
    generator = torch.Generator().manual_seed(2)
    table = torch.rand(2, 128, 128, generator=generator) < 0.05
    plan = plan_of(table, block=4)
    kept = table.view(2, 32, 4, 32, 4).any(4).any(2).sum()
    assert kept <= pairs(plan) <= kept / 0.875
    check(plan, table)


def test_rows_that_read_everything_are_taken_alone():
    mask = masks.window(64) | masks.global_tokens(1)
    plan = GatherPlan.of_mask(mask, 4096, block=64)
    units = 4096 // plan.unit
    wide = [bundle for bundle in plan.bundles if bundle.keys.shape[1] == units]
    assert [bundle.queries.tolist() for bundle in wide] == [[[0]]]
    assert pairs(plan) < 0.75 * int(masks.to_block_layout(mask, 4096, 64).sum())


def test_unstructured_masks_take_about_a_bit_a_cell():
    table = torch.rand(1, 1024, 1024, generator=torch.Generator().manual_seed(3)) < 0.3
    bundles = plan_of(table).bundles
    held = sum(tensor.nbytes for bundle in bundles for tensor in bundle.tensors.values())
    assert held < 1024 * 1024 / 8 * 1.2
