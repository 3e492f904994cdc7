"""A mask is a frozen expression tree: leaves say which (query, key) pairs may attend.

One method per leaf, `allows(points) -> bool tensor`, serves the dense form, row-wise measures,
block views and FlexAttention's `mask_mod`, at any length. True = may attend, everywhere.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from masksearch.errors import LayerCountError, MaskFormatError, unknown_name
from masksearch.masks.checks import whole
from masksearch.masks.tree import MaskTree, kind_of, parsed

DenseMask = Annotated[Tensor, "layers heads queries keys"]  # bool, True = may attend
CELLS_AT_ONCE = 1 << 18  # cells of a chunk of rows: its int64 temporaries stay in a core's cache
MOST_CELLS = 1 << 32  # cells of a table that is read from a file: 4 GiB as bools


@dataclass(frozen=True)
class Points:
    """Where a mask is asked: index tensors that broadcast against each other.

    Args:
        query: int64 positions of the queries.
        key: int64 positions of the keys.
        length: Number of positions of the whole table.
        layer: Layer index; a tensor only inside a FlexAttention `mask_mod`.
        head: Head index; likewise.
    """

    query: Tensor
    key: Tensor
    length: int
    layer: int = 0
    head: int | Tensor = 0

    @property
    def offset(self) -> Tensor:
        """Signed offset `key - query`."""
        return self.key - self.query


class Mask(MaskTree):
    """Base of all masks. Build masks with the functions of `masksearch.masks`.

    Masks combine with `|` (either allows), `&` (both allow), `~` (complement) and `-`
    (without). Equality and hash are structural; `masksearch.fingerprint` compares bits.
    """

    kinds: ClassVar[dict[str, type[Mask]]] = {}
    by_offset: ClassVar[bool] = False  # whether a leaf's cells depend on key - query alone

    def __init_subclass__(cls, stored: bool = True) -> None:
        if stored and "kind" in cls.__dict__:
            Mask.kinds[cls.kind] = cls

    def allows(self, at: Points) -> Tensor:
        """Whether each query may attend to each key.

        Args:
            at: Index tensors; `at.layer` is an int.

        Returns:
            bool, broadcastable to the shape of `at.query + at.key`.
        """
        raise NotImplementedError

    # -- structure ---------------------------------------------------------------------------
    @property
    def parts(self) -> tuple[Mask, ...]:
        """Direct children (empty for a leaf)."""
        return ()

    def resolve(self, length: int) -> Mask:
        """The same mask with every random leaf replaced by the keys that it draws there."""
        return self

    # -- algebra -----------------------------------------------------------------------------
    def __or__(self, other: Mask) -> Mask:
        if takes_over(other):
            return NotImplemented
        from masksearch.masks.stacks import Either, joined

        return Either(joined(Either, self, other))

    def __and__(self, other: Mask) -> Mask:
        if takes_over(other):
            return NotImplemented
        from masksearch.masks.stacks import Both, joined

        return Both(joined(Both, self, other))

    def __sub__(self, other: Mask) -> Mask:
        if takes_over(other):
            return NotImplemented
        from masksearch.masks.stacks import Both, Complement, joined

        return Both(joined(Both, self, Complement(other)))

    def __invert__(self) -> Mask:
        from masksearch.masks.stacks import Complement

        return Complement(self)

    # -- identity ----------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """Plain data: `{"kind": ..., **fields}`."""
        fields = dataclasses.fields(cast(Any, self))
        return {"kind": self.kind} | {f.name: plain(getattr(self, f.name)) for f in fields}

    @staticmethod
    def from_dict(data: Any) -> Mask:
        """Inverse of `to_dict`.

        Raises:
            MaskFormatError: If the data is not the plain form of a mask.
        """
        kind = kind_of(data)
        if kind not in Mask.kinds:
            from masksearch.masks.content import ContentMask

            if kind in ContentMask.kinds:
                raise MaskFormatError(
                    f"{kind} is a content mask, which depends on the tokens; "
                    "masks.ContentMask.from_json reads it, and masksearch.attach puts it on models"
                )
            raise MaskFormatError(str(unknown_name("mask kind", kind, sorted(Mask.kinds))))
        cls = Mask.kinds[kind]
        known = [f.name for f in dataclasses.fields(cast(Any, cls))]
        given = {name: value for name, value in data.items() if name != "kind"}
        if sorted(given) != sorted(known):
            raise MaskFormatError(
                f"{kind} has the fields {known}, got {sorted(given)}; "
                "the file was written by another version or edited"
            )
        try:
            return cls(**{name: unplain(value) for name, value in given.items()})
        except MaskFormatError:
            raise
        except (TypeError, ValueError, OverflowError, RecursionError, zlib.error) as error:
            raise MaskFormatError(f"{kind} cannot be built: {error}") from error

    @staticmethod
    def from_json(text: str) -> Mask:
        """Reads the JSON form of a mask.

        Raises:
            MaskFormatError: If the text is not JSON, or not a mask.
        """
        return Mask.from_dict(parsed(text))

    # -- lowering ----------------------------------------------------------------------------
    @property
    def planes(self) -> list[tuple[int, int]]:
        """The (layer, head) pairs that the mask tells apart, layer by layer."""
        heads = range(self.heads or 1)
        return [(layer, head) for layer in range(self.layers or 1) for head in heads]

    def row_chunks(
        self, length: int, layer: int = 0, head: int = 0, rows: int | None = None
    ) -> Iterator[Tensor]:
        """The rows of one layer and head from the first query on, some at a time.

        Every exact figure of a mask is a loop over these chunks: no n x n tensor is made.

        Args:
            length: Positions.
            layer: Layer.
            head: Head.
            rows: Queries of a chunk; None = as many as a core's cache holds. The last chunk
                may have fewer.

        Yields:
            bool `[queries, length]`.
        """
        resolved = self.resolve(length)  # random keys are drawn once
        query, key = grid(length)
        for some in torch.split(query, rows or max(1, CELLS_AT_ONCE // length)):
            yield resolved.allows(Points(some, key, length, layer, head)).expand(len(some), length)

    def dense(self, length: int, layers: int = 1, heads: int = 1) -> DenseMask:
        """The mask as a table. Rows may be empty; `masksearch.masks.lower` refuses those.

        Args:
            length: Positions (>= 1).
            layers: Layers; 1 also serves a mask with several: they are then all returned.
            heads: Heads; likewise.

        Returns:
            bool `[layers, heads, length, length]`.

        Raises:
            LayerCountError, HeadCountError: If the mask was built for other counts.
            LengthError: If the mask holds a table of another length.
        """
        layers = self.layers or 1 if layers == 1 else layers
        heads = self.heads or 1 if heads == 1 else heads
        self.counts(layers, heads)
        query, key = grid(length)
        planes = [self.allows(Points(query, key, length, *plane)) for plane in self.planes]
        table = torch.stack([plane.expand(length, length) for plane in planes])
        table = table.view(self.layers or 1, self.heads or 1, length, length)
        return table.expand(layers, heads, length, length).contiguous()

    def kept(self, length: int) -> int:
        """Number of kept cells over the planes that the mask tells apart, exact."""
        return sum(
            int(rows.count_nonzero())
            for plane in self.planes
            for rows in self.row_chunks(length, *plane)
        )

    def density(self, length: int) -> float:
        """Kept share of the n x n table, in [0, 1], averaged over layers and heads."""
        return self.kept(length) / ((self.layers or 1) * (self.heads or 1) * length * length)

    def sparsity(self, length: int) -> float:
        """`1 - density`, in [0, 1] (SparseBERT, Section 4.3: 1 - |M| / n^2)."""
        return 1 - self.density(length)

    def mask_mod(self, length: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """FlexAttention's predicate `(batch, head, query, key) -> bool` for layer 0.

        Random keys (as a list for each query) and tables become captured tensors; a mask that
        differs by layer is taken apart with `layer_of` first.

        Raises:
            LayerCountError: If the mask tells layers apart.
        """
        if self.layers not in (None, 1):
            raise LayerCountError(
                f"mask_mod serves one layer, the mask has {self.layers}; "
                "call masks.layer_of(mask, layer).mask_mod(length)"
            )
        resolved = self.resolve(length)

        def predicate(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return resolved.allows(Points(query, key, length, 0, head))

        return predicate

    def __str__(self) -> str:
        """The expression that `masksearch.masks.parse` reads back."""
        from masksearch.masks.text import expression

        return expression(self)

    __repr__ = __str__


def takes_over(other: object) -> bool:
    """Whether an operand combines with masks by its own reflected operators."""
    from masksearch.masks.content import ContentMask

    return isinstance(other, ContentMask)


def grid(length: int) -> tuple[Tensor, Tensor]:
    """Query positions as a column and key positions as a row, `[n, 1]` and `[1, n]`."""
    if whole(length) is None:
        raise ValueError(f"length must be a whole number of positions, got {length!r}")
    if length < 1:
        raise ValueError(f"length must be at least 1 position, got {length}")
    positions = torch.arange(length)
    return positions[:, None], positions[None, :]


def plain(value: Any) -> Any:
    """JSON data of a mask's field."""
    if isinstance(value, Mask):
        return value.to_dict()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Tensor):
        packed = np.packbits(value.numpy(force=True).reshape(-1)).tobytes()
        data = base64.b64encode(zlib.compress(packed)).decode()
        return {"shape": list(value.shape), "zlib": data}
    return value


def unplain(value: Any) -> Any:
    """Inverse of `plain`; a decompressed table never exceeds the bits that its shape names."""
    if isinstance(value, list):
        return tuple(unplain(item) for item in value)
    if isinstance(value, dict) and set(value) == {"shape", "zlib"}:
        shape = value["shape"]
        if not isinstance(shape, list) or not all(
            type(size) is int and size > 0 for size in shape
        ):
            raise MaskFormatError(f"a table's shape is a list of sizes, got {str(shape)[:80]}")
        cells = math.prod(shape)
        if cells > MOST_CELLS:
            raise MaskFormatError(f"a table has at most {MOST_CELLS} cells, got shape {shape}")
        size = (cells + 7) // 8
        compressed = base64.b64decode(value["zlib"], validate=True)
        packed = zlib.decompressobj().decompress(compressed, size + 1)
        if len(packed) != size:
            raise MaskFormatError(f"a table of shape {shape} does not fit its {len(packed)} bytes")
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=cells).astype(bool)
        return torch.from_numpy(bits.reshape(shape))
    return Mask.from_dict(value) if isinstance(value, dict) else value
