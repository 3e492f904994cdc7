"""Datasets as text: from a folder, and what is said where there is none."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from masksearch.errors import DataError
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.files import HubText

pytest.importorskip("datasets")
BLANK = "\r\n\r\n \n"
WORDS = ["ban", "dart", "gost", "killing", "bert", "dos"]


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * k) % 6] for k in range(1, 9)) + " ."


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 documents to train on, 10 held out."""
    for name, count in (("train", 40), ("validation", 10), ("test", 5)):
        rows = [
            {"id": row, "text": BLANK.join(sentence(row + line) for line in range(4)), "n": 1.5}
            for row in range(count)
        ]
        jsonl(tmp_path / "data" / f"{name}.jsonl", rows)
    return tmp_path / "data"


def load(path: str, cache: Path, **settings: Any) -> Corpus:
    return Corpus.load(path, **({"vocabulary": 64, "length": 16, "cache": cache} | settings))


def whole(corpus: Corpus) -> torch.Tensor:
    return corpus.train[torch.arange(len(corpus.train))]


def test_spelling() -> None:
    parse = HubText.parse
    assert parse("hf:a/b") == HubText("a/b")
    assert parse("hf:a/b@c.d-e#f g") == HubText("a/b", "c.d-e", "f g")
    assert parse("hf:a/b#col?rows=20") == HubText("a/b", None, "col", 20)
    assert parse(Path("hf:a/b@x")) == HubText("a/b", "x")
    assert parse("hf:/x/y z#t") == HubText("/x/y z", None, "t")
    for wrong in ("hf:", "hf:a#", "hf:a?rows=0", "hf:a?rows=", "hf:a?lines=3", "hf:a?"):
        with pytest.raises(DataError, match=r"spelled hf:OWNER/NAME\[@CONFIG\]"):
            parse(wrong)


def test_a_folder_is_read_as_a_file_of_its_documents_would_be(folder: Path) -> None:
    corpus = load(f"hf:{folder}", folder.parent / "cache")
    plain = folder.parent / "plain"
    plain.mkdir()
    for name, stem, count in (("train", "train", 40), ("validation", "valid", 10)):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        assert len(rows) == count
        (plain / f"{stem}.txt").write_text(
            "".join(row["text"].replace(BLANK, "\n") + "\n\n" for row in rows)
        )
    same = load(str(plain), folder.parent / "cache")
    assert corpus.digest == same.digest
    assert torch.equal(whole(corpus), whole(same))
    assert len(corpus.begins[0].paragraphs) == 40
    assert len(corpus.begins[1].paragraphs) == 10
    assert not list((folder.parent / "cache").rglob("*.txt"))


def test_tokens_of_a_dataset_are_cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = load(f"hf:{folder}", folder.parent)
    monkeypatch.setattr(HubText, "write", None)
    assert load(f"hf:{folder}", folder.parent).digest == one.digest
    jsonl(folder / "train.jsonl", [{"text": "another"}])
    with pytest.raises(TypeError):  # is read again
        load(f"hf:{folder}", folder.parent)


def test_rows_are_limited(folder: Path) -> None:
    corpus = load(f"hf:{folder}?rows=8", folder.parent)
    assert corpus.begins is not None
    assert [len(part.paragraphs) for part in corpus.begins] == [8, 8]


def test_lines_stay_lines_where_some_are_blank(tmp_path: Path) -> None:
    lines = [sentence(number) if number % 5 else "" for number in range(60)]
    table = pa.table({"text": pa.array(lines, pa.string())})
    (tmp_path / "d").mkdir()
    pa.parquet.write_table(table, tmp_path / "d" / "train-00000.parquet")
    corpus = load(f"hf:{tmp_path / 'd'}", tmp_path)
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    assert torch.equal(whole(corpus), whole(load(str(tmp_path / "a.txt"), tmp_path)))
    assert len(corpus.begins[0].paragraphs) == 12


@pytest.mark.slow
def test_held_out_may_be_a_dataset(folder: Path) -> None:
    whole = load(f"hf:{folder}", folder.parent)
    (folder.parent / "a.txt").write_text("\n".join(map(sentence, range(200))))
    mixed = load(str(folder.parent / "a.txt"), folder.parent, held_out=f"hf:{folder}")
    assert len(mixed.held_out) == len(whole.held_out)
    other = load(f"hf:{folder}", folder.parent, held_out=folder.parent / "a.txt")
    assert len(other.train) == len(whole.train)
    assert len(other.held_out) == 200 * 9 // 14


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("#body", r"no column 'body'; it has id, text, n: name one as hf:"),
        ("#n", r"row 0: column 'n' holds a float, not text; .*#COLUMN"),
        ("@wrong", r"cannot be read: BuilderConfig 'wrong' not found"),
        ("/two", r"no column 'text'; it has a, b"),
        ("/no split", r"has no split 'train'; it has validation, test"),
        ("/empty", r"cannot be read: .*any data files; check .*--corpus"),
        ("/bad", r"cannot be read: .*; check"),
        ("/few", r"few holds \d+ tokens to train on"),
        ("/where", r"no such folder: .*/where"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder, tmp_path, place, message):
    jsonl(tmp_path / "two" / "train.jsonl", [{"a": "x", "b": "y"}])
    for split in ("validation", "test"):
        jsonl(tmp_path / "no split" / f"{split}.jsonl", [{"text": "x"}])
    jsonl(tmp_path / "few" / "train.jsonl", [{"text": "too short"}])
    for name in ("empty", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "train.jsonl").write_text("{bad")
    with pytest.raises(DataError, match=message):
        load(f"hf:{tmp_path if place[0] == '/' else folder}{place}", tmp_path / "cache")


def test_a_hub_out_of_reach_names_the_local_way(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"Hub cannot be reached for hf:no/text.*--corpus FILE_OR"):
        load("hf:no/text", tmp_path)
