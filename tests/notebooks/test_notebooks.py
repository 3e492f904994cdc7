"""Every notebook runs from top to bottom, and shows what is stored in it."""

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
COUNTED = re.compile(r"\d+(?= (seeds|rows) would)")  # what would decide moves with last digits
BADGE = "https://colab.research.google.com/github/masksearch/masksearch/blob/main/notebooks/"
SHOWN = {  # notebook -> a file that it makes, words that it prints, pictures at least
    "01_quick_start": ("search/report.html", "found: better than", 4),
    "02_your_own_space": ("search/report.html", "window(1) | stride(5)", 3),
    "03_trained_encoder": ("compare/report.html", "loses at most 0.05 to dense", 2),
    "04_decoder_served": ("served/SERVING.md", "the same words: True True", 1),
    "05_what_a_claim_is_worth": ("compare/report.html", "too few seeds to tell", 1),
    "06_does_search_pay": ("front.png", "dam - random", 2),
}


def printed(cell: NotebookNode) -> str:
    """What a cell prints and returns as text; not its progress, which tells the time."""
    found = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout":
            found.append(output.text)
        elif output.output_type == "execute_result":
            found.append(output.data.get("text/plain", ""))
    return COUNTED.sub("n", "\n".join(found))


def pictures(cell: NotebookNode) -> int:
    """How many of a cell's outputs are pictures."""
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    return sum("image/png" in one or "<img" in one.get("text/html", "") for one in data)


@pytest.mark.nightly
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_notebook_shows_what_is_stored(path, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKSEARCH_RUNS", str(tmp_path))
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    client = NotebookClient(
        fresh, timeout=1800, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
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
    assert (tmp_path / SHOWN[path.stem][0]).is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_notebook_is_stored_with_outputs(path):
    first, *rest = nbformat.read(path, as_version=4).cells
    assert f"{BADGE}{path.name}" in first.source
    cells = [cell for cell in rest if cell.cell_type == "code"]
    here = re.search(r"git\+https://[^\s\"]+", (FOLDER.parent / "README.md").read_text())[0]  # on no index
    assert here in cells[0].source
    decoders = any("to_native" in cell.source for cell in cells)
    assert ("subdirectory=masksearch-decoders" in cells[0].source) == decoders
    assert len(cells) <= 13
    _, words, least = SHOWN[path.stem]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(map(pictures, cells)) >= least
    text = "\n".join(map(printed, cells))
    assert words in text
    assert "Error" not in text
    streams = {output.get("name") for cell in cells for output in cell.outputs}
    assert "stderr" not in streams  # warnings name the machine that they come from
