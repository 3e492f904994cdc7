"""Waits for what processes do."""

import time
from collections.abc import Callable


def wait_until(
    true: Callable[[], object], seconds: float = 120.0, what: str | Callable[[], str] = ""
) -> float:
    """Waits for something; the seconds that it took."""
    began = time.monotonic()
    while not true():
        said = what() if callable(what) else what
        assert time.monotonic() - began < seconds, f"{said}: not after {seconds:g} s"
        time.sleep(0.05)
    return time.monotonic() - began
