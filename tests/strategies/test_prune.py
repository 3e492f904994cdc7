"""Pruning by first-order effects: what is kept, on which tasks, and what is refused."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import ToyEvaluator
from toy_sentences import sentence_judge, write_sentences

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Record, Report
from masksearch.errors import MaskSearchError
from masksearch.masks.lower import lower
from masksearch.masks.measure import pair_weights

DENSITIES = [0.6, 0.4]


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> ms.GlueEvaluator:
    folder = write_sentences(tmp_path_factory.mktemp("toys"))
    return sentence_judge(folder, adapt="none", length=16, epochs=3)


def search(evaluator, run: Path, listeners=(), **options) -> list[Record]:
    how = {"densities": DENSITIES, "rows": 48, **options}
    rest = {"strategy": "prune", "strategy_options": how, "listeners": listeners}
    return ms.search(None, evaluator, run=run, trials=3, **rest).records()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"rounds": 3}, {"per": "layer", "rounds": 2}])
def test_masks_have_their_density_keep_the_diagonal_and_lie_in_one_another(
    evaluator, tmp_path, options
) -> None:
    _, *cut = search(evaluator, tmp_path, **options)
    tables = [lower(record.mask, evaluator.shape) for record in cut]
    for record, table, density in zip(cut, tables, DENSITIES, strict=True):
        assert 1 - record.measures["effective_sparsity"] == pytest.approx(density, abs=0.01)
        assert table.diagonal(0, -2, -1).all()
    assert (tables[1] <= tables[0]).all()
    if "per" in options:
        shares = (tables[1] * pair_weights(evaluator.shape)).sum((1, 2, 3))
        assert shares[0] == pytest.approx(shares[1].item(), rel=0.02)


def test_one_trial_judges_no_mask_within_a_budget_which_is_warned_of(evaluator, tmp_path):
    said = "'prune' needs 2 trials to judge .* within each budget, .* is 1; give 2"
    with pytest.raises(UserWarning, match=said), warnings.catch_warnings(action="error"):
        ms.search(None, evaluator, run=tmp_path, trials=1, strategy="prune", budget=0.4)


@pytest.mark.slow
def test_what_is_kept_matters_more_than_what_is_cut(evaluator, tmp_path) -> None:
    first, kept, _ = search(evaluator, tmp_path)
    table = lower(kept.mask, evaluator.shape)
    rest = masks.table(~table | torch.eye(evaluator.shape.length, dtype=torch.bool))
    head = evaluator.dense("SST-2", 0)
    batch = next(evaluator.differentiable(0).batches)
    batch.pop("task")
    with torch.no_grad():
        whole = head(**batch).loss
        rise = [ms.attach(head, each)(**batch).loss - whole for each in (kept.mask, rest)]
    assert rise[0] < rise[1]
    assert first.curve[-1].values["density"] == 1


@pytest.mark.nightly
def test_several_tasks_have_one_order(evaluator, tmp_path) -> None:
    _, *cut = search(replace(evaluator, tasks=("SST-2", "RTE")), tmp_path)
    assert all(record.status == "done" for record in cut)


class Interrupts:
    """Ctrl-C at the second report of a job."""

    def __call__(self, record: Record) -> None:
        pass

    def reported(self, number: int, report: Report) -> None:
        if report.step == 2:
            raise KeyboardInterrupt


@pytest.mark.nightly
def test_a_killed_job_goes_on_with_its_round(evaluator, tmp_path) -> None:
    whole = search(evaluator, tmp_path / "a", rounds=3)
    with pytest.raises(KeyboardInterrupt):
        search(evaluator, tmp_path / "b", rounds=3, listeners=[Interrupts()])
    first, *again = search(evaluator, tmp_path / "b", rounds=3)
    assert [report.step for report in first.curve] == [3]
    assert [r.fingerprint for r in again] == [r.fingerprint for r in whole[1:]]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"rows": 2, "rounds": 3}, "rows must be a whole number of at least 3, got 2"),
        ({"densities": [0.5, 0.01]}, r"keeps its diagonal, .* from 0\.\d+ to 1, got 0\.01"),
        ({"per": "head"}, "part of a mask"),
        ({"row": 3}, "unknown option of strategy 'prune': 'row'; did you mean 'rows'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_trained(
    evaluator, tmp_path, options, problem
) -> None:
    with pytest.raises((MaskSearchError, ValueError), match=problem):
        search(evaluator, tmp_path / "run", **options)
    assert not (tmp_path / "run" / "trials").exists()


def test_models_that_are_not_trained_yet_are_refused(tmp_path) -> None:
    with pytest.raises(ms.errors.SearchError, match=r"measures a trained model.*adapt='none'"):
        search(ms.PlantedEvaluator(steps=2, downstream_steps=2), tmp_path)
    with pytest.raises(ms.errors.SearchError, match=r"needs an evaluator with differentiable"):
        search(ToyEvaluator(), tmp_path)


@pytest.mark.slow
def test_budgets_are_densities_that_no_mask_exceeds(evaluator, tmp_path) -> None:
    rest = {"strategy": "prune", "trials": 3, "run": tmp_path, "baselines": {}}
    study = ms.search(
        None, evaluator, budget=[0.613, 0.407], strategy_options={"rows": 48}, **rest
    )
    costs = [1 - record.measures["effective_sparsity"] for record in study.records()[1:]]
    assert all(b - 0.01 < c <= b for c, b in zip(costs, [0.613, 0.407], strict=True))
