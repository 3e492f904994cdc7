"""The backend "fastest": kernels are run once on a layer's own states, and the fastest is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, BERT
from torch import Tensor, nn

from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.attention.explain import explain
from masksearch.attention.kernels import timed
from masksearch.attention.slots import SLOT
from masksearch.masks import Mask

LONG = 300
MASK = masks.window(5) | masks.global_tokens(1)
Clock = Callable[..., list[timed.Run]]


def lowered(model: nn.Module) -> list[Any]:
    return [m.__dict__[SLOT].lowered for m in model.modules() if SLOT in m.__dict__]


def made(name: str, mask: Mask = MASK, backend: str = "fastest") -> tuple[nn.Module, Any]:
    at = ARCHITECTURES[name]
    model = attach(at.made(layers=2, length=LONG), mask, backend=backend, part=at.part)
    return model, at.inputs(30, length=LONG)


def run(name: str, model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    at = ARCHITECTURES[name]
    with torch.no_grad():
        found: Tensor = at.read(model(**given))[at.real(given)]
    return found


def by_sdpa(name: str, model: nn.Module) -> nn.Module:
    """The same weights, computed by SDPA under the mask."""
    return attach(model, MASK, backend="sdpa", part=ARCHITECTURES[name].part)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Says how long dense, sdpa, gather and flex take, each of which is run once."""

    def says(*times: float | Exception) -> list[timed.Run]:
        runs: list[timed.Run] = []

        def seconds(run: timed.Run, call: timed.Call) -> float:
            result = run()
            assert result.shape == call.query.shape
            time = times[len(runs) % len(times)]
            runs.append(run)
            if isinstance(time, Exception):
                raise time
            return time

        monkeypatch.setattr(timed, "seconds", seconds)
        return runs

    return says


@pytest.fixture
def no_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention fails as it does without a compiler, and compiles nothing."""

    def fails(*args: Any, **rest: Any) -> Any:
        raise RuntimeError("no C++ compiler\nmany more lines")

    monkeypatch.setattr("masksearch.attention.kernels.flex.flex_attention_under", fails)


@pytest.mark.usefixtures("no_flex")
@pytest.mark.parametrize(("sdpa", "gather"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "bart-encoder"])
def test_the_fastest_computes_and_is_explained(clock, name, sdpa, gather):
    runs = clock(4e-3, sdpa * 1e-3, gather * 1e-3)
    model, given = made(name)
    found = run(name, model, given)
    assert len(runs) == 3  # two layers of one mask, one of them timed
    (row,) = explain(model, trains=False).rows
    assert row.backend == ("sdpa" if sdpa < gather else "gather")
    assert row.ratio == pytest.approx(4)
    assert row.reason == (
        f"timed: sdpa {sdpa} ms, gather {gather} ms, flex left out: no C++ compiler; without "
        "the mask 4 ms"
    )
    run(name, model, given)
    assert len(runs) == 3  # and once
    assert torch.allclose(found, run(name, by_sdpa(name, model), given), atol=1e-5)


@pytest.mark.usefixtures("no_flex")
def test_runs_equal_each_other_and_differ_from_dense(clock):
    for name in ("bert", "gpt2"):
        runs = clock(1, 2, 3)
        model, given = made(name)
        run(name, model, given)
        real = ARCHITECTURES[name].real(given)
        with torch.no_grad():
            dense, sdpa, gather = (run().transpose(1, 2)[real] for run in runs)
        assert torch.allclose(sdpa, gather, atol=1e-5)
        assert not torch.allclose(dense, sdpa, atol=1e-2)


def test_training_is_timed_with_its_backward_pass_and_without_flex():
    model, given = made("bert")
    wanted = [p for p in model.parameters() if p.requires_grad]
    state = torch.get_rng_state()
    found = torch.autograd.grad(model.train()(**given)[0].square().sum(), wanted)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in wanted)
    reason = explain(model).rows[0].reason
    assert "gather" in reason
    assert "flex left out: no backward pass on the CPU" in reason
    attach(model, MASK, backend="sdpa")
    expected = torch.autograd.grad(model(**given)[0].square().sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.usefixtures("no_flex")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_do_not_notice(reentrant, clock):
    clock(4e-3, 2e-3, 1e-3, 3e-3)
    model, given = made("gpt2")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    model(**given)[0].square().sum().backward()
    assert all(("gather", LONG, torch.device("cpu")) in p.plans for p in lowered(model))
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.usefixtures("no_flex")
def test_dropout_is_drawn_as_without_timing(clock):
    clock(4e-3, 2e-3, 1e-3)  # SDPA would draw other numbers than gather
    config = hf.BertConfig(**{**BERT, "attention_probs_dropout_prob": 0.5}, num_hidden_layers=1)
    config.max_position_embeddings = LONG
    model, given = hf.BertModel(config).train(), ARCHITECTURES["bert"].inputs(3, length=LONG)
    found = []
    for backend in ("fastest", "gather"):
        attach(model, MASK, backend=backend)
        torch.manual_seed(0)
        with torch.no_grad():
            model(**given)
        found.append(torch.rand(3))
    assert torch.equal(*found)
    attach(model, MASK, backend="fastest")
    model(**given)
    assert "flex left out: no" in explain(model).rows[0].reason


def test_a_failure_of_sdpa_is_no_secret(clock):
    clock(RuntimeError("out of memory"))
    model, given = made("bert")
    with pytest.raises(RuntimeError, match="out of memory"):
        run("bert", model, given)


def test_short_and_whole_masks_are_not_timed(clock):
    runs = clock(1)
    model, given = made("bert", masks.full())
    run("bert", model, given)
    at = ARCHITECTURES["bert"]
    run("bert", attach(model, MASK, backend="fastest"), at.inputs(3, length=255))
    assert runs == []
    assert "timed in the first call" in explain(model, 300).rows[0].reason
    assert "timed" not in explain(model, 255).rows[0].reason


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_flex_is_timed_and_taken_where_it_leads(name, clock):
    clock(4e-3, 3e-3, 2e-3, 1e-3)
    model, given = made(name)
    found = run(name, model, given)
    assert {key[0] for p in lowered(model) for key in p.plans} == {"gather", "flex"}
    assert torch.allclose(found, run(name, by_sdpa(name, model), given), atol=1e-5)


@pytest.mark.slow
def test_real_clocks_agree_with_the_choice():
    model, given = made("bert", masks.window(5))
    run("bert", model, given)
    (row,) = explain(model, trains=False).rows
    times = {
        word[0]: float(word[1])
        for word in (part.split() for part in row.reason.removeprefix("timed: ").split(", "))
        if word[0] in ("sdpa", "gather", "flex")
    }
    assert set(times) == {"sdpa", "gather", "flex"}
    assert times[row.backend] == min(times.values())
