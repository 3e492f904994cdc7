"""Masks of runs on the command line: named, exported; and run folders that have moved."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_runs import EVALUATOR, SPACE, run
from killing import outcome

import masksearch as ms
from masksearch import masks
from masksearch.analysis.pareto import ranked


@pytest.fixture
def job(tmp_path, monkeypatch, capsys):
    """The words that name the evaluator; a search of 6 trials lies in runs/x."""
    (tmp_path / "my_space.py").write_text(SPACE)
    toy = str(Path(__file__).parents[1] / "contracts")
    (tmp_path / "my_proxy.py").write_text(EVALUATOR.format(folder=toy))
    monkeypatch.chdir(tmp_path)
    judge = ["--evaluator", "my_proxy.py:toy"]
    words = ["search", "my_space.py:space", "--run", "runs/x", "--trials", 6, *judge]
    code, _, err = run(monkeypatch, capsys, *words, "--strategy", "random", "--baselines")
    assert code == 0, err
    return judge


@pytest.mark.slow
def test_masks_of_three_searches_with_one_name_are_all_compared(job, monkeypatch, capsys):
    for folder in ("y", "z"):
        shutil.copytree("runs/x", f"{folder}/x")
    words = ["compare", "--controls", "none", "--seeds", 1, *job]
    words += ["runs/x", "y/x", "z/x"]
    code, _, err = run(monkeypatch, capsys, *words, "--run", "runs/c")
    assert code == 0, err
    assert set(ms.Comparison.open("runs/c").entries) == {"random", "random (y/x)", "random (z/x)"}


@pytest.mark.slow
def test_within_a_budget_a_run_meets_what_is_drawn_at_that_cost(job, monkeypatch, capsys):
    words = ["compare", "runs/x", "--budget", 0.5, "--seeds", 1, *job, "--run", "runs/b"]
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 0, err
    compared = ms.Comparison.open("runs/b")
    drawn = {n: e for n, e in compared.entries.items() if e.kind == "hand-designed"}
    assert {"longformer within 0.5", "bigbird within 0.5"} <= {*drawn}
    assert not {*drawn} & {*masks.FAMILIES}  # at their usual sizes
    assert all(1 - entry.sparsity <= 0.5 for entry in drawn.values())
    words = ["search", "my_space.py:space", "--budget", 0.5, "--trials", 2, *job]
    code, _, err = run(monkeypatch, capsys, *words, "--run", "runs/s")
    assert code == 0, err
    first = [r.name for r in ms.open_study("runs/s").records() if r.role == "baseline"]
    assert first == [*drawn]
    words = ["compare", "runs/s", "--budget", 0.5, "--seeds", 1, *job, "--run", "runs/d"]
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 0, err
    compared, study = ms.Comparison.open("runs/d"), ms.open_study("runs/s")
    hand = [n for n, e in compared.entries.items() if e.kind == "hand-designed"]
    scored = [r for r in study.records() if r.role == "baseline"]
    assert hand == [r.name for r in ranked(scored, study.objectives, baselines=True)[:2]]
    assert compared.recommend(0.5).outcome == "too few seeds"
    assert compared.recommend(0.5).name == hand[0]
    words = ["search", "my_space.py:space", "--budget", 0.5, "--trials", 2, *job]
    code, _, err = run(monkeypatch, capsys, *words, "--run", "runs/n", "--no-baselines")
    assert code == 0, err
    assert not any(r.role == "baseline" for r in ms.open_study("runs/n").records())


@pytest.mark.slow
def test_typed_masks_are_opponents_of_runs_within_a_budget(job, monkeypatch, capsys):
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
        code, out, err = run(monkeypatch, capsys, *words, "--controls", controls, "--run", folder)
        assert code == 0, err
        compared = ms.Comparison.open(folder)
        pairs = {(f.mask, f.against) for f in compared.findings()}
        assert expected | {("dam within 0.28", "tpe within 0.28")} <= pairs
        assert not {n for pair in pairs for n in pair if "star" in pair} & searched
        assert "28.9 % of the pairs, beyond 0.28: it is no opponent" in out
        assert (
            "star: 28.9 % of the pairs, beyond 0.28: it is no opponent" in err
        )  # before it is paid
        assert "no hand-designed mask has a finished run" not in out
        assert compared.verdict() in out
    named = ["--controls", "none", "--against", "file", "--against", "small", "--run", "runs/n"]
    code, out, err = run(monkeypatch, capsys, *words, *named)
    assert code == 0, err
    pairs = {(f.mask, f.against) for f in ms.Comparison.open("runs/n").findings()}
    assert expected <= pairs
    assert {against for _, against in pairs} == typed


@pytest.mark.slow
def test_a_mask_that_leaves_no_key_to_draw_has_no_scrambled_control(job, monkeypatch, capsys):
    words = ["compare", "mine=window(0)", "wide=window(2)", "--seeds", 1, *job, "--run", "runs/s"]
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 0, err
    drawn = {name for name in ms.Comparison.open("runs/s").entries if name.startswith("scrambled")}
    assert drawn == {"scrambled mine", "scrambled wide", "scrambled wide + first key"}
    assert err.count("is left out") == 1
    assert (
        "scrambled mine + first key is left out: window(0) | columns(1) alone keeps as many pairs"
        in err
    )


@pytest.mark.slow
def test_commands_take_the_mask_of_a_run(job, monkeypatch, capsys):
    study = ms.open_study("runs/x")
    best = study.best()
    assert best.origin == "random"
    for text, mask in [("runs/x@0", best.mask), ("runs/x#0", study.records()[0].mask)]:
        code, out, _ = run(monkeypatch, capsys, "report", text, "--json")
        assert code == 0
        assert json.loads(out)["mask"] == str(mask)
    words = ["compare", "runs/x", "runs/x#7", "runs/x#0"]
    words += ["mine=runs/x@0.5", "eight=runs/x#8", "--controls", "none", "--seeds", 1]
    code, _, err = run(monkeypatch, capsys, *words, *job, "--run", "runs/y")
    assert code == 0, err
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
    code, _, err = run(monkeypatch, capsys, "resume", "y")
    assert code == 0, err
    assert len(ms.open_study("y").records()) == 5
    code, _, err = run(monkeypatch, capsys, "report", "x#99")
    assert (code, err) == (
        2,
        f"error: x has no trial 99; it has trials 0 to {len(study.records()) - 1}\n",
    )


@pytest.mark.slow
def test_export_writes_what_is_read_back(job, monkeypatch, capsys):
    mask = ms.open_study("runs/x").records()[7].mask
    for name in ("mask.json", "out/mask.safetensors"):
        code, out, _ = run(monkeypatch, capsys, "export", "runs/x#7", "--out", name)
        assert code == 0
        assert out.count("\n") == 1
        assert f"use it: ms.load_mask('{name}'), or masksearch report {name}" in out
        assert ms.load_mask(name) == masks.parse(name) == mask
    words = ["export", "blocks(4)", "--out", "layout.npy"]
    code, out, _ = run(monkeypatch, capsys, *words, "--block", 4, "--length", 16)
    assert code == 0
    assert out.startswith("layout.npy: 1x4x4 blocks of 4 positions, 25.0% of them kept")
    layout = np.load("layout.npy", allow_pickle=False)
    assert masks.from_block_layout(layout[0], 4).dense(16).equal(masks.blocks(4).dense(16))
    for wrong, message in [
        (words, "needs --block and --length"),
        (["export", "star", "--out", "x.json", "--block", 4], "belong to a block layout"),
        (["export", "star", "--out", "x.pt"], "saved as .json or .safetensors, got 'x.pt'"),
    ]:
        code, _, err = run(monkeypatch, capsys, *wrong)
        assert code == 2
        assert message in err


@pytest.mark.nightly
def test_moved_folder_does_all_that_it_did(job, monkeypatch, capsys, tmp_path):
    words = ["search", "my_space.py:space", "--strategy", "random", *job, "--baselines"]
    run(monkeypatch, capsys, *words, "--run", "whole", "--trials", 9)
    inside = ["--storage", "journal:runs/j/log", "--reuse", "runs/j/kept", "--run", "runs/j"]
    assert run(monkeypatch, capsys, *words, *inside, "--trials", 6)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    for name in "xj":
        before = outcome(ms.open_study(f"runs/{name}"))
        moved = Path(shutil.move(f"runs/{name}", tmp_path / "elsewhere" / f"{name} renamed"))
        monkeypatch.chdir(moved.parent)
        assert outcome(ms.open_study(moved)) == before
        assert "ended" in run(monkeypatch, capsys, "status", moved.name)[1]
        code, _, err = run(monkeypatch, capsys, "resume", moved.name, "--trials", 9)
        assert code == 0, err
        assert outcome(ms.open_study(moved)) == outcome(ms.open_study(tmp_path / "whole"))
        code, _, err = run(monkeypatch, capsys, "report", moved.name)
        assert code == 0, err
        monkeypatch.chdir(tmp_path)
    assert not (tmp_path / "runs" / "j").exists()
    assert (tmp_path / "elsewhere" / "j renamed" / "kept").is_dir()


@pytest.mark.slow  # continuous integration runs it
def test_resume_in_python_repeats_the_command(job, tmp_path, monkeypatch, capsys):
    moved = Path("runs/x").rename("runs/z")
    monkeypatch.chdir("runs")
    study = ms.resume("z", trials=8)
    assert isinstance(study, ms.Study)
    assert sum(record.origin == "random" and not record.known for record in study.records()) == 8
    assert capsys.readouterr().out == ""
    monkeypatch.chdir(tmp_path)
    words = ["compare", "window(3)", "--controls", "none", "--seeds", 1, *job]
    run(monkeypatch, capsys, *words, "--run", "runs/c")
    assert ms.resume("runs/c").entries.keys() == {"window(3)"}
    (moved / "command.json").unlink()
    with pytest.raises(ms.MaskSearchError, match=r"call ms\.search or ms\.compare again"):
        ms.resume(moved)


@pytest.mark.slow
def test_given_parameters_come_from_a_file(job, tmp_path, monkeypatch, capsys):
    Path("first.json").write_text('[{"reach": 3}, {"reach": 5}]')
    words = ["search", "my_space.py:space", *job, "--trials", 3, "--run", "runs/e"]
    code, _, err = run(monkeypatch, capsys, *words, "--enqueue", "first.json")
    assert code == 0, err
    monkeypatch.chdir("runs")
    code, _, err = run(monkeypatch, capsys, "resume", "e", "--trials", 4)
    assert code == 0, err
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
        code, _, err = run(monkeypatch, capsys, *words[:-1], "runs/f", "--enqueue", "first.json")
        assert code == 2
        assert message in err


@pytest.mark.nightly
def test_compare_front_judges_a_searchs_front_and_resumes(job, monkeypatch, capsys):
    words = ["compare", "--front", "runs/x", "--run", "runs/y", "--seeds", 3, *job]
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 0, err
    assert "The front of the search, judged again" in out
    judged = ms.Comparison.open("runs/y")
    number = len(judged.promised)
    kinds = [entry.kind for entry in judged.entries.values()]
    for kind, count in (("searched", number), ("hand-designed", number)):
        assert kinds.count(kind) == count
    assert kinds.count("control") == 2 * number + 1  # without and with the first key, and dense
    monkeypatch.chdir("runs")
    code, _, err = run(monkeypatch, capsys, "resume", "y")
    assert code == 0, err
    code, out, _ = run(monkeypatch, capsys, "report", "y")
    assert "hypervolume, searched minus hand-designed" in out
    code, _, err = run(monkeypatch, capsys, "compare", "--front", "none", "--run", "z")
    assert (code, err) == (2, "error: none holds no study (no study.db); run a search first\n")
