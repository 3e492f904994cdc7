"""Hypothesis strategies for random mask expressions, over every leaf and combination.

All masks of one length are compatible: they tell apart no heads or `HEADS`, no layers or
`LAYERS`. `sized_trees` draws a length with its mask, `pairs` two masks of one length.
"""

import dataclasses
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st

from masksearch import masks

HEADS, LAYERS = 2, 3
Drawn = st.SearchStrategy[masks.Mask]
Sized = st.SearchStrategy[tuple[int, masks.Mask]]


@cache
def bits(*shape: int) -> st.SearchStrategy[torch.Tensor]:
    """bool tensors of that shape."""
    cells = int(torch.Size(shape).numel())
    return st.integers(0, 2**cells - 1).map(
        lambda drawn: torch.tensor([bool(drawn >> i & 1) for i in range(cells)]).view(shape)
    )


@cache
def toeplitz(length: int, *front: int) -> Drawn:
    """Toeplitz masks that reach the length, or a little farther."""
    unsigned = st.integers(length, length + 2).flatmap(
        lambda size: bits(*front, size).map(masks.toeplitz)
    )
    signed = bits(*front, 2 * length - 1).map(lambda drawn: masks.toeplitz(drawn, signed=True))
    return unsigned | signed


@cache
def layouts(length: int, *front: int) -> Drawn:
    """Block layouts that reach the length, or a little farther."""
    blocks = st.integers(max(1, -(-length // 4)), length + 1)
    return blocks.flatmap(
        lambda block: st.builds(
            masks.block_layout, bits(*front, *[-(-length // block)] * 2), st.just(block)
        )
    )


@cache
def grids(length: int) -> Drawn:
    """Axial masks that reach the length, or a little farther."""
    shapes = st.tuples(st.integers(1, length + 1), st.integers(0, length))
    return shapes.map(
        lambda shape: masks.axial(max(1, -(-(length - shape[1]) // shape[0])), *shape)
    )


@cache
def leaves(length: int, tables: bool = True) -> Drawn:
    """Every kind of leaf that tells neither heads nor layers apart."""
    choices = [
        *(drawn for kind in masks.Mask.kinds.values() for drawn in by_annotations(kind, length)),
        st.builds(masks.global_tokens, st.integers(1, length + 1)),
        st.builds(masks.columns, st.integers(1, length + 1)),
        st.builds(masks.random_keys, st.integers(0, length + 1), st.integers(0, 2**63 - 1)),
        st.sampled_from(list(masks.FAMILIES.values())),
        toeplitz(length),
        grids(length),
        layouts(length),
    ]
    return st.one_of(choices + [bits(length, length).map(masks.table)] * tables)


def by_annotations(kind: type[masks.Mask], length: int) -> list[Drawn]:
    """Leaves of a kind whose fields are whole numbers, flags, or lists of whole numbers.

    So a new leaf of that sort is tested without a line here.
    """
    number = st.integers(0, length + 1)
    known = {
        "int": number,
        "bool": st.booleans(),
        "Collection[int]": st.lists(st.integers(-length, length + 1), min_size=1, max_size=3),
    }
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    if not kind.__module__.startswith("masksearch.") or not set(types.values()) <= set(known):
        return []
    if kind.needs_tokens is True:
        return []

    def built(fields: dict[str, Any]) -> masks.Mask | None:
        for change in (lambda value: value, positive):  # most lists hold no negative numbers
            try:
                mask = kind(**{name: change(value) for name, value in fields.items()})
                mask.dense(length)
            except ValueError:
                continue
            return mask
        return None

    fields = st.fixed_dictionaries({name: known[type_] for name, type_ in types.items()})
    return [fields.map(built).filter(lambda mask: mask is not None)]


def positive(value: Any) -> Any:
    """The absolute values of numbers; 1 for 0."""
    return [abs(one) for one in value] if isinstance(value, list) else value or 1


def combined(base: Drawn, most: int = 4) -> Drawn:
    """Masks of that kind combined by | & - ~."""
    return st.recursive(
        base,
        lambda part: st.one_of(
            st.builds(lambda a, b: a | b, part, part),
            st.builds(lambda a, b: a & b, part, part),
            st.builds(lambda a, b: a - b, part, part),
            st.builds(lambda a: ~a, part),
            st.builds(masks.without_diagonal, part),
        ),
        max_leaves=most,
    )


@cache
def trees(length: int, tables: bool = True, layers: bool = True, heads: bool = True) -> Drawn:
    """Masks that have that length (and maybe others)."""
    single = combined(
        leaves(length, tables)
        | st.integers(length, length + 3).flatmap(
            lambda at: st.builds(masks.cropped, leaves(at, tables), st.just(at))
        )
    )
    kinds = [single]
    if heads:
        kinds += [
            st.lists(single, min_size=HEADS, max_size=HEADS).map(masks.per_head),
            toeplitz(length, HEADS),
            layouts(length, HEADS),
        ] + [bits(HEADS, length, length).map(masks.table)] * tables
    headed = combined(st.one_of(kinds), 3)
    if not layers:
        return headed
    layered = [
        headed,
        st.lists(headed, min_size=LAYERS, max_size=LAYERS).map(masks.per_layer),
        toeplitz(length, LAYERS, HEADS if heads else 1),
        layouts(length, LAYERS, HEADS if heads else 1),
    ] + [bits(LAYERS, HEADS if heads else 1, length, length).map(masks.table)] * tables
    return combined(st.one_of(layered), 2)


def token_masks(length: int, ids: Drawn, tables: bool = True) -> Drawn:
    """Masks of that length that may follow the tokens, by leaves such as `special_tokens(..)`."""
    plain = combined(ids | trees(length, tables, layers=False, heads=False), 4)
    several = st.lists(plain, min_size=HEADS, max_size=HEADS).map(masks.per_head)
    headed = combined(plain | several | trees(length, tables, layers=False), 2)
    layered = st.lists(headed, min_size=LAYERS, max_size=LAYERS).map(masks.per_layer)
    return combined(headed | layered | trees(length, tables), 2)


def any_mask(tables: bool = True) -> Drawn:
    """Masks of every kind: those of `sized_trees`, and those that follow the tokens."""
    few = st.lists(st.integers(0, 999), min_size=1, max_size=2)
    ids = few.map(masks.special_tokens) | few.map(masks.same_token) | few.map(masks.token_columns)
    return sized_trees(tables=tables).map(lambda sized: sized[1]) | token_masks(5, ids, tables)


def sized_trees(
    longest: int = 6, tables: bool = True, layers: bool = True, heads: bool = True
) -> Sized:
    """`(length, mask)`."""
    return st.integers(1, longest).flatmap(
        lambda length: st.tuples(st.just(length), trees(length, tables, layers, heads))
    )


def pairs(longest: int = 6) -> st.SearchStrategy[tuple[int, masks.Mask, masks.Mask]]:
    """`(length, mask, mask)`."""
    return st.integers(1, longest).flatmap(
        lambda length: st.tuples(st.just(length), trees(length), trees(length))
    )


def kinds_of(mask: masks.Mask) -> set[str]:
    """Every kind that occurs in an expression."""
    return {mask.kind}.union(*(kinds_of(part) for part in mask.parts))
