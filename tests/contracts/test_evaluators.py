"""Every evaluator keeps the same promises, at sizes that take a second."""

import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import split_evaluators as split
import torch
from tiny_checkpoint import tiny_checkpoint
from toy import ToyEvaluator
from toy_words import WORDS

import masksearch as ms
from masksearch import masks
from masksearch.analysis.pareto import pareto
from masksearch.contracts import Evaluate, Evaluator, OneShot, Proposal, Record
from masksearch.evaluators.wrappers import Cached
from masksearch.executors.job import JobRun
from masksearch.testing import EvaluatorContract
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import follow_trainings

SPARSITIES = {"sparsity", "effective_sparsity"}
SCORES = {
    "score",
    "glue",
    "f1",
    "accuracy",
    "spearman",
} | SPARSITIES  # of everything else, less is better


def pairs(folder: Path) -> Evaluator:
    return replace(split.pairs(folder), whole_words=True, dropout=0.1)


def from_weights(folder: Path) -> Evaluator:
    return split.text(folder, weights=tiny_checkpoint(folder / "checkpoint", WORDS))


def finetuning(folder: Path) -> Evaluator:
    weights = tiny_checkpoint(folder / "checkpoint", WORDS)
    settings = {"tasks": ("SST-2",), "epochs": 1, "length": 16, "finetune_seeds": 2, "frozen": 1}
    return ms.GlueEvaluator(None, split.write_glue(folder), weights=weights, **settings)


def recovered(folder: Path) -> Evaluator:
    settings = {"adapt": "recover", "recover_tokens": 300, "learn_from": "dense"}
    return replace(split.decoder(folder), **settings)


MAKERS: dict[str, Callable[[Path], Evaluator]] = {
    "toy": lambda folder: ToyEvaluator(),
    "planted": split.planted,
    "mlm": split.text,
    "pairs": pairs,
    "from weights": from_weights,
    "fine-tuning": finetuning,
    "glue": split.glue,
    "squad": split.squad,
    "swag": lambda folder: replace(split.swag(folder), finetune_batch=4),
    "causal": split.causal,
    "decoder": lambda folder: replace(split.decoder(folder), kl=True),
    "recovered": recovered,
    "recall": lambda folder: replace(split.recall(folder), adapt="none", kl=True),
    "embedding": split.embedding,
    "cached": lambda folder: Cached(split.text(folder), folder / "judged"),
}
# Another seed changes nothing, or no score of so few rows
SEEDLESS = [MAKERS[name] for name in ("fine-tuning", "decoder", "embedding")]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
class TestEvaluator(EvaluatorContract):
    def test_stands_at_most_one_step_above_its_base(self, make, tmp_path):
        """At most one class stands between an evaluator and `Evaluator`."""
        kinds = [kind for kind in type(make(tmp_path)).__mro__ if issubclass(kind, Evaluator)]
        assert kinds.pop() is Evaluator
        assert len(kinds) <= 2

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

    @pytest.mark.slow
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
            if scratch:
                made = evaluator.pretrainer.build_model(0).encoder
            else:
                made = evaluator.start.encoder()
            evaluator.under(made, name, whole, Checkpoints(tmp_path), seed)
        first, again, other = heads
        assert first
        assert first == again
        drawn = {name for name, weight in first.items() if "weight" in name}
        assert drawn
        assert not any(first[name] == other[name] for name in drawn)
        assert orders[0] == orders[1] != orders[2]

    @pytest.mark.slow
    def test_ends_with_its_objectives_alike_twice_and_leaves_the_global_generator(
        self, make, tmp_path
    ):
        evaluator = make(tmp_path)
        super().test_ends_with_its_objectives_alike_twice_and_leaves_the_global_generator(
            lambda folder: evaluator, tmp_path
        )
        first = list(evaluator(masks.star(), seed=3, workdir=tmp_path / "a"))
        if hasattr(evaluator, "class_names"):  # what is finished is given again, not trained
            with follow_trainings(lambda step, config: pytest.fail("trained again")):
                assert list(evaluator(masks.star(), seed=3, workdir=tmp_path / "b")) == first
        if make not in SEEDLESS:
            assert list(evaluator(masks.star(), seed=4, workdir=tmp_path / "c")) != first

    def test_survives_pickling_with_its_protocol(self, make, tmp_path):
        evaluator = make(tmp_path)
        super().test_survives_pickling_with_its_protocol(lambda folder: evaluator, tmp_path)
        for other in (pickle.loads(pickle.dumps(evaluator)), evaluator.packed()):
            assert (type(other), repr(other)) == (type(evaluator), repr(evaluator))
            assert (other, hash(other)) == (evaluator, hash(evaluator))
        assert len(pickle.dumps(evaluator)) < 20_000

    @pytest.mark.slow
    def test_closing_the_generator_stops_it(self, make, tmp_path):
        super().test_closing_the_generator_stops_it(make, tmp_path)

    def test_masks_that_do_not_fit_are_refused(self, make, tmp_path):
        if make is MAKERS["toy"]:
            pytest.skip("the toy reads the sparsity only")
        super().test_masks_that_do_not_fit_are_refused(make, tmp_path)

    @pytest.mark.slow
    def test_differentiable_offers_batches_with_a_loss(self, make, tmp_path):
        evaluator = make(tmp_path)
        if not evaluator.offers("differentiable"):
            pytest.skip("no gradients offered")
        offered, again, other = map(evaluator.differentiable, (0, 0, 1))
        for one, twin in zip(offered.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(one, twin)
        batch, same, others = (next(source.batches) for source in (offered, again, other))
        assert torch.equal(batch["input_ids"], same["input_ids"])
        assert not torch.equal(batch["input_ids"], others["input_ids"])
        loss = offered.model(**batch).loss
        frozen = evaluator.weights_frozen
        assert loss.requires_grad != frozen  # what is attached there learns, and nothing else
        assert math.isfinite(loss.item())
        assert offered.held_out


def outcome(evaluator: Evaluator, workdir: Path) -> dict[str, Any]:
    """Everything that must not depend on where an evaluator runs: its description, its reports
    under a mask, and a one-shot job's."""
    job = Proposal(0, OneShot({}, {"steps": 4, "density": 0.3}), seed=1)
    record = JobRun(job, evaluator, workdir).run()
    return {
        "description": (evaluator.shape, evaluator.objectives, evaluator.protocol),
        "reports": list(evaluator(masks.star(), seed=3, workdir=workdir)),
        "one-shot": (record.status, record.curve, record.error),
    }


ELSEWHERE = """
import cloudpickle, pickle, torch
from pathlib import Path
from test_evaluators import outcome
torch.set_num_threads(1)
evaluator = cloudpickle.loads(Path("payload").read_bytes())
Path("result").write_bytes(pickle.dumps(outcome(evaluator, Path("work"))))
"""


@pytest.mark.nightly  # continuous integration runs it
@pytest.mark.filterwarnings("ignore:DAM")  # four steps teach no gate
@pytest.mark.parametrize(
    "name", ["mlm", "from weights", "fine-tuning", "glue", "squad", "swag", "embedding"]
)
def test_packed_is_the_same_where_no_file_is(name, tmp_path):
    """In a process of its own, in an empty folder, with no home and no cache."""
    data, empty = tmp_path / "data", tmp_path / "empty"
    data.mkdir()
    empty.mkdir()
    evaluator = MAKERS[name](data)
    expected, packed = outcome(evaluator, tmp_path / "here"), evaluator.packed()
    for path in data.iterdir():
        if path.name not in ("checkpoint", "embedder"):  # which every machine sees
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (empty / "payload").write_bytes(cloudpickle.dumps(packed))
    settings = {**os.environ, "HOME": str(empty), "HF_HOME": str(empty / "hub")}
    settings["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    settings.pop("MASKSEARCH_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=empty, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert expected["one-shot"][::2] == ("done", "")
    assert pickle.loads((empty / "result").read_bytes()) == expected
