"""What attach promises, on every architecture that it must serve: masks and gates alike."""

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import (
    ARCHITECTURES,
    EVERY,
    GENERATORS,
    GROUPED,
    HEADS,
    SERVED,
    TEXT,
    Architecture,
    built,
    seeded,
)
from attention_oracles import StandIn, crossings, formula, gates_of, square, table
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError, HeadCountError, LayerCountError
from masksearch.gates.gates import Gates

BESIDE = masks.shifts([-1, 2]) | masks.global_tokens(1)  # without most of the diagonal
MIXED = masks.per_head([masks.window(1), masks.star(), BESIDE, masks.stride(3)])
OTHER = masks.per_head(
    [masks.window(0) | masks.shifts([-3]), BESIDE, masks.window(2), masks.dilated(6, 2)]
)
EDGES = masks.per_head([BESIDE, BESIDE | masks.shifts([-4]), BESIDE, BESIDE & masks.window(4)])
WAYS = ("mask", "flip", "log", "stand-in")
PADDED = 4
Given = dict[str, Tensor]

every = pytest.mark.parametrize("at", EVERY, ids=lambda at: at.name)
texts, decoders = (
    pytest.mark.parametrize(
        "at",
        [
            at if at.name in SERVED else pytest.param(at, marks=pytest.mark.nightly)
            for at in ARCHITECTURES.values()
            if getattr(at, which)
        ],
        ids=lambda at: at.name,
    )
    for which in ("padded", "causal")
)
by_mask_and_gates = pytest.mark.parametrize("way", ["mask", "flip"])


def mixed(at: Architecture, model: nn.Module) -> masks.Mask:
    """Masks that tell heads and layers apart, where there are layers."""
    return masks.per_layer([MIXED, OTHER]) if len(at.layers(model)) == 2 else MIXED


def put(at: Architecture, model: nn.Module, what: Any, **rest: Any) -> nn.Module:
    """Attached to the architecture's part."""
    return ms.attach(model, what, part=at.part, **rest)


def put_as(
    at: Architecture, model: nn.Module, way: str, mask: masks.Mask, given: Given
) -> nn.Module:
    """A mask attached as it is, or as gates that are open exactly where it keeps."""
    if way == "mask":
        return put(at, model, mask)
    kept = square(mask, at, given)
    return put(at, model, StandIn(kept) if way == "stand-in" else gates_of(kept, way))


def text_of(at: Architecture, given: Given) -> tuple[Given, str]:
    """A copy of the inputs, and the name of the tokens that the keys are made of."""
    given = {name: value.clone() for name, value in given.items()}
    return given, "decoder_input_ids" if at.part == "decoder" else "input_ids"


# -- the same attention ------------------------------------------------------------------------
@every
def test_full_mask_is_exactly_sdpa(at: Architecture):
    model = at.made()
    for given in (at.inputs(), at.inputs(PADDED), at.inputs(PADDED, left=True)):
        before = at.run(model, given)
        for mask in (masks.full(), masks.per_head([masks.full(), masks.window(TEXT)] * 2)):
            found = at.run(put(at, model, mask), given)
            assert (
                torch.allclose(found, before, atol=1e-5) if at.own else torch.equal(found, before)
            )
        assert torch.equal(at.run(ms.detach(model), given), before)


@every
def test_gates_that_keep_everything_change_nothing(at: Architecture):
    model, given = at.made(), at.inputs(PADDED)
    before, real = at.run(model, given), at.real(given)
    for way in ("flip", "log", "additive", "stand-in"):
        found = at.run(put_as(at, model, way, masks.full(), given), given)
        assert torch.allclose(found[real], before[real], atol=1e-5), way


@every
def test_masks_and_gates_match_the_formula(at: Architecture):
    model, given = at.made(), at.inputs(PADDED)
    mask, real = mixed(at, model), at.real(given)
    expected, plain = formula(at, model, mask, given), at.run(model, given)
    assert not torch.allclose(expected[real], plain[real], atol=1e-2)
    for way in WAYS:
        found = at.run(put_as(at, model, way, mask, given), given)
        assert torch.allclose(found[real], expected[real], atol=2e-5), way


# -- gradients ---------------------------------------------------------------------------------
def edges(at: Architecture, cells: Tensor) -> Tensor:
    """The cells, all of the diagonal set where a position's own state also asks the question."""
    return cells if at.cross else cells | torch.eye(len(cells), dtype=torch.bool)


@pytest.mark.parametrize(
    ("way", "half"), [*((way, False) for way in WAYS), ("mask", True), ("flip", True)]
)
@every
def test_gradient_crosses_kept_edges_only(at: Architecture, way: str, half: bool):
    model, given = at.made(layers=1), at.inputs(PADDED)
    kept = table(EDGES, at, given)[0].any(0) & at.visible(given)
    put_as(at, model, way, EDGES, given)
    for row, real in enumerate(at.real(given)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            moves = crossings(at, model, given, row) > 0
        assert torch.equal(edges(at, moves)[real], edges(at, kept[row])[real]), row


@pytest.mark.parametrize("form", ["flip", "log"])
@every
def test_gates_learn_on_the_edges_they_should(at: Architecture, form: str):
    model, given = at.made(), at.inputs(PADDED)
    mask = mixed(at, model)
    gates = gates_of(square(mask, at, given), form)
    put(at, model, gates)
    out = at.read(model(**given))
    source = torch.Generator().manual_seed(2)
    direction = torch.randn(out.shape, generator=source) * at.real(given)[..., None]
    (out * direction).sum().backward()
    grad = gates.logits.grad.view(gates.layers, HEADS, gates.length, gates.length)
    assert grad.isfinite().all()
    kept, seen = table(mask, at, given), at.visible(given).any(0)
    queries, keys = seen.shape
    assert grad[:, :, queries:].abs().max() == 0 if queries < gates.length else True
    found = grad[:, :, :queries, :keys] != 0
    chosen = (kept & seen).sum(-1, keepdim=True)
    choice = kept & seen & (chosen > 1)  # the only key of a query cannot weigh more or less
    assert found[choice].all()
    assert not found[~seen.expand_as(found)].any()
    dropped = ~kept & seen
    assert found[dropped].all() if form == "flip" else not found[dropped].any()


# -- on and off ---------------------------------------------------------------------------------
@every
def test_attaching_again_replaces_and_detach_restores(at: Architecture):
    model, given = at.made(), at.inputs(PADDED)
    before, keys = at.run(model, given), list(model.state_dict())
    assert ms.attach(model, MIXED, part=at.part) is model
    masked = at.run(model, given)
    assert not torch.allclose(masked, before, atol=1e-3)
    assert list(model.state_dict()) == keys
    with pytest.raises(HeadCountError, match="the mask has 3 heads, asked for 4"):
        ms.attach(model, masks.per_head([masks.full()] * 3), part=at.part)
    with pytest.raises(LayerCountError, match="the mask has 5 layers, asked for"):
        ms.attach(model, masks.per_layer([masks.full()] * 5), part=at.part)
    assert torch.equal(at.run(model, given), masked)  # a refused mask leaves the earlier one
    alone = at.run(ms.attach(at.made(), OTHER, part=at.part), given)
    assert torch.equal(at.run(ms.attach(model, OTHER, part=at.part), given), alone)
    assert ms.detach(model) is model
    assert torch.equal(at.run(model, given), before)
    assert model.config._attn_implementation == ("eager" if at.own else "sdpa")
    with pytest.raises(AttachError, match=r"nothing is attached to this .*; detach takes"):
        ms.detach(model)
    ms.detach(model, missing_ok=True)


@every
def test_probe_leaves_mode_and_generator_alone(at: Architecture):
    model = at.made().train()
    model.get_submodule(next(n for n, m in model.named_modules() if n)).eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    ms.attach(model, masks.star(), part=at.part)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


# -- what the model hides ----------------------------------------------------------------------
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@by_mask_and_gates
@texts
def test_padding_never_reaches_real_positions(at: Architecture, way: str, left: bool):
    model, given = at.made(), at.inputs(PADDED, left)
    put_as(at, model, way, mixed(at, model), given)
    before, real = at.run(model, given), at.real(given)
    assert before.isfinite().all()
    altered, name = text_of(at, given)
    hidden = slice(0, PADDED) if left else slice(-PADDED, None)
    altered[name][1, hidden] = 52 - altered[name][1, hidden]
    assert torch.allclose(at.run(model, altered)[real], before[real], atol=1e-6)
    altered[name][1, 5] = 52 - altered[name][1, 5]
    assert not torch.allclose(at.run(model, altered)[1][real[1]], before[1][real[1]], atol=1e-3)


@by_mask_and_gates
@decoders
def test_the_future_never_reaches_the_past(at: Architecture, way: str):
    model = at.made()
    for given in (at.inputs(), at.inputs(PADDED, left=True)):
        put_as(at, model, way, mixed(at, model), given)
        before = at.run(model, given)
        altered, name = text_of(at, given)
        altered[name][:, 8:] = 52 - altered[name][:, 8:]
        after = at.run(model, altered)
        assert torch.allclose(after[:, :8], before[:, :8], atol=1e-6)
        assert not torch.allclose(after[:, 8:], before[:, 8:], atol=1e-3)


@by_mask_and_gates
@texts
def test_a_padded_text_is_the_text_alone(at: Architecture, way: str):
    model, given = at.made(), at.inputs(PADDED)
    mask = mixed(at, model)
    prefix = "decoder_" if at.part == "decoder" else ""
    alone = {name: value[1:] for name, value in given.items()}
    for name in ("input_ids", "attention_mask"):
        alone[prefix + name] = alone[prefix + name][:, :-PADDED]
    padded = at.run(put_as(at, model, way, mask, given), given)[1:]
    put_as(at, model, way, mask, alone)
    del alone[prefix + "attention_mask"]
    short = at.run(model, alone)
    assert torch.allclose(padded[:, : short.shape[1]], short, atol=2e-5)


# -- what else is done to models ---------------------------------------------------------------
@by_mask_and_gates
@every
@pytest.mark.nightly
def test_copies_keep_mask_and_gates(at: Architecture, way: str):
    model, given = at.made(), at.inputs(PADDED)
    plain = at.run(model, given)
    put_as(at, model, way, mixed(at, model), given)
    masked = at.run(model, given)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(at.run(copied, given), masked)
        assert torch.equal(at.run(ms.detach(copied), given), plain)
    assert torch.equal(at.run(model, given), masked)


def gradients(at: Architecture, model: nn.Module, given: Given) -> dict[str, Tensor]:
    """Of a training step's loss, by parameter."""
    model.zero_grad()
    out = at.read(model.train()(**given))
    out[at.real(given)].square().mean().backward()
    return {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }


@by_mask_and_gates
@every
def test_checkpointing_changes_no_gradient(at: Architecture, way: str):
    given = at.inputs(PADDED)

    def made() -> nn.Module:
        model = at.made()
        put_as(at, model, way, mixed(at, model), given)
        for gates in model.modules():
            if isinstance(gates, Gates):  # noise: one sample serves the forward pass
                gates.deterministic = False
        return model

    expected = gradients(at, made(), given)
    model = made()
    if at.name in ("albert", "mpnet"):
        pytest.skip("transformers has no checkpointing for them")
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = gradients(at, model, given)
    assert found.keys() == expected.keys()
    assert way == "mask" or any("masksearch" in name for name in found)
    for name, grad in expected.items():
        assert torch.allclose(found[name], grad, atol=1e-6), name
    unmasked = gradients(at, ms.detach(model), given)
    assert any(not torch.allclose(unmasked[name], expected[name], atol=1e-4) for name in unmasked)


@by_mask_and_gates
@every
@pytest.mark.nightly
def test_data_parallel_models_keep_mask_and_gates(at: Architecture, way: str, one_process: None):
    given, models = at.inputs(PADDED), [at.made(), at.made()]
    for model in models:
        put_as(at, model, way, mixed(at, model), given)
    wrapped = nn.parallel.DistributedDataParallel(models[1], find_unused_parameters=True)
    real = at.real(given)
    assert torch.equal(at.run(wrapped, given), at.run(models[0], given))
    for model in (models[0], wrapped):
        at.read(model(**given))[real].square().mean().backward()
    for (name, one), (_, other) in zip(*(m.named_parameters() for m in models), strict=True):
        assert (one.grad is None) or torch.equal(one.grad, other.grad), name


def test_a_soft_cap_on_scores_is_refused():
    sizes = {**GROUPED, "attn_implementation": "eager", "num_hidden_layers": 1, "head_dim": 8}
    config = hf.Gemma2Config(**sizes, num_key_value_heads=2, attn_logit_softcapping=2.0)
    model = hf.Gemma2Model(config).eval()
    with pytest.raises(AttachError, match="Attention computes its scores with a soft cap"):
        ms.attach(model, masks.full())
    assert model.config._attn_implementation == "eager"


# -- compiled ----------------------------------------------------------------------------------
def check_compiled(at: Architecture, backend: str, way: str, layers: int = 2) -> None:
    """Outputs and gradients of the compiled model are the plain one's."""
    given = at.inputs(PADDED)
    models = [at.made(layers), at.made(layers)]
    for model in models:
        put_as(at, model, way, mixed(at, model), given)
    torch.compiler.reset()
    compiled = torch.compile(models[1], backend=backend)
    real = at.real(given)
    assert torch.allclose(at.run(compiled, given)[real], at.run(models[0], given)[real], atol=1e-5)
    for model in (models[0], compiled):
        at.read(model(**given))[real].square().mean().backward()
    for (name, one), (_, other) in zip(*(m.named_parameters() for m in models), strict=True):
        grads = [torch.zeros(1) if p.grad is None else p.grad for p in (one, other)]
        assert torch.allclose(*grads, atol=1e-5), name  # compiled, unused weights have zeros


@pytest.mark.nightly
@by_mask_and_gates
@every
def test_compiled_models_keep_mask_and_gates(at: Architecture, way: str):
    check_compiled(at, "aot_eager", way)


INDUCTOR = [("bert", "mask"), ("bert", "flip"), ("llama", "mask"), ("llama", "flip")]
INDUCTOR += [("t5-cross", "mask")]  # with gates, torch 2.13 writes C++ that does not compile


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "way"), INDUCTOR)
def test_inductor_keeps_mask_and_gates(name: str, way: str, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a killed run leaves half files
    check_compiled(ARCHITECTURES[name], "inductor", way, layers=1)


# -- generation --------------------------------------------------------------------------------
PROMPT, NEW = 6, 8
FIRST = masks.global_tokens(1)  # also for decoders that are longer than what they read
LOOKS_BACK = masks.per_head(
    [masks.window(2) | FIRST, masks.star(), masks.window(1) | FIRST, masks.stride(3) | FIRST]
)
PARTS = ("encoder", "decoder", "cross")


def generating(name: str) -> nn.Module:
    model: nn.Module = seeded(lambda: GENERATORS[name](2, 40))
    return model


def put_on_all(name: str, model: nn.Module, way: str) -> nn.Module:
    """A mask, or gates of the same table, on every attention layer."""

    def one() -> Any:
        kept = LOOKS_BACK.dense(PROMPT + NEW, 1, HEADS)
        return LOOKS_BACK if way == "mask" else gates_of(kept, length=40)

    paired = name in ("t5", "bart")
    return ms.attach(model, {part: one() for part in PARTS} if paired else one())


def generated(model: Any, beams: int, left: bool = False, **how: Any) -> tuple[Tensor, Tensor]:
    """The tokens of two prompts, and what their scores were: logits, or those of the beams."""
    prompts = torch.randint(3, 50, (2, PROMPT), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(prompts)
    real[1, slice(0, 2) if left else slice(PROMPT - 2, None)] = 0
    made = model.generate(
        prompts,
        attention_mask=real,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        num_beams=beams,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        disable_compile=True,
        **how,
    )
    return made.sequences, torch.stack(made.logits) if beams == 1 else made.sequences_scores


@pytest.mark.parametrize("beams", [1, 3], ids=["greedy", "beams"])
@by_mask_and_gates
@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.nightly
def test_generation_with_any_cache_equals_without(name: str, way: str, beams: int):
    model, left = generating(name), name not in ("t5", "bart")
    whole = generated(model, beams, left)
    put_on_all(name, model, way)
    tokens, scores = generated(model, beams, left, use_cache=False)
    assert not torch.allclose(scores, whole[1], atol=1e-2)
    for cache in ("dynamic", "static"):
        found = generated(model, beams, left, cache_implementation=cache)
        assert torch.equal(found[0], tokens), cache
        assert torch.allclose(found[1], scores, atol=1e-4), cache


# -- backends ----------------------------------------------------------------------------------
LONG = 300
BLOCKS = masks.per_head(
    [
        masks.blocks(64) | masks.global_tokens(1),
        masks.window(40),
        masks.window(3) | masks.global_tokens(2),
        masks.block_columns(64, last=8) | masks.window(5),
    ]
)


@pytest.mark.parametrize(
    "left",
    [pytest.param(False, marks=pytest.mark.nightly, id="right"), pytest.param(True, id="left")],
)
@every
def test_gather_equals_sdpa(at: Architecture, left: bool):
    model, given = at.made(layers=1, length=LONG), at.inputs(33, left, length=LONG)
    found = {}
    for backend in ("sdpa", "gather"):
        put(at, model, BLOCKS, backend=backend)
        model.zero_grad(set_to_none=True)
        out = at.read(model(**given))[at.real(given)]
        out.square().mean().backward()
        found[backend] = [out.detach()]
        found[backend] += [one.grad for one in model.parameters() if one.grad is not None]
        # it has neither a bias on the scores nor two lengths: SDPA computes there
        biased = at.name.startswith(("t5", "mpnet", "deberta"))
        computes = backend == "gather" and not at.cross and not biased
        assert built(model) == ({"gather"} if computes else set())
    for expected, got in zip(*found.values(), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)
