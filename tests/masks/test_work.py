"""The work that is left once dead tokens are left out: laws, a loop, and counted operations."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import HEADS, LAYERS, token_masks, trees
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import BertConfig, BertForSequenceClassification

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Shape
from masksearch.errors import LayerCountError, TokensNeededError
from masksearch.masks.live import work

LENGTH, HIDDEN, INNER = 5, 8, 20
SIZES = {"hidden_size": HIDDEN, "intermediate_size": INNER}
CLS, SEP = 1, 2
TEXTS = st.lists(
    st.lists(st.sampled_from([CLS, SEP, 7, 8]), min_size=1, max_size=LENGTH),
    min_size=1,
    max_size=4,
)
IDS = st.lists(st.sampled_from([CLS, 7, 9]), min_size=1, max_size=2)
MASKS = token_masks(LENGTH, IDS.map(masks.special_tokens) | IDS.map(masks.token_columns))


def shape_of(texts, read):
    """The shape of these texts."""
    tokens = torch.tensor([text + [-1] * (LENGTH - len(text)) for text in texts])
    return Shape(LENGTH, LAYERS, HEADS, lengths=Counter(map(len, texts)), read=read,
                 tokens=tokens, **SIZES)  # fmt: skip


def loop(mask, texts, read):
    """The work by a loop over texts, layers, heads, queries and keys."""
    left = dense = 0
    for text in texts:
        n, needed = len(text), set(range(min(read or LENGTH, len(text))))
        ids = torch.tensor([text + [-1] * (LENGTH - n)])
        for layer in reversed(range(LAYERS)):
            single = mask.of_layer(layer) | masks.window(0)  # which makes no token live
            table = single.table(ids) if single.needs_tokens else single.dense(LENGTH)
            after = len(needed)
            needed |= {k for h in table[0] for q in needed for k in range(n) if h[q, k]}
            before = len(needed)
            left += after * (2 * HIDDEN**2 + 2 * HIDDEN * INNER) + before * 2 * HIDDEN**2
            left += 2 * after * before * HIDDEN
            dense += n * (4 * HIDDEN**2 + 2 * HIDDEN * INNER) + 2 * n * n * HIDDEN
    return left / dense


@pytest.mark.slow
@settings(max_examples=60)
@given(trees(LENGTH), TEXTS, st.none() | st.integers(1, LENGTH))
def test_work_is_that_of_a_loop(mask, texts, read):
    assert work(mask, shape_of(texts, read)) == pytest.approx(loop(mask, texts, read))


@pytest.mark.slow
@settings(max_examples=40)
@given(MASKS, TEXTS, st.none() | st.integers(1, LENGTH))
def test_work_of_what_follows_the_tokens_is_that_of_a_loop(mask, texts, read):
    mask |= masks.window(0)
    assert work(mask, shape_of(texts, read)) == pytest.approx(loop(mask, texts, read))


@given(TEXTS, st.integers(1, LENGTH))
def test_all_of_a_dense_model_is_one(texts, read):
    shape = shape_of(texts, None)
    assert work(masks.full(), shape) == work(masks.window(0), shape) == 1
    assert work(masks.full(), replace(shape, layers=1, read=LENGTH)) == 1
    assert 0 < work(masks.window(0), shape_of(texts, read)) <= 1


def test_padding_is_no_work_and_texts_count_by_their_tokens():
    late = masks.per_layer([masks.full(), masks.columns(2)])
    shape = Shape(64, 2, 1, read=1, **SIZES)
    assert work(late, replace(shape, lengths={4: 7})) == work(late, replace(shape, length=4))
    one, two = (Shape(n, 2, 1, read=1, **SIZES) for n in (4, 60))
    both = work(late, replace(shape, lengths={4: 3, 60: 1}))
    dense = [n * (2 * HIDDEN + INNER) + n * n for n in (4, 60)]
    mean = (3 * dense[0] * work(late, one) + dense[1] * work(late, two)) / (
        3 * dense[0] + dense[1]
    )
    assert both == pytest.approx(mean)


def attention_flops(query, key, value, *_, **settings):
    """Those of torch's fused attention on a CPU, which it does not count itself."""
    return sdpa_flop_count(query, key, value)


FUSED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
WORDS = [masks.token_columns(ids) for ids in ([CLS, 7, 9], [CLS])]


@pytest.mark.parametrize(
    "layers",
    [
        [masks.full()] * 3,
        [masks.full(), masks.columns(6), masks.columns(1)],
        [masks.columns(positions=range(0, 12, 2)), masks.columns(1), masks.star()],
        [masks.full(), *WORDS],
    ],
    ids=str,
)
def test_work_is_that_of_a_model_that_leaves_dead_tokens_out(layers):
    length, mask = 12, masks.per_layer(layers)
    config = BertConfig(vocab_size=12, num_hidden_layers=3, num_attention_heads=2, **SIZES)
    model = BertForSequenceClassification(config).eval()
    ids = torch.tensor([[CLS, *(3 + i % 9 for i in range(length - 2)), SEP]])

    def flops():
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
            model(ids, attention_mask=torch.ones_like(ids))
        return sum(counter.get_flop_counts()[f"{type(model).__name__}.bert.encoder"].values())

    dense = flops()
    linear = length * (4 * HIDDEN**2 + 2 * HIDDEN * INNER)
    assert dense == 2 * 3 * (linear + 2 * length**2 * HIDDEN)
    ms.attach(model, mask, drop_tokens=True)
    shape = Shape(length, 3, 2, read=1, tokens=ids, **SIZES)
    assert flops() / dense == pytest.approx(work(mask, shape))


def test_sizes_are_no_part_of_what_a_shape_equals():
    plain = Shape(8, 2, 2, read=1)
    sized = replace(plain, **SIZES)
    assert sized == plain
    assert hash(sized) == hash(plain)
    assert repr(sized) == repr(plain)
    assert sized.to_dict() == plain.to_dict()


@pytest.mark.parametrize(
    ("mask", "change", "error", "message"),
    [
        (masks.full(), {"hidden_size": None}, ValueError,
         r"give Shape\(\.\., hidden_size=, intermediate_size=\) .*, got None and 20"),
        (masks.full(), {"intermediate_size": None}, ValueError, "got 8 and None"),
        (masks.per_layer([masks.full()] * 3), {}, LayerCountError, "has 3 layers, asked for 2"),
        (masks.token_columns([1]), {}, TokensNeededError, "has cells only where input ids"),
    ],
)  # fmt: skip
def test_messages(mask, change, error, message):
    with pytest.raises(error, match=message):
        work(mask, replace(Shape(8, 2, 2, read=1, **SIZES), **change))


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_whole_numbers(name):
    for value in (0, 1.5, "8"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number >= 1"):
            Shape(8, 2, 2, **{name: value})
