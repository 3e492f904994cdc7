"""Ray with real daemons: a node that comes late, a search that is told to stop."""

import os
import re
import signal
import socket
import sys
import time

import pytest

pytest.importorskip("ray", reason="Ray is not installed (pip install -e '.[ray]')")
from daemons import Search, equals_undisturbed, machines, start_head
from sleepy import judged_twice

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_node_that_joins_late_gets_trials(tmp_path):
    """Trials are shorter than the start of a worker, so an old worker is always free first."""
    with machines(2) as (first, second):
        address = start_head(first, free_port(), cpus=2)
        options = ("--executor", "ray", "--address", address, "--slots", "4", "--trials", "40")
        search = Search(first, tmp_path / "run", *options)
        search.wait_for(8)
        second.start_ray(f"--address={address}", cpus=2)
        began = time.time()
        assert search.wait() == 0, search.said()
    old = search.ends()[0]["node"]
    late = [line["time"] for line in search.ends() if line["node"] != old]
    assert late, "the second node got no trial"
    assert min(late) - began < 45  # its own start, too
    assert len(late) >= 6
    assert equals_undisturbed(search, 40)
    assert judged_twice(search.run) == []


@pytest.mark.parametrize(
    ("executor", "number"),
    [("local", signal.SIGTERM), ("ray", signal.SIGTERM), ("ray", signal.SIGINT)],
)
def test_a_search_that_is_told_to_stop_says_how_to_go_on(tmp_path, executor, number):
    with machines(1) as (machine,):
        options = ("--executor", executor, "--slots", "2", "--trials", "6")
        search = Search(machine, tmp_path / "run", *options, seconds=1.0)
        search.wait_for(2)
        search.process.send_signal(number)
        began = time.monotonic()
        assert search.wait() == 130, search.said()
        assert time.monotonic() - began < 30
        assert f"masksearch resume {search.run}" in search.said()
        assert "Traceback" not in search.said()
        alone = ("resume", "--executor", "local", "--slots", "1")
        again = Search(machine, tmp_path / "run", *alone, seconds=0.1)
        assert again.wait() == 0, again.said()
    assert equals_undisturbed(search, 6)
    assert len(judged_twice(search.run)) <= 2  # whose last report was on its way


OTHER_RAY = "import ray; ray.__version__ = '2.0.0'"  # in sitecustomize.py


def test_what_keeps_a_driver_out_of_a_cluster_is_said_in_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(OTHER_RAY)
    path = f"{tmp_path}{os.pathsep}{os.pathsep.join(filter(None, sys.path))}"
    with machines(1) as (machine,):
        address = start_head(machine, free_port(), cpus=2)
        nobody = f"127.0.0.1:{free_port()}"
        for name, where, said, settings in [
            ("nobody", nobody, "Connection refused", {}),
            ("token", address, "Failed to connect to Ray", {"RAY_AUTH_TOKEN": "f" * 64}),
            ("version", address, "Version mismatch.*Ray: 2.0.0", {"PYTHONPATH": path}),
        ]:
            began = time.monotonic()
            options = ("--executor", "ray", "--address", where, "--trials", "1")
            search = Search(machine, tmp_path / name, *options, **settings)
            assert search.wait() == 2, search.said()
            assert time.monotonic() - began < 45, name  # of which Python's imports take their part
            error = search.said().splitlines()[-1]
            assert re.match(f"error: Ray at address='{where}' does not answer: .*{said}", error)
            assert "RAY_AUTH_MODE=token" in error
