"""Models written for transformers, read back by it and by `open_pretrained`."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from masksearch import attach, masks, save_pretrained
from masksearch.models.encoders import ARCHITECTURES, MaskedLanguageModel, encoder
from masksearch.models.pretrained import open_pretrained
from masksearch.tasks.text.tokenizer import (
    open_tokenizer,
    read_vocabulary,
    special_ids,
    word_piece,
)

LENGTH, VOCABULARY = 12, 40
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "small", "mask", "##s", "."]


def made(architecture: str = "bert", *, pairs: bool = False) -> MaskedLanguageModel:
    """A model whose every weight is drawn, biases too, as training would leave them."""
    body = encoder("2x16x2", VOCABULARY, LENGTH, seed=0, architecture=architecture, pad=1)
    model = MaskedLanguageModel(body, seed=0, pairs=pairs)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=drawn), alpha=0.1)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    drawn = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY, (3, LENGTH), generator=drawn)
    with torch.no_grad():
        return model(input_ids=tokens).logits.reshape(-1, VOCABULARY)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_readers_compute_the_same(tmp_path, architecture):
    from transformers import AutoModelForMaskedLM

    model = made(architecture)
    expected = logits(model)
    attach(model, masks.window(1))
    masked = logits(model)
    assert save_pretrained(model, tmp_path / "out") == tmp_path / "out"
    assert torch.equal(logits(model), masked)  # the mask is still on
    out = tmp_path / "out"
    theirs = AutoModelForMaskedLM.from_pretrained(out, attn_implementation="sdpa").eval()
    assert torch.allclose(logits(theirs), expected, atol=1e-5)
    start = open_pretrained(tmp_path / "out")
    assert (start.architecture, start.has_head, start.has_pair_head) == (architecture, True, False)
    again = start.masked_language_model(seed=9).eval()
    assert torch.allclose(logits(again), expected, atol=1e-5)
    attach(again, masks.window(1))
    assert torch.allclose(logits(again), masked, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "mask.json", "mask.png", "masksearch.json", "model.safetensors"
    ]  # fmt: skip


def test_a_pair_head_of_bert_is_kept(tmp_path):
    from transformers import BertForPreTraining

    model = made(pairs=True)
    save_pretrained(attach(model, masks.full()), tmp_path)
    tokens = torch.randint(3, VOCABULARY, (5, LENGTH), generator=torch.Generator().manual_seed(2))
    start = open_pretrained(tmp_path)
    assert start.has_pair_head
    again = start.masked_language_model(seed=9, pairs=True).eval()
    theirs = BertForPreTraining.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    with torch.no_grad():
        mine = model(tokens).pair_logits
        assert torch.allclose(again(tokens).pair_logits, mine, atol=1e-5)
        assert torch.allclose(theirs(tokens).seq_relationship_logits, mine, atol=1e-5)
    assert torch.allclose(logits(again), logits(model), atol=1e-5)


def test_a_pair_head_of_another_is_left_out_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "masksearch"):
        save_pretrained(attach(made("electra", pairs=True), masks.full()), tmp_path)
    assert "sentence-pair head is not written" in caplog.text
    assert open_pretrained(tmp_path).has_head


def test_tokenizer_is_read_by_both(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = word_piece({token: number for number, token in enumerate(TOKENS)})
    special = special_ids(tokenizer)
    save_pretrained(attach(made(), masks.window(1)), tmp_path, tokenizer=tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a small mask.")["input_ids"] == [2, 5, 6, 7, 9, 3]
    pair = theirs("a mask", "small masks")
    assert pair["input_ids"] == [2, 5, 7, 3, 6, 7, 8, 3]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (theirs.mask_token, theirs.pad_token_id, theirs.model_max_length) == ("[MASK]", 0, 12)
    start = open_pretrained(tmp_path)
    ours = open_tokenizer(start.tokenizer_source)
    assert ours.get_vocab() == tokenizer.get_vocab()
    assert special_ids(ours) == special
    assert tokenizer.post_processor is None  # the caller's own is as it was
    table = masks.table(torch.eye(7) > 0)
    save_pretrained(attach(made(), table), tmp_path, tokenizer=tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 7
    save_pretrained(attach(made(), masks.window(1)), tmp_path / "given", tokenizer=theirs)
    given = AutoTokenizer.from_pretrained(tmp_path / "given")
    assert given("a mask", "small masks")["input_ids"] == pair["input_ids"]


def test_texts_are_cut_at_the_positions_that_a_model_counts(tmp_path):
    from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel

    tokenizer = word_piece({token: number for number, token in enumerate(TOKENS)})
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = XLMRobertaConfig(
        vocab_size=20, num_hidden_layers=1, max_position_embeddings=34, pad_token_id=1, **sizes
    )
    model = attach(XLMRobertaModel(config), masks.window(1))
    save_pretrained(model, tmp_path, tokenizer=tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 32


def test_special_tokens_of_another_name_are_written(tmp_path):
    from transformers import AutoTokenizer

    names = {"[PAD]": "<p>", "[UNK]": "<u>", "[CLS]": "<c>", "[SEP]": "<e>", "[MASK]": "<m>"}
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    (before / "vocab.txt").write_text("\n".join(names.get(token, token) for token in TOKENS))
    roles = {f"{name[1:-1].lower()}_token": ours for name, ours in names.items()}
    settings = {"tokenizer_class": "BertTokenizer", **roles}
    (before / "tokenizer_config.json").write_text(json.dumps(settings))
    source = read_vocabulary(before, 12)
    save_pretrained(attach(made(), masks.window(1)), after, tokenizer=source)
    theirs = AutoTokenizer.from_pretrained(after)
    assert {name: getattr(theirs, name) for name in roles} == roles
    assert theirs("a small mask.")["input_ids"] == [2, 5, 6, 7, 9, 3]
    assert read_vocabulary(after, 12).special == source.special


LONG = " ".join(["a small mask ."] * 30)
SIDES = st.sampled_from(["left", "right"])
CUT = {"strategy": "LongestFirst", "stride": 0}
PADDED = {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]", "pad_to_multiple_of": None}
BLOCKS = {  # of a tokenizer.json
    "truncation": st.builds(
        lambda length, side: {"max_length": length, "direction": side.title(), **CUT},
        *(st.integers(4, 99), SIDES),
    ),
    "padding": st.builds(
        lambda length, side: {"strategy": length, "direction": side.title(), **PADDED},
        *(st.one_of(st.just("BatchLongest"), st.builds(dict, Fixed=st.integers(4, 99))), SIDES),
    ),
}
NAMES = {f"{name[1:-1].lower()}_token": name for name in TOKENS[:5]}
SETTINGS = st.fixed_dictionaries(
    {"tokenizer_class": st.just("BertTokenizer"), **{n: st.just(t) for n, t in NAMES.items()}},
    optional={
        "model_max_length": st.sampled_from([4, 7, 9, 12, 512, int(1e30), None]),
        "max_length": st.integers(4, 99),
        "padding_side": SIDES,
    },
)


def put_tokenizer(folder: Path, written: dict[str, Any] | None, **blocks: Any) -> None:
    """What a checkpoint may hold: tokenizer.json, and settings beside it."""
    folder.mkdir(exist_ok=True, parents=True)
    tokenizer = word_piece({token: number for number, token in enumerate(TOKENS)})
    described = json.loads(tokenizer.to_str()) | blocks
    described["post_processor"] = {
        "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    if written is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(written))


@pytest.mark.slow
@settings(max_examples=12)
@given(
    written=st.none() | SETTINGS,
    blocks=st.fixed_dictionaries({}, optional=BLOCKS),
    lengths=st.lists(st.sampled_from([5, 8, 11, None]), min_size=1, max_size=2),
)
def test_a_tokenizer_beside_a_mask_cuts_at_its_length_and_pads_right(
    tmp_path_factory, written, blocks, lengths
):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("model")
    put_tokenizer(folder, written, **blocks)
    stated = (written or {}).get("model_max_length") or int(1e30)
    model = made()
    for length in lengths:  # one mask after the other on the same model
        mask = masks.window(1) if length is None else masks.table(torch.eye(length) > 0)
        save_pretrained(attach(model, mask), folder)
        theirs = AutoTokenizer.from_pretrained(folder)
        assert theirs.model_max_length == min(stated, length or stated)
        whole = theirs(LONG)["input_ids"]
        assert len(whole) == 2 + 30 * 4
        cut = theirs([LONG, "a mask"], truncation=True, padding=True)["input_ids"]
        shown = min(stated, length or stated, len(whole))
        assert [len(row) for row in cut] == [shown, shown]
        assert cut[1] == [2, 5, 7, 3, *[0] * (shown - 4)]


def test_a_decoder_pads_where_it_did_and_a_folder_without_a_tokenizer_gets_none(tmp_path):
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2}
    put_tokenizer(tmp_path / "gpt2", {**NAMES, "padding_side": "left"})
    decoder = attach(GPT2LMHeadModel(GPT2Config(**sizes)), masks.table(torch.eye(8) > 0))
    theirs = AutoTokenizer.from_pretrained(save_pretrained(decoder, tmp_path / "gpt2"))
    assert (theirs.padding_side, theirs.model_max_length) == ("left", 8)
    bare = save_pretrained(attach(made(), masks.table(torch.eye(8) > 0)), tmp_path / "bare")
    assert not list(bare.glob("tokenizer*"))


def test_another_activation_is_the_heads_too(tmp_path):
    from transformers import AutoModelForMaskedLM, BertConfig, BertModel

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    logits_of = {}
    for name in ("relu", "gelu"):
        config = BertConfig(**sizes, num_hidden_layers=1, hidden_act=name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MaskedLanguageModel(BertModel(config), seed=0).eval()
        logits_of[name] = logits(model)
        save_pretrained(attach(model, masks.full()), tmp_path / name)
        theirs = AutoModelForMaskedLM.from_pretrained(
            tmp_path / name, attn_implementation="sdpa"
        ).eval()
        assert torch.allclose(logits(theirs), logits_of[name], atol=1e-6)
    assert not torch.allclose(*logits_of.values(), atol=1e-4)
