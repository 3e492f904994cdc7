"""Families of models: exact under attach, or refused by name; the page says which."""

import re
from pathlib import Path

import pytest
import transformers as hf
from families import VERDICTS, check, classes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/supported_models.md").read_text(encoding="utf-8")


def table(title: str) -> set[str]:
    """The names in a table of the page."""
    section = PAGE.partition(f"\n### {title.capitalize()}\n")[2].partition("\n### ")[0]
    return {*re.findall(r"`(\w+)`", section)}


TABLES = {verdict: table(title) for verdict, title in VERDICTS.items()}
DOZEN = (  # a class of each kind that the probe and the interface tell apart
    "LlamaForCausalLM",  # grouped keys, all caches
    "MistralForCausalLM",  # its own sliding window
    "GptOssForCausalLM",  # learned sinks
    "DiffLlamaForCausalLM",  # two calls a layer
    "DogeForCausalLM",  # changes its mask
    "Qwen3NextForCausalLM",  # a hybrid
    "Gemma2ForCausalLM",  # a soft cap: refused
    "Gemma4ForConditionalGeneration",  # configurations that differ by layer
    "BertForMaskedLM",
    "AlbertForMaskedLM",  # a shared layer
    "T5ForConditionalGeneration",  # a bias on the scores
    "BigBirdPegasusForConditionalGeneration",  # eager alone, adds its mask to scores
    "ViTForImageClassification",
    "SwinForImageClassification",  # windows: refused
)


def as_on_the_page(name: str) -> None:
    outcome = check(name)
    assert outcome.verdict in VERDICTS, f"{outcome.note}"
    if f"transformers {hf.__version__}" in PAGE:
        assert name in TABLES[outcome.verdict], f"{outcome.verdict}: {outcome.note}"


@pytest.mark.slow
@pytest.mark.parametrize("name", DOZEN)
def test_a_dozen_families(name):
    as_on_the_page(name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted({*classes()} - {*DOZEN}))
def test_every_family(name):
    as_on_the_page(name)


def test_the_page_holds_every_class_and_the_readme_its_count():
    if f"transformers {hf.__version__}" in PAGE:
        assert {*classes()} == set().union(*TABLES.values())
    kinds = classes()
    decoders = sum(kinds.get(name) == "decoder" for name in TABLES["exact"])
    assert decoders >= 85
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{len(TABLES['exact'])} model classes" in readme
