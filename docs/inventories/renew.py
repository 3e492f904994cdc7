"""Brings the inventories up to date: where other projects' pages have the names we refer to.

    python docs/inventories/renew.py    # needs the network; fails where a name is gone

The first line of a file is a project's address; the others are lines of a Sphinx inventory, of
which only the names that our signatures show are kept: name, kind, priority, page#NAME, title.
"""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path
from typing import Any

from sphinx.util.inventory import InventoryFile


def renewed(line: str, known: Any) -> str:
    """The line with the page that has its name now."""
    name, kind, priority, page, title = line.split(" ", 4)
    official = page.partition("#")[2]
    if official not in known.get(kind, {}):
        raise SystemExit(f"{name}: its project has no page of {official} any more; mend the line")
    return " ".join([name, kind, priority, known[kind][official].uri, title])


def main(files: list[Path]) -> None:
    """Rewrites each file."""
    for file in files:
        address, *lines = file.read_text(encoding="utf-8").splitlines()
        with urllib.request.urlopen(f"{address}/objects.inv", timeout=60) as answer:
            read = InventoryFile.loads(answer.read(), uri="")
        file.write_text("\n".join([address, *(renewed(x, read.data) for x in lines), ""]), "utf-8")
        print(f"{file.name}: {len(lines)} names")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.txt")))
