"""Hops from tiles against matrix powers of the table, and against closed forms of long masks."""

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import sized_trees

from masksearch import masks
from masksearch.contracts import Shape
from masksearch.errors import EmptyRowError, HeadCountError, LengthError, UncountedHops
from masksearch.masks import distances, products, relations
from masksearch.masks import hops as reachability
from masksearch.masks.distances import Bounds, by_powers, by_sources, farthest
from masksearch.masks.measure import hops, measures
from masksearch.masks.products import after, joined_tiles
from masksearch.masks.relations import TooManyPatterns, bits_of

LONG = 65536
MOST = 160 * 2**20  # bytes; a table of LONG takes 512 MiB as bits and 4 GiB as bools
Mask = masks.Mask


def by_matrices(mask: Mask, length: int) -> float:
    """Steps until the product of the layers' bool matrices, one after another, is full."""
    table = mask.dense(length)
    own = torch.eye(length, dtype=torch.bool)
    steps = [(layer.any(0) | own).float() for layer in table]
    reached, count, same = own.float(), 0, 0
    while not reached.all():
        further = (steps[count % len(steps)] @ reached > 0).float()
        same = same + 1 if torch.equal(further, reached) else 0
        if same == len(steps):
            return math.inf
        reached, count = further, count + 1
    return count


@st.composite
def unions(draw: st.DrawFn, single: bool = False) -> tuple[int, Mask]:
    """Lengths around whole tiles, and masks of them that take from 1 step to as many as there
    are positions; of several heads or layers unless `single`."""
    length = draw(st.sampled_from([2, 3, 63, 64, 65, 100, 127, 128, 129, 200]))
    leaf = st.one_of(
        st.integers(0, 6).map(masks.window),
        st.lists(st.integers(-9, 9), min_size=1, max_size=3).map(masks.shifts),
        st.sampled_from([3, 16, 64, 100]).map(masks.blocks),
        st.integers(2, 70).map(masks.stride),
        st.builds(masks.random_keys, st.integers(0, 3), st.integers(0, 99)),
        st.integers(0, length).map(lambda at: masks.global_tokens(positions=[at])),
        st.integers(0, length).map(lambda at: masks.columns(positions=[at])),
        st.sampled_from([5, 64, 80]).map(masks.block_columns),
        st.sampled_from([1, 4, 10, 64]).map(masks.butterfly),
        st.just(masks.axial(-(-length // 13), 13)),
        st.just(masks.causal() & masks.window(3)),
        st.just(masks.powers_of_two()),
        st.integers(0, 99).map(lambda seed: layout(length, 16, 0.2, seed)),
    )
    union = st.lists(leaf, min_size=1, max_size=3).map(
        lambda parts: parts[0] if len(parts) == 1 else parts[0] | parts[1] | parts[-1]
    )
    several = [
        st.lists(union, min_size=2, max_size=3).map(masks.per_layer),
        st.lists(union, min_size=2, max_size=2).map(masks.per_head),
    ]
    return length, draw(union if single else st.one_of(union, *several))


def layout(length: int, block: int, density: float, seed: int) -> Mask:
    """A block layout drawn at random."""
    side = -(-length // block)
    drawn = torch.rand(side, side, generator=torch.Generator().manual_seed(seed))
    return masks.block_layout(drawn < density, block)


@settings(deadline=None, max_examples=20)
@given(sized_trees(9))
def test_every_mask_matches_matrix_powers(sized):
    length, mask = sized
    assert farthest(mask, length) == by_matrices(mask, length)


@settings(deadline=None, max_examples=25)
@given(unions())
def test_masks_of_several_tiles_match_matrix_powers(sized):
    length, mask = sized
    assert farthest(mask, length) == by_matrices(mask, length)


@settings(deadline=None, max_examples=25)
@given(unions(), st.booleans(), st.integers(1, 9))
def test_powers_and_sources_alone_match_matrix_powers(sized, known, singly):
    length, mask = sized
    wanted = by_matrices(mask, length)
    steps = relations.relations(mask, length)
    bounds = Bounds(steps, length)
    if math.isinf(wanted):
        assert not bounds.search(0)
        return
    lower = int(wanted) if known else 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "SINGLY", singly)
        patch.setattr(reachability, "GATHERED", 50)
        patch.setattr(distances, "BATCH", 1)
        patch.setattr(products, "PAIRS", 1 << 20)
        try:
            assert by_powers(steps, lower) == wanted
        except TooManyPatterns:
            assert length > 64  # only where tiles differ
        assert by_sources(steps, bounds, length) == wanted


@settings(deadline=None, max_examples=12)
@given(unions(), st.integers(0, 2**31))
def test_bounds_hold_after_every_search(sized, seed):
    length, mask = sized
    table = mask.dense(length).any(1) | torch.eye(length, dtype=torch.bool)
    bounds = Bounds(relations.relations(mask, length), length)
    exact = eccentricities(table)
    for position in np.random.default_rng(seed).integers(0, length, 3):
        if not bounds.search(int(position)):
            assert exact.max() == np.inf
            return
        assert bounds.lower <= exact.max()
        assert (bounds.upper >= exact).all()
        assert bounds.upper[position] == exact[position]
        if len(table) == 1:
            assert (bounds.mirrored >= eccentricities(table.mT)).all()


def eccentricities(table: torch.Tensor) -> np.ndarray:
    """Steps in which each position reaches all."""
    length = table.shape[-1]
    reached, found = torch.eye(length), torch.full((length,), math.inf)
    for count in range(length * len(table) + 1):
        found[reached.bool().all(0) & found.isinf()] = count
        reached = (table[count % len(table)].float() @ reached > 0).float()
    return found.numpy()


@settings(deadline=None, max_examples=15)
@given(unions())
def test_twins_are_isometric(sized):
    length, mask = sized
    steps = relations.relations(mask, length)
    some = relations.twins(steps)
    every = np.arange(len(steps[0].index) * 64)
    whole = distances.of_cells(steps, every)
    assert some is None or distances.of_cells(steps, some) == whole
    assert whole == by_matrices(mask, length) or length == 1


def test_twins_are_two_of_each_run():
    steps = relations.relations(masks.blocks(50) | masks.global_tokens(positions=[0, 75]), 128)
    ends = [(0, 0), (1, 49), (50, 74), (75, 75), (76, 99), (100, 127)]
    wanted = sorted({at for low, high in ends for at in (low, min(low + 1, high))})
    assert relations.twins(steps).tolist() == wanted
    assert relations.twins(relations.relations(masks.window(3), 128)) is None


@settings(deadline=None, max_examples=15)
@given(unions(single=True), unions(single=True))
def test_products_are_matrix_products(one, two):
    length = one[0]
    parts = [
        relations.relations(mask, length)[0] for mask in (one[1], two[1]) if fits(mask, length)
    ]
    later, earlier = parts[0], parts[-1]
    wanted = dense(later).float() @ dense(earlier).float() > 0
    try:
        assert torch.equal(dense(after(later, earlier)), wanted)
    except TooManyPatterns:
        assert length > 64
    assert torch.equal(dense(later.transposed), dense(later).T)
    assert later.symmetric == torch.equal(dense(later), dense(later).T)
    chosen = torch.rand(len(wanted), generator=torch.Generator().manual_seed(length)) < 0.2
    words = np.packbits(chosen.numpy(), bitorder="little").view("<u8")
    assert (bits_of(later.rows(words)) == dense(later)[chosen].any(0).numpy()).all()


def fits(mask: Mask, length: int) -> bool:
    """Whether a mask has that length."""
    try:
        mask.density(length)
    except LengthError:
        return False
    return True


def dense(step: relations.Relation) -> torch.Tensor:
    """All cells of a relation."""
    return torch.from_numpy(relations.cells(step, np.arange(len(step.index) * 64)))


def test_tiles_are_multiplied_as_matrices():
    words = np.random.default_rng(0).integers(0, 2**63, (2, 5, 64), dtype=np.uint64)
    words &= words >> np.uint64(1)
    words &= words >> np.uint64(3)  # few bits, so that not everything is reached
    one, two = (bits_of(part[..., None]).astype(int) for part in words)
    found = bits_of(joined_tiles(*words)[..., None])
    assert (found == (one @ two > 0)).all()
    assert 0 < found.mean() < 1


FORMS: list[tuple[Mask, float]] = [
    (masks.full(), 1),
    (masks.causal(), math.inf),  # no way to a later key
    (masks.a_shape(4, 512), 128),  # from the first to the last only by the window: 65,535 / 512
    (masks.star(), 2),  # by way of the hub
    (masks.longformer(6, 1), 2),
    (masks.bigbird(2, 1, 2), 2),
    (masks.strided(256), 2),  # a key of the right remainder is in the window
    (masks.butterfly(64), 10),  # 1,024 blocks: log2
    (masks.blocks(64), math.inf),
    (masks.per_layer([masks.columns(1), masks.global_tokens(1)]), 3),  # in, and out again
]
SLOW_FORMS: list[tuple[Mask, float]] = [
    (masks.window(1), LONG - 1),  # the ends are n - 1 apart: ceil((n - 1) / reach)
    (masks.window(64), 1024),
    (masks.window(1000), 66),
    (masks.dilated(64, 2) | masks.window(1), 1025),  # 1,023 x 64, 62 in one, and 1
    (masks.longformer(256, 16), 2),
    (masks.bigbird(192, 128, 3), 2),
    (masks.strided(4), 2),
    (masks.fixed(4, 1), 2),  # the last key of the other block
    (masks.fixed(128, 4), 2),
    (masks.axial(256, 256), 2),  # the corner of row and column
    (masks.butterfly(), 16),
    (masks.blocks(64) | masks.stride(64), 2),  # row and column of a grid of 64 columns
    (masks.shifts([1, 1 - LONG]), LONG - 1),  # a ring in one direction
    (masks.per_head([masks.window(127), masks.stride(128)]), 2),  # strided, head by head
    (masks.per_layer([masks.blocks(256), masks.stride(256)]), 2),
]


@pytest.mark.parametrize(("mask", "expected"), FORMS, ids=str)
def test_closed_forms_of_long_masks(mask, expected):
    assert hops(mask, LONG) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("mask", "expected"), SLOW_FORMS, ids=str)
def test_closed_forms_of_long_masks_that_take_seconds(mask, expected):
    assert hops(mask, LONG) == expected


def test_hops_of_long_block_layouts_are_those_of_their_blocks():
    own = layout(256, 1, 0.01, 0) | masks.window(1)  # each block keeps itself: twins are at 1
    bits = own.dense(256)[0, 0]
    assert 4 < by_matrices(own, 256) < math.inf
    assert hops(masks.block_layout(bits, 256), LONG) == by_matrices(own, 256)


def test_random_keys_of_longer_masks_match_the_table(monkeypatch):
    monkeypatch.setattr(distances, "TABLE", 100)  # along the single cells
    mask = masks.random_keys(2) | masks.window(1)
    assert farthest(mask, 1100) == hops(mask.dense(1100))


@pytest.mark.parametrize("mask", [masks.strided(256), masks.longformer()], ids=str)
def test_long_masks_make_no_table(mask):
    assert peak(lambda: farthest(mask, LONG)) < 64 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    "mask",
    [masks.fixed(4, 1), masks.longformer(256, 16), masks.bigbird(192, 128, 3), masks.butterfly()],
    ids=str,
)
def test_long_masks_that_take_seconds_make_no_table(mask):
    assert peak(lambda: farthest(mask, LONG)) < MOST


def peak(work: Callable[[], object]) -> int:
    """Bytes of numpy that are held at most while the work is done."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_hops_take_masks_and_tables():
    mask = masks.window(3)
    assert hops(mask, 1) == 0
    assert hops(mask, 100) == hops(mask.dense(100)) == 33
    assert hops(mask, 1024) == farthest(mask, 1024) == 341
    with pytest.raises(TypeError, match="the hops of a mask need a length"):
        hops(mask)
    with pytest.raises(LengthError, match="holds 4 positions, asked for 2000"):
        farthest(masks.table(torch.eye(4, dtype=torch.bool)), 2000)
    with pytest.raises(LengthError):
        farthest(masks.table(torch.eye(4, dtype=torch.bool)), 1)


def test_uncounted_hops_say_why(monkeypatch):
    mask = masks.random_keys(2) | masks.window(1)
    with monkeypatch.context() as patch:
        patch.setattr(relations, "FEWEST", 9)
        with pytest.raises(UncountedHops, match="1500 positions: more than 72 of its 576 tiles"):
            farthest(mask, 1500)
    monkeypatch.setattr(distances, "TABLE", 100)
    monkeypatch.setattr(distances, "EDGES", 999)
    with pytest.raises(UncountedHops, match=r"at least \d+; .* along its \d+ cells from"):
        farthest(mask, 1500)


def test_measures_of_long_masks_make_no_table():
    mask = masks.per_head([masks.window(300), masks.star()])
    shape = Shape(LONG, 3, 2)
    found = measures(mask, shape)
    kept = mask.kept(LONG)
    assert found["hops"] == 2
    assert found["density"] == kept / (2 * LONG**2) == 1 - found["sparsity"]
    assert found["sparsity_off_diagonal"] == 1 - (kept - 2 * LONG) / (2 * LONG * (LONG - 1))
    with pytest.raises(EmptyRowError, match="layer 0, head 0, row 0 keeps no key"):
        measures(masks.shifts([-1]), Shape(LONG, 1, 1))
    with pytest.raises(HeadCountError, match="2 heads, asked for 3"):
        measures(mask, Shape(LONG, 1, 3))


def test_long_measures_equal_those_of_the_table(monkeypatch):
    mask, shape = masks.per_layer([masks.bigbird(), masks.window(2)]), Shape(300, 2, 3)
    wanted = measures(mask, shape)
    monkeypatch.setattr("masksearch.masks.measure.HELD", 1)
    assert measures(mask, shape) == pytest.approx(wanted, abs=1e-6)
