"""Masks that follow the tokens, on a model: resolved from the input ids of each forward pass."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.attention.probe import Part, Probe, names_of
from masksearch.errors import AttachError, EmptyRowError
from masksearch.masks.core import Mask
from masksearch.masks.lower import refuse_longer

NO_TOKEN = -1  # stands where an input is shorter than a table


class TokenMask:
    """The table of one layer's mask that follows the tokens, in the running forward pass.

    Each thread has its own. Gradient checkpoints compute again in the backward pass, when
    another forward pass may have come between: they find their own table by the model's mask.

    Args:
        mask: The mask of one layer.
        causal: Whether the model hides later keys from it.
        where: Part and layer, for errors.
    """

    def __init__(self, mask: Mask, causal: bool, where: str) -> None:
        self.mask, self.causal, self.where = mask, causal, where
        self.latest: Tensor | None = None  # of any thread
        self.own = threading.local()

    @property
    def table(self) -> Tensor | None:
        """bool `[batch, heads | 1, n, n]` of the running pass; None before the first."""
        if torch.compiler.is_compiling():
            return self.latest
        table: Tensor | None = getattr(self.own, "table", self.latest)
        return table

    def resolve(self, tokens: Tensor) -> None:
        """Resolves the mask from `input_ids`, int64 `[batch, n]`.

        Raises:
            EmptyRowError: If a query keeps no key, by itself or because the model is causal.
        """
        self.latest = self.own.table = None
        count, longest = tokens.shape[1], self.mask.length or 0
        if longest:
            refuse_longer(self.mask, count, self.where)
        table = self.mask.table(F.pad(tokens, (0, max(0, longest - count)), value=NO_TOKEN))
        if self.causal and (empty := ~table.tril().any(-1)).any():
            example, head, row = (int(index) for index in empty.nonzero()[0])
            raise EmptyRowError(
                f"{self.where}, example {example}, head {head}, row {row} keeps only later "
                "keys, and the model is causal: causality hides every one of them; add for "
                "example masks.window(0), the diagonal"
            )
        self.latest = self.own.table = table[..., :count, :count]

    def kept(self, batch: int, queries: int, keys: int, visible: Tensor | None) -> Tensor:
        """The cells of one attention call, bool `[batch, heads | 1, queries, keys]`.

        Args:
            batch: Examples.
            queries: Number of queries.
            keys: Number of keys.
            visible: The model's mask, as the call was given it.

        Raises:
            AttachError: If the call is not over the sequences that were resolved.
        """
        table = self.table
        if visible is not None and not torch.compiler.is_compiling():
            table = getattr(visible.untyped_storage(), TABLES, {}).get(self, table)
        if table is None:
            raise AttachError(
                f"{self.where}: {self.mask} has not been resolved; call the model, not a layer "
                "inside it"
            )
        length = table.shape[-1]
        if (batch, queries, keys) != (len(table), length, length):
            raise AttachError(
                f"{self.where}: {self.mask} was resolved from {len(table)} sequences of {length} "
                f"tokens, and attention has {batch} of {queries} queries and {keys} keys; a mask "
                "that follows the tokens needs all of them in every pass: generate with "
                "use_cache=False"
            )
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {"mask": self.mask, "causal": self.causal, "where": self.where}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


TABLES = "masksearch_tables"  # where the memory of a model's mask carries the tables of its pass


def carry(visible: Tensor, several: Iterable[TokenMask]) -> Tensor:
    """The model's mask, whose memory carries the tables of the pass that it was made for.

    Gradient checkpoints keep that memory, even where they detach the mask.

    Args:
        visible: The mask, made for this pass alone.
        several: The model's masks that follow the tokens.
    """
    tables = {each: each.table for each in several if each.table is not None}
    setattr(visible.untyped_storage(), TABLES, tables)
    return visible


def receiver(model: nn.Module, part: Part) -> nn.Module:
    """The innermost module around a part's layers that is called with `input_ids`.

    Raises:
        AttachError: If there is none, or the part is cross-attention.
    """
    title = type(model).__name__
    if part.cross:
        raise AttachError(
            "a mask that follows the tokens is resolved from one sequence, and cross-attention "
            f"of {title} has two; attach it to the encoder or the decoder"
        )
    needed = {call.module for call in part.calls}
    names = names_of(model)
    modules = [
        module
        for module in model.modules()
        if "input_ids" in inspect.signature(module.forward).parameters
        and needed <= set(module.modules())
    ]
    if not modules:
        raise AttachError(
            f"a mask that follows the tokens is resolved from input_ids, and {title} takes none "
            "for these layers; attach a mask of positions, such as masks.global_tokens(1)"
        )
    return max(modules, key=lambda module: len(names[module]))


@torch.compiler.disable  # type: ignore[untyped-decorator]  # what it keeps depends on the data
def resolve_tokens(
    several: list[TokenMask], module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Pre-forward hook of the receiver.

    Raises:
        AttachError: If it is called without input ids, or while the model is exported or traced.
    """
    if Probe.calls is not None:
        return
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        raise AttachError(
            f"{several[0].where}: {several[0].mask} is another table in each batch, which an "
            "exported or traced program cannot hold; attach a mask of positions before, such as "
            "masks.global_tokens(1)"
        )
    tokens = named.get("input_ids")
    if tokens is None:
        parameters = list(inspect.signature(module.forward).parameters)
        tokens = dict(zip(parameters, positional, strict=False)).get("input_ids")
    if tokens is None and positional and isinstance(positional[0], Mapping):
        tokens = positional[0].get("input_ids")
    if tokens is None:
        raise AttachError(
            f"{several[0].where}: {several[0].mask} is resolved from input_ids, and "
            f"{type(module).__name__} was called without them; call it with input_ids instead of "
            "embeddings"
        )
    for each in several:
        each.resolve(tokens)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def forget_tokens(several: list[TokenMask], *call: Any) -> None:
    """Forward hook of the receiver, called after a failure too: whoever then calls layers past
    the receiver's hooks is refused, and gets no table of other texts."""
    for each in several:
        each.latest = each.own.table = None
