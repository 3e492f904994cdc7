"""SWAG fine-tuning as the judge of a mask."""

import math
from itertools import islice
from pathlib import Path

import pytest
from real_data import DATA, real
from toy_questions import GOOD, TOKENS, of_real_text, small, swag_rows, write_swag, write_text

from masksearch import masks
from masksearch.evaluators.swag import SwagEvaluator
from masksearch.masks import Mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text; items whose right ending has words of its own."""
    folder = tmp_path_factory.mktemp("data")
    write_text(folder)
    write_swag(folder / "swag" / "train.jsonl", swag_rows(160, seed=0))
    write_swag(folder / "swag" / "val.jsonl", swag_rows(60, seed=1))
    return folder


def evaluator(data: Path, name: str = "swag", **settings: object) -> SwagEvaluator:
    chosen = small(data) | {"finetune_batch": 8, "finetune_lr": 3e-3} | settings
    return SwagEvaluator(data / "text.txt", data / name, **chosen)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("mask", [masks.star(), masks.longformer(3, 1)], ids=str)
def test_what_can_be_learnt_is_learnt(data: Path, tmp_path: Path, mask: Mask) -> None:
    judge = evaluator(data, epochs=2)
    *curve, last = judge(mask, seed=0, workdir=tmp_path)
    assert [report.step for report in curve] == [2]
    assert last.step == 2 + 2 * 20
    assert set(last.values) == {"loss", "accuracy", "accuracy/majority"}
    assert last.values["accuracy/majority"] < 0.45
    assert last.values["accuracy"] > 0.9


@pytest.mark.slow
def test_a_start_that_sees_no_ending_learns_nothing(data: Path, tmp_path: Path) -> None:
    mask = masks.window(0)  # [CLS], which is scored, sees itself alone: all choices are equal
    *_, last = evaluator(data)(mask, seed=0, workdir=tmp_path)
    labels = evaluator(data).tokens().dev.labels.tolist()
    assert last.values["accuracy"] == labels.count(0) / len(labels)


def test_batches_hold_every_item_once_an_epoch(data: Path) -> None:
    judge = evaluator(data, rows=20)
    rows = judge.tokens().train
    found = list(islice(judge.trainer.batches(rows, 0), 3))
    assert sorted(len(batch["labels"]) for batch in found) == [4, 8, 8]
    good = {TOKENS.index(word) for word in GOOD}
    seen = []
    for batch in found:
        shape = batch["input_ids"].shape
        assert shape[1:] == (4, 16)  # not the whole length of 32
        assert batch["attention_mask"].shape == batch["token_type_ids"].shape == shape
        for ids, second, shown, label in zip(
            batch["input_ids"],
            batch["token_type_ids"],
            batch["attention_mask"],
            batch["labels"],
            strict=True,
        ):
            endings = [
                set(one[kind.bool()].tolist()) for one, kind in zip(ids, second, strict=True)
            ]
            right = [len(ending & good) == len(ending) - 1 for ending in endings]  # and [SEP]
            assert right == [index == label for index in range(4)]
            seen.append(tuple(map(tuple, (ids * shown).tolist())))
    assert len(set(seen)) == 20


def test_a_length_that_holds_no_item_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="at least 8 positions, got 7"):
        evaluator(data, length=7)


@pytest.mark.nightly
@real
def test_real_items(tmp_path: Path) -> None:
    judge = SwagEvaluator(swag=DATA / "swag", rows=100, **of_real_text(tmp_path))
    *_, last = judge(masks.star(), seed=0, workdir=tmp_path / "work")
    assert all(math.isfinite(value) for value in last.values.values())
    assert 0.25 <= last.values["accuracy/majority"] < 0.4
    assert 0.1 < last.values["accuracy"] < 0.5
