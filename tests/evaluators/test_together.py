"""Runs of the masked-language-model evaluator that share one program."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from masksearch import masks
from masksearch.contracts import Budget, Report
from masksearch.errors import HeadCountError, NonFiniteLossError, SearchError
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.evaluators.mlm import MlmEvaluator
from masksearch.evaluators.together import pretrained_together
from masksearch.executors.local import Local
from masksearch.executors.together import Together
from masksearch.models.trained_together import TrainedTogether
from masksearch.strategies.listed import Listed
from masksearch.training.loop import following

MASKS = [masks.full(), masks.star(), masks.window(1)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    words = [first + vowel for first in "bdgklmnrst" for vowel in "aeiou"]
    lines = [" ".join(draw.choices(words, k=10)) for _ in range(400)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def evaluator(text: Path, **settings: object) -> MlmEvaluator:
    small = {"steps": 6, "size": "nano", "length": 16, "vocabulary": 80, "batch": 4, "reports": 3}
    more = {"held_out_sequences": 8, "cache": text.parent / "cache", "device": "cpu"}
    return MlmEvaluator(text, **(small | more | settings))


def curve(reports: list[Report]) -> list[tuple[int, float]]:
    return [(report.step, report.values["loss"]) for report in reports]


@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 5, 0)], ids=["one seed", "two seeds"])
def test_reports_are_those_of_single_runs(seeds, text, tmp_path):
    judge = evaluator(text)
    found = list(zip(*pretrained_together(judge, MASKS, seeds=seeds), strict=True))
    for index, (mask, seed) in enumerate(zip(MASKS, seeds, strict=True)):
        alone = curve(list(judge(mask, seed=seed, workdir=tmp_path / str(index))))
        joint = curve([reports[index] for reports in found])
        assert [step for step, _ in joint] == [1, 3, 6]
        assert joint == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in alone]


def test_search_gives_the_records_of_local(text, tmp_path):
    names = {str(mask): mask for mask in MASKS}
    found = []
    for executor in (Local(), Together(2)):
        records = []
        executor.run(
            Listed(names, [0]),
            evaluator(text),
            budget=Budget(),
            seed=0,
            workdir=tmp_path / type(executor).__name__,
            on_record=records.append,
            on_report=lambda number, report: True,
        )
        found.append(records)
    for one, other in zip(*found, strict=True):
        assert (one.number, one.status, one.step, one.seed) == (
            (other.number, other.status, other.step, other.seed)
        )
        assert one.values == pytest.approx(dict(other.values), abs=1e-5)
        assert one.protocol == other.protocol


def test_run_that_is_closed_leaves_the_others_as_they_are(text):
    judge = evaluator(text)
    whole = [curve(list(run)) for run in pretrained_together(judge, MASKS, seeds=[0] * 3)]
    first, second, third = pretrained_together(judge, MASKS, seeds=[0] * 3)
    second.close()  # before anything began
    next(first)
    first.close()
    assert curve(list(third)) == [(s, pytest.approx(loss, abs=1e-5)) for s, loss in whole[2]]
    assert list(second) == []


def test_mask_that_does_not_fit_fails_alone(text):
    chosen = [masks.full(), masks.per_head([masks.full()] * 3)]
    good, bad = pretrained_together(evaluator(text), chosen, seeds=[0, 0])
    with pytest.raises(HeadCountError):
        next(bad)
    assert [report.step for report in good] == [1, 3, 6]


def test_broken_loss_fails_alone(text, monkeypatch):
    judge = evaluator(text)
    plain = MlmEvaluator.model

    def model(self, seed):
        found = plain(self, seed)
        if seed == 1:
            torch.nn.init.constant_(found.bias, torch.nan)
        return found

    monkeypatch.setattr(MlmEvaluator, "model", model)
    good, bad = pretrained_together(judge, MASKS[:2], seeds=[0, 1])
    with pytest.raises(NonFiniteLossError, match="nan at step 1 of 6"):
        next(bad)
    assert [report.step for report in good] == [1, 3, 6]


def test_error_of_the_program_ends_every_run(text, monkeypatch):
    def broken(self, batches):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(TrainedTogether, "step", broken)
    first, second = pretrained_together(evaluator(text), MASKS[:2], seeds=[0, 0])
    with pytest.raises(RuntimeError, match="out of memory"):
        next(first)
    with pytest.raises(SearchError, match="in the record of one of the others"):
        next(second)


def test_progress_is_that_of_the_program(text):
    seen = []
    with following(lambda step, config: seen.append((step.number, config.steps))):
        for run in pretrained_together(evaluator(text), MASKS, seeds=[0] * 3):
            list(run)
    assert seen == [(number, 6) for number in range(1, 7)]


def test_what_is_not_done_together_is_refused(text, tmp_path):
    glue = GlueEvaluator(text, glue=tmp_path, tasks=("SST-2",))
    with pytest.raises(SearchError, match="GlueEvaluator does more than pre-training"):
        pretrained_together(glue, [], seeds=[])
    with pytest.raises(SearchError, match=r"optimiser = 'adamw', got 'lamb'; .*Local\(\)"):
        pretrained_together(evaluator(text, optimiser="lamb"), [], seeds=[])
    with pytest.raises(SearchError, match=r"dropout = None, got 0\.1"):
        pretrained_together(evaluator(text, dropout=0.1), [], seeds=[])
    with pytest.raises(ValueError, match="3 masks need as many seeds, got 1"):
        pretrained_together(evaluator(text), MASKS, seeds=[0])
