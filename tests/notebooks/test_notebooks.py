"""Every notebook runs from top to bottom, and shows what is stored in it."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[2] / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:e[-+]?\d+)?%?")
TOLERANCE = 0.05  # of a score; versions of torch round differently


def printed(cell: NotebookNode) -> str:
    """What a cell prints and returns as text; not its progress, which tells the time."""
    found = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout":
            found.append(output.text)
        elif output.output_type == "execute_result":
            found.append(output.data.get("text/plain", ""))
    return "\n".join(found)


def pictures(cell: NotebookNode) -> int:
    """How many of a cell's outputs are pictures."""
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    return sum("image/png" in one or "<img" in one.get("text/html", "") for one in data)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_notebook_shows_what_is_stored(path, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKSEARCH_RUNS", str(tmp_path))
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    client = NotebookClient(
        fresh, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    for old, new in zip(stored.cells, fresh.cells, strict=True):
        if old.cell_type != "code":
            continue
        assert pictures(old) == pictures(new), old.source
        assert NUMBER.sub("", printed(old)).split() == NUMBER.sub("", printed(new)).split()
        for one, other in zip(
            NUMBER.findall(printed(old)), NUMBER.findall(printed(new)), strict=True
        ):
            share = 100 if one.endswith("%") else 1
            difference = abs(float(one.rstrip("%")) - float(other.rstrip("%")))
            assert difference <= TOLERANCE * share, f"{one} is now {other}: {old.source}"
    assert (tmp_path / "search" / "report.html").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_notebook_is_stored_with_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(map(pictures, cells)) >= 4
    text = "\n".join(map(printed, cells))
    assert "found: better than" in text
    assert "Error" not in text
    streams = {output.get("name") for cell in cells for output in cell.outputs}
    assert "stderr" not in streams  # warnings name the machine that they come from
