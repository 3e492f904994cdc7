"""Models on a card, pretended or real: no operation mixes devices, and values are the CPU's."""

import json
from pathlib import Path

import cloudpickle
import pytest
import torch
import transformers as hf
from tiny_decoder import tiny_decoder, written_text
from tiny_encoders import sizes
from transformers import AutoModelForCausalLM

import masksearch as ms
from masksearch import masks
from masksearch.gates import gates as gates_module
from masksearch.gates.gates import Gates
from masksearch_decoders import allocate
from masksearch_decoders.causal import CausalEvaluator
from masksearch_decoders.folder import nats

# -- decoders ------------------------------------------------------------------------------------
WORDS = [f"w{number}" for number in range(12)]
HOW = [{"kl": True}, {"adapt": "recover", "recover_tokens": 512}]
FORMS = [(None, "window(3)"), ("tune", "columns(1) | window(3)")]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of 3 layers, and its text."""
    folder = tmp_path_factory.mktemp("decoder")
    narrow = {"num_hidden_layers": 3, "initializer_range": 0.05, "max_position_embeddings": 96}
    tiny_decoder(folder / "model", [*WORDS, "="], **narrow)
    written_text(folder / "model", folder / "text", [*WORDS, "="])
    return folder


@pytest.fixture
def place(decoder, monkeypatch) -> Path:
    """The working folder, which holds them."""
    monkeypatch.setenv("MASKSEARCH_CACHE", str(decoder / "cache"))
    monkeypatch.chdir(decoder)
    return decoder


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
def test_judged_rows_stay_on_the_card(how, tmp_path, card, place):
    values = []
    few = {"length": 24, "held_out_sequences": 8, "batch": 4, "precision": "float32"}
    for device in ("cpu", card.device.type):
        judge = CausalEvaluator("text", weights="model", device=device, **few, **how)
        with card.there():
            reports = judge(masks.window(3) | masks.columns(2), seed=0, workdir=tmp_path / device)
            values.append([report.values for report in reports])
    for one, other in zip(*values, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("sinks", "local"), FORMS)
def test_allocate_writes_its_folder_from_the_card(sinks, local, precision, tmp_path, card, place):
    out = tmp_path / "served"
    engine = {"serve": "transformers", "sinks": sinks, "out": out, "precision": precision}
    with card.there():
        plan = allocate(
            *("model", "text", 0.6),
            **{"length": 72, "sequences": 4, "local": local, "method": "restore", "trials": 2},
            **{"run": tmp_path / "run", "device": card.device.type, "progress": None} | engine,
        )
        tried = json.loads((out / "serving.json").read_text())["tried"]  # opened on the CPU
        assert tried["nats"] == pytest.approx(tried["expected"], abs=0.02)
        assert plan.found["served"]["losses"]["served"] > 0


# -- encoders, their kernels, and DAM ------------------------------------------------------------
LENGTH, LAYERS, HEADS = 24, 2, 2
MASKS = {
    "dense": masks.full(),
    "window": masks.window(2),
    "star": masks.star(),
    "table": masks.table(masks.window(2).dense(LENGTH)[0, 0] | torch.eye(LENGTH).flip(0).bool()),
    "blocks": masks.blocks(8) | masks.global_tokens(1),
    "random keys": masks.bigbird(2, 1, 2),
    "heads": masks.per_head([masks.star(), masks.full()]),
    "layers": masks.per_layer([masks.window(1), masks.strided()]),
}


def encoder() -> hf.BertForMaskedLM:
    torch.manual_seed(0)
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain |= {"tie_word_embeddings": False}  # the pretended card tells tied weights apart
    config = hf.BertConfig(**sizes(40, 16, LAYERS, HEADS, 32, LENGTH, **plain))
    return hf.BertForMaskedLM(config).eval()


def batch(number: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 40, (3, LENGTH), generator=torch.Generator().manual_seed(number))
    padded = torch.ones_like(ids)
    padded[0, 18:] = 0
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": padded}


def moved(data: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: each.to(device) for name, each in data.items()}


def gradients(model: torch.nn.Module) -> torch.Tensor:
    """Those of the layers, on the CPU."""
    return torch.cat([each.grad.cpu().flatten() for each in model.bert.encoder.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize("name", MASKS)
def test_each_kernel_computes_and_learns_there(name, backend, card):
    model = encoder()
    ms.attach(model, MASKS[name], backend=backend)
    loss = model(**batch()).loss
    loss.backward()
    here = gradients(model)
    model.zero_grad()
    with card.there():
        model.to(card.device)
        there = model(**moved(batch(), card.device)).loss
        there.backward()
        assert there.device.type == card.device.type
        assert there.item() == pytest.approx(loss.item(), rel=1e-5)
        assert torch.allclose(gradients(model), here, atol=1e-6)
        with pytest.raises(card.mixed):
            model(**batch())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DAM")  # which says that six steps are few
@pytest.mark.parametrize("structure", ["free", "toeplitz"])
def test_dam_learns_there(structure, card, monkeypatch):
    rand = torch.rand
    monkeypatch.setattr(gates_module.Gates, "noise_generator", lambda *_: torch.default_generator)
    monkeypatch.setattr(torch, "rand", lambda *of, device, **rest: rand(*of, **rest).to(device))
    results = []
    for device in (torch.device("cpu"), card.device):
        gates = Gates(structure, length=LENGTH, heads=HEADS, layers=LAYERS)
        config = ms.DamConfig(steps=6, density=0.3, dense_warmup=0.3)
        with card.there():
            model = encoder().to(device)
            torch.manual_seed(1)
            result = ms.dam(model, [batch(k) for k in range(6)], gates, config)
            results.append([report.values["loss"] for report in result.curve])
    assert results[0] == pytest.approx(results[1], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MASKS)
def test_compiled_training_is_that_of_the_card(name):
    model, found = encoder().cuda(), []
    given = moved(batch(), torch.device("cuda"))
    ms.attach(model, MASKS[name])
    for compiled in (False, True):
        if compiled:
            torch._dynamo.reset()
            model.bert.compile(dynamic=False)
        model.zero_grad()
        loss = model(**given).loss
        loss.backward()
        found.append([loss.detach().cpu(), gradients(model)])
    for eager, other in zip(*found, strict=True):
        assert torch.allclose(eager, other, atol=1e-5)


@pytest.mark.slow
def test_a_proxy_is_trained_and_judged_there(tmp_path, card):
    text = tmp_path / "text.txt"
    text.write_text(
        "\n".join(f"the {n % 7} of {n % 5} is {n % 3} and {n} more" for n in range(900))
    )
    values = []
    for device in ("cpu", card.device.type):
        small = {"size": "2x16x2", "length": 16, "vocabulary": 64, "steps": 6, "batch": 4}
        judge = ms.MlmEvaluator(text, **small, split="all", device=device)
        with card.there():
            reports = judge(masks.star(), seed=0, workdir=tmp_path / device)
            values.append([report.values["loss"] for report in reports])
    assert values[0] == pytest.approx(values[1], rel=1e-3)
