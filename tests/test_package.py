"""What people install: one version everywhere, and honest metadata."""

from __future__ import annotations

import tomllib
from pathlib import Path

import masksearch as ms

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name: str) -> str:
    """The text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def test_version_is_written_once_and_the_citation_follows():
    assert "version" in PROJECT["dynamic"]
    citation = read("CITATION.cff")
    assert f"\nversion: {ms.__version__}\n" in citation
    assert f'repository-code: "{PROJECT["urls"]["Repository"]}"' in citation
    assert "cff-version: 1.2.0" in citation
    assert "2102.12871" in citation
