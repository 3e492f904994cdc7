"""`import masksearch` is light: heavy libraries are loaded when they are first needed."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    "ray",
    "transformers",
    "pandas",
    "matplotlib",
    "optuna",
    "scipy",
    "sklearn",
    "moocore",
    "safetensors",
}


@pytest.mark.parametrize(
    "statement",
    [
        "import masksearch; from masksearch import masks; masks.bigbird().dense(8)",
        "import masksearch.cli.main",
    ],
)
def test_import_loads_nothing_heavy(statement):
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}
    assert ("torch" in loaded) == ("cli" not in statement)  # `masksearch --help` is quick
    assert not loaded & HEAVY
