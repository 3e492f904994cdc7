"""The files of dense models: named after all that their weights depend on, and nothing else."""

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from masksearch.evaluators.dense_models import DenseModels, DenseRecipe
from masksearch.evaluators.tuning import TaskTraining
from masksearch.training.parts import MachineConfig

RECIPE = DenseRecipe(
    task="RTE", rows="r", unit=None, seed=1, task_seed=7, order=3, noise=4, epochs=2, steps=6,
    rate=5e-5, dropout=None,
)  # fmt: skip
HEAD = nn.Linear(3, 2)


def models(digest: str = "d", batch: int = 8, frozen: Any = None, **how: Any) -> DenseModels:
    start: Any = SimpleNamespace(digest=digest)
    machine = MachineConfig(device="cpu", **({"precision": "float32"} | how))
    trainer = TaskTraining(lambda *given: {}, batch, frozen, machine, torch.device("cpu"))
    return DenseModels(start, trainer, Path("kept"), ("RTE",), 1)


def test_names_are_as_recorded() -> None:
    """SOURCE: the formula of version 0.2.0; files that were kept then are found again."""
    tuned = replace(RECIPE, rows=None)
    recorded = {
        "RTE-d56e06c740366272": RECIPE,
        "49266a09675f351c": tuned,
        "559b192124288527": replace(tuned, unit=(1.5, 2.0)),
    }
    for name, recipe in recorded.items():
        assert models().path(recipe, HEAD) == Path("kept") / f"{name}.safetensors"


@pytest.mark.parametrize("name", [each.name for each in fields(DenseRecipe)])
def test_a_key_changes_with_what_the_weights_depend_on(name: str) -> None:
    """Unit, order, noise and steps follow from the rows, the seeds, the epochs and the batch."""
    other = {"task": "SST-2", "rows": "s", "rate": 1e-3, "dropout": 0.1, "unit": (0.0, 1.0)}
    changed = replace(RECIPE, **{name: other.get(name, 99)})
    follows = name in ("task", "unit", "order", "noise", "steps")
    assert (models().key(changed, HEAD) == models().key(RECIPE, HEAD)) == follows
    assert (models().path(changed, HEAD) == models().path(RECIPE, HEAD)) == (
        follows and name != "task"
    )


@pytest.mark.parametrize(
    "other", [{"digest": "e"}, {"batch": 16}, {"frozen": 1}, {"precision": "bfloat16"}], ids=str
)
def test_a_key_changes_with_checkpoint_and_trainer(other: dict[str, Any]) -> None:
    assert models(**other).key(RECIPE, HEAD) != models().key(RECIPE, HEAD)
    assert models().key(RECIPE, nn.Linear(3, 3)) != models().key(RECIPE, HEAD)
