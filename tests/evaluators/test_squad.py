"""SQuAD fine-tuning as the judge of a mask."""

import logging
import math
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from real_data import DATA, real
from toy_questions import of_real_text, small, squad_json, write_squad, write_text

from masksearch import masks
from masksearch.errors import DataError
from masksearch.evaluators.squad import SquadEvaluator
from masksearch.masks import Mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text; SQuAD of both versions whose answer is the word after a marker."""
    folder = tmp_path_factory.mktemp("data")
    write_text(folder)
    for name, impossible in (("one", 0.0), ("two", 0.3)):
        for seed, (part, articles) in enumerate((("train", 6), ("dev", 2))):
            made = squad_json(articles, 45, seed=seed, impossible=impossible)
            write_squad(folder / name / f"{part}-v.json", made)
    return folder


def evaluator(data: Path, name: str = "one", **settings: object) -> SquadEvaluator:
    chosen = small(data) | {"finetune_batch": 16, "finetune_lr": 5e-3} | settings
    return SquadEvaluator(data / "text.txt", data / name, **chosen)  # type: ignore[arg-type]


def last_values(judge: SquadEvaluator, mask: Mask, workdir: Path) -> dict[str, float]:
    *_, last = judge(mask, seed=0, workdir=workdir)
    return dict(last.values)


@pytest.mark.slow
def test_what_the_mask_lets_see_is_learnt(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, "two", epochs=4)
    near = last_values(judge, masks.window(1), tmp_path / "near")
    assert near["f1/majority"] < 0.4
    assert near["f1"] > 0.9
    assert near["HasAns/exact"] > 0.9
    assert near["NoAns/exact"] > 0.9
    alone = last_values(judge, masks.window(0), tmp_path / "alone")  # no word sees its neighbour
    assert alone["best_f1"] < 0.5


@pytest.mark.parametrize(
    "mask", [masks.star(), masks.bigbird(2, 1, 2, seed=0), masks.strided(4)], ids=str
)
def test_reports(data: Path, tmp_path: Path, mask: Mask) -> None:
    judge = evaluator(data, rows=24, dev_rows=10)
    *curve, last = judge(mask, seed=0, workdir=tmp_path)
    assert [report.step for report in curve] == [2]
    assert last.step == 2 + 2  # two batches of at most 16 windows
    scores = {"exact", "f1"}
    assert set(last.values) == {"loss"} | scores | {f"{name}/majority" for name in scores}
    assert last.values["loss"] == curve[-1].values["loss"]
    assert all(0 <= last.values[name] <= 1 for name in scores)


@pytest.mark.slow
def test_reports_of_version_2(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, "two", rows=16)
    values = last_values(judge, masks.star(), tmp_path)
    for metric in ("exact", "f1"):
        for name in (metric, f"HasAns/{metric}", f"NoAns/{metric}", f"best_{metric}"):
            assert 0 <= values[name] <= 1
        assert f"best_{metric}/threshold" in values
        assert values[metric] <= values[f"best_{metric}"]
    strict = evaluator(data, "two", rows=16, null_threshold=-1e9)
    silent = last_values(strict, masks.star(), tmp_path / "strict")
    assert (silent["HasAns/f1"], silent["NoAns/f1"]) == (0.0, 1.0)
    assert silent["f1"] == silent["f1/majority"]


def test_batches_hold_every_window_once_an_epoch(data: Path) -> None:
    judge = evaluator(data, rows=50)
    windows = judge.tokens().train
    found = list(islice(judge.trainer.batches(windows, 0), -(-len(windows) // 16)))
    assert found[0]["input_ids"].shape[1] == 16  # not the whole length of 32
    rows = sorted(
        tuple(ids[mask.bool()].tolist())
        for batch in found
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    )
    assert rows == sorted(tuple(window.ids) for window in windows)
    batch = found[0]
    answer = batch["input_ids"].gather(1, batch["start_positions"][:, None])[:, 0]
    marker = batch["input_ids"].gather(1, batch["start_positions"][:, None] - 1)[:, 0]
    asked = batch["input_ids"][:, 4]  # [CLS] what comes after <marker>
    assert torch.equal(marker, asked)
    assert not torch.equal(answer, asked)
    after = batch["token_type_ids"].gather(1, batch["start_positions"][:, None])
    assert after.all()


def test_a_single_file_is_split_and_says_so(data: Path, caplog) -> None:
    judge = evaluator(data, "one/train-v.json")
    with caplog.at_level(logging.INFO, logger="masksearch"):
        source = judge.data().source
    assert source == "train-v.json alone: 1 of 6 articles, drawn by seed 0, are held out"
    assert source in caplog.text
    other = evaluator(data, "one/train-v.json", squad_held_out=data / "one" / "dev-v.json")
    assert len(other.data().dev) == 90


@pytest.mark.parametrize(("name", "exact", "overlap"), [("two", 0.5, 0.5), ("one", 0.0, 0.4)])
def test_answers_that_need_no_question(data, tmp_path, name, exact, overlap):
    shutil.copy(data / name / "train-v.json", tmp_path)
    qas: list[dict[str, object]] = [
        {"id": "q", "question": "?", "answers": [{"text": "b", "answer_start": 2}]},
        {"id": "r", "question": "?", "answers": [], "is_impossible": True},
    ]
    told = {"context": "x b c d", "qas": qas if name == "two" else qas[:1]}
    write_squad(tmp_path / "dev-v.json", {"data": [{"title": "T", "paragraphs": [told]}]})
    judge = evaluator(data, str(tmp_path), rows=16, epochs=1, split="all")
    values = last_values(judge, masks.full(), tmp_path / "work")
    assert (values["exact/majority"], values["f1/majority"]) == (exact, overlap)


def test_settings_out_of_range_are_refused(data: Path) -> None:
    for change, message in (
        ({"max_answer": 0}, "max_answer must be at least 1"),
        ({"length": 7}, "at least 8 positions"),
        ({"max_question": 30}, r"question of 30 tokens does not fit into 32 .* at most 28"),
        ({"stride": 0}, "stride must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator(data, **change)  # type: ignore[arg-type]


def test_misplaced_answers_are_counted(data: Path, tmp_path: Path, caplog) -> None:
    content = squad_json(4, 5, seed=0)
    entries = [p["qas"][0] for article in content["data"] for p in article["paragraphs"]]
    for entry in entries[:3]:
        entry["answers"] = [{"text": "zzz", "answer_start": 0}]
    path = str(write_squad(tmp_path / "x.json", content))
    held = write_squad(tmp_path / "y.json", squad_json(1, 3, seed=9))
    with caplog.at_level(logging.WARNING, logger="masksearch"):
        assert len(evaluator(data, path, squad_held_out=held).tokens().train) == 17
    assert "3 of 20 training questions are left out" in caplog.text
    for entry in entries[3:]:
        entry["answers"] = [{"text": "zzz", "answer_start": 0}]
    path = str(write_squad(tmp_path / "z.json", content))
    with pytest.raises(DataError, match="no training question is left"):
        evaluator(data, path, squad_held_out=held).tokens()


@pytest.mark.nightly
@real
def test_real_questions(tmp_path: Path) -> None:
    rows = {"rows": 200, "dev_rows": 100}
    judge = SquadEvaluator(squad=DATA / "squad", **rows, **of_real_text(tmp_path))
    values = last_values(judge, masks.star(), tmp_path / "work")
    assert all(math.isfinite(value) for value in values.values())
    assert 0 < values["f1/majority"] < 0.2
    assert values["exact/majority"] < 0.02
