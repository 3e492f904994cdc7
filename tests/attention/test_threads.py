"""Two threads with one masked model: each gives what it gives alone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import GENERATORS, bert
from torch import Tensor, nn
from transformers import AttentionInterface

import masksearch as ms
from masksearch import masks
from masksearch.attention.layer import STATE
from masksearch_decoders import MaskedCache

MASK = masks.window(2) | masks.columns(1)
CACHES: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "no cache": lambda model: {"use_cache": False},
    "dynamic": lambda model: {"past_key_values": hf.DynamicCache(config=model.config)},
    "static": lambda model: {
        "past_key_values": hf.StaticCache(config=model.config, max_cache_len=32)
    },
    "masked": lambda model: {"past_key_values": MaskedCache(model, length=32)},
}
Run = Callable[[Tensor], Tensor]


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(length))


def in_step(run: Run, inputs: list[Tensor]) -> list[Tensor]:
    """What threads give that all reach a layer's attention before any computes it."""
    barrier = threading.Barrier(len(inputs), timeout=60)
    attend = AttentionInterface()["masksearch"]

    def waiting(*call: Any, **rest: Any) -> Any:
        barrier.wait()
        return attend(*call, **rest)

    AttentionInterface.register("masksearch", waiting)
    try:
        with ThreadPoolExecutor(len(inputs)) as pool:
            return list(pool.map(run, inputs))
    finally:
        AttentionInterface.register("masksearch", attend)


def same(run: Run, inputs: list[Tensor]) -> None:
    alone = [run(each) for each in inputs]
    for together, wanted in zip(in_step(run, inputs), alone, strict=True):
        assert torch.equal(together, wanted)


def generator(name: str, how: Callable[[nn.Module], dict[str, Any]], **part: Any) -> Any:
    """A masked model, and what makes logits of eight steps from a prompt."""
    torch.manual_seed(0)
    model = GENERATORS[name](2, 32).eval()
    ms.attach(model, MASK, **part)

    def run(prompt: Tensor) -> Tensor:
        out = model.generate(
            **{"inputs": prompt, "attention_mask": (prompt > 5).long().index_fill(1, LAST, 1)},
            **{"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1},
            **{"output_logits": True, "return_dict_in_generate": True, **how(model)},
        )
        return torch.stack(out.logits)

    return model, run


LAST = torch.tensor([6])  # is seen by all queries that count


@pytest.mark.parametrize("cache", CACHES)
def test_decoders_generate_side_by_side(cache):
    _, run = generator("llama", CACHES[cache])
    same(run, [tokens(1, 7), tokens(2, 12)])


@pytest.mark.parametrize("part", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("cache", ["no cache", "dynamic", "static"])
def test_encoder_decoders_generate_side_by_side(cache, part):
    def both(model: nn.Module) -> dict[str, Any]:
        how = CACHES[cache](model)
        if "past_key_values" not in how:
            return how
        own, cross = (CACHES[kind](model)["past_key_values"] for kind in (cache, "dynamic"))
        return {"past_key_values": hf.EncoderDecoderCache(own, cross)}

    _, run = generator("bart", both, part=part)
    same(run, [tokens(1, 7), tokens(2, 12)])


@pytest.mark.parametrize(
    "how",
    [
        *({}, {"backend": "gather"}, {"mask": MASK | masks.special_tokens([7])}),
        {"mask": MASK | masks.same_token()},
    ],
    ids=str,
)
def test_encoders_side_by_side(how):
    torch.manual_seed(0)
    settings = {"what": MASK} | {{"mask": "what"}.get(k, k): v for k, v in how.items()}
    model = ms.attach(bert(2, 300).eval(), **settings)

    def run(ids: Tensor) -> Tensor:
        with torch.no_grad():
            seen = (ids > 8).long().index_fill(1, LAST, 1)
            return model(ids, attention_mask=seen).last_hidden_state

    same(run, [tokens(2, 40), tokens(1, 70)])


@pytest.mark.parametrize("leaf", [masks.special_tokens(7), masks.same_token()], ids=str)
def test_a_model_is_attached_to_while_another_runs(leaf):
    """A probe in one thread is none in another: tokens are resolved, and gates drawn."""
    torch.manual_seed(0)
    model, other = bert(1, 40).eval(), bert(1, 40).eval()
    ms.attach(model, masks.window(2) | leaf)
    first, second = tokens(1, 20), tokens(1, 30)
    with torch.no_grad():
        wanted = model(second).last_hidden_state
        model(first)

    def meanwhile(*call: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(between).result()

    def between() -> None:
        with torch.no_grad():
            found.append(model(second).last_hidden_state)

    found: list[Tensor] = []
    hook = other.register_forward_hook(meanwhile)  # called by the probe
    ms.attach(other, masks.window(1))
    hook.remove()
    assert torch.equal(found[0], wanted)


@pytest.mark.parametrize("cache", ["static", "masked"])
def test_a_failed_step_leaves_nothing_behind(cache):
    model, _ = generator("llama", CACHES[cache])
    kept = CACHES[cache](model)["past_key_values"]
    prompt = tokens(1, 12)
    with torch.no_grad():
        wanted = model(prompt, use_cache=False).logits
        model(prompt[:, :9], past_key_values=kept)

        def fail(*call: Any) -> None:
            raise RuntimeError("in between")

        attending = next(module for module in model.modules() if STATE in module.__dict__)
        hook = attending.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="in between"):
            model(prompt[:, 9:10], past_key_values=kept)
        hook.remove()
        running = attending.__dict__[STATE].positions.running
        nothing = {"last": None, "before": None, "held": {}, "seen": {}, "inside": False}
        assert vars(running) == nothing
        assert torch.equal(model(prompt, use_cache=False).logits, wanted)
