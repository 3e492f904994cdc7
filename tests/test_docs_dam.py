"""docs/dam.md and pages beside it: snippets run, names exist, gradients are those."""

import inspect
import re
from dataclasses import fields

import pytest
import torch
import transformers
from pages import blocks, read
from tiny_encoders import sizes
from transformers import BertConfig, BertForMaskedLM

import masksearch as ms
from masksearch.attention.call import AttentionCall
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.estimators import FORMS
from masksearch.gates.gates import Gates
from masksearch.gates.result import DamResult

PAGE = read("dam.md") + read("dam_health.md")
STEPS, TRIALS = 4, 2  # in place of the page's
OTHER = {"seed"}  # arguments of `dam` that the page names


def shortened(snippet: str) -> str:
    """The snippet with a few steps and trials, and without the page that it writes."""
    snippet = snippet.replace('study.report("report.html")', "study.report")
    snippet = re.sub(r'(steps"?[=:] ?)\d+', rf"\g<1>{STEPS}", snippet)
    return re.sub(r"trials=\d+", f"trials={TRIALS}", snippet)


def tiny_bert(*_: object) -> BertForMaskedLM:
    """Stands for the pre-trained model, which is not downloaded."""
    return BertForMaskedLM(BertConfig(**sizes(32, 16, 1, 2, 16, 32)))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:DAM. ")
def test_snippets_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.BertForMaskedLM, "from_pretrained", tiny_bert)
    evaluator = ms.PlantedEvaluator
    quick = {"steps": STEPS, "downstream_steps": 1, "held_out_sequences": 32}
    monkeypatch.setattr(ms, "PlantedEvaluator", lambda process: evaluator(process, **quick))
    space: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for snippet in blocks(PAGE, "python"):
            exec(compile(shortened(snippet), "docs/dam.md", "exec"), space)
    assert len(space["study"].records()) == TRIALS  # type: ignore[attr-defined]
    assert space["found"].probabilities.shape == (1, 2, 24, 24)  # type: ignore[attr-defined]
    assert space["published"].config["control"] == "sum"  # type: ignore[attr-defined]
    assert (tmp_path / "gates.safetensors").is_file()


def test_named_settings_exist():
    known = {field.name for field in fields(ms.DamConfig)} | OTHER
    for taker in (Gates, ms.dam, at_sparsity, DamResult.mask, DamResult.health):
        known |= set(inspect.signature(taker).parameters)
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.S)
    named = set(re.findall(r"`(?:\w+\()?(\w+)=[^=]", prose)) - {"name"}
    assert named > {"control", "dense_warmup", "retrained"}
    assert named <= known


def test_health_fields_are_those_of_the_card():
    start = PAGE.index("| field | look at it for |")
    rows = PAGE[start : PAGE.index("\n\n", start)].splitlines()[2:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    health = DamResult(torch.ones(1, 1, 3, 3), (), 0.5).health()
    assert named == {field.name for field in fields(health)}


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_the_weight_of_the_table(form):
    """dL/dM_ij = w_ij <g_i, v_j - y_i>, with the table's w."""
    make = torch.Generator().manual_seed(0)
    query, key, value, grad = (torch.randn(1, 1, 5, 4, generator=make) for _ in range(4))
    kept = torch.rand(5, 5, generator=make) < 0.5
    kept |= torch.eye(5, dtype=torch.bool)
    gate = kept.float()[None].requires_grad_()
    output = FORMS[form](AttentionCall(query, key, value, scaling=0.5), gate)
    (output * grad).sum().backward()
    odds = (query @ key.mT * 0.5)[0, 0].exp()
    odds = odds / (odds * kept).sum(-1, keepdim=True)
    weight = {
        "flip": torch.where(kept, odds / (1 - odds).clamp_min(0.1), odds / (1 + odds)),
        "log": odds * kept,
        "additive": 1e4 * odds * kept,
    }[form]
    gain = grad[0, 0] @ value[0, 0].T - (grad * output.detach())[0, 0].sum(-1, keepdim=True)
    torch.testing.assert_close(gate.grad[0], weight * gain, rtol=1e-3, atol=1e-4)
