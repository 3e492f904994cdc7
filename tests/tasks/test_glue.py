"""GLUE files, metrics and majority scores."""

import math
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from masksearch.errors import DataError, UnknownNameError
from masksearch.tasks.glue import TASKS, at_majority, load_glue, majority, score

real = pytest.mark.skipif(
    "MASKSEARCH_DATA" not in os.environ, reason="MASKSEARCH_DATA (a data folder) is not set"
)


def write(folder: Path, name: str, *lines: str, end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes((end.join(lines)).encode())
    return folder / name


@pytest.fixture
def sst(tmp_path: Path) -> Path:
    rows = [f"text {i}\t{i % 2}" for i in range(50)]
    write(tmp_path / "SST-2", "train.tsv", "sentence\tlabel", *rows, "")
    write(tmp_path / "SST-2", "dev.tsv", "sentence\tlabel", "good\t1", "bad\t0")
    return tmp_path


def test_quotes_are_text_and_the_mark_is_dropped(tmp_path: Path) -> None:
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = ['1\t1\t2\t" He said\tshe said "', "0\t3\t4\ta\u2028b\tc\x85d"]
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path / "MRPC", name, header, *rows, end="\r\n")
    data = load_glue(tmp_path, "MRPC")
    assert data.train.texts == [('" He said', 'she said "'), ("a\u2028b", "c\x85d")]
    assert data.train.labels == [1, 0]


def test_cola_has_no_header(tmp_path: Path) -> None:
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path / "CoLA", name, "gj04\t1\t\tFirst row.", "gj04\t0\t*\tRow second.")
    data = load_glue(tmp_path, "CoLA")
    assert data.dev["CoLA"].texts == [("First row.",), ("Row second.",)]


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    header = "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label"
    for name in ("train.tsv", "dev_matched.tsv", "dev_mismatched_sample.tsv"):
        write(tmp_path / "MNLI", name, header, "0\t7\ta\tb\tneutral\tcontradiction")
    data = load_glue(tmp_path, "MNLI")
    assert list(data.dev) == ["MNLI", "MNLI-mm"]
    assert data.train.texts == [("a", "b")]
    assert data.train.labels == [2]
    (tmp_path / "MNLI" / "dev_mismatched_sample.tsv").unlink()
    assert list(load_glue(tmp_path, "MNLI").dev) == ["MNLI"]


def test_heldout_serves_where_there_is_no_dev(tmp_path: Path) -> None:
    header = "id\tquestion1\tquestion2\tis_duplicate"
    write(tmp_path / "QQP", "train.tsv", header, "0\ta\tb\t1")
    with pytest.raises(DataError, match=r"QQP holds no dev\.tsv or heldout\.tsv"):
        load_glue(tmp_path, "QQP")
    write(tmp_path / "QQP", "heldout.tsv", header, "0\ta\tb\t0")
    assert load_glue(tmp_path, "QQP").dev["QQP"].labels == [0]


def test_rows_are_a_seeded_sample(sst: Path) -> None:
    whole = load_glue(sst, "SST-2")
    assert len(whole.train) == 50
    one, two = load_glue(sst, "SST-2", rows=20), load_glue(sst, "SST-2", rows=20)
    assert one.train == two.train
    assert one.digest == two.digest != whole.digest
    numbers = [int(text.split()[1]) for (text,) in one.train.texts]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 20
    assert max(numbers) > 20  # not the head
    assert load_glue(sst, "SST-2", rows=20, seed=1).train != one.train
    assert len(load_glue(sst, "SST-2", dev_rows=1).dev["SST-2"]) == 1
    with pytest.raises(ValueError, match="rows must be at least 1"):
        load_glue(sst, "SST-2", rows=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("only one field", r"train\.tsv, line 4: expected 2 tab-separated fields, found 1"),
        ("a\t1\tb", r"train\.tsv, line 4: expected 2 tab-separated fields, found 3"),
        ("", r"train\.tsv, line 4: expected 2 tab-separated fields, found 1"),
        ("a\t2", r"train\.tsv, line 4: unknown label '2'; SST-2 has 0, 1"),
        ("a\t", r"train\.tsv, line 4: unknown label ''"),
    ],
)
def test_bad_lines_are_named(sst: Path, line: str, message: str) -> None:
    write(sst / "SST-2", "train.tsv", "sentence\tlabel", "x\t1", "y\t0", line, "z\t1")
    with pytest.raises(DataError, match=message):
        load_glue(sst, "SST-2")


def test_missing_things_are_named(sst: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*RTE"):
        load_glue(sst, "RTE")
    with pytest.raises(UnknownNameError, match="did you mean 'SST-2'"):
        load_glue(sst, "SST2")
    write(sst / "SST-2", "train.tsv", "sentence\tlabels", "x\t1")
    with pytest.raises(DataError, match=r"line 1: no column label; .* found sentence, labels"):
        load_glue(sst, "SST-2")
    for content in (("sentence\tlabel",), ("",)):
        write(sst / "SST-2", "train.tsv", *content)
        with pytest.raises(DataError, match=r"train\.tsv is empty"):
            load_glue(sst, "SST-2")
    (sst / "SST-2" / "train.tsv").write_bytes(b"sentence\tlabel\nna\xefve\t1\n")
    with pytest.raises(DataError, match=r"line 2: byte 0xef is not UTF-8"):
        load_glue(sst, "SST-2")
    (sst / "SST-2" / "train.tsv").unlink()
    with pytest.raises(DataError, match=r"no file .*train\.tsv"):
        load_glue(sst, "SST-2")


def test_scores_of_a_regression_are_numbers(tmp_path: Path) -> None:
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path / "STS-B", name, "sentence1\tsentence2\tscore", "a\tb\t3.25", "a\tb\thigh")
    with pytest.raises(DataError, match=r"line 3: score 'high' is not a number"):
        load_glue(tmp_path, "STS-B")


def test_class_metrics_match_loops() -> None:
    draw = random.Random(0)
    labels = [draw.randint(0, 1) for _ in range(200)]
    guess = [label if draw.random() < 0.7 else 1 - label for label in labels]
    count = Counter(zip(guess, labels, strict=True))
    hit, miss, false, right = count[1, 1], count[0, 1], count[1, 0], count[0, 0]
    found = score(TASKS["MRPC"], guess, labels)
    assert found["accuracy"] == pytest.approx((hit + right) / 200)
    assert found["f1"] == pytest.approx(2 * hit / (2 * hit + false + miss))
    below = math.sqrt((hit + false) * (hit + miss) * (right + false) * (right + miss))
    matthews = score(TASKS["CoLA"], guess, labels)["matthews"]
    assert matthews == pytest.approx((hit * right - false * miss) / below)
    assert list(found) == ["accuracy", "f1"]


def test_correlations_match_loops() -> None:
    draw = random.Random(1)
    labels = [draw.random() * 5 for _ in range(60)]
    guess = [label + draw.gauss(0, 1) for label in labels]

    def correlation(a: list[float], b: list[float]) -> float:
        mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
        both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
        return both / math.sqrt(
            sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
        )

    def ranks(a: list[float]) -> list[float]:
        return [float(sorted(a).index(x)) for x in a]

    found = score(TASKS["STS-B"], guess, labels)
    assert found["pearson"] == pytest.approx(correlation(guess, labels))
    assert found["spearman"] == pytest.approx(correlation(ranks(guess), ranks(labels)))


@pytest.mark.filterwarnings("error")
def test_constant_predictions_score_without_warnings() -> None:
    assert score(TASKS["STS-B"], [1.0, 1.0], [2.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert score(TASKS["MRPC"], [0, 0], [0, 1]) == {"accuracy": 0.5, "f1": 0.0}
    assert majority(TASKS["CoLA"], [1, 1, 0]) == 0.0
    assert majority(TASKS["MNLI"], [2, 2, 0, 1]) == 0.5
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        score(TASKS["MRPC"], [0], [0, 1])


def test_at_majority_flags() -> None:
    values = {"A": 0.7, "A/majority": 0.6, "B": 0.605, "B/majority": 0.6, "glue": 0.65}
    assert at_majority(values) == ["B"]
    assert at_majority(values, margin=0.2) == ["A", "B"]


OFFICIAL = {  # development rows and counts by class number, from the GLUE release
    "CoLA": (8_551, {"CoLA": [322, 721]}),
    "SST-2": (67_349, {"SST-2": [428, 444]}),
    "MRPC": (3_668, {"MRPC": [129, 279]}),
    "RTE": (2_490, {"RTE": [146, 131]}),
    "WNLI": (635, {"WNLI": [40, 31]}),
    "QNLI": (None, {"QNLI": [2_702, 2_761]}),
    "MNLI": (None, {"MNLI": [3_479, 3_123, 3_213]}),
}


@real
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_counts(name: str) -> None:
    data = load_glue(Path(os.environ["MASKSEARCH_DATA"]) / "glue", name)
    train, dev = OFFICIAL[name]
    assert train is None or len(data.train) == train
    for part, counts in dev.items():
        found = Counter(data.dev[part].labels)
        assert [found[number] for number in range(len(counts))] == counts


@real
def test_the_other_tasks_load() -> None:
    folder = Path(os.environ["MASKSEARCH_DATA"]) / "glue"
    scores = load_glue(folder, "STS-B")
    assert (len(scores.train), len(scores.dev["STS-B"])) == (5_749, 1_500)
    assert (min(scores.train.labels), max(scores.train.labels)) == (0, 5)
    assert len(load_glue(folder, "QQP").dev["QQP"]) > 0
    assert len(load_glue(folder, "MNLI").dev["MNLI-mm"]) > 0
