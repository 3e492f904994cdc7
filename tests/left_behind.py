"""Fails a run of the tests that leaves files in the working folder or at home; names them."""

from pathlib import Path

import pytest

CACHES = {"__pycache__", ".cache", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache"}
TOOLS = {".config", ".ipython", ".jupyter", ".local", ".ray", ".triton"}  # of libraries, at home
BEFORE = pytest.StashKey[set[Path]]()


def entries(config: pytest.Config) -> set[Path]:
    """What lies in the working folder, the repository's root and the home directory."""
    folders = {config.invocation_params.dir, config.rootpath, Path.home()}
    found = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return {path for path in found if path.name not in CACHES | TOOLS}


def pytest_sessionstart(session: pytest.Session) -> None:
    """Notes what is there; workers of xdist leave it to the process that started them."""
    if not hasattr(session.config, "workerinput"):
        session.config.stash[BEFORE] = entries(session.config)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Compares."""
    before = session.config.stash.get(BEFORE, None)
    if before is not None and (new := sorted(map(str, entries(session.config) - before))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.getplugin("terminalreporter")
        reporter.write_line(f"\nLeft behind by the tests: {', '.join(new)}", red=True)
