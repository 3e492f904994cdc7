"""What a search leaves in a notebook."""

import io
from pathlib import Path

import pytest

TOY = Path(__file__).parents[1] / "contracts"
CELL = f"""
import sys
sys.path.insert(0, {str(TOY)!r})
from toy import ToyEvaluator
import masksearch as ms
from masksearch import masks
candidates = {{"a": masks.window(1), "b": masks.window(2)}}
compared = ms.compare(candidates, ToyEvaluator(), run=RUN, seeds=range(20));
again = ms.compare(candidates, ToyEvaluator(), run=RUN, seeds=range(20), progress=None);
"""


@pytest.mark.nightly
def test_a_notebook_keeps_one_short_output_of_a_search(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cell = nbformat.v4.new_code_cell(CELL.replace("RUN", repr(str(tmp_path / "run"))))
    book = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
    (shown,) = [output for output in cell.outputs if output.output_type == "display_data"]
    text = shown["data"]["text/plain"]
    assert text.splitlines()[0].startswith("compare 40/40 ")
    assert "best loss" in text
    assert len(text.splitlines()) <= 4
    streams = [output.text for output in cell.outputs if output.output_type == "stream"]
    told = [line for line in "".join(streams).splitlines() if "compare" in line]
    assert told == ["compare: 2 masks x 20 seeds: 40 runs to do", "compare: 1 test"]  # the plan
    saved = io.StringIO()
    nbformat.write(book, saved)
    assert len(saved.getvalue()) < 5000
