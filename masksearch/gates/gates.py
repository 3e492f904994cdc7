"""Trainable gates: what a differentiable attention mask is made of.

gates = Gates("toeplitz+global", length=128, heads=4, layers=2, signed=True)
attach(model, gates)              # or masksearch.dam(model, batches, gates)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.attention.call import AttentionCall
from masksearch.attention.kernels.choose import grain_on
from masksearch.contracts import Shape, generator
from masksearch.errors import HeadCountError, LayerCountError, LengthError, check_name
from masksearch.gates.discretise import EDGE, least_density, mean_of_edges, weights_of
from masksearch.gates.estimators import FORMS, form_named
from masksearch.gates.tiles import flip_tiles
from masksearch.gates.units import Unit, Units, attend_switched, read_levels, write_levels
from masksearch.masks.core import Mask
from masksearch.masks.lower import Block, under_causality

Structure = Literal["free", "symmetric", "toeplitz", "toeplitz+global", "block", "switch"]
Lengths = Mapping[int, int] | Sequence[tuple[int, int]]


class Gates(nn.Module):
    """A gate on every attention edge, open with probability sigmoid(logit).

    An edge shares its gate with others according to the structure. With `"toeplitz+global"` an
    edge has up to three gates (its offset's, its row's, its column's) and is open where any of
    them is. Gates are sampled once per forward pass of the whole model (Gumbel-sigmoid), from a
    generator of their own; in eval mode, or with `deterministic` set, they are not sampled but
    rounded (`hard`) or replaced by their probability. With `enabled` off, attention is dense.

    With `"switch"` no edge has a gate: each layer or head chooses one of several masks, one logit
    an option (softmax), from the local one to the full one. What is computed is what the drawn
    masks will compute, and an option's gate learns from `<dL/dy, y_option - y>`, exact to first
    order (see `masksearch.gates.units`).

    Args:
        structure: `"free"`: one gate an edge; `"symmetric"`: (i, j) and (j, i) share one;
            `"toeplitz"`: one per distance |i - j|; `"toeplitz+global"`: also one for each of the
            first `global_count` rows and columns; `"block"`: one per tile of `block`;
            `"switch"`: one for each of the `levels` of each `unit`.
        length: Longest sequence, in positions.
        heads: Heads of a layer; 1 = all heads share the gates.
        layers: Layers; 1 = all layers share the gates.
        signed: Toeplitz gates by j - i instead of |i - j|.
        form: How a gate acts and what it learns: `"flip"`, `"log"`, `"additive"`, or your own
            function as `"file.py:name"` (docs/write_your_own.md).
        hard: Sample 0 or 1 with a straight-through gradient, else values in between.
        temperature: Of the sample, above 0; lower is closer to 0 or 1.
        initial: First value of every logit (2.0: open with probability 0.88); of a switch, that
            of its last option, the others having 0.
        global_count: Rows and columns with a gate of their own, for `"toeplitz+global"`.
        block: Of `"block"`: queries and keys of a tile, in positions, such as `(64, 16)`, one a
            multiple of the other; a number is a square. None = what the sparse kernel of this
            machine leaves out: 64 x 16 on a CPU, 128 x 128 where there is a CUDA device. Under
            tiles the flip form holds no table of all pairs (`masksearch.gates.tiles`).
        seed: Seed of the sampling noise.
        causal: Whether the model is a decoder: later keys then count for no density.
        lengths: How many sequences of the data have how many tokens (tokens -> count): density
            is then counted over the pairs that tokens form. None = no padding.
        read: Leading rows of the last of `layers` that reach the model's output (see `Shape`):
            the others' gates count for no density, and learn nothing. None = all; also for gates
            that layers share, as other layers need these rows.
        levels: Of `"switch"`: two masks or more, or their texts, from the local one to the full
            one, as of `Units`; a decoder's causality is added.
        unit: Of `"switch"`: what chooses, as of `Units`.
        kv_heads: Of `"switch"` of `"kv_head"`: KV heads of a layer.
        costs: Of `"switch"`: what each level of each unit costs, as of `Units`; None = its pairs.
            Densities then are shares of these costs.

    Attributes:
        weights: float `[n, n]`, or with `read` `[layers, 1, n, n]`: how much of the density each
            edge has; None where all count alike.
        shares: float `[layers, 1]`, what the density of a layer weighs in that of all, mean 1;
            None where layers count alike.
        logits: float `[layers, heads, gates]`; the last axis is the structure's own. Of a switch
            `[layers, units of a layer, levels]`.
        units: The layers or heads of a switch, and their options; None = edges have gates.
        block: Queries and keys of the tiles whose edges share a gate; (1, 1) of other structures.
        enabled: False = plain dense attention (a warm-up).
        alone: True = every query sees itself alone: no attention, as if all gates were closed.
        cooling: Factor on the temperature, set by a run that anneals it.
        drawn: The sample at hand, float `[layers, heads, length, length]`, or None; of tiles
            `[layers, heads, gates]`, of a switch `[layers, units of a layer, levels]`.
        fixed: Used as it is instead of a sample while it is not None; the same shape, or tiles in
            rows and columns.
        deterministic: True = no sampling noise, in training mode too.

    Raises:
        UnknownNameError: For an unknown structure or form.
        ValueError: For a size below 1, a temperature not above 0, `signed` without Toeplitz
            gates, `global_count`, `block` or `read` beyond the length, sides of a `block` that
            are no multiples, `flip` or hard gates where the other arguments make soft ones,
            levels without a switch or the reverse.

    Reference: SparseBERT, arXiv 2102.12871 (DAM); its DAM_u is `"symmetric"`, DAM_s `"toeplitz"`.
    """

    position: Tensor  # int64 [length * length], the gate of each edge, in reading order
    coverage: Tensor  # float [gates] or [layers, 1, gates], part of a layer's density it covers
    tables: Tensor  # of a switch: bool [levels, layers | 1, heads | 1, length, length]
    weights: Tensor | None
    shares: Tensor | None

    def __init__(
        self,
        structure: Structure = "free",
        *,
        length: int,
        heads: int,
        layers: int = 1,
        signed: bool = False,
        form: str = "flip",
        hard: bool = True,
        temperature: float = 1.0,
        initial: float = 2.0,
        global_count: int = 4,
        block: int | Sequence[int] | None = None,
        seed: int = 0,
        causal: bool = False,
        lengths: Lengths | None = None,
        read: int | None = None,
        levels: Sequence[Mask | str] | None = None,
        unit: Unit = "layer",
        kv_heads: int | None = None,
        costs: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        check_name("gate structure", structure, get_args(Structure))
        self.own_form = form_named(form)  # as its file has it now
        self.shape = Shape(
            length, layers, heads, causal, None if lengths is None else dict(lengths), read
        )
        self.structure, self.signed, self.form, self.hard = structure, signed, form, hard
        self.length, self.heads, self.layers = length, heads, layers
        self.temperature, self.cooling, self.seed = temperature, 1.0, seed
        self.initial = initial
        self.global_count = global_count
        self.block = _read_block(block, length) if structure == "block" else EDGE
        self.refuse_arguments(levels)
        self.enabled = True
        self.alone = False
        self.deterministic = False
        self.units: Units | None = None
        self.extra_rows = global_count if structure == "toeplitz+global" else 0
        if levels is None:
            buffers, first = self.lay_out_edges()
        else:
            self.units = Units(self.shape, read_levels(levels), unit, kv_heads, costs)
            self.units.refuse_unordered()
            buffers, first = self.lay_out_switches(self.units)
        for buffer, value in buffers.items():
            single = value.float() if value is not None and value.is_floating_point() else value
            self.register_buffer(buffer, single, persistent=False)
        self.logits = nn.Parameter(first)
        self.generators: dict[torch.device, torch.Generator] = {}
        self.drawn: Tensor | None = None
        self.fixed: Tensor | None = None

    def refuse_arguments(self, levels: Sequence[Mask | str] | None) -> None:
        """Raises ValueError for arguments out of range, or that do not go together."""
        structure, form, length = self.structure, self.form, self.length
        global_count, temperature = self.global_count, self.temperature
        switch = structure == "switch"
        refusals = (
            (
                switch != (levels is not None),
                "levels are the masks that the units of structure='switch' choose among, got "
                f"structure={structure!r} and levels={levels!r:.80}; give both or neither",
            ),
            (
                switch and form != "flip",
                f"a switch has no form of its own, got form={form!r}; leave it out",
            ),
            (
                self.signed and not structure.startswith("toeplitz"),
                f"signed offsets need Toeplitz gates, got structure {structure!r}; "
                "use 'toeplitz' or 'toeplitz+global'",
            ),
            (not temperature > 0, f"temperature must be above 0, got {temperature}"),
            (
                form == "flip" and not self.hard and not switch,
                "form 'flip' computes with 0/1 gates, got hard=False; "
                "use form='log' for soft gates",
            ),
            (
                structure == "toeplitz+global" and not 1 <= global_count <= length,
                f"global_count must lie in 1..length = 1..{length}, got {global_count}; "
                "without global gates use structure='toeplitz'",
            ),
        )
        for refused, why in refusals:
            if refused:
                raise ValueError(why)

    def lay_out_edges(self) -> tuple[dict[str, Tensor | None], Tensor]:
        """The buffers of gates on edges, and their first logits."""
        length, layers = self.length, self.layers
        query = torch.arange(length)[:, None]
        key = torch.arange(length)[None, :]
        if self.structure == "free":
            position = query * length + key
        elif self.structure == "symmetric":
            low, high = torch.minimum(query, key), torch.maximum(query, key)
            position = high * (high + 1) // 2 + low
        elif self.structure == "block":
            queries, keys = self.block
            position = query // queries * -(-length // keys) + key // keys
        elif self.signed:
            position = key - query + length - 1
        else:
            position = (key - query).abs()
        self.register_buffer("position", position.flatten(), persistent=False)
        weights = weights_of(self.shape)
        self.least_density = least_density(length, weights, self.block)
        shares = None
        if weights is None:
            covered = self.position.bincount() / length**2
            coverage = torch.cat([covered, torch.full((2 * self.extra_rows,), 1 / length)])
        elif weights.ndim == 2:
            weights = weights / weights.sum()
            coverage = self.covered(weights)
        else:
            shares = weights.sum((-2, -1)) / weights.sum() * layers
            even = weights / weights.sum((-2, -1), keepdim=True)
            coverage = torch.stack([self.covered(layer) for layer in even[:, 0]])[:, None]
            weights = weights / weights.sum() * layers
        first = torch.full((layers, self.heads, coverage.shape[-1]), float(self.initial))
        return {"weights": weights, "coverage": coverage, "shares": shares}, first

    def lay_out_switches(self, units: Units) -> tuple[dict[str, Tensor | None], Tensor]:
        """The same of switches."""
        coverage = units.costs_by_layer
        self.least_density = units.least
        seen = [under_causality(mask, self.shape).dense(self.length) for mask in units.levels]
        several, heads = (max(table.shape[axis] for table in seen) for axis in (0, 1))
        tables = torch.stack([table.expand(several, heads, -1, -1) for table in seen])
        first = torch.zeros(coverage.shape)
        first[..., -1] = self.initial
        return {"weights": None, "shares": None, "coverage": coverage, "tables": tables}, first

    def covered(self, weights: Tensor) -> Tensor:
        """The share of the edges' weights, `[n, n]`, that each gate covers: float `[gates]`."""
        some = slice(self.extra_rows)
        lines = weights.sum(1)[some], weights.sum(0)[some]
        return torch.cat([self.position.bincount(weights.flatten()), *lines])

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, as plain data."""
        names = (
            *("structure", "signed", "form", "hard", "temperature", "initial"),
            *("global_count", "seed"),
        )
        settings = {name: getattr(self, name) for name in names} | self.shape.to_dict()
        if self.structure == "block":
            settings["block"] = list(self.block)
        if self.units is not None:
            settings |= {"levels": write_levels(self.units.levels), "unit": self.units.unit}
            of_units = {"kv_heads": self.units.kv_heads, "costs": self.units.costs}
            settings |= {name: value for name, value in of_units.items() if value is not None}
        return settings

    def table(self, values: Tensor) -> Tensor:
        """Expands one value in [0, 1] per gate to one per edge; an edge's gates combine by or.

        Args:
            values: float `[layers, heads, gates]`.

        Returns:
            float `[layers, heads, length, length]`.
        """
        shape = (*values.shape[:2], self.length, self.length)
        if self.structure == "free":
            return values.view(shape)
        count = self.extra_rows
        offsets = values[..., : values.shape[-1] - 2 * count].flatten(0, 1)
        edges = offsets.index_select(1, self.position.to(values.device)).view(shape)
        if count:
            rest = (0, self.length - count)
            rows = F.pad(values[..., -2 * count : -count], rest)[..., :, None]
            columns = F.pad(values[..., -count:], rest)[..., None, :]
            for line in (rows, columns):
                edges = edges + line - edges * line
        return edges

    def draw(self) -> None:
        """Samples every gate once; the next calls of `attend` use this sample."""
        if not self.enabled:
            self.drawn = None
        elif self.fixed is not None:
            self.drawn = self.fixed
        else:
            sample = self.sample()
            self.drawn = sample if self.structure in ("block", "switch") else self.table(sample)

    def sample(self) -> Tensor:
        """A value in [0, 1] for every gate, `[layers, heads, gates]`, with its gradient."""
        logits, temperature = self.logits.float(), self.temperature * self.cooling
        uniform = None
        if self.training and not self.deterministic:
            noise = self.noise_generator(logits.device)
            uniform = torch.rand(logits.shape, generator=noise, device=logits.device)
            uniform = uniform.clamp_(1e-6, 1 - 1e-6)
        if self.units is not None:
            if uniform is not None:
                logits = (logits - (-uniform.log()).log()) / temperature
            soft = logits.softmax(-1)
            hard = F.one_hot(soft.detach().argmax(-1), soft.shape[-1]).to(soft)
        else:
            if uniform is not None:
                logits = (logits + uniform.logit()) / temperature
            soft = logits.sigmoid()
            hard = (soft.detach() > 0.5).float()
        return hard + (soft - soft.detach()) if self.hard else soft

    def noise_generator(self, device: torch.device) -> torch.Generator:
        """The generator of the sampling noise on that device."""
        if device not in self.generators:
            seed = generator(self.seed, 0x6A7E).initial_seed()
            self.generators[device] = torch.Generator(device).manual_seed(seed)
        return self.generators[device]

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """One layer's attention under the drawn gates; see `GateBank.attend`.

        Sequences shorter than `length` use its first positions; fewer queries than keys are the
        last ones (decoding with a cache).

        Raises:
            LengthError: If there are more than `length` keys.
            HeadCountError: If the query's heads are not the gates' (and the gates not shared).
            LayerCountError: If the layer is beyond the gates' (and the gates not shared).
            RuntimeError: If nothing has been drawn.
        """
        queries, keys = call.query.shape[-2], call.key.shape[-2]
        if keys > self.length or queries > keys:
            raise LengthError(
                f"these gates hold {self.length} positions, got {queries} queries and {keys} keys"
                "; build them with the longest sequence's length"
            )
        if self.alone:  # a softmax over one key
            return call.value[..., keys - queries :, :]
        if not self.enabled:
            return call.attend()
        if self.drawn is None:
            raise RuntimeError(
                "gates are drawn once per forward pass, and none are; call draw() first "
                "(masksearch.attach does so for the whole model)"
            )
        if not (self.layers == 1 or 0 <= layer < self.layers):
            raise LayerCountError(
                f"these gates have {self.layers} layers, asked for layer {layer}; "
                "build them with the model's number of layers, or layers=1 to share them"
            )
        if self.heads not in (1, call.query.shape[1]):
            raise HeadCountError(
                f"these gates have {self.heads} heads, the attention {call.query.shape[1]}; "
                "build them with the model's number of heads, or heads=1 to share them"
            )
        index = 0 if self.layers == 1 else layer
        rows, columns = slice(keys - queries, keys), slice(keys)
        if self.units is not None:
            tables = self.tables[:, index if self.tables.shape[1] > 1 else 0]
            gate = self.drawn[index]
            if self.units.spared is not None and index == self.layers - 1:
                gate = F.one_hot(torch.tensor([self.units.spared]), gate.shape[-1]).to(gate)
            return attend_switched(call, gate, tables[..., rows, columns])
        gate = self.drawn[index]
        if self.structure == "block":
            gate = gate.flatten(1)
            if self.form == "flip" and queries == keys and not call.dropout and call.sinks is None:
                tiles = gate.view(len(gate), -1, -(-self.length // self.block[1]))
                return flip_tiles(call, tiles, self.block)
            gate = self.table(gate[None])[0]
        if queries < self.length:
            gate = gate[:, rows, columns]
        return self.compute(call, gate)

    def compute(self, call: AttentionCall, gate: Tensor) -> Tensor:
        """One attention call under a gate `[heads | 1, queries, keys]`, by this form."""
        return FORMS.get(self.form, self.own_form)(call, gate)

    def open_chance(self, logits: Tensor) -> Tensor:
        """Chance that a gate with that logit is open, at the uncooled temperature."""
        return logits.sigmoid()

    def probabilities(self) -> Tensor:
        """Chance of each edge: float `[layers, heads, length, length]`, differentiable; of a
        switch that of each level, `[layers, units of a layer, levels]`."""
        if self.units is not None:
            return self.logits.float().softmax(-1)
        return self.table(self.open_chance(self.logits.float()))

    def entropy(self) -> Tensor:
        """Mean entropy of what is not yet decided, an edge or a unit's option, in bits."""
        if self.units is not None:
            p = self.probabilities().detach()
            p = p.flatten(0, 1)[: len(self.units.names)].clamp_min(1e-30)
            return -(p * p.log2()).sum(-1).mean()
        p = self.open_chance(self.logits.detach().float())
        p = (self.table(p) if self.extra_rows else p).clamp(1e-7, 1 - 1e-7)
        bits = -(p * p.log2() + (1 - p) * (1 - p).log2())
        if self.extra_rows:
            return mean_of_edges(bits, self.weights)
        bits = (bits * self.coverage).sum(-1)
        return (bits if self.shares is None else bits * self.shares).mean()

    def density(self) -> Tensor:
        """Mean probability of an edge: float `[layers, heads]`, differentiable.

        The mean is over the pairs that count: those that real tokens form and whose row is read;
        over the whole table where all count. A gate costs what it covers: a Toeplitz gate counts
        once for each of its edges.
        """
        logits = self.logits.float()
        if self.units is not None:
            return (logits.softmax(-1) * self.coverage).sum(-1)
        open_chance = self.open_chance(logits)
        if not self.extra_rows:  # every edge has one gate
            return (open_chance * self.coverage).sum(-1)
        table = self.table(open_chance)
        if self.weights is None:
            return table.mean((-2, -1))
        kept = (table * self.weights).sum((-2, -1))
        return kept if self.shares is None else kept / self.shares

    def whole_density(self) -> Tensor:
        """Mean probability of an edge of all layers and heads, where a layer weighs by its pairs:
        a float scalar, differentiable."""
        density = self.density()
        return (density if self.shares is None else density * self.shares).mean()

    def extra_repr(self) -> str:
        """The text that `repr` shows."""
        sign = ", signed" if self.signed else ""
        if self.units is not None:
            sign = f" of {len(self.units.levels)} masks per {self.units.unit}"
        return (
            f"{self.structure}{sign}, length={self.length}, heads={self.heads}, "
            f"layers={self.layers}, form={self.form}"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Gates:
        """Moves with the model, but stays fp32: bf16 cannot hold small steps of a logit."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for tensor in (self.logits, self.coverage, self.weights, self.shares):
            if tensor is not None:
                tensor.data = tensor.data.float()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the sample at hand, which is part of a graph."""
        return {**self.__dict__, "drawn": None}


def _read_block(block: int | Sequence[int] | None, length: int) -> Block:
    """Queries and keys of a tile; None = the grain of this machine's kernel.

    Raises:
        ValueError: If they are no two whole numbers, out of range, or no multiples.
    """
    if block is None:
        block = grain_on("cuda" if torch.cuda.is_available() else "cpu")
    sides = tuple(block) if isinstance(block, Sequence) else (block, block)
    whole = len(sides) == 2 and all(type(side) is int for side in sides)
    if not whole or not 1 <= min(sides) <= length or max(sides) % min(sides):
        raise ValueError(
            "block is a number of positions, or the queries and keys of a tile, such as (64, 16): "
            "one a multiple of the other, the finer one must lie in 1..length = "
            f"1..{length}; got {block!r}"
        )
    return sides[0], sides[1]
