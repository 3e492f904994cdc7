"""Texts without labels: the answers of a fine-tuned model are what a mask has to keep."""

import csv
import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_checkpoint import tiny_checkpoint
from toy_sentences import WORDS, write_lines
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from masksearch import masks
from masksearch.analysis.row_scores import RowScores
from masksearch.errors import DataError
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.tasks.glue.columns import Columns
from masksearch.tasks.glue.tasks import GlueTask, majority, row_scores, score

TEXT = Columns(("text",))


def write_texts(folder, **parts):
    """CSV files of random sentences, whose cells have commas, quotes and line breaks."""
    draw = random.Random(0)
    for part, count in parts.items():
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(count)]
        lines = ["number,text", *(f'{n},"{t}, ""so""\nit is"' for n, t in enumerate(texts))]
        write_lines(folder / f"{part}.csv", lines)
    return folder


def tuned(folder, labels=3, **changes):
    """A classifier with random weights that answers more than one thing."""
    start = tiny_checkpoint(folder.with_name(f"{folder.name}-start"), WORDS)
    config = AutoConfig.from_pretrained(start, num_labels=labels, **changes)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.5 if "encoder" in name else 0.2)
    tokenizer = AutoTokenizer.from_pretrained(start)
    rows = tokenizer([" ".join(WORDS[at : at + 5]) for at in range(60)], return_tensors="pt")
    with torch.no_grad():
        model.classifier.bias -= model.eval()(**rows).logits.mean(0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    tuned(folder / "classes")
    tuned(folder / "scores", labels=1)
    write_texts(folder / "reviews", train=60, dev=40, test=9)
    return folder


def evaluator(place, model, **changes):
    given = {"adapt": "none", "length": 16, "device": "cpu", "cache": place / "cache"}
    given |= {"tasks": TEXT, "split": "validation"} | changes
    return GlueEvaluator(None, place / "reviews", weights=place / model, **given)


def alone(place, model, texts):
    """What transformers alone answers to each text by itself: logits."""
    model = AutoModelForSequenceClassification.from_pretrained(place / model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    rows = [tokenizer(text, truncation=True, max_length=16, return_tensors="pt") for text in texts]
    with torch.no_grad():
        return torch.cat([model(**row).logits for row in rows])


def table(judge, part):
    """The file of texts and answers."""
    with (judge.glue / "reviews" / f"{part}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "dev", "test"])
def test_answers_are_those_of_transformers_alone(place, part):
    rows = table(evaluator(place, "classes"), part)
    logits = alone(place, "classes", [row["text"] for row in rows])
    names = AutoConfig.from_pretrained(place / "classes").id2label
    sure = logits.topk(2).values.diff().abs().squeeze(-1) > 1e-4
    said = [names[at] for at in logits.argmax(-1).tolist()]
    assert [r["dense answer"] for r, s in zip(rows, sure, strict=True) if s] == [
        each for each, s in zip(said, sure, strict=True) if s
    ]
    assert len(rows) == {"train": 60, "dev": 40, "test": 9}[part]
    scores = table(evaluator(place, "scores"), part)
    found = torch.tensor([float(row["dense answer"]) for row in scores])
    wanted = alone(place, "scores", [row["text"] for row in scores]).squeeze(-1)
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "metric"), [("classes", "agreement"), ("scores", "pearson")])
def test_dense_attention_keeps_all_answers_and_a_mask_some(place, tmp_path, model, metric):
    judge = evaluator(place, model)
    (task,) = judge.tasks
    assert task.metrics == (metric,)
    assert judge.learn_from == judge.gates_learn_from == "dense"
    assert judge.objectives[0].margin is None
    *_, dense = judge(masks.full(), seed=0, workdir=tmp_path / "dense")
    assert dense.values["glue"] == pytest.approx(1.0)
    *_, last = judge(masks.window(0), seed=0, workdir=tmp_path / "window")
    assert last.values["glue"] < 0.999
    rows = [RowScores.load(tmp_path / name / "rows.safetensors") for name in ("dense", "window")]
    said = [each.predictions["reviews"] for each in rows]
    if metric == "agreement":
        assert last.values["glue"] == pytest.approx((said[0] == said[1]).mean())
    again = evaluator(place, judge.weights)
    assert again.protocol == judge.protocol


@pytest.mark.slow
def test_answers_are_made_once_and_anew_for_other_texts(place, tmp_path):
    judge = evaluator(place, "classes", cache=tmp_path / "cache")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.csv")}
    assert len(files) == 3
    assert evaluator(place, "classes", cache=tmp_path / "cache").protocol == judge.protocol
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.csv")} == files
    other = evaluator(place, "scores", cache=tmp_path / "cache")
    assert other.protocol != judge.protocol
    assert evaluator(place, "classes", cache=tmp_path / "cache", length=8).glue != judge.glue
    shutil.copytree(place / "reviews", tmp_path / "copied" / "texts")
    copied = replace(judge, glue=tmp_path / "copied" / "texts", tasks=TEXT)
    assert [path.name for path in copied.glue.iterdir()] == ["texts"]


def test_what_has_no_answers_is_refused(place, tmp_path):
    with pytest.raises(ValueError, match=r"--adapt\), got 'train'; or name the labels"):
        evaluator(place, "classes", adapt="train")
    with pytest.raises(DataError, match=r"has no head that classifies; name the labels' column"):
        evaluator(place, "classes-start")
    several = tuned(tmp_path / "several", problem_type="multi_label_classification")
    with pytest.raises(DataError, match=r"several classes to one text"):
        evaluator(place, several)
    shutil.copytree(several, numbered := tmp_path / "numbered")
    config = json.loads((several / "config.json").read_text("utf-8"))
    config |= {"problem_type": None, "id2label": {"1": "bad", "2": "good", "3": "so so"}}
    (numbered / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(DataError, match=r"id2label numbers its classes from 0 to 2, got 1, 2, 3"):
        evaluator(place, numbered)
    sure = tuned(tmp_path / "sure")
    model = AutoModelForSequenceClassification.from_pretrained(sure)
    torch.nn.init.constant_(model.classifier.bias, 0)
    model.classifier.bias.data[2] = 1e6
    model.save_pretrained(sure)
    with pytest.raises(DataError, match=r"sure answers LABEL_2 to all 60 rows of .*train.csv"):
        evaluator(place, sure, cache=tmp_path / "cache")
    assert not [*(tmp_path / "cache").rglob("*.csv")]
    with pytest.raises(DataError, match=r"no column review; reviews needs the columns review"):
        evaluator(place, "classes", tasks=Columns(("review",)))
    with pytest.raises(ValueError, match="label names the column"):
        TEXT.read(place / "reviews")


def test_agreement_is_an_accuracy():
    names = ("agreement", "accuracy")
    one, two = (GlueTask("a", ("t",), "l", metrics=(name,)) for name in names)
    guess, truth = [1, 0, 1, 1], [1, 1, 0, 1]
    assert [*score(one, guess, truth).values()] == [*score(two, guess, truth).values()]
    assert majority(one, truth) == majority(two, truth)
    each = [row_scores(t, n, guess, truth, 0.5) for t, n in zip((one, two), names, strict=True)]
    assert (each[0] == each[1]).all()
