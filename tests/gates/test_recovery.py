import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masksearch import PlantedProcess
from masksearch.contracts import generator
from masksearch.errors import LengthError
from masksearch.gates.diagnostics import recovery


def drawn(seed, length, levels):
    """Probabilities on few levels (many ties) for two layers and heads, and random edges."""
    random = generator(seed)
    shape = (2, 2, length, length)
    probabilities = torch.randint(levels, shape, generator=random) / levels
    edges = torch.rand(length, length, generator=random) < 0.3
    edges[0, 1], edges[1, 0] = True, False
    return probabilities, edges


@given(st.integers(0, 10_000), st.integers(3, 7), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_auroc_matches_loop_over_pairs(seed, length, levels):
    probabilities, edges = drawn(seed, length, levels)
    best = probabilities.amax((0, 1))
    cells = [(q, k) for q, k in itertools.product(range(length), repeat=2) if q != k]
    true = [best[cell].item() for cell in cells if edges[cell]]
    false = [best[cell].item() for cell in cells if not edges[cell]]
    wins = sum((a > b) + 0.5 * (a == b) for a in true for b in false)
    assert recovery(probabilities, edges).auroc == pytest.approx(wins / len(true) / len(false))


@given(st.integers(0, 10_000), st.integers(3, 4), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_precision_is_the_mean_over_all_ways_of_breaking_ties(seed, length, levels):
    probabilities, edges = drawn(seed, length, levels)
    best = probabilities.amax((0, 1))
    cells = [(q, k) for q, k in itertools.product(range(length), repeat=2) if q != k]
    count = sum(edges[cell].item() for cell in cells)
    lowest = sorted((best[cell].item() for cell in cells), reverse=True)[count - 1]
    sure = [cell for cell in cells if best[cell] > lowest]
    tied = [cell for cell in cells if best[cell] == lowest]
    shares = [
        sum(edges[cell].item() for cell in (*sure, *chosen)) / count
        for chosen in itertools.combinations(tied, count - len(sure))
    ]
    expected = sum(shares) / len(shares)
    assert recovery(probabilities, edges).precision == pytest.approx(expected)


def test_constant_gates_score_as_chance():
    edges = PlantedProcess().edges
    found = recovery(torch.full((1, 2, 24, 24), 0.3), edges)
    assert found.auroc == 0.5
    assert found.precision == pytest.approx(edges.sum().item() / (24 * 23))


def test_one_head_is_enough_and_the_diagonal_does_not_count():
    edges = PlantedProcess().edges
    probabilities = torch.zeros(2, 2, 24, 24)
    probabilities[1, 0] = edges * 0.4
    probabilities[..., range(24), range(24)] = 1.0
    assert recovery(probabilities, edges) == (1.0, 1.0)
    assert recovery(1 - probabilities[1:, :1], edges).auroc == 0.0


@pytest.mark.parametrize(
    ("probabilities", "edges", "kind", "message"),
    [
        (torch.ones(1, 1, 4, 4), torch.ones(3, 3) > 0, LengthError, r"\[1, 1, 4, 4\] do not fit"),
        (torch.ones(1, 1, 3, 3), torch.ones(3, 3) > 0, ValueError, "got 6 of 6"),
        (torch.ones(1, 1, 3, 3), torch.eye(3) > 0, ValueError, "got 0 of 6"),
        (torch.full((3, 3), torch.nan), torch.ones(3, 3).triu() > 0, ValueError, "hold NaN"),
    ],
)
def test_wrong_arguments_are_refused(probabilities, edges, kind, message):
    with pytest.raises(kind, match=message):
        recovery(probabilities, edges)
