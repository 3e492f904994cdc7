"""Contracts of experiments/rivals: what loses, or only a comparison needs, still does its part."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_decoder import tiny_decoder
from torch import nn
from transformers import AutoModelForCausalLM

import masksearch as ms
from experiments.rivals.attention_mass import attention_mass
from experiments.rivals.density_terms import NO_CONTROL, Penalised
from experiments.rivals.first_order import first_order, flip
from experiments.rivals.greedy_removal import GreedyRemoval
from experiments.rivals.hard_concrete import HardConcreteGates
from experiments.rivals.switch import switch
from experiments.rivals.trained_models import score_units
from masksearch import masks
from masksearch.contracts import (
    Differentiable,
    Evaluator,
    Objective,
    Proposal,
    Record,
    Report,
    Shape,
)
from masksearch.errors import SearchError
from masksearch.gates.gates import Gates
from masksearch.masks.lower import lower
from masksearch.tasks.planted.process import PlantedProcess
from tests.positions.conftest import HEADS, LAYERS, LENGTH, bert, random_batches

LEVELS = (masks.window(1), masks.longformer(1, 1), masks.full())
SHAPE = Shape(LENGTH, LAYERS, HEADS)
UNITS = ms.Units(SHAPE, LEVELS)
SELECTORS = [attention_mass, first_order, flip, switch]


# -- selectors ---------------------------------------------------------------------------------
class Judge(Evaluator):
    """A trained model with batches of two tasks."""

    shape, protocol = SHAPE, "judge"
    objectives = (Objective("score", "max", 0.0), Objective("sparsity", "max", 0.0))

    def __init__(self, model: nn.Module, frozen: bool = True) -> None:
        self.model = model.requires_grad_(not frozen)
        first, second = random_batches(2)
        self.batches = [{**first, "task": torch.tensor(0)}, {**second, "task": torch.tensor(1)}]

    def __call__(self, mask: ms.Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        yield Report(0, {"score": lower(mask, SHAPE).float().mean().item()})

    def differentiable(self, seed: int) -> Differentiable:
        return Differentiable(self.model, iter(()), self.batches)


class WithoutTask(nn.Module):
    """A model that ignores which task it is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, task: torch.Tensor, **given: torch.Tensor) -> object:
        return self.model(**given)


@pytest.mark.nightly
@pytest.mark.parametrize("selector", SELECTORS)
def test_selector_scores_each_level_of_each_unit(selector, tmp_path):
    model, batches = bert(), random_batches(2)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    found = selector(UNITS, model, batches)
    assert list(found) == list(UNITS.names)
    assert all(len(levels) == 3 and levels[0] == 0 for levels in found.values())
    assert any(levels[2] for levels in found.values())
    assert found == selector(UNITS, model, batches)
    assert not ms.attached(model)
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    layers = selector(ms.Units(SHAPE, LEVELS, "layer"), model, batches)
    for layer in range(LAYERS):  # a layer's score is the sum of its heads'
        parts = [found[f"l{layer}.h{head}"] for head in range(HEADS)]
        whole = [sum(level) for level in zip(*parts, strict=True)]
        assert layers[f"l{layer}"] == pytest.approx(whole, abs=1e-5)
    with pytest.warns(UserWarning, match="no more masks"):
        study = ms.search(
            None, Judge(model), run=tmp_path, trials=99, strategy="allocate", progress=None,
            strategy_options={"levels": LEVELS, "method": found},
        )  # fmt: skip
    assert {record.status for record in study.records()} == {"done"}


def test_scores_of_an_evaluator_are_means_over_its_tasks():
    judge = Judge(WithoutTask(bert()))
    found = score_units(judge, UNITS, attention_mass, 0)
    each = [attention_mass(UNITS, judge.model.model, [batch]) for batch in random_batches(2)]
    mean = [sum(levels) / 2 for levels in zip(*(one["l1.h2"] for one in each), strict=True)]
    assert found["l1.h2"] == pytest.approx(mean)
    with pytest.raises(SearchError, match="on a trained model, and the one of Judge is trained"):
        score_units(Judge(bert(), frozen=False), UNITS, attention_mass, 0)


def test_mass_is_the_attention_that_a_local_mask_would_take_away():
    model, (batch,) = bert(implementation="eager"), random_batches(1, padded=False)
    found = attention_mass(UNITS, model, [batch])
    with torch.no_grad():
        maps = model(**batch, output_attentions=True).attentions  # [batch, heads, n, n] a layer
    for layer in range(LAYERS):
        for head in range(HEADS):
            mean = maps[layer][:, head].mean(0)
            pairs = [(q, k) for q in range(LENGTH) for k in range(LENGTH) if abs(q - k) > 1]
            hub = sum(mean[q, k] for q, k in pairs if 0 in (q, k)).item()
            everything = sum(mean[q, k] for q, k in pairs).item()
            assert found[f"l{layer}.h{head}"] == pytest.approx([0, hub, everything], rel=1e-4)


class Mixed(nn.Module):
    """Attention in which one head is a mixture of full and local."""

    def __init__(self, local: torch.Tensor, layer: int, head: int, share: float) -> None:
        super().__init__()
        self.local, self.layer, self.head, self.share = local, layer, head, share
        self.length, self.layers, self.heads = 12, 3, 4

    def draw(self) -> None:
        pass

    def attend(self, layer, call):
        full = call.attend()
        if layer != self.layer:
            return full
        seen = self.local & (True if call.visible is None else call.visible)
        part = torch.zeros(self.heads, 1, 1)
        part[self.head] = self.share
        return full + part * (replace(call, visible=seen).attend() - full)


def test_switch_is_the_derivative_of_the_loss_along_the_switch(tmp_path):
    tiny_decoder(tmp_path, list("abcdefghijkl"), num_hidden_layers=3, initializer_range=0.05)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).double().eval()
    tokens = torch.randint(0, 12, (6, 12), generator=torch.Generator().manual_seed(3))
    batches = [{"input_ids": part, "labels": part} for part in (tokens[:4], tokens[4:])]
    local = masks.window(2) | masks.columns(1)
    found = switch(ms.Units(Shape(12, 3, 4, causal=True), (local, masks.full())), model, batches)

    def loss(layer: int, head: int, share: float) -> float:
        ms.attach(model, Mixed(local.dense(12), layer, head, share))
        with torch.no_grad():
            value = model(tokens, labels=tokens).loss.item()
        ms.detach(model)
        return value

    for at in ((0, 1), (1, 3), (2, 0)):
        slope = (loss(*at, 0.02) - loss(*at, -0.02)) / 0.04  # the loss is float32
        assert found[f"l{at[0]}.h{at[1]}"] == [0.0, pytest.approx(slope, rel=5e-3, abs=3e-5)]


# -- greedy removal ----------------------------------------------------------------------------
def removal(score, tries):
    """Judges all that the strategy asks for; returns the best score of each number of units."""
    units, objective = ms.Units(SHAPE, LEVELS[::2]), Objective("score", "max", 0.0)
    strategy, best = GreedyRemoval(units, [objective], tries), dict[int, float]()
    while isinstance(proposal := strategy.ask(), Proposal):
        full = {units.names.index(name) for name in proposal.params}
        values = {"score": score(full)}
        best[len(full)] = max(best.get(len(full), 0.0), values["score"])
        strategy.tell(Record(proposal.number, "done", proposal.job, params=proposal.params,
                             values=values))  # fmt: skip
    return best


@pytest.mark.parametrize("tries", [None, 2])
def test_removal_finds_units_that_need_each_other(tries):
    """Heads 0 and 1 are worth something only together, which greedy addition does not see."""
    worth = (0.0, 0.0, 1.0, 1.5, 2.0, 2.5)

    def score(full: set[int]) -> float:
        return sum(worth[unit] for unit in full) + 20.0 * ({0, 1} <= full)

    best = removal(score, tries)
    assert [best[count] for count in (2, 3, 4, 5, 6)] == [20, 22.5, 24.5, 26, 27]


# -- variants of DAM ---------------------------------------------------------------------------
PRODUCT = f"{Path(__file__).parents[2] / 'experiments' / 'rivals' / 'product.py'}:product"
PROCESS = PlantedProcess(length=12, vocabulary=8, offsets=(5,), keys=2)


def trained(make=Gates, weight=None, rate=0.0, **gates):
    """DAM for 30 steps, all gated; returns the result."""
    source = ms.PlantedEvaluator(PROCESS).differentiable(0)
    made = make("free", length=12, heads=2, **gates)
    config, model = (
        {"steps": 30, "dense_warmup": 0.0, "gate_lr": 0.2, "density": 0.3},
        source.model,
    )
    if weight is not None:
        config |= NO_CONTROL
        model = Penalised(ms.attach(model, made), made, weight, rate, 0.3)
    return ms.dam(model, source.batches, made, ms.DamConfig(**config), held_out=source.held_out)


@pytest.mark.filterwarnings("ignore:DAM")
@pytest.mark.parametrize(
    "how",
    [
        {"form": PRODUCT},
        {"form": PRODUCT, "hard": False},
        {"make": HardConcreteGates, "form": "log", "hard": False},
        {"weight": 100.0},
        {"weight": 1.0, "rate": 0.2},
    ],
    ids=str,
)
@pytest.mark.nightly
def test_variant_of_dam_prunes_and_runs_twice_alike(how):
    found = trained(**how)
    assert found.density < 0.8 < found.curve[0].values["density"] + 0.1
    assert found.held_out is not None
    assert torch.equal(found.probabilities, trained(**how).probabilities)


def test_hard_concrete_gates_are_zero_or_one_with_some_probability():
    gates = HardConcreteGates("free", length=32, heads=4, form="log", hard=False, initial=0.0)
    drawn = gates.sample()
    assert drawn.min() == 0
    assert drawn.max() == 1
    share = (drawn > 0).float().mean().item()
    assert gates.probabilities().mean().item() == pytest.approx(share, abs=0.03)
