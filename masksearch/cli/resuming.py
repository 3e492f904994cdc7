"""Commands that can be repeated: what `resume` needs to know, and what Ctrl-C says."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from masksearch.cli.options import OptionsError
from masksearch.errors import HIDDEN
from masksearch.files import read_object, remove_empty, write_text_in_one_move

COMMAND = "command.json"  # what `resume` repeats
BEGUN = ("status.json", "settings.json")  # one of them is written when a run begins
PATHS = {"run", "out", "front", "reuse", "enqueue", "data"}
PLACES = {  # or on the Hub, or one of the names of a method
    *("corpus", "held_out", "tokenizer", "weights", "model", "text", "method", "glue")
}
MASKS = {"mask", "local"}  # an expression, a file or a run
CODE = {"space", "evaluator", "strategy", "executor"}  # file.py:name


@contextmanager
def resumable(folder: Path, command: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Around the work of a command: it can be resumed, and Ctrl-C and SIGTERM say how.

    A command that failed before its work began is forgotten: another one may take the folder, and
    what the folder held before is there again.
    """
    from masksearch.study.status import finished_trials

    path = folder / COMMAND
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    fresh, finished = before is None and not _has_begun(folder), finished_trials(folder)
    remember(folder, command, options)
    try:
        yield
    except KeyboardInterrupt:
        again = f"masksearch resume {shlex.quote(str(folder))}"
        typer.echo(f"stopped; what was finished is kept. Go on with: {again}", err=True)
        raise
    except Exception:
        if _has_begun(folder) if fresh else finished_trials(folder) > finished:
            raise  # it goes on from there
        if before is None:
            path.unlink(missing_ok=True)
            remove_empty(new)
        else:
            write_text_in_one_move(path, before)
        raise


def _has_begun(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    return any((folder / name).is_file() for name in BEGUN)


def remember(run: Path, command: str, options: Mapping[str, Any]) -> None:
    """Writes what `resume` repeats into the run folder, with absolute paths.

    A command that the folder holds already stays, but of a search or a comparison, which goes on
    with other trials or masks and itself refuses what does not belong to the study there.
    Passwords and secret settings are not written: PostgreSQL takes its from PGPASSWORD
    or ~/.pgpass.
    """
    from masksearch.study.storage import hide_secrets, passwords_in
    from masksearch.study.store import storable_storage

    path = run / COMMAND
    if run.exists() and not run.is_dir():
        raise OptionsError(f"{run} is a file; --run names a folder")
    if path.is_file() and command not in ("search", "compare"):
        return
    passwords = passwords_in([options.get("storage"), options.get("set")])
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            plain[name] = None
        elif name in PATHS:
            many = isinstance(value, list)
            plain[name] = [absolute(v) for v in value] if many else absolute(value)
        elif name in PLACES and isinstance(value, str):  # `text` is a list of columns, too
            plain[name] = absolute(value) if Path(value).expanduser().exists() else value
        elif name in CODE and ".py:" in str(value):
            file, colon, function = str(value).rpartition(":")
            plain[name] = f"{Path(file).resolve()}{colon}{function}"
        elif name in MASKS:
            many = isinstance(value, list)
            plain[name] = [_absolute_mask(v) for v in value] if many else _absolute_mask(value)
        elif name == "storage":
            plain[name] = storable_storage(value)
        elif name == "set":
            plain[name] = hide_secrets([*map(_absolute_setting, value)], passwords=passwords)
        else:
            plain[name] = hide_secrets(value, name)
    write_text_in_one_move(path, json.dumps({"command": command, "options": plain}, indent=1))


def absolute(path: Path | str) -> str:
    """A path that holds from any folder."""
    return str(Path(path).expanduser().resolve())


def _absolute_setting(text: str) -> str:
    """`NAME=VALUE` of `--set`, with the path of a file absolute."""
    name, _, value = text.partition("=")
    named = "/" in value or name.rpartition(".")[2] in PLACES
    return f"{name}={absolute(value)}" if named and Path(value).expanduser().exists() else text


def _absolute_mask(text: str) -> str:
    """`NAME=MASK` or `MASK`, with the path of a file or of a run absolute."""
    from masksearch.cli.build import split_name
    from masksearch.masks.text import names_place, names_run

    name, mask = split_name(text)
    if name == text and names_run(mask):  # it is named by its search
        return absolute(mask)
    return f"{name}={absolute(mask)}" if names_place(mask) else text


def read_command(run: Path, changed: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The stored command of a run folder and its options.

    What lay in the run folder is looked for where the folder is now.

    Args:
        run: The folder.
        changed: Options that replace the stored ones; None = as it was.

    Raises:
        OptionsError: If the folder was not begun from the command line, its command has no
            such option, or names a server that the user does not.
        SearchError: If its storage may not be followed (`follow_storage`).
    """
    from masksearch.study.store import follow_storage

    path = run / COMMAND
    if not path.is_file():
        if not run.is_dir():
            raise OptionsError(f"{run}: no such run folder")
        if parts := ", ".join(str(each.parent) for each in sorted(run.glob(f"*/{COMMAND}"))):
            raise OptionsError(f"{run} is a folder of runs; name one: {parts}")
        raise OptionsError(
            f"{run} was not started from the command line (it holds no {COMMAND}); "
            "call ms.search or ms.compare again with the same arguments"
        )
    remedy = "restore it from a copy, or give the command of the run again"
    stored = read_object(path, remedy, command=str, options=dict)
    command, options = stored["command"], stored["options"]
    option_of_folder = "out" if command == "pretrain" else "run"
    if not isinstance(options.get(option_of_folder), str):
        raise OptionsError(f"{path} is damaged (it names no {option_of_folder}); {remedy}")
    before, now = f"{options[option_of_folder]}/", f"{run.resolve()}/"

    def follow(value: Any) -> Any:
        if isinstance(value, list):
            return [follow(each) for each in value]
        return value.replace(before, now) if isinstance(value, str) else value

    options = {name: follow(value) for name, value in options.items()}
    if changed.get("set") and "set" in options:
        every = [*(options["set"] or ()), *changed["set"]]
        last = {each.partition("=")[0]: each for each in every}
        changed = {**changed, "set": list(last.values())}
    for name, value in changed.items():
        if value is not None and name not in options:
            raise OptionsError(f"{run} holds a {command}, which takes no --{name}")
        options |= {name: value} if value is not None else {}
    options[option_of_folder] = str(run)
    if options.get("storage") and changed.get("storage") is None:
        options["storage"] = follow_storage(run, options["storage"])
    for name in ("address", "storage_path"):
        server = str(options.get(name) or "")
        if ":" in server and changed.get(name) is None and server != os.environ.get("RAY_ADDRESS"):
            option = f"--{name.replace('_', '-')} {shlex.quote(server)}"
            raise OptionsError(
                f"the command in {run} names a server, and a run folder may come from a stranger; "
                f"if it is yours, name it, too: {option}"
            )
    for setting in options.get("set") or ():
        if HIDDEN in setting:
            again = setting.replace(HIDDEN, "..")
            raise OptionsError(f"{run} keeps no secrets; give this one again: --set {again}")
    for name in PATHS & set(options):
        if (value := options[name]) is not None:
            options[name] = [Path(v) for v in value] if isinstance(value, list) else Path(value)
    return command, options
