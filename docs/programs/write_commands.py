"""Writes docs/commands.md: every command, option and example, as `masksearch COMMAND --help`.

python docs/programs/write_commands.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import typer.main

from masksearch.cli.main import app
from masksearch.cli.options import EXAMPLES
from masksearch_bench.__main__ import app as bench

PROGRAMS = {"masksearch": app, "masksearch-bench": bench}
HEAD = """# The command line

*Written by a program, docs/programs/write_commands.py, from the help of the commands.*

All that `masksearch COMMAND --help` prints, or `--help-all` where a command has it, on one page.
A mistake is one line on standard error and exit code 2. `--json`, where a command has it, prints
JSON on standard output.

`masksearch --load FILE.py COMMAND ..` makes masks of your own known to any command.
`masksearch --version` prints what a report of a mistake should say, and
`masksearch --install-completion` has the Tab key complete commands and options. The last three
commands are those of the [tables with a known optimum](maskbench.md).
"""


def cell(text: str) -> str:
    """Help as a cell of a table shows it: its marks are no Markdown."""
    text = " ".join(text.replace("[required]", "").split())
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", text)


def row(program: str, name: str, command: Any) -> str:
    """One command in the list of all, with the first sentence of its help."""
    title = name if program == "masksearch" else f"{program} {name}"
    about = cell(inspect.cleandoc(command.help).partition("\n\n")[0])
    return f"| [`{program} {name}`](#{title.replace(' ', '-')}) | {about} |"


def section(program: str, name: str, command: Any) -> str:
    """One command."""
    about, _, examples = inspect.cleandoc(command.help).partition(EXAMPLES)
    context = command.make_context(name, [], resilient_parsing=True)
    arguments = [p.metavar for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([program, name, *arguments, "[OPTIONS]"])
    title = name if program == "masksearch" else f"{program} {name}"
    lines = [f"## {title}", f"`{usage}`", cell(about)]
    lines += [f"```bash\n{inspect.cleandoc(examples)}\n```"]
    groups: dict[str, list[str]] = {}
    for parameter in command.params:
        shown, help = parameter.get_help_record(context)
        if parameter.param_type_name == "argument":
            shown = parameter.metavar
        text, _, default = help.partition("  [default: ")
        row = f"| `{shown.replace('|', chr(92) + '|')}` | {cell(text)} | {cell(default[:-1])} |"
        groups.setdefault(parameter.rich_help_panel, []).append(row)
    for group, options in groups.items():
        lines += ["\n".join([f"| {group} | | default |", "|---|---|---|", *options])]
    return "\n\n".join(lines)


def main(docs: Path) -> None:
    """Writes `commands.md` into that folder."""
    commands = []
    for program, each in PROGRAMS.items():
        group: Any = typer.main.get_command(each)
        commands += [
            (program, name, group.get_command(None, name)) for name in group.list_commands(None)
        ]
    table = "\n".join(
        ["| command | what it does |", "|---|---|", *(row(*each) for each in commands)]
    )
    (docs / "commands.md").write_text(
        "\n\n".join([HEAD.strip(), table, *(section(*each) for each in commands)]) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(Path(__file__).parents[1])
