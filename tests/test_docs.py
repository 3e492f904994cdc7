"""Pages as a reader meets them: links, names, commands, and what is made from the code."""

import ast
import inspect
import re
import runpy
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import typer.main
from matplotlib.image import imread
from pages import DOCS, ROOT, TEXTS, blocks, read

import masksearch as ms
import masksearch_bench as bench
from masksearch import contracts, errors, masks, plots
from masksearch.strategies.build import every_spec
from masksearch_bench.__main__ import app
from tests.parsed import BENCH, FILES, every_command, nodes_of

COMMANDS = every_command()
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


# -- links ---------------------------------------------------------------------------------------
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(text: str) -> set[str]:
    """Headings of a page as GitHub links to them."""
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_hold():
    broken = []
    for page, text in TEXTS.items():
        for target, anchor in LINK.findall(text):
            place = (page.parent / target).resolve() if target else page
            holds = place.exists() and (
                not anchor or place.suffix != ".md" or anchor in anchors(place.read_text("utf-8"))
            )
            broken += [] if holds else [f"{page.relative_to(ROOT)} links to {target}#{anchor}"]
    assert len(TEXTS) > 60
    assert not broken


def test_every_page_has_a_place():
    """A page that no table of contents names ends `make docs` with an error."""
    tables = re.findall(r"```\{toctree\}\n(.*?)```", "".join(map(TEXTS.get, PAGES)), re.S)
    named = {line for table in tables for line in table.splitlines() if line[:1] not in (":", "")}
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert not pages - named, "name them in a toctree of docs/index.md"


# -- docs/api.md lists the public names of today, each once --------------------------------------
LISTED = [
    (re.sub(r"^ms", "masksearch", module), name)
    for module, name in re.findall(r"^\| \[?`([\w.]+)\.(\w+)`", read("api.md"), re.M)
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
    modules = (*modules, "masksearch.plots", "masksearch_bench")
    names = [name for module, name in LISTED if module in modules]
    public = {*ms.__all__, *masks.__all__, *bench.__all__, *ERRORS, *PARTS, *plots.__all__}
    public -= {"masks", "contracts", "errors", "plots"}  # modules, with names of their own
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


FOLDERS = (
    "docs",
    "masksearch",
    "masksearch-decoders/masksearch_decoders",
    "search_spaces",
    "notebooks",
)
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


# -- commands and their options ------------------------------------------------------------------
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+\b(?!-)")
OF_ENGINES = ROOT / "masksearch-decoders/masksearch_decoders/engines"  # the commands of servers
OF_OTHERS = {  # git, nvidia-smi, TensorBoard, torchrun, vLLM, and arrows in a drawing
    *("--abbrev", "--always", "--dirty", "--exclude", "--no-optional-locks", "--query-gpu"),
    *("--format", "--logdir", "--nproc-per-node", "--frozen", "--sampler", "--on", "--no"),
    "--model-impl",
}


def commands_of(page: Path) -> list[tuple[str, list[str]]]:
    """Commands of a page with the options that follow them."""
    found = []
    for block in blocks(TEXTS[page], "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = re.sub(r"--load \S+ ", "", line.split(" #")[0]).split()
            for place, word in enumerate(words[:-1]):
                if word == "masksearch" and words[place + 1][0] not in ".-":
                    options = [w.split("=")[0] for w in words[place + 2 :] if w[:2] == "--"]
                    found.append((words[place + 1], options))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    for command, options in commands_of(page):
        assert command in COMMANDS, f"{page.name} shows `masksearch {command}`"
        given = COMMANDS[command].params
        known = {name for one in given for name in (*one.opts, *one.secondary_opts)}
        for option in options:
            assert option in known | {"--help"}, f"{page.name}: masksearch {command} {option}"


def test_messages_name_options_that_there_are():
    known = {name for each in COMMANDS.values() for one in each.params for name in one.opts}
    known |= {"--help", "--load", "--version"}
    for path in {*(ROOT / "masksearch").rglob("*.py")} - {*OF_ENGINES.iterdir()}:
        named = set(OPTION.findall(path.read_text(encoding="utf-8"))) - OF_OTHERS
        assert named <= known | {f"--no-{name[2:]}" for name in known}, path.name
    assert OPTION.findall("give --slots, or --no-controls") == ["--slots", "--no-controls"]


def test_the_walk_sees_commands():
    pretrain = ("pretrain", ["--corpus", "--size", "--steps", "--out"])
    assert pretrain in commands_of(DOCS / "proxy.md")
    assert sum(len(commands_of(page)) for page in PAGES) > 20


def test_help_and_the_page_of_searches_name_every_strategy():
    [option] = [each for each in COMMANDS["search"].params if each.name == "strategy"]
    page = read("search.md")
    for name in every_spec():
        assert f'"{name}"' in page or f"`{name}`" in page, name
        assert re.search(rf"\b{name}\b", option.help), name


# -- pages that are made from the code -----------------------------------------------------------
OURS = {
    name: each.__doc__
    for name, each in (masks.Mask.kinds | masks.functions()).items()
    if each.__module__.startswith("masksearch.")
}


@pytest.mark.parametrize("name", ["gallery", "commands", "api", "masks_to_take"])
def test_written_pages_are_those_of_today(name, tmp_path):
    runpy.run_path(str(DOCS / "programs" / f"write_{name}.py"))["main"](tmp_path)
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
    text = read("gallery.md")
    shown = re.findall(r"^\| (\w+) \| !\[", text, re.M)
    assert sorted(shown) == sorted(OURS), "a kind of mask is not in docs/programs/write_gallery.py"
    assert {path.stem for path in (DOCS / "images/masks").glob("*.png")} == set(OURS)


def test_sources_of_the_gallery_are_those_of_the_docstrings():
    text = read("gallery.md")
    for each, docstring in OURS.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| {each} |")]
        for number in re.findall(r"Reference:[^\n]*arXiv (\d{4}\.\d{5})", docstring):
            assert f"https://arxiv.org/abs/{number}" in row


def test_every_command_and_option_is_on_the_page():
    sections = re.split(r"^## ", read("commands.md"), flags=re.M)[1:]
    tables = typer.main.get_command(app).commands
    commands = COMMANDS | {f"masksearch-bench {name}": each for name, each in tables.items()}
    assert [each.split("\n")[0] for each in sections] == list(commands)
    for text, command in zip(sections, commands.values(), strict=True):
        assert len(re.findall("masksearch[ -]", text)) >= 3  # its usage, and two examples
        for option in (name for one in command.params for name in one.opts if name[:2] == "--"):
            assert re.search(rf"^\| `{option}[ `,/]", text, re.M), option


# -- sentences and figures ------------------------------------------------------------------------
RIDDLES = re.compile(r"\bof which\b|(?:^|[.:]\s)What (?!\w[^.?]*\?)", re.M)


def test_sentences_name_their_subject():
    """ "Of which" and a clause with "what" for a subject are read twice; pages, and the first
    sentences of docstrings."""
    texts = {str(page): re.sub(r"```.*?```", "", TEXTS[page], flags=re.S) for page in PAGES}
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


def test_losses_of_trained_encoders_stand_inside_their_intervals():
    """In the guide no estimate stands alone."""
    text = read("trained_encoders.md").split("## Which selector to take")[1].split("\n## ")[0]
    kept = r"\.\d+ of \.\d+|(?:keeps|of|heads|DAM|keys) \.\d+(?:(?:,| and) \.\d+)*(?! \[)"
    words = " ".join(re.sub(rf"`[^`]*`|{kept}", "", text).split())
    number = r"-?\d*\.\d+"
    whole = re.compile(rf"({number}) \[({number}), ({number})\]")
    estimates = [tuple(map(float, found)) for found in whole.findall(words)]
    assert len(estimates) >= 8
    assert all(low <= value <= high for value, low, high in estimates)
    assert not re.findall(rf"(?<![\d.\w/-]){number}", whole.sub("", words))
