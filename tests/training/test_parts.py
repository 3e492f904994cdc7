"""The settings of evaluators: where they are declared, defaults, what is refused."""

import inspect
import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import pytest
from other_process import python

import masksearch as ms
from masksearch.contracts import Evaluator
from masksearch.errors import UnknownNameError
from masksearch.training.parts import Settings
from masksearch_decoders import CausalEvaluator, EngineEvaluator

GROUPS = [kind for kind in ms.GlueEvaluator.__mro__ if kind.__module__ == Settings.__module__][:-1]


def settings_of(kind: type) -> set[str]:
    """The names of what an evaluator takes and shows."""
    return {each.name for each in fields(kind) if each.init and each.repr}


def described_in(kind: type) -> list[str]:
    """The names under `Args:`, and under nothing else, of a docstring."""
    described = (inspect.getdoc(kind) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    return re.findall(r"^    (\w+): ", described, re.M)


def evaluators(kind: type = Evaluator) -> Iterator[type]:
    """Every evaluator of the package that is loaded, bases before what inherits from them."""
    for each in kind.__subclasses__():
        if each.__module__.startswith("masksearch") and is_dataclass(each):
            yield each
        yield from evaluators(each)


def test_a_setting_is_declared_and_described_once_and_has_one_type():
    """But for other defaults of it, and for the data that GLUE and a text both call tasks."""
    assert all(getattr(ms, name) for name in ms.__all__ if name.endswith("Evaluator"))
    assert EngineEvaluator in evaluators()  # all are loaded
    described, types = Counter[str](), defaultdict[str, set[str]](set)
    for kind in {*GROUPS, *(kind for kind in evaluators() if issubclass(kind, Settings))}:
        own = {name for name in vars(kind).get("__annotations__", {}) if name in vars(kind)}
        helps = described_in(kind) if "__doc__" in vars(kind) else []
        inherited = {f.name for base in kind.__bases__ if is_dataclass(base) for f in fields(base)}
        described.update({name for name in helps if name in settings_of(kind)})
        assert inherited | {*helps} >= own & settings_of(kind), kind
        narrower = {"adapt", "tasks"}  # without None
        if kind is ms.EmbeddingEvaluator:
            narrower |= {"weights", "gates_batch"}
        for name in own & settings_of(kind) - narrower:
            types[name].add(str(kind.__annotations__[name]))
    assert {name for name, kinds in types.items() if len(kinds) > 1} == set()
    of_planted = {"held_out_sequences", "size", "initializer_range"}  # it has no text, no weights
    of_embeddings = {"weights", "length", "rows", "dev_rows", "gates_batch"}  # of texts, no task
    twice = {"tasks", *of_planted, *of_embeddings}
    assert {name for name, times in described.items() if times > 1} == twice
    assert len(described) > 50


def test_a_group_is_described_whole():
    for group in GROUPS:
        inherited = {
            each.name for base in group.__bases__ if is_dataclass(base) for each in fields(base)
        }
        names = [each.name for each in fields(group) if each.name not in inherited]
        assert described_in(group) == names


def test_a_setting_is_an_attribute_and_a_field_to_replace():
    judge = ms.MlmEvaluator("a.txt", length=64, steps=3, size="1x64x2")
    assert judge == ms.MlmEvaluator(corpus="a.txt", length=64, steps=3, size="nano")
    assert hash(judge) == hash(ms.MlmEvaluator("a.txt", length=64, steps=3, size="nano"))
    assert pickle.loads(pickle.dumps(judge)) == judge
    assert judge == eval(repr(judge), {"MlmEvaluator": ms.MlmEvaluator, "PosixPath": Path})
    assert (judge.steps, judge.length, judge.weights) == (3, 64, None)
    final = replace(judge, split="holdout", steps=4)
    assert (final.split, final.steps, final.length) == ("holdout", 4, 64)


def test_an_evaluator_has_defaults_of_its_own():
    planted, text = ms.PlantedEvaluator(), ms.MlmEvaluator("a.txt")
    assert (planted.steps, text.steps) == (500, 800)
    assert ms.PlantedEvaluator(steps=800).steps == 800
    assert repr(text) == f"MlmEvaluator(corpus={Path('a.txt').resolve()!r})"


def test_settings_that_an_evaluator_does_not_have_are_refused():
    for name in ("stepps", "kv_heads", "epochs"):
        with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'"):
            ms.MlmEvaluator("a", **{name: 3})
    with pytest.raises(AttributeError, match="object has no attribute 'stepps'"):
        ms.MlmEvaluator("a").stepps  # noqa: B018


def test_a_class_with_another_default_keeps_the_rule_of_its_field():
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        ms.PlantedEvaluator(steps=-1)
    with pytest.raises(ValueError, match="lr must be positive, got 0"):
        ms.PlantedEvaluator(lr=0)


def test_values_out_of_range_are_refused():
    tuned = {"glue": "g", "weights": "w"}
    for make, error, message in (
        (lambda: ms.MlmEvaluator("a", steps=-1), ValueError, "steps must be at least 0, got -1"),
        (lambda: ms.MlmEvaluator("a", lr=0), ValueError, "lr must be positive, got 0"),
        (lambda: ms.MlmEvaluator("a", precision="half"), UnknownNameError, "precision 'half'"),
        (lambda: ms.MlmEvaluator("a", length=0), ValueError, "length must be at least 1, got 0"),
        (lambda: ms.MlmEvaluator("a", pretraining="nsp"), UnknownNameError, "pre-training 'nsp'"),
        (lambda: ms.MlmEvaluator("a", size="huge"), UnknownNameError, "model size 'huge'"),
        (lambda: ms.MlmEvaluator("a", dropout=1), ValueError, r"in \[0, 1\), got 1"),
        (lambda: ms.MlmEvaluator("a", held_out=2.0), ValueError, r"share in \(0, 1\), got 2.0"),
        (lambda: ms.MlmEvaluator("a", size="tinny"), UnknownNameError, "did you mean 'tiny'"),
        (lambda: ms.MlmEvaluator("a", steps=0), ValueError, "steps must be at least 1"),
        (lambda: ms.MlmEvaluator(None), ValueError, r"no corpus; give a text file or a folder$"),
        (lambda: ms.MlmEvaluator("a", architecture="gpt"), UnknownNameError, "architecture 'gpt'"),
        (lambda: ms.MlmEvaluator("a", reports=0), ValueError, "reports must be at least 1"),
        (lambda: ms.MlmEvaluator("a", micro_batches=0), ValueError, "micro_batches must be at"),
        (lambda: ms.MlmEvaluator("a", lr=float("nan")), ValueError, "lr must be positive, got na"),
        (lambda: ms.MlmEvaluator("a", optimiser="lam"), UnknownNameError, "did you mean 'lamb'"),
        (lambda: ms.MlmEvaluator("a", schedule="cosine"), UnknownNameError, "schedule 'cosine'"),
        (lambda: ms.MlmEvaluator("a", warmup=1.5), ValueError, r"steps in \[0, 1\], got 1.5"),
        (lambda: ms.GlueEvaluator(adapt="tune", **tuned), UnknownNameError, "adapt 'tune'"),
        (lambda: ms.GlueEvaluator(recover_lr=-1.0, **tuned), ValueError, "recover_lr must be pos"),
        (lambda: ms.GlueEvaluator(finetune_lr=0.0, **tuned), ValueError, "finetune_lr must be p"),
        (lambda: ms.GlueEvaluator(finetune_seeds=0, **tuned), ValueError, "finetune_seeds must"),
        (lambda: ms.GlueEvaluator(epochs=0, **tuned), ValueError, "epochs must be at least 1"),
        (lambda: ms.GlueEvaluator(rows=0, **tuned), ValueError, "rows must be at least 1"),
        (lambda: ms.GlueEvaluator(dev_rows=0, **tuned), ValueError, "dev_rows must be at least"),
        (lambda: ms.GlueEvaluator(frozen="some", **tuned), ValueError, "or None, got 'some'"),
        (lambda: ms.GlueEvaluator(recover_steps=0, **tuned), ValueError, "recover_steps must be"),
        (lambda: ms.GlueEvaluator(frozen=-1, **tuned), ValueError, "'all' or None, got -1"),
        (lambda: CausalEvaluator("a", kv_heads=0), ValueError, "kv_heads must be at least 1"),
        (
            lambda: CausalEvaluator("recall", length=40, held_out="b"),
            ValueError,
            "token ids of its own",
        ),
        (lambda: ms.MlmEvaluator("recall"), ValueError, "reads text, and planted recall is"),
        (lambda: ms.GlueEvaluator("a"), TypeError, "GlueEvaluator needs glue=, which has no"),
        (lambda: ms.MlmEvaluator("a", 64), TypeError, "takes from 1 to 2 positional arguments"),
    ):
        with pytest.raises(error, match=message):
            make()


def test_the_signature_shows_every_setting():
    shown = inspect.signature(ms.GlueEvaluator).parameters
    assert [*shown][:3] == ["corpus", "glue", "tasks"]
    assert (shown["steps"].default, shown["convention"].default) == (800, "primary")
    assert shown.keys() == settings_of(ms.GlueEvaluator)


def test_a_subclass_takes_settings_too_and_may_have_its_own_constructor():
    @dataclass(frozen=True)
    class Mine(ms.MlmEvaluator):
        extra: int = 0

    mine = Mine("a.txt", steps=3, extra=2)
    assert (mine.steps, mine.extra) == (3, 2)
    assert repr(mine) == f"Mine(steps=3, corpus={Path('a.txt').resolve()!r}, extra=2)"

    class Short(ms.MlmEvaluator):
        def __init__(self, folder):
            super().__init__(folder, steps=1)

    assert Short(folder="a.txt").steps == 1


def test_the_page_lists_every_setting_in_its_group():
    page = (Path(__file__).parents[2] / "docs" / "proxy.md").read_text(encoding="utf-8")
    for group in GROUPS:
        [row] = re.findall(rf"^\| `{group.__name__}` \| (.*) \|$", page, re.M)
        assert re.findall(r"`(\w+)`", row) == [each.name for each in fields(group)]
    assert all(issubclass(group, Settings) for group in GROUPS)


def test_parts_load_no_torch():
    code = "import sys, masksearch.training.parts; sys.exit('torch' in sys.modules)"
    assert python("-c", code, timeout=120).returncode == 0
