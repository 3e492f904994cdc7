"""Every pre-training and every downstream task trains and is scored: on planted data, and on real
rows where they are at hand."""

import math
from pathlib import Path

import pytest
from planted_glue import PLANTED, PlantedGlue
from real_data import DATA, real

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Report
from masksearch.tasks.planted.process import PlantedProcess

SMALL = dict(steps=4, size="nano", batch=8, held_out_sequences=16)


def last(evaluator, tmp_path: Path) -> Report:
    """The result under a star mask; every figure of it is finite."""
    *_, report = evaluator(masks.star(), seed=0, workdir=tmp_path / "work")
    assert all(math.isfinite(value) for value in report.values.values())
    return report


@pytest.mark.slow
def test_every_planted_task_goes_from_text_file_to_official_metric(tmp_path):
    process = PlantedProcess(length=14, vocabulary=8, offsets=(3,), keys=1)
    corpus = PlantedGlue(process, lines=60, valid_lines=20, rows=32, dev_rows=24, seed=0)
    corpus.write(tmp_path / "data")
    evaluator = ms.GlueEvaluator(
        tmp_path / "data" / "text",
        glue=tmp_path / "data",
        tasks=tuple(PLANTED.values()),
        length=corpus.length,
        epochs=1,
        cache=tmp_path / "cache",
        **SMALL,
    )
    found = last(evaluator, tmp_path)
    sets = [name for task in PLANTED.values() for name in task.dev_files]
    assert set(sets) <= set(found.values)
    assert found.values["glue"] == pytest.approx(
        sum(found.values[name] for name in PLANTED) / len(PLANTED)
    )
    assert found.step == 4 + len(PLANTED)  # one batch each


@real
@pytest.mark.nightly
@pytest.mark.parametrize("pretraining", ["mlm", "mlm+next", "mlm+order"])
@pytest.mark.parametrize("whole_words", [False, True])
def test_real_text(pretraining, whole_words, tmp_path):
    evaluator = ms.MlmEvaluator(
        DATA / "wikitext-2", pretraining=pretraining, whole_words=whole_words, **SMALL
    )
    found = last(evaluator, tmp_path)
    assert ("pair_accuracy" in found.values) == (pretraining != "mlm")
