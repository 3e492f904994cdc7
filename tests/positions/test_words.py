"""Effects of words as keys: a loop over autograd, shrinkage by hand, and what is refused."""

import pytest
import torch
from tiny_encoders import sizes
from transformers import BertConfig, BertForSequenceClassification

import masksearch as ms
from masksearch.errors import DataError
from masksearch.positions.words import FEW, PRIOR, word_effects

LAYERS, HEADS, LENGTH, VOCABULARY = 3, 2, 7, 12
PAD = 0


@pytest.fixture(scope="module", params=[3, 1])
def model(request) -> BertForSequenceClassification:
    small = sizes(VOCABULARY, 8, LAYERS, HEADS, 16, 16, initializer_range=0.5)
    config = BertConfig(**small, num_labels=request.param)
    torch.manual_seed(0)
    return BertForSequenceClassification(config).eval()


def batches_of(outputs: int) -> list[dict[str, torch.Tensor]]:
    """Three batches of two widths; the second text of each is padded."""
    draw, made = torch.Generator().manual_seed(1), []
    for width in (LENGTH, LENGTH - 2, LENGTH):
        ids = torch.randint(1, VOCABULARY - 2, (2, width), generator=draw)
        there = torch.ones_like(ids)
        ids[1, 4:], there[1, 4:] = PAD, 0
        labels = torch.tensor([0, 1]) if outputs > 1 else torch.tensor([0.5, -1.0])
        made.append({"input_ids": ids, "attention_mask": there, "labels": labels})
    return made


class Biased(torch.nn.Module):
    """BERT's attention of one layer written out, with a bias on the scores for each key."""

    def __init__(self, inner, bias):
        super().__init__()
        self.inner, self.bias = inner, bias

    def forward(self, states, attention_mask=None, **rest):
        size = (*states.shape[:-1], HEADS, -1)
        query, key, value = (
            part(states).view(size).transpose(1, 2)
            for part in (self.inner.query, self.inner.key, self.inner.value)
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + self.bias
        out = scores.softmax(-1) @ value
        return out.transpose(1, 2).flatten(2), None


def slopes(model, ids, label, by):
    """The slope of one row by a bias on each key of each layer, `[layers, n]`."""
    biases = [torch.zeros(len(ids), requires_grad=True) for _ in range(LAYERS)]
    layers = [layer.attention for layer in model.bert.encoder.layer]
    before = [layer.self for layer in layers]
    for layer, bias in zip(layers, biases, strict=True):
        layer.self = Biased(layer.self, bias)
    out = model(input_ids=ids[None], labels=label[None])
    for layer, inner in zip(layers, before, strict=True):
        layer.self = inner
    logits = out.logits[0]
    margin = logits[0] if len(logits) == 1 else logits.max() - logits.min()
    return torch.stack(torch.autograd.grad(out.loss if by == "loss" else margin, biases))


@pytest.mark.parametrize("by", ["margin", "loss"])
def test_effects_are_means_of_slopes_from_a_layer_on_by_a_loop(model, by):
    batches = batches_of(model.config.num_labels)
    total = [[0.0] * VOCABULARY for _ in range(LAYERS)]
    seen = [0] * VOCABULARY
    for batch in batches:
        for ids, there, label in zip(*batch.values(), strict=True):
            ids = ids[there.bool()]
            each = slopes(model, ids, label, by).flip(0).cumsum(0).flip(0).abs()
            for at, word in enumerate(ids.tolist()):
                seen[word] += 1
                for layer in range(LAYERS):
                    total[layer][word] += each[layer, at].item()
    few = [word for word in range(VOCABULARY) if seen[word] < FEW]
    assert 0 < len(few) < VOCABULARY - 2
    found = word_effects(model, batches, by=by)
    for layer in range(LAYERS):
        mean = sum(total[layer]) / sum(seen)
        for word in range(VOCABULARY):
            alike = few if word in few else [word]
            own = sum(total[layer][w] for w in alike) + PRIOR * mean
            expected = own / (sum(seen[w] for w in alike) + PRIOR)
            assert found[layer, word].item() == pytest.approx(expected, rel=1e-4)


def test_the_model_is_left_as_it_was(model):
    weights = {name: part.clone() for name, part in model.state_dict().items()}
    model.train()
    word_effects(model, batches_of(model.config.num_labels))
    assert model.training
    assert not hasattr(model, "gates")
    assert all(torch.equal(part, weights[name]) for name, part in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    ms.detach(model.eval(), missing_ok=True)


def test_a_loss_without_labels_is_refused(model):
    [first, *_] = batches_of(model.config.num_labels)
    with pytest.raises(DataError, match="flat at the dense model: take by='margin'"):
        word_effects(model, [{**first, "target": first["labels"]}], by="loss")
