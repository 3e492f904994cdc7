"""The program `masksearch-bench`: what it prints, and mistakes of people who use it."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import typer.main

from masksearch_bench import Table
from masksearch_bench.__main__ import app
from masksearch_bench.table import write_table

COMMANDS = typer.main.get_command(app).commands
SELECTOR = """
def last_layers(known):
    for budget in known.budgets:
        choice = [0] * known.units
        for unit in reversed(range(known.units)):
            raised = [*choice[:unit], 1, *choice[unit + 1 :]]
            if known.share(raised) <= budget:
                choice = raised
        yield budget, choice
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """A folder with a selector."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SELECTOR)


@pytest.mark.slow
def test_the_command_judges_a_file_of_ones_own(program):
    told = ["--tables", "recall-1", "--budget", "0.5", "--json"]
    code, out, _ = program("judge", "mine.py:last_layers", *told)
    [row] = json.loads(out)
    assert (code, row["budget"], row["evaluations"]) == (0, 0.5, 0)
    assert row["regret"] > 1  # the last heads of this decoder look nothing up
    code, out, _ = program(
        "judge", "random", "--tables", "recall-1", "--budget", "0.5", "--trials", 5
    )
    assert code == 0
    assert out.startswith("random on recall-1\n")
    assert "oracle" in out


@pytest.mark.slow
def test_the_command_judges_allocate_as_its_help_says(program, table):
    """Told the table's own units and masks."""
    told = ["--tables", "recall-1", "--budget", "0.4", "--trials", 100, "--json"]
    code, out, _ = program("judge", "allocate", *told)
    [row] = json.loads(out)
    assert code == 0
    best = table.cells[table.shares() <= 0.4]["test/nll"].min()
    exact = table.optimum(0.4)
    assert abs(row["regret"]) <= 0.01
    assert row["evaluations"] < 100
    assert table.query(exact.choice, "test")["nll"] - best == pytest.approx(row["oracle"])


@pytest.mark.slow
def test_the_command_takes_a_family(program, monkeypatch, table, tmp_path):
    """And leaves tables out that a strategy cannot search."""
    free = dataclasses.replace(table.sheet, name="part-1", free=table.sheet.free[1:], planned=2048)
    cells = table.cells[table.cells.choice.str.startswith("1")]
    part = Table(free, cells.assign(choice=cells.choice.str[1:]))
    folder = tmp_path / "tables"
    folder.mkdir()
    write_table(part, folder / "part-1.parquet")
    for number in (1, 2):
        twin = Table(dataclasses.replace(table.sheet, name=f"twin-{number}"), table.cells)
        write_table(twin, folder / f"twin-{number}.parquet")
    monkeypatch.setattr("masksearch_bench.table.HERE", folder)
    told = ["--budget", "0.5"]
    for words, wanted in (
        (["mine.py:last_layers", "--tables", "twin"], "twin-1, twin-2"),
        (["mine.py:last_layers"], "part-1, twin-1, twin-2"),
        (["random", "--trials", 3], "twin-1, twin-2"),
    ):
        code, out, _ = program("judge", *words, *told)
        assert code == 0
        assert wanted in out.splitlines()[0]
        assert ("part" in out) == ("part" in wanted)
    with pytest.raises(ValueError, match=r"part-1 is about 11 of 12: search it by table\.obj"):
        part.simulate("random", trials=2)


def test_tables_are_listed(program):
    code, out, _ = program()
    assert code == 0
    [line] = [line for line in out.splitlines() if line.startswith("recall-1 ")]
    assert line.split()[:4] == ["recall-1", "4096", "complete", "Llama"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["judge"], "Missing argument 'WHAT'; see: "),
        (["judge", "random", "--tables", "recal-1"], "did you mean 'recall-1'"),
        (["judge", "mine.py:last_layers", "--budget", "0.1"], "costs 0.2632 of dense pairs"),
        (["judge", "randm"], "name it as file.py:function"),
        (["judge", "random", "--trial", "7"], "No such option: --trial; did you mean '--trials'?"),
        (["judge", "mine.py:last_layers", "--trials", "7"], "--trials belongs to a strategy"),
        (["build", "none.py:tables"], "none.py"),
        (["list", "--budget", "0.4"], "No such option: --budget"),
        (["bild"], "No such command 'bild'"),
    ],
)
def test_mistakes_are_one_line(program, words, message):
    code, _, err = program(*words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


# -- its help ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_groups_defaults_and_examples(program, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = program(name, "--help")
    assert code == 0
    body, _, shown = out.partition("\nExamples:\n")
    assert max(map(len, body.splitlines())) <= 80
    assert len(shown.splitlines()) >= 2
    for each in COMMANDS[name].params:
        assert each.rich_help_panel
        if each.param_type_name == "option" and not each.is_flag:
            assert "[default: " in each.help or each.default is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_examples_run(program, monkeypatch, name):
    if name == "build":  # test_build.py builds
        Path("mine.py").write_text("def tables():\n    return []\n")
    for line in COMMANDS[name].help.partition("Examples:\n")[2].strip().splitlines():
        words = shlex.split(line)
        assert words.pop(0) == "masksearch-bench"
        code, out, err = program(*words)
        assert code == 0, err
        assert out or name == "build"
