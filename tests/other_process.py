"""Python in a process of its own."""

import os
import subprocess
import sys
from typing import Any


def python(*words: object, **how: Any) -> "subprocess.CompletedProcess[str]":
    """What has come of it; `how` goes to subprocess.run, `env` on top of this process's."""
    how["env"] = os.environ | how.get("env", {})
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, **how
    )
