"""What a cluster library needs around it while it runs: settings, folders, signals.

Everything is put back at the end.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import cloudpickle

TOKEN = secrets.token_hex(32)  # one a process: Ray remembers the first


@contextmanager
def set_environment(settings: Mapping[str, str], family: tuple[str, ...] = ()) -> Iterator[None]:
    """Sets environment variables.

    Args:
        settings: Name -> value.
        family: Beginnings of the names of others that may change meanwhile.
    """
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in {*before, *os.environ}:
            if name not in settings and not name.startswith(family or "\0"):
                continue
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


@contextmanager
def set_log_level(name: str, level: int) -> Iterator[None]:
    """Sets a logger's level."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def replace_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces an attribute of a module or class; one that is not there stays away."""
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def catch_interrupt(first: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls `first`, the second does what Ctrl-C did before."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread only
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        first()

    signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        for number, handler in before.items():  # Tune leaves a SIGUSR1 handler behind
            signal.signal(number, handler)


@contextmanager
def pickle_by_value() -> Iterator[None]:
    """Lets cloudpickle carry by value what modules define that no worker could import.

    These are the modules that were loaded from a path, such as a search space that is named on
    the command line.
    """
    modules = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        own = getattr(module, "__name__", "") == name and name != "__main__"
        if not own or name in sys.stdlib_module_names or "." in name or file[-3:] != ".py":
            continue
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        specs = (find(name, None) for find in finders if find is not None)
        found = next((spec.origin for spec in specs if spec is not None), None)
        if os.path.realpath(found or "") != os.path.realpath(file):
            modules.append(module)
    registered = set(cloudpickle.list_registry_pickle_by_value())
    modules = [module for module in modules if module.__name__ not in registered]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


@contextmanager
def temporary_storage(storage_path: str | None) -> Iterator[tuple[str, str]]:
    """A folder or URI, and a new name in it for files that are removed at the end.

    Args:
        storage_path: Where it is to be; None = among this machine's temporary files.
    """
    name = f"masksearch-{secrets.token_hex(4)}"
    if storage_path is None:
        with tempfile.TemporaryDirectory(prefix="masksearch-") as folder:
            yield folder, name
        return
    from pyarrow import fs  # type: ignore[import-untyped, unused-ignore]

    place = storage_path if "://" in storage_path else str(Path(storage_path).resolve())
    try:
        yield place, name
    finally:
        files, path = fs.FileSystem.from_uri(place)
        if files.get_file_info(f"{path}/{name}").type == fs.FileType.Directory:
            files.delete_dir(f"{path}/{name}")


def own_token() -> dict[str, str]:
    """Environment of a Ray that starts here, where its token cannot be kept in the home folder.

    Ray asks every process for a token, which it keeps in `~/.ray/auth_token`; where that cannot
    be written, this search gets a token of its own.
    """
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    folder = Path.home() / ".ray"
    if any(name in os.environ for name in names) or (folder / "auth_token").is_file():
        return {}
    place = folder if folder.is_dir() else Path.home()
    if place.is_dir() and os.access(place, os.W_OK):
        return {}
    return {"RAY_AUTH_TOKEN": TOKEN}
