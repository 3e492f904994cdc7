"""Decoders with random weights and stored ones, and logits that are made in pieces."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_checkpoint import tiny_checkpoint
from tiny_decoder import letter_decoder, tiny_decoder
from tiny_encoders import weights_come_from_the_seed
from tiny_gguf import FULL, LLAMA3, NEAR, SAME, SLIDE, build, tokenizer_folder
from transformers import AutoModel, AutoModelForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig

import masksearch as ms
from masksearch import masks
from masksearch.errors import LengthError
from masksearch_decoders import decoders, to_gguf
from masksearch_decoders.decoders import LayerStates, NextTokenModel, decoder, open_decoder
from masksearch_decoders.next_tokens import score_tokens

DECODERS = ("llama", "qwen3", "gpt2")
WORDS = [f"w{number}" for number in range(30)]
TOKENS = torch.randint(31, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", DECODERS)
def test_random_weights_come_from_the_seed_alone(kind: str) -> None:
    weights_come_from_the_seed(lambda seed: decoder(kind, "2x16x2", 40, 24, seed=seed))
    made = decoder(kind, "2x16x2", 40, 24, seed=1).eval()
    assert made(torch.arange(24)[None]).logits.shape == (1, 24, 40)


def test_key_value_heads_are_shared_among_queries() -> None:
    made = decoder("qwen3", "2x32x4", 40, 24, seed=1, kv_heads=2)
    assert made.config.num_key_value_heads == 2
    assert ms.attach(made, masks.window(3))
    for wrong, kind in ((3, "llama"), (0, "llama"), (2, "gpt2")):
        with pytest.raises(ValueError, match="kv_heads"):
            decoder(kind, "2x32x4", 40, 24, seed=1, kv_heads=wrong)
    with pytest.raises(ms.errors.UnknownNameError, match="llama"):
        decoder("lama", "2x32x4", 40, 24, seed=1)
    with pytest.raises(ValueError, match="even number wide"):
        decoder("llama", "2x10x2", 40, 24, seed=1)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_stored_decoder_is_described_and_read_back(kind: str, tmp_path: Path) -> None:
    stored = open_decoder(tiny_decoder(tmp_path, WORDS, kind=kind))
    assert stored.shape(48) == ms.Shape(48, 2, 4, causal=True)
    assert (stored.vocabulary, stored.positions, stored.architecture) == (31, 64, kind)
    with pytest.raises(LengthError, match="64 positions"):
        stored.shape(65)
    with pytest.raises(ms.errors.DataError, match=r"32 ids, .* embeds 31"):
        stored.check_tokens(32)
    model = stored.decoder()
    logits = [model(TOKENS).logits, stored.decoder()(TOKENS).logits]
    assert torch.equal(*logits)
    assert not model.training


@pytest.mark.parametrize("head", [True, False])
def test_an_encoder_is_refused(tmp_path: Path, head: bool) -> None:
    folder = tiny_checkpoint(tmp_path, WORDS)
    if not head:
        AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ms.errors.DataError, match=r"'bert' is not a decoder .* MlmEvaluator"):
        open_decoder(tmp_path)


@pytest.mark.parametrize("kind", DECODERS)
def test_pieces_have_the_logits_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = decoder(kind, "2x16x2", 31, 24, seed=1).eval()
    model = NextTokenModel(body)
    assert model.plain
    monkeypatch.setattr(decoders, "HELD", 31 * 7)  # of seven tokens
    features = model.features(TOKENS).flatten(0, 1)
    parts = [*model.pieces(features)]
    assert max(part.stop - part.start for part in parts) == 7
    logits = torch.cat([model.logits(features[part]) for part in parts])
    assert torch.allclose(logits, body(TOKENS).logits.flatten(0, 1), atol=1e-5)


def test_the_loss_is_that_of_transformers() -> None:
    body = decoder("llama", "2x16x2", 31, 24, seed=1).eval()
    labels = TOKENS.clone()
    labels[:, :5] = -100
    theirs = body(TOKENS, labels=labels).loss
    assert NextTokenModel(body)(TOKENS, labels).loss.item() == pytest.approx(theirs.item(), 1e-5)


def test_a_head_that_scales_its_logits_is_still_right(tmp_path: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 2, "intermediate_size": 16, "vocab_size": 31}
    body = GraniteForCausalLM(GraniteConfig(**small, logits_scaling=8.0)).eval()
    model = NextTokenModel(body)
    assert not model.plain
    assert torch.allclose(model.logits(model.features(TOKENS)), body(TOKENS).logits)


def test_learning_from_dense_predictions_ends_at_them() -> None:
    model = NextTokenModel(decoder("llama", "2x16x2", 31, 24, seed=1)).eval()
    other = NextTokenModel(decoder("llama", "2x16x2", 31, 24, seed=2)).eval()
    own = model(TOKENS, TOKENS, target=model.features(TOKENS)).loss
    far = model(TOKENS, TOKENS, target=other.features(TOKENS)).loss
    assert abs(own.item()) < 1e-6
    assert far > 0.001
    logits, wanted = torch.randn(5, 7), torch.randn(5, 7)
    oracle = F.kl_div(logits.log_softmax(-1), wanted.softmax(-1), reduction="none").sum(-1)
    assert torch.allclose(decoders.divergence(logits, wanted), oracle, atol=1e-5)


# -- hidden states of lower layers that are computed once for several masks ----------------------
LAYERS = 6
LOCAL = masks.window(2) | masks.columns(1)


@pytest.fixture(params=["llama", "qwen3", "gpt2"])
def layered(request, tmp_path):
    named = {"n_layer": LAYERS} if request.param == "gpt2" else {"num_hidden_layers": LAYERS}
    folder = tiny_decoder(tmp_path / "d", list("abcdef"), kind=request.param, **named)
    return NextTokenModel(AutoModelForCausalLM.from_pretrained(folder).eval())


def judge_all(model, several, tokens, states=None):
    found = []
    for mask in several:
        ms.attach(model, mask)
        if states == "made":
            states = LayerStates(model, tokens.numel())
        found.append(score_tokens(model, tokens, states=states).nll)
        ms.detach(model)
    return found, states


def leave_one_out():
    full = [masks.full()] * LAYERS
    return [masks.full(), *(masks.per_layer([*full[:k], LOCAL, *full[k + 1 :]]) for k in range(6))]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [1 << 30, 3 * 4 * 128 * 8 * 32])  # all layers; every second
def test_scores_are_those_without_reuse_bit_for_bit(layered, kept, monkeypatch):
    monkeypatch.setattr(decoders, "KEPT_BYTES", kept)
    tokens = torch.randint(0, 7, (128, 8), generator=torch.Generator().manual_seed(0))
    heads = masks.per_head([masks.full(), LOCAL, LOCAL, masks.full()])
    other = masks.per_layer([*[masks.full()] * 4, heads, LOCAL])
    several = [*leave_one_out(), LOCAL, other, masks.full(), masks.full()]
    plain, _ = judge_all(layered, several, tokens)
    reused, states = judge_all(layered, several, tokens, "made")
    assert states.every == (1 if kept == 1 << 30 else 2)
    assert all(torch.equal(a, b) for a, b in zip(plain, reused, strict=True))
    assert states.computed < 0.8 * len(several) * LAYERS


def test_leaving_one_layer_out_computes_little_more_than_half(layered):
    tokens = torch.ones(2, 8, dtype=torch.int64)
    _, states = judge_all(layered, leave_one_out(), tokens, "made")
    runs = states.computed - LAYERS  # beside the dense pass
    assert runs == 6 + 6 + 5 + 4 + 3 + 2  # of 36


@pytest.mark.slow
def test_an_interrupted_pass_leaves_nothing_wrong(layered, monkeypatch):
    tokens = torch.randint(0, 7, (1024, 8), generator=torch.Generator().manual_seed(1))
    dense, local, *_ = leave_one_out()
    (wanted, other), states = judge_all(layered, [dense, local], tokens, "made")
    features, calls = NextTokenModel.features, []

    def fail(self, given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return features(self, given)

    monkeypatch.setattr(NextTokenModel, "features", fail)
    with pytest.raises(KeyboardInterrupt):
        judge_all(layered, [dense], tokens, states)
    monkeypatch.setattr(NextTokenModel, "features", features)
    ms.detach(layered, missing_ok=True)
    assert len(calls) == 2
    (again, last), _ = judge_all(layered, [dense, local], tokens, states)
    assert torch.equal(again, wanted)
    assert torch.equal(last, other)


def test_layers_that_share_keys_with_lower_ones_are_not_reused():
    config = Gemma3nTextConfig(
        vocab_size=11, vocab_size_per_layer_input=11, hidden_size=16, intermediate_size=16,
        num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        hidden_size_per_layer_input=4, laurel_rank=2, num_kv_shared_layers=2,
        layer_types=["full_attention"] * 4, activation_sparsity_pattern=[0.0] * 4,
        max_position_embeddings=32,
    )  # fmt: skip
    model = NextTokenModel(Gemma3nForCausalLM(config).eval())
    ms.attach(model, masks.full())
    assert not LayerStates(model, 8).layers


# -- GGUF files ----------------------------------------------------------------------------------
@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_cannot_be_read_says_why(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ms.errors.DataError, match=r"no such file: .*none\.gguf"):
        open_decoder(tmp_path / "none.gguf")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(
        ms.errors.DataError, match=r"cannot read this GGUF file .*pip install gguf accel"
    ):
        open_decoder(path)
    assert not [each for each in cache.iterdir() if each.is_dir() and each.suffix == ""]


@pytest.mark.slow
def test_a_llama_is_read_by_transformers(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    folder = letter_decoder(tmp_path / "made", "abcdefgh=") / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    path = to_gguf(model, tmp_path / "tiny.gguf", tokenizer=folder)
    stored = open_decoder(path)
    assert open_decoder(str(path)) == stored  # converted once
    assert sorted(each.suffix for each in cache.iterdir()) == ["", ".lock"]
    assert stored.shape(16) == ms.Shape(16, 3, 4, causal=True)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(stored.decoder()(ids).logits, model.eval()(ids).logits, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "dropped"),
    [
        ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}, "1 of its 39 tensors"),
        ("llama, all", {"rope_parameters": SAME}, "28 of its 67 tensors"),  # biases
        ("llama, linear", {}, "positions that are scaled by 4"),
        ("qwen2, yarn", {}, "positions that are scaled by 4"),
        (
            "gemma3",
            {"rope_parameters": {FULL: SAME, SLIDE: NEAR}},
            "the base 5000 of positions in",
        ),
    ],
)
def test_a_file_that_transformers_reads_in_part_is_refused(
    name: str, changes: dict[str, Any], dropped: str, cache: Path, tmp_path: Path
) -> None:
    model, folder = build(name, **changes), tokenizer_folder(tmp_path / "tokens", "gpt-2")
    path = to_gguf(model, tmp_path / "model.gguf", tokenizer=folder)
    with pytest.raises(ms.errors.DataError, match=f"{dropped}.* give the folder with config"):
        open_decoder(path)
    assert not [each for each in cache.iterdir() if each.is_dir() and each.suffix == ""]
