import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from masksearch.attention.call import AttentionCall
from masksearch.attention.kernels.choose import grain_on
from masksearch.errors import HeadCountError, LayerCountError, LengthError, UnknownNameError
from masksearch.gates.gates import Gates

N = 9
STRUCTURES: list[dict[str, Any]] = [
    {"structure": "free"},
    {"structure": "symmetric"},
    {"structure": "toeplitz"},
    {"structure": "toeplitz", "signed": True},
    {"structure": "toeplitz+global", "global_count": 2},
    {"structure": "toeplitz+global", "global_count": 3, "signed": True},
    {"structure": "block", "block": 4},
    {"structure": "block", "block": (4, 2)},
    {"structure": "block", "block": [1, 3]},
]


def randomised(**arguments: Any) -> Gates:
    gates = Gates(length=N, heads=2, layers=2, **arguments)
    with torch.no_grad():
        gates.logits.normal_(std=2.0, generator=torch.Generator().manual_seed(0))
    return gates


def probability(gates: Gates, layer: int, head: int, i: int, j: int) -> float:
    """One edge's probability, from the definition of each structure."""
    p = gates.logits[layer, head].double().sigmoid().tolist()
    if gates.structure == "free":
        return p[i * N + j]
    if gates.structure == "symmetric":
        pairs = [(a, b) for a in range(N) for b in range(a + 1)]
        return p[pairs.index((max(i, j), min(i, j)))]
    if gates.structure == "block":
        queries, keys = gates.block
        return p[(i // queries) * len(range(0, N, keys)) + j // keys]
    offsets = list(range(1 - N, N)) if gates.signed else list(range(N))
    closed = 1 - p[offsets.index(j - i if gates.signed else abs(j - i))]
    count = gates.extra_rows
    if i < count:
        closed *= 1 - p[len(offsets) + i]
    if j < count:
        closed *= 1 - p[len(offsets) + count + j]
    return 1 - closed


@pytest.mark.parametrize("arguments", STRUCTURES, ids=str)
def test_probabilities_and_density_match_loop(arguments: dict[str, Any], device: str):
    gates = randomised(**arguments).to(device)
    want = torch.tensor(
        [
            [[[probability(gates, la, h, i, j) for j in range(N)] for i in range(N)]
             for h in range(2)]
            for la in range(2)
        ], device=device
    )  # fmt: skip
    torch.testing.assert_close(gates.probabilities(), want, atol=1e-6, rtol=0)
    total = want.sum((2, 3)) / (N * N)
    torch.testing.assert_close(gates.density(), total, atol=1e-6, rtol=0)
    bits = -(want * want.log2() + (1 - want) * (1 - want).log2())
    torch.testing.assert_close(gates.entropy(), bits.mean(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("arguments", STRUCTURES, ids=str)
def test_hard_sample_is_binary_and_has_the_right_frequency(arguments: dict[str, Any], device: str):
    gates = randomised(**arguments).to(device)
    total = torch.zeros(2, 2, N, N, device=device)
    for _ in range(300):
        gates.draw()
        sample = drawn(gates).detach()
        assert ((sample == 0) | (sample == 1)).all()
        total += sample
    torch.testing.assert_close(total / 300, gates.probabilities().detach(), atol=0.14, rtol=0)


def drawn(gates: Gates) -> Tensor:
    assert gates.drawn is not None
    return gates.table(gates.drawn) if gates.structure == "block" else gates.drawn


def test_open_edge_gives_no_gradient_to_its_other_closed_gates():
    gates = Gates("toeplitz+global", length=N, heads=1, global_count=1)
    with torch.no_grad():
        gates.logits.fill_(-9.0)
        gates.logits[0, 0, 0] = 9.0  # the diagonal's gate
    gates.eval()
    gates.draw()
    drawn(gates)[0, 0, 0, 0].backward()
    assert gates.logits.grad[0, 0, 0] != 0
    assert (gates.logits.grad[0, 0, 1:] == 0).all()


def test_draws_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = Gates(length=N, heads=2, seed=3)
    torch.manual_seed(2)
    second = Gates(length=N, heads=2, seed=3)
    other = Gates(length=N, heads=2, seed=4)
    before = torch.get_rng_state()
    for gates in (first, second, other):
        gates.draw()
    assert torch.equal(drawn(first), drawn(second))
    assert not torch.equal(drawn(first), drawn(other))
    assert torch.equal(torch.get_rng_state(), before)
    kept = drawn(first)
    first.draw()
    assert not torch.equal(drawn(first), kept)


@pytest.mark.parametrize("mode", ["eval", "deterministic"])
def test_without_noise_gates_are_rounded(mode: str):
    gates = randomised(structure="free")
    if mode == "eval":
        gates.eval()
    else:
        gates.deterministic = True
    gates.draw()
    assert torch.equal(drawn(gates), (gates.probabilities() > 0.5).float())
    soft = Gates(length=N, heads=1, hard=False, form="log", initial=0.3).eval()
    soft.draw()
    assert torch.equal(drawn(soft), soft.probabilities())


def test_temperature_and_cooling_divide_the_noisy_logits():
    def logits(temperature: float, cooling: float) -> Tensor:
        gates = Gates(length=N, heads=1, form="log", hard=False, temperature=temperature)
        gates.cooling = cooling
        gates.draw()
        return drawn(gates).double().logit()

    torch.testing.assert_close(logits(2.0, 1.0), logits(1.0, 1.0) / 2, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits(2.0, 0.5), logits(1.0, 1.0), rtol=1e-3, atol=1e-3)


def call(gates: Gates, layer: int = 0, heads: int = 2, queries: int = N, keys: int = N) -> Tensor:
    source = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, queries, 4, generator=source)
    key, value = torch.randn(2, 2, heads, keys, 4, generator=source)
    return gates.attend(layer, AttentionCall(query, key, value, scaling=0.5))


def test_short_sequences_use_the_first_positions_and_caches_the_last_queries():
    gates = randomised(structure="free").eval()
    gates.draw()
    whole = call(gates, queries=6, keys=6)
    part = randomised(structure="free").eval()
    part.drawn = drawn(gates)[..., :6, :6]
    part.length = 6
    torch.testing.assert_close(whole, call(part, queries=6, keys=6))
    query = torch.randn(1, 2, 6, 4, generator=torch.Generator().manual_seed(1))
    full = gates.attend(0, AttentionCall(query, query, query, scaling=0.5))
    last = gates.attend(0, AttentionCall(query[:, :, 4:], query, query, scaling=0.5))
    torch.testing.assert_close(last, full[:, :, 4:])


def test_layers_have_their_own_gates_unless_shared():
    gates = randomised(structure="free").eval()
    gates.draw()
    assert not torch.equal(call(gates, 0), call(gates, 1))
    shared = Gates(length=N, heads=1, layers=1).eval()
    shared.draw()
    assert torch.equal(call(shared, 0), call(shared, 5))


def test_calls_that_do_not_fit_are_refused():
    gates = Gates(length=N, heads=2, layers=2)
    with pytest.raises(RuntimeError, match=r"call draw\(\) first"):
        call(gates)
    gates.draw()
    with pytest.raises(LayerCountError, match="2 layers, asked for layer 2"):
        call(gates, layer=2)
    with pytest.raises(HeadCountError, match="2 heads, the attention 3"):
        call(gates, heads=3)
    with pytest.raises(LengthError, match="9 positions, got 10 queries"):
        call(gates, queries=N + 1, keys=N + 1)
    with pytest.raises(LengthError, match="9 positions, got 5 queries and 4 keys"):
        call(gates, queries=5, keys=4)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "structure": ({"structure": "toeplits"}, "did you mean 'toeplitz"),
    "form": ({"form": "logs"}, "Known: flip, log"),
    "signed": ({"signed": True}, "signed offsets need Toeplitz gates, got structure"),
    "heads": ({"heads": 0}, "heads must be a whole number >= 1, got 0"),
    "temperature": ({"temperature": 0.0}, "temperature must be above 0, got 0"),
    "hard": ({"hard": False}, "use form='log' for soft gates"),
    "count": (
        {"structure": "toeplitz+global", "global_count": 10},
        r"global_count must lie in 1\.\.length = 1\.\.9, got 10",
    ),
    **{
        f"block {block}": (
            {"structure": "block", "block": block},
            r"of a tile, such as \(64, 16\): one a multiple of the other, the finer one must lie "
            rf"in 1\.\.length = 1\.\.9; got {re.escape(repr(block))}$",
        )
        for block in (0, (20, 10), (3, 8), (4, 2, 1), "4x2", 2.5, True)
    },
}


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_arguments_are_refused(name: str):
    given, said = MISTAKES[name]
    kind = UnknownNameError if name in ("structure", "form") else ValueError
    with pytest.raises(kind, match=said):
        Gates(**{"length": N, "heads": 1} | given)


@pytest.mark.parametrize("cuda", [False, True])
def test_tiles_are_as_fine_as_the_kernel_of_this_machine(cuda: bool, monkeypatch: Any):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    gates = Gates("block", length=256, heads=2)
    rows, columns = (2, 2) if cuda else (4, 16)
    assert gates.block == (256 // rows, 256 // columns) == grain_on("cuda" if cuda else "cpu")
    assert gates.logits.shape == (1, 2, rows * columns)
    assert Gates(**gates.arguments).block == gates.block
    assert Gates(length=256, heads=2).block == (1, 1)  # of other structures


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_with_the_same_noise(copier: Any):
    gates = Gates("toeplitz", length=N, heads=2)
    gates.draw()
    other = copier(gates)
    assert other.drawn is None
    gates.draw()
    other.draw()
    assert torch.equal(drawn(gates), drawn(other))
