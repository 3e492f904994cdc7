"""What hangs on each attention module while a mask, or gates, are attached to its model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from masksearch.attention.lowered import (
    Lowered,
    lowered_corner,
    lowered_table,
    whole,
)
from masksearch.errors import AttachError
from masksearch.masks.core import Mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from masksearch.attention.in_force import Hold
    from masksearch.attention.probe import Target
    from masksearch.attention.tokens import Resolved
    from masksearch.contracts import GateBank
    from masksearch.masks.content import ContentMask

SLOT = "masksearch_slot"  # where a module carries its slot, in its __dict__
ATTACHMENT = "masksearch_attachment"  # where a model carries what undoes an attach


@dataclass(frozen=True)
class Noted:
    """What a self-attention mask was asked for.

    Args:
        queries: Positions that ask.
        keys: Positions that are asked, those of a static cache that are still empty included.
        first_query: Place of the first query in the sequence; None within a compiled graph.
        first_key: Place of the first key.
        moving: The first of these places as a tensor, where a static cache counts it; compiled
            steps read it instead of the number, for which they would be compiled anew.
    """

    queries: int
    keys: int
    first_query: int | None
    first_key: int
    moving: Tensor | None

    @property
    def start(self) -> int | Tensor:
        """Place of the first query."""
        if self.moving is not None and compiling():  # first: a number that is read is guarded
            return self.moving
        if self.first_query is None:
            return 0 if self.moving is None else int(self.moving)
        return self.first_query


def compiling() -> bool:
    """Whether Dynamo traces."""
    return torch.compiler.is_compiling()


class Rows:
    """Where the queries and keys of the running forward pass stand in the sequence.

    One for an attachment. It is found by the configuration objects of the models, because that
    is what transformers hands to the function that makes masks. A copied or unpickled model has
    configurations, and so rows, of its own.
    """

    def __init__(self, configs: Iterable[Any]) -> None:
        found = {id(config): config for config in configs}
        self.configs = [weakref.ref(config) for config in found.values()]
        self.lowered: list[list[Lowered]] = [[] for _ in self.configs]
        self.contents: list[Resolved] = []
        self.own = threading.local()
        self.last: Noted | None = None
        self.before: Noted | None = None  # models with two kinds of layers ask twice

    def enrol(self) -> None:
        """Makes these the rows that are found by the configurations."""
        for found, lowered in zip(self.configs, self.lowered, strict=True):
            config = found()
            if config is not None:
                if id(config) not in ROWS:
                    weakref.finalize(config, forget, id(config))
                ROWS[id(config)] = self, lowered

    def add(self, config: Any, lowered: Lowered) -> None:
        """What serves layers of the model with that configuration."""
        for found, several in zip(self.configs, self.lowered, strict=True):
            if found() is config and lowered not in several:
                several.append(lowered)

    def note(self, queries: int, keys: int, offset: int | Tensor, first_key: int) -> None:
        """Keeps what a self-attention mask was asked for."""
        moving = first = None
        if isinstance(offset, Tensor):
            moving = offset.clone()  # the cache counts on in place
            first = None if compiling() else int(offset)
        else:
            first = offset
        self.last, self.before = Noted(queries, keys, first, first_key, moving), self.last
        if not compiling():
            before = getattr(self.own, "noted", (None, None))[0]
            self.own.noted = self.last, before

    @property
    def noted(self) -> tuple[Noted | None, Noted | None]:
        """The last two notes, those of this thread where it has made any."""
        if compiling():
            return self.last, self.before
        found: tuple[Noted | None, Noted | None]
        found = getattr(self.own, "noted", (self.last, self.before))
        return found

    def start(self, queries: int, keys: int) -> tuple[int | Tensor, int]:
        """First query and first key of a self-attention call."""
        if queries == keys:
            return 0, 0
        for noted in self.noted:
            if noted is not None and noted.queries == queries and noted.keys == keys:
                return noted.start, noted.first_key
        return keys - queries, 0

    def cross_start(self, queries: int) -> int | Tensor:
        """First query of a cross-attention call: where the decoder's own attention stands."""
        last = self.noted[0]
        return last.start if last is not None and last.queries == queries else 0

    def __getstate__(self) -> dict[str, Any]:
        configs = [config() for config in self.configs]
        return {"configs": configs, "lowered": self.lowered, "contents": self.contents}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["configs"])  # type: ignore[misc]
        self.lowered, self.contents = state["lowered"], state["contents"]
        self.enrol()


ROWS: dict[int, tuple[Rows, list[Lowered]]] = {}  # id(config) -> rows, its layers' masks


def forget(key: int) -> None:
    """A configuration is gone, and its number may be given to another object."""
    ROWS.pop(key, None)


@dataclass(eq=False)
class Slot:
    """What one attention module does under our name.

    Args:
        name: Qualified name of the module within the model.
        part: `"self"` in a plain model, else the part that it belongs to.
        layer: Index of the layer within its part.
        mask: The layer's own mask; None where gates are attached.
        bank: The gates; None where a mask is attached.
        rows: Positions of the running forward pass.
        backend: As asked for: `"auto"`, `"sdpa"`, `"gather"` or `"flex"`.
        heads: Query heads.
        width: Numbers of a head's query.
        causal: Whether the model hides later keys here.
        cross: Whether queries and keys come from different sequences.
        lowered: What the mask is lowered to, shared by layers with the same mask.
        content: The resolved content mask, shared likewise; None for other masks.
        fallback: Why the backend that was asked for did not compute the last call, or empty.
    """

    name: str
    part: str
    layer: int
    mask: Mask | ContentMask | None
    bank: GateBank | None
    rows: Rows
    backend: str = "auto"
    heads: int = 1
    width: int = 1
    causal: bool = False
    cross: bool = False
    lowered: Lowered | None = None
    content: Resolved | None = None
    fallback: str = ""

    @property
    def tables(self) -> dict[tuple[int, torch.device], Tensor | None]:
        """Tables by (length, device); None = everything is kept."""
        return {} if self.lowered is None else self.lowered.tables

    @property
    def choices(self) -> dict[tuple[int, torch.device, bool], Any]:
        """What computes the layer, by (length, device, whether a gradient is needed)."""
        return {} if self.lowered is None else self.lowered.choices

    @property
    def plans(self) -> dict[tuple[str, int, torch.device], Any]:
        """Plans of the sparse backends, by (backend, length, device)."""
        return {} if self.lowered is None else self.lowered.plans

    def table(self, keys: int, device: torch.device) -> Tensor | None:
        """Bool `[1, heads | 1, keys, keys]`, or None where everything is kept."""
        return None if self.lowered is None else self.lowered.table(keys, device)

    def start(self, queries: int, keys: int) -> tuple[int | Tensor, int]:
        """First query and first key of a call."""
        if self.cross:
            return self.rows.cross_start(queries), 0
        return self.rows.start(queries, keys)

    def kept(
        self,
        batch: int,
        queries: int,
        keys: int,
        device: torch.device,
        visible: Tensor | None = None,
    ) -> Tensor | None:
        """The cells of one call, bool `[1 | batch, heads | 1, queries, keys]`; None = all.

        Args:
            batch: Examples.
            queries: Positions that ask.
            keys: Positions that are asked.
            device: Where the call computes.
            visible: The model's mask, as the call was given it.

        Raises:
            EmptyRowError: If a query keeps no key.
            LengthError: If the mask has another length.
            AttachError: If the mask is another one at each length, and keys come from a cache.
        """
        if self.content is not None:
            return self.content.kept(batch, queries, keys, visible)
        lowered = self.lowered
        if lowered is None:
            return None
        start, skipped = self.start(queries, keys)
        moving = isinstance(start, Tensor) or (queries != keys and not self.cross)
        if lowered.by_length and moving:
            raise AttachError(
                f"{lowered.where}: {lowered.mask} keeps other keys at every length, so that a "
                "cache would hold what was computed under another mask; attach "
                "masks.cropped(mask, at=the longest length), or generate with use_cache=False"
            )
        if isinstance(start, Tensor):  # a static cache in a compiled step
            noted = self.rows.noted[0]
            length = skipped + keys if noted is None else max(skipped + keys, noted.keys)
            fixed: Tensor | None = lowered_table(lowered.key, whole(length), device)
            if fixed is None:
                return None
            index = start + torch.arange(queries, device=device)
            return fixed.index_select(2, index)[..., skipped : skipped + keys]
        if not self.cross:
            table: Tensor | None = lowered_table(lowered.key, whole(skipped + keys), device)
            if table is None:
                return None
            kept: Tensor = table[:, :, start : start + queries]
            return kept[..., skipped:] if skipped else kept
        length = max(start + queries, keys)
        if lowered.by_length and start and length > keys:
            raise AttachError(
                f"{lowered.where}: {lowered.mask} keeps other keys at every length, and the "
                f"decoder has outgrown the {keys} keys of the encoder; attach "
                "masks.cropped(mask, at=the longest length), or generate with use_cache=False"
            )
        numbers = (whole(length), device, whole(start), whole(start + queries), whole(keys))
        corner: Tensor | None = lowered_corner(lowered.key, *numbers)
        return None if corner is None else corner[:, :, start : start + queries, :keys]


@dataclass
class Attachment:
    """What `attach` has put on a model, and what undoes it."""

    what: dict[str, Any]  # part -> mask or gates, whole
    slots: dict[nn.Module, Slot]
    previous: list[tuple[Target, str]]  # attention implementations, outermost first
    involved: list[PreTrainedModel]  # whose implementation becomes ours
    banks: dict[nn.Module, nn.Module] = field(default_factory=dict)  # gates -> module that draws
    contents: list[tuple[list[Resolved], nn.Module]] = field(default_factory=list)  # -> receiver
    hooks: list[Any] = field(default_factory=list)
    hold: Hold | None = None  # the configurations, while it is in force

    @property
    def modules(self) -> list[nn.Module]:
        """The attention modules."""
        return list(self.slots)
