"""The code and the commands of docs/maskbench.md, with fewer trials."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from cli_runs import run as run_here
from tiny_decoder import tiny_decoder, written_text

from masksearch_bench import load
from masksearch_bench.__main__ import main

PAGE = (Path(__file__).parents[1] / "docs" / "maskbench.md").read_text("utf-8")
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
COMMANDS = re.findall(r"^masksearch-bench .*$", PAGE, re.M)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder; what it prints."""
    monkeypatch.chdir(tmp_path)

    def run_line(line: str) -> str:
        code, out, err = run_here(monkeypatch, capsys, *shlex.split(line)[1:], program=main)
        assert code == 0, err
        return out

    return run_line


@pytest.mark.slow
def test_a_table_answers_and_is_searched(run):
    search = (
        CODE[1].replace("range(5), trials=40", "[0], trials=4").replace("trials=40", "trials=4")
    )
    told: dict = {}
    exec(CODE[0], told)
    best = told["table"].optimum(0.4).choice
    assert told["table"].regret(best, 0.4) == 0
    exec(search, told)
    assert len(told["study"].records()) >= 4
    assert 1 <= len(told["rows"]) <= 4


def test_a_selector_is_judged(run):
    Path("mine.py").write_text(CODE[2])
    judge, *_ = (line for line in COMMANDS if "mine.py" in line)
    printed = run(judge)
    mine = "000000000011"  # a third head costs more than 40 % of the pairs
    assert f"{load('recall-1').regret(mine, 0.4):.4f}" in printed


@pytest.mark.nightly
def test_a_table_is_built(run, tmp_path):
    words = ["=", *"abcdefgh"]
    wide = {"max_position_embeddings": 512, "initializer_range": 0.05}
    tiny_decoder(tmp_path / "my_decoder", words, **wide)
    written_text(tmp_path / "my_decoder", tmp_path / "text", words, length=400)
    shutil.copy(tmp_path / "text" / "valid.txt", tmp_path / "text" / "test.txt")
    Path("mine.py").write_text(CODE[3].replace("text.txt", "text"))
    [build] = re.findall(r"`(masksearch-bench build .*?)`", PAGE)
    run(build)
    table = load("tables/mine-0.parquet")
    assert table.complete
    assert len(table) == 4
