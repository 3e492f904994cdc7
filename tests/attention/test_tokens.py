"""Content masks on models: resolved from the input ids of every forward pass."""

import copy
import itertools
import pickle
import re
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, gpt2_config
from tiny_encoders import seeded
from torch import Tensor, nn

from masksearch import masks
from masksearch.attention.attach import attach, attached, detach
from masksearch.errors import AttachError, EmptyRowError, HeadCountError
from masksearch.positions.attention_maps import attention_maps

SPECIAL = 7
HUBS = masks.window(1) | masks.special_tokens(SPECIAL)
SAME = masks.columns(1) | masks.same_token(except_ids=[SPECIAL])
BOTH = pytest.mark.parametrize("mask", [HUBS, SAME], ids=str)


def tokens(*places: int, length: int = 9, batch: int = 1) -> Tensor:
    """Ids with the special one at those places."""
    ids = torch.randint(8, 50, (batch, length), generator=torch.Generator().manual_seed(0))
    for place in places:
        ids[:, place] = SPECIAL
    return ids


@pytest.mark.parametrize("name", ["bert", "distilbert", "esm", "gpt2", "llama"])
def test_content_masks_equal_masks_of_positions(name):
    """Each text alone, under global tokens where its special tokens stand."""
    at = ARCHITECTURES[name]
    model, other = at.made(), at.made()
    ids = torch.cat([tokens(0, 4), tokens(8), tokens(0, 3, 5)])
    attach(model, HUBS)
    with torch.no_grad():
        found = model(input_ids=ids)[0]
        for row, places in enumerate([(0, 4), (8,), (0, 3, 5)]):
            attach(other, masks.window(1) | masks.global_tokens(positions=places))
            assert torch.allclose(found[row], other(input_ids=ids[row, None])[0][0], atol=1e-5)


def equal_pairs(ids: Tensor) -> Tensor:
    """The cells of `SAME` in one text, pair by pair: bool `[n, n]`."""
    text, cells = ids.tolist(), torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for query, key in itertools.product(range(len(text)), repeat=2):
        equal = text[query] == text[key] != SPECIAL
        cells[query, key] = equal or query == key or key == 0
    return cells


@pytest.mark.parametrize("backend", ["auto", "sdpa", "gather", "flex"])
@pytest.mark.parametrize("name", ["bert", "distilbert", "esm", "gpt2", "llama"])
def test_equal_tokens_see_each_other_in_every_text_of_a_batch(name, backend):
    """Texts of several lengths beside each other, against the table of each text alone; of a
    decoder the earlier equal tokens."""
    at = ARCHITECTURES[name]
    model, other = attach(at.made(), SAME, backend=backend), at.made()
    lengths, drawn = (9, 5, 7), torch.Generator().manual_seed(1)
    ids = torch.randint(6, 11, (3, 9), generator=drawn)  # few words, and the special one
    real = torch.arange(9) < torch.tensor(lengths)[:, None]
    how = {"use_cache": False} if name in ("gpt2", "llama") else {}
    with torch.no_grad():
        batch = model(input_ids=ids, attention_mask=real.long(), **how)[0]
        for row, length in enumerate(lengths):
            text = ids[row, :length]
            attach(other, masks.table(equal_pairs(text)))
            alone = other(input_ids=text[None], **how)[0][0]
            assert torch.allclose(batch[row, :length], alone, atol=1e-5)


def test_left_padding_moves_the_special_tokens():
    model, ids = attach(ARCHITECTURES["bert"].made(), HUBS), tokens(0, 8)
    real = torch.tensor([[0, 0, 0] + [1] * 9])
    places = torch.arange(9)[None]
    with torch.no_grad():
        alone = model(input_ids=ids, position_ids=places)[0]
        padded = model(
            input_ids=torch.cat([torch.ones(1, 3, dtype=torch.int64), ids], 1),
            attention_mask=real,
            position_ids=torch.cat([torch.zeros(1, 3, dtype=torch.int64), places], 1),
        )[0]
    assert torch.allclose(padded[:, 3:], alone, atol=1e-5)


@BOTH
def test_the_same_table_by_keyword_and_by_position(mask):
    model = attach(ARCHITECTURES["bert"].made(), mask)
    ids, other = tokens(0, batch=2), tokens(4, batch=2)
    with torch.no_grad():
        expected = model(input_ids=ids)[0]
        assert not torch.allclose(model(other)[0], expected)
        assert torch.equal(model(ids, torch.ones_like(ids))[0], expected)


@pytest.mark.parametrize("name", ["t5-encoder", "t5-decoder", "bart-decoder", "clip-text"])
@BOTH
def test_parts_are_resolved_from_their_own_tokens(name, mask):
    at = ARCHITECTURES[name]
    model, given = at.made(), at.inputs(3)
    plain = at.run(model, given)
    attach(model, mask, part=at.part)
    assert attached(model) == {at.part: mask}
    (several, receiver), *_ = model.__dict__["masksearch_attachment"].token_masks
    tables: list[Tensor] = []
    first = at.layers(model)[0]
    hook = first.register_forward_pre_hook(lambda *call: tables.append(several[0].table))
    at.run(model, given)
    hook.remove()
    own = given["decoder_input_ids" if at.part == "decoder" else "input_ids"]
    assert torch.equal(tables[0], mask.table(own))
    assert not torch.allclose(at.run(model, given), plain, atol=1e-4)
    assert torch.equal(at.run(detach(model), given), plain)
    assert receiver is not model


def test_wrapped_models_layers_and_heads():
    model = hf.BertForMaskedLM(ARCHITECTURES["bert"].made().config).eval()
    before = model(tokens(4)).logits
    attach(model, HUBS)
    assert not torch.allclose(model(tokens(4)).logits, before, atol=1e-4)
    two = ARCHITECTURES["bert"].made()
    attach(two, masks.per_layer([HUBS, masks.per_head([HUBS] * 3 + [masks.star()])]))
    two(tokens(4))
    with pytest.raises(HeadCountError, match=r"asked for 4; .*BertModel has 2 layers of 4 heads"):
        attach(two, masks.per_head([HUBS] * 3))


@BOTH
def test_copies_resolve_for_themselves(mask):
    model = attach(ARCHITECTURES["bert"].made(), mask)
    with torch.no_grad():
        first = model(tokens(0))[0]
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            second = copied(tokens(4))[0]
            assert torch.equal(copied(tokens(0))[0], first)
            assert not torch.allclose(first, second)
            detach(copied)
            copied(tokens(4))
        assert torch.equal(model(tokens(0))[0], first)


@BOTH
def test_generation_needs_all_tokens_in_every_pass(mask):
    model = attach(seeded(lambda: hf.GPT2LMHeadModel(gpt2_config(2, 40)), 0), mask)
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 1}
    given = {"attention_mask": torch.ones(1, 9, dtype=torch.int64), **how}
    made = model.generate(tokens(0), use_cache=False, **given)
    again = made[:, :9]
    for _ in range(4):
        again = torch.cat([again, model(input_ids=again).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, again)
    with pytest.raises(
        AttachError,
        match=rf"layer 0: {re.escape(str(mask))} was resolved from 1 sequences of 1 "
        r"tokens, and attention has 1 of 1 queries and 10 keys; .*use_cache=False",
    ):
        model.generate(tokens(0), **given)


@BOTH
def test_where_no_tokens_are_given(mask):
    model = attach(ARCHITECTURES["bert"].made(), mask)
    with pytest.raises(AttachError, match="BertModel was called without them; call it with input"):
        model(inputs_embeds=torch.zeros(1, 9, 32))
    with pytest.raises(AttachError, match="has not been resolved; call the model, not a layer"):
        model.encoder(torch.zeros(1, 9, 32))
    with pytest.raises(AttachError, match="resolved from input_ids, and ViTModel takes none for"):
        attach(ARCHITECTURES["vit"].made(), mask)
    with pytest.raises(AttachError, match="and cross-attention of T5Model has two; attach it to"):
        attach(ARCHITECTURES["t5-cross"].made(), mask, part="cross")


def test_rows_that_keep_nothing_are_refused():
    model = attach(ARCHITECTURES["bert"].made(), masks.special_tokens(SPECIAL))
    model(tokens(3))
    with pytest.raises(EmptyRowError, match=r"example 0.*keeps no key"):
        model(tokens())
    later = attach(ARCHITECTURES["gpt2"].made(), masks.special_tokens(SPECIAL))
    later(tokens(0))
    with pytest.raises(
        EmptyRowError,
        match="layer 0, example 0, head 0, row 0 keeps only later keys, and the model is causal",
    ):
        later(tokens(3))


@BOTH
def test_positions_are_not_studied_under_content(mask):
    model = attach(ARCHITECTURES["bert"].made(), mask)
    with pytest.raises(AttachError, match=r"carries (window|columns).*which follows the tokens"):
        attention_maps(model, [{"input_ids": tokens(0)}])
    assert isinstance(attached(model)["self"], type(mask))


@pytest.mark.nightly
@BOTH
def test_compiled_models_resolve_outside_of_the_graph(mask):
    model: nn.Module = attach(ARCHITECTURES["bert"].made(), mask)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for places in ((0,), (4, 5)):
            assert torch.equal(compiled(tokens(*places))[0], model(tokens(*places))[0])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@BOTH
def test_checkpoints_of_several_passes_find_their_own_tables(reentrant, padded, mask):
    """Two forward passes before one backward, as contrastive losses have them."""
    model = attach(ARCHITECTURES["gpt2"].made(), mask).train()
    texts = tokens(1, 4, batch=2), tokens(2, 6, batch=2)
    real = torch.ones(2, 9, dtype=torch.int64)
    real[1, 7:] = 1 - int(padded)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        sum(model(input_ids=ids, attention_mask=real)[0].pow(2).sum() for ids in texts).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    for found, wanted in zip(gradients(), expected, strict=True):
        assert torch.equal(found, wanted)


@BOTH
def test_no_table_of_other_texts_is_used(mask):
    """Whoever calls a model's `forward`, past its hooks, is refused after an ordinary call too."""
    model = attach(ARCHITECTURES["bert"].made(), mask)
    with torch.no_grad():
        model(tokens(0, 4))
        with pytest.raises(AttachError, match="has not been resolved"):
            model.forward(tokens(0, 2, 6))
