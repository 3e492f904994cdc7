"""Masks on decoders: judged token by token, on weights as they are or after training."""

import itertools
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from largest_tensor import LargestTensor
from safetensors.torch import load_file, save_file
from scipy import stats
from tiny_checkpoint import tiny_checkpoint
from tiny_decoder import byte_tokenizer, learn_rows, tiny_decoder, written_text
from tokenizers import pre_tokenizers

import masksearch as ms
from masksearch import masks
from masksearch.analysis.row_scores import RowScores
from masksearch.errors import LengthError, NativeError
from masksearch.gates.gates import Gates
from masksearch.training.loop import follow_trainings
from masksearch_decoders import CausalEvaluator, EngineEvaluator, Serving, decoders
from masksearch_decoders.next_tokens import document_scores, score_tokens
from masksearch_decoders.tasks.next_token import NextTokenRows
from masksearch_decoders.tasks.recall import Recall

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
WORDS = [f"w{number}" for number in range(40)]
KINDS = ("llama", "qwen3", "gpt2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 60 articles, each of five words, and three decoders."""
    folder = tmp_path_factory.mktemp("causal")
    draw = torch.Generator().manual_seed(0)
    lines = []
    for number in range(60):
        lines.append(f" = w{number % 40} = ")
        for _ in range(1 + number % 3):
            words = torch.randint(0, 5, (40,), generator=draw).tolist()
            lines.append(" ".join(WORDS[(number + word) % 40] for word in words))
    (folder / "text").mkdir()
    for name in ("train", "valid", "test"):
        lines = lines[7:] + lines[:7]
        (folder / "text" / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    for kind in KINDS:
        tiny_decoder(folder / kind, [*WORDS, "="], kind=kind)
    return folder


def evaluator(data: Path, kind: str = "llama", **settings: Any) -> CausalEvaluator:
    small: dict[str, Any] = {
        "length": 24,
        "cache": data / "cache",
        "device": "cpu",
        "bands": (4, 12),
    }
    small |= {"weights": data / kind}
    return CausalEvaluator(data / "text", **(small | settings))


def judged(judge: CausalEvaluator, mask: masks.Mask, workdir: Path, seed: int = 0) -> Any:
    *_, last = judge(mask, seed=seed, workdir=workdir)
    return dict(last.values)


# -- weights as they are -----------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_model_under_the_mask(kind, data, tmp_path):
    judge, mask = evaluator(data, kind), masks.window(2) | masks.columns(1)
    values = judged(judge, mask, tmp_path)
    model = ms.attach(judge.start.decoder(), mask)
    tokens = judge.rows.tokens
    with torch.no_grad():
        logits = model(tokens).logits[:, :-1]
    each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    assert values["nll"] == pytest.approx(each.mean().item(), rel=1e-5)
    each = each.view(len(tokens), -1)
    at, needs = torch.arange(1, 24).expand(each.shape), judge.rows.needs[:, 1:]
    for kind, distance in (("at", at), ("back", needs)):
        for first, last in ((1, 3), (4, 11), (12, 23)):
            mean = each[(distance >= first) & (distance <= last)].mean().item()
            assert values[f"nll/{kind}-{first}-{last}"] == pytest.approx(mean, rel=1e-4)
    assert values["nll/new"] == pytest.approx(each[needs == 0].mean().item(), rel=1e-4)
    assert {"nll/majority", "nll/low"} <= set(values)
    assert "kl" not in values


def test_masks_leave_no_trace_on_the_model_that_all_share(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, kl=True)
    order = [masks.full(), masks.window(1), masks.full(), masks.window(1)]
    found = [judged(judge, mask, tmp_path, seed) for seed, mask in enumerate(order)]
    assert found[0] == found[2] != found[1]
    assert found[1] == found[3]
    assert found[0]["kl"] == 0 < found[1]["kl"]
    with suppress(ms.errors.EmptyRowError):
        judged(judge, masks.columns(1) - masks.window(0), tmp_path)
    assert judged(judge, masks.full(), tmp_path) == found[0]


@pytest.mark.slow
@pytest.mark.parametrize("sinks", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_no_table_of_all_layers_and_heads_is_made(sinks: bool, data: Path, tmp_path: Path) -> None:
    """It would hold 16 MiB. One layer's attention weights, which sinks are measured on, are 4."""
    wide = {"num_hidden_layers": 16, "num_attention_heads": 16, "max_position_embeddings": 256}
    tiny_decoder(tmp_path / "deep", [*WORDS, "="], **wide)
    settings: dict[str, Any] = {"length": 256, "held_out_sequences": 2}
    judge: Any = evaluator(data, weights=tmp_path / "deep", **settings)
    judge = EngineEvaluator(judge, sinks="calibrate" if sinks else None)
    local = masks.window(8) | masks.columns(1) if sinks else masks.window(8)
    for mask in (local, masks.per_layer([masks.full(), *[local] * 15])):
        with LargestTensor() as largest:
            judged(judge, mask, tmp_path)
        assert largest.bytes <= 4 << 20
    with pytest.raises(ms.errors.EmptyRowError, match="layer 15, head 0, row 0 keeps no key"):
        judged(judge, masks.per_layer([*[local] * 15, ~masks.window(0)]), tmp_path)


def test_weights_are_in_memory_once_for_all_that_is_judged(data: Path) -> None:
    judge = evaluator(data, precision="bfloat16")
    served = EngineEvaluator(judge).served(masks.window(3))
    models = [
        judge.dense_decoder(0).model,
        judge.dense(1),
        judge.on("holdout").dense_decoder(0).model,
        served,
    ]
    weights = [weight for model in models for weight in model.parameters()]
    assert not any(weight.requires_grad for weight in weights)
    held = {weight.data_ptr(): weight.nbytes for weight in weights}
    stored = load_file(data / "llama" / "model.safetensors").values()
    assert sum(held.values()) == sum(2 * weight.numel() for weight in stored)
    ms.attach(models[1], masks.window(1))  # and a mask on one of them is on no other
    alone, others = (
        [score_tokens(each, judge.rows.tokens).nll for each in several]
        for several in (models[1:2], [models[0], models[2]])
    )
    assert torch.equal(*others)
    assert not torch.equal(alone[0], others[0])


def test_weights_that_are_judged_in_bfloat16_say_nearly_the_same(data: Path, tmp_path) -> None:
    judges = [evaluator(data, precision=name) for name in ("float32", "bfloat16")]
    one, other = (judged(judge, masks.window(2), tmp_path)["nll"] for judge in judges)
    assert 0 < abs(one - other) < 0.02
    assert judges[0].protocol != judges[1].protocol
    trained = evaluator(data, precision="bfloat16", adapt="recover")
    assert {weight.dtype for weight in trained.dense(0).parameters()} == {torch.float32}


def test_files_that_have_changed_are_read_again(data: Path, tmp_path: Path) -> None:
    """The text, the weights, and the dense model's states on the text."""
    shutil.copytree(data / "text", tmp_path / "text")
    shutil.copytree(data / "llama", tmp_path / "llama")
    home = {"cache": data / "cache", "kl": True}
    before = evaluator(tmp_path, **home)
    first, losses = before.protocol, judged(before, masks.full(), tmp_path / "run")
    for path in (tmp_path / "text").iterdir():
        path.write_text("\n".join(path.read_text().splitlines()[::-1]))
    other = evaluator(tmp_path, **home)
    assert other.protocol != first
    again = judged(other, masks.full(), tmp_path / "run")
    assert again["kl"] == pytest.approx(0, abs=1e-6)
    assert again["nll"] != losses["nll"]
    assert before.protocol == first  # what it judges by stays the same
    shutil.copytree(data / "gpt2", tmp_path / "llama", dirs_exist_ok=True)
    start = evaluator(tmp_path, **home).start
    assert start is not None
    assert start.architecture == "gpt2"


def test_scores_of_documents_are_those_of_a_ratio() -> None:
    """Their standard error is that of the mean over tokens, as drawing documents anew shows."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 6, 40)
    documents = np.repeat(np.arange(40), sizes)
    tokens = torch.zeros(len(documents), 5, dtype=torch.int64)
    rows = NextTokenRows(tokens, tokens, documents, tokens)
    level = torch.from_numpy(draw.normal(3, 0.5, 40)[documents])
    values = (level[:, None] + torch.from_numpy(draw.normal(0, 0.1, tokens.shape))).float()
    scores = document_scores(values, rows)
    assert scores.mean() == pytest.approx(values.mean().item(), rel=1e-6)
    sums, counts = (
        np.bincount(documents, w) for w in (values.sum(1).numpy(), np.full(len(documents), 5))
    )
    chosen = draw.integers(0, 40, (4000, 40))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    assert scores.std(ddof=1) / np.sqrt(40) == pytest.approx(means.std(), rel=0.1)


def test_pieces_and_batches_do_not_show(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = evaluator(data)
    model, tokens = judge.build_model(0), judge.rows.tokens[:9]
    whole = score_tokens(model, tokens, answers=True)
    monkeypatch.setattr(decoders, "HELD", 100)
    monkeypatch.setattr("masksearch_decoders.next_tokens.TOKENS", 50)
    parts = score_tokens(model, tokens, answers=True)
    assert torch.allclose(parts.nll, whole.nll, atol=1e-5)
    assert torch.equal(parts.right, whole.right)


def test_the_bytes_of_the_cache_are_known_before(data: Path) -> None:
    judge = evaluator(data, cost="kv_bytes")
    assert [objective.name for objective in judge.objectives] == ["nll", "kv_bytes"]
    assert judge.protocol == evaluator(data).protocol
    both = {"kv_bytes": 7 / 24, "kv_bytes_per_head": 7 / 24}  # of whole layers they are alike
    found = judge.measures_of(masks.window(5) | masks.columns(2))
    assert {name: found[name] for name in both} == both
    assert CausalEvaluator("recall").measures_of(masks.window(6))["kv_bytes"] == 6 / 56


def test_bytes_are_those_of_the_account(data: Path) -> None:
    usual = evaluator(data, cost="kv_bytes")
    serving = Serving(length=4096, in_flight=256, ubatch=64)
    judge = EngineEvaluator(usual, cache_layout="vllm", serving=serving)
    others = replace(judge, cache_layout="llama.cpp"), replace(judge, serving=Serving())
    assert len({each.protocol for each in (usual, judge, *others)}) == 4
    mask = masks.columns(2) | masks.window(31)
    held = {"transformers": 31 / 4096, "vllm": 19 / 256, "llama_cpp": 256 / 4096}
    found = judge.measures_of(mask)
    assert {name: found[f"kv_bytes_{name}"] for name in held} == held
    assert found["kv_bytes"] == held["vllm"]
    assert others[0].measures_of(mask)["kv_bytes"] == held["llama_cpp"]
    assert {*found} == {*judge.measure_names}
    every = EngineEvaluator(usual).measures_of(masks.stride(2))
    assert every == {"kv_bytes": 1, "kv_bytes_per_head": 1}  # no engine serves it
    with pytest.raises(NativeError, match=r"'vllm' counts .* layer 0 keeps stride\(2\)"):
        judge.measures_of(masks.stride(2))


# -- weights that learn ------------------------------------------------------------------------
def scratch(data: Path, **settings: Any) -> CausalEvaluator:
    small = {"weights": None, "size": "1x32x2", "steps": 30, "batch": 8, "vocabulary": 60}
    return evaluator(data, **(small | {"cache": data / "scratch"} | settings))


def counted(judge: CausalEvaluator, workdir: Path, seed: int = 0) -> tuple[list[float], int]:
    """Losses of all reports under a window, and how many optimiser steps that took."""
    steps: list[int] = []
    with follow_trainings(lambda step, config: steps.append(step.number)):
        reports = [*judge(masks.window(2), seed=seed, workdir=workdir)]
    return [report.values["nll"] for report in reports], len(steps)


@pytest.mark.slow
def test_training_under_the_mask_lowers_the_loss(data: Path, tmp_path: Path) -> None:
    losses, steps = counted(scratch(data), tmp_path)
    assert steps == 30
    assert losses[-1] < losses[0]
    assert len(losses) == 5  # at 1, 3, 7, 15 and 30 steps


@pytest.mark.slow
def test_a_dense_model_is_trained_once_and_recovers_under_masks(data, tmp_path):
    judge = scratch(data, adapt="none", cache=tmp_path / "cache")
    before, steps = counted(judge, tmp_path / "a")
    assert (len(before), steps) == (1, 30)
    recover = replace(judge, adapt="recover", recover_tokens=2000, recover_lr=1e-3)
    after, steps = counted(recover, tmp_path / "b")
    assert steps == recover.recover_config.steps == 11
    assert after[-1] != before[0]
    assert counted(judge, tmp_path / "c") == (before, 0)
    assert counted(judge, tmp_path / "d", seed=1)[1] == 30


@pytest.mark.slow
def test_recovery_learns_from_the_dense_predictions(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, adapt="recover", recover_tokens=8000, recover_lr=1e-3, reports=1)
    before = judged(evaluator(data, kl=True), masks.window(0), tmp_path / "a")["kl"]
    mask = masks.window(0)
    values = judged(judge, mask, tmp_path / "b")
    student, tokens = judge.adapted(mask, seed=0), judge.rows.tokens
    with torch.no_grad():
        found = student(tokens, labels=tokens)
        said = found.logits[:, :-1]
        wanted = judge.build_model(0)(tokens).logits[:, :-1]
    assert found.loss.item() == pytest.approx(values["nll"], abs=1e-4)  # what was judged
    after = decoders.divergence(said.flatten(0, 1), wanted.flatten(0, 1)).mean().item()
    assert after < 0.8 * before


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("learn_from", ["dense", "hidden"])
def test_gates_learn_on_frozen_weights(data: Path, learn_from: str, precision: str) -> None:
    judge = evaluator(data, learn_from=learn_from, batch=4, precision=precision)
    source = judge.differentiable(0)
    without_mask = source.model(**source.held_out[0]).loss
    assert without_mask.item() == pytest.approx(0, abs=1e-6)  # the model is its own teacher
    gates = Gates("free", length=24, heads=4, layers=2, causal=True)
    config = ms.DamConfig(steps=40, density=0.5, train="gates", gate_lr=0.3)
    result = ms.dam(source.model, source.batches, gates, config, held_out=source.held_out[:2])
    assert judge.weights_frozen
    assert result.mask(sparsity=0.5).density(24, causal=True) <= 0.55


@pytest.mark.slow
def test_documents_decide_where_every_seed_gives_the_same(tmp_path: Path) -> None:
    words = ["=", *WORDS]
    model = tiny_decoder(tmp_path / "model", words, initializer_range=0.05)
    judge = CausalEvaluator(
        written_text(model, tmp_path / "text", words), weights=model, length=24, cache=tmp_path
    )
    chosen = {"dense": masks.full(), "narrow": masks.window(1), "wide": masks.window(12)}
    how = {"seeds": range(3), "split": "all", "against": "nearest"}
    compared = ms.compare(chosen, judge, run=tmp_path / "run", **how)
    assert [record.seed for record in compared.records] == [0, 0, 0]
    assert compared.seedless
    (of_narrow, _) = compared.findings()
    mine, dense = (compared.entries[name].rows[0].scores["text"] for name in ("narrow", "dense"))
    wanted = stats.ttest_rel(mine, dense)
    assert of_narrow.difference.p_value == pytest.approx(wanted.pvalue, rel=1e-3)
    ends = wanted.confidence_interval(of_narrow.difference.level)
    found = of_narrow.difference.low, of_narrow.difference.high
    assert found == pytest.approx((*ends,), rel=1e-3)
    said = ms.Comparison.open(tmp_path / "run").verdict()
    assert "any seed and" in said
    assert "rows: every seed gives the same scores" in said
    assert "run 3 seeds" not in said
    assert not replace(judge, adapt="recover").seedless


# -- tasks of long context ---------------------------------------------------------------------
DONE = ("passkey", "niah_multikey_1", "qa_1")


@pytest.fixture(scope="module")
def taught(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How to judge a decoder of bytes that has seen the rows of these tasks."""
    folder = tmp_path_factory.mktemp("taught")
    how: dict[str, Any] = {"length": 250, "bands": None, "task_rows": 3}
    wide = {"max_position_embeddings": 256, "initializer_range": 0.05}
    weights = byte_tokenizer(tiny_decoder(folder / "random", BYTES[1:], **wide))
    rows = [*evaluator(data, tasks=DONE, weights=weights, **how).prompts.values()]
    return how | {"weights": learn_rows(weights, rows, folder / "taught")}


@pytest.mark.slow
def test_tasks_are_judged_beside_the_text(data, taught, tmp_path):
    judge = evaluator(data, tasks=DONE, **taught)
    assert judge.objectives[0].name == "max_nll_increase"
    dense = judged(judge, masks.full(), tmp_path / "run")
    assert dense["max_nll_increase"] == 0
    rows = judge.prompts["passkey"]
    with torch.no_grad():
        logits = ms.attach(judge.start.decoder(), masks.full())(rows.tokens).logits[:, :-1]
    each = F.cross_entropy(logits.flatten(0, 1), rows.labels[:, 1:].flatten())
    assert dense["nll/passkey"] == pytest.approx(each.item(), rel=1e-4)
    right = (logits.argmax(-1) == rows.tokens[:, 1:]) | ~rows.answers[:, 1:]
    assert dense["passkey"] == pytest.approx(right.all(1).double().mean().item())
    mean = (dense["nll/passkey"] + dense["nll/niah_multikey_1"]) / 2
    assert dense["nll/retrieval"] == pytest.approx(mean)
    assert dense["nll/answering"] == dense["nll/qa_1"]
    narrow = judged(judge, masks.window(1), tmp_path / "narrow")
    added = [narrow[name] - dense[name] for name in ("nll", "nll/retrieval", "nll/answering")]
    assert narrow["max_nll_increase"] == pytest.approx(max(added))
    parts = [narrow[f"nll_increase/{name}"] for name in ("text", "retrieval", "answering")]
    assert parts == pytest.approx(added)
    plain = replace(judge, tasks=())
    assert judged(plain, masks.full(), tmp_path / "plain")["nll"] == dense["nll"]
    assert plain.objectives[0].name == "nll"
    assert plain.protocol != judge.protocol != judge.on("holdout").protocol


@pytest.mark.slow
def test_tasks_that_the_dense_model_cannot_do_are_named(data, taught, tmp_path):
    judge = evaluator(data, tasks=["passkey", "niah_single_3", "vt"], **taught)
    rule = (
        r"loses \d+\.\d+ nats a token of niah_single_3 \(a guess: 2\.286\), \S+ nats a token "
        r"of vt \(a guess: 1\.821\), no less than a guess without context; tasks left"
    )
    with pytest.warns(UserWarning, match=rf"{rule}: passkey; take others, shorter"):
        judge.provide_models(0)
    dense = judged(judge, masks.full(), tmp_path / "dense")
    narrow = judged(judge, masks.window(1), tmp_path / "narrow")
    assert {name for name in narrow if name.startswith("nll_increase/")} == {
        "nll_increase/text",
        "nll_increase/retrieval",
    }
    added = narrow["nll/passkey"] - dense["nll/passkey"]
    assert narrow["nll_increase/retrieval"] == pytest.approx(added)
    assert narrow["max_nll_increase"] == max(
        narrow["nll_increase/text"], narrow["nll_increase/retrieval"]
    )
    with pytest.raises(ms.errors.SearchError, match=rf"{rule}: none; take"):
        judged(replace(judge, tasks=["niah_single_3", "vt"]), masks.full(), tmp_path / "none")


def test_wrong_tasks_are_refused(data: Path) -> None:
    with pytest.raises(ms.errors.DataError, match="the same ids, so that no answer"):
        evaluator(data, tasks="passkey", length=250).settings()
    with pytest.raises(ms.errors.UnknownNameError, match="niah_multikey_1"):
        evaluator(data, tasks=["niah_multikey1"])
    with pytest.raises(ValueError, match="planted recall has token ids of its own, so tasks="):
        CausalEvaluator(Recall(), tasks=["vt"])


# -- planted recall ----------------------------------------------------------------------------
TASK = Recall(pairs=2, keys=4, values=4, fillers=4, middle=8)


def recall(folder: Path, **settings: Any) -> CausalEvaluator:
    small: dict[str, Any] = {
        "size": "2x32x2",
        "steps": 200,
        "batch": 32,
        "lr": 5e-3,
        "warmup": 0.1,
    }
    small |= {"adapt": "none", "held_out_sequences": 128, "initializer_range": 0.1}
    return CausalEvaluator(TASK, cache=folder, device="cpu", **(small | settings))


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds a decoder which has learnt recall."""
    folder = tmp_path_factory.mktemp("recall")
    recall(folder).provide_models(0)
    return folder


@pytest.mark.slow
def test_recall_needs_what_the_task_says(learnt: Path, tmp_path: Path) -> None:
    judge = recall(learnt)
    assert judge.shape == ms.Shape(16, 2, 2, causal=True)
    dense = judged(judge, masks.full(), tmp_path)
    assert dense["recall"] > 0.9
    assert dense["nll"] < 2 * TASK.floor
    far = judged(judge, masks.window(TASK.middle + 4 * TASK.pairs - 1), tmp_path)
    assert far["nll"] == pytest.approx(dense["nll"], rel=1e-5)
    near = judged(judge, masks.window(2), tmp_path)
    assert near["recall"] < 0.6
    assert near["nll/back-1-15"] > dense["nll/back-1-15"]
    none = judged(judge, masks.window(0), tmp_path)
    assert none["nll"] > near["nll"] > dense["nll"]
    assert dense["nll/recall"] < near["nll/recall"]


SWITCHES = {"structure": "switch", "levels": (masks.window(2), "full()"), "unit": "head"}
FAST = {"steps": 100, "gate_lr": 0.1}


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:DAM")
def test_switches_find_the_heads_that_recall_needs(learnt: Path, tmp_path: Path) -> None:
    judge = recall(learnt)
    units = ms.Units(judge.shape, (masks.window(2), masks.full()))
    every = [*itertools.product((0, 1), repeat=4)]
    losses = {one: judged(judge, units.mask(one), tmp_path)["nll"] for one in every}
    sizes = [[one for one in every if sum(one) == size] for size in range(4)]
    best = [min(some, key=losses.__getitem__) for some in sizes]
    by_dam: dict[str, Any] = {"gates": SWITCHES, "config": FAST}
    study = ms.search(
        None,
        judge,
        run=tmp_path / "dam",
        strategy="dam",
        trials=5,
        strategy_options=by_dam | {"densities": [units.density(one) for one in best]},
    )
    cut = [units.allocation(record.params) for record in study.records()[1:]]
    assert [sum(one) for one in cut] == [0, 1, 2, 3]
    assert sum(one == other for one, other in zip(cut, best, strict=True)) >= 3
    for one, some in zip(cut, sizes, strict=True):
        assert losses[one] <= sum(losses[other] for other in some) / len(some) + 1e-9
    study.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "switch gates" in page
    assert "take their fullest mask" in page
    allocated = ms.search(
        None,
        judge,
        run=tmp_path / "allocate",
        strategy="allocate",
        trials=6,
        strategy_options={"levels": "window(2)", "method": "gates", "config": FAST},
    )
    found = {units.allocation(record.params) for record in allocated.records()[1:]}
    assert {(0, 0, 0, 0), best[2], (1, 1, 1, 1)} <= found


def test_recall_by_name_has_the_length_that_is_asked_for() -> None:
    assert CausalEvaluator("recall").shape.length == 56
    assert CausalEvaluator("recall", length=64).corpus == Recall(middle=32)
    assert CausalEvaluator("./recall").length == 256
    assert type(CausalEvaluator("a").length) is int
    for wrong, message in (
        ({"length": 20}, "length of at least 34"),
        ({"tokenizer": "somewhere"}, "token ids of its own, so tokenizer= belongs to text"),
    ):
        with pytest.raises(ValueError, match=message):
            CausalEvaluator("recall", **wrong)
    with pytest.raises(ValueError, match="has 16 positions, got length=17; leave"):
        CausalEvaluator(TASK, length=17)


# -- what is refused ---------------------------------------------------------------------------
def test_what_cannot_be_judged_says_why(data: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    bert = evaluator(data, weights=tiny_checkpoint(tmp_path / "bert", WORDS))
    with pytest.raises(ms.errors.DataError, match="'bert' is not a decoder"):
        bert.settings()
    short = replace(evaluator(data), corpus=tmp_path / "short.txt", length=60)
    with pytest.raises(ms.errors.DataError, match="at least a sequence of 60 positions"):
        short.settings()
    more = tiny_decoder(tmp_path / "more", [f"w{number}" for number in range(50)])
    with pytest.raises(ms.errors.DataError, match=r"tokenizer has 51 ids, .* embeds 42"):
        evaluator(data, tokenizer=more).settings()
    with pytest.raises(LengthError, match="64 positions, asked for 65"):
        judged(evaluator(data, length=65), masks.full(), tmp_path)
    for wrong, message in (
        ({"architecture": "bert"}, "unknown architecture of a decoder 'bert'"),
        ({"bands": (8, 4)}, "rising"),
        ({"kl": True, "adapt": "recover"}, "adapt='recover' changes them"),
        ({"cost": "bytes"}, "unknown cost 'bytes'"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator(data, **wrong)


def test_a_model_that_fits_no_device_is_refused_before_it_is_loaded(data, tmp_path, monkeypatch):
    folder = tiny_decoder(tmp_path / "model", [*WORDS, "="])
    numbers = sum(each.numel() for each in load_file(folder / "model.safetensors").values())
    memory = 5 * numbers
    monkeypatch.setattr(decoders, "device_memory", lambda place: memory)
    with monkeypatch.context() as context:
        context.setattr(decoders, "read_model", None)
        for settings, size in (({"adapt": "recover"}, 20), ({"adapt": "train"}, 16)):
            with pytest.raises(
                ms.errors.DataError,
                match=rf"\({numbers:,} numbers of {size} bytes\), and cpu has .* GB; take a dev",
            ):
                evaluator(data, weights=folder, **settings).settings()
        memory = 3 * numbers
        with pytest.raises(ms.errors.DataError, match=r"4 bytes\), and .*, precision='bfloat16'"):
            evaluator(data, weights=folder).settings()
    judged(evaluator(data, weights=folder, precision="bfloat16"), masks.full(), tmp_path)


def test_damaged_weights_are_named(data: Path, tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "model", [*WORDS, "="])
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ms.errors.DataError, match=r"hold NaN in model\.norm\.weight; take "):
        judged(evaluator(data, weights=folder), masks.full(), tmp_path)


def test_a_dense_model_that_knows_nothing_is_refused(data: Path) -> None:
    with pytest.raises(
        ms.errors.SearchError, match=r"loses \d.* nats a token, and a guess by how"
    ):
        evaluator(data).provide_models(0)


def test_documents_are_the_rows_of_statistics(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data)
    values = judged(judge, masks.window(1), tmp_path)
    scores = RowScores.load(tmp_path / "rows.safetensors").scores["text"]
    assert len(scores) == len(set(judge.rows.documents)) < len(judge.rows.tokens)
    assert scores.mean() == pytest.approx(values["nll"], rel=1e-6)
