"""What is said of a cluster: nodes that were lost, slots that stand still. Ray is played here."""

import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="Ray is not installed (pip install -e '.[ray]')")
from ray_fixtures import Troubled, listed
from toy import PlainTrials

from masksearch.executors import ray as executor
from masksearch.executors.pool import Pool


@dataclass
class Lost(Exception):
    actor_id: str


@pytest.fixture
def played(monkeypatch, tmp_path):
    """A watch over three trials, with nodes, actors and a clock of this test."""

    class Played:
        def __init__(self) -> None:
            self.now = 1000.0
            self.nodes = {node: {"NodeManagerAddress": f"10.0.0.{node}"} for node in "123"}
            self.actors = {f"on {node}": {"Address": {"NodeID": node}} for node in "123"}

        def look(self, *waiting, seconds=1.0) -> list[str]:
            self.now += seconds
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                watch.look(waiting)
            return [str(each.message) for each in said]

    play = Played()
    monkeypatch.setattr(executor, "time", SimpleNamespace(monotonic=lambda: play.now))
    monkeypatch.setattr(executor, "list_nodes", lambda: dict(play.nodes))
    monkeypatch.setattr(executor.ray._private.state, "actors", lambda i: play.actors.get(i, {}))
    play.work = PlainTrials(listed(12), Troubled(), tmp_path)
    pool = Pool(play.work, max_failures=2)
    for number in range(4):
        pool.next_trial(f"t{number}")
    play.watch = watch = executor.ClusterWatch(pool, 4)
    return play


def test_a_lost_node_is_named_once_with_the_trials_that_run_again(played):
    assert played.look() == []
    played.watch.note_loss("t3", Lost("on 2"))
    played.watch.note_loss("t0", Lost("on 3"))  # a process that died, on a node that lives
    played.watch.note_loss("t2", ValueError("not Ray's"))
    played.nodes = {node: facts for node, facts in played.nodes.items() if node != "2"}
    assert played.look() == []  # those that are heard of a moment later count
    played.watch.note_loss("t1", Lost("on 2"))
    assert played.look() == ["10.0.0.2 was lost; trials that run again: 1, 3"]
    assert played.look() == []


def test_a_node_that_had_no_trial_is_named_too(played):
    played.look()
    played.watch.note_loss("t3", Lost("on 2"))
    played.look(seconds=600)  # long ago
    played.nodes = {}
    played.look()
    assert sorted(played.look()) == [
        f"10.0.0.{node} was lost; trials that run again: none" for node in "123"
    ]


def test_slots_that_stand_still_are_named_after_a_minute_and_not_again_until_all_worked(played):
    assert played.look() == []
    for _ in range(60):
        assert played.look(2, 3) == []
    assert played.work.waiting == {2, 3}
    (said,) = played.look(2, 3)
    assert said.startswith("2 of 4 slots have worked for a minute; trials that wait for a node: 2")
    assert not any(played.look(3) for _ in range(200))
    assert played.look() == []
    assert not any(played.look(3) for _ in range(60))
    assert played.look(3)[0].startswith("3 of 4 slots")
