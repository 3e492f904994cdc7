"""Going on with a run that the command line began: `masksearch resume`, and `ms.resume`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from masksearch.cli.options import PLACE, RUN, OptionsError, RunArgument, declare
from masksearch.cli.resuming import read_command
from masksearch.cli.search import (
    compare,
    run_compare,
    run_search,
    search,
    show_comparison,
    show_search,
)

if TYPE_CHECKING:
    from masksearch.analysis.compare import Comparison
    from masksearch.driver import Study

AS_BEFORE = "as before"


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
    changed = {"trials": trials, "seconds": seconds, "executor": executor}
    command, given = read_command(Path(run), {**changed, "slots": slots, "address": address})
    if command == "search":
        return run_search(complete(search, given))
    if command == "compare":
        return run_compare(complete(compare, given))
    raise OptionsError(
        f"{run} holds the command {command!r}; ms.resume goes on with searches and "
        f"comparisons: use `masksearch resume {run}`"
    )


def resume_command(
    run: RunArgument,
    trials: Annotated[
        int | None, declare("Another number of trials.", RUN, AS_BEFORE, "N")
    ] = None,
    seconds: Annotated[
        float | None, declare("Another limit of time.", RUN, AS_BEFORE, "SECONDS")
    ] = None,
    executor: Annotated[str | None, declare("Another executor.", PLACE, AS_BEFORE, "NAME")] = None,
    slots: Annotated[
        int | None, declare("Another number of trials at a time.", PLACE, AS_BEFORE, "N")
    ] = None,
    address: Annotated[
        str | None, declare("Another Ray cluster.", PLACE, AS_BEFORE, "ADDRESS")
    ] = None,
) -> None:
    """Go on with a search, an allocation, a comparison, a demo or a pre-training.

    Examples:
        masksearch resume runs/search
        masksearch resume runs/search --trials 16 --slots 2
    """
    changed = {"trials": trials, "seconds": seconds, "executor": executor}
    command, given = read_command(run, {**changed, "slots": slots, "address": address})
    match command:
        case "search":
            show_search(complete(search, given))
        case "compare":
            show_comparison(complete(compare, given))
        case "demo":
            from masksearch.cli.demo import show_demo

            show_demo(**given)
        case "allocate":
            from masksearch.cli.allocate import allocate, show_plans

            show_plans(complete(allocate, given))
        case "pretrain":
            from masksearch.cli.pretrain import pretrain, run_pretraining

            run_pretraining(complete(pretrain, given))
        case _:
            raise OptionsError(f"{run} holds the command {command!r}, which is not known")


def complete(command: Callable[..., None], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command, its defaults where nothing was given."""
    parameters = inspect.signature(command).parameters.items()
    defaults = {name: p.default for name, p in parameters if p.default is not p.empty}
    return defaults | dict(given)
