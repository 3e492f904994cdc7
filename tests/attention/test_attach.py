"""Attached gates and masks: gates drawn once, checked; no mask vanishes silently."""

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from architectures import ARCHITECTURES, EVERY, HEADS, TEXT, states
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.attention.attach import attach, attached, detach
from masksearch.attention.call import AttentionCall
from masksearch.attention.explain import explain
from masksearch.errors import AttachError, HeadCountError, LayerCountError

BERT, NARROW = ARCHITECTURES["bert"], masks.window(1)
GIVEN = BERT.inputs()
MIXED = masks.per_head([masks.window(1), masks.star(), masks.bigbird(1, 1, 2), masks.stride(3)])


def generated(*shape: int) -> Tensor:
    return torch.randint(3, 50, shape, generator=torch.Generator().manual_seed(0))


def output(model: nn.Module, given: dict[str, Tensor] = GIVEN, **more: Any) -> Tensor:
    with torch.no_grad():
        return model(**given, **more)[0]


class Bank(nn.Module):
    """A gate bank that keeps everything and writes down how it is asked."""

    def __init__(self, layers: int = 2, heads: int = HEADS) -> None:
        super().__init__()
        self.length, self.layers, self.heads = TEXT, layers, heads
        self.weight = nn.Parameter(torch.ones(1))
        self.draws = 0
        self.calls: list[dict[str, Any]] = []

    def draw(self) -> None:
        self.draws += 1

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        assert call.query.shape == call.key.shape == call.value.shape
        self.calls.append({"layer": layer, "visible": call.visible, "dropout": call.dropout})
        out = F.scaled_dot_product_attention(
            call.query, call.key, call.value, call.visible, scale=call.scaling
        )
        return out * self.weight


class Caller(nn.Module):
    """Another library's wrapper, which calls the forward of the model in it by itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.steps = nn.Sequential(nn.Module())
        self.steps[0].model = inner
        self.steps[0].forward = lambda features: inner.forward(**features)

    def forward(self, features: dict[str, Tensor]) -> Any:
        return self.steps(features)[0]


def test_a_wrapper_of_another_library_is_opened_by_whom_knows_it(monkeypatch):
    """What acts before a forward pass acts in the wrapper, too: hooks on the model see nothing."""
    whole, inner = Caller(BERT.made()), BERT.made()
    with pytest.raises(AttachError, match=r"attach\(model\.get_submodule\(\"steps\.0\.model\"\)"):
        attach(whole, NARROW)
    opener = lambda model: model.steps[0].model if isinstance(model, Caller) else None  # noqa: E731
    monkeypatch.setattr("masksearch.attention.probe.OPENERS", [opener])
    for mask in (NARROW, NARROW | masks.same_token()):
        assert attach(whole, mask) is whole
        assert attached(whole) == attached(whole.steps[0].model) == {"self": mask}
        assert torch.equal(whole(GIVEN), output(attach(inner, mask)))
    whole.steps[0].model.set_attn_implementation("sdpa")
    with pytest.raises(AttachError, match="computes its attention by 'sdpa' now"):
        whole(GIVEN)
    detach(whole)(GIVEN)
    attach(whole, bank := Bank())(GIVEN)
    assert (bank.draws, len(bank.calls)) == (1, 2)
    detach(whole)(GIVEN)
    assert bank.draws == 1


def test_gates_are_drawn_once_in_a_pass():
    model, bank = BERT.made(), Bank()
    before = output(model)
    attach(model, bank)
    assert bank.draws == 0
    for passes in (1, 2):
        assert torch.allclose(output(model), before, atol=1e-5)
        assert bank.draws == passes
    assert [call["layer"] for call in bank.calls] == [0, 1] * 2
    assert {call["dropout"] for call in bank.calls} == {0.0}


def test_gates_see_attention_dropout_in_training():
    config = copy.deepcopy(BERT.made(1).config)
    config.attention_probs_dropout_prob = 0.25
    bank = Bank(layers=1)
    attach(hf.BertModel(config).train(), bank)(**GIVEN)
    assert bank.calls[0]["dropout"] == 0.25


def test_gates_are_a_submodule_until_detached():
    model, bank = BERT.made(), Bank()
    keys = list(model.state_dict())
    attach(model, bank)
    assert model.get_submodule("masksearch_gates") is bank
    assert any(parameter is bank.weight for parameter in model.parameters())
    model(**GIVEN)[0].square().sum().backward()
    assert bank.weight.grad is not None
    assert bank.weight.grad != 0
    detach(model)
    assert list(model.state_dict()) == keys
    draws = bank.draws
    output(model)
    assert bank.draws == draws


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_detached_model_is_gone_without_the_collector(family):
    """A loop over copies of a large model keeps the memory of one."""
    model = hf.AutoModelForSequenceClassification.from_config(
        hf.AutoConfig.for_model(family, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    )
    ms.attach(model.eval(), masks.window(2), drop_tokens=True)
    model(torch.ones(1, 6, dtype=torch.long))
    ms.detach(model)
    gc.collect()
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_gates_counts_are_checked():
    with pytest.raises(LayerCountError, match="the gates have 3 layers, the model 2"):
        attach(BERT.made(), Bank(layers=3))
    with pytest.raises(HeadCountError, match="the gates have 2 heads, the model 4"):
        attach(BERT.made(), Bank(heads=2))
    model = BERT.made()
    attach(model, Bank(layers=1, heads=1))
    output(model)


def test_a_table_of_more_positions_than_the_model_has_is_said_to_be_cut():
    model = BERT.made()
    most = model.config.max_position_embeddings
    wide = masks.table(torch.eye(most + 1).bool())
    with pytest.warns(UserWarning, match=f"of {most + 1} positions, .* has {most}: its"):
        attach(model, wide)
    attach(model, masks.cropped(wide, most + 1))  # of any length
    output(model)


class Square(Bank):
    """A bank that insists on as many queries as keys."""

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        assert call.query.shape[2] == call.key.shape[2]
        return super().attend(layer, call)


def test_gates_of_parts_are_drawn_where_they_are_used():
    model = ARCHITECTURES["bart-cross"].made()
    given = {"input_ids": generated(2, 9), "decoder_input_ids": generated(2, 6)}
    before = output(model, given)
    banks = {part: Square() for part in ("encoder", "decoder", "cross")}
    attach(model, banks)
    assert torch.allclose(output(model, given), before, atol=1e-5)
    assert [bank.draws for bank in banks.values()] == [1, 1, 1]
    assert {bank.calls[0]["visible"] is None for bank in banks.values()} == {True, False}
    assert set(model.get_submodule("masksearch_gates").children()) == set(banks.values())
    model.get_encoder()(given["input_ids"])
    assert [bank.draws for bank in banks.values()] == [2, 1, 1]
    detach(model)
    assert torch.equal(output(model, given), before)


def test_gates_shared_by_parts_are_drawn_once():
    model, bank = ARCHITECTURES["bart-cross"].made(), Square()
    attach(model, {"encoder": bank, "cross": bank})
    output(model, {"input_ids": generated(2, 9), "decoder_input_ids": generated(2, 6)})
    assert bank.draws == 1
    assert len(bank.calls) == 4
    assert model.get_submodule("masksearch_gates") is bank


def test_masks_and_gates_side_by_side():
    model, bank = ARCHITECTURES["bart-cross"].made(), Square()
    given = {"input_ids": generated(2, 9), "decoder_input_ids": generated(2, 9)}
    attach(model, {"encoder": MIXED, "cross": bank}, backend="gather")
    found = output(model, given | {"attention_mask": (torch.arange(9) < 7).long().expand(2, -1)})
    attach(model, MIXED, part="encoder")
    given["attention_mask"] = (torch.arange(9) < 7).long().expand(2, -1)
    assert torch.allclose(found, output(model, given), atol=1e-5)


# -- a mask never vanishes silently -------------------------------------------------------------
PASSED_OVER = (
    r"computes its attention by 'eager' now, which passes over the mask or gates .*; attach "
    r"again, ms\.attach\(model, mask\), or first ms\.detach\(model\) and then "
    r"model\.set_attn_implementation\('eager'\)"
)


def by_method(model: Any) -> None:
    model.set_attn_implementation("eager")


def by_configuration(model: Any) -> None:
    model.config._attn_implementation = "eager"


# -- another implementation --------------------------------------------------------------------
@pytest.mark.parametrize("change", [by_method, by_configuration])
@pytest.mark.parametrize(
    "through", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_another_implementation_is_noticed(change, through, tmp_path):
    model = through(attach(BERT.made(), NARROW))
    masked = output(model)
    change(model)
    for call in (
        output,
        lambda m: output(m, output_attentions=True),
        attached,
        lambda m: explain(m, length=8),
        lambda m: ms.save_pretrained(m, tmp_path / "saved"),
    ):
        with pytest.raises(AttachError, match="BertModel " + PASSED_OVER):
            call(model)
    assert torch.equal(output(attach(model, NARROW)), masked)
    assert attached(model) == {"self": NARROW}


@pytest.mark.parametrize("at", EVERY, ids=lambda at: at.name)
def test_every_architecture_notices_and_gives_no_weights_that_are_none(at):
    model, given = at.made(), at.inputs()
    plain = at.run(model, given)
    attach(model, masks.star(), part=at.part)
    at.run(model, given | {"output_attentions": False})
    with pytest.raises(AttachError, match="asked for output_attentions, and attention with a ma"):
        at.run(model, given | {"output_attentions": True})
    model.set_attn_implementation("eager")
    if at.own:  # which transformers does not do for such classes: the mask stays in force
        model.config._attn_implementation = "eager"
    with pytest.raises(AttachError, match=PASSED_OVER):
        at.run(model, given)
    detach(model)
    assert model.config._attn_implementation == "eager"  # what the user has set since then stays
    assert torch.allclose(at.run(model, given), plain, atol=1e-4)


def test_the_earlier_name_of_the_mask_goes_on_with_a_warning():
    model, mask = BERT.made(), masks.window(1)
    with pytest.warns(DeprecationWarning, match=r"^attach\(what=\) is now mask=$") as said:
        attach(model, what=mask)
    assert attached(model) == attached(attach(model, mask=mask)) == {"self": mask}
    assert said[0].filename == __file__


def test_a_configuration_that_asks_for_weights_is_refused():
    model = BERT.made()
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with pytest.raises(AttachError, match=r"leave output_attentions off, .* in model\.config, or"):
        attach(model, NARROW)
    assert len(model(**GIVEN).attentions) == 2
    model.config.output_attentions = False
    attach(model, NARROW)


def test_models_inside_others_notice():
    whole = hf.BertForMaskedLM(BERT.made().config).eval()
    attach(whole, NARROW)
    whole.bert.config._attn_implementation = "eager"
    for model in (whole, whole.bert, nn.DataParallel(whole)):
        with pytest.raises(AttachError, match="BertModel " + PASSED_OVER):
            output(model)
    with pytest.raises(AttachError, match=PASSED_OVER):
        attached(whole)


def test_towers_that_carry_no_mask_are_free():
    at = ARCHITECTURES["clip-text"]
    model, given = at.made(), at.inputs()
    attach(model, NARROW, part="text_model")
    model.vision_model.set_attn_implementation("eager")
    at.run(model, given)
    detach(model)
    assert model.vision_model.config._attn_implementation == "eager"
    assert model.text_model.config._attn_implementation == "sdpa"


def test_towers_that_share_a_configuration_notice_each():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = BERT.made()
            self.second = hf.BertModel(self.first.config, add_pooling_layer=False).eval()

        def forward(self, **given: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.first(**given)[0] + self.second(**given)[0],)

    model = Both()
    plain = output(model)
    alone = output(model.second)
    attach(model, {"first": NARROW}, inputs=GIVEN)
    assert torch.equal(output(model.second), alone)
    attach(model, {"first": NARROW, "second": NARROW}, inputs=GIVEN)
    assert not torch.allclose(output(model.second), alone, atol=1e-3)
    by_method(model.second)
    for tower in (model, model.first, model.second):
        with pytest.raises(AttachError, match=PASSED_OVER):
            output(tower)
    detach(model)
    model.first.set_attn_implementation("sdpa")
    assert torch.equal(output(model), plain)


@pytest.mark.nightly
@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_notice(whole):
    torch._dynamo.reset()
    model = attach(BERT.made(), NARROW)
    compiled = torch.compile(model, fullgraph=whole, backend="eager")
    assert torch.allclose(output(compiled), output(model), atol=1e-6)
    by_method(model)
    with pytest.raises(Exception, match="computes its attention by 'eager' now") as caught:
        output(compiled)
    assert whole or caught.type is AttachError
    attach(model, NARROW)
    assert torch.allclose(output(compiled), output(model), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_layers_are_found_without_compiling_anything(whole):
    """A model that compiles itself: whole graphs cannot record calls, and need not."""
    model, expected = BERT.made(), output(attach(BERT.made(), NARROW))
    graphs: list[object] = []
    model.compile(fullgraph=whole, backend=lambda graph, given: graphs.append(graph) or graph)
    attach(model, NARROW)
    assert not graphs
    assert torch.allclose(output(model), expected, atol=1e-6)
    assert graphs


# -- configurations of attached models ---------------------------------------------------------
@pytest.mark.parametrize("still", [True, False])
def test_a_student_is_made_from_the_configuration(still):
    teacher = attach(BERT.made(), NARROW)
    masked = output(teacher)
    student = hf.BertModel(copy.deepcopy(teacher.config), add_pooling_layer=False).eval()
    student.load_state_dict(teacher.state_dict())
    plain = output(BERT.made())
    assert torch.allclose(output(student), plain, atol=1e-6)
    if not still:
        detach(teacher)
    assert torch.equal(output(attach(student, NARROW)), masked)
    assert torch.equal(output(teacher), masked) == still
    assert torch.equal(output(detach(student)), plain)
    assert student.config._attn_implementation == "sdpa"
    assert torch.equal(output(teacher), masked) == still


def test_models_that_share_a_configuration_carry_masks_of_their_own():
    """As in a loop that makes a model from one configuration for each mask."""
    config = BERT.made().config
    first, second, dense = (hf.BertModel(config, add_pooling_layer=False).eval() for _ in range(3))
    for model in (second, dense):
        model.load_state_dict(first.state_dict())
    plain = output(first)
    narrow, star = output(attach(first, NARROW)), output(attach(second, masks.star()))
    assert not torch.allclose(narrow, star, atol=1e-3)
    dense.set_attn_implementation("eager")  # of the shared object, which the masks do not touch
    assert len(dense(**GIVEN, output_attentions=True).attentions) == 2
    dense.set_attn_implementation("sdpa")
    assert torch.equal(output(first), narrow)
    assert torch.equal(output(dense), plain)
    detach(first)
    assert torch.equal(output(second), star)
    assert torch.equal(output(first), plain)
    third = attach(hf.BertModel(second.config, add_pooling_layer=False).eval(), NARROW)
    third.load_state_dict(first.state_dict())
    assert torch.equal(output(third), narrow)
    assert torch.equal(output(second), star)
    assert torch.equal(output(detach(second)), plain)
    assert first.config is second.config is dense.config is config


def test_what_was_changed_meanwhile_outlives_the_mask():
    model = attach(BERT.made(), NARROW)
    model.config.use_cache = False
    model.config.label_names = ["yes"]
    assert model.config is model.encoder.layer[0].attention.self.config
    detach(model)
    assert model.config.use_cache is False
    assert model.config.label_names == ["yes"]
    assert model.config is model.encoder.layer[0].attention.self.config


def test_a_copied_part_keeps_its_mask_and_takes_no_other():
    whole = hf.BertForMaskedLM(BERT.made().config).eval()
    plain = output(whole.bert)
    attach(whole, NARROW)
    part = copy.deepcopy(whole.bert)
    assert torch.equal(output(part), output(whole.bert))
    with pytest.raises(AttachError, match=r"through another module; .* copy the whole, not a pa"):
        attach(part, masks.full())
    assert torch.equal(output(copy.deepcopy(detach(whole)).bert), plain)


# -- layers with a configuration of their own --------------------------------------------------
def paired() -> Any:
    config = BERT.made().config
    decoding = copy.deepcopy(config)
    decoding.is_decoder = decoding.add_cross_attention = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hf.EncoderDecoderModel(
            encoder=hf.BertModel(config), decoder=hf.BertLMHeadModel(decoding)
        ).eval()


def test_wrappers_that_exchange_configurations():
    model, tokens = paired(), GIVEN["input_ids"]
    given = {"input_ids": tokens, "decoder_input_ids": tokens[:, :9]}
    assert model.encoder.config is not model.encoder.encoder.layer[0].attention.self.config
    plain = model(**given)[0]
    several = {part: masks.full() for part in ("encoder", "decoder", "cross")}
    assert torch.allclose(attach(model, several)(**given)[0], plain, atol=1e-6)
    assert [slot.part for slot in states(model)].count("encoder") == 2
    alone = copy.deepcopy(detach(model).encoder)
    expected = attach(alone, NARROW)(input_ids=tokens)[0]
    attach(model, NARROW, part="encoder")
    assert torch.equal(model.encoder(input_ids=tokens)[0], expected)
    assert not torch.allclose(model(**given)[0], plain, atol=1e-3)
    assert torch.equal(model(**given)[0], copy.deepcopy(model)(**given)[0])
    model.encoder.encoder.layer[0].attention.self.config._attn_implementation = "eager"
    with pytest.raises(AttachError, match="BertModel " + PASSED_OVER):
        model(**given)
    attach(model, several)
    detach(model).encoder.encoder.layer[0].attention.self.config._attn_implementation = "sdpa"
    assert torch.equal(model(**given)[0], plain)


def test_a_tower_without_a_model_of_its_own_is_a_part():
    config = hf.ViTMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        image_size=16, patch_size=4, decoder_hidden_size=32, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=32,
    )  # fmt: skip
    model = hf.ViTMAEForPreTraining(config).eval()
    with pytest.raises(
        AttachError, match=r"kinds .*: vit \(2 layers, 4 heads\); decoder \(1 layers, 2 heads\)"
    ):
        attach(model, masks.star())
    attach(model, {"vit": masks.per_head([masks.star()] * 4), "decoder": masks.star()})
    model(torch.zeros(1, 3, 16, 16))
