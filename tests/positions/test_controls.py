import pytest
import torch

from masksearch import Mask, Shape, masks
from masksearch.masks.measure import effective_density
from masksearch.positions.analysis import diagonal_controls


@pytest.mark.parametrize("length", [2, 24, 128])
@pytest.mark.parametrize("seed", [0, 1, 10**12])
def test_every_control_drops_one_key_of_each_row(length, seed):
    found = diagonal_controls(draws=4, seed=seed)
    assert list(found) == ["full", "without diagonal", *(f"without random {k}" for k in range(4))]
    for name, mask in found.items():
        dropped = (~mask.dense(length)).sum(-1)
        assert torch.equal(dropped, torch.full_like(dropped, name != "full")), name
    off = ~torch.eye(length, dtype=torch.bool)
    assert torch.equal(found["without diagonal"].dense(length)[0, 0], off)


def test_random_controls_differ_and_repeat():
    first, again = diagonal_controls(seed=3), diagonal_controls(seed=3)
    assert first == again
    assert len(set(first.values())) == 5
    assert first["without random 0"] != diagonal_controls(seed=4)["without random 0"]
    assert all(Mask.from_json(mask.to_json()) == mask for mask in first.values())
    assert all(masks.parse(str(mask)) == mask for mask in first.values())


def test_random_keys_are_spread_evenly():
    tables = [m.dense(32)[0, 0] for n, m in diagonal_controls(200).items() if "random" in n]
    dropped = (~torch.stack(tables)).float().mean(0)
    assert dropped.diagonal().mean().item() == pytest.approx(1 / 32, abs=0.01)
    assert dropped.mean(0).std() < 0.01


def test_message():
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        diagonal_controls(draws=0)


@pytest.mark.slow
def test_padded_controls_drop_as_many_real_pairs_as_the_diagonal():
    shape = Shape(64, 1, 1, lengths={7: 2, 12: 9, 20: 30, 31: 12, 44: 5, 61: 1})
    for seed in range(5):
        found = diagonal_controls(draws=2, seed=seed, shape=shape)
        kept = [effective_density(mask, shape) for mask in found.values()]
        assert kept[1:] == pytest.approx([kept[1]] * 3, abs=0.005)
        assert kept[1] < 0.97
    assert diagonal_controls(seed=1, shape=Shape(64, 1, 1)) == diagonal_controls(seed=1)
    with pytest.raises(ValueError, match="a decoder's first query has no other key"):
        diagonal_controls(shape=Shape(8, 1, 1, causal=True))
