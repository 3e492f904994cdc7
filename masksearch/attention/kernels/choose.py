"""Which kernel computes a layer's masked attention, and its call, as one operator in graphs.

choice = choose(mask, 2048, device="cpu", trains=True)
choice.backend, choice.reason            # "gather", "7% of its tiles are kept, ..."

The rule goes by length, device and the share of tiles that the device's kernel computes. For
"auto", in its order:

    a mask that keeps everything    plain SDPA ("dense"), which any request gets
    CPU, below 256 positions        SDPA with a bool mask
    CPU, tiles kept below 0.6       block gather, whose tiles are of 64 queries x 16 keys
    CPU, else                       SDPA with a bool mask
    CUDA, from 1,024 positions on   FlexAttention where it has less to do than SDPA: see below
    CUDA, else; other devices       SDPA with a bool mask

On the CPU the rule takes the faster of SDPA and block gather, or one within 10 % of it, in all 160
recorded cells: 4 % on an Intel Xeon, 8 % on an AMD EPYC (benchmarks/results: ten masks at 512 to
4,096 positions, with and without gradients, compared in turns), whose tiles are kept in blocks of
64 x 64; under narrow tiles whole encoders are faster by it than by SDPA at every share that was
tried, of 50 % or less (benchmarks/results/tiles.json). FlexAttention is never taken there: it has
no backward pass, and each new length compiles for 3 to 17 seconds.

On CUDA the rule is that of one NVIDIA H200 with torch 2.11 (benchmarks/results/card.json: twelve
masks and 200 layouts, heads of 64 numbers). There FlexAttention's blocks are of 128 positions,
and one that is kept in part, whose cells it looks up bit by bit, takes six times as long as a
whole one in 16 bits, and as long as a whole one in float32, where it leaves the tensor cores.
SDPA takes one time for all masks. So in 16 bits the whole blocks and eight times those kept in
part must be less than all (eight and not six: a row of many such blocks ends last), in float32
both together less than .14. That takes the faster one in all 198 recorded cells from 1,024
positions on. All were measured at batch one: at batch eight whole encoders under masks of blocks
in part, which it gives to FlexAttention, were slower than dense ones, and SDPA was not measured.
Launching a call takes FlexAttention .6 ms of the host and SDPA .2 ms, forward and backward:
small models wait for that, whatever the mask. Other types are left to SDPA.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from masksearch.attention.kernels.flex import FlexPlan, block_on, flex_attention_under
from masksearch.attention.kernels.gather import GatherPlan, gather_attention
from masksearch.attention.kernels.plan import UNITS
from masksearch.masks.core import Mask
from masksearch.masks.lower import by_tiles, tile_counts

Backend = Literal["dense", "sdpa", "gather", "flex"]
REQUESTS = ("auto", "sdpa", "gather", "flex")
BLOCK = 64  # side of a kernel's block, in positions; `block_on` says what CUDA makes of it
SHORTEST = 256  # positions below which nothing sparse is ever chosen
SPARSE = 0.6  # share of kept tiles below which block gather is the faster on a CPU
LONGEST = 4096  # positions up to which `gather_pays_from` looks
SHORTEST_ON_CUDA = 1024  # positions from which FlexAttention is the faster on CUDA
IN_PART = 8  # what a block that is kept in part counts there in 16 bits; a whole one counts 1
SPARSE_IN_16_BITS, SPARSE_IN_FLOAT32 = 1.0, 0.14  # what they count at most, over all blocks


@dataclass(frozen=True)
class KernelChoice:
    """The kernel of one layer at one length.

    Args:
        backend: `"dense"` (the mask keeps everything: plain SDPA), `"sdpa"` (SDPA with a bool
            mask), `"gather"` (block gather) or `"flex"` (FlexAttention).
        reason: Why, in one sentence.
        length: Positions that it was chosen for.
        density: Kept share of the n x n table, in [0, 1], over the heads.
        block_density: Share of the blocks that hold a kept cell, in [0, 1]; of the device's
            blocks, 128 x 128 on CUDA and 64 x 64 elsewhere.
    """

    backend: Backend
    reason: str
    length: int
    density: float
    block_density: float


def choose(
    mask: Mask,
    length: int,
    *,
    device: torch.device | str,
    trains: bool,
    dtype: torch.dtype = torch.float32,
    requested: str = "auto",
) -> KernelChoice:
    """The kernel for one layer, by a fixed rule: nothing is timed.

    Args:
        mask: Mask of one layer, with the model's causality already in it.
        length: Positions of queries and keys.
        device: Where the layer computes.
        trains: Whether a gradient is asked for.
        dtype: In which type; on CUDA the rule depends on it.
        requested: `"auto"`, or the backend that the user names, which is then taken. A mask that
            keeps everything is plain SDPA whatever was asked for.

    Raises:
        LengthError: If the mask has another length.
    """
    block, keys = grain_on(device)
    fine, side = tile_counts(mask, length, keys)[0], block // keys
    counts = by_tiles(fine, (side, side)).sum((-3, -1))
    cells = counts.shape[0] * length * length
    kept = int(counts.sum())
    blocks = float((counts > 0).double().mean())
    kind = torch.device(device).type
    if kept == cells:
        backend, reason = "dense", "the mask keeps everything: plain SDPA"
    elif requested != "auto":
        backend, reason = requested, f'backend="{requested}" was asked for'
        if requested == "flex" and kind == "cpu" and trains:
            reason += "; it has no backward pass on the CPU and will refuse to train"
    elif kind == "cpu":
        tiles = by_tiles(fine, (side, 1)).sum((-3, -1)) > 0
        backend, reason = choose_on_cpu(length, float(tiles.double().mean()))
    elif kind == "cuda":
        whole = float((counts == block * block).double().mean())
        backend, reason = choose_on_cuda(length, whole, blocks - whole, dtype)
    else:
        backend, reason = "sdpa", f'no figures for {kind}: SDPA with a mask; try backend="gather"'
    return KernelChoice(cast(Backend, backend), reason, length, kept / cells, blocks)


def grain_on(device: torch.device | str) -> tuple[int, int]:
    """Queries and keys of the finest tile that the sparse kernel of a device leaves out."""
    side = block_on(device, BLOCK)
    return (side, side) if torch.device(device).type == "cuda" else (side, UNITS[0])


def choose_on_cpu(length: int, tiles: float) -> tuple[str, str]:
    """Backend and reason of `"auto"` on the CPU, by the share of tiles that are kept."""
    if length < SHORTEST:
        return "sdpa", f"below {SHORTEST} positions nothing sparse pays"
    share = f"{tiles:.0%} of its tiles of {BLOCK} x {UNITS[0]} are kept"
    if tiles < SPARSE:
        return "gather", f"{share}, less than {SPARSE:.0%}: block gather leaves the others out"
    return "sdpa", f"{share}: block gather pays below {SPARSE:.0%}"


def choose_on_cuda(
    length: int, whole: float, partial: float, dtype: torch.dtype
) -> tuple[str, str]:
    """Backend and reason of `"auto"` on CUDA, by the shares of blocks kept whole and in part."""
    if length < SHORTEST_ON_CUDA:
        return "sdpa", f"below {SHORTEST_ON_CUDA} positions SDPA is the faster on CUDA"
    kind = str(dtype).removeprefix("torch.")
    if dtype.itemsize > 4:
        return "sdpa", f"FlexAttention computes no {kind} on CUDA"
    in_part, least = (
        (IN_PART, SPARSE_IN_16_BITS) if dtype.itemsize == 2 else (1, SPARSE_IN_FLOAT32)
    )
    cost = whole + partial * in_part
    share = (
        f"{whole:.0%} of its blocks are kept whole, {partial:.0%} in part: in {kind} "
        f"FlexAttention's work is {cost:.2f} of a dense mask's"
    )
    if cost < least:
        return "flex", f"{share}, less than {least:g}"
    return "sdpa", f"{share}; it pays below {least:g}"


def gather_pays_from(mask: Mask) -> int | None:
    """The smallest power of two at which `"auto"` takes block gather on the CPU.

    Args:
        mask: As in `choose`.

    Returns:
        256 .. 4096 positions, or None where it never does; for a mask that has only one length,
        that length or None.

    Raises:
        LengthError: If the mask reaches no farther than some length.
    """
    longest = mask.longest or LONGEST
    lengths = [n for n in (SHORTEST, 512, 1024, 2048, LONGEST) if n <= longest]
    for length in [mask.length] if mask.length else lengths:
        choice = choose(mask, length, device="cpu", trains=False)
        if choice.backend == "gather":
            return length
    return None


# -- the call, and the operator of a graph that torch.compile makes -------------------------------
# A plan is no tensor, and its kernels choose their shapes in Python. So the graph holds a name of
# what has it (`SOURCES`), and the operator asks that when it runs. Its backward pass computes
# the forward pass once more, as gradient checkpoints do.
# Name -> LayerMask: a graph holds no objects, but a string, which Dynamo never makes a symbol.
SOURCES: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
NUMBERS = itertools.count()  # the names

with torch.inference_mode(False):  # of ordinary code, outside of any operator
    DISPATCH = (
        torch._C._dispatch_tls_local_include_set(),
        torch._C._dispatch_tls_local_exclude_set(),
    )


def compute(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    plan: GatherPlan | FlexPlan,
    scaling: float,
    dropout: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention by the kernel that the plan is for, `[batch, heads, n, head_dim]`."""
    if isinstance(plan, FlexPlan):
        return flex_attention_under(
            query, key, value, plan, scaling=scaling, visible=visible, sinks=sinks
        )
    return gather_attention(
        query, key, value, plan, scaling=scaling, visible=visible, dropout=dropout, sinks=sinks
    )


@torch.library.custom_op("masksearch::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    name: str,
    backend: str,
    scaling: float,
) -> Tensor:
    """`compute` under the plan of the source with that name."""
    plan = SOURCES[name].plan(backend, query.shape[2], query.device)
    with torch.autocast(query.device.type, enabled=False):
        return compute(query, key, value, visible, plan, scaling).contiguous()


@attention.register_fake
def _(query: Tensor, *rest: Any) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("masksearch::attention_backward", mutates_args=())
def attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    name: str,
    backend: str,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attention` in query, key and value."""
    states_in = [states.detach().requires_grad_() for states in (query, key, value)]
    plan = SOURCES[name].plan(backend, query.shape[2], query.device)
    # operators run below autograd, which is needed here once more
    with (
        torch._C._ForceDispatchKeyGuard(*DISPATCH),
        torch.enable_grad(),
        torch.autocast(query.device.type, enabled=False),
    ):
        out = compute(states_in[0], states_in[1], states_in[2], visible, plan, scaling)
        grads = torch.autograd.grad(out, states_in, gradient)
    return grads[0].contiguous(), grads[1].contiguous(), grads[2].contiguous()


@attention_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps what the backward pass needs."""
    ctx.save_for_backward(*inputs[:4])
    ctx.settings = inputs[4:]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The backward pass of `attention`."""
    operator: Callable[..., Any] = torch.ops.masksearch.attention_backward
    return (*operator(gradient, *ctx.saved_tensors, *ctx.settings), None, None, None, None)


attention.register_autograd(_differentiate, setup_context=_save_inputs)
