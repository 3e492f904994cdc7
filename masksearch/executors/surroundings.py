"""What a library changes in this process while it runs, put back at the end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import FrameType

import cloudpickle


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def logging_at(name: str, level: int | None) -> Iterator[None]:
    """A logger's level; None leaves it alone."""
    logger = logging.getLogger(name)
    before = logger.level
    if level is not None:
        logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def interruptible(first: Callable[[], None]) -> Iterator[None]:
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
def loaded_by_path() -> Iterator[None]:
    """What modules define that nobody else can import travels by value.

    These are the modules that were loaded from a path, such as a search space that is named on
    the command line.
    """
    modules = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        own = getattr(module, "__name__", "")  # frozen modules have another
        if own != name or name == "__main__" or "." in name or not file.endswith(".py"):
            continue
        found = PathFinder.find_spec(name)
        if found is None or found.origin != file:
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
