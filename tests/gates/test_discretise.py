from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masksearch.errors import UnknownNameError
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.gates import Gates
from masksearch.gates.result import DamResult

PARTS = ["mask", "layer", "head"]
parts = st.sampled_from(PARTS)


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
def test_sparsity_keeps_the_exact_number_and_no_row_is_empty(table, share, per):
    sparsity = share * (1 - 1 / table.shape[-1])
    mask = at_sparsity(table, sparsity, per)
    for part in split(mask, per):
        assert int(part.sum()) == round((1 - sparsity) * part.numel())
    assert mask.any(-1).all()


@given(table=tables(), share=st.floats(0, 1), per=parts)
@settings(max_examples=40, deadline=None)
def test_each_part_is_cut_as_if_it_were_alone(table: Tensor, share: float, per: Any):
    sparsity = share * (1 - 1 / table.shape[-1])
    mask = at_sparsity(table, sparsity, per)
    for part, cut in zip(split(table, per), split(mask, per), strict=True):
        assert torch.equal(at_sparsity(part, sparsity), cut)


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
