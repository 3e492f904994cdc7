"""Decoders on a card, pretended or real: no operation mixes devices, and values are the CPU's."""

import json
from pathlib import Path

import cloudpickle
import pytest
import torch
from tiny_decoder import tiny_decoder, written_text
from transformers import AutoModelForCausalLM

import masksearch as ms
from masksearch import masks
from masksearch.evaluators.causal import CausalEvaluator
from masksearch_serve.folder import nats

WORDS = [f"w{number}" for number in range(12)]
HOW = [{"kl": True}, {"adapt": "recover", "recover_tokens": 512}]
FORMS = [(None, "window(3)"), ("tune", "columns(1) | window(3)")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of 3 layers, and its text."""
    folder = tmp_path_factory.mktemp("decoder")
    narrow = {"num_hidden_layers": 3, "initializer_range": 0.05, "max_position_embeddings": 96}
    tiny_decoder(folder / "model", [*WORDS, "="], **narrow)
    written_text(folder / "model", folder / "text", [*WORDS, "="])
    return folder


@pytest.fixture(autouse=True)
def cache(place, monkeypatch):
    monkeypatch.setenv("MASKSEARCH_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)


def test_the_card_computes_what_the_cpu_does_and_refuses_its_tensors(place, card):
    model, tokens = AutoModelForCausalLM.from_pretrained("model").eval(), torch.arange(1, 13)[None]
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    with card.there():
        model.to(card.device)
        there = model(tokens.to(card.device), labels=tokens.to(card.device)).loss
        there.backward()
        assert there.device == model.lm_head.weight.grad.device
        assert there.device.type == card.device.type
        assert there.item() == pytest.approx(loss.item(), rel=1e-5)
        assert torch.allclose(model.lm_head.weight.grad.cpu(), gradient, atol=1e-6)
        assert nats(model, tokens[0]) == pytest.approx(loss.item(), rel=1e-5)
        with pytest.raises(card.mixed, match=r"embedding|same device"):
            model(tokens)


def test_precision_is_that_of_the_machine_once_and_for_all(monkeypatch):
    def precisions(cards: bool, able: bool, **settings: str) -> list[str]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cards)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
        made = [kind("text", length=24, **settings) for kind in (CausalEvaluator, ms.MlmEvaluator)]
        cards = able = not cards  # on another machine, such as that of a worker
        data = cloudpickle.dumps(made)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: not cards)  # in a worker
        return [each.precision for each in cloudpickle.loads(data)]

    assert precisions(False, False) == ["float32", "float32"]
    assert precisions(False, False, precision="bfloat16") == ["bfloat16", "bfloat16"]
    assert precisions(False, False, device="cuda") == ["float32", "float32"]  # of a worker
    assert precisions(True, True) == ["bfloat16", "float32"]
    assert precisions(True, True, device="cpu") == ["float32", "float32"]
    assert precisions(True, True, precision="float32") == ["float32", "float32"]
    assert precisions(True, False) == ["float32", "float32"]
    with pytest.raises(ValueError, match=r"capability 8\.0 or more, got Tesla T4; take"):
        precisions(True, False, precision="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_judged_rows_stay_on_the_card(how, tmp_path, card):
    values = []
    sizes = {"length": 24, "held_out_sequences": 8, "batch": 4, "precision": "float32"}
    for device in ("cpu", card.device.type):
        judge = CausalEvaluator("text", weights="model", device=device, **sizes, **how)
        with card.there():
            reports = judge(masks.window(3) | masks.columns(2), seed=0, workdir=tmp_path / device)
            values.append([report.values for report in reports])
    for one, other in zip(*values, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("sinks", "local"), FORMS)
def test_allocate_writes_its_folder_from_the_card(sinks, local, precision, tmp_path, card):
    out = tmp_path / "served"
    engine = {"serve": "transformers", "sinks": sinks, "out": out, "precision": precision}
    with card.there():
        plan = ms.allocate(
            *("model", "text", 0.6),
            **{"length": 72, "sequences": 4, "local": local, "method": "restore", "trials": 2},
            **{"run": tmp_path / "run", "device": card.device.type, "progress": None} | engine,
        )
        tried = json.loads((out / "serving.json").read_text())["tried"]  # opened on the CPU
        assert tried["nats"] == pytest.approx(tried["expected"], abs=0.02)
        assert plan.found["served"]["losses"]["served"] > 0
