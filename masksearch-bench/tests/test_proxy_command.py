"""Proxy cards of stored runs: the function, the command, the report's section."""

import csv
import json
from pathlib import Path

import pytest

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluator, Objective, Report, Shape
from masksearch.errors import SearchError
from masksearch_bench import proxy_card

pytestmark = pytest.mark.slow  # they share a run that takes seconds


class Learning(Evaluator):
    """A loss that is the longer the more what the mask's reach will make of it."""

    shape = Shape(16, 1, 1)
    objectives = (Objective("loss", "min", 9.0), Objective("sparsity", "max", 0.0))

    def __init__(self, steps: int = 40, early: tuple[int, ...] = (1, 10)) -> None:
        self.steps, self.early = steps, early
        self.protocol = f"learning {steps}"

    def quality(self, mask) -> float:
        return mask.density(16)

    def __call__(self, mask, *, seed, workdir):
        quality = self.quality(mask)
        for step in (*self.early, self.steps):
            noise = ((7 * seed + 3 * step + int(900 * quality)) % 11 - 5) / 500
            yield Report(step, {"loss": 5 - quality * step / 40 + noise})


class Shuffled(Learning):
    """The same, whatever the density."""

    def quality(self, mask) -> float:
        return int(mask.digest[:4], 16) / 2**16


def ran(folder: Path, evaluator: Learning, reaches=range(12)) -> Path:
    named = {f"window {reach}": masks.window(reach) for reach in reaches}
    ms.compare(named, evaluator, run=folder, seeds=range(2))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("proxy")
    ran(folder / "long", Learning())
    ran(folder / "short", Learning(20), range(4))
    ran(folder / "bare", Learning(30, ()), range(2))
    return folder


@pytest.mark.nightly
def test_card_of_a_run_folder(runs):
    card = proxy_card(runs / "long", bands=1, resamples=50)
    assert card.frame["budget"].tolist() == [1, 10, 40]
    assert list(card.masks) == [f"window {reach}" for reach in range(11, -1, -1)]
    assert "use narrower bands" in card.verdict()  # here quality IS density


def test_runs_of_other_lengths_are_judged_by_the_reference(runs):
    card = proxy_card(runs / "short", reference=runs / "long", resamples=20)
    found = card.frame[["budget", "masks"]].to_numpy().tolist()
    assert found == [[40, 12], [20, 4]]
    assert card.reference == (str(runs / "long"), 40)


def test_command_prints_writes_and_speaks_json(command, runs, tmp_path):
    png, table = tmp_path / "a" / "card.png", tmp_path / "b" / "card.csv"
    words = ["proxy-card", runs / "long"]
    code, out, err = command.run(*words, "--out", png)
    assert (code, err) == (0, "")
    assert "tau-b in bands" in out
    assert "Not decided: loss as a proxy of loss at 40 steps." in out
    assert png.read_bytes()[:4] == b"\x89PNG"
    command(*words, "--out", table)
    with table.open(newline="") as file:
        assert [row["budget"] for row in csv.DictReader(file)] == ["1", "10", "40"]
    out, _ = command(*words, "--json")
    assert json.loads(out)["valid"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "none: no such run folder"),
        (["bare"], "hold no curves"),
        (["long", "--target", "los"], "unknown measure 'los'; did you mean 'loss'?"),
        (["long", "short"], "--reference RUN"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(command, monkeypatch, runs, words, message):
    monkeypatch.chdir(runs)
    assert message in command.refused("proxy-card", *words)


def test_one_mask_is_a_mistake(command, tmp_path):
    ran(tmp_path / "one", Learning(), [2])
    assert "of at least 2 masks" in command.refused("proxy-card", tmp_path / "one")
    with pytest.raises(SearchError, match="no finished run of a mask in nothing"):
        proxy_card([])


@pytest.mark.nightly
def test_report_has_the_card_where_there_are_masks_enough(command, runs):
    decided = ran(runs / "decided", Shuffled(), range(1, 15))
    command("report", decided)
    page = (decided / "report.html").read_text()
    assert "How far to trust a shorter run" in page
    assert "tau-b in bands" in page
    assert (decided / "figures" / "proxy.png").is_file()
    for undecided in ("long", "short"):  # nobody has asked, so it stays away
        command("report", runs / undecided)
        assert "How far to trust" not in (runs / undecided / "report.html").read_text()
