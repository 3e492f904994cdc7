"""Parts of masks: whole numbers, positions and tables of bits, checked and stored."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masksearch.errors import EmptyRowError, HeadCountError, LayerCountError, MaskFormatError

LARGEST = (1 << 63) - 1  # of an int64, in which positions and offsets are computed
MOST_CELLS = 1 << 32  # cells of a table that is read from a file: 4 GiB as bools
MOST = 1 << 20  # positions that a count may name one by one
LONGEST = 1 << 22  # positions that a mask is taken at
COUNTED = 1 << 17  # positions up to which cells are looked at one by one: a minute of a core
TABLED = 1 << 16  # positions of a table of all cells: 4 GiB as bools
MOST_PLANES = 1 << 15  # layers x heads of a mask
MOST_NODES = 6 * MOST_PLANES  # parts of a mask that is read, lists too


def whole(value: Any) -> int | None:
    """A whole number, NumPy's too, as an int; None for anything else (True is no number)."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


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


def distinct(
    name: str, values: Any, least: int | None = None, empty: bool = False
) -> tuple[int, ...]:
    """Sorted distinct whole numbers of a list, which may be `empty` or not."""
    listed = [whole(value) for value in values] if isinstance(values, Iterable) else [None]
    if not listed and empty:
        return ()
    if not listed:
        raise ValueError(f"{name} must be a non-empty list of whole numbers, got {values!r}")
    if None in listed:
        raise ValueError(f"{name} must be a list of whole numbers, got {values!r}")
    numbers = tuple(sorted({number for number in listed if number is not None}))
    if least is not None and numbers[0] < least:
        raise ValueError(f"{name} must be >= {least}, got {numbers[0]}")
    if max(-numbers[0], numbers[-1]) > LARGEST:
        raise ValueError(
            f"{name} must be at most 2**63 - 1 in size, got {numbers[0]}, {numbers[-1]}"
        )
    return numbers


def check_length(length: Any, most: int = LONGEST, where: str = "") -> None:
    """Refuses what is no length of a mask; `where` says what the largest one is of."""
    if whole(length) is None:
        raise ValueError(f"length must be a whole number of positions, got {length!r}")
    if length < 1:
        raise ValueError(f"length must be at least 1 position, got {length}")
    at_least(f"length{where}", length, 1, most)


def grid(length: int) -> tuple[Tensor, Tensor]:
    """Query positions as a column and key positions as a row, `[n, 1]` and `[1, n]`."""
    check_length(length)
    positions = torch.arange(length)
    return positions[:, None], positions[None, :]


def no_empty_rows(cells: Tensor, first: str = "layer", under: str = "") -> None:
    """Refuses tables in which a query keeps no key.

    Args:
        cells: bool `[layers, heads, queries, keys]`.
        first: What the first axis counts.
        under: Words behind "keeps no key", from a space on.

    Raises:
        EmptyRowError: Names the first such row.
    """
    empty = ~cells.any(-1)
    if empty.any():
        index, head, row = (int(index) for index in empty.nonzero()[0])
        here, rows = int(empty[index, head].sum()), empty.shape[-1]
        whole = f", {int(empty.sum())} of {empty.numel()} in all" if empty.numel() > rows else ""
        raise EmptyRowError(
            f"{first} {index}, head {head}, row {row} keeps no key{under} "
            f"({here} of {rows} rows are empty{whole}); a row without keys has no "
            "attention: add for example masks.window(0), the diagonal"
        )


def pack_bits(bits: Tensor) -> dict[str, Any]:
    """Bits as JSON data: their shape, and the bits themselves compressed."""
    packed = np.packbits(bits.numpy(force=True).reshape(-1)).tobytes()
    return {"shape": list(bits.shape), "zlib": base64.b64encode(zlib.compress(packed)).decode()}


def unpack_bits(data: Mapping[str, Any]) -> Tensor:
    """Inverse of `pack_bits`; what is decompressed never exceeds the bits that the shape names.

    Raises:
        MaskFormatError: If the data is not the form of a table.
    """
    shape = data["shape"]
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise MaskFormatError(f"a table's shape is a list of sizes, got {str(shape)[:80]}")
    cells = math.prod(shape)
    if cells > MOST_CELLS:
        raise MaskFormatError(f"a table has at most {MOST_CELLS} cells, got shape {shape}")
    most = (cells + 7) // 8
    compressed = base64.b64decode(data["zlib"], validate=True)
    packed = zlib.decompressobj().decompress(compressed, most + 1)
    if len(packed) != most:
        raise MaskFormatError(f"a table of shape {shape} does not fit its {len(packed)} bytes")
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=cells).astype(bool)
    return torch.from_numpy(bits.reshape(shape))


def common_count(
    counts: list[int | None], error: type[HeadCountError] | type[LayerCountError], what: str
) -> int | None:
    """The one count that all parts agree on; None where no part cares."""
    counts_seen = sorted({count for count in counts if count is not None})
    if len(counts_seen) > 1:
        raise error(f"parts of one mask have {' and '.join(map(str, counts_seen))} {what}")
    return counts_seen[0] if counts_seen else None
