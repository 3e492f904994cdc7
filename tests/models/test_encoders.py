"""The named encoders of every architecture, and the masks on them."""

import inspect

import pytest
import torch
from tiny_encoders import SMALL, tokens, weights_come_from_the_seed

from masksearch import MlmEvaluator
from masksearch.gates.sparsebert import published_rate
from masksearch.models.encoders import ARCHITECTURES, encoder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_follow_the_seed_and_nothing_else(architecture):
    how = {"architecture": architecture}
    weights_come_from_the_seed(lambda seed: encoder(SMALL, 40, 16, seed=seed, **how))


@pytest.mark.parametrize("size", ["3x96x4", "3 x 96 x 4", {"layers": 3, "width": 96, "heads": 4}])
def test_a_size_of_ones_own_is_taken_as_text_or_mapping(size):
    config = encoder(size, 60, 24, seed=0).config
    assert (config.num_hidden_layers, config.hidden_size) == (3, 96)
    assert (config.num_attention_heads, config.intermediate_size) == (4, 384)


@pytest.mark.parametrize(
    ("size", "changed", "said"),
    [
        ("tinny", {}, "unknown model size 'tinny'; did you mean 'tiny'"),
        ("4x130x4", {}, "multiple of its heads, got width 130 with 4 heads; 128 or 132 is"),
        ("2x3x4", {}, "got width 3 with 4 heads; 4 is"),
        ("0x128x4", {}, "layers is a whole number of at least 1, got 0"),
        ("4x128", {}, "unknown model size '4x128'.*layers x width x heads such as 4x128x4"),
        ({"layers": 4, "width": 128}, {}, '"heads": 4}, got'),
        ({"layers": 4, "width": 128.0, "heads": 4}, {}, "width is a whole .* got 128.0"),
        (4, {}, "a model size is a name, .* got 4"),
        ("1x6x2", {"architecture": "modernbert"}, r"even number wide .* got 3 in 1x6x2"),
        (SMALL, {"architecture": "robert"}, "unknown architecture 'robert'; did you mean"),
        (SMALL, {"pad": 40}, r"pad must be a token id in 0\.\.39, got 40"),
    ],
)  # fmt: skip
def test_an_impossible_encoder_is_refused(size, changed, said):
    with pytest.raises(ValueError, match=said):
        encoder(size, 40, 16, seed=0, **changed)


# -- other architectures -----------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_the_size_and_takes_the_whole_length(architecture):
    model = encoder(SMALL, 40, 16, seed=0, architecture=architecture, pad=3).eval()
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size) == (2, 32)
    assert (config.num_attention_heads, config.vocab_size) == (4, 40)
    assert config.pad_token_id == 3
    assert config.initializer_range == pytest.approx(0.02 * (768 / 32) ** 0.5)
    full = tokens(2, 16) % 36 + 4  # no padding among them
    out = model(input_ids=full).last_hidden_state
    assert out.shape == (2, 16, 32)
    assert out.isfinite().all()
    moved = model(input_ids=full.flip(1)).last_hidden_state.flip(1)
    assert not torch.allclose(out, moved, atol=1e-4)  # the order of the tokens counts
    if architecture != "modernbert":  # whose positions are rotations, without an end
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 17), 5))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_reaches_every_architecture(architecture):
    given = tokens(1, 8) % 36 + 4
    for dropout, moves in ((0.0, False), (0.5, True)):
        model = encoder(SMALL, 40, 16, seed=0, dropout=dropout, architecture=architecture).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            one, two = (model(input_ids=given).last_hidden_state for _ in range(2))
        assert torch.equal(one, two) is not moves


def test_sparsebert_is_bert_base_as_published():
    model = MlmEvaluator.preset("sparsebert", "corpus")
    assert model.size == "base"
    sequences = model.batch * model.micro_batches * model.steps
    assert sequences == 461_242_368  # of 128 positions
    assert model.initializer_range == 0.02
    signature = inspect.signature(published_rate).parameters
    assert signature["warmup"].default == model.warmup


def test_initial_spread_is_berts_at_its_width():
    spreads = {768: 0.02, 192: 0.04, 48: 0.08}  # 768: of BERT's released configuration
    for width, spread in spreads.items():
        config = encoder(f"1x{width}x2", 40, 16, seed=0).config
        assert config.initializer_range == pytest.approx(spread)
