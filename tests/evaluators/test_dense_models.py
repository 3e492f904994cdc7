"""Where dense models are kept, and who trains them."""

import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from masksearch.errors import DataError, NonFiniteLossError, SearchError
from masksearch.training.checkpoints import Checkpoints, provide_dense


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
