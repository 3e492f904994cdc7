"""Masks that are named by the run that holds them."""

from types import SimpleNamespace
from typing import Any

import pytest
from toy import ToyEvaluator

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, Objective, OneShot, Record, Refused, Report
from masksearch.errors import SearchError
from masksearch.study.references import counted_as
from masksearch.study.store import StudyStore

OBJECTIVES = (Objective("score", "max", 0.0), Objective("sparsity", "max", 0.0))
FACTS = {"kind": "search", "shape": '{"length": 16, "layers": 1, "heads": 1}', "protocol": "p"}
WINDOWS = [masks.window(reach) for reach in (4, 2, 1, 0)]


@pytest.fixture
def run(tmp_path):
    """Trials 0 to 3 are windows, equal in score but for the last; then jobs without a mask."""
    jobs = [*map(Evaluate, WINDOWS), OneShot(), Refused("the space raised")]
    store = StudyStore(tmp_path / "runs" / "x")
    store.create(OBJECTIVES, FACTS)
    for draw, job in enumerate(jobs):
        known = {"sparsity": job.mask.sparsity(16)} if draw < 4 else {}
        begun = Record(-1, "running", job, origin="tpe", protocol="p", measures=known)
        number = store.begin(begun, draw)
        values = {"score": 0.5 if draw < 3 else 0.1}
        settings = dict(values=values, curve=(Report(1, values),), step=1)
        if draw == 5:
            settings = dict(error="the space raised")
        status = "failed" if draw == 5 else "done"
        store.finish(Record(number, status, job, measures=known, **settings))
    store.close()
    return tmp_path / "runs" / "x"


@pytest.mark.slow
def test_masks_of_a_run_are_read_like_any_other(run, monkeypatch):
    assert masks.parse(str(run)) == WINDOWS[2]  # the sparsest of three that are equal
    assert masks.parse(f"{run}@0.9") == WINDOWS[3]
    assert [masks.parse(f"{run}#{number}") for number in range(4)] == WINDOWS
    monkeypatch.chdir(run.parent)
    assert masks.parse("x") == masks.parse("./x") == WINDOWS[2]
    assert masks.parse("x#0") == WINDOWS[0]


def test_name_of_a_mask_stays_one_beside_a_folder_of_that_name(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    run.rename("star")
    assert masks.parse("star") == masks.star()
    assert masks.parse("./star") == WINDOWS[2]


def test_files_are_read_like_any_other(tmp_path):
    for name in ("mask.json", "mask.safetensors"):
        path = ms.save_mask(masks.window(2), tmp_path / name)
        assert masks.parse(str(path)) == masks.window(2)
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such mask file"):
        masks.parse("none.json")
    with pytest.raises(ms.errors.MaskFormatError, match=r"masks\.from_block_layout"):
        masks.parse("layout.npy")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{run}#9", r"has no trial 9; it has trials 0 to 5"),
        ("{run}#4", r"trial 4 of .* has no mask; the trials that have one: 0, 1, 2, 3"),
        ("{run}#5", r"trial 5 of .* has no mask \(the space raised\)"),
        ("{run}@0.99", r"sparsity of 0\.99 or more; the sparsest has 0\.9375"),
        ("{run}@two", r"a least sparsity in \[0, 1\] is named RUN@0\.9"),
        ("{run}@90", r"a least sparsity in \[0, 1\] is named RUN@0\.9"),
        ("{run}#best", r"a trial is named as RUN#7"),
        ("{run}/..", r"holds no study"),
        ("runs/none", r"none' is no run folder, no mask file and no mask"),
        ("none#7", r"none' is no run folder, no mask file and no mask"),
        ("none@0.5", r"none' is no run folder, no mask file and no mask"),
    ],
)
def test_what_a_run_does_not_hold(run, text, message):
    with pytest.raises(ms.errors.SearchError, match=message):
        masks.parse(text.format(run=run))


@pytest.mark.slow
def test_comparison_is_named_by_trial(tmp_path):
    run = tmp_path / "compared"
    ms.compare({"w": masks.window(2)}, ToyEvaluator(), run=run, seeds=[0], progress=None)
    assert masks.parse(f"{run}#0") == masks.window(2)
    with pytest.raises(ms.errors.SearchError, match=r"is a comparison, .* such as .*compared#0"):
        masks.parse(str(run))


def test_a_folder_may_be_named_like_a_reference(run, monkeypatch):
    odd = run.rename(run.parent / "a#1@2")
    assert masks.parse(str(odd)) == WINDOWS[2]
    assert masks.parse(f"{odd}#3") == WINDOWS[3]
    monkeypatch.chdir(odd.parent)
    assert masks.parse("a#1@2@.9") == WINDOWS[3]


def test_a_run_whose_trials_do_not_know_what_costs_is_refused():
    """What a comparison's budgets count is kept by a search's records, if they know it."""
    score, sparsity = Objective("loss", "min", 9.0), Objective("sparsity", "max", 0.0)
    work = Objective("work", "min", 1.0)

    def run_of(**measures) -> Any:
        record = Record(0, "done", Evaluate(masks.full()), measures={"sparsity": 0.5, **measures})
        return SimpleNamespace(run="runs/a", objectives=lambda: (score, sparsity),
                               records=lambda: [record])  # fmt: skip

    assert counted_as(run_of(work=0.4), (sparsity, work)) == [score, work]
    assert counted_as(run_of(), (work, sparsity)) == [score, sparsity]
    with pytest.raises(SearchError, match="runs/a has no work of its masks: search anew for it"):
        counted_as(run_of(), (sparsity, work))
