"""What loggers write, read back with each library's own reader."""

import csv
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from masksearch import masks
from masksearch.contracts import FollowsReports, Objective, RemembersRecords
from masksearch.errors import SearchError, UnknownNameError
from masksearch.loggers.files import CsvLogger, RecordLogger
from masksearch.loggers.trackers import open_loggers
from tests.loggers.conftest import OBJECTIVES, RECORDS

SIZES = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
VOLUMES = pytest.approx([4.0, 4.5, 4.5, 4.5, 4.5, 5.35])


@contextmanager
def opened(name: str, run: Path) -> Iterator[Any]:
    """The logger of that name."""
    with open_loggers([name], run, OBJECTIVES) as (logger,):
        yield logger


def in_two_calls(make) -> None:
    """Three records and a trial that runs, then a resumed search that is told four records, runs
    that trial again, and finds two new ones."""
    with make() as logger:
        logger.restore([])
        for each in RECORDS[:3]:
            logger(each)
        logger.reported(5, RECORDS[5].curve[0])
    logger.close()  # a second time: nothing
    with make() as logger:
        assert isinstance(logger, RemembersRecords)
        logger.restore(RECORDS[:4])  # the fourth was lost by a kill
        for each in RECORDS[4:]:
            logger(each)


# -- while a trial runs ----------------------------------------------------------------------
def csv_steps(folder: Path) -> list[tuple[int, float]]:
    found = rows(folder / "log.curves.csv")
    return [(int(row["step"]), float(row["loss"])) for row in found if row["number"] == "5"]


def tensorboard_steps(folder: Path) -> list[tuple[int, float]]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trial = reader.EventAccumulator(str(folder / "tensorboard/trials/5")).Reload()
    return [(event.step, event.value) for event in trial.Scalars("loss")]


@pytest.mark.parametrize(
    ("name", "steps"),
    [("csv", csv_steps), ("tensorboard", tensorboard_steps)],
    ids=["csv", "tensorboard"],
)
def test_steps_are_there_while_a_trial_runs_and_once_it_was_begun_again(tmp_path, name, steps):
    with opened(name, tmp_path) as logger:
        logger.restore([])
        for report in RECORDS[-1].curve[:2]:
            logger.reported(5, report)
        assert steps(tmp_path) == [(1, 2.5), (2, 2.0)]
    with opened(name, tmp_path) as logger:  # after a kill steps come again, on themselves
        assert isinstance(logger, FollowsReports)
        logger.restore([])
        for report in RECORDS[-1].curve[:2]:
            logger.reported(5, report)
        logger(RECORDS[-1])  # its third step was not heard
    assert sorted(set(steps(tmp_path))) == [(1, 2.5), (2, 2.0), (3, 1.5)]
    assert steps(tmp_path).count((3, 1.5)) == 1


def test_a_sink_that_failed_is_not_asked_at_every_step():
    logger = Flaky()
    with pytest.warns(RuntimeWarning, match="flaky log"):
        logger.restore([])
    for report in RECORDS[0].curve:
        logger.reported(0, report)
    assert logger.tries == 1
    logger.down = False
    logger(RECORDS[0])
    logger.reported(2, RECORDS[1].curve[0])
    assert logger.steps_written == [(0, 1), (0, 2), (0, 3), (2, 1)]


# -- CSV -------------------------------------------------------------------------------------
def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_holds_every_record_once_and_the_front_after_it(tmp_path):
    path = tmp_path / "deep" / "log.csv"
    in_two_calls(lambda: CsvLogger(path, OBJECTIVES))
    found = rows(path)
    assert [int(row["number"]) for row in found] == [r.number for r in RECORDS]
    assert [float(row["front_size"]) for row in found] == SIZES
    assert [float(row["hypervolume"]) for row in found] == VOLUMES
    assert [row["on_front"] for row in found] == ["1", "1", "0", "0", "0", "1"]
    assert [row["status"] for row in found] == [r.status for r in RECORDS]
    first, failed = found[0], found[2]
    assert float(first["loss"]) == 2.0
    assert float(first["hops"]) == float("inf")
    assert float(first["seconds"]) == 1.5
    assert first["mask"] == str(masks.window(0))
    assert json.loads(first["params"]) == {"reach": 0, "kind": "window"}
    assert json.loads(first["values"]) == {"loss": 2.0}
    assert failed["error"] == "ValueError: a, b"
    assert failed["loss"] == ""


def test_csv_repairs_a_row_that_was_cut_off(tmp_path):
    path = tmp_path / "log.csv"
    with CsvLogger(path, OBJECTIVES) as logger:
        logger(RECORDS[0])
        logger(RECORDS[1])
    path.write_bytes(path.read_bytes()[:-20])
    with CsvLogger(path, OBJECTIVES) as logger:
        logger.restore(RECORDS[:3])
    assert [int(row["number"]) for row in rows(path)] == [0, 2, 1]


def test_csv_of_another_search_is_refused(tmp_path):
    with CsvLogger(tmp_path / "log.csv", OBJECTIVES) as logger:
        logger(RECORDS[0])
    with pytest.raises(SearchError, match="choose another file"):
        CsvLogger(tmp_path / "log.csv", (Objective("glue", "max", 0.0),)).restore([])


# -- a sink that fails -----------------------------------------------------------------------
class Flaky(RecordLogger):
    """Fails while `down`."""

    sink = "flaky log"

    def __init__(self, memory: Path | None = None) -> None:
        super().__init__(OBJECTIVES, memory)
        self.down, self.numbers, self.tries = True, [], 0
        self.steps_written: list[tuple[int, int]] = []

    def start(self) -> None:
        self.tries += 1
        if self.down:
            raise ConnectionError("refused")

    def write(self, entry) -> None:
        self.start()
        self.numbers.append(entry.record.number)

    def write_steps(self, number, reports) -> None:
        if self.down:
            raise ConnectionError("refused")
        self.steps_written += [(number, report.step) for report in reports]


def test_sink_that_fails_is_said_once_and_loses_no_record():
    logger = Flaky()
    with pytest.warns(RuntimeWarning, match=r"flaky log .*ConnectionError: refused.* goes on"):
        logger.restore([])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in RECORDS[:3]:
            logger(each)
        assert logger.tries == 1 + 3  # once a record
        logger.down = False
        logger(RECORDS[3])
        logger.down = True  # again, with the sink open
        logger(RECORDS[4])
        logger.down = False
        logger(RECORDS[5])
        logger.close()
    assert logger.numbers == [r.number for r in RECORDS]
    assert logger.steps_written[:4] == [(0, 1), (0, 2), (0, 3), (2, 1)]


def test_resumed_search_adds_what_a_sink_lacks(tmp_path):
    memory = tmp_path / "logged.txt"
    for held, numbers in ((RECORDS[:2], [0, 2]), (RECORDS[:3], [1]), (RECORDS[:3], [])):
        logger = Flaky(memory)
        logger.down = False
        logger.restore(held)
        assert logger.numbers == numbers
    logger(RECORDS[2])  # written already
    logger(RECORDS[3])
    assert logger.numbers == [3]
    memory.write_bytes(memory.read_bytes()[:-9])  # a kill while it was written
    for numbers in ([3], []):
        logger = Flaky(memory)
        logger.down = False
        logger.restore(RECORDS[:4])
        assert logger.numbers == numbers


def test_records_are_enqueued_before_they_are_written():
    logger = Flaky()
    logger.down = False
    for each in RECORDS[:2]:
        logger.enqueue(each)
    assert logger.numbers == []
    logger(RECORDS[2])
    assert logger.numbers == [each.number for each in RECORDS[:3]]


def test_search_goes_on_where_the_disk_refuses(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.warns(RuntimeWarning, match="CSV log does not take records"),
        CsvLogger(tmp_path / "file" / "log.csv", OBJECTIVES) as logger,
    ):
        logger(RECORDS[0])


# -- TensorBoard -----------------------------------------------------------------------------
def test_tensorboard_reads_back_front_records_curves_and_parameters(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    in_two_calls(lambda: opened("tensorboard", tmp_path))
    search = reader.EventAccumulator(str(tmp_path / "tensorboard"), {"tensors": 0}).Reload()
    size = search.Scalars("front/size")
    assert [(e.step, e.value) for e in size] == list(enumerate(SIZES, start=1))
    assert [e.value for e in search.Scalars("front/hypervolume")] == VOLUMES
    assert [(e.step, e.value) for e in search.Scalars("record/loss")] == [
        (r.number, r.values["loss"]) for r in RECORDS if r.values
    ]
    assert [e.step for e in search.Tensors("front/text_summary")] == [1, 2, 6]
    table = search.Tensors("front/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert table.splitlines()[2:] == [
        "| 2 | tpe |  | 7 | 1 | 0.5 | window(2) |",
        "| 5 | tpe |  | 7 | 1.5 | 0.6 | window(5) |",
    ]
    words = search.Tensors("record/failed/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "error: ValueError: a, b" in words
    trial = reader.EventAccumulator(str(tmp_path / "tensorboard/trials/5")).Reload()
    curve = {(event.step, event.value) for event in trial.Scalars("loss")}
    assert curve == {(1, 2.5), (2, 2.0), (3, 1.5)}
    assert trial.Scalars("final/loss")[0].value == 1.5
    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    content = trial.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["params.reach"].number_value == 5
    assert start.hparams["mask"].string_value == "window(5)"


# -- the command line's loggers --------------------------------------------------------------
@pytest.mark.nightly
def test_open_loggers_put_their_files_below_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    with open_loggers(["csv", "tensorboard", "csv"], tmp_path / "run", OBJECTIVES) as loggers:
        assert len(loggers) == 2
        for logger in loggers:
            logger(RECORDS[0])
    assert len(rows(tmp_path / "run/log.csv")) == 1
    assert list((tmp_path / "run/tensorboard").glob("events.*"))
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize(
    ("name", "words"),
    [("tensorbord", "did you mean 'tensorboard'"), ("mlflow", r"docs/running\.md feeds MLflow")],
)
def test_open_loggers_refuse_an_unknown_name(tmp_path, name, words):
    with (
        pytest.raises(UnknownNameError, match=words),
        open_loggers(["csv", name], tmp_path, OBJECTIVES),
    ):
        pass
    assert not list(tmp_path.iterdir())
    with open_loggers([], tmp_path, OBJECTIVES) as loggers:
        assert loggers == []


def test_missing_library_gives_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with (
        pytest.raises(SearchError, match=r'pip install .*\[tensorboard\]"'),
        open_loggers(["tensorboard"], tmp_path, OBJECTIVES),
    ):
        pass
