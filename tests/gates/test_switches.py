"""Switches: their gradient against finite differences, and what is cut from them."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import masksearch as ms
from masksearch import Units, masks
from masksearch.contracts import Shape
from masksearch.gates.gates import Gates
from masksearch.gates.result import DamResult
from masksearch.strategies.build import build_strategy
from masksearch_decoders import CausalEvaluator

LENGTH, LAYERS, HEADS = 12, 2, 4
OPTIONS = ("window(1)", "window(3) | columns(1)", "full()")


def model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "initializer_range": 0.5}
    if kind == "decoder":
        places = {"n_positions": LENGTH, "n_embd": 16, "n_layer": LAYERS, "n_head": HEADS}
        made: Any = GPT2LMHeadModel(GPT2Config(**sizes, **places))
    else:
        width = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": HEADS}
        made = BertForMaskedLM(BertConfig(**sizes, **width, num_hidden_layers=LAYERS))
    return made.double().eval().requires_grad_(False)


def tokens(rows: int = 2) -> Tensor:
    return torch.randint(0, 11, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def loss(of: nn.Module) -> Tensor:
    """In float64, which transformers' own losses are not."""
    ids = tokens()
    return F.cross_entropy(of(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def switches(kind: str, per: str, options: tuple[str, ...] = OPTIONS, **more: Any) -> Gates:
    sizes = {"length": LENGTH, "layers": LAYERS, "heads": HEADS, "causal": kind == "decoder"}
    return Gates("switch", levels=options, unit=per, **sizes, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("per", "count"), [("layer", 1), ("kv_head", 2), ("head", HEADS)])
def test_units_of_a_layer_are_counted(per: str, count: int) -> None:
    levels = [masks.parse(text) for text in OPTIONS]
    units = Units(Shape(LENGTH, LAYERS, HEADS), levels, per, kv_heads=2)  # type: ignore[arg-type]
    assert units.units_per_layer * units.planes == HEADS
    assert units.units_per_layer == count
    assert len(units.names) == LAYERS * count


@pytest.mark.parametrize("per", ["layer", "head"])
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_gradient_is_that_of_switching(kind: str, per: str) -> None:
    judged, gates = model(kind), switches(kind, per)
    ms.attach(judged, gates)
    shape = gates.logits.shape
    source = torch.Generator().manual_seed(2)
    levels = torch.randint(0, shape[-1], shape[:2], generator=source)
    chosen = F.one_hot(levels, shape[-1]).double()
    gates.fixed = chosen.clone().requires_grad_(True)
    loss(judged).backward()
    learnt, step = gates.fixed.grad, 1e-6
    assert learnt.abs().max() > 1e-3
    for layer, unit, option in itertools.product(*map(range, shape)):
        moved = chosen.clone()
        moved[layer, unit] *= 1 - step
        moved[layer, unit, option] += step
        with torch.no_grad():
            gates.fixed = moved
            ahead = loss(judged)
            gates.fixed = 2 * chosen - moved
            slope = (ahead - loss(judged)) / (2 * step)
        assert learnt[layer, unit, option].item() == pytest.approx(slope.item(), abs=1e-7)
    gates.fixed = chosen
    under_gates = loss(judged)
    ms.detach(judged)
    ms.attach(judged, gates.units.mask(levels.flatten().tolist()))
    assert torch.equal(under_gates, loss(judged))


def test_samples_are_hard_and_their_density_is_counted() -> None:
    gates = switches("decoder", "head", initial=0.0)
    units = gates.units
    assert gates.probabilities().allclose(torch.full((LAYERS, HEADS, 3), 1 / 3))
    each = [mask.density(LENGTH, causal=True) for mask in units.levels]
    assert gates.whole_density().item() == pytest.approx(sum(each) / 3, rel=1e-5)
    gates.draw()
    assert torch.equal(gates.drawn.sum(-1), torch.ones(LAYERS, HEADS))
    drawn = units.mask(gates.drawn.argmax(-1).flatten().tolist())
    counted = (gates.drawn * gates.coverage).sum(-1).mean().item()
    assert counted == pytest.approx(drawn.density(LENGTH, causal=True), rel=1e-5)


def test_rows_that_nobody_reads_have_no_switch() -> None:
    options = ("star()", "full()")
    gates = switches("encoder", "head", options, read=1)
    assert len(gates.units.names) == HEADS * (LAYERS - 1)
    gates.logits.data[-1] = -9.0
    assert gates.entropy() < 1
    judged = model("encoder")
    ms.attach(judged, gates)
    loss(judged)


def shared_out(options: tuple[str, ...]) -> tuple[DamResult, Units]:
    """What random switches of a decoder's heads would leave."""
    gates = switches("decoder", "head", options)
    shape = (LAYERS, HEADS, len(options))
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = DamResult(logits.softmax(-1), (), 0.5, gates.arguments)
    assert result.units is not None
    return result, result.units


def test_a_cut_is_the_likeliest_allocation_of_its_cost() -> None:
    result, units = shared_out(OPTIONS[::2])
    likely = result.probabilities.double().log().flatten(0, 1)
    for count in range(9):
        best = max(
            (a for a in itertools.product((0, 1), repeat=8) if sum(a) == count),
            key=lambda a: likely[range(8), list(a)].sum().item(),
        )
        assert result.allocation(units.density(best)) == best
        assert result.allocation(units.density(best) + 0.01) == best


def test_several_windows_rise_together() -> None:
    result, units = shared_out(OPTIONS)
    before = result.allocation(units.least)
    assert before == (0,) * 8
    for density in torch.linspace(units.least, 1, 9).tolist():
        cut = result.allocation(density)
        assert units.density(cut) <= density + 1e-9
        assert all(high >= low for high, low in zip(cut, before, strict=True))
        before = cut
    assert before == (2,) * 8


def trained(**config: Any) -> tuple[DamResult, Gates]:
    gates = switches("decoder", "head")
    judged = model("decoder").float()
    ids = tokens(4)
    given = {"density": 0.6, "steps": 30, "gate_lr": 0.3, **config}
    return ms.dam(judged, [{"input_ids": ids, "labels": ids}] * 3, gates, ms.DamConfig(**given),
                  held_out=[{"input_ids": ids, "labels": ids}]), gates  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DAM")
def test_a_run_leaves_masks_a_card_and_a_file(tmp_path: Path) -> None:
    result, gates = trained()
    assert result.probabilities.shape == (LAYERS, HEADS, 3)
    assert result.density == pytest.approx(gates.whole_density().item(), rel=1e-4)
    assert result.density < 0.75
    mask = result.mask(sparsity=0.4)
    assert mask.density(LENGTH, causal=True) <= 0.6
    card = result.health()
    assert "loss, mask cut" in repr(card)
    assert card.diagonal is None
    assert {"relaxed", "sampled", "held_out", "discretised"} <= result.curve[-1].values.keys()
    again = DamResult.load(result.save(tmp_path / "gates.safetensors"))
    assert torch.equal(again.probabilities, result.probabilities)
    assert again.mask(sparsity=0.4) == mask
    assert again.units == result.units
    scores = again.units.read_scores(tmp_path / "gates.safetensors") if again.units else {}
    chances = result.probabilities.double().log()
    worth = (chances - chances[..., :1]).flatten(0, 1).tolist()
    assert [*scores.values()] == [pytest.approx(each) for each in worth]


@pytest.mark.filterwarnings("ignore:DAM")
def test_messages(tmp_path: Path) -> None:
    result, _ = trained(steps=4)
    path = result.save(tmp_path / "gates.safetensors")
    refused = (
        (lambda: Gates("switch", length=4, heads=1), "give both or neither"),
        (lambda: Gates(length=4, heads=1, levels=OPTIONS), "give both or neither"),
        (lambda: switches("decoder", "head", form="log"), "a switch has no form of its own"),
        (lambda: switches("decoder", "head", OPTIONS[:1]), "two masks or more"),
        (lambda: switches("decoder", "head", OPTIONS[::-1]), "keeps less than any other"),
        (lambda: result.mask(threshold=0.3),
         "choose whole masks, so mask.. takes their sparsity alone"),
        (lambda: result.mask(sparsity=0.9), r"lowest mask, window\(1\), the density is 0.2949"),
        (lambda: trained(density=0.1), r"density is 0.2949, asked for 0.1; ask for more"),
        (lambda: trained(control="sum"), "a switch has none; use 'hinge'"),
        (lambda: result.health(others=[result]), "measured for gates of edges"),
        (lambda: Units(Shape(LENGTH, 1, HEADS), result.units.levels).read_scores(path),
         "2 x 4 x 3; the units are heads among .* 1 x 4 x 3"),
    )  # fmt: skip
    for call, words in refused:
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ms.errors.EmptyRowError, match="keeps no key"):
        switches("decoder", "head", ("columns(1) - window(0)", "full()"))


def test_levels_as_texts_are_read_back() -> None:
    table = masks.table(torch.ones(4, 4).tril() > 0)
    levels = (masks.window(1) & table, table | masks.columns(1), masks.full())
    gates = Gates("switch", levels=levels, length=4, heads=2)
    again = Gates(**gates.arguments)
    assert again.units.levels == levels
    with pytest.raises(ms.errors.MaskFormatError, match=r"two masks or more, .* got one"):
        Gates("switch", levels="full()", length=4, heads=2)


@pytest.mark.parametrize("unit", ["layer", "kv_head"])
def test_densities_are_shares_of_the_cache_where_that_is_asked_for(unit, tmp_path):
    judge = CausalEvaluator("recall", size="3x32x4", architecture="qwen3", kv_heads=2)
    counts = "kv_bytes" if unit == "layer" else "kv_bytes_per_head"
    options = ("window(7)", "window(15) | columns(2)", "full()")
    gates = {"structure": "switch", "levels": options, "unit": unit}
    given: dict[str, Any] = {"gates": gates, "cost": counts, "densities": (0.3, 0.6)}
    made: Any = build_strategy("dam", None, judge, seed=0, run=tmp_path, options=given)
    units = made.units
    assert made.cut.counts == counts
    assert units.least == pytest.approx(7 / 56)
    source = torch.Generator().manual_seed(0)
    for _ in range(4):
        levels = torch.randint(0, 3, (len(units.names),), generator=source).tolist()
        share = judge.measures_of(units.mask(levels))[counts]
        assert units.density(levels) == pytest.approx(share)
    sizes = {"length": 56, "heads": 4, "layers": 3, "causal": True}
    bank = Gates(**made.gates, **sizes)
    assert bank.units == units
    assert Gates(**bank.arguments).units == units
    with pytest.raises(ValueError, match=r"lowest mask, window.7., the density is 0.125,"):
        made.units.refuse_less(0.1)
    with pytest.raises(ms.errors.SearchError, match="is what switches cost"):
        build_strategy("dam", None, judge, seed=0, run=tmp_path, options={"cost": counts})
