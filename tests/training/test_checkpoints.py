"""Checkpoints: what is saved comes back, damage is noticed; dense models: kept, trained once."""

import logging
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from masksearch.errors import DataError, NonFiniteLossError, SearchError
from masksearch.training.checkpoints import Checkpoints, provide_dense

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
    name=st.sampled_from(["checkpoint", "reviews[v2].0", "a*?"]),
)
def test_newest_step_comes_back_and_two_are_kept(tmp_path_factory, steps, number, name):
    kept = Checkpoints(tmp_path_factory.mktemp("run"), name)
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


def test_damaged_files_of_later_steps_do_not_outlive_a_new_one(tmp_path):
    kept = Checkpoints(tmp_path)
    for step in (400, 500):
        kept.save(step, TENSORS).write_bytes(b"x")
    assert kept.load() is None
    kept.save(50, TENSORS)
    assert kept.load().step == 50


# -- dense models, where they are kept and who trains them --------------------------------------
def fill(model: nn.Linear, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


def test_of_several_at_once_one_trains_and_all_get_its_weights(tmp_path: Path) -> None:
    start, trained = threading.Barrier(4), list[int]()
    models = [nn.Linear(2, 2, bias=False) for _ in range(4)]

    def work(number: int) -> None:
        def finetune(kept: Checkpoints) -> None:
            time.sleep(0.1)
            trained.append(number)
            fill(models[number], 1.0 + number)

        start.wait()
        provide_dense(models[number], tmp_path / "a" / "x.safetensors", "key", finetune)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first,) = trained
    for model in models:
        torch.testing.assert_close(model.weight, torch.full((2, 2), 1.0 + first))


def test_a_failed_training_leaves_nothing_and_frees_the_lock(tmp_path: Path) -> None:
    model, path = nn.Linear(2, 2), tmp_path / "x.safetensors"

    def fail(kept: Checkpoints) -> None:
        raise NonFiniteLossError("the loss became nan")

    with pytest.raises(NonFiniteLossError):
        provide_dense(model, path, "key", fail)
    assert not path.exists()
    provide_dense(model, path, "key", lambda kept: None)
    assert path.is_file()


@pytest.mark.parametrize("damage", ["cut", "nan", "shape", "name"])
def test_what_is_damaged_is_trained_again(tmp_path: Path, damage: str) -> None:
    model, path = nn.Linear(2, 2), tmp_path / "x.safetensors"
    provide_dense(model, path, "key", lambda kept: fill(model, 2.0))
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        weights["weight"] = torch.full((2, 2), torch.nan) if damage == "nan" else torch.ones(2, 3)
        if damage == "name":
            weights["other"] = weights.pop("weight")
        save_file(weights, path, {"key": "key"})
    with pytest.warns(UserWarning, match="is damaged"):
        provide_dense(model, path, "key", lambda kept: fill(model, 3.0))
    again = nn.Linear(2, 2)
    provide_dense(again, path, "key", lambda kept: fill(again, 4.0))
    assert float(again.weight[0, 0].detach()) == 3.0


def test_what_is_kept_under_another_key_is_refused(tmp_path: Path) -> None:
    model, path = nn.Linear(2, 2), tmp_path / "x.safetensors"
    provide_dense(model, path, "key", lambda kept: None)
    with pytest.raises(DataError, match=r"another protocol \(key, not other\); remove it"):
        provide_dense(model, path, "other", lambda kept: None)


def test_a_folder_that_cannot_be_made_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x.safetensors"
    with pytest.raises(SearchError, match=r"cannot keep a dense model .* MASKSEARCH_CACHE"):
        provide_dense(nn.Linear(2, 2), path, "key", lambda kept: None)
