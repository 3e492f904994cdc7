"""Tasks of one's own by the names of their columns: TSV and CSV, classes and scores."""

from pathlib import Path

import pytest

from masksearch.errors import DataError
from masksearch.tasks.glue import load_glue
from masksearch.tasks.glue.columns import Columns


def write(folder: Path, **files: str) -> Path:
    """Files of a folder, such as train_csv="..": the last underscore is the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def test_a_csv_with_quotes_commas_and_line_ends_is_read_as_csv(tmp_path):
    train = 'text,stars\n"Good, really\nvery ""good""",pos\nbad,neg\nmeh\tmeh,so\n'
    folder = write(tmp_path / "reviews", train_csv=train, valid_csv="text,stars\nfine,pos\n")
    task = Columns(("text",), "stars").read(folder, tmp_path / "glue")
    assert (task.name, task.labels, task.metrics) == (
        "reviews",
        ("neg", "pos", "so"),
        ("accuracy",),
    )
    data = load_glue(tmp_path / "glue", task, split="all")
    assert data.train.texts == [('Good, really very "good"',), ("bad",), ("meh meh",)]
    assert data.train.labels == [1, 0, 2]
    assert data.dev["reviews"].texts == [("fine",)]


def test_quote_marks_of_a_tsv_are_text_and_two_classes_have_an_f1(tmp_path):
    train = 'b\ta\tlabel\n"one\ttwo "2"\t1\nthree\tfour\t0\n'
    folder = write(tmp_path / "pairs", train_tsv=train, dev_tsv="b\ta\tlabel\nx\ty\t0\n")
    task = Columns(("a", "b"), "label").read(folder, tmp_path / "glue")
    assert (task.texts, task.labels, task.metrics) == (
        ("a", "b"),
        ("0", "1"),
        ("accuracy", "f1"),
    )
    data = load_glue(tmp_path / "glue", task, split="all")
    assert data.train.texts == [('two "2"', '"one'), ("four", "three")]


@pytest.mark.parametrize(
    ("labels", "regression"),
    [("0.5 1 2", True), ("0 1 2", False), (" ".join(map(str, range(30))), True), ("a 1", False)],
)
def test_labels_that_are_fractions_or_many_numbers_are_scores(tmp_path, labels, regression):
    rows = "".join(f"text {each}\t{each}\n" for each in labels.split())
    folder = write(tmp_path / "own", train_tsv=f"t\tl\n{rows}", dev_tsv=f"t\tl\n{rows}")
    task = Columns(("t",), "l").read(folder, tmp_path / "glue")
    assert task.regression == regression
    assert len(load_glue(tmp_path / "glue", task, split="all").train) == len(labels.split())
    if labels == "0 1 2":
        assert task.labels == ("0", "1", "2")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train_tsv": "text\tlabel\na\t1\nb\t0\n"},
            r"holds no dev\.tsv or .*: rows to score masks",
        ),
        (
            {"dev_tsv": "text\tlabel\na\t1\n"},
            r"holds no train\.tsv or train\.csv: rows to train on",
        ),
        (
            {"train_tsv": "texts\tlabel\na\t1\n", "dev_tsv": "texts\tlabel\na\t1\n"},
            r"train\.tsv has no column 'text'; did you mean 'texts'\?",
        ),
        (
            {"train_tsv": "text\tlabel\na\t1\nb\t\n", "dev_tsv": "text\tlabel\na\t1\n"},
            r"train\.tsv, line 3: no label",
        ),
        (
            {"train_tsv": "text\tlabel\na\t1\n", "dev_tsv": "text\tlabel\na\t1\n"},
            "all rows have the label '1'",
        ),
        ({"train_tsv": "text\tlabel\n", "dev_tsv": "text\tlabel\n"}, "no row below its header"),
    ],
)
def test_what_is_missing_is_named_with_the_file(tmp_path, files, message):
    folder = write(tmp_path / "own", **files)
    with pytest.raises(DataError, match=message):
        Columns(("text",), "label").read(folder, tmp_path / "glue")
