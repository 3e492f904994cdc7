import math

from hypothesis import given
from hypothesis import strategies as st

from masksearch.analysis.numbers import column_places, show_interval, show_number

numbers = st.floats(-1e4, 1e4)
halves = st.floats(0, 1e3)


@given(numbers, halves)
def test_value_and_bounds_have_the_same_decimals(value, half):
    text = show_interval(value, value - half, value + half, signed=True)
    parts = text.replace("[", "").replace("]", "").replace(",", "").split()
    assert len({len(part.partition("e")[0].partition(".")[2]) for part in parts}) == 1
    assert not any(float(part) == 0 and part[0] in "+-" for part in parts)


def test_a_column_has_one_number_of_decimals():
    rows = [(0.5, 0.5, 0.5), (0.7477, 0.7186, 0.7768), (0.61234, 0.60012, 0.62456)]
    places = column_places([*rows, (math.nan, math.nan, math.nan)])
    assert [show_interval(*row, places) for row in rows] == [
        "0.500 [0.500, 0.500]",
        "0.748 [0.719, 0.777]",
        "0.612 [0.600, 0.625]",
    ]
    assert show_number(math.nan, places) == "-"
