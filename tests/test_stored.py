"""What version 0.1.0 left on disk is read by every later version as it was written.

The folder `stored` holds studies, models, masks and ids; `stored/make.py` says how they came
about. Everything here speaks to the package in public names and commands alone.
"""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import recipes
from stored.judges import Formula

import masksearch as ms
from masksearch import masks
from masksearch.analysis.pareto import learned_nothing
from masksearch.contracts import LOW

NAMES = sorted(path.name for path in recipes.STUDIES.iterdir())
KILLED = ("killed", "glue")
ENDED = [name for name in recipes.SEARCHES if name not in KILLED]
CLOSE = {"rel": 1e-3, "abs": 1e-6}  # of numbers that are computed again


def expected(name: str) -> Any:
    return json.loads((recipes.EXPECTED / f"{name}.json").read_text(encoding="utf-8"))


def copied(name: str, tmp_path: Path) -> Path:
    """A study's folder to write in; its command's files are those of this checkout."""
    run = Path(shutil.copytree(recipes.STUDIES / name, tmp_path / name))
    if (path := run / "command.json").is_file():
        path.write_text(path.read_text().replace("STORED", recipes.HERE.as_posix()))
    return run


def opened(name: str, run: Path) -> ms.Study:
    return ms.Study(run, recipes.storage(name, run))


def judge(name: str) -> recipes.Counted:
    made = recipes.SEARCHES[name][1]
    assert made is not None
    return recipes.Counted(made())


def command(monkeypatch: pytest.MonkeyPatch, capsys: Any, *words: object) -> tuple[int, str]:
    """`python -m masksearch WORDS` in this process: its exit code and what it prints."""
    monkeypatch.setattr(sys, "argv", ["masksearch", *map(str, words)])
    monkeypatch.setattr("signal.signal", lambda *given: None)
    monkeypatch.setattr("warnings.formatwarning", None)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("masksearch", run_name="__main__", alter_sys=False)
    return int(ended.value.code or 0), capsys.readouterr().out


def assert_close(found: dict[str, Any], stored: dict[str, Any], rel: float = 1e-9) -> None:
    """Everything that was stored is there: texts are equal, numbers nearly."""
    for key, value in stored.items():
        if isinstance(value, float):
            assert found[key] == pytest.approx(value, rel=rel, abs=1e-12), key
        else:
            assert found[key] == value, key


def records(study: ms.Study) -> list[dict[str, Any]]:
    return recipes.described(study)["records"]


# -- every study -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_study_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    study = opened(name, copied(name, tmp_path))
    found, stored = recipes.described(study), expected(name)
    columns = set(stored.pop("columns"))
    assert columns <= set(found.pop("columns"))
    for mine, theirs in zip(found.pop("records"), stored.pop("records"), strict=True):
        assert mine == theirs
    all_records, score = study.records(), study.objectives[0].name
    for mine, theirs in zip(found.pop("best"), stored.pop("best"), strict=True):
        # of equal scores the first one was the best, now the sparsest is
        assert all_records[mine].value(score) == all_records[theirs].value(score)
    # of masks that have learned nothing fronts were made, now they are on none
    learned = [n for n in stored["frontier"] if not learned_nothing(all_records[n])]
    assert found == {key: stored[key] for key in found} | {"frontier": learned}


@pytest.mark.parametrize("name", NAMES)
def test_status_of_a_stored_study(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    run = copied(name, tmp_path)
    code, printed = command(monkeypatch, capsys, "status", run, "--json")
    state, stored = json.loads(printed), expected(name)["records"]
    assert code == 0
    if name in KILLED:  # the page was written some moments before the end
        assert state["state"] == "killed"
    else:
        assert state["state"] == "ended"
        assert state["counts"] == dict(Counter(row["status"] for row in stored))
    code, printed = command(monkeypatch, capsys, "status", run)
    assert code == 0
    assert printed.strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_page_of_a_stored_study(name: str, tmp_path: Path) -> None:
    run = copied(name, tmp_path)
    page = opened(name, run).report()
    assert page == run / "report.html"
    assert "<html" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_command_writes_the_page_of_a_stored_study(tmp_path: Path) -> None:
    run, page = copied("finished", tmp_path), tmp_path / "page.html"
    done = subprocess.run(
        [sys.executable, "-m", "masksearch", "report", run, "--out", page],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(page) in done.stdout
    assert "<html" in page.read_text(encoding="utf-8")


# -- searches that go on -----------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:DAM")
@pytest.mark.parametrize("name", ENDED)
def test_search_that_has_ended_runs_nothing(name: str, tmp_path: Path) -> None:
    run, counted = copied(name, tmp_path), judge(name)
    study = recipes.search(name, run, counted)
    assert counted.calls == 0
    assert records(study) == expected(name)["records"]


@pytest.mark.filterwarnings("ignore:DAM")
@pytest.mark.parametrize("name", [name for name in ENDED if name != "dam"])
def test_more_trials_get_the_next_numbers(name: str, tmp_path: Path) -> None:
    run, stored = copied(name, tmp_path), expected(name)["records"]
    trials = recipes.SEARCHES[name][0]()["trials"]
    study = recipes.search(name, run, judge(name), trials=trials + 2)
    now = records(study)
    assert now[: len(stored)] == stored
    new = now[len(stored) :]
    assert [row["number"] for row in new] == list(range(len(stored), len(now)))
    assert sum(row["status"] in ("done", "reused", "stopped") for row in new) == 2
    assert {row["origin"] for row in new} == {stored[-1]["origin"]}
    assert {row["protocol"] for row in new} == {stored[-1]["protocol"]}
    assert records(opened(name, run)) == now


def test_other_facts_are_refused(tmp_path: Path) -> None:
    run, edited = copied("finished", tmp_path), tmp_path / "spaces.py"
    edited.write_text((recipes.HERE / "spaces.py").read_text().replace("0, 10", "0, 9"))
    changes = {
        "seed": 1,
        "space": ms.load_function(f"{edited}:windows"),
        "constraints": [],
        "strategy": "random",
        "scheduler": ms.ParetoHalving(rungs=(1,)),
    }
    for name, value in changes.items():
        with pytest.raises(ms.ResumeError, match=rf"belongs to another search \({name}: was"):
            recipes.search("finished", run, judge("finished"), **{name: value})
    with pytest.raises(ms.ResumeError, match="protocol: was"):
        recipes.search("finished", run, recipes.Counted(ms.PlantedEvaluator(steps=7)))
    assert records(ms.Study(run)) == expected("finished")["records"]


def test_mask_judged_before_is_reused(tmp_path: Path) -> None:
    run, counted = copied("finished", tmp_path), judge("finished")
    stored = expected("finished")["records"]
    known = next(row for row in stored if row["origin"] == "baseline:star")
    table = masks.table(masks.star().dense(recipes.LENGTH)[0, 0])  # equal cells, other words
    study = recipes.search("finished", run, counted, baselines={"the same": table})
    new = records(study)[len(stored) :]
    assert counted.calls == 0
    assert [(row["status"], row["origin"]) for row in new] == [("reused", "baseline:the same")]
    for key in ("fingerprint", "protocol", "seed", "values", "curve", "step"):
        assert new[0][key] == known[key]
    assert new[0]["artifacts"] == {"reused_from": str(known["number"])}


def test_mask_judged_again_gets_its_values(tmp_path: Path) -> None:
    """What a protocol id promises: the same mask and seed, the same reports."""
    known = next(r for r in expected("finished")["records"] if r["origin"] == "baseline:star")
    reports = list(recipes.planted()(masks.star(), seed=0, workdir=tmp_path))
    assert [report.step for report in reports] == [step for step, _ in known["curve"]]
    for report, (_, values) in zip(reports, known["curve"], strict=True):
        assert {name for name in report.values if not name.endswith(LOW)} == set(values)
        assert report.values["loss"] == pytest.approx(values["loss"], **CLOSE)
    assert reports[-1].values["score"] == pytest.approx(known["values"]["score"], abs=0.05)


def test_killed_search_goes_on(tmp_path: Path) -> None:
    run, counted, stored = copied("killed", tmp_path), judge("killed"), expected("killed")
    *ended, broken = stored["records"]
    assert broken["status"] == "running"
    now = records(recipes.search("killed", run, counted))
    assert now[: len(ended)] == ended
    again = now[broken["number"]]
    for key in ("number", "mask", "digest", "fingerprint", "protocol", "seed", "params"):
        assert again[key] == broken[key]
    assert [row["number"] for row in now] == list(range(len(now)))
    assert all(row["status"] in ("done", "reused", "stopped") for row in now)
    assert sum(row["origin"] == "tpe" for row in now) == 6
    assert 1 <= counted.calls <= len(now) - len(ended)


def test_gates_of_a_stored_search(tmp_path: Path) -> None:
    run = copied("dam", tmp_path)
    first, *cut = opened("dam", run).records()
    gates = ms.DamResult.load(run / first.artifacts["gates"])
    for record in cut:
        if record.mask is not None:
            mask = gates.mask(sparsity=1 - record.params["density"])
            assert ms.fingerprint(mask, ms.Shape(12, 1, 2)) == record.fingerprint


@pytest.mark.filterwarnings("ignore:DAM")
def test_gates_are_cut_again(tmp_path: Path) -> None:
    """A failed cut does not count, so one more trial asks for what is not there."""
    run, counted = copied("dam", tmp_path), judge("dam")
    study = recipes.search("dam", run, counted, trials=9)
    assert counted.calls == 0
    assert records(study) == expected("dam")["records"]


# -- GLUE --------------------------------------------------------------------------------------
def test_killed_glue_search_goes_on(tmp_path: Path) -> None:
    """Killed in the fine-tuning: the pre-trained weights lie in the trial's folder."""
    evaluator = recipes.glue(recipes.glue_corpus().write(tmp_path / "data"))
    run, counted, stored = copied("glue", tmp_path), recipes.Counted(evaluator), expected("glue")
    assert {row["protocol"] for row in stored["records"]} == {evaluator.protocol}
    *ended, broken = stored["records"]
    now = records(recipes.search("glue", run, counted))
    assert now[: len(ended)] == ended
    assert [row["number"] for row in now] == [0, 1, 2]
    assert (now[2]["status"], now[2]["fingerprint"]) == ("done", broken["fingerprint"])
    assert set(now[2]["values"]) == set(ended[0]["values"])
    assert counted.calls == 1
    again = masks.parse(ended[0]["mask"])
    more = recipes.search("glue", run, counted, baselines={"known": again})
    assert counted.calls == 1
    assert records(more)[3]["status"] == "reused"
    assert records(more)[3]["values"] == ended[0]["values"]


# -- comparisons -------------------------------------------------------------------------------
def outcomes(verdict: str) -> list[str]:
    """What is said of each mask, without the figures."""
    lines = [line.partition(" (")[0] for line in verdict.splitlines()]
    return [line for line in lines if line.startswith(("found:", "mine:"))]


def test_comparison_trains_nothing(tmp_path: Path) -> None:
    run, counted = copied("comparison", tmp_path), recipes.Counted(recipes.planted())
    found, stored = recipes.compare(run, counted), expected("comparison")
    assert counted.calls == 0
    assert outcomes(found.verdict()) == outcomes(stored["verdict"])
    rows = recipes.table(found.frame())
    assert [row["mask"] for row in rows] == [row["mask"] for row in stored["frame"]]
    for row, known in zip(rows, stored["frame"], strict=True):
        assert_close(row, known)
    more = recipes.compare(run, counted, (*recipes.SEEDS, 103))
    assert counted.calls == len(recipes.candidates())
    assert len(more.records) == len(found.records) + len(recipes.candidates())


def test_proxy_card_of_a_stored_comparison(tmp_path: Path) -> None:
    run = copied("comparison", tmp_path)
    card = ms.proxy_card(run, proxy="loss", bands=1, resamples=20)
    rows, stored = recipes.table(card.frame()), expected("comparison")["card"]
    for row, known in zip(rows, stored, strict=True):  # the bootstrap's intervals may change
        assert_close(row, {k: v for k, v in known.items() if not k.endswith(("low", "high"))})


def test_mask_in_a_file_of_its_own(tmp_path: Path) -> None:
    run, counted = copied("wide", tmp_path), recipes.Counted(Formula(316, 1, 1))
    found = ms.compare(recipes.wide(), counted, run=run, seeds=[0])
    assert counted.calls == 0
    assert [record.mask for record in found.records] == list(recipes.wide().values())


# -- the command line --------------------------------------------------------------------------
def test_resume_goes_on_with_a_stored_command(tmp_path: Path, monkeypatch, capsys) -> None:
    run, stored = copied("command", tmp_path), expected("command")["records"]
    for trials, more in ((4, 0), (6, 2)):
        code, _ = command(monkeypatch, capsys, "resume", run, "--trials", trials)
        now = records(ms.Study(run))
        assert code == 0
        assert now[: len(stored)] == stored
        new = now[len(stored) :]
        assert sum(row["status"] in ("done", "reused", "stopped") for row in new) == more


def test_best_mask_of_a_stored_search_is_compared(tmp_path: Path, monkeypatch, capsys) -> None:
    run, stored = copied("random", tmp_path), expected("random")
    words = ["compare", "--found", run, "--sparsity", 0.5, "--run", tmp_path / "new"]
    words += ["--evaluator", f"{recipes.HERE / 'judges.py'}:formula", "--seeds", 2]
    code, _ = command(monkeypatch, capsys, *words, "--no-controls")
    best = stored["records"][stored["best"][1]]
    found = ms.Study(tmp_path / "new").records()
    assert code == 0
    assert [record.fingerprint for record in found] == [best["fingerprint"]] * 2
    assert {record.params["mask"] for record in found} == {"random >= 0.5"}


# -- masks -------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted(recipes.MASKS.iterdir()), ids=lambda path: path.name)
def test_mask_file_is_read_as_it_was_written(path: Path, tmp_path: Path) -> None:
    mask, facts = ms.load_mask(path), expected("masks")[path.stem]
    built = {**recipes.leaves(), **recipes.combined(), **recipes.content()}[path.stem]
    assert mask == built
    if mask.needs_tokens:
        assert recipes.content_facts(mask) == {k: v for k, v in facts.items() if k != "digest"}
    else:
        assert recipes.mask_facts(mask) == facts
    again = ms.save_mask(mask, tmp_path / path.name)
    if path.suffix == ".json" and not mask.needs_tokens:  # these were a tree of another type
        assert again.read_bytes() == path.read_bytes()
    assert ms.load_mask(again) == mask


@pytest.mark.parametrize("name", [*recipes.leaves(), *recipes.combined(), *recipes.content()])
def test_mask_text_is_read_as_it_was_written(name: str) -> None:
    text, mask = expected("masks")[name]["text"], ms.load_mask(recipes.MASKS / f"{name}.json")
    if "table(" in text:  # which names a table, and does not hold it
        with pytest.raises(ms.MaskFormatError):
            masks.parse(text)
    else:
        assert masks.parse(text) == mask


def test_every_mask_has_its_file() -> None:
    every = {**recipes.leaves(), **recipes.combined(), **recipes.content()}
    assert {path.stem for path in recipes.MASKS.iterdir()} == set(every) == {*expected("masks")}


# -- models ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(path.name for path in recipes.MODELS.iterdir()))
def test_model_answers_as_it_did(name: str) -> None:
    stored, folder = expected("models")[name], recipes.MODELS / name
    found = ms.saved_masks(folder)
    for part, mask in found.items():
        assert mask.digest == stored["masks"][part] or mask.needs_tokens
    assert set(found) == set(stored["masks"])
    model = ms.load_pretrained(folder)
    assert type(model).__name__ == stored["class"]
    assert ms.attached(model) == found
    answer = torch.tensor(stored["outputs"])
    torch.testing.assert_close(recipes.outputs(model), answer, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(recipes.outputs(ms.detach(model)), answer, atol=1e-2)


def test_checkpoint_answers_as_it_did(tmp_path: Path) -> None:
    stored, found = expected("pretrained"), ms.saved_masks(recipes.PRETRAINED)
    assert {part: mask.digest for part, mask in found.items()} == stored["masks"]
    answer = recipes.outputs(ms.load_pretrained(recipes.PRETRAINED))[:, :8]
    torch.testing.assert_close(answer, torch.tensor(stored["outputs"]), rtol=1e-3, atol=1e-4)
    judge = ms.MlmEvaluator(
        recipes.DATA / "text.txt",
        weights=recipes.PRETRAINED,
        lr=2e-3,  # which versions before had for a checkpoint too
        length=16,
        cache=tmp_path,
        half="all",
    )
    assert judge.protocol == stored["protocol"]


def test_stored_checkpoint_is_not_trained_again(tmp_path: Path, monkeypatch, capsys) -> None:
    out = Path(shutil.copytree(recipes.PRETRAINED, tmp_path / "model"))
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    code, printed = command(monkeypatch, capsys, *recipes.pretraining(out))
    assert code == 0
    assert "holds this model already" in printed
    same = (out / "model.safetensors", recipes.PRETRAINED / "model.safetensors")
    assert same[0].read_bytes() == same[1].read_bytes()


# -- the rest ----------------------------------------------------------------------------------
def test_protocols_do_not_move(tmp_path: Path) -> None:
    assert recipes.protocols(tmp_path) == expected("protocols")


def test_kept_reports_are_found(tmp_path: Path) -> None:
    folder = shutil.copytree(recipes.CACHE, tmp_path / "cache")
    counted = recipes.Counted(recipes.planted())
    reports = ms.Cached(counted, folder)(masks.star(), seed=7, workdir=tmp_path)
    assert [[report.step, dict(report.values)] for report in reports] == expected("cache")
    assert counted.calls == 0


def test_importance_is_read_as_it_was_written() -> None:
    found = ms.Importance.load(recipes.HERE / "importance.safetensors")
    rows = recipes.table(found.frame())
    for row, known in zip(rows, expected("importance"), strict=True):
        assert_close(row, known, rel=1e-6)
