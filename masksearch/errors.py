"""Errors that a user can cause. Each says the rule, the value and the remedy."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast
from urllib.parse import unquote

Function = TypeVar("Function", bound=Callable[..., Any])

NO_MEMORY = re.compile(  # words of torch and its allocators, cuBLAS, cuDNN, Triton, Python, Linux
    "out ?of ?memory|MemoryError|allocate memory|not enough memory|ALLOC_FAILED", re.I
)


# What a terminal obeys, what turns a line round, and halves of characters, which no file takes
CONTROLS = re.compile("[\0-\b\v-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def without_controls(value: Any) -> Any:
    """Texts, and those of plain data, with control characters as escapes; line ends, tabs stay.

    >>> without_controls({"title": "a" + chr(27)})["title"] == "a" + repr(chr(27))[1:-1]
    True
    """
    if isinstance(value, str):
        return CONTROLS.sub(lambda match: ascii(match[0])[1:-1], value)
    if isinstance(value, Mapping):
        return {without_controls(key): without_controls(each) for key, each in value.items()}
    return [without_controls(each) for each in value] if isinstance(value, list) else value


def cut_middle(text: str, most: int) -> str:
    """A text without control characters, of some `most` characters: of a longer one both ends, and
    how much is left out.

    >>> cut_middle("a" * 50 + "b" * 50, 10)
    'aaaaa [90 characters are left out here] bbbbb'
    """
    if (more := len(text) - most) > 0:
        text = f"{text[: most // 2]} [{more} characters are left out here] {text[-(most // 2) :]}"
    return str(without_controls(text))


SECRETS = re.compile(  # words, and endings of words
    "key|auth(orization)?|pass|pwd?|.*(token|secrets?|passw(or)?d|passphrase|credentials?|apikey)"
)
HIDDEN = "***"


def names_secret(name: str, value: str = "") -> bool:
    """Whether a setting of that name is a secret: one of its words is (by . _ - and capitals), or
    one of a setting in its value (ODBC's `PWD=..`).

    >>> [names_secret(name) for name in ("hub.api_key", "hubPassword", "tokenizer", "keys")]
    [True, True, False, False]
    >>> names_secret("odbc_connect", "DSN=x;PWD=y"), names_secret("passfile", "/me/.pgpass")
    (True, False)
    """
    names = " ".join([name, *re.findall(r"\b[\w.-]++(?=\s*=)", unquote(value))])
    words = re.split(r"[ ._-]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", names)
    return any(SECRETS.fullmatch(word.lower()) for word in words)


def hide_passwords(text: str) -> str:
    """A text without control characters, and with `***` for the passwords of its addresses.

    That of `://NAME:..@` reaches to the last @ of its line, since it may hold spaces, quotes and
    slashes; a secret of a query to the next & or the line's end. What stands between goes, too.

    >>> hide_passwords("no answer from postgresql://me:a /b@c@host/db?sslpassword=d e&x=1")
    'no answer from postgresql://me:***@host/db?sslpassword=***&x=1'
    """

    def hide(match: re.Match[str]) -> str:
        return f"{match[1]}{HIDDEN}" if names_secret(match[2], match[3]) else match[0]

    text = re.sub(r"(://[^:/\n]*:).*@", rf"\1{HIDDEN}@", without_controls(text))
    text = re.sub(r"([?&]([\w.-]+)=)(?!\*{3}(?![^&:\s]))([^&\n]*)", hide, text)
    return re.sub(r"(password=)('[^'\n]*'|(?!\*{3}(?![^&:\s]))[^&\s]+)", rf"\1{HIDDEN}", text)


class MaskSearchError(Exception):
    """Base of every error that masksearch raises on purpose."""

    def __str__(self) -> str:
        """The message, which may hold words of a stranger's file."""
        return str(without_controls(super().__str__()))


class EmptyRowError(MaskSearchError, ValueError):
    """A query that may attend to no key at all."""


class HeadCountError(MaskSearchError, ValueError):
    """Masks or models whose head counts do not fit together."""


class LayerCountError(MaskSearchError, ValueError):
    """Masks or models whose layer counts do not fit together."""


class LengthError(MaskSearchError, ValueError):
    """A mask that is asked for a length it does not have."""


class MaskFormatError(MaskSearchError, ValueError):
    """A mask file or expression that cannot be read."""


class TokensNeededError(MaskSearchError, ValueError):
    """Cells of a mask that follows the tokens, asked for where no input ids are known."""


class AttachError(MaskSearchError, ValueError):
    """No mask can be put on this model, or this mask does not fit it."""


class NativeError(MaskSearchError, ValueError):
    """A mask that a model's own configuration cannot name.

    Attributes:
        nearest: A mask that it can name, as near as possible; None where none is known.
    """

    def __init__(self, message: str, nearest: Any = None) -> None:
        super().__init__(message)
        self.nearest = nearest


class DataError(MaskSearchError, ValueError):
    """A corpus or task file that is missing, empty or malformed."""


class NonFiniteLossError(MaskSearchError, FloatingPointError):
    """A loss that became NaN or infinite."""


class SearchError(MaskSearchError, RuntimeError):
    """A search that cannot start or go on."""


class ServerUnreachableError(SearchError):
    """A database server that went away in mid-search and has not come back in time."""


class SpaceError(SearchError):
    """A search space with a mistake in it, which ends the search."""


class ResumeError(MaskSearchError, RuntimeError):
    """A run folder that belongs to another search."""


class EvaluatorError(MaskSearchError, TypeError):
    """An object that does not offer what an evaluator must."""


class CandidateError(MaskSearchError, ValueError):
    """Masks or seeds that cannot be compared."""


class UncountedHops(MaskSearchError, ValueError):
    """Hops of a long mask that would take a table of all cells, or hours."""


class UnknownNameError(MaskSearchError, ValueError):
    """A name that is not among the known ones."""


def unknown_name(what: str, name: str, names: Iterable[str]) -> UnknownNameError:
    """An error that lists the known names, the nearest ones first in a hint.

    >>> str(unknown_name("strategy", "tpee", ["random", "tpe"]))
    "unknown strategy 'tpee'; did you mean 'tpe'? Known: random, tpe"
    """
    names = list(names)
    hint = did_you_mean(name, names) or "."
    return UnknownNameError(f"unknown {what} {name!r}{hint} Known: {', '.join(names)}")


def check_name(what: str, name: str, names: Collection[str]) -> None:
    """Refuses a name that is not among the known ones.

    Raises:
        UnknownNameError: As `unknown_name` makes it.
    """
    if name not in names:
        raise unknown_name(what, name, names)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The nearest known names, as the end of a sentence; empty where none is near.

    >>> did_you_mean("windw", ["window", "stride"])
    "; did you mean 'window'?"
    """
    if name.startswith("_"):  # programs look for such names, people do not
        return ""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=2) or [n for n in names if n == name.lower()]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def place_of(name: str) -> str:
    """Where a name is that does not stand at the top, as the end of a sentence; empty where it is
    nowhere. Nothing is imported for it.

    >>> place_of("MaskSearchError")
    '; it is masksearch.errors.MaskSearchError'
    >>> place_of("window")
    '; it is masksearch.masks.window'
    """
    if name.startswith("_") or not name.isidentifier():  # which people do not write
        return ""
    if importlib.util.find_spec(f"masksearch.{name}"):
        return f"; it is a module: import masksearch.{name}"
    folder, defined = Path(__file__).parent, re.compile(rf'^(class |def |    "){name}\b', re.M)
    for path in (folder / "masks/__init__.py", *sorted(folder.rglob("*.py"))):
        if defined.search(path.read_text(encoding="utf-8")):  # masks/ lists what others define
            module = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
            return f"; it is {module.removesuffix('.__init__')}.{name}"
    return ""


ELSEWHERE = {  # arguments of other libraries of the field -> what is meant here
    "sampler": "strategy=, which takes an Optuna sampler",
    "pruner": "scheduler=, as ms.ParetoHalving()",
    "n_jobs": "executor=ms.Local(slots=N)",
    "timeout": "seconds=",
    "storage": "run=, a folder, or the storage= of an executor",
    "study_name": "run=, a folder",
    "callbacks": "listeners=",
}


def expects(kind: Any, what: str) -> Callable[[Function], Function]:
    """Decorator of what has a run folder: a first argument of another kind is refused before a
    further one is missed, and a name that no argument has with the nearest one, or with what other
    libraries mean by it."""

    def decorate(function: Function) -> Function:
        names = inspect.signature(function).parameters

        @functools.wraps(function)
        def call(*values: Any, **named: Any) -> Any:
            if values and not isinstance(values[0], kind):
                raise TypeError(f"{function.__name__} takes {what}, got {values[0]!r}")
            own = function.__name__
            for name in named.keys() - names.keys():
                meant = f"; here it is {ELSEWHERE[name]}" if name in ELSEWHERE else ""
                raise TypeError(f"{own} takes no {name}={meant or did_you_mean(name, names)}")
            if "run" not in named:
                raise TypeError(f"{own} needs run=, the folder of its run, as run='runs/{own}'")
            return function(*values, **named)

        return cast(Function, call)

    return decorate


def renamed(**successors: str) -> Callable[[Function], Function]:
    """Decorator: arguments by their names of before, with a warning that says the new one."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*values: Any, **named: Any) -> Any:
            for old in successors.keys() & named.keys():
                new = successors[old]
                warn(f"{function.__name__}({old}=) is now {new}=", DeprecationWarning)
                named[new] = named.pop(old)
            return function(*values, **named)

        return cast(Function, call)

    return decorate


def install_command(extra: str) -> str:
    """The command that installs an extra: from the clone that masksearch runs from, if it does."""
    clone = Path(__file__).parents[1]
    if (clone / "pyproject.toml").is_file():
        names = ["decoders", "bench"] if extra == "bench" else [extra]  # one asks for the other
        folders = [path for name in names if (path := clone / f"masksearch-{name}").is_dir()]
        return " ".join([f'pip install -e "{clone}[{extra}]"', *(f'-e "{p}"' for p in folders)])
    return f'pip install "masksearch[{extra}]"'  # adds to what is installed


@contextmanager
def name_extra(extra: str, what: str, also: str = "") -> Iterator[None]:
    """Says what to install where an import within fails.

    Args:
        extra: Brings the package.
        what: What needs it, for the message.
        also: Ends the message.

    Raises:
        DataError: If the package is not installed.
    """
    try:
        yield
    except ImportError as error:
        package = f"the package {str(error.name).replace('_', '-')}"
        raise DataError(f"{what} needs {package}: {install_command(extra)}{also}") from error


def _outside_level() -> int:
    """The `stacklevel` at which a warning points at whoever has called masksearch."""
    level, outside = 0, 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        level += 1
        if frame.f_globals.get("__name__", "").startswith("masksearch"):
            outside = level + 1
        frame = frame.f_back
    return outside


def warn(text: str, kind: type[Warning] = UserWarning) -> None:
    """Warns whoever has called masksearch."""
    warnings.warn(text, kind, stacklevel=_outside_level())


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the CPU.

    >>> ran_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling .."))
    True
    """
    return NO_MEMORY.search(f"{type(error).__name__}: {error}") is not None
