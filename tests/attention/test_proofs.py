"""What attach refuses: no model, mask, part or length, and layers that the probe cannot prove."""

import re
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, BERT, llama_config
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

import masksearch as ms
from masksearch import masks
from masksearch.attention.attach import attach, detach
from masksearch.attention.explain import explain
from masksearch.errors import AttachError, UnknownNameError
from masksearch.gates.gates import Gates


def bert(*sizes: int) -> Any:
    return ARCHITECTURES["bert"].made(*sizes)


HOLDER = types.SimpleNamespace(model=bert())
WINDOW = attach(bert(), masks.window(2))
NO_MODEL = r"takes a model \(torch\.nn\.Module\) first, got"
NO_MASK = r"a mask or gates, got .*; a bool table .*masks\.table"
NO_PART = "a part is named by a string such as 'encoder'"
NO_LENGTH = "length must be a whole number of positions, got"
GIVE_IT = r"got SimpleNamespace; give the model that it holds: ms\.%s.*\(x\.model"
MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    **{
        f"mask {what} {'of a part' * part}": (
            lambda what=what, part=part: attach(bert(), {"self": what} if part else what),
            TypeError,
            NO_MASK,
        )
        for what in (None, 3, [masks.full()], torch.ones(5, 5).bool())
        for part in (False, True)
    },
    "expression": (lambda: attach(bert(), "window(3)"), TypeError,
        r"got 'window\(3\)'; .* masks\.parse\('window\(3\)'\)"),
    **{
        f"model {model} {call.__name__}": (
            lambda call=call, model=model: call(model),
            TypeError,
            NO_MODEL,
        )
        for model in (None, "bert", nn.Linear)
        for call in (detach, lambda model: attach(model, masks.full()))
    },
    "pipeline": (lambda: attach(HOLDER, masks.full()), TypeError, GIVE_IT % "attach"),
    "pipeline, detached": (lambda: detach(HOLDER), TypeError, GIVE_IT % "d"),
    "no model inside": (lambda: attach(nn.Linear(2, 2), masks.full()), AttachError,
        "Linear contains no Hugging Face model.*in docs/plain_pytorch.md"),
    "part": (lambda: attach(bert(), masks.full(), part=3), TypeError, NO_PART),
    "part of a mapping": (lambda: attach(bert(), {0: masks.full()}), TypeError, NO_PART),
    **{
        f"unknown part {name!r}": (
            lambda name=name: attach(bert(), masks.full(), part=name),
            UnknownNameError,
            r"unknown part of BertModel .* Known: self",
        )
        for name in ("decoder", "encoders", "")
    },
    "no backend": (lambda: attach(bert(), masks.full(), backend=None), UnknownNameError,
        "unknown backend 'None'"),
    "mistyped backend": (lambda: attach(bert(), masks.full(), backend="sdpaa"), UnknownNameError,
        "unknown backend 'sdpaa'; did you mean 'sdpa'"),
    **{
        f"length {length!r}": (
            lambda length=length: explain(WINDOW, length=length),
            ValueError,
            NO_LENGTH,
        )
        for length in (2.5, "8", True)
    },
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_say_what_is_given(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_numbers_of_numpy_are_lengths():
    assert explain(WINDOW, length=np.int64(8)).rows == explain(WINDOW, length=8).rows


# -- what a made-up forward pass cannot do -----------------------------------------------------
def choices() -> Any:
    return hf.BertForMultipleChoice(hf.BertConfig(**BERT, num_hidden_layers=1)).eval()


def llava() -> Any:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32}
    sight = hf.CLIPVisionConfig(
        **sizes, num_hidden_layers=1, image_size=16, patch_size=8, projection_dim=32
    )
    config = hf.LlavaConfig(
        text_config=llama_config(1, 40), vision_config=sight, image_token_index=49
    )
    return hf.LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (choices, r"the layers of BertForMultipleChoice are found by a forward pass, and one with "
         r"made-up inputs \(input_ids \[1, 5\]\) failed: RuntimeError: shape .*; give the "
         r"arguments of one that works, .*: ms\.attach\(model, mask, "
         r"inputs=\{\"input_ids\": batch\[\"input_ids\"\]\}\)"),
        (llava, r"the layers of LlavaForConditionalGeneration .* \(input_ids \[1, 5\], "
         r"pixel_values \[1, 3, 16, 16\]\) failed: ValueError: Image features and image tokens "
         r"do not match.*\"pixel_values\": batch\[\"pixel_values\"\]\}\)"),
    ],
)  # fmt: skip
def test_a_made_up_forward_pass_that_fails(make, message):
    model = make()
    before = model.config._attn_implementation
    with pytest.raises(AttachError, match=message) as caught:
        attach(model, masks.window(1))
    assert type(caught.value.__cause__) in (RuntimeError, ValueError)
    assert model.config._attn_implementation == before


def test_inputs_that_are_given_find_what_a_made_up_example_cannot():
    model, tokens = choices(), torch.randint(3, 50, (1, 3, 6))
    plain = model(input_ids=tokens).logits
    masked = attach(model, masks.window(0), inputs={"input_ids": tokens})(input_ids=tokens).logits
    assert not torch.allclose(masked, plain, atol=1e-5)
    with pytest.raises(RuntimeError, match="shape"):  # the caller's own inputs, and own error
        attach(model, masks.window(0), inputs={"input_ids": tokens[0, :, :5]})


def test_wrappers_name_the_model_inside():
    class Embedder(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.encoder = nn.ModuleDict({"hub": model})

        def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.encoder["hub"](**features)[0]

    at = ARCHITECTURES["bert"]
    whole, given = Embedder(at.made()), at.inputs()
    with pytest.raises(
        AttachError,
        match=r"forward takes features; give inputs=\{.*, or attach to the BertModel inside: "
        r"ms\.attach\(model\.get_submodule\(\"encoder\.hub\"\), mask\)",
    ):
        attach(whole, masks.window(1))
    expected = attach(at.made(), masks.window(1))(**given)[0]
    attach(whole.get_submodule("encoder.hub"), masks.window(1))
    assert torch.equal(whole(given), expected)
    with pytest.raises(AttachError, match="put on through another module; detach that one first"):
        attach(whole, masks.window(1), inputs={"features": given})
    detach(whole.get_submodule("encoder.hub"))
    attach(whole, masks.window(1), inputs={"features": given})
    assert torch.equal(whole(given), expected)
    with pytest.raises(AttachError, match="put on through another module"):
        attach(whole.get_submodule("encoder.hub"), masks.window(2))
    detach(whole)
    assert not torch.allclose(whole(given), expected, atol=1e-3)


# -- weights that lie elsewhere ----------------------------------------------------------------
@pytest.mark.parametrize("first", ["attach", "offload"])
def test_weights_that_accelerate_keeps_elsewhere(first):
    accelerate = pytest.importorskip("accelerate")
    at, cpu = ARCHITECTURES["bert"], torch.device("cpu")
    model, given = at.made(), at.inputs()
    expected = attach(at.made(), masks.window(1))(**given)[0]
    if first == "attach":
        attach(model, masks.window(1))
    accelerate.cpu_offload(model, execution_device=cpu)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    if first == "offload":
        attach(model, masks.window(1), inputs=given)
        attach(model, masks.window(1))
    assert torch.equal(model(**given)[0], expected)


# -- gates and checkpoints ---------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("settings", [{"use_reentrant": True}, {}, {"use_reentrant": False}])
def test_gates_and_reentrant_checkpoints(settings):
    at = ARCHITECTURES["bert"]
    model, given = at.made(), at.inputs()
    gates = Gates(structure="free", length=17, heads=4, layers=2)
    attach(model, gates)
    model.train().gradient_checkpointing_enable(settings)
    model.enable_input_require_grads()
    if settings == {"use_reentrant": False}:
        model(**given)[0].sum().backward()
        assert gates.logits.grad.abs().sum() > 0
        return
    with pytest.raises(
        AttachError,
        match=r"BertModel has trainable gates, .* re-entrant gradient checkpoints, .*; use the "
        r'other kind: model\.gradient_checkpointing_enable\(\{"use_reentrant": False\}\)',
    ):
        model(**given)
    with torch.no_grad():
        model(**given)
    model.eval()(**given)[0].sum().backward()
    model.train()
    gates.requires_grad_(False)
    for _ in range(2):
        model(**given)[0].sum().backward()


# -- what errors advise is done here to the letter, and works -----------------------------------
MASK = masks.window(1)
IDS = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(0))


def advice(call: Callable[[], Any], kind: type[Exception] = AttachError) -> list[str]:
    """The calls that an error names, in their order."""
    with pytest.raises(kind) as error:
        call()
    found = re.findall(r"(?:ms|model|x)\.[\w.]+\((?:[^()]|\([^()]*\))*\)", str(error.value))
    assert found, error.value
    return found


def test_other_attention_and_weights():
    model = attach(bert(), MASK)
    masked = model(IDS)[0]
    model.set_attn_implementation("eager")
    again, off, other = advice(lambda: model(IDS))
    eval(again, {"ms": ms, "model": model, "mask": MASK})
    assert torch.equal(model(IDS)[0], masked)
    for step in (off, other):
        eval(step, {"ms": ms, "model": model})
    assert torch.allclose(model(IDS)[0], bert()(IDS)[0], atol=1e-5)
    ms.attach(model, MASK)
    for step in advice(lambda: model(IDS, output_attentions=True)):
        eval(step, {"ms": ms, "model": model})
    assert len(model(IDS, output_attentions=True).attentions) == 2


def test_parts_and_things_that_are_no_model(tmp_path):
    t5 = hf.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = hf.T5Model(t5).eval()
    for step in advice(lambda: ms.attach(model, MASK)):
        eval(step, {"ms": ms, "model": model, "mask": MASK})
        assert ms.attached(model)
    holder = type("Pipe", (), {"model": bert()})()
    [step] = advice(lambda: ms.attach(holder, MASK), TypeError)
    eval(step, {"ms": ms, "x": holder, "mask": MASK})
    assert ms.attached(holder.model) == {"self": MASK}
    folder = str(ms.save_pretrained(holder.model, tmp_path))
    [step] = advice(lambda: ms.attach(bert(), folder), TypeError)
    made = eval(step, {"ms": ms, "model": bert()})
    assert ms.attached(made) == {"self": MASK}


# -- layers that the probe cannot prove ---------------------------------------------------------
class ToyConfig(PreTrainedConfig):
    model_type = "toy_of_a_test"


class Layer(nn.Module):
    """Attention through transformers' interface, with states of eight numbers as one head."""

    is_causal = False

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.eye(8))

    def forward(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        def own(*call: Any, **rest: Any) -> Any:
            raise AssertionError("the interface is used")

        attend = AttentionInterface().get_interface(self.config._attn_implementation, own)
        query, key = (query @ self.weight).unsqueeze(1), key.unsqueeze(1)
        return attend(self, query, key, key, mask)[0].flatten(2)


class Toy(PreTrainedModel):
    """One layer, called as a test says."""

    config_class = ToyConfig
    _supports_sdpa = True

    def __init__(self, forward: Callable[[Layer, Tensor], Tensor]) -> None:
        super().__init__(ToyConfig())
        self.table = nn.Embedding(9, 8)
        self.layer = Layer(self.config)
        self.how = forward

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.how(self.layer, self.table(input_ids))


REFUSED = {
    "pooled keys": (
        lambda layer, states: layer(states, states[:, ::3]),
        "attends to 2 keys, and no sequence of the model has as many positions",
    ),
    "fewer queries": (
        lambda layer, states: layer(states[:, :2], states[:, :2]),
        "attends with 2 queries, and the text has 5 tokens",
    ),
    "two lengths": (
        lambda layer, states: layer(layer(states, states), states[:, :3]),
        "calls attention with 5 queries and 3 keys after 5 and 5",
    ),
    "windows in the batch": (
        lambda layer, states: layer(*[states[:, :4].reshape(2, 2, 8)] * 2).reshape(1, 4, 8),
        "cuts its sequence into pieces, and attends within each: 2 queries and 2 keys",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_layer_does_is_said(name):
    forward, message = REFUSED[name]
    with pytest.raises(AttachError, match=rf"^layer \(Layer\) of Toy {message}; a mask is of the"):
        ms.attach(Toy(forward).eval(), masks.window(1))


def test_pieces_of_one_sequence_are_told_from_a_shared_layer():
    ids = {"input_ids": torch.ones(1, 6, dtype=torch.int64)}

    class Split(Layer):
        def forward(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
            attend = AttentionInterface().get_interface(self.config._attn_implementation, None)
            halves = query.unsqueeze(1).split(3, dim=2)
            return torch.cat([attend(self, each, each, each, None)[0] for each in halves], 1)

    toy = Toy(lambda layer, states: layer(states, states)).eval()
    toy.layer = Split(toy.config)
    with pytest.raises(AttachError, match=r"cuts its sequence into pieces.*3 queries and 3 keys"):
        ms.attach(toy, masks.window(1), ids)
    shared = Toy(lambda layer, states: layer(layer(states, states), states)).eval()
    assert ms.attached(ms.attach(shared, masks.window(1))) == {"self": masks.window(1)}


def test_a_layer_of_two_sequences_at_once_is_refused():
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"sliding_window": 64, "layer_types": ["full_attention"] * 2}
    eyes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    eyes |= {"num_attention_heads": 4, "image_size": 16, "patch_size": 8}
    signs = {"boi_token_index": 57, "eoi_token_index": 58, "image_token_index": 59}
    encoder = {"text_config": sizes, "vision_config": eyes, "mm_tokens_per_image": 4, **signs}
    config = hf.T5Gemma2Config(
        encoder=encoder, decoder=dict(sizes), image_token_index=59, vocab_size=60
    )
    model = hf.T5Gemma2ForConditionalGeneration(config).eval()
    tokens = torch.randint(3, 50, (1, 12))
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens[:, :9]}
    with pytest.raises(AttachError, match="attends to its own 9 positions and 12 others at once"):
        ms.attach(model, masks.window(3), inputs, part="cross")
    ms.attach(model, masks.full(), inputs, part="encoder")
    found = model(**inputs).logits
    assert torch.allclose(found, ms.detach(model)(**inputs).logits, atol=1e-6)


def test_choices_of_an_example_are_sequences_of_their_own():
    """`[batch, choices, tokens]` is folded by the model, and attended to row by row."""

    class Choices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = bert(1, 20)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.inner(input_ids.flatten(0, 1)).last_hidden_state

    ids = torch.ones(2, 3, 9, dtype=torch.int64)
    ms.attach(Choices().eval(), masks.window(1), {"input_ids": ids})
