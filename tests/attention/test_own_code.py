"""Encoders whose attention is code of their own: each class beside that code, in float64."""

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_encoders import seeded, sizes
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.attention import own_code
from masksearch.errors import AttachError
from tests.attention.own_attention import masked_by_hand

SIZES = sizes(50, 32, 2, 4, 32, 40, initializer_range=0.3, pad_token_id=1)
SIZES |= {"bos_token_id": 0, "eos_token_id": 2}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PLACES = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
V3 = PLACES | {"position_buckets": 6, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mpnet": (hf.MPNetModel, {}),
    "deberta": (hf.DebertaModel, PLACES),
    "deberta-content": (hf.DebertaModel, {}),
    "deberta-v2": (hf.DebertaV2Model, PLACES),
    "deberta-v2-xlarge": (hf.DebertaV2Model, V3 | {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta-v2-content": (hf.DebertaV2Model, {}),
    "deberta-v3": (hf.DebertaV2Model, V3 | {"position_biased_input": False}),
    "megatron-bert": (hf.MegatronBertModel, {}),
    "rembert": (hf.RemBertModel, {}),
    "roformer": (hf.RoFormerModel, {}),
    "roformer-values": (hf.RoFormerModel, {"rotary_value": True}),
    "tapas": (hf.TapasModel, {}),
}
TEXT, PADDED = 18, 5
IDS = torch.randint(3, 50, (2, TEXT), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
REAL[1, -PADDED:] = 0
BY_HEAD = masks.per_head(
    [masks.window(2), masks.star(), masks.shifts([-1, 3]) | masks.columns(1), masks.stride(3)]
)
MASK = masks.per_layer([BY_HEAD, masks.window(3)])
every = pytest.mark.parametrize("name", MODELS)


def made(name: str, **more: Any) -> Any:
    """A random model in float64 and in evaluation mode, the same each time."""
    kind, fields = MODELS[name]
    return seeded(lambda: kind(kind.config_class(**SIZES | fields | more))).double()


class Head(nn.Module):
    """A head of one's own, which reads the first row."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        return states[:, 0]


def run(model: nn.Module, real: Tensor | None = REAL) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=real).last_hidden_state


def attention(model: nn.Module) -> list[nn.Module]:
    """The modules that the adapters are for, with adapters or without."""
    return [each for each in model.modules() if type(each).__name__.endswith("SelfAttention")]


def exact(name: str) -> float:
    """The rounding of a class: DeBERTa takes the root of a head's size in float32."""
    return 1e-5 if name.startswith("deberta") else 1e-9


# -- the same attention ------------------------------------------------------------------------
@every
def test_a_full_mask_changes_nothing_at_padding_either(name):
    model = made(name)
    for real in (None, REAL):
        dense = run(model, real)
        found = run(ms.attach(model, masks.full()), real)
        assert torch.allclose(found, dense, atol=exact(name), rtol=0)
        assert torch.equal(run(ms.detach(model), real), dense)


@every
def test_a_mask_is_what_the_own_code_computes_under_it(name):
    model = made(name)
    dense, kept = run(model), MASK.dense(TEXT, 2, 4)
    with masked_by_hand(dict(zip(attention(model), kept, strict=True))):
        wanted = run(model)
    found = run(ms.attach(model, MASK))
    real = REAL.bool()
    assert torch.allclose(found[real], wanted[real], atol=exact(name), rtol=0)
    assert not torch.allclose(found[real], dense[real], atol=0.1)


@every
def test_gradients_are_those_of_the_own_code(name):
    grads = []
    for masked in (False, True):
        model = made(name)
        tables = dict(zip(attention(model), MASK.dense(TEXT, 2, 4), strict=True))
        if masked:
            ms.attach(model, MASK)
        with masked_by_hand({} if masked else tables):
            out = model.train()(input_ids=IDS, attention_mask=REAL).last_hidden_state
        out[REAL.bool()].square().mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name_of, grad in grads[0].items():
        assert torch.allclose(grads[1][name_of], grad, atol=10 * exact(name), rtol=0), name_of


@every
def test_a_row_whose_kept_keys_are_all_padding_attends_to_nothing(name):
    model, outputs = made(name, num_hidden_layers=1), []
    ms.attach(model, masks.table(torch.eye(TEXT, dtype=torch.bool).roll(1, 1)))  # the next key
    (module,) = attention(model)
    module.register_forward_hook(lambda module, args, out: outputs.append(out[0][1]))
    run(model)
    last = TEXT - PADDED - 1
    nothing = module.o.bias if name == "mpnet" else torch.zeros(32).double()
    assert torch.allclose(outputs[0][last], nothing)
    assert not torch.allclose(outputs[0][last - 1], nothing, atol=1e-3)


# -- whose class it is ---------------------------------------------------------------------------
@every
def test_other_models_of_the_class_are_left_alone(name):
    model, other = made(name), made(name)
    dense, kind = run(other), type(attention(other)[0])
    masked = run(ms.attach(model, MASK))
    assert torch.equal(run(other), dense)
    assert {type(each) for each in attention(other)} == {kind}
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(copied), masked)
        assert torch.equal(run(ms.detach(copied)), dense)
        assert {type(each) for each in attention(copied)} == {kind}
    assert torch.equal(run(model), masked)
    ms.detach(model)
    assert {type(each) for each in attention(model)} == {kind}
    assert not any("config" in vars(each) for each in attention(model))


@pytest.mark.parametrize("what", ["mask", "gates"])
@pytest.mark.parametrize("name", ["mpnet", "deberta-v3", "megatron-bert"])
def test_a_model_of_the_same_configuration_stays_dense(name, what):
    model, wanted = made(name), run(made(name))
    ms.attach(model, MASK if what == "mask" else ms.Gates(length=TEXT, layers=2, heads=4))
    for config in (model.config, copy.deepcopy(model.config)):
        fresh = seeded(lambda config=config: type(model)(config)).double()
        fresh.load_state_dict({n: w for n, w in model.state_dict().items() if "gates" not in n})
        assert torch.equal(run(fresh), wanted)
        run(model)
        assert torch.equal(run(fresh), wanted)
    assert not torch.allclose(run(ms.attach(fresh, masks.window(1))), wanted, atol=0.1)
    assert ms.detach(fresh).config._attn_implementation == "eager"
    assert torch.equal(run(fresh), wanted)


def test_a_replica_computes_with_its_own_weights():
    """As DataParallel makes them: the module's attributes, and weights on another device."""
    model = ms.attach(made("deberta-v3", num_hidden_layers=1), masks.window(2))
    (module,) = attention(model)
    calls: list[Any] = []
    module.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    run(model)
    args, named = calls[0]
    replica = module._replicate_for_data_parallel()
    replica.value_proj = copy.deepcopy(module.value_proj)
    with torch.no_grad():
        replica.value_proj.weight.mul_(2)
        replica.value_proj.bias.mul_(2)
        once, twice = module(*args, **named)[0], replica(*args, **named)[0]
    assert torch.allclose(twice, 2 * once)


# -- what is refused -----------------------------------------------------------------------------
def test_an_adapter_that_computes_otherwise_is_refused(monkeypatch):
    name = "mpnet.modeling_mpnet.MPNetSelfAttention"
    adapter, allowed = own_code.ADAPTERS[name]

    def without_bias(self: Any, states: Any, mask: Any, position_bias: Any, **rest: Any) -> Any:
        return adapter(self, states, mask, None, **rest)

    monkeypatch.setattr(own_code, "CLASSES", {})
    monkeypatch.setitem(own_code.ADAPTERS, name, (without_bias, allowed))
    model = made("mpnet")
    dense = run(model)
    with pytest.raises(AttachError, match=r"^MPNetSelfAttention of MPNetModel .* off by \d"):
        ms.attach(model, MASK)
    assert torch.equal(run(model), dense)
    assert not ms.attached(model)
    assert model.config._attn_implementation == "eager"


def test_what_no_adapter_computes_is_refused():
    with pytest.raises(AttachError, match=r"DisentangledSelfAttention of DebertaModel .* off by"):
        ms.attach(made("deberta", talking_head=True), MASK)
    module, states = attention(ms.attach(made("deberta-v3"), MASK))[0], torch.zeros(1, 4, 32)
    with pytest.raises(AttachError, match="DisentangledSelfAttention is called with query_states"):
        module(states, torch.ones(1, 1, 4, 4), query_states=states)
    decoder = hf.RemBertForCausalLM(hf.RemBertConfig(**SIZES, is_decoder=True))
    with pytest.raises(AttachError, match="RemBertForCausalLM does not use transformers' attent"):
        ms.attach(decoder, MASK)
    wrapped = made("mpnet")
    for each in attention(wrapped):
        each.forward = each.forward  # another library's, which calls the own code
    with pytest.raises(AttachError, match="MPNetModel does not use transformers' attention"):
        ms.attach(wrapped, MASK)


def test_weights_that_are_kept_elsewhere_are_refused():
    accelerate = pytest.importorskip("accelerate")
    model = made("mpnet")
    wanted = run(model)
    accelerate.cpu_offload(model, "cpu")
    with pytest.raises(AttachError, match=r"Cannot copy out of meta tensor.*all on their devices"):
        ms.attach(model, MASK)
    assert torch.equal(run(model), wanted)


# -- tokens that no one will look at again -----------------------------------------------------
THIN = masks.per_layer([masks.full(), masks.columns(9), masks.columns(positions=[0, 3, 7])])
WORDS = masks.per_layer(
    [masks.full(), masks.token_columns(range(3, 35)), masks.token_columns([3, *range(7, 20)])]
)
NOT_LEFT_OUT = ("deberta", "deberta-v2-xlarge", "roformer", "roformer-values")


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(masks.full(), id="full", marks=pytest.mark.slow),
        pytest.param(THIN, id="thin"),
        pytest.param(WORDS, id="words", marks=pytest.mark.slow),
    ],
)
@every
def test_tokens_are_left_out_where_the_layers_allow_it(name, mask):
    model = Head(made(name, num_hidden_layers=3))
    dropping = ms.attach(copy.deepcopy(model), mask, drop_tokens=1)
    ms.attach(model, mask)
    for length in (TEXT, 16, 7):
        ids, real = IDS[:, :length].clone(), REAL[:, :length].clone()
        ids[:, 0], real[1, -3:] = 3, 0
        with torch.no_grad():
            whole, found = (each(ids, attention_mask=real) for each in (model, dropping))
        assert torch.allclose(found, whole, atol=exact(name), rtol=0), length
    told = str(ms.explain(dropping, length=TEXT))
    assert ("All tokens are computed" in told) == (name in NOT_LEFT_OUT), told


def test_mpnet_makes_keys_of_what_is_only_looked_at():
    model = ms.attach(Head(made("mpnet", num_hidden_layers=3)), THIN, drop_tokens=1)
    assert "compute 9, 3, 1" in " ".join(str(ms.explain(model, length=TEXT)).split())
    widths: list[int] = []
    for layer in model.encoder.encoder.layer:
        layer.register_forward_hook(lambda _, given, out: widths.append(out[0].shape[1]))
    with torch.no_grad():
        model(IDS)
    assert widths == [9, 3, 1]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_checkpoints_compute_all_tokens():
    grads = []
    for drop in (False, 1):
        model = Head(made("deberta-v3", num_hidden_layers=3)).train()
        model.encoder.gradient_checkpointing_enable()
        ms.attach(model, THIN, drop_tokens=drop)
        model(IDS, attention_mask=REAL).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))
