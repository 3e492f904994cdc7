"""The one training loop."""

import errno
import logging
import math
import warnings
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from distributed_job import language
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.errors import NonFiniteLossError
from masksearch.gates.sparsebert import published_rate
from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.lamb import Lamb
from masksearch.training.loop import Step, TrainConfig, Training, follow_trainings, rate, train


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


def tokens(device: str = "cpu") -> Iterator[Batch]:
    for batch in language(0, 4):
        yield {name: part.to(device) for name, part in batch.items()}


def small(seed: int = 0) -> MaskedLanguageModel:
    return MaskedLanguageModel(encoder("1x16x2", 20, 8, seed=seed), seed=seed)


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


# -- another optimiser, another schedule ---------------------------------------------------------
def test_lamb_equals_its_optimiser():
    config = TrainConfig(steps=3, lr=0.02, warmup=0.0, optimiser="lamb", clip=0.5)
    model, mine = Linear(), Linear()
    list(train(model, endless(), config, squared))
    optimiser = Lamb(
        [{"params": [mine.matrix]}, {"params": [mine.bias], "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        max_grad_norm=0.5,
    )
    batches = endless()
    for factor in (1, 1, 1 / 2):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * factor
        optimiser.zero_grad()
        squared(mine, next(batches)).backward()
        optimiser.step()
    assert torch.allclose(model.matrix, mine.matrix, atol=1e-6)
    assert torch.allclose(model.bias, mine.bias, atol=1e-6)


def test_sqrt_schedule_is_the_published_one():
    config = TrainConfig(steps=50, warmup=0.2843, schedule="sqrt")
    expected = [published_rate(update, 50) for update in range(1, 51)]
    assert [rate(step, config) for step in range(50)] == pytest.approx(expected)


def test_identity_holds_new_fields_where_they_differ():
    """Protocols hash it: that of the first version's fields must not move."""
    first = {
        "steps": 800,
        "lr": 2e-3,
        "warmup": 0.06,
        "weight_decay": 0.01,
        "betas": (0.9, 0.98),
        "clip": 1.0,
    }
    assert repr(TrainConfig().identity) == repr(first)
    changed = TrainConfig(micro_batches=2, optimiser="lamb")
    assert changed.identity == first | {"micro_batches": 2, "optimiser": "lamb"}


# -- a run that is killed ------------------------------------------------------------------------
def dropping(seed: int = 0) -> MaskedLanguageModel:
    return MaskedLanguageModel(encoder("1x16x2", 20, 8, seed=seed, dropout=0.3), seed=seed)


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("source", ["iterator", "function"])
@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [TrainConfig(steps=9), TrainConfig(steps=9, micro_batches=2, optimiser="lamb")],
    ids=["adamw", "lamb"],
)
@pytest.mark.parametrize("killed", [1, 5, 9])
def test_a_killed_run_ends_as_it_would_have(source, config, killed, tmp_path, device):
    """Bit for bit, with dropout; the steps after the last checkpoint are done again."""

    def batches():
        if source == "iterator":
            return tokens(device=device)
        return lambda start: islice(tokens(device=device), start, None)

    model = dropping().to(device)
    straight = list(train(model, batches(), config, noise_seed=5))
    kept = Checkpoints(tmp_path, seconds=0)
    steps = train(dropping().to(device), batches(), config, noise_seed=5, checkpoints=kept)
    first = [next(steps) for _ in range(killed)]
    steps.close()
    again = dropping(int(killed > 1)).to(device)  # its weights come from the checkpoint
    rest = list(train(again, batches(), config, noise_seed=5, checkpoints=kept))
    done = rest[0].number - 1 if rest else 9
    assert first[:done] + rest == straight
    assert done == max(0, killed - 1)  # a checkpoint is taken when the next step is asked for
    if done:
        assert same(weights(again), weights(model))


def test_the_global_generator_is_part_of_the_state(tmp_path):
    """Without a seed of its own, dropout draws from torch's generator."""
    config = TrainConfig(steps=6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        straight = list(train(dropping(), tokens(), config))
        torch.manual_seed(3)
        steps = train(dropping(), tokens(), config, checkpoints=Checkpoints(tmp_path, seconds=0))
        first = [next(steps) for _ in range(4)]
        steps.close()
        torch.manual_seed(99)
        rest = list(train(dropping(), tokens(), config, checkpoints=Checkpoints(tmp_path)))
    assert first[:3] + rest == straight


def test_another_runs_checkpoint_is_passed_over(tmp_path, caplog):
    config = TrainConfig(steps=5)
    one, two = (Checkpoints(tmp_path, key=key, seconds=0) for key in ("one", "two"))
    list(train(small(), tokens(), config, checkpoints=one))
    with caplog.at_level(logging.WARNING):
        other = list(train(small(), tokens(), config, checkpoints=two))
    assert "checkpoint of another run (one)" in caplog.text
    assert [step.number for step in other] == [1, 2, 3, 4, 5]
    assert list(train(small(), tokens(), config, checkpoints=two)) == []


def test_wall_time_decides_when_a_checkpoint_is_taken(tmp_path, monkeypatch):
    clock, saved = [0.0], []
    monkeypatch.setattr("masksearch.training.loop.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *rest: saved.append(step))
    for _ in train(
        Linear(),
        endless(),
        TrainConfig(steps=9),
        squared,
        checkpoints=Checkpoints(tmp_path, seconds=25),
    ):
        clock[0] += 10.0
    assert saved == [3, 6, 9]


@pytest.mark.slow
def test_a_full_disk_costs_a_warning_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    options = {"checkpoints": Checkpoints(tmp_path, seconds=0)}
    straight = list(train(small(), tokens(), TrainConfig(steps=8)))
    steps = train(small(), tokens(), TrainConfig(steps=8), **options)
    first = [next(steps) for _ in range(4)]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.warns(UserWarning, match="no checkpoint after step 4 .*No space left") as caught:
        rest = list(steps)
    assert len(caught) == 1  # not at every step
    assert first + rest == straight
    monkeypatch.undo()
    again = list(train(small(), tokens(), TrainConfig(steps=8), **options))
    assert again == straight[3:]


def test_out_of_memory_goes_on_with_fewer_rows(tmp_path, device):
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if len(batch["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(**batch).loss

    config = TrainConfig(steps=4)
    options = {"checkpoints": Checkpoints(tmp_path, seconds=0)}
    plain = list(train(small().to(device), tokens(device=device), config))
    with pytest.warns(UserWarning, match="out of memory with 4 rows at once") as caught:
        halved = list(train(small().to(device), tokens(device=device), config, loss, **options))
    assert len(caught) == 1
    assert [step.loss for step in halved] == pytest.approx([s.loss for s in plain], abs=1e-4)
    Checkpoints(tmp_path).files()[0].unlink()  # that of step 4; the rows are part of step 3's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = train(small().to(device), tokens(device=device), config, loss, **options)
        assert list(again) == halved[3:]


# -- followers ---------------------------------------------------------------------------------
def test_followers_see_every_step_of_their_context():
    seen: list[tuple[int, int]] = []
    config = TrainConfig(steps=3)
    with follow_trainings(lambda step, config: seen.append((step.number, config.steps))):
        with follow_trainings(lambda step, config: seen.append((-step.number, config.steps))):
            steps = train(Linear(), endless(), config, squared)
            next(steps)
        next(steps)
    next(steps)
    assert seen == [(1, 3), (-1, 3), (2, 3)]


# -- on a GPU, where looking at a loss waits ------------------------------------------------------
def unseen(losses: list[float]) -> Training:
    """A training whose losses are looked at now and then, as on a GPU, with these losses."""
    given = iter(losses)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return squared(model, batch) * 0 + next(given)

    config = TrainConfig(steps=len(losses))
    made = Training(Linear(), endless(), config, loss, None, None, None)
    made.device = torch.device("cuda")  # all else stays on the CPU
    return made


def test_losses_are_fetched_when_they_are_read():
    steps = list(unseen([1.5, 2.5]).run())
    assert [type(step.value) for step in steps] == [Tensor, Tensor]
    assert [step.loss for step in steps] == [1.5, 2.5]


def test_a_loss_that_nobody_read_is_still_found():
    done = []
    with pytest.raises(NonFiniteLossError, match=r"nan at step 3 of 45 \(seen at step 20\)"):
        done.extend(unseen([1.0, 1.0, math.nan] + [1.0] * 42).run())
    last = unseen([1.0] * 24 + [math.inf])
    with pytest.raises(NonFiniteLossError, match="inf at step 25 of 25; lower"):
        list(last.run())
