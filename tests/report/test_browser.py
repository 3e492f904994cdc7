"""The page in a headless Chromium: it opens from the disk, names its marks, and logs no error."""

import shutil
from dataclasses import replace

import pytest
from browser import browser

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate
from masksearch.report.page import write_report
from masksearch.report.section import Section

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromedriver") and shutil.which("chromium")),
        reason="no Chromium here (Debian: apt-get install chromium chromium-driver)",
    ),
]
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
HIDDEN = """
const tables = [...document.querySelectorAll(".scroll:not(figure .scroll)")];
return tables.map((each) => each.scrollWidth - each.clientWidth)
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory, record, compared, objectives, shape):
    found = [
        record(k, 0.7 + 0.01 * k, masks.per_head([masks.window(k), masks.window(1)]))
        for k in range(1, 6)
    ]
    runs = {
        "mine": (masks.window(1), [0.7, 0.71, 0.72]),
        "star": (masks.star(), [0.6, 0.62, 0.61]),
        "<i>dense": (masks.full(), [0.8, 0.82, 0.81]),
    }
    tasks = {name: 0.6 for name in ("CoLA", "MNLI", "MRPC", "QNLI", "QQP", "RTE", "SST-2")}
    comparison = ms.Comparison(
        tuple(compared(runs, values=tasks)), objectives, shape=shape, kinds={"mine": "searched"}
    )
    section = Section({"tpe": found}, objectives, {"c": comparison}, shape=shape)
    folder = tmp_path_factory.mktemp("page")
    return write_report(folder / "report.html", [section], title="t")


def test_the_page_begins_with_masks_and_the_verdict_without_figures(page):
    top = "return scrollY + document.querySelector('.lead img').getBoundingClientRect().top"
    with browser() as window:
        window.open(page)
        assert window.run(top) < 400
        assert window.run(
            "return [...document.querySelectorAll('.lead b')].map((each) => each.innerText)"
        ) == ["dense: <i>dense", "best hand-designed: star", "found: mine"]
        shown = window.run("return document.querySelector('.verdict').innerText")
        assert shown.startswith("mine: better than star 0.610 (")
        assert "interval" not in shown
        window.run("document.querySelector('.verdict summary').click()")
        assert "% interval" in window.run("return document.querySelector('.verdict').innerText")
        window.call("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=PHONE)
        assert window.run(top) < 700
        assert not window.errors()


def test_long_masks_are_short_on_a_phone_and_wide_figures_scroll_alone(
    tmp_path, record, objectives
):
    """Masks of 72 heads."""
    heads = [masks.full(), *[masks.window(1)] * 3] * 3
    mask = masks.per_layer([masks.per_head(heads[k:] + heads[:k]) for k in range(6)])
    study = [
        replace(
            record(k, 0.7 + 0.002 * k, measures={"sparsity": 0.6 - 0.004 * k}), job=Evaluate(mask)
        )
        for k in range(3)
    ]
    section = Section({"tpe": study}, objectives, shape=ms.Shape(16, 6, 12))
    path = write_report(tmp_path / "report.html", [section], title="t")
    cells = "return [...document.querySelectorAll('td.code code')].map((each) => each.innerText)"
    with browser() as window:
        window.open(path)
        assert set(window.run(cells)) == {"18 of 72 heads full"}
        assert "18 of 72 heads full" in window.run(
            "return document.querySelector('.lead').innerText"
        )
        window.call("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=PHONE)
        assert window.run("return document.documentElement.scrollWidth") == 390
        assert not window.errors()


def test_a_mark_says_what_it_is(page):
    """The title below the mouse is what a browser shows there."""
    below = """
    const titles = [...document.querySelectorAll("figure svg title")];
    return titles.map((title) => {
      title.parentNode.scrollIntoView({block: "center"});
      const box = title.parentNode.getBoundingClientRect();
      const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
      const told = top?.closest("g:has(> title)")?.textContent ?? "";
      return [title.textContent.split("\\n")[0], told];
    });
    """
    with browser() as window:
        window.open(page)
        found = window.run(below)
        seen = {name for name, told in found if told.startswith(name)}
        assert {"mine", "star", *(f"tpe {k}" for k in range(1, 6))} <= seen
        assert "<i>dense" in {name for name, _ in found}  # a dotted line, which has gaps
        assert not window.errors()


def test_pictures_are_dark_on_a_dark_page(page):
    shade = "return getComputedStyle(document.querySelector('figure svg')).filter"
    with browser(dark=True) as window:
        window.open(page)
        assert window.run(shade).startswith("invert")
        window.run("document.getElementById('theme').click()")
        assert window.run(shade) == "none"


def test_tables_fit_sort_and_become_cards(page):
    with browser() as window:
        window.open(page)
        assert set(window.run(HIDDEN)) == {0}
        names = window.run(
            "const table = document.querySelector('table.sortable');"
            "table.tHead.querySelectorAll('button')[2].click();"
            "return [...table.tBodies[0].rows].map((row) => row.cells[0].innerText)"
        )
        assert [name.split("\n")[0] for name in names] == ["mine", "star", "<i>dense"]
        window.call("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=PHONE)
        assert window.run("return document.documentElement.scrollWidth") == 390
        assert set(window.run(HIDDEN)) == {0}
        assert (
            window.run("return getComputedStyle(document.querySelector('td')).display") == "flex"
        )
        assert not window.errors()
