"""cluster/slurm.sh against stand-ins for Slurm, Ray and masksearch that record their calls."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from waiting import wait_until

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"
NODES = ["gpu01", "gpu02", "gpu03"]
STAND_INS = {
    "scontrol": """
        echo "scontrol $*" >> "$LOG"
        if [[ $1 == update ]]; then printf '%s\\n' "${@:3}" >> "$STATE/comment"; fi
        if [[ $1 == show ]]; then
            [[ $2 == job ]] && cat "$STATE/comment" || printf '%s\\n' gpu01 gpu02 gpu03
        fi""",
    "scancel": """
        echo "scancel $*" >> "$LOG"
        kill $(cat "$STATE/steps")""",
    "srun": """
        echo "srun $*" >> "$LOG"
        while [[ $1 == --* ]]; do
            case $1 in --nodelist=*) export NODE=${1#*=};; esac
            shift
        done
        [[ $* != *ray* ]] || echo $$ >> "$STATE/steps"
        exec "$@" """,
    "hostname": 'echo "10.0.0.${NODE#gpu0} fe80::1"',
    "ray": """
        echo "ray $* (mode $RAY_AUTH_MODE)" >> "$LOG"
        if [[ $1 == status ]]; then
            echo "Active:"
            for up in "$STATE"/up-*; do [[ -e $up ]] && echo " 1 node_${up##*-}"; done
            printf 'Pending:\\n 7 node_waiting\\n'
            exit 0
        fi
        stat --format='%a' "$RAY_AUTH_TOKEN_PATH" >> "$STATE/modes"
        cat "$RAY_AUTH_TOKEN_PATH" >> "$STATE/tokens"
        trap '[[ $RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S == 0 ]] && sleep 0.3
            rm -f "$STATE/up-$NODE"; echo "down $NODE" >> "$LOG"; exit 0' TERM
        touch "$STATE/up-$NODE"
        while true; do sleep 0.05; done""",
}
SEARCH = """
import os, pathlib, sys, time
log, state = pathlib.Path(os.environ["LOG"]), pathlib.Path(os.environ["STATE"])
with log.open("a") as file: print("masksearch", *sys.argv[1:], file=file)
if "--fails" in sys.argv: sys.exit(2)
if "--quick" in sys.argv: sys.exit(0)
if "--lost" in sys.argv: sys.exit(75)
try:
    (state / "searching").touch()
    time.sleep(600)
except KeyboardInterrupt:
    with log.open("a") as file: print("search stopped cleanly", file=file)
    sys.exit(0 if "--last" in sys.argv else 130)
"""


class Job:
    """One run of the script in a folder of its own."""

    def __init__(self, place: Path) -> None:
        self.place, self.log, self.state = place, place / "calls.log", place / "state"
        self.bin = place / "bin"
        for folder in (self.bin, self.state):
            folder.mkdir()
        self.log.touch()
        (self.state / "comment").touch()
        self.started: list[subprocess.Popen[str]] = []
        for name, text in STAND_INS.items():
            self.program(name, f"{text}\n")
        self.program("masksearch", f"#!{sys.executable}\n{SEARCH}")
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "STATE": str(self.state),
            "POLL_SECONDS": "0.05",
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "gpu[01-03]",
            "SLURM_GPUS_ON_NODE": "2",
            "SLURM_CPUS_PER_TASK": "32",
        }

    def program(self, name: str, text: str) -> None:
        start = "" if text.startswith("#!") else "#!/bin/bash\n"
        (self.bin / name).write_text(start + text)
        (self.bin / name).chmod(0o755)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            cwd=self.place,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def ends(self, *arguments: str, code: int = 0, sent: signal.Signals | None = None) -> str:
        """Runs the script to its end, with a signal once it searches; what it says."""
        run = self.start(*arguments)
        if sent is not None:
            wait_until((self.state / "searching").exists)
            run.send_signal(sent)
        _, errors = run.communicate(timeout=120)
        assert run.returncode == code, errors
        return errors

    def end(self) -> None:
        """Kills what a failed test has left running."""
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(ProcessLookupError):
                if os.getsid(int(place.name)) in {process.pid for process in self.started}:
                    os.kill(int(place.name), signal.SIGKILL)

    def calls(self, start: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(start)]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    made.end()


@pytest.mark.slow
def test_search_runs_on_every_node_and_all_is_put_away(job: Job) -> None:
    job.ends("search", "a space.py:space", "--run", "r", "--quick")
    head, *workers = [line for line in job.calls("ray start")]
    assert "--head --node-ip-address=10.0.0.1 --port=6379 --dashboard-host=127.0.0.1" in head
    for number, worker in enumerate(sorted(workers), start=2):  # they start side by side
        assert f"--address=10.0.0.1:6379 --node-ip-address=10.0.0.{number}" in worker
    assert len(workers) == 2
    assert all("--num-gpus=2" in line and "mode token" in line for line in [head, *workers])
    # 3 nodes x 2 GPUs x 4 trials; 32 CPUs / 8 trials; the user's arguments as they were
    assert job.calls("masksearch") == [
        "masksearch search a space.py:space --run r --quick --executor ray "
        "--address 10.0.0.1:6379 --slots 24 --gpus 0.25 --cpus 4"
    ]
    assert len(job.calls("down")) == 3
    assert not list(job.place.glob(".masksearch-*"))
    assert not job.calls("scontrol requeue")
    # the token: one for all nodes, readable by its owner only, in no command line
    assert (job.state / "modes").read_text().split() == ["600"] * 3
    tokens = (job.state / "tokens").read_text()
    assert tokens == tokens[:64] * 3
    assert int(tokens[:64], 16) > 0
    assert tokens[:64] not in job.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGUSR1, 0), (signal.SIGTERM, 130)])
def test_signals_stop_the_search_and_the_time_limit_requeues(job: Job, sent, code) -> None:
    errors = job.ends("search", "s.py:space", sent=sent, code=code)
    assert job.calls("search stopped cleanly")
    limit = sent == signal.SIGUSR1
    assert job.calls("scontrol requeue") == ["scontrol requeue 4711"] * limit
    assert ("time limit or preemption: stopping the search" in errors) == limit
    assert len(job.calls("down")) == 3


@pytest.mark.slow
def test_search_that_ends_before_its_trap_does_keeps_its_status(job: Job) -> None:
    slow_kill = job.place / "slow_kill.sh"
    slow_kill.write_text(
        'kill() { builtin kill "$@"; local got=$?; [[ $1 != -INT ]] || sleep 0.5; return $got; }'
    )
    job.environment["BASH_ENV"] = str(slow_kill)
    job.ends("search", "s.py:space", sent=signal.SIGTERM, code=130)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before its last trial ends", "when it has ended"])
def test_finished_search_is_not_requeued_by_a_late_signal(job: Job, when: str) -> None:
    early = when.startswith("before")
    run = job.start("search", "--last" if early else "--quick")
    wait_until((job.state / "searching").exists if early else lambda: job.calls("scancel"))
    run.send_signal(signal.SIGUSR1)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert not job.calls("scontrol requeue")
    assert len(job.calls("down")) == 3


@pytest.mark.nightly
def test_lost_storage_requeues_once(job: Job) -> None:
    for code, times in ((0, 1), (75, 1)):
        job.ends("search", "--lost", code=code)
        assert len(job.calls("scontrol requeue")) == times
        (job.state / "steps").unlink()


@pytest.mark.nightly
@pytest.mark.parametrize(("preempted", "code"), [("2026-11-23T10:00:00", 0), ("None", 137)])
def test_search_whose_ray_has_ended_is_over_and_requeued_if_preempted(job, preempted, code):
    (job.state / "comment").write_text(f"PreemptEligibleTime=2026-11-23 PreemptTime={preempted}")
    job.program("masksearch", 'touch "$STATE/searching"; while true; do sleep 0.1; done')
    run = job.start("search")
    wait_until((job.state / "searching").exists)
    subprocess.run([job.bin / "scancel"], env=job.environment, check=True)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == code, errors
    assert "Ray has ended: stopping the search" in errors
    assert len(job.calls("scontrol requeue")) == (code == 0)


@pytest.mark.nightly
def test_error_of_the_search_is_the_jobs(job: Job) -> None:
    job.ends("search", "--fails", code=2)
    assert not job.calls("scontrol requeue")


@pytest.mark.nightly
def test_without_gpus_every_cpu_is_a_slot(job: Job) -> None:
    job.environment |= {"SLURM_GPUS_ON_NODE": "0", "SLURM_CPUS_PER_TASK": "8"}
    job.ends("search", "--quick")
    assert job.calls("masksearch")[0].endswith("--address 10.0.0.1:6379 --slots 24 --cpus 1")


LATE = "[[ $1 == start ]] && exit 1\nexit 0\n"
REFUSALS = {  # what is replaced, environment that is set or gone, words, exit code, message
    "nodes do not come": ({"ray": LATE}, {"WAIT_SECONDS": "0"}, 1, "0 of 1 nodes after 0 s"),
    "loopback": ({"hostname": "echo 127.0.1.1\n"}, {}, 1,
        "gpu01 calls itself '127.0.1.1'.*set IP_COMMAND"),
    "no job": ({}, {"SLURM_JOB_ID": None}, 1, "run this with sbatch"),
    "no nodes": ({}, {"SLURM_JOB_NODELIST": None}, 1, "run this with sbatch"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_say_why_and_nothing_is_searched(job: Job, case: str) -> None:
    programs, environment, code, message = REFUSALS[case]
    for name, text in programs.items():
        job.program(name, text)
    given = job.environment | environment
    job.environment = {name: value for name, value in given.items() if value is not None}
    errors = job.ends("search", code=code)
    assert re.search(message, errors, re.DOTALL), errors
    assert not job.calls("masksearch")


def test_without_a_command_it_says_how(job: Job) -> None:
    assert "usage: sbatch" in job.ends(code=2)
