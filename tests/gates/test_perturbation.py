"""Effects of gates against losses computed by hand, and a model that is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from masksearch import masks
from masksearch.attention.attach import ATTACHMENT, attach, detach
from masksearch.contracts import Batch
from masksearch.errors import AttachError, NonFiniteLossError
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.estimators import with_own_keys
from masksearch.gates.gates import Gates
from masksearch.gates.perturbation import edge_scores, perturbation_scores, ranks
from masksearch.models.encoders import encoder
from masksearch.models.heads import MaskedLanguageModel
from masksearch.tasks.planted.process import PlantedProcess, PlantedTask

PROCESS = PlantedProcess(length=6, offsets=(2,), keys=1, vocabulary=4)
N = PROCESS.length


def model(dropout: float = 0.0) -> MaskedLanguageModel:
    """A nano encoder whose attention is far from flat, so that single edges matter."""
    nano = encoder("nano", PROCESS.ids, N, seed=0, dropout=dropout, initializer_range=0.4)
    return MaskedLanguageModel(nano, seed=0)


def held_out(count: int = 2) -> list[Batch]:
    batches = PlantedTask(PROCESS, batch=16).batches(seed=1)
    return [next(batches) for _ in range(count)]


def drawn_gates(**arguments: Any) -> Gates:
    gates = Gates(length=N, heads=2, **arguments)
    with torch.no_grad():
        gates.logits.normal_(std=2.0, generator=torch.Generator().manual_seed(0))
    return gates


def hand_loss(table: Tensor) -> float:
    """Mean loss of the model under a fixed mask."""
    judged = attach(model(), masks.table(with_own_keys(table))).eval()
    with torch.no_grad():
        return sum(float(judged(**batch).loss) for batch in held_out()) / len(held_out())


def opened(gates: Gates, closed: tuple[int, int, int] | None = None, to: float = 0.0) -> Tensor:
    """Edges that are open, perhaps with one gate set to 0 or 1."""
    values = (gates.logits.detach() > 0).float()
    if closed is not None:
        values[closed] = to
    return gates.table(values) > 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        {"structure": "free"},
        {"structure": "toeplitz", "signed": True, "form": "log", "hard": False},
        {"structure": "toeplitz+global", "global_count": 1, "form": "product"},
        {"structure": "block", "block": 2},
    ],
    ids=str,
)
def test_effects_are_loss_differences_computed_by_hand(arguments: dict[str, Any]):
    gates = drawn_gates(**arguments)
    chosen = torch.zeros(gates.logits.shape, dtype=torch.bool)
    chosen.view(-1)[::3] = True
    found = perturbation_scores(model(), gates, held_out(), candidates=chosen)
    assert torch.equal(found.measured, chosen)
    assert torch.equal(found.effects.isnan(), ~chosen)
    assert found.loss == pytest.approx(hand_loss(opened(gates)), abs=1e-5)
    for index in map(tuple, chosen.nonzero().tolist()):
        want = hand_loss(opened(gates, index, 0.0)) - hand_loss(opened(gates, index, 1.0))
        assert float(found.effects[index]) == pytest.approx(want, abs=1e-5)
    assert found.effects[chosen].abs().max() > 1e-3  # the model does depend on its gates


def test_default_candidates_are_the_open_and_the_likeliest_closed_gates():
    gates = drawn_gates(structure="toeplitz")
    logits = gates.logits.detach()
    found = perturbation_scores(model(), gates, held_out())
    closed = sorted(logits[logits <= 0].tolist(), reverse=True)
    count = min(int((logits > 0).sum()), len(closed))
    assert torch.equal(found.measured, logits >= ([*closed, 0][count - 1]))
    gates.logits.data.fill_(-1.0)
    assert int(perturbation_scores(model(), gates, held_out(1)).measured.sum()) == 1
    gates.logits.data.fill_(1.0)
    assert perturbation_scores(model(), gates, held_out(1)).measured.all()


def test_scores_put_measured_gates_first_and_the_others_by_probability():
    gates = drawn_gates()
    found = perturbation_scores(model(), gates, held_out(), candidates=9)
    logits, scores = gates.logits.detach().flatten(), found.scores.flatten()
    undecided = logits.abs().argsort()[:9]
    assert set(found.measured.flatten().nonzero().flatten().tolist()) == set(undecided.tolist())
    effects = found.effects.flatten()
    cells = range(len(logits))
    order = sorted(
        cells,
        key=lambda c: (1, float(effects[c])) if c in undecided.tolist() else (0, float(logits[c])),
    )
    assert scores[order].diff().ge(0).all()  # effects can be equal
    assert scores[order[-9]] == 1
    mask = at_sparsity(found.scores, 0.8)
    assert int(mask.sum()) == round(0.2 * scores.numel())


def test_rounds_close_the_least_missed_gates_and_measure_the_rest_again():
    gates = drawn_gates(structure="toeplitz", signed=True)
    once = perturbation_scores(model(), gates, held_out(), candidates=6)
    twice = perturbation_scores(model(), gates, held_out(), candidates=6, rounds=2)
    worst = [tuple(index) for index in once.measured.nonzero().tolist()]
    worst = sorted(worst, key=lambda index: float(once.effects[index]))
    values = (gates.logits.detach() > 0).float()
    for index in worst[:3]:
        values[index] = 0
        assert twice.effects[index] == once.effects[index]
    for index in worst[3:]:
        losses = []
        for state in (0.0, 1.0):
            values_now = values.clone()
            values_now[index] = state
            losses.append(hand_loss(gates.table(values_now) > 0.5))
        assert float(twice.effects[index]) == pytest.approx(losses[0] - losses[1], abs=1e-5)
    assert twice.loss == once.loss
    assert torch.equal(twice.measured, once.measured)


def test_model_and_gates_are_left_as_they_were():
    judged, gates = model(dropout=0.3).train(), drawn_gates()
    judged.encoder.eval()
    logits = gates.logits.detach().clone()
    modes = [module.training for module in judged.modules()]
    weights = {name: value.clone() for name, value in judged.state_dict().items()}
    gates.enabled = False
    random = torch.get_rng_state()
    first = perturbation_scores(judged, gates, held_out(), candidates=3)
    again = perturbation_scores(judged, gates, held_out(), candidates=3)
    assert torch.equal(first.scores, again.scores)  # no dropout and no noise
    assert torch.equal(torch.get_rng_state(), random)
    assert ATTACHMENT not in judged.__dict__
    assert [module.training for module in judged.modules()] == modes
    assert gates.training
    assert not gates.enabled
    assert torch.equal(gates.logits.detach(), logits)
    assert gates.logits.requires_grad
    assert weights.keys() == judged.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in judged.state_dict().items())


def test_attached_gates_stay_attached_also_after_an_error():
    judged, gates = model().train(), drawn_gates()
    attach(judged, gates)
    logits = gates.logits.detach().clone()
    bad = held_out(1)[0]
    bad["labels"] = torch.full_like(bad["labels"], -100)  # nothing is scored: the loss is NaN
    with pytest.raises(NonFiniteLossError, match="the loss of batch 2 is nan"):
        perturbation_scores(judged, gates, [*held_out(), bad])
    assert judged.__dict__[ATTACHMENT] is not None
    assert all(module.training for module in judged.modules())
    assert torch.equal(gates.logits.detach(), logits)
    attached = perturbation_scores(judged, gates, held_out(), candidates=4)
    detach(judged)
    alone = perturbation_scores(judged, gates, held_out(), candidates=4)
    assert torch.equal(attached.scores, alone.scores)


def test_messages():
    gates, judged = drawn_gates(), model()
    with pytest.raises(ValueError, match=r"candidates must lie in 1 .. gates = 72, got 73"):
        perturbation_scores(judged, gates, held_out(), candidates=73)
    with pytest.raises(ValueError, match=r"candidates must lie in 1 .. gates = 72, got 0"):
        perturbation_scores(judged, gates, held_out(), candidates=0)
    with pytest.raises(ValueError, match=r"candidates is bool \[1, 2, 36\].*got torch.bool \[3\]"):
        perturbation_scores(judged, gates, held_out(), candidates=torch.ones(3).bool())
    with pytest.raises(ValueError, match="at least one gate, got none"):
        perturbation_scores(judged, gates, held_out(), candidates=torch.zeros(1, 2, 36).bool())
    with pytest.raises(ValueError, match="at least one batch, got none"):
        perturbation_scores(judged, gates, [])
    with pytest.raises(ValueError, match=r"rounds must lie in 1 .. candidates = 2, got 3"):
        perturbation_scores(judged, gates, held_out(), candidates=2, rounds=3)
    attach(judged, masks.star())
    with pytest.raises(AttachError, match="another mask or other gates are attached"):
        perturbation_scores(judged, gates, held_out())
    assert ATTACHMENT in judged.__dict__


def test_ranks_and_edges_by_hand():
    turns = torch.tensor([0, 0, 1, 1, 1])
    values = torch.tensor([7.0, 7.0, -1.0, 3.0, -1.0], dtype=torch.float64)
    assert ranks(turns, values).tolist() == [0.0, 0.0, 0.0, pytest.approx(2 / 3), 0.0]
    gates = Gates("toeplitz+global", length=3, heads=1, global_count=1)
    edges = edge_scores(gates, torch.tensor([[[1.0, 4.0, 2.0, 3.0, 6.0]]]))  # |i - j|, row, column
    assert edges[0, 0].tolist() == [[6.0, 4.0, 3.0], [6.0, 1.0, 4.0], [6.0, 4.0, 1.0]]
    below = edge_scores(gates, torch.tensor([[[1.0, 4.0, 2.0, 3.0, 6.0]]]) - 9)
    assert torch.equal(below, edges - 9)
