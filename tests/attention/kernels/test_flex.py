"""FlexAttention under a mask equals SDPA with that mask; what it cannot do, it says."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from masksearch import masks
from masksearch.attention.kernels.flex import FlexPlan, flex_attention_under
from masksearch.errors import HeadCountError, LengthError
from masksearch.masks import lower
from masksearch.user_code import load_function

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


# -- predicates as the compiler sees them: what a GPU needs, found without one ------------------
LENGTH, BLOCK = 96, 32
SPACES = sorted((Path(__file__).parents[3] / "search_spaces").glob("*.py"))
EVERYDAY = {"distances", "head_families", "block_layouts", "local_global_heads"}


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.6


MASKS = [
    *masks.FAMILIES.values(),
    masks.table(drawn(2, LENGTH, LENGTH)),
    masks.toeplitz(drawn(LENGTH)) - masks.shifts([1, 9]),
    masks.toeplitz(drawn(2, 2 * LENGTH - 1), signed=True),
    masks.block_layout(drawn(2, 6, 6), 16) | masks.random_keys(3, seed=1),
    masks.cropped(masks.random_keys(3, seed=1), 128) & masks.causal(),
    masks.per_head([masks.toeplitz(drawn(LENGTH)), masks.random_keys(2, seed=1)]),
]


def compiled_under(backend: Callable, plan: FlexPlan, heads: int) -> Tensor:
    """Attention of a plan, compiled by that backend."""
    states = torch.randn(1, heads, LENGTH, 16, generator=torch.Generator().manual_seed(0))
    attend = torch.compile(flex_attention, fullgraph=True, dynamic=False, backend=backend)
    with torch.no_grad():
        return attend(states, states, states, block_mask=plan.blocks)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.nightly] * (path.stem not in EVERYDAY))
        for path in SPACES
    ],
)
def test_the_masks_of_a_space_share_one_graph(path):
    space = load_function(f"{path}:space")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    torch._dynamo.reset()
    counter, seen = CompileCounter(), set()
    heads = {"local_heads": 12, "local_global_heads": 8}.get(path.stem, 4)  # of its encoder
    for number in range(24):
        mask = space(study.ask())
        mask = masks.layer_of(mask, number % (mask.layers or 1))
        heads = mask.heads or heads
        compiled_under(counter, FlexPlan.of_mask(mask, LENGTH, BLOCK, heads=heads), heads)
        seen.add(mask)
    assert len(seen) > 4
    assert counter.frame_count == 1


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: str(mask)[:30])
def test_the_predicate_of_tiles_equals_the_table(mask, device):
    table = mask.dense(LENGTH)[0].to(device)
    position = torch.arange(LENGTH, device=device)
    head = torch.arange(mask.heads or 1, device=device)[:, None, None]
    for block in (20, 32, 128):
        partial, whole, predicate = lower.flex_tiles(mask, LENGTH, block, device)
        kept = predicate(torch.tensor(0, device=device), head, position[:, None], position)
        assert torch.equal(kept, table), block
        counts = lower.tile_counts(mask, LENGTH, block)[0].to(device)
        assert torch.equal(whole, counts == block * block)
        assert torch.equal(partial, (counts > 0) & ~whole)


def mask_graph(predicate: lower.Predicate) -> tuple[fx.GraphModule, list[Tensor]]:
    """Dynamo's graph of a predicate, and the tensors that it captures."""
    graphs = []

    def keep(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    plan = FlexPlan.of_mask(masks.window(3), LENGTH, BLOCK)
    plan.blocks.mask_mod = predicate
    compiled_under(keep, plan, 2)
    flex = [node for node in graphs[0].graph.nodes if "flex" in str(node.target)]
    captured = [node.meta["example_value"] for node in flex[-1].args[-1]]
    return graphs[0].mask_fn_0, captured


@pytest.mark.parametrize(
    "which",
    ["tiles", *(pytest.param(one, marks=pytest.mark.nightly) for one in ("padded", "expression"))],
)
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: str(mask)[:30])
@pytest.mark.slow
def test_a_predicate_moves_nothing_and_captures_no_bools(mask, which):
    """Inductor lowers neither on a card."""
    plan = FlexPlan.of_mask(mask, LENGTH, BLOCK)
    padded = plan.padded(torch.ones(1, LENGTH, dtype=torch.bool)).predicate
    own = mask.mask_mod(LENGTH, "cpu")
    predicate = {"tiles": plan.predicate, "padded": padded, "expression": own}[which]
    graph, captured = mask_graph(predicate)
    assert not [node for node in graph.graph.nodes if node.target in ("to", "cuda", "cpu")]
    assert torch.bool not in [one.dtype for one in captured]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_masks_share_one_kernel_of_the_card_that_equals_float64(dtype, error):
    torch._dynamo.reset()
    counters.clear()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 1, 2, LENGTH, 64, generator=generator, dtype=torch.float64).cuda()
    for mask in MASKS:
        plan = FlexPlan.of_mask(mask, LENGTH, device="cuda", heads=2)
        table, found = mask.dense(LENGTH)[0].cuda(), []
        for kind in (dtype, torch.float64):
            *states, weights = drawn.to(kind)
            leaves = [state.detach().requires_grad_() for state in states]
            if kind is dtype:
                result = flex_attention_under(*leaves, plan, scaling=0.125)
            else:
                scores = leaves[0] @ leaves[1].mT * 0.125
                kept = scores.masked_fill(~table, -torch.inf).softmax(-1).nan_to_num(0)
                result = kept @ leaves[2]
            found.append([result, *torch.autograd.grad((result * weights).sum(), leaves)])
        for ours, exact in zip(*found, strict=True):
            assert float((ours - exact).norm() / exact.norm()) < error, mask
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: str(mask)[:30])
def test_a_plan_lies_on_its_device(mask):
    """On meta, which has no values: an operation that mixes it with another device raises."""
    at = [torch.zeros(2, 2, dtype=torch.int64, device="meta") for _ in range(4)]
    plan = FlexPlan.of_mask(mask, LENGTH, BLOCK, device="meta")
    seen = torch.ones(2, LENGTH, dtype=torch.bool, device="meta")
    blocks = [
        plan.blocks,
        plan.padded(seen).blocks,
        lower.flex_block_mask(mask | masks.window(0), LENGTH, BLOCK, "meta"),
    ]
    for one in blocks:
        assert one.kv_indices.device.type == "meta"
        assert one.mask_mod(*at).device.type == "meta"
    assert mask.mask_mod(LENGTH, "meta")(*at).device.type == "meta"


def test_masks_of_too_many_tiles_keep_their_own_predicate(monkeypatch):
    monkeypatch.setattr(lower, "MOST_TILES", 8)
    mask = masks.table(drawn(2, LENGTH, LENGTH))
    partial, whole, predicate = lower.flex_tiles(mask, LENGTH, BLOCK, "cpu")
    assert predicate.__code__ is mask.mask_mod(LENGTH).__code__
    position = torch.arange(LENGTH)
    kept = predicate(torch.tensor(0), torch.arange(2)[:, None, None], position[:, None], position)
    assert torch.equal(kept, mask.dense(LENGTH)[0])
    assert partial.all()
    assert not whole.any()
