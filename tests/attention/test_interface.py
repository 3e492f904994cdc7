"""What computes under a mask: which backend, in which precision, compiled or not."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, BERT, GROUPED, built, made, seeded, states
from torch import Tensor, nn

from masksearch import masks
from masksearch.attention.attach import attach, detach
from masksearch.errors import AttachError, EmptyRowError

LONG = 300
SPARSE = masks.window(5) | masks.global_tokens(1)
WINDOW = masks.window(5)  # sparse by its blocks at 300 positions, too
BLOCKS = masks.blocks(128)


def on(device: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.to(device) for name, each in given.items()}


def run(name: str, model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """The states of real positions, without gradient."""
    at = ARCHITECTURES[name]
    with torch.no_grad():
        return at.read(model(**given))[at.real(given)]


# -- choice ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["bert", "gpt2", "bart-encoder"])
def test_auto_is_sparse_for_long_inputs_alone(name):
    at = ARCHITECTURES[name]
    model = at.made(layers=1, length=LONG)
    attach(model, WINDOW, part=at.part)
    run(name, model, at.inputs(30, length=255))
    assert built(model) == set()
    assert all(found == {"table"} for found in made(model))
    long = at.inputs(30, length=LONG)
    expected = run(name, attach(model, WINDOW, backend="sdpa", part=at.part), long)
    assert all(found == {"table"} for found in made(model))
    found = run(name, attach(model, WINDOW, part=at.part), long)
    assert all(found == {"choice", "gather"} for found in made(model))
    assert torch.allclose(found, expected, atol=1e-5)


def test_no_table_is_made_where_nothing_needs_one(monkeypatch):
    at = ARCHITECTURES["gpt2"]
    model, given = at.made(layers=2, length=LONG), at.inputs(30, length=LONG)
    attach(model, SPARSE, backend="gather")

    def refused(*args: Any, **rest: Any) -> Any:
        raise AssertionError("an n x n tensor is made")

    monkeypatch.setattr("masksearch.attention.interface.sdpa_mask", refused)
    monkeypatch.setattr("masksearch.attention.interface.sdpa", refused)
    run("gpt2", model, given)
    assert all(found == {"choice", "gather"} for found in made(model))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_layers_of_several_backends_share_one_padding(name):
    at = ARCHITECTURES[name]
    model, given = at.made(layers=3, length=LONG), at.inputs(30, length=LONG)
    mask = masks.per_layer([SPARSE, masks.full(), masks.stride(2)])
    expected = run(name, attach(model, mask, backend="sdpa"), given)
    attach(model, mask, backend="gather")
    assert torch.allclose(run(name, model, given), expected, atol=1e-5)
    assert ["gather" in found for found in made(model)] == [True, False, True]
    some = attach(model, SPARSE, part=states(model)[0].name, backend="gather")
    expected = run(name, some, given)
    attach(model, SPARSE, part=states(model)[0].name, backend="sdpa")
    assert torch.allclose(run(name, model, given), expected, atol=1e-5)


def test_flex_computes_on_the_cpu_without_a_gradient_alone():
    at = ARCHITECTURES["bert"]
    model, given = at.made(layers=1, length=LONG), at.inputs(30, length=LONG)
    attach(model, SPARSE, backend="flex")
    with pytest.raises(
        AttachError,
        match=r'layer 0: FlexAttention has no backward pass on the CPU; attach with backend="gat',
    ):
        model(**given)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_flex_equals_sdpa(name, device):
    at = ARCHITECTURES[name]
    model = at.made(layers=2, length=LONG).to(device)
    given = on(device, at.inputs(30, length=LONG))
    expected = run(name, attach(model, SPARSE, backend="sdpa"), given)
    found = run(name, attach(model, SPARSE, backend="flex"), given)
    assert built(model) == {"flex"}
    assert torch.allclose(found, expected, atol=1e-5)
    found = run(name, pickle.loads(pickle.dumps(copy.deepcopy(model))), given)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("mask", [BLOCKS, WINDOW, masks.random_keys(40, 1)], ids=str)
def test_auto_on_a_card_takes_flex_where_blocks_are_empty(mask):
    at = ARCHITECTURES["bert"]
    model = at.made(layers=2, length=1024).cuda()
    given = on("cuda", at.inputs(30, length=1024))
    expected = gradients(attach(model, mask, backend="sdpa"), given)
    found = gradients(attach(model, mask), given)
    assert built(model) == ({"flex"} if mask == BLOCKS else set())
    for ours, wanted in zip(found, expected, strict=True):
        assert torch.allclose(ours, wanted, atol=1e-5)


def test_a_mask_of_the_caller_is_computed_by_sdpa():
    at = ARCHITECTURES["bert"]
    model, tokens = at.made(layers=1), at.inputs()["input_ids"]
    own = masks.blocks(5).dense(17)
    attach(model, masks.window(2), backend="gather")
    with torch.no_grad():
        found = model(tokens, attention_mask=own)[0]
        (state,) = states(model)
        assert state.fallback.startswith("the model's own mask is more than padding and causality")
        attach(model, masks.window(2) & masks.blocks(5), backend="gather")
        assert torch.allclose(found, model(tokens)[0], atol=1e-5)
    assert states(model)[0].fallback == ""


def test_a_bias_of_the_caller_does_not_bring_dropped_keys_back():
    at = ARCHITECTURES["bert"]
    model, tokens = at.made(layers=1), at.inputs()["input_ids"]
    attach(model, masks.window(2))
    with torch.no_grad():
        expected = model(tokens, attention_mask=torch.ones_like(tokens))[0]
        found = model(tokens, attention_mask=torch.zeros(2, 1, 17, 17))[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_sliding_layers_are_computed_by_sdpa():
    sizes = {**GROUPED, "num_key_value_heads": 2, "num_hidden_layers": 2}
    model = hf.MistralModel(hf.MistralConfig(**sizes, sliding_window=8)).eval()
    given = {"input_ids": torch.arange(3, 23)[None]}
    attach(model, masks.window(9), backend="gather")
    with torch.no_grad():
        found = model(**given)[0]
        expected = attach(model, masks.window(9), backend="sdpa")(**given)[0]
    assert torch.equal(found, expected)
    assert built(model) == set()


def test_empty_rows_are_refused_without_a_table():
    at = ARCHITECTURES["bert"]
    model, given = at.made(layers=1, length=LONG), at.inputs(length=LONG)
    holes = masks.shifts([-70]) | masks.global_tokens(1)
    attach(model, masks.per_head([SPARSE, SPARSE, holes - masks.global_tokens(1), SPARSE]))
    with pytest.raises(EmptyRowError, match="layer 0, head 2, row 0 keeps no key"):
        run("bert", model, given)
    attach(model, masks.cropped(masks.shifts([-70, 400]) | masks.blocks(64), at=500))
    run("bert", model, given)


# -- training ----------------------------------------------------------------------------------
def gradients(model: nn.Module, given: dict[str, Tensor]) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    model(**given)[0].square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_computes_the_same_gradients(backend, reentrant, device):
    at = ARCHITECTURES["gpt2"]
    model, given = at.made(layers=2).train().to(device), on(device, at.inputs(3))
    attach(model, masks.window(2) | masks.global_tokens(1), backend=backend)
    expected = gradients(model, given)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:  # a graph to the inputs is needed
        model.enable_input_require_grads()
    for found, wanted in zip(gradients(model, given), expected, strict=True):
        assert torch.equal(found, wanted)


def test_attention_dropout_drops_weights_in_every_backend():
    config = hf.BertConfig(**{**BERT, "attention_probs_dropout_prob": 0.5}, num_hidden_layers=1)
    model, given = hf.BertModel(config).train(), ARCHITECTURES["bert"].inputs()
    for backend in ("sdpa", "gather"):
        attach(model, masks.window(2), backend=backend)
        with torch.no_grad():
            first, second = model(**given)[0], model(**given)[0]
        assert not torch.allclose(first, second, atol=1e-3)
        assert built(model) == ({"gather"} if backend == "gather" else set())


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_inference_mode_first_then_training_at_the_same_length(backend, dropout):
    """What inference mode makes cannot be saved for a backward pass."""
    config = hf.BertConfig(**{**BERT, "attention_probs_dropout_prob": dropout})
    model, given = hf.BertModel(config), ARCHITECTURES["bert"].inputs()
    attach(model, masks.window(2), backend=backend)
    with torch.inference_mode():
        model.eval()(**given)
    model.train()(**given)[0].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.encoder.parameters())


# -- precision ---------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5-encoder"])
def test_autocast_to_bfloat16_keeps_the_mask(name, backend):
    at = ARCHITECTURES[name]
    model, given = at.made(), at.inputs(3)
    mask = masks.window(2) | masks.global_tokens(1)
    plain = run(name, model, given)
    full = run(name, attach(model, mask, backend=backend, part=at.part), given)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(name, model, given)
    assert torch.allclose(found.float(), full, atol=0.15 * float(full.abs().max()))
    assert (found - full).norm() < 0.3 * (plain - full).norm()


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize("sharp", [1.0, 40.0])
def test_half_precision_is_finite_and_near(backend, sharp):
    """Sharp queries make scores of thousands, beside which a mask of -1e4 is no mask."""
    at = ARCHITECTURES["bert"]
    model, given = at.made(), at.inputs(3)
    for name, weight in model.named_parameters():
        if ".query.weight" in name:
            weight.data *= sharp
    attach(model, masks.shifts([-1, 0, 2]) | masks.global_tokens(1), backend=backend)
    expected = run("bert", model, given)
    found = run("bert", model.half(), given)
    assert found.dtype == torch.float16
    assert found.isfinite().all()
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


def test_rows_without_a_visible_key_do_not_leak_through_a_bias():
    at = ARCHITECTURES["t5-encoder"]
    model, given = at.made(layers=1), at.inputs(14)
    attach(model, masks.shifts([1, -16]), part="encoder")
    found = []
    for token in (30, 40):
        given["input_ids"][1, 0] = token
        with torch.no_grad():
            found.append(at.read(model(**given))[1])
    assert torch.equal(found[0][2], found[1][2])  # it keeps key 3, which is padding
    assert not torch.allclose(found[0][0], found[1][0])


# -- torch.compile -----------------------------------------------------------------------------
@pytest.mark.nightly
@pytest.mark.parametrize("length", [17, LONG])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5-decoder", "bart-cross"])
def test_compiled_graphs_hold_the_mask(name, length):
    at = ARCHITECTURES[name]
    model, given = at.made(layers=2, length=length), at.inputs(3, length=length)
    attach(model, SPARSE, part=at.part, backend="gather")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    out = at.read(compiled(**given))  # nothing has been lowered before
    out[at.real(given)].square().mean().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    expected = at.read(model(**given))
    expected[at.real(given)].square().mean().backward()
    assert torch.allclose(out[at.real(given)], expected[at.real(given)], atol=1e-5)
    for one, other in zip(
        found, [p.grad for p in model.parameters() if p.grad is not None], strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.nightly
def test_compiled_models_take_several_lengths_and_detach():
    at = ARCHITECTURES["bert"]
    model = attach(at.made(), SPARSE)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for length in (9, 12, 17):
        given = at.inputs(3, length=length)
        assert torch.allclose(run("bert", compiled, given), run("bert", model, given), atol=1e-5)
    detach(model)
    plain = run("bert", at.made(), given)
    assert torch.allclose(run("bert", compiled, given), plain, atol=1e-5)


@pytest.mark.slow
def test_errors_of_lowering_keep_their_message_while_compiling():
    at = ARCHITECTURES["bert"]
    model = attach(at.made(), masks.table(torch.ones(9, 9) > 0))
    with pytest.raises(RuntimeError, match=r"LengthError: .*table of 9 positions .* asked for 17"):
        torch.compile(model, fullgraph=True, backend="eager")(**at.inputs())


# -- models that need their mask written out: no later token moves an earlier output --------------
DOGE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DOGE |= {"num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0}


def moved(run: Callable[[Tensor], Tensor], ids: Tensor, kept: int) -> float:
    """How far outputs before `kept` move when the tokens from there on change."""
    later = ids.clone()
    later[:, kept:] = 5
    return (run(ids) - run(later))[:, :kept].abs().max().item()


@pytest.mark.parametrize(("length", "backend"), [(40, "gather"), (300, "auto")])
@pytest.mark.parametrize("padded", [False, True])
def test_a_mask_that_the_model_reads_is_written_out(length, backend, padded):
    """Doge adds its own scores to the mask: a packed form, or none, would lose its causality."""
    model = seeded(lambda: hf.DogeForCausalLM(hf.DogeConfig(**DOGE, max_position_embeddings=512)))
    ids = torch.randint(3, 50, (1, length))
    seen = torch.ones_like(ids)
    seen[:, :2] = not padded

    def run(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(ids, attention_mask=seen, use_cache=False).logits * seen[..., None]

    dense = run(ids)
    attach(model, masks.full(), backend=backend)
    assert torch.allclose(run(ids), dense, atol=1e-5)
    attach(model, masks.window(3), backend=backend)
    assert moved(run, ids, length // 2) < 1e-6


@pytest.mark.parametrize("padded", [False, True])
def test_no_code_of_a_model_sees_a_packed_mask(padded):
    """A layer that looks at the mask before it attends gets one of four dimensions."""
    at = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    model = seeded(lambda: hf.BertModel(hf.BertConfig(vocab_size=60, num_hidden_layers=1, **at)))
    seen: list[int] = []

    def look(module: nn.Module, args: Any, named: dict[str, Any]) -> None:
        mask = args[1] if len(args) > 1 else named.get("attention_mask")
        seen.append(4 if mask is None else mask.ndim)

    layer = model.encoder.layer[0]
    hook = layer.register_forward_pre_hook(look, with_kwargs=True)
    ids, padding = torch.randint(3, 50, (2, 40)), torch.ones(2, 40, dtype=torch.int64)
    padding[0, 30:] = not padded
    attach(model, masks.window(3), backend="gather")
    with torch.no_grad():
        found = model(ids, attention_mask=padding).last_hidden_state
        assert set(seen) == {4}
        hook.remove()
        attach(model, masks.window(3), backend="gather")
        packed = model(ids, attention_mask=padding).last_hidden_state
    assert torch.allclose(found[:, :30], packed[:, :30], atol=1e-5)
