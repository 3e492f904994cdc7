"""One output of a notebook's cell that changes in place and stays, short, in the saved file."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType

PAUSE = 0.5  # seconds between two updates
WIDTH = 120  # characters of a line


class NotebookOutput:
    """Shows what `render` returns, as plain text, and again whenever it is asked to.

    Args:
        render: What to show now.
    """

    def __init__(self, render: Callable[[], RenderableType]) -> None:
        self.render = render
        self.handle: Any = None  # IPython's
        self.due = 0.0

    def start(self) -> None:
        """Makes the output in the cell that runs."""
        from IPython import display  # in a notebook it is there

        show: Any = display.display  # not typed in IPython
        self.handle = show(self.content(), raw=True, display_id=True)

    def refresh(self) -> None:
        """Shows the present state, unless that was done half a second ago."""
        if time.monotonic() >= self.due:
            self.update()

    def stop(self) -> None:
        """Shows the last state, which stays."""
        self.update()

    def update(self) -> None:
        """Shows the present state."""
        self.due = time.monotonic() + PAUSE
        if self.handle is not None:
            self.handle.update(self.content(), raw=True)

    def content(self) -> dict[str, str]:
        """The present state as a notebook keeps it."""
        console = Console(
            file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False,
            force_jupyter=False,
        )  # fmt: skip
        with console.capture() as text:
            console.print(self.render())
        lines = (line.rstrip() for line in text.get().splitlines())
        return {"text/plain": "\n".join(lines)}
