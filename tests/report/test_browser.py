"""The page in a headless Chromium: it opens from the disk, hovers, clicks, and logs no error."""

import itertools
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
CENTRES = """
return [...document.querySelectorAll("#front .mark-symbol path")].map((mark) => {
  const box = mark.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
}).filter(([x, y]) => x > 0)
"""
HIDDEN = """
return [...document.querySelectorAll(".scroll")].map((each) => each.scrollWidth - each.clientWidth)
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
    section = Section(
        {"tpe": found}, objectives, {"c": comparison}, shape=shape,
        evaluate="masksearch evaluate MASK --glue folder",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("page")
    return write_report(folder / "report.html", [section], title="t")


def test_the_page_begins_with_masks_and_the_verdict_without_figures(page):
    top = "return scrollY + document.querySelector('.lead img').getBoundingClientRect().top"
    with browser() as window:
        window.open(page)
        assert window.run(top) < 400
        assert window.run(
            "return [...document.querySelectorAll('.lead b')].map((each) => each.innerText)"
        ) == ["<i>dense", "star", "mine"]
        shown = window.run("return document.querySelector('.verdict').innerText")
        assert shown.startswith("mine: better than star 0.610 (")
        assert "interval" not in shown
        window.run("document.querySelector('.verdict summary').click()")
        assert "% interval" in window.run("return document.querySelector('.verdict').innerText")
        window.call("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=PHONE)
        assert window.run(top) < 700
        assert not window.errors()


def test_labels_keep_apart_on_a_phone_and_long_masks_are_short(tmp_path, record, objectives):
    """Fronts that meet, and masks of 72 heads."""
    heads = [masks.full(), *[masks.window(1)] * 3] * 3
    mask = masks.per_layer([masks.per_head(heads[k:] + heads[:k]) for k in range(6)])
    studies: dict[str, list] = {"tpe": [], "random": [], "dam": []}
    for (place, study), k in itertools.product(enumerate(studies.values()), range(3)):
        measures = {"sparsity": 0.6 - 0.004 * k}
        found = record(k, 0.7 + 0.002 * k + 0.0005 * place, measures=measures)
        study.append(replace(found, job=Evaluate(mask), fingerprint=f"{place} {k}"))
    section = Section(studies, objectives, shape=ms.Shape(16, 6, 12))
    path = write_report(tmp_path / "report.html", [section], title="t")
    shown = (
        "return [...document.querySelectorAll('#front .role-mark.mark-text text')]"
        ".filter((each) => each.textContent && each.style.visibility !== 'hidden')"
        ".map((each) => each.getBoundingClientRect().toJSON())"
    )
    with browser() as window:
        window.open(path)
        wide = window.run(shown)
        window.call("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=PHONE)
        window.open(path)
        for boxes in (wide, window.run(shown)):
            assert boxes
            assert all(
                a["right"] <= b["left"] or b["right"] <= a["left"]
                or a["bottom"] <= b["top"] or b["bottom"] <= a["top"]
                for a, b in itertools.combinations(boxes, 2)
            )  # fmt: skip
        cells = (
            "return [...document.querySelectorAll('td.code code')].map((each) => each.innerText)"
        )
        assert set(window.run(cells)) == {"18 of 72 heads full"}
        lead = "return document.querySelector('.lead').innerText"
        assert "18 of 72 heads full" in window.run(lead)
        assert not window.errors()


def test_a_mask_is_shown_on_hover_and_opened_on_click(page):
    with browser() as window:
        window.open(page)
        window.run("document.getElementById('front').scrollIntoView({block: 'center'})")
        x, y = window.run(CENTRES)[-1]
        window.point(x, y)
        tip = window.run("return document.getElementById('tip').innerText")
        assert "per_head([window(" in tip
        assert "one seed" in tip
        assert window.run("return document.querySelectorAll('#tip .picture img').length") == 2
        window.point(x, y, click=True)
        card = window.run("const card = document.getElementById('card'); "
                          "return card.open && card.innerText")  # fmt: skip
        for expected in ("copy expression", "masksearch evaluate 'per_head(", "--glue folder",
                         "masksearch attach MODEL", "masksearch export"):  # fmt: skip
            assert expected in card
        window.press("\ue00c")  # Escape
        assert not window.run("return document.getElementById('card').open")
        assert not window.errors()


def test_keys_walk_and_a_budget_chooses(page):
    with browser(dark=True) as window:
        window.open(page)
        window.run("document.getElementById('front').focus()")
        window.press("\ue014", "\ue014")  # to the right, twice
        assert "per_head([window(4)" in window.run(
            "return document.getElementById('tip').innerText"
        )
        window.press("\ue007")  # Enter
        assert "tpe 4" in window.run("return document.getElementById('card_title').innerText")
        window.press("\ue00c")
        best = "return document.getElementById('front').parentElement.querySelector('.best')"
        assert "tpe 5" in window.run(f"{best}.innerText")
        window.run(
            f"{best.replace('return', 'const best =')}; const range = best.parentElement.budget;"
            "range.value = range.min; range.dispatchEvent(new Event('input'))"
        )
        assert "tpe 1" in window.run(f"{best}.innerText")
        assert not window.errors()


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
