"""A mask is a frozen expression tree: leaves say which (query, key) pairs may attend.

One method per leaf, `allows(points) -> bool tensor`, serves the dense form, row-wise measures,
block views and FlexAttention's `mask_mod`, at any length. True = may attend, everywhere.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import and_, or_
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.errors import (
    HeadCountError,
    LayerCountError,
    MaskFormatError,
    TokensNeededError,
    unknown_name,
)
from masksearch.masks.checks import (
    COUNTED,
    MOST_NODES,
    MOST_PLANES,
    TABLED,
    at_least,
    check_length,
    common_count,
    grid,
    no_empty_rows,
    pack_bits,
    unpack_bits,
)
from masksearch.masks.picture import LENGTH, mask_html

DenseMask = Annotated[Tensor, "layers heads queries keys"]  # bool, True = may attend
SHOWN = 160  # largest number of bits that an expression spells out
CELLS_AT_ONCE = 1 << 18  # cells of a chunk of rows: its int64 temporaries stay in a core's cache


@dataclass(frozen=True)
class Points:
    """The pairs (query, key) that a mask is asked about: index tensors that broadcast.

    Args:
        query: int64 positions of the queries.
        key: int64 positions of the keys.
        length: Number of positions of the whole table.
        layer: Layer index; a tensor only inside a FlexAttention `mask_mod`.
        head: Head index; likewise.
        tokens: Input ids, int `[batch, n]`, where they are known: what is returned is then
            bool `[batch, queries, keys]`, or without the batch where it is the same for all.
    """

    query: Tensor
    key: Tensor
    length: int
    layer: int = 0
    head: int | Tensor = 0
    tokens: Tensor | None = None

    @property
    def offset(self) -> Tensor:
        """Signed offset `key - query`."""
        return self.key - self.query


class Mask:
    """Base of all masks. Build masks with the names of `masksearch.masks`.

    Masks combine with `|` (either allows), `&` (both allow), `~` (complement) and `-`
    (without). Equality and hash are structural; `masks.measure.fingerprint` compares bits.

    A mask of one's own is a frozen dataclass with a `kind` and one method, `allows`: it then
    prints, parses, stores, attaches and searches like the others. Its fields are whole numbers,
    floats, strings, tuples of them, bool tensors, or masks. One whose cells follow the offset
    `key - query` alone may say `by_offset = True`: its keys are then counted at any length.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Mask]]] = {}

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
    @cached_property
    def parts(self) -> tuple[Mask, ...]:
        """Direct children: the masks among the fields (empty for a leaf)."""
        values = [getattr(self, name) for name in field_names(self)]
        several = [value if isinstance(value, tuple) else (value,) for value in values]
        return tuple(one for value in several for one in value if isinstance(one, Mask))

    def _map_parts(self, change: Callable[[Mask], Mask]) -> Mask:
        """The same combination of changed parts; a leaf is returned as it is."""
        changed: dict[str, Any] = {}
        for name in field_names(self):
            value = getattr(self, name)
            if isinstance(value, Mask):
                changed[name] = change(value)
            elif isinstance(value, tuple) and any(isinstance(one, Mask) for one in value):
                changed[name] = tuple(change(one) for one in value)
        return dataclasses.replace(cast(Any, self), **changed) if changed else self

    @cached_property
    def heads(self) -> int | None:
        """Number of heads that the mask tells apart; None = the same for any number."""
        return common_count([part.heads for part in self.parts], HeadCountError, "heads")

    @cached_property
    def layers(self) -> int | None:
        """Number of layers that the mask tells apart; None = the same for any number."""
        return common_count([part.layers for part in self.parts], LayerCountError, "layers")

    @property
    def length(self) -> int | None:
        """The only length that the mask has, in positions; None = any."""
        lengths = sorted({part.length for part in self.parts if part.length is not None})
        if len(lengths) > 1:
            sizes = " and ".join(map(str, lengths))
            raise MaskFormatError(f"tables of {sizes} positions cannot be in one mask")
        return lengths[0] if lengths else None

    @property
    def longest(self) -> int | None:
        """The most positions that the mask reaches; None = any number."""
        limit = self.length if not self.parts else None
        limits = [limit, *(part.longest for part in self.parts)]
        return min((one for one in limits if one is not None), default=None)

    @property
    def needs_tokens(self) -> bool:
        """Whether cells follow the tokens, so that every batch has tables of its own."""
        return any(part.needs_tokens for part in self.parts)

    @property
    def by_offset(self) -> bool:
        """Whether cells follow the offset `key - query` alone, at every layer and head."""
        return isinstance(self, Either | Both | Complement) and all(
            p.by_offset for p in self.parts
        )

    def counts(self, layers: int, heads: int) -> None:
        """Checks that the mask fits that many layers and heads.

        Raises:
            LayerCountError, HeadCountError: If it was built for other counts.
            ValueError: If one of them is below 1, or there are more than 32,768 in all.
        """
        if layers < 1 or heads < 1:
            raise ValueError(f"layers and heads are at least 1, got {layers} and {heads}")
        at_least("layers x heads", layers * heads, 1, MOST_PLANES)
        if self.layers not in (None, layers):
            raise LayerCountError(
                f"the mask has {self.layers} layers, asked for {layers}; "
                "per_layer needs one mask for each layer"
            )
        if self.heads not in (None, heads):
            raise HeadCountError(
                f"the mask has {self.heads} heads, asked for {heads}; per_head needs one for each"
            )

    def of_layer(self, layer: int) -> Mask:
        """The mask of one layer alone (the mask itself where it does not tell layers apart).

        Raises:
            ValueError: If there is no such layer.
        """
        if self.layers is None:
            return self
        if not 0 <= layer < self.layers:
            raise ValueError(f"layer must be in [0, {self.layers}), got {layer}")
        return self.single_layer(layer)

    def single_layer(self, layer: int) -> Mask:
        """As `of_layer`, of a mask that tells layers apart; a leaf that does says how."""
        if not self.parts:
            raise TypeError(f"{self.kind} tells layers apart and has no method single_layer")
        return self._map_parts(lambda part: part.of_layer(layer))

    def of_head(self, head: int) -> Mask:
        """The mask of one head, as far as the expression says it; a leaf with heads of its own
        stays whole.

        >>> from masksearch import masks
        >>> (masks.per_head([masks.window(1), masks.full()]) & masks.causal()).of_head(0)
        window(1) & causal()
        """
        if self.heads is None or not self.parts:
            return self
        return self._map_parts(lambda part: part.of_head(head))

    def resolve(self, length: int) -> Mask:
        """The same mask with every random leaf replaced by the keys that it draws there."""
        return self._map_parts(lambda part: part.resolve(length))

    # -- algebra -----------------------------------------------------------------------------
    def __or__(self, other: Mask) -> Mask:
        return Either(join_chain(Either, self, other))

    def __add__(self, other: Mask) -> NoReturn:
        raise TypeError("masks are joined by |, such as window(3) | columns(1), and not by +")

    def __and__(self, other: Mask) -> Mask:
        return Both(join_chain(Both, self, other))

    def __sub__(self, other: Mask) -> Mask:
        return Both(join_chain(Both, self, Complement(other)))

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

    def to_dict(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """Plain data: `{"kind": ..., **fields}`.

        Args:
            tensors: Where bits are put under a name; None = they are packed into the data.
        """
        fields = {name: _to_plain(getattr(self, name), tensors) for name in field_names(self)}
        return {"kind": self.kind} | fields

    def to_json(self) -> str:
        """Canonical JSON of the expression; `from_json` reads it back."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_dict(data: Any, tensors: Mapping[str, Tensor] | None = None) -> Mask:
        """Inverse of `to_dict`.

        Raises:
            MaskFormatError: If the data is not the plain form of a mask, or of too large a one.
        """
        nodes: list[Any] = [data] if isinstance(data, dict) else []
        for node in nodes:  # which grows
            parts = node.values() if isinstance(node, dict) else node
            nodes += [each for each in parts if isinstance(each, dict | list)]
            if len(nodes) > MOST_NODES:
                raise MaskFormatError(f"a mask that is read has at most {MOST_NODES} parts")
        return Mask.build(data, tensors)

    @staticmethod
    def build(data: Any, tensors: Mapping[str, Tensor] | None) -> Mask:
        """One part of a mask, and those in it; see `from_dict`."""
        if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
            raise MaskFormatError(f"a mask is an object with a 'kind', got {str(data)[:80]}")
        kind = str(data["kind"])
        if kind not in Mask.kinds:
            unknown = unknown_name("mask kind", kind, sorted(Mask.kinds))
            raise MaskFormatError(
                f"{unknown}; a kind of your own is known once it is imported, one of a later "
                "version of masksearch with that version"
            )
        cls = Mask.kinds[kind]
        names = [field.name for field in dataclasses.fields(cast(Any, cls))]
        values = {name: value for name, value in data.items() if name != "kind"}
        if sorted(values) != sorted(names):
            raise MaskFormatError(
                f"{kind} has the fields {names}, got {sorted(values)}; "
                "the file was written by another version or edited"
            )
        try:
            return cls(**{name: _from_plain(value, tensors) for name, value in values.items()})
        except MaskFormatError:
            raise
        except (TypeError, ValueError, OverflowError, RecursionError, zlib.error) as error:
            raise MaskFormatError(f"{kind} cannot be built: {error}") from error

    @staticmethod
    def from_json(text: str | bytes) -> Mask:
        """Reads the JSON form of a mask.

        Raises:
            MaskFormatError: If the text is not JSON, or not a mask.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MaskFormatError(f"not JSON that can be read: {error}") from error
        return Mask.from_dict(data)

    def __str__(self) -> str:
        """The expression that `masksearch.masks.parse` reads back."""
        return family_name(self) or self.expression()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """A picture at the mask's own length or at 64 positions, for notebooks."""
        length = self.length or min(LENGTH, self.longest or LENGTH)
        return mask_html(str(self), None if self.needs_tokens else self.dense(length))

    def expression(self) -> str:
        """`kind(fields)`; flags as they are by default are left out, large tensors show their
        shape."""
        words, large = [], False
        for name in field_names(self):
            value = getattr(self, name)
            if isinstance(value, bool):
                usual = getattr(type(self), name, None)
                words += [f"{name}={value}"] if value is not usual else []
                continue
            large |= isinstance(value, Tensor) and value.numel() > SHOWN
            words.append(_field_text(value))
        return f"{self.kind}({', '.join(words + [self.digest[:8]] * large)})"

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

        Raises:
            ValueError: Beyond 131,072 positions.
        """
        check_length(length, COUNTED, " of what is counted cell by cell")
        resolved = self.of_layer(layer).of_head(head).resolve(length)  # random keys: drawn once
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
            TokensNeededError: If the cells follow the tokens (see `table`).
            ValueError: Beyond 65,536 positions; `row_chunks` gives some rows at a time.
        """
        layers = self.layers or 1 if layers == 1 else layers
        heads = self.heads or 1 if heads == 1 else heads
        self.counts(layers, heads)
        check_length(length, TABLED, " of a table of all cells")
        query, key = grid(length)
        planes = [self.allows(Points(query, key, length, *plane)) for plane in self.planes]
        table = torch.stack([plane.expand(length, length) for plane in planes])
        table = table.view(self.layers or 1, self.heads or 1, length, length)
        return table.expand(layers, heads, length, length).contiguous()

    def table(self, input_ids: Tensor) -> Tensor:
        """Which keys each query may attend to, in each example of a batch of tokens.

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
        self.refuse_layers("a table")
        batch, length = input_ids.shape
        query, key = (index.to(input_ids.device) for index in grid(length))
        heads = [
            self.allows(Points(query, key, length, 0, head, input_ids))
            for head in range(self.heads or 1)
        ]
        cells = torch.stack([head.expand(batch, length, length) for head in heads], 1)
        no_empty_rows(cells, first="example", under=f" under {self}")
        return cells

    def refuse_tokens(self) -> None:
        """Raises TokensNeededError where cells follow the tokens, which are not known here."""
        if self.needs_tokens:
            raise TokensNeededError(
                f"{self} has cells only where input ids are known: call mask.table(input_ids), "
                "or put it on a model with masksearch.attach, or leave out the part that follows "
                "the tokens"
            )

    def kept(self, length: int, causal: bool = False) -> int:
        """Number of kept cells over the planes that the mask tells apart, exact; where `causal`
        only of those whose key is not later than the query."""
        check_length(length)
        planes, index = distinct_planes(self)
        counts = [plane.mask.kept_of_head(length, plane.head, causal) for plane in planes]
        return sum(counts[number] for number in index)

    def kept_of_head(self, length: int, head: int, causal: bool) -> int:
        """As `kept`, of one head of a mask that does not tell layers apart."""
        if self.by_offset:
            return int(self.counts_by_offset(length, head, causal).sum())
        total = first = 0
        for rows in self.row_chunks(length, head=head):
            total += int((rows.tril(first) if causal else rows).count_nonzero())
            first += len(rows)
        return total

    def counts_by_offset(self, length: int, head: int = 0, causal: bool = False) -> Tensor:
        """Kept keys of each query, int64 `[n]`, of a mask of one layer that is `by_offset`; where
        `causal`, of the keys that are not later."""
        check_length(length)
        offset = torch.arange(1 - length, length)
        kept = self.allows(Points(torch.zeros_like(offset), offset, length, 0, head))
        sums = F.pad((kept & (offset <= 0) if causal else kept).cumsum(0), (1, 0))
        return (sums[length:] - sums[:length]).flip(0)  # query q sees the offsets -q .. n - 1 - q

    def density(self, length: int, causal: bool = False) -> float:
        """Kept share of the n x n cells or, where `causal`, of the n (n + 1) / 2 that a decoder
        can use; in [0, 1], over all layers and heads."""
        kept = self.kept(length, causal)  # first: it refuses what is no length
        return kept / (len(self.planes) * (length * (length + 1) // 2 if causal else length**2))

    def sparsity(self, length: int, causal: bool = False) -> float:
        """`1 - density`, in [0, 1] (SparseBERT, Section 4.3: 1 - |M| / n^2).

        Of data with padding see `masksearch.masks.measure.effective_density`.

        >>> from masksearch import masks
        >>> masks.causal().sparsity(4), masks.causal().sparsity(4, causal=True)
        (0.375, 0.0)
        """
        return 1 - self.density(length, causal)

    def refuse_layers(self, what: str) -> None:
        """Raises LayerCountError where the mask tells layers apart, with the remedy."""
        if self.layers not in (None, 1):
            raise LayerCountError(
                f"{what} serves one layer, the mask has {self.layers}; "
                "call masks.layer_of(mask, layer) first"
            )

    def on_device(self, device: torch.device | str) -> Mask:
        """The mask with its tensors on a device, as `mask_mod` captures them."""
        moved = copy.copy(self._map_parts(lambda part: part.on_device(device)))
        for name in field_names(self):
            if isinstance(value := getattr(moved, name), Tensor):
                object.__setattr__(moved, name, value.to(device))
        return moved

    def mask_mod(
        self, length: int, device: torch.device | str = "cpu"
    ) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """FlexAttention's predicate `(batch, head, query, key) -> bool` for layer 0.

        Random keys (as a list for each query) and tables become captured tensors; a mask that
        differs by layer is taken apart with `layer_of` first. A compiled FlexAttention has a graph
        for each expression; `masks.lower.flex_block_mask` makes a predicate with one for all.

        Args:
            length: Positions.
            device: Where FlexAttention computes: the captured tensors are moved there once, here,
                because a compiled predicate cannot move them.

        Raises:
            LayerCountError: If the mask tells layers apart.
            TokensNeededError: If the cells follow the tokens.
        """
        self.refuse_layers("mask_mod")
        self.refuse_tokens()
        resolved = self.resolve(length).on_device(device)

        def predicate(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return resolved.allows(Points(query, key, length, 0, head))

        return predicate


# -- combinations: the algebra -------------------------------------------------------------------
@dataclass(frozen=True, eq=False, repr=False)
class Either(Mask):
    """Kept where any part keeps: `a | b`."""

    kind = "or"
    of: tuple[Mask, ...]

    def __post_init__(self) -> None:
        check_parts(self, self.of)

    def allows(self, at: Points) -> Tensor:
        return reduce(or_, (part.allows(at) for part in self.of))

    def expression(self) -> str:
        """`a | b`."""
        return " | ".join(map(operand, self.of))


@dataclass(frozen=True, eq=False, repr=False)
class Both(Mask):
    """Kept where every part keeps: `a & b`; also `a - b` as `a & ~b`."""

    kind = "and"
    of: tuple[Mask, ...]

    def __post_init__(self) -> None:
        check_parts(self, self.of)

    def allows(self, at: Points) -> Tensor:
        return reduce(and_, (part.allows(at) for part in self.of))

    def expression(self) -> str:
        """`a & b - c`."""
        first, *rest = self.of
        return operand(first) + "".join(
            f" - {operand(part.of)}" if isinstance(part, Complement) else f" & {operand(part)}"
            for part in rest
        )


@dataclass(frozen=True, eq=False, repr=False)
class Complement(Mask):
    """Kept where the part does not keep: `~a`."""

    kind = "not"
    of: Mask

    def __post_init__(self) -> None:
        check_parts(self, (self.of,))

    def allows(self, at: Points) -> Tensor:
        return ~self.of.allows(at)

    def expression(self) -> str:
        """`~a`."""
        return f"~{operand(self.of)}"


def join_chain(kind: type[Either] | type[Both], *of: Mask) -> tuple[Mask, ...]:
    """Parts of a chain `a | b | c` side by side instead of nested."""
    flat: list[Mask] = []
    for part in of:
        if not isinstance(part, Mask):
            raise TypeError(f"masks combine with masks only, got {part!r}")
        flat.extend(part.parts if isinstance(part, kind) else (part,))
    return tuple(flat)


def operand(mask: Mask) -> str:
    """The text of a part of a combination, in parentheses where it is one itself."""
    bare = not isinstance(mask, Either | Both) or family_name(mask)
    return str(mask) if bare else f"({mask})"


def check_mask(name: str, mask: Any) -> None:
    """Refuses what is no mask, where a function of that name takes one."""
    if not isinstance(mask, Mask):
        raise TypeError(f"{name} takes a mask, got {mask!r}; masks.parse reads one from a text")


def check_parts(mask: Mask, of: Sequence[Mask]) -> None:
    """Checks the parts of a combination when it is built, so that errors name the culprit."""
    if not isinstance(of, tuple) or not of or not all(isinstance(part, Mask) for part in of):
        raise TypeError(f"{mask.kind} combines one or more masks, got {of!r}")
    at_least("layers x heads", (mask.layers or 1) * (mask.heads or 1), 1, MOST_PLANES)
    _ = mask.length


# -- the tables of single layers and heads, each one once ----------------------------------------
@dataclass(frozen=True)
class Plane:
    """One layer and head of a mask.

    Args:
        mask: A mask that does not tell layers apart.
        head: Which head of it, where it tells heads apart.
    """

    mask: Mask
    head: int = 0


def distinct_planes(mask: Mask) -> tuple[list[Plane], list[int]]:
    """The planes of a mask, equal expressions once.

    Returns:
        The planes, and for each of `mask.planes` its number among them.

    >>> from masksearch import masks
    >>> distinct_planes(masks.per_layer([masks.star(), masks.full(), masks.star()]))[1]
    [0, 1, 0]
    """
    if mask.layers is None and mask.heads is None:
        return [Plane(mask)], [0]
    planes: list[Plane] = []
    numbers: dict[Mask, int] = {}
    index: list[int] = []
    layers, heads = mask.layers or 1, mask.heads or 1  # each reads all parts
    for layer in range(layers):
        layer_mask = mask.of_layer(layer)
        for head in range(heads):
            single = layer_mask.of_head(head)
            several = single.heads is not None  # bits of several heads: not looked at
            number = len(planes) if several else numbers.setdefault(single, len(planes))
            if number == len(planes):
                planes.append(Plane(single, head if several else 0))
            index.append(number)
    return planes, index


# -- recipes: functions that build masks of several leaves ----------------------------------------
Recipe = TypeVar("Recipe", bound=Callable[..., Mask])
RECIPES: dict[str, Callable[..., Mask]] = {}
FAMILIES: dict[str, Mask] = {}  # name -> mask, with the defaults of the recipe


def recipe(function: Recipe) -> Recipe:
    """Decorator: `masks.parse` and `masks.NAME` find the function by its name."""
    RECIPES[function.__name__] = function
    return function


def family(function: Recipe) -> Recipe:
    """Decorator: as `recipe`; its mask by default joins the hand-designed ones, `FAMILIES`."""
    FAMILIES[function.__name__] = function()
    return recipe(function)


def _field_text(value: Any) -> str:
    """The text of a field in an expression: lists of 0 and 1 for bits, or their shape."""
    if isinstance(value, Tensor):
        if value.numel() > SHOWN:
            return "x".join(map(str, value.shape))
        return str(value.int().tolist()).replace(" ", "")
    return f"[{', '.join(map(_field_text, value))}]" if isinstance(value, tuple) else repr(value)


def family_name(mask: Mask) -> str:
    """`name()` of the family that has exactly this expression; empty where there is none."""
    return next((f"{name}()" for name, family in FAMILIES.items() if family == mask), "")


# -- plain data and text of fields ----------------------------------------------------------------
def field_names(mask: Mask) -> list[str]:
    """The names of a mask's dataclass fields."""
    if not dataclasses.is_dataclass(mask):
        return []
    return [field.name for field in dataclasses.fields(mask)]


def _to_plain(value: Any, tensors: dict[str, Tensor] | None = None) -> Any:
    """JSON data of a mask's field."""
    if isinstance(value, Mask):
        return value.to_dict(tensors)
    if isinstance(value, tuple):
        return [_to_plain(item, tensors) for item in value]
    if isinstance(value, Tensor) and tensors is not None:
        name = f"table{len(tensors)}"
        tensors[name] = value.to(torch.uint8).contiguous()
        return {"tensor": name}
    if isinstance(value, Tensor):
        return pack_bits(value)
    return value


def _from_plain(value: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """Inverse of `_to_plain`."""
    if isinstance(value, list):
        if len(value) > MOST_PLANES and isinstance(value[0], dict):
            raise MaskFormatError(f"a list of masks has at most {MOST_PLANES}, got {len(value)}")
        return tuple(_from_plain(item, tensors) for item in value)
    if isinstance(value, dict) and set(value) == {"tensor"}:
        tensor = (tensors or {}).get(str(value["tensor"]))
        if tensor is None:
            raise MaskFormatError(f"there is no tensor {value['tensor']!r}")
        if tensor.dtype != torch.uint8 or (tensor > 1).any():
            raise MaskFormatError(f"{value['tensor']} holds {tensor.dtype}, not cells of 0 and 1")
        return tensor.bool()
    if isinstance(value, dict) and set(value) == {"shape", "zlib"}:
        return unpack_bits(value)
    return Mask.build(value, tensors) if isinstance(value, dict) else value
