"""Numbers as text: as many decimals as an interval supports, the same for value and bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median_low

UNKNOWN = "-"  # where there is no number
MOST_PLACES = 6  # decimals; smaller numbers are written as 4.9e-07


def decimal_places(value: float, low: float = math.nan, high: float = math.nan) -> int:
    """Decimals that show two significant digits of an interval's half width.

    At least 3 where the numbers are below 10, 2 below 100, and so on. Without an interval, or
    with one of no width: four significant digits of the value.

    >>> decimal_places(0.74771, 0.7186, 0.7768), decimal_places(0.0011, -0.0023, 0.0046)
    (3, 4)
    >>> decimal_places(0.5092), decimal_places(1.0)
    (4, 3)
    """
    half = (high - low) / 2
    if not half > 0:
        return significant_places(value, 4)
    wide = significant_places(max(abs(low), abs(high), 1.0), 4)
    return max(wide, significant_places(half, 2))


def significant_places(value: float, digits: int) -> int:
    """Decimals that show so many significant digits of a value; as of 1 for 0 and infinity."""
    size = abs(value) if value and math.isfinite(value) else 1.0
    return max(0, digits - 1 - math.floor(math.log10(size)))


def column_places(column: Iterable[tuple[float, float, float]]) -> int:
    """Decimals for a column of (value, low, high), so that its numbers stand under each other.

    >>> column_places([(0.748, 0.719, 0.777), (0.5, 0.5, 0.5), (0.71, 0.66, 0.76)])
    3
    """
    rows = [row for row in column if not math.isnan(row[0])]
    wide = [row for row in rows if row[2] > row[1]]
    return median_low([decimal_places(*row) for row in wide or rows] or [3])


def show_number(value: float, places: int | None = None, *, signed: bool = False) -> str:
    """A number with fixed decimals, never "-0"; a hyphen for NaN.

    Args:
        value: Any number.
        places: Decimals; None = four significant digits.
        signed: Whether a plus stands before a number above 0.

    >>> show_number(1.0), show_number(-0.00001, 3), show_number(0.25, 2, signed=True)
    ('1.000', '0.000', '+0.25')
    """
    if not math.isfinite(value):
        return UNKNOWN if math.isnan(value) else f"{value:g}"
    places = decimal_places(value) if places is None else places
    text = f"{value:z.{places}f}" if places <= MOST_PLACES else f"{value:.1e}"
    return f"+{text}" if signed and float(text) > 0 else text


def show_interval(
    value: float, low: float, high: float, places: int | None = None, *, signed: bool = False
) -> str:
    """`value [low, high]`, all three with the same decimals; the value alone without bounds.

    Args:
        value: The estimate.
        low: Lower bound; NaN = unknown.
        high: Upper bound.
        places: Decimals; None = as `decimal_places`.
        signed: Whether a plus stands before a value (not a bound) above 0: for differences.

    >>> show_interval(0.7477, 0.7186, 0.7768), show_interval(1.0, 1.0, 1.0)
    ('0.748 [0.719, 0.777]', '1.000 [1.000, 1.000]')
    >>> show_interval(0.00115, -0.00231, 0.00461, signed=True)
    '+0.0011 [-0.0023, 0.0046]'
    """
    places = decimal_places(value, low, high) if places is None else places
    text = show_number(value, places, signed=signed)
    if math.isnan(low) or math.isnan(high):
        return text
    return f"{text} [{show_number(low, places)}, {show_number(high, places)}]"


def show_p(p_value: float) -> str:
    """A p-value to three decimals; `<0.001` below that, a hyphen for NaN.

    >>> show_p(0.62), show_p(6.2e-14)
    ('0.620', '<0.001')
    """
    return "<0.001" if p_value < 0.001 else show_number(p_value, 3)
