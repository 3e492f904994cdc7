"""Importance of positions, and controls for a diagonal that is left out."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from attention_oracles import StandIn
from tiny_encoders import seeded, sizes
from torch import Tensor

from masksearch import Mask, Shape, attach, attached, detach, importance, masks
from masksearch.analysis.stats import estimate
from masksearch.errors import AttachError, LengthError, NonFiniteLossError, UnknownNameError
from masksearch.gates.gates import Gates
from masksearch.masks.measure import effective_density
from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.positions.analysis import diagonal_controls
from tests.positions.conftest import HEADS, LAYERS, LENGTH, bert, biased, random_batches

with_and_without_a_bias = pytest.mark.parametrize("make", [bert, biased])


def loss_of(model, batch):
    with torch.no_grad():
        return model(**batch).loss.item()


def handwritten(model, batch, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """BERT's loss computed from its weights, P scaled by `[layers, heads, n, n]`; `bias` is added
    to the scores, `[layers, batch, heads, n, n]`."""
    body = model.bert
    x = body.embeddings(batch["input_ids"])
    hidden = batch["attention_mask"][:, None, None, :] == 0
    for layer, block in enumerate(body.encoder.layer):
        attention, n = block.attention, x.shape[1]
        query, key, value = (
            part(x).view(len(x), n, HEADS, -1).transpose(1, 2)
            for part in (attention.self.query, attention.self.key, attention.self.value)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores = scores if bias is None else scores + bias[layer]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1) * scale[layer]
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        x = attention.output.LayerNorm(attention.output.dense(mixed) + x)
        inner = F.gelu(block.intermediate.dense(x))
        x = block.output.LayerNorm(block.output.dense(inner) + x)
    return F.cross_entropy(model.cls(x).flatten(0, 1), batch["labels"].flatten())


def test_gradient_matches_autograd_on_a_handwritten_attention(model):
    batches = random_batches(2)
    found = importance(model, batches)
    expected = []
    for batch in batches:
        scale = torch.ones(LAYERS, HEADS, LENGTH, LENGTH, requires_grad=True)
        loss = handwritten(model, batch, scale)
        assert loss.item() == pytest.approx(loss_of(model, batch), rel=1e-5)
        expected.append(-torch.autograd.grad(loss, scale)[0])
    both = torch.stack(expected)
    torch.testing.assert_close(found.values, both.mean(0), rtol=1e-4, atol=1e-7)
    assert importance(model, batches[:1]).diagonal.low.isnan().all()  # one has no interval
    assert found.batches == 2


def test_fisher_is_the_mean_square_of_each_sequences_own_slope(model):
    batches = random_batches(2)
    batches[0]["attention_mask"][:, -2:] = 0
    found = importance(model, batches, method="fisher")
    scale, expected = torch.ones(LAYERS, HEADS, LENGTH, LENGTH), []
    for batch in batches:
        rows = len(batch["input_ids"])
        bias = torch.zeros(LAYERS, rows, HEADS, LENGTH, LENGTH, requires_grad=True)
        own = rows * torch.autograd.grad(handwritten(model, batch, scale, bias), bias)[0]
        real = batch["attention_mask"][:, None, :, None] * batch["attention_mask"][:, None, None]
        expected.append((own.square() * real).mean(1))
    torch.testing.assert_close(found.values, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-12)
    assert (found.values >= 0).all()


def test_a_bias_on_the_scores_is_kept():
    """Against attention that is written out, with a factor on every weight."""
    model, [batch] = biased(), random_batches(1)
    found = importance(model, [batch])
    attach(model, scaled := StandIn(torch.ones(LAYERS, HEADS, LENGTH, LENGTH, dtype=torch.bool)))
    model(**batch).loss.backward()
    torch.testing.assert_close(found.values, -scaled.factors.grad, rtol=1e-4, atol=1e-7)


@with_and_without_a_bias
def test_flip_is_the_gradient_of_open_gates(make):
    model, batch = make(), random_batches(1)[0]
    found = importance(model, [batch], method="flip")
    gates = Gates("free", length=LENGTH, heads=HEADS, layers=LAYERS, form="flip")
    gates.deterministic = True
    attach(model, gates)
    model.eval()
    gates.draw()
    gates.drawn.retain_grad()
    drawn = gates.drawn
    gates.draw = lambda: None
    model(**batch).loss.backward()
    detach(model)
    torch.testing.assert_close(found.values, -drawn.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["gradient", "flip"])
def test_pools_are_sums_and_sizes_bound_signed_effects(model, method):
    batches = random_batches(3)
    by_head = importance(model, batches, method=method, special={"token": 4})
    by_layer = importance(model, batches, method=method, per="layer", special={"token": 4})
    whole = importance(model, batches, method=method, per="model", special={"token": 4})
    torch.testing.assert_close(by_head.values.sum(1, keepdim=True), by_layer.values)
    torch.testing.assert_close(by_layer.values.sum(0, keepdim=True), whole.values)
    offsets, keys = whole.by_offset, whole.by_key
    torch.testing.assert_close(offsets.mean.sum(-1), whole.values.sum((-2, -1)))
    torch.testing.assert_close(keys.mean, whole.values.sum(-2))
    torch.testing.assert_close(
        whole.special["token"].mean, by_head.special["token"].mean.sum().view(1, 1)
    )
    sizes = importance(model, batches, method=method, signed=False)
    assert (sizes.values >= by_head.values.abs() - 1e-7).all()
    assert not sizes.signed


def test_padding_has_no_importance_and_no_cells(model):
    for batch in (batches := random_batches(2)):
        batch["attention_mask"][:, -2:] = 0
        batch["labels"][:, -2:] = -100
    for method in ("gradient", "flip", "fisher", "drop"):
        found = importance(model, batches, method=method, per="model")
        assert found.by_key.mean[..., -2:].abs().max() == 0, method
        assert found.by_key.cells[-2:].sum() == 0, method
        assert found.by_offset.one(LENGTH - 1).mean.abs().max() == 0, method
        lengths = [n for batch in batches for n in batch["attention_mask"].sum(1).tolist()]
        assert found.by_key.cells.sum().item() == pytest.approx(
            sum(n * n for n in lengths) / len(lengths)
        )


@pytest.mark.parametrize("method", ["gradient", "flip", "fisher", "drop"])
def test_padded_queries_have_no_importance_even_where_they_are_scored(model, method):
    batch = random_batches(1)[0]
    batch["attention_mask"][:, -2:] = 0
    batch["labels"][:, -2:] = 5
    found = importance(model, [batch], method=method, per="model", keys=[])
    assert found.by_offset.one(1 - LENGTH).mean.abs().max() == 0  # the last query, padded
    assert found.by_offset.one(3 - LENGTH).mean.abs().max() > 0


@with_and_without_a_bias
def test_drop_is_the_loss_under_a_table_mask(make):
    model, batches = make(), random_batches(3)
    found = importance(model, batches, method="drop", per="model", offsets=[-2, 0], keys=[1])
    position = torch.arange(LENGTH)
    column = (position == 1).expand(LENGTH, LENGTH)
    for kept, unit in [
        (position[None] - position[:, None] != -2, found.by_offset.one(-2)),
        (~torch.eye(LENGTH, dtype=torch.bool), found.diagonal),
        (~column, found.by_key.one(1)),
    ]:
        effects = []
        for batch in batches:
            before = loss_of(model, batch)
            attach(model, masks.table(kept))
            effects.append(loss_of(model, batch) - before)
            detach(model)
        wanted = estimate(effects)
        assert unit.mean.item() == pytest.approx(wanted.value, abs=1e-5)
        assert unit.low.item() == pytest.approx(wanted.low, abs=1e-5)
        assert unit.high.item() == pytest.approx(wanted.high, abs=1e-5)
    assert found.by_offset.at == (-2, 0)
    assert found.values is None


@pytest.mark.parametrize("per", ["layer", "head"])
def test_drop_in_one_layer_or_head(model, per):
    batch = random_batches(1)[0]
    found = importance(model, [batch], method="drop", per=per, offsets=[0], keys=[])
    assert found.diagonal.mean.shape == (LAYERS, HEADS if per == "head" else 1)
    open_, without = masks.full(), masks.without_diagonal(masks.full())
    heads = [open_, open_, without] if per == "head" else [without] * HEADS
    attach(model, masks.per_layer([open_, masks.per_head(heads)]))
    under = loss_of(model, batch)
    detach(model)
    effect = found.diagonal.mean[1, -1].item()
    assert effect == pytest.approx(under - loss_of(model, batch), abs=1e-5)


def test_special_tokens_are_found_wherever_they_stand(model):
    batch = random_batches(1)[0]
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == 5, 6)
    batch["input_ids"][0, 4] = batch["input_ids"][1, 2] = batch["input_ids"][1, 0] = 5
    batch["input_ids"][2, 6] = 5  # a padded position
    found = importance(model, [batch], method="drop", per="model", special={"five": 5})
    kept = torch.ones(3, LENGTH, LENGTH, dtype=torch.bool)
    kept[0, :, 4] = kept[1, :, 2] = kept[1, :, 0] = False
    losses, scored = 0.0, 0
    for b in range(3):  # the mean over tokens, put together from single sequences
        single = {name: tensor[b : b + 1] for name, tensor in batch.items()}
        attach(model, masks.table(kept[b]))
        count = int((single["labels"] != -100).sum())
        losses, scored = losses + count * loss_of(model, single), scored + count
        detach(model)
    expected = losses / scored - loss_of(model, batch)
    assert found.special["five"].mean.item() == pytest.approx(expected, abs=1e-5)
    assert found.special_cells["five"] == pytest.approx((7 + 2 * 5 + 0) / 3)
    gradient = importance(model, [batch], special={"five": 5})
    first = {name: tensor[:1] for name, tensor in batch.items()}
    share = (first["labels"] != -100).sum() / (batch["labels"] != -100).sum()
    alone = importance(model, [first], special={"five": 5}, keys=[4])
    torch.testing.assert_close(alone.special["five"].mean, alone.by_key.one(4).mean)
    second = {name: tensor[1:2] for name, tensor in batch.items()}
    part = (second["labels"] != -100).sum() / (batch["labels"] != -100).sum()
    other = importance(model, [second], keys=[0, 2]).by_key.mean.sum(-1)
    together = alone.special["five"].mean * share + other * part
    torch.testing.assert_close(gradient.special["five"].mean, together, rtol=1e-3, atol=1e-6)


def test_flip_and_gradient_rank_offsets_as_dropping_does_where_effects_are_small():
    model = bert(spread=0.12)
    batches = random_batches(2, size=16, padded=False)
    exact = importance(model, batches, method="drop", per="model").by_offset.mean.flatten()
    flip = importance(model, batches, method="flip", per="model").by_offset.mean.flatten()
    assert torch.corrcoef(torch.stack([exact, flip]))[0, 1] > 0.9
    large = exact.abs() > exact.abs().median()
    assert torch.equal(exact[large] > 0, flip[large] > 0)


@pytest.mark.parametrize("method", ["gradient", "flip", "drop"])
def test_the_model_is_left_as_it_was(model, method):
    star = masks.per_layer([masks.star(), masks.window(2)])
    attach(model, star)
    batches = random_batches(2)
    model.train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    model(**batches[0]).loss.backward()
    grads = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
    names = set(dict(model.named_modules()))
    model.eval()
    before = loss_of(model, batches[0])
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    importance(model, batches, method=method, keys=[0], offsets=[0], per="model")
    assert [module.training for module in model.modules()] == modes
    assert list(attached(model).values()) == [star]
    assert set(dict(model.named_modules())) == names
    for name, parameter in model.named_parameters():
        assert parameter.grad is grads[name][0]
        assert torch.equal(parameter.grad, grads[name][1])
    model.eval()
    assert loss_of(model, batches[0]) == before
    detach(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_mask_on_the_model_is_studied_under():
    model = MaskedLanguageModel(encoder("2x16x2", 13, LENGTH, seed=0), seed=0)
    attach(model, masks.window(1))
    batches = random_batches(2, padded=False)
    found = importance(model, batches)
    outside = ~masks.window(1).dense(LENGTH)[0, 0]
    assert found.values[..., outside].abs().max() == 0
    assert found.values[..., ~outside].abs().min() > 0
    dropped = importance(model, batches, method="drop", per="model", keys=[0])
    assert dropped.by_offset.one(3).mean.abs().max() == 0
    assert dropped.by_key.cells.tolist() == [2]


def test_a_causal_model_has_no_importance_ahead():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 13, "n_positions": LENGTH, "n_embd": 12, "n_layer": 2, "n_head": 3}
    model = seeded(lambda: GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.5)), 0)
    batches = random_batches(2, padded=False)
    ahead = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    for method in ("gradient", "flip"):
        values = importance(model, batches, method=method).values
        assert values[..., ahead].abs().max() == 0
        assert values[..., LENGTH - 2, :3].abs().min() > 0
    found = importance(model, batches, method="drop", per="model", keys=[])
    assert found.by_offset.one(1).mean.item() == 0
    cells = dict(zip(found.by_offset.at, found.by_offset.cells.tolist(), strict=True))
    assert cells[0] == cells[-1] == LENGTH - 1  # row 0 has no other key


def test_a_position_that_one_head_sees_is_no_padding(model):
    batch, last = random_batches(1, padded=False)[0], LENGTH - 1
    batch["attention_mask"] = torch.ones(3, HEADS, LENGTH, LENGTH, dtype=torch.bool)
    batch["attention_mask"][:, 1:, :, last] = False
    values = importance(model, [batch]).values
    assert values[:, 1:, :, last].abs().max() == 0
    assert values[:, 1:, last, :last].abs().min() > 0


def test_a_layer_that_is_called_twice_adds_up():
    from transformers import AlbertConfig, AlbertForMaskedLM

    config = AlbertConfig(
        **sizes(13, 12, 2, 3, 16, LENGTH, initializer_range=0.3), embedding_size=8
    )
    model = seeded(lambda: AlbertForMaskedLM(config), 0)
    batches = random_batches(1)
    found = importance(model, batches, offsets=[1])
    assert found.values.shape[0] == 1
    drop = importance(model, batches, method="drop", per="model", offsets=[1])
    torch.testing.assert_close(drop.by_offset.cells, found.by_offset.cells)
    attach(model, scaled := Tilted())
    loss = model(**batches[0]).loss
    slope = torch.autograd.grad(loss, scaled.tilt)[0]
    detach(model)
    torch.testing.assert_close(found.by_offset.one(1).mean.sum(), -slope)


class Tilted(torch.nn.Module):
    """Attention whose weights on the next position are multiplied by `tilt`."""

    length, layers, heads = LENGTH, 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.tilt = torch.nn.Parameter(torch.ones(()))

    def draw(self) -> None:
        pass

    def attend(self, layer, call):
        scores = call.query @ call.key.transpose(-1, -2) * call.scaling
        weights = scores.masked_fill(~call.visible, -torch.inf).softmax(-1)
        following = torch.ones(LENGTH - 1).diag(1)
        return (weights * (1 + following * (self.tilt - 1))) @ call.value


def test_frozen_weights_have_the_same_gradient(model):
    batches = random_batches(1)
    expected = importance(model, batches).values
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(importance(model, batches).values, expected)


def test_frame_names_what_is_pooled(model):
    frame = importance(model, random_batches(2), per="layer", keys=[0], special={"t": 4}).frame()
    assert set(frame["layer"]) == {0, 1}
    assert set(frame["head"]) == {"all"}
    assert len(frame) == LAYERS * (2 * LENGTH - 1 + 1 + 1)
    row = frame[(frame["kind"] == "offset") & (frame["unit"] == 2) & (frame["layer"] == 0)]
    assert row["low"].item() < row["mean"].item() < row["high"].item()


def test_figures_fit_a_line_and_one_number_reads_as_one(model):
    found = importance(model, random_batches(2), per="model", special={"t": 4})
    assert len(repr(found)) <= 240
    said = f"Importance(gradient, per model, {LENGTH} positions, 2 batches, loss {found.loss:.4g};"
    assert repr(found).startswith(said)
    mean, low, high = (part.item() for part in found.diagonal)
    assert float(found.diagonal) == mean
    assert repr(found.diagonal) == f"{mean:.3g} [{low:.3g}, {high:.3g}]"
    alone = importance(model, random_batches(1), per="model").diagonal
    assert repr(alone) == f"{float(alone):.3g}"  # one batch has no interval
    each = importance(model, random_batches(1)).diagonal
    least, most = each.mean.min().item(), each.mean.max().item()
    assert repr(each) == f"{LAYERS} x {HEADS} means, {least:.3g} to {most:.3g}"
    assert "tensor" not in repr(found.by_offset)
    with pytest.raises((RuntimeError, ValueError), match="6 elements"):
        float(each)


def test_per_cell_divides_by_pairs(model):
    profile = importance(model, random_batches(2, padded=False), per="model").by_offset
    single = profile.per_cell()
    torch.testing.assert_close(single.one(5).mean * 2, profile.one(5).mean)
    with pytest.raises(KeyError, match="99 was not measured; known: -6"):
        profile.one(99)


def test_messages(model):
    batches = random_batches(1)
    short = {name: tensor[:, :5] for name, tensor in batches[0].items()}
    empty = {**batches[0], "labels": torch.full((3, LENGTH), -100)}
    wordless = {"inputs_embeds": torch.zeros(3, LENGTH, 12), "labels": batches[0]["labels"]}
    for given, options, error, said in (
        (batches, {"method": "gradients"}, UnknownNameError, "did you mean 'gradient'"),
        (batches, {"per": "row"}, UnknownNameError, "resolution"),
        (batches, {"offsets": [7]}, ValueError, r"offsets .* lie in -6 \.\. 6, got 7"),
        (batches, {"keys": [-1]}, ValueError, r"keys .* lie in 0 \.\. 6, got -1"),
        (itertools.cycle(batches), {}, ValueError, "may be endless; pass list"),
        ([], {}, ValueError, "got none"),
        (batches, {"method": "drop", "signed": False}, ValueError, "signed=False"),
        ([*batches, short], {}, LengthError, "first one, 7 positions, got 5 .*pad the batches"),
        ([empty], {}, NonFiniteLossError, "loss of batch 0 is nan"),
        ([wordless], {"special": {"[CLS]": 1}}, ValueError, "found by their ids"),
    ):
        with pytest.raises(error, match=said):
            importance(model, given, **options)
    assert not attached(model)
    attach(model, Gates(length=LENGTH, heads=HEADS))
    with pytest.raises(AttachError, match="carries trainable gates"):
        importance(model, batches)


# -- controls of the diagonal --------------------------------------------------------------------
@pytest.mark.parametrize("length", [2, 24, 128])
@pytest.mark.parametrize("seed", [0, 1, 10**12])
def test_every_control_drops_one_key_of_each_row(length, seed):
    found = diagonal_controls(draws=4, seed=seed)
    assert list(found) == ["full", "without diagonal", *(f"without random {k}" for k in range(4))]
    for name, mask in found.items():
        dropped = (~mask.dense(length)).sum(-1)
        assert torch.equal(dropped, torch.full_like(dropped, name != "full")), name
    off = ~torch.eye(length, dtype=torch.bool)
    assert torch.equal(found["without diagonal"].dense(length)[0, 0], off)


def test_random_controls_differ_and_repeat():
    first, again = diagonal_controls(seed=3), diagonal_controls(seed=3)
    assert first == again
    assert len(set(first.values())) == 5
    assert first["without random 0"] != diagonal_controls(seed=4)["without random 0"]
    assert all(Mask.from_json(mask.to_json()) == mask for mask in first.values())
    assert all(masks.parse(str(mask)) == mask for mask in first.values())


def test_random_keys_are_spread_evenly():
    tables = [m.dense(32)[0, 0] for n, m in diagonal_controls(200).items() if "random" in n]
    dropped = (~torch.stack(tables)).float().mean(0)
    assert dropped.diagonal().mean().item() == pytest.approx(1 / 32, abs=0.01)
    assert dropped.mean(0).std() < 0.01


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        diagonal_controls(draws=0)


@pytest.mark.slow
def test_padded_controls_drop_as_many_real_pairs_as_the_diagonal():
    shape = Shape(64, 1, 1, lengths={7: 2, 12: 9, 20: 30, 31: 12, 44: 5, 61: 1})
    for seed in range(5):
        found = diagonal_controls(draws=2, seed=seed, shape=shape)
        kept = [effective_density(mask, shape) for mask in found.values()]
        assert kept[1:] == pytest.approx([kept[1]] * 3, abs=0.005)
        assert kept[1] < 0.97
    assert diagonal_controls(seed=1, shape=Shape(64, 1, 1)) == diagonal_controls(seed=1)
    with pytest.raises(ValueError, match="a decoder's first query has no other key"):
        diagonal_controls(shape=Shape(8, 1, 1, causal=True))
