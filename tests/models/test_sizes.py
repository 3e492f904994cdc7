"""The proxy encoders and their heads, against the same computed by hand."""

import math

import pytest
import torch

from masksearch.errors import UnknownNameError
from masksearch.models.heads import MaskedLanguageModel, SequenceClassifier
from masksearch.models.sizes import SIZES, Size, encoder, initial_spread, size_named

SMALL = Size(layers=2, width=32, heads=4)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(0))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: encoder(SMALL, 40, 16, seed=seed),
        lambda seed: MaskedLanguageModel(encoder(SMALL, 40, 16, seed=0), seed=seed),
        lambda seed: SequenceClassifier(encoder(SMALL, 40, 16, seed=0), 3, seed=seed),
    ],
    ids=["encoder", "masked_lm", "classifier"],
)
def test_weights_follow_the_seed_and_nothing_else(build):
    state = torch.get_rng_state()
    first = weights(build(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)  # a moved global generator changes nothing
    assert same(first, weights(build(5)))
    assert not same(first, weights(build(6)))
    torch.set_rng_state(state)


def test_encoder_has_the_named_size():
    config = encoder("tiny", 60, 24, seed=0, dropout=0.2, initializer_range=0.1).config
    assert (config.num_hidden_layers, config.hidden_size) == (2, 128)
    assert (config.num_attention_heads, config.intermediate_size) == (4, 512)
    assert (config.vocab_size, config.max_position_embeddings) == (60, 24)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.2
    base = encoder(SMALL, 400, 16, seed=0, initializer_range=0.1)
    assert base.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.1, rel=0.05)


def test_sizes_divide_into_heads():
    for size in SIZES.values():
        assert size.width % size.heads == 0
    assert SIZES["base"] == Size(12, 768, 12)  # BERT-base, arXiv 1810.04805, Section 3


def test_unknown_size_gives_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown model size 'tinny'; did you mean 'tiny'"):
        size_named("tinny")
    with pytest.raises(UnknownNameError):
        encoder("huge", 40, 16, seed=0)


# -- the masked language model -----------------------------------------------------------------
def test_masked_lm_loss_is_cross_entropy_over_scored_positions():
    model = MaskedLanguageModel(encoder(SMALL, 40, 16, seed=0, initializer_range=0.3), seed=1)
    given, labels = tokens(3, 8), torch.full((3, 8), -100)
    scored = [(0, 1), (0, 7), (1, 3), (2, 0), (2, 5)]
    for row, column in scored:
        labels[row, column] = (7 * row + column) % 40
    out = model(given, labels=labels)
    assert out.logits.shape == (5, 40)
    hidden = model.encoder(input_ids=given).last_hidden_state
    surprises = []
    for (row, column), logits in zip(scored, out.logits, strict=True):
        x = hidden[row, column] @ model.transform.weight.T + model.transform.bias
        x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        x = (x - x.mean()) / (x.var(unbiased=False) + model.norm.eps).sqrt()
        x = x * model.norm.weight + model.norm.bias
        table = model.encoder.embeddings.word_embeddings.weight
        mine = table @ x + model.bias
        assert torch.allclose(mine, logits, atol=1e-4)
        surprises.append(-(mine - mine.logsumexp(0))[labels[row, column]])
    assert out.loss.item() == pytest.approx(torch.stack(surprises).mean().item(), abs=1e-5)


def test_masked_lm_scores_every_token_without_labels():
    model = MaskedLanguageModel(encoder(SMALL, 40, 16, seed=0), seed=1)
    out = model(tokens(3, 8))
    assert out.logits.shape == (24, 40)
    assert out.loss is None
    labels = torch.full((3, 8), -100)
    labels[1, 2] = 4
    assert torch.allclose(out.logits[10], model(tokens(3, 8), labels=labels).logits[0], atol=1e-5)


def test_masked_lm_output_table_is_tied():
    model = MaskedLanguageModel(encoder(SMALL, 40, 16, seed=0), seed=1)
    assert sum(p.numel() == 40 * 32 for p in model.parameters()) == 1
    labels = torch.zeros(1, 4, dtype=torch.int64)
    model(torch.full((1, 4), 3), labels=labels).loss.backward()
    grad = model.encoder.embeddings.word_embeddings.weight.grad
    assert (grad.abs().sum(1) > 0).all()


def test_masked_lm_ignores_padding():
    model = MaskedLanguageModel(encoder(SMALL, 40, 16, seed=0), seed=1)
    given, labels = tokens(1, 6), torch.full((1, 6), -100)
    labels[0, 2] = 9
    padded = torch.cat([given, torch.full((1, 3), 5)], 1)
    visible = (torch.arange(9) < 6).long()[None]
    longer = torch.cat([labels, torch.full((1, 3), -100)], 1)
    alone = model(given, labels=labels).loss
    inside = model(padded, labels=longer, attention_mask=visible).loss
    assert inside.item() == pytest.approx(alone.item(), abs=1e-5)


# -- the classifier ----------------------------------------------------------------------------
def test_classifier_matches_the_formula():
    model = SequenceClassifier(encoder(SMALL, 40, 16, seed=0), 3, seed=1)
    given, labels = tokens(2, 5), torch.tensor([2, 0])
    out = model(given, labels=labels)
    hidden = model.encoder(input_ids=given).last_hidden_state
    for row in range(2):
        both = torch.cat([hidden[row, 0], hidden[row].sum(0) / 5])
        inner = torch.tanh(model.dense.weight @ both + model.dense.bias)
        logits = model.out.weight @ inner + model.out.bias
        assert torch.allclose(out.logits[row], logits, atol=1e-5)
    chosen = out.logits.log_softmax(-1)[[0, 1], labels]
    assert out.loss.item() == pytest.approx(-chosen.mean().item(), abs=1e-5)
    assert model(given).loss is None
    assert model.config is model.encoder.config


def test_classifier_ignores_padding():
    model = SequenceClassifier(encoder(SMALL, 40, 16, seed=0), 3, seed=1)
    given = tokens(1, 6)
    padded = torch.cat([given, torch.full((1, 4), 7)], 1)
    visible = (torch.arange(10) < 6).long()[None]
    alone = model(given, attention_mask=torch.ones_like(given)).logits
    assert torch.allclose(model(padded, attention_mask=visible).logits, alone, atol=1e-5)
    assert torch.allclose(model(given).logits, alone, atol=1e-5)
    assert not torch.allclose(model(padded).logits, alone, atol=1e-5)


def test_one_label_is_a_regression():
    model = SequenceClassifier(encoder(SMALL, 40, 16, seed=0), 1, seed=1)
    out = model(tokens(3, 5), labels=torch.tensor([0.5, 4.0, 2.0]))
    errors = [(out.logits[i, 0] - y) ** 2 for i, y in enumerate([0.5, 4.0, 2.0])]
    assert out.loss.item() == pytest.approx(sum(e.item() for e in errors) / 3, rel=1e-5)


def test_initial_spread_is_berts_at_its_width():
    assert initial_spread(768) == 0.02  # BERT, initializer_range of the released configuration
    assert initial_spread(192) == pytest.approx(0.04)
    wide = encoder(SMALL, 400, 16, seed=0)
    assert wide.config.initializer_range == initial_spread(32)
