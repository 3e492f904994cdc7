"""23_no_labels: texts as long as those that judge, nDCG as sentence-transformers has it, its
stages at a toy size."""

import base64
import json
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from experiment_scripts import load_script, run_script
from scipy.stats import spearmanr, ttest_ind
from tiny_checkpoint import tiny_checkpoint, tiny_embedding
from toy_words import WORDS
from transformers import AutoTokenizer

from masksearch.analysis.stats import ErrorPart, paired_difference


@pytest.fixture(scope="module")
def texts() -> ModuleType:
    return load_script("23_no_labels/texts.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up questions, paragraphs, pairs and articles."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)

    def say(least: int, most: int) -> str:
        return " ".join(draw.choices([*WORDS], k=draw.randint(least, most)))

    paragraphs = []
    for _ in range(12):
        context = say(12, 20)
        asked = [{"question": " ".join(draw.sample(context.split(), 4))} for _ in range(3)]
        paragraphs.append({"context": context, "qas": asked})
    for place in ("squad", "glue/STS-B", "wikitext-2"):
        (folder / place).mkdir(parents=True)
    whole = {"data": [{"paragraphs": paragraphs}]}
    (folder / "squad/dev-v1.1.json").write_text(json.dumps(whole))
    (folder / "wikitext-2/train.txt").write_text(
        "\n".join(["= title =", *(say(25, 40) for _ in range(600))])
    )
    for part, count in (("train", 90), ("dev", 30)):
        rows = ["sentence1\tsentence2\tscore"]
        rows += [f"{say(3, 9)}\t{say(3, 9)}\t{draw.random() * 5:.2f}" for _ in range(count)]
        (folder / "glue/STS-B" / f"{part}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def test_texts_are_beginnings_as_long_as_those_that_judge(texts, data, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint(tmp_path / "one", list(WORDS)))
    made = texts.like(data, "squad", tokenizer, 18, 200, seed=1)
    assert len(made) == len({*made}) == 200
    assert made == texts.like(data, "squad", tokenizer, 18, 200, seed=1)
    assert made != texts.like(data, "squad", tokenizer, 18, 200, seed=2)
    whole = (data / "wikitext-2/train.txt").read_text().splitlines()
    assert all(any(line.startswith(text) for line in whole) for text in made)
    judging = texts.judging_texts(data, "squad")
    sizes = [
        np.array([len(row) for row in tokenizer(some, truncation=True, max_length=18).input_ids])
        for some in (made, judging)
    ]
    assert {*sizes[0]} <= {*sizes[1]}
    assert abs((sizes[0] == 18).mean() - (sizes[1] == 18).mean()) < 0.1
    long = texts.like(data, "squad, paragraphs", tokenizer, 18, 50, seed=1)
    sizes = [len(row) for row in tokenizer(long, truncation=True, max_length=18).input_ids]
    assert min(sizes) > 12  # questions have four words


@pytest.mark.slow
def test_gains_are_those_of_the_library(data, texts):
    library: Any = pytest.importorskip("sentence_transformers.evaluation")
    embedder = load_script("23_no_labels/embedder.py")
    found = texts.squad(data)
    made = torch.nn.functional.normalize(torch.randn(48, 8), dim=1).double()
    asked, there = made[:36], made[36:]
    each = embedder.gains(asked @ there.T, torch.tensor(found.right))
    questions = {str(at): text for at, text in enumerate(found.questions)}
    corpus = {str(at): text for at, text in enumerate(found.paragraphs)}
    right = {str(at): {str(paragraph)} for at, paragraph in enumerate(found.right)}
    judge = library.InformationRetrievalEvaluator(questions, corpus, right, ndcg_at_k=[10])
    hits = [
        [{"corpus_id": str(to), "score": float(score)} for to, score in enumerate(row)]
        for row in asked @ there.T
    ]
    assert each.mean() == pytest.approx(judge.compute_metrics(hits)["ndcg@k"][10])


def test_paragraphs_have_the_mean_of_their_questions():
    contrasts = load_script("23_no_labels/contrasts.py")
    gains = np.array([1.0, 0.5, 0.0, 1.0, 0.25])
    packed = base64.b85encode(gains.astype("<f2").tobytes()).decode()
    rows = contrasts.by_paragraph({"each": f"5f{packed}"}, [0, 0, 3, 3, 3])
    assert rows.scores["rows"].tolist() == pytest.approx([1.5 * 2 / 5, 1.25 * 2 / 5])
    assert rows.score == pytest.approx(gains.mean())


def test_pairs_have_their_part_in_the_correlation_of_ranks():
    """The mean is the line's score; each part is the jackknife's, from scipy."""
    contrasts = load_script("23_no_labels/contrasts.py")
    draw = np.random.default_rng(0)
    cosines = draw.permutation(30).astype("<f2")
    people = np.round(cosines / 9 + draw.normal(size=30), 0)  # many are equal
    packed = base64.b85encode(cosines.tobytes()).decode()
    whole = spearmanr(cosines, people).statistic
    rows = contrasts.by_pair({"each": f"30f{packed}", "score": whole}, people.tolist())
    assert rows.score == pytest.approx(whole)
    left = [np.arange(30) != gone for gone in range(30)]
    without = np.array([spearmanr(cosines[some], people[some]).statistic for some in left])
    parts = 30 * whole - 29 * without
    assert rows.scores["rows"] - rows.score == pytest.approx(parts - parts.mean())


def test_mean_of_tasks_pools_what_models_spread():
    """Without rows the pooled two-sample test of equally large groups, from scipy."""
    contrasts = load_script("23_no_labels/contrasts.py")
    draw = np.random.default_rng(0)
    tasks = draw.normal(size=(2, 4))
    gaps = []
    for values in tasks:
        found = paired_difference(dict(enumerate(values)), dict.fromkeys(range(4), 0.0))
        gaps.append(replace(found, errors=(*found.errors, ErrorPart(0.0, 9))))
    mean = contrasts.mean_of_tasks(gaps)
    one, other = tasks[0], -tasks[1]  # whose difference is twice the mean
    low, high = ttest_ind(one, other).confidence_interval()
    assert (mean.low, mean.high) == pytest.approx((low / 2, high / 2))


@pytest.mark.nightly
def test_no_labels_smoke(data, tmp_path):
    folder = tiny_embedding(tmp_path / "embedder", list(WORDS))
    words = ["--data", data, "--weights", folder, "--smoke", "--seeds", "0", "1"]
    words += ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    for _ in range(2):  # the second call finds every line
        run_script("23_no_labels/embedder.py", *words, cache=tmp_path / "cache")
    files = sorted((tmp_path / "results").glob("*.jsonl"))
    parts = ("squad", "sts-b", "sts-b, own", "squad, paragraphs")
    assert {file.stem for file in files} == {f"{part}_{seed}" for part in parts for seed in (0, 1)}
    for file in files:
        lines = list(map(json.loads, file.read_text().splitlines()))
        keys = ("stage", "rows", "name", "arm", "budget")
        known = [tuple(line.get(key) for key in keys) for line in lines]
        assert len({*known}) == len(known)
        names = [line["name"] for line in lines if line.get("rows") == "judge"]
        assert {"dam 0.7", "dam 0.6"} < {*names}
        assert ("dense" in names) == file.stem.endswith("_0")  # it is judged once
