"""A run that is killed ends as it would have, whatever it trains."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from killed_runs import reports_until
from split_evaluators import causal, glue, squad, swag, text
from tiny_checkpoint import tiny_checkpoint
from toy_questions import WORDS

from masksearch import masks
from masksearch.analysis.row_scores import RowScores
from masksearch.contracts import Report
from masksearch.training.loop import follow_trainings

ORDER = {"pretraining": "mlm+order", "micro_batches": 2, "optimiser": "lamb", "whole_words": True}


def distilled(folder: Path) -> Any:
    weights = tiny_checkpoint(folder / "checkpoint", list(WORDS))
    how = {"pretraining": "distil", "dropout": 0.1, "length": 16}
    return replace(glue(folder), weights=weights, **how)


MAKERS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "text": (text, {"dropout": 0.2, "steps": 6}),
    "pairs by LAMB": (text, {**ORDER, "steps": 6}),
    "distillation": (distilled, {"steps": 3}),
    "fine-tuning of two seeds": (glue, {"finetune_seeds": 2, "finetune_batch": 8, "steps": 3}),
    "questions": (squad, {"finetune_batch": 2, "steps": 3}),
    "endings": (swag, {"finetune_batch": 2, "steps": 3}),
    "decoder": (causal, {"steps": 6}),
}


def steps_of(judge: Any, workdir: Path) -> tuple[list[Report], list[int]]:
    """The reports of a run, and the steps that it took."""
    steps: list[int] = []
    with follow_trainings(lambda step, config: steps.append(step.number)):
        return list(judge(masks.star(), seed=1, workdir=workdir)), steps


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_killed_run_ends_as_it_would_have(name: str, tmp_path: Path) -> None:
    make, settings = MAKERS[name]
    judge = replace(make(tmp_path), checkpoint_seconds=0.0, held_out_sequences=8, **settings)
    straight, steps = steps_of(judge, tmp_path / "straight")
    rows = RowScores.load(tmp_path / "straight" / "rows.safetensors").scores
    left = {path.name.partition("-")[0] for path in (tmp_path / "straight").iterdir()}
    assert left <= {"rows.safetensors", "scores.json", "pretrained"}  # of no unfinished training
    for killed in (2, 5):
        place = tmp_path / str(killed)
        first = reports_until(judge, place, killed, masks.star(), seed=1)
        assert first == straight[: len(first)]
        assert reports_until(judge, place, 1, masks.star(), seed=1) == first  # killed again
        assert steps_of(judge, place) == (straight, steps[killed - 1 :])
        again = RowScores.load(place / "rows.safetensors").scores
        assert {task: list(each) for task, each in again.items()} == {
            task: list(each) for task, each in rows.items()
        }
    reports = judge(masks.star(), seed=1, workdir=tmp_path / "closed")
    assert next(reports) == straight[0]
    reports.close()
    assert steps_of(judge, tmp_path / "closed")[0] == straight
    for mask, seed in ((masks.star(), 3), (masks.window(1), 1)):  # of another run in its folder
        reports_until(judge, tmp_path / f"{seed}", 3, mask, seed)
        assert steps_of(judge, tmp_path / f"{seed}") == (straight, steps)
