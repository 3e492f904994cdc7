"""Scripts of experiments/, as modules: their folders' names are no names of packages; and run."""

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

EXPERIMENTS = Path(__file__).parents[1]


@cache
def load_script(place: str) -> ModuleType:
    """The script at a place in experiments/, such as "12_sparsebert_table/table.py".

    What it imports from its folder is that folder's, whichever other `tables` is loaded; nothing
    that it imports from experiments/ stays loaded under its bare name.
    """
    path = EXPERIMENTS / place
    name = f"experiment_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    beside = {each.stem for each in path.parent.glob("*.py")}
    before = {each: sys.modules[each] for each in beside & sys.modules.keys()}
    for each, other in before.items():
        if Path(str(other.__file__)).parent != path.parent:
            del sys.modules[each]
    known, places = {*sys.modules}, [*sys.path]
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = places
        for each in sys.modules.keys() - known:
            if EXPERIMENTS in Path(str(getattr(sys.modules[each], "__file__", None))).parents:
                del sys.modules[each]
        sys.modules.update(before)
    return module


def run_script(place: str, *words: object, cache: Path | None = None) -> str:
    """What the script at a place in experiments/ prints; it ends well. `cache` is its own."""
    env = {**os.environ, "MASKSEARCH_CACHE": str(cache)} if cache else None
    command = [sys.executable, str(EXPERIMENTS / place), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
