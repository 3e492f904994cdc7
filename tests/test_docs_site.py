"""Pages that are made from the code (gallery of masks, command line, public names), and the rest
of docs/ as a reader meets it."""

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from matplotlib.image import imread
from parsed import BENCH, FILES, nodes_of

from masksearch import masks
from masksearch_bench.__main__ import app as bench
from tests.parsed import every_command

DOCS = Path(__file__).parents[1] / "docs"
OURS = {
    name: each.__doc__
    for name, each in (masks.Mask.kinds | masks.functions()).items()
    if each.__module__.startswith("masksearch.")
}


def program(name: str) -> dict[str, Any]:
    """What a program of docs/programs defines."""
    return runpy.run_path(str(DOCS / "programs" / f"write_{name}.py"))


@pytest.mark.parametrize("name", ["gallery", "commands", "api"])
def test_written_pages_are_those_of_today(name, tmp_path):
    program(name)["main"](tmp_path)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        kept = DOCS / path.relative_to(tmp_path)
        again = f"python docs/programs/write_{name}.py"
        assert kept.is_file(), f"{kept.name} is missing: {again}"
        if path.suffix == ".md":
            assert kept.read_text("utf-8") == path.read_text("utf-8"), again
        else:
            pictures = [imread(each) for each in (kept, path)]
            assert np.array_equal(*pictures), again


def test_every_kind_and_family_is_in_the_gallery():
    text = (DOCS / "gallery.md").read_text("utf-8")
    shown = re.findall(r"^\| (\w+) \| !\[", text, re.M)
    assert sorted(shown) == sorted(OURS), "a kind of mask is not in docs/programs/write_gallery.py"
    assert {path.stem for path in (DOCS / "images/masks").glob("*.png")} == set(OURS)


def test_sources_of_the_gallery_are_those_of_the_docstrings():
    text = (DOCS / "gallery.md").read_text("utf-8")
    for each, docstring in OURS.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| {each} |")]
        for number in re.findall(r"Reference:[^\n]*arXiv (\d{4}\.\d{5})", docstring):
            assert f"https://arxiv.org/abs/{number}" in row


def test_every_command_and_option_is_on_the_page():
    sections = re.split(r"^## ", (DOCS / "commands.md").read_text("utf-8"), flags=re.M)[1:]
    commands = every_command()
    tables = typer.main.get_command(bench).commands
    commands |= {f"masksearch-bench {name}": command for name, command in tables.items()}
    assert [each.split("\n")[0] for each in sections] == list(commands)
    for text, command in zip(sections, commands.values(), strict=True):
        assert len(re.findall("masksearch[ -]", text)) >= 3  # its usage, and two examples
        for option in (name for one in command.params for name in one.opts if name[:2] == "--"):
            assert re.search(rf"^\| `{option}[ `,/]", text, re.M), option


def test_every_page_has_a_place():
    """A page that no table of contents names ends `make docs` with an error."""
    blocks = re.findall(
        r"```\{toctree\}\n(.*?)```", "".join(p.read_text("utf-8") for p in DOCS.glob("*.md")), re.S
    )
    named = {line for block in blocks for line in block.splitlines() if line[:1] not in (":", "")}
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert not pages - named, "name them in a toctree of docs/index.md"


RIDDLES = re.compile(r"\bof which\b|(?:^|[.:]\s)What (?!\w[^.?]*\?)", re.M)


def test_sentences_name_their_subject():
    """ "Of which" and a clause with "what" for a subject are read twice; pages, and the first
    sentences of docstrings."""
    pages = [DOCS.parent / "README.md", *DOCS.glob("*.md")]
    texts = {
        path.name: re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.S) for path in pages
    }
    for path in [*FILES, *BENCH]:
        for node in nodes_of(path):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                first = re.split(r"(?<=\.)\s|\n\n", ast.get_docstring(node) or "")[0]
                name = getattr(node, "name", "")
                texts[f"{path.name} {name}"] = " ".join(first.split())
    found = {
        name: [text[max(at.start() - 20, 0) : at.end() + 40] for at in RIDDLES.finditer(text)]
        for name, text in texts.items()
    }
    assert {name: places for name, places in found.items() if places} == {}
