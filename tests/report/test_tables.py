"""Tables: LaTeX that compiles, CSV that holds every digit, HTML and terminal of the same cells."""

from __future__ import annotations

import html
import io
import math
import re

import pandas as pd
import pytest
from rich.console import Console

import masksearch as ms
from masksearch import masks
from masksearch.report.layout import escape, write_tables
from masksearch.report.page import paper_tables
from masksearch.report.result import result_of
from masksearch.report.section import Section
from masksearch.report.tables import comparison_table, findings_table, front_table

NASTY = r"50%_of & #1 {a}\b ~x^2 $y$ >= <0.8|"


@pytest.fixture
def comparison(objectives, compared, shape):
    runs = {
        "dense": (masks.full(), [0.9, 0.91, 0.92]),
        "mine": (masks.window(1), [0.7, 0.71, 0.75]),
        NASTY: (masks.window(2), [0.8, 0.81, 0.82]),
        "star": (masks.star(), [0.6, 0.62, 0.61]),
        "once": (masks.strided(), [0.5]),
        "broken": (masks.fixed(), [None, None, None]),
    }
    records = compared(runs, values={"SST-2": 0.5, "sst_loss": 1.25})
    return ms.Comparison(tuple(records), objectives, shape=shape, kinds={"mine": "searched"})


def check_latex(text: str) -> list[list[str]]:
    """The cells of a table; what LaTeX would stumble over fails."""
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    assert opened == re.findall(r"\\end\{(\w+)\}", text)[::-1]
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)  # without what is escaped
    depth = 0
    for letter in bare:
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert depth == 0
    assert not re.search(r"[#_~^<>|%]", bare)
    assert bare.count("$") == 2 * len(re.findall(r"\$[-p]\$", bare))
    (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    lines = [line.strip() for line in text.splitlines() if line.strip().endswith(r"\\")]
    cells = [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in lines]
    assert all(len(row) == len(columns) for row in cells)
    return [[cell.strip() for cell in row] for row in cells]


def test_comparison_is_a_table(comparison):
    head, *rows = check_latex(comparison_table(comparison, ["SST-2", "sst_loss"]).latex())
    assert head == [*("Mask", "Kind", "Sparsity", "Density", "Glue", "SST-2", "Sst loss", "Seeds")]
    found = {row[0]: row for row in rows}
    assert len(found) == len(comparison.entries)
    assert found["dense"][2:5] == [
        r"0.0\%",
        r"100.0\%",
        "0.910 [0.885, 0.935]",
    ]  # dense is not bold
    best = found[escape(NASTY)]
    assert best[4] == r"\textbf{0.810 [0.785, 0.835]}"
    assert sum("textbf" in row[4] for row in rows) == 1
    assert found["once"][4] == "0.500 (1 seed)"
    assert found["once"][5] == "0.500"  # no best among equals
    assert found["broken"][4:7] == ["--", "--", "--"]
    assert found["mine"][1] == "searched"


def test_least_loss_is_the_best(compared):
    from masksearch.contracts import Objective

    goals = (Objective("loss", "min", 9.0), Objective("sparsity", "max", 0.0))
    records = compared({"a": (masks.star(), [None]), "b": (masks.window(1), [None])})
    records = [
        type(r)(**{**vars(r), "status": "done", "values": {"loss": 1.5 + k}, "error": ""})
        for k, r in enumerate(records)
    ]
    text = comparison_table(ms.Comparison(tuple(records), goals)).latex()
    assert re.findall(r"\\textbf\{([^}]*)\}", text) == ["1.500 (1 seed)"]


def test_findings_are_a_table(comparison):
    head, *rows = check_latex(findings_table(comparison).latex())
    assert len(rows) == len(comparison.findings())
    mine = next(row for row in rows if row[0] == "mine" and row[1] == "dense")
    said = dict(zip(head, mine, strict=True))
    assert said["Difference"] == "$-$0.190"
    assert said["Interval"].startswith("[$-$0.3")
    assert said["Outcome"] == "worse"


def test_front_is_a_table(record, objectives):
    studies = {"a_b": [record(0, 0.8, masks.star()), record(1, 0.9, masks.window(3))]}
    _, *rows = check_latex(front_table(studies, objectives).latex())
    assert [row[-1] for row in rows] == [r"\texttt{window(3)}", r"\texttt{star()}"]
    assert rows[0][0] == r"a\_b"


def test_baselines_are_no_trials_of_a_strategy(record, objectives):
    hand = record(0, 0.9, masks.window(3), role="baseline")
    own = [record(1, 0.7, masks.star()), record(2, None, masks.window(1))]
    section = Section({"tpe": [hand, *own]}, objectives, {})
    told = result_of([section], title="t")["sections"][0]
    rows = [tuple(cell.text for cell in row[:3]) for row in told["runs"].rows]
    assert rows == [("tpe", "2", "1"), ("tpe: baselines", "1", "1")]


def test_files_hold_every_digit(tmp_path, comparison, record, objectives):
    studies = {"tpe": [record(0, 1 / 3, masks.star())]}
    section = Section(studies, objectives, {"c": comparison})
    told = result_of([section], title="t")["sections"][0]
    write_tables(tmp_path / "t", "one_", paper_tables(told, section))
    assert pd.read_csv(tmp_path / "t" / "one_front.csv")["glue"].tolist() == [1 / 3]
    summary = pd.read_csv(tmp_path / "t" / "one_compared.csv").set_index("mask")
    runs = pd.read_csv(tmp_path / "t" / "one_compared_seeds.csv")
    for name, entry in comparison.entries.items():
        own = runs[runs["mask"] == name]
        assert dict(zip(own["seed"], own["glue"], strict=True)) == pytest.approx(
            dict(entry.scores) if entry.scores else dict.fromkeys(range(3), math.nan), nan_ok=True
        )
        assert summary.loc[name, "glue"] == pytest.approx(entry.score.value, nan_ok=True)
    findings = pd.read_csv(tmp_path / "t" / "one_findings.csv")
    assert set(findings["outcome"]) <= {"better", "worse", "not distinguishable", "same mask"}


def test_every_layout_shows_the_same_cells(comparison):
    table = comparison_table(comparison).only("mask", "glue").beside("more", ["x"] * 6)
    shown = table.html()
    printed = Console(width=160)
    with printed.capture() as text:
        printed.print(table.terminal("title"))
    for name, score, _ in table.rows:
        cells = (name.text, score.text)
        assert all(html.escape(cell) in shown for cell in cells)
        assert any(all(cell in line for cell in cells) for line in text.get().splitlines())
    assert f"<b>{html.escape(NASTY)}</b>" not in shown
    assert "<b>mine</b>" in shown  # searched
    assert shown.count("<tr>") == 7
    assert table.html(2).count("<tr>") == 3


def test_comparison_gives_its_table(comparison):
    mine = ms.Comparison(**{f: getattr(comparison, f) for f in ("records", "objectives", "kinds")})
    assert mine.latex() == comparison_table(comparison).latex()
    assert "SST-2" in mine.latex(columns=["SST-2"])
    frame = mine.frame(per="seed")
    assert len(frame) == len(comparison.records)
    assert frame.loc[frame["status"] == "failed", "error"].unique() == ["CUDA out of memory"]
    assert pd.read_csv(io.StringIO(frame.to_csv(index=False))).shape == frame.shape
