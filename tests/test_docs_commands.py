"""Every command that the documentation shows exists, with its options."""

import re
from pathlib import Path

import pytest

from tests.parsed import every_command

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
COMMANDS = every_command()
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+\b(?!-)")
OF_ENGINES = ROOT / "masksearch-serve/masksearch_serve/engines"  # the commands of servers
OF_OTHERS = {  # git, nvidia-smi, TensorBoard, torchrun, vLLM, and arrows in a drawing
    *("--abbrev", "--always", "--dirty", "--exclude", "--no-optional-locks", "--query-gpu"),
    *(
        "--format",
        "--logdir",
        "--nproc-per-node",
        "--frozen",
        "--sampler",
        "--on",
        "--no",
        "--model-impl",
    ),
}


def shown(page: Path) -> list[tuple[str, list[str]]]:
    """Commands of a page with the options that follow them."""
    found = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            words = re.sub(r"--load \S+ ", "", line.split(" #")[0]).split()
            for place, word in enumerate(words[:-1]):
                if word == "masksearch" and words[place + 1][0] not in ".-":
                    options = [w.split("=")[0] for w in words[place + 2 :] if w[:2] == "--"]
                    found.append((words[place + 1], options))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    for command, options in shown(page):
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
    assert ("pretrain", ["--corpus", "--size", "--steps", "--out"]) in shown(
        ROOT / "docs" / "proxy.md"
    )
    assert sum(len(shown(page)) for page in PAGES) > 20


def test_help_and_the_page_of_searches_name_every_strategy():
    from masksearch.strategies.build import every_kind

    [option] = [each for each in COMMANDS["search"].params if each.name == "strategy"]
    page = (ROOT / "docs/search.md").read_text(encoding="utf-8")
    for name in every_kind():
        assert f'"{name}"' in page or f"`{name}`" in page, name
        assert re.search(rf"\b{name}\b", option.help), name
