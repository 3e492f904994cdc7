"""SIGKILL of the driver at random moments: no trial lost, none twice, the same values."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from killing import killed_until_done, outcome

import masksearch as ms


def whole(tmp_path: Path, where: str, strategy: str, trials: int) -> ms.Study:
    """The undisturbed run."""
    run = tmp_path / "whole" / "run"
    run.parent.mkdir()
    killed_until_done((str(run), where, strategy, str(trials)), kills=0, seed=0, longest=1)
    return ms.Study(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "strategy", "kills"), [("local", "tpe", 20), ("pool", "random", 20)]
)
def test_driver_killed_at_random_moments_loses_nothing(tmp_path, where, strategy, kills):
    run = tmp_path / "killed" / "run"
    run.parent.mkdir()
    words = (str(run), where, strategy, "40")
    longest = 2.5 if where == "local" else 5.0
    happened = killed_until_done(words, kills=kills, seed=1, longest=longest)
    assert happened.kills >= 5, "the search was through before it had been killed often"
    study = ms.Study(run)
    expected = outcome(whole(tmp_path, where, strategy, 40), by_draw=where == "pool")
    assert outcome(study, by_draw=where == "pool") == expected
    calls = Counter((run.parent / "log").read_text().splitlines())
    trained = [r for r in study.records() if r.status == "done"]
    assert len(calls) == len(trained)  # nothing was left out
    slots = 1 if where == "local" else 2
    again = sum(calls.values()) - len(calls)
    assert again <= happened.kills * slots  # at most what ran at the moment of a kill


@pytest.mark.slow
def test_killed_search_keeps_what_the_scheduler_has_seen(tmp_path):
    """With one slot, halving decides after kills as it does without."""
    run = tmp_path / "killed" / "run"
    run.parent.mkdir()
    words = (str(run), "local", "halving", "30")
    happened = killed_until_done(words, kills=8, seed=2, longest=2.5)
    assert happened.kills >= 3
    expected = outcome(whole(tmp_path, "local", "halving", 30))
    assert outcome(ms.Study(run)) == expected
    assert {row[1] for row in expected} >= {"done", "stopped"}


@pytest.mark.slow
@pytest.mark.ray
def test_driver_of_ray_killed_at_random_moments_loses_nothing(tmp_path):
    run = tmp_path / "killed" / "run"
    run.parent.mkdir()
    happened = killed_until_done((str(run), "ray", "random", "60"), kills=20, seed=3, longest=14.0)
    assert happened.kills >= 5
    expected = outcome(whole(tmp_path, "pool", "random", 60), by_draw=True)
    assert outcome(ms.Study(run), by_draw=True) == expected


@pytest.mark.slow
@pytest.mark.ray
def test_lost_node_changes_nothing_in_the_study(tmp_path):
    """Three nodes on one machine, one taken away while trials run on it."""
    run = tmp_path / "lost" / "run"
    run.parent.mkdir()
    killed_until_done((str(run), "nodes", "random", "30"), kills=0, seed=0, longest=1)
    study = ms.Study(run)
    expected = outcome(whole(tmp_path, "pool", "random", 30), by_draw=True)
    assert outcome(study, by_draw=True) == expected
    calls = Counter((run.parent / "log").read_text().splitlines())
    assert sum(calls.values()) > len(calls), "no trial was lost with the node"
