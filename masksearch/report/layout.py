r"""A table of cells, described once, and how it is laid out: HTML, terminal, LaTeX and CSV.

The page lays tables out by a template of its own, from the same cells in `result.json`. A LaTeX
table needs `\usepackage{booktabs}` and nothing else.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape as escape_markup
from rich.table import Table

from masksearch.errors import without_controls
from masksearch.files import cell_text, write_in_one_move, write_text_in_one_move
from masksearch.masks.text import short_text

if TYPE_CHECKING:
    import pandas as pd

DASH = "-"  # where there is nothing to say
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{each: f"\\{each}" for each in "&%$#_{}"},
}


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell; `number` columns are set flush right."""

    text: str
    number: bool = False
    code: bool = False
    note: str = ""  # code on a line of its own below
    mark: Literal["", "best", "majority", "searched"] = ""


@dataclass(frozen=True)
class TextTable:
    """A head and rows of as many cells, and what they were written from.

    Args:
        head: Names of the columns.
        rows: What readers see.
        data: The rows with every digit, for CSV.
        caption: Of the table on paper.
        aside: Names of columns that paper has no room for.
    """

    head: tuple[Cell, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    data: Sequence[Mapping[Any, Any]] = ()
    caption: str = ""
    aside: tuple[str, ...] = ()

    def without(self, *names: str) -> TextTable:
        """The table without the columns of these names."""
        kept = [index for index, cell in enumerate(self.head) if cell.text not in names]
        return replace(
            self,
            head=tuple(self.head[index] for index in kept),
            rows=tuple(tuple(row[index] for index in kept) for row in self.rows),
        )

    def only(self, *names: str) -> TextTable:
        """The table with the columns of these names alone."""
        return self.without(*(cell.text for cell in self.head if cell.text not in names))

    def beside(self, name: str, texts: Iterable[str]) -> TextTable:
        """The table with one more column of texts."""
        return replace(
            self,
            head=(*self.head, Cell(name)),
            rows=tuple((*row, Cell(text)) for row, text in zip(self.rows, texts, strict=True)),
        )

    def frame(self) -> pd.DataFrame:
        """The rows with every digit."""
        import pandas as pd

        return pd.DataFrame(self.data)

    def html(self, most: int | None = None) -> str:
        """The first rows for a notebook, which has no style sheet."""
        if not self.rows:
            return ""
        cell = '<td style="text-align:left">{}</td>'
        head = '<th style="text-align:left">{}</th>'
        names = "".join(head.format(html.escape(each.text)) for each in self.head)
        rows = (
            f"<tr>{''.join(cell.format(_html_cell(each)) for each in row)}</tr>"
            for row in self.rows[:most]
        )
        return f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def terminal(self, title: str | None = None, room: int = 64) -> Table:
        """The table for a terminal; `=` marks what is no better than a constant answer.

        Args:
            title: Above it.
            room: Characters of an expression at most.
        """
        table = Table(title=title, title_justify="left")
        for cell in self.head:
            table.add_column(escape_markup(cell.text), justify="right" if cell.number else "left")
        for row in self.rows:
            texts = (short_text(cell.text, room) if cell.code else cell.text for cell in row)
            marks = ("=" * (cell.mark == "majority") for cell in row)
            cells = (text + mark for text, mark in zip(texts, marks, strict=True))
            table.add_row(*map(escape_markup, without_controls([*cells])))
        return table

    def latex(self) -> str:
        """A floating table with booktabs rules."""
        import pandas as pd

        paper = self.without(*self.aside)
        numbers = [cell.number for cell in paper.head]
        head = [escape(words(f"{cell.text[:1].upper()}{cell.text[1:]}")) for cell in paper.head]
        rows = [list(map(_latex_cell, row, numbers)) for row in paper.rows]
        style = pd.DataFrame(rows, columns=head).style.hide(axis="index")
        text: str = style.to_latex(
            column_format="".join("r" if number else "l" for number in numbers),
            caption=escape(paper.caption),
            position_float="centering",
            hrules=True,
        )
        return text


def text_table(
    rows: Sequence[Mapping[str, Cell | str]], text: Sequence[str] = (), **more: Any
) -> TextTable:
    """A table of rows, each the names of all columns -> cells or plain texts; columns that are not
    named in `text` hold numbers."""
    names = rows[0] if rows else {}
    return TextTable(
        tuple(Cell(name, number=name not in text) for name in names),
        tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row.values()) for row in rows),
        **more,
    )


def write_tables(folder: Path, key: str, tables: Mapping[str, TextTable]) -> None:
    """Writes the tables that hold anything as `.csv` and, for readers, `.tex`; `key` begins
    their names."""
    for name, table in tables.items():
        folder.mkdir(parents=True, exist_ok=True)
        if table.data:
            frame = table.frame().rename(columns=cell_text).map(cell_text)
            with write_in_one_move(folder / f"{key}{name}.csv") as beside:
                frame.to_csv(beside, index=False)
        if table.rows:
            write_text_in_one_move(folder / f"{key}{name}.tex", table.latex())


def words(name: str) -> str:
    """A value's name as a column's head."""
    return name.replace("_", " ")


def _html_cell(cell: Cell) -> str:
    """A cell as HTML: expressions as code, searched masks and the best figures bold."""
    text = html.escape(cell.text)
    if cell.code:
        return f"<code>{text}</code>"
    return f"<b>{text}</b>" if cell.mark in ("best", "searched") else text


def _latex_cell(cell: Cell, number: bool) -> str:
    """A cell as LaTeX; the minus signs of numbers are those of mathematics."""
    if cell.text == DASH:
        return "--"
    text = escape(cell.text)
    if number:
        text = re.sub(r"-(?=\d)", "$-$", text)
    if cell.code:
        text = f"\\texttt{{{text}}}"
    return f"\\textbf{{{text}}}" if cell.mark == "best" else text


def escape(text: str) -> str:
    r"""A text as LaTeX prints it.

    >>> print(escape("a_b >= 0.5 & 10%"))
    a\_b \textgreater{}= 0.5 \& 10\%
    """
    return "".join(SPECIAL.get(letter, letter) for letter in without_controls(text))
