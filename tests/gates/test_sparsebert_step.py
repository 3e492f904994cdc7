"""One step of the published search on a tiny BERT, derived again without the package."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch import attach, detach
from masksearch.gates.sparsebert import PublishedGates, published_penalty
from masksearch.training.lamb import Lamb

N, HEADS, WIDTH = 8, 2, 4


def gate_of(structure: str, i: int, j: int) -> int:
    pairs = [(a, b) for a in range(N) for b in range(a + 1)]
    return abs(i - j) if structure == "toeplitz" else pairs.index((max(i, j), min(i, j)))


def tiny_bert() -> Any:
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=16,
        max_position_embeddings=N,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForPreTraining(config).double().train()


def batch() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 40, (3, N), generator=source)
    labels = torch.where(torch.rand(3, N, generator=source) < 0.4, ids.roll(1), -100)
    labels[:, 1] = ids[:, 0]
    mask = torch.ones(3, N, dtype=torch.long)
    mask[1, 6:] = 0
    return {
        "input_ids": ids,
        "token_type_ids": (torch.arange(N) >= 4).long().expand(3, N),
        "attention_mask": mask,
        "labels": labels,
        "next_sentence_label": torch.tensor([0, 1, 1]),
    }


def own_forward(w: dict[str, Tensor], data: dict[str, Tensor], mask: Tensor) -> Tensor:
    """MLM + NSP of BERT under the mask `[heads, n, n]`, written out."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return unit * w[f"{name}.weight"] + w[f"{name}.bias"]

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)

    top = "bert.embeddings"
    words = w[f"{top}.word_embeddings.weight"]
    types = w[f"{top}.token_type_embeddings.weight"][data["token_type_ids"]]
    x = words[data["input_ids"]] + w[f"{top}.position_embeddings.weight"] + types
    x = norm(x, f"{top}.LayerNorm")
    for layer in range(2):
        name = f"bert.encoder.layer.{layer}"
        own = f"{name}.attention.self"
        q, k, v = (split(linear(x, f"{own}.{part}")) for part in ("query", "key", "value"))
        scores = q @ k.transpose(-1, -2) / 2 + (1 - mask) * -10000.0
        scores = scores.masked_fill(data["attention_mask"][:, None, None] == 0, -torch.inf)
        context = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        after = f"{name}.attention.output"
        x = norm(x + linear(context, f"{after}.dense"), f"{after}.LayerNorm")
        inner = F.gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    head = "cls.predictions"
    hidden = norm(F.gelu(linear(x, f"{head}.transform.dense")), f"{head}.transform.LayerNorm")
    open_chance = (hidden @ words.T + w[f"{head}.bias"]).log_softmax(-1)
    known = data["labels"] >= 0
    mlm = -open_chance[known].gather(1, data["labels"][known][:, None]).mean()
    pooled = linear(x[:, 0], "bert.pooler.dense").tanh()
    pair = linear(pooled, "cls.seq_relationship").log_softmax(-1)
    return mlm - pair.gather(1, data["next_sentence_label"][:, None]).mean()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("structure", ["toeplitz", "symmetric"])
def test_whole_step_matches_derivation_by_hand(structure: Any, seed: int):
    penalty, rate = 0.01, 6e-3
    model, data = tiny_bert(), batch()
    gates = PublishedGates(structure, length=N, heads=HEADS, seed=seed)
    with torch.no_grad():  # far enough from the start that the two logits differ
        gates.logits.normal_(generator=torch.Generator().manual_seed(seed))
    logits = gates.logits.detach().double().clone()
    weights = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    source = torch.Generator()
    source.set_state(gates.noise_generator(torch.device("cpu")).get_state())

    # ours
    attach(model, gates)
    loss = model(**data).loss + published_penalty(gates, penalty)
    groups = [
        {"params": [p for k, p in weights_of(model) if p.ndim > 1]},
        {"params": [p for k, p in weights_of(model) if p.ndim == 1], "weight_decay": 0.0},
        {"params": [gates.logits], "weight_decay": 0.0},
    ]
    optimiser = Lamb(groups, lr=rate)
    loss.backward()
    optimiser.step()
    detach(model)

    # by hand: noise, soft and hard sample, mask
    noise = torch.empty(1, HEADS, logits.shape[2], 2).exponential_(generator=source)[0].double()
    z = logits[0] - torch.log(noise + 1e-5)
    soft = z[..., 0].exp() / z.exp().sum(-1)
    place = torch.tensor([[gate_of(structure, i, j) for j in range(N)] for i in range(N)])
    mask = (soft >= 0.5).double()[:, place].requires_grad_()
    task = own_forward(weights, data, mask)
    task.backward()
    assert gates.drawn is not None
    assert torch.equal(gates.drawn[0].double(), mask)
    assert loss.item() == pytest.approx(task.item() + penalty * mask.sum().item(), rel=1e-6)

    # straight-through: every edge adds to its gate; d soft / d logits = +-soft (1 - soft)
    assert mask.grad is not None
    by_edge = mask.grad + penalty * (mask.detach() > 0)
    by_gate = torch.zeros_like(soft).index_add(1, place.flatten(), by_edge.flatten(1))
    slope = by_gate * soft * (1 - soft)
    gradient = torch.stack([slope, -slope], -1)
    assert (gradient != 0).any()
    assert (mask.sum(-1) > 0).all()  # so that closed gates get nothing
    assert (gradient[soft < 0.5] == 0).all()
    assert gates.logits.grad is not None
    torch.testing.assert_close(gates.logits.grad[0].double(), gradient, rtol=1e-5, atol=1e-5)

    # LAMB's first step: the moments' corrections cancel, and m / sqrt(v) is the sign of g
    everything = [gradient, *map(weight_gradient, weights.values())]
    clip = max(1.0, math.sqrt(sum(float(g.square().sum()) for g in everything)))
    assert clip > 1
    g = gradient / clip
    want = logits[0] - rate * g / (g.abs() + 1e-6)
    torch.testing.assert_close(gates.logits.detach()[0].double(), want, rtol=1e-5, atol=1e-6)
    after = dict(model.named_parameters())
    for name, weight in weights.items():
        before, g = weight.detach(), weight_gradient(weight) / clip
        update = g / (g.abs() + 1e-6)
        if before.ndim > 1:
            update = update + 0.01 * before
            update = update * before.norm() / update.norm()
        torch.testing.assert_close(
            after[name].detach(), before - rate * update, rtol=1e-5, atol=1e-6, msg=name
        )


def weights_of(model: Any) -> list[tuple[str, Tensor]]:
    return [(k, p) for k, p in model.named_parameters() if "masksearch_gates" not in k]


def weight_gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def test_copy_of_a_model_with_gates_samples_for_itself():
    model = attach(tiny_bert(), PublishedGates(length=N, heads=HEADS))
    twin = copy.deepcopy(model)
    first, second = (m(**batch()).loss for m in (model, twin))
    torch.testing.assert_close(first, second)
