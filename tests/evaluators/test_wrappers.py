"""A mask that has been judged under a protocol and a seed is not judged again."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from toy import ToyEvaluator

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Report
from masksearch.evaluators.wrappers import Cached


def runs(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def judged(evaluator: Cached, mask: masks.Mask, work: Path, seed: int = 0):
    return list(evaluator(mask, seed=seed, workdir=work))


def test_equal_masks_are_run_once_and_report_alike(tmp_path):
    log = tmp_path / "log"
    evaluator = Cached(ToyEvaluator(log=log), tmp_path / "kept")
    first = judged(evaluator, masks.window(2), tmp_path)
    same_cells = masks.offsets([0, 1, 2])
    assert judged(evaluator, same_cells, tmp_path) == first
    assert len(first) == 3
    assert len(runs(log)) == 1


def test_another_seed_mask_or_protocol_is_run(tmp_path):
    log = tmp_path / "log"
    evaluator = Cached(ToyEvaluator(log=log), tmp_path / "kept")
    judged(evaluator, masks.window(2), tmp_path)
    judged(evaluator, masks.window(2), tmp_path, seed=1)
    judged(evaluator, masks.window(3), tmp_path)
    judged(Cached(ToyEvaluator("other", log=log), tmp_path / "kept"), masks.window(2), tmp_path)
    assert len(runs(log)) == 4


def test_a_stopped_or_failed_run_is_not_kept(tmp_path):
    evaluator = Cached(ToyEvaluator(), tmp_path / "kept")
    reports = evaluator(masks.window(2), seed=0, workdir=tmp_path)
    next(reports)
    reports.close()
    nan = Cached(ToyEvaluator("nan", nan_at=0.0), tmp_path / "kept")
    judged(nan, masks.window(2), tmp_path)
    assert list((tmp_path).glob("kept/*")) == []


class Closing(ToyEvaluator):
    """Its log says when it was closed."""

    def __call__(self, mask: masks.Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        try:
            yield from super().__call__(mask, seed=seed, workdir=workdir)
        finally:
            (workdir / "closed").write_text("closed")


def test_closing_it_closes_the_run_within(tmp_path):
    reports = Cached(Closing(), tmp_path / "kept")(masks.star(), seed=0, workdir=tmp_path)
    next(reports)
    assert not (tmp_path / "closed").exists()
    reports.close()
    assert (tmp_path / "closed").exists()
    assert list(reports) == []


def test_a_damaged_file_is_run_again_with_a_warning(tmp_path, caplog):
    log = tmp_path / "log"
    evaluator = Cached(ToyEvaluator(log=log), tmp_path / "kept")
    first = judged(evaluator, masks.window(2), tmp_path)
    path = evaluator.path_of(masks.window(2), 0)
    for text in (path.read_text()[:-9], "[]", json.dumps({"reports": [[1, None]]})):
        path.write_text(text)
        with caplog.at_level(logging.WARNING, logger="masksearch"):
            assert judged(evaluator, masks.window(2), tmp_path) == first
        assert "is damaged" in caplog.messages[-1]
    assert len(runs(log)) == 4


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    evaluator = Cached(ToyEvaluator(), tmp_path / "file" / "kept")
    with caplog.at_level(logging.WARNING, logger="masksearch"):
        assert len(judged(evaluator, masks.window(2), tmp_path)) == 3
    assert "cannot keep the result" in caplog.messages[-1]


def test_offers_what_the_inner_evaluator_offers(tmp_path):
    planted = Cached(ms.PlantedEvaluator(steps=4, downstream_steps=2), tmp_path)
    assert planted.offers("differentiable")
    assert not Cached(ToyEvaluator(), tmp_path).offers("differentiable")
    assert planted.protocol == planted.evaluator.protocol
