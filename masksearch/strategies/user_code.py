"""Functions and classes of a user, named as `path/to/file.py:name`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masksearch.contracts import Strategy
from masksearch.errors import MaskSearchError, unknown_name

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class UserCodeError(MaskSearchError, ValueError):
    """A file or name that cannot be loaded, or that is not what it is loaded for."""


def load_function(spec: str) -> Any:
    """Loads the function or class `file.py:name`; the file runs as a module of its own.

    Args:
        spec: Path of a Python file and the name of a function or class in it.

    Returns:
        What has that name, with the file's text as its `masksearch_source`, so that a resumed
        search notices an edit anywhere in the file.

    Raises:
        UserCodeError: If there is no such file, or importing it fails.
        UnknownNameError: If the file defines no such name; lists what it defines.
    """
    path_text, separator, name = spec.rpartition(":")
    if not separator or not path_text:
        raise UserCodeError(f"name a function or class as file.py:name, got {spec!r}")
    path = Path(path_text)
    if not path.is_file():
        raise UserCodeError(f"{path}: no such file (from {spec!r})")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise UserCodeError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[path.stem] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserCodeError(
            f"{path}: importing it failed: {type(error).__name__}: {error}"
        ) from error
    if not callable(getattr(module, name, None)):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise unknown_name(f"function or class in {path}", name, known)
    function = getattr(module, name)
    try:
        function.masksearch_source = path.read_text(encoding="utf-8")
    except AttributeError:
        pass  # a callable without attributes of its own: its class is its source
    return function


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
    wanted = {p.name: p.default is p.empty for p in parameters if p.kind not in VARIADIC}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option not in wanted and not takes_all:
            raise unknown_name(f"option of strategy {spec!r}:", option, list(wanted) or ["(none)"])
    given = {name: value for name, value in offered.items() if name in wanted} | options
    for name, required in wanted.items():
        if required and name not in given:
            raise UserCodeError(
                f"strategy {spec!r} wants {name!r}, which a search does not give; it gives "
                f"{', '.join(offered)}: use one of these, write a default, or set it in the "
                "strategy's options"
            )
    strategy = maker(**given)
    missing = [name for name in ("ask", "tell") if not callable(getattr(strategy, name, None))]
    if missing:
        raise UserCodeError(
            f"{spec!r} makes a {type(strategy).__name__}, which is not a strategy: it has no "
            f"{' and no '.join(missing)}; write ask(self) -> Proposal | 'wait' | 'done' and "
            "tell(self, record)"
        )
    made: Strategy = strategy
    return made
