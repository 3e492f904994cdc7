"""Arguments of masks: NumPy's whole numbers, and messages for what is none."""

from __future__ import annotations

import numpy as np
import pytest

from masksearch import masks
from masksearch.errors import HeadCountError, LayerCountError, MaskFormatError


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (masks.window(np.int64(3)), masks.window(3)),
        (masks.dilated(np.int32(4), np.uint8(2)), masks.dilated(4, 2)),
        (masks.global_tokens(np.int64(2)), masks.global_tokens(2)),
        (masks.global_tokens(positions=np.array([5, 0])), masks.global_tokens(positions=[0, 5])),
        (masks.axial(np.int64(2), np.int64(3)), masks.axial(2, 3)),
        (masks.a_shape(np.int64(1), np.int8(3)), masks.a_shape(1, 3)),
        (masks.strided(np.int64(4)), masks.strided(4)),
        (masks.random_keys(np.int64(2), np.int64(7)), masks.random_keys(2, 7)),
        (masks.cropped(masks.window(1), np.int64(8)), masks.cropped(masks.window(1), 8)),
        (masks.vertical_slash(np.array([3, 0]), [np.int64(1)]), masks.vertical_slash([0, 3], [1])),
        (masks.special_tokens(np.int64(3)), masks.special_tokens(3)),
        (masks.special_tokens(np.array([3, 1])), masks.special_tokens(1, 3)),
    ],
)
def test_numbers_of_numpy_are_numbers(given, plain):
    assert given == plain
    assert given.digest == plain.digest
    assert str(given) == str(plain)
    assert type(given).from_json(given.to_json()) == plain


@pytest.mark.parametrize("value", [True, np.True_, 2.5, np.float64(2), "3", None, -1])
def test_anything_else_is_refused(value):
    with pytest.raises(ValueError, match="reach must be a whole number >= 0, got"):
        masks.window(value)


def test_numbers_that_are_too_large_are_refused():
    with pytest.raises(ValueError, match=r"reach must be at most 2\*\*63 - 1, got 92"):
        masks.window(2**63)
    with pytest.raises(ValueError, match=r"count must be at most 2\*\*20, got 1000000000"):
        masks.global_tokens(10**9)
    with pytest.raises(ValueError, match=r"count must be at most 2\*\*20, got 1000000000"):
        masks.a_shape(10**9, 3)


@pytest.mark.parametrize("build", [masks.per_head, masks.per_layer])
def test_one_mask_for_each_head_or_layer_is_a_list(build):
    with pytest.raises(TypeError, match=r"takes a list of masks, got window\(1\); write per_"):
        build(masks.window(1))
    with pytest.raises(TypeError, match="takes a list of masks, got None"):
        build(None)
    with pytest.raises(TypeError, match="combines one or more masks"):
        build([])
    with pytest.raises((HeadCountError, LayerCountError), match=r"do not tell .* apart"):
        build([build([masks.window(1)])])


@pytest.mark.parametrize("length", [2.5, "4", None, True])
def test_lengths_are_whole_numbers(length):
    with pytest.raises(ValueError, match="length must be a whole number of positions, got"):
        masks.window(1).dense(length)


def test_counts_below_one_are_refused():
    with pytest.raises(ValueError, match="layers and heads are at least 1, got 1 and 0"):
        masks.window(1).dense(4, 1, 0)


def test_no_array_is_no_mask():
    with pytest.raises(MaskFormatError, match="a table is an array of 0 and 1, got None"):
        masks.from_numpy(None)
