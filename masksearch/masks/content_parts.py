"""Combinations of content masks, with each other and with masks of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor

from masksearch.errors import HeadCountError, LayerCountError
from masksearch.masks.content import ContentMask
from masksearch.masks.core import Mask
from masksearch.masks.stacks import Both, Either, PerHead, joined


@dataclass(frozen=True, eq=False, repr=False)
class OfPositions(ContentMask):
    """A mask of positions as part of a content mask: the same in every example."""

    kind = "of_positions"
    of: Mask

    def __post_init__(self) -> None:
        if not isinstance(self.of, Mask):
            raise TypeError(f"of_positions holds a mask of positions, got {self.of!r}")

    @property
    def heads(self) -> int | None:
        return self.of.heads

    @property
    def layers(self) -> int | None:
        return self.of.layers

    @property
    def length(self) -> int | None:
        return self.of.length

    def single(self, layer: int) -> ContentMask:
        from masksearch.masks.families import layer_of

        return OfPositions(layer_of(self.of, layer))

    def cells(self, tokens: Tensor) -> Tensor:
        at = (tokens.shape[1], tokens.device)
        last, table = self.__dict__.get("lowered", (None, None))
        if last != at:  # batches of one length share the table
            with torch.inference_mode(False):  # it may serve a training step later
                table = self.of.dense(tokens.shape[1]).to(tokens.device)
            self.__dict__["lowered"] = (at, table)
        return cast(Tensor, table)

    def __invert__(self) -> ContentMask:
        return OfPositions(~self.of)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "lowered"}

    @staticmethod
    def unplain(value: Any) -> Any:
        """The mask from its plain form."""
        return Mask.from_dict(value)


@dataclass(frozen=True, eq=False, repr=False)
class ContentEither(ContentMask):
    """Kept where any part keeps: `a | b`."""

    kind = "content_or"
    of: tuple[ContentMask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)

    @property
    def parts(self) -> tuple[ContentMask, ...]:
        return self.of

    def single(self, layer: int) -> ContentMask:
        return either(*(part.of_layer(layer) for part in self.of))

    def cells(self, tokens: Tensor) -> Tensor:
        return reduce(torch.logical_or, (part.cells(tokens) for part in self.of))


@dataclass(frozen=True, eq=False, repr=False)
class ContentBoth(ContentMask):
    """Kept where every part keeps: `a & b`; also `a - b` as `a & ~b`."""

    kind = "content_and"
    of: tuple[ContentMask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)

    @property
    def parts(self) -> tuple[ContentMask, ...]:
        return self.of

    def single(self, layer: int) -> ContentMask:
        return both(*(part.of_layer(layer) for part in self.of))

    def cells(self, tokens: Tensor) -> Tensor:
        return reduce(torch.logical_and, (part.cells(tokens) for part in self.of))


@dataclass(frozen=True, eq=False, repr=False)
class ContentComplement(ContentMask):
    """Kept where the part does not keep: `~a`."""

    kind = "content_not"
    of: ContentMask

    def __post_init__(self) -> None:
        children(self, (self.of,))

    @property
    def parts(self) -> tuple[ContentMask, ...]:
        return (self.of,)

    def single(self, layer: int) -> ContentMask:
        return ~self.of.of_layer(layer)

    def cells(self, tokens: Tensor) -> Tensor:
        return ~self.of.cells(tokens)


@dataclass(frozen=True, eq=False, repr=False)
class ContentPerHead(ContentMask):
    """Head h uses the h-th mask.

    Raises:
        HeadCountError: If a part itself tells heads apart.
    """

    kind = "content_per_head"
    of: tuple[ContentMask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)
        if any(part.heads is not None for part in self.of):
            raise HeadCountError("per_head takes masks that do not tell heads apart themselves")

    @property
    def parts(self) -> tuple[ContentMask, ...]:
        return self.of

    @property
    def heads(self) -> int | None:
        return len(self.of)

    def single(self, layer: int) -> ContentMask:
        return per_head_of([part.of_layer(layer) for part in self.of])

    def cells(self, tokens: Tensor) -> Tensor:
        found = {part: part.cells(tokens) for part in dict.fromkeys(self.of)}
        batch = max(map(len, found.values()))
        return torch.cat([found[part].expand(batch, -1, -1, -1) for part in self.of], 1)


@dataclass(frozen=True, eq=False, repr=False)
class ContentPerLayer(ContentMask):
    """Layer l uses the l-th mask (parts may tell heads apart); `of_layer` takes one out.

    Raises:
        LayerCountError: If a part itself tells layers apart.
    """

    kind = "content_per_layer"
    of: tuple[ContentMask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)
        if any(part.layers is not None for part in self.of):
            raise LayerCountError("per_layer takes masks that do not tell layers apart themselves")

    @property
    def parts(self) -> tuple[ContentMask, ...]:
        return self.of

    @property
    def layers(self) -> int | None:
        return len(self.of)

    def single(self, layer: int) -> ContentMask:
        return self.of[layer]


def content(mask: Mask | ContentMask) -> ContentMask:
    """The mask as part of a content mask."""
    if isinstance(mask, ContentMask):
        return mask
    if isinstance(mask, Mask):
        return OfPositions(mask)
    raise TypeError(f"masks combine with masks only, got {mask!r}")


def combined(
    kind: type[ContentEither] | type[ContentBoth],
    plain: type[Either] | type[Both],
    *of: Mask | ContentMask,
) -> ContentMask:
    """A chain `a | b | c` side by side instead of nested.

    Neighbours that are masks of positions become one, so that `special | a | b` and
    `special | (a | b)` are equal, and what they share is lowered once.
    """
    flat: list[ContentMask] = []
    for part in map(content, of):
        for piece in part.of if isinstance(part, kind) else (part,):
            last = flat[-1] if flat else None
            if isinstance(last, OfPositions) and isinstance(piece, OfPositions):
                flat[-1] = OfPositions(plain(joined(plain, last.of, piece.of)))
            else:
                flat.append(piece)
    return flat[0] if len(flat) == 1 else kind(tuple(flat))


def either(*of: Mask | ContentMask) -> ContentMask:
    """Kept where any part keeps."""
    return combined(ContentEither, Either, *of)


def both(*of: Mask | ContentMask) -> ContentMask:
    """Kept where every part keeps."""
    return combined(ContentBoth, Both, *of)


def per_head_of(of: Sequence[Mask | ContentMask]) -> ContentMask:
    """`masks.per_head` where a part depends on content."""
    parts = [content(part) for part in of]
    masks = [part.of for part in parts if isinstance(part, OfPositions)]
    alike = len(masks) == len(parts)
    return OfPositions(PerHead(tuple(masks))) if alike else ContentPerHead(tuple(parts))


def per_layer_of(of: Sequence[Mask | ContentMask]) -> ContentMask:
    """`masks.per_layer` where a part depends on content."""
    return ContentPerLayer(tuple(content(part) for part in of))


def children(mask: ContentMask, of: Sequence[ContentMask]) -> None:
    """Checks the parts of a combination when it is built, so that errors name the culprit."""
    if isinstance(of, ContentMask) or not of or not all(isinstance(p, ContentMask) for p in of):
        raise TypeError(f"{mask.kind} combines one or more content masks, got {of!r}")
    _ = mask.heads, mask.layers, mask.length
