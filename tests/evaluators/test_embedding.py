"""An embedding model under a mask: its embeddings, its near texts, its files, real weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_data import DATA, minilm, real
from scipy.stats import spearmanr
from split_evaluators import embedding
from tiny_checkpoint import tiny_checkpoint, tiny_embedding
from toy_sentences import write_lines
from toy_words import WORDS

import masksearch as ms
from masksearch import masks
from masksearch.analysis.row_scores import RowScores
from masksearch.errors import DataError, LengthError
from masksearch.evaluators.embedding import compare_dense, correlate, find_texts
from masksearch.masks.measure import effective_density
from masksearch.models.embedding import open_embedding
from masksearch.tasks.splits import in_holdout

pytest.importorskip("sentence_transformers", reason="the extra `embed`")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    embedding(folder)
    return folder


def judge(place: Path, **changes: Any) -> ms.EmbeddingEvaluator:
    given: dict[str, Any] = {"texts": place / "texts", "weights": place / "embedder"}
    given |= {"columns": ("one", "two"), "length": 16, "device": "cpu"}
    return ms.EmbeddingEvaluator(**given | changes)


def asked(evaluator: ms.EmbeddingEvaluator) -> list[str]:
    """The query texts, of an evaluator that takes all."""
    texts = find_texts(evaluator.texts, evaluator.columns)["dev"]
    return [text for text in texts if in_holdout(text) == (evaluator.split == "holdout")]


def values(evaluator: ms.EmbeddingEvaluator, mask: ms.Mask, folder: Path) -> dict[str, float]:
    (report,) = evaluator(mask, seed=0, workdir=folder)
    assert report.step == 0
    return dict(report.values)


@pytest.mark.parametrize(
    ("pooling", "prompted"), [("mean", True), ("cls", True), ("max", True), ("mean", False)]
)
def test_embeddings_are_those_of_the_library(place, tmp_path, pooling, prompted):
    model = tiny_embedding(tmp_path / "model", WORDS, pooling=pooling, prompts={"p": "ban "})
    settings = model / "1_Pooling" / "config.json"
    stored = json.loads(settings.read_text("utf-8")) | {"include_prompt": prompted}
    settings.write_text(json.dumps(stored), encoding="utf-8")
    evaluator = judge(place, weights=model)
    whole = open_embedding(model)
    assert whole.default_prompt_name == "p"
    whole.max_seq_length = 16
    wanted = torch.tensor(whole.encode(asked(evaluator))).double()
    assert torch.allclose(evaluator.embed(evaluator.model()), wanted, atol=1e-6)
    assert evaluator.shape.read == (1 if pooling == "cls" else None)


def test_the_score_is_that_of_a_loop(place: Path, tmp_path: Path) -> None:
    evaluator, mask = judge(place), masks.window(1)
    found = values(evaluator, mask, tmp_path)
    texts, whole = asked(evaluator), open_embedding(place / "embedder")
    whole.max_seq_length = 16
    dense = whole.encode(texts).astype(float)
    masked = ms.attach(whole, mask).encode(texts).astype(float)
    scores = []
    for number in range(len(texts)):
        order = sorted(range(len(texts)), key=lambda at, n=number: -dense[n] @ dense[at])
        near = [at for at in order if at != number][:19]
        pair = [[each[number] @ each[at] for at in near] for each in (masked, dense)]
        scores.append(spearmanr(*pair).statistic)
    assert found["spearman"] == pytest.approx(np.mean(scores), abs=0.01)  # equal but for rounding
    rows = RowScores.load(tmp_path / "rows.safetensors")
    assert len(rows.scores["spearman"]) == len(texts)
    assert rows.score == pytest.approx(found["spearman"], abs=1e-6)
    assert found["spearman/low"] < found["spearman"]
    assert found["spearman/majority"] == evaluator.objectives[0].worst == 0


def test_correlations_of_rows_are_scipys_and_0_where_one_is_constant() -> None:
    draw = torch.Generator().manual_seed(0)
    one, two = torch.randint(0, 9, (2, 30, 7), generator=draw).double()
    wanted = [spearmanr(a, b).statistic for a, b in zip(one, two, strict=True)]
    assert correlate(one, two) == pytest.approx(wanted)
    assert correlate(torch.zeros(1, 5), torch.arange(5.0)[None]).tolist() == [0.0]


def test_dense_attention_keeps_every_rank_and_random_pairs_are_of_two_texts(place, tmp_path):
    evaluator = judge(place)
    found = values(evaluator, masks.full(), tmp_path)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["random_pairs"] == pytest.approx(1.0)
    pairs, _ = compare_dense(evaluator, evaluator.protocol)
    own = torch.arange(len(pairs))
    assert pairs.shape == (len(evaluator.data.queries), 20)
    assert not (pairs[:, :-1] == own[:, None]).any()
    assert sorted(pairs[:, -1].tolist()) == own.tolist()
    assert not (pairs[:, -1] == own).any()


def test_gates_learn_the_dense_embeddings_and_no_weight(place: Path) -> None:
    evaluator = judge(place, gates_batch=4)
    made = evaluator.differentiable(0)
    batch = next(made.batches)
    assert not any(weight.requires_grad for weight in made.model.parameters())
    assert made.model(**batch).loss.item() == pytest.approx(0, abs=1e-6)
    ms.attach(made.model.models[0], masks.window(0))
    own = evaluator.model()(**{n: p for n, p in batch.items() if n not in ("task", "target")})
    assert torch.allclose(own.logits, batch["target"], atol=1e-6)
    masked = made.model(**batch)
    gap = [1 - a @ b for a, b in zip(masked.logits, batch["target"], strict=True)]
    assert masked.loss.item() == pytest.approx(float(sum(gap)) / len(gap), abs=1e-6)


def test_texts_are_of_one_part(place: Path, tmp_path: Path) -> None:
    parts = find_texts(place / "texts", ("one", "two"))
    lines = [f" {word} {other} " for word in WORDS[:12] for other in WORDS[:12]]
    write_lines(tmp_path / "lines.txt", [*lines, "", *lines])
    alone = find_texts(tmp_path / "lines.txt", ())
    assert sorted(alone["train"] + alone["dev"]) == sorted(lines)
    for each in (parts, alone):
        assert len({*each["train"], *each["dev"]}) == len(each["train"]) + len(each["dev"])
    assert {in_holdout(text) for text in alone["dev"]} == {False, True}
    write_lines(tmp_path / "table.csv", ["text", *lines])
    write_lines(tmp_path / "t.jsonl", [json.dumps({"n": 1, "text": each}) for each in lines])
    write_lines(tmp_path / "README", lines)
    for name, columns in (("table.csv", ("text",)), ("t.jsonl", ("text",)), ("README", ())):
        assert find_texts(tmp_path / name, columns) == alone
    one = ms.EmbeddingEvaluator(tmp_path / "lines.txt", place / "embedder", length=16)
    table = replace(one, texts=tmp_path / "table.csv", columns=("text",))
    assert one.protocol == table.protocol
    assert len({one.protocol, one.on("holdout").protocol, replace(one, rows=9).protocol}) == 3


def test_files_that_have_changed_are_read_again(place: Path, tmp_path: Path) -> None:
    model = tiny_embedding(tmp_path / "model", WORDS)
    texts = [f"{one} {other} {one}" for one in WORDS[:14] for other in WORDS[:14]]
    path = tmp_path / "lines.txt"
    found = []
    for lines in (texts, [f"{each} {WORDS[20]}" for each in texts]):
        write_lines(path, lines)
        judges = [ms.EmbeddingEvaluator(path, model, length=16, device="cpu") for _ in range(2)]
        found.append(values(judges[0], masks.window(1), tmp_path / "run"))
        assert judges[0].data is judges[1].data
    shutil.copy(path, tmp_path / "other.txt")
    other = ms.EmbeddingEvaluator(tmp_path / "other.txt", model, length=16, device="cpu")
    assert found[1] == values(other, masks.window(1), tmp_path / "run")
    assert found[0] != found[1]
    tiny_embedding(tmp_path / "max", WORDS, pooling="max")
    shutil.copy(tmp_path / "max" / "1_Pooling" / "config.json", model / "1_Pooling")
    pooled = ms.EmbeddingEvaluator(path, model, length=16, device="cpu")
    assert pooled.protocol != other.protocol


def test_what_cannot_be_judged_is_said(place: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "few.txt", WORDS[:30])
    few = ms.EmbeddingEvaluator(tmp_path / "few.txt", place / "embedder", length=16)
    with pytest.raises(DataError, match=r"query texts of split='validation'.*need 21; give more"):
        _ = few.protocol
    with pytest.raises(DataError, match="has 0 query texts of split='test'"):
        _ = replace(few, split="test").protocol
    with pytest.raises(LengthError, match="48 positions, asked for 64"):
        _ = judge(place, length=64).protocol
    with pytest.raises(DataError, match=r"train.csv is a table; name its columns"):
        _ = judge(place, texts=place / "texts" / "train.csv", columns=()).protocol
    for name, message in (
        ("texts.jsonl", r"is a table; name its columns: columns=\(\.\.\), --text"),
        ("texts.parquet", r"is no text; convert it to \.jsonl"),
        ("texts.json", r"is no text; convert it to \.jsonl"),
        ("texts.txt.GZ", r"is packed; unpack it"),
    ):
        (tmp_path / name).write_bytes(b"\x00\x84")
        for columns in ((), ("text",)):
            if columns and name == "texts.jsonl":
                continue
            with pytest.raises(DataError, match=rf"{name} {message}"):
                _ = judge(place, texts=tmp_path / name, columns=columns).protocol
    with pytest.raises(DataError, match="no column review"):
        _ = judge(place, columns=("review",)).protocol
    with pytest.raises(TypeError, match="EmbeddingEvaluator needs weights="):
        ms.EmbeddingEvaluator(place / "texts")
    plain = tiny_checkpoint(tmp_path / "plain", WORDS)
    (plain / "modules.json").write_text("[]")
    with pytest.raises(DataError, match=r"plain"):
        _ = judge(place, weights=plain).protocol


def test_a_search_that_was_killed_goes_on(place: Path, tmp_path: Path) -> None:
    def space(trial: Any) -> ms.Mask:
        return masks.window(trial.suggest_int("reach", 0, 7))

    how: dict[str, Any] = {"trials": 3, "strategy": "random", "baselines": {}, "progress": None}
    straight = ms.search(space, judge(place), run=tmp_path / "straight", **how)

    def stop(record: Any) -> None:
        if record.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ms.search(space, judge(place), run=tmp_path / "killed", listeners=[stop], **how)
    study = ms.search(space, judge(place), run=tmp_path / "killed", **how)
    assert [r.values for r in study.records()] == [r.values for r in straight.records()]
    found = ms.compare(
        {"a": masks.window(3), "b": masks.full()}, judge(place), run=tmp_path / "c", progress=None
    )
    assert found.seedless
    gap = found.difference(found.entries["a"], found.entries["b"])
    assert gap.n_rows == len(judge(place, split="holdout").data.queries)
    assert gap.low < gap.value < gap.high


# -- real weights -------------------------------------------------------------------------------
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:DAM")  # few steps miss the target; the budget cuts the mask
@real
def test_dam_ranks_texts_better_than_random_pairs_of_its_cost(tmp_path: Path) -> None:
    columns = ("sentence1", "sentence2")
    evaluator = ms.EmbeddingEvaluator(
        DATA / "glue" / "STS-B", minilm(), columns=columns, length=64, dev_rows=400, device="cpu"
    )
    study = ms.search(
        None,
        evaluator,
        run=tmp_path / "dam",
        strategy="dam",
        strategy_options={
            "gates": {"structure": "free"},
            "config": {"steps": 40, "gate_lr": 0.3, "density": 0.2},
        },
        budget=0.2,
        trials=2,
        baselines={},
        progress=None,
    )
    best = max((r for r in study.records() if r.scored), key=lambda r: r.values["spearman"])
    assert best.mask is not None
    judged = evaluator.on("holdout")
    assert effective_density(best.mask, judged.shape) <= 0.21
    mine = values(judged, best.mask, tmp_path / "mine")["spearman"]
    keys = (masks.random_keys(count, seed=0) for count in range(1, 64))
    control = next(each for each in keys if effective_density(each, judged.shape) >= 0.2)
    drawn = values(judged, control, tmp_path / "keys")["spearman"]
    assert mine > drawn + 0.2
