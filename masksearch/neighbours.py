"""What distributions beside this one add, by entry points; imported when it is asked for.

The groups are `masksearch.strategies` (name -> a `Kind`), `masksearch.commands` (name -> a
command) and `masksearch.parts` (name -> what one place here asks for).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import util
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from masksearch.errors import UnknownNameError, install_command, unknown_name

EXTRAS = {  # group -> name -> the extra that brings it
    "strategies": {"allocate": "serve"},
    "commands": {"allocate": "serve"},
    "parts": dict.fromkeys(("tasks", "Served", "masksearch-plan"), "serve"),
}


@cache
def offered(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of a group, of what can be imported."""
    every = entry_points(group=f"masksearch.{group}")
    return {each.name: each for each in every if util.find_spec(each.module.partition(".")[0])}


def load_part(group: str, name: str, what: str, known: Iterable[str] = ()) -> Any:
    """What a distribution offers by that name.

    Args:
        group: As of `offered`.
        name: The name.
        what: What the name is of, in words.
        known: Names that are known besides.

    Raises:
        UnknownNameError: If there is none; says what to install, or the nearest name.
    """
    parts = offered(group)
    if name in parts:
        return parts[name].load()
    if extra := EXTRAS[group].get(name):
        remedy = install_command(extra)
        raise UnknownNameError(f"{what} {name!r} needs masksearch-{extra}: {remedy}")
    raise unknown_name(what, name, [*known, *parts])
