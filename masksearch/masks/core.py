"""A mask is a frozen expression tree: leaves say which (query, key) pairs may attend.

One method per leaf, `allows(points) -> bool tensor`, serves the dense form, row-wise measures,
block views and FlexAttention's `mask_mod`, at any length. True = may attend, everywhere.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from masksearch.errors import (
    HeadCountError,
    LayerCountError,
    LengthError,
    MaskFormatError,
    MaskSearchError,
    unknown_name,
)

DenseMask = Annotated[Tensor, "layers heads queries keys"]  # bool, True = may attend
ROWS_AT_ONCE = 1 << 24  # cells that a row-wise measure holds in memory at a time


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


class Mask:
    """Base of all masks. Build masks with the functions of `masksearch.masks`.

    Masks combine with `|` (either allows), `&` (both allow), `~` (complement) and `-`
    (without). Equality and hash are structural; `masksearch.fingerprint` compares bits.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Mask]]] = {}

    def __init_subclass__(cls) -> None:
        if "kind" in cls.__dict__:
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

    @property
    def heads(self) -> int | None:
        """Number of heads that the mask tells apart; None = the same for any number."""
        return agreed([part.heads for part in self.parts], HeadCountError, "heads")

    @property
    def layers(self) -> int | None:
        """Number of layers that the mask tells apart; None = the same for any number."""
        return agreed([part.layers for part in self.parts], LayerCountError, "layers")

    @property
    def length(self) -> int | None:
        """The only length that the mask has, in positions; None = any."""
        found = {part.length for part in self.parts} - {None}
        if len(found) > 1:
            sizes = " and ".join(str(size) for size in sorted(cast(set[int], found)))
            raise MaskFormatError(f"tables of {sizes} positions cannot be in one mask")
        return found.pop() if found else None

    def resolve(self, length: int) -> Mask:
        """The same mask with every random leaf replaced by its table at that length."""
        return self

    # -- algebra -----------------------------------------------------------------------------
    def __or__(self, other: Mask) -> Mask:
        return Either(joined(Either, self, other))

    def __and__(self, other: Mask) -> Mask:
        return Both(joined(Both, self, other))

    def __sub__(self, other: Mask) -> Mask:
        return Both(joined(Both, self, Complement(other)))

    def __invert__(self) -> Mask:
        return Complement(self)

    # -- identity ----------------------------------------------------------------------------
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the expression (its JSON form), in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `{"kind": ..., **fields}`."""
        fields = dataclasses.fields(cast(Any, self))
        return {"kind": self.kind} | {f.name: plain(getattr(self, f.name)) for f in fields}

    def to_json(self) -> str:
        """Canonical JSON of the expression; `Mask.from_json` reads it back."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_dict(data: Any) -> Mask:
        """Inverse of `to_dict`.

        Raises:
            MaskFormatError: If the data is not the plain form of a mask.
        """
        if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
            raise MaskFormatError(f"a mask is an object with a 'kind', got {str(data)[:80]}")
        if data["kind"] not in Mask.kinds:
            raise unknown_name("mask kind", data["kind"], sorted(Mask.kinds))
        cls = Mask.kinds[data["kind"]]
        known = [f.name for f in dataclasses.fields(cast(Any, cls))]
        given = {name: value for name, value in data.items() if name != "kind"}
        if sorted(given) != sorted(known):
            raise MaskFormatError(
                f"{data['kind']} has the fields {known}, got {sorted(given)}; "
                "the file was written by another version or edited"
            )
        try:
            return cls(**{name: unplain(value) for name, value in given.items()})
        except MaskSearchError:
            raise
        except (TypeError, ValueError, OverflowError, zlib.error) as error:
            raise MaskFormatError(f"{data['kind']} cannot be built: {error}") from error

    @staticmethod
    def from_json(text: str) -> Mask:
        """Reads the JSON form of a mask.

        Raises:
            MaskFormatError: If the text is not JSON, or not a mask.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise MaskFormatError(f"not JSON: {error}") from error
        return Mask.from_dict(data)

    # -- lowering ----------------------------------------------------------------------------
    def counts(self, layers: int, heads: int) -> None:
        """Checks that the mask fits that many layers and heads.

        Raises:
            LayerCountError, HeadCountError: If it was built for other counts.
        """
        if self.layers not in (None, layers):
            raise LayerCountError(
                f"the mask has {self.layers} layers, asked for {layers}; "
                "per_layer needs one mask for each layer"
            )
        if self.heads not in (None, heads):
            raise HeadCountError(
                f"the mask has {self.heads} heads, asked for {heads}; "
                "per_head needs one mask for each head"
            )

    def planes(self, length: int, query: Tensor, key: Tensor) -> Iterator[Tensor]:
        """The distinct (layer, head) planes at those index tensors, layer by layer."""
        for layer in range(self.layers or 1):
            for head in range(self.heads or 1):
                plane = self.allows(Points(query, key, length, layer, head))
                yield plane.expand(torch.broadcast_shapes(query.shape, key.shape))

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
        table = torch.stack(list(self.planes(length, query, key)))
        table = table.view(self.layers or 1, self.heads or 1, length, length)
        return table.expand(layers, heads, length, length).contiguous()

    def kept(self, length: int) -> int:
        """Number of kept cells over the distinct planes, in row chunks (no n x n tensor)."""
        positions = torch.arange(length)
        chunk = max(1, ROWS_AT_ONCE // length)
        return sum(
            int(plane.sum())
            for rows in positions.split(chunk)
            for plane in self.planes(length, rows[:, None], positions[None, :])
        )

    def density(self, length: int) -> float:
        """Kept share of the n x n table, in [0, 1], averaged over layers and heads."""
        return self.kept(length) / ((self.layers or 1) * (self.heads or 1) * length * length)

    def sparsity(self, length: int) -> float:
        """`1 - density`, in [0, 1] (SparseBERT, Section 4.3: 1 - |M| / n^2)."""
        return 1 - self.density(length)

    def mask_mod(self, length: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """FlexAttention's predicate `(batch, head, query, key) -> bool` for layer 0.

        Random leaves and tables become captured tensors; a mask that differs by layer is taken
        apart with `layer_of` first.

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
        from masksearch.masks.expression import expression

        return expression(self)

    __repr__ = __str__


@dataclass(frozen=True, eq=False, repr=False)
class Either(Mask):
    """Kept where any part keeps: `a | b`."""

    kind = "or"
    of: tuple[Mask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)

    @property
    def parts(self) -> tuple[Mask, ...]:
        return self.of

    def allows(self, at: Points) -> Tensor:
        result = self.of[0].allows(at)
        for part in self.of[1:]:
            result = result | part.allows(at)
        return result

    def resolve(self, length: int) -> Mask:
        return Either(tuple(part.resolve(length) for part in self.of))


@dataclass(frozen=True, eq=False, repr=False)
class Both(Mask):
    """Kept where every part keeps: `a & b`; also `a - b` as `a & ~b`."""

    kind = "and"
    of: tuple[Mask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)

    @property
    def parts(self) -> tuple[Mask, ...]:
        return self.of

    def allows(self, at: Points) -> Tensor:
        result = self.of[0].allows(at)
        for part in self.of[1:]:
            result = result & part.allows(at)
        return result

    def resolve(self, length: int) -> Mask:
        return Both(tuple(part.resolve(length) for part in self.of))


@dataclass(frozen=True, eq=False, repr=False)
class Complement(Mask):
    """Kept where the part does not keep: `~a`."""

    kind = "not"
    of: Mask

    def __post_init__(self) -> None:
        children(self, (self.of,))

    @property
    def parts(self) -> tuple[Mask, ...]:
        return (self.of,)

    def allows(self, at: Points) -> Tensor:
        return ~self.of.allows(at)

    def resolve(self, length: int) -> Mask:
        return Complement(self.of.resolve(length))


@dataclass(frozen=True, eq=False, repr=False)
class PerHead(Mask):
    """Head h uses the h-th mask.

    Raises:
        HeadCountError: If a part itself tells heads apart.
    """

    kind = "per_head"
    of: tuple[Mask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)
        if any(part.heads is not None for part in self.of):
            raise HeadCountError("per_head takes masks that do not tell heads apart themselves")

    @property
    def parts(self) -> tuple[Mask, ...]:
        return self.of

    @property
    def heads(self) -> int | None:
        return len(self.of)

    def allows(self, at: Points) -> Tensor:
        if isinstance(at.head, int):
            return self.of[at.head].allows(at)
        result = self.of[-1].allows(at)  # inside a mask_mod the head is a tensor
        for index, part in enumerate(self.of[:-1]):
            result = torch.where(at.head == index, part.allows(at), result)
        return result

    def resolve(self, length: int) -> Mask:
        return PerHead(tuple(part.resolve(length) for part in self.of))


@dataclass(frozen=True, eq=False, repr=False)
class PerLayer(Mask):
    """Layer l uses the l-th mask (parts may tell heads apart).

    Raises:
        LayerCountError: If a part itself tells layers apart.
    """

    kind = "per_layer"
    of: tuple[Mask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)
        if any(part.layers is not None for part in self.of):
            raise LayerCountError("per_layer takes masks that do not tell layers apart themselves")

    @property
    def parts(self) -> tuple[Mask, ...]:
        return self.of

    @property
    def layers(self) -> int | None:
        return len(self.of)

    def allows(self, at: Points) -> Tensor:
        return self.of[at.layer].allows(at)

    def resolve(self, length: int) -> Mask:
        return PerLayer(tuple(part.resolve(length) for part in self.of))


@dataclass(frozen=True, eq=False, repr=False)
class Cropped(Mask):
    """The top-left corner of the mask at `at` positions, for inputs of at most that length.

    Attention under it equals attention under the mask at `at` positions with the inputs padded
    to that length, because padding is never attended to. So a searched table serves short
    inputs too, and a family means the same at every length. A row whose kept keys all lie
    beyond the input attends to nothing there, as it does in the padded form.

    Args:
        of: The mask.
        at: The length that it is taken at, in positions (>= 1).

    >>> from masksearch import masks
    >>> masks.cropped(masks.blocks(2), at=4).dense(3)[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """

    kind = "cropped"
    of: Mask
    at: int

    def __post_init__(self) -> None:
        children(self, (self.of,))
        if isinstance(self.at, bool) or not isinstance(self.at, int) or self.at < 1:
            raise ValueError(f"at must be a whole number >= 1, got {self.at!r}")

    @property
    def parts(self) -> tuple[Mask, ...]:
        return (self.of,)

    @property
    def length(self) -> int | None:
        return None

    def allows(self, at: Points) -> Tensor:
        if at.length > self.at:
            raise LengthError(
                f"the mask is cropped from {self.at} positions, asked for {at.length}; "
                f"give inputs of at most {self.at} positions"
            )
        return self.of.allows(replace(at, length=self.at))

    def resolve(self, length: int) -> Mask:
        return Cropped(self.of.resolve(self.at), self.at)


def grid(length: int) -> tuple[Tensor, Tensor]:
    """Query positions as a column and key positions as a row, `[n, 1]` and `[1, n]`."""
    if length < 1:
        raise ValueError(f"length must be at least 1 position, got {length}")
    positions = torch.arange(length)
    return positions[:, None], positions[None, :]


def children(mask: Mask, of: Sequence[Mask]) -> None:
    """Checks the parts of a combination when it is built, so that errors name the culprit."""
    if isinstance(of, Mask) or not of or not all(isinstance(part, Mask) for part in of):
        raise TypeError(f"{mask.kind} combines one or more masks, got {of!r}")
    _ = mask.heads, mask.layers, mask.length


def joined(kind: type[Either] | type[Both], *of: Mask) -> tuple[Mask, ...]:
    """Parts of a chain `a | b | c` side by side instead of nested."""
    flat: list[Mask] = []
    for part in of:
        if not isinstance(part, Mask):
            raise TypeError(f"masks combine with masks only, got {part!r}")
        flat.extend(part.parts if isinstance(part, kind) else (part,))
    return tuple(flat)


def agreed(
    counts: list[int | None], error: type[HeadCountError] | type[LayerCountError], what: str
) -> int | None:
    """The one count that all parts agree on; None where no part cares."""
    found = sorted({count for count in counts if count is not None})
    if len(found) > 1:
        raise error(f"parts of one mask have {' and '.join(map(str, found))} {what}")
    return found[0] if found else None


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
        shape = [int(size) for size in value["shape"]]
        cells = int(np.prod(shape, dtype=np.int64)) if shape and min(shape) > 0 else 0
        size = (cells + 7) // 8
        packed = zlib.decompressobj().decompress(base64.b64decode(value["zlib"]), size + 1)
        if not cells or cells > 1 << 33 or len(packed) != size:
            raise MaskFormatError(f"a table of shape {shape} does not fit its {len(packed)} bytes")
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=cells).astype(bool)
        return torch.from_numpy(bits.reshape(shape))
    return Mask.from_dict(value) if isinstance(value, dict) else value
