"""docs/write_your_own.md: files, Python and commands run in their order, a section at a time."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from masksearch import Mask

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "write_your_own.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of the blocks that are run or compared, in their order."""
    return re.findall(r"```(python|bash|text)\n(.*?)```", text, re.S)


FILES = {
    body.split("\n", 1)[0].removeprefix("# "): body
    for kind, body in blocks(PAGE)
    if kind == "python" and re.match(r"# \w+\.py\n", body)
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the pages' files, importable; what they define is forgotten afterwards."""
    for name, body in FILES.items():
        (tmp_path / name).write_text(body, encoding="utf-8")
    kinds = dict(Mask.kinds)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    Mask.kinds.clear()
    Mask.kinds.update(kinds)
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def sections() -> dict[str, list[tuple[str, str]]]:
    """Heading -> its blocks, where there are any."""
    parts = re.split(r"^## ", PAGE, flags=re.M)
    return {part.split("\n", 1)[0]: found for part in parts if (found := blocks(part))}


def test_the_page_has_a_file_for_each_part():
    assert len(FILES) == len(sections()) == 9


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:DAM")  # four steps prune nothing
@pytest.mark.parametrize("heading", sections())
def test_a_part_of_ones_own_runs(heading, folder, command, capsys):
    names: dict[str, object] = {}
    exec("import masksearch as ms\nfrom masksearch import masks", names)
    printed = ""
    for kind, body in sections()[heading]:
        if kind == "text":
            assert body in printed
        elif kind == "bash":
            for line in body.strip().splitlines():
                command(*shlex.split(line)[1:])
        elif body not in FILES.values():
            exec(compile(body, heading, "exec"), names)
            printed = capsys.readouterr().out
