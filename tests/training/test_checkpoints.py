"""Checkpoints: what is saved comes back, damage is noticed, a full disk keeps the old ones."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masksearch.training.checkpoints import Checkpoints

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "count": torch.tensor(3),
    "none": torch.ones(0),
}


def test_nothing_saved_is_nothing_found(tmp_path):
    assert Checkpoints(tmp_path / "missing").load() is None


@given(
    steps=st.lists(st.integers(0, 10**6), min_size=1, max_size=6, unique=True),
    number=st.floats(allow_nan=False, allow_infinity=False),
)
def test_newest_step_comes_back_and_two_are_kept(tmp_path_factory, steps, number):
    kept = Checkpoints(tmp_path_factory.mktemp("run"))
    for step in sorted(steps):
        kept.save(step, {"step": torch.tensor([step])}, {"number": number})
    found = kept.load()
    assert (found.step, found.facts) == (max(steps), {"number": number})
    assert found.tensors["step"].item() == max(steps)
    assert len(kept.files()) == min(2, len(steps))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_every_type_and_layout_comes_back(tmp_path, dtype):
    value = torch.arange(12).reshape(3, 4).to(dtype).t()  # not contiguous
    Checkpoints(tmp_path).save(1, {"value": value, "empty": torch.ones(0)})
    found = Checkpoints(tmp_path).load()
    assert torch.equal(found.tensors["value"], value)
    assert found.tensors["value"].dtype == dtype


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_damaged_file_is_passed_over(tmp_path, damage, caplog):
    kept = Checkpoints(tmp_path)
    kept.save(1, TENSORS, {"at": 1})
    newest = kept.save(2, TENSORS, {"at": 2})
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-1] ^= 1
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray(b"not a checkpoint at all, but long enough to be taken for one")
    newest.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = kept.load()
    assert found.facts == {"at": 1}
    assert f"{newest} is damaged" in caplog.text
    kept.files()[1].write_bytes(b"")
    assert kept.load() is None


def test_clear_leaves_other_files_alone(tmp_path):
    (tmp_path / "gates.safetensors").write_bytes(b"x")
    kept = Checkpoints(tmp_path)
    kept.save(1, TENSORS)
    kept.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["gates.safetensors"]
