"""docs/api.md lists the public names of today."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_page_is_that_of_the_public_names():
    page = runpy.run_path(str(DOCS / "write_api.py"))["write_page"]()
    stored = (DOCS / "api.md").read_text(encoding="utf-8")
    assert stored == page, "public names have changed: run `python docs/write_api.py`"


def test_every_name_says_what_it_is():
    rows = [
        line for line in (DOCS / "api.md").read_text(encoding="utf-8").splitlines() if "`]" in line
    ]
    assert len(rows) > 100
    assert all(row.split(" | ", 1)[1].strip(" |") for row in rows)
