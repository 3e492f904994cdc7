"""Planted GLUE tasks: files, oracle masks, and readers that see only what a mask shows."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from planted_glue import PLANTED, PlantedGlue

import masksearch as ms
from masksearch import masks
from masksearch.tasks.glue import load_glue
from masksearch.tasks.glue.tasks import majority, score
from masksearch.tasks.planted.process import PlantedProcess

SMALL = PlantedGlue(
    PlantedProcess(length=12, vocabulary=8, offsets=(6,), keys=1),
    lines=300,
    valid_lines=60,
    rows=180,
    dev_rows=1_440,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("planted"))


def read(name: str, texts: list[tuple[str, ...]], seen: list[int]) -> list[float]:
    """What the best reader answers that knows the rule and sees no more than those pairs; a pair
    that it does not see counts as whole (the likelier)."""
    words = [["[CLS]", *" [SEP] ".join(one).split(), "[SEP]"] for one in texts]
    assert {len(row) for row in words} == {SMALL.length}
    at = torch.tensor([[int(word[1:]) if word[0] == "w" else 0 for word in row] for row in words])
    first, second = SMALL.pairs(name)[seen].T
    label = SMALL.process.labels
    off = (label[at[:, first]] + label[at[:, second]]) % 8
    broken = (off != 0).sum(1)
    if name == "entailment":
        return torch.where((off == 4).any(1), 2, (broken > 0).long()).tolist()
    if name == "similarity":
        return (len(seen) - broken).double().tolist()
    return (broken == 0).long().tolist()


@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_pairs_and_nothing_else_tell_the_label(written: Path, name: str) -> None:
    """A reader of all pairs is always right, one without a pair falls short by as much as the
    rule says, and one without any earns what a constant answer does."""
    task, count = PLANTED[name], len(SMALL.pairs(name))
    data = load_glue(written, task)
    assert list(data.dev) == list(task.dev_files)
    for rows in (data.train, *data.dev.values()):
        spread = Counter(rows.labels).values()
        assert (len(spread), max(spread) - min(spread) <= 1) == (task.classes or count + 1, True)
        found = score(task, read(name, rows.texts, list(range(count))), rows.labels)
        assert list(found.values()) == pytest.approx([1.0] * len(found), abs=1e-6)
    rows, missed = data.dev[name], 0.0
    for gone in range(count):
        seen = [pair for pair in range(count) if pair != gone]
        found = score(task, read(name, rows.texts, seen), rows.labels)
        assert all(value < 0.999 for value in found.values())
        missed += (1 - found.get("accuracy", 1.0)) / count
    lost = {  # share of the rows that a missing pair turns over
        "acceptability": 1 / (2 * count),
        "paraphrase": 1 / (2 * count**2),
        "entailment": 2 / (3 * count),
    }
    assert name not in lost or missed == pytest.approx(lost[name], rel=0.25)
    earned = {"acceptability": 0.0, "paraphrase": 0.5, "entailment": 1 / 3, "similarity": 0.0}
    assert majority(task, rows.labels) == pytest.approx(earned[name], abs=1e-3)


@pytest.mark.nightly
def test_acceptability_needs_the_planted_edges(tmp_path: Path) -> None:
    """Text file, tokenizer, pre-training, TSV, fine-tuning, Matthews: with the planted edges a
    one-layer model reads the task; under a mask that holds more keys, but none of those, it
    knows nothing. (No third position may see both words either: it could compare them.)"""
    corpus = PlantedGlue(SMALL.process, rows=2_160)
    folder = corpus.write(tmp_path / "planted")
    evaluator = ms.GlueEvaluator(
        folder / "text",
        glue=folder,
        tasks=(PLANTED["acceptability"],),
        size="nano",
        length=corpus.length,
        steps=150,
        lr=4e-3,
        initializer_range=0.18,
        epochs=5,
        finetune_lr=1e-3,
        cache=tmp_path / "cache",
        device="cpu",
    )
    found = {}
    blind = masks.window(2)
    assert blind.density(corpus.length) > corpus.oracle().density(corpus.length)
    for name, mask in (("oracle", corpus.oracle()), ("blind", blind)):
        *_, last = evaluator(mask, seed=0, workdir=tmp_path / name)
        found[name] = last.values
    assert found["oracle"]["acceptability"] > 0.8
    assert found["blind"]["acceptability"] < 0.15
    assert found["oracle"]["acceptability/majority"] == 0.0
    assert found["oracle"]["loss"] < 0.6 < 1.5 < found["blind"]["loss"]


@pytest.mark.slow
def test_every_planted_task_goes_from_text_file_to_official_metric(tmp_path):
    process = PlantedProcess(length=14, vocabulary=8, offsets=(3,), keys=1)
    corpus = PlantedGlue(process, lines=60, valid_lines=20, rows=32, dev_rows=24, seed=0)
    corpus.write(tmp_path / "data")
    evaluator = ms.GlueEvaluator(
        tmp_path / "data" / "text",
        glue=tmp_path / "data",
        tasks=tuple(PLANTED.values()),
        length=corpus.length,
        epochs=1,
        cache=tmp_path / "cache",
        **dict(steps=4, size="nano", batch=8, held_out_sequences=16),
    )
    *_, found = evaluator(masks.star(), seed=0, workdir=tmp_path / "work")
    assert all(map(math.isfinite, found.values.values()))
    sets = [name for task in PLANTED.values() for name in task.dev_files]
    assert set(sets) <= set(found.values)
    assert found.values["glue"] == pytest.approx(
        sum(found.values[name] for name in PLANTED) / len(PLANTED)
    )
    assert found.step == 4 + len(PLANTED)  # one batch each
