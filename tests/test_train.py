"""The one training loop."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.errors import NonFiniteLossError
from masksearch.models.heads import MaskedLanguageModel
from masksearch.models.sizes import Size, encoder
from masksearch.train import Step, TrainConfig, parameter_groups, rate, train


class Linear(nn.Module):
    """A matrix and a bias with a squared loss."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
        self.bias = nn.Parameter(torch.zeros(2))


def squared(model: nn.Module, batch: Batch) -> Tensor:
    found: Tensor = batch["input_ids"].float() @ model.matrix + model.bias
    return found.square().mean()


def endless(seed: int = 0) -> Iterator[Batch]:
    drawn = torch.Generator().manual_seed(seed)
    while True:
        yield {"input_ids": torch.randint(1, 5, (3, 2), generator=drawn)}


def tokens(seed: int = 0) -> Iterator[Batch]:
    drawn = torch.Generator().manual_seed(seed)
    while True:
        given = torch.randint(3, 20, (4, 8), generator=drawn)
        labels = torch.where(torch.rand(4, 8, generator=drawn) < 0.3, given, -100)
        labels[0, 0] = given[0, 0]
        yield {"input_ids": given, "labels": labels}


def small(seed: int = 0) -> MaskedLanguageModel:
    return MaskedLanguageModel(encoder(Size(1, 16, 2), 20, 8, seed=seed), seed=seed)


# -- the schedule ------------------------------------------------------------------------------
def test_rate_by_hand():
    config = TrainConfig(steps=10, warmup=0.2)
    expected = [1 / 2, 1, 8 / 8, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    assert [rate(step, config) for step in range(11)] == expected


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [
        (1, 0.0, [1.0]),
        (1, 1.0, [1.0]),
        (4, 0.0, [1.0, 1.0, 2 / 3, 1 / 3]),
        (4, 1.0, [1 / 4, 2 / 4, 3 / 4, 1.0]),
    ],
)
def test_rate_at_the_ends(steps, warmup, expected):
    config = TrainConfig(steps=steps, warmup=warmup)
    assert [rate(step, config) for step in range(steps)] == pytest.approx(expected)


def test_every_step_uses_its_rate():
    """With Adam's first step, each weight moves by the rate itself."""
    model = Linear()
    before = model.matrix.detach().clone()
    config = TrainConfig(steps=4, lr=0.01, warmup=1.0, weight_decay=0.0)
    next(train(model, endless(), config, squared))
    moved = (model.matrix.detach() - before).abs()
    assert torch.allclose(moved, torch.full((2, 2), 0.01 / 4), rtol=1e-3)


# -- the loop ----------------------------------------------------------------------------------
def test_loop_equals_a_plain_one():
    """The loop written out again with torch's AdamW, clipping and decay."""
    config = TrainConfig(steps=5, lr=0.02, warmup=0.4, weight_decay=0.1, clip=0.5)
    model, mine = Linear(), Linear()
    steps = list(train(model, endless(), config, squared))
    optimiser = torch.optim.AdamW(
        [
            {"params": [mine.matrix], "weight_decay": 0.1},
            {"params": [mine.bias], "weight_decay": 0},
        ],
        betas=(0.9, 0.98),
    )
    batches, losses = endless(), []
    for step, factor in enumerate([1 / 2, 1, 3 / 3, 2 / 3, 1 / 3]):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * factor
        loss = squared(mine, next(batches))
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in mine.parameters()]).norm()
        for parameter in mine.parameters():
            parameter.grad *= min(1.0, 0.5 / (norm.item() + 1e-6))
        optimiser.step()
        assert step < 5
    assert torch.allclose(model.matrix, mine.matrix, atol=1e-6)
    assert torch.allclose(model.bias, mine.bias, atol=1e-6)
    assert [step.loss for step in steps] == pytest.approx(losses, abs=1e-5)
    assert steps == [Step(n + 1, step.loss, 6) for n, step in enumerate(steps)]


def test_training_is_the_same_twice_and_lowers_the_loss():
    config = TrainConfig(steps=30, lr=1e-2)
    state = torch.get_rng_state()
    runs = [[step.loss for step in train(small(), tokens(), config)] for _ in range(2)]
    assert runs[0] == runs[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[0] != [step.loss for step in train(small(), tokens(1), config)]
    assert sum(runs[0][-5:]) < sum(runs[0][:5])


def test_closing_the_iterator_stops():
    model, drawn = small(), []

    def counted() -> Iterator[Batch]:
        for batch in tokens():
            drawn.append(batch)
            yield batch

    steps = train(model, counted(), TrainConfig(steps=100))
    assert next(steps).number == 1
    assert next(steps).number == 2
    steps.close()
    assert len(drawn) == 2
    assert model.training


def test_model_is_put_in_training_mode():
    model = small().eval()
    next(train(model, tokens(), TrainConfig(steps=1)))
    assert model.training


# -- what goes wrong ---------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_names_the_step(bad):
    model, count = Linear(), 0

    def turning(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal count
        count += 1
        return squared(model, batch) * (bad if count == 3 else 1.0)

    message = rf"the loss became -?{abs(bad)} at step 3 of 8; lower the learning rate"
    steps = train(model, endless(), TrainConfig(steps=8), turning)
    assert [next(steps).number, next(steps).number] == [1, 2]
    before = model.matrix.detach().clone()
    with pytest.raises(NonFiniteLossError, match=message):
        next(steps)
    assert torch.equal(model.matrix, before)  # the bad step has changed nothing


def test_batches_that_end_early():
    short = iter([next(endless())] * 2)
    with pytest.raises(ValueError, match="the batches ended after 2 of 5 steps"):
        list(train(Linear(), short, TrainConfig(steps=5), squared))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": math.nan}, "lr must be positive, got nan"),
        ({"warmup": 1.5}, r"warmup is a share of the steps in \[0, 1\], got 1.5"),
    ],
)
def test_config_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**given)


# -- parameter groups --------------------------------------------------------------------------
def test_groups_split_matrices_and_leave_out_gates_and_frozen_weights():
    model = small()
    model.add_module("masksearch_gates", nn.Linear(3, 3))
    frozen = model.encoder.embeddings.position_embeddings.weight.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in plain["params"])
    grouped = {id(p) for group in (decayed, plain) for p in group["params"]}
    gates = {id(p) for p in model.get_submodule("masksearch_gates").parameters()}
    assert not grouped & (gates | {id(frozen)})
    assert grouped | gates | {id(frozen)} == {id(p) for p in model.parameters()}


def test_gates_are_neither_trained_nor_part_of_the_clipped_norm():
    plain, gated = Linear(), Linear()
    gated.add_module("masksearch_gates", nn.Linear(2, 2))
    gates = gated.get_submodule("masksearch_gates")
    before = gates.weight.detach().clone()

    def with_gates(model: nn.Module, batch: Batch) -> Tensor:
        return (
            squared(model, batch) + 1000 * gates.weight.sum() - 1000 * gates.weight.sum().detach()
        )

    config = TrainConfig(steps=3, clip=0.1)
    list(train(plain, endless(), config, squared))
    list(train(gated, endless(), config, with_gates))
    assert torch.equal(plain.matrix, gated.matrix)
    assert torch.equal(gates.weight, before)
