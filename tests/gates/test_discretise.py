from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from masksearch import DamConfig, dam, masks
from masksearch.contracts import Shape
from masksearch.errors import LengthError, UnknownNameError
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.gates import Gates
from masksearch.gates.result import DamResult
from masksearch.masks.lower import lower
from masksearch.masks.measure import effective_density, pair_weights
from tests.gates.conftest import batches, model

parts = st.sampled_from(["mask", "layer", "head"])


@st.composite
def tables(draw: st.DrawFn) -> Tensor:
    layers, heads, length = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(2, 7)),
    )
    levels = draw(st.sampled_from([2, 5, 1000]))  # few levels: many ties
    source = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return torch.randint(0, levels + 1, (layers, heads, length, length), generator=source) / levels


def split(table: Tensor, per: Any) -> list[Tensor]:
    """The parts of a mask that have a sparsity of their own."""
    layers, heads = table.shape[:2]
    if per == "mask":
        return [table]
    if per == "layer":
        return [table[la : la + 1] for la in range(layers)]
    return [table[la : la + 1, h : h + 1] for la in range(layers) for h in range(heads)]


@pytest.mark.slow
@given(table=tables(), share=st.floats(0, 1), per=parts)
@settings(max_examples=60, deadline=None)
def test_each_part_keeps_its_exact_number_as_if_it_were_alone(table, share, per):
    sparsity = share * (1 - 1 / table.shape[-1])
    mask = at_sparsity(table, sparsity, per)
    for part, cut in zip(split(table, per), split(mask, per), strict=True):
        assert int(cut.sum()) == round((1 - sparsity) * cut.numel())
        assert torch.equal(at_sparsity(part, sparsity), cut)
    assert mask.any(-1).all()  # no row is empty


@pytest.mark.slow
@given(table=tables(), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), per=parts)
@settings(max_examples=60, deadline=None)
def test_sparser_masks_are_subsets(table: Tensor, shares: tuple[float, float], per: Any):
    low, high = sorted(share * (1 - 1 / table.shape[-1]) for share in shares)
    assert (at_sparsity(table, low, per) | ~at_sparsity(table, high, per)).all()


@given(seed=st.integers(0, 1000), share=st.floats(0, 1), per=parts, axis=st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_a_permutation_of_layers_heads_or_positions_permutes_the_mask(seed, share, per, axis):
    source = torch.Generator().manual_seed(seed)
    size = (2, 3, 5, 5)
    table = torch.randperm(150, generator=source).view(size) / 150  # without ties
    order = torch.randperm(size[axis], generator=source)

    def permuted(cells: Tensor) -> Tensor:
        chosen = cells.index_select(axis, order)
        return chosen.index_select(3, order) if axis == 2 else chosen

    mask = at_sparsity(table, 0.8 * share, per)
    assert torch.equal(at_sparsity(permuted(table), 0.8 * share, per), permuted(mask))


@pytest.mark.slow
@given(table=tables())
@settings(max_examples=60, deadline=None)
def test_kept_edges_match_sorting_by_hand(table: Tensor):
    layers, heads, n, _ = table.shape
    cells = [
        (-float(table[la, h, i, j]), abs(j - i), j > i, la, h, i, j)
        for la in range(layers) for h in range(heads) for i in range(n) for j in range(n)
    ]  # fmt: skip
    best = {min(cell for cell in cells if cell[3:6] == row) for row in {c[3:6] for c in cells}}
    order = sorted(cells, key=lambda cell: (cell not in best, cell))
    for count in {len(best), len(cells) // 2, len(cells) - 1, len(cells)} - {*range(len(best))}:
        kept = at_sparsity(table, 1 - count / len(cells)).nonzero().tolist()
        assert kept == sorted(list(cell[3:]) for cell in order[:count])


@given(table=tables(), threshold=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_threshold_adds_only_the_best_key_of_empty_rows(table: Tensor, threshold: float):
    mask = (
        DamResult(table, (), 0.5)
        .mask(threshold=threshold)
        .dense(table.shape[-1], *table.shape[:2])
    )
    above = table >= threshold
    for row, kept, open_chance in zip(
        mask.flatten(0, 2), above.flatten(0, 2), table.flatten(0, 2), strict=True
    ):
        if kept.any():
            assert torch.equal(row, kept)
        else:
            assert int(row.sum()) == 1
            assert open_chance[row] == open_chance.max()


def test_toeplitz_ties_fill_whole_offsets_nearest_first():
    n = 8
    gates = Gates("toeplitz", length=n, heads=1, signed=True)
    gates.logits.data.fill_(0.0)
    probabilities = gates.probabilities()
    widths = [n] + [n - d for d in range(1, n) for _ in range(2)]
    offsets = [0] + [sign * d for d in range(1, n) for sign in (-1, 1)]
    position = torch.arange(n)
    for count in range(1, len(offsets) + 1):
        mask = at_sparsity(probabilities, 1 - sum(widths[:count]) / n**2)[0, 0]
        want = torch.isin(position[None, :] - position[:, None], torch.tensor(offsets[:count]))
        assert torch.equal(mask, want)


def test_messages():
    table = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"at most 1 - 1/n = 0.75 at length 4, got 0.9"):
        at_sparsity(table, 0.9)
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\], got 1.5"):
        at_sparsity(table, 1.5)
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\], got -1"):
        DamResult(table, (), 0.5).mask(threshold=-1)
    with pytest.raises(UnknownNameError, match="unknown part of a mask 'heads'; did you mean"):
        at_sparsity(table, 0.5, "heads")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="probabilities hold NaN"):
        at_sparsity(table * torch.nan, 0.5)


# -- gates, their density and the masks cut from them count the non-padding query-key pairs -------
KINDS = [
    {"structure": "free"},
    {"structure": "symmetric"},
    {"structure": "toeplitz", "signed": True},
    {"structure": "toeplitz+global", "global_count": 2},
    {"structure": "block", "block": 2},
    {"structure": "block", "block": (4, 2)},
]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Of 2 to 7 positions: padded, causal, or with rows of the last layer that are not read."""
    length = draw(st.integers(2, 7))
    lengths = draw(st.dictionaries(st.integers(1, length), st.integers(1, 9), min_size=1))
    causal = draw(st.booleans())
    given_lengths = lengths if not causal or draw(st.booleans()) else None
    layers, heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    read = draw(st.none() | st.integers(1, length))
    return Shape(length, layers, heads, causal, given_lengths, read)


def scores_of(shape: Shape, seed: int, levels: int = 5) -> torch.Tensor:
    """Probabilities with ties."""
    size = (shape.layers, shape.heads, shape.length, shape.length)
    return (
        torch.randint(0, levels + 1, size, generator=torch.Generator().manual_seed(seed)) / levels
    )


def no_query_is_alone(mask: torch.Tensor, shape: Shape) -> None:
    """In no sequence of the data has a token only padding to attend to."""
    for tokens, _ in shape.histogram:
        seen = mask[..., :tokens, :tokens]
        assert (seen.tril() if shape.causal else seen).any(-1).all()


@pytest.mark.slow
@given(shapes(), st.integers(0, 1000), st.floats(0, 1), parts)
@settings(max_examples=100, deadline=None)
def test_masks_are_as_sparse_as_asked_over_the_pairs_that_exist(shape, seed, share, per):
    weights = pair_weights(shape)
    least = (weights.diagonal(0, -2, -1).sum() / weights.sum()).item()
    table = scores_of(shape, seed)
    sparsity = share * (1 - least)
    mask = at_sparsity(table, sparsity, per, weights=weights)
    counted = pair_weights(shape)
    nothing = counted == 0
    unseen = torch.diag_embed(counted.diagonal(0, -2, -1) == 0)
    assert torch.equal(mask & nothing, (unseen & nothing).expand_as(mask))  # and nothing else
    lower(masks.table(mask), shape)  # no row is empty, a decoder's neither
    no_query_is_alone(mask, shape)
    each = counted.expand(mask.shape)
    axes = {"mask": (0, 1, 2, 3), "layer": (1, 2, 3), "head": (2, 3)}[per]
    rows = (each * torch.eye(shape.length)).sum(axes)  # of one key in every row
    wanted = ((1 - sparsity) * each.sum(axes)).maximum(rows)
    # An edge that counts is missing or too much by half of it at most.
    assert (((mask * each).sum(axes) - wanted).abs() <= counted.max() / 2 + 1e-9).all()
    assert (at_sparsity(table, 0, per, weights=weights) | ~mask).all()  # sparser: a subset
    whole = masks.table(at_sparsity(table, 0, per, weights=weights))
    assert effective_density(whole, shape) == pytest.approx(1)


@pytest.mark.slow
@given(shapes(), st.integers(0, 1000), st.data())
@settings(max_examples=60, deadline=None)
def test_thresholds_leave_out_what_does_not_exist(shape, seed, data):
    weights, table = pair_weights(shape), scores_of(shape, seed)
    possible = (weights > 0) | torch.eye(shape.length, dtype=torch.bool)
    threshold = data.draw(st.sampled_from([0.0, 0.4, 1.0]))
    run = DamResult(table, (), 0.5, shape.to_dict())
    mask = run.mask(threshold=threshold).dense(shape.length, shape.layers, shape.heads)
    assert not (mask & ~possible).any()
    assert mask.any(-1).all()
    no_query_is_alone(mask, shape)
    assert ((table >= threshold) & (weights > 0) <= mask).all()


def test_too_sparse_is_refused_by_what_exists():
    shape = Shape(4, 1, 1, causal=True)
    weights, table = pair_weights(shape), torch.full((1, 1, 4, 4), 0.5)
    with pytest.raises(ValueError, match=r"sparsity is at most 0\.6 at length 4, got 0\.7"):
        at_sparsity(table, 0.7, weights=weights)
    mask = at_sparsity(table, 0.6, weights=weights)
    assert torch.equal(mask[0, 0], torch.eye(4, dtype=torch.bool))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["structure"])
@given(shape=shapes(), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_density_of_gates_is_the_mean_over_pairs_that_exist(kind, shape, seed):
    gates = Gates(
        **kind,
        length=shape.length,
        layers=shape.layers,
        heads=shape.heads,
        causal=shape.causal,
        lengths=shape.lengths,
        read=shape.read,
    )
    torch.manual_seed(seed)
    gates.logits.data.normal_(0, 2)
    weights = pair_weights(shape)
    share = weights / weights.sum((-2, -1), keepdim=True)
    wanted = (gates.probabilities() * share).sum((-2, -1))
    assert torch.allclose(gates.density().double(), wanted.double(), atol=1e-6)
    each = weights.expand(gates.probabilities().shape)
    whole = pytest.approx(((gates.probabilities() * each).sum() / each.sum()).item(), abs=1e-6)
    assert gates.whole_density().item() == whole
    assert DamResult(gates.probabilities(), (), 0.5, gates.arguments).density == whole
    gates.density().sum().backward()
    if kind["structure"] == "free":  # what does not exist earns nothing
        unseen = (weights == 0).flatten(-2).expand_as(gates.logits)
        assert (gates.logits.grad[unseen] == 0).all()
        assert (gates.logits.grad[~unseen] > 0).all()
    again = Gates(**gates.arguments)
    assert again.arguments == gates.arguments
    assert torch.equal(again.coverage, gates.coverage)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["structure"])
def test_data_without_padding_changes_nothing(kind):
    plain, packed = (Gates(**kind, length=6, heads=2, lengths=n) for n in (None, {6: 9}))
    assert packed.weights is None
    assert torch.equal(plain.coverage, packed.coverage)
    assert "lengths" not in plain.arguments
    assert "causal" not in plain.arguments


def test_targets_are_effective():
    lengths = {5: 3, 8: 1}
    gates = Gates("toeplitz", length=16, heads=1, lengths=lengths)
    with pytest.raises(ValueError, match=r"density is at least 0\.165\d+ at length 16, got 0\.1"):
        dam(torch.nn.Linear(1, 1), [], gates, DamConfig(density=0.1))


def test_a_result_of_a_decoder_counts_its_past(tmp_path):
    """Of 6 positions 21 pairs exist; .5 of them are 10 or 11, the diagonal among them."""
    gates = Gates("free", length=6, heads=1, causal=True, lengths={6: 2})
    probabilities = torch.zeros(1, 1, 6, 6)
    probabilities[0, 0].fill_diagonal_(0.9)
    probabilities[0, 0, :, 0] = 0.8
    probabilities = torch.where(torch.ones(6, 6).triu(1) > 0, 1.0, probabilities)
    result = DamResult(probabilities, (), 0.5, gates.arguments)
    result = DamResult.load(result.save(tmp_path / "gates.safetensors"))
    mask = result.mask(sparsity=1 - 11 / 21)
    wanted = torch.eye(6, dtype=torch.bool)
    wanted[:, 0] = True
    assert torch.equal(mask.dense(6)[0, 0], wanted)
    card = result.health()
    assert card.density == pytest.approx((5 * 0.9 + 6 * 0.8) / 21, abs=1e-6)
    assert all(at <= 0 for at, _ in card.offsets)  # later keys count for nothing
    assert f"density {card.density:.4f}" in repr(result)


def test_agreement_is_over_what_exists():
    shape = Shape(8, 1, 1, lengths={4: 1})
    one = scores_of(shape, 0, 1000)
    two = one.clone()
    two[..., 4:, :] = 1 - two[..., 4:, :]
    two[..., :, 4:] = 1 - two[..., :, 4:]
    runs = [DamResult(each, (), 0.5, {"lengths": {4: 1}}) for each in (one, two)]
    assert runs[0].health(others=runs[1:]).agreement["iou"] == 1


# -- tiles are kept whole -------------------------------------------------------------------------
BLOCKS = [(2, 1), (4, 2), (2, 2), (1, 3), (2, 6)]
blocks = st.sampled_from(BLOCKS)


def of_tiles(shape: Shape, block: tuple[int, int], seed: int) -> DamResult:
    """A run with random probabilities of tiles, with ties."""
    sizes = {"length": shape.length, "layers": shape.layers, "heads": shape.heads}
    gates = Gates(
        "block", block=block, causal=shape.causal, lengths=shape.lengths, read=shape.read, **sizes
    )
    source = torch.Generator().manual_seed(seed)
    chances = torch.randint(0, 6, gates.logits.shape, generator=source) / 5
    return DamResult(gates.table(chances), (), 0.5, gates.arguments)


def whole_tiles(mask: torch.Tensor, block: tuple[int, int]) -> bool:
    """Whether all cells of each tile are alike."""
    queries, keys = block
    tiles = [
        mask[..., i : i + queries, j : j + keys].flatten(2)
        for i in range(0, mask.shape[2], queries)
        for j in range(0, mask.shape[3], keys)
    ]
    return all(bool((tile == tile[..., :1]).all()) for tile in tiles)


@pytest.mark.slow
@given(shapes(), blocks, st.integers(0, 1000), st.floats(0, 1), parts)
@settings(max_examples=150, deadline=None)
def test_masks_of_tiles_keep_whole_ones_as_near_to_the_sparsity_as_they_can(
    shape, block, seed, share, per
):
    run = of_tiles(shape, block, seed) if min(block) <= shape.length else None
    assume(run is not None)
    least = run.mask(sparsity=0, per=per)
    cells = run.probabilities.shape
    size = shape.length, shape.layers, shape.heads
    weights = pair_weights(shape).expand(cells)
    bank = Gates(**run.gates)
    mask = run.mask(sparsity=share * (1 - bank.least_density), per=per)
    assert isinstance(mask, type(masks.block_layout(torch.ones(1, 1).bool(), 1)))
    assert mask.block == min(block)
    table = mask.dense(*size)
    assert whole_tiles(table, block)
    lower(mask, shape)  # no row is empty, a decoder's neither
    no_query_is_alone(table, shape)
    assert (least.dense(*size) | ~table).all()  # sparser: a subset
    axes = {"mask": (0, 1, 2, 3), "layer": (1, 2, 3), "head": (2, 3)}[per]
    kept, all_of = (table * weights).sum(axes), weights.sum(axes)
    wanted = (1 - share * (1 - bank.least_density)) * all_of
    largest = max(
        float(weights[..., i : i + block[0], j : j + block[1]].sum((2, 3)).max())
        for i in range(0, shape.length, block[0])
        for j in range(0, shape.length, block[1])
    )
    rows = shape.layers * shape.heads * -(-shape.length // block[0])
    few = table[..., :: block[0], :: block[1]].sum() <= rows  # one in each row of tiles
    assert (kept - wanted <= largest / 2 + 1e-9).all() or few or per != "mask"
    assert (wanted - kept <= largest / 2 + 1e-9).all()


@pytest.mark.slow
@given(block=blocks, seed=st.integers(0, 1000), length=st.integers(3, 8))
@settings(max_examples=60, deadline=None)
def test_kept_tiles_match_sorting_by_hand(block, seed, length):
    run = of_tiles(Shape(length, 1, 2), block, seed)
    (queries, keys), p = block, run.probabilities
    order = []
    for h in range(2):
        for i in range(0, length, queries):
            row = []
            for j in range(0, length, keys):
                away = (j + keys / 2) - (i + queries / 2)
                row.append((-float(p[0, h, i, j]), abs(away), away > 0, h, i, j))
            order += [(tile != min(row), *tile) for tile in row]
    order.sort()
    table, total = torch.zeros_like(p, dtype=torch.bool), 2 * length**2
    for place, (later, *_, h, i, j) in enumerate(order):
        table[0, h, i : i + queries, j : j + keys] = True
        if place + 1 < len(order) and not order[place + 1][0]:
            assert not later  # the best of all rows come first
            continue
        kept = int(table.sum())
        for within in (False, True):
            mask = run.mask(sparsity=1 - kept / total, within=within)
            assert torch.equal(mask.dense(length, 1, 2), table)


@pytest.mark.slow
@given(shape=shapes(), block=blocks, seed=st.integers(0, 1000), threshold=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_threshold_keeps_whole_tiles(shape, block, seed, threshold):
    assume(min(block) <= shape.length)
    run = of_tiles(shape, block, seed)
    table = run.mask(threshold=threshold).dense(shape.length, shape.layers, shape.heads)
    assert whole_tiles(table, block)
    no_query_is_alone(table, shape)
    assert ((run.probabilities >= threshold) & (pair_weights(shape) > 0) <= table).all()


def test_layouts_of_tiles_serve_shorter_inputs_and_refuse_longer_ones():
    run = of_tiles(Shape(12, 2, 2), (4, 2), 0)
    mask = run.mask(sparsity=0.5)
    assert torch.equal(mask.dense(7, 2, 2), mask.dense(12, 2, 2)[..., :7, :7])
    with pytest.raises(LengthError, match="6 blocks of 2 positions, asked for 13"):
        mask.dense(13, 2, 2)


def test_too_sparse_for_tiles_is_refused_by_their_size():
    run = of_tiles(Shape(12, 1, 1), (4, 2), 0)
    with pytest.raises(
        ValueError,
        match=r"row of tiles of 4 x 2 keeps one, so .* about 0\.833333 at length 12, got 0\.9",
    ):
        run.mask(sparsity=0.9)
    config = DamConfig(density=0.1)
    with pytest.raises(ValueError, match=r"of 4 x 2 keeps one, so .* at least about 0\.1666"):
        dam(model(), list(batches(1)), Gates("block", block=(4, 2), length=12, heads=2), config)


@pytest.mark.filterwarnings("ignore:DAM")
def test_training_on_tiles_ends_in_a_layout_of_them():
    gates = Gates("block", block=(4, 2), length=8, heads=2)
    config = DamConfig(steps=4, dense_warmup=0.0, density=0.5)
    run = dam(model(), list(batches(4)), gates, config, held_out=list(batches(1)))
    assert run.curve[-1].values["discretised"] > 0
    assert whole_tiles(run.mask(sparsity=0.5).dense(8, 1, 2), (4, 2))
    assert run.health(others=[run]).agreement["iou"] == 1
