"""Which trial sees which card, on machines that only say that they have some."""

import re
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pytest
import torch
from ray_fixtures import SeesCards, begin_ray, listed
from toy import PlainTrials

from masksearch import Local, RayTune
from masksearch.errors import SearchError
from masksearch.executors.worker import TrialRunner, WorkerConfig

EIGHT = [f"GPU-{letter}" for letter in "abcdefgh"]


def cards_seen(executor, folder: Path, count: int, **settings) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` was in every trial."""
    diary = folder / "diary"
    diary.mkdir()
    work = PlainTrials(listed(count), SeesCards(str(diary), **settings), folder)
    executor.run(work)
    assert len(work.records) == count
    return [(diary / str(number)).read_text() for number in range(count)]


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one of so many cards, of the names that the environment gives them."""

    def make(count: int, names: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if names is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)

    return make


def test_slots_are_dealt_out_over_the_cards(machine):
    for count, names, settings, dealt in [
        (8, ",".join(EIGHT), {"slots": 8, "gpus": 1}, EIGHT),
        (8, None, {"slots": 2, "gpus": 1}, ["0", "1"]),
        (2, "5, 7", {"slots": 8, "gpus": 0.25}, ["5", "7"] * 4),
        (8, None, {"slots": 4, "gpus": 0.25}, ["0", "1", "2", "3"]),
        (8, None, {"slots": 2, "gpus": 3}, ["0,1,2", "3,4,5"]),
        (1, "0,-1,1", {"slots": 1, "gpus": 1}, ["0"]),
        (8, None, {"slots": 3, "gpus": 0}, ["", "", ""]),
        (8, None, {"slots": 3}, []),
    ]:
        machine(count, names)
        assert Local(**settings).deal_cards() == dealt, settings


def test_slots_that_the_cards_do_not_hold_are_refused_at_once(machine):
    for count, names, settings, message in [
        (8, None, {"slots": 9, "gpus": 1}, "slots=9 of gpus=1 .* than the 8 .* hold 8; take"),
        (2, None, {"slots": 9, "gpus": 0.25}, "than the 2 that this process sees, which hold 8"),
        (8, None, {"slots": 3, "gpus": 3}, "which hold 2; take fewer slots"),
        (0, None, {"gpus": 1}, "the 0 that this process sees, .* or gpus=0 for the CPU"),
        (0, "", {"gpus": 1}, "the 0 that this process sees"),
        (1, "0,9", {"gpus": 1}, "=0,9 names 2 cards, and torch finds the first 1; name those"),
        (8, None, {"gpus": 1.5}, "0, a share of a card such as 0.25, or a whole number of cards"),
        (8, None, {"gpus": -1}, "got -1"),
        (8, None, {"gpus": float("nan")}, "got nan"),
    ]:
        machine(count, names)
        with pytest.raises(ValueError, match=message) as caught:
            Local(**settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=re.escape("whole number of cards, got 1.5")):
        RayTune(resources={"cpu": 1, "gpu": 1.5})


CONTEXT = 543 * 2**20  # bytes that a process held of a card beside its tensors (pytorch#81257)


@pytest.fixture
def limits(monkeypatch):
    """The part of a card's memory that a worker with such a share of it limits itself to."""

    def of(share: float | None, total: float) -> list[float]:
        parts: list[float] = []
        card = SimpleNamespace(total_memory=int(total))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", parts.append)
        judge = cloudpickle.dumps(SeesCards(""))
        TrialRunner(WorkerConfig(judge, None, gpu=share)).load_evaluator()
        return parts

    return of


def test_shares_and_contexts_fill_a_card_at_most(limits):
    for share, trials in [(0.5, 2), (0.25, 4), (0.3, 3), (0.1, 10), (0.99, 1)]:
        for total in (16e9, 80e9):
            [part] = limits(share, total)
            assert trials * (part * total + CONTEXT) + CONTEXT <= total
            assert part > 0.55 * share
    assert limits(1, 80e9) == limits(None, 80e9) == []
    with pytest.raises(SearchError, match="puts 20 trials on a card of 8 GB"):
        limits(0.05, 8e9)


@pytest.mark.slow
def test_eight_local_slots_see_eight_cards(machine, tmp_path):
    machine(8, ",".join(EIGHT))
    seen = cards_seen(Local(slots=8, gpus=1), tmp_path, 8, together=8)
    assert sorted(seen) == EIGHT


@pytest.mark.slow
def test_a_worker_takes_the_card_of_the_one_before(machine, tmp_path):
    machine(2, "GPU-a,GPU-b")
    broken = {number: "raise" for number in range(4)}
    seen = cards_seen(Local(slots=2, gpus=1), tmp_path, 6, together=2, how=broken)
    assert {*seen} == {"GPU-a", "GPU-b"}


@pytest.mark.slow
def test_local_slots_without_a_share_are_spoken_of(machine, tmp_path):
    machine(8)
    with pytest.warns(UserWarning, match="all 2 slots take the first of 8 cards; --gpus 1 gives"):
        assert cards_seen(Local(slots=2), tmp_path, 2) == ["all", "all"]


@pytest.fixture(scope="module")
def eight():
    """A Ray of two CPUs that declares eight cards, which it does not have."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        begin_ray(num_gpus=8)
    yield ray
    ray.shutdown()


@pytest.mark.ray
def test_ray_trials_see_the_cards_that_they_asked_for(eight, tmp_path):
    executor = RayTune(slots=2, resources={"cpu": 1, "gpu": 4})
    first, second = cards_seen(executor, tmp_path, 2, together=2)
    assert sorted(first.split(",") + second.split(",")) == [*"01234567"]


@pytest.mark.ray
def test_ray_trials_without_a_share_see_no_card(eight, tmp_path):
    with pytest.warns(UserWarning, match="sees one of the 8 cards; --gpus 1 gives") as said:
        assert cards_seen(RayTune(slots=2), tmp_path, 2) == ["", ""]
    assert len([each for each in said if "cards" in str(each.message)]) == 1


@pytest.mark.ray
def test_more_ray_slots_than_shares_are_spoken_of(eight, tmp_path):
    executor = RayTune(slots=2, resources={"cpu": 0.1, "gpu": 8})
    with pytest.warns(UserWarning, match="slots = 2 of .* and there is room for 1 now"):
        assert cards_seen(executor, tmp_path, 2) == ["0,1,2,3,4,5,6,7"] * 2
