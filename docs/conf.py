"""Settings of the site: `make docs` reads the Markdown where it stands and writes build/site."""

from __future__ import annotations

import re
import runpy
import zlib
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref

import masksearch
from masksearch import masks

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
REPOSITORY = "https://github.com/masksearch/masksearch"

project = "masksearch"
author = copyright = "The masksearch authors"
version = release = masksearch.__version__
extensions = [
    "myst_nb",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.intersphinx",
]

# -- pages: everything that GitHub shows too, at its place in the repository --------------------
root_doc = "docs/index"
include_patterns = ["*.md", "notebooks/*.ipynb", "docs/api/*.rst"]
include_patterns += [f"{folder}/**.md" for folder in ("docs", "experiments", "benchmarks")]
include_patterns += ["search_spaces/*.md"]
exclude_patterns = [".*", "build", "dist", "masksearch", "tests", "runs", "cluster"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4  # GitHub's, which links between the pages use
nb_execution_mode = "cache"
nb_execution_cache_path = str(BUILD / "cells")
nb_execution_excludepatterns = ["notebooks/*"]  # the tests run them; their outputs are kept
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # warnings of libraries name the builder's folders

# -- the public names ---------------------------------------------------------------------------
templates_path = [str(ROOT / "docs" / "templates")]  # autosummary looks from the source folder
autosummary_generate = ["docs/api/reference.rst"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
smartquotes_action = "De"  # quotes belong to code
default_role = "code"  # docstrings write `code`
nitpick_ignore_regex = [("py:.*", ".*")]  # signatures name types that are not public
suppress_warnings = ["myst.header"]  # levels of headings: tables that programs print
linkcheck_timeout, linkcheck_retries = 20, 2

# -- other projects' names, without a network: inventories/renew.py brings them up to date ------
intersphinx_mapping = {}
for page in sorted((ROOT / "docs" / "inventories").glob("*.txt")):
    address, *names = page.read_text(encoding="utf-8").splitlines()
    inventory = BUILD / "inventories" / f"{page.stem}.inv"
    inventory.parent.mkdir(parents=True, exist_ok=True)
    head = f"# Sphinx inventory version 2\n# Project: {page.stem}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    inventory.write_bytes(head.encode() + zlib.compress("\n".join([*names, ""]).encode()))
    intersphinx_mapping[page.stem] = (address, str(inventory))

# -- how it looks -------------------------------------------------------------------------------
html_theme = "furo"
html_title = f"masksearch {version}"
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "footer_icons": [{"name": "Repository", "url": REPOSITORY, "html": "repository", "class": ""}],
}
html_static_path = ["static"]
html_css_files = ["site.css"]
MOVED = {  # a page that is no more -> the page that has its text; old addresses lead there
    "cluster_figures": "cluster",
    "dam_published": "dam_health",
    "experiments": "README",
    "guide_breaks": "questions",
    "guide_cluster": "cluster",
    "guide_compare": "comparing",
    "guide_dam": "dam",
    "guide_own_part": "write_your_own",
    "guide_proxy": "proxy",
    "guide_search": "search",
    "guide_serve": "inference",
    "notebooks": "README",
    "own_evaluator": "write_your_own",
    "own_language_model": "write_your_own",
    "own_mask": "write_your_own",
    "own_rows": "write_your_own",
    "own_selector": "write_your_own",
    "own_strategy": "write_your_own",
    "proxy_card": "proxy",
    "statistics_errors": "statistics",
    "statistics_fronts": "statistics",
    "statistics_power": "statistics",
    "statistics_rows": "statistics",
}
moved = {"index": "docs/index"} | {f"docs/{old}": new for old, new in MOVED.items()}
html_additional_pages = dict.fromkeys(moved, "moved.html")
html_context = {"moved": moved}
html_show_sphinx = False


def plain_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]):
    """Bars and stars of formulas, which docutils would take for marks of its own."""
    if isinstance(thing, dict):  # its type's docstring otherwise
        lines[:] = [f"A dictionary: {', '.join(map(str, thing))}."]
    if what == "property" and lines and lines[0].startswith("attrgetter("):
        lines.clear()  # the library's words, not ours
    text = re.sub(r"(?m)^(Returns:\n +)", r"\1: ", "\n".join(lines))  # no type before a colon
    parts = re.split(r"(``?[^`]+``?)", text)
    for place, text in enumerate(parts):
        if place % 2 == 0:
            parts[place] = re.sub(r"(?<!\*)\*\*?(?=\w+[,\s])|\|", r"\\\g<0>", text)
        elif parts[place + 1][:1].isalnum():
            parts[place] += "\\ "
    lines[:] = "".join(parts).split("\n")


def link_folders(app: Any, tree: nodes.document) -> None:
    """Links to folders, which are no pages, lead to the repository."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    for node in list(tree.findall(pending_xref)):
        place = (here / node.get("reftarget", "")).resolve()
        if node["reftype"] == "myst" and place.is_dir():
            address = f"{REPOSITORY}/tree/main/{place.relative_to(ROOT)}"
            node.replace_self(nodes.reference("", "", *node.children, refuri=address))


def fold_groups(app: Any, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """The groups of the sidebar, folded but for that of the page."""
    head, *groups = context.get("furo_navigation_tree", "").split('<p class="caption"')
    for group in groups:
        caption, links = group.split("</p>", 1)
        shown = " open" if 'class="current' in links else ""
        head += f"<details{shown}><summary{caption}</summary>{links}</details>"
    context["furo_navigation_tree"] = head


def formula(self: Any, node: Any) -> None:
    """MathML, which browsers draw without a script."""
    block = isinstance(node, nodes.math_block)
    self.body.append(convert(node.astext(), display="block" if block else "inline"))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Writes the generated parts of pages; gives masks' classes the names that people call."""
    for name in masks.__all__:
        thing = getattr(masks, name)
        if isinstance(thing, type):
            thing.__name__ = thing.__qualname__ = name
    api = runpy.run_path(str(ROOT / "docs" / "programs" / "write_api.py"))
    listed = {f"{module}.{name}" for _, module, name in api["listed"]()}
    for stub in (ROOT / "docs" / "api").glob("*.rst"):
        if stub.stem not in listed:  # of a name that is public no more
            stub.unlink()
    api["write_reference"](ROOT / "docs" / "api")
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon
    app.connect("doctree-read", link_folders)
    app.connect("html-page-context", fold_groups, priority=900)  # after the theme
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))


html_math_renderer = "mathml"
