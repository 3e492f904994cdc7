"""Commands that can be repeated: what `resume` needs to know, and what Ctrl-C says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

COMMAND = "command.json"  # what `resume` repeats
PATHS = {"run", "out", "found", "reuse"}
PLACES = {"corpus", "held_out", "tokenizer", "weights", "glue", "squad", "swag"}  # or on the Hub
CODE = {"space", "evaluator", "strategy", "executor"}  # file.py:name


@contextmanager
def resumable(folder: Path, command: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Around the work of a command: it can be resumed, and Ctrl-C and SIGTERM say how."""
    remember(folder, command, given)
    try:
        yield
    except KeyboardInterrupt:
        again = f"masksearch resume {shlex.quote(str(folder))}"
        typer.echo(f"stopped; what was finished is kept. Go on with: {again}", err=True)
        raise


def remember(run: Path, command: str, given: Mapping[str, Any]) -> None:
    """Writes what `resume` repeats into the run folder, with absolute paths.

    A command that the folder holds already stays: it belongs to the study there, and `search`
    itself refuses another one. Passwords are not written: PostgreSQL takes them from PGPASSWORD
    or ~/.pgpass.
    """
    path = run / COMMAND
    if path.is_file():
        return
    plain: dict[str, Any] = {}
    for name, value in given.items():
        if name in PATHS and value is not None:
            many = isinstance(value, list)
            plain[name] = [str(Path(v).resolve()) for v in value] if many else absolute(value)
        elif name in PLACES and value is not None:
            plain[name] = absolute(value) if Path(value).expanduser().exists() else value
        elif name in CODE and ".py:" in str(value):
            file, colon, function = str(value).rpartition(":")
            plain[name] = f"{Path(file).resolve()}{colon}{function}"
        elif name == "storage" and value is not None:
            plain[name] = without_password(value)
        else:
            plain[name] = value
    run.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": command, "options": plain}, indent=1), encoding="utf-8")


def absolute(path: Path | str) -> str:
    """A path that holds from any folder."""
    return str(Path(path).expanduser().resolve())


def without_password(storage: str) -> str:
    """A storage as it may be written down; journals with their absolute path.

    >>> without_password("postgresql://me:secret@db/masks")
    'postgresql://me@db/masks'
    """
    if storage.startswith("journal:"):
        return f"journal:{absolute(storage.removeprefix('journal:'))}"
    return re.sub(r"(?<=://)([^:/@]*):[^@]*@", r"\1@", storage)
