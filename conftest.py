"""Shared by all tests: importable helpers, quick examples, quiet and offline libraries."""

import functools
import gc
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.util
import optuna
import pytest
import sqlalchemy
import torch
from hypothesis import HealthCheck, settings

from masksearch.executors import local

# `toy`, `killing`, `browser`
ROOMS = ("cli", "training", "faults", "contracts", "cluster", "attention", "report")
ROOT = Path(__file__).parent
for folder in (*ROOMS, "executors", "study", ""):
    sys.path.insert(0, str(ROOT / "tests" / folder))
for beside in ("masksearch-decoders", "masksearch-bench", "experiments"):
    sys.path.insert(0, str(ROOT / beside / "tests"))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started by `&` or nohup; programs inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Workers are forks of a process that has imported what some evaluators of the tests import
local.FORKS.set_forkserver_preload(["masksearch.executors.worker", "masksearch.strategies.build"])
optuna.logging.set_verbosity(optuna.logging.ERROR)
torch.set_num_threads(1)  # tiny tensors: threads only add overhead, and noise between runs
# Optuna reads its twenty files of schema revisions whenever a database is made or opened; env.py
# is not read but run
load_file, load_revision = (
    alembic.util.load_python_file,
    functools.cache(alembic.util.load_python_file),
)
alembic.util.load_python_file = lambda folder, name: (
    load_file(folder, name) if name == "env.py" else load_revision(folder, name)
)


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def unsynced(connection: Any, record: object) -> None:
    """SQLite waits for no disk: what a test has written need not outlive a power cut."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


settings.register_profile(
    "masksearch", deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("repeatable", settings.get_profile("masksearch"), derandomize=True)
settings.register_profile("thorough", settings.get_profile("masksearch"), max_examples=100)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "masksearch"))

pytest_plugins = ["cli_runs", "record_fixtures", "left_behind", "pretended_card"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU say so where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not walk it again and again."""
    gc.freeze()


class Logged(logging.Handler):
    """What is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    @property
    def text(self) -> str:
        return "\n".join(self.messages)

    @contextmanager
    def at_level(self, level: int, logger: str = "") -> Iterator[None]:
        named = logging.getLogger(logger)
        before = named.level
        named.setLevel(level)
        yield
        named.setLevel(before)


@pytest.fixture
def caplog() -> Iterator[Logged]:
    """What pytest's fixture of this name does; its plugin walks over three thousand loggers
    before each part of each test."""
    logged = Logged()
    logging.getLogger().addHandler(logged)
    yield logged
    logging.getLogger().removeHandler(logged)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB; the test is skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True, text=True
    )
    if not done or done.returncode:
        pytest.skip(f"no small disk can be mounted: {done.stderr if done else 'no mount'}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where a test computes: on the CPU, and on a card where there is one."""
    return str(request.param)


@pytest.fixture
def one_process() -> Iterator[None]:
    """A real process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("released")
    left_out = shutil.ignore_patterns(".git", ".venv", ".*_cache", "build", "runs", "*.egg-info")
    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=left_out)
    build = (
        "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    )
    quiet = {"check": True, "capture_output": True, "env": os.environ | {"PYTHONPATH": ""}}
    made = [sys.executable, "-c", build, "build_sdist", str(folder)]
    subprocess.run(made, cwd=folder / "tree", **quiet)
    [source] = folder.glob("*.tar.gz")
    shutil.unpack_archive(source, folder / "unpacked", filter="data")
    [tree] = (folder / "unpacked").iterdir()
    made = [sys.executable, "-c", build, "build_wheel", str(folder)]
    subprocess.run(made, cwd=tree, **quiet)
    return folder


@pytest.fixture(scope="session")
def decoders(released: Path) -> Path:
    """A folder with what the wheel of masksearch-decoders installs, which is built from the
    source distribution too."""
    [tree] = (released / "unpacked").iterdir()
    build = "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"
    quiet: dict[str, Any] = {"check": True, "capture_output": True}
    quiet["env"] = os.environ | {"PYTHONPATH": ""}
    built = [sys.executable, "-c", build, str(released / "serve")]
    subprocess.run(built, cwd=tree / "masksearch-decoders", **quiet)
    [wheel] = (released / "serve").glob("*.whl")
    shutil.unpack_archive(wheel, released / "serve" / "site", "zip")
    return released / "serve" / "site"


@pytest.fixture(scope="session")
def installed(released: Path) -> Path:
    """The folder of programs of an environment that holds the wheel, and the libraries of this
    one: without the repository."""
    place = released / "environment"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    programs = place / "bin"
    [wheel] = released.glob("*.whl")
    install = [programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, wheel], check=True, cwd=place, env=os.environ | {"PYTHONPATH": ""})
    [libraries] = (place / "lib").glob("python*/site-packages")
    ours = sysconfig.get_path("purelib")  # its .pth files, and so an editable masksearch, stay out
    (libraries / "libraries.pth").write_text(f"{ours}\n", encoding="utf-8")
    return programs
