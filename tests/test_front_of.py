"""compare(front_of=): a search's front on fresh seeds, beside hand-designed, scrambled masks."""

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from optuna.trial import BaseTrial

import masksearch as ms
from masksearch import Mask, masks
from masksearch.analysis.fronts import gains_by_rows
from masksearch.analysis.pareto import hypervolume
from masksearch.analysis.row_scores import RowScores
from masksearch.contracts import Evaluator, Objective, Report, Shape
from masksearch.errors import CandidateError
from masksearch.masks.measure import effective_density
from masksearch.report.fronts import compared_points

pytestmark = pytest.mark.slow  # they share a run that takes seconds

LENGTHS = {9: 3, 20: 5, 32: 2}


@dataclass(frozen=True)
class Landscape(Evaluator):
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
        storage=InMemoryStorage(), baselines=ms.masks.FAMILIES, progress=None,
    )  # fmt: skip


def judge_front(study: ms.Study, judge: Landscape, run: Path, **more: Any) -> ms.Comparison:
    """The front of a study on fresh seeds, in memory."""
    how = {"storage": InMemoryStorage(), "progress": None} | more
    return ms.compare({}, judge, run=run, front_of=study, **how)


@pytest.fixture(scope="module")
def judged(study, tmp_path_factory) -> ms.Comparison:
    run = tmp_path_factory.mktemp("judged") / "run"
    return ms.compare({"dense": masks.full()}, Landscape(), run=run, front_of=study, progress=None)


def test_the_front_is_judged_beside_as_many_masks_of_its_densities(study, judged):
    kinds = Counter(entry.kind for entry in judged.entries.values())
    found = [e for e in judged.entries.values() if e.kind == "searched"]
    assert kinds == {
        "searched": len(found), "hand-designed": len(found), "control": 2 * len(found) + 1
    }  # fmt: skip
    records = {record.number: record for record in study.records()}
    shape = Landscape.shape
    for entry in found:
        number = int(entry.name.removeprefix("front #"))
        assert records[number].role != "baseline"
        assert judged.promised[entry.name] == records[number].values["score"]
        assert entry.fingerprint == records[number].fingerprint
        density = effective_density(records[number].mask, shape)
        for end in ("", " + first key"):
            alike = judged.entries[f"scrambled {entry.name}{end}"]
            other = effective_density(masks.parse(alike.expression), shape)
            assert other == pytest.approx(density, abs=0.01)
    assert set(judged.found_with) >= {entry.name for entry in found}


@pytest.mark.nightly
def test_an_interrupted_comparison_of_fronts_goes_on(study, tmp_path):
    calls: Counter[str] = Counter()
    told = {"seeds": range(50, 53), "executor": ms.Local(isolate=False), "storage": None}
    with pytest.raises(KeyboardInterrupt):
        judge_front(study, Landscape(dies_at=12, calls=calls), tmp_path, **told)
    calls.clear()
    whole = judge_front(study, Landscape(calls=calls), tmp_path, **told)
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
        *(space, Landscape()), run=tmp_path / "a", trials=0, baselines=ms.masks.FAMILIES,
        storage=InMemoryStorage(), progress=None,
    )  # fmt: skip
    with pytest.raises(CandidateError, match="has no front to judge: none of its 6 trials"):
        ms.compare({}, Landscape(), run=tmp_path / "b", front_of=empty)
    with pytest.raises(CandidateError, match="'star' is the name of a mask"):
        ms.compare({"star": masks.window(2)}, Landscape(), run=tmp_path / "c", front_of=study)
    with pytest.raises(CandidateError, match="at least one mask"):
        ms.compare({}, Landscape(), run=tmp_path / "d")


def test_the_verdict_says_what_is_left_of_the_front(study, judged):
    fronts = judged.fronts
    assert set(fronts.arms) == {"searched", "hand-designed", "scrambled"}
    assert fronts.seeds == tuple(range(1000, 1005))
    promised = np.mean([judged.promised[name] for name in fronts.arms["searched"].masks])
    fresh = np.mean([judged.entries[name].score.value for name in fronts.arms["searched"].masks])
    assert fronts.lost.value == pytest.approx(promised - fresh)
    head, *lines = judged.verdict().splitlines()
    assert head.startswith(f"The front of the search, judged again: {len(judged.promised)} masks")
    text = "\n".join(lines)
    assert f"the search's own scores minus these: {fronts.lost.value:+.3f}"[:-1] in text
    assert "on the true front of all masks judged here with a probability of 90% or more" in text
    for finding in fronts.findings:
        assert f"hypervolume, searched minus {finding.against}: " in text
    for arm in fronts.arms.values():
        values = {judged.entries[name].sparsity: judged.entries[name].score for name in arm.front}
        means = [score.value for _, score in sorted(values.items())]
        assert means == sorted(means, reverse=True)
    frame = judged.frame().set_index("mask")
    for name, chance in fronts.chances.items():
        assert frame.loc[name, "p on front"] == chance
    how = {"run": study.run.parent / "star", "progress": None}
    assert "hypervolume" not in ms.compare({"star": masks.star()}, Landscape(), **how).verdict()


def test_the_page_draws_the_fronts_that_are_judged(judged):
    """Controls form nobody's front, on a page as in what is claimed."""
    drawn: dict[str, set[str]] = {}
    for point in compared_points(judged):
        if point.front:
            drawn.setdefault(point.group, set()).add(point.name)
    assert drawn == {name: set(arm.front) for name, arm in judged.fronts.arms.items()}


@pytest.mark.nightly
def test_scores_of_another_protocol_promise_nothing(study, tmp_path):
    class Longer(Landscape):
        protocol = "longer"

    with pytest.warns(UserWarning, match="flattered"):
        judged = judge_front(study, Longer(), tmp_path, seeds=range(2))
    assert set(judged.promised.values()) == {None}
    assert "the search had scored its masks by another protocol" in judged.verdict()
    assert "2 common seeds decide nothing, run 3 or more" in judged.verdict()


@dataclass(frozen=True)
class Answers(Landscape):
    """The same landscape, and 200 rows of it, which all masks answer much alike."""

    count = 200

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        rows = np.random.default_rng(0).normal(0, 0.2, self.count)
        own = np.random.default_rng([seed, *str(mask).encode()]).normal(0, 0.05, self.count)
        found = RowScores({"dev": self.truth(mask) + rows + own}, {"dev": 1.0}, {"dev": "d"})
        found.save(workdir)
        yield Report(1, {"score": found.score})


@pytest.mark.nightly
def test_rows_that_are_known_widen_what_is_said_of_fronts(study, tmp_path):
    judged = judge_front(study, Answers(), tmp_path)
    fronts, alone = judged.fronts, replace(judged, run=None).fronts  # no folder, no rows
    pairs = [(arm.hypervolume, alone.arms[name].hypervolume) for name, arm in fronts.arms.items()]
    pairs += [(fronts.lost, alone.lost)]
    for both, seeds in pairs:
        assert both.value == seeds.value
        assert both.high - both.low > seeds.high - seeds.low
    assert all(finding.difference.n_rows for finding in fronts.findings)
    half = (fronts.lost.high - fronts.lost.low) / 2
    assert half > 1.9 * 0.2 / 200**0.5  # the rows are the same for all masks


class Checkpoint(Answers):
    """The same, where every seed gives a mask the same answers."""

    seedless = True

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        return super().__call__(mask, seed=0, workdir=workdir)


@pytest.mark.nightly
def test_rows_decide_between_fronts_where_every_seed_gives_the_same(study, tmp_path):
    judged = judge_front(study, Checkpoint(), tmp_path)
    fronts = judged.fronts
    assert (fronts.seeds, fronts.groups) == ((1000,), 10)
    assert not any(math.isnan(fronts.chances[name]) for name in fronts.arms["searched"].masks)
    searched = fronts.arms["searched"].hypervolume
    found = [judged.entries[name] for name in fronts.arms["searched"].masks]
    points = [(entry.scores[1000], entry.sparsity) for entry in found]
    whole = hypervolume(points, judged.objectives)
    assert searched.low < searched.value < searched.high
    assert searched.value == pytest.approx(whole, abs=0.01)  # the jackknife takes a bias from it
    for finding in fronts.findings:
        assert finding.outcome != "too few seeds"
        assert finding.difference.low < finding.difference.value < finding.difference.high
    said = judged.verdict()
    assert "10 groups of rows, since every seed gives the same scores" in said
    assert "seeds or more" not in said


def test_masks_that_answer_every_row_alike_are_not_told_apart(tmp_path):
    class Blind(Checkpoint):
        def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
            return super().__call__(masks.full(), seed=0, workdir=workdir)

    pair = {"mine": masks.window(2), "star": masks.star()}
    judged = ms.compare(pair, Blind(), run=tmp_path, storage=InMemoryStorage(), progress=None)
    assert "+0.000 on every row, so no difference can be claimed" in judged.verdict()


class TwoAnswers(Checkpoint):
    count = 2


@pytest.mark.nightly
def test_two_rows_decide_nothing_between_fronts(study, tmp_path):
    judged = judge_front(study, TwoAnswers(), tmp_path)
    assert all(finding.outcome == "too few seeds" for finding in judged.fronts.findings)
    assert "2 common rows decide nothing, take 3 or more" in judged.verdict()


def test_rivals_that_have_learned_nothing_add_no_hypervolume(compared, objectives, shape):
    learned = {"t": 0.9, "t/majority": 0.6}
    runs = {"front #3": (masks.window(2), [0.8, 0.81, 0.82, 0.8])}
    rivals = {
        "star": (masks.star(), [0.6, 0.61, 0.6, 0.6]),
        "scrambled front #3": (masks.random_keys(3), [0.7] * 4),
    }
    records = compared(runs, values=learned) + compared(rivals, values={**learned, "t": 0.6})
    judged = ms.Comparison(
        tuple(records), objectives, shape=shape, promised={"front #3": 0.9},
        kinds={"front #3": "searched", "star": "hand-designed", "scrambled front #3": "control"},
    )  # fmt: skip
    text = judged.verdict()
    assert "1 mask beside 1 hand-designed and 1 scrambled, 4 common seeds" in text
    assert "hand-designed 0 (nothing learned), scrambled 0 (nothing learned)" in text
    assert judged.fronts.chances == {"front #3": 1.0, "star": 0.0, "scrambled front #3": 0.0}
    assert [finding.outcome for finding in judged.fronts.findings] == ["larger", "larger"]


def test_masks_of_other_searches_are_not_of_the_front(compared, objectives, shape):
    runs = {
        "front #3": (masks.window(2), [0.8, 0.81, 0.82, 0.8]),
        "tpe": (masks.window(1), [0.9, 0.91, 0.92, 0.9]),
        "scrambled tpe": (masks.random_keys(3), [0.7, 0.72, 0.7, 0.71]),
    }
    kinds = {"front #3": "searched", "tpe": "searched", "scrambled tpe": "control"}
    judged = ms.Comparison(
        tuple(compared(runs)), objectives, shape=shape, promised={"front #3": 0.9}, kinds=kinds
    )
    arms = {name: arm.masks for name, arm in judged.fronts.arms.items()}
    assert arms == {"searched": ("front #3",)}
    assert "judged again: 1 mask beside no others" in judged.verdict()


@given(st.integers(1, 400), st.integers(2, 90), st.sampled_from([1.0, -1.0]), st.floats(0.1, 2.0))
def test_groups_of_rows_have_the_mean_of_all_rows(many, few, sign, weight):
    random = np.random.default_rng(many)
    rows = [
        RowScores(
            {"a": random.normal(size=many), "b": random.normal(size=few)},
            {"a": weight, "b": 1.0},
            {"a": "", "b": ""},
        )
        for _ in range(3)
    ]
    gains = np.stack([[[sign * each.score - 1.0, 0.3]] for each in rows])
    found = gains_by_rows(gains, rows, sign)
    assert found.mean(1) == pytest.approx(gains[:, 0])
    fewest = min(many, few)
    assert found.shape == (3, fewest if fewest <= 30 else 10, 2)
    if many == few <= 30:  # then each group is a row
        each = weight * rows[0].scores["a"] + rows[0].scores["b"]
        assert found[0, :, 0] == pytest.approx(sign * each - 1.0)
