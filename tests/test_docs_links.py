"""Links between the documents hold, and so do the names that they import."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "experiments/*/*.md", "*/README.md")
    for path in sorted(ROOT.glob(pattern))
]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
IMPORT = re.compile(r"^\s*(?:>>> )?from (masksearch[\w.]*) import ([\w, ]+)", re.M)


def anchors(page: Path) -> set[str]:
    """Headings of a page as GitHub links to them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_hold(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{page.name} links to {target}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_imports_that_a_page_shows_are_those_of_today(page):
    for module, names in IMPORT.findall(page.read_text(encoding="utf-8")):
        for name in (name.split(" as ")[0].strip() for name in names.split(",")):
            loaded = importlib.import_module(module)
            assert hasattr(loaded, name) or importlib.import_module(f"{module}.{name}")
