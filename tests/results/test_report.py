from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from masksearch import masks
from masksearch.results.comparison import Comparison
from masksearch.results.report import write_report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects tags and visible text, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def studies(record, one_shot):
    evil = "Traceback (most recent call last):\n<script>alert(1)</script> & so on: out of memory"
    random = [record(0, 0.8, masks.star(), origin="baseline:star")]
    random += [record(1 + k, 0.6 + 0.02 * k, masks.window(k)) for k in range(4)]
    random.append(record(9, None, error=evil))
    dam = [one_shot, record(1, 0.75, masks.window(1), origin="dam")]
    return {"random": random, "dam": dam}


@pytest.fixture(scope="module")
def full(tmp_path_factory, studies, objectives, shape, compared):
    runs = {
        "mine": (masks.window(1), [0.7, 0.71, 0.72]),
        "star": (masks.star(), [0.6, 0.62, 0.61]),
        "<b>bold</b>": (masks.window(2), [0.6]),
    }
    tasks = {"RTE": 0.5, "RTE/majority": 0.5}
    comparison = Comparison(tuple(compared(runs, values=tasks)), objectives, shape=shape)
    return write_report(
        tmp_path_factory.mktemp("page") / "new" / "report.html",
        title="Masks & <more>",
        studies=studies,
        objectives=objectives,
        comparison=comparison,
        facts={"machine": "2 cores", "command": "masksearch search x.py:space"},
        shape=shape,
        verdicts=["A line of mine."],
        dam_health={"discretisation_gap": 0.01},
    )


def test_page_is_complete(full):
    page = Page(full.read_text())
    for expected in (
        "A line of mine.",
        "mine: better than star",
        "2 cores",
        "16 positions, 2 layers, 2 heads",
        "1 of 15 trials failed",
        "discretisation gap",
        "masksearch search x.py:space",
        "≤ constant",
        "(1 seed)",
        "window(1)",
        "Holm",
        "torch",
    ):
        assert expected in page.text
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 4
    assert all(attrs["alt"] for attrs in images)


def test_page_needs_nothing_else(full):
    text = full.read_text()
    page = Page(text)
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    sources = [attrs["src"] or "" for _, attrs in page.tags if "src" in attrs]
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_page_escapes_what_others_wrote(full):
    text = full.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so on" in text
    assert "<b>bold" not in text
    assert "<title>Masks &amp; &lt;more&gt;</title>" in text


def test_figures_lie_beside_the_page(full):
    folder = full.parent / "figures"
    for name in ("front", "hypervolume", "masks", "dam"):
        assert (folder / f"{name}.png").stat().st_size > 2000
        assert (folder / f"{name}.pdf").stat().st_size > 2000


def test_missing_parts_are_said_to_be_missing(tmp_path, record, objectives, shape):
    def page(**fields) -> str:
        path = write_report(tmp_path / "r.html", title="t", objectives=objectives, **fields)
        return Page(path.read_text()).text

    assert "Nothing was run." in page(studies={})
    unfinished = page(studies={"tpe": [record(0, None, error="boom")]}, shape=shape)
    assert "No trial has finished, so nothing can be said." in unfinished
    assert "No finished trial, hence no front." in unfinished
    assert "boom" in unfinished
    alone = page(studies={"tpe": [record(0, 0.7)]})
    assert "does not show that a searched mask is better" in alone
    assert "The masks' shape is not known here" in alone
    assert "from one seed and therefore has no interval" in alone


def test_stopped_trials_never_reach_the_front(tmp_path, record, objectives, shape):
    study = [
        record(0, 0.7, masks.star()),
        record(1, 0.99, masks.window(5), status="stopped"),
    ]
    path = write_report(
        tmp_path / "r.html", title="t", studies={"tpe": study}, objectives=objectives, shape=shape
    )
    assert "0.99" not in Page(path.read_text()).text


def test_report_is_the_same_twice(tmp_path, record, objectives):
    pages = [
        write_report(
            tmp_path / name / "r.html",
            title="t",
            studies={"tpe": [record(0, 0.7)]},
            objectives=objectives,
        ).read_bytes()
        for name in "ab"
    ]
    assert pages[0] == pages[1]


def test_other_protocols_get_a_figure_of_their_own(tmp_path, record, objectives, shape, compared):
    runs = compared({"mine": (masks.window(1), [0.7, 0.8])}, protocol="longer")
    path = write_report(
        tmp_path / "r.html",
        title="t",
        studies={"tpe": [record(0, 0.7)]},
        objectives=objectives,
        comparison=Comparison(tuple(runs), objectives),
        shape=shape,
    )
    assert (tmp_path / "figures" / "compared.png").exists()
    assert "under another protocol than the search" in Page(path.read_text()).text
