"""measure_speed: dense and masked in turns, on a clock of its own; the model stays as it was."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError, LengthError
from masksearch.models.speed import take_turns, time_variants
from masksearch.sparsifier.ways import Way
from masksearch_decoders import kv_bytes

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 66}
CPU = torch.device("cpu")
LOCAL = masks.columns(2) | masks.window(4)


def bert() -> Any:
    return hf.BertModel(hf.BertConfig(**SIZES))


def llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, num_key_value_heads=1))


class Watch:
    """Notes the calls of a model and of its copies, and is a clock that each of them moves.

    Args:
        monkeypatch: Puts the clock in place.
        model: It hooks on this.
        seconds: What a call takes, by whether it is masked and by its number.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        model: nn.Module,
        seconds: Callable[[bool, int], float] = lambda masked, number: 1.0,
    ) -> None:
        self.calls: list[tuple[bool, int]] = []  # masked; tokens
        self.now = 0.0

        def note(module: nn.Module, args: Any, named: dict[str, Any]) -> None:
            assert not module.training
            masked = bool(ms.attached(module))
            self.calls.append((masked, named["input_ids"].shape[1]))
            self.now += seconds(masked, len(self.calls))

        model.register_forward_pre_hook(note, with_kwargs=True)
        monkeypatch.setattr("masksearch.models.speed.timer", lambda: self.now)


def test_dense_and_masked_take_turns_and_the_clock_is_theirs(monkeypatch, capsys):
    model = ms.attach(bert(), masks.window(2))
    watch = Watch(monkeypatch, model, lambda masked, number: 1.0 if masked else 1.5)
    [found] = ms.measure_speed(model, 24, batch=3, repeats=10)
    masked = [side for side, _ in watch.calls]
    assert len(masked) == 2 * (2 + 10)  # two of each are not counted
    pairs = list(zip(masked[::2], masked[1::2], strict=True))
    assert all(sorted(pair) == [False, True] for pair in pairs)
    assert pairs[2:] == [(False, True), (True, False)] * 5
    assert found.times_as_fast == [1.5] * 3
    assert found.rates == [3 * 24 / 1.5, 3 * 24]
    assert "about 25 s" in capsys.readouterr().err  # of 10 pairs


def test_a_slow_moment_moves_the_median_of_neither(monkeypatch):
    model = ms.attach(bert(), masks.window(2))
    Watch(monkeypatch, model, lambda masked, number: 50.0 if number in (7, 14) else 2.0)
    [found] = ms.measure_speed(model, 24, repeats=10, progress=False)
    assert found.times_as_fast == [1.0] * 3
    assert found.rates == [12.0, 12.0]


def test_rates_and_their_ratio_agree_where_runs_of_a_side_differ(monkeypatch):
    """Medians of both sides, taken apart, were on the other side of 1."""
    model = ms.attach(bert(), masks.window(2))
    took = {True: [2.0, 4.0, 10.0], False: [1.8, 3.9, 12.0]}  # by turn; pairs differ the other way
    turns = {True: 0, False: 0}

    def seconds(masked: bool, number: int) -> float:
        turns[masked] += 1
        return took[masked][turns[masked] % 3]

    Watch(monkeypatch, model, seconds)
    [found] = ms.measure_speed(model, 24, repeats=10, progress=False)
    dense, masked = found.rates
    assert masked / dense == pytest.approx(found.times_as_fast[1])


def test_a_full_mask_is_as_fast_and_nothing_is_said(monkeypatch, capsys):
    model = ms.attach(bert(), masks.full())
    Watch(monkeypatch, model)
    [found] = ms.measure_speed(model, 16, progress=False)
    assert found.times_as_fast == [1.0] * 3
    assert "no clear gain, 1.00 times as fast" in str(found)
    assert "peak memory: not measured" in str(found)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([1.06, 1.1, 1.13], "512 tokens: 1.10 times as fast (quartiles 1.06 to 1.13)"),
        ([0.98, 1.1, 1.2], "512 tokens: no clear gain, 1.10 times as fast"),
        ([0.8, 0.9, 0.97], "512 tokens: slower, 0.90 times as fast"),
    ],
)
def test_it_says_where_a_mask_does_not_pay(ratios, said, monkeypatch):
    model = ms.attach(bert(), masks.full())
    Watch(monkeypatch, model)
    [found] = ms.measure_speed(model, 16, repeats=10, progress=False)
    text = str(replace(found, length=512, times_as_fast=ratios))
    assert said in " ".join(text.split())


def test_a_decoder_generates_up_to_the_length_with_the_cache(monkeypatch):
    model = ms.attach(llama(), LOCAL)
    watch = Watch(monkeypatch, model, lambda masked, number: 2.0 if masked else 1.0)
    forward, found = ms.measure_speed(model, 40, batch=2, repeats=10, progress=False)
    assert (forward.work, found.work) == ("forward pass", "generation")
    assert (forward.rates, found.rates) == ([80.0, 40.0], [2.0, 1.0])
    for side in (False, True):
        tokens = [count for masked, count in watch.calls if masked == side]
        assert tokens[:12] == [40] * 12
        assert tokens[12:] == [28] + [1] * 12  # 40 in all
    counted = kv_bytes(LOCAL, model, 40)
    assert found.bytes == [counted.dense_bytes, counted.bytes]
    assert "cache: dense 10,240, masked 1,536 bytes" in " ".join(str(found).split())


@pytest.mark.parametrize("leaf", [masks.special_tokens(7), masks.same_token()], ids=str)
def test_a_decoder_whose_mask_follows_the_tokens_says_why_it_does_not_generate(leaf):
    model = ms.attach(llama(), LOCAL | leaf)
    with pytest.warns(UserWarning, match="generation is not timed: .* follows the tokens"):
        [found] = ms.measure_speed(model, 20, repeats=10, progress=False)
    assert found.work == "forward pass"


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_was(monkeypatch, fails):
    model = ms.attach(bert().train(), LOCAL)
    model.encoder.layer[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.encoder.layer[0].register_forward_pre_hook(lambda *_: 1 / 0 if fails else None)
    if fails:
        with pytest.raises(ZeroDivisionError):
            ms.measure_speed(model, 16, repeats=10, progress=False)
    else:
        ms.measure_speed(model, 16, repeats=10, progress=False)
        model(torch.ones(1, 16, dtype=torch.int64))[0].sum().backward()  # it still trains
    assert ms.attached(model) == {"self": LOCAL}
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def roberta() -> Any:
    return hf.RobertaModel(hf.RobertaConfig(**SIZES, pad_token_id=1))


SHORT = masks.table(torch.ones(9, 9) > 0)
TOO_LONG = "has 66 positions, asked for 67; use a length of at most 66"


@pytest.mark.parametrize(
    ("make", "mask", "settings", "error", "message"),
    [
        (bert, LOCAL, {"length": 67}, LengthError, TOO_LONG),
        (roberta, LOCAL, {"length": 65}, LengthError, "has 64 positions"),  # two are padding's
        (llama, LOCAL, {"length": 67}, LengthError, "at most 66"),
        (bert, SHORT, {"length": 10}, LengthError, "at most that many"),
        (bert, LOCAL, {"length": 0}, ValueError, "at least 1 position, got 0"),
        (bert, LOCAL, {"length": 9, "repeats": 9}, ValueError, "repeats must be .* >= 10, got 9"),
        (bert, LOCAL, {"length": 9, "batch": 0}, ValueError, "batch must be .* >= 1, got 0"),
        (bert, None, {"length": 9}, AttachError, "nothing is attached"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(make, mask, settings, error, message):
    model = make() if mask is None else ms.attach(make(), mask)
    model.register_forward_pre_hook(lambda *_: pytest.fail("it was run"))
    with pytest.raises(error, match=message):
        ms.measure_speed(model, progress=False, **settings)


def test_images_have_no_lengths():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.ViTConfig(**sizes, intermediate_size=8, image_size=16, patch_size=8)
    model = ms.attach(hf.ViTModel(config), masks.window(1))
    with pytest.raises(ValueError, match="ViTModel takes no input_ids"):
        ms.measure_speed(model, 5)


@pytest.mark.gpu
def test_on_a_card_each_side_has_a_peak():
    model = ms.attach(bert().cuda(), LOCAL)
    [found] = ms.measure_speed(model, 64)
    assert min(found.bytes) > sum(value.nbytes for value in model.state_dict().values())
    assert "not measured" not in str(found)


@pytest.mark.slow
def test_variants_are_timed_in_a_process_of_their_own_and_the_model_stays(capfd):
    """Each with batches of its own, and weights that another type does not change for others."""
    model = bert()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    ids = torch.arange(2 * 16).view(2, 16) % 9
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    variants = {
        "near": (partial(ms.attach, mask=masks.window(2)), batches),
        "short": (Way(dtype=torch.bfloat16).on, [{"input_ids": ids[:, :4]}] * 2),
    }
    found = time_variants(model, batches, variants, 4, CPU, "both")
    assert [*found] == ["near", "short"]
    assert all(0 < low <= middle <= high for low, middle, high in found.values())
    assert "both: about " in capfd.readouterr().err
    assert not ms.attached(model)
    assert all(part.equal(before[name]) for name, part in model.state_dict().items())


def test_every_other_turn_goes_backwards_and_warming_up_does_not_count():
    seen: list[str] = []
    calls = [[partial(seen.append, f"{name}{at}") for at in (1, 2)] for name in "ab"]
    times = take_turns([*calls, [partial(seen.append, "c1")]], 2)
    once = ["a1", "b1", "c1", "b2", "a2"]
    assert seen == once * 3
    assert [len(each) for each in times] == [2, 2, 2]
