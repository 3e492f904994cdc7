"""A worker process: what runs on the far end of `masksearch.executors.local.Pool`.

It is started afresh (no fork, because torch's threads do not survive one) and does not import
the user's script again: what the script defines comes by value through the pipe.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from masksearch.contracts import Report
from masksearch.errors import SearchError
from masksearch.executors.job import carry_out, folder_of

PARENT_CHECK = 0.5  # seconds between looks whether the driver still lives


def serve(descriptor: int, parent: int) -> None:
    """Answers jobs until the driver closes the pipe or dies.

    Args:
        descriptor: File descriptor of the pipe. The driver is the only one who writes to it.
        parent: Process id of the driver.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's business
    threading.Thread(target=die_with, args=(parent,), daemon=True).start()
    pipe = Connection(descriptor)
    try:
        paths, threads, payload = cloudpickle.loads(heard(pipe))
        sys.path[:] = paths
        import torch

        torch.set_num_threads(threads)
        evaluator, seed, workdir = cloudpickle.loads(payload)
    except Exception:  # told to the driver, which stops the search with it
        say(pipe, "broken", traceback.format_exc())
        return
    say(pipe, "ready", None)

    def goes_on(number: int, report: Report) -> bool:
        say(pipe, "report", report)
        answer: bool = cloudpickle.loads(heard(pipe))
        return answer

    while True:
        proposal = cloudpickle.loads(heard(pipe))
        try:
            record = carry_out(
                proposal,
                evaluator,
                seed=seed,
                workdir=workdir,
                folder=folder_of(proposal),
                on_report=goes_on,
            )
        except SearchError as error:  # a full disk: the search ends, the job stays open
            say(pipe, "fatal", str(error))
            return
        say(pipe, "record", record)


def heard(pipe: Connection) -> bytes:
    """The driver's next message; a driver that is gone ends the worker."""
    try:
        return pipe.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)


def say(pipe: Connection, kind: str, content: Any) -> None:
    """One message to the driver; a driver that is gone ends the worker."""
    try:
        pipe.send_bytes(cloudpickle.dumps((kind, content)))
    except OSError:
        os._exit(0)


def die_with(parent: int) -> None:
    """Ends this process when the driver is gone, so that nobody writes to a resumed run."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK)
    os._exit(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
