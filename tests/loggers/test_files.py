"""What loggers write, read back with each library's own reader."""

from __future__ import annotations

import csv
import json
import struct
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from masksearch import masks
from masksearch.contracts import (
    Evaluate,
    FollowsReports,
    Objective,
    Record,
    RemembersRecords,
    Report,
)
from masksearch.errors import SearchError, UnknownNameError
from masksearch.loggers.files import CsvLogger, RecordLogger
from masksearch.loggers.trackers import open_loggers
from masksearch.study.storage import sqlite_url

OBJECTIVES = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))


def record(number: int, loss: float | None, sparsity: float = 0.5, **fields) -> Record:
    curve = () if loss is None else tuple(Report(s, {"loss": loss + 1 / s}) for s in (1, 2))
    return Record(
        number,
        fields.pop("status", "failed" if loss is None else "done"),
        Evaluate(masks.window(number)),
        fingerprint=f"f{number}",
        protocol="p",
        seed=7,
        params={"reach": number, "kind": "window"},
        origin="tpe",
        values={} if loss is None else {"loss": loss},
        step=0 if loss is None else 3,
        curve=(*curve, Report(3, {"loss": loss})) if loss is not None else (),
        measures={"sparsity": sparsity, "hops": float("inf")},
        seconds=1.5,
        error="Traceback\nValueError: a, b" if loss is None else "",
    )


RECORDS = [
    record(0, 2.0),
    record(2, 1.0),
    record(1, None),
    record(3, 3.0, sparsity=0.2),
    record(4, 1.5, sparsity=0.7, status="stopped"),
    record(5, 1.5, sparsity=0.6),
]
SIZES = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
VOLUMES = pytest.approx([4.0, 4.5, 4.5, 4.5, 4.5, 5.35])


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
    }.items():
        monkeypatch.setenv(name, value)


@contextmanager
def opened(name: str, run: Path) -> Iterator[Any]:
    """The logger of that name."""
    with open_loggers([name], run, OBJECTIVES) as (logger,):
        yield logger


def feed(name: str, run: Path) -> None:
    """A new search from its beginning to its end."""
    with opened(name, run) as logger:
        logger.restore([])
        for each in RECORDS:
            logger(each)


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

    place = "flaky log"

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


# -- MLflow ----------------------------------------------------------------------------------
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["mine", "is it mine? 50%25"])
def test_mlflow_reads_back_a_run_for_the_search_and_one_for_each_trial(tmp_path, name):
    mlflow = pytest.importorskip("mlflow")
    in_two_calls(lambda: opened("mlflow", tmp_path / name))
    client = mlflow.MlflowClient(sqlite_url(tmp_path / name / "mlflow" / "mlflow.db"))
    runs = client.search_runs([client.get_experiment_by_name("masksearch").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.run_name, parent.info.status) == (name, "FINISHED")
    history = client.get_metric_history(parent.info.run_id, "front/hypervolume")
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == VOLUMES
    assert parent.data.metrics["front/size"] == 2
    assert parent.data.metrics["search/failed"] == 1
    artifacts = tmp_path / name / "mlflow/artifacts" / parent.info.run_id / "artifacts"
    front = json.loads((artifacts / "front.json").read_text())
    assert [row["number"] for row in front["front"]] == [2, 5]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert sorted(children) == [f"trial {number}" for number in range(6)]
    assert all(r.data.tags["mlflow.parentRunId"] == parent.info.run_id for r in children.values())
    statuses = [children[f"trial {n}"].info.status for n in range(6)]
    assert statuses == ["FINISHED", "FAILED", "FINISHED", "FINISHED", "KILLED", "FINISHED"]
    trial = children["trial 5"].data
    assert trial.params["params.reach"] == "5"
    assert trial.params["mask"] == "window(5)"
    assert trial.params["hops"] == "inf"
    assert trial.metrics["loss"] == 1.5
    curve = client.get_metric_history(children["trial 5"].info.run_id, "curve/loss")
    assert {(m.step, m.value) for m in curve} == {(1, 2.5), (2, 2.0), (3, 1.5)}
    assert children["trial 1"].data.params["error"] == "ValueError: a, b"


@pytest.mark.slow
def test_mlflow_server_that_is_down_does_not_end_a_search(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.warns(RuntimeWarning) as found:
        feed("mlflow", tmp_path)
    texts = [str(w.message) for w in found if "MLflow log" in str(w.message)]
    assert len(texts) == 1
    assert "the search goes on" in texts[0]


# -- Weights & Biases ------------------------------------------------------------------------
def logged_messages(data: bytes) -> Iterator[bytes]:
    """The messages of a LevelDB log: 7 bytes of its own, then blocks of 32 KiB, in which every
    piece of a message has a checksum (4 bytes), its length (2) and its kind (1)."""
    at, message = 7, b""
    while at + 7 <= len(data):
        if 32_768 - at % 32_768 < 7:  # the rest of a block is too short for a head
            at += 32_768 - at % 32_768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if at + 7 + length > len(data):
            return  # the rest is being written
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield message
            message = b""


@dataclass(frozen=True)
class OfflineRun:
    name: str
    group: str
    kind: str
    identity: str
    steps: list[dict[str, object]]


def offline_runs(folder: Path, kind: str) -> list[OfflineRun]:
    """The runs of a kind ("search" or "trial") below a folder, oldest first."""
    from wandb.proto import wandb_internal_pb2

    runs = []
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):
        kinds: list[str] = []
        deadline = time.monotonic() + 120
        while kinds[-1:] != ["exit"]:  # its own process writes the file, a moment after `finish`
            assert time.monotonic() < deadline, kinds
            time.sleep(0.02)
            messages = logged_messages(path.read_bytes())
            entries = [wandb_internal_pb2.Record.FromString(data) for data in messages]
            kinds = [entry.WhichOneof("record_type") for entry in entries]
        run = entries[kinds.index("run")].run
        steps = [
            {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in entry.history.item}
            for entry, kind in zip(entries, kinds, strict=True)
            if kind == "history"
        ]
        found = OfflineRun(run.display_name, run.run_group, run.job_type, run.run_id, steps)
        runs.append((run.start_time.ToNanoseconds(), found))
    runs.sort(key=lambda run: run[0])
    return [run for _, run in runs if run.kind == kind]


@pytest.mark.nightly
def test_wandb_reads_back_a_run_for_the_search_and_one_for_each_trial(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    in_two_calls(lambda: opened("wandb", tmp_path / "mine"))
    searches = offline_runs(tmp_path / "mine", "search")
    assert [len(search.steps) for search in searches] == [3, 3]  # one a call, which cannot go on
    steps = [step for search in searches for step in search.steps]
    assert [s["search/finished"] for s in steps] == [1, 2, 3, 4, 5, 6]
    assert [s["record/number"] for s in steps] == [r.number for r in RECORDS]
    assert [s["front/size"] for s in steps] == SIZES
    assert [s["front/hypervolume"] for s in steps] == VOLUMES
    assert steps[0]["record/loss"] == 2.0
    assert steps[0]["record/mask"] == "window(0)"
    assert steps[2]["record/error"] == "ValueError: a, b"
    changes = [s["search/finished"] for s in steps if any("front/table" in key for key in s)]
    assert changes == [1, 2, 6]
    tables = tmp_path.glob("mine/wandb/offline-run-*/files/media/table/front/*.json")
    assert {len(json.loads(path.read_text())["data"]) for path in tables} == {1, 2}
    trials = offline_runs(tmp_path / "mine", "trial")
    assert sorted(run.name for run in trials) == [f"trial {n}" for n in (0, 1, 2, 3, 4, 5, 5)]
    assert {run.group for run in [*searches, *trials]} == {"mine"}
    begun, whole = (run for run in trials if run.name == "trial 5")  # it was interrupted
    assert begun.identity == whole.identity
    assert [(s["_step"], s["loss"]) for s in whole.steps] == [(1, 2.5), (2, 2.0), (3, 1.5)]
    assert len(begun.steps) == 1
    assert next(run for run in trials if run.name == "trial 1").steps == []  # failed at once


@pytest.mark.slow
def test_wandb_without_an_account_does_not_end_a_search(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "online")
    with (
        pytest.warns(RuntimeWarning, match="Weights & Biases log does not take records"),
        opened("wandb", tmp_path) as logger,
    ):
        logger(RECORDS[0])


# -- the command line's loggers --------------------------------------------------------------
@pytest.mark.nightly
def test_open_loggers_put_their_files_below_the_run(tmp_path, monkeypatch):
    for library in ("tensorboard", "mlflow", "wandb"):
        pytest.importorskip(library)
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = ["csv", "tensorboard", "mlflow", "wandb", "csv"]
    with open_loggers(names, tmp_path / "run", OBJECTIVES) as loggers:
        assert len(loggers) == 4
        for logger in loggers:
            logger(RECORDS[0])
    assert len(rows(tmp_path / "run/log.csv")) == 1
    assert list((tmp_path / "run/tensorboard").glob("events.*"))
    assert (tmp_path / "run/mlflow/mlflow.db").is_file()
    assert [len(run.steps) for run in offline_runs(tmp_path / "run", "search")] == [1]
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_open_loggers_refuse_an_unknown_name(tmp_path):
    with (
        pytest.raises(UnknownNameError, match="did you mean 'wandb'"),
        open_loggers(["csv", "wandbd"], tmp_path, OBJECTIVES),
    ):
        pass
    assert not list(tmp_path.iterdir())
    with open_loggers([], tmp_path, OBJECTIVES) as loggers:
        assert loggers == []


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_missing_library_gives_the_command_that_installs_it(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(SearchError, match=rf'pip install .*\[{name}\]"'),
        open_loggers([name], tmp_path, OBJECTIVES),
    ):
        pass
