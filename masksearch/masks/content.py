"""Content masks: what a query keeps depends on the tokens, so each batch has its own tables.

A type of its own, not a `Mask`: it has no cells before input ids are known, so no density, no
fingerprint and no block view. `masksearch.attach` puts it on a model and resolves it from the
input ids of every forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor

from masksearch.errors import (
    EmptyRowError,
    LayerCountError,
    MaskFormatError,
    unknown_name,
)
from masksearch.masks.checks import distinct, whole
from masksearch.masks.core import Mask
from masksearch.masks.leaves import member
from masksearch.masks.tree import MaskTree, kind_of, parsed


class ContentMask(MaskTree):
    """Base of the masks that are resolved from input ids. Built by `masks.special_tokens`.

    Content masks combine with masks and with each other by `|`, `&`, `-` and `~`, and inside
    `masks.per_head` and `masks.per_layer`. Equality and hash are structural.

    >>> from masksearch import masks
    >>> mask = masks.window(1) | masks.special_tokens(101)
    >>> mask
    window(1) | special_tokens(101)
    >>> mask.table(torch.tensor([[101, 7, 8, 9]]))[0, 0].int().tolist()
    [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 1]]
    """

    kinds: ClassVar[dict[str, type[ContentMask]]] = {}

    def __init_subclass__(cls) -> None:
        ContentMask.kinds[cls.kind] = cls

    def cells(self, tokens: Tensor) -> Tensor:
        """The kept cells of one layer, bool `[batch | 1, heads | 1, n, n]`; rows may be empty.

        Args:
            tokens: Input ids, int `[batch, n]`.
        """
        raise NotImplementedError

    @property
    def parts(self) -> tuple[ContentMask, ...]:
        """Direct children (empty for a leaf)."""
        return ()

    def of_layer(self, layer: int) -> ContentMask:
        """The mask of one layer alone (the mask itself where it does not tell layers apart).

        Raises:
            ValueError: If there is no such layer.
        """
        if self.layers is None:
            return self
        if not 0 <= layer < self.layers:
            raise ValueError(f"layer must be in [0, {self.layers}), got {layer}")
        return self.single(layer)

    def single(self, layer: int) -> ContentMask:
        """As `of_layer`, for a mask that tells layers apart."""
        raise NotImplementedError

    def table(self, input_ids: Tensor) -> Tensor:
        """Which keys each query may attend to, in each example of a batch.

        Args:
            input_ids: int `[batch, n]`, with whatever padding the model is given.

        Returns:
            bool `[batch, heads | 1, n, n]` on the device of `input_ids`, True = may attend;
            heads are those that the mask tells apart.

        Raises:
            TypeError, ValueError: If `input_ids` is something else.
            LayerCountError: If the mask tells layers apart.
            LengthError: If a part has only another length.
            EmptyRowError: If a query keeps no key; names example, head and row.
        """
        if not isinstance(input_ids, Tensor):
            raise TypeError(f"input_ids is a tensor, got {type(input_ids).__name__}")
        if input_ids.dtype not in (torch.int64, torch.int32) or input_ids.ndim != 2:
            raise ValueError(
                f"input_ids is int [batch, n], got {input_ids.dtype} {list(input_ids.shape)}"
            )
        if self.layers not in (None, 1):
            raise LayerCountError(
                f"a table serves one layer, the mask has {self.layers}; "
                "call mask.of_layer(layer).table(input_ids)"
            )
        cells = self.of_layer(0).cells(input_ids)
        empty = ~cells.any(-1)
        if empty.any():
            example, head, row = (int(index) for index in empty.nonzero()[0])
            raise EmptyRowError(
                f"example {example}, head {head}, row {row} keeps no key under {self} "
                f"({int(empty.sum())} empty rows of {empty.numel()}); a row without keys has no "
                "attention: add for example masks.window(0), the diagonal"
            )
        return cells.expand(len(input_ids), *cells.shape[1:])

    # -- algebra -----------------------------------------------------------------------------
    def __or__(self, other: Mask | ContentMask) -> ContentMask:
        from masksearch.masks.content_parts import either

        return either(self, other)

    def __ror__(self, other: Mask) -> ContentMask:
        from masksearch.masks.content_parts import either

        return either(other, self)

    def __and__(self, other: Mask | ContentMask) -> ContentMask:
        from masksearch.masks.content_parts import both

        return both(self, other)

    def __rand__(self, other: Mask) -> ContentMask:
        from masksearch.masks.content_parts import both

        return both(other, self)

    def __sub__(self, other: Mask | ContentMask) -> ContentMask:
        from masksearch.masks.content_parts import both, content

        return both(self, ~content(other))

    def __rsub__(self, other: Mask) -> ContentMask:
        from masksearch.masks.content_parts import both

        return both(other, ~self)

    def __invert__(self) -> ContentMask:
        from masksearch.masks.content_parts import ContentComplement

        return ContentComplement(self)

    # -- identity ----------------------------------------------------------------------------
    @classmethod
    def field(cls) -> str:
        """Name of the only field."""
        return dataclasses.fields(cast(Any, cls))[0].name

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `{"kind": ..., field: ...}`."""
        value = getattr(self, self.field())
        if isinstance(value, tuple):
            value = [one.to_dict() if isinstance(one, ContentMask) else one for one in value]
        elif isinstance(value, Mask | ContentMask):
            value = value.to_dict()
        return {"kind": self.kind, self.field(): value}

    @staticmethod
    def from_dict(data: Any) -> ContentMask:
        """Inverse of `to_dict`.

        Raises:
            MaskFormatError: If the data is not the plain form of a content mask.
        """
        kind = kind_of(data)
        if kind not in ContentMask.kinds:
            raise MaskFormatError(
                f"{kind} is a mask of positions; Mask.from_json reads it"
                if kind in Mask.kinds
                else str(unknown_name("content mask kind", kind, sorted(ContentMask.kinds)))
            )
        cls = ContentMask.kinds[kind]
        given = {name: value for name, value in data.items() if name != "kind"}
        if [*given] != [cls.field()]:
            raise MaskFormatError(
                f"{kind} has the field {cls.field()!r}, got {sorted(given)}; "
                "the file was written by another version or edited"
            )
        try:
            return cls(**{name: cls.unplain(value) for name, value in given.items()})
        except MaskFormatError:
            raise
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise MaskFormatError(f"{kind} cannot be built: {error}") from error

    @staticmethod
    def unplain(value: Any) -> Any:
        """The field from its plain form."""
        if isinstance(value, list):
            return tuple(ContentMask.from_dict(item) for item in value)
        return ContentMask.from_dict(value)

    @staticmethod
    def from_json(text: str) -> ContentMask:
        """Reads the JSON form of a content mask.

        Raises:
            MaskFormatError: If the text is not JSON, or not a content mask.
        """
        return ContentMask.from_dict(parsed(text))

    def __str__(self) -> str:
        """The expression that `masksearch.masks.parse_content` reads back."""
        from masksearch.masks.text import content_expression

        return content_expression(self)

    __repr__ = __str__

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):  # asked by copy and pickle, before there are fields
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
            raise AttributeError(
                f"{self} has no {name!r}: a content mask has cells only where input ids are "
                "known; call mask.table(input_ids), or put it on a model with "
                "masksearch.attach, or leave special_tokens out"
            )


@dataclass(frozen=True, eq=False, repr=False)
class SpecialTokens(ContentMask):
    """Keep the rows and the columns of some tokens, wherever they stand.

    Args:
        ids: Token ids (>= 0).

    Reference: Longformer, arXiv 2004.05150, Section 3.1 (global attention on chosen tokens).

    >>> SpecialTokens((101,)).table(torch.tensor([[0, 101, 7]]))[0, 0].int().tolist()
    [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    """

    kind = "special_tokens"
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", distinct("ids", self.ids, 0))

    def cells(self, tokens: Tensor) -> Tensor:
        found = member(tokens, self.ids)
        return (found[:, :, None] | found[:, None, :])[:, None]

    @staticmethod
    def unplain(value: Any) -> Any:
        """The ids from a list."""
        return value


def special_tokens(*ids: int | Iterable[int]) -> ContentMask:
    """Keep rows and columns of these tokens wherever they stand, for example [CLS] and [SEP].

    Args:
        ids: Token ids (>= 0), or one list of them: `tokenizer.cls_token_id`, ...

    Returns:
        A content mask: it combines with other masks, and `masksearch.attach` resolves it from
        the input ids of each batch. An example without any of the tokens has empty rows, which
        are refused: combine it with a mask that keeps something everywhere.

    Raises:
        ValueError: If there is no id, or one is not a whole number >= 0.
    """
    if len(ids) == 1 and whole(ids[0]) is None:
        return SpecialTokens(cast("tuple[int, ...]", ids[0]))
    return SpecialTokens(cast("tuple[int, ...]", ids))
