"""The four parts of evaluators: flat names, defaults, what is refused, one place a field."""

import inspect
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import pytest

import masksearch as ms
from masksearch.cli.options import read_helps
from masksearch.contracts import Evaluator
from masksearch.errors import UnknownNameError
from masksearch.training.parts import FLAT, PARTS, flat_settings, setting_names, usual_settings

ASSEMBLED = (ms.CausalEvaluator, ms.GlueEvaluator, ms.MlmEvaluator, ms.PlantedEvaluator)


def evaluators(kind: type = Evaluator) -> Iterator[type]:
    """Every evaluator of the package that is loaded, bases before what inherits from them."""
    for each in kind.__subclasses__():
        if each.__module__.startswith("masksearch.") and is_dataclass(each):
            yield each
        yield from evaluators(each)


def test_no_field_stands_on_two_evaluators():
    assert all(getattr(ms, name) for name in ms.__all__ if name.endswith("Evaluator"))
    assert ms.Served in set(evaluators())  # all are loaded
    written = Counter[str]()
    for kind in set(evaluators()):
        inherited = {f.name for base in kind.__bases__ if is_dataclass(base) for f in fields(base)}
        written.update({f.name for f in fields(kind)} - inherited)
    assert len(written) > 30
    assert {name for name, times in written.items() if times > 1} == {"tasks"}  # GLUE's; of text
    for kind in ASSEMBLED:
        assert len(fields(kind)) <= 12
        assert len(setting_names(kind)) == len(set(setting_names(kind)))


def test_every_setting_is_described_once_and_has_one_place():
    assert len(FLAT) == sum(len(fields(part)) for part in PARTS.values())
    for part in PARTS.values():
        assert list(read_helps(inspect.getdoc(part))) == [each.name for each in fields(part)]


def test_parts_and_flat_names_are_two_spellings_of_one_evaluator():
    text, training = ms.Text("a.txt", length=64), ms.Training(steps=3, batch=32)
    flat = ms.MlmEvaluator("a.txt", length=64, steps=3, size="1x64x2")
    whole = ms.MlmEvaluator(text=text, training=training, model=ms.Model(size="nano"))
    assert flat == whole
    assert hash(flat) == hash(whole)
    assert pickle.loads(pickle.dumps(flat)) == whole
    assert flat == eval(repr(flat), {"MlmEvaluator": ms.MlmEvaluator, "PosixPath": Path})
    assert (flat.steps, flat.training.steps, flat.length, flat.weights) == (3, 3, 64, None)
    adapted = {"corpus": None, "glue": "glue", "weights": "w"}
    by_part = ms.GlueEvaluator(adapt=ms.Adapt("recover", steps=5), **adapted)
    assert by_part == ms.GlueEvaluator(adapt="recover", recover_steps=5, **adapted)
    assert by_part == ms.GlueEvaluator(adaptation=ms.Adapt("recover", steps=5), **adapted)


def test_a_flat_name_changes_the_part_beside_it_alone():
    whole = ms.MlmEvaluator("a.txt", training=ms.Training(lr=1e-3, batch=8), steps=3)
    assert (whole.training.lr, whole.training.batch, whole.training.steps) == (1e-3, 8, 3)
    final = replace(whole, split="holdout", steps=4)
    assert final.split == "holdout"
    assert final.training == replace(whole.training, steps=4)
    assert final.text == whole.text
    adapted = ms.GlueEvaluator(None, "glue", weights="w", adapt="none", recover_steps=7)
    assert replace(adapted, adapt="recover").adaptation.steps == 7


def test_an_evaluator_has_defaults_of_its_own():
    planted, text = ms.PlantedEvaluator(), ms.MlmEvaluator("a.txt")
    assert (planted.training.steps, text.training.steps) == (500, 800)
    assert ms.PlantedEvaluator(training=ms.Training(steps=800)).training.steps == 800
    assert planted.model.architecture is None  # it reads none
    for kind in ASSEMBLED:
        assert set(usual_settings(kind)) <= set(setting_names(kind))
    assert flat_settings(text) == usual_settings(ms.MlmEvaluator) | {
        "corpus": Path("a.txt").resolve()
    }


def test_what_an_evaluator_does_not_have_is_answered_with_the_nearest_and_its_part():
    for make, message in (
        (
            lambda: ms.MlmEvaluator("a", stepps=3),
            r"'stepps'; did you mean 'steps' \(Training.steps\)",
        ),
        (lambda: ms.MlmEvaluator("a", kv_heads=2), "has no setting 'kv_heads'"),
        (lambda: ms.GlueEvaluator("a", "b", recover_step=2), r"'recover_steps' \(Adapt.steps\)"),
        (lambda: ms.GlueEvaluator("a", "b", convension="bert"), "did you mean 'convention'"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            make()
    with pytest.raises(AttributeError, match="object has no attribute 'stepps'"):
        ms.MlmEvaluator("a").stepps  # noqa: B018


def test_values_out_of_range_and_what_is_not_read_are_refused():
    for make, error, message in (
        (lambda: ms.Training(steps=-1), ValueError, "steps must be at least 0, got -1"),
        (lambda: ms.Training(lr=0), ValueError, "lr must be positive, got 0"),
        (lambda: ms.Training(precision="half"), ValueError, "float32 or bfloat16, got 'half'"),
        (lambda: ms.Text(length=0), ValueError, "length must be at least 1, got 0"),
        (lambda: ms.Text(pretraining="nsp"), UnknownNameError, "unknown pre-training 'nsp'"),
        (lambda: ms.Model(size="huge"), UnknownNameError, "unknown model size 'huge'"),
        (lambda: ms.Model(dropout=1), ValueError, r"dropout must lie in \[0, 1\), got 1"),
        (lambda: ms.Adapt("tune"), UnknownNameError, "unknown adapt 'tune'"),
        (lambda: ms.Adapt(steps=0), ValueError, "recover_steps must be at least 1, got 0"),
        (lambda: ms.Text("recall", length=40, held_out="b"), ValueError, "token ids of its own"),
        (lambda: ms.MlmEvaluator("recall"), ValueError, "reads text, and planted recall is"),
        (
            lambda: ms.MlmEvaluator("a", model=ms.Model(kv_heads=2)),
            ValueError,
            "does not read Model.kv_heads, got 2",
        ),
        (
            lambda: ms.MlmEvaluator("a", adapt=ms.Adapt(epochs=2)),
            ValueError,
            "does not read Adapt.epochs, got 2",
        ),
        (lambda: ms.GlueEvaluator("a"), TypeError, "GlueEvaluator needs glue="),
        (lambda: ms.MlmEvaluator("a", 64), TypeError, "takes text by position, got 2 values"),
        (lambda: ms.MlmEvaluator("a", text="b"), TypeError, "got text twice"),
    ):
        with pytest.raises(error, match=message):
            make()


def test_the_signature_shows_every_setting():
    shown = inspect.signature(ms.GlueEvaluator).parameters
    assert [*shown][:3] == ["text", "glue", "tasks"]
    assert (shown["steps"].default, shown["convention"].default) == (800, "primary")
    assert {*setting_names(ms.GlueEvaluator), *PARTS} <= {*shown}


def test_a_subclass_takes_flat_names_too():
    @dataclass(frozen=True)
    class Mine(ms.MlmEvaluator):
        extra: int = 0

    mine = Mine("a.txt", steps=3, extra=2)
    assert (mine.training.steps, mine.extra) == (3, 2)
    assert repr(mine).startswith("Mine(corpus=")
    with pytest.raises(TypeError, match=r"model is a part; call the method .* build_model"):

        class Wrong(ms.MlmEvaluator):
            def model(self, seed): ...


def test_the_page_lists_every_setting_under_its_part():
    page = (Path(__file__).parents[2] / "docs" / "proxy.md").read_text(encoding="utf-8")
    for name, part in PARTS.items():
        [row] = re.findall(rf"^\| `\w+=ms\.{part.__name__}\(\.\.\)` \| (.*) \|$", page, re.M)
        listed = {each: own or each for each, own in re.findall(r"`(\w+)`(?: \(`(\w+)`\))?", row)}
        assert listed == {n: place.field.name for n, place in FLAT.items() if place.part == name}


def test_parts_load_no_torch():
    code = "import sys, masksearch.training.parts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
