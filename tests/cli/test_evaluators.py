"""From command-line options to the evaluator that they name."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from cli_runs import SPACE
from split_evaluators import SMALL, embedding, squad, swag
from toy import ToyEvaluator
from toy_questions import PLACE

import masksearch as ms
from masksearch.cli.build import build_evaluator
from masksearch.cli.search import SearchOptions
from masksearch.evaluators.wrappers import Cached
from masksearch_decoders import CausalEvaluator, EngineEvaluator
from masksearch_decoders.tasks.recall import Recall


def judge(**given):
    """The evaluator of a search with these options."""
    return build_evaluator(SearchOptions(**given))


@pytest.fixture
def refused(tmp_path, command):
    """What a search with these options is refused with."""

    def said(**given) -> str:
        (tmp_path / "spaces.py").write_text(SPACE)
        words = ["search", tmp_path / "spaces.py:space", "--run", tmp_path / "run"]
        for name, value in given.items():
            for each in value if isinstance(value, list) else [value]:
                words += [f"--{name}", each]
        return command.refused(*words)

    return said


FEW_ROWS, TUNED = {"set": ["rows=5", "epochs=2"]}, {"rows": 5, "epochs": 2}


@pytest.mark.parametrize(
    ("given", "kind", "settings"),
    [
        (
            {"corpus": "text.txt", "steps": 7, "set": ["pretraining=mlm+order"]},
            ms.MlmEvaluator,
            {"steps": 7, "pretraining": "mlm+order"},
        ),
        (
            {"corpus": "text.txt", "preset": "sparsebert", "steps": 3},  # which gives way
            ms.MlmEvaluator,
            {"size": "base", "optimiser": "lamb", "steps": 3},
        ),
        ({"corpus": "text.txt", "glue": "folder", **FEW_ROWS}, ms.GlueEvaluator, TUNED),
        (
            {"weights": "model", "glue": "folder", "tasks": "RTE, CoLA"},
            ms.GlueEvaluator,
            {"corpus": None, "weights": "model", "tasks": ("RTE", "CoLA")},
        ),
        (
            {"weights": "model", "glue": "f", "adapt": "recover", "set": ["recover_steps=5"]},
            ms.GlueEvaluator,
            {"adapt": "recover", "recover_steps": 5},
        ),
        ({"set": ["downstream_steps=3"]}, ms.PlantedEvaluator, {"downstream_steps": 3}),
    ],
)
def test_options_name_the_evaluator_and_its_settings(given, kind, settings):
    built = judge(**given)
    assert type(built) is kind
    assert {name: getattr(built, name) for name in settings} == settings


@pytest.mark.slow
def test_an_embedding_model_is_judged_by_texts_without_labels(tmp_path, refused):
    pytest.importorskip("sentence_transformers", reason="the extra `embed`")
    made = embedding(tmp_path)
    given = {"weights": str(made.weights), "data": made.texts, "text": ["one", "two"]}
    own = ["gates_batch=4", "device=cpu"]
    assert judge(**given, length=16, set=own) == made
    lines = given | {"data": tmp_path / "lines.txt", "text": None}
    alone = ms.EmbeddingEvaluator(lines["data"], made.weights, length=16)
    assert judge(**lines, length=16) == alone
    assert "--tasks needs --glue FOLDER" in refused(**given, tasks="RTE")
    said = refused(**given, adapt="recover")
    assert "EmbeddingEvaluator has no setting 'adapt'" in said
    assert "length has an option of its own: --length" in refused(**given, set="length=16")
    assert "EmbeddingEvaluator has no setting 'columns'" in refused(**given, set="columns=one")


def test_a_decoder_is_judged_by_its_text():
    given = {"decoder": "text.txt", "weights": "model", "set": ["bands=[32,64]", "task_rows=4"]}
    served = judge(adapt="recover", length=512, **given)
    assert (type(served), served.cache_layout) == (EngineEvaluator, "mask")
    built = served.evaluator
    assert type(built) is CausalEvaluator
    assert (built.adapt, built.positions, built.bands) == ("recover", 512, (32, 64))
    assert built.task_rows == 4
    recall = judge(decoder="recall", set=["architecture=qwen3", "cache_layout=vllm"])
    assert (recall.evaluator.corpus, recall.evaluator.architecture) == (Recall(), "qwen3")
    assert recall.cache_layout == "vllm"


def test_a_half_is_a_setting():
    assert judge(set=["split=holdout"]) == ms.PlantedEvaluator().on("holdout")


def test_reuse_wraps_the_evaluator(tmp_path):
    assert judge(reuse=tmp_path) == Cached(judge(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus": "a", "tasks": "RTE"}, "--tasks needs --glue"),
        ({"corpus": "a", "decoder": "b"}, "--corpus belongs to encoders; give one"),
        ({"decoder": "a", "set": ["rows=4"]}, "CausalEvaluator has no setting 'rows'"),
        ({"corpus": "a", "set": ["rows=4"]}, "MlmEvaluator has no setting 'rows'"),
        ({"corpus": "a", "set": ["training.warmup=.1"]}, "unknown prefix of --set 'training'"),
        ({"corpus": "a", "set": ["dropuot=.1"]}, "'dropuot'; did you mean 'dropout'?"),
        ({"weights": "a"}, "--weights needs --corpus"),
        ({"weights": "a", "adapt": "none"}, "--adapt needs --weights with --glue"),
        ({"corpus": "a", "weights": "b", "glue": "c", "adapt": "none"}, "and no --corpus"),
        ({"glue": "a"}, "--glue needs --corpus"),
        ({"corpus": "a", "set": ["epochs"]}, "--set takes NAME=VALUE, got 'epochs'"),
        ({"corpus": "a", "set": ["steps=3"]}, "steps has an option of its own: --steps"),
        ({"corpus": "a", "set": ["dropout=0", "dropout=1"]}, "--set names dropout twice"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, refused):
    assert message in refused(**options)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dropout=.1", 0.1),
        ("checkpoint_seconds=0", 0.0),
        ("whole_words=true", True),
        ("pretraining=mlm+next", "mlm+next"),
        ("initializer_range=null", None),
        ("device=cpu", "cpu"),
        ("held_out=hf:7", "hf:7"),
    ],
)
def test_a_setting_is_read_as_its_type(setting, value):
    built = judge(corpus="a", set=[setting])
    found = getattr(built, setting.partition("=")[0])
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("checkpoint_seconds=soon", "--set checkpoint_seconds takes a number, got 'soon'"),
        ("whole_words=1", "--set whole_words takes true or false, got '1'"),
        ("reports=2.5", "--set reports takes a whole number, got '2.5'"),
        ("reports=true", "--set reports takes a whole number, got 'true'"),
        ("dropout=none", "--set dropout takes a number or null, got 'none'"),
    ],
)
def test_a_setting_of_another_type_is_refused(setting, message, refused):
    assert message in refused(corpus="a", set=[setting])


@pytest.mark.parametrize("kind", ["corpus", "glue", "decoder", ""])
def test_every_setting_of_every_evaluator_has_a_type(kind):
    given = {"decoder": "a"} if kind == "decoder" else {"corpus": "a"} if kind else {}
    given |= {kind: "a"} if kind == "glue" else {}
    made = judge(set=["held_out_sequences=64"], **given)
    assert getattr(made, "evaluator", made).held_out_sequences == 64


OWN = """
import masksearch as ms
from masksearch.contracts import Evaluator, Objective, Report

class Tiny(Evaluator):
    protocol, objectives, shape = "t-1", (Objective("s", "max", 0.0),), ms.Shape(8, 1, 1)

    def __init__(self, steps: int = 150, rate=2, sizes: "list[int]" = ()):
        self.steps, self.rate, self.sizes = steps, rate, sizes

    def __call__(self, mask, *, seed, workdir):
        yield Report(1, {"s": self.rate})
"""


def test_a_class_of_ones_own_takes_settings(tmp_path, refused):
    toy = Path(__file__).parents[1] / "contracts" / "toy.py"
    own = f"{shutil.copy(toy, tmp_path / 'toy_of_my_own.py')}:ToyEvaluator"
    assert judge(evaluator=own, set=["nan_at=0.3"]).nan_at == 0.3
    assert "'nan_et'; did you mean 'nan_at'" in refused(evaluator=own, set=["nan_et=0.3"])
    assert re.search("--steps belongs .*--set steps=VALUE", refused(evaluator=own, steps=40))
    (tmp_path / "own.py").write_text(OWN)
    tiny = f"{tmp_path / 'own.py'}:Tiny"
    assert judge(evaluator=tiny, set=["steps=3", "rate=1", "sizes=[1, 2]"]).rate == 1
    for setting, wanted in (("steps=ten", "a whole number"), ("rate=fast", "a number")):
        said = refused(evaluator=tiny, set=[setting])
        assert re.search(f"--set {setting[:5].rstrip('=')} takes .*{wanted}", said), said


@pytest.mark.parametrize("make", [squad, swag])
def test_a_task_in_one_file_takes_the_settings_of_fine_tuning(make, tmp_path, monkeypatch):
    made, name = make(tmp_path), make.__name__
    monkeypatch.setitem(sys.modules, name, sys.modules[name])  # its file is run again
    given = {**SMALL, "epochs": 1, "cache": tmp_path / "cache", "corpus": made.corpus}
    given[name] = tmp_path / name
    own = f"{PLACE}/{name}.py:{type(made).__name__}"
    built = judge(evaluator=own, set=[f"{each}={value}" for each, value in given.items()])
    assert (repr(built), built.protocol) == (repr(made), made.protocol)


def test_resume_finds_places_from_any_folder_and_leaves_hub_names(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("masksearch.cli.build.build_evaluator", lambda *_: ToyEvaluator())
    (tmp_path / "text.txt").write_text("a")
    given = {"corpus": "text.txt", "weights": "owner/model", "glue": "hf:nyu-mll/glue"}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    words += ["--set", "swag=./text.txt", "--set", "lr=1/2"]
    command.called("search", "masksearch.spaces:distances", "--run", "run", *words)
    stored = json.loads((tmp_path / "run" / "command.json").read_text())["options"]
    assert {name: stored[name] for name in given} == {**given, "corpus": f"{tmp_path}/text.txt"}
    assert stored["set"] == [f"swag={tmp_path}/text.txt", "lr=1/2"]


def test_executors_by_name(refused, command, tmp_path):
    words = ("search", "masksearch.spaces:distances", "--run", tmp_path / "run", "--slots", 2)
    assert command.called(*words)["executor"] == ms.Local(2)
    assert command.called(*words, "--gpus", 0)["executor"] == ms.Local(2, gpus=0)
    assert "--cpus belongs to --executor ray" in refused(cpus=2)
    assert "slots=9000 of gpus=0.5 each need more cards than" in refused(slots=9000, gpus=0.5)
    assert "unknown executor 'lokal'; did you mean 'local'" in refused(executor="lokal")


def test_a_study_is_refused_under_torchrun(monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun is for `masksearch pretrain`" in refused()
