"""Masks of runs on the command line: named, exported; and run folders that have moved."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_runs import write_toys
from killing import outcome

import masksearch as ms
from masksearch import masks
from masksearch.analysis.pareto import ranked


@pytest.fixture
def job(tmp_path, command, monkeypatch):
    """The words that name the evaluator; a search of 6 trials lies in runs/x."""
    write_toys(tmp_path)
    monkeypatch.chdir(tmp_path)
    judge = ["--evaluator", "my_proxy.py:toy"]
    words = ["search", "my_space.py:space", "--run", "runs/x", "--trials", 6, *judge]
    command(*words, "--strategy", "random", "--baselines")
    return judge


@pytest.mark.slow
def test_masks_of_three_searches_with_one_name_are_all_compared(job, command):
    for folder in ("y", "z"):
        shutil.copytree("runs/x", f"{folder}/x")
    words = ["compare", "--controls", "none", "--seeds", 1, *job]
    words += ["runs/x", "y/x", "z/x"]
    command(*words, "--run", "runs/c")
    assert set(ms.Comparison.open("runs/c").entries) == {"random", "random (y/x)", "random (z/x)"}


@pytest.mark.nightly
def test_within_a_budget_a_run_meets_what_is_drawn_at_that_cost(job, command):
    words = ["compare", "runs/x", "--budget", 0.5, "--seeds", 1, *job, "--run", "runs/b"]
    command(*words)
    compared = ms.Comparison.open("runs/b")
    drawn = {n: e for n, e in compared.entries.items() if e.kind == "hand-designed"}
    assert {"longformer within 0.5", "bigbird within 0.5"} <= {*drawn}
    assert not {*drawn} & {*masks.FAMILIES}  # at their usual sizes
    assert all(1 - entry.sparsity <= 0.5 for entry in drawn.values())
    words = ["search", "my_space.py:space", "--budget", 0.5, "--trials", 2, *job]
    command(*words, "--run", "runs/s")
    first = [r.name for r in ms.open_study("runs/s").records() if r.role == "baseline"]
    assert first == [*drawn]
    words = ["compare", "runs/s", "--budget", 0.5, "--seeds", 1, *job, "--run", "runs/d"]
    command(*words)
    compared, study = ms.Comparison.open("runs/d"), ms.open_study("runs/s")
    hand = [n for n, e in compared.entries.items() if e.kind == "hand-designed"]
    scored = [r for r in study.records() if r.role == "baseline"]
    assert hand == [r.name for r in ranked(scored, study.objectives, baselines=True)[:2]]
    assert compared.recommend(0.5).outcome == "too few seeds"
    assert compared.recommend(0.5).name == hand[0]
    words = ["search", "my_space.py:space", "--budget", 0.5, "--trials", 2, *job]
    command(*words, "--run", "runs/n", "--no-baselines")
    assert not any(r.role == "baseline" for r in ms.open_study("runs/n").records())


@pytest.mark.slow
def test_typed_masks_are_opponents_of_runs_within_a_budget(job, command):
    shutil.copytree("runs/x", "runs/y")
    ms.save_mask(masks.window(1), "two.json")  # 0.18 of the pairs
    words = [
        "compare",
        "dam=runs/x",
        "tpe=runs/y",
        "small=bigbird(0,1,0)",
        "file=two.json",
        "star",
    ]
    words += ["--budget", 0.28, "--seeds", 1, *job]
    typed, searched = {"small", "file"}, {"dam within 0.28", "tpe within 0.28"}
    expected = {(run, mask) for run in searched for mask in typed}
    for controls in ("none", "all"):
        folder = f"runs/{controls}"
        out, err = command(*words, "--controls", controls, "--run", folder)
        whole, _ = command(*words, "--controls", controls, "--run", folder, "--verbose")
        compared = ms.Comparison.open(folder)
        pairs = {(f.mask, f.against) for f in compared.findings()}
        assert expected | {("dam within 0.28", "tpe within 0.28")} <= pairs
        assert not {n for pair in pairs for n in pair if "star" in pair} & searched
        assert "28.9 % of the pairs, beyond 0.28: it is no opponent" in out
        assert (
            "star: 28.9 % of the pairs, beyond 0.28: it is no opponent" in err
        )  # before it is paid
        assert "no hand-designed mask has a finished run" not in out
        assert compared.verdict(verbose=False) in out
        assert compared.verdict() in whole
        advice, attach = str(compared.recommend(0.28)), "masksearch attach MODEL"
        assert out.splitlines()[-1] == (
            f"within 0.28: {advice} Attach it with: {attach} {folder} --time --out FOLDER "
            "--budget 0.28"
        )
        assert max(len(line) for line in out.splitlines() if line[:1] in "┃│┏") <= 100
    named = ["--controls", "none", "--against", "file", "--against", "small", "--run", "runs/n"]
    command(*words, *named)
    pairs = {(f.mask, f.against) for f in ms.Comparison.open("runs/n").findings()}
    assert expected <= pairs
    assert {against for _, against in pairs} == typed


@pytest.mark.slow
def test_a_mask_that_leaves_no_key_to_draw_has_no_scrambled_control(job, command):
    words = ["compare", "mine=window(0)", "wide=window(2)", "--seeds", 1, *job, "--run", "runs/s"]
    _, err = command(*words)
    drawn = {name for name in ms.Comparison.open("runs/s").entries if name.startswith("scrambled")}
    assert drawn == {"scrambled mine", "scrambled wide", "scrambled wide + first key"}
    assert err.count("is left out") == 1
    assert (
        "scrambled mine + first key is left out: window(0) | columns(1) alone keeps as many pairs"
        in err
    )


@pytest.mark.slow
def test_commands_take_the_mask_of_a_run(job, command, monkeypatch):
    study = ms.open_study("runs/x")
    best = study.best()
    assert best.origin == "random"
    for text, mask in [("runs/x@0", best.mask), ("runs/x#0", study.records()[0].mask)]:
        out, _ = command("report", text, "--json")
        assert json.loads(out)["mask"] == str(mask)
    words = ["compare", "runs/x", "runs/x#7", "runs/x#0"]
    words += ["mine=runs/x@0.5", "eight=runs/x#8", "--controls", "none", "--seeds", 1]
    command(*words, *job, "--run", "runs/y")
    compared = ms.Comparison.open("runs/y")
    kinds = {name: entry.kind for name, entry in compared.entries.items()}
    assert kinds == {
        "random": "searched",
        "random #7": "searched",
        "random #0": "hand-designed",  # a baseline of that search
        "mine": "searched",
        "eight": "searched",
    }
    monkeypatch.chdir("runs")  # the stored command names the masks from anywhere
    command("resume", "y")
    assert len(ms.open_study("y").records()) == 5
    err = command.refused("report", "x#99")
    assert err == f"error: x has no trial 99; it has trials 0 to {len(study.records()) - 1}\n"


@pytest.mark.slow
def test_export_writes_what_is_read_back(job, command):
    mask = ms.open_study("runs/x").records()[7].mask
    for name in ("mask.json", "out/mask.safetensors"):
        out, _ = command("export", "runs/x#7", "--out", name)
        assert out.count("\n") == 1
        assert f"use it: ms.load_mask('{name}'), or masksearch report {name}" in out
        assert ms.load_mask(name) == masks.parse(name) == mask
    words = ["export", "blocks(4)", "--out", "layout.npy"]
    out, _ = command(*words, "--block", 4, "--length", 16)
    assert out.startswith("layout.npy: 1x4x4 blocks of 4 positions, 25.0% of them kept")
    layout = np.load("layout.npy", allow_pickle=False)
    assert masks.from_block_layout(layout[0], 4).dense(16).equal(masks.blocks(4).dense(16))
    for wrong, message in [
        (words, "needs --block and --length"),
        (["export", "star", "--out", "x.json", "--block", 4], "belong to a block layout"),
        (["export", "star", "--out", "x.pt"], "saved as .json or .safetensors, got 'x.pt'"),
    ]:
        assert message in command.refused(*wrong)


@pytest.mark.nightly
def test_moved_folder_does_all_that_it_did(job, command, monkeypatch, tmp_path):
    words = ["search", "my_space.py:space", "--strategy", "random", *job, "--baselines"]
    command(*words, "--run", "whole", "--trials", 9)
    inside = ["--storage", "journal:runs/j/log", "--reuse", "runs/j/kept", "--run", "runs/j"]
    command(*words, *inside, "--trials", 6)
    (tmp_path / "elsewhere").mkdir()
    for name in "xj":
        before = outcome(ms.open_study(f"runs/{name}"))
        moved = Path(shutil.move(f"runs/{name}", tmp_path / "elsewhere" / f"{name} renamed"))
        monkeypatch.chdir(moved.parent)
        assert outcome(ms.open_study(moved)) == before
        assert "ended" in command("status", moved.name)[0]
        command("resume", moved.name, "--trials", 9)
        assert outcome(ms.open_study(moved)) == outcome(ms.open_study(tmp_path / "whole"))
        command("report", moved.name)
        monkeypatch.chdir(tmp_path)
    assert not (tmp_path / "runs" / "j").exists()
    assert (tmp_path / "elsewhere" / "j renamed" / "kept").is_dir()


@pytest.mark.slow  # continuous integration runs it
def test_resume_in_python_repeats_the_command(job, tmp_path, command, monkeypatch, capsys):
    moved = Path("runs/x").rename("runs/z")
    monkeypatch.chdir("runs")
    study = ms.resume("z", trials=8)
    assert isinstance(study, ms.Study)
    assert sum(record.origin == "random" and not record.known for record in study.records()) == 8
    assert capsys.readouterr().out == ""
    monkeypatch.chdir(tmp_path)
    words = ["compare", "window(3)", "--controls", "none", "--seeds", 1, *job]
    command(*words, "--run", "runs/c")
    assert ms.resume("runs/c").entries.keys() == {"window(3)"}
    (moved / "command.json").unlink()
    with pytest.raises(ms.errors.MaskSearchError, match=r"call ms\.search or ms\.compare again"):
        ms.resume(moved)


@pytest.mark.slow
def test_given_parameters_come_from_a_file(job, tmp_path, command, monkeypatch):
    Path("first.json").write_text('[{"reach": 3}, {"reach": 5}]')
    words = ["search", "my_space.py:space", *job, "--trials", 3, "--run", "runs/e"]
    command(*words, "--enqueue", "first.json")
    monkeypatch.chdir("runs")
    command("resume", "e", "--trials", 4)
    records = ms.open_study("e").records()
    assert [record.params["reach"] for record in records[:2]] == [3, 5]
    assert len(records) == 4
    monkeypatch.chdir(tmp_path)
    for text, message in [
        ('[{"reach": 30}]', "enqueue[0]: reach = 30 cannot be drawn; the space asks for"),
        ("{}", 'holds a list of parameters, such as [{"reach": 3}]; it holds a dict'),
        ("[", "is no JSON"),
    ]:
        Path("first.json").write_text(text)
        assert message in command.refused(*words[:-1], "runs/f", "--enqueue", "first.json")


@pytest.mark.nightly
def test_compare_front_judges_a_searchs_front_and_resumes(job, command, monkeypatch):
    words = ["compare", "--front", "runs/x", "--run", "runs/y", "--seeds", 3, *job]
    out, _ = command(*words)
    assert "The front of the search, judged again" in out
    judged = ms.Comparison.open("runs/y")
    number = len(judged.promised)
    kinds = [entry.kind for entry in judged.entries.values()]
    for kind, count in (("searched", number), ("hand-designed", number)):
        assert kinds.count(kind) == count
    assert kinds.count("control") == 2 * number + 1  # without and with the first key, and dense
    monkeypatch.chdir("runs")
    command("resume", "y")
    out, _ = command("report", "y")
    assert "hypervolume, searched minus hand-designed" in out
    err = command.refused("compare", "--front", "none", "--run", "z")
    assert err.endswith("/runs/none holds no study (no study.db); run a search first\n")
