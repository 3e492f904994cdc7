"""What errors of attach advise is done here to the letter, and works."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, BERT
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError

MASK = masks.window(1)
IDS = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(0))


def bert() -> Any:
    return ARCHITECTURES["bert"].made(layers=2, length=17)


def advice(call: Callable[[], Any], kind: type[Exception] = AttachError) -> list[str]:
    """The calls that an error names, in their order."""
    with pytest.raises(kind) as error:
        call()
    found = re.findall(r"(?:ms|model|x)\.[\w.]+\((?:[^()]|\([^()]*\))*\)", str(error.value))
    assert found, error.value
    return found


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()

    def forward(self, tokens: Tensor) -> Any:
        return self.inner(input_ids=tokens)


def test_other_attention_and_weights():
    model = ms.attach(bert(), MASK)
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


def test_a_module_with_inputs_of_its_own():
    model = Renamed().eval()
    [inside] = advice(lambda: ms.attach(model, MASK))
    eval(inside, {"ms": ms, "model": model, "mask": MASK})
    assert ms.attached(model.inner) == {"self": MASK}
    masked = model(IDS)[0]
    message = "put on through another module; detach that one first"
    with pytest.raises(AttachError, match=message):
        ms.attach(model, MASK, inputs={"tokens": IDS})
    ms.detach(model.inner)
    ms.attach(model, MASK, inputs={"tokens": IDS})
    assert torch.equal(model(IDS)[0], masked)


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


def test_reentrant_checkpoints():
    model = hf.BertModel(hf.BertConfig(**BERT, num_hidden_layers=2)).train()
    ms.attach(model, ms.Gates(length=9, heads=4, layers=2))
    model.gradient_checkpointing_enable({"use_reentrant": True})
    [step] = advice(lambda: model(IDS))
    eval(step, {"model": model})
    model(IDS)[0].sum().backward()
