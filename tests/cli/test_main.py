"""The command line: what it prints, what it writes, and what it says of runs and masks."""

import importlib
import json
import os
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import typer
from cli_runs import write_toys
from record_fixtures import files_of_at_most
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.__main__ import main as program
from masksearch.cli import main as cli
from masksearch.cli.output import print_front
from masksearch.contracts import Report


# -- commands ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(monkeypatch, given, spins):
    monkeypatch.setattr(cli, "main", lambda: None)
    monkeypatch.setattr(os, "environ", dict(given))
    program()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


@pytest.fixture
def files(tmp_path):
    write_toys(tmp_path)
    return tmp_path


def test_report_says_what_a_mask_is(command, tmp_path):
    png = tmp_path / "deep" / "out.png"
    out, _ = command("report", "bigbird(2,1,2)", "--length", 64, "--out", png)
    assert "sparsity 0.86" in out
    assert "empty rows 0" in out
    assert png.read_bytes()[:4] == b"\x89PNG"
    facts = json.loads(command("report", "star", "--length", 128, "--json")[0])
    assert facts["sparsity"] == pytest.approx(0.9613, abs=1e-4)
    assert facts["shape"] == [1, 1, 128, 128]
    out, _ = command("report", "shifts([-1])", "--length", 8)
    assert "empty rows 1" in out
    assert "cannot be attached" in out


def test_a_full_disk_is_said_with_the_remedy(command, tmp_path):
    out = tmp_path / "mask.json"
    with files_of_at_most(60):
        err = command.refused("export", "bigbird(2,1,2) | window(3)", "--out", out)
    assert err.startswith("error: disk full: ")
    assert err.endswith("; free space and repeat the command\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mask", "length", "hops", "said"),
    [("star", 16, 2, "2"), ("causal()", 16, None, "infinite"), ("full()", 1, 0, "0")],
)
def test_report_counts_hops(command, mask, length, hops, said):
    out, _ = command("report", mask, "--length", length, "--json")
    assert json.loads(out, parse_constant=pytest.fail)["hops"] == hops
    assert f"hops {said}\n" in command("report", mask, "--length", length)[0]


def test_report_says_why_hops_are_not_counted(command, monkeypatch):
    monkeypatch.setattr("masksearch.masks.measure.LONGEST", 100)
    asked = ("report", "random_keys(9)", "--length", 101)
    facts = json.loads(command(*asked, "--json")[0])
    assert facts["hops"] is None
    assert "counted up to 100 positions, asked for 101" in facts["hops_uncounted"]
    out, _ = command(*asked)
    assert "hops not counted (hops are counted up to 100 positions" in out


def test_settings_reach_the_strategy_that_they_name(command, tmp_path):
    def options(*words):
        return command.called("search", *words, "--run", tmp_path)["strategy_options"]

    settings = ["density=.1", "structure=free", "steps=1_000", "form=log", "merge_heads=true"]
    settings += ["densities=[0.1, 0.2]", "preset=sparsebert"]
    given = [word for each in settings for word in ("--set", f"dam.{each}")]
    assert options("--strategy", "dam", *given) == {
        "gates": {"structure": "free", "form": "log", "preset": "sparsebert"},
        "config": {"density": 0.1, "steps": 1000, "preset": "sparsebert"},
        "densities": (0.1, 0.2),
        "merge_heads": True,
    }
    for text, block in {"32": 32, "[64, 16]": (64, 16), "64,16": (64, 16)}.items():
        found = options("--strategy", "dam", "--set", f"dam.block={text}")
        assert found == {"gates": {"block": block}, "config": {}}
    space = "masksearch.spaces:distances"
    given = ("--set", "prune.rounds=9", "--set", "downstream_steps=3")
    assert options("--strategy", "prune", *given) == {"rounds": 9}
    given = ("--set", "strategy.step=2", "--set", "strategy.name=x")
    assert options(space, "--strategy", "mine.py:Mine", *given) == {"step": 2, "name": "x"}


@pytest.mark.parametrize("local", [["star()"], ["star()", "window(4)"]])
def test_masks_of_units_are_repeatable(command, tmp_path, local):
    words = [word for each in local for word in ("--local", each)]
    space = command.called("search", *words, "--unit", "layer", "--run", tmp_path)["space"]
    assert (space.unit, space.levels) == ("layer", tuple(map(ms.masks.parse, [*local, "full()"])))


@pytest.mark.slow
def test_report_of_many_positions_needs_no_table(command, tmp_path):
    png = tmp_path / "long.png"
    mask = "window(64) | global_tokens(1)"
    out, _ = command("report", mask, "--length", 5000, "--out", png)
    kept = 5000 * 129 - 64 * 65 + 2 * (5000 - 65)  # the band, then row and column 0 beyond it
    assert f"sparsity {1 - kept / 5000**2:.5f}" in out
    assert "1x1x5000x5000" in out
    assert "hops 2\n" in out
    assert png.stat().st_size > 1000


@pytest.mark.slow
def test_search_compare_report(command, files):
    toy = files / "my_proxy.py:toy"
    found = files / "found"
    search = (
        "search", files / "my_space.py:space", "--evaluator", toy, "--run", found,
        "--trials", 6, "--baselines",
    )  # fmt: skip
    out, err = command(*search)
    assert "Front of" in out
    count = 6 + len(ms.masks.FAMILIES)
    assert f"{count}/{count}" in err
    _, err = command(*search)
    assert "1/" not in err  # nothing is run again
    out, _ = command(
        "compare", found, "mine=window(3)",
        "--evaluator", toy, "--run", files / "compared", "--seeds", 2,
    )  # fmt: skip
    assert "tpe" in out
    assert "Holm" in out
    assert "mine (candidate):" in out
    kinds = {
        name: entry.kind for name, entry in ms.Comparison.open(files / "compared").entries.items()
    }
    assert kinds == {
        **dict.fromkeys(ms.masks.FAMILIES, "hand-designed"),
        "dense": "control",
        **{f"scrambled {name}": "control" for name in ("tpe", "mine")},
        **{f"scrambled {name} + first key": "control" for name in ("tpe", "mine")},
        "tpe": "searched",
        "mine": "candidate",
    }
    front = json.loads(command(*search, "--json")[0])
    assert [row["trial"] for row in front] == [r.number for r in ms.Study(found).frontier()]
    assert front[0].keys() == {
        *("trial", "origin", "name", "mask", "sparsity", "effective_sparsity", "loss")
    }
    out, _ = command("report", found)
    page = Path(out.removeprefix("report: ").strip())
    assert page.read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert (found / "figures" / "front.pdf").is_file()


@pytest.mark.slow
def test_one_mask_is_judged_with_seeds_and_interval(command, files):
    out, _ = command(
        "compare", "window(3)", "--controls", "none", "--seeds", 3,
        "--evaluator", files / "my_proxy.py:toy", "--run", files / "one", "--json",
    )  # fmt: skip
    row = json.loads(out)[0]
    assert (row["n_seeds"], row["kind"]) == (3, "candidate")
    assert row["loss low"] < row["loss"] < row["loss high"]


@pytest.mark.slow
def test_a_comparison_is_planned_in_two_lines(command, files):
    toy = ("--evaluator", files / "my_proxy.py:toy", "--seeds", 2)
    named = ("compare", "star", "w=window(3)", *toy, "--run", files / "planned")
    planned = {
        "none": ["compare: 2 masks x 2 seeds: 4 runs to do", "compare: 1 test, none of them"],
        "dense": [
            "compare: 3 masks x 2 seeds: 2 runs to do, about 0:00 (2 are of hand-designed masks "
            "and controls)",
            "compare: 2 tests, none of them decisive: that takes 3 seeds",
        ],
    }
    for controls, lines in planned.items():
        _, err = command(*named, "--controls", controls)
        shown = [line for line in err.splitlines() if line.startswith("compare: ")]
        assert all(map(str.startswith, shown, lines)), shown
    kinds = {n: e.kind for n, e in ms.Comparison.open(files / "planned").entries.items()}
    assert kinds == {"star": "candidate", "w": "candidate", "dense": "control"}
    assert "unknown controls in --controls 'some'" in command.refused(*named, "--controls", "some")


def test_a_warning_is_one_line(command, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
    command("report", "window(1)")
    said = warnings.formatwarning("a cache\n is corrupt", UserWarning, "file.py", 3, "code()")
    assert said == "warning: a cache is corrupt\n"


@pytest.mark.slow
def test_masks_of_a_random_search_are_searched_and_controls_have_names_of_their_own(
    command, files
):
    toy = ("--evaluator", files / "my_proxy.py:toy", "--seeds", 2)
    found, compared = files / "random_run", files / "compared"
    search = ("search", files / "my_space.py:space", *toy[:2], "--run", found, "--trials", 3)
    command(*search, "--strategy", "random")
    mine = ("random like random=window(3)", "random keys=window(4)")
    out, _ = command("compare", found, *mine, *toy, "--run", compared)
    assert "random: " in out
    kinds = {n: e.kind for n, e in ms.Comparison.open(compared).entries.items()}
    assert kinds["random"] == "searched"
    assert {n for n, kind in kinds.items() if kind == "candidate"} == {
        "random like random",
        "random keys",
    }
    assert kinds["scrambled random"] == "control"
    for name in ("dense", "star", "scrambled random"):
        err = command.refused("compare", found, f"{name}=window(3)", *toy)
        assert f"'{name}' is the name of a mask that compare adds itself" in err


# -- what report says of a comparison, and what has no verdict -----------------------------------
class Noisy(ToyEvaluator):
    """A toy whose seeds shake each mask in its own way; windows are better by 0.3."""

    def __call__(self, mask, *, seed, workdir):
        noise = (hash((str(mask).count("1"), seed)) % 7) / 1000
        better = 0.3 * str(mask).startswith("window")
        yield Report(4, {"loss": 1 + noise - better})


@pytest.fixture
def noisy(tmp_path):
    candidates = {"mine": masks.window(1), **ms.masks.FAMILIES}
    kinds = {"mine": "searched"}
    ms.compare(candidates, Noisy(), run=tmp_path / "c", kinds=kinds, progress=None)
    return tmp_path / "c"


@pytest.mark.nightly
def test_verdict_of_a_comparison(noisy, command):
    out, _ = command("report", noisy)
    assert out.startswith(ms.Comparison.open(noisy).verdict())
    assert out.startswith("mine: better than star 1.002 (")
    out, _ = command("report", noisy, "--against", "all", "--json")
    found = json.loads(out)
    assert found["verdict"][0].startswith("mine: better than all 6 hand-designed families (")
    assert [row["against"] for row in found["findings"]] == list(ms.masks.FAMILIES)
    assert {row["n_seeds"] for row in found["findings"]} == {5}
    command.refused("report", noisy, "--against", "every")


@pytest.mark.slow  # continuous integration runs it
@pytest.mark.nightly
def test_a_search_has_no_verdict(tmp_path, command):
    ms.search(space, ToyEvaluator(), run=tmp_path / "s", trials=2, progress=None)
    err = command.refused("report", tmp_path / "s", "--against", "all")
    assert "a search has none, since its scores chose the masks" in err


@pytest.mark.nightly
def test_runs_of_two_lengths_have_no_verdict(tmp_path, command):
    class Longer(Noisy):
        def __call__(self, mask, *, seed, workdir):
            yield Report(9, {"loss": 1.0})

    both = masks.FAMILIES, {**masks.FAMILIES, "mine": masks.window(1)}
    for candidates, judge in zip(both, (Noisy(), Longer()), strict=True):
        ms.compare(candidates, judge, run=tmp_path, progress=None)
    err = command.refused("report", tmp_path)
    assert "scores after 4 and after 9 steps cannot be compared" in err


@pytest.mark.slow
def test_sparsity_of_the_table_stands_beside_where_it_differs(tmp_path):
    class Padded(Noisy):
        shape = ms.Shape(16, 2, 2, causal=True, lengths={4: 3, 8: 1})

    candidates = {"mine": masks.window(1), "star": masks.star()}
    found = ms.compare(candidates, Padded(), run=tmp_path, seeds=range(3), progress=None)
    pairs, kept = 3 * 10 + 36, 3 * (4 + 3) + (8 + 7)
    table = 100 * (1 - (16 + 15) / 256)
    said = f"({100 * (1 - kept / pairs):.1f}% sparse, {table:.1f}% of the table, loss "
    assert said in found.verdict()


# -- what a search prints of its front -----------------------------------------------------------
LAYER = masks.window(0) | masks.stride(5) | masks.global_tokens(1)
LONG = masks.per_layer([LAYER, LAYER, LAYER | masks.stride(3)])


class Three(ToyEvaluator):
    shape = ms.Shape(16, 3, 2)


@pytest.mark.nightly
def test_long_masks_are_printed_whole_and_a_terminal_shows_drawings(tmp_path, capsys, monkeypatch):
    def drawn(trial):
        return LONG if trial.suggest_int("a", 0, 1) else masks.window(1)

    told = {"trials": 6, "strategy": "random", "progress": None}
    study = ms.search(drawn, Three(), run=tmp_path / "run", **told)
    print_front(study, as_json=False)
    plain = capsys.readouterr().out
    [number] = [each.number for each in study.frontier() if each.mask == LONG]
    assert f"#{number}: {LONG}\n" in plain
    assert "██" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    print_front(study, as_json=False)
    drawn = capsys.readouterr().out
    assert drawn.count("% sparse") == len(study.frontier())
    assert "██" in drawn
    monkeypatch.setenv("NO_COLOR", "1")
    print_front(study, as_json=False)
    assert "██" not in capsys.readouterr().out


@pytest.mark.slow
def test_no_such_word_stands_before_a_mistake(monkeypatch, capsys, tmp_path):
    """While libraries are still loaded, arguments have not been checked."""
    (tmp_path / "slow_library.py").write_text("import time\ntime.sleep(1)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def mistaken(run: Path) -> None:
        importlib.import_module("slow_library")
        raise ms.errors.SearchError("no such run")

    monkeypatch.setattr("masksearch.study.status.read_status", mistaken)
    monkeypatch.setattr(cli, "SOON", 0.2)
    monkeypatch.setattr(sys, "argv", ["masksearch", "status", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    time.sleep(1)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: no such run\n"


def test_a_command_that_is_silent_says_that_it_works(monkeypatch, capsys, tmp_path):
    said, echo = threading.Event(), typer.echo

    def heard(text: str, **how: bool) -> None:
        echo(text, **how)
        said.set()

    def slow(run: Path) -> None:
        assert said.wait(60)
        raise ms.errors.SearchError("it ended")

    monkeypatch.setattr(typer, "echo", heard)
    monkeypatch.setattr("masksearch.study.status.read_status", slow)
    monkeypatch.setattr(cli, "SOON", 0.0)
    monkeypatch.setattr(sys, "argv", ["masksearch", "status", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    works = "masksearch: at work; it reads and prepares before the first result"
    assert capsys.readouterr().err.splitlines() == [works, "error: it ended"]
