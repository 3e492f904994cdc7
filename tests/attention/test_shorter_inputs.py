"""A table on inputs that are shorter than it: what padding them to its length computes."""

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, BERT, GROUPED
from torch import Tensor

import masksearch as ms
from masksearch import masks
from masksearch.errors import EmptyRowError, LengthError

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


def states(model: Any, real: list[int], length: int) -> Tensor:
    """Last hidden states of the real tokens."""
    given = texts(real, length)
    with torch.no_grad():
        return model(**given).last_hidden_state[given["attention_mask"].bool()]


FLEX = pytest.param("flex", marks=pytest.mark.nightly)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "sdpa", "gather", FLEX])
@pytest.mark.parametrize("mask", [HEADS, LAYERS, RANDOM], ids=["heads", "layers", "random"])
def test_shorter_inputs_equal_those_padded_to_the_table(mask, backend):
    model = ARCHITECTURES["bert"].made(layers=2, length=TABLE)
    ms.attach(model, mask, backend=backend)
    for real in ([SHORT, 9], [SHORT, SHORT]):
        expected = states(model, real, TABLE)
        found = states(model, real, SHORT)
        assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(states(copy.deepcopy(model), real, SHORT), expected, atol=1e-5)
    assert not torch.allclose(states(ms.detach(model), real, SHORT), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "roberta", "modernbert", "t5-encoder", "bart-encoder"])
def test_every_kind_of_model_takes_shorter_inputs(name):
    at = ARCHITECTURES[name]
    model = at.made(layers=2, length=TABLE)
    table = bits(2, 4) | torch.eye(TABLE, dtype=torch.bool)
    given = at.inputs(0, length=SHORT)
    cut = masks.cropped(masks.table(table), TABLE)
    expected = at.run(ms.attach(model, cut, part=at.part), given)
    found = at.run(ms.attach(model, masks.table(table), part=at.part), given)
    assert torch.equal(found, expected)


def test_tables_beside_special_tokens_take_shorter_inputs():
    model = ARCHITECTURES["bert"].made(layers=2, length=TABLE)
    mask = masks.table(bits(3, 4) | torch.eye(TABLE, dtype=torch.bool)) | masks.special_tokens(7)
    ms.attach(model, mask)
    expected = states(model, [SHORT, 9], TABLE)
    assert torch.allclose(states(model, [SHORT, 9], SHORT), expected, atol=1e-5)


@pytest.mark.slow
def test_generation_may_stop_before_the_table_ends():
    config = hf.LlamaConfig(
        **GROUPED, num_key_value_heads=2, num_hidden_layers=2, max_position_embeddings=40
    )
    model = hf.LlamaForCausalLM(config).eval()
    ms.attach(model, masks.table(bits(4, 4) | torch.eye(TABLE, dtype=torch.bool)))
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
    ms.attach(model, HEADS, backend=backend)
    longer = (
        r"layer 0: a table of 26 positions serves inputs of at most that many, asked for 27; "
        r"searched tables do not stretch: truncate the inputs \(tokenizer\(.., truncation=True, "
        r"max_length=26\)\), or attach a mask of any length, masks.nearest_family\(mask\).mask"
    )
    ids = torch.ones(1, TABLE + 1, dtype=torch.int64)
    with pytest.raises(LengthError, match=longer):
        model(input_ids=ids)
    with pytest.raises(LengthError, match=longer):
        ms.explain(model, length=TABLE + 1)
    model(input_ids=ids[:, :TABLE])  # the first remedy, and the second
    ms.attach(model, masks.nearest_family(masks.table(bits(0))).mask)
    model(input_ids=ids)
    empty = bits(0)
    empty[0] = False
    ms.attach(model, masks.table(empty), backend=backend)
    with pytest.raises(EmptyRowError, match="row 0 keeps no key"):
        model(input_ids=ids[:, :SHORT])


def test_explain_tells_of_the_corner():
    model = ms.attach(hf.BertModel(hf.BertConfig(**BERT, num_hidden_layers=2)).eval(), HEADS)
    shorter = ms.explain(model, length=SHORT)
    assert "upper left corner of a table of 26 positions; below 256" in str(shorter)
    assert shorter.rows[0].density == pytest.approx(
        float(HEADS.bits[..., :SHORT, :SHORT].float().mean()), abs=1e-6
    )
    assert "corner" not in str(ms.explain(model))
