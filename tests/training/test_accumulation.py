"""One step's gradient in parts and on several processes: it equals that of the whole."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from distributed_job import case
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.training.accumulation import Accumulator, Group, group, join_processes
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import train


class Tagger(nn.Module):
    """Two heads on an embedding: a label for each token, and one for each row."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(7, 5, generator=draw, dtype=torch.float64))


def both(model: nn.Module, batch: Batch) -> Tensor:
    hidden = model.table[batch["input_ids"]]
    if "labels" not in batch:
        return hidden.square().mean()
    if batch["labels"].is_floating_point():
        return F.mse_loss(hidden.mean((1, 2)), batch["labels"])
    tokens = F.cross_entropy(hidden.flatten(0, 1), batch["labels"].flatten())
    if "next_label" not in batch:
        return tokens
    return torch.stack([tokens, F.cross_entropy(hidden.mean(1), batch["next_label"])])


def begun(model: nn.Module) -> None:
    model.zero_grad(set_to_none=True)


def drawn(rows: int, seed: int, kind: str) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (rows, 4), generator=draw)
    labels[torch.rand(rows, 4, generator=draw) < 0.6] = -100
    labels[0, 0] = 1
    batch = {"input_ids": torch.randint(0, 7, (rows, 4), generator=draw)}
    scores = torch.randint(-101, -98, (rows,), generator=draw).double()  # no classes
    pair = torch.randint(0, 5, (rows,), generator=draw)
    return (
        batch
        | {
            "rows": {},
            "scores": {"labels": scores},
            "tokens": {"labels": labels},
            "pairs": {"labels": labels, "next_label": pair},
        }[kind]
    )


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    rows=st.none() | st.integers(1, 5),
    kind=st.sampled_from(["rows", "scores", "tokens", "pairs"]),
    seed=st.integers(0, 99),
)
def test_parts_equal_one_large_batch(sizes, rows, kind, seed):
    """Also where parts score different numbers of labels, or a part none at all."""
    batches = [drawn(size, seed + number, kind) for number, size in enumerate(sizes)]
    whole = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
    one, other = Tagger(), Tagger()
    expected = both(one, whole).sum()
    expected.backward()
    value = Accumulator(rows).gradients(other, batches, both, lambda: begun(other))
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(other.table.grad, one.table.grad, rtol=1e-10, atol=1e-14)


# -- memory that runs out ----------------------------------------------------------------------
def greedy(limit: int, error: RuntimeError | None = None):
    """A loss that needs memory for `limit` rows at most."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = both(model, batch)
        if len(batch["input_ids"]) > limit:
            (value.sum() * 100).backward()  # half-done work is left behind
            raise error or RuntimeError("can't allocate memory: you tried to allocate")
        return value

    return loss


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_out_of_memory_halves_the_rows_once_and_for_all(limit):
    batch, plain, model = drawn(12, 3, "pairs"), Tagger(), Tagger()
    expected = both(plain, batch).sum()
    expected.backward()
    accumulator = Accumulator()

    def gradients() -> Tensor:
        return accumulator.gradients(model, [batch], greedy(limit), lambda: begun(model))

    with pytest.warns(UserWarning, match="out of memory with 12 rows at once") as caught:
        value = gradients()
    assert len(caught) == 1
    assert accumulator.rows <= limit
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(model.table.grad, plain.table.grad, rtol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients()


def test_a_single_row_that_does_not_fit_is_the_error():
    model = Tagger()
    with pytest.raises(RuntimeError, match="can't allocate"):
        Accumulator().gradients(model, [drawn(4, 0, "tokens")], greedy(0), lambda: begun(model))


def test_memory_that_runs_out_is_known_in_all_its_forms():
    model, rows = Tagger(), [drawn(4, 0, "tokens")]
    for error in [  # the first of torch's allocator, the second where the driver itself refuses
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be .."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ]:
        with pytest.warns(UserWarning, match="out of memory with 4 rows at once"):
            Accumulator().gradients(model, rows, greedy(2, error), lambda: begun(model))
    for error in [
        RuntimeError("shapes do not fit"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(..)`"),
        RuntimeError("Triton Error [CUDA]: out of resource: shared memory, Required: 262144"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    ]:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            Accumulator().gradients(model, rows, greedy(2, error), lambda: begun(model))


def test_the_cpu_allocator_says_what_is_looked_for():
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if len(batch["input_ids"]) > 2:
            torch.empty(2**50)
        return both(model, batch)

    model = Tagger()
    with pytest.warns(UserWarning, match="out of memory with 4 rows at once"):
        Accumulator().gradients(model, [drawn(4, 0, "tokens")], loss, lambda: begun(model))


# -- several processes --------------------------------------------------------------------------
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


@pytest.mark.slow
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
