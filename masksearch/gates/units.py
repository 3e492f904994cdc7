"""Units: layers, KV heads or heads that each take one of several masks, cheapest first.

`Units` is the vocabulary of `strategy="allocate"`, and a search space over the same masks for
any other strategy.

`Gates("switch", ..)` chooses one of these masks for each unit. With y_o the attention of a unit
under level o, the output is y of the level that was drawn: what the mask will compute. The gate of
level o learns from <dL/dy, y_o - y>, which is what moving from the drawn level towards o does to
the loss, exactly to first order. A unit that changes as a whole is not the sum of its edges, each
flipped alone: so this is no sum of the flip gradients.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch import masks
from masksearch.attention.call import AttentionCall
from masksearch.contracts import Shape
from masksearch.errors import MaskFormatError, check_name
from masksearch.files import read_tensors
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.masks.measure import (
    ROUNDING,
    keys_of_rows,
    layer_pairs,
    pair_weights,
    unit_densities,
)
from masksearch.masks.text import parse
from masksearch.user_code import budget_of, shape_of

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Unit = Literal["layer", "kv_head", "head"]
Allocation = tuple[int, ...]  # the level of each unit
Scores = Mapping[str, Sequence[float]]  # unit -> importance of each level, above level 0
UNITS = ("layer", "kv_head", "head")
FORMAT = "masksearch-gates-1"  # of files of trained gates


@dataclass(frozen=True)
class Units:
    """The layers, KV heads or heads of a model, and the masks that each may have.

    It can be called with an Optuna trial: it is a search space. The trial draws how many steps up
    are `raised`, evenly from none to all, and picks them by Fisher and Yates' shuffle, so every
    density occurs as often, and of one size every allocation is equally likely. (A coin for each
    of 72 heads would draw nothing but halves.) Within a budget (`budget_of`) nothing is left to
    draw but the picks: as many as it pays, those that it does not pay passed over.

    Args:
        shape: Of the model.
        levels: The masks of a unit. The first keeps fewer non-padding query-key pairs than any
            other, in every unit. The others are in any order for `strategy="allocate"`; gates and
            a space need `rising` ones. A mask that tells layers or heads apart gives each its own.
            Where only some rows of the last layer are read (`Shape.read`) and the masks do not
            rise there, that layer has no units; it keeps what the last one keeps.
        unit: `"layer"`, `"head"`, or `"kv_head"`: all query heads that share keys and values.
        kv_heads: KV heads of a layer, for `"kv_head"`: a divisor of the heads.
        costs: What each level of each unit costs, `[levels][units]`, in the place of its pairs,
            such that the sum over the units is the mask's: its share of a cache's bytes, for
            example. `density`, `least` and `quarter` then speak of that. None = its pairs.

    Raises:
        UnknownNameError: For another unit.
        ValueError: If there are fewer than two masks, or one keeps no more than the first; or the
            KV heads are not known, or divide nothing.
        EmptyRowError, HeadCountError, LayerCountError, LengthError: If a mask does not fit.

    >>> units = Units(Shape(8, 2, 2), (masks.star(), masks.full()))
    >>> units.names
    ('l0.h0', 'l0.h1', 'l1.h0', 'l1.h1')
    >>> units.mask((0, 0, 0, 1))
    per_layer([star(), per_head([star(), full()])])
    """

    shape: Shape
    levels: tuple[Mask, ...]
    unit: Unit = "head"
    kv_heads: int | None = None
    costs: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        check_name("unit", self.unit, UNITS)
        if self.unit == "kv_head" and self.kv_heads is None:
            raise ValueError(
                "unit 'kv_head' is all query heads that share keys, and the number of KV heads is "
                "not known: give kv_heads=.., or of a model without them unit='head'"
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or self.shape.heads % self.kv_heads):
            raise ValueError(
                f"kv_heads divides the heads of a layer ({self.shape.heads}), got {self.kv_heads}"
            )
        if self.costs is not None:
            object.__setattr__(self, "costs", tuple(map(tuple, self.costs)))
            if self.shape.read is not None:
                raise ValueError(
                    "costs of units are for models all of whose rows are read, such as decoders; "
                    f"got read={self.shape.read}: leave the costs out"
                )
        if len(self.levels) < 2:
            raise ValueError(
                f"a unit has two masks or more, the cheapest first; got {len(self.levels)}"
            )
        self._refuse_order([0] * self.top, "the first mask of a unit keeps less than any other")

    def _refuse_order(self, below: Sequence[int], rule: str) -> None:
        """Raises ValueError, with the rule, where one of the levels 1, 2, .. costs no more than
        the level that is to be below it."""
        costs = self._cost_table[:, : len(self.names)]
        for level, lower_one in enumerate(below, start=1):
            rises = costs[level] > costs[lower_one] * (1 + ROUNDING)
            if not bool(rises.all()):
                at = int((~rises).nonzero()[0])
                raise ValueError(
                    f"{rule}: in {self.names[at]}, {self.levels[level]} keeps "
                    f"{costs[level, at].item():.4g} of the pairs and "
                    f"{self.levels[lower_one]} {costs[lower_one, at].item():.4g}; order "
                    "them so, and drop what keeps the same"
                )

    def refuse_unordered(self) -> None:
        """Raises ValueError unless the levels are `rising`."""
        rule = "gates and spaces take masks of a unit each of which keeps more than the one before"
        self._refuse_order(range(self.top), rule)

    @cached_property
    def rising(self) -> bool:
        """Whether each level costs more than the one before, in every unit."""
        return bool((self.shares[1:] > self.shares[:-1] * (1 + ROUNDING)).all())

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the units: `"l3"`, `"l3.kv1"` or `"l3.h11"`."""
        layers = range(self.shape.layers if self.spared is None else self.shape.layers - 1)
        if self.unit == "layer":
            return tuple(f"l{layer}" for layer in layers)
        letter = "kv" if self.unit == "kv_head" else "h"
        return tuple(f"l{a}.{letter}{b}" for a in layers for b in range(self.units_per_layer))

    @cached_property
    def kept(self) -> tuple[Tensor, ...]:
        """Of each level, bool `[layers, heads, n, n]`: it in all units."""
        return tuple(lower(mask, self.shape) for mask in self.levels)

    @cached_property
    def shares(self) -> Tensor:
        """The cost of each level of each unit, as a share of the whole: float64
        `[levels, units]`, whose sum over the units is the `density` of a mask."""
        count, spared = len(self.names), 0.0
        if self.spared is not None:
            spared = float(self._cost_table[self.spared, count:].sum())
        return (self._cost_table[:, :count] + spared / count) / self._cost_table.shape[1]

    @cached_property
    def _cost_table(self) -> Tensor:
        """The cost of every level of every unit, float64 `[levels, layers * units of a layer]`:
        `costs`, or kept non-padding query-key pairs in units of the mean over units of the pairs
        that full attention keeps. A last layer without units has its columns, too; where only
        some of its rows are read, they are small."""
        for mask in self.levels:
            if not mask.needs_tokens or self.shape.tokens is None:
                keys_of_rows(mask, self.shape)  # refuses what does not fit, and empty rows
        if self.costs is not None:
            table = torch.tensor(self.costs, dtype=torch.float64)
            size = (len(self.levels), self.shape.layers * self.units_per_layer)
            if table.shape != size:
                raise ValueError(
                    f"costs are {size[0]} x {size[1]} numbers (levels, units), got "
                    f"{' x '.join(map(str, table.shape))}"
                )
            return table * size[1]
        table = _costs_of_heads(self.levels, self.shape)
        return torch.stack([self.pool(heads) / self.planes for heads in table])

    @property
    def costs_by_layer(self) -> Tensor:
        """`_cost_table` as float64 `[layers, units of a layer, levels]`; where a last layer has
        no units, all levels cost what it keeps."""
        costs = self._cost_table.clone()
        if self.spared is not None:
            costs[:, len(self.names) :] = costs[self.spared, len(self.names) :]
        return costs.T.reshape(self.shape.layers, -1, len(self.levels))

    def density(self, allocation: Sequence[int]) -> float:
        """Kept share of the non-padding query-key pairs, of all units and a layer without
        units."""
        levels = self._with_spared(allocation)
        return self._cost_table[levels, range(len(levels))].mean().item()

    def _with_spared(self, allocation: Sequence[int]) -> list[int]:
        """The level of each unit, those of a layer without units too."""
        spared = [] if self.spared is None else [self.spared] * self.units_per_layer
        return [*allocation, *spared]

    @property
    def least(self) -> float:
        """Density with all units at their lowest level."""
        return self.density([0] * len(self.names))

    @property
    def quarter(self) -> float:
        """Density a quarter of the way from there to that of all units at the top."""
        return 0.75 * self.least + 0.25 * self.density([self.top] * len(self.names))

    def refuse_less(self, density: float) -> None:
        """Raises ValueError if no allocation is as sparse."""
        if density < self.least * (1 - ROUNDING):
            raise ValueError(
                f"with every unit at its lowest mask, {self.levels[0]}, the density is "
                f"{self.least:.4g}, asked for {density:.4g}; ask for more, or give a narrower one"
            )

    @cached_property
    def spared(self) -> int | None:
        """The level of a last layer without units: the lowest that keeps all; None = it has
        units."""
        last = self._cost_table[:, -self.units_per_layer :]
        if self.shape.read is None or self.shape.layers == 1 or bool((last.diff(dim=0) > 0).all()):
            return None
        return int((last == last[-1]).all(1).int().argmax())

    @property
    def planes(self) -> int:
        """Heads of a unit."""
        return self.shape.heads // self.units_per_layer

    @property
    def units_per_layer(self) -> int:
        """Units of a layer."""
        if self.unit == "layer":
            return 1
        return self.shape.heads if self.unit == "head" else self.kv_heads or 1

    @property
    def top(self) -> int:
        """The highest level."""
        return len(self.levels) - 1

    def pool(self, table: Tensor) -> Tensor:
        """Sums over the heads of each unit: `[layers, heads]` -> `[units]`."""
        return table.view(len(table), self.units_per_layer, -1).sum(-1).flatten()

    def mask(self, allocation: Sequence[int]) -> Mask:
        """The mask in which each unit has its level."""
        levels = [self.levels[level] for level in self._with_spared(allocation)]
        if self.unit != "layer":
            return join_heads([each for each in levels for _ in range(self.planes)], self.shape)
        return _join_layers([each.of_layer(layer) for layer, each in enumerate(levels)])

    def params(self, allocation: Sequence[int]) -> dict[str, int]:
        """The units above level 0, each with its level."""
        return {name: at for name, at in zip(self.names, allocation, strict=True) if at}

    def allocation(self, params: Mapping[str, Any]) -> Allocation:
        """Inverse of `params`."""
        return tuple(int(params.get(name, 0)) for name in self.names)

    def __call__(self, trial: BaseTrial) -> Mask:
        """Draws an allocation; ValueError unless the levels are `rising`."""
        self.refuse_unordered()
        steps = len(self.names) * self.top  # a unit stands in as many places as it can rise
        order = list(range(steps))
        levels, budget = [0] * len(self.names), budget_of(trial)
        room = math.inf if budget is None else budget * (1 + ROUNDING) - self.least
        rises = [[*unit, math.inf] for unit in self.shares.diff(dim=0).T.tolist()]
        for turn in range(trial.suggest_int("raised", 0, steps) if budget is None else steps):
            if room < min(unit[at] for unit, at in zip(rises, levels, strict=True)):
                break
            picked = trial.suggest_int(f"pick{turn}", turn, steps - 1)
            order[turn], order[picked] = order[picked], order[turn]
            unit = order[turn] % len(self.names)
            if (rise := rises[unit][levels[unit]]) <= room:
                room -= rise
                levels[unit] += 1
        return self.mask(levels)

    @property
    def masksearch_source(self) -> str:
        """The source that must not change between two searches on one run folder."""
        unit = self.unit if self.unit != "kv_head" else f"{self.unit} of {self.kv_heads}"
        costs = [] if self.costs is None else [str(self.costs)]
        return " ".join([unit, str(self.shape), *(m.digest for m in self.levels), *costs])

    def scores_of(self, table: Tensor) -> dict[str, list[float]]:
        """The importance of each unit by a value of every pair: the sum over the pairs that a
        level keeps and level 0 does not.

        Args:
            table: float `[layers, heads, n, n]`: an importance, mean attention weights,
                probabilities of gates; heads may be 1 for layers as units.

        Returns:
            Unit -> a number for each level, 0 for level 0; `method=` of `strategy="allocate"`.

        Raises:
            ValueError: If the table has another shape.
        """
        layers, heads, length = self.shape.layers, self.shape.heads, self.shape.length
        counts = {1, heads} if self.unit == "layer" else {heads}
        fits = table.dim() == 4 and (len(table), *table.shape[2:]) == (layers, length, length)
        if not fits or table.shape[1] not in counts:
            raise ValueError(
                f"scores of {self.unit}s come from a table of {layers} x {heads} x {length} x "
                f"{length} values, got {' x '.join(map(str, table.shape))}; measure each "
                f"{self.unit} apart"
            )
        added = [(table.double() * (kept & ~self.kept[0])).sum((-2, -1)) for kept in self.kept]
        by_level = torch.stack([self.pool(each) for each in added], 1)[: len(self.names)]
        return dict(zip(self.names, by_level.tolist(), strict=True))

    def read_scores(self, path: str | Path) -> dict[str, list[float]]:
        """The importance of each unit by gates in a file (`DamResult.save`, an artifact of
        strategy dam): probabilities of edges as in `scores_of`, by non-padding query-key pairs; of
        switches the logarithms of a unit's probabilities, above that of level 0.

        Raises:
            FileNotFoundError: If there is no such file.
            MaskFormatError: If it is another file.
            ValueError: If the gates are for other units, or choose among other masks.
        """
        tensors, about = read_tensors(path, what="gates", expected=FORMAT)
        probabilities, gates = tensors["probabilities"], json.loads(about["dam"])["gates"]
        if probabilities.dim() == 4:
            return self.scores_of(probabilities * pair_weights(self.shape))
        size, others = self.costs_by_layer.shape, read_levels(gates["levels"])
        if probabilities.shape != size or others != self.levels or gates["unit"] != self.unit:
            raise ValueError(
                f"these are switches of {gates['unit']}s among {', '.join(map(str, others))}, "
                f"{' x '.join(map(str, probabilities.shape))}; the units are {self.unit}s among "
                f"{', '.join(map(str, self.levels))}, {' x '.join(map(str, size))}"
            )
        importance = self.log_chances(probabilities)
        return dict(zip(self.names, (importance - importance[:, :1]).tolist(), strict=True))

    def log_chances(self, probabilities: Tensor) -> Tensor:
        """Logarithms of what switches say of each unit and level, `[units, levels]`."""
        return probabilities.double().clamp_min(1e-300).log().flatten(0, 1)[: len(self.names)]


def trim(trial: BaseTrial, *levels: Mask, shape: Shape | None = None) -> Mask:
    """Trims a mask to the budget of its draw, head by head.

    As few heads as the budget needs give up the first mask for the next, then that for the one
    after; at last for the diagonal, so that it always fits. Each layer gives up the same share of
    what it can, its last heads first. Pairs of the data are counted, not bytes of a cache.

    Args:
        trial: That the space was called with; in a search without a budget nothing is trimmed.
        levels: The mask, and what its heads may have instead, from dense to sparse.
        shape: Whose pairs are counted; None = the search's (give it where a `FixedTrial` draws).

    Raises:
        ValueError: If there is a budget and no shape.

    >>> from optuna.trial import FixedTrial
    >>> trial = FixedTrial({"budget": 0.7})
    >>> trim(trial, masks.full(), masks.window(2), shape=Shape(8, 1, 3))
    per_head([full(), window(2), window(2)])
    """
    budget, shape = budget_of(trial), shape or shape_of(trial)
    if budget is None:
        return levels[0]
    if shape is None:
        raise ValueError("a FixedTrial knows no lengths to count pairs at: give trim shape=..")
    levels = (*levels, masks.window(0))
    cost, *sparser = _costs_of_heads(levels, shape)
    most = budget * cost.numel() * (1 + ROUNDING)
    chosen = torch.zeros_like(cost, dtype=torch.int64)
    for level, less in enumerate(sparser, start=1):
        saved = (cost - less).clamp(min=0)
        heights = (saved.cumsum(1) - saved / 2) / saved.sum(1, keepdim=True)  # in its layer, to 1
        order = heights.where(saved > 0, -1).flatten().argsort(descending=True, stable=True)
        saved = saved.flatten()[order]
        moved = order[(saved > 0) & (saved.cumsum(0) - saved < cost.sum() - most)]
        chosen.view(-1)[moved] = level
        cost = cost.where(chosen < level, less)
    if not chosen.any():
        return levels[0]
    return join_heads([levels[level] for level in chosen.flatten().tolist()], shape)


def _costs_of_heads(levels: Sequence[Mask], shape: Shape) -> Tensor:
    """Kept non-padding query-key pairs, as a multiple of those that a head can keep on average:
    float64 `[levels, layers, heads]`."""
    of_whole, of_last = layer_pairs(shape)
    pairs = torch.tensor([*[of_whole] * (shape.layers - 1), of_last]).double()
    kept = [unit_densities(mask, shape) for mask in levels]
    return torch.tensor(kept, dtype=torch.float64) * (pairs / pairs.mean())[:, None]


def join_heads(levels: Sequence[Mask], shape: Shape) -> Mask:
    """The mask in which each head is as in a mask of its own, layer by layer."""
    parts = []
    for index, level in enumerate(levels):
        layer, head = divmod(index, shape.heads)
        mask = level.of_layer(layer).of_head(head)
        if mask.heads is not None:
            mask = masks.table(lower(mask, replace(shape, layers=1, read=None))[0, head])
        parts.append(mask)
    rows = (parts[at : at + shape.heads] for at in range(0, len(parts), shape.heads))
    return _join_layers([row[0] if len({*row}) == 1 else masks.per_head(row) for row in rows])


def _join_layers(layers: Sequence[Mask]) -> Mask:
    """The mask of those of all layers."""
    return layers[0] if len({*layers}) == 1 else masks.per_layer(layers)


def replaced(allocation: Allocation, unit: int, level: int) -> Allocation:
    """An allocation with another level for one unit."""
    return (*allocation[:unit], level, *allocation[unit + 1 :])


def dearer(costs: Sequence[float], level: int) -> list[int]:
    """The levels of a unit that cost more than one of them, beyond rounding."""
    return [at for at, cost in enumerate(costs) if cost > costs[level] * (1 + ROUNDING)]


def ranked_path(
    importance: Sequence[Sequence[float]], costs: Sequence[Sequence[float]]
) -> list[Allocation]:
    """From all units at level 0 to all at their dearest one, the best gain per pair first.

    Args:
        importance: Of each unit, of each level.
        costs: Of each level, of each unit; level 0 is the cheapest.

    Returns:
        Allocations, each with one unit more that is raised (along its convex hull, so that of
        several masks those are left out that gain less per pair than a mixture of two others).

    >>> ranked_path([[0.0, 1.0], [0.0, 3.0]], [[0.1, 0.1], [1.0, 1.0]])
    [(0, 0), (0, 1), (1, 1)]
    """
    moves = []
    for unit, levels in enumerate(importance):
        at, last = 0, math.inf
        unit_costs = [level[unit] for level in costs]
        while above := dearer(unit_costs, at):
            slope, at = max(
                ((levels[to] - levels[at]) / (unit_costs[to] - unit_costs[at]), to) for to in above
            )
            last = min(slope, last)  # a hull bends down; rounding must not undo that
            moves.append((-last, unit, at))
    path = [(0,) * len(importance)]
    for _, unit, level in sorted(moves):
        path.append(replaced(path[-1], unit, level))
    return path


def read_levels(levels: Sequence[Mask | str]) -> tuple[Mask, ...]:
    """Masks from masks, from texts as for `masks.parse`, or from `Mask.to_json`.

    Raises:
        MaskFormatError, UnknownNameError: If a text is no mask.
    """
    if isinstance(levels, str | Mask):
        raise MaskFormatError(
            f"levels are two masks or more, from local to full, got one: {levels!r:.80}"
        )
    read = []
    for level in levels:
        if isinstance(level, Mask):
            read.append(level)
        else:
            read.append(Mask.from_json(level) if level.lstrip().startswith("{") else parse(level))
    return tuple(read)


def write_levels(levels: Sequence[Mask]) -> list[str]:
    """The masks as texts that `read_levels` reads."""
    texts = []
    for level in levels:
        text = str(level)
        try:
            same = parse(text) == level
        except MaskFormatError:  # a table, of which the text shows a part
            same = False
        texts.append(text if same else level.to_json())
    return texts


def attend_switched(call: AttentionCall, gate: Tensor, tables: Tensor) -> Tensor:
    """One layer's attention under switches.

    Args:
        call: The layer's.
        gate: float `[units, levels]`: one-hot, or shares of the levels that mix their outputs.
        tables: bool `[levels, heads | 1, queries, keys]`.

    Returns:
        `[batch, heads, queries, head_dim]`.
    """
    units, levels = gate.shape
    heads = call.query.shape[1]
    members = heads // units

    def output(level: Tensor) -> Tensor:
        """Attention where each unit has its level, int64 `[units]`."""
        if units == 1:
            kept = tables[level[0]]
        else:
            each = level.repeat_interleave(members)
            kept = tables.expand(-1, heads, -1, -1)[each, torch.arange(heads, device=each.device)]
        seen = kept[None] if call.visible is None else call.visible & kept
        return replace(call, visible=seen).attend()

    def over_heads(share: Tensor) -> Tensor:
        """A value for each unit, as a factor on outputs."""
        return share.repeat_interleave(members)[:, None, None].to(call.value.dtype)

    values = gate.detach()
    chosen = values.argmax(-1)
    if not torch.equal(values, F.one_hot(chosen, levels).to(values)):
        every = torch.arange(levels, device=gate.device)[:, None].expand(-1, units)
        mixed = [output(every[o]) * over_heads(gate[:, o]) for o in range(levels)]
        return torch.stack(mixed).sum(0)
    drawn = result = output(chosen)
    if not (gate.requires_grad and torch.is_grad_enabled()):
        return drawn
    for further in range(1, levels):
        other = (chosen + further) % levels
        with torch.no_grad():
            difference = output(other) - drawn
        share = gate.gather(-1, other[:, None])[:, 0]
        result = result + over_heads(share - share.detach()) * difference  # adds 0
    return result


# -- from probabilities to masks -----------------------------------------------------------------
def cut_switches(units: Units, probabilities: Tensor, density: float) -> Allocation:
    """The units' levels as the probabilities say, as dense as a budget allows.

    Units rise in the order of log p per share of pairs, along their convex hulls: at every cost
    that is reached this is the likeliest allocation of that cost. Sparser ones are below denser
    ones in every unit.

    Args:
        units: With their levels, from local to full.
        probabilities: float `[layers, units, levels]`.
        density: Mean cost of a unit, in (0, 1].

    Returns:
        The level of each unit.

    Raises:
        ValueError: If all units at their lowest level cost more.
    """
    path = ranked_path(units.log_chances(probabilities).tolist(), units.shares.tolist())
    units.refuse_less(density)
    return [step for step in path if units.density(step) <= density * (1 + ROUNDING)][-1]


def as_shares(units: Units, allocation: Allocation, shape: torch.Size) -> Tensor:
    """An allocation as one-hot shares, float `[layers, units, levels]`."""
    missing = shape[:2].numel() - len(allocation)
    levels = torch.tensor([*allocation, *[units.spared or 0] * missing])
    return F.one_hot(levels, shape[-1]).float().view(shape)
