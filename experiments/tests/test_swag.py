"""SWAG: files in three forms, what is refused, sequences; fine-tuning as the judge of a mask."""

import csv
import math
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_data import DATA, real
from toy_questions import (
    GOOD,
    SwagEvaluator,
    of_real_text,
    small,
    swag_rows,
    task_judge,
    toy_corpus,
    write_swag,
    write_text,
)
from toy_words import TOKENS, WORDS

from masksearch import masks
from masksearch.errors import DataError
from masksearch.masks import Mask

CORPUS = toy_corpus(16)
ROWS = swag_rows(12, seed=0)
COLUMNS = ["", "video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source"]
COLUMNS += [*(f"ending{index}" for index in range(4)), "label"]


def read(path: Path) -> Any:
    """The items of one file."""
    return task_judge("swag", path, path).data().train


def choices_of(folder: Path, items: list[tuple[str, list[str], int]]) -> Any:
    """The tokenized items, each a start, its endings and the right one."""
    names = ("startphrase", "choices", "answer")
    path = write_swag(folder / "x.jsonl", [dict(zip(names, item, strict=True)) for item in items])
    return task_judge("swag", path, path, length=16).holding(source=CORPUS).tokenize("").train


def official(row: dict[str, Any]) -> dict[str, Any]:
    """The row in the columns of the official CSV."""
    one, *two = row["startphrase"].split()
    found = dict.fromkeys(COLUMNS, "x") | {"sent1": one, "sent2": " ".join(two)}
    found |= {f"ending{index}": choice for index, choice in enumerate(row["choices"])}
    return found | {"startphrase": row["startphrase"], "label": row["answer"]}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_every_form_gives_the_same_items(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"startphrase": 'He said "no,\nno". She'}, *ROWS[1:]]
    lines = read(write_swag(tmp_path / "a.jsonl", rows))
    start, choices, answer = (rows[3][name] for name in ("startphrase", "choices", "answer"))
    assert (lines[3].start, lines[3].choices, lines[3].label) == (start, tuple(choices), answer)
    table = read(write_csv(tmp_path / "a.csv", [official(row) for row in rows]))
    assert table == lines
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    whole = [official(row) for row in rows]
    parquet.write_table(arrow.Table.from_pylist(whole), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == lines
    apart = [{k: v for k, v in official(row).items() if k != "startphrase"} for row in rows[1:]]
    assert read(write_csv(tmp_path / "b.csv", apart)) == lines[1:]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"answer": 4}, r"item 2: label 4 is not the index of a choice, 0 to 3"),
    ({"answer": -1}, r"label -1 is not .* \(a test set without labels"),
    ({"answer": "good"}, r"label 'good' is not the index"),
    ({"answer": True}, r"label True is not the index"),
    ({"answer": None}, r"item 2: columns are missing; needed: .*; found: startphrase, answer, ch"),
    ({"startphrase": None}, r"item 2: columns are missing"),
    ({"startphrase": 3}, r"item 2: start and choices are texts, found 3"),
    ({"choices": ["a"], "answer": 0}, r"item 2: 1 choice; at least 2 are needed"),
    ({"choices": []}, r"item 2: columns are missing"),
    ({"choices": ["a", "b", "c"]}, r"item 2: 3 choices, item 1 has 4"),
    ({"choices": ["a", 1, "c", "d"]}, r"item 2: start and choices are texts"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_items_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = [ROWS[0], ROWS[1] | {"answer": 0} | change]
    with pytest.raises(DataError, match=message):
        read(write_swag(tmp_path / "a.jsonl", rows))


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(DataError, match="holds neither a train nor a val file of SWAG"):
        task_judge("swag", tmp_path).data()
    with pytest.raises(DataError, match=r"no such SWAG file or folder: .*a\.jsonl"):
        task_judge("swag", path).data()
    for raw, message in (
        (b"", "is empty"),
        (b"\n{", "line 2 is not JSON"),
        (b"{}", "item 1: columns are missing"),
        (b"[]", "line 1: not a JSON object"),
        (b'\n{"a": "na\xefve"}', "line 2: byte 0xef is not UTF-8"),
    ):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=message):
            read(path)
    write_swag(path, [ROWS[0]] * 3)
    with pytest.raises(DataError, match=r"one file is split by starts .* holds 1"):
        task_judge("swag", path).data()
    (tmp_path / "a.parquet").write_bytes(b"PAR")
    with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file"):
        read(tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a\.txt: a SWAG file ends in \.csv"):
        task_judge("swag", tmp_path / "a.txt").data()
    write_swag(path, ROWS)
    other = write_swag(tmp_path / "b.jsonl", [ROWS[0] | {"choices": ["a", "b"], "answer": 0}])
    with pytest.raises(DataError, match=r"items have \[2, 4\] choices"):
        task_judge("swag", path, other).data()


def test_sequences_by_hand(tmp_path: Path) -> None:
    rows = choices_of(tmp_path, [("ban bar", ["kat", "kit kon"], 1)])
    (made,) = rows
    tokens = [[CORPUS.tokenizer.id_to_token(number) for number in ids] for ids in made.ids]
    assert tokens[0] == ["[CLS]", "ban", "bar", "[SEP]", "kat", "[SEP]"]
    assert tokens[1] == ["[CLS]", "ban", "bar", "[SEP]", "kit", "kon", "[SEP]"]
    assert (made.first, made.label, rows.choices, rows.lengths) == ([4, 4], 1, 2, [7])


texts = st.integers(1, 20).map(lambda count: " ".join(WORDS[:count]))


@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4))
def test_long_items_are_cut_at_the_outer_ends(tmp_path_factory, parts):
    items = [(start, ends, 0) for start, *ends in parts]
    rows = choices_of(tmp_path_factory.mktemp("swag"), items)
    held = pickle.loads(pickle.dumps(rows))
    assert list(held) == list(rows)
    for (start, *endings), made, length in zip(parts, rows, rows.lengths, strict=True):
        assert length == max(len(ids) for ids in made.ids) <= 16
        for ending, ids, first in zip(endings, made.ids, made.first, strict=True):
            left, right = (CORPUS.encode([text])[0] for text in (start, ending))
            one, two = ids[1 : first - 1], ids[first:-1]
            assert one == left[len(left) - len(one) :]
            assert two == right[: len(two)]
            assert len(ids) == min(16, len(left) + len(right) + 3)
            assert len(one) >= min(len(left), 13 // 3)
            assert two == right or len(one) == min(len(left), 13 // 3)


@pytest.mark.slow
@real
def test_the_real_file() -> None:
    data = task_judge("swag", DATA / "swag").data()
    assert len(data.train) + len(data.dev) == 500
    labels = Counter(item.label for item in (*data.train, *data.dev))
    assert set(labels) == {0, 1, 2, 3}
    assert max(labels.values()) / 500 < 0.32  # what a constant answer earns


# -- fine-tuning --------------------------------------------------------------------------------
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
