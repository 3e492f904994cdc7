"""Trainable gates: what a differentiable attention mask is made of.

gates = Gates("toeplitz+global", length=128, heads=4, layers=2, signed=True)
attach(model, gates)              # or masksearch.dam(model, batches, gates)
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.contracts import generator
from masksearch.errors import HeadCountError, LayerCountError, LengthError, unknown_name
from masksearch.gates.forms import FORMS

Structure = Literal["free", "symmetric", "toeplitz", "toeplitz+global", "block"]


class Gates(nn.Module):
    """A gate on every attention edge, open with probability sigmoid(logit).

    An edge shares its gate with others according to the structure. With `"toeplitz+global"` an
    edge has up to three gates (its offset's, its row's, its column's) and is open where any of
    them is. Gates are sampled once per forward pass of the whole model (Gumbel-sigmoid), from a
    generator of their own; in eval mode, or with `deterministic` set, they are not sampled but
    rounded (`hard`) or replaced by their probability. With `enabled` off, attention is dense.

    Args:
        structure: `"free"`: one gate an edge; `"symmetric"`: (i, j) and (j, i) share one;
            `"toeplitz"`: one per distance |i - j|; `"toeplitz+global"`: also one for each of the
            first `global_count` rows and columns; `"block"`: one per `block` x `block` tile.
        length: Longest sequence, in positions.
        heads: Heads of a layer; 1 = all heads share the gates.
        layers: Layers; 1 = all layers share the gates.
        signed: Toeplitz gates by j - i instead of |i - j|.
        form: How a gate acts and what it learns: `"flip"`, `"log"`, `"product"`, `"additive"`.
        hard: Sample 0 or 1 with a straight-through gradient, else values in between.
        temperature: Of the Gumbel-sigmoid, above 0; lower is closer to 0 or 1.
        initial: First value of every logit (2.0: open with probability 0.88).
        global_count: Rows and columns with a gate of their own, for `"toeplitz+global"`.
        block: Edge of a tile in positions, for `"block"`.
        seed: Seed of the sampling noise.

    Attributes:
        logits: float `[layers, heads, gates]`; the last axis is the structure's own.
        enabled: False = plain dense attention (a warm-up).
        deterministic: True = no sampling noise, in training mode too.

    Raises:
        UnknownNameError: For an unknown structure or form.
        ValueError: For a size below 1, a temperature not above 0, `signed` without Toeplitz
            gates, `global_count` or `block` beyond the length, or `flip` without `hard`.

    Reference: SparseBERT, arXiv 2102.12871 (DAM); its DAM_u is `"symmetric"`, DAM_s `"toeplitz"`.
    """

    position: Tensor  # int64 [length * length], the gate of each edge, in reading order

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
        block: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if structure not in get_args(Structure):
            raise unknown_name("gate structure", structure, get_args(Structure))
        if form not in FORMS:
            raise unknown_name("gate form", form, FORMS)
        for name, value in (("length", length), ("heads", heads), ("layers", layers)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if signed and not structure.startswith("toeplitz"):
            raise ValueError(
                f"signed offsets need Toeplitz gates, got structure {structure!r}; "
                "use 'toeplitz' or 'toeplitz+global'"
            )
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if form == "flip" and not hard:
            raise ValueError(
                "form 'flip' computes with 0/1 gates, got hard=False; "
                "use form='log' for soft gates"
            )
        if structure == "toeplitz+global" and not 1 <= global_count <= length:
            raise ValueError(
                f"global_count must lie in 1..length = 1..{length}, got {global_count}; "
                "without global gates use structure='toeplitz'"
            )
        if structure == "block" and not 1 <= block <= length:
            raise ValueError(f"block must lie in 1..length = 1..{length}, got {block}")
        self.structure, self.signed, self.form, self.hard = structure, signed, form, hard
        self.length, self.heads, self.layers = length, heads, layers
        self.temperature, self.initial, self.seed = temperature, initial, seed
        self.global_count, self.block = global_count, block
        self.enabled = True
        self.deterministic = False

        query = torch.arange(length)[:, None]
        key = torch.arange(length)[None, :]
        if structure == "free":
            position = query * length + key
        elif structure == "symmetric":
            low, high = torch.minimum(query, key), torch.maximum(query, key)
            position = high * (high + 1) // 2 + low
        elif structure == "block":
            position = query // block * math.ceil(length / block) + key // block
        elif signed:
            position = key - query + length - 1
        else:
            position = (key - query).abs()
        self.register_buffer("position", position.flatten(), persistent=False)
        self.extra_rows = global_count if structure == "toeplitz+global" else 0
        count = int(position.max()) + 1 + 2 * self.extra_rows
        self.logits = nn.Parameter(torch.full((layers, heads, count), float(initial)))
        self.generators: dict[torch.device, torch.Generator] = {}
        self.drawn: Tensor | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, as plain data."""
        names = (
            *("structure", "length", "heads", "layers", "signed", "form", "hard"),
            *("temperature", "initial", "global_count", "block", "seed"),
        )
        return {name: getattr(self, name) for name in names}

    def table(self, values: Tensor) -> Tensor:
        """Expands one value in [0, 1] per gate to one per edge; an edge's gates combine by or.

        Args:
            values: float `[layers, heads, gates]`.

        Returns:
            float `[layers, heads, length, length]`.
        """
        shape = (self.layers, self.heads, self.length, self.length)
        count = self.extra_rows
        if self.structure == "free":
            return values.view(shape)
        own = values[..., : values.shape[-1] - 2 * count]
        edges = own.flatten(0, 1).index_select(1, self.position).view(shape)
        if count:
            rest = self.length - count
            row = F.pad(values[..., -2 * count : -count], (0, rest))[..., :, None]
            column = F.pad(values[..., -count:], (0, rest))[..., None, :]
            edges = edges + row - edges * row
            edges = edges + column - edges * column
        return edges

    def draw(self) -> None:
        """Samples every gate once; the next calls of `attend` use this sample."""
        if not self.enabled:
            self.drawn = None
            return
        logits = self.logits.float()
        if self.training and not self.deterministic:
            uniform = torch.rand(
                logits.shape, generator=self.noise(logits.device), device=logits.device
            ).clamp_(1e-6, 1 - 1e-6)
            logits = (logits + uniform.logit()) / self.temperature
        soft = logits.sigmoid()
        if self.hard:
            soft = (soft.detach() > 0.5).float() + (soft - soft.detach())
        self.drawn = self.table(soft)

    def noise(self, device: torch.device) -> torch.Generator:
        """The generator of the sampling noise on that device."""
        if device not in self.generators:
            seed = generator(self.seed, 0x6A7E).initial_seed()
            self.generators[device] = torch.Generator(device).manual_seed(seed)
        return self.generators[device]

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Tensor | None,
        *,
        dropout: float,
        scaling: float,
    ) -> Tensor:
        """One layer's attention under the drawn gates; see `contracts.GateBank.attend`.

        Sequences shorter than `length` use its first positions; fewer queries than keys are the
        last ones (decoding with a cache).

        Raises:
            LengthError: If there are more than `length` keys.
            HeadCountError: If the query's heads are not the gates' (and the gates not shared).
            LayerCountError: If the layer is beyond the gates' (and the gates not shared).
            RuntimeError: If nothing has been drawn.
        """
        if not self.enabled:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=visible, dropout_p=dropout, scale=scaling
            )
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
        if self.heads not in (1, query.shape[1]):
            raise HeadCountError(
                f"these gates have {self.heads} heads, the attention {query.shape[1]}; "
                "build them with the model's number of heads, or heads=1 to share them"
            )
        queries, keys = query.shape[-2], key.shape[-2]
        if keys > self.length or queries > keys:
            raise LengthError(
                f"these gates hold {self.length} positions, got {queries} queries and {keys} keys"
                "; build them with the longest sequence's length"
            )
        gate = self.drawn[0 if self.layers == 1 else layer]
        if queries < self.length:
            gate = gate[:, keys - queries : keys, :keys]
        return FORMS[self.form](query, key, value, visible, gate, dropout=dropout, scaling=scaling)

    def probabilities(self) -> Tensor:
        """Chance of each edge: float `[layers, heads, length, length]`, differentiable."""
        return self.table(self.logits.float().sigmoid())

    def density(self) -> Tensor:
        """Mean probability over the table of all edges: float `[layers, heads]`, differentiable.

        A gate costs what it covers: a Toeplitz gate counts once for each of its edges.
        """
        return self.probabilities().mean((-2, -1))

    def extra_repr(self) -> str:
        """What `repr` shows."""
        sign = ", signed" if self.signed else ""
        return (
            f"{self.structure}{sign}, length={self.length}, heads={self.heads}, "
            f"layers={self.layers}, form={self.form}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the sample at hand (part of a graph); generators as their states."""
        states = {device: source.get_state() for device, source in self.generators.items()}
        return {**self.__dict__, "drawn": None, "generators": states}

    def __setstate__(self, state: dict[str, Any]) -> None:
        states = state.pop("generators")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.generators = {}
        for device, stored in states.items():
            self.generators[device] = torch.Generator(device)
            self.generators[device].set_state(stored)
