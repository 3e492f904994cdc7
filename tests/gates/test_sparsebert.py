import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoders import seeded, sizes
from torch import Tensor

from masksearch import DamConfig, attach, detach
from masksearch.attention.call import AttentionCall
from masksearch.errors import UnknownNameError
from masksearch.gates.gates import Gates
from masksearch.gates.sparsebert import PublishedGates, published_penalty
from masksearch.training.lamb import Lamb

N, HEADS, WIDTH = 8, 2, 4
SCALING = WIDTH**-0.5
STRUCTURES = ["toeplitz", "symmetric"]


def with_logits(logits: Tensor, structure: str = "toeplitz") -> PublishedGates:
    """Gates whose chance of an edge is sigmoid of the given `[heads, gates]`."""
    gates = PublishedGates(structure, length=N, heads=logits.shape[0])  # type: ignore[arg-type]
    with torch.no_grad():
        gates.logits.zero_()
        gates.logits[0, :, :, 0] = logits
    return gates


def opened(*offsets: int) -> PublishedGates:
    """Rounded gates of one head that are open at these distances."""
    logits = torch.full((1, N), -50.0)
    logits[0, list(offsets)] = 50.0
    gates = with_logits(logits)
    gates.deterministic = True
    gates.draw()
    return gates


def sample(gates: Gates) -> Tensor:
    assert gates.drawn is not None
    return gates.drawn


def calls(seed: int = 0, heads: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(2, heads, N, WIDTH, generator=source, dtype=torch.float64) for _ in range(3)
    )
    return query, key, value


def attend(gates: Gates, *tensors: Tensor, visible: Tensor | None = None) -> Tensor:
    query, key, value = tensors
    return gates.attend(0, AttentionCall(query, key, value, visible=visible, scaling=SCALING))


def dense(*tensors: Tensor) -> Tensor:
    query, key, value = tensors
    return (query @ key.transpose(-1, -2) * SCALING).softmax(-1) @ value


def gate_of(structure: str, i: int, j: int) -> int:
    pairs = [(a, b) for a in range(N) for b in range(a + 1)]
    return abs(i - j) if structure == "toeplitz" else pairs.index((max(i, j), min(i, j)))


# -- the gates -------------------------------------------------------------------------------
@pytest.mark.parametrize(("structure", "count"), [("toeplitz", 128), ("symmetric", 8256)])
def test_first_logits_are_small_noise_from_the_seed(structure: Any, count: int):
    gates = PublishedGates(structure, length=128, heads=12)
    logits = gates.logits.detach()
    assert logits.shape == (1, 12, count, 2)
    assert logits.std().item() == pytest.approx(1e-3, rel=0.05)
    assert abs(logits.mean().item()) < 1e-4
    torch.testing.assert_close(PublishedGates(structure, length=128, heads=12).logits, logits)
    other = PublishedGates(structure, length=128, heads=12, seed=1).logits
    assert (other != logits).all()


@pytest.mark.parametrize("structure", STRUCTURES)
@given(seed=st.integers(0, 2**31))
def test_sample_is_gumbel_argmax_of_the_edges_gate(structure: str, seed: int):
    source = torch.Generator().manual_seed(seed)
    gates = PublishedGates(structure, length=N, heads=HEADS, seed=seed)  # type: ignore[arg-type]
    with torch.no_grad():
        gates.logits.normal_(generator=source)
    source.set_state(gates.noise_generator(torch.device("cpu")).get_state())
    noise = torch.empty(gates.logits.shape).exponential_(generator=source)
    gates.draw()
    drawn = sample(gates)
    assert drawn.shape == (1, HEADS, N, N)
    for head in range(HEADS):
        scores = (gates.logits[0, head].double() - (noise[0, head].double() + 1e-5).log()).tolist()
        for i in range(N):
            for j in range(N):
                first, second = scores[gate_of(structure, i, j)]
                assert drawn[0, head, i, j].item() == float(first >= second)


def test_eval_mode_samples_too_and_only_deterministic_rounds():
    gates = PublishedGates(length=N, heads=HEADS).eval()
    seen = set()
    for _ in range(5):
        gates.draw()
        seen.add(sample(gates).detach().numpy().tobytes())
    assert len(seen) > 1
    gates.train()
    gates.deterministic = True
    for _ in range(2):
        gates.draw()
        want = (gates.logits[..., 0] >= gates.logits[..., 1]).float()
        torch.testing.assert_close(sample(gates), gates.table(want))


def test_tie_is_open():
    gates = with_logits(torch.zeros(1, N))
    gates.deterministic = True
    gates.draw()
    assert (sample(gates) == 1).all()


def test_arguments_rebuild_the_gates():
    gates = PublishedGates("symmetric", length=N, heads=HEADS, seed=5)
    again = PublishedGates(**gates.arguments)
    torch.testing.assert_close(again.logits, gates.logits, atol=0, rtol=0)
    assert again.arguments == {"structure": "symmetric", "length": N, "heads": HEADS, "seed": 5}


# -- the traps -------------------------------------------------------------------------------
def test_fully_masked_row_is_dense_attention_yet_counts_as_empty():
    gates = opened()
    assert published_penalty(gates).item() == 0
    assert gates.density().item() == pytest.approx(0.0)
    torch.testing.assert_close(attend(gates, *calls()), dense(*calls()), atol=1e-9, rtol=0)


def test_only_the_rows_out_of_reach_of_open_offsets_become_dense():
    output = attend(opened(6), *calls())  # |i - j| = 6 exists for rows 0, 1 and 6, 7 alone
    _, _, value = calls()
    torch.testing.assert_close(output[:, :, 2:6], dense(*calls())[:, :, 2:6], atol=1e-9, rtol=0)
    for row, key in ((0, 6), (1, 7), (6, 0), (7, 1)):
        torch.testing.assert_close(output[:, :, row], value[:, :, key])


def test_closed_edge_learns_from_the_task_in_empty_rows_only():
    gates = opened(6)
    gate = sample(gates).detach().requires_grad_()
    gates.drawn = gate
    attend(gates, *calls()).square().sum().backward()
    closed = gate.detach()[0, 0] == 0
    empty = torch.tensor([False] * 2 + [True] * 4 + [False] * 2)[:, None]
    assert (gate.grad[0, 0][closed & ~empty] == 0).all()
    assert (gate.grad[0, 0][closed & empty] != 0).all()


def test_padding_is_exact_here_and_leaks_in_the_published_sum():
    query, key, value = calls()
    gates = opened(7)  # row 0 may only look at key 7
    visible = torch.ones(1, 1, N, N, dtype=torch.bool)
    visible[..., 6:] = False  # which is padding
    ours = attend(gates, query, key, value, visible=visible)
    scores = query @ key.transpose(-1, -2) * SCALING
    torch.testing.assert_close(
        ours[:, :, 0], dense(query[:, :, :1], key[:, :, :6], value[:, :, :6])[:, :, 0], atol=1e-9,
        rtol=0,
    )  # fmt: skip
    published = scores + (1 - visible.double()) * -1e4 + (1 - sample(gates).double()) * -1e4
    weights = published.softmax(-1)[:, :, 0]
    assert (weights[..., 7] > 0.01).all()  # the padded key ties with the closed real ones
    assert (weights[..., 6] == 0).all()  # padded and closed: -2e4


def test_rate_rises_then_falls_with_the_root():
    published = {"control": "sum", "optimiser": "lamb", "schedule": "sqrt", "lr_warmup": 0.2843}
    config = DamConfig(steps=7038, **published)
    rates = [config.lr_factor(step) for step in range(7038)]
    assert rates[0] == pytest.approx(1 / 7038 / 0.2843)
    assert rates.index(max(rates)) == 2000 - 1  # 0.2843 x 7038 = 2000.9
    assert rates[2000] == pytest.approx(math.sqrt(1 - 2001 / 7038))
    assert all(a > b for a, b in itertools.pairwise(rates[2000:]))
    assert rates[-1] == 0


# -- errors ----------------------------------------------------------------------------------
def test_misfits_are_named():
    with pytest.raises(UnknownNameError, match="published structure 'free'"):
        PublishedGates("free", length=N, heads=1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="call draw"):
        published_penalty(PublishedGates(length=N, heads=3))


def test_penalty_at_bert_base_size_is_finite_where_fp16_overflows():
    gates = PublishedGates(length=128, heads=12)
    gates.draw()
    assert published_penalty(gates).item() == pytest.approx(5e-5 * 98304, rel=0.1)
    assert sample(gates).half().norm(p=1).isinf()
    with torch.no_grad():
        gates.logits[..., 0] = 60.0
    gates.draw()
    assert published_penalty(gates).item() == pytest.approx(9.8304)


# -- one step on a tiny BERT, derived again without the package --------------------------------
def tiny_bert() -> Any:
    from transformers import BertConfig, BertForPreTraining

    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**sizes(40, 8, 2, HEADS, 16, N, initializer_range=0.3), **dry)
    return seeded(lambda: BertForPreTraining(config), 0).double().train()


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
    assert torch.equal(gates.drawn[0].double(), mask)
    assert loss.item() == pytest.approx(task.item() + penalty * mask.sum().item(), rel=1e-6)

    # straight-through: every edge adds to its gate; d soft / d logits = +-soft (1 - soft)
    by_edge = mask.grad + penalty * (mask.detach() > 0)
    by_gate = torch.zeros_like(soft).index_add(1, place.flatten(), by_edge.flatten(1))
    slope = by_gate * soft * (1 - soft)
    gradient = torch.stack([slope, -slope], -1)
    assert (gradient != 0).any()
    assert (mask.sum(-1) > 0).all()  # so that closed gates get nothing
    assert (gradient[soft < 0.5] == 0).all()
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
