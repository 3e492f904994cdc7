"""Environment variables, attributes and signal handlers: changed for a while, then put back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def set_environment(settings: Mapping[str, str], *family: str) -> Iterator[None]:
    """Sets environment variables; puts back those whose names begin like `family`."""
    before = {name: text for name, text in os.environ.items() if name.startswith(family)}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(family)]:
            del os.environ[name]
        os.environ.update(before)


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


def in_main_thread() -> bool:
    """Whether Python hands signals to this thread."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def catch_interrupt(first: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM calls `first`, the second does what it did before."""
    if not in_main_thread():
        yield
        return
    ends = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in (*ends, signal.SIGUSR1)}

    def once(number: int, frame: FrameType | None) -> None:
        for each in ends:
            signal.signal(each, before[each])
        first()

    for number in ends:
        signal.signal(number, once)
    try:
        yield
    finally:
        for number, handler in before.items():  # Tune leaves a SIGUSR1 handler behind
            signal.signal(number, handler)
