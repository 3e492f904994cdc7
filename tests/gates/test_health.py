"""The health card of a run: its figures by loops, its sentences, and the agreement of seeds."""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masksearch.contracts import Report, generator
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.gates import Gates
from masksearch.gates.result import DamResult


def table(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed, 5))


def report(step: int, loss: float, density: float = 0.5, target: float = 0.5) -> Report:
    return Report(step, {"loss": loss, "density": density, "target": target})


def card(
    probabilities: Tensor,
    curve: Iterable[Report] = (),
    *,
    target: float = 0.5,
    warmup: float = 0.4,
    others: Iterable[Tensor] = (),
    gates: dict[str, Any] | None = None,
    **given: Any,
) -> Any:
    """The card of a run of 100 steps."""
    config = {"steps": 100, "dense_warmup": warmup}
    run = DamResult(probabilities, tuple(curve), target, gates or {}, config)
    return run.health(others=[replace(run, probabilities=other) for other in others], **given)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 7), st.integers(0, 99))
def test_figures_match_loops(layers: int, heads: int, n: int, seed: int) -> None:
    p = table(layers, heads, n, n, seed=seed)
    found = card(p, target=0.99)
    places = [*itertools.product(range(layers), range(heads), range(n), range(n))]
    by_offset: dict[int, list[float]] = {}
    for layer, head, i, j in places:
        by_offset.setdefault(j - i, []).append(p[layer, head, i, j].item())
    means = {at: sum(cells) / len(cells) for at, cells in by_offset.items()}
    assert found.diagonal == pytest.approx(means[0], rel=1e-5)
    best = sorted(means, key=lambda at: -means[at])[:4]
    assert [at for at, _ in found.offsets] == best
    assert [chance for _, chance in found.offsets] == pytest.approx([means[at] for at in best])
    flat = p.flatten().tolist()
    assert found.density == pytest.approx(sum(flat) / len(flat), rel=1e-5)
    assert found.undecided == pytest.approx(sum(0.1 < x < 0.9 for x in flat) / len(flat))
    each = [[p[layer, head].mean().item() for head in range(heads)] for layer in range(layers)]
    assert found.by_head == [pytest.approx(row) for row in each]


def test_a_card_is_plain_data_and_knows_empty_gates() -> None:
    p = table(2, 2, 6, 6)
    found = card(p, [report(1, 2.0)], others=[table(2, 2, 6, 6, seed=1)], retrained=1.5)
    plain = json.loads(json.dumps(asdict(found), allow_nan=False))
    assert plain == asdict(found) | {"offsets": [list(pair) for pair in found.offsets]}
    empty = card(torch.zeros(1, 1, 4, 4))
    assert empty.offsets == [(0, 0.0), (-1, 0.0), (1, 0.0), (-2, 0.0)]
    assert "pruned_away" in empty.problems


# -- the chain of losses -------------------------------------------------------------------------
def chain(retrained: float | None = None, **values: float) -> Any:
    last = Report(100, {"loss": 1.0, "density": 0.5, "target": 0.5, **values})
    return card(table(1, 2, 4, 4), [last], retrained=retrained)


def test_large_rises_are_said() -> None:
    found = chain(3.5, relaxed=2.0, sampled=2.5, held_out=2.2, discretised=2.25)
    assert found.losses == {
        "relaxed": 2.0,
        "sampled": 2.5,
        "held_out": 2.2,
        "discretised": 2.25,
        "retrained": 3.5,
    }
    assert [note.split(":")[0] for note in found.notes] == [
        "the loss rises by 0.5 nats from soft to sampled gates",
        "the loss rises by 1.25 nats when the mask is trained from scratch",
    ]
    unknown = chain(relaxed=2.0, discretised=9.0)
    assert (unknown.losses, unknown.notes) == ({"relaxed": 2.0, "discretised": 9.0}, [])


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(0.4, 0.44, 0), (0.4, 0.46, 1), (4.0, 4.19, 0), (4.0, 4.21, 1), (4.0, 3.79, 0)],
)
def test_a_rise_is_large_beyond_both_limits(before: float, after: float, said: int) -> None:
    assert len(chain(relaxed=before, sampled=after).notes) == said


@pytest.mark.parametrize(
    ("chance", "target", "reason"),
    [
        (0.3, 0.2, "the gates have reached 0.3 only"),
        (0.1, 0.1, "every row keeps a key, which takes 62% of the edges"),
        (0.2, 0.2, "100% of the edges are undecided"),
        (0.95, 0.95, "the order of the gates near the cut says little"),
    ],
)
def test_a_cut_that_costs_has_a_reason(chance: float, target: float, reason: str) -> None:
    last = Report(100, {"loss": 1.0, "density": 0.5, "sampled": 1.0, "discretised": 2.0})
    (note,) = card(torch.full((1, 1, 16, 16), chance), [last], target=target).notes
    assert f"cut at the target density: {reason}" in note


# -- collapse ------------------------------------------------------------------------------------
def watched(reports: Iterable[Report], target: float = 0.1, warmup: float = 0.4) -> list[str]:
    """What is said while a run goes on."""
    first = report(1, 4.0, 0.9, 0.9)
    last = report(100, 2.0, 0.1, 0.1)
    curve = [first, *(each for each in reports if 1 < each.step < 100), last]
    return card(torch.full((1, 2, 8, 8), 0.1), curve, target=target, warmup=warmup).warnings


def good_run(rise: float = 0.0, last: int = 100) -> Iterator[Report]:
    for step in range(1, last + 1):
        gated = max(0.0, (step - 40) / 60)
        density = 0.9 * (0.1 / 0.9) ** gated
        loss = 4 - 2 * min(1, step / 40) + rise * gated
        yield report(step, loss, density * 1.05, density)


def spikes(length: int) -> Iterator[Report]:
    for step in range(2, 100):
        yield report(step, 9.0 if step > 40 and (step - 41) % (length + 1) < length else 2.0)


FALLING = [report(step, 4 - 0.03 * step, 0.5, 0.5) for step in range(2, 51)]
RISEN = [report(step, 4.0, 0.3, 0.3) for step in range(51, 60)]


@pytest.mark.parametrize(
    ("reports", "warmup", "said"),
    [
        (good_run(), 0.4, None),
        (good_run(rise=0.95), 0.4, None),  # less than half of what the warm-up gained
        (spikes(4), 0.4, None),
        ([report(step, step / 1.0, 0.001, 0.9) for step in range(2, 41)], 0.4, None),
        (FALLING, 0.0, None),
        ([report(step, 2.0, 0.02, 0.09) for step in range(41, 60)], 0.4,
         "step 41: nearly everything is pruned (density 0.02, target 0.1)"),
        ([report(step, 2.0, 0.88, 0.5) for step in range(2, 100)], 0.4,
         "step 70: nothing is pruned (density 0.88, at the start 0.9,"),
        (good_run(rise=3.0), 0.4, "from 2.05 before the gates"),
        (spikes(5), 0.4, "step 45: the loss has risen to 9 from 2 "),
        ([*FALLING, *RISEN], 0.0, "step 55: the loss has risen to 4 from 2.53 "),
    ],
)  # fmt: skip
def test_a_run_says_each_kind_of_collapse_once(reports, warmup, said):
    lines = watched(reports, warmup=warmup)
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


def test_a_card_judges_the_end_of_a_run_by_its_mask() -> None:
    p = torch.full((1, 2, 8, 8), 0.1)
    found = card(p, good_run(rise=3.0), target=0.1)
    assert list(found.problems) == ["function_lost"]
    assert "the loss has risen to 5 from 2.05" in found.problems["function_lost"]
    assert len(found.warnings) == 1
    run = DamResult(p, tuple(good_run(rise=3.0)), 0.1, {}, {"steps": 100, "train": "gates"})
    assert "weights are frozen: train on under" in run.health().problems["function_lost"]
    recovered = card(p, [*good_run(rise=3.0), report(101, 2.0, 0.1, 0.1)], target=0.1)
    assert (recovered.problems, len(recovered.warnings)) == ({}, 1)
    *early, last = good_run(rise=3.0)
    for cut, lost in ((2.1, False), (4.9, True)):
        curve = [*early, Report(last.step, {**last.values, "discretised": cut})]
        assert ("function_lost" in card(p, curve, target=0.1).problems) == lost


# -- agreement -----------------------------------------------------------------------------------
def agreement(tables: list[Tensor], density: float, **gates: Any) -> Any:
    """Of runs with other seeds, on the card of the first."""
    return card(tables[0], target=density, others=tables[1:], gates=gates).agreement


def overlap(first: Tensor, second: Tensor) -> float:
    """Kept cells in both over kept cells in either."""
    return int((first & second).sum()) / int((first | second).sum())


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2), st.integers(1, 4), st.integers(0, 99))
def test_matched_heads_are_the_best_of_all_orders(layers: int, heads: int, seed: int) -> None:
    chances = [table(layers, heads, 4, 4, seed=each) for each in (seed, seed + 1000)]
    one, two = (at_sparsity(chance, 0.6) for chance in chances)
    best = max(
        overlap(one, torch.stack([two[k, list(o)] for k, o in enumerate(orders)]))
        for orders in itertools.product(itertools.permutations(range(heads)), repeat=layers)
    )
    found = agreement(chances, density=0.4)
    assert (found["iou"], found["matched"]) == pytest.approx((overlap(one, two), best))


def test_equal_seeds_agree_and_random_ones_as_chance_says() -> None:
    one = table(2, 3, 12, 12)
    same = agreement([one, one, one], density=0.2)
    assert (same["seeds"], same["iou"], same["matched"]) == (3, 1.0, 1.0)
    assert same["by_pair"] == [1.0] * 3
    tables = [table(2, 3, 12, 12, seed=10 + k) for k in range(8)]
    found = agreement(tables, density=0.2)
    assert found["iou"] == pytest.approx(found["chance"], abs=0.02)
    assert found["matched"] == pytest.approx(found["matched_chance"], abs=0.02)
    assert found["matched_chance"] > found["chance"]
    assert found == agreement(tables, density=0.2)


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_chance_of_free_gates_is_that_of_random_sets(density: float) -> None:
    tables = [table(1, 2, 40, 40, seed=k) for k in range(2)]
    expected = density / (2 - density)  # of many cells, each kept with that probability
    assert agreement(tables, density=density)["chance"] == pytest.approx(expected, abs=0.01)


def test_chance_knows_that_tiles_are_kept_as_a_whole() -> None:
    gates = Gates("block", block=4, length=12, heads=2)
    tables = [gates.table(table(*gates.logits.shape, seed=seed)).detach() for seed in range(12)]
    found = agreement(tables, density=0.5, structure="block", block=4)
    assert found["iou"] == pytest.approx(found["chance"], abs=0.04)
    assert found["matched"] == pytest.approx(found["matched_chance"], abs=0.04)
    free = agreement(tables, density=0.5)
    assert found["matched_chance"] > free["matched_chance"] + 0.04


def test_agreement_is_refused_or_cut_at_one_key_a_row() -> None:
    p = table(1, 2, 8, 8)
    found = card(p, target=0.01, others=[table(1, 2, 8, 8, seed=1)]).agreement
    assert found["density"] == pytest.approx(1 / 8)
    with pytest.raises(ValueError, match="other seeds"):
        card(p, others=[table(1, 2, 5, 5)])


# -- the card as text ----------------------------------------------------------------------------
def test_a_card_prints_its_figures_and_what_to_do() -> None:
    p = torch.rand(2, 4, 64, 64, generator=generator(0)) * 0.9
    last = {"loss": 2.9, "density": 0.45, "target": 0.05, "relaxed": 2.1, "sampled": 2.5}
    curve = [report(1, 3.0, 0.46), Report(400, {**last, "discretised": 3.0})]
    text = str(card(p, curve, target=0.05, warmup=0.0, retrained=2.4, others=[p]))
    assert len(text.splitlines()) <= 18  # a loss a line
    assert max(map(len, text.splitlines())) <= 110
    for said in (
        "asked for 5.0%",
        "soft gates 2.1 loss, sampled gates 2.5 loss, mask cut 3 loss, retrained 2.4",
        "undecided 88.7%",
        "agreement of seeds IoU 1 (chance 0.",
        "nothing is pruned",
        "train for more steps",
    ):
        assert said in " ".join(text.split())
    healthy = torch.full((1, 1, 8, 8), 0.01) + 0.98 * torch.eye(8)
    lines = str(card(healthy, target=healthy.mean().item())).splitlines()
    assert len(lines) == 7
    assert lines[-1].split() == ["problems", "none"]
