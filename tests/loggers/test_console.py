"""What a user sees while a search runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from masksearch import masks
from masksearch.contracts import Evaluate, Objective, Record, RemembersRecords
from masksearch.loggers.console import Watcher

OBJECTIVES = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))


def record(
    number: int, loss: float | None, sparsity: float = 0.5, origin: str = "tpe", status: str = ""
) -> Record:
    return Record(
        number,
        status or ("failed" if loss is None else "done"),
        Evaluate(masks.window(number)),
        origin=origin,
        values={} if loss is None else {"loss": loss},
        measures={"sparsity": sparsity},
        error="Traceback ...\nValueError: broken" if loss is None else "",
    )


RECORDS = [
    record(0, 2.0),
    record(1, 1.0),
    record(2, None),
    record(3, 3.0, sparsity=0.2),
    record(4, 1.5, sparsity=0.7, status="stopped"),
    record(5, 1.5, sparsity=0.6),
]


def shown(terminal: bool, held: list[Record], new: list[Record], width: int = 250) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    with Watcher(OBJECTIVES, 6, "tpe", console) as watcher:
        if held:
            watcher.restore(held)
        for each in new:
            watcher(each)
    return console.file.getvalue()


def test_off_a_terminal_every_record_is_one_line():
    lines = shown(False, [], RECORDS).strip().splitlines()
    assert len(lines) == len(RECORDS)
    assert lines[0] == (
        "tpe 1/6  trial 0  done  tpe  window(0)  seed 0  loss 2.0000  sparsity 0.5000  "
        "0.0 s  joined the front  front 1  hypervolume 4  best loss 2.0000 at sparsity 0.500"
    )
    assert "ValueError: broken" in lines[2]
    assert "tpe 2/6  trial 2  failed" in lines[2]  # a failed trial is made up for by another
    assert lines[2].endswith("1 failed")
    assert "joined" not in lines[3] + lines[4]
    assert lines[4].endswith("1 failed  1 stopped")
    assert "joined the front  front 2  hypervolume 5.35  best loss 1.0000" in lines[5]


def test_on_a_terminal_a_bar_shows_the_front_and_the_best_so_far():
    text = shown(True, [], RECORDS)
    assert "front 2  hypervolume 5.35  best loss 1.0000 at sparsity 0.500  1 failed" in text
    assert "trial 2 failed: ValueError: broken" in text
    assert "sparsity 0.6000  0.0 s  joined the front" in text
    assert "5/6" in text


def test_bar_fits_a_narrow_terminal():
    lines = shown(True, [], RECORDS, width=80).splitlines()
    assert any("5/6" in line for line in lines)
    assert any("front 2  hypervolume 5.35  best loss 1.0000 at sparsity" in x for x in lines)


@pytest.mark.parametrize("terminal", [False, True])
def test_resumed_search_goes_on_counting_with_its_front(terminal):
    assert isinstance(Watcher(OBJECTIVES, 6, "tpe"), RemembersRecords)
    text = shown(terminal, RECORDS[:5], RECORDS[5:])
    assert "5/6" in text
    assert "1/6" not in text
    assert "front 2  hypervolume 5.35  best loss 1.0000 at sparsity 0.500  1 failed" in text
    if not terminal:
        first, last = text.strip().splitlines()
        assert first.startswith("tpe 4/6  resumed  front 1")
        assert last.startswith("tpe 5/6  trial 5")


def test_failed_baselines_and_comparisons_count():
    failed = [record(0, None, origin="baseline:star"), record(1, None, origin="compare")]
    assert "tpe 2/6" in shown(False, [], failed)
    assert "tpe 1/6  resumed" in shown(False, failed, [])  # a comparison runs its failures again


def test_watcher_knows_the_best_record():
    watcher = Watcher(OBJECTIVES, None, "tpe", Console(file=io.StringIO()))
    assert watcher.state.best is None
    for each in RECORDS:
        watcher(each)
    assert watcher.state.best is not None
    assert watcher.state.best.number == 1
