"""Sparse models by others are oracles of a mask on the plain model with the same weights."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from architectures import built, states
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import sizes
from torch import Tensor, nn
from transformers import DeiTConfig, DeiTModel, ViTConfig, ViTModel

from masksearch import masks
from masksearch.attention.attach import attach, detach
from masksearch.errors import LengthError

PAD, VOCABULARY, HEADS = 1, 50, 4
DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = sizes(VOCABULARY, 32, 2, HEADS, 32, initializer_range=0.3, pad_token_id=PAD)
ENCODER, DECODER = SMALL | DRY, SMALL | {"num_key_value_heads": 2}
EQUAL = 1e-5


backends = pytest.mark.parametrize("backend", ["sdpa", "gather"])


def seeded(make: Any, config: Any, **rest: Any) -> nn.Module:
    """A random model in evaluation mode, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model: nn.Module = make(config, **rest).eval()
    for name, parameter in model.named_parameters():  # their biases start at zero
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


def texts(length: int, padded: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """Two texts; the last `padded` positions of the second are padding."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, VOCABULARY, (2, length), generator=generator)
    visible = torch.ones_like(ids)
    if padded:
        ids[1, -padded:], visible[1, -padded:] = PAD, 0
    return {"input_ids": ids.to(device), "attention_mask": visible.to(device)}


def hidden(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = model(**inputs).last_hidden_state
    for state in states(model):  # that backend has computed it
        assert (state.backend == "gather") == ("gather" in built(model))
    return found


def difference(one: Tensor, other: Tensor, inputs: dict[str, Tensor]) -> float:
    """Largest difference over the rows that are no padding (models fill those differently)."""
    return float((one - other)[inputs["attention_mask"].bool()].abs().max())


# -- Longformer --------------------------------------------------------------------------------
def longformers(widths: list[int], longest: int = 64) -> tuple[nn.Module, nn.Module]:
    """A Longformer whose global projections are its local ones, and RoBERTa with its weights."""
    fields = ENCODER | {"num_hidden_layers": len(widths), "max_position_embeddings": longest}
    theirs = seeded(
        hf.LongformerModel,
        hf.LongformerConfig(**fields, attention_window=widths),
        add_pooling_layer=False,
    )
    for layer in theirs.encoder.layer:
        own = layer.attention.self
        for part in ("query", "key", "value"):
            getattr(own, f"{part}_global").load_state_dict(getattr(own, part).state_dict())
    ours = seeded(hf.RobertaModel, hf.RobertaConfig(**fields), add_pooling_layer=False)
    found = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not found.missing_keys
    assert all("_global" in name for name in found.unexpected_keys)
    return theirs, ours


@pytest.mark.parametrize(
    ("widths", "tokens", "padded"),
    [
        ([4], [], 0),  # `attention_window` is the width of both sides together
        ([4], [0], 7),
        ([8, 4], [0, 5, 11], 0),
        ([4, 16, 8], [3, 9, 20], 6),
    ],
    ids=str,
)
@backends
def test_longformer(widths, tokens, padded, backend, device):
    theirs, ours = (each.to(device) for each in longformers(widths))
    inputs = texts(32, padded, device)
    everywhere = torch.zeros_like(inputs["input_ids"])
    everywhere[:, tokens] = 1
    expected = hidden(theirs, inputs | {"global_attention_mask": everywhere})
    local = masks.per_layer([masks.window(width // 2) for width in widths])
    mask = local | masks.global_tokens(positions=tokens) if tokens else local
    attach(ours, mask, backend=backend)
    assert difference(hidden(ours, inputs), expected, inputs) < EQUAL
    wider = masks.per_layer([masks.window(width) for width in widths])  # the trap
    attach(ours, wider | mask, backend=backend)
    assert difference(hidden(ours, inputs), expected, inputs) > 1e-2


# -- BigBird -----------------------------------------------------------------------------------
@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The random key blocks that BigBird draws, int64 `[heads, blocks - 2, count]` a layer.

    Its layers seed NumPy's global generator, which is put back.
    """
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    drawn: list[Tensor] = []
    original = BigBirdBlockSparseAttention._create_rand_mask_from_inputs

    def noted(before: Tensor, after: Tensor, chosen: Tensor, *rest: Any) -> Tensor:
        drawn.append(chosen[0])
        return original(before, after, chosen, *rest)

    monkeypatch.setattr(
        BigBirdBlockSparseAttention, "_create_rand_mask_from_inputs", staticmethod(noted)
    )
    state = np.random.get_state()
    yield drawn
    np.random.set_state(state)


def bigbirds(layers: int, block: int, random: int) -> tuple[nn.Module, nn.Module]:
    """BigBird in training mode (evaluation counts key block 0 several times), BERT like it."""
    fields = ENCODER | {"num_hidden_layers": layers, "max_position_embeddings": 64}
    fields |= {"hidden_act": "gelu_new"}
    blocks = {"block_size": block, "num_random_blocks": random, "attention_type": "block_sparse"}
    config = hf.BigBirdConfig(**fields, **blocks, sep_token_id=2)
    theirs = seeded(hf.BigBirdModel, config, add_pooling_layer=False).train()
    ours = seeded(hf.BertModel, hf.BertConfig(**fields), add_pooling_layer=False)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def layout(drawn: Tensor, blocks: int) -> Tensor:
    """BigBird's blocks, bool `[heads, blocks, blocks]`: a band of three, first and last ones."""
    number = torch.arange(blocks)
    ends = (number == 0) | (number == blocks - 1)
    near = (number[:, None] - number).abs() <= 1
    kept = (near | ends | ends[:, None]).repeat(len(drawn), 1, 1)
    inner = kept[:, 1:-1].scatter(2, drawn, torch.ones_like(drawn, dtype=torch.bool))
    return torch.cat([kept[:, :1], inner, kept[:, -1:]], 1)


@backends
@pytest.mark.parametrize(
    ("layers", "block", "random", "length", "padded"),
    [(1, 4, 1, 32, 0), (2, 4, 2, 44, 9), (3, 2, 3, 32, 3)],
)
def test_bigbird(recorded, layers, block, random, length, padded, backend, device):
    theirs, ours = (each.to(device) for each in bigbirds(layers, block, random))
    inputs = texts(length, padded, device)
    expected = hidden(theirs, inputs)
    assert len(recorded) == layers
    tables = torch.stack([layout(drawn.cpu(), length // block) for drawn in recorded])
    assert (tables.sum(-1)[:, :, 2:-2] == 5 + random).all()  # no block counts twice
    bits = tables.repeat_interleave(block, 2).repeat_interleave(block, 3)
    for mask in (masks.block_layout(tables, block), masks.table(bits)):
        attach(ours, mask, backend=backend)
        assert difference(hidden(ours, inputs), expected, inputs) < EQUAL
    attach(ours, masks.block_layout(tables.transpose(2, 3), block), backend=backend)
    assert difference(hidden(ours, inputs), expected, inputs) > 1e-2


# -- local layers of models with both kinds ----------------------------------------------------
@pytest.mark.parametrize("padded", [0, 5])
@pytest.mark.parametrize("width", [2, 4, 6])
def test_modernbert_local_layers(width, padded, device):
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    fields: dict[str, Any] = SMALL | {"num_hidden_layers": 3, "local_attention": width}
    fields |= {f"{name}_token_id": None for name in ("bos", "eos", "cls", "sep")}
    rope = {"rope_type": "default", "rope_theta": 1e4}  # the same for both kinds of layers
    fields["rope_parameters"] = {kind: rope for kind in set(kinds)}
    theirs = seeded(hf.ModernBertModel, hf.ModernBertConfig(**fields, layer_types=kinds)).to(
        device
    )
    plain = hf.ModernBertConfig(**fields, layer_types=["full_attention"] * 3)
    ours = seeded(hf.ModernBertModel, plain).to(device)
    ours.load_state_dict(theirs.state_dict())
    inputs = texts(20, padded, device)
    expected = hidden(theirs, inputs)
    local = masks.window(width // 2)
    attach(ours, masks.per_layer([masks.full(), local, local]))
    assert difference(hidden(ours, inputs), expected, inputs) < EQUAL
    detach(ours)
    assert difference(hidden(ours, inputs), expected, inputs) > 1e-2


@pytest.mark.parametrize("lookback", [1, 3, 8])
def test_mistral_sliding_window(lookback, device):
    theirs = seeded(hf.MistralModel, hf.MistralConfig(**DECODER, sliding_window=lookback)).to(
        device
    )
    ours = seeded(hf.MistralModel, hf.MistralConfig(**DECODER, sliding_window=None)).to(device)
    ours.load_state_dict(theirs.state_dict())
    inputs = texts(20, 6, device)
    attach(ours, masks.window(lookback - 1))  # their window counts the query's own position
    assert difference(hidden(ours, inputs), hidden(theirs, inputs), inputs) < EQUAL


# -- dropped keys are removed keys -------------------------------------------------------------
@pytest.mark.slow
@backends
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_keys_dropped_for_all_queries_are_as_if_removed(name, backend):
    if name == "bert":
        model = seeded(
            hf.BertModel,
            hf.BertConfig(**ENCODER, max_position_embeddings=24),
            add_pooling_layer=False,
        )
    else:
        model = seeded(hf.LlamaModel, hf.LlamaConfig(**DECODER))
    ids = texts(16)["input_ids"]

    @settings(deadline=None, max_examples=12)
    @given(st.lists(st.booleans(), min_size=15, max_size=15))
    def law(others: list[bool]) -> None:
        kept = torch.tensor([True, *others])  # a causal model's first query has no other key
        places = kept.nonzero().flatten()
        attach(model, masks.table(kept.expand(16, 16).clone()), backend=backend)
        masked = hidden(model, {"input_ids": ids})[:, places]
        detach(model)
        removed = {"input_ids": ids[:, places], "position_ids": places.expand(2, -1)}
        assert (masked - hidden(model, removed)).abs().max() < EQUAL

    law()


# -- axial masks on image models: which patches an output depends on ----------------------------
SIZES = {
    "image_size": (8, 16),
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
ROWS, COLUMNS = 2, 4


@pytest.mark.parametrize(
    ("kind", "config", "prefix"), [(ViTModel, ViTConfig, 1), (DeiTModel, DeiTConfig, 2)]
)
def test_a_patch_sees_its_row_its_column_and_the_class_tokens(kind, config, prefix):
    torch.manual_seed(0)
    model = kind(config(**SIZES), add_pooling_layer=False).eval()
    pixels = torch.randn(1, 3, 8, 16, requires_grad=True)
    attach(model, masks.axial(ROWS, COLUMNS, prefix), inputs={"pixel_values": pixels.detach()})
    states = model(pixel_values=pixels).last_hidden_state[0]
    assert len(states) == prefix + ROWS * COLUMNS
    for place, state in enumerate(states):
        (grad,) = torch.autograd.grad(state[0], pixels, retain_graph=True)
        seen = grad[0].abs().sum(0).view(ROWS, 4, COLUMNS, 4).sum((1, 3)) > 0
        wanted = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
        if place >= prefix:
            row, column = divmod(place - prefix, COLUMNS)
            wanted = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
            wanted[row] = wanted[:, column] = True
        assert torch.equal(seen, wanted), place


def test_a_grid_that_forgets_the_class_token_is_refused():
    model = ViTModel(ViTConfig(**SIZES), add_pooling_layer=False).eval()
    pixels = {"pixel_values": torch.zeros(1, 3, 8, 16)}
    attach(model, masks.axial(ROWS, COLUMNS), inputs=pixels)
    with pytest.raises(LengthError, match=r"axial\(2, 4, 0\) has 8 positions, asked for 9"):
        model(**pixels)
