"""Generation with a MaskedCache: what attach computes, in the bytes that kv_bytes counts."""

import copy
import itertools

import pytest
import torch
import transformers as hf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_encoders import sizes

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError, EmptyRowError, LengthError
from masksearch.gates.gates import Gates
from masksearch_decoders import MaskedCache
from masksearch_decoders.cache.kv_cache import kv_bytes
from tests.mask_trees import HEADS, LAYERS, kinds_of, trees

ENDS = dict.fromkeys(("bos_token_id", "eos_token_id"))
SIZES = sizes(50, 32, 3, 4, 32, 64, initializer_range=0.3, pad_token_id=0, **ENDS)
GROUPED = {**SIZES, "num_key_value_heads": 2}
MIXED = ["full_attention", "sliding_attention", "full_attention"]
CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=12),
    "gpt2": lambda: hf.GPT2Config(**SIZES),
    "olmo3": lambda: hf.Olmo3Config(**GROUPED, sliding_window=6, layer_types=MIXED),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **GROUPED, head_dim=8, sliding_window=5, layer_types=MIXED
    ),
    "diffllama": lambda: hf.DiffLlamaConfig(**GROUPED),  # calls attention twice a layer
}
LOCAL, FULL = masks.columns(2) | masks.window(4), masks.full()
TABLE = masks.table(torch.rand(24, 24, generator=torch.Generator().manual_seed(0)) < 0.4)
MIXED_LAYERS = masks.per_layer([LOCAL, FULL, LOCAL])


def tiny(name, mask):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    return ms.attach(model, mask)


def tokens(batch, length, seed=1):
    source = torch.Generator().manual_seed(seed)
    return torch.randint(1, 50, (batch, length), generator=source)


def generated(model, cache, prompt, **given):
    out = model.generate(
        prompt,
        past_key_values=cache,
        max_new_tokens=9,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **given,
    )
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_generation_and_bytes_on_every_family(name):
    model = tiny(name, MIXED_LAYERS)
    prompt = tokens(1, 13)
    plain, wanted = generated(model, hf.DynamicCache(), prompt)
    cache = MaskedCache(model)
    found, logits = generated(model, cache, prompt)
    assert torch.equal(found, plain)
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == 21
    counted = kv_bytes(MIXED_LAYERS, model, 21)
    assert cache.bytes == counted.bytes < counted.dense_bytes


@pytest.fixture(scope="module")
def small():
    """A decoder with the layers and heads of random mask trees."""
    torch.manual_seed(0)
    shape = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 1}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**SIZES, **shape})).eval().double()


@pytest.mark.slow
@settings(max_examples=8)
@given(trees(7), st.lists(st.integers(1, 7), min_size=1))
def test_any_mask_gives_the_whole_texts_logits_in_the_counted_bytes(small, mask, cuts):
    assume("random_keys" not in kinds_of(mask))  # other keys at each length
    mask = mask | masks.window(0)
    ms.attach(small, mask)
    text, cache = tokens(1, 7), MaskedCache(small, length=7)
    edges = sorted({0, 7, *cuts})
    logits = []
    with torch.no_grad():
        wanted = small(text, use_cache=False).logits
        for first, last in itertools.pairwise(edges):
            logits.append(small(text[:, first:last], past_key_values=cache).logits)
            assert cache.bytes == kv_bytes(mask, small, last, until=7).bytes
    torch.testing.assert_close(torch.cat(logits, 1), wanted, atol=1e-12, rtol=1e-12)


PADDED = [(name, MIXED_LAYERS, side) for name in ("llama", "gpt2") for side in ("left", "right")]
PADDED += [("diffllama", mask, "left") for mask in (masks.window(3), TABLE | masks.window(0))]


@pytest.mark.parametrize(("name", "mask", "side"), PADDED)
def test_padded_batches_are_computed_as_without_a_cache(name, mask, side):
    model, prompt = tiny(name, mask), tokens(2, 14)
    padding = {"attention_mask": torch.ones_like(prompt)}
    padding["attention_mask"][0, slice(0, 6) if side == "left" else slice(-6, None)] = 0
    plain, wanted = generated(model, None, prompt, use_cache=False, **padding)
    found, logits = generated(model, MaskedCache(model, length=24), prompt, **padding)
    assert torch.equal(found, plain)
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_beams_and_a_second_use_after_reset():
    model = tiny("llama", MIXED_LAYERS)
    prompt, cache = tokens(1, 9), MaskedCache(model)
    beams = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False}
    wanted = model.generate(prompt, past_key_values=hf.DynamicCache(), **beams)
    assert torch.equal(model.generate(prompt, past_key_values=cache, **beams), wanted)
    cache.reset()
    assert (cache.get_seq_length(), cache.bytes) == (0, 0)
    again = copy.deepcopy(cache)
    for one in (cache, again):
        found, _ = generated(model, one, prompt)
        assert torch.equal(found, generated(model, hf.DynamicCache(), prompt)[0])


def test_a_failed_pass_leaves_nothing_behind():
    model = tiny("llama", MIXED_LAYERS)
    text, cache = tokens(1, 9), MaskedCache(model)
    with torch.no_grad():
        wanted = model(text, use_cache=False).logits
        model(text, past_key_values=cache)
        with pytest.raises(AttachError, match="attention mask has 9 positions"):
            model(text[:, :1], past_key_values=cache, attention_mask=torch.ones(1, 1, 1, 9) > 0)
        assert torch.equal(model(text, use_cache=False).logits, wanted)


def test_what_it_cannot_serve_is_refused():
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    with pytest.raises(AttachError, match="nothing is attached"):
        MaskedCache(model)
    ms.attach(model, masks.random_keys(3, 0) | masks.window(0))
    with pytest.raises(AttachError, match="other keys at every length"):
        MaskedCache(model)
    ms.attach(model, Gates("free", length=16, layers=3, heads=4))
    with pytest.raises(AttachError, match="carries gates"):
        MaskedCache(model)
    for leaf in (masks.special_tokens([3]), masks.same_token()):
        ms.attach(model, LOCAL | leaf)
        with pytest.raises(AttachError, match="follows the tokens"):
            MaskedCache(model)
    ms.attach(model, TABLE | masks.window(0))
    with pytest.raises(LengthError, match="from 1 to the positions that the mask reaches, 24"):
        MaskedCache(model, length=25)


def test_a_cache_is_of_one_mask_and_one_length():
    model = tiny("llama", LOCAL)
    text, cache = tokens(1, 9), MaskedCache(model, length=10)
    with torch.no_grad():
        model(text, past_key_values=cache)
        with pytest.raises(LengthError, match="for 10 positions is given position 10"):
            model(text[:, :2], past_key_values=cache)
        with pytest.raises(AttachError, match="cannot take tokens back"):
            cache.crop(-1)
        ms.attach(model, masks.window(2))
        with pytest.raises(AttachError, match="no longer on the model"):
            model(text[:, :1], past_key_values=cache)


def test_a_query_without_a_key_is_refused_where_it_comes():
    model = tiny("llama", masks.window(2) & masks.columns(5))
    cache = MaskedCache(model)
    with torch.no_grad():
        model(tokens(1, 6), past_key_values=cache)
        with pytest.raises(EmptyRowError, match="query 7 keeps no earlier key"):
            model(tokens(1, 3), past_key_values=cache)
