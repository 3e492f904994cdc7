"""FlexAttention's predicates as the compiler sees them: what a GPU needs, found without one."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from masksearch import masks
from masksearch.attention.kernels.flex import FlexPlan, flex_attention_under
from masksearch.masks import lower
from masksearch.user_code import load_function

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
