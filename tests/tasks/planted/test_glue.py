"""Planted GLUE tasks: files, oracle masks, and readers that see only what a mask shows."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masksearch import masks
from masksearch.contracts import Shape, generator
from masksearch.errors import DataError, UnknownNameError
from masksearch.masks.lower import lower
from masksearch.tasks.glue import (
    NLI,
    PLANTED,
    TASKS,
    GlueData,
    Rows,
    glue_score,
    load_glue,
    majority_scores,
    reported,
    score,
)
from masksearch.tasks.planted.glue import PlantedGlue, PlantedGlueTask, draw_words, pairs_across
from masksearch.tasks.planted.process import PlantedProcess
from masksearch.tasks.text.corpus import Corpus

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
    return load_glue(folder, name)


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


def test_files_have_the_official_shapes(written: Path) -> None:
    for name, like in zip(PLANTED, ("CoLA", "MRPC", "MNLI", "STS-B"), strict=True):
        assert PLANTED[name].metrics == TASKS[like].metrics
        shutil.copytree(written / name, written / "as" / like)
        as_official = load_glue(written / "as", like)
        assert as_official.train == loaded(written, name).train
    assert (written / "paraphrase" / "dev.tsv").read_bytes().startswith(b"\xef\xbb\xbfQuality\t#1")
    first = (written / "acceptability" / "train.tsv").read_text().splitlines()[0].split("\t")
    assert (len(first), first[2] == "*") == (4, first[1] == "0")
    labels = {
        line.split("\t")[-1]
        for line in (written / "entailment" / "dev_matched.tsv").read_text().splitlines()[1:]
    }
    assert labels == set(NLI)
    last = (written / "similarity" / "train.tsv").read_text().splitlines()[-1].split("\t")[-1]
    assert len(last.split(".")[1]) == 3


def test_the_mismatched_set_is_shifted(written: Path) -> None:
    dev = loaded(written, "entailment").dev
    share = {}
    for name, rows in dev.items():
        first = [texts[0].split()[0] for texts in rows.texts]
        share[name] = Counter(first)["w00"] / len(first)
    assert share["entailment"] == pytest.approx(1 / 8, abs=0.03)
    assert share["entailment-mm"] == pytest.approx(1 / sum(1 / n for n in range(1, 9)), abs=0.04)


def test_one_line_is_one_packed_sequence_of_whole_words(written: Path, tmp_path: Path) -> None:
    corpus = Corpus.load(written / "text", length=SMALL.length, cache=tmp_path)
    assert len(corpus.train) == SMALL.lines
    assert len(corpus.held_out) == SMALL.valid_lines
    for split, file in ((corpus.train, "train.txt"), (corpus.held_out, "valid.txt")):
        lines = (written / "text" / file).read_text().splitlines()
        encoded = corpus.encode(lines)
        assert all(len(ids) == SMALL.length - 2 for ids in encoded)
        assert split.tensor()[:, 1:-1].tolist() == encoded
    label = SMALL.process.labels.tolist()
    for line in lines:
        at = placed((line,))
        for s, t in SMALL.process.pairs:
            assert (label[int(at[s][1:])] + label[int(at[t][1:])]) % 8 == 0


def test_files_are_a_function_of_the_seed_alone(written: Path, tmp_path: Path) -> None:
    def hashes(folder: Path) -> dict[str, str]:
        files: Iterable[Path] = (*folder.glob("*/*.tsv"), *folder.glob("*/*.txt"))
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
        }

    torch.manual_seed(7)  # the global generator plays no part
    again = PlantedGlue(SMALL.process, 300, 60, 180, 1_440).write(tmp_path / "again")
    other = PlantedGlue(SMALL.process, 300, 60, 180, 1_440, seed=1).write(tmp_path / "other")
    assert hashes(again) == hashes(written)
    assert len(hashes(again)) == 11
    assert len(set(hashes(again).values())) == 11
    assert not set(hashes(other).values()) & set(hashes(again).values())


@each
@names
def test_oracles_hold_the_pairs_and_no_empty_row(process: PlantedProcess, name: str) -> None:
    task = PlantedGlueTask(name, process)
    for length in (task.length, task.length + 5):
        dense = lower(task.oracle(length), Shape(length, 1, 1))[0, 0]
        assert dense.diagonal().all()
        kept = {(q, k) for q, k in dense.nonzero().tolist() if q != k}
        assert kept == {pair for s, t in task.pairs for pair in ((s, t), (t, s))}
    if name != "acceptability":
        assert all(s < task.cut < t for s, t in task.pairs)
        most = max(len(pairs_across(process, cut)) for cut in range(2, process.length - 1))
        assert len(task.pairs) == most
    union = PlantedGlue(process, 1, 1, 1, 1).oracle().dense(process.length + 1)[0, 0]
    assert not (task.oracle().dense(task.length)[0, 0] & ~union).any()
    assert torch.equal(
        union[: process.length, : process.length], process.oracle.dense(process.length)[0, 0]
    )
    with pytest.raises(ValueError, match=rf"length must be at least {task.length}"):
        task.oracle(task.length - 1)


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


def test_shifted_words_keep_the_pairs() -> None:
    process = SMALL.process
    tokens = draw_words(process, 200, generator(0), shifted=True)
    assert torch.equal(tokens, process.complete_pairs(tokens.clone()))


def test_glue_score_ignores_planted_tasks(written: Path) -> None:
    values = {"SST-2": 0.5}
    for name in PLANTED:
        rows = next(iter(loaded(written, name).dev.values()))
        values |= reported(name, majority_scores(PLANTED[name], rows.labels))
    assert glue_score(values).columns == ("SST-2",)


def test_what_does_not_fit_is_named() -> None:
    fits = SMALL.process
    with pytest.raises(ValueError, match="keys=1 and parents=1"):
        PlantedGlueTask("paraphrase", PlantedProcess(keys=2))
    with pytest.raises(ValueError, match="at least 3 words"):
        PlantedGlueTask("paraphrase", PlantedProcess(vocabulary=2, keys=1))
    with pytest.raises(ValueError, match="has a word on each side of a separator"):
        PlantedGlueTask("paraphrase", PlantedProcess(length=8, offsets=(1,), keys=1))
    PlantedGlueTask("acceptability", PlantedProcess(length=8, offsets=(1,), keys=1))
    with pytest.raises(UnknownNameError, match="did you mean 'similarity'"):
        PlantedGlueTask("similar", fits)
    with pytest.raises(DataError, match="CoLA is not planted"):
        PlantedGlueTask("CoLA", fits)
    with pytest.raises(ValueError, match="dev_rows must be at least 1, got 0"):
        PlantedGlue(fits, dev_rows=0)


@pytest.mark.slow
def test_acceptability_needs_the_planted_edges(tmp_path: Path) -> None:
    """Text file, tokenizer, pre-training, TSV, fine-tuning, Matthews: with the planted edges a
    one-layer model reads the task; under a mask that holds more keys, but none of those, it
    knows nothing. (No third position may see both words either: it could compare them.)"""
    from masksearch.evaluators.glue import GlueEvaluator

    corpus = PlantedGlue(SMALL.process, rows=2_160)
    folder = corpus.write(tmp_path / "planted")
    evaluator = GlueEvaluator(
        folder / "text",
        glue=folder,
        tasks=("acceptability",),
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
