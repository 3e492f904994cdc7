"""Where scored tokens stand is told with the batch: the same numbers, without a wait for a GPU."""

import pytest
import torch

from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.tasks.mlm import mark_scored

SMALL = "1x16x2"


def batch_of(labels: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = torch.arange(len(labels) * len(labels[0])).view(len(labels), -1) % 40
    return {"input_ids": ids, "labels": torch.tensor(labels)}


def model(pairs: bool = False) -> MaskedLanguageModel:
    return MaskedLanguageModel(encoder(SMALL, 40, 8, seed=0), seed=1, pairs=pairs)


EVEN = [[-100, 4, -100, 9], [7, -100, -100, 3], [-100, -100, 0, 2]]
UNEVEN = [[-100, 4, -100, 9], [7, -100, -100, -100]]


@pytest.mark.parametrize("pairs", [False, True])
def test_located_batches_give_equal_logits_loss_and_gradients(pairs: bool):
    plain = batch_of(EVEN)
    (told,) = mark_scored(iter([plain]))
    assert told["scored"].tolist() == [[1, 3], [0, 3], [2, 3]]
    assert set(plain) == {"input_ids", "labels"}  # the task's own batch is left as it was
    found = []
    for batch in (plain, told):
        made = model(pairs)
        out = made(**batch)
        out.loss.backward()
        found.append((out.logits, out.loss, made.bias.grad, made.embeddings.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_parts_of_a_located_batch_stay_located():
    (told,) = mark_scored(iter([batch_of(EVEN)]))
    part = {name: tensor[1::2] for name, tensor in told.items()}
    plain = {name: part[name] for name in ("input_ids", "labels")}
    assert torch.equal(model()(**part).logits, model()(**plain).logits)


def test_rows_with_different_numbers_of_scored_tokens_are_left_to_the_model():
    (told,) = mark_scored(iter([batch_of(UNEVEN)]))
    assert set(told) == {"input_ids", "labels"}


def test_a_located_batch_needs_no_look_at_the_data():
    (told,) = mark_scored(iter([batch_of(EVEN)]))
    blind = model().to("meta")  # a device without data: what has to look fails
    there = {name: tensor.to("meta") for name, tensor in told.items()}
    assert blind(**there).logits.shape == (6, 40)
    del there["scored"]
    with pytest.raises(NotImplementedError, match="nonzero"):
        blind(**there)
