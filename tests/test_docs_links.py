"""Links between the documents hold, and so do the names that they import."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATTERNS = "*.md", "docs/*.md", "benchmarks/*.md", "*/README.md", "cluster/*/*.md"
TEXTS = {  # of every page
    path: path.read_text(encoding="utf-8")
    for pattern in (*PATTERNS, "experiments/*/*.md")
    for path in ROOT.glob(pattern)
}
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
IMPORT = re.compile(r"^\s*(?:>>> )?from (masksearch[\w.]*) import ([\w, ]+)", re.M)


def anchors(page: Path) -> set[str]:
    """Headings of a page as GitHub links to them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_hold():
    broken = []
    for page, text in TEXTS.items():
        for target, anchor in LINK.findall(text):
            place = (page.parent / target).resolve() if target else page
            holds = place.exists() and (
                not anchor or place.suffix != ".md" or anchor in anchors(place)
            )
            broken += [] if holds else [f"{page.relative_to(ROOT)} links to {target}#{anchor}"]
    assert len(TEXTS) > 60
    assert not broken


def test_no_page_is_hollow():
    """What GitHub shows of a page is the page: nothing is included that only the site has."""
    fronts = [ROOT / "README.md", ROOT / "docs" / "README.md"]
    linked = {
        (front.parent / target).resolve()
        for front in fronts
        for target, _ in LINK.findall(TEXTS[front])
    }
    pages = {path for path in linked if path.suffix == ".md"} | {*(ROOT / "docs").glob("*.md")}
    hollow = []
    for page in sorted(pages):
        text = page.read_text(encoding="utf-8")
        words = re.sub(r"^(`{3,}|:{3,})\{.*?^\1", "", text, flags=re.M | re.S).split()
        hollow += [page.name] if len(words) < 60 or "{include}" in text else []
    assert len(pages) > 25
    assert not hollow


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_imports_that_pages_show_are_those_of_today():
    shown = {
        (module, name.split(" as ")[0].strip()): page
        for page, text in TEXTS.items()
        for module, names in IMPORT.findall(text)
        for name in names.split(",")
    }
    stale = []
    for (module, name), page in shown.items():
        try:
            if not hasattr(importlib.import_module(module), name):
                importlib.import_module(f"{module}.{name}")
        except (ImportError, DeprecationWarning) as error:
            stale.append(f"{page.relative_to(ROOT)}: {error}")
    assert len(shown) > 10
    assert not stale
