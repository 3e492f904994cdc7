"""The pages of the repository as tests read them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLDERS = "*.md", "docs/*.md", "benchmarks/*.md", "*/README.md", "cluster/*/*.md"
TEXTS = {  # of every page
    path: path.read_text(encoding="utf-8")
    for pattern in (*FOLDERS, "experiments/*/*.md", "experiments/*/results/*.md")
    for path in ROOT.glob(pattern)
}
FENCE = re.compile(r"^```(?:\{code-cell\} )?(\w+)\n(.*?)^```$", re.M | re.S)


def read(page: str) -> str:
    """The text of a page of docs/."""
    return TEXTS[DOCS / page]


def blocks(text: str, language: str) -> list[str]:
    """The code of a page in a language, in its order."""
    return [code for name, code in FENCE.findall(text) if name.startswith(language)]
