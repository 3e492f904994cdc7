"""Training on several processes: the shares in this process, whole trainings under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from distributed_job import case
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.training.accumulation import Accumulator, Group, group, join_processes
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import train

JOB = Path(__file__).with_name("distributed_job.py")
CPU = torch.device("cpu")


def model_loss(model, batch):
    return model(**batch).loss


# -- shares ------------------------------------------------------------------------------------
@given(rows=st.integers(0, 20), size=st.integers(1, 6))
def test_shares_are_a_partition_of_even_sizes(rows, size):
    batch = {"input_ids": torch.arange(rows * 2).view(rows, 2), "labels": torch.arange(rows)}
    parts = [Group(rank, size).share(batch) for rank in range(size)]
    found = torch.cat([part["labels"] for part in parts])
    assert sorted(found.tolist()) == list(range(rows))
    for part in parts:
        assert torch.equal(part["input_ids"], batch["input_ids"][part["labels"]])
    counts = [len(part["labels"]) for part in parts]
    assert max(counts) - min(counts) <= 1


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 99),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    processes=st.integers(2, 4),
    rows=st.none() | st.integers(1, 2),
)
def test_parts_of_all_processes_add_up_to_the_whole(seed, sizes, processes, rows):
    """Loss and gradient, whatever the batches, also where a process has no row or no label."""
    drawn = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        ids = torch.randint(3, 20, (size, 6), generator=drawn)
        labels = torch.where(torch.rand(ids.shape, generator=drawn) < 0.2, ids, -100)
        batches.append({"input_ids": ids, "labels": labels})
    batches[0]["labels"][0, 0] = 3
    model = MaskedLanguageModel(encoder("1x8x2", 20, 6, seed=0), seed=0)

    def taken(accumulator: Accumulator) -> tuple[float, torch.Tensor]:
        value = accumulator.gradients(
            model, batches, model_loss, lambda: model.zero_grad(set_to_none=True)
        )
        parts = [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in model.parameters()
        ]
        return float(value), torch.cat(parts)

    whole, gradient = taken(Accumulator())
    found = [taken(Accumulator(rows, Group(rank, processes))) for rank in range(processes)]
    assert sum(value for value, _ in found) == pytest.approx(whole, abs=1e-5)
    assert torch.allclose(torch.stack([part for _, part in found]).sum(0), gradient, atol=1e-5)


def test_a_step_without_any_label_is_refused_on_every_process():
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.int64)}
    batch["labels"] = torch.full((2, 4), -100)
    model = MaskedLanguageModel(encoder("1x8x2", 20, 4, seed=0), seed=0)
    for rank in range(3):
        with pytest.raises(ValueError, match="no label of the batch is scored"):
            Accumulator(group=Group(rank, 3)).gradients(
                model, [batch], model_loss, model.zero_grad
            )


# -- messages ----------------------------------------------------------------------------------
def test_alone_there_is_nothing_to_join(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with join_processes() as alone:
        assert alone == Group(0, 1) == group()
        assert alone.first
        assert not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "4")  # of a job scheduler; nobody gave this process a rank
    with join_processes() as alone:
        assert alone == Group(0, 1)


def test_a_group_of_one_leaves_gradients_alone(one_process):
    layer = nn.Linear(2, 2)
    group().sum_gradients(layer.parameters(), CPU)
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert group().set_anywhere([True, False], CPU) == [True, False]
    group().check_same_step(3, CPU)


def test_messages_of_several_types_change_nothing_with_one_sender(one_process):
    """The sum over one process, sent as two would: values, types and missing gradients stay."""
    made = [
        nn.Parameter(torch.randn(n, 3).to(d))
        for n, d in (
            (1, torch.float32),
            (4, torch.float64),
            (2, torch.bfloat16),
            (5, torch.float32),
        )
    ]
    for parameter in made[:3]:
        parameter.grad = torch.randn_like(parameter)
    before = [parameter.grad.clone() for parameter in made[:3]]
    two = Group(0, 2)
    two.sum_gradients(made, CPU)
    for parameter, expected in zip(made, before, strict=False):
        assert parameter.grad.dtype == expected.dtype
        assert torch.equal(parameter.grad, expected)
    assert made[3].grad is None  # no process has reached it
    assert two.set_anywhere([True, False, True], CPU) == [True, False, True]
    two.check_same_step(3, CPU)


def test_only_the_first_process_clears_checkpoints(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    kept.save(1, {"a": torch.ones(2)})
    monkeypatch.setattr("masksearch.training.checkpoints.group", lambda: Group(1, 2))
    kept.clear()
    assert len(kept.files()) == 1
    monkeypatch.setattr("masksearch.training.checkpoints.group", lambda: Group(0, 2))
    kept.clear()
    assert not kept.files()


# -- under torchrun ----------------------------------------------------------------------------
def launched(folder: Path, names: str, processes: int) -> subprocess.CompletedProcess:
    """The trainings on that many processes; 1 = without torchrun."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(JOB.parents[2])}
    for variable in ("RANK", "WORLD_SIZE"):
        environment.pop(variable, None)
    return subprocess.run(
        [sys.executable, *(start if processes > 1 else []), JOB, names, folder],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


def outcome(folder: Path, rank: int = 0) -> tuple[dict, dict]:
    """What that process has written: facts, weights."""
    facts = json.loads((folder / f"{rank}.json").read_text())
    weights = load_file(folder / f"{rank}.safetensors")
    return facts, {name.removeprefix("model."): value for name, value in weights.items()}


def check_alike(one: dict, other: dict) -> None:
    """Two sets of weights are equal but for rounding. The keys' bias is left out: softmax does
    not see it, so its gradient is rounding alone, which Adam blows up."""
    for name in one:
        if "key.bias" not in name:
            assert torch.allclose(one[name], other[name], atol=1e-4), name


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Folder of the trainings of one process."""
    folder = tmp_path_factory.mktemp("one")
    found = launched(folder, "plain,micro,mask,classes,lamb", 1)
    assert found.returncode == 0, found.stderr
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of the trainings of two processes, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    found = launched(folder, "plain,micro,mask,classes,lamb,memory", 2)
    assert found.returncode == 0, found.stderr
    return folder, found.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["plain", "micro", "mask", "classes", "lamb", "memory"])
def test_two_processes_train_like_one(one, two, name):
    folder, said = two
    expected, weights = outcome(one / ("plain" if name == "memory" else name))
    (first, mine), (second, theirs) = (outcome(folder / name, rank) for rank in (0, 1))
    assert (expected["size"], first["size"]) == (1, 2)
    assert first["losses"] == second["losses"]
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    for (step, loss), (number, other) in zip(first["losses"], expected["losses"], strict=True):
        assert step == number
        assert loss == pytest.approx(other, abs=1e-5)
    check_alike(mine, weights)
    assert name != "memory" or "computed in parts of 2 rows" in said


@pytest.mark.nightly
def test_a_killed_run_goes_on_with_another_number_of_processes(one, tmp_path):
    killed = launched(tmp_path, "killed", 2)
    assert killed.returncode != 0
    assert not (tmp_path / "killed" / "0.json").exists()
    again = launched(tmp_path, "killed", 3)
    assert again.returncode == 0, again.stderr
    expected, weights = outcome(one / "plain")
    facts, mine = outcome(tmp_path / "killed")
    assert facts["size"] == 3
    first = facts["losses"][0][0]
    assert first == 7  # the kill came before the seventh step's checkpoint
    for (step, loss), (number, other) in zip(
        facts["losses"], expected["losses"][first - 1 :], strict=True
    ):
        assert step == number
        assert loss == pytest.approx(other, abs=1e-5)
    check_alike(mine, weights)
    assert not list((tmp_path / "killed" / "kept").iterdir())


@pytest.mark.nightly
def test_what_goes_wrong_on_one_process_ends_all(tmp_path):
    nan = launched(tmp_path, "nan", 2)
    assert nan.returncode != 0
    assert "NonFiniteLossError: the loss became nan at step 4 of 12" in nan.stderr
    error = launched(tmp_path, "error", 2)
    assert error.returncode != 0
    assert "this process alone has failed" in error.stderr


@pytest.mark.nightly
def test_processes_with_folders_of_their_own_are_told_apart(tmp_path):
    model, batches, config = case("plain")
    kept = Checkpoints(tmp_path / "apart" / "0", seconds=0)
    steps = train(model, batches, config, checkpoints=kept)
    for _ in range(4):
        next(steps)
    steps.close()
    both = launched(tmp_path, "apart", 2)
    assert both.returncode != 0
    assert "the 2 processes go on from different steps (0 to 3)" in both.stderr
