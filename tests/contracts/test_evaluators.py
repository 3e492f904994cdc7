"""Every evaluator keeps the same promises, at sizes that take a second."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import tiny_checkpoint
from tiny_decoder import tiny_decoder
from toy import ToyEvaluator, space
from toy_questions import squad_json, swag_rows

import masksearch as ms
from masksearch import masks
from masksearch.analysis.pareto import pareto
from masksearch.contracts import Evaluate, Evaluator, Record
from masksearch.errors import HeadCountError
from masksearch.training.checkpoints import Checkpoints

SPARSITIES = {"sparsity", "effective_sparsity"}
SCORES = {"score", "glue", "f1", "accuracy"} | SPARSITIES  # of everything else, less is better
WORDS = ("the", "cat", "sat", "on", "a", "red", "mat", "and", "saw", "one", "old", "dog")


def text_file(folder: Path) -> Path:
    path = folder / "text.txt"
    order = torch.randint(0, len(WORDS), (400, 12), generator=torch.Generator().manual_seed(0))
    lines = (" ".join(WORDS[index] for index in row) for row in order.tolist())
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def glue_folder(folder: Path) -> Path:
    task = folder / "glue" / "SST-2"
    task.mkdir(parents=True)
    for name, count in (("train", 16), ("dev", 8)):
        rows = [f"the {'red cat' if i % 2 else 'old dog'} sat\t{i % 2}" for i in range(count)]
        (task / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return folder / "glue"


def planted(folder: Path) -> Evaluator:
    process = ms.PlantedProcess(length=16, offsets=(5,), vocabulary=4)
    return ms.PlantedEvaluator(process, steps=6, downstream_steps=2, held_out_sequences=32)


def text(folder: Path) -> Evaluator:
    return ms.MlmEvaluator(text_file(folder), **SMALL, cache=folder / "cache")


def pairs(folder: Path) -> Evaluator:
    changes = {"pretraining": "mlm+order", "whole_words": True, "dropout": 0.1, "length": 20}
    settings = {**SMALL, **changes, "cache": folder / "cache"}
    return ms.MlmEvaluator(text_file(folder), **settings)


def from_weights(folder: Path) -> Evaluator:
    weights = tiny_checkpoint(folder / "checkpoint", list(WORDS))
    settings = {**SMALL, "cache": folder / "cache"}
    return ms.MlmEvaluator(text_file(folder), weights=weights, **settings)


def finetuning(folder: Path) -> Evaluator:
    weights = tiny_checkpoint(folder / "checkpoint", list(WORDS))
    tasks = glue_folder(folder)
    return ms.GlueEvaluator(
        None,
        glue=tasks,
        weights=weights,
        tasks=("SST-2",),
        epochs=1,
        length=16,
        finetune_seeds=2,
        frozen=1,
    )


def glue(folder: Path) -> Evaluator:
    corpus, tasks = text_file(folder), glue_folder(folder)
    settings = {**SMALL, "cache": folder / "cache"}
    return ms.GlueEvaluator(corpus, glue=tasks, tasks=("SST-2",), epochs=1, **settings)


def squad(folder: Path) -> Evaluator:
    path = folder / "squad.json"
    path.write_text(json.dumps(squad_json(30, 2, seed=0)), encoding="utf-8")
    settings = {**SMALL, "length": 24, "cache": folder / "cache"}
    return ms.SquadEvaluator(text_file(folder), path, epochs=1, **settings)


def swag(folder: Path) -> Evaluator:
    path = folder / "swag.jsonl"
    rows = swag_rows(60, seed=0)
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    settings = {**SMALL, "length": 24, "cache": folder / "cache"}
    return ms.SwagEvaluator(text_file(folder), path, epochs=1, **settings)


def causal(folder: Path) -> Evaluator:
    settings = {"length": 16, "vocabulary": 60, "size": "1x16x2", "held_out_sequences": 8}
    place = {"batch": 4, "steps": 6, "cache": folder / "cache"}
    return ms.CausalEvaluator(text_file(folder), **settings, **place)


def decoder(folder: Path) -> Evaluator:
    weights = tiny_decoder(folder / "decoder", list(WORDS))
    settings = {"length": 16, "held_out_sequences": 8, "kl": True}
    return ms.CausalEvaluator(text_file(folder), weights=weights, **settings, cache=folder)


def recovered(folder: Path) -> Evaluator:
    settings = {"adapt": "recover", "recover_tokens": 300, "batch": 4, "learn_from": "dense"}
    return replace(decoder(folder), kl=False, **settings)


def recall(folder: Path) -> Evaluator:
    task = ms.Recall(pairs=2, keys=4, values=4, middle=4)
    settings = {"size": "1x16x2", "held_out_sequences": 16, "batch": 4, "steps": 6}
    return ms.CausalEvaluator(task, adapt="none", kl=True, cache=folder / "cache", **settings)


def shared(folder: Path) -> Evaluator:
    return ms.SharedWeights(planted(folder), space, steps=4, folder=folder / "nets")


SMALL = dict(steps=6, size="nano", length=16, vocabulary=60, batch=4, held_out_sequences=8)
MAKERS: dict[str, Callable[[Path], Evaluator]] = {
    "toy": lambda folder: ToyEvaluator(),
    "planted": planted,
    "mlm": text,
    "pairs": pairs,
    "from weights": from_weights,
    "fine-tuning": finetuning,
    "glue": glue,
    "squad": squad,
    "swag": swag,
    "causal": causal,
    "decoder": decoder,
    "recovered": recovered,
    "recall": recall,
    "shared": shared,
    "cached": lambda folder: ms.Cached(text(folder), folder / "judged"),
    "cost": lambda folder: ms.CostEvaluator(length=48, layers=2, heads=2, block=16),
    "with_cost": lambda folder: ms.WithCost(planted(folder), latency=False, memory=True),
}
# Another seed changes nothing, or no score of so few rows
SEEDLESS = [MAKERS[name] for name in ("fine-tuning", "decoder", "shared", "cost")]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
class TestEvaluator:
    def test_stands_at_most_one_step_above_its_base(self, make, tmp_path):
        kinds = [kind.__module__ for kind in type(make(tmp_path)).__mro__]
        assert len([kind for kind in kinds if kind.startswith("masksearch.")]) <= 3

    def test_last_report_holds_the_objectives(self, make, tmp_path):
        evaluator = make(tmp_path)
        reports = list(evaluator(masks.star(), seed=0, workdir=tmp_path / "work"))
        steps = [report.step for report in reports]
        assert steps == sorted(steps)
        mask_measures = SPARSITIES | {"density", "block_density", "hops"}
        for objective in evaluator.objectives:
            assert objective.name in reports[-1].values or objective.name in mask_measures
            assert math.isfinite(objective.worst)
        assert all(math.isfinite(v) for report in reports for v in report.values.values())

    def test_better_is_a_higher_score_a_lower_loss_and_a_sparser_mask(self, make, tmp_path):
        objectives = make(tmp_path).objectives
        better, worse = (
            Record(
                number,
                "done",
                Evaluate(masks.star()),
                values={o.name: 0.5 + (sign if o.name in SCORES else -sign) for o in objectives},
            )
            for number, sign in enumerate((0.1, -0.1))
        )
        assert pareto([better, worse], objectives) == [better]

    def test_head_and_row_order_are_drawn_from_the_seed(self, make, tmp_path, monkeypatch):
        evaluator = make(tmp_path)
        if not hasattr(evaluator, "class_names"):
            pytest.skip("nothing is fine-tuned")
        heads, orders = [], []

        def no_training(head, batches, *args, **kwargs):
            orders.append({name: part.tolist() for name, part in next(batches(0)).items()})
            weights = dict(head.named_parameters())
            heads.append({n: w.tolist() for n, w in weights.items() if n[:8] != "encoder."})
            return iter(())

        monkeypatch.setattr("masksearch.evaluators.tuning.train", no_training)
        monkeypatch.setattr(type(evaluator), "scores", lambda *args: {})
        name = evaluator.downstream[0]
        shape = evaluator.shape
        size = (shape.layers, shape.heads, shape.length, shape.length)
        whole, scratch = masks.table(torch.ones(size, dtype=bool)), evaluator.corpus is not None
        for seed in (0, 0, 1):
            made = evaluator.text.model(0).encoder if scratch else evaluator.start.encoder()
            evaluator.adapted(made, name, whole, Checkpoints(tmp_path), seed=seed)
        first, again, other = heads
        assert first
        assert first == again
        drawn = {name for name, weight in first.items() if "weight" in name}
        assert drawn
        assert not any(first[name] == other[name] for name in drawn)
        assert orders[0] == orders[1] != orders[2]

    def test_runs_twice_alike_and_leaves_the_global_generator(self, make, tmp_path):
        evaluator = make(tmp_path)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = list(evaluator(masks.star(), seed=3, workdir=tmp_path / "a"))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert list(evaluator(masks.star(), seed=3, workdir=tmp_path / "b")) == first
        if make not in SEEDLESS:
            assert list(evaluator(masks.star(), seed=4, workdir=tmp_path / "c")) != first

    def test_survives_pickling_with_its_protocol(self, make, tmp_path):
        evaluator = make(tmp_path)
        twin = pickle.loads(pickle.dumps(evaluator))
        assert twin == evaluator
        assert twin.protocol == evaluator.protocol
        assert twin.shape == evaluator.shape
        assert len(pickle.dumps(evaluator)) < 20_000

    def test_closing_the_generator_stops_it(self, make, tmp_path):
        reports = make(tmp_path)(masks.star(), seed=0, workdir=tmp_path / "work")
        next(reports)
        reports.close()
        assert list(reports) == []

    def test_mask_of_another_shape_is_refused(self, make, tmp_path):
        evaluator = make(tmp_path)
        if isinstance(evaluator, ToyEvaluator):
            pytest.skip("the toy reads the sparsity only")
        wrong = masks.per_head([masks.full()] * (evaluator.shape.heads + 1))
        with pytest.raises(HeadCountError):
            list(evaluator(wrong, seed=0, workdir=tmp_path / "work"))

    def test_differentiable_offers_batches_with_a_loss(self, make, tmp_path):
        evaluator = make(tmp_path)
        if not evaluator.offers("differentiable"):
            pytest.skip("no gradients offered")
        offered = evaluator.differentiable(0)
        loss = offered.model(**next(offered.batches)).loss
        frozen = evaluator.weights_frozen
        assert loss.requires_grad != frozen  # what is attached there learns, and nothing else
        assert math.isfinite(loss.item())
        assert offered.held_out
