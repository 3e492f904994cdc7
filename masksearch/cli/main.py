"""The command line. Heavy imports stand inside the commands, so that `--help` is quick."""

from __future__ import annotations

import gc
import inspect
import os
import platform
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from masksearch.cli import habits
from masksearch.cli.check import check
from masksearch.cli.doctor import doctor, installed_version
from masksearch.cli.models import attach, export, sparsify
from masksearch.cli.options import (
    RUN,
    WIDEST,
    CommandsInGroups,
    CommandWithExamples,
    OptionsError,
    Run,
    RunArgument,
    Settings,
    Slots,
    declare,
    described,
    new_program,
    takes,
)
from masksearch.cli.pretrain import pretrain
from masksearch.cli.report import report, status
from masksearch.cli.resuming import read_command
from masksearch.cli.search import (
    CompareOptions,
    SearchOptions,
    compare,
    run_compare,
    run_search,
    search,
)
from masksearch.errors import MaskSearchError, ServerUnreachableError, cut_middle, warn
from masksearch.files import FULL
from masksearch.neighbours import load_part, offered
from masksearch.user_code import load_file

if TYPE_CHECKING:
    from masksearch.driver import Comparison, Study

ClickError: Any = typer.BadParameter.__mro__[2]  # typer's ClickException, wherever it lives

Command = TypeVar("Command", bound=Callable[..., Any])

LONGEST = 20_000  # characters of a message
MISTAKE = 2  # exit code after a user's mistake
TRY_AGAIN = 75  # where the same command may work later (EX_TEMPFAIL of sysexits.h)
SOON = 5.0  # seconds after which a command says that it works
INTERRUPTED = 130  # after Ctrl-C, as shells have it

# Groups of commands in `masksearch --help`, in the order of use.
BEGIN = "Begin here"
SEARCH = "1. Search masks"
COMPARE = "2. Compare them, and say what may be claimed"
MODELS = "3. Put a mask on a model"
BESIDE = {"proxy-card": COMPARE}  # commands of distributions beside this one, but those on models


class Program(CommandsInGroups):
    """The commands here and those of distributions beside this one; each is
    imported when it is called, or when all are listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all."""
        for name in offered("commands"):
            self.get_command(ctx, name)
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, name: str) -> Any:
        """The command of that name; None where there is none, when the nearest may be any."""
        if name not in self.commands:
            if (function := load_part("commands", name, "command")) is None:
                self.list_commands(ctx)
            else:
                command(BESIDE.get(name, MODELS), name)(function)
                self.commands.update(typer.main.get_group(app).commands)
        return self.commands.get(name)


app = new_program("masksearch", Program)


def command(group: str, name: str | None = None) -> Callable[[Command], Command]:
    """Makes a function a command, listed in that group, with its examples below its options."""
    return app.command(
        name, cls=CommandWithExamples, context_settings=WIDEST, rich_help_panel=group
    )


def _print_versions(asked: bool) -> None:
    """Prints what a report of a mistake should say, without loading any of it."""
    if not asked:
        return
    packages = ("torch", "optuna", "transformers")
    versions = ", ".join(f"{name} {installed_version(name)}" for name in packages)
    typer.echo(f"masksearch {installed_version('masksearch')}")
    typer.echo(f"Python {platform.python_version()}, {versions}")
    raise typer.Exit


@app.callback()
def _load_user_files(
    load: Annotated[
        list[Path] | None,
        declare(
            "A Python file with masks of your own, which the command then knows; repeatable. "
            "Stands before the command.",
            "Options",
            "none",
            "FILE.py",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of masksearch, Python, torch, optuna and transformers.",
            callback=_print_versions,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Search the attention masks of Transformers, and compare them with hand-designed ones.

    Each command explains itself: masksearch COMMAND --help.
    """
    for path in load or []:
        load_file(path)


@command(BEGIN)
def demo(
    run: Run = Path("runs/demo"),
    slots: Slots = 2,
    data: Annotated[
        Path | None,
        declare(
            "Search nothing: write small data that the README's commands take into this folder.",
            "Options",
            "none",
            "FOLDER",
        ),
    ] = None,
) -> None:
    """Search with four strategies, in four minutes, on data whose best masks are known.

    DAM, TPE, NSGA-II and random search run three times each on planted text, where the best
    accuracy of every mask is known exactly. So the page can say how near each of them came.

    Examples:
        masksearch demo
        masksearch demo --run runs/demo --slots 1
        masksearch demo --data data
    """
    from masksearch.cli.demo import show_demo, write_data
    from masksearch.study.console import progress

    if data is not None:
        with progress("demo"):
            typer.echo("\n".join(write_data(data.expanduser())))
        return
    show_demo(run.expanduser(), slots)


def resume(
    run: Path | str,
    *,
    trials: int | None = None,
    seconds: float | None = None,
    executor: str | None = None,
    slots: int | None = None,
    address: str | None = None,
    storage: str | None = None,
    storage_path: str | None = None,
    settings: Sequence[str] = (),
) -> Study | Comparison:
    """Continues a search or comparison that the command line began, as `masksearch resume`.

    It repeats what `command.json` in the run folder says. A run that Python began has none:
    call `search` or `compare` again with the same arguments.

    Args:
        run: Folder of the run; it may have moved.
        trials: Another number of trials; None = as before.
        seconds: Another limit of time; None = as before.
        executor: Another executor, by its name on the command line; None = as before.
        slots: Another number of trials at a time; None = as before.
        address: Another Ray cluster; None = as before, which is said again where it is a server.
        storage: Where the study is; None = as before, which is said again where it is outside of
            the run folder, unless `MASKSEARCH_STORAGE` names it.
        storage_path: As in `RayTune`; None = as before, which is said again where it is a server.
        settings: As `--set`, those that are secrets (a token, key, password) and were not kept.

    Returns:
        The study of a search, or the comparison.

    Raises:
        OptionsError: If the folder holds no command, or that of something else.
        ResumeError: If a file that the command names has changed.
    """
    changed: dict[str, Any] = {"trials": trials, "seconds": seconds}
    changed |= {"executor": executor, "slots": slots, "set": list(settings) or None}
    changed |= {"address": address, "storage": storage, "storage_path": storage_path}
    command, stored = _read_known_command(Path(run), changed)
    if command == "search":
        return run_search(SearchOptions(**stored))
    if command == "compare":
        return run_compare(CompareOptions(**stored))
    raise OptionsError(
        f"{run} holds the command {command!r}; ms.resume goes on with searches and "
        f"comparisons: use `masksearch resume {run}`"
    )


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Options of resume."""

    run: RunArgument
    set: Settings = None
    trials: int | None = described(RUN)
    seconds: float | None = described(RUN)
    executor: str | None = described(RUN)
    slots: int | None = described(RUN)
    address: str | None = described(RUN)
    storage: str | None = described(RUN)
    storage_path: str | None = described(RUN)


@takes({"": "masksearch.cli.main:resume"})
def resume_command(options: ResumeOptions) -> None:
    """Continue a search, an allocation, a comparison, a demo or a pre-training.

    Examples:
        masksearch resume runs/search
        masksearch resume runs/search --trials 16 --slots 2
    """
    changed = dict(vars(options))
    command, stored = _read_known_command(changed.pop("run"), changed)
    repeated(command)(**stored)


REPEATED = {each.__name__: each for each in (search, compare, pretrain, demo)}


def repeated(command: str) -> Any:
    """The function of a command that a run folder holds; None where there is none."""
    return REPEATED.get(command) or load_part("commands", command, "command")


def _read_known_command(run: Path, changed: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """As `read_command`; refuses a command and options that this version does not have."""
    command, options = read_command(run, changed)
    if (function := repeated(command)) is None:
        raise OptionsError(f"{run} holds the command {command!r}, which is not known")
    known = inspect.signature(function).parameters
    if loggers := options.pop("log", None):
        warn(f"{run}: loggers ({loggers}) are passed over; docs/running.md has listeners instead")
    if more := sorted(name for name in options.keys() - known if options[name] is not None):
        raise OptionsError(
            f"{run} holds options that `masksearch {command}` does not have "
            f"({', '.join(more)}): report it, or give its command in another folder without them"
        )
    return command, {name: value for name, value in options.items() if name in known}


command(BEGIN)(doctor)
command(BEGIN)(check)
command(SEARCH)(search)
command(SEARCH)(status)
command(SEARCH, "resume")(resume_command)
command(SEARCH)(export)
command(COMPARE)(compare)
command(COMPARE)(report)
command(MODELS)(attach)
command(MODELS)(sparsify)
command(MODELS)(pretrain)


def main() -> None:
    """Entry point of `masksearch`."""
    run_program(app, sys.argv[1:] or ["--help"])


def run_program(program: typer.Typer, words: Sequence[str]) -> NoReturn:
    """Runs a command line: a user's mistake is one line on standard error and exit code 2.

    Args:
        program: Its commands.
        words: What follows its name.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end is Ctrl-C
    warnings.formatwarning = _one_line
    works = f"{program.info.name}: at work; it reads and prepares before the first result"
    over = threading.Event()
    word = works, threading.get_ident(), over
    threading.Thread(target=_say_that_it_works, args=word, daemon=True).start()
    try:
        code = program(words, standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except ClickError as error:
        fail(_usage_mistake(error, words))
    except (MaskSearchError, ValueError, OSError) as error:
        if os.environ.get("MASKSEARCH_DEBUG"):
            traceback.print_exc()
        text = str(error)
        if isinstance(error, OSError) and error.errno in FULL:
            text = f"disk full: {error}; free space and repeat the command"
        fail(text, TRY_AGAIN if isinstance(error, ServerUnreachableError) else MISTAKE)
    finally:
        over.set()
        gc.freeze()  # else the end looks through all that libraries have made, for a second
    sys.exit(code or 0)  # (typer answers Ctrl-C with 130)


def _say_that_it_works(works: str, thread: int, over: threading.Event) -> None:
    """Says so once, unless the command still loads libraries: it has not checked its arguments
    then, and no such line stands before a mistake in them."""
    seconds = SOON
    while not over.wait(seconds):
        frame, seconds = sys._current_frames().get(thread), 0.5
        while frame is not None and "importlib" not in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is None:
            return typer.echo(works, err=True)
    return None


def _usage_mistake(error: Any, words: Sequence[str]) -> str:
    """Typer's message on words that are no command line of ours, and what is meant: the nearest
    option, or what people write elsewhere."""
    near = getattr(error, "possibilities", None)
    if getattr(error, "option_name", "") == "--run":  # which other commands have
        return f"{error.message}; the run stands alone: {error.ctx.command_path} RUN"
    message, meant = error.format_message(), habits.answer(error, words)
    if meant and (
        not near or habits.setting_of(getattr(error, "option_name", "")) in habits.SETTINGS
    ):
        return f"{message.rstrip('.')}; {meant}"
    if near:
        return f"{error.message}; did you mean {near[0]!r}?"
    if message.endswith("?") or error.ctx is None:
        return str(message)
    return f"{message.rstrip('.')}; see: {error.ctx.command_path} --help"


def fail(message: str, code: int = MISTAKE) -> NoReturn:
    """One line, and an exit code."""
    typer.echo(f"error: {cut_middle(' '.join(message.split()), LONGEST)}", err=True)
    sys.exit(code)


def _one_line(message: Warning | str, *where: object, **line: object) -> str:
    """A warning as people read it: without the place in the code."""
    return f"warning: {cut_middle(' '.join(str(message).split()), LONGEST)}\n"
