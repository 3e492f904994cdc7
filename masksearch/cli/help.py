"""How `--help` looks: options in groups, the default of each, and examples at the end.

The groups are typer's `rich_help_panel`, written as plain text: nothing but typer is loaded, and
a pipe gets what a terminal does. A command's examples stand at the end of its docstring, below
"Examples:", and are printed as they stand.
"""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperCommand, TyperGroup

EXAMPLES = "Examples:\n"
LAST = "Output"  # the group that stands last, with --help
WIDEST = {"max_content_width": 120}  # characters, on a terminal that has as many


class CommandWithExamples(TyperCommand):
    """A command whose options stand in groups, with examples below them."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """What the command does, without its examples."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(inspect.cleandoc(self.help or "").partition(EXAMPLES)[0].strip())

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options by group, in the order in which they are declared."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:  # a hidden option
                continue
            name, text = record
            if parameter.param_type_name == "argument":
                name = parameter.metavar or name
            group = getattr(parameter, "rich_help_panel", None) or LAST
            groups.setdefault(group, []).append((name, text))
        groups[LAST] = groups.pop(LAST)
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows, col_max=26)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, as they stand."""
        examples = inspect.cleandoc(self.help or "").partition(EXAMPLES)[2]
        if examples:
            with formatter.section(EXAMPLES.rstrip(":\n")):
                for line in inspect.cleandoc(examples).splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class CommandsInGroups(TyperGroup):
    """The program, whose help lists its commands in groups, in the order of use."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The first sentence of each command, by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            sentence = " ".join((command.help or "").split()).partition(". ")[0].rstrip(".")
            group = getattr(command, "rich_help_panel", None) or "Commands"
            groups.setdefault(group, []).append((name, sentence))
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl([(f"{name:<10}", text) for name, text in rows])
