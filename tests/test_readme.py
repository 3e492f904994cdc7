"""README.md, and the first jobs of a decoder in docs/decoder.md: commands and snippets run as
printed, from the wheel, in an empty folder.

What installs runs in a fresh clone, where there is a network. What takes hours is read and not
run: tests/test_docs.py checks that its options exist.
"""

import os
import re
import shlex
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import masksearch as ms
from masksearch import masks
from masksearch.tasks.planted.graded import GradedProcess
from masksearch_decoders.plan import Plan

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
DECODER = (ROOT / "docs" / "decoder.md").read_text(encoding="utf-8")
SMALL = DECODER.partition("## Try it on small data")[2].partition("\n## ")[0]  # a decoder's jobs
BLOCK = re.compile(r"```(bash|python|text|bibtex)\n(.*?)```", re.S)
BLOCKS = [*BLOCK.findall(TEXT), *BLOCK.findall(SMALL)]
LIMIT = 300  # seconds of one command; alone on 2 cores the longest takes one minute
INSTALLS = 3600  # ... that installs, and then runs the demonstration or the tests


def commands(block: str) -> list[str]:
    """The commands of a block, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [" ".join(line.split(" #")[0].split()) for line in lines if line.strip()]


def block(kind: str, part: str) -> str:
    """The one block of that kind that holds a text."""
    [found] = [body for its, body in BLOCKS if its == kind and part in body]
    return found


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, installed: Path, decoders: Path
) -> Iterator[Path]:
    """An empty folder; `masksearch` and `python` are those of an environment with the wheels."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(installed), prepend=os.pathsep)
        patch.setenv("PYTHONPATH", str(decoders))
        patch.setenv("MASKSEARCH_CACHE", str(folder / "cache"))
        yield folder


def run(folder: Path, command: str, limit: int = LIMIT) -> tuple[str, str]:
    """What a line of shell prints on both outputs; it ends in time, with exit code 0."""
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, timeout=limit
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


@pytest.mark.nightly
def test_two_commands_lead_from_a_clone_to_the_page_and_green_tests(tmp_path, monkeypatch):
    """With the versions of constraints.txt, which an environment of one's own takes as well."""
    try:
        socket.create_connection(("pypi.org", 443), timeout=5).close()
    except OSError as error:
        pytest.skip(f"no network to install from: {error}")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    first, *others = commands(block("bash", "git clone"))
    address, folder = re.fullmatch(r"git clone (\S+) && cd (\S+)", first).groups()
    run(tmp_path, f"git clone {shlex.quote(str(ROOT))} {folder}")
    for command in others:
        run(tmp_path / folder, command, INSTALLS)
    assert (tmp_path / folder / "runs" / "demo" / "report.html").stat().st_size > 100_000
    [alone] = commands(block("bash", "git+"))
    [own] = re.findall(r"`(pip install -c [^`]+)`", TEXT)
    python = tmp_path / folder / ".venv" / "bin" / "python"
    run(tmp_path / folder, own.replace("pip install", f"{python} -m pip install --dry-run"), 900)
    assert f"git+{address}" in alone


def test_continuous_integration_runs_the_tests_as_the_page_says():
    *_, command = commands(block("bash", "git clone"))
    assert command == "make test"
    for file in (".ci/run", ".github/workflows/tests.yml", "CONTRIBUTING.md"):
        assert command in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.nightly
def test_first_search_finds_its_mask(folder):
    """It prints the mask that is shown, which allows more than any hand-designed family; it needs
    no other distribution."""
    (folder / "first.py").write_text(block("python", "PlantedEvaluator"), encoding="utf-8")
    out, log = run(folder, "PYTHONPATH= python first.py")
    assert out.splitlines()[-1] == block("text", "window(").strip()
    found, process = masks.parse(out.splitlines()[-1]), GradedProcess()
    assert found.sparsity(process.length) >= 0.7
    assert process.expected(found) > max(
        process.expected(mask) for mask in masks.FAMILIES.values()
    )
    assert "20" in log  # it does not work in silence


@pytest.mark.nightly
def test_the_jobs_give_the_verdict_that_is_shown(folder):
    """Of three seeds of the search, by words and by figures of two digits: another processor
    rounds otherwise. What is lost to dense attention is near the margin, and another seed's words
    may end before it."""
    run(folder, "masksearch demo --data data")
    search, compare, attach, allocate = commands(block("bash", "masksearch search --strategy"))
    shown = block("text", "dam >= 0.8: ").strip()
    for seed in (1, 2, 0):  # the last one is the run of the next job
        name = f"runs/try{seed or ''}"
        run(folder, f"{search.replace('runs/try', name)} --seed {seed}")
        out, _ = run(folder, compare.replace("runs/try", name))
        line, *_ = (line for line in out.splitlines() if line.startswith("dam >= 0.8: better "))
        words = shown.partition(", loses ")[0] if seed else shown
        assert re.sub(r"[\d.]+", "", line).startswith(re.sub(r"[\d.]+", "", words))
        figures = [re.findall(r"\d+\.\d+", text) for text in (line, words)]
        rounded = [[float(number) for number in each[: len(figures[1])]] for each in figures]
        assert rounded[0] == pytest.approx(rounded[1], abs=0.2)
    run(folder, attach)
    [saved] = ms.saved_masks(folder / "sparse-llama").values()
    assert saved == ms.open_study(folder / "runs/try").best(sparsity=0.8).mask
    assert ms.load_pretrained(folder / "sparse-llama")
    out, _ = run(folder, allocate)
    assert re.search(r"budget 0\.25: window\(\d+\) in all 2 units", out)  # as the page says
    served = AutoModelForCausalLM.from_pretrained(folder / "served")
    plan = Plan.load(folder / "runs/allocate/plan.json")
    assert plan.found["cache"]["kv_bytes"] <= 0.25
    assert {*served.config.layer_types} == {"sliding_attention"}
    losses = plan.found["served"]["losses"]
    assert losses["served"] < losses["dense"] + 0.1  # it keeps what the text follows from


@pytest.mark.nightly
def test_an_encoder_gets_its_mask_and_is_used(folder):
    demo, sparsify = commands(block("bash", "masksearch demo"))
    run(folder, demo)
    out, err = run(folder, sparsify)
    assert "sparsify: SST-2: 2 classes: " in err
    shown = re.split(r"\s*\[\.\.\]\s*", block("text", "prune is taken").strip())
    assert all(part in out for part in shown)
    (folder / "use.py").write_text(block("python", "pipeline("), encoding="utf-8")
    out, _ = run(folder, "python use.py")
    assert re.search(r"\[\{'label': '\w+', 'score': [\d.]+\}\]", out)
    same = block("python", "drop_tokens=True)").replace("my-bert", "sparse-demo/run/dense")
    (folder / "same.py").write_text(same, encoding="utf-8")
    out, _ = run(folder, "python same.py")
    assert float(re.search(r"tensor\(([\d.e-]+)", out)[1]) < 1e-5


def test_every_block_runs_or_says_why_not():
    run_here = (
        "git clone",
        "git+",
        "PlantedEvaluator",
        "runs/try",
        "masksearch demo",
        "drop_tokens=True)",
        "prune is taken",
        "pipeline(",
        "window(1)",
        ": better ",
    )
    read_only = ("@software", "my-bert/")  # of one's own data: the options are those of the demo
    for _, body in BLOCKS:
        assert any(part in body for part in run_here + read_only), body


def test_a_newcomer_reads_it_in_minutes():
    """At most 700 words beside code, and no interval: these stand where its links lead."""
    words = re.sub(r"```.*?```", "", TEXT, flags=re.S)
    assert len(words.split()) <= 700
    assert not re.search(r"\[-?[\d.]+, [\d.]+\]", words)
    assert {*re.findall(r"version(?: = {|-)([\d.]+?)[}-]", TEXT)} == {ms.__version__}


def test_install_lines_name_what_there_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(",".join(re.findall(r"(?:masksearch|\.)\[([\w,]+)\]", TEXT)).split(","))
    assert "search" in extras
    assert extras <= set(project["optional-dependencies"])
    assert "masksearch" in project["scripts"]
    assert project["requires-python"].removeprefix(">=") in TEXT
