"""Functions of a user, named on the command line as `path/to/file.py:name`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from masksearch.errors import MaskSearchError, unknown_name


class UserCodeError(MaskSearchError, ValueError):
    """A file or name that cannot be loaded."""


def load_function(spec: str) -> Any:
    """Loads `file.py:name`; the file runs as a module of its own.

    Args:
        spec: Path of a Python file and the name of a callable in it.

    Returns:
        The callable, with the file's text as its `masksearch_source`, so that a resumed search
        notices an edit anywhere in the file.

    Raises:
        UserCodeError: If there is no such file, or importing it fails.
        UnknownNameError: If the file defines no such name; lists what it defines.
    """
    path_text, separator, name = spec.rpartition(":")
    if not separator or not path_text:
        raise UserCodeError(f"name a function as file.py:function, got {spec!r}")
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
        raise unknown_name(f"function in {path}", name, known)
    function = getattr(module, name)
    try:
        function.masksearch_source = path.read_text(encoding="utf-8")
    except AttributeError:
        pass  # a callable without attributes of its own: its class is its source
    return function
