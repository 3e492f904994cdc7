"""A target of time: the share of tiles that meets it, drawn masks that do, found masks that are
cut until they do. Timings are made up: a mask's time grows with the pairs that it keeps."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masksearch import Shape, masks
from masksearch.analysis.stats import PairedDifference, paired_difference
from masksearch.evaluators import speed_target
from masksearch.evaluators.speed_target import Target, Timings, random_tiles
from masksearch.masks.core import Mask
from masksearch.masks.measure import effective_density

SHAPE = Shape(128, 2, 2, lengths={128: 3, 100: 1}, read=1)
BLOCK = (16, 4)
ALONE = 0.4  # of dense attention's time, without any pair


def density(mask: Mask) -> float:
    return effective_density(mask, SHAPE)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all masks that were timed, as they were."""
    timed: list[str] = []

    def time_masks(
        model: Any, named: Mapping[str, Mask], batches: Any, repeats: int, *rest: Any
    ) -> dict[str, list[float]]:
        assert len(batches) * repeats >= 4  # quartiles need several runs
        timed.extend(named)
        times = {name: ALONE + (1 - ALONE) * density(mask) for name, mask in named.items()}
        return {name: [1 / each, 1.05 / each, 1.1 / each] for name, each in times.items()}

    monkeypatch.setattr(speed_target, "time_masks", time_masks)
    return timed


def target(path: Path, times: float, length: int = 128, model: str = "") -> Target:
    rows = {"attention_mask": torch.ones(8, length)}
    timings = Timings(
        path / "time.json", torch.nn.Module, (rows,), torch.device("cpu"), model=model
    )
    return Target(times, SHAPE, BLOCK, timings)


def difference(value: float) -> PairedDifference:
    return paired_difference({0: 0.8 + value}, {0: 0.8})


def share_at(times: float) -> float:
    return (1 / times - ALONE) / (1 - ALONE)


@pytest.mark.parametrize("times", [1.5, 1.6, 1.9])
def test_the_share_is_where_random_tiles_meet_the_target(asked, tmp_path, times):
    found = target(tmp_path, times)
    assert found.share == pytest.approx(share_at(times), abs=0.01)
    assert found.share <= share_at(times)
    assert len(asked) == 6
    assert target(tmp_path, times).share == found.share
    assert len(asked) == 6  # from the file
    assert "8 rows of 128 to 128 tokens, " in found.describe()
    assert f"{times:g} times: {found.share:.1%} of the pairs" in found.describe()


def test_what_was_timed_otherwise_is_timed_anew(asked, tmp_path, monkeypatch):
    """Under as many threads, of that model, on those rows, under that mask."""
    drawn = {"a": masks.window(1)}
    for change in ({}, {"length": 64}, {"model": "other"}):
        timings = target(tmp_path, 1.5, **change).timings
        assert timings.of(drawn, "") == timings.of(drawn, "")
    assert len(asked) == 3
    target(tmp_path, 1.5).timings.of({"a": masks.window(2)}, "")
    assert len(asked) == 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 63)
    assert target(tmp_path, 1.5).timings.of(drawn, "")
    assert len(asked) == 5


def test_a_target_beyond_the_diagonal_is_refused_with_what_is_to_be_had(asked, tmp_path):
    best = 1 / (ALONE + (1 - ALONE) * density(random_tiles(0.0, SHAPE, BLOCK)))
    message = (
        "3 times as fast is not to be had at 128 tokens: without any pair but those of the "
        f"diagonal's tiles the model is {1.05 * best:.2f} times as fast"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        _ = target(tmp_path, 3).share


def test_drawn_masks_are_as_dense_as_the_target_lets_them(asked, tmp_path):
    found = target(tmp_path, 1.4)
    drawn = found.drawn
    assert len(drawn) > 3
    assert all(name.endswith(" at 1.4 times") for name in drawn)
    assert max(map(density, drawn.values())) <= share_at(1.4)
    for name, mask in drawn.items():
        denser = masks.equal_cost_baselines(share_at(1.4), SHAPE, block=BLOCK)
        if (other := denser.get(name.removesuffix(" at 1.4 times"))) is not None:
            assert density(mask) >= density(other) - 0.05
    before = len(asked)
    assert target(tmp_path, 1.4).drawn == drawn
    assert len(asked) == before


def test_a_drawn_mask_that_is_no_slower_than_the_diagonal_is_drawn_denser(tmp_path, monkeypatch):
    shares = list[list[float]]()

    def time_masks(model: Any, named: Mapping[str, Mask], *rest: Any) -> dict[str, list[float]]:
        shares.append([density(mask) for mask in named.values()])
        random = len(shares) == 1
        return {name: [1.5 - 0.5 * density(mask) if random else 1.7] * 3
                for name, mask in named.items()}  # fmt: skip

    monkeypatch.setattr(speed_target, "time_masks", time_masks)
    found = target(tmp_path, 1.4)
    densest = max(map(density, found.drawn.values()))
    assert densest == max(map(max, shares[1:])) > 1.5 * found.share


@pytest.mark.parametrize(("share", "cuts"), [(0.3, 0), (0.7, 1)])
def test_a_found_mask_that_is_too_slow_is_cut_without_training(asked, tmp_path, share, cuts):
    found, made = target(tmp_path, 1.5), list[float]()
    found.share  # noqa: B018

    def cut(share: float) -> Mask:
        made.append(share)
        return random_tiles(share - 0.05, SHAPE, BLOCK)

    fitting = found.fit("dam", random_tiles(share, SHAPE, BLOCK), cut)
    assert len(made) == cuts
    assert density(fitting) <= share_at(1.5)


def test_a_mask_is_cut_twice_at_most(asked, tmp_path):
    found, made = target(tmp_path, 1.5), list[float]()

    def cut(share: float) -> Mask:
        made.append(share)
        return masks.full()

    assert found.fit("dam", masks.full(), cut) == masks.full()
    assert len(made) == 2


def test_a_mask_that_cannot_be_cut_lower_is_kept(asked, tmp_path):
    def cut(share: float) -> Mask:
        raise ValueError("every row of tiles of 16 x 4 keeps one")

    assert target(tmp_path, 1.5).fit("dam", masks.full(), cut) == masks.full()


def test_dense_attention_is_recommended_where_every_mask_loses_much(asked, tmp_path):
    found, speeds = target(tmp_path, 1.4), {"dam": [1.4, 1.5, 1.6], "drawn": [1.3, 1.4, 1.5]}
    losses = {"dam": difference(-0.06), "drawn": difference(-0.07)}
    answer = found.describe_answer(losses, "dam", speeds)
    assert answer.startswith("Dense attention is recommended: every mask loses over 0.05. -0.06")
    assert answer.endswith(" drawn: 1.40 times, lower quartile 1.30.")
    losses["drawn"] = difference(-0.03)
    assert found.describe_answer(losses, "dam", speeds).startswith("-0.06")


@given(st.floats(0, 1), st.sampled_from([(1, 1), (16, 16), (32, 8), (8, 32)]))
def test_random_tiles_are_whole_and_keep_the_diagonal(share: float, block: Any) -> None:
    shape = Shape(50, 2, 3)
    kept = random_tiles(share, shape, block).dense(50)
    assert kept.diagonal(dim1=-2, dim2=-1).all()
    rows, columns = (torch.arange(50) // side for side in block)
    for tile in {*zip(rows.tolist(), columns.tolist(), strict=True)}:
        own = kept[..., rows == tile[0], :][..., columns == tile[1]].flatten(2)
        assert (own.all(-1) == own.any(-1)).all()
    if block == (1, 1):
        assert kept[0, 0].sum() == max(50, round(share * 2500))
