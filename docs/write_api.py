"""Writes docs/api.md: every public name, in a line, with a link to its source.

    python docs/write_api.py

The names are those of masksearch/__init__.py, masksearch/errors.py and
masksearch/masks/__init__.py; the line is the first sentence of the docstring.
"""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import masksearch as ms
from masksearch import errors, masks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
HEADINGS = {  # part of the package -> heading, in the order of the page
    "driver": "Search and compare",
    "allocation": "Which layers of a decoder keep full attention",
    "cli": "What the command line has begun",
    "masks": "Masks",
    "attention": "A mask on a model",
    "models": "Models and their masks in files",
    "serving": "Serving: native configurations and caches",
    "evaluators": "What judges a mask",
    "tasks": "Tasks and planted data",
    "gates": "DAM",
    "positions": "Which positions matter",
    "strategies": "Strategies",
    "executors": "Where trials run",
    "study": "Studies",
    "loggers": "Progress",
    "analysis": "What may be claimed",
    "report": "Cards and figures",
    "contracts": "Types: what the parts say to each other",
    "user_code": "Files of your own",
    "errors": "Errors",
}
HEAD = """\
# The public names

`import masksearch as ms` gives the names of the first tables; `from masksearch import errors,
masks` has the rest. Arguments, units and errors stand in each docstring: `help(ms.search)`, or
behind the links. Names that are not listed here may change without notice. This page is written by
`python docs/write_api.py`.
"""


NARROW = [  # errors that no one need import to catch: each is a MaskSearchError
    each
    for name, each in vars(errors).items()
    if isinstance(each, type)
    and issubclass(each, errors.MaskSearchError)
    and name not in ms.PUBLIC
]


def first_sentence(thing: Any) -> str:
    """The first sentence of a docstring in one line; of a plain value, what it is."""
    if isinstance(thing, dict):
        return f"A dictionary: {', '.join(map(str, thing))}."
    paragraph = (inspect.getdoc(thing) or "").split("\n\n")[0]
    text = " ".join(paragraph.split())
    end = text.find(". ")
    return (text if end < 0 else text[: end + 1]).replace("|", "\\|")


def link_of(thing: Any, module: str) -> str:
    """Path of the source from docs/."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    spec = importlib.util.find_spec(getattr(thing, "__module__", module))
    return f"../{Path(str(spec and spec.origin)).resolve().relative_to(ROOT)}"


def table(names: list[str], prefix: str, owner: Any, modules: dict[str, str]) -> str:
    """One row a name."""
    rows = ["| name | what it is |", "|---|---|"]
    for name in sorted(names, key=str.lower):
        thing = getattr(owner, name)
        link = link_of(thing, modules.get(name, owner.__name__))
        rows.append(f"| [`{prefix}{name}`]({link}) | {first_sentence(thing)} |")
    return "\n".join(rows)


def write_page() -> str:
    """The whole page."""
    parts = [HEAD]
    rooms: dict[str, list[str]] = {}
    for name, module in ms.PUBLIC.items():
        if name != "masks":  # a package
            rooms.setdefault(module.split(".")[1], []).append(name)
    if unknown := set(rooms) - set(HEADINGS):
        raise SystemExit(f"give {', '.join(sorted(unknown))} a heading in docs/write_api.py")
    for room, heading in HEADINGS.items():
        if room in rooms:
            parts.append(f"## {heading}\n\n{table(rooms[room], 'ms.', ms, ms.PUBLIC)}\n")
    narrow = [n for n, each in vars(errors).items() if each in NARROW]
    parts.append(f"### masksearch.errors\n\n{table(narrow, 'errors.', errors, {})}\n")
    leaves = [name for name in masks.__all__ if name not in ms.PUBLIC]
    parts.append(f"## masks: what they are made of\n\n{table(leaves, 'masks.', masks, {})}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
