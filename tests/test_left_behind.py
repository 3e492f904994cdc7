"""A run of the tests says what it leaves behind."""

from pathlib import Path

import pytest
from other_process import python


@pytest.mark.slow
@pytest.mark.parametrize(
    ("new", "named"),
    [
        (["work/.journal.log.1.lock", "home/runs"], ["home/runs", "work/.journal.log.1.lock"]),
        (["work/.hypothesis", "elsewhere/runs"], []),
    ],
)
def test_new_entries_fail_the_run_and_are_named(tmp_path, new, named):
    for folder in ("work", "home", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "old").touch()
    (tmp_path / "work" / "test_it.py").write_text(
        f"from pathlib import Path\ndef test_writes():\n    for path in {new}:\n"
        f"        Path({str(tmp_path)!r}, path).mkdir()\n"
    )
    settings = {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parent)}
    settings |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    words = ("-m", "pytest", "-p", "left_behind", "test_it.py")
    done = python(*words, cwd=tmp_path / "work", env=settings)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == bool(named)
    line = f"Left behind by the tests: {', '.join(str(tmp_path / path) for path in named)}\n"
    assert (line in done.stdout) == bool(named)
