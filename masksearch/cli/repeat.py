"""`masksearch resume` in Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksearch.cli.options import OptionsError
from masksearch.cli.resuming import read_command
from masksearch.cli.search import compare, run_compare, run_search, search

if TYPE_CHECKING:
    from masksearch.driver import Comparison, Study


def resume(
    run: Path | str,
    *,
    trials: int | None = None,
    seconds: float | None = None,
    executor: str | None = None,
    slots: int | None = None,
    address: str | None = None,
) -> Study | Comparison:
    """Goes on with a search or comparison that the command line began, as `masksearch resume`.

    It repeats what `command.json` in the run folder says. A run that Python began has none:
    call `search` or `compare` again with the same arguments.

    Args:
        run: Folder of the run; it may have moved.
        trials: Another number of trials; None, here and below = as it was.
        seconds: Another limit of time.
        executor: Another executor, by its name on the command line.
        slots: Another number of trials at a time.
        address: Another Ray cluster.

    Returns:
        The study of a search, or the comparison.

    Raises:
        OptionsError: If the folder holds no command, or that of something else.
        ResumeError: If a file that the command names has changed.
    """
    given = {
        "trials": trials,
        "seconds": seconds,
        "executor": executor,
        "slots": slots,
        "address": address,
    }
    command, stored = read_command(Path(run), given)
    commands: dict[str, tuple[Callable[..., None], Callable[[dict[str, Any]], Any]]] = {
        "search": (search, run_search),
        "compare": (compare, run_compare),
    }
    if command not in commands:
        raise OptionsError(
            f"{run} holds the command {command!r}; ms.resume goes on with searches and "
            f"comparisons: use `masksearch resume {run}`"
        )
    described, repeat = commands[command]
    parameters = inspect.signature(described).parameters.items()
    defaults = {name: p.default for name, p in parameters if p.default is not p.empty}
    found: Study | Comparison = repeat(defaults | stored)  # which may lack newer options
    return found
