"""Parts `kernels` and `latency` of `card.py`: masked attention by SDPA and by FlexAttention."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch._dynamo
import torch.nn.functional as F
from attention_kernels import Attend, called, random_blocks
from card_cells import Card
from scipy.stats import spearmanr
from torch import Tensor

from masksearch import masks
from masksearch.attention.kernels.choose import choose
from masksearch.attention.kernels.flex import FlexPlan, flex_attention_under
from masksearch.masks import Mask
from masksearch.masks.lower import ROOM, block_mask_of, tile_predicate

HEAD_DIM, SCALING = 64, 64**-0.5
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
DENSE = "no mask"


def states_of(
    heads: int, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values, and the gradient of what is computed from them."""
    random = torch.Generator().manual_seed(length)
    drawn = [torch.randn(1, heads, length, HEAD_DIM, generator=random) for _ in range(4)]
    given = [one.to(device, dtype) for one in drawn]
    return [one.requires_grad_() for one in given[:3]], given[3]


# -- kernels -------------------------------------------------------------------------------------
def twelve(length: int, block: int, heads: int) -> dict[str, Mask]:
    """Name -> mask of part `kernels`."""
    random = torch.Generator().manual_seed(length)
    bits = torch.rand(heads, length, length, generator=random) < 0.05
    bits.diagonal(dim1=1, dim2=2).fill_(True)
    offsets = torch.rand(length, generator=random) < 0.05
    offsets[0] = True
    blocks = length // block
    kinds = [masks.window(32), masks.strided(64), masks.star(), masks.random_keys(8, seed=1)]
    return {
        "window": masks.window(64),
        "longformer": masks.longformer(64, 2),
        "star": masks.star(),
        "strided": masks.strided(64),
        "causal window": masks.causal() & masks.window(length // 16),
        "toeplitz, random offsets": masks.toeplitz(offsets),
        "block layout, .05": masks.block_layout(random_blocks(blocks, 0.95, heads), block),
        "block layout, .5": masks.block_layout(random_blocks(blocks, 0.5, heads), block),
        # of more than 1,024 distinct tiles at 4,096 positions, for which there is other room
        "bigbird": masks.bigbird(64, 2, 3),
        "random keys": masks.random_keys(16, seed=0),
        "another in each head": masks.per_head([kinds[head % 4] for head in range(heads)]),
        "table, random bits": masks.table(bits),
    }


@dataclass
class Case:
    """One mask at one length, on the device."""

    name: str
    mask: Mask
    length: int
    heads: int
    device: torch.device
    table: Tensor  # bool [1, heads | 1, n, n]

    @cached_property
    def planned(self) -> tuple[FlexPlan, float]:
        """The plan of FlexAttention as `ms.attach` makes it, and the seconds that it took."""
        start = time.perf_counter()
        plan = FlexPlan.of_mask(self.mask, self.length, 64, self.device, self.heads)
        return plan, time.perf_counter() - start


def sdpa_under(table: Tensor) -> Attend:
    """SDPA with a bool table, as a layer calls it."""
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, table)


def flex_under(plan: FlexPlan) -> Attend:
    """FlexAttention by a plan, as a layer calls it; on a CPU it takes no gradients."""
    if plan.partial.device.type == "cuda":
        return lambda q, k, v: flex_attention_under(q, k, v, plan, scaling=SCALING)
    return lambda q, k, v: flex_attention_under(
        q.detach(), k.detach(), v.detach(), plan, scaling=SCALING
    )


def cases(card: Card, lengths: tuple[int, ...], heads: int) -> list[Case]:
    """Every mask at every length; tables are made side by side on the CPU."""

    def case(cell: tuple[int, str, Mask]) -> Case:
        length, name, mask = cell
        return Case(name, mask, length, heads, card.device, mask.dense(length))

    cells = [
        (length, name, mask)
        for length in lengths
        for name, mask in twelve(length, card.block, heads).items()
    ]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(case, cells))
    for each in found:
        each.table = each.table.to(card.device)
    return found


def truth(states: list[Tensor], table: Tensor, upstream: Tensor) -> list[Tensor]:
    """Output and gradients in float64, head by head, by a softmax that is written out."""
    found = []
    for head in range(states[0].shape[1]):
        q, k, v = (one.detach()[0, head].double().requires_grad_() for one in states)
        kept = table[0, head % table.shape[1]]
        weights = (q @ k.T * SCALING).masked_fill(~kept, -math.inf).softmax(-1)
        output = weights @ v
        gradients = torch.autograd.grad(output, (q, k, v), upstream[0, head].double())
        found.append([output.detach(), *gradients])
    return [torch.stack(one)[None] for one in zip(*found, strict=True)]


def graphs() -> int:
    """How many graphs Dynamo has handed to the compiler so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def measured(
    card: Card, attend: Attend, states: list[Tensor], upstream: Tensor | None, right: list[Tensor]
) -> dict[str, Any]:
    """One backend under one mask: first call, errors, times."""
    before = graphs()
    card.wait()
    start = time.perf_counter()
    results = called(attend, states, upstream)
    card.wait()
    row: dict[str, Any] = {"first_call_seconds": time.perf_counter() - start}
    row["new_graphs"] = graphs() - before
    row["errors"] = {
        name: float((mine.double() - exact).norm() / exact.norm())
        for name, mine, exact in zip(("output", "dq", "dk", "dv"), results, right, strict=False)
    }
    del results
    if upstream is None:  # FlexAttention on a CPU
        return row | {"forward": card.timed(lambda: called(attend, states, None))}
    # the forward pass keeps what a backward pass needs: without gradients it were another graph
    row["forward"] = card.timed(lambda: attend(*states))
    return row | {"forward_backward": card.timed(lambda: called(attend, states, upstream))}


def kernels(card: Card) -> None:
    """Both backends under every mask, in every type at every length."""
    heads, lengths = (4, (128,)) if card.smoke else (8, (1024, 4096))
    made = cases(card, lengths, heads)
    card.note(heads=heads, head_dim=HEAD_DIM, prepare_seconds=time.perf_counter() - card.start)
    for kind, dtype in TYPES.items():
        for length in lengths:
            torch._dynamo.reset()  # a shape has its own graph, as in a process of its own
            states, upstream = states_of(heads, length, dtype, card.device)
            here: dict[str, Any] = {"dtype": kind, "length": length}
            if not card.over():
                row = here | {"mask": DENSE, "backend": "sdpa"}
                attempt(card, row, lambda s=states, u=upstream: dense_times(card, s, u))
            for case in (case for case in made if case.length == length):
                compare(card, case, here, states, upstream)
            summarise(card, kind, length)


def dense_times(card: Card, states: list[Tensor], upstream: Tensor) -> dict[str, Any]:
    """SDPA without a mask."""
    plain = F.scaled_dot_product_attention
    return {
        "forward": card.timed(lambda: plain(*states)),
        "forward_backward": card.timed(lambda: called(plain, states, upstream)),
    }


def compare(
    card: Card, case: Case, here: dict[str, Any], states: list[Tensor], upstream: Tensor
) -> None:
    """The cells of one mask: each backend against float64."""
    if card.over(2):
        return
    right = truth(states, case.table, upstream)
    dtype = TYPES[here["dtype"]]
    choice = choose(case.mask, case.length, device=card.device, trains=True, dtype=dtype)
    about = {"auto": choice.backend, "why": choice.reason, "kept_cells": choice.density}
    for backend in ("sdpa", "flex"):
        row = here | {"mask": case.name, "backend": backend}
        if card.over():
            continue

        def cell(backend: str = backend) -> dict[str, Any]:
            if backend == "sdpa":
                return about | measured(card, sdpa_under(case.table), states, upstream, right)
            plan, seconds = case.planned
            whole, part = (float(of.double().mean()) for of in (plan.whole, plan.partial))
            found = about | {"plan_seconds": seconds, "block": plan.block}
            found |= {"kept_blocks": whole + part, "kept_whole": whole}
            given = upstream if card.cuda else None
            return found | measured(card, flex_under(plan), states, given, right)

        attempt(card, row, cell)


def attempt(card: Card, row: dict[str, Any], cell: Callable[[], dict[str, Any]]) -> None:
    """Measures a cell; one that fails is written down as such, and the next one follows."""
    try:
        found = row | cell()
    except Exception as error:  # of compilers, drivers, memory: each is a result
        card.fail(row, error)
        return
    times = found.get("forward_backward") or found["forward"]
    errors = ", ".join(f"{name} {value:.0e}" for name, value in found.get("errors", {}).items())
    where = f"{row['dtype']} n={row['length']} {row['mask']}, {row['backend']}"
    line = f"{where}: {times['ms']:.3f} ms (wall {times['wall_ms']:.3f}), first call "
    line += f"{found.get('first_call_seconds', math.nan):.2f} s, "
    line += f"{found.get('new_graphs', 0)} new graphs; errors {errors or 'none'}"
    card.add(found, line)


def summarise(card: Card, kind: str, length: int) -> None:
    """Whether masks of a shape share a graph: the first call of the first mask, and of others."""
    cells = [
        row
        for row in card.result["rows"]
        if row["backend"] == "flex" and "failed" not in row and row["dtype"] == kind
        if row["length"] == length
    ]
    if not cells:
        return
    later = [row["first_call_seconds"] for row in cells[1:]] or [math.inf]
    worst = max(cells, key=lambda row: max(row["errors"].values()))
    found = {
        "masks": len(cells),
        "first_seconds": cells[0]["first_call_seconds"],
        "first_graphs": cells[0]["new_graphs"],
        "later_median_seconds": statistics.median(later) if cells[1:] else None,
        "later_longest_seconds": max(later) if cells[1:] else None,
        "later_compiled": {
            row["mask"]: row["new_graphs"] for row in cells[1:] if row["new_graphs"]
        },
        "largest_error": max(worst["errors"].values()),
        "of_mask": worst["mask"],
    }
    card.note(summary=card.result.get("summary", {}) | {f"{kind}, {length}": found})
    print(f"{kind} n={length}, FlexAttention: {found}", flush=True)


# -- latency -------------------------------------------------------------------------------------
def plan_of_layout(layout: Tensor, block: int, device: torch.device) -> FlexPlan:
    """`FlexPlan.of_mask` of `masks.block_layout(layout, block)`, without a look at its cells.

    Args:
        layout: bool `[heads, nb, nb]`.
        block: Positions of a block's side, a multiple of 8 and one that the device computes with.
        device: Where the plan lies.
    """
    length = block * layout.shape[1]
    bits = torch.zeros(ROOM, block, block // 8, dtype=torch.uint8)
    bits[1] = 255  # the one kind of tile that keeps something
    whole = layout.to(device)
    partial = torch.zeros_like(whole)
    predicate = tile_predicate(bits.to(device), whole.int(), block)
    blocks = block_mask_of(partial, whole, length, block, predicate)
    return FlexPlan(length, block, partial, whole, predicate, blocks)


def latency(card: Card) -> None:
    """Milliseconds over block density, at four lengths, and where FlexAttention begins to pay."""
    heads, lengths, count = (4, (128,), 6) if card.smoke else (12, (512, 1024, 2048, 4096), 50)
    card.note(heads=heads, head_dim=HEAD_DIM, block=card.block, lengths={})
    for length in lengths:
        if card.over(count):
            continue
        try:
            found = at_length(card, length, heads, count)
        except Exception as error:  # of compilers, drivers, memory: the next length follows
            card.fail({"length": length}, error)
            continue
        card.note(lengths=card.result["lengths"] | {str(length): found})
        print(f"n={length}: {found}", flush=True)


def at_length(card: Card, length: int, heads: int, count: int) -> dict[str, Any]:
    """So many layouts at one length; SDPA's times, and how FlexAttention's follow density."""
    torch._dynamo.reset()
    states, upstream = states_of(heads, length, torch.bfloat16, card.device)
    given = upstream if card.cuda else None
    random = torch.Generator().manual_seed(length)
    shares = (0.05 + 0.95 * torch.rand(count, generator=random)).tolist()
    layouts = [
        random_blocks(length // card.block, 1 - share, heads, seed)
        for seed, share in enumerate(shares)
    ]
    table = layouts[0].repeat_interleave(card.block, 1).repeat_interleave(card.block, 2)
    sdpa = sdpa_under(table[None].to(card.device))
    found: dict[str, Any] = {
        "dense": card.timed(lambda: called(F.scaled_dot_product_attention, states, given)),
        "sdpa": card.timed(lambda: called(sdpa, states, given)),
    }
    before = graphs()
    for layout in layouts:
        if card.over():
            continue
        flex = flex_under(plan_of_layout(layout, card.block, card.device))
        start = time.perf_counter()
        called(flex, states, given)
        card.wait()
        found.setdefault("first_call_seconds", time.perf_counter() - start)
        row = {"length": length, "block_density": layout.double().mean().item()}
        row |= card.timed(lambda flex=flex: called(flex, states, given))
        line = f"n={length}, {row['block_density']:.3f} of the blocks: {row['ms']:.3f} ms"
        card.add(row, f"{line} (wall {row['wall_ms']:.3f})")
    found["graphs"] = graphs() - before
    rows = [row for row in card.result["rows"] if row["length"] == length]
    if len({row["block_density"] for row in rows}) > 2:
        found |= {f"by_{by}": fit(rows, by, found["sdpa"][by]) for by in ("ms", "wall_ms")}
    return found


def fit(rows: list[dict[str, Any]], by: str, sdpa: float) -> dict[str, float | None]:
    """How a time follows block density, and where it is that of SDPA with a table.

    `equals_sdpa_at` is None where that is no density in (0, 1]; `over_sdpa_at_1` says on which
    side all of them lie.
    """
    density, times = ([row[name] for row in rows] for name in ("block_density", by))
    slope, base = (float(one) for one in np.polyfit(density, times, 1))
    at = (sdpa - base) / slope if slope > 0 else math.inf
    return {
        "spearman": float(spearmanr(density, times).statistic),
        "base_ms": base,
        "slope_ms": slope,
        "equals_sdpa_at": at if 0 < at <= 1 else None,
        "over_sdpa_at_1": (base + slope) / sdpa,
    }
