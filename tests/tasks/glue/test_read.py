"""GLUE files, and tasks of one's own in them."""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from real_data import DATA, real

import masksearch as ms
from masksearch.contracts import mixed_seed
from masksearch.errors import DataError, UnknownNameError
from masksearch.tasks.glue import load_glue
from masksearch.tasks.glue.columns import Columns
from masksearch.tasks.glue.read import GlueData, Rows, describe_rows
from masksearch.tasks.glue.tasks import TASKS, GlueTask, constant_scores, majority, score


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
    with pytest.raises(DataError, match=r"QQP holds no dev\.tsv or heldout\.tsv; put"):
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


SST, STS = b"sentence\tlabel\n", b"sentence1\tsentence2\tscore\na\tb\t"


@pytest.mark.parametrize(
    ("task", "train", "message"),
    [
        ("SST-2", SST + b"x\t1\none field\n", r"train\.tsv, line 3: expected 2 tab-.* found 1"),
        ("SST-2", SST + b"a\t1\tb", r"line 2: expected 2 tab-separated fields, found 3"),
        ("SST-2", SST + b"x\t1\n\nz\t1", r"line 3: expected 2 tab-separated fields, found 1"),
        ("SST-2", SST + b"a\t2", r"line 2: unknown label '2'; SST-2 has 0, 1"),
        ("SST-2", SST + b"a\t", r"line 2: unknown label ''"),
        ("SST-2", SST + b"a\t1\nbad\t-1", r"train\.tsv, line 3: the label is hidden \(-1\)"),
        ("SST-2", b"sentence\tlabels\nx\t1", r"line 1: no column label; .* found sentence, lab"),
        ("SST-2", b"index\tsentence\n0\tgood", r"no column label; .* \(test sets hold no labels"),
        ("SST-2", SST, r"train\.tsv is empty"),
        ("SST-2", b"", r"train\.tsv is empty"),
        ("SST-2", SST + b"caf\xc3\xa9\t1\ncaf\xe9\t0", r"line 3: byte 0xe9 is not UTF-8; .*iconv"),
        ("SST-2", "sentence\tlabel\na\t1\n".encode("utf-16"), r"line 1: byte 0xff is not UTF-8"),
        ("STS-B", STS + b"3.25\na\tb\thigh", r"line 3: score 'high' is not a number"),
        ("STS-B", STS + b"-1.000", r"line 2: the label is hidden"),
        *(
            ("STS-B", STS + score, r"line 2: score .* is outside 0 \.\. 5")
            for score in (b"5.5", b"-0.5", b"nan", b"inf")
        ),
    ],
)
def test_bad_files_are_named(tmp_path: Path, task: str, train: bytes, message: str) -> None:
    write(tmp_path / task, "dev.tsv", "sentence\tlabel", "good\t1")
    (tmp_path / task / "train.tsv").write_bytes(train)
    with pytest.raises(DataError, match=message):
        load_glue(tmp_path, task)


def test_missing_things_are_named(sst: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*RTE.*this one has SST-2"):
        load_glue(sst, "RTE")
    with pytest.raises(UnknownNameError, match="did you mean 'SST-2'"):
        load_glue(sst, "SST2")
    with pytest.raises(DataError, match=r"is a task's own folder; give the GLUE folder"):
        load_glue(sst / "SST-2", "SST-2")
    with pytest.raises(DataError, match=r"is no GLUE folder .* \(CoLA, SST-2.*has none"):
        load_glue(tmp_path / "nowhere", "SST-2")
    (sst / "SST-2" / "train.tsv").unlink()
    with pytest.raises(DataError, match=r"no file .*train\.tsv"):
        load_glue(sst, "SST-2")


def test_the_seeds_of_recorded_runs_stay() -> None:
    """SOURCE: the places in the table from which they were derived first."""
    names = "CoLA SST-2 MRPC STS-B QQP MNLI QNLI RTE WNLI".split()
    judge = ms.GlueEvaluator("text", "glue", tasks=names)
    assert [judge.task_seed(name, 5) for name in names] == [mixed_seed(5, n) for n in range(9)]


def test_a_task_of_ones_own_has_a_seed_of_its_name() -> None:
    judge = ms.GlueEvaluator("text", "glue", tasks=[GlueTask("tone", ("review",), "tone")])
    number = 0x00CF4CE3935C8A  # printf tone | sha256sum
    assert judge.task_seed("tone", 5) == mixed_seed(5, number)


TONE = GlueTask(
    "tone",
    texts=("review",),
    label="tone",
    labels=("calm", "angry", "glad"),
    metrics=("accuracy", "matthews"),
    dev={"tone": ("dev.tsv",), "tone-late": ("late.tsv",)},
)


def test_a_task_of_ones_own_is_a_row_in_a_file_of_ones_own(tmp_path: Path) -> None:
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path / "tone", name, "id\ttone\treview", "0\tglad\tgood", "1\tcalm\tbad")
    data = load_glue(tmp_path, TONE)
    assert data.task is TONE
    assert (data.train.texts, data.train.labels) == ([("good",), ("bad",)], [2, 0])
    assert list(data.dev) == ["tone"]
    assert score(TONE, [2, 0], data.dev["tone"].labels) == {"accuracy": 1.0, "matthews": 1.0}
    other = replace(TONE, metrics=("matthews",))
    assert hash(other) != hash(TONE)
    assert load_glue(tmp_path, other).digest != data.digest  # its scores are others


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "a/b"}, "a task's name is also its folder's"),
        ({"texts": ()}, r"tone: texts names one or two columns, got \(\)"),
        ({"labels": ("calm",)}, "tone: labels are two or more, each once, or none"),
        ({"metrics": ("f1",)}, r"metrics are one or more of accuracy, f1, .* \(f1 of two"),
        ({"metrics": ("pearson",)}, "metrics are one or more of accuracy"),
        ({"labels": ()}, "metrics are one or more of pearson, spearman"),
        ({"dev": {"late": ("late.tsv",)}}, "the first development set carries the task's name"),
        ({"fields": 3}, r"columns are names, or numbers .* got \('review', 'tone'\)"),
    ],
)
def test_a_row_that_cannot_be_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TONE, **changed)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n", "\r\n\n"])
def test_line_ends_change_nothing(tmp_path: Path, end: str, last: str) -> None:
    for name in ("train.tsv", "dev.tsv"):
        path = write(
            tmp_path / "SST-2", name, "sentence\tlabel", "a \t1", "b\x0bc\x1cd\t0", end=end
        )
        path.write_bytes(path.read_bytes() + last.encode())
    rows = load_glue(tmp_path, "SST-2").dev["SST-2"]
    assert rows.texts == [("a ",), ("b\x0bc\x1cd",)]
    assert rows.labels == [1, 0]


def test_torn_lines_of_qqp_are_left_out_with_a_warning(tmp_path: Path) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    torn = ["1\t2\t3\tWhat is", "this?\tWhat?\t0"]
    whole = ["0\t1\t2\ta\tb\t1", "4\t5\t6\tc\td\t0"]
    write(tmp_path / "QQP", "train.tsv", header, whole[0], *torn, whole[1])
    write(tmp_path / "QQP", "dev.tsv", header, *whole)
    with pytest.warns(UserWarning, match=r"2 lines with too few fields .* out \(line 3, 4\)"):
        data = load_glue(tmp_path, "QQP")
    assert data.train == data.dev["QQP"]
    write(tmp_path / "QQP", "train.tsv", header, *(torn * 9), whole[0])
    with pytest.raises(DataError, match=r"line 18: expected 6 tab-separated fields, found 4"):
        load_glue(tmp_path, "QQP")
    write(tmp_path / "QQP", "train.tsv", header, *torn)
    with pytest.raises(DataError, match=r"holds no whole row"):
        load_glue(tmp_path, "QQP")


OFFICIAL = {  # training rows here, and development rows by class number, from the GLUE release
    "CoLA": (8_551, {"CoLA": [322, 721]}),
    "SST-2": (67_349, {"SST-2": [428, 444]}),
    "MRPC": (3_668, {"MRPC": [129, 279]}),
    "RTE": (2_490, {"RTE": [146, 131]}),
    "WNLI": (635, {"WNLI": [40, 31]}),
    "QNLI": (9_999, {"QNLI": [2_702, 2_761]}),  # a sample of the training rows
    "MNLI": (9_999, {"MNLI": [3_479, 3_123, 3_213], "MNLI-mm": 1_000}),  # samples
    "QQP": (8_999, {"QQP": 1_000}),  # a sample, and not the official development set
    "STS-B": (5_749, {"STS-B": 1_500}),
}


@real
@pytest.mark.nightly
@pytest.mark.parametrize("name", TASKS)
def test_every_task_loads_tokenizes_and_scores_on_real_rows(name: str) -> None:
    from masksearch.tasks.text.tokenizer import open_tokenizer, special_ids

    place = DATA
    data = load_glue(place / "glue", name)
    train, dev = OFFICIAL[name]
    assert len(data.train) == train
    assert list(data.dev) == list(dev)
    for part, counts in dev.items():
        rows = data.dev[part]
        found = Counter(rows.labels)
        if isinstance(counts, int):
            assert len(rows) == counts
        else:
            assert [found[number] for number in range(len(counts))] == counts
        constant = constant_scores(data.task, rows.labels)
        assert list(constant) == list(data.task.metrics)
        assert constant[data.task.primary] == majority(data.task, rows.labels)
        truth = score(data.task, rows.labels, rows.labels)
        assert all(value == pytest.approx(1.0) for value in truth.values())
    if name == "STS-B":
        assert (min(data.train.labels), max(data.train.labels)) == (0, 5)
    tokenizer = open_tokenizer(place / "bert-vocab" / "vocab.txt")
    unknown = special_ids(tokenizer)["unknown"]
    for rows in (data.train, *data.dev.values()):
        for part in range(len(data.task.texts)):
            texts = [text[part] for text in rows.texts]
            encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            lengths = [len(one.ids) for one in encoded]
            assert min(lengths) >= (0 if name == "QQP" else 1)
            tokens = sum(lengths)
            assert sum(one.ids.count(unknown) for one in encoded) < 0.01 * tokens


# -- tasks of one's own by the names of their columns -------------------------------------------
def write_all(folder: Path, **files: str) -> Path:
    """Files of a folder, such as train_csv="..": the underscore is the dot."""
    for name, text in files.items():
        write(folder, name.replace("_", "."), text)
    return folder


def write_labels(folder: Path, train: str, dev: str) -> Path:
    """A table of labels that stand apart by spaces."""
    parts = {"train_csv": train.split(), "dev_csv": dev.split()}
    lines = {
        name: "".join(f'text {at},"{label}"\n' for at, label in enumerate(labels))
        for name, labels in parts.items()
    }
    return write_all(folder, **{name: f"text,label\n{rows}" for name, rows in lines.items()})


def read_labels(folder: Path, train: str, dev: str) -> tuple[GlueTask, GlueData]:
    """The task of such a table, and its rows."""
    task = Columns(("text",), "label").read(write_labels(folder, train, dev))
    return task, load_glue(folder.parent, task)


def test_a_csv_with_quotes_commas_and_line_ends_is_read_as_csv(tmp_path):
    train = 'text,stars\n"Good, really\nvery ""good""",pos\nbad,neg\nmeh\tmeh,so\n'
    folder = write_all(tmp_path / "reviews", train_csv=train, valid_csv="text,stars\nfine,pos\n")
    task = Columns(("text",), "stars").read(folder, tmp_path / "copy")
    assert (task.name, task.labels, task.metrics) == (
        "reviews",
        ("neg", "pos", "so"),
        ("accuracy",),
    )
    for place in (tmp_path, tmp_path / "copy"):
        data = load_glue(place, task)
        assert data.train.texts == [('Good, really\nvery "good"',), ("bad",), ("meh\tmeh",)]
        assert data.train.labels == [1, 0, 2]
        assert data.dev["reviews"].texts == [("fine",)]


def test_quote_marks_of_a_tsv_are_text_and_two_classes_have_an_f1(tmp_path):
    train = 'b\ta\tlabel\n"one\ttwo "2"\t1\nthree\rmore\tfour\t0\n'
    folder = write_all(tmp_path / "pairs", train_tsv=train, dev_tsv="b\ta\tlabel\nx\ty\t0\n")
    task = Columns(("a", "b"), "label").read(folder)
    assert (task.texts, task.labels, task.metrics) == (("a", "b"), ("0", "1"), ("accuracy", "f1"))
    data = load_glue(tmp_path, task)
    assert data.train.texts == [('two "2"', '"one'), ("four", "three\rmore")]


MANY = " ".join(map(str, range(30)))
SCORES = "regression, 30 rows, scores 0.0 to 29.0"


@pytest.mark.parametrize(
    ("train", "dev", "understood"),
    [
        ("0.5 1 2", "1 2", "regression, 3 rows, scores 0.5 to 2.0"),
        (MANY, "3 4.5", SCORES),
        ("0 1 2 1", "0 1 2", "3 classes: 0 1, 1 2, 2 1"),
        ("a 1 a", "a 1", "2 classes: 1 1, a 2"),
        ("0 1", "0.0 1.00", "2 classes: 0 1, 1 1"),
        ("1 2 10", "01 02 1e1", "3 classes: 1 1, 2 1, 10 1"),
        ("1_0 10", "1_0 10", "2 classes: 10 1, 1_0 1"),
        ("12345678901234567890 12345678901234567891", "12345678901234567890", "2 classes: 1"),
        ("-1 0 1", "-1", "3 classes: -1 1, 0 1, 1 1"),
        ("-1.5 2 -2", "-1", "regression, 3 rows, scores -2.0 to 2.0"),
        ("0 1 2 nan", "0 1 2", "4 classes: 0 1, 1 1, 2 1, nan 1"),
        (" ".join(f"c{n}" for n in range(30)), "c1", "c25 1, c26 1 and 10 more"),
    ],
)
def test_labels_are_scores_or_classes_and_equal_numbers_are_one(tmp_path, train, dev, understood):
    task, data = read_labels(tmp_path / "own", train, dev)
    assert understood in describe_rows(task, data.train)
    assert set(data.dev["own"].labels) <= set(data.train.labels) or task.regression


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        *(
            (f"{MANY} {odd}", MANY, rf"train\.csv, line 32: label '{odd}' is no number, and 60 of")
            for odd in ("nan", "inf", "N/A", "None", "-", "3,5")
        ),
        (f"{'0.5 1.5 ' * 20}", "0.5 x 1", r"dev\.csv, line 3: label 'x' is no number, and 42 of"),
        ("0 1", "-1 0", r"dev\.csv, line 2: the label is hidden \(-1\)"),
        (MANY, "-1", r"dev\.csv, line 2: the label is hidden \(-1\)"),
        ("calm glad", "-1 -1", r"dev\.csv, line 2: the label is hidden \(-1\)"),
        (" ".join(f"c{n}" for n in range(60)), "c1", "60 classes in 60 .* is 'label' that of the"),
    ],
)
def test_labels_that_are_mistakes_are_named_by_their_line(tmp_path, train, dev, message):
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "own", train, dev)


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        ("yes no", "yes maybe", "own: no training row has the label 'maybe'; spell alike what is"),
        ("yes no Yes", "no", "own: 'yes' and 'Yes' are two classes; spell alike what is one cl"),
        ("yes no yes\u200b", "no", r"'yes\\u200b' are two classes \(in one alone: U\+200B\); s"),
        ("\u2764\ufe0f no \u2764", "no", r"two classes \(in one alone: U\+FE0F\); spell alike"),
        (
            "caf\xe9 no cafe\u0301",
            "no",
            r"'caf\xe9' and 'cafe\u0301' are two .*: U\+0065, U\+00E9, U\+0301\); spell alike",
        ),
    ],
)
def test_classes_that_may_be_mistakes_are_warned_of(tmp_path, train, dev, message):
    with pytest.warns(UserWarning, match=message) as told:
        read_labels(tmp_path / "own", train, dev)
    assert not any("\n" in str(each.message) for each in told)


def test_a_label_is_a_name_whose_ends_are_stripped_and_that_is_shown_in_one_line(tmp_path):
    rows = 'text,label\n a\t,"  pos\n"\nb,pos\nc,"not\npos"\n'
    folder = write_all(tmp_path / "own", train_csv=rows, dev_csv=rows)
    task = Columns(("text",), "label").read(folder)
    assert task.labels == ("not\npos", "pos")
    data = load_glue(tmp_path, task)
    assert data.train.texts == [(" a\t",), ("b",), ("c",)]
    assert describe_rows(task, data.train) == "2 classes: not pos 1, pos 2"


# -- scores in any unit --------------------------------------------------------------------------
SCORED = GlueTask(
    "own", ("text",), "y", labels=(), metrics=("pearson",), standardised=True,
)  # fmt: skip


def unit_of(task: GlueTask, scores: Sequence[float]) -> tuple[float, float] | None:
    return GlueData(task, Rows([("",)] * len(scores), [*scores]), {}, "").unit


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=9), st.integers(-12, 11))
def test_a_unit_is_the_mean_and_the_deviation_of_the_training_scores(scores, power):
    assume(len(set(scores)) > 1)
    part = [score * 10.0**power for score in scores]
    unit = unit_of(SCORED, part)
    assert unit == pytest.approx((fmean(part), pstdev(part)), rel=1e-9, abs=1e-9 * 10.0**power)
    assert unit_of(replace(SCORED, standardised=False), part) is None


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([0.1] * 3, "own: the scores of 3 training rows deviate by 0 from 0.1, .* give rows of"),
        ([0, 2e30], r"deviate by 1e\+30 from 1e\+30, and 1e-13 to 1e\+13 .* divide all by 1e\+30"),
        ([0, 2e-30], "deviate by 1e-30 from 1e-30, and 1e-13 to .* divide all by 1e-30"),
    ],
)
def test_scores_without_a_unit_are_refused_by_their_deviation(train, message):
    with pytest.raises(DataError, match=message):
        unit_of(SCORED, train)


# -- rows that stand in both files
PAIRS = st.lists(st.sampled_from(["a\tb", "b\ta", "a\ta"]), min_size=1, max_size=4)


@pytest.mark.slow
@given(train=PAIRS, dev=PAIRS, rows=st.sampled_from([None, 1]))
def test_development_rows_that_were_trained_on_are_counted(tmp_path_factory, train, dev, rows):
    """As pairs, in their order, whatever their labels; in a table of one's own and in GLUE."""
    folder, shared = tmp_path_factory.mktemp("glue"), sum(row in train for row in dev)
    trained = [f"{row}\t{at % 2}" for at, row in enumerate([*train, "c\tc"])]
    judged = [f"{row}\t{at % 2}" for at, row in enumerate(dev)]
    write(folder / "own", "train.tsv", "x\ty\tlabel", *trained)
    write(folder / "own", "dev.tsv", "x\ty\tlabel", *judged)
    header = "index\tquestion\tsentence\tlabel"
    for name, table in (("train.tsv", trained), ("dev.tsv", judged)):
        texts = (
            re.sub("[01]$", lambda label: ("entailment", "not_entailment")[int(label[0])], row)
            for row in table
        )
        write(folder / "QNLI", name, header, *(f"7\t{row}" for row in texts))
    for task in (Columns(("x", "y"), "label").read(folder / "own"), "QNLI"):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            load_glue(folder, task, rows)
        name = getattr(task, "name", task)
        assert [str(each.message).partition(" have")[0] for each in told] == [
            f"{folder}, {name}: {shared} of {len(dev)} rows"
        ] * bool(shared)


DEV = {"dev_tsv": "text\tlabel\na\t1\n"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"own holds no dev\.tsv or dev\.csv or .*; put the development set of own there"),
        (DEV, r"no file .*own/train\.tsv \(or \.csv\); put the tr"),
        (
            DEV | {"train_tsv": "texts\tlabel\na\t1\n"},
            "no column text; did you mean 'texts'",
        ),
        (DEV | {"train_tsv": "text\tlabel\na\t1\nb\t\n"}, r"train\.tsv, line 3: no label"),
        (DEV | {"train_tsv": "text\tlabel\na\t1\n"}, "own: all rows have the label '1'"),
        (DEV | {"train_tsv": "text\tlabel\n"}, r"train\.tsv is empty"),
    ],
)
def test_what_is_missing_is_named_with_the_file(tmp_path, files, message):
    files = files or {"train_tsv": "text\tlabel\na\t1\nb\t0\n"}
    with pytest.raises(DataError, match=message):
        Columns(("text",), "label").read(write_all(tmp_path / "own", **files))
    with pytest.raises(DataError, match=r"no folder .*nowhere; give one with train\.tsv and dev"):
        Columns(("text",), "label").read(tmp_path / "nowhere")


def test_rows_that_judge_searches_are_no_test_set(tmp_path):
    """Where there is no development file, that of a test set stands for it."""
    tables = dict.fromkeys(("train_tsv", "test_tsv"), "text\tlabel\na\t1\nb\t0\nc\t1\nd\t0\n")
    folder = write_all(tmp_path / "own", **tables)
    task = Columns(("text",), "label").read(folder)
    assert len(load_glue(tmp_path, task).dev["own"]) == 4
    with pytest.raises(DataError, match="own holds no test set with labels"):
        load_glue(tmp_path, task, split="test")
