"""Masks as values: laws of their algebra, identity, counts, and reading what anyone wrote."""

import base64
import copy
import json
import pickle
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import HEADS, LAYERS, any_mask, kinds_of, pairs, sized_trees
from torch import Tensor

from masksearch import masks
from masksearch.contracts import Shape
from masksearch.errors import (
    HeadCountError,
    LayerCountError,
    LengthError,
    MaskFormatError,
    UncountedHops,
)
from masksearch.masks.lower import flex_block_mask, lower
from masksearch.masks.measure import fingerprint, hops


def dense(mask: masks.Mask, length: int) -> Tensor:
    return mask.dense(length, LAYERS, HEADS)


@pytest.mark.nightly
def test_trees_cover_every_kind():
    seen: set[str] = set()

    @settings(max_examples=200, derandomize=True, database=None)
    @given(sized_trees(4))
    def collect(sized):
        seen.update(kinds_of(sized[1]))

    collect()
    kinds = masks.Mask.kinds.values()
    ours = {kind.kind for kind in kinds if kind.__module__.startswith("masksearch.")}
    assert seen == ours - {
        "special_tokens",
        "same_token",
        "token_columns",
    }  # tested in test_tokens.py


# -- laws --------------------------------------------------------------------------------------
@given(pairs())
def test_algebra_laws(drawn):
    length, a, b = drawn
    one, two = dense(a, length), dense(b, length)
    assert torch.equal(dense(a | b, length), one | two)
    assert torch.equal(dense(a & b, length), one & two)
    assert torch.equal(dense(a - b, length), one & ~two)
    assert torch.equal(dense(~a, length), ~one)
    assert torch.equal(dense(~(a | b), length), dense(~a & ~b, length))
    assert torch.equal(dense(~(a & b), length), dense(~a | ~b, length))
    assert torch.equal(dense(a | a, length), dense(a & a, length))
    assert torch.equal(dense(~~a, length), one)
    assert dense(a | ~a, length).all()
    assert not dense(a & ~a, length).any()


@pytest.mark.slow
@settings(max_examples=25)
@given(sized_trees(4))
def test_dense_matches_allows_at_single_points(sized):
    length, mask = sized
    table = dense(mask, length)
    for layer, head, query, key in torch.cartesian_prod(
        torch.arange(LAYERS), torch.arange(HEADS), torch.arange(length), torch.arange(length)
    ).tolist():
        at = masks.Points(torch.tensor(query), torch.tensor(key), length, layer, head)
        assert bool(mask.allows(at)) == bool(table[layer, head, query, key])


@given(sized_trees())
def test_measures_match_dense(sized):
    length, mask = sized
    table = mask.dense(length)  # the planes that the mask tells apart
    assert mask.kept(length) == int(table.sum())
    assert mask.density(length) == pytest.approx(float(table.double().mean()))
    assert mask.sparsity(length) == pytest.approx(1 - float(dense(mask, length).double().mean()))


@pytest.mark.slow
@given(sized_trees())
def test_resolve_keeps_bits_and_removes_random_leaves(sized):
    length, mask = sized
    resolved = mask.resolve(length)
    assert torch.equal(dense(resolved, length), dense(mask, length))
    assert "random_keys" not in kinds_of(resolved)


@pytest.mark.slow
@given(sized_trees())
def test_layer_of_matches_dense(sized):
    length, mask = sized
    for layer in range(LAYERS):
        single = masks.layer_of(mask, layer)
        assert single.layers is None
        assert torch.equal(single.dense(length, 1, HEADS)[0], dense(mask, length)[layer])


# -- identity ----------------------------------------------------------------------------------
@pytest.mark.slow
@given(any_mask())
def test_masks_are_equal_after_json_pickle_and_copies(mask):
    read = masks.Mask.from_json(mask.to_json())
    for back in (read, pickle.loads(pickle.dumps(mask)), copy.deepcopy(mask)):
        assert back == mask
        assert hash(back) == hash(mask)
        assert back.to_json() == mask.to_json()


def test_equality_is_structural_and_fingerprint_is_not():
    a, b = masks.window(1), masks.offsets([0, 1])
    assert a != b
    assert fingerprint(a, Shape(9, 2, 2)) == fingerprint(b, Shape(9, 2, 2))
    assert masks.window(1) != 1
    assert len({masks.window(1), masks.window(1), masks.window(2)}) == 2


def test_offsets_and_positions_are_sets():
    assert masks.offsets([3, 1, 1]) == masks.offsets([1, 3])
    assert masks.global_tokens(positions=[1, 0]) == masks.global_tokens(2)


def test_chains_are_flat_and_masks_are_frozen():
    chain = masks.window(1) | masks.stride(3) | masks.full()
    assert len(chain.parts) == 3
    with pytest.raises(AttributeError):
        masks.window(1).reach = 2


def test_tables_do_not_follow_their_source():
    bits = torch.ones(2, 2, dtype=torch.bool)
    mask = masks.table(bits)
    bits[:] = False
    assert mask.dense(2).all()


# -- counts ------------------------------------------------------------------------------------
def test_counts_of_combinations():
    two = masks.per_head([masks.window(1), masks.full()])
    three = masks.per_layer([two, masks.full(), two])
    assert (two.heads, two.layers, two.length) == (2, None, None)
    assert (three.heads, three.layers) == (2, 3)
    assert (~three | masks.causal()).layers == 3
    assert masks.table(torch.ones(3, 2, 5, 5, dtype=torch.bool)).layers == 3
    assert masks.table(torch.ones(1, 2, 5, 5, dtype=torch.bool)).layers is None
    assert masks.table(torch.ones(1, 5, 5, dtype=torch.bool)).heads is None
    assert masks.table(torch.ones(5, 5, dtype=torch.bool)).length == 5


def test_layers_inside_heads():
    layered = masks.per_layer([masks.window(0), masks.full()])
    for mask in (masks.per_head([layered]), masks.per_head([layered, masks.causal()])):
        assert mask.layers == 2
        second = masks.per_head([masks.layer_of(part, 1) for part in mask.parts])
        assert torch.equal(masks.layer_of(mask, 1).dense(4), second.dense(4))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: masks.per_head([masks.full()] * 2) | masks.per_head([masks.full()] * 3),
         HeadCountError, "parts of one mask have 2 and 3 heads"),
        (lambda: masks.per_layer([masks.full()] * 2) & masks.per_layer([masks.full()] * 3),
         LayerCountError, "parts of one mask have 2 and 3 layers"),
        (lambda: masks.per_head([masks.per_head([masks.full()])]), HeadCountError,
         "per_head takes masks that do not tell heads apart themselves"),
        (lambda: masks.per_layer([masks.per_layer([masks.full()])]), LayerCountError,
         "per_layer takes masks that do not tell layers apart themselves"),
        (lambda: masks.per_head([masks.full()] * 2).dense(4, heads=3), HeadCountError,
         "the mask has 2 heads, asked for 3; per_head needs one for each"),
        (lambda: masks.per_layer([masks.full()] * 2).dense(4, layers=3), LayerCountError,
         "the mask has 2 layers, asked for 3; per_layer needs one mask for each layer"),
        (lambda: masks.per_layer([masks.full()] * 2).mask_mod(4), LayerCountError,
         r"mask_mod serves one layer, the mask has 2; call masks.layer_of"),
        (lambda: square(4) | square(5), MaskFormatError,
         "tables of 4 and 5 positions cannot be in one mask"),
        (lambda: square(4).dense(5), LengthError,
         r"Table holds 4 positions, asked for 5; .* for longer ones"),
        (lambda: masks.toeplitz(torch.ones(4, dtype=torch.bool)).dense(5), LengthError,
         "Toeplitz bits reach 4 positions, asked for 5"),
        (lambda: masks.cropped(masks.full(), 4).dense(5), LengthError,
         "cropped from 4 positions, asked for 5; give inputs of at most 4"),
        (lambda: masks.cropped(square(4), 5), LengthError,
         "a table of 4 positions cannot be taken at 5; crop it at=4"),
        (lambda: masks.cropped(masks.full(), 0), ValueError, "at must be a whole number >= 1"),
        (lambda: masks.full().dense(0), ValueError, "length must be at least 1 position, got 0"),
        (lambda: masks.full().density(0), ValueError, "length must be at least 1 position"),
        (lambda: masks.full() | 3, TypeError, "masks combine with masks only, got 3"),
        (lambda: masks.per_head([]), TypeError, "per_head combines one or more masks"),
        (lambda: masks.per_head([1]), TypeError, "per_head combines one or more masks"),
        (lambda: masks.layer_of(masks.per_layer([masks.full()] * 2), 2), ValueError,
         r"layer must be in \[0, 2\), got 2"),
        (lambda: masks.to_block_layout(masks.full(), 0, 4), ValueError,
         "length must be at least 1 position, got 0"),
        (lambda: masks.to_block_layout(masks.cropped(masks.bigbird(), 4), 9, 4), LengthError,
         "cropped from 4 positions, asked for 9"),
        (lambda: masks.cropped(masks.bigbird(), 4).kept(900), LengthError,
         "cropped from 4 positions, asked for 900"),
        (lambda: masks.to_block_layout(masks.toeplitz(torch.ones(3) > 0), 9, 4), LengthError,
         "Toeplitz bits reach 3 positions, asked for 9"),
        (lambda: hops(masks.star(), 8193), UncountedHops,
         "up to 8192 positions, asked for 8193: take the mask"),
        (lambda: lower(masks.per_layer([masks.full()] * 2), Shape(4, 1, 1)),
         LayerCountError, "2 layers, asked for 1"),
        (lambda: lower(masks.per_head([masks.full()] * 2), Shape(4, 1, 1)),
         HeadCountError, "2 heads, asked for 1"),
        (lambda: flex_block_mask(masks.per_layer([masks.full()] * 2), 8), LayerCountError,
         "layer_of"),
        (lambda: flex_block_mask(square(8), 16), LengthError, "8 positions"),
    ],
)  # fmt: skip
def test_mismatch_messages(build, error, message):
    with pytest.raises(error, match=message):
        build()


def square(size: int) -> masks.Mask:
    return masks.table(torch.ones(size, size, dtype=torch.bool))


# -- reading what anyone wrote -----------------------------------------------------------------
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "of", "reach", "bits", "shape", "zlib", "at", "x"]), inner
        )
    ),
    max_leaves=8,
)


def read(text: str) -> None:
    """Either a mask that can be written again, or MaskFormatError."""
    try:
        mask = masks.Mask.from_json(text)
    except MaskFormatError:
        return
    assert masks.Mask.from_json(mask.to_json()) == mask


@given(st.text() | JSON.map(json.dumps))
def test_any_json_is_refused_cleanly(text):
    read(text)


@pytest.mark.slow
@given(sized_trees(3), st.data())
def test_edited_masks_are_refused_cleanly(sized, data):
    tree = sized[1].to_dict()
    node = tree
    while isinstance(node.get("of"), dict | list) and data.draw(st.booleans()):
        node = data.draw(st.sampled_from(node["of"])) if type(node["of"]) is list else node["of"]
    if isinstance(node.get("bits"), dict) and data.draw(st.booleans()):
        node = node["bits"]
    node[data.draw(st.sampled_from([*sorted(node), "extra"]))] = data.draw(
        JSON
        | st.sampled_from([["full"], [{"kind": "full"}], sorted(masks.Mask.kinds)[0], 1 << 70])
    )
    read(json.dumps(tree))


def table_json(shape: object, packed: bytes) -> str:
    data = base64.b64encode(zlib.compress(packed)).decode()
    return json.dumps({"kind": "table", "bits": {"shape": shape, "zlib": data}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("1" * 5000, "not JSON"),
        ("[]", "a mask is an object with a 'kind'"),
        ("{}", "a mask is an object with a 'kind'"),
        ('{"kind": 3}', "a mask is an object with a 'kind'"),
        ('{"kind": "widow", "reach": 1}', "unknown mask kind 'widow'; did you mean 'window'"),
        ('{"kind": "window"}', r"window has the fields \['reach'\], got \[\]"),
        ('{"kind": "window", "reach": 1, "x": 2}', r"got \['reach', 'x'\].*another version"),
        ('{"kind": "window", "reach": -1}', "window cannot be built: reach must be"),
        ('{"kind": "window", "reach": 1.5}', "whole number"),
        ('{"kind": "window", "reach": true}', "whole number"),
        ('{"kind": "window", "reach": NaN}', "whole number"),
        ('{"kind": "window", "reach": 9223372036854775808}', r"at most 2\*\*63 - 1"),
        ('{"kind": "offsets", "distances": [99999999999999999999]}', r"at most 2\*\*63 - 1"),
        ('{"kind": "or", "of": []}', "or combines one or more masks"),
        ('{"kind": "or", "of": {"kind": "full"}}', "or combines one or more masks"),
        ('{"kind": "not", "of": [{"kind": "full"}]}', "not combines one or more masks"),
        ('{"kind": "per_head", "of": [{"kind": "per_head", "of": [{"kind": "full"}]}]}',
         "per_head cannot be built: per_head takes masks"),
        ('{"kind": "not", "of": ' * 900 + '{"kind": "full"}' + "}" * 900, "recursion"),
        ('{"kind": "special_tokens", "ids": [1.0]}', "cannot be built: ids must be"),
        ('{"kind": "special_tokens", "ids": 7}', "cannot be built: ids must be"),
        ('{"kind": "special_tokens", "ids": [[1]]}', "cannot be built"),
        ('{"kind": "special_tokens", "ids": "101"}', "cannot be built: ids must be"),
        ('{"kind": "same_token"}', r"same_token has the fields \['except_ids'\], got \[\]"),
        ('{"kind": "same_token", "except_ids": 7}', "cannot be built: except_ids must be"),
        ('{"kind": "same_token", "except_ids": [-1]}', "cannot be built: except_ids must be >= 0"),
        ('{"kind": "table", "bits": [[2]]}', "table takes lists of 0 and 1"),
        (table_json([2, 3], b"\0"), r"a table has shape \[n, n\]"),
        (table_json([4, 4], b"\0"), "does not fit its 1 bytes"),
        (table_json([2, 2], b"\0\0"), "does not fit its 2 bytes"),
        (table_json([0, 0], b""), "shape is a list of sizes"),
        (table_json([-2, -2], b"\0"), "shape is a list of sizes"),
        (table_json([], b"\0"), "does not fit|has shape"),
        (table_json("22", b"\0"), "shape is a list of sizes"),
        (table_json([2.0, 2.0], b"\0"), "shape is a list of sizes"),
        (table_json([1 << 40, 1 << 40], b"\0"), "at most 4294967296 cells"),
        (table_json([1 << 32, 1 << 32], b"\0"), "at most 4294967296 cells"),
        ('{"kind":"table","bits":{"shape":[2,2],"zlib":"???"}}', "table cannot be built"),
        ('{"kind":"table","bits":{"shape":[2,2],"zlib":"AAAA"}}', "table cannot be built"),
        ('{"kind":"table","bits":{"shape":[2,2],"zlib":7}}', "table cannot be built"),
        (masks.toeplitz([1, 1]).to_json().replace("false", '"no"'),
         "signed is True or False, got 'no'"),
        ('{"kind":"toeplitz","bits":true,"signed":false}', "a toeplitz is a bool tensor"),
    ],
)  # fmt: skip
def test_from_json_says_what_is_wrong(text, message):
    with pytest.raises(MaskFormatError, match=message):
        masks.Mask.from_json(text)


@pytest.mark.slow
def test_zlib_bomb_is_never_unpacked():
    text = table_json([2, 2], bytes(100 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(MaskFormatError, match="does not fit its 2 bytes"):
            masks.Mask.from_json(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(text)


def test_a_plus_says_how_masks_are_joined():
    with pytest.raises(TypeError, match=r"joined by \|, such as window\(3\) \| columns\(1\)"):
        _ = masks.window(3) + masks.window(5)
