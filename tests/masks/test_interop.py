"""Masks to and from other libraries' forms: round trips, golden layouts, and theirs."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import sized_trees
from tiny_encoders import sizes
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel
from transformers import masking_utils as theirs

import masksearch as ms
from masksearch import masks
from masksearch.errors import EmptyRowError, LayerCountError, MaskFormatError

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "deepspeed_layouts.json").read_text(encoding="utf-8")
)


# -- block layouts -----------------------------------------------------------------------------
def of_blocks(numbers, block):
    """Positions of some blocks."""
    return [number * block + i for number in numbers for i in range(block)]


def fixed(block, arguments):
    own, last = 4 * block, arguments["num_global_blocks"] * block
    if arguments.get("num_different_global_patterns"):
        heads = [masks.block_columns(own, last)] + [
            masks.block_columns(own, last * (head + 1)) - masks.block_columns(own, last * head)
            for head in range(1, 4)
        ]
        return masks.per_head([masks.blocks(own) | columns for columns in heads])
    if arguments.get("horizontal_global_attention"):
        return masks.blocks(own) | masks.global_tokens(positions=of_blocks([3, 7, 11, 15], block))
    return masks.fixed(own, last)


def big_bird(block, arguments, seed):
    drawn = random.Random(seed)
    bits = torch.zeros(arguments["num_heads"], 16, 16, dtype=torch.bool)
    for head in range(arguments["num_heads"]):
        for row in range(16):
            bits[head, row, drawn.sample(range(16), arguments["num_random_blocks"])] = True
    return masks.longformer(block, block) | masks.block_layout(bits, block)


def ours(case):
    """The mask that a DeepSpeed configuration means, at the level of positions."""
    arguments, block = case["arguments"], case["arguments"]["block"]
    match case["class"]:
        case "DenseSparsityConfig":
            mask = masks.full()
        case "FixedSparsityConfig":
            mask = fixed(block, arguments)
        case "BSLongformerSparsityConfig":
            positions = of_blocks(arguments["global_block_indices"], block)
            mask = masks.window(arguments["num_sliding_window_blocks"] // 2 * block)
            mask = mask | masks.global_tokens(positions=positions)
        case "LocalSlidingWindowSparsityConfig":
            mask = masks.window(arguments["num_sliding_window_blocks"] // 2 * block)
        case "BigBirdSparsityConfig":
            mask = big_bird(block, arguments, case["seed"])
        case "VariableSparsityConfig":
            positions = of_blocks(arguments["global_block_indices"], block)
            mask = masks.blocks(4 * block) | masks.columns(positions=positions)
    one_way = {"LocalSlidingWindowSparsityConfig": "unidirectional"}.get(case["class"])
    if arguments.get("attention", one_way) == "unidirectional":
        mask = mask & masks.causal()
    return mask


def golden(case):
    return torch.tensor([[[int(cell) for cell in row] for row in head] for head in case["rows"]])


NAMES = [f"{case['class'][:-14]}{index}" for index, case in enumerate(GOLDEN["layouts"])]


@pytest.mark.parametrize("case", GOLDEN["layouts"], ids=NAMES)
def test_masks_have_the_layouts_of_deepspeed(case):
    block, heads = case["arguments"]["block"], case["arguments"]["num_heads"]
    found = masks.to_block_layout(ours(case), case["length"], block).expand(heads, -1, -1)
    assert found.dtype == torch.int64
    assert torch.equal(found, golden(case))
    back = masks.from_block_layout(golden(case), block)
    assert back.heads == (heads if heads > 1 else None)
    assert torch.equal(masks.to_block_layout(back, case["length"], block).expand_as(found), found)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(sized_trees(layers=False), st.integers(1, 7))
def test_to_block_layout_is_the_pooled_table(sized, block):
    length, mask = sized
    table = mask.dense(length)[0].float()
    missing = -length % block
    pooled = torch.nn.functional.max_pool2d(
        torch.nn.functional.pad(table, (0, missing, 0, missing)), block
    )
    layout = masks.to_block_layout(mask, length, block)
    assert torch.equal(layout, pooled.long())
    kept = masks.from_block_layout(layout, block).dense(length)[0]
    assert torch.equal(kept & table.bool(), table.bool())  # whole blocks keep as much or more


# -- NumPy -------------------------------------------------------------------------------------
@settings(max_examples=12)
@given(sized_trees())
def test_numpy_round_trip(sized):
    length, mask = sized
    array = masks.to_numpy(mask, length)
    assert array.dtype == np.bool_
    assert np.array_equal(array, mask.dense(length).numpy())
    assert torch.equal(masks.from_numpy(array).dense(length), mask.dense(length))


def test_from_numpy_takes_zeros_and_ones_and_leaves_them_alone():
    array = np.eye(3, dtype=np.int64)[::-1]
    array.setflags(write=False)
    assert torch.equal(masks.from_numpy(array).dense(3)[0, 0], torch.eye(3).flip(0) > 0)
    assert masks.from_numpy(np.eye(3)) == masks.table(np.eye(3) > 0)


# -- transformers' 4-D masks -------------------------------------------------------------------
@settings(max_examples=12)
@given(sized_trees(layers=False), st.sampled_from([torch.bool, torch.float32, torch.bfloat16]))
def test_4d_masks_are_the_dense_form_in_every_type(sized, dtype):
    length, mask = sized
    mask = mask | masks.window(0)
    made = masks.to_4d(mask, length, batch=3, dtype=dtype)
    assert made.shape == (3, mask.heads or 1, length, length)
    assert made.dtype == dtype
    kept = made if dtype == torch.bool else made == 0
    assert torch.equal(kept, mask.dense(length).expand_as(kept))
    assert dtype == torch.bool or made[~kept].eq(-torch.inf).all()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_rules_of_transformers(size):
    """Their functions of indices against our masks, and through `from_mask_mod`."""
    start = torch.zeros(2, dtype=torch.int64)
    for rule, mask in (
        (theirs.sliding_window_bidirectional_mask_function(size), masks.window(size)),
        (
            theirs.sliding_window_causal_mask_function(size),  # itself and size - 1 before it
            masks.window(size - 1) & masks.causal(),
        ),
        (theirs.chunked_causal_mask_function(size, start), masks.blocks(size) & masks.causal()),
        (
            theirs.and_masks(theirs.chunked_overlay(size, start), lambda b, h, q, k: q >= 0),
            masks.blocks(size),
        ),
        (theirs.causal_mask_function, masks.causal()),
    ):
        made = theirs.sdpa_mask(2, 13, 13, mask_function=rule, allow_is_causal_skip=False)
        assert torch.equal(made[:1], mask.dense(13))
        assert torch.equal(masks.from_mask_mod(rule, 13).dense(13), mask.dense(13))


TOKENS = torch.randint(5, 60, (2, 14), generator=torch.Generator().manual_seed(0))
PADDING = torch.ones(2, 14, dtype=torch.int64)
PADDING[0, 9:] = 0
PADDING[1, :3] = 0


def bert(kind="sdpa"):
    torch.manual_seed(0)
    config = BertConfig(**sizes(64, 32, 3, 2, 32), attn_implementation=kind)
    return BertModel(config).eval()


MASKS = [
    masks.window(2) | masks.global_tokens(positions=[4]),
    masks.per_head([masks.window(1), masks.blocks(5)]),
    masks.bigbird() & masks.causal(),
    masks.axial(2, 7),
    masks.window(0),
]


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: str(mask)[:30])
def test_a_model_given_the_4d_mask_equals_attach(mask):
    model = bert()
    ms.attach(model, mask)
    with torch.no_grad():
        wanted = model(input_ids=TOKENS, attention_mask=PADDING).last_hidden_state
    ms.detach(model)
    given = masks.to_4d(mask, 14, padding=PADDING)
    with torch.no_grad():
        found = model(input_ids=TOKENS, attention_mask=given).last_hidden_state
        eager = bert("eager")(
            input_ids=TOKENS,
            attention_mask=masks.to_4d(mask, 14, padding=PADDING, dtype=torch.float32),
        ).last_hidden_state
        dense = model(input_ids=TOKENS, attention_mask=PADDING).last_hidden_state
    tokens = PADDING.bool()
    assert torch.equal(found[tokens], wanted[tokens])
    assert torch.allclose(eager[tokens], wanted[tokens], atol=1e-5)
    assert torch.isfinite(eager).all()
    assert not torch.allclose(dense[tokens], wanted[tokens], atol=1e-3)


def test_a_decoder_given_the_4d_mask_equals_attach():
    torch.manual_seed(0)
    config = LlamaConfig(**sizes(64, 32, 2, 4, 32), num_key_value_heads=2)
    model = LlamaModel(config).eval()
    mask = masks.a_shape(1, 3)
    ms.attach(model, mask)
    with torch.no_grad():
        wanted = model(input_ids=TOKENS).last_hidden_state
    ms.detach(model)
    given = masks.to_4d(mask & masks.causal(), 14, batch=2)
    with torch.no_grad():
        found = model(input_ids=TOKENS, attention_mask=given).last_hidden_state
    assert torch.equal(found, wanted)


def test_padding_hides_keys_and_leaves_no_row_empty():
    made = masks.to_4d(masks.window(1), 14, padding=PADDING.bool())
    tokens = PADDING.bool()
    assert made.any(-1).all()
    kept = masks.window(1).dense(14) & tokens[:, None, None, :]
    assert torch.equal(made[:, 0][tokens], kept[:, 0][tokens])
    assert made[0, 0, 12].nonzero().tolist() == [[12]]


# -- FlexAttention -----------------------------------------------------------------------------
@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(sized_trees(layers=False))
def test_mask_mod_round_trip(sized):
    length, mask = sized
    heads = mask.heads or 1
    made = masks.from_mask_mod(mask.mask_mod(length), length, heads)
    assert torch.equal(made.dense(length, 1, heads), mask.dense(length))


# -- messages ----------------------------------------------------------------------------------
LAYERED = masks.per_layer([masks.full(), masks.window(1)])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: masks.to_block_layout(LAYERED, 8, 4), LayerCountError, "call masks.layer_of"),
        (lambda: masks.to_4d(LAYERED, 8), LayerCountError, "call masks.layer_of"),
        (lambda: masks.to_block_layout(masks.full(), 8, 0), ValueError, "block must be at least"),
        (lambda: masks.from_block_layout(np.full((2, 2), 2), 4), MaskFormatError,
         "a block layout holds 0 and 1, got values 2 to 2"),
        (lambda: masks.from_block_layout(np.ones((2, 3)), 4), MaskFormatError, r"got \[2, 3\]"),
        (lambda: masks.from_numpy(np.array([["a"]])), MaskFormatError, "a table is an array of 0"),
        (lambda: masks.from_numpy(None), MaskFormatError, "of 0 and 1, got None"),
        (lambda: masks.from_numpy(np.eye(2) * 0.5), MaskFormatError, "got values 0.0 to 0.5"),
        (lambda: masks.to_4d(masks.full(), 8, dtype=torch.int64), ValueError,
         "torch.bool or a fl"),
        (lambda: masks.to_4d(masks.full(), 8, batch=0), ValueError, "at least 1 example, got 0"),
        (lambda: masks.to_4d(masks.full(), 8, padding=torch.ones(2, 9)), ValueError,
         r"padding is \[batch, n\] = \[batch, 8\], got \[2, 9\]"),
        (lambda: masks.to_4d(masks.full(), 8, batch=3, padding=torch.ones(2, 8)), ValueError,
         r"= \[3, 8\], got \[2, 8\]"),
        (lambda: masks.to_4d(masks.shifts([3]), 8), EmptyRowError, "layer 0, head 0, row 5"),
        (lambda: masks.to_4d(masks.columns(1), 14, padding=PADDING), EmptyRowError,
         "example 1, head 0, row 3 keeps nothing but padding"),
    ],
)  # fmt: skip
def test_messages(build, error, message):
    with pytest.raises(error, match=message):
        build()
