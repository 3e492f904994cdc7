"""From command-line options to the evaluator that they name."""

import json

import pytest

import masksearch as ms
from masksearch.cli.build import (
    build_evaluator,
    build_executor,
    evaluator_kind,
    further_settings,
)
from masksearch.cli.options import EvaluatorOptions, ExecutorOptions, OptionsError
from masksearch.cli.resuming import COMMAND, remember
from masksearch.cli.search import evaluator_of
from masksearch.errors import UnknownNameError
from masksearch.evaluators.squad import SquadEvaluator
from masksearch.evaluators.swag import SwagEvaluator
from masksearch.evaluators.wrappers import Cached


def test_text_alone_is_masked_language_modelling(tmp_path):
    built = build_evaluator(
        EvaluatorOptions(corpus="text.txt", steps=7, set=["pretraining=mlm+order"])
    )
    assert type(built) is ms.MlmEvaluator
    assert (built.steps, built.pretraining) == (7, "mlm+order")


@pytest.mark.parametrize(
    ("option", "kind"),
    [("glue", ms.GlueEvaluator), ("squad", SquadEvaluator), ("swag", SwagEvaluator)],
)
def test_a_task_folder_names_the_evaluator(option, kind):
    built = build_evaluator(
        EvaluatorOptions(corpus="text.txt", rows=5, set=["epochs=2"], **{option: "folder"})
    )
    assert type(built) is kind
    assert (built.rows, built.epochs) == (5, 2)


def test_weights_need_no_corpus_to_fine_tune():
    built = build_evaluator(EvaluatorOptions(weights="model", glue="folder", tasks="RTE, CoLA"))
    assert isinstance(built, ms.GlueEvaluator)
    assert (built.corpus, built.weights, built.tasks) == (None, "model", ("RTE", "CoLA"))


def test_adapt_reaches_the_evaluator():
    given = {"weights": "model", "squad": "folder", "set": ["recover_steps=5"]}
    built = build_evaluator(EvaluatorOptions(adapt="recover", **given))
    assert isinstance(built, SquadEvaluator)
    assert (built.adapt, built.recover_steps) == ("recover", 5)


def test_a_decoder_is_judged_by_its_text():
    given = {"decoder": "text.txt", "weights": "model", "set": ["bands=[32,64]", "passkeys=4"]}
    built = build_evaluator(EvaluatorOptions(adapt="recover", length=512, **given))
    assert type(built) is ms.CausalEvaluator
    assert (built.adapt, built.positions, built.bands) == ("recover", 512, (32, 64))
    assert built.passkeys == 4
    recall = build_evaluator(EvaluatorOptions(decoder="recall", set=["architecture=qwen3"]))
    assert (recall.text, recall.architecture) == (ms.Recall(), "qwen3")


def test_preset_gives_way_to_what_is_named():
    built = build_evaluator(EvaluatorOptions(corpus="text.txt", preset="sparsebert", steps=3))
    assert isinstance(built, ms.MlmEvaluator)
    assert (built.size, built.optimiser, built.steps) == ("base", "lamb", 3)


def test_nothing_is_the_planted_corpus_and_set_reaches_it():
    built = build_evaluator(EvaluatorOptions(set=["downstream_steps=3"]))
    assert isinstance(built, ms.PlantedEvaluator)
    assert built.downstream_steps == 3


def test_reuse_wraps_before_costs(tmp_path):
    built = build_evaluator(EvaluatorOptions(reuse=tmp_path, memory=True))
    assert isinstance(built, ms.WithCost)
    assert isinstance(built.evaluator, Cached)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus": "a", "tasks": "RTE"}, "--tasks needs --glue"),
        ({"corpus": "a", "decoder": "b"}, "--corpus belongs to encoders; give one"),
        ({"decoder": "a", "rows": 4}, "--rows belongs to encoders"),
        ({"corpus": "a", "rows": 4}, "--rows needs --glue, --squad or --swag"),
        ({"corpus": "a", "glue": "b", "squad": "c"}, "--glue and --squad are two evaluators"),
        ({"weights": "a"}, "--weights needs --corpus"),
        ({"weights": "a", "adapt": "none"}, "--adapt needs --weights with --glue"),
        ({"corpus": "a", "weights": "b", "glue": "c", "adapt": "none"}, "and no --corpus"),
        ({"glue": "a"}, "--glue needs --corpus"),
        ({"corpus": "a", "set": ["epochs"]}, "--set takes name=value, got 'epochs'"),
        ({"corpus": "a", "set": ["steps=3"]}, "steps has an option of its own: --steps"),
        ({"cost_length": 3}, "--cost-length needs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(OptionsError, match=message):
        build_evaluator(EvaluatorOptions(**options))


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'dropuot'.*dropout"):
        build_evaluator(EvaluatorOptions(corpus="a", set=["dropuot=.1"]))


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
    built = build_evaluator(EvaluatorOptions(corpus="a", set=[setting]))
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
def test_a_setting_of_another_type_is_refused(setting, message):
    with pytest.raises(OptionsError, match=message):
        build_evaluator(EvaluatorOptions(corpus="a", set=[setting]))


def test_every_setting_of_every_evaluator_has_a_type():
    kinds = [evaluator_kind(task) for task in ("mlm", "glue", "squad", "swag")]
    for kind in (*kinds, ms.PlantedEvaluator):
        assert further_settings(kind, ["reports=3"]) == {"reports": 3}


def test_resume_finds_places_from_any_folder_and_leaves_hub_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a")
    given = {"corpus": "text.txt", "weights": "owner/model", "glue": "hf:nyu-mll/glue"}
    remember(tmp_path / "run", "search", given)
    stored = json.loads((tmp_path / "run" / COMMAND).read_text())["options"]
    assert stored == {**given, "corpus": str(tmp_path / "text.txt")}


def test_executors_by_name():
    assert build_executor(ExecutorOptions(slots=2)) == ms.Local(2)
    with pytest.raises(OptionsError, match="--gpus belongs to --executor ray"):
        build_executor(ExecutorOptions(gpus=0.5))
    with pytest.raises(UnknownNameError, match="lokal"):
        build_executor(ExecutorOptions(executor="lokal"))


def test_a_study_is_refused_under_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionsError, match="torchrun is for `masksearch pretrain`"):
        evaluator_of({})
