"""compare(front_of=): a search's front on fresh seeds, beside hand-designed and random masks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from optuna.trial import BaseTrial

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Objective, Report, Shape
from masksearch.errors import CandidateError
from masksearch.masks import Mask
from masksearch.masks.measure import effective_density

LENGTHS = {9: 3, 20: 5, 32: 2}


@dataclass(frozen=True)
class Landscape:
    """Truth: .8, less what is denser or sparser than it should be; and an offset is worth .05.

    A run adds normal noise of its mask and seed.
    """

    noise: float = 0.02
    dies_at: int = 10**9  # call from which on the process is interrupted
    calls: Counter[str] | None = None

    shape = Shape(32, 1, 2, lengths=LENGTHS)
    objectives = (Objective("score", "max", 0.5), Objective("effective_sparsity", "max", 0.0))
    protocol = "landscape"

    def truth(self, mask: Mask) -> float:
        density = effective_density(mask, self.shape)
        partner = bool(mask.dense(32)[0, 0].diagonal(7).all())
        return 0.8 - 0.1 * (1 - density) ** 4 + 0.05 * partner

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        if self.calls is not None:
            self.calls["all"] += 1
            if self.calls["all"] >= self.dies_at:
                raise KeyboardInterrupt
        noise = random.Random(f"{mask} {seed}").gauss(0, self.noise)
        yield Report(1, {"score": self.truth(mask) + noise})


def space(trial: BaseTrial) -> Mask:
    window = masks.window(trial.suggest_int("reach", 0, 12))
    return window | masks.offsets([trial.suggest_int("distance", 1, 15)])


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> ms.Study:
    folder = tmp_path_factory.mktemp("search")
    return ms.search(
        *(space, Landscape()), run=folder / "run", trials=16, strategy="random",
        baselines=ms.FAMILIES, progress=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def judged(study, tmp_path_factory) -> ms.Comparison:
    run = tmp_path_factory.mktemp("judged") / "run"
    return ms.compare({"dense": masks.full()}, Landscape(), run=run, front_of=study, progress=None)


def test_the_front_is_judged_beside_as_many_masks_of_its_densities(study, judged):
    kinds = Counter(entry.kind for entry in judged.entries.values())
    found = [e for e in judged.entries.values() if e.kind == "searched"]
    assert kinds == {
        "searched": len(found), "hand-designed": len(found), "control": len(found) + 1
    }  # fmt: skip
    records = {record.number: record for record in study.records()}
    shape = Landscape.shape
    for entry in found:
        number = int(entry.name.removeprefix("front #"))
        assert not records[number].origin.startswith("baseline:")
        assert judged.promised[entry.name] == records[number].values["score"]
        assert entry.fingerprint == records[number].fingerprint
        alike = judged.entries[f"random like {entry.name}"]
        density = effective_density(records[number].mask, shape)
        other = effective_density(masks.parse(alike.expression), shape)
        assert other == pytest.approx(density, abs=0.01)
    assert set(judged.found_with) >= {entry.name for entry in found}


def test_an_interrupted_comparison_of_fronts_goes_on(study, tmp_path):
    calls: Counter[str] = Counter()
    with pytest.raises(KeyboardInterrupt):
        ms.compare(
            *({}, Landscape(dies_at=12, calls=calls)), run=tmp_path, seeds=range(50, 53),
            front_of=study, progress=None,
        )  # fmt: skip
    calls.clear()
    judge = Landscape(calls=calls)
    whole = ms.compare({}, judge, run=tmp_path, seeds=range(50, 53), front_of=study, progress=None)
    prints = {entry.fingerprint for entry in whole.entries.values()}
    assert calls["all"] == 3 * len(prints) - 11
    assert all(len(entry.scores) == 3 for entry in whole.entries.values())
    stored = ms.Comparison.open(tmp_path)
    assert dict(stored.promised) == dict(whole.promised)
    assert {n: e.kind for n, e in stored.entries.items()} == {
        n: e.kind for n, e in whole.entries.items()
    }


def test_a_search_without_a_front_is_refused(tmp_path, study):
    empty = ms.search(
        *(space, Landscape()), run=tmp_path / "a", trials=0, baselines=ms.FAMILIES, progress=None
    )  # fmt: skip
    with pytest.raises(CandidateError, match="has no front to judge: none of its 6 trials"):
        ms.compare({}, Landscape(), run=tmp_path / "b", front_of=empty)
    with pytest.raises(CandidateError, match="'star' is the name of a mask"):
        ms.compare({"star": masks.window(2)}, Landscape(), run=tmp_path / "c", front_of=study)
    with pytest.raises(CandidateError, match="at least one mask"):
        ms.compare({}, Landscape(), run=tmp_path / "d")
