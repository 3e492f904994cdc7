"""Which kernel computes a layer's masked attention, and why.

choice = choose(mask, 2048, heads=12, width=64, device="cpu", trains=True)
choice.backend, choice.reason            # "gather", "block gather computes 9 % of the cells .."

On the CPU a small cost model decides between a mask on SDPA and block gather; its constants were
measured once, so that the same mask always gets the same kernel. FlexAttention is never chosen
there. It has no backward pass, and each new mask or length compiles for 3 to 17 seconds, which a
model that is run once must not pay. Whether its forward pass then leads depends on the machine:
on an AMD EPYC it takes 0.73 to 1.07 of block gather's time where heads share their mask or its
blocks are kept whole, on an Intel Xeon 1.3 to 2.2 times that time; where each head has another
predicate twice and three times as long. So no rule is right everywhere: `"fastest"` runs all of
them on the layer's own states and keeps the fastest (`masksearch.attention.kernels.timed`).

On CUDA nothing was measured here. SDPA leaves its flash kernel as soon as a mask is given and
reads n x n cells; FlexAttention keeps 0.68 to 1.43 of FlashAttention's speed, 5.5 to 8 times
that of a masked SDPA (arXiv 2412.05496, Section 5), and skips empty blocks, but is slower than
SDPA on short inputs. So FlexAttention is taken from 1,024 positions on, SDPA below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from masksearch.attention.kernels.plan import GatherPlan
from masksearch.errors import unknown_name
from masksearch.masks.core import Mask
from masksearch.masks.lower import tile_counts

Backend = Literal["dense", "sdpa", "gather", "flex"]
REQUESTS = ("auto", "fastest", "sdpa", "gather", "flex")
BLOCK = 64  # side of a kernel's block, in positions
UNIT = 16  # keys that block gather takes together, in positions
SHORTEST = 256  # positions below which nothing sparse is ever chosen
PLANNED = 1024  # positions up to which the plan of a block gather is made to judge it
SHORTEST_ON_CUDA = 1024  # the same for FlexAttention on CUDA
NARROWEST_ON_CUDA = 16  # numbers of a head that its kernels need


@dataclass(frozen=True)
class Costs:
    """Microseconds of one attention call on one thread, with heads of 64 numbers in float32.

    Args:
        call: Of any call.
        position: Of each position of each head.
        cell: Of each computed (query, key) pair of each head, in thousands of them.
        biased: The same, more, for each pair in rows of blocks that are not kept whole.
        bundle: Of each bundle of a block gather.
    """

    call: float
    position: float
    cell: float
    biased: float = 0.0
    bundle: float = 0.0

    def time(self, heads: int, length: int, work: Work) -> float:
        """Microseconds of that work."""
        pairs = self.cell * work.cells + self.biased * work.biased
        each = self.position * length + pairs / 1000
        return self.call + self.bundle * work.bundles + heads * each


@dataclass(frozen=True)
class Work:
    """What is computed in a head, on average.

    Args:
        cells: Computed (query, key) pairs.
        biased: Those of them in rows of blocks that are not kept whole.
        bundles: Of the whole call.
    """

    cells: float
    biased: float = 0.0
    bundles: int = 0


# Forward, and forward with backward. Fitted to 17 masks at 256 to 2048 positions on one thread
# of an AMD EPYC with AVX-512, torch 2.13, 2026-11-20, by benchmarks/attention_choice.py: at
# none of them is the chosen kernel more than 10 % slower than the other one. Nor is it on an
# Intel Xeon with AVX-512 (2026-11-21, up to 4096 positions), where dense SDPA takes .7 of these
# times and block gather .8: the ratios that follow from the constants are rough.
DENSE = (Costs(0, 0.105, 2.87), Costs(0, 0.477, 10.06))
MASKED = (Costs(0, 0.065, 3.22), Costs(0, 0.473, 10.61))
TABLE = (0.65, 2.5)  # microseconds of each thousand cells of a mask, in the cache and beyond it
IN_CACHE = 1 << 23  # cells of a mask from which on it is written beyond the cache
GATHER = (Costs(0, 0.081, 4.08, 1.57, 75), Costs(0, 0.475, 13.48, 4.36, 202))


def masked_time(heads: int, planes: int, length: int, trains: bool) -> float:
    """Microseconds of SDPA with a bool mask.

    Args:
        heads: Heads that attend.
        planes: Heads that the mask tells apart: SDPA writes each out in float32.
        length: Positions.
        trains: Whether the backward pass counts.
    """
    table = planes * length * length
    written = TABLE[table >= IN_CACHE] * table / 1000
    return MASKED[trains].time(heads, length, Work(length * length)) + written


@dataclass(frozen=True)
class Choice:
    """The kernel of one layer at one length.

    Args:
        backend: `"dense"` (the mask keeps everything: plain SDPA), `"sdpa"` (SDPA with a bool
            mask), `"gather"` (block gather) or `"flex"` (FlexAttention).
        reason: Why, in one sentence.
        length: Positions that it was chosen for.
        density: Kept share of the n x n table, in [0, 1], over the heads.
        block_density: Share of the 64 x 64 tiles that hold a kept cell, in [0, 1].
        ratio: Time of plain SDPA over this kernel's: 2 is twice as fast; expected, so rough,
            unless measured; None where no figure is known.
        measured: Whether it was found by running the kernels.
    """

    backend: Backend
    reason: str
    length: int
    density: float
    block_density: float
    ratio: float | None = None
    measured: bool = False


def choose(
    mask: Mask,
    length: int,
    *,
    heads: int,
    width: int,
    device: torch.device | str,
    trains: bool,
    requested: str = "auto",
) -> Choice:
    """The fastest exact kernel for one layer, by a fixed rule: nothing is timed.

    Args:
        mask: Mask of one layer, with the model's causality already in it.
        length: Positions of queries and keys.
        heads: Heads of the layer (>= 1).
        width: Numbers of a head's query (>= 1).
        device: Where the layer computes.
        trains: Whether a gradient is asked for.
        requested: `"auto"`; `"fastest"`, the same until the kernels have been run; or the
            backend that the user names, which is then taken. A mask that keeps everything is
            plain SDPA whatever was asked for.

    Raises:
        UnknownNameError: If `requested` is no backend.
        LengthError: If the mask has another length.
    """
    if requested not in REQUESTS:
        raise unknown_name("backend", requested, REQUESTS)
    counts = tile_counts(mask, length, BLOCK)[0]
    density = float(counts.sum()) / (counts.shape[0] * length * length)
    blocks = float((counts > 0).double().mean())
    kind = torch.device(device).type

    def chosen(backend: Backend, reason: str, ratio: float | None = None) -> Choice:
        if requested == "fastest" and backend != "dense" and length >= SHORTEST:
            reason += EXPECTED
        return Choice(backend, reason, length, density, blocks, ratio)

    if int(counts.sum()) == counts.shape[0] * length * length:
        return chosen("dense", "the mask keeps everything: plain SDPA", 1.0)
    if kind != "cpu":
        return chosen(*elsewhere(kind, length, width, requested))
    dense = DENSE[trains].time(heads, length, Work(length * length))
    masked = masked_time(heads, len(counts), length, trains)
    if requested == "flex":
        return chosen("flex", asked(requested) + NO_BACKWARD * trains)
    if requested == "sdpa":
        return chosen("sdpa", asked(requested), dense / masked)
    work = planned(mask, counts, length) if length <= PLANNED else coarse(counts, length)
    gathered = GATHER[trains].time(heads, length, work)
    if gathered >= masked and length > PLANNED:  # finer units may still be few
        work = fine(mask, length)
        gathered = GATHER[trains].time(heads, length, work)
    share = min(work.cells / length**2, 1)
    if requested == "gather":
        return chosen("gather", asked(requested), dense / gathered)
    if length < SHORTEST:
        return chosen("sdpa", f"below {SHORTEST} positions nothing sparse pays", dense / masked)
    compared = f"block gather computes {share:.0%} of the cells, about "
    if gathered < masked:
        return chosen(
            "gather",
            f"{compared}{masked / gathered:.1f}x as fast as SDPA with a mask",
            dense / gathered,
        )
    return chosen(
        "sdpa",
        f"{compared}{gathered / masked:.1f}x the time of SDPA with a mask",
        dense / masked,
    )


EXPECTED = "; the kernels are timed in the first call at this length"
NO_BACKWARD = "; it has no backward pass on the CPU and will refuse to train"


def asked(backend: str) -> str:
    """The reason of a backend that the user names."""
    return f'backend="{backend}" was asked for'


def elsewhere(kind: str, length: int, width: int, requested: str) -> tuple[Backend, str]:
    """Backend and reason on another device than the CPU."""
    if requested not in ("auto", "fastest"):
        return cast(Backend, requested), asked(requested)
    if kind != "cuda":
        return "sdpa", f'no figures for {kind}: SDPA with a mask; try backend="gather"'
    if length < SHORTEST_ON_CUDA:
        return "sdpa", f"below {SHORTEST_ON_CUDA} positions SDPA is the faster on CUDA"
    if width < NARROWEST_ON_CUDA:
        return "sdpa", f"FlexAttention needs heads of {NARROWEST_ON_CUDA} numbers, got {width}"
    return "flex", "FlexAttention skips empty blocks; SDPA with a mask loses its flash kernel"


def planned(mask: Mask, counts: Tensor, length: int) -> Work:
    """Work by the plan itself, which is quickly made for short inputs.

    Args:
        mask: The mask.
        counts: int64 `[heads, nb, nb]`, kept cells of each tile.
        length: Positions.
    """
    plan = GatherPlan.of_mask(mask, length, BLOCK)
    upper = coarse(counts, length)
    cells = plan.pairs * BLOCK**2 / plan.heads
    return Work(cells, cells * upper.biased / max(upper.cells, 1), len(plan.bundles))


def coarse(counts: Tensor, length: int) -> Work:
    """Work by tiles of 64 x 64: an upper bound.

    Args:
        counts: int64 `[heads, nb, nb]`, kept cells of each tile.
        length: Positions.
    """
    return worked(counts > 0, counts == areas(length, BLOCK, BLOCK), BLOCK * BLOCK)


def fine(mask: Mask, length: int) -> Work:
    """Work by 64 queries x 16 keys, as block gather takes them."""
    counts = tile_counts(mask, length, UNIT)[0]
    rows = BLOCK // UNIT
    missing = -counts.shape[1] % rows
    counts = torch.nn.functional.pad(counts, (0, 0, 0, missing))
    counts = counts.view(len(counts), -1, rows, counts.shape[2]).sum(2)
    return worked(counts > 0, counts == areas(length, BLOCK, UNIT), BLOCK * UNIT)


def areas(length: int, rows: int, columns: int) -> Tensor:
    """Cells of each tile within the table, int64 `[ceil(n / rows), ceil(n / columns)]`."""
    heights, widths = (
        (length - torch.arange(0, length, side)).clamp(max=side) for side in (rows, columns)
    )
    return heights[:, None] * widths


def worked(kept: Tensor, whole: Tensor, cells: int) -> Work:
    """Work of the kept tiles, bool `[heads, rows, columns]`, of that many cells each."""
    tiles = kept.sum(2)
    biased = (kept & ~whole).any(2)
    heads = len(kept)
    some = int(tiles[biased].sum())
    return Work(int(tiles.sum()) * cells / heads, some * cells / heads, heads)


def gather_pays_from(mask: Mask, heads: int, width: int, trains: bool) -> int | None:
    """The smallest power of two at which auto takes block gather on the CPU.

    Args:
        mask: As in `choose`.
        heads: Heads of the layer.
        width: Numbers of a head's query.
        trains: Whether a gradient is asked for.

    Returns:
        256 .. 8192 positions, or None where it never does; for a mask that has only one length,
        that length or None.

    Raises:
        LengthError: If the mask reaches no farther than some length.
    """
    lengths = [mask.length] if mask.length else [SHORTEST << step for step in range(6)]
    for length in lengths:
        made = choose(mask, length, heads=heads, width=width, device="cpu", trains=trains)
        if made.backend == "gather":
            return length
    return None
