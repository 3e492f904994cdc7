"""Encoders on a card, pretended or real: training under masks, each kernel, and DAM mix no
devices, and their values are the CPU's."""

import pytest
import torch
import transformers as hf

import masksearch as ms
from masksearch import masks
from masksearch.gates import gates as gates_module
from masksearch.gates.gates import Gates

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
    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 40}
    counts = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain |= {"tie_word_embeddings": False}  # the pretended card tells tied weights apart
    config = hf.BertConfig(**sizes, **counts, **plain, max_position_embeddings=LENGTH)
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
