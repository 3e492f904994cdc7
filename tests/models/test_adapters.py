"""Wrappers around a model with a mask: they are seen through, and adapters are saved with it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_encoders import sizes
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError, DataError
from masksearch.models.checkpoints import verify
from masksearch.models.pretrained import open_pretrained

SIZES = sizes(30, 16, 2, 2, 16, 16, initializer_range=0.3)
MASK = masks.window(1) | masks.global_tokens(1)
IDS = torch.randint(3, 30, (2, 12), generator=torch.Generator().manual_seed(0))


def llama() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, eos_token_id=None)).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def with_adapter(model: Any, **settings: Any) -> Any:
    """A LoRA around the model, with weights that change something."""
    peft = pytest.importorskip("peft", reason="of the dev extra")
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, **settings))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in made.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
    return made.eval()


def follow(message: str, **names: Any) -> None:
    """Runs the calls that an error names."""
    calls = re.findall(r"ms\.\w+\([^;]*\)", message)
    assert calls, message
    for call in calls:
        exec(call, {"ms": ms, **names})


# -- wrappers ----------------------------------------------------------------------------------
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [with_adapter, torch.compile, nn.DataParallel, lambda m: nn.DataParallel(with_adapter(m))],
)
def test_wrappers_are_seen_through(wrap, first):
    inner = llama()
    if first:
        ms.attach(inner, MASK)
    outer = wrap(inner)
    if not first:
        assert ms.attach(outer, MASK) is outer
    for each in (outer, inner):
        assert ms.attached(each) == {"self": MASK}
        assert ms.explain(each, length=12).rows[0].names[0] == "model.layers.0.self_attn"
    assert ms.detach(outer) is outer
    assert ms.attached(inner) == {}
    with pytest.raises(AttachError, match="detach takes the module that attach was given, or one"):
        ms.detach(outer)
    with pytest.raises(AttachError, match=r"ms.attach\(model, mask\) first"):
        ms.explain(outer)


def test_what_is_attached_through_a_wrapper_is_in_force():
    outer = with_adapter(llama())
    plain = logits(outer)
    masked = logits(ms.attach(outer, MASK))
    assert not torch.allclose(masked, plain, atol=1e-3)
    assert torch.equal(logits(ms.detach(outer)), plain)


def test_a_compiled_model_is_saved_as_it_is(tmp_path):
    model = ms.attach(llama(), MASK)
    ms.save_pretrained(torch.compile(model, backend="eager"), tmp_path)
    assert torch.equal(logits(ms.load_pretrained(tmp_path)), logits(model))


def test_the_remedy_for_a_module_of_ones_own_works(tmp_path):
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList([llama()])

        def forward(self, input_ids: Tensor) -> Any:
            return self.body[0](input_ids=input_ids)

    model = ms.attach(Around().eval(), MASK, inputs={"input_ids": IDS[:, :5]})
    expected = logits(model)
    with pytest.raises(AttachError, match=r"ms\.attach\(model\.get_submodule") as error:
        ms.save_pretrained(model, tmp_path)
    follow(str(error.value), model=model, mask=MASK, folder=tmp_path)
    assert torch.equal(logits(ms.load_pretrained(tmp_path)), expected)


# -- adapters ----------------------------------------------------------------------------------
@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model without a mask in a folder."""
    llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def opened(folder: Path) -> Any:
    return hf.LlamaForCausalLM.from_pretrained(folder).eval()


@pytest.mark.slow
def test_an_adapter_comes_back_with_its_mask(base, tmp_path):
    model = ms.attach(with_adapter(opened(base)), MASK)
    folder = ms.save_pretrained(model, tmp_path / "adapter")
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "mask.json"} < names
    assert not {"model.safetensors", "config.json"} & names
    again = ms.load_pretrained(folder)
    assert type(again) is type(model)
    assert ms.attached(again) == {"self": MASK}
    assert torch.equal(logits(again), logits(model))
    plain = hf.AutoModelForCausalLM.from_pretrained(folder)  # transformers: dense
    assert torch.allclose(logits(plain), logits(ms.detach(model)), atol=1e-6)
    with pytest.raises(DataError, match=r"holds an adapter .* write one") as error:
        open_pretrained(folder)
    follow(str(error.value), model=again, folder=tmp_path / "merged")
    merged = ms.load_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), logits(ms.load_pretrained(folder)), atol=1e-5)
    assert ms.attached(merged) == {"self": MASK}


def test_an_adapter_may_bring_a_head(tmp_path):
    sizes = {**SIZES, "num_labels": 3}
    hf.BertModel(hf.BertConfig(**SIZES)).save_pretrained(tmp_path / "base")
    whole = hf.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    model = ms.attach(with_adapter(whole, task_type="SEQ_CLS"), MASK)
    again = ms.load_pretrained(ms.save_pretrained(model, tmp_path / "adapter"))
    assert sizes["num_labels"] == logits(again).shape[1]
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_whose_base_has_no_name_is_merged(base, tmp_path):
    model = ms.attach(with_adapter(llama()), MASK)
    expected = logits(model)
    with pytest.raises(
        AttachError, match=r"loaded from a folder or .* of a model without a name"
    ) as error:
        ms.save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    follow(str(error.value), model=model, folder=tmp_path / "out")
    assert torch.allclose(logits(ms.load_pretrained(tmp_path / "out")), expected, atol=1e-5)
    several = with_adapter(opened(base))
    several.add_adapter("other", several.peft_config["default"])
    with pytest.raises(AttachError, match="has the adapters default, other") as error:
        ms.save_pretrained(ms.attach(several, MASK), tmp_path / "several")
    follow(str(error.value), model=several, folder=tmp_path / "several")


@pytest.mark.slow
def test_a_trainer_writes_adapters_with_their_mask(base, tmp_path):
    rows = [{"input_ids": ids, "labels": ids} for ids in IDS.repeat(4, 1)]
    settings = {"max_steps": 2, "save_steps": 1, "report_to": [], "use_cpu": True}
    out = tmp_path / "out"

    def training(steps: int) -> hf.Trainer:
        return hf.Trainer(
            with_adapter(opened(base)),
            hf.TrainingArguments(str(out), **settings | {"max_steps": steps}),
            train_dataset=rows,
            callbacks=[ms.MaskCallback(MASK)],
        )

    first = training(2)
    first.train()
    again = ms.load_pretrained(out / "checkpoint-2")
    assert torch.equal(logits(again), logits(first.model))
    assert ms.attached(again) == {"self": MASK}
    second = training(3)
    second.train(resume_from_checkpoint=True)
    assert verify(out / "checkpoint-3") == {"self": MASK}


def test_an_adapter_is_not_read_from_a_pickle(base, tmp_path):
    folder = ms.save_pretrained(ms.attach(with_adapter(opened(base)), MASK), tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(DataError, match=r"no adapter_model\.safetensors, and pickles"):
        ms.load_pretrained(folder)
