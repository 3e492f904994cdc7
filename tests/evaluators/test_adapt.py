"""Masks on dense models: fine-tuned once, kept, shared; judged as they are or after some steps."""

import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import reports_until
from tiny_checkpoint import tiny_checkpoint
from toy_questions import (
    SquadEvaluator,
    SwagEvaluator,
    squad_json,
    swag_rows,
    write_squad,
    write_swag,
)
from toy_sentences import SMALL, judged, sentence_judge, write_sentences
from toy_words import TOKENS

import masksearch as ms
from masksearch import GlueEvaluator, masks
from masksearch.contracts import OneShot, Report
from masksearch.errors import (
    DataError,
    MaskSearchError,
    SearchError,
    TokensNeededError,
    UnknownNameError,
)
from masksearch.evaluators.wrappers import Cached
from masksearch.gates.dam import run_one_shot
from masksearch.gates.result import DamResult
from masksearch.masks.measure import effective_density, fingerprint, measures, pair_weights
from masksearch.models.pretrained import open_tuned
from masksearch.tasks.glue.tasks import TASKS
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import follow_trainings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks and a checkpoint, see `write_sentences`."""
    return write_sentences(tmp_path_factory.mktemp("adapt"))


def evaluator(data: Path, cache: Path, **settings: Any) -> GlueEvaluator:
    small = {"cache": cache, "adapt": "none", "recover_steps": 3}
    return sentence_judge(data, **(small | settings))


@pytest.fixture(scope="module")
def cache(data: Path) -> Path:
    """A cache folder that holds the dense model of SST-2, seed 1."""
    folder = data / "cache"
    judged(evaluator(data, folder), data / "first")
    return folder


# -- the dense model ---------------------------------------------------------------------------
@pytest.mark.slow
def test_a_dense_model_is_trained_once_for_all_masks(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, tmp_path / "cache")
    full, first = judged(judge, tmp_path / "a", masks.full())
    assert first == judge.finetune_steps("SST-2")
    narrow, second = judged(judge, tmp_path / "b", masks.window(0))
    again, third = judged(judge, tmp_path / "c", masks.full())
    assert (second, third) == (0, 0)
    assert full == again
    assert full["SST-2"] > 0.8
    assert set(narrow) == set(full)


def dense_key(judge: GlueEvaluator, head: Any, name: str, seed: int) -> str:
    return judge.dense_models.key(judge.dense_recipe(name, seed), head)


def test_seed_tasks_and_training_make_other_dense_models(data: Path, cache: Path) -> None:
    judge = evaluator(data, cache)
    head = judge.dense("SST-2", 1)
    key = dense_key(judge, head, "SST-2", 1)
    for same in ({"split": "holdout"}, {"adapt": "recover"}, {"dev_rows": 10}):
        assert dense_key(replace(judge, **same), head, "SST-2", 1) == key
    assert replace(judge, finetune_lr=None).protocol == replace(judge, finetune_lr=5e-5).protocol
    for other in ({"epochs": 1}, {"finetune_lr": 1e-3}, {"length": 8}, {"rows": 50}):
        assert dense_key(replace(judge, **other), head, "SST-2", 1) != key
    assert dense_key(judge, head, "SST-2", 2) != key


@pytest.mark.slow
def test_a_killed_dense_training_goes_on(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, tmp_path / "straight", checkpoint_seconds=0.0)
    straight, steps = judged(judge, tmp_path / "a")
    judge = evaluator(data, tmp_path / "killed", checkpoint_seconds=0.0)
    reports_until(judge, tmp_path / "b", 5, masks.star(), seed=1)
    assert judged(judge, tmp_path / "c") == (straight, steps - 4)
    kept = {path.suffix for path in (tmp_path / "killed" / "dense").iterdir()}
    assert kept <= {".safetensors", ".lock", ".json"}


def kept_model(cache: Path) -> Path:
    (path,) = (cache / "dense").glob("SST-2-*.safetensors")
    return path


@pytest.mark.slow
def test_a_dense_model_at_the_majority_is_refused(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, tmp_path / "cache", finetune_lr=1e-9, epochs=1)
    with pytest.raises(SearchError, match=r"a constant answer .* no masks can be compared"):
        judged(judge, tmp_path / "a")
    with pytest.raises(SearchError, match="no masks can be compared"):
        judge.differentiable(1)
    begun: list[object] = []
    how: dict[str, Any] = {"listeners": [begun.append], "progress": None}
    both, place = {"star": masks.star(), "full": masks.full()}, tmp_path / "comparison"
    for each in (judge, Cached(judge, tmp_path / "judged")):
        with pytest.raises(SearchError, match="no masks can be compared"):
            ms.search(
                lambda trial: masks.star(), each, run=tmp_path / "run", trials=2, seed=1, **how
            )
        with pytest.raises(SearchError, match="no masks can be compared"):
            ms.compare(both, each, run=place, seeds=[1, 2], **how)
    assert begun == []  # said before the first trial


@pytest.mark.nightly
def test_dense_models_of_all_seeds_come_first_and_are_shown(data, tmp_path, capsys):
    steps: list[str] = []
    judge = evaluator(data, tmp_path / "cache", adapt="recover")

    def compared() -> str:
        with follow_trainings(lambda step, config: steps.append(step.title)):
            masked = {"star": masks.star(), "full": masks.full()}
            ms.compare(masked, judge, run=tmp_path / "run", seeds=[4, 5, 6])
        return capsys.readouterr().err

    shown, each = compared(), judge.finetune_steps("SST-2")
    titles = [f"dense model of SST-2, seed {seed}" for seed in (4, 5, 6)]
    assert steps == [title for title in titles for _ in range(each)] + [""] * 6 * 3
    lines = shown.splitlines()
    assert lines[0] == "compare: 2 masks x 3 seeds: 6 runs to do"
    assert lines[1] == "compare: No mask is tested against another"
    assert lines[2:5] == [f"{title}: {each} steps" for title in titles]
    shutil.rmtree(tmp_path / "cache")
    steps.clear()
    assert "dense model" not in compared()  # nothing is left to judge
    assert steps == []


# -- recovery ----------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("learn_from", ["labels", "dense"])
def test_recovery_takes_its_steps_and_leaves_the_dense_model(data, cache, tmp_path, learn_from):
    before = kept_model(cache).read_bytes()
    judge = evaluator(data, cache, adapt="recover", learn_from=learn_from)
    scores, steps = judged(judge, tmp_path / "a")
    assert steps == 3
    assert judged(judge, tmp_path / "a") == (scores, 0)
    assert judged(judge, tmp_path / "b") == (scores, 3)
    assert kept_model(cache).read_bytes() == before


# -- gates -------------------------------------------------------------------------------------
def trained_gates(judge: GlueEvaluator, workdir: Path) -> Generator[Report]:
    config = {"density": 0.6, "steps": 20, "gate_lr": 0.3, "lr": 1e-3, "dense_warmup": 0.5}
    job = OneShot({"structure": "free", "layers": 2}, config)
    yield from run_one_shot(judge, job, seed=1, workdir=workdir)


@pytest.mark.slow
@pytest.mark.parametrize("learn_from", ["labels", "dense"])
def test_gates_are_trained_on_frozen_models_of_several_tasks(data, cache, tmp_path, learn_from):
    judge = evaluator(data, cache, tasks=("SST-2", "RTE"), learn_from=learn_from)
    source = judge.differentiable(1)
    assert not any(p.requires_grad for p in source.model.parameters())
    first = [next(source.batches) for _ in range(4)]
    assert [int(batch["task"]) for batch in first] == [0, 1, 0, 1]
    source.model.eval()
    for number, name in enumerate(judge.downstream):  # each model is computed with its weights
        alone = judge.dense(name, 1).eval()
        inputs = {n: part for n, part in first[number].items() if n not in ("task", "target")}
        with torch.no_grad():
            ours = source.model(**first[number])
            torch.testing.assert_close(ours.logits, alone(**inputs).logits)
            if learn_from == "dense":
                assert float(ours.loss) == pytest.approx(0, abs=1e-6)
    *_, last = trained_gates(judge, tmp_path)
    assert last.values["density"] == pytest.approx(0.6, abs=0.1)
    assert last.step == 20
    assert (tmp_path / "gates.safetensors").is_file()


@pytest.mark.slow
def test_checkpoints_of_gates_hold_no_frozen_weights(data, cache, tmp_path, monkeypatch):
    judge = evaluator(data, cache)
    straight = [*trained_gates(judge, tmp_path / "straight")]
    monkeypatch.setattr("masksearch.gates.dam.Checkpoints", partial(Checkpoints, seconds=0))
    reports = trained_gates(judge, tmp_path / "killed")
    begun = [next(reports) for _ in range(10)]
    reports.close()
    newest = max((tmp_path / "killed").glob("dam-*.safetensors"))
    gates = 4 * 2 * 2 * 32 * 32  # bytes of the logits
    model = sum(4 * p.numel() for p in judge.dense("SST-2", 1).parameters())
    assert newest.stat().st_size < 4 * gates < model
    again = [*trained_gates(judge, tmp_path / "killed")]
    assert again[: len(begun) - 1] == begun[:-1]
    assert again == straight


@pytest.mark.parametrize(("frozen", "trained"), [(None, 3), (1, 1), ("all", 0)])
def test_gates_are_trained_beside_the_weights_that_judged_masks_train(
    data: Path, cache: Path, frozen: Any, trained: int
) -> None:
    body = evaluator(data, cache, adapt="train", frozen=frozen).differentiable(1).model
    found = [name for name, part in body.named_parameters() if part.requires_grad]
    parts = (".embeddings.", ".layer.0.", ".layer.1.")
    assert sum(any(part in name for name in found) for part in parts) == trained
    assert any("encoder" not in name for name in found)  # the head


def test_batches_that_are_held_out_are_the_tasks_in_turn(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "glue", tmp_path / "glue")
    for task in ("SST-2", "RTE"):
        file = tmp_path / "glue" / task / "train.tsv"
        title, *rows = file.read_text().splitlines()
        file.write_text("\n".join([title, *rows * 4]) + "\n")
    both = {"tasks": ("SST-2", "RTE"), "weights": data / "checkpoint", "adapt": "train"}
    judge = sentence_judge(tmp_path, **both, finetune_batch=16)
    assert [int(batch["task"]) for batch in judge.differentiable(1).held_out] == [0, 1, 0, 1]


@pytest.mark.slow
def test_a_search_by_dam_needs_no_corpus(data: Path, cache: Path, tmp_path: Path) -> None:
    how = {"gates": {"layers": 2}, "config": {"density": 0.6, "steps": 20, "gate_lr": 0.3}}
    study = ms.search(
        *(None, evaluator(data, cache)), run=tmp_path / "run", strategy="dam", trials=2,
        strategy_options=how, seed=1, progress=None,
    )  # fmt: skip
    first, *others = study.records()
    assert isinstance(first.job, OneShot)
    assert first.job.config["train"] == "gates"
    assert [record.status for record in others] == ["done"]
    assert others[0].values["SST-2"] > 0.6


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:DAM.*attention has learned nothing", "ignore:the strategy has no more"
)
@pytest.mark.parametrize(("given", "used"), [({}, 5e-5), ({"lr": 1e-3}, 1e-3)])
def test_a_checkpoint_is_trained_gently_beside_gates(data, cache, tmp_path, given, used):
    """At a rate for BERT (2e-5 to 5e-5: Devlin et al., arXiv 1810.04805, appendix A.3)."""
    judge = evaluator(data, cache, adapt="train", finetune_lr=None)
    options = {"config": {"density": 0.6, "steps": 2, **given}}
    study = ms.search(
        *(None, judge), run=tmp_path, strategy="dam", strategy_options=options, trials=1,
        progress=None,
    )  # fmt: skip
    (first,) = study.records()
    assert isinstance(first.job, OneShot)
    assert first.job.config["lr"] == used


# -- the read-out --------------------------------------------------------------------------------
def test_another_read_out_is_another_protocol_and_dense_model(data: Path, tmp_path: Path) -> None:
    usual = evaluator(data, tmp_path / "cache", tasks=("RTE",), rows=8, epochs=1)
    pair = replace(usual, read_out="pair")
    assert "read_out" not in usual.settings()
    assert pair.settings() == {**usual.settings(), "read_out": "pair"}
    assert pair.shape == usual.shape
    keys = set()
    for judge in (usual, pair, replace(usual, read_out="first+mean")):
        keys.add(dense_key(judge, judge.new_head(judge.start.encoder(), "RTE", 0), "RTE", 0))
    assert len(keys) == 2


@pytest.mark.nightly
def test_read_out_is_named_where_it_is_not_the_usual(data: Path, tmp_path: Path) -> None:
    for name in ("first+mean", "pair"):
        judge = evaluator(data, tmp_path / "cache", tasks=("RTE",), rows=16, adapt="train")
        judge = replace(judge, epochs=1, read_out=name)
        found = ms.compare({"star": masks.star()}, judge, run=tmp_path / name, seeds=[0])
        assert math.isfinite(found.records[0].values["RTE"])
        found.report(tmp_path / "report.html")
        (section,) = json.loads((tmp_path / "result.json").read_text())["sections"]
        assert (["read-out", "pair"] in section["facts"]) == (name == "pair")
        assert (f"read_out={name!r}" in str(found.verdict())) == (name == "pair")


@pytest.mark.slow
def test_read_out_of_pairs_refuses_what_has_none(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compares two texts, and SST-2 has one"):
        evaluator(data, tmp_path, tasks=("RTE", "SST-2"), read_out="pair")
    with pytest.raises(UnknownNameError, match=r"read-out.*'pairs'.*did you mean 'pair'"):
        evaluator(data, tmp_path, read_out="pairs")
    judge = evaluator(
        data,
        tmp_path / "cache",
        weights=tuned(data, tmp_path / "tuned"),
        tasks=("RTE",),
        read_out="pair",
    )
    with pytest.raises(DataError, match="has a head of its own, so there is no read_out='pair'"):
        judge.protocol  # noqa: B018
    assert replace(judge, adapt="train").protocol


# -- the work that is left -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def first_row(data, tmp_path_factory):
    """A judge of a fine-tuned folder, whose head reads [CLS]'s row alone."""
    return evaluator(data, data / "cache", weights=tuned(data, tmp_path_factory.mktemp("tuned")))


def test_work_is_a_measure_where_some_rows_alone_are_read(data, first_row):
    shape, cls = first_row.shape, first_row.source.special["cls"]
    late = masks.per_layer([masks.full()] * (shape.layers - 1) + [masks.columns(2)])
    words = masks.token_columns([cls]) | masks.window(0)
    assert first_row.measure_names == ("work",)
    for mask in (masks.full(), late, words):
        assert first_row.measures_of(mask) == {"work": masks.work(mask, shape)}
    assert masks.work(words, shape) < masks.work(late, shape) < masks.work(masks.full(), shape)
    others = [first_row.on("all"), evaluator(data, data / "cache"), ms.PlantedEvaluator()]
    assert [judge.measure_names for judge in others] == [(), (), ()]


@pytest.mark.slow
def test_a_limit_of_work_stops_a_mask_before_it_is_trained(first_row, tmp_path):
    layers = first_row.shape.layers

    def space(trial):
        count = trial.suggest_int("count", 1, 8)
        return masks.per_layer([masks.full()] * (layers - 1) + [masks.columns(count)])

    words = masks.token_columns([first_row.source.special["cls"]])
    limit = masks.work(masks.per_layer([masks.full()] * (layers - 1) + [masks.columns(4)]),
                       first_row.shape)  # fmt: skip
    study = ms.search(space, first_row, run=tmp_path / "run", strategy="random", trials=2,
                      enqueue=[{"count": 8}], constraints=f"work <= {limit}",
                      baselines={"words": masks.per_layer([words] * layers)},
                      progress=None)  # fmt: skip
    for record in study.records():
        work = masks.work(record.mask, first_row.shape)
        assert record.measures["work"] == work
        assert (record.status == "stopped") == (work > limit)
    assert {record.status for record in study.records()} == {"done", "stopped"}


# -- masks that follow the tokens ----------------------------------------------------------------
def test_a_token_in_front_of_every_row_is_a_global_token(data, cache, tmp_path):
    judge = evaluator(data, cache)
    shape, cls = judge.shape, judge.source.special["cls"]
    mask = masks.window(1) | masks.special_tokens(cls)
    assert effective_density(mask, shape) == pytest.approx(effective_density(masks.star(), shape))
    levels = [masks.window(0), mask, masks.full()]
    same = [masks.window(0), masks.star(), masks.full()]
    shares = ms.Units(shape, levels).shares
    torch.testing.assert_close(shares, ms.Units(shape, same).shares, rtol=1e-6, atol=0)
    first, _ = judged(judge, tmp_path / "a", mask)
    second, _ = judged(judge, tmp_path / "b", masks.star())
    assert first == pytest.approx(second)


def test_separators_are_counted_in_rows_of_tokens(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, tmp_path / "cache", tasks=("RTE", "SST-2"))
    shape, special = judge.shape, judge.source.special
    mask = masks.per_head([masks.special_tokens(special["sep"]) | masks.window(0), masks.full()])
    kept = pairs = 0
    for ids in judge.token_rows.tolist():
        row = [each for each in ids if each >= 0]
        pairs += len(row) ** 2
        for query, key in itertools.product(range(len(row)), repeat=2):
            kept += query == key or special["sep"] in (row[query], row[key])
    assert effective_density(mask, shape) == pytest.approx((kept / pairs + 1) / 2)
    found = measures(mask, shape)
    assert (
        found["effective_sparsity"] == found["sparsity"] == pytest.approx((1 - kept / pairs) / 2)
    )
    assert shape == replace(shape, tokens=None)
    assert "tokens" not in shape.to_dict()
    equal = 0
    for ids in judge.token_rows.tolist():
        for count in Counter(each for each in ids if each >= 0).values():
            equal += count**2
    assert effective_density(masks.same_token(), shape) == pytest.approx(equal / pairs)


@pytest.mark.nightly
def test_token_masks_are_told_apart_compared_and_allocated(data, cache, tmp_path):
    judge = evaluator(data, cache)
    sep, cls = (masks.special_tokens(judge.source.special[name]) for name in ("sep", "cls"))
    wide = {"sep": masks.window(0) | sep, "cls": masks.window(0) | cls}
    prints = {name: fingerprint(mask, judge.shape) for name, mask in wide.items()}
    assert len(set(prints.values())) == 2
    found = ms.compare(wide, judge, run=tmp_path / "c", seeds=[1], split="validation")
    assert all(r.scored and r.fingerprint == prints[r.name] for r in found.records)
    found.report(tmp_path / "report.html")
    options = {"levels": ["window(0)", *map(str, wide.values()), "full()"], "unit": "layer"}
    study = ms.search(
        *(None, judge), run=tmp_path / "s", trials=10, strategy="allocate",
        strategy_options=options, baselines=wide, progress=None,
    )  # fmt: skip
    assert all(r.scored for r in study.records())


def test_token_masks_are_refused_where_nothing_is_known_of_them(data: Path, cache: Path) -> None:
    judge, planted = evaluator(data, cache), ms.PlantedEvaluator()
    mask = masks.window(0) | masks.special_tokens(3)
    for shape in (planted.shape, replace(judge, split="all").shape):
        for ask in (measures, fingerprint, effective_density):
            with pytest.raises(TokensNeededError, match="only where input ids are known"):
                ask(mask, shape)
    with pytest.raises(MaskSearchError, match="follows the token 999, which no row of the data"):
        measures(masks.window(0) | masks.special_tokens(999), judge.shape)


# -- folders that were fine-tuned by the user ---------------------------------------------------
def tuned(data: Path, folder: Path, **config: Any) -> Path:
    """A fine-tuned folder: the dense model of SST-2 as a BERT with transformers' own head."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)  # of the head
    model = BertForSequenceClassification.from_pretrained(data / "checkpoint", **config)
    rows = evaluator(data, data / "cache").tokens("SST-2").train
    judge, optimiser = evaluator(data, data / "cache"), torch.optim.AdamW(model.parameters(), 3e-3)
    for _, batch in zip(range(60), judge.trainer.batches(rows, 0), strict=False):
        if model.config.num_labels == 2:
            optimiser.zero_grad()
            model(**batch).loss.backward()
            optimiser.step()
    model.save_pretrained(folder)
    shutil.copy(data / "checkpoint" / "vocab.txt", folder)
    return folder


@pytest.mark.slow
def test_a_fine_tuned_folder_is_taken_as_it_is(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, tmp_path / "cache", weights=tuned(data, tmp_path / "tuned"))
    scores, steps = judged(judge, tmp_path / "a", masks.full())
    assert steps == 0
    assert scores["SST-2"] > 0.8
    said = r"turn its classes, id2label .*: {\"0\": \"0\", \"1\": \"1\"}"
    for names in ("10", ("positive", "negative")):  # the opposite of what it answers
        swapped = tuned(data, tmp_path / names[0], id2label=dict(enumerate(names)))
        with pytest.raises(SearchError, match=said):
            judged(evaluator(data, tmp_path / "cache", weights=swapped), tmp_path / names[0])
    source = judge.differentiable(1)
    assert torch.isfinite(source.model(**next(source.batches)).loss)
    modules = replace(judge, dropout=0.0).dense("SST-2", 1).modules()
    assert {part.p for part in modules if isinstance(part, torch.nn.Dropout)} == {0.0}


def test_a_vocabulary_without_mask_is_the_checkpoints_own_where_no_word_is_masked(data, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(data / "checkpoint", bare)
    listed = (bare / "vocab.txt").read_text()
    (bare / "vocab.txt").write_text(listed.replace("[MASK]", "masked"))  # as many as embeddings
    judge = evaluator(data, tmp_path / "cache", weights=bare, adapt="train")
    assert judge.source.vocabulary == judge.start.vocabulary + 1  # transformers adds its own
    scores, _ = judged(judge, tmp_path / "judged", masks.full())
    assert scores["SST-2"] > 0.4
    (tmp_path / "text.txt").write_text("a b c d\n" * 999)
    with pytest.raises(DataError, match=r"embeds .*; use the checkpoint's own"):
        ms.MlmEvaluator(tmp_path / "text.txt", weights=bare, length=12).task()  # masks words


TURNED = {"MRPC": "equivalent", "CoLA": "acceptable", "QQP": "duplicate", "WNLI": "entailment"}


@pytest.mark.slow
def test_classes_that_stand_the_other_way_round_are_matched_by_their_names(data, tmp_path):
    """Heads that are turned: class 0 is what the task calls 1."""
    place = tuned(data, tmp_path / "tuned")
    turned = turn_head(place, "positive", "negative")
    judge = evaluator(data, tmp_path / "cache", weights=turned)
    assert judged(judge, tmp_path / "a", masks.full())[0]["SST-2"] > 0.8
    judge = evaluator(data, tmp_path / "cache", weights=turn_head(place, "pos", "neg"))
    with pytest.raises(SearchError, match=r"turn its classes, .*: {\"0\": \"1\", \"1\": \"0\"}"):
        judged(judge, tmp_path / "b", masks.full())
    for name, first in TURNED.items():
        task = TASKS[name]
        (second,) = {*task.hub.names} - {first}
        turned = turn_head(place, first.upper(), second)
        assert open_tuned(turned, judge.head_kind, task.labels, task.hub.names).order == [1, 0]
    turned = turn_head(place, "yes", "Yes")  # names that differ by case alone
    assert open_tuned(turned, judge.head_kind, ("Yes", "yes")).order == [1, 0]


def turn_head(folder: Path, *names: str) -> Path:
    """A copy of a fine-tuned folder with its classes in the other order, of those names."""
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(folder, id2label=dict(enumerate(names)))
    for part in model.classifier.parameters():
        part.data = part.data.flip(0)
    made = shutil.copytree(folder, folder.with_name(names[0]))
    model.save_pretrained(made)
    return made


@pytest.mark.slow
def test_what_reaches_no_output_is_not_counted(data: Path, tmp_path: Path) -> None:
    """A fine-tuned BERT reads [CLS] alone: DAM keeps nothing else of its last layer."""
    judge = evaluator(data, tmp_path / "cache", weights=tuned(data, tmp_path / "tuned"))
    shape = judge.shape
    assert shape.read == 1
    assert replace(judge, split="all").shape.read is None
    assert replace(judge, adapt="train").shape.read is None  # under our head, which reads all
    assert replace(judge, weights=data / "checkpoint").shape.read is None
    settings = {"density": 0.3, "steps": 60, "gate_lr": 0.3, "dense_warmup": 0.0}
    job = OneShot({"layers": shape.layers}, settings)
    *_, last = run_one_shot(judge, job, seed=1, workdir=tmp_path)
    assert last.values["density"] == pytest.approx(0.3, abs=0.02)
    result = DamResult.load(tmp_path / "gates.safetensors")
    unread = result.probabilities[-1, :, 1:]
    assert (unread == result.probabilities.new_tensor(2.0).sigmoid()).all()  # as they began
    mask = result.mask(sparsity=0.7)
    cell = 1 / (shape.heads * pair_weights(shape).sum().item())
    assert effective_density(mask, shape) == pytest.approx(0.3, abs=cell / 2)
    rows = mask.dense(shape.length)[-1, :, 1:]
    assert torch.equal(rows, torch.eye(shape.length, dtype=torch.bool)[1:].expand_as(rows))
    assert judge.settings()["read"] == 1  # sparsities of other protocols do not mix with these
    assert "read" not in replace(judge, split="all").settings()


# -- the other tasks -----------------------------------------------------------------------------
def questions(folder: Path, kind: str, **settings: Any) -> Any:
    """SQuAD or SWAG over toy words, with a checkpoint that knows them."""
    if not (folder / "checkpoint").exists():
        tiny_checkpoint(folder / "checkpoint", TOKENS[5:])
        write_squad(folder / "squad" / "train-v.json", squad_json(6, 30, seed=0))
        write_squad(folder / "squad" / "dev-v.json", squad_json(4, 20, seed=1))
        write_swag(folder / "swag" / "train.jsonl", swag_rows(100, seed=0))
        write_swag(folder / "swag" / "val.jsonl", swag_rows(80, seed=1))
    small = {"weights": folder / "checkpoint", "cache": folder / "cache", **SMALL}
    small |= {"adapt": "recover", "recover_steps": 2, "learn_from": "dense"}
    made = SquadEvaluator if kind == "squad" else SwagEvaluator
    return made(None, folder / kind, **(small | settings))


@pytest.mark.parametrize("kind", ["squad", "swag"])
@pytest.mark.slow
def test_questions_and_endings_have_dense_models(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("masksearch.evaluators.finetuning.check_learned", lambda *given: None)
    judge = questions(tmp_path, kind)
    (task,) = judge.downstream
    assert judge.shape.read == {"squad": None, "swag": 1}[kind]
    scores, steps = judged(judge, tmp_path / "a")
    assert steps == judge.finetune_steps(task) + 2
    assert judged(judge, tmp_path / "b") == (scores, 2)
    source = judge.differentiable(1)
    assert torch.isfinite(source.model(**next(source.batches)).loss)
    assert source.held_out
    labels = replace(judge, learn_from="labels", adapt="none").differentiable(1)
    assert torch.isfinite(labels.model(**next(labels.batches)).loss)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["squad", "swag"])
def test_questions_and_endings_take_fine_tuned_folders(kind, tmp_path, monkeypatch):
    from transformers import BertForMultipleChoice, BertForQuestionAnswering

    monkeypatch.setattr("masksearch.evaluators.finetuning.check_learned", lambda *given: None)
    questions(tmp_path, kind)
    made = BertForQuestionAnswering if kind == "squad" else BertForMultipleChoice
    model = made.from_pretrained(tmp_path / "checkpoint")
    model.save_pretrained(tmp_path / "tuned")
    shutil.copy(tmp_path / "checkpoint" / "vocab.txt", tmp_path / "tuned")
    judge = questions(tmp_path, kind, weights=tmp_path / "tuned", learn_from="labels")
    head = judge.dense(*judge.downstream, 1).eval()
    rows = judge.tokens().train
    batch = judge.inputs(rows, [0, 1, 2])
    with torch.no_grad():
        ours, theirs = head(**batch), model.eval()(**batch)
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert judged(judge, tmp_path / "a")[1] == 2


# -- bad input -----------------------------------------------------------------------------------
def test_settings_that_do_not_go_together_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no weights"):
        GlueEvaluator(data / "text.txt", data / "glue", adapt="none")
    how: dict[str, Any] = {"strategy": "dam", "strategy_options": {"config": {"train": "both"}}}
    with pytest.raises(SearchError, match=r"train='both' .* frozen: leave train out"):
        ms.search(None, evaluator(data, tmp_path), run=tmp_path / "run", trials=2, **how)
