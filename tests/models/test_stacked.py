"""Many models as one program: each is what it would be alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.contracts import Batch
from masksearch.errors import AttachError, NonFiniteLossError
from masksearch.models.encoders import Size, encoder
from masksearch.models.heads import MaskedLanguageModel
from masksearch.models.stacked import StackedModels
from masksearch.models.trained_together import TrainedTogether, train_together
from masksearch.training.loop import Step, TrainConfig, train

LENGTH, VOCABULARY, STEPS = 12, 40, 5
MASKS = [masks.full(), masks.star(), masks.per_head([masks.window(1), masks.window(3)])]
CONFIG = TrainConfig(steps=STEPS)
KEY_BIAS = "self.key.bias"  # the softmax does not see it: its gradient is rounding alone


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(seed: int, **settings: object) -> MaskedLanguageModel:
    chosen = {"size": "nano", "dropout": 0.0} | settings
    body = encoder(vocabulary=VOCABULARY, length=LENGTH, seed=seed, **chosen)
    return MaskedLanguageModel(body, seed=seed)


def drawn(seed: int, rows: int = 3) -> Iterator[Batch]:
    """Batches that also hold the padding's id, and different numbers of scored tokens."""
    random = torch.Generator().manual_seed(seed)
    while True:
        ids = torch.randint(VOCABULARY, (rows, LENGTH), generator=random)
        scored = torch.rand(ids.shape, generator=random) < 0.25
        scored[0, 0] = True
        yield {"input_ids": ids, "labels": ids.masked_fill(~scored, -100)}


def alone(model: MaskedLanguageModel, mask: masks.Mask, seed: int) -> list[float]:
    attach(model, mask)
    return [step.loss for step in train(model, drawn(seed), CONFIG)]


@pytest.mark.parametrize("seeds", [(0, 0, 0), (3, 1, 2)], ids=["one seed", "three seeds"])
def test_together_is_each_one_alone(seeds):
    singles = [made(seed) for seed in seeds]
    expected = [
        alone(model, mask, seed) for model, mask, seed in zip(singles, MASKS, seeds, strict=True)
    ]
    models = [made(seed) for seed in seeds]
    sources = drawn(0) if len(set(seeds)) == 1 else [drawn(seed) for seed in seeds]
    rounds = list(train_together(models, MASKS, sources, CONFIG))
    losses = [[step.loss for step in steps] for steps in zip(*rounds, strict=True)]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=0, atol=1e-5)
    assert [step.number for step in rounds[-1]] == [STEPS] * 3
    assert rounds[0][0].tokens == 3 * LENGTH
    for single, model in zip(singles, models, strict=True):
        for (name, one), (_, other) in zip(
            single.named_parameters(), model.named_parameters(), strict=True
        ):
            if KEY_BIAS not in name:
                torch.testing.assert_close(one, other, rtol=0, atol=1e-5, msg=name)


def test_several_layers_in_double_precision_are_equal_to_the_last_weight():
    size = Size(layers=2, width=16, heads=2)
    single, model = made(0, size=size).double(), made(0, size=size).double()
    mask = masks.per_layer([masks.star(), masks.window(2)])
    alone(single, mask, 0)
    for _ in train_together([model, made(1, size=size).double()], [mask, mask], drawn(0), CONFIG):
        pass
    for (name, one), (_, other) in zip(
        single.named_parameters(), model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10, msg=name)


def test_model_with_a_broken_loss_leaves_alone():
    models = [made(seed) for seed in range(3)]
    with torch.no_grad():
        models[1].transform.weight[0, 0] = torch.nan
    before = models[1].transform.bias.clone()
    rounds = list(train_together(models, MASKS, drawn(0), CONFIG))
    for steps in rounds:
        assert isinstance(steps[1], NonFiniteLossError)
        assert "nan at step 1 of 5; lower the learning rate" in str(steps[1])
    expected = [alone(made(seed), MASKS[seed], 0) for seed in (0, 2)]
    for index, losses in zip((0, 2), expected, strict=True):
        assert [steps[index].loss for steps in rounds] == pytest.approx(losses, abs=1e-5)
    assert torch.equal(models[1].transform.bias, before)


def test_all_broken_ends_the_training():
    models = [made(seed) for seed in range(2)]
    for model in models:
        nn.init.constant_(model.bias, torch.inf)
    rounds = list(train_together(models, MASKS[:2], drawn(0), CONFIG))
    assert len(rounds) == 1


def test_model_that_is_taken_out_keeps_its_weights_and_the_others_go_on():
    run = TrainedTogether([made(seed) for seed in range(3)], None, CONFIG)
    batches = drawn(0)
    found = [run.step([next(batches)]) for _ in range(2)]
    run.leave([0, 0])
    assert run.running == [1, 2]
    left = run.models[0].bias.clone()
    found += [run.step([next(batches)]) for _ in range(STEPS - 2)]
    run.finish()
    assert list(found[-1]) == [1, 2]
    assert torch.equal(run.models[0].bias, left)
    assert not torch.equal(run.models[1].bias, left)
    assert [steps[2].loss for steps in found] == pytest.approx(
        alone(made(2), masks.full(), 0), abs=1e-5
    )


def test_held_out_loss_weighs_every_token_the_same():
    models = [made(seed) for seed in range(2)]
    batches = list(itertools.islice(drawn(5), 3))
    run = TrainedTogether(models, None, CONFIG)
    for index, loss in run.held_out(batches).items():
        total = tokens = 0.0
        for batch in batches:
            count = int((batch["labels"] != -100).sum())
            total += models[index](**batch).loss.item() * count
            tokens += count
        assert loss == pytest.approx(total / tokens, abs=1e-6)
    assert run.stack.words.grad is None


def test_closing_writes_the_weights_back():
    models = [made(0), made(1)]
    before = models[0].bias.clone()
    run = train_together(models, MASKS[:2], drawn(0), CONFIG)
    assert isinstance(next(run)[0], Step)
    assert torch.equal(models[0].bias, before)
    run.close()
    assert not torch.equal(models[0].bias, before)


def test_weights_come_back_as_they_went_in():
    models = [made(seed, size=Size(2, 8, 2)) for seed in range(2)]
    stack = StackedModels(models)
    other = made(9, size=Size(2, 8, 2))
    stack.write(1, other)
    for name, value in models[1].state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_what_cannot_be_one_program_is_refused():
    with pytest.raises(ValueError, match="at least one model is needed"):
        StackedModels([])
    with pytest.raises(ValueError, match="are alike; hidden_size is 64 and 16"):
        StackedModels([made(0), made(0, size=Size(1, 16, 2))])
    with pytest.raises(ValueError, match=r"no dropout, got hidden_dropout_prob = 0\.1"):
        StackedModels([made(0, dropout=0.1)])
    more = made(0)
    more.more = nn.Linear(2, 2, bias=False)
    with pytest.raises(ValueError, match=r"nothing else; these parameters differ: more\.weight"):
        StackedModels([more])
    with pytest.raises(AttachError, match="detach it first"):
        StackedModels([attach(made(0), masks.star())])
    with pytest.raises(AttachError, match=r"expected \[1, 1, 2\] in front, got \[2, 1, 2, 3, 3\]"):
        StackedModels([made(0)], torch.eye(3, dtype=torch.bool).expand(2, 1, 2, 3, 3))
    stack = StackedModels([made(0), made(1), made(2)])
    batch = next(drawn(0))
    with pytest.raises(ValueError, match="3 models take 1 batch for all or 3, got 2"):
        stack.arranged([batch, batch])
    with pytest.raises(ValueError, match="got also attention_mask"):
        stack.arranged([batch | {"attention_mask": torch.ones(3, LENGTH)}])


def test_training_arguments_must_fit():
    models = [made(0), made(1)]
    with pytest.raises(ValueError, match="2 models need as many masks, got 1"):
        next(train_together(models, MASKS[:1], drawn(0), CONFIG))
    with pytest.raises(ValueError, match="2 models need as many batches, got 1"):
        next(train_together(models, MASKS[:2], [drawn(0)], CONFIG))
    with pytest.raises(ValueError, match="the batches ended after 2 of 5 steps"):
        list(train_together(models, MASKS[:2], itertools.islice(drawn(0), 2), CONFIG))
    with pytest.raises(ValueError, match="micro_batches = 2 is not followed"):
        TrainedTogether(models, None, TrainConfig(micro_batches=2))


def test_half_precision_is_near_the_full_one():
    found = []
    for precision in ("float32", "bfloat16"):
        run = TrainedTogether([made(0), made(1)], None, CONFIG, precision=precision)
        found.append([step.loss for step in run.step([next(drawn(0))]).values()])
    assert found[1] == pytest.approx(found[0], abs=0.02)
    assert found[1] != found[0]


@pytest.mark.slow
def test_forward_is_one_graph_also_after_a_model_has_left():
    """What torch.compile needs; compiling itself takes minutes and a compiler."""
    found = []
    for fullgraph in (True, False):
        run = TrainedTogether([made(seed) for seed in range(3)], None, CONFIG)
        if fullgraph:
            run.forward = torch.compile(run.stack, backend="eager", fullgraph=True)
        batches = drawn(0)
        run.step([next(batches)])
        run.leave([1])
        found.append([step.loss for step in run.step([next(batches)]).values()])
    assert found[0] == pytest.approx(found[1], abs=1e-6)
