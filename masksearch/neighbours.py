"""Parts that distributions beside this one add, found by entry points.

Their groups are `masksearch.strategies` (name -> a `StrategySpec`), `masksearch.commands` (name
-> a command) and `masksearch.parts` (name -> what one place here asks for).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from masksearch.errors import UnknownNameError, did_you_mean, install_command

EXTRAS = {  # group of entry points -> name -> the extra that brings it
    "strategies": {"allocate": "decoders"},
    "commands": {"allocate": "decoders", "proxy-card": "bench"},
    "parts": dict.fromkeys(
        ("--decoder", "gguf", "masksearch-plan", "MaskedCache", "kv_bytes"), "decoders"
    ),
}


@cache
def offered(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of a group, of what can be imported, by name."""
    every = sorted(entry_points(group=f"masksearch.{group}"), key=lambda each: each.name)
    return {each.name: each for each in every if find_spec(each.module.partition(".")[0])}


def lazy_names(
    space: dict[str, Any], public: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a distribution's package: a public name is loaded when it is
    first used, another one is refused with the nearest.

    Args:
        space: The package's `globals()`.
        public: As `masksearch.read_public_names` reads them.
    """

    def load(name: str) -> Any:
        if name not in public:
            hint = did_you_mean(name, public)
            raise AttributeError(f"module {space['__name__']!r} has no attribute {name!r}{hint}")
        value = space[name] = getattr(import_module(public[name]), name)
        return value

    return load, lambda: sorted({*space, *public})


def load_part(group: str, name: str, what: str) -> Any:
    """The part that a distribution offers by that name; None where none is known.

    Args:
        group: As of `offered`.
        name: The name.
        what: What the name is of, in words.

    Raises:
        UnknownNameError: If it is missing; says what to install.
    """
    if name in offered(group):
        return offered(group)[name].load()
    if extra := EXTRAS[group].get(name):
        remedy = install_command(extra)
        raise UnknownNameError(f"{what} {name!r} needs masksearch-{extra}: {remedy}")
    return None
