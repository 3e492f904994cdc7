"""FlexAttention under a mask: compiled once, a block mask for each layer and length.

plan = FlexPlan.of_mask(mask, length=4096, block=64, device="cuda")
hidden = flex_attention_under(query, key, value, plan, scaling=0.125)

FlexAttention (arXiv 2412.05496) skips blocks in which the mask keeps nothing, and calls the
predicate in blocks that are kept in part: it looks a cell's bit up among the distinct blocks, so
that all masks of a shape share one compiled graph. On CUDA it trains; on the CPU it has no
backward, and the first call at a new shape compiles for seconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cpu

from masksearch.attention.kernels.plan import check_states, computed_type
from masksearch.masks.core import Mask
from masksearch.masks.lower import Predicate, block_mask_of, flex_tiles

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

GRAPHS = 256  # compiled shapes of a process; past them FlexAttention raises
CUDA_ROWS = 128  # positions that the kernels for CUDA take at a time, backward included
CUDA_WIDTH = 16  # numbers of a head that they take at least
CPU_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class FlexPlan:
    """The plan of FlexAttention for one layer. Build it once for many calls.

    Args:
        length: Positions.
        block: Side of a block, in positions.
        partial: bool `[heads, nb, nb]`, blocks kept in part; one head serves any number.
        whole: bool of the same shape, blocks kept whole.
        predicate: The mask's `mask_mod`.
        blocks: The block mask.
    """

    length: int
    block: int
    partial: Tensor
    whole: Tensor
    predicate: Predicate
    blocks: BlockMask

    @staticmethod
    def of_mask(
        mask: Mask,
        length: int,
        block: int = 64,
        device: torch.device | str = "cpu",
        heads: int = 1,
    ) -> FlexPlan:
        """Plans the mask of one layer, from its tiles; no n x n tensor is made.

        Args:
            mask: A mask that does not tell layers apart. Rows that keep no key are not refused
                here: their output is 0, as with a bool mask in `scaled_dot_product_attention`.
            length: Positions; the last block may be ragged.
            block: Side of a block, in positions (>= 1); on CUDA rounded up to a multiple of 128,
                because FlexAttention refuses finer blocks than its kernels take at a time.
            device: Where the plan lies.
            heads: For how many heads a mask that tells none apart is planned; with as many as
                the queries have, it shares a graph with the masks that tell them apart.

        Raises:
            LengthError, LayerCountError: If the mask has another length, or tells layers apart.
            ValueError: If `block` or `length` is less than 1.
        """
        block = block_on(device, block)
        partial, whole, predicate = flex_tiles(mask, length, block, device, heads)
        blocks = block_mask_of(partial, whole, length, block, predicate)
        return FlexPlan(length, block, partial, whole, predicate, blocks)

    @property
    def heads(self) -> int:
        """Heads that the plan tells apart; 1 serves any number."""
        return self.partial.shape[0]

    def padded(self, visible: Tensor) -> FlexPlan:
        """The plan where some keys are padding.

        Blocks that are kept whole call the predicate wherever an example has padding.

        Args:
            visible: bool `[batch, n]`, False = padding.
        """
        missing = self.partial.shape[-1] * self.block - self.length
        clean = F.pad(visible.all(0), (0, missing), value=False).view(-1, self.block).all(1)
        whole = self.whole & clean
        partial = self.partial | (self.whole & ~clean)
        predicate = _with_padding(self.predicate, visible.to(torch.int8))
        blocks = block_mask_of(partial, whole, self.length, self.block, predicate)
        return FlexPlan(self.length, self.block, partial, whole, predicate, blocks)


def block_on(device: torch.device | str, block: int) -> int:
    """The block side that a device computes with, in positions."""
    if torch.device(device).type != "cuda":
        return block
    return -(-block // CUDA_ROWS) * CUDA_ROWS


def _with_padding(predicate: Predicate, visible: Tensor) -> Predicate:
    """The predicate, and the key is no padding (int8 `[batch, n]`: inductor takes no bools)."""

    def both(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return predicate(batch, head, query, key) & (visible[batch, key] > 0)

    return both


def flex_attention_under(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: FlexPlan,
    *,
    scaling: float,
    visible: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Self-attention under the plan's mask, equal to dense attention with that mask.

    Args:
        query: `[batch, heads, n, head_dim]`, on the plan's device.
        key: `[batch, KV heads, n, head_dim]`; the heads are a multiple of the KV heads.
        value: The same shape.
        plan: Of `n` positions, with as many heads as the queries, or one for all.
        scaling: Factor of the scores before the softmax.
        visible: bool `[batch, n]`, keys that may be attended to (False = padding).
        sinks: Learned sinks `[heads]`, as of `AttentionCall`; on CUDA alone.

    Returns:
        `[batch, heads, n, head_dim]`; 0 for queries without a visible key. On CUDA differentiable
        in the first three and the sinks; it has no dropout of attention weights. Under autocast
        in its type.

    Raises:
        LengthError, HeadCountError: If the plan is of another length or number of heads.
        NotImplementedError: If FlexAttention does not compute the type, or the length, on this
            CPU.
        ValueError: If `visible` has another shape or type, or lies on another device.
    """
    kind = query.device.type
    query, key, value = (  # rotary positions leave queries and keys in float32 under autocast
        each.to(computed_type(each.device, each.dtype)) for each in (query, key, value)
    )
    check_states(query, key, value, visible, plan.length, plan.heads)
    if plan.partial.device != query.device:
        raise ValueError(
            f"the plan lies on {plan.partial.device}, the queries on {query.device}; "
            "plan the mask where they lie: FlexPlan.of_mask(.., device=..)"
        )
    if kind == "cpu" and query.dtype not in CPU_TYPES:
        raise NotImplementedError(
            f"FlexAttention computes float32, bfloat16 and float16 on the CPU, got "
            f"{query.dtype}; take the backend 'gather'"
        )
    if kind == "cpu" and plan.length % 16 == 8 and cpu.get_cpu_capability() == "AVX2":
        raise NotImplementedError(
            "FlexAttention on a CPU without AVX-512 gives wrong numbers at lengths of 8 modulo 16 "
            f"(torch 2.13), got {plan.length}; take the backend 'gather', or pad"
        )
    if visible is not None:
        plan = plan.padded(visible.to(query.device))
    size = value.shape[-1]
    if kind == "cuda":
        query, key, value = (widened(each) for each in (query, key, value))
    how: dict[str, Any] = {"scale": scaling, "enable_gqa": key.shape[1] != query.shape[1]}
    attend = compiled(kind)
    if sinks is None:
        plain: Tensor = attend(query, key, value, block_mask=plan.blocks, **how)
        return plain[..., :size]
    from torch.nn.attention.flex_attention import AuxRequest

    aux = AuxRequest(lse=True)
    output, sums = attend(query, key, value, block_mask=plan.blocks, return_aux=aux, **how)
    beside = (sums.lse - sinks[:, None]).sigmoid()  # what the sink leaves of a row
    return cast(Tensor, output * beside[..., None].to(output))[..., :size]


def widened(states: Tensor) -> Tensor:
    """States of narrow heads with zeros behind them, which change no score; others as they are."""
    missing = CUDA_WIDTH - states.shape[-1]
    return F.pad(states, (0, missing)) if missing > 0 else states


@cache
def compiled(kind: str) -> Callable[..., Any]:
    """FlexAttention, compiled; one for a type of device, so that equal shapes share a kernel.

    On the CPU shapes are constants of a kernel: with symbolic lengths it does not compile there
    (torch 2.13).
    """
    from torch.nn.attention.flex_attention import flex_attention

    options: dict[str, Any] = {"dynamic": False if kind == "cpu" else None, "fullgraph": True}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:  # 8 otherwise
        options["recompile_limit"] = GRAPHS
    return torch.compile(flex_attention, **options)
