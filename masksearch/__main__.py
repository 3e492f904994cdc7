"""The program `masksearch`, and `python -m masksearch`."""

import gc
import os
import sys
from importlib.util import find_spec

from masksearch.errors import install_command

SPINS = "1000"  # then a thread of torch that waits sleeps
NEW_OBJECTS = 10_000  # between two collections: with Python's 700 a sixth of a start is collecting


def main() -> None:
    """Runs a command; without the libraries of the search it says how they are installed."""
    if "OMP_WAIT_POLICY" not in os.environ:  # threads that spin stall beside another program
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read as torch is imported
    gc.set_threshold(NEW_OBJECTS)
    if find_spec("optuna") is None:
        sys.stderr.write(f"error: commands need optuna and more: {install_command('search')}\n")
        sys.exit(2)
    from masksearch.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
