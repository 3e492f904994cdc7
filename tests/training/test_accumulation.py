"""One step's gradient in parts: it equals that of the whole."""

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.training.accumulation import Accumulator


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
