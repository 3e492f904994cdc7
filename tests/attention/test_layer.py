"""Tables, causality and positions in a cache behind an attached mask."""

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, GROUPED, gpt2_config, llama_config, seeded, states
from torch import Tensor, nn

from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.errors import AttachError, EmptyRowError

LONGEST = 40


def gpt2() -> Any:
    return seeded(lambda: hf.GPT2LMHeadModel(gpt2_config(2, LONGEST)))


def llama() -> Any:
    return seeded(lambda: hf.LlamaForCausalLM(llama_config(2, LONGEST)))


def mistral(window: int) -> Any:
    config = hf.MistralConfig(
        **GROUPED,
        num_key_value_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=LONGEST,
        sliding_window=window,
    )
    return seeded(lambda: hf.MistralForCausalLM(config))


def bart() -> Any:
    config = ARCHITECTURES["bart-cross"].made().config
    return seeded(lambda: hf.BartForConditionalGeneration(config))


def tokens(length: int = 9) -> Tensor:
    return torch.randint(3, 50, (2, length), generator=torch.Generator().manual_seed(0))


def scores(model: Any, new: int = 9, **how: Any) -> Tensor:
    """Logits of greedy decoding."""
    found = model.generate(
        tokens(),
        attention_mask=torch.ones(2, 9, dtype=torch.int64),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_logits=True,
        disable_compile=True,
        **how,
    )
    return torch.stack(found.logits)


# -- causality ---------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["auto", "gather"])
def test_keys_that_causality_takes_are_refused(backend):
    model = attach(gpt2(), ~masks.causal() | masks.global_tokens(1), backend=backend)
    model(input_ids=tokens())
    attach(model, masks.shifts([1, 2]) | masks.blocks(9), backend=backend)
    model(input_ids=tokens())
    attach(model, masks.without_diagonal(~masks.causal()) | masks.shifts([-8]), backend=backend)
    with pytest.raises(
        EmptyRowError,
        match=r"layer 0, head 0, row 0 keeps only later keys, and the model is causal: causality "
        r"hides every one of them \(8 such rows of 9\); add for example masks.window\(0\)",
    ):
        model(input_ids=tokens())
    attach(model, ~masks.causal(), backend=backend)
    with pytest.raises(EmptyRowError, match="layer 0, head 0, row 8 keeps no key"):
        model(input_ids=tokens())


# -- caches ------------------------------------------------------------------------------------
@pytest.mark.parametrize("window", [4, 12])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_sliding_caches_know_where_their_keys_stand(window, cache):
    model = mistral(window)
    attach(model, masks.window(1) | masks.stride(3) | masks.global_tokens(positions=[2, 6]))
    plain = scores(model, use_cache=False)
    assert torch.allclose(scores(model, cache_implementation=cache), plain, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_mask_on_the_model_inside_knows_where_queries_stand(make):
    model = make()
    attach(model.base_model, masks.window(1) | masks.global_tokens(positions=[0, 4]))
    plain = scores(model, use_cache=False)
    for cache in ("dynamic", "static", "static"):
        assert torch.allclose(scores(model, cache_implementation=cache), plain, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cross_attention_does_not_move_the_rows_of_the_decoder(cache):
    model = bart()
    attach(model, {"decoder": masks.star(), "cross": masks.stride(2) | masks.global_tokens(1)})
    plain = scores(model, use_cache=False)
    assert torch.allclose(scores(model, cache_implementation=cache), plain, atol=1e-4)
    assert torch.allclose(scores(copy.deepcopy(model)), plain, atol=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("make", [gpt2, llama, bart])
def test_compiled_steps_of_a_static_cache_are_compiled_once(make):
    star = masks.window(1) | masks.global_tokens(positions=[0, 3])
    model = attach(make(), {"decoder": star, "cross": star} if make is bart else star)
    plain = scores(model, new=14, use_cache=False)
    eager = model.forward
    torch._dynamo.reset()
    compiled = torch.compile(eager, backend="eager", fullgraph=True)  # raises at the 8th anew

    @functools.wraps(eager)
    def forward(**given: Any) -> Any:
        new = given["decoder_input_ids" if make is bart else "input_ids"]
        return (compiled if new.shape[1] == 1 else eager)(**given)

    model.forward = forward
    assert torch.allclose(scores(model, 14, cache_implementation="static"), plain, atol=1e-4)


@pytest.mark.slow
def test_random_keys_are_not_mixed_with_a_cache():
    model, random = llama(), masks.random_keys(3) | masks.window(0)
    attach(model, random)
    scores(model, use_cache=False)
    message = (
        r"layer 0: random_keys.* keeps other keys at every length, so that a cache .*"
        r"masks.cropped\(mask, at=the longest length\), or generate with use_cache=False"
    )
    for cache in ("dynamic", "static"):
        with pytest.raises(AttachError, match=message):
            scores(model, cache_implementation=cache)
    attach(model, masks.cropped(random, at=LONGEST))
    plain = scores(model, use_cache=False)
    assert torch.allclose(scores(model), plain, atol=1e-4)
    assert torch.allclose(scores(model, cache_implementation="static"), plain, atol=1e-4)


def test_random_keys_of_cross_attention_last_as_long_as_the_encoder():
    model = bart()
    attach(model, masks.random_keys(3) | masks.global_tokens(1), part="cross")
    within = scores(model, new=8)
    assert torch.allclose(within, scores(model, new=8, use_cache=False), atol=1e-4)
    with pytest.raises(
        AttachError, match="the decoder has outgrown the 9 keys of the encoder; at"
    ):
        scores(model, new=12)


# -- memory ------------------------------------------------------------------------------------
def test_layers_with_equal_masks_share_their_tables():
    model, given = ARCHITECTURES["bert"].made(layers=4), ARCHITECTURES["bert"].inputs()
    attach(model, masks.per_layer([masks.star(), masks.window(2), masks.star(), masks.star()]))
    model(**given)
    first, second, third, fourth = states(model)
    assert first.lowered is third.lowered is fourth.lowered is not second.lowered
    (table,) = first.lowered.lowered[17].values()
    assert table.shape == (1, 1, 17, 17)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        own = states(copied)
        assert own[0].lowered is own[2].lowered is not first.lowered
        assert own[0].lowered.lowered == {}
        assert torch.equal(copied(**given)[0], model(**given)[0])


def test_a_refused_mask_leaves_the_positions_of_the_earlier_one():
    model = attach(gpt2(), masks.star(), part="transformer")
    with pytest.raises(AttachError, match="is in two of the parts"):
        attach(model, {"transformer": masks.star(), "transformer.h.1": masks.star()})
    plain = scores(model, use_cache=False)
    assert torch.allclose(scores(model, cache_implementation="static"), plain, atol=1e-4)


def test_towers_of_other_lengths_do_not_ask_each_other():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = ARCHITECTURES["bert"].made(layers=1)
            self.second = ARCHITECTURES["bert"].made(layers=1)

        def forward(self, input_ids: Tensor) -> Tensor:
            real = torch.ones_like(input_ids)
            real[:, :1] = 0
            first = self.first(input_ids, real)[0]
            return self.second(input_ids[:, :8], real[:, :8])[0][:, :8] + first[:, :8]

    model = Both()
    tables = {name: masks.table(torch.ones(n, n) > 0) for name, n in (("first", 9), ("second", 8))}
    attach(model, tables, backend="gather")
    with torch.no_grad():
        model(tokens())
