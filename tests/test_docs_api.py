"""docs/api.md lists the public names of today, each once, and each says what it is."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import masksearch as ms
import masksearch_bench as bench
from masksearch import contracts, errors, masks

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
LISTED = [
    (re.sub(r"^ms", "masksearch", module), name)
    for module, name in re.findall(r"^\| \[?`([\w.]+)\.(\w+)`", PAGE.read_text("utf-8"), re.M)
]
ERRORS = [
    name
    for name, each in vars(errors).items()
    if isinstance(each, type) and issubclass(each, errors.MaskSearchError)
]
PARTS = [
    name
    for name, each in vars(contracts).items()
    if isinstance(each, type) and each.__module__ == "masksearch.contracts"
]


def test_every_public_name_is_listed_once():
    assert len(LISTED) == len(set(LISTED))
    modules = ("masksearch", "masksearch.masks", "masksearch.contracts", "masksearch.errors")
    names = [name for module, name in LISTED if module in (*modules, "masksearch_bench")]
    public = {*ms.__all__, *masks.__all__, *bench.__all__, *ERRORS, *PARTS}
    public -= {"masks", "contracts", "errors"}  # modules, with names of their own
    missing, stray = public - set(names), set(names) - public
    assert not missing, (
        f"add to docs/programs/write_api.py, under the heading that fits: {sorted(missing)}"
    )
    assert not stray, f"docs/api.md lists what is not public: {sorted(stray)}"


def test_every_name_says_what_it_is():
    things = {f"{module}.{name}": getattr(import_module(module), name) for module, name in LISTED}
    silent = [
        name
        for name, thing in things.items()
        if not isinstance(thing, dict) and not (inspect.getdoc(thing) or "").strip()
    ]
    assert len(things) > 100
    assert not silent


ROOT = PAGE.parents[1]
FOLDERS = ("docs", "masksearch", "masksearch-serve/masksearch_serve", "search_spaces", "notebooks")
MENTION = re.compile(r"(?<![\w./])(?:masksearch|ms)\.([A-Za-z]\w+)")


def test_names_that_pages_and_docstrings_mention_exist():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    texts = [path for path in files if path.suffix in (".py", ".md", ".ipynb")]
    rooms = {path.stem for path in (ROOT / "masksearch").iterdir()}
    others = {"strategies", "commands", "parts", "json"}  # entry points, masksearch.json
    missing = {
        (path.name, name)
        for path in [ROOT / "README.md", *texts]
        for name in MENTION.findall(path.read_text("utf-8").replace("\\_", "_"))
        if name not in rooms | others and not hasattr(ms, name)
    }
    assert not missing
