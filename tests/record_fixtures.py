"""Synthetic records: plain data, no model behind them. And a database server, and a small disk."""

import os
import pwd
import resource
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy

from masksearch import Mask, masks
from masksearch.contracts import Evaluate, Objective, OneShot, Record, Report, Shape
from masksearch.masks.measure import fingerprint

SHAPE = Shape(length=16, layers=2, heads=2)
STAR = masks.star()
OBJECTIVES = (Objective("glue", "max", 0.5), Objective("sparsity", "max", 0.0))


@pytest.fixture(scope="session")
def shape() -> Shape:
    return SHAPE


@pytest.fixture(scope="session")
def objectives() -> tuple[Objective, ...]:
    return OBJECTIVES


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    """A record of a mask with a score; `values` are merged in."""

    def make(number: int, score: float | None, mask: Mask = STAR, **fields: Any) -> Record:
        values = dict(fields.pop("values", {}))
        if score is not None:
            values["glue"] = score
        defaults: dict[str, Any] = {
            "status": "done" if score is not None else "failed",
            "origin": "random",
            "protocol": "p",
            "seconds": 2.0,
            "fingerprint": fingerprint(mask, SHAPE),
            "measures": {"sparsity": mask.sparsity(16), "block_density": 1.0},
        }
        return Record(number, job=Evaluate(mask), values=values, **(defaults | fields))

    return make


@pytest.fixture(scope="session")
def compared(record: Callable[..., Record]) -> Callable[..., list[Record]]:
    """Records of a comparison: name -> (mask, one score per seed; None = failed)."""

    def make(
        runs: Mapping[str, tuple[Mask, Sequence[float | None]]], **fields: Any
    ) -> list[Record]:
        records: list[Record] = []
        for name, (mask, scores) in runs.items():
            for seed, score in enumerate(scores):
                error = "" if score is not None else "CUDA out of memory"
                records.append(
                    record(
                        len(records), score, mask, seed=seed, origin="compare",
                        name=name, role="compared", error=error, **fields,
                    )
                )  # fmt: skip
        return records

    return make


@pytest.fixture(scope="session")
def one_shot() -> Record:
    """A DAM record with a curve and no mask."""
    curve = tuple(
        Report(step, {"loss": 5 - step / 100, "density": 0.9**step + 0.05, "target": 0.1})
        for step in range(1, 40)
    )  # fmt: skip
    return Record(
        0, "done", OneShot({"structure": "free"}), protocol="p", origin="dam", curve=curve,
        values=dict(curve[-1].values), seconds=60.0,
    )  # fmt: skip


@contextmanager
def files_of_at_most(most: int) -> Iterator[None]:
    """A disk on which no file grows beyond so many bytes, as far as this process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Server:
    """A PostgreSQL server of its own in a folder of its own, reached by TCP with a password."""

    user, password = "searcher", "s3cret:word"

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
        self.owner: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self.owner = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(self.folder, "postgres", "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        word = self.folder / "word"
        word.write_text(self.password)
        word.chmod(0o644)
        self.call(
            "initdb", "-D", self.folder / "data", "-U", self.user, "-A", "scram-sha-256",
            f"--pwfile={word}", "--no-sync", "-E", "UTF8", "--locale=C",
        )  # fmt: skip

    def call(self, program: str, *arguments: object) -> None:
        subprocess.run(
            [self.binaries / program, *map(str, arguments)], check=True, cwd=self.folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60, **self.owner,
        )  # fmt: skip

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F"
        log = self.folder / "log"
        self.call("pg_ctl", "-D", self.folder / "data", "-l", log, "-o", options, "-w", "start")

    def stop(self) -> None:
        self.call("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "-w", "stop")

    def ask(self, statement: str) -> object:
        """What the server answers, by its socket."""
        url = sqlalchemy.make_url(self.url(scheme="postgresql+psycopg"))
        engine = sqlalchemy.create_engine(url.set(host=str(self.folder)))
        with engine.connect() as session:
            answer = session.execute(sqlalchemy.text(statement)).scalar()
        engine.dispose()
        return answer

    def end_sessions(self) -> None:
        """Cuts off all who use it."""
        self.ask(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    def url(self, password: str = password, scheme: str = "postgresql") -> str:
        place = f"127.0.0.1:{self.port}/postgres"
        return f"{scheme}://{self.user}:{quote(password, safe='')}@{place}"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A running PostgreSQL server; the test is skipped where there is none to start."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = [Path(found).parent for found in [shutil.which("initdb")] if found]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    places = [place for place in found if (place / "pg_ctl").exists()]
    if not places:
        pytest.skip("no PostgreSQL server here (no initdb, no pg_ctl)")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses root, and there is no user postgres")
    try:
        server = Server(places[0])
        server.start()
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the PostgreSQL server does not start: {getattr(error, 'stderr', error)}")
    yield server
    server.stop()
    shutil.rmtree(server.folder)
