"""Tables: LaTeX that compiles, CSV that holds every digit, HTML and terminal of the same cells."""

import html
import io
import re
from dataclasses import replace

import pandas as pd
import pytest
from page_text import page_of
from rich.console import Console
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Objective
from masksearch.errors import SearchError
from masksearch.report.fronts import compared_points, draw_front, trial_points
from masksearch.report.section import Section
from masksearch.report.tables import comparison_table, front_table

NASTY = r"50%_of & #1 {a}\b ~x^2 $y$ >= <0.8|"
ESCAPED = (
    r"50\%\_of \& \#1 \{a\}\textbackslash{}b \textasciitilde{}x\textasciicircum{}2 \$y\$ "
    r"\textgreater{}= \textless{}0.8\textbar{}"
)


def told_of(comparison):
    """The tables of a page about a comparison."""
    section = Section({}, comparison.objectives, {"c": comparison})
    return page_of(section)["comparisons"][0]


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


def test_a_score_of_one_task_has_the_name_of_that_task(objectives, compared, shape):
    runs = {"dense": (masks.full(), [0.9, 0.9]), "mine": (masks.window(1), [0.7, 0.8])}
    records = [
        replace(r, values={"tickets": r.value("glue"), "tickets/majority": 0.4, **r.values})
        for r in compared(runs)
    ]
    comparison = ms.Comparison(tuple(records), objectives, shape=shape)
    head = [cell.text for cell in comparison_table(comparison, comparison.tasks).head]
    assert head.count("tickets") == 1
    assert "glue" not in head
    assert "tickets" in [cell.text for cell in front_table({"tpe": records}, objectives).head]
    assert "sparse, tickets 0.750 [" in comparison.verdict()
    points = trial_points(Section({"tpe": records}, objectives))
    for each in (points, compared_points(comparison)):
        axes = draw_front(each, objectives).axes[0]
        assert axes.get_ylabel() == "tickets, higher is better"
    assert "glue" in comparison.frame().columns  # as it is stored
    other = replace(records[-1], values=records[-1].values | {"glue": 0.1})  # a mean of more
    assert ms.Comparison((*records[:-1], other), objectives, shape=shape).title == "glue"


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
    head, *rows = check_latex(comparison.latex(["SST-2", "sst_loss"]))
    assert head == [*("Mask", "Kind", "Sparsity", "Density", "Glue", "SST-2", "Sst loss", "Seeds")]
    found = {row[0]: row for row in rows}
    assert len(found) == len(comparison.entries)
    assert found["dense"][2:5] == [
        r"0.0\%",
        r"100.0\%",
        "0.910 [0.885, 0.935]",
    ]  # dense is not bold
    best = found[ESCAPED]
    assert best[4] == r"\textbf{0.810 [0.785, 0.835]}"
    assert sum("textbf" in row[4] for row in rows) == 1
    assert found["once"][4] == "0.500 (1 seed)"
    assert found["once"][5] == "0.500"  # no best among equals
    assert found["broken"][4:7] == ["--", "--", "--"]
    assert found["mine"][1] == "searched"


def test_work_is_a_column_where_it_is_known(comparison):
    assert "work" not in comparison.frame()
    assert "work" not in comparison_table(comparison).data[0]
    records = [
        replace(each, measures={**each.measures, "work": 0.625}) if each.name == "mine" else each
        for each in comparison.records
    ]
    known = replace(comparison, records=tuple(records))
    frame = known.frame().set_index("mask")
    assert frame["work"]["mine"] == 0.625
    assert pd.isna(frame["work"]["star"])
    assert known.frame("seed").groupby("mask")["work"].mean()["mine"] == 0.625
    for table in (comparison_table(known), front_table({"a": records}, known.objectives)):
        column = [cell.text for cell in table.head].index("work")
        assert {row[column].text for row in table.rows} >= {"62.5%", "-"}
        assert "Work: the multiplications that are left" in table.caption


def test_least_loss_is_the_best(compared):
    goals = (Objective("loss", "min", 9.0), Objective("sparsity", "max", 0.0))
    records = compared({"a": (masks.star(), [1.5]), "b": (masks.window(1), [2.5])})
    records = [replace(r, values={"loss": r.values["glue"]}) for r in records]
    text = ms.Comparison(tuple(records), goals).latex()
    assert re.findall(r"\\textbf\{([^}]*)\}", text) == ["1.500 (1 seed)"]


def test_findings_are_a_table(comparison):
    head, *rows = check_latex(told_of(comparison)["findings"].latex())
    assert len(rows) == len(comparison.findings())
    mine = next(row for row in rows if row[0] == "mine" and row[1] == "dense")
    said = dict(zip(head, mine, strict=True))
    assert said["Difference"] == "$-$0.190"
    assert said["Interval"].startswith("[$-$0.3")
    assert said["Outcome"] == "worse"


def test_front_is_a_table(record, objectives):
    studies = {"a_b": [record(0, 0.8, masks.star()), record(1, 0.9, masks.window(3))]}
    told = page_of(Section(studies, objectives))
    _, *rows = check_latex(told["front"].latex())
    assert [row[-1] for row in rows] == [r"\texttt{window(3)}", r"\texttt{star()}"]
    assert rows[0][0] == r"a\_b"


def test_baselines_are_no_trials_of_a_strategy(record, objectives):
    hand = record(0, 0.9, masks.window(3), role="baseline")
    own = [record(1, 0.7, masks.star()), record(2, None, masks.window(1))]
    section = Section({"tpe": [hand, *own]}, objectives, {})
    told = page_of(section)
    rows = [tuple(cell.text for cell in row[:3]) for row in told["runs"].rows]
    assert rows == [("tpe", "2", "1"), ("tpe: baselines", "1", "1")]


def test_every_layout_shows_the_same_cells(comparison):
    table = told_of(comparison)["table"].only("mask", "glue").beside("more", ["x"] * 6)
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
    assert comparison.latex() == told_of(comparison)["table"].latex()
    assert "SST-2" in comparison.latex(columns=["SST-2"])
    assert comparison.latex("SST-2") == comparison.latex(["SST-2"])
    frame = comparison.frame(per="seed")
    assert len(frame) == len(comparison.records)
    assert frame.loc[frame["status"] == "failed", "error"].unique() == ["CUDA out of memory"]
    assert pd.read_csv(io.StringIO(frame.to_csv(index=False))).shape == frame.shape


@pytest.mark.nightly
@pytest.mark.filterwarnings(
    "ignore:parameters without an effect", "ignore:.* trials of random drew"
)
def test_the_parameter_that_decides_is_named(tmp_path):
    def decided(trial):
        trial.suggest_int("idle", 0, 9)
        if trial.suggest_categorical("wide", [True, False]):
            return masks.window(9)
        return masks.window(trial.suggest_int("reach", 0, 2))

    found = {"progress": None, "strategy": "random", "trials": 60}
    study = ms.search(decided, ToyEvaluator(), run=tmp_path / "run", **found)
    table = study.importances().set_index("parameter")
    shown = page_of(Section({"random": study.records()}, study.objectives))["importance"].frame()
    assert table.equals(shown.set_index("parameter"))
    assert (table["trials"] == sum(record.scored for record in study.records())).all()
    shares = table[["front", *(objective.name for objective in study.objectives)]]
    assert shares.sum().tolist() == pytest.approx([1] * 3)
    assert shares["sparsity"]["idle"] < 0.1 < shares["sparsity"].max()
    few = page_of(Section({"random": study.records()[:19]}, study.objectives))
    assert [cell.text for cell in few["importance"].rows[0]] == [
        *("random", "(told from 20 scored draws on)", "19", "-", "-", "-")
    ]
    assert not few["importance"].data


def test_too_few_draws_tell_no_importance(tmp_path):
    study = ms.search(
        space, ToyEvaluator(), run=tmp_path / "run", strategy="random", trials=2, progress=None
    )
    with pytest.raises(SearchError, match=r"takes 20 scored draws of two .*; random has 2"):
        study.importances()
