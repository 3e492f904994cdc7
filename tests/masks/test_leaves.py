"""Each leaf, and what recipes make of them, against its rule as a loop over (query, key)."""

import importlib.util
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from scipy.stats import chisquare
from toy import ToyEvaluator

import masksearch as ms
from masksearch import masks
from masksearch.errors import LengthError, MaskFormatError
from masksearch.masks.lower import flex_block_mask, lower
from masksearch.testing import MaskContract

BITS = [True, False, True, True, False, False, True]

TILES, NINE = (
    torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) > 0.5
    for shape in ((4, 4), (1, 1, 9, 9))
)


def row_and_column(position, columns, prefix):
    return divmod(position - prefix, columns)


def axial(columns, prefix=0):
    def rule(q, k):
        if min(q, k) < prefix:
            return True
        (a, b), (c, d) = (row_and_column(p, columns, prefix) for p in (q, k))
        return a == c or b == d

    return rule


RULES = [
    (masks.full(), lambda q, k: True),
    (masks.causal(), lambda q, k: k <= q),
    (masks.window(0), lambda q, k: q == k),
    (masks.window(2), lambda q, k: -2 <= q - k <= 2),
    (masks.dilated(4, 2), lambda q, k: abs(q - k) in (0, 2, 4)),
    (masks.dilated(5, 3), lambda q, k: abs(q - k) in (0, 3)),
    (masks.stride(3), lambda q, k: (q - k) % 3 == 0),
    (masks.offsets([0, 3, 99]), lambda q, k: abs(q - k) in (0, 3, 99)),
    (masks.shifts([-1, 2]), lambda q, k: k == q - 1 or k == q + 2),
    (masks.powers_of_two(), lambda q, k: abs(q - k) in (1, 2, 4, 8, 16)),
    (masks.blocks(3), lambda q, k: q // 3 == k // 3),
    (masks.block_columns(4, 2), lambda q, k: k % 4 in (2, 3)),
    (masks.block_columns(4), lambda q, k: k % 4 == 3),
    (masks.global_tokens(2), lambda q, k: q < 2 or k < 2),
    (masks.global_tokens(positions=[1, 5, 70]), lambda q, k: q in (1, 5) or k in (1, 5)),
    (masks.toeplitz(torch.tensor(BITS)), lambda q, k: BITS[abs(q - k)]),
    (masks.toeplitz(torch.tensor(BITS), signed=True), lambda q, k: BITS[k - q + 3]),
    (masks.cropped(masks.block_columns(20), 20), lambda q, k: k == 19),
    (masks.columns(2), lambda q, k: k < 2),
    (masks.columns(positions=[1, 5, 70]), lambda q, k: k in (1, 5)),
    (masks.axial(3, 5), axial(5)),
    (masks.axial(5, 3), axial(3)),
    (masks.axial(3, 4, prefix=1), axial(4, 1)),
    (masks.axial(2, 6, 3), axial(6, 3)),
    (masks.axial(1, 99), lambda q, k: True),
    (masks.axial(99, 1), lambda q, k: True),
    (masks.butterfly(), lambda q, k: bin(q ^ k).count("1") <= 1),
    (masks.butterfly(3), lambda q, k: bin(q // 3 ^ k // 3).count("1") <= 1),
    (masks.block_layout(TILES, 4), lambda q, k: bool(TILES[q // 4, k // 4])),
    (masks.block_layout(NINE, 3), lambda q, k: bool(NINE[0, 0, q // 3, k // 3])),
    (masks.a_shape(2, 3), lambda q, k: k < 2 or abs(q - k) <= 3),
    (masks.vertical_slash([0, 7], [1, 4]), lambda q, k: k in (0, 7) or abs(q - k) in (1, 4)),
]


@pytest.mark.parametrize(("mask", "rule"), RULES, ids=[str(mask)[:40] for mask, _ in RULES])
def test_leaf_matches_loop(mask, rule):
    length = 4 if "signed" in str(mask) else 7 if mask.kind == "toeplitz" else 13
    dense = mask.dense(length)
    assert dense.shape == (1, 1, length, length)
    assert dense.dtype == torch.bool
    cells = [(q, k) for q in range(length) for k in range(length)]
    assert all(bool(dense[0, 0, q, k]) == bool(rule(q, k)) for q, k in cells)
    assert masks.parse(str(mask)) == mask
    assert masks.Mask.from_json(mask.to_json()) == mask


@pytest.mark.parametrize("shape", [(5, 5), (3, 5, 5), (2, 3, 5, 5), (2, 1, 5, 5)])
def test_table_returns_its_bits(shape):
    bits = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    dense = masks.table(bits).dense(5, 2, 3)
    assert all(
        torch.equal(dense[layer, head], bits.expand(2, 3, 5, 5)[layer, head])
        for layer in range(2)
        for head in range(3)
    )


def test_toeplitz_per_layer_and_head_matches_loop():
    bits = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    for signed, length in ((False, 9), (False, 6), (True, 5), (True, 3)):
        dense = masks.toeplitz(bits, signed).dense(length)
        assert all(
            dense[at, head, q, k] == bits[at, head, k - q + 4 if signed else abs(q - k)]
            for at in range(2)
            for head in range(3)
            for q in range(length)
            for k in range(length)
        )


def test_cropped_is_the_corner():
    mask = masks.bigbird(1, 1, 2, seed=5)
    assert torch.equal(masks.cropped(mask, 20).dense(8), mask.dense(20)[..., :8, :8])
    assert not torch.equal(mask.dense(8), mask.dense(20)[..., :8, :8])


# -- random keys -------------------------------------------------------------------------------
def kept(mask: masks.Mask, length: int, row: int) -> list[int]:
    return mask.dense(length)[0, 0, row].nonzero().flatten().tolist()


def test_random_keys_golden_rows():
    # Written down once from this implementation: a stored mask must mean the same for ever, on
    # every machine and version. A change here breaks every stored BigBird-like mask.
    first = [kept(masks.random_keys(3, seed=0), 20, row) for row in (0, 1, 19)]
    assert first == [[3, 13, 14], [1, 9, 14], [7, 11, 19]]
    assert [kept(masks.random_keys(2, seed=7), 128, row) for row in (0, 127)] == [
        [62, 64],
        [5, 94],
    ]
    assert kept(masks.random_keys(2, seed=2**63 - 1), 128, 5) == [13, 82]


@pytest.mark.parametrize("count", [0, 1, 4, 9, 10, 12])
def test_random_keys_keeps_exactly_count_distinct_keys(count):
    for seed in range(20):
        rows = masks.random_keys(count, seed).dense(10)[0, 0].sum(-1)
        assert (rows == min(count, 10)).all()


def test_random_keys_differ_by_seed_row_and_length():
    one, two = (masks.random_keys(4, seed).dense(64)[0, 0] for seed in (0, 1))
    assert not torch.equal(one, two)
    assert len({tuple(row.tolist()) for row in one}) > 60
    assert masks.random_keys(4, 0) != masks.random_keys(4, 1)
    expected = 4 * 4 / 64  # shared keys of two independent rows
    assert float((one & two).sum(-1).float().mean()) == pytest.approx(expected, abs=0.25)
    neighbours = (one[1:] & one[:-1]).sum(-1).float().mean()
    assert float(neighbours) == pytest.approx(expected, abs=0.25)


def test_random_keys_are_uniform():
    """Chi-square over columns, over the columns of one row, and over the distance to the query."""
    tables = [masks.random_keys(3, seed).dense(32)[0, 0] for seed in range(150)]
    total = torch.stack(tables).sum(0)
    assert chisquare(total.sum(0).numpy()).pvalue > 1e-3
    assert chisquare(total[5].numpy()).pvalue > 1e-3
    assert chisquare(total[31].numpy()).pvalue > 1e-3
    ring = torch.stack([total[q].roll(-q) for q in range(32)]).sum(0)
    assert chisquare(ring.numpy()).pvalue > 1e-3


def test_random_keys_pairs_are_uniform():
    """Floyd's algorithm favours no pair of keys."""
    pairs = torch.zeros(6, 6)
    for seed in range(300):
        table = masks.random_keys(2, seed).dense(6)[0, 0].float()
        pairs += table.T @ table
    assert chisquare(pairs[torch.triu(torch.ones(6, 6), 1) > 0].numpy()).pvalue > 1e-3


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
        (masks.token_columns(np.array([3, 1])), masks.token_columns([1, 3])),
        (masks.same_token(np.array([3, 1])), masks.same_token([1, 3])),
        (masks.same_token(np.array([], dtype=np.int64)), masks.same_token()),
    ],
)
def test_numbers_of_numpy_are_numbers(given, plain):
    assert given == plain
    assert given.digest == plain.digest
    assert str(given) == str(plain)
    assert type(given).from_json(given.to_json()) == plain


# -- messages ----------------------------------------------------------------------------------
REACH, LENGTHS = "reach must be a whole number >= 0", "length must be a whole number of positions"
COUNTS = r"count must be at most 2\*\*20"


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: masks.window(-1), ValueError, "reach must be a whole number >= 0, got -1"),
        *(
            (lambda value=value: masks.window(value), ValueError, f"{REACH}, got")
            for value in (True, np.True_, 2.5, np.float64(2), "3", None)
        ),
        *(
            (lambda value=value: masks.full().dense(value), ValueError, f"{LENGTHS}, got")
            for value in (2.5, "4", None, True)
        ),
        *(
            (lambda build=build, given=given: build(given), TypeError, message)
            for build in (masks.per_head, masks.per_layer)
            for given, message in (
                (masks.window(1), r"takes a list of masks, got window\(1\); write per_"),
                (None, "takes a list of masks, got None"),
            )
        ),
        (lambda: masks.global_tokens(10**9), ValueError, rf"{COUNTS}, got 1000000000"),
        (lambda: masks.full().dense(4, 1, 0), ValueError,
         "layers and heads are at least 1, got 1 and 0"),
        (lambda: masks.window(1 << 63), ValueError, r"reach must be at most 2\*\*63 - 1, got 92"),
        (lambda: masks.dilated(2, 0), ValueError, "gap must be a whole number >= 1, got 0"),
        (lambda: masks.stride(0), ValueError, "period must be a whole number >= 1, got 0"),
        (lambda: masks.strided(0), ValueError, "period must be a whole number >= 1, got 0"),
        (lambda: masks.offsets([]), ValueError, "distances must be a non-empty list"),
        (lambda: masks.offsets(3), ValueError, "distances must be a list of whole numbers, got 3"),
        (lambda: masks.offsets([-1]), ValueError, "distances must be >= 0, got -1"),
        (lambda: masks.offsets([1, "a"]), ValueError, "distances must be a list of whole"),
        (lambda: masks.shifts([0.5]), ValueError, "steps must be a list of whole"),
        (lambda: masks.shifts([-(1 << 64)]), ValueError, r"steps must be at most 2\*\*63 - 1"),
        (lambda: masks.blocks(0), ValueError, "size must be a whole number >= 1, got 0"),
        (lambda: masks.block_columns(3, 4), ValueError, "last must be at most size = 3, got 4"),
        (lambda: masks.block_columns(3, 0), ValueError, "last must be a whole number >= 1, got 0"),
        (lambda: masks.global_tokens(0), ValueError, "count must be a whole number >= 1, got 0"),
        (lambda: masks.global_tokens(), ValueError, "takes a count or positions"),
        (lambda: masks.global_tokens(1, positions=[0]), ValueError, "exactly one of them"),
        (lambda: masks.global_tokens(positions=[-1]), ValueError,
         "positions must be >= 0, got -1"),
        (lambda: masks.random_keys(-1), ValueError, "count must be a whole number >= 0, got -1"),
        (lambda: masks.random_keys(1, -1), ValueError, "seed must be a whole number >= 0, got -1"),
        (lambda: masks.table(torch.ones(2, 2)), MaskFormatError, "bool tensor, got torch.float32"),
        (lambda: masks.table([[2]]), MaskFormatError, r"lists of 0 and 1, got \[\[2\]\]"),
        (lambda: masks.table(torch.ones(2, 3) > 0), MaskFormatError, r"got \[2, 3\]"),
        (lambda: masks.table(torch.ones(0, 0) > 0), MaskFormatError, r"got \[0, 0\]"),
        (lambda: masks.toeplitz(torch.tensor(True)), MaskFormatError, r"got \[\]"),
        (lambda: masks.toeplitz(torch.ones(4) > 0, signed=True), MaskFormatError,
         "signed bits are 2n - 1, an odd number, got 4"),
        (lambda: masks.columns(), ValueError, "columns takes a count or positions"),
        (lambda: masks.axial(0, 3), ValueError, "rows must be a whole number >= 1, got 0"),
        (lambda: masks.axial(3, 1.0), ValueError, "columns must be a whole number >= 1, got 1.0"),
        (lambda: masks.axial(3, 3, -1), ValueError, "prefix must be a whole number >= 0, got -1"),
        (lambda: masks.axial(3, 4, 1).dense(14), LengthError,
         r"axial\(3, 4, 1\) has 13 positions, asked for 14; give the grid"),
        (lambda: masks.axial(3, 4, 1).kept(1400), LengthError, "has 13 positions, asked for 1400"),
        (lambda: masks.butterfly(0), ValueError, "block must be a whole number >= 1, got 0"),
        (lambda: masks.block_layout(torch.ones(2, 2), 4), MaskFormatError,
         "a block_layout is a bool tensor, got torch.float32"),
        (lambda: masks.table(np.ones((2, 2))), MaskFormatError, "bool tensor, got float64"),
        (lambda: masks.block_layout(torch.ones(2, 2) > 0, 0), ValueError, "block must be a whole"),
        (lambda: masks.block_layout(torch.ones(2, 2) > 0, 4).dense(9), LengthError,
         "has 2 blocks of 4 positions, asked for 9 positions; .*at most 8"),
        (lambda: masks.vertical_slash([], [0]), ValueError, "columns must be a non-empty list"),
        (lambda: masks.vertical_slash([0], [-1]), ValueError, "offsets must be >= 0, got -1"),
    ],
)  # fmt: skip
def test_bad_arguments_say_rule_and_value(build, error, message):
    with pytest.raises(error, match=message):
        build()


# -- a leaf and a family in a file of one's own, without a line in the package ------------------
OWN = '''
from dataclasses import dataclass

from masksearch import masks


@dataclass(frozen=True)
class Neighbourhood(masks.Mask):
    """Keep the keys within `reach` rows and columns of a grid."""

    kind = "neighbourhood"
    columns: int
    reach: int = 1
    rule: str = "square"
    scale: float = 1.5

    def allows(self, at):
        rows = (at.query // self.columns - at.key // self.columns).abs()
        return (rows <= self.reach) & ((at.query - at.key) % self.columns <= self.reach)


@masks.family
def natten(columns: int = 4, reach: int = 1) -> masks.Mask:
    return Neighbourhood(columns, reach) | masks.global_tokens(1)


def space(trial):
    columns = trial.suggest_int("columns", 2, 5)
    return masks.parse(f"neighbourhood({columns}) | window(0)")
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The module of that file; forgotten afterwards."""
    path = tmp_path_factory.mktemp("own") / "own_masks.py"
    path.write_text(OWN)
    spec = importlib.util.spec_from_file_location("own_masks", path)
    module = sys.modules["own_masks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["own_masks"], masks.Mask.kinds["neighbourhood"]
    del ms.masks.FAMILIES["natten"], masks.core.RECIPES["natten"]


class TestNeighbourhood(MaskContract):
    @pytest.fixture
    def make(self, own):
        return lambda: own.Neighbourhood(3)


def test_it_prints_parses_and_stores(own, tmp_path: Path):
    leaf = own.Neighbourhood(4, 2, "disc", 0.5)
    for mask in (leaf, leaf | masks.window(0), masks.per_head([~leaf, masks.full()])):
        assert masks.parse(str(mask)) == mask
        assert ms.Mask.from_json(mask.to_json()) == mask
        assert pickle.loads(pickle.dumps(mask)) == mask
        for suffix in (".json", ".safetensors"):
            assert ms.load_mask(ms.save_mask(mask, tmp_path / f"mask{suffix}")) == mask
    assert str(leaf) == "neighbourhood(4, 2, 'disc', 0.5)"
    assert masks.parse("neighbourhood(4, reach=2, rule='disc', scale=0.5)") == leaf


def test_it_is_measured_like_the_others(own):
    mask = own.Neighbourhood(4)
    table = mask.dense(300)[0, 0]
    assert mask.kept(300) == int(table.sum())
    assert torch.equal(lower(mask, ms.Shape(300, 1, 1))[0, 0], table)
    assert flex_block_mask(mask, 300).shape == (1, 1, 300, 300)


def test_its_family_is_found_by_name(own):
    assert masks.natten is own.natten
    assert masks.neighbourhood is own.Neighbourhood
    assert ms.masks.FAMILIES["natten"] == masks.parse("natten") == own.natten(4, 1)
    assert str(own.natten()) == "natten()"
    assert masks.parse("natten(3) & causal()") == own.natten(3) & masks.causal()


def test_it_is_put_on_a_model(own):
    at = ARCHITECTURES["bert"]
    model, given = at.made(), at.inputs(1)
    plain = at.run(model, given)
    ms.attach(model, own.natten())
    assert not torch.allclose(at.run(model, given), plain, atol=1e-4)
    assert torch.equal(at.run(ms.detach(model), given), plain)


def test_it_is_searched(own, tmp_path: Path):
    study = ms.search(own.space, ToyEvaluator(), run=tmp_path / "run", trials=3)
    assert [record.status for record in study.records()].count("failed") == 0
    again = ms.Study(tmp_path / "run").records()
    assert {str(record.mask)[:14] for record in again} == {"neighbourhood("}
