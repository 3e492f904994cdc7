"""Code from outside of the package: functions and classes of a user, named as
`path/to/file.py:name`.

The search spaces of the package are files like a user's, and can be named as modules.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
import sys
import sysconfig
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, EllipsisType, ModuleType
from typing import TYPE_CHECKING, Any

from masksearch.errors import (
    EvaluatorError,
    MaskSearchError,
    check_name,
    cut_middle,
    hide_passwords,
    unknown_name,
)
from masksearch.files import text_hash

if TYPE_CHECKING:  # contracts load torch, which `masksearch --help` does not wait for
    from optuna.trial import BaseTrial

    from masksearch.contracts import Shape, Strategy

LONGEST = 2_000  # characters of an error's own words
BUDGET = "budget"  # the name under which a record's parameters hold what its draw may cost
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
SPACES = Path(__file__).parent / "spaces"  # in a clone a link to search_spaces/
NEIGHBOURS: dict[str, Path] = {}  # modules that users' files have loaded from their folders
PARSING = threading.Lock()  # Python 3.11 counts the parser's depth for all threads together
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class UserCodeError(MaskSearchError, ValueError):
    """A file or name that cannot be loaded, or that is not what it is loaded for."""


def load_file(path: Path) -> ModuleType:
    """Runs a Python file as a module of its own, so that its mask leaves are known.

    It may import its neighbours: its folder stands last on `sys.path` meanwhile, so that none of
    them hides an installed module. Workers get them by value (`pickle_by_value`).

    Raises:
        UserCodeError: If there is no such file, or importing it fails.
    """
    if not path.is_file():
        raise UserCodeError(
            f"{path}: no such file; write FILE.py:NAME, or masksearch.spaces:NAME for a space of "
            "the package"
        )
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserCodeError(f"{path}: not a Python file")
    module = module_from_spec(spec)
    folder = path.resolve().parent
    here = f"{folder}/."  # which no file of a user's removes, or finds there already
    for name in [n for n, of in NEIGHBOURS.items() if of != folder and beside(folder, n)]:
        sys.modules.pop(name, None)  # another folder's of that name
    before = sys.modules.keys() - {path.stem}
    sys.modules[path.stem] = module
    sys.path.append(here)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserCodeError(f"{path}: importing it failed: {describe_error(error)}") from error
    finally:
        sys.path.remove(here)
        NEIGHBOURS.update({n: folder for n in sys.modules.keys() - before if beside(folder, n)})
    return module


def beside(folder: Path, name: str) -> bool:
    """Whether a folder holds a module of that name."""
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def describe_error(error: BaseException) -> str:
    """An error of a user's code in one line: what it is, and the line of the file that it is in.

    The line is the last one on the way to the error that stands neither in masksearch nor in
    an installed library. Where a mask was given arguments that it does not take, those that it
    takes are named.
    """
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), "<frozen ", "<string>")
    users = [
        frame
        for frame in frames
        if not frame.filename.startswith(libraries) and "site-packages" not in frame.filename
    ]
    where = ""
    if users and not isinstance(error, SyntaxError):  # which says where it is
        file = Path(users[-1].filename)
        with suppress(OSError):  # the working folder may be gone
            file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        where = f" in {file}, line {users[-1].lineno}"
    try:
        said = cut_middle(hide_passwords(" ".join(str(error).split())), LONGEST)
    except Exception as problem:  # of its own __str__
        said = f"(its text cannot be made: {type(problem).__name__})"
    text = f"{type(error).__name__}{where}: {said}"
    if isinstance(error, ImportError) and users and beside(file.parent, str(error.name)):
        text += f"; {error.name} is beside that file: import it at the top, not in a function"
    called = re.match(r"(\w+)(?:\.__init__)?\(\) ", said)
    if isinstance(error, TypeError) and called:
        from masksearch.masks.text import functions

        for name, function in functions().items():
            if getattr(function, "__name__", "") == called[1]:
                takes = ", ".join(inspect.signature(function).parameters) or "nothing"
                text += f"; masks.{name} takes {takes}"
    return text


def place_of(space: object) -> str:
    """`FILE:NAME` of a user's function; empty where it is none."""
    code = getattr(space, "__code__", None)
    return "" if code is None else f"{code.co_filename}:{code.co_qualname}"


def split_name(spec: str) -> tuple[Path, str]:
    """The file and the name of `file.py:name`, or of a search space of the package; of `file.py`
    alone an empty name.

    `masksearch.spaces:head_shifts` is the function `space` of that module, and
    `masksearch.spaces.head_shifts:space` says so in full.

    Raises:
        UserCodeError: If no function is named.
        UnknownNameError: If the package has no such space; lists those that it has.
    """
    path, _, name = spec.rpartition(":")
    if not path and name.endswith(".py"):
        return Path(name), ""  # `load_object` says what the file defines
    if not path:
        raise UserCodeError(f"name it as file.py:function or masksearch.spaces:NAME, got {spec!r}")
    if path == "masksearch.spaces":
        path, name = f"{path}.{name}", "space"
    package, _, module = path.rpartition(".")
    if package != "masksearch.spaces":
        return Path(path), name
    check_name("search space", module, sorted(file.stem for file in SPACES.glob("*.py")))
    return SPACES / f"{module}.py", name


def load_object(spec: str) -> Any:
    """Loads whatever `file.py:name` names.

    Raises:
        UserCodeError: If there is no such file, or importing it fails.
        UnknownNameError: If the file defines no such name; lists what it defines.
    """
    path, name = split_name(spec)
    module = load_file(path)
    if name.startswith("_") or not hasattr(module, name):
        members = [
            member
            for member, value in vars(module).items()
            if member[0] != "_" and getattr(value, "__module__", "") == module.__name__
        ]
        if not name:
            known = ", ".join(f"{path}:{member}" for member in members) or "(none)"
            raise UserCodeError(f"{path} needs the name of a function or class in it: {known}")
        raise unknown_name(f"function or class in {path}", name, members or ["(none)"])
    return getattr(module, name)


def load_function(spec: str) -> Any:
    """Loads the function or class `file.py:name`; the file runs as a module of its own.

    Args:
        spec: Path of a Python file and the name of a function or class in it, or a space of the
            package: `"masksearch.spaces:head_shifts"`.

    Returns:
        What has that name, with the file's text as its `masksearch_source`, so that a resumed
        search notices an edit of what it does (`definition_hashes`).

    Raises:
        UserCodeError: If there is no such file, importing it fails, or the name is no function.
        UnknownNameError: If the file defines no such name; lists what it defines.
    """
    function = load_object(spec)
    if not callable(function):
        raise UserCodeError(f"{spec} is a {type(function).__name__}, not a function or class")
    with suppress(AttributeError):  # a callable without attributes: its class is its source
        function.masksearch_source = split_name(spec)[0].read_text(encoding="utf-8")
    return function


def definition_hashes(function: Callable[..., Any]) -> dict[str, str]:
    """Hashes of a user's function: of its code and of each definition of its file
    that it uses, directly or through others, by name.

    Comments, docstrings and formatting do not count. A function that is made by another one, or
    that says itself what it does (`masksearch_source`), has one hash, and one of the numbers,
    texts and masks that it was made with; likewise a `functools.partial` of its arguments.
    """
    if isinstance(function, partial):
        given: dict[Any, Any] = {**dict(enumerate(function.args)), **function.keywords}
        return definition_hashes(function.func) | _hash_values(given)
    owner = function if hasattr(function, "__qualname__") else type(function)
    name = owner.__qualname__.partition(".")[0]
    source = getattr(function, "masksearch_source", None)
    try:
        file = inspect.getsourcefile(owner) or ""
        text = Path(file).read_text(encoding="utf-8") if source is None else source
        with PARSING:
            defined = _top_definitions(text)
    except (OSError, TypeError, SyntaxError, ValueError):
        defined = {}
    if name not in defined or "<locals>" in owner.__qualname__:
        found = {name: _hash_owner(owner) if source is None else text_hash(_plain_text(source))}
        held = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
        return found | _hash_values(held)
    used: dict[str, str] = {}
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one in defined and one not in used:
            nodes = defined[one]
            used[one] = text_hash("\n".join(map(_plain_code, nodes)))
            waiting += {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}
    return dict(sorted(used.items()))


def _hash_values(values: Mapping[Any, Any]) -> dict[str, str]:
    """One hash of those values that are numbers, texts, masks or tuples of them: they stay as
    they are, and print alike in every process. None where there are none."""
    from masksearch.masks.core import Mask

    def is_plain(value: Any) -> bool:
        if isinstance(value, tuple):
            return all(map(is_plain, value))
        return value is None or isinstance(value, str | int | float | Mask)

    plain = {str(name): value for name, value in values.items() if is_plain(value)}
    return {"made with": text_hash(repr(sorted(plain.items())))} if plain else {}


def _hash_owner(owner: Any) -> str:
    """The hash of the plain source of a function or class; where there is none (`python -c`), of
    its byte code: of its own + with the names in it.

    Raises:
        UserCodeError: If the code holds what has no text that is the same in every process.
    """
    try:
        return text_hash(_plain_text(textwrap.dedent(inspect.getsource(owner))))
    except (OSError, TypeError):
        code = getattr(owner, "__code__", None)
    codes = [code] if code else [f.__code__ for f in vars(owner).values() if inspect.isfunction(f)]
    first = repr((code.co_code, _plain_constant(code.co_consts))) if code else owner.__qualname__
    return f"{text_hash(first)}+{text_hash(repr(_plain_constant(tuple(codes))))}"


def _plain_constant(value: Any) -> Any:
    """A constant of byte code as a value whose `repr` is the same in every process."""
    match value:
        case CodeType():
            names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
            return ("code", value.co_code, _plain_constant(value.co_consts), names)
        case frozenset():
            return ("frozenset", *sorted(repr(_plain_constant(each)) for each in value))
        case tuple():
            return tuple(map(_plain_constant, value))
        case bool() | int() | float() | complex() | str() | bytes() | None | EllipsisType():
            return value
    raise UserCodeError(
        f"the code of this space has no source, and holds a {type(value).__name__}, which is not "
        "known again when the search goes on: write the space into a file, FILE.py:NAME"
    )


def _plain_text(text: str) -> str:
    """A text as plain code where it is Python, else as it is."""
    try:
        with PARSING:
            return _plain_code(ast.parse(text))
    except (SyntaxError, ValueError):
        return text


def _top_definitions(text: str) -> dict[str, list[ast.stmt]]:
    """Names that a file defines at its top, with the statements that do."""
    by_name: dict[str, list[ast.stmt]] = {}
    for node in ast.parse(text).body:
        names: Iterable[str]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
        else:
            names = {
                each.id
                for each in ast.walk(node)
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
        for name in names:
            by_name.setdefault(name, []).append(node)
    return by_name


def _plain_code(node: ast.AST) -> str:
    """Code without comments, docstrings and formatting."""
    node = copy.deepcopy(node)
    for each in ast.walk(node):
        if isinstance(each, DOCUMENTED) and len(each.body) > 1 and ast.get_docstring(each):
            each.body.pop(0)
    return ast.unparse(node)


def call_user(spec: str, maker: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Calls a user's function or class, and returns its result.

    Args:
        spec: What it is called in the error: `file.py:name`.
        maker: The function or class.
        arguments: Its arguments.

    Raises:
        UserCodeError: If it raises another error than a `ValueError` or `OSError` of its own;
            gives the file and the line.
    """
    try:
        return maker(**arguments)
    except (MaskSearchError, ValueError, OSError):
        raise
    except Exception as error:
        with_what = f"with {', '.join(arguments)}" if arguments else "without arguments"
        raise UserCodeError(
            f"{spec} is called {with_what} and raised {describe_error(error)}"
        ) from error


def load_strategy(spec: str, options: Mapping[str, Any] | None = None, **offered: Any) -> Strategy:
    """Makes the strategy of a user's class, or of a function that returns one.

    Args:
        spec: `file.py:Name`; it is called with those of the arguments that it names.
        options: Arguments for this strategy alone; it has to name each of them.
        **offered: What a search knows: space, objectives, seed, constraints, ...

    Raises:
        UserCodeError: If the file cannot be loaded, if the name wants an argument that nobody
            gives, or if what it makes has no `ask` and `tell`.
        UnknownNameError: If the file has no such name, or the strategy no such option.
    """
    maker, options = load_function(spec), dict(options or {})
    parameters = inspect.signature(maker).parameters.values()
    accepted = {p.name: p.default is p.empty for p in parameters if p.kind not in VARIADIC}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option not in accepted and not takes_all:
            raise unknown_name(
                f"option of strategy {spec!r}:", option, list(accepted) or ["(none)"]
            )
    arguments = {name: value for name, value in offered.items() if name in accepted} | options
    for name, required in accepted.items():
        if required and name not in arguments:
            raise UserCodeError(
                f"strategy {spec!r} wants {name!r}, which a search does not give; it gives "
                f"{', '.join(offered)}: use one of these, write a default, or set it in the "
                "strategy's options"
            )
    strategy = call_user(spec, maker, arguments)
    missing = [name for name in ("ask", "tell") if not callable(getattr(strategy, name, None))]
    if missing:
        raise UserCodeError(
            f"{spec!r} makes a {type(strategy).__name__}, which is not a strategy: it has no "
            f"{' and no '.join(missing)}; write ask(self) -> Proposal | 'wait' | 'done' and "
            "tell(self, record)"
        )
    made: Strategy = strategy
    return made


def budget_of(trial: BaseTrial) -> float | None:
    """The budget of this draw's mask; None = the search has none.

    Args:
        trial: That the space was called with, or a `FixedTrial` of a record's parameters.

    Returns:
        A share of what dense attention costs, in (0, 1]: of its non-padding query-key pairs, or of
        what the evaluator counts (`search(.., budget=)`).
    """
    from optuna.trial import FixedTrial

    budget: float | None = getattr(trial, BUDGET, None)
    if budget is not None or not isinstance(trial, FixedTrial) or hasattr(trial, BUDGET):
        return budget
    try:
        return trial.suggest_float(BUDGET, 0, 1)
    except ValueError:  # it has none
        return None


def shape_of(trial: BaseTrial) -> Shape | None:
    """The layers, heads and length of the model that a draw is for, and the lengths of its data.

    Args:
        trial: That the space was called with.

    Returns:
        The evaluator's shape; None where there is no search, as of a `FixedTrial` of a record's
        parameters.
    """
    shape: Shape | None = getattr(trial, "shape", None)
    return shape


def check_evaluator(evaluator: object) -> None:
    """Checks that an object offers what is asked of an `Evaluator`.

    Raises:
        EvaluatorError: Names what is missing, or of another type.
    """
    from masksearch.contracts import Evaluator, Objective, Shape  # which load torch

    title = type(evaluator).__name__
    if isinstance(evaluator, type):
        title = evaluator.__name__
        raise EvaluatorError(f"{title} is a class, no evaluator made of it: write {title}(..)")

    def refuse(problem: str) -> EvaluatorError:
        return EvaluatorError(
            f"{title} {problem}; an evaluator offers shape, objectives, protocol and "
            "__call__(mask, *, seed, workdir): docs/write_your_own.md has one in full"
        )

    if not isinstance(evaluator, Evaluator):
        raise refuse("does not inherit masksearch.contracts.Evaluator")
    attributes: dict[str, Any] = {}
    for name in ("shape", "objectives", "protocol"):
        try:
            attributes[name] = getattr(evaluator, name)
        except AttributeError as error:
            inner = "" if error.name == name else f" that can be read ({error})"
            raise refuse(f"has no {name}{inner}") from error
    shape, objectives, protocol = attributes.values()
    kind = "masksearch.contracts.Objective"
    if not isinstance(shape, Shape):
        raise refuse(f"has the shape {shape!r}, not a masksearch.Shape(length, layers, heads)")
    if not isinstance(objectives, tuple) or not objectives:
        raise refuse(f"has the objectives {objectives!r}, not a tuple of {kind}")
    if strange := [one for one in objectives if not isinstance(one, Objective)]:
        raise refuse(f"has the objective {strange[0]!r}, not a {kind}")
    if not isinstance(protocol, str) or not protocol:
        raise refuse(f"has the protocol {protocol!r}, not a text that names what judges")
    if type(evaluator).__call__ is Evaluator.__call__:
        raise refuse("has no __call__")
    try:
        inspect.signature(evaluator).bind(None, seed=0, workdir=None)
    except TypeError as error:
        raise refuse(f"cannot be called with (mask, seed=, workdir=): {error}") from error
