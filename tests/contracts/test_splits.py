"""Evaluators that split their rows keep the same promises about the splits; what they say of
single rows and of lengths agrees with their reports."""

import pickle
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from split_evaluators import (
    SMALL,
    causal,
    decoder,
    embedding,
    glue,
    pairs,
    planted,
    recall,
    squad,
    swag,
    text,
    write_glue,
)
from toy import ToyEvaluator
from toy_words import WORDS

import masksearch as ms
from masksearch import masks
from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.contracts import LOW, MAJORITY, Evaluator, Report
from masksearch.errors import EvaluatorError
from masksearch.evaluators.wrappers import Cached
from masksearch.tasks.splits import take_split

# -- splits --------------------------------------------------------------------------------------
SPLITS = ("validation", "holdout", "test", "all")


def sequences(evaluator: Any) -> set[tuple[int, ...]]:
    """The tokens behind the held-out sequences of a pre-training."""
    corpus = evaluator.task().corpus
    return {tuple(row) for row in corpus.held_out[evaluator.task().held_out_rows].tolist()}


def windows(evaluator: Any) -> set[tuple[int, ...]]:
    """The text behind the held-out pairs."""
    task = evaluator.task()
    cut = task.held_out_windows
    spans = zip(cut.begin.tolist(), cut.end.tolist(), strict=True)
    return {tuple(cut.ids[begin:end].tolist()) for begin, end in spans}


def drawn(evaluator: Any) -> set[tuple[int, ...]]:
    (batch,) = evaluator.downstream_tasks[0].held_out()
    return {tuple(row) for row in batch["input_ids"].tolist()}


def judged_tokens(evaluator: Any) -> set[tuple[int, ...]]:
    return {tuple(row) for row in evaluator.rows.tokens.tolist()}


def asked(evaluator: Any) -> set[tuple[int, ...]]:
    """The tokens of the query texts."""
    queries = evaluator.data.queries
    return {tuple(queries[number].ids) for number in range(len(queries))}


Rows = Callable[[Any], Collection[Any]]
KINDS: dict[str, tuple[Callable[[Path], Any], Rows]] = {
    "mlm": (text, sequences),
    "pairs": (pairs, windows),
    "causal": (causal, judged_tokens),
    "decoder": (decoder, judged_tokens),
    "recall": (recall, judged_tokens),
    "glue": (glue, lambda one: set(one.data("SST-2").dev["SST-2"].texts)),
    "squad": (squad, lambda one: {question.id for question in one.data().dev}),
    "swag": (swag, lambda one: {item.start for item in one.data().dev}),
    "planted": (planted, drawn),
    "embedding": (embedding, asked),
    "cached": (lambda folder: Cached(text(folder), folder / "judged"),
        lambda one: sequences(one.evaluator)),
}  # fmt: skip


@pytest.mark.parametrize(("make", "rows"), KINDS.values(), ids=KINDS)
class TestSplits:
    def test_they_are_disjoint_and_make_up_all_rows(self, make, rows, tmp_path):
        evaluator = make(tmp_path)
        assert evaluator.split == "validation"
        search, final, test, both = (set(rows(evaluator.on(split))) for split in SPLITS)
        assert min(len(search), len(final)) > 3
        assert not search & final
        assert not test & (search | final)
        if isinstance(evaluator, ms.PlantedEvaluator):
            assert both == search  # draws without end; a search's is the one of earlier versions
        else:
            assert both == search | final

    def test_each_has_a_protocol_of_its_own(self, make, rows, tmp_path):
        evaluator = make(tmp_path)
        found = [evaluator.on(split) for split in SPLITS]
        assert [each.split for each in found] == list(SPLITS)
        same = 1 if isinstance(evaluator, ms.PlantedEvaluator) else 0
        assert len({each.protocol for each in found}) == len(SPLITS) - same
        assert evaluator.on("holdout").protocol == evaluator.on("holdout").protocol
        twin = pickle.loads(pickle.dumps(evaluator.on("holdout")))
        assert twin.protocol == evaluator.on("holdout").protocol
        assert (twin.split, twin.on("validation").protocol) == ("holdout", evaluator.protocol)

    @pytest.mark.slow
    def test_training_does_not_depend_on_the_split(self, make, rows, tmp_path):
        evaluator = make(tmp_path)
        found = []
        for split in SPLITS:
            inner = getattr(evaluator.on(split), "evaluator", evaluator.on(split))
            source = inner.differentiable(3)
            batch = next(source.batches)
            weights = torch.cat([w.flatten() for w in source.model.parameters()])
            learnt = batch["labels" if "labels" in batch else "target"]
            found.append((batch["input_ids"].tolist(), learnt.tolist(), weights.tolist()))
            for name in inner.downstream if hasattr(inner, "class_names") else ():
                train = inner.tokens(name).train
                found[-1] += ([train[number] for number in range(len(train))],)
        assert all(one == found[0] for one in found)

    def test_an_unknown_split_is_named(self, make, rows, tmp_path):
        with pytest.raises(ms.errors.UnknownNameError, match="did you mean 'holdout'"):
            make(tmp_path).on("holdou")


def test_a_text_is_final_where_its_hash_is_odd_on_every_machine():
    """The first byte of the SHA-256 of UTF-8: `printf 'the cat' | sha256sum` begins with 70."""
    known = {"the cat": 0x70, "the dog": 0x29, "": 0xE3, "\u00e9t\u00e9": 0xBD}
    for split, odd in (("validation", 0), ("holdout", 1)):
        wanted = [one for one, byte in known.items() if byte % 2 == odd]
        assert take_split(list(known), split, "", str) == wanted


def test_a_wrapper_has_splits_where_the_inner_evaluator_has_them(tmp_path):
    assert Cached(ToyEvaluator(), tmp_path).split is None
    with pytest.raises(EvaluatorError, match="ToyEvaluator does not split its rows"):
        Cached(ToyEvaluator(), tmp_path).on("holdout")
    wrapped = Cached(planted(tmp_path), tmp_path)
    assert wrapped.on("holdout").evaluator == planted(tmp_path).on("holdout")
    assert wrapped.on("validation") is wrapped


def test_what_cannot_be_split_says_why(tmp_path):
    mlm, place = text(tmp_path), write_glue(tmp_path)
    (tmp_path / "text" / "test.txt").unlink()
    with pytest.raises(
        ms.errors.DataError, match=r"no test text; split='test' needs a folder with"
    ):
        mlm.on("test")
    for name, label in (("dev", "1"), ("test", "-1")):
        path = place / "SST-2" / f"{name}.tsv"
        path.write_text(f"sentence\tlabel\nonly one\t{label}\n", encoding="utf-8")
    judge = ms.GlueEvaluator(tmp_path / "text", place, tasks=("SST-2",), cache=tmp_path, **SMALL)
    with pytest.raises(
        ms.errors.DataError, match=r"test sets are hidden.*split='holdout'.*line 2"
    ):
        judge.on("test")
    (place / "SST-2" / "test.tsv").unlink()
    with pytest.raises(ms.errors.DataError, match="holds no test set with labels"):
        judge.on("test")
    with pytest.raises(ms.errors.DataError, match=r"none of 1 rows belongs to .*split='all'"):
        judge.on("validation").task_settings()
    whole = replace(judge, split="all")
    assert whole.data("SST-2").dev["SST-2"].texts == [("only one",)]


def test_a_text_too_short_for_splits_is_told_before_any_trial(tmp_path, caplog):
    (tmp_path / "short.txt").write_text(" ".join(WORDS * 3), encoding="utf-8")
    short = {**SMALL, "length": 12, "cache": tmp_path}
    judges = [
        ms.MlmEvaluator(tmp_path / "short.txt", split=h, **short)
        for h in ("validation", "holdout")
    ]
    with pytest.raises(
        ms.errors.DataError, match=r"none of \d sequences belongs .*\(--set split=all\)"
    ):
        [judge.protocol for judge in judges]
    for judge in judges:
        with suppress(ms.errors.DataError):
            assert judge.protocol
    assert "no ranking can be read from so few; hold out more" in caplog.text
    assert "(about 20 sequences, 240 tokens)" in caplog.text
    assert ms.MlmEvaluator(tmp_path / "short.txt", split="all", **short).protocol


def test_the_text_of_a_test_set_is_one_that_no_search_has_seen(tmp_path):
    evaluator = glue(tmp_path)
    found = [sequences(evaluator.on(split).pretrainer) for split in SPLITS[:3]]
    assert found[2] == found[1]
    assert not found[2] & found[0]


def test_questions_on_one_article_stay_together(tmp_path):
    evaluator = squad(tmp_path)
    search, final = (
        {question.article for question in split.data().dev}
        for split in (evaluator, evaluator.on("holdout"))
    )
    assert not search & final


def test_few_articles_are_dealt_out_by_their_paragraphs():
    rows = [("one article", f"paragraph {number}") for number in range(40)]
    taken = [
        take_split(rows, split, "", itemgetter(0), itemgetter(1))
        for split in ("validation", "holdout")
    ]
    assert sorted(taken[0] + taken[1]) == sorted(rows)
    assert min(map(len, taken)) > 10


def test_splits_are_taken_before_the_sample(tmp_path):
    """So that every split has as many rows as are asked for."""
    for make in (glue, squad, swag):
        folder = tmp_path / make.__name__
        folder.mkdir()
        evaluator = replace(make(folder), dev_rows=6)
        for split in ("validation", "holdout", "all"):
            judge = evaluator.on(split)
            data = judge.data("SST-2").dev["SST-2"] if make is glue else judge.data().dev
            assert len(data) == 6


def test_a_one_shot_search_is_measured_on_the_search_split(tmp_path):
    evaluator = text(tmp_path)
    rows, final = sequences(evaluator), sequences(evaluator.on("holdout"))
    shown = evaluator.differentiable(0).held_out
    told = [torch.where(b["labels"] == -100, b["input_ids"], b["labels"]) for b in shown]
    truth = {tuple(row) for batch in told for row in batch.tolist()}
    assert truth == rows
    assert not truth & final


# -- single rows, and lengths --------------------------------------------------------------------
EVALUATORS = {name: make for name, (make, _) in KINDS.items() if name != "with cost"}
EVALUATORS["cached"] = lambda folder: Cached(glue(folder), folder / "judged")
PADDED = {name: EVALUATORS[name] for name in ("glue", "squad", "swag")}


def judged_rows(evaluator: Evaluator, workdir: Path, seed: int = 0) -> tuple[Report, RowScores]:
    *_, last = evaluator(masks.star(), seed=seed, workdir=workdir)
    return last, RowScores.load(workdir / "rows.safetensors")


@pytest.mark.nightly  # continuous integration runs it
@pytest.mark.parametrize("split", ["validation", "holdout", "all"])
@pytest.mark.parametrize("make", EVALUATORS.values(), ids=EVALUATORS)
def test_rows_add_up_to_the_objective(make, split, tmp_path):
    evaluator = make(tmp_path).on(split)
    last, rows = judged_rows(evaluator, tmp_path / "run")
    assert rows.score == pytest.approx(last.values[evaluator.objectives[0].name], rel=1e-6)
    assert set(rows.weights) == set(rows.scores) == set(rows.digests)
    assert sum(rows.weights.values()) == pytest.approx(1)
    again = judged_rows(evaluator, tmp_path / "again", seed=1)[1]
    assert again.digests == rows.digests  # other seeds answer the same rows
    assert [len(a) for a in again.scores.values()] == [len(a) for a in rows.scores.values()]
    for part, said in rows.predictions.items():
        assert len(said) == len(rows.scores[part])
    assert (tmp_path / "run" / "rows.safetensors").stat().st_size < 20_000


@pytest.mark.slow
@pytest.mark.parametrize("make", EVALUATORS.values(), ids=EVALUATORS)
def test_every_majority_has_a_bound_beside_it(make, tmp_path):
    values = judged_rows(make(tmp_path), tmp_path / "run")[0].values
    names = {name.removesuffix(MAJORITY) for name in values if name.endswith(MAJORITY)}
    assert {name.removesuffix(LOW) for name in values if name.endswith(LOW)} == names
    for name in names:  # of a loss, where less is better, the bound is the upper end
        bound, value = values[f"{name}{LOW}"], values[name]
        assert bound >= value if name.endswith(("loss", "nll")) else -1 <= bound <= value <= 1


@pytest.mark.slow
def test_rows_of_several_fine_tunings_are_their_mean(tmp_path):
    evaluator = replace(glue(tmp_path), finetune_seeds=3)
    last, rows = judged_rows(evaluator, tmp_path / "run")
    assert rows.score == pytest.approx(last.values["glue"], rel=1e-6)
    assert rows.predictions["SST-2"].shape == (len(rows.scores["SST-2"]), 3)
    thirds = rows.scores["SST-2"] * 3  # right in so many of three runs
    assert thirds == pytest.approx(np.round(thirds), abs=1e-5)
    assert not any(name.endswith(f"{LOW}/std") for name in last.values)
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == []


def test_a_reused_answer_brings_its_rows(tmp_path):
    cached = Cached(planted(tmp_path), tmp_path / "judged")
    first, rows = judged_rows(cached, tmp_path / "first")
    again, same = judged_rows(cached, tmp_path / "second")
    assert again == first
    assert [a.tolist() for a in same.scores.values()] == [a.tolist() for a in rows.scores.values()]


@pytest.mark.parametrize("make", PADDED.values(), ids=PADDED)
def test_lengths_are_those_of_the_training_rows(make, tmp_path):
    evaluator = make(tmp_path)
    train = evaluator.tokens().train
    found = Counter[int]()
    for number in range(len(train)):
        ids = train[number].ids
        found.update(map(len, ids) if isinstance(ids[0], list) else [len(ids)])
    assert dict(evaluator.shape.lengths) == found
    assert max(found) <= evaluator.shape.length
    for split in ("holdout", "test"):
        assert evaluator.on(split).shape == evaluator.shape
    assert evaluator.on("all").shape.lengths is None
    assert evaluator.packed().shape == evaluator.shape


@pytest.mark.slow
@pytest.mark.parametrize("make", PADDED.values(), ids=PADDED)
def test_padded_rows_are_searched_by_effective_sparsity(make, tmp_path):
    evaluator = make(tmp_path)
    for split in ("validation", "holdout", "test"):
        judge = evaluator.on(split)
        score, sparsity = judge.objectives
        assert (sparsity.name, sparsity.goal) == ("effective_sparsity", "max")
        last, rows = judged_rows(judge, tmp_path / split)
        constant = [value for name, value in last.values.items() if name.endswith(MAJORITY)]
        assert score.worst in constant
        assert judge.packed().objectives == judge.objectives
        assert 0 < score.worst < 1
        assert lower_bound(next(iter(rows.scores.values()))) <= rows.score
    before = [(o.name, o.goal, o.worst) for o in evaluator.on("all").objectives]
    assert before == [(score.name, "max", 0.0), ("sparsity", "max", 0.0)]


@pytest.mark.parametrize("make", [text, pairs, planted])
def test_packed_text_has_no_lengths(make, tmp_path):
    for split in ("validation", "holdout", "all"):
        judge = make(tmp_path).on(split)
        assert judge.shape.lengths is None
        assert judge.objectives[1].name == "sparsity"


@pytest.mark.nightly
def test_digests_tell_splits_apart(tmp_path):
    for make in (text, causal, decoder, glue, squad, swag, planted):
        folder = tmp_path / make.__name__
        folder.mkdir()
        evaluator = make(folder)
        digests = [
            judged_rows(evaluator.on(h), folder / h)[1].digests for h in ("validation", "holdout")
        ]
        assert all(digests[0][part] != digests[1][part] for part in digests[0])
