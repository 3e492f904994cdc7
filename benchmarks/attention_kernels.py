"""Part `kernels` of `attention.py`: one attention call under a mask, by every backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rounds import Side, faster, interleaved, spread
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from masksearch import masks
from masksearch.attention.kernels.choose import choose
from masksearch.attention.kernels.gather import GatherPlan, gather_attention
from masksearch.masks import Mask
from masksearch.masks.measure import block_density

HEADS, HEAD_DIM = 4, 64
MOST_TABLE = (
    1 << 31
)  # cells of a bool table that masked SDPA is given; beyond, gather is the truth
KERNELS = {  # dense SDPA's kernels
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """What is measured, and how often."""

    device: torch.device
    lengths: tuple[int, ...]
    backends: tuple[str, ...]
    rounds: int
    seconds: float  # of one cell's rounds
    block: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def random_blocks(blocks: int, sparsity: float, heads: int, seed: int = 0) -> Tensor:
    """A layout with that share of dropped blocks, bool `[heads, blocks, blocks]`.

    The diagonal is kept, so that no row is empty; the other blocks are drawn anywhere, so that
    rows differ in number, as those of a searched mask do.
    """
    random = torch.Generator().manual_seed(seed)
    kept = max(round((1 - sparsity) * blocks * blocks) - blocks, 0)
    layout = torch.eye(blocks, dtype=torch.bool).repeat(heads, 1, 1)
    others = (~layout[0]).flatten().nonzero().flatten()
    for plane in layout.view(heads, -1):
        plane[others[torch.randperm(len(others), generator=random)[:kept]]] = True
    return layout


def bigbird_blocks(blocks: int, random: int, heads: int, seed: int = 0) -> Tensor:
    """BigBird's layout: three blocks around the diagonal, the first and last block's rows and
    columns, and `random` others in each row (arXiv 2007.14062, Section 2; ITC)."""
    generator = torch.Generator().manual_seed(seed)
    number = torch.arange(blocks)
    ends = (number == 0) | (number == blocks - 1)
    near = (number[:, None] - number).abs() <= 1
    layout = (near | ends | ends[:, None]).repeat(heads, 1, 1)
    for row in layout.view(-1, blocks):
        free = (~row).nonzero().flatten()
        row[free[torch.randperm(len(free), generator=generator)[:random]]] = True
    return layout


def mixture(length: int, block: int, heads: int = HEADS, seed: int = 0) -> Mask:
    """What a search over the heads' families finds: another one in each head."""
    blocks = -(-length // block)
    kinds = [
        masks.window(block // 2),
        masks.longformer(block // 4, 2),
        masks.block_layout(random_blocks(blocks, 0.95, 1, seed), block),
        masks.blocks(block) | masks.global_tokens(1) | masks.window(block // 8),
    ]
    turn = seed % len(kinds)
    return masks.per_head([kinds[(head + turn) % len(kinds)] for head in range(heads)])


def masks_at(length: int, block: int) -> dict[str, Mask]:
    """Name -> mask of the benchmark at that length."""
    blocks = -(-length // block)
    found = {
        f"window {block}": masks.window(block),
        f"longformer {block}, 1": masks.longformer(block, 1),
        "bigbird, 3 random blocks": masks.block_layout(bigbird_blocks(blocks, 3, HEADS), block),
        "star": masks.star(),
    }
    for percent in (50, 75, 90, 95, 99):
        layout = random_blocks(blocks, percent / 100, HEADS)
        found[f"random blocks, {percent} %"] = masks.block_layout(layout, block)
    return found | {"another in each head": mixture(length, block)}


def attending(
    mask: Mask, length: int, setting: Setting, trains: bool
) -> tuple[dict[str, Attend], dict[str, float], dict[str, str]]:
    """Backends that can compute the mask, seconds to prepare each, why others are left out."""
    attends: dict[str, Attend] = {}
    prepared: dict[str, float] = {}
    absent: dict[str, str] = {}
    device, scaling = setting.device, HEAD_DIM**-0.5
    if (mask.heads or 1) * length * length <= MOST_TABLE:
        start = time.perf_counter()
        table = mask.dense(length).to(device)
        prepared["sdpa"] = time.perf_counter() - start
        attends["sdpa"] = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, table)
    else:
        absent["sdpa"] = f"a table of {length} x {length} cells a head is not made"
    if "gather" in setting.backends:
        start = time.perf_counter()
        plan = GatherPlan.of_mask(mask, length, setting.block).to(device)
        prepared["gather"] = time.perf_counter() - start
        attends["gather"] = lambda q, k, v: gather_attention(q, k, v, plan, scaling=scaling)
    if "flex" in setting.backends and trains and device.type == "cpu":
        absent["flex"] = "FlexAttention has no backward on a CPU"
    elif "flex" in setting.backends:
        from masksearch.attention.kernels.flex import FlexPlan, flex_attention_under

        start = time.perf_counter()
        flex = FlexPlan.of_mask(mask, length, block=setting.block, device=device)
        prepared["flex"] = time.perf_counter() - start
        attends["flex"] = lambda q, k, v: flex_attention_under(q, k, v, flex, scaling=scaling)
    return attends, prepared, absent


def dense_kernel(states: list[Tensor], device: torch.device) -> tuple[Attend, str]:
    """SDPA without a mask, and the name of its kernel: on a GPU the fastest one."""
    if device.type == "cpu":
        return F.scaled_dot_product_attention, "default"
    return fastest_dense(states, device)


def fastest_dense(states: list[Tensor], device: torch.device) -> tuple[Attend, str]:
    """Dense SDPA by the fastest of its kernels that serve these states, and its name."""

    def by(kernel: SDPBackend) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel([kernel]):
                return F.scaled_dot_product_attention(q, k, v)

        return attend

    times: dict[str, float] = {}
    for name, kernel in KERNELS.items():
        attend = by(kernel)
        try:
            taken = interleaved({name: lambda attend=attend: attend(*states)}, 5, 1.0, device)
        except RuntimeError:  # the kernel does not serve this device or shape
            continue
        times[name] = spread(taken[name])["median"]
    best = min(times, key=lambda name: times[name])
    return by(KERNELS[best]), best


def called(attend: Attend, states: list[Tensor], upstream: Tensor | None) -> list[Tensor]:
    """One call: the result, and with `upstream` the gradients of queries, keys and values."""
    if upstream is None:
        with torch.no_grad():
            return [attend(*states)]
    result = attend(*states)
    return [result.detach(), *torch.autograd.grad(result, states, upstream)]


def worst(mine: list[Tensor], truth: list[Tensor]) -> float:
    """Largest difference of any result, over the largest number of that result."""
    return max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max())
        for a, b in zip(mine, truth, strict=True)
    )


def cell(name: str, mask: Mask, length: int, setting: Setting, trains: bool) -> dict[str, Any]:
    """One mask at one length, forward or forward and backward."""
    device = setting.device
    random = torch.Generator().manual_seed(length)
    states = [
        torch.randn(1, HEADS, length, HEAD_DIM, generator=random).to(device, setting.dtype)
        for _ in range(3)
    ]
    upstream = torch.randn(states[0].shape, generator=random).to(device, setting.dtype)
    for part in states if trains else ():
        part.requires_grad_()
    given = upstream if trains else None
    plain, kernel = dense_kernel(states, device)
    attends, prepared, absent = attending(mask, length, setting, trains)
    truth = called(next(iter(attends.values())), states, given)
    backends: dict[str, dict[str, Any]] = {}
    for backend, attend in attends.items():
        start = time.perf_counter()
        mine = called(attend, states, given)
        first = time.perf_counter() - start
        backends[backend] = {
            "error": worst(mine, truth),
            "prepare_seconds": prepared[backend],
            "first_call_seconds": first,
        }
        del mine
    del truth
    sides: dict[str, Side] = {"dense": lambda: called(plain, states, given)}
    for backend, attend in attends.items():
        sides[backend] = lambda attend=attend: called(attend, states, given)
    times = interleaved(sides, setting.rounds, setting.seconds, device)
    blocks = block_density(mask, length, setting.block)
    for backend, row in backends.items():
        row["speedup"] = faster(times, "dense", backend)
        row["share_of_ideal"] = row["speedup"]["median"] * blocks
    choice = choose(mask, length, device=device, trains=trains)
    rivals = [backend for backend in attends if backend != "flex"]
    over = {
        "over_fastest": behind(times, choice.backend, list(attends)),
        "over_fastest_uncompiled": behind(times, choice.backend, rivals),
    }
    return {
        "mask": name,
        "length": length,
        "trains": trains,
        "density": mask.density(length),
        "block_density": blocks,
        "dense_seconds": spread(times["dense"]),
        "dense_kernel": kernel,
        "rounds": len(times["dense"]),
        "error_against": next(iter(attends)),
        "backends": backends,
        "absent": absent,
        "auto": {"backend": choice.backend, "reason": choice.reason, **over},
    }


def behind(times: dict[str, list[float]], backend: str, rivals: list[str]) -> float | None:
    """Time of a backend over that of the fastest; None where it was not timed."""
    if backend not in times:
        return None
    best = min(rivals, key=lambda rival: spread(times[rival])["median"])
    return faster(times, backend, best)["median"]


def kernels(setting: Setting) -> Iterator[dict[str, Any]]:
    """Every cell, one after the other."""
    for length in setting.lengths:
        for name, mask in masks_at(length, setting.block).items():
            for trains in (False, True):
                found = cell(name, mask, length, setting, trains)
                print(line(found), flush=True)
                yield found


def line(found: dict[str, Any]) -> str:
    """A cell in one line."""
    ways = ", ".join(
        f"{name} {row['speedup']['median']:.2f} ({row['speedup']['low']:.2f} to "
        f"{row['speedup']['high']:.2f}), error {row['error']:.0e}"
        for name, row in found["backends"].items()
    )
    what = "forward+backward" if found["trains"] else "forward"
    return f"n={found['length']} {found['mask']}, {what}: {ways}; auto {found['auto']['backend']}"
