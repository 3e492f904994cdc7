"""The logger of a search for TensorBoard, and the loggers that a command line names.

Curves are written under their steps and runs under their names, so that what comes twice after a
kill (the last record, the steps of trials that ran) stands on its first copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from masksearch.contracts import Listener, Objective, Report
from masksearch.errors import SearchError, UnknownNameError, install_command, unknown_name
from masksearch.loggers.files import CsvLogger, LoggedRecord, RecordLogger

MEMORY = "logged.txt"  # in the folder: keys of the records that its event files hold


class TensorBoardLogger(RecordLogger):
    """Event files for TensorBoard, written by its own writer.

    The search is one run of TensorBoard: front/size, front/hypervolume and the counts over
    the number of finished records, every record's values and measures over its number, and the
    front as a text table whenever it changes. Every trial is a run of its own, `trials/NUMBER`:
    its curve over optimiser steps, while it runs, then its parameters and results for the HPARAMS
    tab.

    Args:
        folder: Where to; `tensorboard --logdir FOLDER` shows it.
        objectives: Those of the study.

    Raises:
        SearchError: If tensorboard is not installed.
    """

    sink = "TensorBoard log"

    def __init__(self, folder: Path | str, objectives: Sequence[Objective]) -> None:
        self.folder = Path(folder)
        super().__init__(objectives, self.folder / MEMORY)
        try:
            import tensorboard  # noqa: F401 (PyTorch's writer, once loaded, does not miss it)
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams
        except ImportError as error:
            raise SearchError(
                f"logging to tensorboard needs its package, which cannot be imported ({error}); "
                f"install it with: {install_command('tensorboard')}"
            ) from error
        self.open: Any = SummaryWriter  # both have no types
        self.hparams: Any = hparams
        self.writer: Any = None
        self.trials: dict[int, Any] = {}  # the writers of running trials

    def start(self) -> None:
        """Opens a new event file; TensorBoard joins it with those of earlier calls."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.writer = self.open(str(self.folder))

    def write(self, entry: LoggedRecord) -> None:
        """The search's figures and the trial's own run, on disk when this returns."""
        record, step = entry.record, entry.state.finished
        for name, value in entry.totals.items():
            self.writer.add_scalar(name, value, step)
        for name, value in entry.figures.items():
            self.writer.add_scalar(f"record/{name}", value, record.number)
        if entry.state.joined:
            rows = entry.front
            table = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
            lines = ["| " + " | ".join(cell(c) for c in row) + " |" for row in table]
            self.writer.add_text("front", "\n".join(lines), step)
        texts = "\n\n".join(f"{name}: {text}" for name, text in entry.texts.items())
        self.writer.add_text(f"record/{record.status}", texts, record.number)
        self.writer.flush()
        numbers = {
            f"params.{n}": v for n, v in record.params.items() if isinstance(v, int | float)
        }
        finals = {f"final/{name}": value for name, value in entry.figures.items()}
        with self._writer_of(record.number) as writer:
            for summary in self.hparams({**entry.texts, **numbers}, finals):
                writer.file_writer.add_summary(summary)
            for name, value in finals.items():
                writer.add_scalar(name, value, record.step)
        del self.trials[record.number]

    def write_steps(self, number: int, reports: Sequence[Report]) -> None:
        """Points of the trial's own curve, on disk when this returns."""
        writer = self._writer_of(number)
        for report in reports:
            for name, value in report.values.items():
                writer.add_scalar(name, value, report.step)
        writer.flush()

    def _writer_of(self, number: int) -> Any:
        """The event file of a trial that runs."""
        if number not in self.trials:
            self.trials[number] = self.open(str(self.folder / "trials" / str(number)))
        return self.trials[number]

    def stop(self) -> None:
        """Closes the event files."""
        for writer in [self.writer, *self.trials.values()]:
            writer.close()


@contextmanager
def open_loggers(
    names: Sequence[str], run: Path, objectives: Sequence[Objective]
) -> Iterator[list[Listener]]:
    """The loggers of a command line, closed at the end; their files are below the run folder.

    `csv` writes log.csv, `tensorboard` the folder tensorboard.

    Args:
        names: Of these two; one that is named twice counts once.
        run: The run folder.
        objectives: Those of the study.

    Raises:
        UnknownNameError: If a name is unknown; names the page on other trackers.
        SearchError: If a library is not installed.
    """
    run = run.absolute()  # whoever changes the working folder moves nothing
    makers: dict[str, Callable[[], RecordLogger]] = {
        "csv": lambda: CsvLogger(run / "log.csv", objectives),
        "tensorboard": lambda: TensorBoardLogger(run / "tensorboard", objectives),
    }
    for name in names:
        if name not in makers:
            error = unknown_name("logger", name, makers)
            raise UnknownNameError(
                f"{error}; docs/running.md feeds MLflow and others by listeners"
            )
    with ExitStack() as stack:
        yield [stack.enter_context(makers[name]()) for name in dict.fromkeys(names)]


def cell(value: object) -> str:
    """A cell of a Markdown table."""
    return str(f"{value:.6g}" if isinstance(value, float) else value).replace("|", "\\|")
