"""Run folders as they lie on a disk: several protocols, folders that cannot be read, old ones."""

import itertools
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Objective
from masksearch.report.collect import StoredStudy, name_groups, report_on, studies_in
from masksearch.report.curves import draw_volumes

SHORT = ms.PlantedEvaluator(steps=2, downstream_steps=1, held_out_sequences=8)
LONG = replace(SHORT, steps=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two searches and a comparison under two protocols, and a folder that cannot be read."""
    folder = tmp_path_factory.mktemp("runs")
    for name, judge in {"short": SHORT, "long": LONG}.items():
        ms.search(space, judge, run=folder / name, trials=2, strategy="random")
    candidates = {"star": masks.star(), "mine": masks.window(2)}
    ms.compare(candidates, SHORT, run=folder / "judged", seeds=[5, 6])
    (folder / "broken").mkdir()
    (folder / "broken" / "study.db").write_bytes(b"no database")
    return folder


@pytest.mark.nightly
def test_every_protocol_has_a_section(runs):
    with pytest.warns(UserWarning, match="broken is left out"):
        assert report_on(runs, runs / "report.html") == runs / "report.html"
    page = (runs / "report.html").read_text()
    assert "broken is left out" in page
    assert "does not show that a searched mask is better" not in page  # a comparison is there
    for steps, half, rows in (
        (2, "search", "what the searches saw"),
        (4, "search", "what the searches saw"),
        (2, "final", "judged again on unseen rows"),
    ):
        name = f"{steps}-steps-{rows.replace(' ', '-')}"
        assert f'<h2 id="{name}_section">{steps} steps, {rows}</h2>' in page
        assert f'href="#{name}_section"' in page
        for figure, where in (("front.pdf", "search"), ("compared.svg", "final")):
            assert (runs / "figures" / f"{name}_{figure}").is_file() == (half == where)


@pytest.mark.slow
def test_page_says_how_every_study_was_made(runs):
    with pytest.warns(UserWarning, match="broken is left out"):
        found = {study.run.name: study for study in studies_in(runs)}
    rows = dict(found["short"].recipe.rows)
    assert rows["called in Python"] == "masksearch.search"
    assert rows["space"].endswith("toy.py:space")
    assert rows["strategy"] == "random"
    assert rows["trials"] == "2"
    assert rows["data hashes"] == f"planted process {SHORT.process.digest}"
    assert f"masksearch {ms.__version__}" in rows["versions"]
    assert "torch " in rows["versions"]
    assert "logical CPUs" in rows["machine"]
    assert found["short"].recipe.settings["steps"] == 2
    assert dict(found["judged"].recipe.rows)["seeds"] == "[5, 6]"


def test_folder_of_nothing_that_can_be_read_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "study.db").write_bytes(b"no database")
    with pytest.raises(ms.errors.SearchError, match=r"a is left out: .* is damaged"):
        report_on(tmp_path, tmp_path / "report.html")


def test_later_call_on_another_machine_is_told(tmp_path, objectives, shape):
    versions = {"masksearch": "1", "torch": "2"}
    first = {"versions": versions, "machine": "a", "commit": "c", "first_trial": 0}
    second = {**first, "machine": "b", "first_trial": 7}
    third = {**second, "trials": 20, "first_trial": 9}
    study = StoredStudy(tmp_path, "search", "t", [], objectives, shape, {}, [first, second, third])
    rows = dict(study.recipe.rows)
    assert rows["from trial 7 on"] == "machine: b"
    assert "from trial 9 on" not in rows


@pytest.mark.nightly
def test_command_of_the_page_makes_the_study_again(tmp_path, command):
    here = shutil.copy(Path(__file__).parents[1] / "contracts" / "toy.py", tmp_path / "my toy.py")
    words = ["search", f"{here}:space", "--evaluator", f"{here}:ToyEvaluator", "--trials", 3]
    words += ["--strategy", "random", "--constraint", "sparsity >= 0.1", "--baselines"]
    command(*words, "--run", tmp_path / "a b")
    line = studies_in(tmp_path / "a b")[0].recipe.command
    assert shlex.split(line)[0] == "masksearch"
    first = results(tmp_path / "a b")
    shutil.rmtree(tmp_path / "a b")
    command(*shlex.split(line)[1:])
    assert results(tmp_path / "a b") == first


def results(run: Path) -> list[tuple[str, str, dict[str, float]]]:
    return [(str(r.mask), r.status, dict(r.values)) for r in studies_in(run)[0].records]


def test_sections_are_named_by_what_sets_them_apart(tmp_path, objectives, shape):
    def group(shape=shape, objectives=objectives, protocol="p", **settings) -> list[StoredStudy]:
        calls = [{"evaluator": settings}] if settings else []
        facts = {"protocol": protocol}
        return [StoredStudy(tmp_path, "search", "tpe", [], objectives, shape, facts, calls)]

    one = group(steps=2, lr=0.1, corpus="x" * 200)
    assert name_groups([one]) == [""]
    other = group(steps=4, lr=0.1)
    assert name_groups([one, other]) == ["2 steps", "4 steps"]
    assert name_groups([one, group(steps=2, lr=0.5)]) == ["lr 0.1", "lr 0.5"]
    assert name_groups([one, group(steps=4, lr=0.5)]) == ["2 steps", "4 steps"]
    two = [group(steps=4, batch=batch, cls="Other") for batch in (8, 9)]
    assert name_groups([one, *two]) == ["2 steps", "4 steps, batch 8", "4 steps, batch 9"]
    small = group(ms.Shape(32, 1, 2), steps=2, lr=0.1)
    assert name_groups([one, small]) == [
        "2 layers, 2 heads, length 16", "1 layer, 2 heads, length 32"
    ]  # fmt: skip
    assert name_groups([one, group(steps=2, lr=0.1, tasks="('SST-2', 'QQP')")]) == [
        "protocol p", "SST-2, QQP"
    ]  # fmt: skip
    loss = group(objectives=(Objective("loss", "min", 9.0), objectives[1]), steps=2, lr=0.1)
    assert name_groups([one, loss]) == ["glue", "loss"]
    nameless = [group(protocol="a"), group(protocol="b")]
    assert name_groups(nameless) == ["protocol a", "protocol b"]


@pytest.mark.nightly
def test_searches_that_differ_in_more_than_their_seed_share_none(tmp_path):
    for trials, folder in enumerate(("a", "b", "c"), 2):
        for seed in range(2):
            baselines = {"w": masks.window(trials)}
            ms.search(
                *(space, ToyEvaluator()), run=tmp_path / folder / f"seed{seed}", trials=trials,
                strategy="random", seed=seed, progress=None, budget=1 - trials / 10,
                baselines=baselines,
            )  # fmt: skip
    report_on([tmp_path / each for each in "abc"], tmp_path / "report.html")
    table = pd.read_csv(tmp_path / "tables" / "searches.csv")
    assert table["n_searches"].tolist() == [2, 2, 2]


@pytest.mark.nightly
def test_searches_that_differ_in_their_seed_share_a_band(tmp_path):
    for strategy in ("random", "tpe"):
        for seed in range(3):
            ms.search(
                *(space, ToyEvaluator()), run=tmp_path / f"{strategy}{seed}", trials=6,
                strategy=strategy, seed=seed, progress=None,
            )  # fmt: skip
    page = report_on(tmp_path, tmp_path / "report.html").read_text()
    assert "Hypervolume at equal compute, tpe minus random: " in page
    assert "mean over search seeds" in page
    table = pd.read_csv(tmp_path / "tables" / "searches.csv")
    assert table["strategy"].tolist() == ["random", "tpe"]
    assert table["n_searches"].tolist() == [3, 3]
    assert r"\toprule" in (tmp_path / "tables" / "searches.tex").read_text()
    one = report_on(tmp_path / "tpe0", tmp_path / "one.html").read_text()
    assert len(list(tmp_path.glob("*result.json"))) == len(list(tmp_path.glob("*figures"))) == 2
    assert "<code>one_figures/</code>" in one
    assert "one search each" in one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "left_out"), [pytest.param(1, "tpe", marks=pytest.mark.nightly), (2, "tpe1")]
)
def test_an_unfinished_search_is_named_and_left_out_at_equal_compute(
    tmp_path, seeds, left_out, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        "masksearch.report.page.draw_volumes",
        lambda section: drawn.extend(draw_volumes(section)) or iter(drawn[-1:]),
    )

    def search(name, seed, **more):
        told = {"strategy": name, "seed": seed, "trials": 5, "progress": None}
        return ms.search(space, ToyEvaluator(), run=tmp_path / f"{name}{seed}", **told, **more)

    def end(record):
        if record.number == 2:
            raise KeyboardInterrupt

    def section():
        report_on(tmp_path, tmp_path / "report.html")
        return json.loads((tmp_path / "result.json").read_text())["sections"][0]

    last = seeds - 1
    for name, seed in itertools.product(("random", "qmc", "tpe"), range(seeds)):
        if (name, seed) != ("tpe", last):
            search(name, seed)
    with pytest.raises(KeyboardInterrupt):
        search("tpe", last, listeners=[end])
    finished = sum(r.scored for r in ms.open_study(tmp_path / f"tpe{last}").records())
    found = section()
    line = f"Unfinished, so left out of the hypervolume at equal compute: {left_out}."
    assert line in found["verdicts"]
    ((_, figure),) = drawn
    lines = figure.axes[0].get_lines()
    ends = {line.get_label().partition(",")[0]: line.get_xdata()[-1] for line in lines}
    assert ends.keys() == {"random", "qmc", "tpe"} - {left_out}
    assert min(ends.values()) >= 5 > finished
    search("tpe", last)
    assert not any("nfinished" in line for line in section()["verdicts"])


@pytest.mark.nightly
def test_searches_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [tmp_path / each for each in ("a/tpe/0", "a/tpe/1", "a/random/0", "b/other")]
    for run in runs:
        ms.search(space, ToyEvaluator(), run=run, trials=1, progress=None)
    for shown, names in ((runs, ["tpe/0", "tpe/1", "random/0", "b/other"]), (runs[:1], ["tpe"])):
        report_on(shown, tmp_path / "report.html")
        (section,) = json.loads((tmp_path / "result.json").read_text())["sections"]
        assert [row[0]["text"] for row in section["runs"]["rows"]] == names
