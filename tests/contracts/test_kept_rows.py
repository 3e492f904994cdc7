"""What evaluators say of single rows, and of the lengths of their data, agrees with their
reports."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from split_evaluators import causal, decoder, glue, pairs, planted, recall, squad, swag, text

from masksearch import masks
from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.contracts import LOW, MAJORITY, Evaluator, Report
from masksearch.evaluators.wrappers import Cached

EVALUATORS = {"mlm": text, "pairs": pairs, "glue": glue, "squad": squad, "swag": swag}
EVALUATORS["planted"] = planted
EVALUATORS |= {"causal": causal, "decoder": decoder, "recall": recall}
EVALUATORS["cached"] = lambda folder: Cached(glue(folder), folder / "judged")
PADDED = {name: EVALUATORS[name] for name in ("glue", "squad", "swag")}


def judged(evaluator: Evaluator, workdir: Path, seed: int = 0) -> tuple[Report, RowScores]:
    *_, last = evaluator(masks.star(), seed=seed, workdir=workdir)
    return last, RowScores.load(workdir / "rows.safetensors")


@pytest.mark.nightly  # continuous integration runs it
@pytest.mark.parametrize("split", ["validation", "holdout", "all"])
@pytest.mark.parametrize("make", EVALUATORS.values(), ids=EVALUATORS)
def test_rows_add_up_to_the_objective(make, split, tmp_path):
    evaluator = make(tmp_path).on(split)
    last, rows = judged(evaluator, tmp_path / "run")
    assert rows.score == pytest.approx(last.values[evaluator.objectives[0].name], rel=1e-6)
    assert set(rows.weights) == set(rows.scores) == set(rows.digests)
    assert sum(rows.weights.values()) == pytest.approx(1)
    again = judged(evaluator, tmp_path / "again", seed=1)[1]
    assert again.digests == rows.digests  # other seeds answer the same rows
    assert [len(a) for a in again.scores.values()] == [len(a) for a in rows.scores.values()]
    for part, said in rows.predictions.items():
        assert len(said) == len(rows.scores[part])
    assert (tmp_path / "run" / "rows.safetensors").stat().st_size < 20_000


@pytest.mark.slow
@pytest.mark.parametrize("make", EVALUATORS.values(), ids=EVALUATORS)
def test_every_majority_has_a_bound_beside_it(make, tmp_path):
    values = judged(make(tmp_path), tmp_path / "run")[0].values
    names = {name.removesuffix(MAJORITY) for name in values if name.endswith(MAJORITY)}
    assert {name.removesuffix(LOW) for name in values if name.endswith(LOW)} == names
    for name in names:  # of a loss, where less is better, the bound is the upper end
        bound, value = values[f"{name}{LOW}"], values[name]
        assert bound >= value if name.endswith(("loss", "nll")) else -1 <= bound <= value <= 1


@pytest.mark.slow
def test_rows_of_several_fine_tunings_are_their_mean(tmp_path):
    evaluator = replace(glue(tmp_path), finetune_seeds=3)
    last, rows = judged(evaluator, tmp_path / "run")
    assert rows.score == pytest.approx(last.values["glue"], rel=1e-6)
    assert rows.predictions["SST-2"].shape == (len(rows.scores["SST-2"]), 3)
    thirds = rows.scores["SST-2"] * 3  # right in so many of three runs
    assert thirds == pytest.approx(np.round(thirds), abs=1e-5)
    assert not any(name.endswith(f"{LOW}/std") for name in last.values)
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == []


def test_a_reused_answer_brings_its_rows(tmp_path):
    cached = Cached(planted(tmp_path), tmp_path / "judged")
    first, rows = judged(cached, tmp_path / "first")
    again, same = judged(cached, tmp_path / "second")
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
        last, rows = judged(judge, tmp_path / split)
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
            judged(evaluator.on(h), folder / h)[1].digests for h in ("validation", "holdout")
        ]
        assert all(digests[0][part] != digests[1][part] for part in digests[0])
