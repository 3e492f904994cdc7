"""Checks of the whole numbers that masks are built from: the message says rule and value."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

LARGEST = (1 << 63) - 1  # of an int64, in which positions and offsets are computed
MOST = 1 << 20  # positions that a count may name one by one


def whole(value: Any) -> int | None:
    """A whole number, NumPy's too, as an int; None for anything else (True is no number)."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return None


def at_least(name: str, value: Any, least: int, most: int = LARGEST) -> int:
    """Checks a whole number; the message says the rule and the value."""
    number = whole(value)
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    if number > most:
        size = f"2**{most.bit_length() - 1}" if most.bit_count() == 1 else "2**63 - 1"
        raise ValueError(f"{name} must be at most {size}, got {number}")
    return number


def check_field(mask: object, name: str, least: int) -> None:
    """Checks a field that is a whole number, and makes it an int."""
    object.__setattr__(mask, name, at_least(name, getattr(mask, name), least))


def distinct(name: str, values: Any, least: int | None = None) -> tuple[int, ...]:
    """Sorted distinct whole numbers of a non-empty list."""
    given = [whole(value) for value in values] if isinstance(values, Iterable) else [None]
    if not given:
        raise ValueError(f"{name} must be a non-empty list of whole numbers, got {values!r}")
    if None in given:
        raise ValueError(f"{name} must be a list of whole numbers, got {values!r}")
    found = tuple(sorted({number for number in given if number is not None}))
    if least is not None and found[0] < least:
        raise ValueError(f"{name} must be >= {least}, got {found[0]}")
    if max(-found[0], found[-1]) > LARGEST:
        raise ValueError(f"{name} must be at most 2**63 - 1 in size, got {found[0]}, {found[-1]}")
    return found
