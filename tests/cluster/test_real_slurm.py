"""cluster/slurm.sh on a real Slurm of two nodes, each in namespaces of its own on this machine."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

pytest.importorskip("ray", reason="Ray is not installed (pip install -e '.[ray]')")
from sleepy import PLAN, essence, judged_twice, read_log, search_quickly

import masksearch as ms

ROOT = Path(__file__).parents[2]
TRIALS = 30
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare", "nsenter", "ip")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

# The first process of the cluster: all others are below it and end when its input is closed,
# and with them the network.
CLUSTER = r"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount --bind "$BASE/hosts" /etc/hosts
hostname control
ip link set lo up
ip link add lan type bridge
ip address add 10.78.0.1/24 dev lan
ip link set lan up
munged --force --key-file="$BASE/munge.key" --socket="$BASE/munge.socket" \
    --pid-file="$BASE/munged.pid" --log-file="$BASE/munged.log" --seed-file="$BASE/munged.seed"
slurmctld -f "$SLURM_CONF"
for node in 1 2; do
    ip netns add n$node
    ip link add v$node type veth peer name eth0 netns n$node
    ip link set v$node master lan up
    ip netns exec n$node unshare --mount --uts --ipc --pid --fork --mount-proc \
        bash -c "$NODE" node $node &
done
echo ready
read -r || true
"""
# One node: an address, a name and a /tmp (in which the cluster's folder is seen) of its own. Its
# first process stays, as an init that reaps: Ray takes a zombie for alive.
NODE = r"""
set -e
hostname n$1
ip link set lo up
ip address add 10.78.0.1$1/24 dev eth0
ip link set eth0 up
mount -t tmpfs tmpfs /dev/shm
own=$BASE/n$1
mkdir -p "$own$BASE"
mount --bind "$BASE" "$own$BASE"
mount --rbind "$own/tmp" /tmp
slurmd -D -f "$SLURM_CONF" || exit 1
"""
CONFIGURATION = """
ClusterName=test
SlurmctldHost=control(10.78.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool-%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeAddr=10.78.0.11 CPUs=2
NodeName=n2 NodeAddr=10.78.0.12 CPUs=2
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=90
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


class Slurm:
    """A cluster of two nodes of two CPUs, whose daemons end with it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        (base / "state").mkdir()
        (base / "munge.key").write_bytes(os.urandom(128))
        (base / "munge.key").chmod(0o600)
        (base / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # needs nothing mounted
        (base / "slurm.conf").write_text(CONFIGURATION.format(base=base))
        names = {"127.0.0.1": "localhost", "10.78.0.1": "control"}
        names |= {"10.78.0.11": "n1", "10.78.0.12": "n2"}
        (base / "hosts").write_text("".join(f"{ip} {name}\n" for ip, name in names.items()))
        (base / "bin").mkdir()
        self.program("masksearch", f'exec "{sys.executable}" -m masksearch "$@"')
        self.program("ray", f'exec "{sys.executable}" -m ray.scripts.scripts "$@"')
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "SLURM_"))}
        self.environment = clean | {
            "BASE": str(base),
            "NODE": NODE,
            "SLURM_CONF": str(base / "slurm.conf"),
            "PATH": f"{base / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
            "OMP_NUM_THREADS": "1",
        }
        apart = ("--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child")
        with (base / "daemons.txt").open("w") as output:
            self.cluster = subprocess.Popen(
                ["unshare", *apart, "--mount-proc", "bash", "-c", CLUSTER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=self.environment,
                text=True,
            )

    def wait_for_nodes(self) -> None:
        if self.cluster.stdout.readline() != "ready\n":
            pytest.skip(f"no Slurm in namespaces: {(self.base / 'daemons.txt').read_text()}")
        wait_until(lambda: "2 idle" in self.run("sinfo", "-ho", "%D %t"), 60, self.log)

    def program(self, name: str, text: str, folder: str = "bin") -> Path:
        path = self.base / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
        return path.parent

    def run(self, *words: str, folder: Path | None = None, **settings: str) -> str:
        """What a command says that runs in the cluster."""
        first = psutil.Process(self.cluster.pid).children()[0].pid
        done = subprocess.run(
            ["nsenter", f"--target={first}", "--all", f"--wd={folder or self.base}", *words],
            env=self.environment | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.strip() + done.stderr

    def log(self) -> str:
        return (self.base / "slurmctld.log").read_text()[-3000:]

    def leftovers(self) -> list[str]:
        """What jobs have left: processes, and files of Ray's in the nodes' /tmp."""
        daemons = {"bash", "munged", "slurmctld", "slurmscriptd", "slurmd", "unshare"}
        processes = psutil.Process(self.cluster.pid).children(recursive=True)
        found = [name for name in (p.name() for p in processes) if name not in daemons]
        return found + [str(path) for path in self.base.glob("n?/tmp/*ray*")]

    def end(self) -> None:
        self.cluster.stdin.close()
        self.cluster.wait(timeout=30)


class Job:
    """`sbatch cluster/slurm.sh search ...` from a folder of its own."""

    def __init__(self, slurm: Slurm, name: str) -> None:
        self.slurm, self.folder = slurm, slurm.base / name
        self.folder.mkdir()
        self.run = self.folder / "run"
        self.number = ""

    def submit(self, *options: str, **settings: str) -> None:
        """The line of the documentation for a cluster without GPUs."""
        sizes = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=2")
        plan = (*PLAN, "--trials", str(TRIALS), "--run", "run", "--storage", "journal:j")
        script = (str(ROOT / "cluster" / "slurm.sh"), *plan)
        said = self.slurm.run(
            "sbatch",
            "--parsable",
            *sizes,
            *options,
            *script,
            folder=self.folder,
            **{"SLEEPY_SECONDS": "1", **settings},
        )
        assert said.isdigit(), said
        self.number = said

    def state(self) -> str:
        """Slurm's word: PENDING, RUNNING, COMPLETING, COMPLETED, CANCELLED, ..."""
        return self.fact("JobState")

    def fact(self, name: str) -> str:
        said = self.slurm.run("scontrol", "show", "job", self.number)
        return next((w.partition("=")[2] for w in said.split() if w.startswith(f"{name}=")), "")

    def gone(self) -> bool:
        return not self.slurm.run("squeue", "--noheader", f"--jobs={self.number}")

    def wait_for_results(self, count: int) -> None:
        wait_until(lambda: len(self.ends()) >= count, 120, self.said)

    def check_requeue(self, times: int = 1) -> None:
        """Slurm puts the job back and nothing is left of it; its two minutes are cut short."""
        wait_until(lambda: self.fact("Restarts") == str(times), 120, self.said)
        wait_until(lambda: self.state() == "PENDING", 20, self.said)
        self.check_nothing_is_left()
        self.slurm.run("scontrol", "update", f"JobId={self.number}", "StartTime=now+3")

    def ends(self) -> list[dict[str, object]]:
        return [line for line in read_log(self.run) if line["what"] == "end"]

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("masksearch-*.out")))

    def check_finished(self, undisturbed: list[tuple[object, ...]]) -> None:
        """Ends well, leaves nothing, and the study is that of a search that nobody disturbed."""
        wait_until(self.gone, 240, self.said)
        assert self.fact("ExitCode") == "0:0", self.said()
        assert essence(ms.Study(self.run, f"journal:{self.folder / 'j'}").records()) == undisturbed
        assert judged_twice(self.run) == []
        assert {str(line["node"])[:2] for line in self.ends()} == {"n1", "n2"}
        self.check_nothing_is_left()

    def check_nothing_is_left(self) -> None:
        left = self.slurm.leftovers  # workers of Ray's end when they see that it has ended
        wait_until(lambda: not left(), 10, lambda: str(left()))
        assert not list(self.folder.glob(".masksearch-*"))


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # slurmd asks for it
        made = Slurm(Path(folder))
        try:
            made.wait_for_nodes()
            yield made
        finally:
            made.end()


@pytest.fixture
def job(slurm: Slurm, request: pytest.FixtureRequest) -> Iterator[Job]:
    made = Job(slurm, request.node.name)
    yield made
    if made.number:
        slurm.run("scancel", made.number)
        wait_until(made.gone, 40, made.said)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    return search_quickly(tmp_path_factory.mktemp("undisturbed") / "run", TRIALS)


def test_cancelled_search_is_over_at_once_and_goes_on(slurm, job, undisturbed):
    job.submit()
    job.wait_for_results(6)
    slurm.run("scancel", job.number)
    seconds = wait_until(job.gone, 40, job.said)
    assert seconds < 10, job.said()
    assert job.state() == "CANCELLED"
    job.check_nothing_is_left()
    assert 6 <= len(job.ends()) < TRIALS
    job.submit()
    job.check_finished(undisturbed)


def test_requeued_search_goes_on(slurm, job, undisturbed):
    job.submit()
    job.wait_for_results(6)
    slurm.run("scontrol", "requeue", job.number)
    job.check_requeue()
    job.check_finished(undisturbed)


def test_time_limit_stops_the_search_and_it_goes_on(slurm, job, undisturbed):
    setup = job.folder / "setup.sh"  # read at every start
    setup.write_text("export SLEEPY_SECONDS=15\n")
    job.submit("--signal=B:USR1@40", SETUP=str(setup))
    job.wait_for_results(2)
    minutes = int(job.fact("RunTime").split(":")[1]) + 2
    slurm.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes}")
    wait_until(lambda: "stopping the search" in job.said(), 150, job.said)
    setup.write_text("export SLEEPY_SECONDS=1\n")
    job.check_requeue()
    assert "masksearch resume" in job.said()
    assert 0 < len(job.ends()) < TRIALS
    slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=UNLIMITED")
    job.check_finished(undisturbed)


def test_preempted_search_is_queued_again(slurm, job, undisturbed):
    """With a time of grace Slurm tells Ray alone; the rest would wait for it until its end."""
    job.submit()
    job.wait_for_results(6)
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    slurm.run("sbatch", *urgent, "--wrap=true")
    seconds = wait_until(lambda: job.state() == "PENDING", 80, job.said)
    assert seconds < 40, job.said()
    job.check_requeue()
    job.check_finished(undisturbed)


def test_lost_storage_is_waited_for_once(slurm: Slurm, job: Job) -> None:
    """Stand-ins for Ray and the search; the mark outlives the requeue in Slurm."""
    status = "if [[ $1 == status ]]; then echo Active: ; echo ' 2 n'; exit; fi; sleep 600"
    slurm.program("ray", status, "lost")
    bin = slurm.program("masksearch", "echo lost; exit 75", "lost")
    job.submit(PATH=f"{bin}:{slurm.environment['PATH']}")
    job.check_requeue()
    wait_until(job.gone, 60, job.said)
    assert job.said().count("lost\n") == 2
    assert job.fact("ExitCode") == "75:0"
    assert job.fact("Restarts") == "1"
