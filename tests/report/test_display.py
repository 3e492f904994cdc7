"""Studies and comparisons at a prompt and in a notebook: a screen, complete, no markup let in."""

import re

import pytest
from page_text import Page
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, OneShot, Proposal, Record, Report


def words_of(html):
    """The texts of a piece of HTML whose tags are balanced and which holds no script."""
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    return page.words


@pytest.fixture
def study(tmp_path):
    arguments = {"run": tmp_path / "a<b>run", "trials": 12, "progress": None}
    return ms.search(space, ToyEvaluator(), **arguments, baselines={"star<i>": masks.star()})


def fits(text):
    return len(text.splitlines()) <= 10 and max(map(len, text.splitlines())) <= 120


@pytest.mark.slow
def test_study_shows_its_front(study):
    text, front = repr(study), study.frontier()
    assert fits(text)
    assert f"a front of {len(front)}" in text
    assert f"{len(study.records())} trials (13 done" in text
    assert "1 of them baselines" in text
    shown = [int(number) for number in re.findall(r"^  trial +(\d+)", text, re.MULTILINE)]
    assert set(shown) <= {record.number for record in front}
    assert len(shown) == min(8, len(front))


@pytest.mark.slow
def test_study_is_a_picture_and_a_table_in_a_notebook(study):
    html = study._repr_html_()
    words = words_of(html)
    assert html.count("<svg ") == 1
    assert html.count("<title>") >= len(study.frontier())
    assert str(study.frontier()[0].mask) in words
    assert len(html) < 50_000


@pytest.mark.slow
def test_study_without_a_result_is_shown(tmp_path):
    evaluator = ToyEvaluator(fails=True)
    with pytest.raises(ms.errors.SearchError):
        ms.search(space, evaluator, run=tmp_path / "r", trials=6, progress=None)
    study = ms.Study(tmp_path / "r")
    assert "a front of 0" in repr(study)
    assert not re.search("<svg|<table", study._repr_html_())


@pytest.mark.nightly
def test_comparison_shows_scores_and_outcomes(tmp_path, study):
    many = {f"m{reach}": masks.window(reach) for reach in range(9)}
    found = ms.compare(
        {"dense": masks.full(), **ms.masks.FAMILIES, "<script>x</script>": study.best(), **many},
        ToyEvaluator(),
        run=tmp_path / "c",
        seeds=range(3),
        progress=None,
    )
    text = repr(found)
    assert fits(text)
    assert "17 masks, 3 seeds" in text
    assert text.index("<script>") < text.index("m0")
    words = words_of(found._repr_html_())
    assert "<script>x</script>" in words
    assert "star" in words
    assert found.verdict() in "".join(words)
    assert repr(ms.Comparison((), ToyEvaluator.objectives)).startswith("Comparison: 0 masks")


@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_record_is_one_line(status):
    mask = masks.per_head([masks.window(reach) | masks.offsets(range(40)) for reach in range(12)])
    values = {f"task{k}": 0.5 for k in range(9)}
    record = Record(
        7,
        status,
        Evaluate(mask),
        origin="tpe",
        values=values,
        measures={"sparsity": 0.7293, "hops": 2.0},
        curve=tuple(Report(step, values) for step in range(50)),
        error="Traceback\n" * 30,
        strategy_state={"state": "x" * 1000},
    )
    text = repr(record)
    assert len(text) <= 120
    assert "\n" not in text
    assert text.startswith(f"Record(trial 7, {status}, tpe, seed 0, task0 0.5")
    assert "sparsity 0.7293" in text
    assert repr(Record(0, "done", OneShot())).endswith("OneShot)")
    proposal = repr(Proposal(0, Evaluate(mask), strategy_state={"state": "x" * 1000}))
    assert len(proposal) < 250
    assert mask.digest[:8] in proposal
