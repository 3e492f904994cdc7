"""Writes the part of commands.md that follows the program: every command, option and example.

Called by conf.py; the text is that of `masksearch COMMAND --help`.
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


def plain(text: str) -> str:
    """Help as Markdown shows it: its marks are no Markdown; the default stands in a line below."""
    text, _, default = text.replace("[required]", "").strip().partition("  [default: ")
    text, default = (re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", each) for each in (text, default))
    return f"{text}\\\n  *Default: {default[:-2]}.*" if default else text


def section(program: str, name: str, command: Any) -> str:
    """One command."""
    about, _, examples = inspect.cleandoc(command.help).partition(EXAMPLES)
    context = command.make_context(name, [], resilient_parsing=True)
    arguments = [p.metavar for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([program, name, *arguments, "[OPTIONS]"])
    title = name if program == "masksearch" else f"{program} {name}"
    lines = [f"## {title}", f"`{usage}`", plain(" ".join(about.split()))]
    lines += [f"```bash\n{inspect.cleandoc(examples)}\n```"]
    groups: dict[str, list[str]] = {}
    for parameter in command.params:
        shown, help = parameter.get_help_record(context)
        if parameter.param_type_name == "argument":
            shown = parameter.metavar
        groups.setdefault(parameter.rich_help_panel, []).append(f"`{shown}`\n: {plain(help)}\n")
    for group, options in groups.items():
        lines += [f"**{group}**", *options]
    return "\n\n".join(lines)


def main(folder: Path) -> None:
    """Writes `commands.md` into that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        section(program, name, command)
        for program, each in PROGRAMS.items()
        for name, command in typer.main.get_command(each).commands.items()
    ]
    text = "\n\n".join(sections)
    (folder / "commands.md").write_text(text + "\n", encoding="utf-8")
