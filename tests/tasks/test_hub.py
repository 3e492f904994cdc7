"""Data sets in the Hub's form, texts and GLUE: from a folder, and what is said without one."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from toy_sentences import write_lines

import masksearch as ms
from masksearch.errors import DataError
from masksearch.tasks.glue import load_glue
from masksearch.tasks.glue.tasks import TASKS, GlueTask
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.files import HubText

datasets = pytest.importorskip("datasets")
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


# -- GLUE in the Hub's form: a local folder written like the Hub's repository -------------------


def example(task: GlueTask, number: int) -> dict[str, Any]:
    """A row in the Hub's columns."""
    texts = {column: f'{column} {number}\u2028\t"x' for column in task.hub.texts}
    label = 5 * number / 12 if task.regression else number % task.classes
    return {**texts, "label": label, "idx": number}


def write(
    folder: Path, task: GlueTask, rows: dict[str, list[dict[str, Any]]], shards: int = 1
) -> Path:
    """`<config>/<split>-00000-of-0000n.parquet`, with the Hub's types."""
    kind = datasets.ClassLabel(names=list(task.hub.names))
    label = datasets.Value("float32") if task.regression else kind
    for split, part in rows.items():
        columns = {name: datasets.Value("string") for name in part[0]}
        columns |= {"label": label, "idx": datasets.Value("int32")}
        whole = datasets.Dataset.from_list(part, features=datasets.Features(columns))
        (folder / task.hub.config).mkdir(parents=True, exist_ok=True)
        for number in range(shards):
            file = folder / task.hub.config / f"{split}-{number:05d}-of-{shards:05d}.parquet"
            whole.shard(shards, number, contiguous=True).to_parquet(file)
    return folder


def splits(task: GlueTask) -> list[str]:
    assert task.hub is not None
    return ["train", *task.hub_splits.values(), "test"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine tasks, 12 rows a split; the labels of the test sets are hidden."""
    folder = tmp_path_factory.mktemp("hub")
    for task in TASKS.values():
        rows = {split: [example(task, n) for n in range(12)] for split in splits(task)}
        for row in rows["test"]:
            row["label"] = -1
        write(folder, task, rows, shards=2)
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_every_task_reads_from_a_local_folder(hub: Path, name: str) -> None:
    task = TASKS[name]
    data = load_glue(f"hf:{hub}", name)
    assert list(data.dev) == list(task.dev_files)
    for rows in (data.train, *data.dev.values()):
        expected = [example(task, n) for n in range(12)]
        assert rows.texts == [tuple(row[column] for column in task.hub.texts) for row in expected]
        assert rows.labels == pytest.approx([row["label"] for row in expected])
        kind = float if task.regression else int
        assert {type(label) for label in rows.labels} == {kind}


def test_hub_and_tsv_rows_are_equal_and_their_digests_are_not(hub: Path, tmp_path: Path) -> None:
    lines = [
        f"{number}\ta {number}\tb\t{('entailment', 'not_entailment')[number % 2]}"
        for number in range(9)
    ]
    for file in ("train.tsv", "dev.tsv"):
        write_lines(tmp_path / "RTE" / file, ["index\tsentence1\tsentence2\tlabel", *lines])
    rows = [{"sentence1": f"a {n}", "sentence2": "b", "label": n % 2, "idx": n} for n in range(9)]
    write(tmp_path / "hub", TASKS["RTE"], {"train": rows, "validation": rows})
    tsv = load_glue(tmp_path, "RTE", 5, dev_rows=4, seed=1)
    found = load_glue(f"hf:{tmp_path / 'hub'}", "RTE", 5, dev_rows=4, seed=1)
    assert (found.train, found.dev) == (tsv.train, tsv.dev)
    assert found.digest != tsv.digest
    assert found.digest == load_glue(f"hf:{tmp_path / 'hub'}", "RTE", 5, dev_rows=4, seed=1).digest
    assert found.digest != load_glue(f"hf:{tmp_path / 'hub'}", "RTE", 5, seed=1).digest
    rows[3]["sentence2"] = "c"
    write(tmp_path / "hub", TASKS["RTE"], {"train": rows})
    assert found.digest != load_glue(f"hf:{tmp_path / 'hub'}", "RTE", 5, dev_rows=4, seed=1).digest


@pytest.mark.slow
def test_a_saved_data_set_reads_too(hub: Path, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        files = [str(file) for file in sorted((hub / "sst2").glob(f"{split}-*"))]
        whole = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
        whole.save_to_disk(tmp_path / "sst2" / split)
    data = load_glue(f"hf:{tmp_path}", "SST-2")
    assert data == load_glue(f"hf:{hub}", "SST-2")


def test_mismatched_is_optional_and_the_matched_set_is_not(tmp_path: Path) -> None:
    task = TASKS["MNLI"]
    rows = [example(task, number) for number in range(3)]
    write(tmp_path, task, {"train": rows, "validation_matched": rows})
    assert list(load_glue(f"hf:{tmp_path}", "MNLI").dev) == ["MNLI"]
    (tmp_path / "mnli" / "validation_matched-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"no split validation_matched; it holds train"):
        load_glue(f"hf:{tmp_path}", "MNLI")


GOOD = {"sentence": "a", "label": 1, "idx": 0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, GOOD | {"label": -1}], r"sst2/validation, row 1: the label is hidden \(-1\)"),
        ([GOOD, GOOD | {"label": 2}], r"sst2/validation, row 1: unknown label 2; SST-2 has 0, 1"),
        ([GOOD, GOOD | {"label": None}], r"row 1: unknown label None"),
        ([GOOD, GOOD | {"sentence": None}], r"row 1: sentence is None, not a text"),
        ([{"text": "b", "label": 1}], r"no column sentence; SST-2 needs .* found text"),
        ({"sentence": [], "label": []}, r"sst2/validation is empty"),
        (b"no parquet", r"sst2 cannot be read: .*[Pp]arquet"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, rows: Any, message: str) -> None:
    write(tmp_path, TASKS["SST-2"], {"train": [GOOD]})
    file = tmp_path / "sst2" / "validation-00000-of-00001.parquet"
    if isinstance(rows, bytes):
        file.write_bytes(rows)
    else:
        made = datasets.Dataset.from_dict if isinstance(rows, dict) else datasets.Dataset.from_list
        made(rows).to_parquet(file)
    with pytest.raises(DataError, match=message):
        load_glue(f"hf:{tmp_path}", "SST-2")


def test_hidden_scores_and_other_class_orders_are_named(tmp_path: Path) -> None:
    rows = [example(TASKS["STS-B"], 3)]
    write(tmp_path, TASKS["STS-B"], {"train": rows, "validation": [{**rows[0], "label": -1.0}]})
    with pytest.raises(DataError, match=r"stsb/validation, row 0: the label is hidden"):
        load_glue(f"hf:{tmp_path}", "STS-B")
    kind = datasets.ClassLabel(names=["positive", "negative"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": kind})
    (tmp_path / "sst2").mkdir()
    for split in ("train", "validation"):
        whole = datasets.Dataset.from_list([{"sentence": "a", "label": 1}], features=features)
        whole.to_parquet(tmp_path / "sst2" / f"{split}.parquet")
    with pytest.raises(DataError, match=r"the classes are positive, negative, but SST-2 has neg"):
        load_glue(f"hf:{tmp_path}", "SST-2")


def test_a_hub_out_of_reach_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without offline mode, against an address where nothing listens."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    def never(*arguments: Any, **named: Any) -> None:
        pytest.fail("load_dataset retries for half a minute; the request before it has failed")

    monkeypatch.setattr(datasets, "load_dataset", never)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"cannot be reached for hf:nyu-mll/glue .*--glue FOLDER"):
        load_glue("hf:nyu-mll/glue", "CoLA")
    assert time.monotonic() - start < 25


@pytest.mark.parametrize(
    ("place", "task", "library", "message"),
    [
        ("", "CoLA", datasets, r"no folder .*cola: a GLUE folder in the Hub's form"),
        ("", GlueTask("tone", ("review",), "tone"), datasets, "tone is not on the Hub"),
        ("nyu-mll/glue", "CoLA", datasets, r"hf:nyu-mll/glue cannot be read: .*--glue FOLDER"),
        ("nyu-mll/glue", "CoLA", None, r"pip install .*\[hub\]"),
    ],
)
def test_what_is_missing_offline_is_named(place, task, library, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", library)
    with pytest.raises(DataError, match=message):
        load_glue(f"hf:{place or tmp_path}", task)


@pytest.mark.slow
def test_the_hub_is_asked_for_the_configuration(hub, tmp_path, monkeypatch):
    asked: list[str] = []

    def loaded(name: str, config: str, **options: Any) -> dict[str, Any]:
        asked.extend((name, config))
        return {
            split: datasets.Dataset.from_parquet(
                [str(file) for file in sorted((hub / config).glob(f"{split}-*"))],
                cache_dir=str(tmp_path),
            )
            for split in splits(TASKS["MNLI"])
        }

    monkeypatch.setattr("masksearch.tasks.text.files.hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    data = load_glue("hf:nyu-mll/glue", "MNLI")
    assert asked == ["nyu-mll/glue", "mnli"]
    assert data == load_glue(f"hf:{hub}", "MNLI")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, **_: {"train": []})
    with pytest.raises(DataError, match=r"no split validation_matched; it holds train"):
        load_glue("hf:nyu-mll/glue", "MNLI")


def test_places_are_absolute_or_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    for given, place in (
        ("glue", tmp_path / "glue"),
        ("hf:nyu-mll/glue", "hf:nyu-mll/glue"),
        ("hf:local", f"hf:{tmp_path / 'local'}"),
        ("hf:./local", f"hf:{tmp_path / 'local'}"),
        (f"hf:{tmp_path}", f"hf:{tmp_path}"),
        ("hf:~/x", f"hf:{(Path.home() / 'x').resolve()}"),
    ):
        assert ms.GlueEvaluator("text", given).glue == place
