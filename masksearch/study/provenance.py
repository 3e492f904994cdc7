"""With what, where and on which data a call of `search` or `compare` works.

This is information for whoever reads or repeats the study. Nothing in it must be equal when a
search goes on: each call that runs trials adds its own entry (see `StudyStore.note_call`).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from masksearch.contracts import Evaluator
from masksearch.study.records import own_version

PACKAGES = ("torch", "transformers", "optuna", "numpy", "scipy", "tokenizers", "ray")
PATIENCE = 5.0  # seconds that git and nvidia-smi may take
PLAIN = (str, int, float, bool, type(None))


def describe_call(
    evaluator: Evaluator, space: Callable[..., Any] | None = None, **asked: Any
) -> dict[str, Any]:
    """What a call works with, as plain data; takes some hundredths of a second.

    Args:
        evaluator: Judges the masks.
        space: Draws them.
        asked: Arguments of the call that are no facts of the study (trials, seeds, ...).

    Returns:
        `evaluator` (its settings by name), `data` (hashes by name), `versions`, `machine`,
        `folder` (the working directory), and where they are known `commit` (of the git working
        tree around that folder), `script` and `space` (`FILE:NAME`).
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    known = {
        **{name: plain(value) for name, value in asked.items()},
        "evaluator": evaluator_settings(evaluator),
        "data": dict(evaluator.data_hashes()),
        "versions": package_versions(),
        "machine": machine_name(),
        "folder": str(Path.cwd()),
        "commit": git_commit(),
        "script": str(Path(script).resolve()) if script else "",
        "space": place_of(space),
    }
    return {name: value for name, value in known.items() if value not in ("", {}, None)}


def evaluator_settings(evaluator: Any) -> dict[str, Any]:
    """The class of an evaluator and its fields, those of a wrapped one first."""
    name = type(evaluator).__name__
    inner = getattr(evaluator, "evaluator", None)
    found = {} if inner is None else evaluator_settings(inner)
    found["class"] = f"{name}({found['class']})" if found else name
    for each in fields(evaluator) if is_dataclass(evaluator) else ():
        value = getattr(evaluator, each.name)
        if each.init and each.repr and value is not inner:
            found[each.name] = plain(value)
    return found


def plain(value: Any) -> Any:
    """A value that JSON knows, or its text."""
    return value if isinstance(value, PLAIN) else str(value)


def package_versions() -> dict[str, str]:
    """Versions of masksearch, Python and the packages that numbers depend on."""
    found = {"masksearch": own_version(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine_name() -> str:
    """Processor, cores, GPUs and system of this machine."""
    model = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.is_file():
        lines = described.read_text(encoding="utf-8", errors="replace").splitlines()
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        model = next(named, model)
    gpus = said_by("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    counted = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)]
    return ", ".join([model, f"{os.cpu_count()} logical CPUs", *counted, platform.platform()])


def git_commit() -> str:
    """Commit of the working tree around the current folder; empty where there is none."""
    asked = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    found = said_by("git", "--no-optional-locks", *asked)
    commit, dirty, _ = found.partition("-dirty")
    return f"{commit} with uncommitted changes" if dirty else commit


def said_by(*command: str) -> str:
    """What a program prints; empty where it is missing, slow or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip()


def place_of(space: Callable[..., Any] | None) -> str:
    """`FILE:NAME` of a user's function; empty where it is none."""
    code = getattr(space, "__code__", None)
    return "" if code is None else f"{code.co_filename}:{code.co_qualname}"
