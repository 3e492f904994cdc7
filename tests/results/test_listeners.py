"""What a user sees while a search runs."""

from __future__ import annotations

import io

from rich.console import Console

from masksearch import masks
from masksearch.contracts import Evaluate, Objective, Record
from masksearch.results.listeners import Watcher

OBJECTIVES = (Objective("loss", "min", 10.0),)


def record(number: int, loss: float | None) -> Record:
    return Record(
        number,
        "failed" if loss is None else "done",
        Evaluate(masks.window(number)),
        values={} if loss is None else {"loss": loss},
        measures={"sparsity": 0.5},
        error="Traceback ...\nValueError: broken" if loss is None else "",
    )


def shown(terminal: bool) -> tuple[str, Watcher]:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=150)
    with Watcher(OBJECTIVES, 3, "tpe", console) as watcher:
        for number, loss in enumerate([2.0, 1.0, None]):
            watcher(record(number, loss))
    return console.file.getvalue(), watcher


def test_off_a_terminal_every_record_is_one_line():
    text, watcher = shown(terminal=False)
    lines = text.strip().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("tpe 1/3 done")
    assert "loss 2.0000" in lines[0]
    assert "ValueError: broken" in lines[2]
    assert watcher.best is not None
    assert watcher.best.number == 1


def test_on_a_terminal_a_bar_shows_the_best_so_far():
    text, _ = shown(terminal=True)
    assert "best loss 1.0000 at sparsity 0.500" in text
    assert "trial 2 failed: ValueError: broken" in text
