import math
from pathlib import Path

import pytest
import torch

from masksearch import PlantedEvaluator, masks
from masksearch.analysis.row_scores import RowScores
from masksearch.errors import UnknownNameError
from masksearch.evaluators.planted import LikelihoodClassifier

QUICK = PlantedEvaluator(
    steps=8, batch=4, downstream_steps=2, downstream_batch=4, held_out_sequences=32, reports=3
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where runs write their rows


def reports(evaluator, mask, seed=0):
    return list(evaluator(mask, seed=seed, workdir=Path()))


def test_reports_are_finite_and_the_last_one_holds_the_score():
    found = reports(QUICK, masks.star())
    assert [report.step for report in found] == [2, 4, 8, 12]
    for report in found[:-1]:
        assert set(report.values) == {"accuracy", "loss"}
    last = found[-1].values
    assert set(last) == {
        "accuracy", "loss", "score", "intact", "follows", "intact/majority", "follows/majority",
        "intact/low", "follows/low",
    }  # fmt: skip
    assert all(math.isfinite(value) for report in found for value in report.values.values())
    assert last["score"] == (last["intact"] + last["follows"]) / 2
    assert last["intact/majority"] == last["follows/majority"] == 0.5


def test_every_weight_is_drawn_from_the_seed():
    first, again, other = (dict(QUICK.build_model(seed).named_parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].std() > 0]  # norms are ones, biases zeros
    assert any("query" in name for name in drawn)
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_graded_process_is_scored_by_its_masked_tokens():
    evaluator = PlantedEvaluator.graded(steps=4, batch=4, held_out_sequences=64)
    assert evaluator.objectives[0].worst == evaluator.process.chance
    found = reports(evaluator, masks.star())
    assert [report.step for report in found] == [2, 4, 4]
    last = found[-1].values
    assert set(last) == {"accuracy", "loss", "score", "parts", "parts/majority", "parts/low"}
    rows = RowScores.load(Path("rows.safetensors"))
    assert last["score"] == last["parts"] == pytest.approx(rows.scores["parts"].mean(), abs=1e-6)
    assert last["accuracy"] == pytest.approx(last["score"], abs=1e-9)
    assert evaluator.on("holdout").protocol != evaluator.protocol


@pytest.mark.nightly
def test_graded_process_is_learned_to_its_exact_accuracy():
    evaluator = PlantedEvaluator.graded()
    process = evaluator.process
    front = process.front
    for mask in (process.oracle, front[0].mask, front[len(front) // 2].mask, masks.star()):
        score = reports(evaluator, mask)[-1].values["score"]
        assert score == pytest.approx(process.expected(mask), abs=0.035)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "nani"}, "nano"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"downstream_steps": 0}, "downstream_steps must be at least 1"),
        ({"downstream_lr": 0.0}, "downstream_lr must be positive"),
        ({"downstream_batch": 3}, "even number of sequences, got 3"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"reports": 0}, "reports must be at least 1"),
        ({"initializer_range": 0.0}, "initializer_range must be positive"),
    ],
)
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(UnknownNameError if "size" in arguments else ValueError, match=message):
        PlantedEvaluator(**arguments)


def test_likelihood_classifier_matches_a_loop():
    process, model = QUICK.process, QUICK.build_model(0).eval()
    tokens = QUICK.downstream_tasks[0].held_out()[0]["input_ids"][:6]
    hidden = torch.zeros(process.length, dtype=torch.bool)
    hidden[process.pair_positions[:, 1]] = True
    classifier = LikelihoodClassifier(model, hidden, process.mask_id).eval()
    rows = []
    for row in tokens.tolist():
        shown = [process.mask_id if hidden[i] else token for i, token in enumerate(row)]
        logits = model(torch.tensor([shown])).logits
        rows.append([logits[i].log_softmax(0)[row[i]].item() for i in range(24) if hidden[i]])
    features = torch.tensor([[sum(row), min(row)] for row in rows])
    expected = classifier.norm(features) @ classifier.weight.T + classifier.bias
    assert torch.allclose(classifier(tokens).logits, expected, atol=1e-4)


@pytest.mark.nightly
def test_dense_and_oracle_learn_and_window_does_not():
    evaluator = PlantedEvaluator()
    process = evaluator.process
    for mask in (masks.full(), process.oracle):
        last = reports(evaluator, mask)[-1].values
        assert last["accuracy"] > process.ceiling - 0.1
        assert last["score"] > 0.95
    last = reports(evaluator, masks.window(3))[-1].values
    assert last["accuracy"] < process.chance + 0.05
    assert last["score"] < 0.56


@pytest.mark.slow
@pytest.mark.parametrize(("size", "threads"), [("nano", 1), ("1x96x2", 2)])
def test_small_models_are_trained_on_one_thread(tmp_path, size, threads):
    """Two were as fast alone, and ten times slower beside another program."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run = PlantedEvaluator.graded(steps=2, size=size)(masks.star(), seed=0, workdir=tmp_path)
        next(run)
        assert torch.get_num_threads() == threads
        run.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
