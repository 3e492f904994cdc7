"""README.md: its commands and snippets run as printed, from the wheel, in an empty folder.

Two kinds are read and not run: what installs (1.8 GB; `make` does it in continuous integration),
and what takes hours. tests/test_docs_commands.py checks that their options exist.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Report

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python|text)\n(.*?)```", TEXT, re.S)
LIMIT = 300  # seconds of one command; alone on 2 cores the longest takes one minute


def commands(block: str) -> list[str]:
    """The commands of a block, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [" ".join(line.split(" #")[0].split()) for line in lines if line.strip()]


def block(kind: str, part: str) -> str:
    """The one block of that kind that holds a text."""
    [found] = [body for its, body in BLOCKS if its == kind and part in body]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Iterator[Path]:
    """An empty folder; `masksearch` and `python` are those of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(installed), prepend=os.pathsep)
        patch.setenv("PYTHONPATH", "")
        patch.setenv("MASKSEARCH_CACHE", str(folder / "cache"))
        yield folder


def run(folder: Path, command: str) -> tuple[str, str]:
    """What a line of shell prints on both outputs; it ends in time, with exit code 0."""
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


@pytest.mark.nightly
def test_first_search_finds_its_mask(folder):
    """The verdict is the one that is printed, and the mask allows more than any family."""
    snippet = block("python", "PlantedEvaluator")
    (folder / "first.py").write_text(snippet, encoding="utf-8")
    out, shown = run(folder, "python first.py")
    [line] = [line for line in out.splitlines() if line.startswith("found: ")]
    [printed] = [line for line in block("text", "found: ").splitlines() if line[:7] == "found: "]
    assert line.split("% sparse")[0] == printed.split("% sparse")[0]
    scores = [float(text.split(" score ")[1].split()[0]) for text in (line, printed)]
    assert scores[0] == pytest.approx(scores[1], abs=0.03)
    found = masks.parse(out.splitlines()[0])
    process = ms.GradedProcess()
    assert found.sparsity(process.length) >= 0.7
    assert process.expected(found) > max(
        process.expected(mask) for mask in masks.FAMILIES.values()
    )
    assert "20" in shown  # it does not work in silence


@pytest.mark.nightly
def test_three_jobs_run(folder):
    printed = ""
    for part in ("runs/try\n", "compare runs/try@", "masksearch attach"):
        for command in commands(block("bash", part)):
            printed += run(folder, command)[0]
    lines = printed.splitlines()  # compare and report print it
    line, *_ = (line for line in lines if line.startswith("dam >= 0.8: better "))
    shown = block("text", "dam >= 0.8: ").strip()
    assert re.sub(r"[\d.]+", "", line).startswith(re.sub(r"[\d.]+", "", shown))
    scores = [[float(n) for n in re.findall(r"\d\.\d{3}", text)[:4]] for text in (line, shown)]
    assert scores[0] == pytest.approx(scores[1], abs=0.1)
    assert (folder / "runs/try_compared/report.html").is_file()
    [saved] = ms.saved_masks(folder / "sparse-llama").values()
    best = ms.open_study(folder / "runs/try").best(sparsity=0.8).mask
    assert saved == best  # the jobs chain: job 3 puts on what job 1 has found
    (folder / "job.py").write_text(block("python", "load_pretrained"), encoding="utf-8")
    out, _ = run(folder, "python job.py")
    assert "table(4x64x64" in out  # what DAM has learnt for a layer of four heads
    served = AutoModelForCausalLM.from_pretrained(folder / "served")
    plan = ms.Plan.load(folder / "runs/allocate/plan.json")
    assert plan.found["cache"]["kv_bytes"] <= 0.25
    assert {*served.config.layer_types} == {"sliding_attention"}
    losses = plan.found["served"]["losses"]
    assert losses["served"] < losses["dense"] + 0.1  # it keeps what the text follows from


@pytest.mark.nightly
def test_how_often_the_first_job_beats_the_families(folder, capsys):
    """With as many of 20 seeds as README says its mask is .05 nats better than every family as
    sparse, on text that no search has seen: half a minute a search."""
    if not (folder / "data").is_dir():
        run(folder, "masksearch demo --data data")
    [job] = [line for line in commands(block("bash", "runs/try\n")) if " search " in line]
    judge = ms.CausalEvaluator(
        folder / "data/text", weights=folder / "data/llama", adapt="none", length=64
    ).on("final")
    families = [mask for mask in masks.FAMILIES.values() if mask.sparsity(64, causal=True) >= 0.8]
    rival = min(last(judge(mask, seed=0, workdir=folder / "rival")) for mask in families)
    gains = []
    for seed in range(20):
        run(folder, f"{job.replace('runs/try', f'runs/try_{seed}')} --seed {seed}")
        best = ms.open_study(folder / f"runs/try_{seed}").within(0.2)[:1]  # none is as sparse: []
        losses = [last(judge(each.mask, seed=0, workdir=folder / "found")) for each in best]
        gains.append(rival - losses[0] if losses else 0.0)
    with capsys.disabled():
        print(
            f"\nbetter by .05 nats with {sum(gain > 0.05 for gain in gains)} of 20 seeds: {gains}"
        )
    said = int(re.search(r"Of 20 such searches, (\d+) find a mask", TEXT)[1])
    assert said >= 16
    assert abs(sum(gain > 0.05 for gain in gains) - said) <= 1  # of another processor's rounding


def last(reports: Iterator[Report]) -> float:
    """The loss of the last report."""
    *_, report = reports
    return report.values["nll"]


def test_every_block_runs_or_says_why_not():
    run_here = (
        "PlantedEvaluator",
        "runs/try",
        "masksearch attach",
        "load_pretrained",
        ": better ",
    )
    read_only = ("pip install", "--slots 2")
    for _, body in BLOCKS:
        assert any(part in body for part in run_here + read_only), body


def test_install_lines_name_what_there_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(re.findall(r"masksearch\[(\w+)\]", TEXT))
    assert extras
    assert extras <= set(project["optional-dependencies"])
    assert "masksearch" in project["scripts"]
    assert project["requires-python"].removeprefix(">=") in TEXT
