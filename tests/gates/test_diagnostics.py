from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masksearch import Gates
from masksearch.contracts import Report, generator
from masksearch.gates.diagnostics import (
    agreement,
    cut_cause,
    health,
    pair_scores,
)
from masksearch.gates.warmup import CollapseWatch
from masksearch.masks.measure import overlap


def table(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed, 5))


def card(probabilities: Tensor, **fields):
    return health(probabilities, **{"target": 0.5, "initial": 0.9, **fields})


def report(step: int, loss: float, density: float = 0.5, target: float = 0.5) -> Report:
    return Report(step, {"loss": loss, "density": density, "target": target})


# -- where the mass lies -------------------------------------------------------------------------
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 7), st.integers(0, 99))
def test_mass_matches_loop(layers, heads, n, seed):
    p = table(layers, heads, n, n, seed=seed)
    found = card(p, target=0.99)
    total = p.double().sum().item()
    for offset in range(1 - n, n):
        cells = [
            p[layer, head, i, i + offset].item()
            for layer in range(layers)
            for head in range(heads)
            for i in range(n)
            if 0 <= i + offset < n
        ]
        at = offset + n - 1
        assert found["by_offset"][at] == pytest.approx(sum(cells) / len(cells), rel=1e-5)
        assert found["mass_by_offset"][at] == pytest.approx(sum(cells) / total, rel=1e-5)
    assert sum(found["mass_by_offset"]) == pytest.approx(1)
    assert sum(found["mass_by_distance"]) == pytest.approx(1)
    for distance in range(1, n):
        both = found["mass_by_offset"][n - 1 + distance], found["mass_by_offset"][n - 1 - distance]
        assert found["mass_by_distance"][distance] == pytest.approx(sum(both), rel=1e-5)
    assert found["diagonal"] == found["by_distance"][0]
    assert found["diagonal_mass"] == found["mass_by_distance"][0]


def test_equal_gates_have_the_uniform_share_on_the_diagonal():
    found = card(torch.full((2, 3, 8, 8), 0.3))
    assert found["diagonal_mass"] == pytest.approx(found["diagonal_uniform"]) == 1 / 8
    assert [head for layer in found["by_head"] for head in layer] == pytest.approx([0.3] * 6)


def test_no_mass_gives_no_shares_and_no_nan():
    found = card(torch.zeros(1, 1, 4, 4))
    assert found["mass_by_offset"] == [0.0] * 7
    assert found["pruned_away"]


def test_card_is_plain_data():
    p = table(2, 2, 6, 6)
    found = card(p, others=[table(2, 2, 6, 6, seed=1)], curve=[report(1, 2.0)], retrained=1.5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


# -- the loss chain ------------------------------------------------------------------------------
def chain(retrained: float | None = None, **values: float):
    last = Report(9, {"loss": 1.0, "density": 0.5, "target": 0.5, **values})
    return card(table(1, 2, 4, 4), curve=[last], retrained=retrained)


def test_gaps_are_the_steps_of_the_chain():
    found = chain(3.5, relaxed=2.0, sampled=2.5, held_out=2.2, discretised=2.25)
    assert found["losses"] == {
        "relaxed": 2.0,
        "sampled": 2.5,
        "rounded": 2.2,
        "discretised": 2.25,
        "retrained": 3.5,
    }
    assert found["gaps"] == {"sampling": 0.5, "discretisation": -0.25, "retraining": 1.25}
    assert [note.split(" nats")[0] for note in found["notes"]] == [
        "the loss rises by 0.5",
        "the loss falls by 0.25",
        "the loss rises by 1.25",
    ]


def test_unknown_losses_stay_unknown():
    found = chain(relaxed=2.0, discretised=9.0)
    assert found["gaps"] == {"sampling": None, "discretisation": None, "retraining": None}
    assert found["notes"] == []
    assert set(card(table(1, 1, 4, 4))["losses"].values()) == {None}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(0.4, 0.44, 0), (0.4, 0.46, 1), (4.0, 4.19, 0), (4.0, 4.21, 1), (4.0, 3.79, 1)],
)
def test_a_gap_is_large_beyond_both_limits(before, after, said):
    assert len(chain(relaxed=before, sampled=after)["notes"]) == said


@pytest.mark.parametrize(
    ("density", "target", "undecided", "reason"),
    [
        (0.3, 0.2, 0.5, "the gates have reached 0.3 only"),
        (0.1, 0.1, 0.5, "every row keeps a key, which takes 62% of the edges"),
        (0.2, 0.2, 0.5, "50% of the edges are undecided"),
        (0.2, 0.2, 0.0, "the order of the gates near the cut says little"),
    ],
)
def test_a_cut_that_costs_has_a_reason(density, target, undecided, reason):
    assert cut_cause(density, target, 1 / 16, undecided).startswith(reason)


# -- collapse ------------------------------------------------------------------------------------
def watched(reports, target=0.1, initial=0.9, warmup=40, steps=100):
    watch = CollapseWatch(target, initial, warmup, steps)
    return [line for each in reports if (line := watch.look(each)) is not None]


def good_run(rise=0.0, last=100):
    for step in range(1, last + 1):
        gated = max(0.0, (step - 40) / 60)
        density = 0.9 * (0.1 / 0.9) ** gated
        loss = 4 - 2 * min(1, step / 40) + rise * gated
        yield report(step, loss, density * 1.05, density)


def test_watch_is_silent_where_nothing_is_wrong():
    assert watched(good_run()) == []
    assert watched(good_run(rise=0.95)) == []  # less than half of what the warm-up gained


def test_watch_says_each_kind_once():
    pruned = [report(step, 2.0, 0.02, 0.09) for step in range(41, 60)]
    (line,) = watched(pruned)
    assert line.startswith("step 41: nearly everything is pruned (density 0.02, target 0.1)")
    stuck = [report(step, 2.0, 0.88, 0.5) for step in range(1, 100)]
    (line,) = watched(stuck)
    assert line.startswith("step 70: nothing is pruned (density 0.88, at the start 0.9,")
    lines = watched(good_run(rise=3.0))
    assert len(lines) == 1
    assert "the loss has risen to" in lines[0]
    assert "from 2.05 before the gates" in lines[0]


def test_watch_waits_for_several_reports_in_a_row():
    def spikes(length):
        for step in range(1, 100):
            yield report(step, 9.0 if step > 40 and (step - 41) % (length + 1) < length else 2.0)

    assert watched(spikes(4)) == []
    (line,) = watched(spikes(5))
    assert line.startswith("step 45: the loss has risen to 9 from 2 ")


def test_watch_is_quiet_in_the_warm_up():
    assert watched([report(step, step / 1.0, 0.001, 0.9) for step in range(1, 41)]) == []


def test_watch_without_warm_up_looks_back_at_the_best():
    falling = [report(step, 4 - 0.03 * step, 0.5, 0.5) for step in range(1, 51)]
    risen = [report(step, 4.0, 0.3, 0.3) for step in range(51, 60)]
    (line,) = watched([*falling, *risen], warmup=0)
    assert line.startswith("step 55: the loss has risen to 4 from 2.53 ")
    assert watched(falling, warmup=0) == []


def test_card_keeps_what_the_watch_said():
    p = torch.full((1, 2, 8, 8), 0.1)
    found = card(p, target=0.1, curve=list(good_run(rise=3.0)), warmup_steps=40)
    assert found["function_lost"]
    assert len(found["warnings"]) == 1
    assert "the loss has risen to 5 from 2.05" in found["problems"][-1]
    recovered = [*good_run(rise=3.0), report(101, 2.0, 0.1, 0.1)]
    found = card(p, target=0.1, curve=recovered, warmup_steps=40)
    assert not found["function_lost"]
    assert found["problems"] == []
    assert len(found["warnings"]) == 1


def test_a_good_mask_is_no_lost_function():
    p = torch.full((1, 2, 8, 8), 0.1)
    *early, last = good_run(rise=3.0)
    for cut, lost in ((2.1, False), (4.9, True)):
        curve = [*early, Report(last.step, {**last.values, "discretised": cut})]
        found = card(p, target=0.1, curve=curve, warmup_steps=40)
        assert found["function_lost"] == lost


# -- agreement -----------------------------------------------------------------------------------
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2), st.integers(1, 4), st.integers(0, 99))
def test_matched_heads_are_the_best_of_all_orders(layers, heads, seed):
    one = table(layers, heads, 4, 4, seed=seed) > 0.6
    two = table(layers, heads, 4, 4, seed=seed + 1000) > 0.6
    best = max(
        overlap(one, torch.stack([two[k, list(o)] for k, o in enumerate(orders)]))
        for orders in itertools.product(itertools.permutations(range(heads)), repeat=layers)
    )
    plain, matched = pair_scores([one, two])
    assert matched[0] == pytest.approx(best)
    assert matched[0] >= plain[0]


def test_swapped_heads_are_found_again():
    one = table(2, 4, 6, 6)
    orders = torch.tensor([[2, 0, 3, 1], [1, 0, 2, 3]])
    two = torch.stack([one[layer, order] for layer, order in enumerate(orders)])
    found = agreement([one, two], density=0.3)
    assert found["matched"] == 1.0
    assert found["iou"] < 0.6


def test_equal_seeds_agree_and_random_ones_as_chance_says():
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
def test_chance_of_free_gates_is_that_of_random_sets(density):
    tables = [table(1, 2, 40, 40, seed=k) for k in range(2)]
    expected = density / (2 - density)  # of many cells, each kept with that probability
    assert agreement(tables, density=density)["chance"] == pytest.approx(expected, abs=0.01)


def test_chance_knows_that_tiles_are_kept_as_a_whole():
    arguments = {"structure": "block", "block": 4}
    gates = Gates("block", block=4, length=12, heads=2)
    tables = [gates.table(table(*gates.logits.shape, seed=seed)).detach() for seed in range(12)]
    found = agreement(tables, density=0.5, gates=arguments)
    assert found["iou"] == pytest.approx(found["chance"], abs=0.04)
    assert found["matched"] == pytest.approx(found["matched_chance"], abs=0.04)
    free = agreement(tables, density=0.5)
    assert found["matched_chance"] > free["matched_chance"] + 0.04


def test_a_target_below_one_key_a_row_is_cut_at_one():
    found = card(table(1, 2, 8, 8), target=0.01, others=[table(1, 2, 8, 8, seed=1)])
    assert found["agreement"] is not None
    assert found["agreement"]["density"] == pytest.approx(1 / 8)


def test_agreement_messages():
    with pytest.raises(ValueError, match=r"two or more tables of one shape, got 1 of"):
        agreement([table(1, 2, 4, 4)], density=0.5)
    with pytest.raises(ValueError, match="other seeds"):
        card(table(1, 2, 4, 4), others=[table(1, 2, 5, 5)])


# -- the card as text --------------------------------------------------------------------------
def test_health_prints_a_card_and_keeps_its_figures():
    table = torch.rand(2, 4, 64, 64, generator=generator(0)) * 0.9
    last = {"loss": 2.9, "density": 0.45, "target": 0.05, "relaxed": 2.1, "sampled": 2.5}
    curve = (
        Report(1, {"loss": 3.0, "density": 0.5, "target": 0.5}),
        Report(400, {**last, "discretised": 3.0}),
    )
    found = health(table, target=0.05, initial=0.46, curve=curve, retrained=2.4, others=[table])
    text = str(found)
    assert len(text.splitlines()) <= 16
    assert max(map(len, text.splitlines())) <= 110
    for said in (
        "asked for 5.0%",
        "soft gates 2.100 -> sampled 2.500 -> mask cut 3.000 -> mask retrained 2.400",
        "88.7% undecided",
        "2 agree by 1.00 IoU",
        "nothing is pruned",
        "train for more steps",
    ):
        assert said in " ".join(text.split())
    assert len(found["mass_by_offset"]) == len(found.mass_by_offset) == 127
    assert set(found) == set(type(found).__annotations__)
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(AttributeError, match="no 'densty'; it has density, target"):
        found.densty  # noqa: B018


def test_a_healthy_run_says_so_in_seven_lines():
    table = torch.full((1, 1, 8, 8), 0.01) + 0.98 * torch.eye(8)
    lines = str(health(table, target=table.mean().item(), initial=0.9)).splitlines()
    assert len(lines) == 7
    assert lines[-1].split() == ["problems", "none"]
