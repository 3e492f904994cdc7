"""What evaluators that fine-tune share: seeds, frozen layers, checkpoints, killed runs."""

import json
import math
import pickle
import random
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import reports_until
from real_data import DATA, minilm, real
from split_evaluators import causal, glue, squad, swag, text
from tiny_checkpoint import tiny_checkpoint
from tokenizers.processors import RobertaProcessing
from torch import nn
from toy_sentences import WORDS, write_lines
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from masksearch import GlueEvaluator, masks
from masksearch.analysis.row_scores import RowScores
from masksearch.contracts import Report, mixed_seed
from masksearch.errors import DataError, LengthError
from masksearch.models.encoders import ARCHITECTURES, encoder
from masksearch.tasks.text.tokenizer import word_piece
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import follow_trainings, freeze


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, an SST-2 and a small STS-B, and a checkpoint that knows the words."""
    draw, folder = random.Random(0), tmp_path_factory.mktemp("data")
    lines = (" ".join(draw.choices(WORDS, k=8)) for _ in range(300))
    (folder / "text.txt").write_text("\n".join(lines))
    for name, count in (("train", 24), ("dev", 16)):
        rows = ["sentence\tlabel"]
        for number in range(count):
            half = WORDS[:40] if number % 2 else WORDS[40:]
            rows.append(f"{' '.join(draw.choices(half, k=draw.randint(2, 20)))}\t{number % 2}")
        write_lines(folder / "glue" / "SST-2" / f"{name}.tsv", rows)
        rows = ["sentence1\tsentence2\tscore"]
        rows += [f"{' '.join(draw.choices(WORDS, k=4))}\tban\t{draw.random()}" for _ in range(16)]
        write_lines(folder / "glue" / "STS-B" / f"{name}.tsv", rows)
    tiny_checkpoint(folder / "checkpoint", WORDS)
    return folder


def evaluator(data: Path, **settings: Any) -> GlueEvaluator:
    small: dict[str, Any] = {"tasks": ("SST-2", "STS-B"), "steps": 3, "reports": 2, "size": "nano"}
    small |= {"length": 32, "vocabulary": 120, "batch": 4, "epochs": 1, "finetune_batch": 8}
    small |= {"cache": data / "cache", "held_out_sequences": 4, "device": "cpu"}
    small |= {"checkpoint_seconds": 0.0}
    corpus = settings.pop("corpus", data / "text.txt")
    return GlueEvaluator(corpus, data / "glue", **(small | settings))


def finetuned_only(data: Path, **settings: Any) -> GlueEvaluator:
    return evaluator(data, corpus=None, **{"weights": data / "checkpoint", **settings})


def steps_of(judge: Any, workdir: Path) -> tuple[list[Report], list[int]]:
    """The reports of a run, and the steps that it took."""
    steps: list[int] = []
    with follow_trainings(lambda step, config: steps.append(step.number)):
        return list(judge(masks.star(), seed=1, workdir=workdir)), steps


# -- seeds --------------------------------------------------------------------------------------
@pytest.mark.slow
def test_scores_are_means_over_fine_tuning_seeds(data: Path, tmp_path: Path) -> None:
    judge = finetuned_only(data, tasks=("STS-B",), finetune_seeds=3)
    (last,) = judge(masks.star(), seed=1, workdir=tmp_path)
    runs = []
    for number in range(3):
        seed = 1 if number == 0 else mixed_seed(1, 25, number)
        (one,) = finetuned_only(data, tasks=("STS-B",))(
            masks.star(), seed=seed, workdir=tmp_path / str(number)
        )
        runs.append(one.values["STS-B"])
    assert last.values["STS-B"] == pytest.approx(statistics.fmean(runs))
    assert last.values["STS-B/std"] == pytest.approx(statistics.stdev(runs))
    assert last.values["glue"] == last.values["STS-B"]
    assert last.values["STS-B/majority"] == 0.0
    assert "STS-B/majority/std" not in last.values
    assert len(set(runs)) == 3


# -- frozen layers ------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_layers_are_the_lower_ones(architecture: str) -> None:
    body = encoder("3x16x2", 30, 16, seed=0, architecture=architecture)
    freeze(body, 2)
    trained = {name for name, p in body.named_parameters() if p.requires_grad}
    layers = {name for name, _ in body.named_parameters() if ".2." in name or "s.2." in name}
    assert layers <= trained
    assert not any(".0." in name or ".1." in name or "embed" in name for name in trained)
    assert not any("norm" not in name.lower() for name in trained - layers)


@pytest.mark.slow
@pytest.mark.parametrize(("frozen", "moves"), [(None, 3), (0, 2), (1, 1), (2, 0), ("all", 0)])
def test_fine_tuning_moves_what_is_not_frozen(data: Path, frozen: Any, moves: int) -> None:
    judge = finetuned_only(data, tasks=("SST-2",), frozen=frozen)
    before = judge.start.encoder()
    body = judge.adapted(masks.full(), seed=0).get_submodule("encoder")
    moved = 0
    parts = ("embeddings", "encoder.layer.0", "encoder.layer.1")
    for part in parts:
        one, other = (
            torch.cat([p.flatten() for p in model.get_submodule(part).parameters()])
            for model in (before, body)
        )
        moved += not torch.equal(one, other)
    assert moved == moves


def test_an_encoder_without_a_list_of_layers_is_refused() -> None:
    odd = nn.Linear(2, 2)
    odd.config = encoder("nano", 20, 8, seed=0).config  # type: ignore[assignment]
    with pytest.raises(ValueError, match="Linear has no list of 1 layers"):
        freeze(odd, 0)


# -- from a checkpoint, without text ------------------------------------------------------------
@pytest.mark.slow
def test_fine_tuning_alone_uses_the_checkpoint_and_its_tokenizer(data, tmp_path):
    judge = finetuned_only(data)
    assert judge.shape.layers == 2
    assert [judge.source.special[role] for role in ("pad", "cls", "sep")] == [0, 2, 3]
    assert judge.source.encode(["ban dat"]) == [[5 + WORDS.index("ban"), 5 + WORDS.index("dat")]]
    (report,) = judge(masks.star(), seed=0, workdir=tmp_path)
    assert report.step == 3 + 2
    assert "loss" not in report.values
    assert math.isfinite(report.values["glue"])
    assert not Checkpoints(tmp_path, "pretrained").files()
    assert judge.protocol != evaluator(data, weights=data / "checkpoint").protocol
    assert judge.protocol != finetuned_only(data, length=24).protocol


@pytest.mark.slow
def test_text_and_checkpoint_go_together(data: Path, tmp_path: Path) -> None:
    judge = evaluator(data, weights=data / "checkpoint", tasks=("SST-2",))
    reports = list(judge(masks.star(), seed=0, workdir=tmp_path))
    assert [report.step for report in reports] == [1, 3, 6]
    as_it_is = evaluator(data, weights=data / "checkpoint", tasks=("SST-2",), steps=0)
    reports = list(as_it_is(masks.star(), seed=0, workdir=tmp_path / "as it is"))
    assert [report.step for report in reports] == [0, 3]
    assert reports[1].values["loss"] == reports[0].values["loss"]


def test_what_does_not_fit_is_refused_before_training(data: Path, tmp_path: Path) -> None:
    larger = tiny_checkpoint(tmp_path / "larger", WORDS, more=2)
    alone: dict[str, Any] = {"corpus": None, "weights": data / "checkpoint"}
    for settings, error, said in (
        ({"frozen": 9}, ValueError, "frozen=9, but the encoder has"),
        ({**alone, "frozen": 3}, ValueError, "frozen=3, but the encoder has 2 layers"),
        ({"corpus": None}, ValueError, r"there is no corpus; give .* or the weights"),
        ({**alone, "length": 64}, LengthError, "48 positions, asked for 64"),
        ({"corpus": None, "weights": larger}, DataError, "the tokenizer has 87 ids"),
    ):
        with pytest.raises(error, match=said):  # before the pre-training
            next(evaluator(data, **settings)(masks.star(), seed=0, workdir=tmp_path))


# -- real weights -------------------------------------------------------------------------------
@pytest.mark.nightly
@real
def test_minilm_learns_sst2_in_a_few_steps(tmp_path: Path) -> None:
    how: dict[str, Any] = {"rows": 480, "dev_rows": 200, "length": 64, "device": "cpu"}
    how |= {"epochs": 1, "finetune_lr": 2e-4, "finetune_batch": 16}
    judge = GlueEvaluator(None, DATA / "glue", weights=minilm(), tasks=("SST-2",), **how)
    (report,) = judge(masks.full(), seed=0, workdir=tmp_path)
    assert report.step == 30
    assert report.values["SST-2"] > report.values["SST-2/majority"] + 0.15


# -- killed runs --------------------------------------------------------------------------------
ORDER = {"pretraining": "mlm+order", "micro_batches": 2, "optimiser": "lamb", "whole_words": True}


def distilled(folder: Path) -> Any:
    weights = tiny_checkpoint(folder / "checkpoint", list(WORDS))
    how = {"pretraining": "distil", "dropout": 0.1, "length": 16}
    return replace(glue(folder), weights=weights, **how)


MAKERS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "text": (text, {"dropout": 0.2, "steps": 6}),
    "pairs by LAMB": (text, {**ORDER, "steps": 6}),
    "distillation": (distilled, {"steps": 3}),
    "fine-tuning of two seeds": (glue, {"finetune_seeds": 2, "finetune_batch": 8, "steps": 3}),
    "questions": (squad, {"finetune_batch": 2, "steps": 3}),
    "endings": (swag, {"finetune_batch": 2, "steps": 3}),
    "decoder": (causal, {"steps": 6}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_killed_run_ends_as_it_would_have(name: str, tmp_path: Path) -> None:
    make, settings = MAKERS[name]
    judge = replace(make(tmp_path), checkpoint_seconds=0.0, held_out_sequences=8, **settings)
    straight, steps = steps_of(judge, tmp_path / "straight")
    rows = RowScores.load(tmp_path / "straight" / "rows.safetensors").scores
    left = {path.name.partition("-")[0] for path in (tmp_path / "straight").iterdir()}
    assert left <= {"rows.safetensors", "scores.json", "pretrained"}  # of no unfinished training
    for killed in (2, 5):
        place = tmp_path / str(killed)
        first = reports_until(judge, place, killed, masks.star(), seed=1)
        assert first == straight[: len(first)]
        assert reports_until(judge, place, 1, masks.star(), seed=1) == first  # killed again
        assert steps_of(judge, place) == (straight, steps[killed - 1 :])
        again = RowScores.load(place / "rows.safetensors").scores
        assert {task: list(each) for task, each in again.items()} == {
            task: list(each) for task, each in rows.items()
        }
    reports = judge(masks.star(), seed=1, workdir=tmp_path / "closed")
    assert next(reports) == straight[0]
    reports.close()
    assert steps_of(judge, tmp_path / "closed")[0] == straight
    for mask, seed in ((masks.star(), 3), (masks.window(1), 1)):  # of another run in its folder
        reports_until(judge, tmp_path / f"{seed}", 3, mask, seed)
        assert steps_of(judge, tmp_path / f"{seed}") == (straight, steps)


@pytest.mark.slow
def test_damaged_scores_cost_their_training_alone(data: Path, tmp_path: Path, caplog) -> None:
    judge = evaluator(data, tasks=("SST-2",))
    straight, _ = steps_of(judge, tmp_path)
    (tmp_path / "scores.json").write_text("{")
    assert steps_of(judge, tmp_path) == (straight, [1, 2, 3])
    assert "is damaged" in caplog.text
    stored = json.loads((tmp_path / "scores.json").read_text())
    (tmp_path / "scores.json").write_text(json.dumps(stored | {"key": "another"}))
    assert steps_of(judge, tmp_path) == (straight, [1, 2, 3])


def roberta_rows(folder: Path, **settings: Any) -> Path:
    """The tiny checkpoint under a tokenizer that parts two texts by two `[SEP]`, without types."""
    shutil.copytree(folder, made := folder.with_name(f"two-{len(settings)}"), dirs_exist_ok=True)
    tokens = word_piece({n: at for at, n in enumerate((made / "vocab.txt").read_text().split())})
    tokens.post_processor = RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    (made / "vocab.txt").unlink()
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "cls", "sep", "unk", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **roles).save_pretrained(made)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | settings))
    return made


def test_rows_are_those_of_the_checkpoints_tokenizer(data: Path) -> None:
    weights = roberta_rows(data / "checkpoint")
    judge = finetuned_only(data, weights=weights, tasks=("STS-B",))
    rows, texts = judge.tokens().train, judge.data("STS-B").train.texts
    batch, theirs = judge.inputs(rows, [0, 1]), AutoTokenizer.from_pretrained(weights)
    expected = theirs(*[list(column) for column in zip(*texts[:2], strict=True)])["input_ids"]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for ids, row in zip(batch["input_ids"].tolist(), expected, strict=True):
        assert ids == row + [0] * (len(ids) - len(row))
    assert judge.protocol != finetuned_only(data, tasks=("STS-B",)).protocol
    packed = pickle.loads(pickle.dumps(judge.packed()))
    assert packed.protocol == judge.protocol
    again = packed.inputs(packed.tokens().train, [0, 1])
    assert torch.equal(again["input_ids"], batch["input_ids"])


def test_formats_that_cannot_be_fed_are_refused(data: Path) -> None:
    weights = roberta_rows(data / "checkpoint")
    with pytest.raises(DataError, match=r"read_out='pair' .* token types, .* gives both 0"):
        finetuned_only(data, weights=weights, tasks=("STS-B",), read_out="pair").tokens()
    tuned = {"architectures": ["BertForSequenceClassification"], "pad_token_id": None}
    weights = roberta_rows(data / "checkpoint", **tuned)
    with pytest.raises(DataError, match=r"names no pad_token_id .* set it to that of padding, 0"):
        finetuned_only(data, weights=weights, adapt="none").tokens()
