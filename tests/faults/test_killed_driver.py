"""SIGKILL of the driver at random moments: no trial lost, none twice, the same values."""

from collections import Counter
from pathlib import Path

import pytest
from killing import killed_until_done, outcome

import masksearch as ms


def whole(tmp_path: Path, where: str, strategy: str, trials: int) -> ms.Study:
    """The undisturbed run."""
    run = tmp_path / "whole" / "run"
    run.parent.mkdir()
    killed_until_done((str(run), where, strategy, str(trials), "0"), kills=0, seed=0)
    return ms.Study(run)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("where", "strategy", "pause", "window"),
    [
        ("local", "tpe", "0.6", (0.5, 3.0)),
        ("pool", "random", "1.2", (0.7, 3.5)),
        pytest.param("ray", "random", "2.0", (3.0, 12.0), marks=pytest.mark.ray),
    ],
)
def test_driver_killed_at_20_random_moments_loses_nothing(
    tmp_path, where, strategy, pause, window
):
    run = tmp_path / "killed" / "run"
    run.parent.mkdir()
    words = (str(run), where, strategy, "40", pause)
    killed = killed_until_done(words, kills=20, seed=1, window=window)
    assert killed == 20, "the search was through before it had been killed that often"
    study, several = ms.Study(run), where != "local"
    calm = whole(tmp_path, "pool" if several else "local", strategy, 40)
    assert outcome(study, by_draw=several) == outcome(calm, by_draw=several)
    calls = Counter((run.parent / "log").read_text().splitlines())
    trained = [r for r in study.records() if r.status == "done"]
    assert len(calls) == len(trained)  # nothing was left out
    again = sum(calls.values()) - len(calls)
    assert 0 < again <= 20 * (2 if several else 1)  # at most what ran at the moment of a kill


@pytest.mark.nightly
def test_killed_search_keeps_what_the_scheduler_has_seen(tmp_path):
    """With one slot, halving decides after kills as it does without."""
    run = tmp_path / "killed" / "run"
    run.parent.mkdir()
    words = (str(run), "local", "halving", "30", "0.5")
    assert killed_until_done(words, kills=8, seed=2, window=(0.5, 3.0)) >= 3
    expected = outcome(whole(tmp_path, "local", "halving", 30))
    assert outcome(ms.Study(run)) == expected
    assert {row[1] for row in expected} >= {"done", "stopped"}


@pytest.mark.slow
@pytest.mark.ray
def test_lost_node_changes_nothing_in_the_study(tmp_path):
    """Three nodes on one machine, one taken away while trials run on it."""
    run = tmp_path / "lost" / "run"
    run.parent.mkdir()
    killed_until_done((str(run), "nodes", "random", "30", "1.0"), kills=0, seed=0)
    study = ms.Study(run)
    expected = outcome(whole(tmp_path, "pool", "random", 30), by_draw=True)
    assert outcome(study, by_draw=True) == expected
    calls = Counter((run.parent / "log").read_text().splitlines())
    assert sum(calls.values()) > len(calls), "no trial was lost with the node"
