"""An importance analysis and its result: values, profiles with intervals, a table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from masksearch.contracts import Shape

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["gradient", "flip", "fisher", "drop"]
Per = Literal["model", "layer", "head"]
Special = Mapping[str, int | Sequence[int]]  # name -> token id, or several ids
POOLED: dict[Per, tuple[int, ...]] = {"model": (0, 1), "layer": (1,), "head": ()}
LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class ImportanceSpec:
    """The measurement that `importance` was asked for, on a model of those sizes."""

    shape: Shape
    method: Method
    per: Per
    signed: bool
    special: Special
    offsets: tuple[int, ...]
    keys: tuple[int, ...]

    def pool(self, table: Tensor) -> Tensor:
        """Sums `[layers, heads, ..]` over what is not kept apart; those axes become 1."""
        axes = POOLED[self.per]
        return table.sum(axes, keepdim=True) if axes else table

    def lines(self) -> Tensor:
        """Indices of the offsets, then of the keys, among the lines of `line_sums`."""
        zero = self.shape.length - 1  # where the offset 0 stands
        keys = [2 * zero + 1 + key for key in self.keys]
        return torch.tensor([*(zero + offset for offset in self.offsets), *keys])


class Measured(NamedTuple):
    """A mean over batches with its 95% t-interval; bounds are NaN below two batches."""

    mean: Tensor  # [layers | 1, heads | 1], or with one more axis
    low: Tensor
    high: Tensor

    def __repr__(self) -> str:
        """A single mean with its interval, or the shape and the range of several."""
        if self.mean.numel() == 1:
            mean, low, high = (part.item() for part in self)
            return f"{mean:.3g}" + ("" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]")
        shape = " x ".join(map(str, self.mean.shape))
        return f"{shape} means, {self.mean.min().item():.3g} to {self.mean.max().item():.3g}"

    def __float__(self) -> float:
        """The mean, where there is one: `float(found.diagonal)`."""
        return self.mean.item()


def mean_with_interval(samples: Tensor) -> Measured:
    """Mean and Student's t-interval over the first axis, `[batches, ..]` -> `[..]`."""
    count, mean = len(samples), samples.mean(0)
    if count < 2:
        return without_interval(mean)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) / math.sqrt(count)
    half = samples.std(0) * reach
    return Measured(mean, mean - half, mean + half)


def without_interval(mean: Tensor) -> Measured:
    """A mean without an interval: both bounds NaN."""
    unknown = torch.full_like(mean, math.nan)
    return Measured(mean, unknown, unknown.clone())


def offset_sums(table: Tensor) -> Tensor:
    """Sums over each offset j - i: `[.., n, n]` -> `[.., 2n - 1]`, from -(n - 1) up."""
    length = table.shape[-1]
    position = torch.arange(length, device=table.device)
    index = (position[None, :] - position[:, None] + length - 1).flatten()
    sums = table.new_zeros(*table.shape[:-2], 2 * length - 1)
    return sums.index_add_(-1, index, table.flatten(-2))


def line_sums(table: Tensor) -> Tensor:
    """Sums over every offset, then over every key: `[.., n, n]` -> `[.., (2n - 1) + n]`."""
    return torch.cat([offset_sums(table), table.sum(-2)], -1)


@dataclass(frozen=True, eq=False)
class Profile:
    """Importance by offset, or by key position.

    Args:
        at: Signed offsets (key minus query), or positions of keys.
        mean: float `[layers | 1, heads | 1, len(at)]`.
        low: Lower bound of the 95% interval, or NaN.
        high: Upper bound.
        cells: float `[len(at)]`: valid pairs of each, mean over sequences, layers and heads.
    """

    at: tuple[int, ...]
    mean: Tensor
    low: Tensor
    high: Tensor
    cells: Tensor

    def __repr__(self) -> str:
        measured = Measured(self.mean, self.low, self.high)
        return f"Profile(at {self.at[0]} .. {self.at[-1]}: {measured})" if self.at else "Profile()"

    def one(self, at: int) -> Measured:
        """The measurement there, each `[layers | 1, heads | 1]`.

        Raises:
            KeyError: If it was not measured; says what was.
        """
        if at not in self.at:
            raise KeyError(f"{at} was not measured; known: {', '.join(map(str, self.at))}")
        index = self.at.index(at)
        return Measured(self.mean[..., index], self.low[..., index], self.high[..., index])

    def per_cell(self) -> Profile:
        """Divided by `cells`: what one pair of a sequence adds. NaN where there is none."""
        cells = torch.where(self.cells > 0, self.cells, math.nan)
        mean, low, high = (part / cells for part in (self.mean, self.low, self.high))
        return Profile(self.at, mean, low, high, torch.ones_like(self.cells))


@dataclass(frozen=True, eq=False)
class Importance:
    """The result of `importance`: what removing attention positions does to the loss.

    For `"gradient"`, `"flip"` and `"drop"` a value is the rise of the loss, in nats per scored
    token, if these pairs are taken out of every sequence (to first order for the first two); for
    `"fisher"` it is a mean square of slopes, in nats^2.
    Profiles and `special` give the effect of taking all pairs of an offset, of a key position or
    of a token; `Profile.per_cell` that of one pair.

    Args:
        method: How it was measured.
        per: What is kept apart. Pooled axes have length 1: effects of the same pairs in all
            heads (or layers and heads) are those of taking them out everywhere at once.
        length: Positions n.
        values: float `[layers | 1, heads | 1, n, n]`, or None for `"drop"`.
        by_offset: Profile over signed offsets (key minus query), 0 always among them.
        by_key: Profile over key positions.
        special: Name -> mean, low and high, each `[layers | 1, heads | 1]`: attention to such
            tokens as keys, wherever they stand.
        special_cells: Name -> valid pairs, mean over sequences, layers and heads.
        loss: Mean loss of the batches, nothing taken out.
        batches: Number of batches.
        signed: False = every effect is the sum over sequences of its absolute value in each.
    """

    method: Method
    per: Per
    length: int
    values: Tensor | None
    by_offset: Profile
    by_key: Profile
    special: Mapping[str, Measured] = field(default_factory=dict)
    special_cells: Mapping[str, float] = field(default_factory=dict)
    loss: float = math.nan
    batches: int = 0
    signed: bool = True

    def __repr__(self) -> str:
        """The measurement and its method, and the diagonal's effect."""
        special = "".join(f", {name} {effect}" for name, effect in self.special.items())
        return (
            f"Importance({self.method}, per {self.per}, {self.length} positions, {self.batches} "
            f"batches, loss {self.loss:.4g}; nats a token: diagonal {self.diagonal}{special}; "
            f"{len(self.by_offset.at)} offsets, {len(self.by_key.at)} keys)"
        )

    @property
    def diagonal(self) -> Measured:
        """The positions that attend to themselves (offset 0): each `[layers | 1, heads | 1]`."""
        return self.by_offset.one(0)

    def frame(self) -> pd.DataFrame:
        """Long table: kind, unit, layer, head, mean, low, high, cells.

        Kinds are `offset`, `key` and `special`; the diagonal is offset 0. A pooled layer or head
        is called `all`.
        """
        import pandas as pd

        kinds: dict[str, list[tuple[int | str, Measured, float]]] = {
            kind: [(at, p.one(at), n) for at, n in zip(p.at, p.cells.tolist(), strict=True)]
            for kind, p in (("offset", self.by_offset), ("key", self.by_key))
        }
        kinds["special"] = [(n, one, self.special_cells[n]) for n, one in self.special.items()]
        layers, heads = self.diagonal.mean.shape
        rows: list[dict[str, Any]] = []
        for kind, layer, head in itertools.product(kinds, range(layers), range(heads)):
            plane = {
                "layer": "all" if self.per == "model" else layer,
                "head": head if self.per == "head" else "all",
            }
            for unit, effect, cells in kinds[kind]:
                values = {n: part[layer, head].item() for n, part in effect._asdict().items()}
                rows.append({"kind": kind, "unit": unit, **plane, **values, "cells": cells})
        columns = ["kind", "unit", "layer", "head", "mean", "low", "high", "cells"]
        return pd.DataFrame(rows, columns=columns)


def build_importance(
    spec: ImportanceSpec,
    lines: Measured,
    cells: Tensor,
    tokens: Mapping[str, Measured],
    token_cells: Mapping[str, float],
    losses: Sequence[float],
    *,
    values: Tensor | None = None,
    batches: int,
) -> Importance:
    """Puts a result together, with the offsets and keys that the specification names.

    Args:
        spec: What was asked.
        lines: Of the specification's offsets, then of its keys.
        cells: float `[lines]`: valid pairs of each.
        tokens: Name -> what was measured of such tokens.
        token_cells: Name -> valid pairs.
        losses: Of the batches, or the last steps.
        values: float `[layers | 1, heads | 1, n, n]`, or None.
        batches: Number of batches.
    """
    count = len(spec.offsets)
    parts = [part.float() for part in (*lines, cells)]
    by_offset = Profile(spec.offsets, *(part[..., :count] for part in parts))
    by_key = Profile(spec.keys, *(part[..., count:] for part in parts))
    return Importance(
        spec.method,
        spec.per,
        spec.shape.length,
        None if values is None else values.float(),
        by_offset,
        by_key,
        {name: Measured(*(part.float() for part in effect)) for name, effect in tokens.items()},
        dict(token_cells),
        sum(losses) / len(losses),
        batches,
        spec.signed,
    )
