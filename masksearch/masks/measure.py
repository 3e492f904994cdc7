"""Measures of a mask without any training: shares of cells, blocks, pairs; hops."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.errors import MaskSearchError, UncountedHops
from masksearch.masks.checks import grid, no_empty_rows
from masksearch.masks.core import CELLS_AT_ONCE, DenseMask, Mask, Plane, Points, distinct_planes
from masksearch.masks.leaves import SpecialTokens
from masksearch.masks.lower import block_view, row_counts, under_causality
from masksearch.masks.shape import Shape
from masksearch.masks.text import short_text

ROUNDING = 1e-9  # share by which a density or a budget may be missed
BLOCK = 64  # side of a kernel's block, in positions
MEASURES = (
    *("sparsity", "effective_sparsity", "density", "block_density", "hops"),
    "sparsity_off_diagonal",
)


def fingerprint(mask: Mask, shape: Shape) -> str:
    """Hashes a mask's lowered bits and shape: equal masks have one fingerprint (SHA-256, hex).

    A mask that follows the tokens is hashed by its expression.

    Raises:
        EmptyRowError, LayerCountError, HeadCountError, LengthError: As `lower`.
        TokensNeededError: If a mask follows the tokens, and the shape has none.
    """
    if mask.needs_tokens and shape.tokens is not None:
        mask.counts(shape.layers, shape.heads)
        text = f"{shape.layers}x{shape.heads}x{shape.length} {mask.digest}"
        return hashlib.sha256(text.encode()).hexdigest()
    keys_of_rows(mask, shape)
    return hash_rows(mask, shape)


def keys_of_rows(mask: Mask, shape: Shape) -> Tensor:
    """How many keys each query keeps, `[layers, heads, n]`; layers or heads that are alike once.

    Raises:
        EmptyRowError, LayerCountError, HeadCountError, LengthError: As `lower`.
    """
    mask.counts(shape.layers, shape.heads)
    counts = row_counts(under_causality(mask, shape), shape.length)
    no_empty_rows((counts > 0).expand(shape.layers, shape.heads, -1)[..., None])
    return counts


def hash_rows(mask: Mask, shape: Shape) -> str:
    """The fingerprint of the lowered mask, some rows after the others."""
    length, mask = shape.length, under_causality(mask, shape)
    digest = hashlib.sha256(f"{shape.layers}x{shape.heads}x{length}x{length}".encode())
    planes, index = distinct_planes(mask)
    plane_index = np.array(index).reshape(mask.layers or 1, mask.heads or 1)
    numbers: list[int] = np.broadcast_to(plane_index, (shape.layers, shape.heads)).ravel().tolist()
    aligned, packed = length * length % 8 == 0, dict[int, bytes]()  # of planes that come again
    over = np.zeros(0, dtype=bool)  # bits that do not fill a byte yet
    for number, plane in enumerate(numbers):
        if plane in packed:
            digest.update(packed[plane])
            continue
        again = aligned and plane in numbers[number + 1 :]
        chunks = []
        for rows in planes[plane].mask.row_chunks(length, head=planes[plane].head):
            bits = np.concatenate([over, rows.numpy().reshape(-1)])
            whole = len(bits) // 8 * 8
            chunk = np.packbits(bits[:whole]).tobytes()
            digest.update(chunk)
            chunks += [chunk] if again else []
            over = bits[whole:]
        if again:
            packed[plane] = b"".join(chunks)
    digest.update(np.packbits(over).tobytes())
    return digest.hexdigest()


def _sequences_at(shape: Shape) -> Tensor:
    """How many sequences of the data have a token at each position: int64 `[n]`, falling."""
    ends = torch.zeros(shape.length, dtype=torch.int64)
    for tokens, count in shape.histogram:
        ends[tokens - 1] += count
    return ends.flip(0).cumsum(0).flip(0)


def counts_all_alike(shape: Shape) -> bool:
    """Whether every cell of the table counts the same: no padding, not causal, all rows read."""
    padded = any(tokens != shape.length for tokens, _ in shape.histogram)
    return not (shape.causal or padded or shape.read is not None)


def pair_weights(shape: Shape) -> Tensor:
    """How much of the data each cell of the table serves.

    Args:
        shape: Its lengths are those of the data.

    Returns:
        float64 `[n, n]`: share of the sequences that have a token at both positions, in [0, 1].
        Cells of padding alone have 0 and, where the shape is causal, later keys. Without lengths
        and not causal all have 1. Where the shape says how many rows of the last layer are read,
        `[layers, 1, n, n]`: the last layer has 0 in the other rows.

    >>> from masksearch import Shape
    >>> pair_weights(Shape(3, 1, 1, causal=True, lengths={2: 1, 3: 1})).tolist()
    [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.5, 0.5, 0.5]]
    >>> pair_weights(Shape(2, 2, 12, read=1))[:, 0].tolist()
    [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]]
    """
    query, key = grid(shape.length)
    present = _sequences_at(shape).double()
    weights = (present / present[0])[torch.maximum(query, key)]
    weights = weights.tril() if shape.causal else weights
    if shape.read is None:
        return weights
    weights = weights.repeat(shape.layers, 1, 1, 1)
    weights[-1, :, shape.read :] = 0
    return weights


def effective_density(mask: Mask, shape: Shape) -> float:
    """Kept share of the non-padding query-key pairs that reach the output, in [0, 1].

    `sum(weights x kept) / sum(weights)` with `pair_weights`, over all layers and heads together.
    So all pairs of the data count alike, a long sequence's too; padding does not, nor does the
    future of a decoder, nor rows of the last layer that are not read. Where the shape has none of
    these this is `mask.density(length)`. Exact, and no n x n tensor is made.

    Raises:
        LengthError: If the mask has another length.
        HeadCountError, LayerCountError: If it has other heads or layers than a shape with `read`.

    >>> from masksearch import Shape, masks
    >>> effective_density(masks.columns(2), Shape(4, 1, 1, lengths={2: 3}))
    1.0
    """
    size = shape.length
    if mask.needs_tokens:
        by_layer = np.mean(unit_densities(mask, shape), 1)
        of_whole, of_last = layer_pairs(shape)
        return float(np.average(by_layer, weights=[*[of_whole] * (shape.layers - 1), of_last]))
    if counts_all_alike(shape):
        return mask.density(size)
    layers, read = mask.layers or 1, size
    if shape.read is not None:
        mask.counts(shape.layers, shape.heads)
        layers, read = shape.layers, shape.read
    planes, index = distinct_planes(mask)
    count = cache(lambda plane, rows: _kept_pairs(planes[plane], shape, rows))
    heads = mask.heads or 1
    others = index * (layers - 1) if mask.layers is None else index[:-heads]
    kept = sum(count(plane, size) for plane in others)
    kept += sum(count(plane, read) for plane in index[-heads:])
    of_whole, of_last = layer_pairs(shape)
    return kept / (heads * ((layers - 1) * of_whole + of_last))


def _kept_pairs(plane: Plane, shape: Shape, read: int) -> int:
    """Non-padding query-key pairs that one layer and head keeps in its first rows, in all
    sequences."""
    query, key = grid(shape.length)
    present, kept, first = _sequences_at(shape), 0, 0
    for rows in plane.mask.row_chunks(shape.length, head=plane.head):
        rows = rows[: max(0, read - first)]
        there = present[torch.maximum(query[first : first + len(rows)], key)]
        kept += int((there * (rows.tril(first) if shape.causal else rows)).sum())
        first += len(rows)
    return kept


def unit_densities(mask: Mask, shape: Shape) -> list[list[float]]:
    """The share that each layer and head keeps of the non-padding query-key pairs (and are read).

    Returns:
        `[layers][heads]`, in [0, 1]; `effective_density` is their mean where all rows are read.

    Raises:
        HeadCountError, LayerCountError, LengthError: If the mask has another shape.

    >>> from masksearch import Shape, masks
    >>> mask = masks.per_head([masks.full(), masks.columns(1)])
    >>> unit_densities(mask, Shape(4, 1, 2, causal=True))
    [[1.0, 0.4]]
    """
    mask.counts(shape.layers, shape.heads)
    if mask.needs_tokens and shape.tokens is not None:
        return _token_densities(mask, shape, shape.tokens)
    size, heads = shape.length, mask.heads or 1
    planes, index = distinct_planes(mask)
    of_whole, of_last = layer_pairs(shape)

    @cache
    def share(plane: int, read: int, pairs: int) -> float:
        return _kept_pairs(planes[plane], shape, read) / pairs

    densities = []
    for layer in range(shape.layers):
        counted = (size, of_whole) if layer < shape.layers - 1 else (shape.read or size, of_last)
        first = 0 if mask.layers is None else layer * heads
        of_layer = [share(plane, *counted) for plane in index[first : first + heads]]
        densities.append(of_layer * (shape.heads // heads))
    return densities


def _token_densities(mask: Mask, shape: Shape, tokens: Tensor) -> list[list[float]]:
    """`unit_densities` of a mask that follows the tokens, counted in rows of the data.

    Args:
        mask: The mask.
        shape: What it is lowered to; layers that do not follow the tokens are counted in it.
        tokens: int64 `[rows, length]`, -1 behind the end of a row.

    Raises:
        MaskSearchError: If the mask names a token that no row has.
        EmptyRowError: If a query keeps no key in one of the rows.
    """
    if missing := _token_ids(mask) - set(tokens.flatten().tolist()):
        raise MaskSearchError(
            f"{short_text(mask, 80)} follows the token {min(missing)}, which no row of the data "
            "has: take ids of the tokenizer that the evaluator uses, such as its [SEP]"
        )

    @cache
    def shares(layer: Mask, read: int) -> list[float]:
        if not layer.needs_tokens:
            [of_heads] = unit_densities(layer, replace(shape, layers=1, read=read))
            return of_heads
        kept, pairs = torch.zeros(layer.heads or 1, dtype=torch.int64), 0
        for ids in torch.split(tokens, max(1, CELLS_AT_ONCE // shape.length**2)):
            real = ids >= 0
            there = real[:, None, :read, None] & real[:, None, None]
            there = there.tril() if shape.causal else there
            kept += (layer.table(ids)[:, :, :read] & there).sum((0, 2, 3))
            pairs += int(there.sum())
        densities: list[float] = (kept.double() / pairs).expand(shape.heads).tolist()
        return densities

    reads = [shape.length] * (shape.layers - 1) + [shape.read or shape.length]
    return [shares(mask.of_layer(layer), read) for layer, read in enumerate(reads)]


def _token_ids(mask: Mask) -> set[int]:
    """The tokens that a mask names to follow them."""
    ids = mask.ids if isinstance(mask, SpecialTokens) else ()
    return set(ids).union(*map(_token_ids, mask.parts))


def layer_pairs(shape: Shape) -> tuple[int, int]:
    """Pairs of tokens that a head can form in all sequences: of a layer whose rows are all read,
    and of the last one."""

    def pairs(rows: int, tokens: int) -> int:
        return rows * (rows + 1) // 2 if shape.causal else rows * tokens

    read = shape.read or shape.length
    of_whole = sum(count * pairs(n, n) for n, count in shape.histogram)
    return of_whole, sum(count * pairs(min(n, read), n) for n, count in shape.histogram)


def unread_note(shape: Shape) -> str:
    """A sentence on the pairs that reach no output; empty where all of them do.

    >>> from masksearch import Shape
    >>> unread_note(Shape(4, 2, 12, read=1)).split(":")[1]
    ' 37.5% of the non-padding query-key pairs, as they reach no output'
    """
    if shape.read is None:
        return ""
    rows = "row is" if shape.read == 1 else f"{shape.read} rows are"
    of_whole, of_last = layer_pairs(shape)
    unread = (of_whole - of_last) / (shape.layers * of_whole)
    return (
        f"Not counted: {unread:.1%} of the non-padding query-key pairs, as they reach no "
        f"output: of the last layer only the first {rows} read."
    )


def block_density(mask: Mask, length: int, block: int = BLOCK) -> float:
    """Share of the `block` x `block` tiles that hold a kept cell, in [0, 1].

    Speed follows this figure, not the elementwise sparsity: a kernel computes whole blocks.
    """
    return float(block_view(mask, length, block).float().mean())


def overlap(first: DenseMask, second: DenseMask) -> float:
    """Intersection over union of the kept cells of two tables, in [0, 1]; 1 for two empty ones."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def on_diagonal(mask: Mask, length: int) -> Tensor:
    """Which positions keep themselves, bool `[layers, heads, n]`; no n x n tensor is made."""
    at = grid(length)[1][0]
    planes, index = distinct_planes(mask)
    rows = [
        plane.mask.allows(Points(at, at, length, 0, plane.head)).expand(length) for plane in planes
    ]
    return torch.stack(rows)[index].view(mask.layers or 1, mask.heads or 1, length)


def sparsity_off_diagonal(counts: Tensor, on: Tensor) -> float:
    """Dropped share of the cells with i != j, in [0, 1]; 0 where there are none.

    SparseBERT drops the diagonal (arXiv 2102.12871, Section 3.3).

    Args:
        counts: Kept cells of each row, `[layers, heads, n]`.
        on: Which positions keep themselves, bool, of the same shape.
    """
    cells = on.numel() * (on.shape[-1] - 1)
    return 1 - (int(counts.sum()) - int(on.sum())) / cells if cells else 0.0


def measures(mask: Mask, shape: Shape, block: int = BLOCK) -> dict[str, float]:
    """The measures that every record carries.

    Args:
        mask: Any mask.
        shape: What it is lowered to.
        block: Side of a kernel's block, in positions.

    Returns:
        `sparsity` and `density` in [0, 1] of the lowered table, `effective_sparsity` (1 -
        `effective_density`: over the non-padding query-key pairs), `sparsity_off_diagonal` (over
        the cells with i != j), `block_density` at `block` positions, and `hops` up to the
        length that they are counted at (of a causal shape: until each position has reached all
        later ones). Of a mask that follows the tokens the first three, all by pairs of tokens.

    Raises:
        EmptyRowError, LayerCountError, HeadCountError, LengthError: As `lower`.
    """
    size = shape.length
    if mask.needs_tokens:
        kept = effective_density(mask, shape)
        return {"sparsity": 1 - kept, "effective_sparsity": 1 - kept, "density": kept}
    counts, mask = keys_of_rows(mask, shape), under_causality(mask, shape)
    density = int(counts.sum()) / (len(mask.planes) * size**2)
    result = {
        "sparsity": 1 - density,
        "effective_sparsity": 1 - effective_density(mask, shape),
        "density": density,
        "block_density": block_density(mask, size, block),
    }
    if size <= LONGEST:
        result["hops"] = hops(mask, size, causal=shape.causal)
    if size > 1:
        result["sparsity_off_diagonal"] = sparsity_off_diagonal(counts, on_diagonal(mask, size))
    return result


# -- hops: attention steps until every position has reached every other -------------------------
# A relation on n positions is kept as bits, [n, words] of 64: bit k of row q says that query q is
# reached by key k. One step after another is then an `or` of whole rows.
Bits = NDArray[np.uint64]
LONGEST = 8192  # positions up to which hops are counted
GATHERED = 1 << 17  # words that one `or` of rows reads at a time: they stay in a core's cache


def hops(mask: Mask, length: int, *, causal: bool = False) -> float:
    """Attention steps until every position has reached every other, over the heads' union.

    A universal-approximation precondition of sparse Transformers (Yun et al., arXiv
    2006.04862, Assumption 1). Layers are taken as alternating and the residual path as kept.

    Args:
        mask: Any mask.
        length: Positions that it is taken at.
        causal: Count until every position has reached all later ones instead (of a decoder,
            whose mask keeps no later key).

    Returns:
        A whole number; 0 for one position, infinity where some position is never reached.

    Raises:
        UncountedHops: Beyond 8,192 positions.
    """
    if length > LONGEST:
        raise UncountedHops(
            f"hops are counted up to {LONGEST} positions, asked for {length}: take the mask at a "
            "shorter length, where a family has as many or fewer"
        )
    planes, index = distinct_planes(mask)
    heads = mask.heads or 1
    layers = [frozenset(index[at : at + heads]) for at in range(0, len(index), heads)]
    step = cache(lambda numbers: Relation(join_heads([planes[at] for at in numbers], length)))
    step(layers[0])  # first: it refuses what is no length
    if length == 1:
        return 0.0
    diagonal = np.eye(length, dtype=bool)
    goal = pack_bits(np.tri(length, dtype=bool) if causal else np.ones_like(diagonal))
    reached = pack_bits(diagonal)
    for number, layer in enumerate(layers, 1):
        reached = step(layer).after(reached)
        if np.array_equal(reached, goal):
            return float(number)
    powers = [reached]  # all steps 1, 2, 4, .. times
    while not np.array_equal(powers[-1], goal):
        doubled = Relation(unpack_bits(powers[-1], length)).after(powers[-1])
        if np.array_equal(doubled, powers[-1]):
            return math.inf
        powers.append(doubled)
    reached, count = pack_bits(diagonal), 0
    for exponent, power in reversed(list(enumerate(powers[:-1]))):
        further = Relation(unpack_bits(power, length)).after(reached)
        if not np.array_equal(further, goal):  # the largest number of times that is not enough
            reached, count = further, count + len(layers) * 2**exponent
    for layer in layers:
        if np.array_equal(reached, goal):
            break
        reached, count = step(layer).after(reached), count + 1
    return float(count)


def join_heads(planes: list[Plane], length: int) -> NDArray[np.bool_]:
    """The union of a layer's heads and the diagonal, the residual path: bool `[n, n]`."""
    union = torch.eye(length, dtype=torch.bool)
    for plane in planes:
        first = 0
        for rows in plane.mask.row_chunks(length, head=plane.head):
            union[first : first + len(rows)] |= rows
            first += len(rows)
    cells: NDArray[np.bool_] = union.numpy()
    return cells


class Relation:
    """Who reaches whom in one go, from bool `[n, n]` with a full diagonal."""

    def __init__(self, cells: NDArray[np.bool_]) -> None:
        ends = np.diff(np.pad(cells, ((0, 0), (1, 1))).view(np.int8), axis=1)
        self.query, self.start = np.nonzero(ends > 0)  # of runs of kept keys, row by row
        self.stop = np.nonzero(ends < 0)[1]

    def after(self, earlier: Bits) -> Bits:
        """The positions reached by this relation after an earlier one.

        1, 2, 4, .. neighbouring rows are joined in turn, and two of these, which may overlap, make
        a run of keys.
        """
        joined, width, result = earlier, 1, np.zeros_like(earlier)
        while len(joined):
            runs = np.flatnonzero((self.stop - self.start) // width == 1)
            for some in np.array_split(runs, 1 + runs.size * earlier.shape[1] // GATHERED):
                if some.size:
                    of_runs = joined[self.start[some]]
                    if width > 1:
                        of_runs |= joined[self.stop[some] - width]
                    rows, first = np.unique(self.query[some], return_index=True)
                    result[rows] |= np.bitwise_or.reduceat(of_runs, first, axis=0)
            joined, width = joined[:-width] | joined[width:], 2 * width
        return result


def pack_bits(cells: NDArray[np.bool_]) -> Bits:
    """bool `[n, n]` as `[n, words]`, little end first."""
    bits = np.packbits(cells, axis=1, bitorder="little")
    result = np.zeros((len(cells), -(-cells.shape[1] // 64) * 8), dtype=np.uint8)
    result[:, : bits.shape[1]] = bits
    return result.view("<u8")


def unpack_bits(bits: Bits, size: int) -> NDArray[np.bool_]:
    """Inverse of `pack_bits`."""
    return np.unpackbits(bits.view(np.uint8), axis=1, count=size, bitorder="little").view(bool)
