"""Attention maps: where a trained model looks, on average."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.positions.probes import (
    WatchedAttention,
    attached_probe,
    list_batches,
    shape_of,
    special_keys,
)
from masksearch.positions.result import Special, offset_sums
from masksearch.training.loop import on_device

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Where a model looks: mean attention weights. Every share lies in [0, 1].

    Args:
        maps: float `[layers, heads, n, n]`: mean P of each pair over the sequences in which both
            are real tokens; 0 where a pair is never visible.
        offsets: -(n - 1) .. n - 1, the key's position minus the query's.
        by_offset: float `[layers, heads, 2n - 1]`: mean P over an offset's visible pairs; NaN
            where it has none.
        diagonal: float `[layers, heads]`: mean over real queries of P on their own key.
        diagonal_chance: The same for weights that are equal over the visible keys.
        special: Name -> float `[layers, heads]`: mean over real queries of their P on such
            tokens, summed over a sequence's.
        special_chance: The same for equal weights.
        sequences: Number of sequences.
    """

    maps: Tensor
    offsets: tuple[int, ...]
    by_offset: Tensor
    diagonal: Tensor
    diagonal_chance: Tensor
    special: Mapping[str, Tensor] = field(default_factory=dict)
    special_chance: Mapping[str, Tensor] = field(default_factory=dict)
    sequences: int = 0

    def __repr__(self) -> str:
        shares = {"diagonal": (self.diagonal, self.diagonal_chance)}
        shares |= {name: (mass, self.special_chance[name]) for name, mass in self.special.items()}
        means = (
            f"{name} {mass.mean().item():.3g} (evenly {even.mean().item():.3g})"
            for name, (mass, even) in shares.items()
        )
        shape = " x ".join(map(str, self.maps.shape))
        return f"AttentionMaps({shape}, {self.sequences} sequences; {', '.join(means)})"

    def frame(self) -> pd.DataFrame:
        """Long table: kind (`offset`, `diagonal`, `special`), unit, layer, head, share, chance.

        `share` is P per pair for offsets, and the mass per query for the others.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []

        def add(kind: str, unit: int | str, shares: Tensor, chance: Tensor | None = None) -> None:
            for layer, head in itertools.product(*map(range, shares.shape)):
                row: dict[str, Any] = {"kind": kind, "unit": unit, "layer": layer, "head": head}
                row["share"] = shares[layer, head].item()
                row["chance"] = math.nan if chance is None else chance[layer, head].item()
                rows.append(row)

        for at, shares in zip(self.offsets, self.by_offset.unbind(-1), strict=True):
            add("offset", at, shares)
        add("diagonal", "diagonal", self.diagonal, self.diagonal_chance)
        for name, shares in self.special.items():
            add("special", name, shares, self.special_chance[name])
        return pd.DataFrame(rows, columns=["kind", "unit", "layer", "head", "share", "chance"])


@torch.no_grad()
def attention_maps(
    model: nn.Module, batches: Iterable[Batch], *, special: Special | None = None
) -> AttentionMaps:
    """Measures where a model looks, in eval mode; nothing about the model changes.

    Padded positions count neither as queries nor as keys. A mask on the model stays in force.

    Args:
        model: A Hugging Face model, or a module that contains one.
        batches: List of dicts of tensors, keyword arguments of the model, all of one length n.
        special: Name -> token id (or several ids), found wherever it stands in each sequence;
            needs `input_ids` in the batches.

    Raises:
        AttachError: If the model's attention cannot be reached, or gates are on it.
        LengthError: If the batches differ in length.
        ValueError: If there is no batch, or their number is not known.
    """
    listed = list_batches(batches)
    shape = shape_of(model, listed[0])
    size = (shape.layers, shape.heads)
    total = torch.zeros(*size, shape.length, shape.length, dtype=torch.float64)
    count = torch.zeros_like(total)
    queries = torch.zeros(size, dtype=torch.float64)
    chance = torch.zeros(size, dtype=torch.float64)
    special = special or {}
    mass = {name: torch.zeros(size, dtype=torch.float64) for name in special}
    expected = {name: torch.zeros(size, dtype=torch.float64) for name in special}
    standing: dict[str, Tensor] = {}

    def observe(layer: int, weights: Tensor, valid: Tensor) -> None:
        valid = valid.expand(weights.shape)
        weights = weights * valid
        keys = valid.sum(-1).clamp_min(1)
        total[layer] += weights.double().sum(0).cpu()
        count[layer] += valid.sum(0).cpu()
        queries[layer] += valid.any(-1).sum((0, 2)).cpu()
        chance[layer] += (valid.diagonal(dim1=-2, dim2=-1) / keys).double().sum((0, 2)).cpu()
        for name, at in standing.items():
            there = at[:, None, None, :]
            mass[name][layer] += (weights * there).double().sum((0, 2, 3)).cpu()
            expected[name][layer] += ((valid & there).sum(-1) / keys).double().sum((0, 2)).cpu()

    probe = WatchedAttention(shape.length, shape.heads, shape.layers, observe)
    with attached_probe(model, probe, listed[0]):
        model.eval()
        for batch in listed:
            batch = on_device(model, batch)
            standing = special_keys(batch, special)
            model(**batch)
    rows = queries.clamp_min(1)
    return AttentionMaps(
        (total / count.clamp_min(1)).float(),
        tuple(range(1 - shape.length, shape.length)),
        (offset_sums(total) / offset_sums(count)).float(),
        (total.diagonal(dim1=-2, dim2=-1).sum(-1) / rows).float(),
        (chance / rows).float(),
        {name: (part / rows).float() for name, part in mass.items()},
        {name: (part / rows).float() for name, part in expected.items()},
        sum(len(next(iter(batch.values()))) for batch in listed),
    )
