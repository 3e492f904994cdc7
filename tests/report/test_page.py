import re
from dataclasses import replace

import pandas as pd
import pytest
import torch
from page_text import Page, page_of

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Report, generator
from masksearch.gates.result import DamResult
from masksearch.report.collect import StoredStudy, dam_health
from masksearch.report.page import write_report as write_sections
from masksearch.report.section import Section

pytestmark = pytest.mark.slow  # they share a run that takes seconds


def write_report(path, *, title="t", comparison=None, verdicts=(), command="", **fields):
    """A page of one section."""
    fields["comparisons"] = {} if comparison is None else {"compared": comparison}
    section = Section(**fields)
    return write_sections(path, [section], title=title, verdicts=verdicts, command=command)


@pytest.fixture(scope="module")
def studies(record, one_shot):
    evil = "Traceback (most recent call last):\n<script>alert(1)</script> & so on: out of memory"
    random = [record(0, 0.8, masks.star(), name="star", role="baseline")]
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
    tasks = {"RTE": 0.5, "RTE/majority": 0.5, "QQP": 0.8, "QQP/majority": 0.6}
    compared_runs = tuple(compared(runs, values=tasks))
    kinds = {"mine": "searched"}
    comparison = ms.Comparison(compared_runs, objectives, shape=shape, kinds=kinds)
    return write_report(
        tmp_path_factory.mktemp("page") / "new" / "report.html",
        title="Masks & <more>",
        studies=studies,
        objectives=objectives,
        comparison=comparison,
        facts={"machine": "2 cores"},
        command="masksearch search x.py:space",
        shape=shape,
        verdicts=["A line of mine."],
    )


def test_sections_whose_titles_differ_in_signs_keep_files_of_their_own(
    tmp_path, studies, objectives
):
    each = {"studies": {"a b": studies["random"], "a_b": studies["dam"]}, "objectives": objectives}
    sections = [Section(**each, title=f"corpus /data/{name}") for name in ("\u65e5", "\u4e2d")]
    path = write_sections(tmp_path / "report.html", sections, title="t")
    assert "Corpus /data/\u4e2d (2)" in Page(path.read_text("utf-8")).text
    tables = [each.name for each in (tmp_path / "tables").glob("*front_a_b*.csv")]
    assert len(tables) == 4


def test_page_is_complete(full):
    page = Page(full.read_text())
    for expected in (
        "A line of mine.",
        "mine: better than star",
        "2 cores",
        "16 positions, 2 layers, 2 heads",
        "1 of 15 trials failed",
        "Differentiable attention masks (DAM)",
        "masksearch search x.py:space",
        "≤ constant",
        "(1 seed)",
        "0.710 [0.685, 0.735]",  # numbers of a column have the same digits
        "0.610 [0.585, 0.635]",
        "window(1)",
        "Holm",
        "torch",
    ):
        assert expected in page.text
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 7  # two begin the page
    assert all(attrs["alt"] for attrs in images)
    there = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert len(links) > 4
    assert {link.removeprefix("#") for link in links} <= there
    figures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert [attrs["aria-label"] for attrs in figures] == [
        "glue of every mask, with its interval, over what it saves",
        "Paired differences in glue",
        "Score of every trial over what its mask saves",
        "Hypervolume of glue over trials and over seconds",
        "DAM's density and loss over the training steps",
    ]
    assert {attrs["role"] for attrs in figures} == {"img"}
    titles = [line for line in page.words if re.match("random 2\n|mine\n|star\n", line)]
    assert len(titles) == 4  # star is in both fronts


def test_page_needs_nothing_else(full):
    text = full.read_text()
    page = Page(text)
    assert not re.search(r"https?://|//cdn|@import|url\((?!#)", text)
    assert not {tag for tag, _ in page.tags} & {"iframe", "object"}
    places = [place for _, a in page.tags if (place := a.get("src") or a.get("href"))]
    assert all(place.startswith(("data:", "#")) for place in places)
    assert not any("src" in attrs for tag, attrs in page.tags if tag == "script")


def test_page_escapes_what_others_wrote(full):
    text = full.read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so on" in text
    assert "<b>bold" not in text
    assert "<title>Masks &amp; &lt;more&gt;</title>" in text


def test_figures_lie_beside_the_page(full):
    folder = full.parent / "figures"
    for name in ("front", "compared", "differences", "volume_glue", "masks", "dam"):
        for kind in ("png", "pdf", "svg"):
            assert (folder / f"{name}.{kind}").stat().st_size > 2000
    found = pd.read_csv(full.parent / "tables" / "compared.csv").set_index("mask")
    assert found.loc["mine", "glue"] == (0.7 + 0.71 + 0.72) / 3  # every digit
    runs = pd.read_csv(full.parent / "tables" / "compared_seeds.csv").query("mask == 'star'")
    assert dict(zip(runs["seed"], runs["glue"], strict=True)) == {0: 0.6, 1: 0.62, 2: 0.61}
    names = {path.name for path in (full.parent / "tables").iterdir()}
    tables = {"front", "front_dam", "front_random", "compared", "findings"}
    assert names == {f"{name}.{kind}" for name in tables for kind in ("csv", "tex")} | {
        "compared_seeds.csv"
    }


def test_masks_figure_is_of_the_pairs_that_a_decoder_uses(tmp_path, objectives, shape, compared):
    """Later keys are not drawn, sparsities are those of the tables, and of scrambled masks, which
    look alike, there is one."""
    dice = {f"scrambled {n}": (masks.random_keys(3, seed=n), [0.5] * 3) for n in range(3)}
    causal = replace(shape, causal=True)
    records = [
        replace(record, measures=record.measures | {"effective_sparsity": 0.777})
        for record in compared({**dice, "found": (masks.window(1), [0.6] * 3)})
    ]
    kinds = dict.fromkeys(dice, "control") | {"found": "searched"}
    comparison = ms.Comparison(tuple(records), objectives, shape=causal, kinds=kinds)
    page = write_report(
        tmp_path / "report.html", studies={}, objectives=objectives,
        comparison=comparison, shape=causal,
    )  # fmt: skip
    text = (page.parent / "figures" / "masks.svg").read_text()
    assert "found" in text
    assert [f"scrambled {n}" in text for n in range(3)] == [True, False, False]
    assert set(re.findall(r">([\d.]+)% sparse<", text)) == {"77.7"}


def test_missing_parts_are_said_to_be_missing(tmp_path, record, objectives, shape):
    def page(**fields) -> str:
        path = write_report(tmp_path / "report.html", objectives=objectives, **fields)
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


@pytest.mark.nightly
def test_report_is_the_same_twice(tmp_path, record, objectives):
    told = {"studies": {"tpe": [record(0, 0.7)]}, "objectives": objectives}
    one, two = (write_report(tmp_path / name / "report.html", **told) for name in "ab")
    assert one.read_bytes() == two.read_bytes()


@pytest.fixture
def dam_study(tmp_path, one_shot, record, objectives, shape):
    """A study of one DAM run: its gates on the disk, and masks cut from them."""

    def make(seed, target=0.25, cut=()) -> StoredStudy:
        folder = tmp_path / f"run_{seed}_{target}"
        folder.mkdir()
        last = one_shot.curve[-1]
        losses = {"held_out": 2.2, "relaxed": 2.0, "sampled": 2.6, "discretised": 2.7}
        curve = (*one_shot.curve[:-1], Report(last.step, {**last.values, **losses}))
        DamResult(
            torch.rand(2, 2, 16, 16, generator=generator(seed)),
            curve,
            target,
            {"structure": "free", "length": 16, "heads": 2, "layers": 2},
            {"steps": 39, "warmup": 0.4, "control": "hinge", "density": target},
        ).save(folder / "gates.safetensors")
        job = replace(one_shot.job, config={"density": target})
        first = replace(
            one_shot, job=job, curve=curve, seed=seed, artifacts={"gates": "gates.safetensors"}
        )
        rest = [
            record(1 + k, 0.7, masks.window(k), origin="dam", params={"density": density},
                   values={"loss": loss})
            for k, (density, loss) in enumerate(cut)
        ]  # fmt: skip
        name = f"dam_{seed}_{target}"
        return StoredStudy(folder, "search", name, [first, *rest], objectives, shape, {})

    return make


@pytest.fixture
def quick(monkeypatch):
    """Figures are made and named, but not rendered; returns their names."""
    names = []

    def save(figure, folder, name):
        names.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.svg").write_text('<svg viewBox="0 0 1 1"></svg>')
        return tuple(folder / f"{name}.{kind}" for kind in ("png", "pdf", "svg"))

    monkeypatch.setattr("masksearch.report.page.save", save)
    return names


@pytest.mark.nightly
def test_dam_section_shows_the_run(tmp_path, dam_study, objectives, shape):
    study = dam_study(0, cut=((0.1, 9.0), (0.25, 3.5)))
    told = {"studies": {"dam": study.records}, "dam": dam_health([study])}
    path = write_report(
        tmp_path / "page" / "report.html", objectives=objectives, shape=shape, **told
    )
    page = Page(path.read_text())
    for expected in (
        "dam_0_0.25, trial 0 (seed 0): free gates, target 25%",
        "The target was missed",
        "The loss rises by 0.6 nats from soft to sampled gates",
        "The loss rises by 0.8 nats when the mask is trained from scratch",
        "loss, retrained 3.5",
        "agreement of seeds one seed",
    ):
        assert expected in page.text
    assert "Several runs together" not in page.text
    folder = path.parent / "figures"
    for name in ("dam", "dam_gates", "dam_offsets"):
        assert (folder / f"{name}.png").stat().st_size > 2000
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert sum("DAM" in label or "Gate" in label for label in labels) == 3


def test_dam_runs_are_told_together(tmp_path, dam_study, objectives, quick, monkeypatch):
    monkeypatch.setattr("masksearch.report.dam.CARDS", 1)
    found = [dam_study(0), dam_study(1), dam_study(0, 0.5)]
    runs = dam_health(found)
    assert list(runs.agreements) == ["free, 25%"]
    assert runs.agreements["free, 25%"]["seeds"] == 2
    studies = {study.name: study.records for study in found}
    path = write_report(
        tmp_path / "page" / "report.html", studies=studies, objectives=objectives, dam=runs
    )
    page = Page(path.read_text())
    assert "Several runs together" in page.text
    assert "1 of 3 runs are shown in full." in page.text
    assert "mean over pairs of 2 seeds" in page.text
    assert {"dam_0_gates", "dam_1", "dam_2", "dam_agreement"} <= set(quick)
    assert "dam_1_gates" not in quick
    shown = [name for name in quick if name.startswith("dam")]
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    of_dam = [label for label in labels if not re.match("Score|Hypervolume|Kept", label)]
    assert len(of_dam) == len(shown) == len(set(shown))


def test_lost_gates_are_said_to_be_lost(dam_study, tmp_path, objectives, quick):
    study = dam_study(0)
    (study.run / "gates.safetensors").unlink()
    runs = dam_health([study])
    assert not runs.cards
    told = {"studies": {"dam": study.records}, "dam": runs}
    path = write_report(tmp_path / "report.html", objectives=objectives, **told)
    assert "dam_0_0.25, trial 0 (seed 0): no gates at" in Page(path.read_text()).text
    assert [name for name in quick if name.startswith("dam")] == ["dam"]  # the curve is recorded
    assert not dam_health([replace(study, records=[])]).missing


@pytest.mark.parametrize(
    ("cut", "loss"),
    [
        ((), None),
        (((0.25, 3.0), (0.24, 2.0)), 3.0),
        (((0.2, 3.0), (0.3, 2.0)), None),  # of another density
        (((0.26, 3.0), (0.2, 2.0)), 3.0),
        (((0.25, float("nan")),), None),
    ],
)
def test_retrained_is_the_mask_nearest_to_the_target(dam_study, cut, loss):
    (card,) = dam_health([dam_study(0, cut=cut)]).cards
    assert card.health.losses.get("retrained") == loss


def test_health_table_is_in_words(dam_study, objectives):
    table = torch.zeros(1, 2, 8, 8)
    table[0, 0].diagonal(-1).fill_(0.9)
    table[0, 1].fill_diagonal_(0.5)
    runs = dam_health([dam_study(0)])
    card = replace(runs.cards[0], health=DamResult(table, (), 0.1).health(), probabilities=table)
    section = Section({}, objectives, dam=replace(runs, cards=[card]))
    rows = page_of(section)["dam"]["cards"][0]["table"].rows
    cells = {row[0].text: row[1].text for row in rows}
    assert cells["strongest offsets"].startswith("-1 (0.45), 0 (0.25), ")
    assert cells["diagonal"] == "25.0%"
    assert cells["loss, retrained"] == "not measured"
