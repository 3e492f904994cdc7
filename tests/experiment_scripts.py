"""Scripts of experiments/, as modules: their folders' names are no names of packages."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@cache
def load_script(place: str) -> ModuleType:
    """The script at a place in experiments/, such as "12_sparsebert_table/table.py"."""
    path = EXPERIMENTS / place
    name = f"experiment_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
