"""Tables in CSV, TSV and JSON lines: every row as it is written, or refused by its line."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from masksearch.errors import DataError
from masksearch.tasks.tables import ENDINGS, read_table

CELLS = st.text(st.sampled_from("ab,;\"' \t\n\r\x0b\x85\u2028"), max_size=5)
ROWS = st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4)
HEADER = ("one", "two", "three")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@given(ROWS, st.sampled_from(["\n", "\r\n"]))
def test_what_a_writer_of_csv_wrote_is_read_cell_by_cell(place, rows, end):
    file, quoting = io.StringIO(newline=""), csv.QUOTE_ALL if end == "\n" else csv.QUOTE_MINIMAL
    csv.writer(file, lineterminator=end, quoting=quoting).writerows([HEADER, *rows])
    columns, table = read_table(write(place / "a.csv", file.getvalue()))
    assert columns == [*HEADER]
    assert [*map(tuple, table.values())] == rows
    starts = [text.count("\n") for text in ("".join(row) for row in rows)]
    assert [*table] == [2 + at + sum(starts[:at]) for at in range(len(rows))]


@given(ROWS, st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", "\ufeff"]))
def test_a_tsv_is_split_at_lf_and_tabs_alone(place, rows, end, mark):
    rows = [tuple(c.translate({9: "t", 10: "n", 13: "r"}) for c in row) for row in rows]
    while rows and not "".join(rows[-1]).strip():  # blank lines at the end hold no row
        rows.pop()
    assume(rows)
    text = mark + "".join("\t".join(row) + end for row in [HEADER, *rows])
    columns, table = read_table(write(place / "a.tsv", text + end))
    assert columns == [*HEADER]
    assert [*map(tuple, table.values())] == rows


@given(
    ROWS, st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans(), st.sampled_from(["", "\ufeff"])
)
def test_json_lines_are_objects_by_the_names_of_the_first(place, rows, end, escaped, mark):
    objects = [dict(zip(HEADER, row, strict=True)) for row in rows]
    objects[1:] = [{"more": [1], **dict(reversed(each.items()))} for each in objects[1:]]
    text = end.join(json.dumps(each, ensure_ascii=escaped) for each in objects)
    columns, table = read_table(write(place / "a.jsonl", mark + text))
    assert columns == [*HEADER]
    assert [*map(tuple, table.values())] == rows


def test_what_is_no_text_in_json_is_as_it_is_spelled_and_null_is_an_empty_cell(place):
    text = '{"a": 1.50, "b": null, "c": [true]}\n{"a": 10000000000000000001, "b": 0, "c": false}'
    path = write(place / "a.JSONL", text)
    rows = {1: ["1.50", "", "[true]"], 2: ["10000000000000000001", "0", "false"]}
    assert read_table(path) == (["a", "b", "c"], rows)


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(["csv", "tsv"]))
def test_a_row_with_other_cells_than_the_header_is_refused_by_its_line(place, cells, line, ending):
    separator = "," if ending == "csv" else "\t"
    lines = [separator.join("abc")] * (line + 1) + [separator.join("x" * cells)]
    path = write(place / f"row.{ending}", "\n".join(lines))
    if cells == 3:
        assert len(read_table(path)[1]) == line + 1
    else:
        with pytest.raises(DataError, match=rf"line {line + 2}: expected 3 .*found {cells}; "):
            read_table(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'a,b\n"x" y,1\n', r"line 2: ',' expected after '\"'; quote a cell"),
        ("a.csv", 'a,b\nx,1\n\n"x,1\ny,2\n', "line 4: unexpected end of data; quote a cell"),
        ("a.csv", "a,b\nx\ry,1\n", "line 2: new-line character seen in unquoted field; quote"),
        ("a.csv", "a,b\rx,1\ry,2\r", "line 1: new-line character seen in unquoted field; quote"),
        ("a.csv", "a,b\nx, but y,1\n", "line 2: .*comma-separated fields, found 3; quote cells"),
        ("a.tsv", "a\tb\nx\ty\n\nx\ty\n", "line 3: .*tab-separated fields, found 1; mend or"),
        *((f"a.{end}", text, "is empty, or holds no") for end in ENDINGS for text in ("", "a\n")),
        ("a.jsonl", '{"a": "x"}\n"x"\n', r"a.jsonl, line 2: '\"x\"' is no JSON object with the"),
        ("a.jsonl", '{"a": "x"}\n\n{"b": "x"}\n', "line 3: .* names of the first line .*; mend"),
        ("a.jsonl", '{"a": "x"}\n{"a": "\\ud83d"}\n', r"line 2: .* and whole characters .*; mend"),
        ("a.jsonl", "a,b\nx,y\n", "line 1: 'a,b' is no JSON object"),
        ("a.jsonl", "\n", "is empty, or holds no"),
        ("a.csv.gz", "", r"a\.csv\.gz is packed; unpack it"),
        ("a.parquet", "", r"is no text; convert it to \.jsonl, or give a corpus as hf:FOLDER#COL"),
        ("a.csv", "a,b,a\nx,y,z\n", "line 1: two columns are called 'a'; rename one"),
        ("a.tsv", "a\tb\tb\nx\ty\tz\n", "line 1: two columns are called 'b'; rename one"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path / name, text))


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t")])
def test_a_cell_may_be_longer_than_the_limit_of_csv(tmp_path, ending, separator):
    long, limit = "word " * 30_000, csv.field_size_limit()
    path = write(tmp_path / f"a.{ending}", separator.join(["a", "b\n"]) + f"{long}{separator}1\n")
    assert read_table(path)[1] == {2: [long, "1"]}
    assert csv.field_size_limit() == limit
