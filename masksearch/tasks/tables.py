"""The tables that a person brings, CSV, TSV or JSON lines: each row as it is written, or refused.

columns, rows = read_table(Path("reviews.csv"))
columns, rows[2]      # ["text", "label"], ["Good, really", "1"]
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from pathlib import Path

from masksearch.errors import DataError
from masksearch.tasks.text.files import check_ending, decode_utf8

ENDINGS = (".tsv", ".csv")  # of the files of a task
Rows = dict[int, list[str]]  # number of the line where a row begins, from 1 -> its cells


def read_table(
    path: Path, fields: int | None = None, broken_lines: int = 0
) -> tuple[list[str], Rows]:
    """Reads a file of rows that all have as many cells.

    A TSV file has a row a line, which ends at LF or CR LF and nowhere else; its quote marks are
    text. A CSV file is as RFC 4180 has it, its blank lines hold no row; any ending that is no
    other form's (`check_ending`) is of a CSV file. A JSON-lines file has an object a line, the
    first of which names the columns; numbers are as they are spelled, null is an empty cell. A
    byte-order mark at the start is dropped, the last line needs no end.

    Args:
        path: The file, UTF-8.
        fields: Cells of a row where the file has no header; None = as many as the header.
        broken_lines: Largest number of rows with too few cells that are left out, with a warning.

    Returns:
        The names of the columns (none without a header), and the rows.

    Raises:
        DataError: If the file is not UTF-8, is no table or has no row, two columns have one name,
            or a row has more or fewer cells; names the file and the line.
    """
    check_ending(path, tables=(*ENDINGS, ".jsonl"))
    tabs, objects = (path.suffix.lower() == ending for ending in (".tsv", ".jsonl"))
    rows = (_tsv_rows if tabs else _json_rows if objects else _csv_rows)(path)
    columns = [] if fields or not rows else rows.pop(next(iter(rows)))
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise DataError(f"{path}, line 1: two columns are called {twice[0]!r}; rename one")
    count = fields or len(columns)
    broken = [line for line, cells in rows.items() if len(cells) < count][:broken_lines]
    rows = {line: cells for line, cells in rows.items() if line not in broken}
    if not rows:
        raise DataError(f"{path} is empty, or holds no whole row; give at least one")
    for line, cells in rows.items():
        if len(cells) != count:
            kind, quote = ("tab", "") if tabs else ("comma", "quote cells with a comma, or ")
            raise DataError(
                f"{path}, line {line}: expected {count} {kind}-separated fields, found "
                f"{len(cells)}; {quote}mend or remove the line"
            )
    if broken:
        warnings.warn(
            f"{path}: {len(broken)} lines with too few fields are left out "
            f"(line {', '.join(map(str, broken))}); {broken_lines} are allowed",
            stacklevel=2,
        )
    return columns, rows


def _tsv_rows(path: Path) -> Rows:
    """Line -> cells; nothing but LF ends a line, since texts hold U+2028."""
    lines = path.read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return {
        number: decode_utf8(raw.removesuffix(b"\r"), path, number).split("\t")
        for number, raw in enumerate(lines, start=1)
    }


def _csv_rows(path: Path) -> Rows:
    """Line -> cells, where quotes are as RFC 4180 has them."""
    text, rows, line = decode_utf8(path.read_bytes(), path), Rows(), 1
    reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
    before = csv.field_size_limit(len(text) + 1)
    try:
        for cells in reader:
            if cells:
                rows[line] = cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: {str(error).partition(' - ')[0]}; quote a cell that holds a "
            "comma, a line break or a quote mark, and double the quote marks in it"
        ) from error
    finally:
        csv.field_size_limit(before)
    return rows


def _json_rows(path: Path) -> Rows:
    """Line -> cells, by the names of the first object, which stand at number 0."""
    rows = Rows()
    for number, line in enumerate(decode_utf8(path.read_bytes(), path).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line, parse_int=str, parse_float=str)
                cells = ["" if row[n] is None else row[n] for n in rows.setdefault(0, [*row])]
                rows[number] = [c if isinstance(c, str) else json.dumps(c) for c in cells]
                "".join(rows[number]).encode()  # no half of a surrogate pair
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path}, line {number}: {line.strip()!r:.60} is no JSON object with the "
                    f"names of the first line and whole characters ({error}); mend the line"
                ) from error
    return rows


def tidy(text: str) -> str:
    """A text as one line, to be shown: tabs and line breaks are spaces, and none stands at an
    end. A tokenizer reads it as it stands."""
    return " ".join(text.replace("\t", " ").splitlines()).strip()
