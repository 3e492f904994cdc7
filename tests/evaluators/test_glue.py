"""GLUE fine-tuning as the judge of a mask."""

import pickle
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from real_data import DATA, real
from tiny_checkpoint import tiny_checkpoint
from toy_sentences import SMALL, WORDS, write_lines
from transformers import AutoTokenizer

import masksearch as ms
from masksearch import GlueEvaluator, attach, masks
from masksearch.analysis.pareto import beats_constant
from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.errors import DataError, UnknownNameError
from masksearch.evaluators.glue import check_judged
from masksearch.files import read_once
from masksearch.models.encoders import SequenceClassifier, encoder
from masksearch.tasks.glue.columns import Columns
from masksearch.tasks.glue.read import GlueData, Rows
from masksearch.tasks.glue.tasks import TASKS, GlueTask, glue_score, majority, row_scores, score


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, an SST-2 whose labels have words of their own, an MNLI, an STS-B."""
    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("data")
    lines = [" ".join(draw.choices(WORDS, k=8)) for _ in range(600)]
    (folder / "text.txt").write_text("\n".join(lines))

    def words(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, most)))

    for name, count in (("train", 256), ("dev", 60)):
        rows = ["sentence\tlabel"]
        for _ in range(count):
            label = draw.randint(0, 1)
            half = WORDS[: len(WORDS) // 2] if label else WORDS[len(WORDS) // 2 :]
            rows.append(f"{' '.join(draw.choices(half, k=draw.randint(2, 12)))}\t{label}")
        write_lines(folder / "glue" / "SST-2" / f"{name}.tsv", rows)
        rows = ["sentence1\tsentence2\tscore"]
        rows += [f"{words(9)}\t{words(9)}\t{draw.random() * 5:.3f}" for _ in range(count)]
        write_lines(folder / "glue" / "STS-B" / f"{name}.tsv", rows)
    for name in ("train", "dev_matched", "dev_mismatched"):
        rows = ["sentence1\tsentence2\tgold_label"]
        labels = ["entailment", "neutral", "contradiction"]
        rows += [f"{words(9)}\t{words(40)}\t{draw.choice(labels)}" for _ in range(40)]
        write_lines(folder / "glue" / "MNLI" / f"{name}.tsv", rows)
    return folder


def test_a_name_that_stands_alone_is_the_only_one(data):
    own = GlueTask("SST-2", ("sentence",), "label", metrics=("accuracy",))
    for one in ("SST-2", own):
        judge = evaluator(data, tasks=one)
        assert judge == evaluator(data, tasks=(one,))
        assert judge.protocol == evaluator(data, tasks=[one]).protocol
    assert own == GlueTask("SST-2", "sentence", "label", metrics="accuracy")
    folder = data / "glue" / "SST-2"
    alone = replace(evaluator(data), glue=folder, tasks=Columns("sentence", "label"))
    assert alone == replace(alone, glue=folder, tasks=(Columns(("sentence",), "label"),))


def test_files_that_have_changed_are_read_again(data, tmp_path):
    shutil.copytree(data / "glue", tmp_path / "glue")
    shutil.copy(data / "text.txt", tmp_path)
    first = evaluator(tmp_path, cache=data / "cache")
    before = first.protocol
    path = tmp_path / "glue" / "SST-2" / "dev.tsv"
    path.write_text(path.read_text() + f"{WORDS[0]} {WORDS[1]}\t1\n")
    assert first.protocol == before
    second = evaluator(tmp_path, cache=data / "cache")
    assert len(second.data("SST-2").dev["SST-2"]) == len(first.data("SST-2").dev["SST-2"]) + 1
    assert second.protocol != before
    read_once.cache_clear()  # as in a worker process, which begins with none
    with pytest.raises(DataError, match="SST-2 has changed since it was opened; open it again"):
        first.data("SST-2")


def test_a_tokenizer_that_has_changed_is_read_again(data, tmp_path):
    weights = tiny_checkpoint(tmp_path / "weights", WORDS)
    rows = []
    for side in ("right", "left"):
        made = AutoTokenizer.from_pretrained(weights, truncation_side=side)
        made.save_pretrained(weights)
        how = {"tasks": ("SST-2",), "weights": weights, "length": 8, "device": "cpu"}
        judge = GlueEvaluator(None, data / "glue", **how)
        rows.append(judge.tokens())
        texts = [text for text, *_ in judge.data("SST-2").train.texts]
        wanted = made(texts, truncation=True, max_length=8)["input_ids"]
        assert [rows[-1].train[at].ids for at in range(len(texts))] == wanted
        assert judge.tokens() is rows[-1]  # read once
    assert rows[0].digest != rows[1].digest


def evaluator(data: Path, **settings: object) -> GlueEvaluator:
    small: dict[str, object] = {"tasks": ("SST-2",), "steps": 4, "reports": 2, "size": "nano"}
    small |= {"length": 48, "vocabulary": 120, "batch": 8, "epochs": 1}
    small |= {"cache": data / "cache", "held_out_sequences": 8, "device": "cpu"}
    return GlueEvaluator(data / "text.txt", data / "glue", **(small | settings))  # type: ignore[arg-type]


@pytest.mark.slow
def test_last_report_holds_every_score(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, tasks=("MNLI", "STS-B"))
    *curve, last = judge(masks.star(), seed=0, workdir=tmp_path)
    assert [report.step for report in curve] == [2, 4]
    assert all(set(report.values) == {"loss"} for report in curve)
    names = {"MNLI", "MNLI-mm", "STS-B"}
    both = {"STS-B/pearson", "STS-B/spearman"}  # a task with one metric reports it once
    sides = {f"{name}/{side}" for name in names for side in ("majority", "low")}
    assert set(last.values) == {"glue", "loss"} | names | both | sides
    assert last.values["loss"] == curve[-1].values["loss"]
    assert last.values["glue"] == (last.values["MNLI"] + last.values["STS-B"]) / 2
    assert last.values["STS-B/majority"] == 0.0
    assert last.step == 4 + 2 + 8


@pytest.mark.slow
def test_fine_tuning_learns_what_can_be_learnt(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, epochs=4, finetune_lr=3e-3)
    *_, last = judge(masks.star(), seed=0, workdir=tmp_path)
    assert last.values["SST-2/majority"] < 0.7
    assert last.values["SST-2"] > 0.85


@pytest.mark.slow
def test_pretraining_is_found_again(data, tmp_path, monkeypatch):
    judge = evaluator(data, rows=32)
    whole = list(judge(masks.star(), seed=0, workdir=tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(ms.MlmEvaluator, "pretrain", None)
        again = list(judge(masks.star(), seed=0, workdir=tmp_path))
    assert again == whole
    other = list(judge(masks.window(2), seed=0, workdir=tmp_path))
    assert other != whole
    (kept,) = tmp_path.glob("pretrained-*")
    kept.write_bytes(b"garbage")
    assert list(judge(masks.star(), seed=0, workdir=tmp_path)) == whole


@pytest.mark.parametrize("empty", [False, True], ids=["kept", "a row empty in the corner"])
def test_the_corner_equals_padding_to_the_length(data: Path, empty: bool) -> None:
    judge = evaluator(data)
    table = torch.rand(1, 2, 48, 48, generator=torch.Generator().manual_seed(0)) < 0.2
    table |= torch.eye(48, dtype=torch.bool)
    if empty:
        table[0, 0, 3, :47] = False
        table[0, 0, 3, 47] = True
    rows = judge.tokens("SST-2").train
    short = judge.inputs(rows, [n for n, length in enumerate(rows.lengths) if length <= 16][:4])
    assert short["input_ids"].shape == (4, 16)
    model = SequenceClassifier(encoder("nano", judge.source.vocabulary, 48, seed=0), 2, seed=1)
    attach(model, masks.cropped(masks.table(table), 48))
    labels = short.pop("labels")
    long = {name: torch.nn.functional.pad(part, (0, 32)) for name, part in short.items()}
    found, padded = (model(**batch, labels=labels).logits for batch in (short, long))
    torch.testing.assert_close(found, padded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [16, 48])
@pytest.mark.parametrize("task", ["MNLI", "STS-B", "SST-2"])
def test_rows_become_segments_and_long_ones_lose_the_end_of_the_longer_text(data, task, length):
    judge = evaluator(data, tasks=(task,), length=length)
    corpus, rows, texts = judge.source, judge.tokens(task).train, judge.data(task).train
    cls, sep, pad = (corpus.special[name] for name in ("cls", "sep", "pad"))
    batch = judge.inputs(rows, list(range(len(rows))))
    for number, row in enumerate(texts.texts):
        parts, pairs = [corpus.encode([text])[0] for text in row], len(row) == 2
        room = length - 2 - pairs
        if pairs and len(parts[0]) + len(parts[1]) > room:
            half = room // 2
            short = min(len(part) for part in parts)
            cut = room - short if short <= half else half
            least = [room - half, half] if short > half else [cut, cut]
            parts = [part[:most] for part, most in zip(parts, least, strict=True)]
        segments = [[cls, *parts[0][:room], sep], *([*part, sep] for part in parts[1:])]
        ids = [one for segment in segments for one in segment]
        spare = [0] * (batch["input_ids"].shape[1] - len(ids))
        assert batch["input_ids"][number].tolist() == ids + [pad] * len(spare)
        assert batch["attention_mask"][number].tolist() == [1] * len(ids) + spare
        kinds = [kind for kind, segment in enumerate(segments) for _ in segment]
        assert batch["token_type_ids"][number].tolist() == kinds + spare
        assert batch["labels"][number].item() == pytest.approx(texts.labels[number])


def test_packed_holds_the_chosen_tasks_and_rows_alone(data: Path) -> None:
    judge = evaluator(data, rows=10)
    packed = judge.packed()
    assert list(packed.held["tasks"]) == ["SST-2"]
    assert len(packed.tokens("SST-2").train) == 10
    more = [evaluator(data, **change) for change in ({"rows": 200}, {"tasks": ("SST-2", "MNLI")})]
    assert all(len(pickle.dumps(m.packed())) > len(pickle.dumps(packed)) for m in more)


def test_a_task_of_ones_own_beside_a_known_one(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "glue"
    shutil.copytree(data / "glue" / "SST-2", folder / "SST-2")
    shutil.copytree(data / "glue" / "SST-2", folder / "tone")
    own = GlueTask("tone", texts=("sentence",), label="label", metrics=("accuracy", "f1"))
    judge = replace(evaluator(data), glue=folder, tasks=(own, "SST-2"), rows=24, dev_rows=20)
    *_, last = judge(masks.star(), seed=0, workdir=tmp_path / "work")
    mean = (last.values["tone"] + last.values["SST-2"]) / 2
    assert last.values["glue"] == pytest.approx(mean)
    assert {"tone/f1", "tone/majority"} <= set(last.values)
    known = replace(judge, tasks=("SST-2",))
    assert known.task_seed("SST-2", 3) == judge.task_seed("SST-2", 3)
    assert judge.task_seed("tone", 3) != judge.task_seed("SST-2", 3)
    for wrong in ((own, own), ()):
        with pytest.raises(ValueError, match="each once, got"):
            replace(judge, tasks=wrong)
    assert pickle.loads(pickle.dumps(judge)) == judge


@pytest.mark.slow
@real
def test_all_nine_tasks_on_real_rows(tmp_path: Path) -> None:
    names = (DATA / "bert-vocab" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words = [name for name in names if not (name[0] == "[" and name[-1] == "]" and len(name) > 2)]
    weights = tiny_checkpoint(tmp_path / "checkpoint", words)
    how: dict[str, Any] = {"rows": 32, "dev_rows": 32, "epochs": 1, "length": 48, "device": "cpu"}
    judge = GlueEvaluator(None, DATA / "glue", weights=weights, tasks=tuple(TASKS), **how)
    (report,) = judge(masks.star(), seed=0, workdir=tmp_path)
    assert report.step == 9
    found = glue_score(report.values)
    assert report.values["glue"] == found.nine
    assert report.values["glue/without_rte"] == found.without_rte
    assert all(f"{name}/majority" in report.values for name in (*TASKS, "MNLI-mm"))
    assert glue_score(report.values, "bert").nine is not None
    assert RowScores.load(tmp_path / "rows.safetensors").score == pytest.approx(
        found.nine, abs=1e-6
    )


# -- labels ------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("read_out", "answers"),
    [
        ("first+mean", [2.166228, 2.319051, 2.322309, 2.263261]),
        ("own", [1.902634, 1.903020, 1.902848, 1.902859]),
    ],
)
def test_sts_b_is_learnt_in_its_own_unit(tmp_path, monkeypatch, read_out, answers):
    """SOURCE: version 0.2.0, as it was before tables of one's own were standardised."""
    monkeypatch.setattr("masksearch.evaluators.finetuning.check_learned", lambda *given: None)
    for part, count in (("train", 40), ("dev", 24)):
        rows = [
            f"{WORDS[n % 7]}\t{WORDS[n % 5]} {WORDS[n % 3]}\t{n % 6 * 0.8}" for n in range(count)
        ]
        write_lines(tmp_path / "STS-B" / f"{part}.tsv", ["sentence1\tsentence2\tscore", *rows])
    place = {"weights": tiny_checkpoint(tmp_path / "bert", WORDS), "cache": tmp_path / "cache"}
    how = {"tasks": ("STS-B",), "adapt": "none", "read_out": read_out, "dropout": 0.0}
    judge = GlueEvaluator(None, tmp_path, **place, **how, **SMALL)  # type: ignore[arg-type]
    data, rows = judge.data("STS-B"), judge.tokens("STS-B").train
    assert data.digest == "0ae2cc82d3e86394"  # in the protocol's hash; the files and no setting
    assert judge.unit("STS-B") is None
    assert rows.labels.tolist() == data.train.labels
    model = judge.dense("STS-B", 1).eval()
    with torch.no_grad():
        said = model(**judge.inputs(rows, [0, 1, 2, 3]))
    assert said.logits.flatten().tolist() == pytest.approx(answers, abs=1e-4)
    gaps = [(a - b) ** 2 for a, b in zip(answers, data.train.labels, strict=False)]
    assert float(said.loss) == pytest.approx(sum(gaps) / 4, abs=1e-4)


def in_columns(folder: Path, *dev: object, train: str = "abc") -> GlueEvaluator:
    """A judge of one's own table with those labels of development rows."""
    for part, labels in (("train", train * 20), ("dev", dev)):
        lines = [f"{WORDS[at]}\t{label}" for at, label in enumerate(labels)]
        write_lines(folder / "own" / f"{part}.tsv", ["text\tlabel", *lines])
    own = {"tasks": (Columns(("text",), "label"),), "adapt": "none", "cache": folder / "cache"}
    place = {"weights": tiny_checkpoint(folder / "bert", WORDS)}
    return GlueEvaluator(None, folder / "own", **own, **place, **SMALL)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dev", "message"),
    [
        (
            "b" * 40,
            r"own: rows that judge \(split='validation'\) are \d+ \(3 classes: a 0, b \d+, c 0\):",
        ),
        ("b", r"are 1 \(3 classes: a 0, b 1, c 0\): even right answers"),
        ([1.5] * 40, r"scores 1.5 to 1.5\): even right answers do not beat .* of several labels"),
    ],
)
def test_development_rows_that_cannot_judge_are_refused_where_they_are_read(
    tmp_path, dev, message
):
    train = "123" if isinstance(dev, list) else "abc"
    judge = in_columns(tmp_path, *dev, train=train)
    with pytest.raises(DataError, match=message):
        next(iter(judge(masks.full(), seed=0, workdir=tmp_path / "work")))
    assert not [*(tmp_path / "cache").rglob("*.safetensors")]


def test_a_class_without_development_rows_is_warned_of(tmp_path):
    judge = in_columns(tmp_path, *"ac" * 20)
    said = r"rows that judge .*{}.* are \d+ \(.* b 0, .*: none has the label 'b', which is"
    with pytest.warns(UserWarning, match=said.format("validation")):
        _ = judge.protocol
    with pytest.warns(UserWarning, match=said.format("holdout")):
        judge.on("holdout")


SCORED = GlueTask("own", ("text",), "y", labels=(), metrics=("pearson",))
TWO = GlueTask("own", ("text",), "y", labels=("a", "b"))
HALF = r"or split='all' \(--set split=all\)$"


@pytest.mark.parametrize(
    ("task", "dev", "split", "message"),
    [
        (TWO, [1] * 12, "validation", rf"are 12 \(2 classes: a 0, b 12\): .* labels, {HALF}"),
        (TWO, [1], "holdout", rf"rows that judge \(split='holdout'\) are 1 .* {HALF}"),
        (TWO, [0, 0], "all", r"own: rows that judge \(split='all'\) are 2 .* of several labels$"),
        (TWO, [0, 0], "test", r"rows that judge \(split='test'\) are 2 .* of several labels$"),
        (TWO, [0, 1], "holdout", r"are 2 \(2 classes: a 1, b 1\): even right answers do not beat"),
        (SCORED, [2.5] * 9, "validation", r"are 9 \(regression, 9 rows, scores 2.5 to 2.5\)"),
        (SCORED, [2.5], "all", "are 1 .* more rows, of several labels$"),
    ],
)
def test_rows_on_which_a_constant_answer_is_right_are_refused(task, dev, split, message):
    with pytest.raises(DataError, match=message):
        check_judged(data_of(task, [0, 1], dev), split)


def data_of(task: GlueTask, train: Sequence[float], dev: Sequence[float]) -> GlueData:
    parts = [Rows([("",)] * len(part), [*part]) for part in (train, dev)]
    return GlueData(task, parts[0], {"own": parts[1]}, "")


def perfect_beats_constant(task: GlueTask, labels: Sequence[float], split: str) -> bool:
    """By what is reported of answers that are all right."""
    if len(set(labels)) < 2:
        return False
    value = score(task, labels, labels)[task.primary]
    values = {"own": value, "own/majority": majority(task, labels)}
    if split != "all":
        values["own/low"] = lower_bound(row_scores(task, task.primary, labels, labels, value))
    return beats_constant(values)["own"]


@given(
    st.sampled_from([TWO, replace(TWO, metrics=("f1",)), replace(TWO, metrics=("matthews",))]),
    st.lists(st.integers(0, 1), min_size=1, max_size=24),
    st.sampled_from(["validation", "holdout", "all", "test"]),
)
def test_rows_judge_where_right_answers_beat_a_constant_one(task, labels, split):
    try:
        check_judged(data_of(task, labels, labels), split)
    except DataError:
        assert not perfect_beats_constant(task, labels, split)
    else:
        assert perfect_beats_constant(task, labels, split)


def test_without_a_floor_rows_of_two_labels_are_enough():
    check_judged(data_of(TWO, [0, 1], [0, 0, 0, 1]), "validation", floor=False)
    with pytest.raises(DataError, match=r"are 3 \(.*even right answers do not beat a constant"):
        check_judged(data_of(TWO, [0, 1], [1, 1, 1]), "validation", floor=False)


# -- the paper's table -------------------------------------------------------------------------
def test_preset_is_the_papers_fine_tuning(tmp_path: Path) -> None:
    judge = GlueEvaluator.preset("sparsebert", tmp_path, glue=tmp_path)
    assert set(judge.tasks) == set(TASKS)
    assert (judge.rows, judge.dev_rows, judge.split) == (None, None, "all")
    assert (judge.convention, judge.finetune_seeds) == ("bert", 3)
    assert (judge.epochs, judge.finetune_batch, judge.finetune_lr) == (3, 16, 2.4e-5)


@pytest.mark.slow
def test_convention_chooses_the_metric_that_counts(data: Path, tmp_path: Path) -> None:
    seen = set()
    for convention in ("primary", "bert", "leaderboard"):
        judge = evaluator(data, tasks=("STS-B", "SST-2"), rows=32, convention=convention)
        *_, last = judge(masks.star(), seed=0, workdir=tmp_path / convention)
        values = last.values
        pearson, spearman = values["STS-B/pearson"], values["STS-B/spearman"]
        counted = {"primary": pearson, "bert": spearman, "leaderboard": (pearson + spearman) / 2}
        assert values["glue"] == pytest.approx((counted[convention] + values["SST-2"]) / 2)
        rows = RowScores.load(tmp_path / convention / "rows.safetensors")
        assert rows.score == pytest.approx(values["glue"], rel=1e-6)
        assert rows.scores["STS-B"].mean() == pytest.approx(counted[convention], abs=1e-6)
        assert values["STS-B"] == pearson
        seen.add(judge.protocol)
    assert len(seen) == 3
    with pytest.raises(UnknownNameError, match="did you mean 'bert'"):
        evaluator(data, convention="berd")


def test_tasks_weigh_the_same_in_the_lengths(data: Path) -> None:
    judge = evaluator(data, tasks=("SST-2", "MNLI"), rows=100)  # 100 and 40 rows
    counts = dict(judge.shape.lengths or ())
    assert sum(counts.values()) == pytest.approx(2 * 10_000, rel=0.01)
    alone = [dict(evaluator(data, tasks=(t,), rows=100).shape.lengths or ()) for t in judge.tasks]
    shares = [{n: c / sum(one.values()) for n, c in one.items()} for one in alone]
    for tokens, count in counts.items():
        share = sum(one.get(tokens, 0) for one in shares) / 2
        assert count / sum(counts.values()) == pytest.approx(share, abs=2e-4)
    assert judge.packed().shape == judge.shape


def test_worst_is_what_constant_answers_earn(data: Path) -> None:
    judge = evaluator(data, tasks=("SST-2", "MNLI", "STS-B"))
    labels = {t: judge.data(t).dev[t].labels for t in ("SST-2", "MNLI")}
    shares = [max(each.count(label) for label in each) / len(each) for each in labels.values()]
    assert judge.objectives[0].worst == pytest.approx((sum(shares) + 0.0) / 3)
    assert judge.on("holdout").objectives[0].worst != judge.objectives[0].worst
