"""All benchmarks, one after the other: `python benchmarks`, or `python -m benchmarks`.

    python benchmarks                   # each with its usual arguments: about two hours
    python benchmarks --only attention  # one of them, or several
    python benchmarks --smoke           # those that can, at tiny sizes, into a scratch folder
    python benchmarks --device cuda     # those that can; says what it skips where there is no GPU

Every script writes its results before the next one starts, and one that fails does not stop the
others. The summary says how long each took; the exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Script:
    """One benchmark.

    Args:
        name: Its file, without the suffix.
        usual: Its arguments for figures that README.md shows; None = it needs some of yours.
        smoke: Its arguments at tiny sizes, `{folder}` for where to write; None = it has none.
        on_gpu: Its arguments on a GPU, beside `--device cuda`; None = it says nothing about one.
    """

    name: str
    usual: tuple[str, ...] | None = ()
    smoke: tuple[str, ...] | None = ("--smoke", "--out", "{folder}")
    on_gpu: tuple[str, ...] | None = None


SCRIPTS = (
    Script("search", smoke=None),
    Script(
        "scaling",
        usual=("--measure",),
        smoke=("--figure", "{folder}/scaling.png"),  # the stored costs, simulated anew
    ),
    Script("dam"),
    Script("proxy", on_gpu=("sizes",)),
    Script("attention", on_gpu=()),
    Script("decode"),
    Script("words"),
    Script("tiles"),
    Script("dead_tokens"),
    Script("card", usual=None, on_gpu=()),
    Script("judging", usual=None, smoke=None),  # of a checkpoint and a text that it is given
)


def run(script: Script, arguments: tuple[str, ...], folder: Path) -> tuple[int, float]:
    """Exit code and seconds of one script, on one thread of OpenMP."""
    words = [word.format(folder=folder) for word in arguments]
    command = [sys.executable, str(HERE / f"{script.name}.py"), *words]
    print("+", *command, flush=True)
    start = time.perf_counter()
    done = subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode, time.perf_counter() - start


def main() -> int:
    """Runs them; the exit code."""
    names = [script.name for script in SCRIPTS]
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--smoke", action="store_true", help="tiny; results are thrown away")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    given = parser.parse_args()
    cuda = given.device == "cuda"
    if cuda and not torch.cuda.is_available():
        skipped = [script.name for script in SCRIPTS if script.on_gpu is not None]
        print(f"no CUDA device here: the GPU figures of {', '.join(skipped)} are skipped")
        return 0
    lines, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        for script in SCRIPTS:
            if script.name not in given.only:
                continue
            chosen = script.smoke if given.smoke else script.on_gpu if cuda else script.usual
            if chosen is None:
                kind = "figures of a GPU" if cuda else "run without arguments of yours"
                lines.append(f"{script.name:10} has no {'smoke run' if given.smoke else kind}")
                continue
            device = ("--device", "cuda") if cuda else ()
            code, seconds = run(script, (*chosen, *device), Path(folder))
            failed |= code != 0
            verdict = "done" if code == 0 else f"FAILED, exit code {code}"
            lines.append(f"{script.name:10} {verdict} in {seconds / 60:.1f} minutes")
    print("\n".join(["", *lines]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
