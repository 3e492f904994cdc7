"""Planted GLUE tasks: files, oracle masks, and readers that see only what a mask shows."""

from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_glue import PLANTED, PlantedGlue, PlantedGlueTask
from torch import Tensor

import masksearch as ms
from masksearch import PlantedProcess, lower, masks
from masksearch.contracts import Shape, generator
from masksearch.tasks.glue import (
    GlueData,
    Rows,
    load_glue,
    majority_scores,
    score,
)

SMALL = PlantedGlue(
    PlantedProcess(length=12, vocabulary=8, offsets=(6,), keys=1),
    lines=300,
    valid_lines=60,
    rows=180,
    dev_rows=1_440,
)
PROCESSES = [
    SMALL.process,
    PlantedGlue().process,
    PlantedProcess(length=15, vocabulary=5, pairing="mirrored", keys=1),
    PlantedProcess(length=14, vocabulary=9, pairing="free", keys=1, seed=3),
    PlantedProcess(length=17, vocabulary=12, offsets=(2, 9), keys=1, seed=1),
]
names = pytest.mark.parametrize("name", PLANTED)
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.digest[:6])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("planted"))


def placed(texts: tuple[str, ...]) -> list[str]:
    """Words at their positions in `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`."""
    return ["[CLS]", *" [SEP] ".join(texts).split(), "[SEP]"]


def pairs_seen(task: PlantedGlueTask, visible: Tensor) -> list[int]:
    """Numbers of the pairs that a mask shows, in either direction."""
    return [n for n, (s, t) in enumerate(task.pairs) if visible[t, s] or visible[s, t]]


def steps(task: PlantedGlueTask, rows: Rows) -> Tensor:
    """By how much each pair misses the rule, 0 = it holds: int64 `[rows, pairs]`."""
    assert all(len(placed(texts)) == task.length for texts in rows.texts)
    at = torch.tensor(
        [[int(word[1:]) if word[0] == "w" else 0 for word in placed(t)] for t in rows.texts]
    )
    first, second = torch.tensor(task.pairs).T
    label = task.process.labels
    return (label[at[:, first]] + label[at[:, second]]) % task.process.vocabulary


def read(task: PlantedGlueTask, off: Tensor) -> list[float]:
    """What the best reader answers that is told no more than `off` of the pairs it sees. It
    knows the rule; a pair that it does not see counts as whole (the likelier)."""
    broken = (off != 0).sum(1)
    if task.name in ("acceptability", "paraphrase"):
        return (broken == 0).long().tolist()
    if task.name == "entailment":
        opposed = (off == task.process.vocabulary // 2).any(1)
        return torch.where(opposed, 2, (broken > 0).long()).tolist()
    return (off.shape[1] - broken).double().tolist()


def scores(task: PlantedGlueTask, rows: Rows, visible: Tensor) -> dict[str, float]:
    """Scores of that reader under a mask."""
    seen = steps(task, rows)[:, pairs_seen(task, visible)]
    return score(task.row, read(task, seen), rows.labels)


@lru_cache
def loaded(folder: Path, name: str) -> GlueData:
    return load_glue(folder, PLANTED[name])


@names
def test_the_oracles_reader_reaches_the_ceiling(written: Path, name: str) -> None:
    task, data = SMALL.tasks[name], loaded(written, name)
    for mask in (task.oracle(), SMALL.oracle()):
        visible = lower(mask, Shape(task.length, 1, 1))[0, 0]
        for rows in (data.train, *data.dev.values()):
            for value in scores(task, rows, visible).values():
                assert value == pytest.approx(1, abs=1e-6)


@names
def test_a_reader_without_one_edge_falls_short(written: Path, name: str) -> None:
    """And by as much as the rule says."""
    task = SMALL.tasks[name]
    rows = next(iter(loaded(written, name).dev.values()))
    count = len(task.pairs)
    lost = {  # share of the rows that a missing pair turns over
        "acceptability": 1 / (2 * count),
        "paraphrase": 1 / (2 * count**2),
        "entailment": 2 / (3 * count),
    }
    missed = 0.0
    for first, second in task.pairs:
        visible = task.oracle().dense(task.length)[0, 0].clone()
        visible[first, second] = visible[second, first] = False
        found = scores(task, rows, visible)
        assert all(value < 0.999 for value in found.values())
        missed += (1 - found.get("accuracy", 1.0)) / count
    if name in lost:
        assert missed == pytest.approx(lost[name], rel=0.25)


@names
def test_a_reader_without_the_planted_edges_earns_the_majority(written: Path, name: str) -> None:
    """Whatever else it sees: no word, no place and no other two words tell anything."""
    task, data = SMALL.tasks[name], loaded(written, name)
    rows = next(iter(data.dev.values()))
    blind = ~task.oracle().dense(task.length)[0, 0]
    assert not pairs_seen(task, blind)
    constant = majority_scores(task.row, rows.labels)
    expected = {"acceptability": 0.0, "paraphrase": 0.5, "entailment": 1 / 3, "similarity": 0.0}
    assert constant[task.row.primary] == pytest.approx(expected[name], abs=1e-3)
    features = torch.tensor(
        [[float(word[1:]) if word[0] == "w" else 0.0 for word in placed(t)] for t in rows.texts]
    )
    labels = torch.tensor(rows.labels, dtype=torch.float32)
    partner = set(task.pairs)
    for left in range(1, task.length - 1):
        for right in range(left, task.length - 1):
            if (left, right) in partner or features[:, (left, right)].std(0).min() == 0:
                continue
            both = features[:, left] * 8 + features[:, right]
            share = torch.corrcoef(torch.stack([both, labels]))[0, 1].abs()
            assert share < 0.12, (left, right)  # 4.5 standard errors of 1,440 rows


@names
def test_labels_are_balanced_and_no_text_leaves_the_vocabulary(written: Path, name: str) -> None:
    task, data = SMALL.tasks[name], loaded(written, name)
    kinds = len(task.pairs) + 1 if task.row.regression else task.row.classes
    for rows in (data.train, *data.dev.values()):
        count = Counter(rows.labels)
        assert len(count) == kinds
        assert max(count.values()) - min(count.values()) <= 1
        assert rows.labels != sorted(rows.labels)
    assert list(data.dev) == list(task.row.dev_files)
    assert len(data.train) == SMALL.rows
    words_seen = {word for texts in data.train.texts for text in texts for word in text.split()}
    assert words_seen == {f"w0{number}" for number in range(8)}


@settings(max_examples=12)
@given(
    st.sampled_from(PROCESSES), st.sampled_from(list(PLANTED)), st.integers(0, 99), st.booleans()
)
def test_any_process_reads_at_the_ceiling(
    process: PlantedProcess, name: str, seed: int, shifted: bool
) -> None:
    task = PlantedGlueTask(name, process)
    tokens, labels = task.draw(60, generator(seed), shifted=shifted)
    assert tokens.shape == (60, process.length)
    rows = Rows(task.texts(tokens), labels)
    found = scores(task, rows, task.oracle().dense(task.length)[0, 0])
    assert all(value == pytest.approx(1.0) for value in found.values())


@pytest.mark.slow
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
