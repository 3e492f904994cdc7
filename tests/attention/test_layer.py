"""Tables, causality, positions in a cache and shorter inputs behind an attached mask."""

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, GROUPED, gpt2_config, llama_config, seeded, states
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.errors import AttachError, EmptyRowError, LengthError

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
SLIDING = masks.window(1) | masks.stride(3) | masks.global_tokens(positions=[2, 6])
INSIDE = masks.window(1) | masks.global_tokens(positions=[0, 4])
PAIRED = {"decoder": masks.star(), "cross": masks.stride(2) | masks.global_tokens(1)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "mask"),
    [
        (functools.partial(mistral, 4), SLIDING),
        (functools.partial(mistral, 12), SLIDING),
        *(pytest.param(make, INSIDE, marks=pytest.mark.slow) for make in (gpt2, llama)),
        pytest.param(bart, PAIRED, marks=pytest.mark.slow),
    ],
)
def test_caches_know_where_their_keys_stand(make, mask):
    model = make()
    attach(model.base_model if mask is INSIDE else model, mask)
    plain = scores(model, use_cache=False)
    for cache in ("dynamic", "static", "static"):
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
    with pytest.raises(AttachError, match="the decoder has outgrown the 9 keys of the encoder"):
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


# -- inputs that are shorter than the table -----------------------------------------------------
TABLE, SHORT = 26, 17


def bits(seed: int, *shape: int) -> Tensor:
    """A third of the cells; the first row keeps only its last key, beyond the shorter input."""
    drawn = torch.rand(*shape, TABLE, TABLE, generator=torch.Generator().manual_seed(seed)) < 0.3
    drawn[..., 0, :] = False
    drawn[..., 0, TABLE - 1] = True
    return drawn


HEADS = masks.table(bits(0, 4))
LAYERS = masks.table(bits(1, 2, 4) | torch.eye(TABLE, dtype=torch.bool))
RANDOM = masks.random_keys(3, seed=1) & masks.table(torch.ones(TABLE, TABLE) > 0)


def texts(real: list[int], length: int) -> dict[str, Tensor]:
    """Texts of those lengths, padded to one; real tokens are the same at every length."""
    ids = torch.randint(3, 50, (len(real), TABLE), generator=torch.Generator().manual_seed(0))
    visible = (torch.arange(TABLE)[None] < torch.tensor(real)[:, None]).long()
    ids = torch.where(visible > 0, ids, 1)
    return {"input_ids": ids[:, :length], "attention_mask": visible[:, :length]}


def real_states(model: Any, real: list[int], length: int) -> Tensor:
    """Last hidden states of the real tokens."""
    given = texts(real, length)
    with torch.no_grad():
        return model(**given).last_hidden_state[given["attention_mask"].bool()]


FLEX = pytest.param("flex", marks=pytest.mark.nightly)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "sdpa", "gather", FLEX])
@pytest.mark.parametrize("mask", [HEADS, LAYERS, RANDOM], ids=["heads", "layers", "random"])
def test_shorter_inputs_equal_those_padded_to_the_table(mask, backend):
    model = attach(ARCHITECTURES["bert"].made(2, TABLE), mask, backend=backend)
    for real in ([SHORT, 9], [SHORT, SHORT]):
        expected = real_states(model, real, TABLE)
        found = real_states(model, real, SHORT)
        assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(real_states(copy.deepcopy(model), real, SHORT), expected, atol=1e-5)
    assert not torch.allclose(real_states(ms.detach(model), real, SHORT), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "roberta", "modernbert", "t5-encoder", "bart-encoder"])
def test_every_kind_of_model_takes_shorter_inputs(name):
    at = ARCHITECTURES[name]
    model = at.made(layers=2, length=TABLE)
    table = bits(2, 4) | torch.eye(TABLE, dtype=torch.bool)
    given = at.inputs(0, length=SHORT)
    cut = masks.cropped(masks.table(table), TABLE)
    expected = at.run(attach(model, cut, part=at.part), given)
    found = at.run(attach(model, masks.table(table), part=at.part), given)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("leaf", [masks.special_tokens(7), masks.same_token()], ids=str)
def test_tables_beside_masks_of_tokens_take_shorter_inputs(leaf):
    model = ARCHITECTURES["bert"].made(2, TABLE)
    mask = masks.table(bits(3, 4) | torch.eye(TABLE, dtype=torch.bool)) | leaf
    attach(model, mask)
    expected = real_states(model, [SHORT, 9], TABLE)
    assert torch.allclose(real_states(model, [SHORT, 9], SHORT), expected, atol=1e-5)


@pytest.mark.slow
def test_generation_may_stop_before_the_table_ends():
    model = attach(llama(), masks.table(bits(4, 4) | torch.eye(TABLE, dtype=torch.bool)))
    how: dict[str, Any] = {"do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    prompt = texts([9, 9], 9)
    plain = model.generate(**prompt, **how, max_new_tokens=8, use_cache=False)
    for cache in ("dynamic", "static"):
        found = model.generate(**prompt, **how, max_new_tokens=8, cache_implementation=cache)
        assert torch.equal(found, plain)
    with pytest.raises(LengthError, match="a table of 26 positions serves inputs of at most"):
        model.generate(**prompt, **how, max_new_tokens=30)


@pytest.mark.parametrize("backend", ["auto", "gather"])
def test_longer_inputs_and_empty_rows_stay_refused(backend):
    model = ARCHITECTURES["bert"].made(layers=2, length=2 * TABLE)
    attach(model, HEADS, backend=backend)
    longer = (
        r"layer 0: a table of 26 positions serves inputs of at most that many, asked for 27; "
        r"searched tables do not stretch: truncate the inputs \(tokenizer\(.., truncation=True, "
        r"max_length=26\)\), or attach an expression, which has any length"
    )
    ids = torch.ones(1, TABLE + 1, dtype=torch.int64)
    with pytest.raises(LengthError, match=longer):
        model(input_ids=ids)
    with pytest.raises(LengthError, match=longer):
        ms.explain(model, length=TABLE + 1)
    model(input_ids=ids[:, :TABLE])  # the first remedy, and the second
    attach(model, masks.window(2))
    model(input_ids=ids)
    empty = bits(0)
    empty[0] = False
    attach(model, masks.table(empty), backend=backend)
    with pytest.raises(EmptyRowError, match="row 0 keeps no key"):
        model(input_ids=ids[:, :SHORT])


def test_explain_tells_of_the_corner():
    with pytest.warns(UserWarning, match="the mask is a table of 26 positions"):
        model = attach(ARCHITECTURES["bert"].made(), HEADS)
    shorter = ms.explain(model, length=SHORT)
    assert "upper left corner of a table of 26 positions; below 256" in str(shorter)
    assert shorter.rows[0].density == pytest.approx(
        float(HEADS.bits[..., :SHORT, :SHORT].float().mean()), abs=1e-6
    )
    assert "corner" not in str(ms.explain(model))
