"""cluster/slurm.sh with a real Ray of two nodes on this machine; only Slurm is a stand-in."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed (pip install -e '.[ray]')")
pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'if [[ $1 == show ]]; then echo a; echo b; else echo "$@" >> requeued; fi',
    "masksearch": f'exec "{sys.executable}" -m masksearch "$@"',
    "ray": f'exec "{sys.executable}" -m ray.scripts.scripts "$@"',
}
PROXY = """
import time
from masksearch.contracts import Evaluator, Objective, Report, Shape

class Slow(Evaluator):
    shape, protocol = Shape(16, 1, 4), "slow"
    objectives = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))
    def __call__(self, mask, *, seed, workdir):
        for step in range(4):
            time.sleep(0.2)
            yield Report(step, {"loss": 1 / (step + 1)})
"""
TRIALS = 14


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run(place: Path, environment: dict[str, str], stop_at: int | None = None) -> int:
    """One job; stopped as at the time limit once so many trials are done."""
    command = (
        f"search space.py:space --evaluator proxy.py:Slow --run run --storage journal:journal "
        f"--trials {TRIALS} --strategy random"
    )
    with (place / "output").open("a") as output:
        job = subprocess.Popen(
            ["bash", str(ROOT / "cluster" / "slurm.sh"), *command.split()],
            cwd=place,
            env={**environment, "RAY_PORT": str(free_port())},
            stdout=output,
            stderr=output,
        )
    end = time.monotonic() + 300
    while stop_at is not None and time.monotonic() < end and job.poll() is None:
        journal = place / "journal"
        if journal.is_file() and journal.read_text().count('"status":"done"') >= stop_at:
            job.send_signal(signal.SIGUSR1)
            break
        time.sleep(0.1)
    return job.wait(timeout=300)


def test_search_is_stopped_at_the_limit_and_goes_on(tmp_path: Path) -> None:
    from masksearch.driver import Study

    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, text in STAND_INS.items():
        (stand_ins / name).write_text(f"#!/bin/bash\n{text}\n")
        (stand_ins / name).chmod(0o755)
    (tmp_path / "proxy.py").write_text(PROXY)
    shutil.copy(ROOT / "search_spaces" / "head_shifts.py", tmp_path / "space.py")
    job = f"test{os.getpid()}"
    environment = {
        **os.environ,
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "[a-b]",
        "SLURM_GPUS_ON_NODE": "0",
        "SLURM_CPUS_PER_TASK": "1",
        "POLL_SECONDS": "0.3",
        "IP_COMMAND": "hostname -I",
    }
    try:
        assert run(tmp_path, environment, stop_at=3) == 0, (tmp_path / "output").read_text()
        assert (tmp_path / "requeued").read_text() == f"requeue {job}\n"
        before = Study(tmp_path / "run", f"journal:{tmp_path}/journal").records()
        finished = {r.number: r for r in before if r.status == "done"}
        assert 3 <= len(finished) < TRIALS
        assert run(tmp_path, environment) == 0, (tmp_path / "output").read_text()
    finally:
        shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)
    after = Study(tmp_path / "run", f"journal:{tmp_path}/journal").records()
    assert Counter(r.status for r in after) == {"done": TRIALS}
    assert all(after[number] == record for number, record in finished.items())
    assert [r.number for r in after] == list(range(TRIALS))
    assert not list(tmp_path.glob(".masksearch-*"))
