"""What the probe cannot prove of a layer is refused, in words that say what the layer does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import bert
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError


class ToyConfig(PreTrainedConfig):
    model_type = "toy_of_a_test"


class Layer(nn.Module):
    """Attention through transformers' interface, with states of eight numbers as one head."""

    is_causal = False

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.eye(8))

    def forward(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        def own(*call: Any, **rest: Any) -> Any:
            raise AssertionError("the interface is used")

        attend = AttentionInterface().get_interface(self.config._attn_implementation, own)
        query, key = (query @ self.weight).unsqueeze(1), key.unsqueeze(1)
        return attend(self, query, key, key, mask)[0].flatten(2)


class Toy(PreTrainedModel):
    """One layer, called as a test says."""

    config_class = ToyConfig
    _supports_sdpa = True

    def __init__(self, forward: Callable[[Layer, Tensor], Tensor]) -> None:
        super().__init__(ToyConfig())
        self.table = nn.Embedding(9, 8)
        self.layer = Layer(self.config)
        self.how = forward

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.how(self.layer, self.table(input_ids))


REFUSED = {
    "pooled keys": (
        lambda layer, states: layer(states, states[:, ::3]),
        "attends to 2 keys, and no sequence of the model has as many positions",
    ),
    "fewer queries": (
        lambda layer, states: layer(states[:, :2], states[:, :2]),
        "attends with 2 queries, and the text has 5 tokens",
    ),
    "two lengths": (
        lambda layer, states: layer(layer(states, states), states[:, :3]),
        "calls attention with 5 queries and 3 keys after 5 and 5",
    ),
    "windows in the batch": (
        lambda layer, states: layer(*[states[:, :4].reshape(2, 2, 8)] * 2).reshape(1, 4, 8),
        "cuts its sequence into pieces, and attends within each: 2 queries and 2 keys",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_layer_does_is_said(name):
    forward, message = REFUSED[name]
    with pytest.raises(AttachError, match=rf"^layer \(Layer\) of Toy {message}; a mask is of the"):
        ms.attach(Toy(forward).eval(), masks.window(1))


def test_pieces_of_one_sequence_are_told_from_a_shared_layer():
    ids = {"input_ids": torch.ones(1, 6, dtype=torch.int64)}

    class Split(Layer):
        def forward(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
            attend = AttentionInterface().get_interface(self.config._attn_implementation, None)
            halves = query.unsqueeze(1).split(3, dim=2)
            return torch.cat([attend(self, each, each, each, None)[0] for each in halves], 1)

    toy = Toy(lambda layer, states: layer(states, states)).eval()
    toy.layer = Split(toy.config)
    with pytest.raises(AttachError, match=r"cuts its sequence into pieces.*3 queries and 3 keys"):
        ms.attach(toy, masks.window(1), ids)
    shared = Toy(lambda layer, states: layer(layer(states, states), states)).eval()
    assert ms.attached(ms.attach(shared, masks.window(1))) == {"self": masks.window(1)}


def test_a_layer_of_two_sequences_at_once_is_refused():
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"sliding_window": 64, "layer_types": ["full_attention"] * 2}
    eyes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    eyes |= {"num_attention_heads": 4, "image_size": 16, "patch_size": 8}
    signs = {"boi_token_index": 57, "eoi_token_index": 58, "image_token_index": 59}
    encoder = {"text_config": sizes, "vision_config": eyes, "mm_tokens_per_image": 4, **signs}
    config = hf.T5Gemma2Config(
        encoder=encoder, decoder=dict(sizes), image_token_index=59, vocab_size=60
    )
    model = hf.T5Gemma2ForConditionalGeneration(config).eval()
    tokens = torch.randint(3, 50, (1, 12))
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens[:, :9]}
    with pytest.raises(AttachError, match="attends to its own 9 positions and 12 others at once"):
        ms.attach(model, masks.window(3), inputs, part="cross")
    ms.attach(model, masks.full(), inputs, part="encoder")
    found = model(**inputs).logits
    assert torch.allclose(found, ms.detach(model)(**inputs).logits, atol=1e-6)


def test_choices_of_an_example_are_sequences_of_their_own():
    """`[batch, choices, tokens]` is folded by the model, and attended to row by row."""

    class Choices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = bert(1, 20)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.inner(input_ids.flatten(0, 1)).last_hidden_state

    ids = torch.ones(2, 3, 9, dtype=torch.int64)
    ms.attach(Choices().eval(), masks.window(1), {"input_ids": ids})
