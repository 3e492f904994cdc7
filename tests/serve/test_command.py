"""Units on the command line: strategy allocate, and other strategies over the same units."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import EVALUATOR, run

import masksearch as ms

pytestmark = pytest.mark.filterwarnings(
    "ignore:(the strategy has no more masks|strategy 'allocate' judges)"
)


@pytest.fixture
def proxy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy = str(Path(__file__).parents[1] / "contracts")
    (tmp_path / "my_proxy.py").write_text(EVALUATOR.format(folder=toy))
    return "my_proxy.py:toy"  # 2 layers of 2 heads


@pytest.mark.nightly
def test_allocate_is_named_and_resumed(monkeypatch, capsys, proxy):
    words = (
        "search", "--strategy", "allocate", "--unit", "head", "--local", "star()",
        "--set", "allocate.method=greedy",
        "--evaluator", proxy, "--run", "found", "--trials", 4,
    )  # fmt: skip
    assert run(monkeypatch, capsys, *words)[0] == 0
    code, _, err = run(monkeypatch, capsys, "resume", "found", "--trials", 7)
    assert (code, "error" in err) == (0, False)
    records = ms.open_study("found").records()
    assert [dict(r.params) for r in records[:3]] == [{}, dict.fromkeys(
        ("l0.h0", "l0.h1", "l1.h0", "l1.h1"), 1
    ), {"l0.h0": 1}]  # fmt: skip
    assert len(records) == 7
    assert {record.origin for record in records} == {"allocate"}


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["random", "evolution"])
def test_other_strategies_search_the_same_units(monkeypatch, capsys, proxy, strategy):
    words = (
        "search", "--strategy", strategy, "--unit", "layer", "--local", "star()",
        "--set", 'units.levels=["star()", "longformer(4, 1)", "full()"]',
        "--evaluator", proxy, "--run", "found", "--trials",
    )  # fmt: skip
    for trials in (2, 3):
        assert run(monkeypatch, capsys, *words, trials)[0] == 0
    records = ms.open_study("found").records()
    assert len(records) == 3
    assert all("raised" in record.params for record in records)


@pytest.mark.nightly
def test_other_units_are_another_search(monkeypatch, capsys, proxy):
    words = ("search", "--strategy", "allocate", "--evaluator", proxy, "--run", "found")
    assert run(monkeypatch, capsys, *words, "--local", "star()", "--trials", 1)[0] == 0
    code, _, err = run(monkeypatch, capsys, *words, "--local", "window(1)", "--trials", 2)
    assert code == 2
    assert "window(1)" in err
