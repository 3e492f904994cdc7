"""The benchmark of sparse attention runs, and its figures are what they say."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from masksearch import masks
from masksearch.contracts import Shape
from masksearch.masks.measure import measures

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULES = ("rounds", "attention_kernels", "attention_models", "attention_tables", "attention")


@pytest.fixture
def load(monkeypatch):
    """Loads a module of benchmarks/ as the scripts do, by its bare name."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield module
    for name in (*MODULES, "proxy_sides"):
        sys.modules.pop(name, None)


@pytest.fixture
def kernels(load):
    return load("attention_kernels")


@pytest.fixture
def models(load):
    return load("attention_models")


@pytest.fixture
def tables(load):
    return load("attention_tables")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=FOLDER.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# -- how it measures ---------------------------------------------------------------------------
def test_sides_take_turns_and_ratios_are_of_one_round(load, monkeypatch):
    rounds = load("rounds")
    now, slowness, calls = 0.0, {"dense": 4.0, "own": 1.0}, []

    def side(name: str):
        def call() -> None:
            nonlocal now
            calls.append(name)
            now += slowness[name] * (10 if len(calls) > 8 else 1)  # then the load rises

        return call

    monkeypatch.setattr(rounds, "clock", lambda place: now)
    sides = {name: side(name) for name in slowness}
    times = rounds.interleaved(sides, 5, 1e9, torch.device("cpu"))
    warm, measured = calls[:4], calls[4:]
    assert warm == ["dense", "dense", "own", "own"]
    assert measured == ["dense", "own", "own", "dense"] * 2 + ["dense", "own"]
    assert rounds.faster(times, "dense", "own") == {"median": 4.0, "low": 4.0, "high": 4.0}
    assert times["own"] == [1.0, 1.0, 10.0, 10.0, 10.0]


def test_short_calls_are_repeated_and_long_rounds_stop(load, monkeypatch):
    rounds = load("rounds")
    now, count = 0.0, 0

    def quick() -> None:
        nonlocal now, count
        now, count = now + 0.001, count + 1

    monkeypatch.setattr(rounds, "clock", lambda place: now)
    times = rounds.interleaved({"quick": quick}, 50, 0.09, torch.device("cpu"))
    assert times["quick"] == pytest.approx([0.001] * 5)  # 20 calls each: 0.1 s are over
    assert count == 2 + 5 * 20
    assert len(rounds.interleaved({"quick": quick}, 50, 0.0, torch.device("cpu"))["quick"]) == 3


# -- what it measures --------------------------------------------------------------------------
@pytest.mark.parametrize("percent", [50, 75, 90, 95])
def test_random_blocks_have_the_density_that_their_name_says(kernels, percent):
    layout = kernels.random_blocks(32, percent / 100, heads=3)
    assert layout.float().mean().item() == pytest.approx(1 - percent / 100, abs=1 / 32**2)
    assert layout.diagonal(dim1=1, dim2=2).all()
    assert not torch.equal(layout[0], layout[1])
    assert torch.equal(layout, kernels.random_blocks(32, percent / 100, heads=3))
    mask = masks.block_layout(layout, 4)
    assert mask.dense(126)[0].shape == (3, 126, 126)
    found = measures(mask, Shape(126, 1, 3), block=4)
    assert found["block_density"] == pytest.approx(layout.float().mean().item())


@pytest.mark.parametrize("trains", [False, True])
def test_a_cell_compares_equal_results(kernels, trains):
    place = torch.device("cpu")
    setting = kernels.Setting(place, (96,), ("sdpa", "gather"), 2, 0.0, 16)
    found = kernels.cell("mixture", kernels.mixture(96, 16), 96, setting, trains)
    gather = found["backends"]["gather"]
    assert 0 < gather["error"] < 1e-5
    assert found["backends"]["sdpa"]["error"] == 0
    assert gather["share_of_ideal"] == pytest.approx(
        gather["speedup"]["median"] * found["block_density"]
    )
    assert found["auto"]["backend"] == "sdpa"  # below 256 positions
    assert found["auto"]["over_fastest"] > 0
    assert found["rounds"] == 2


def test_sides_of_whole_models_differ_in_their_masks_alone(models):
    work = models.Work(96, 1, "nano", 50, 8, "cpu")
    batch = models.batch_of(work)
    assert (batch["labels"] != -100).any()
    outputs = {}
    for side in models.sides_of(work):
        model = models.built(work, side)
        outputs[side] = models.forward(work, model)()
        assert outputs[side].shape == (1, 96, 64)
        call = models.training(work, model)
        assert call() > call()  # it learns its one batch
    own = [output for side, output in outputs.items() if "Hugging" not in side]
    assert len(own) == 6
    assert len(outputs) == 8
    assert all(not torch.allclose(output, own[0]) for output in own[1:])


# -- what it writes ----------------------------------------------------------------------------
def figure(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 0.1, "high": median + 0.1}


def made_up(tables: ModuleType) -> dict[str, object]:
    """A JSON with some goals met and some missed."""
    cells = [
        {
            "mask": mask,
            "length": 4096,
            "trains": trains,
            "density": 0.1,
            "block_density": 0.1,
            "backends": {
                name: {
                    "speedup": figure(speed),
                    "share_of_ideal": speed * 0.1,
                    "error": 1e-7,
                    "prepare_seconds": 0.5,
                    "first_call_seconds": 0.25,
                }
                for name, speed in (("sdpa", 0.5), ("gather", gather))
            },
            "auto": {"backend": taken, "over_fastest": over},
        }
        for mask, trains, gather, taken, over in (
            ("random blocks, 90 %", False, 6.0, "gather", 1.2),
            ("window 64", False, 9.0, "gather", 1.0),
        )
    ]
    steps = [
        {
            "length": length,
            "kind": "train step",
            "sides": {
                "dense": {"speedup": figure(1), "peak_bytes": 3 << 20},
                "random blocks, 95 %": {"speedup": figure(speed), "backends": ["sdpa", "gather"]},
            },
        }
        for length, speed in ((128, 1 / 1.25), (1024, 1.3), (2048, 1.7))
    ]
    about = {"machine": "a machine", "load": 0.25, "versions": {"torch": "9"}}
    return {"kernels": about | {"rows": cells}, "models": about | {"rows": steps}}


def test_goals_are_judged_by_the_medians(tables):
    judged = {goal.what: goal.met for goal in tables.goals(made_up(tables))}
    assert judged["forward, n = 4096, random blocks, 90 % (auto: gather)"] is True
    assert judged["forward, n = 4096, window 64 (auto: gather)"] is False
    assert judged["forward + backward, n = 4096, window 64"] is None
    assert judged["whole train step, n = 1024, random blocks, 95 %"] is True
    assert judged["whole train step, n = 2048, random blocks, 95 %"] is False
    assert judged["whole train step, n = 4096, random blocks, 95 %"] is None
    name = "train step with a fixed mask over without, n = 128, random blocks, 95 %"
    assert judged[name] is False


def test_the_readme_is_what_the_json_says(tables):
    path = FOLDER / "results" / "attention.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert tables.in_readme(text).strip() == tables.table(found).strip()
    again = tables.rewritten(text, made_up(tables))
    assert tables.in_readme(again) == tables.table(made_up(tables))
    assert tables.rewritten(again, found) == tables.rewritten(text, found)


# -- as one runs it ----------------------------------------------------------------------------


@pytest.mark.slow
def test_smoke_run(tmp_path):
    done = run(str(FOLDER / "attention.py"), "--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "attention.json").read_text(encoding="utf-8"))
    assert {"machine", "load", "versions", "seconds", "rows"} <= set(found["kernels"])
    assert len(found["kernels"]["rows"]) == 2 * 10 * 2
    assert [row["length"] for row in found["models"]["rows"]] == [64, 64, 128]
    assert all(
        row["error"] < 1e-5
        for cell in found["kernels"]["rows"]
        for row in cell["backends"].values()
    )
    assert "| what | goal |" in done.stdout
    assert (tmp_path / "attention.png").stat().st_size > 1000


def test_the_command_knows_every_benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("all_benchmarks", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    scripts = {
        path.stem
        for path in FOLDER.glob("*.py")
        if "argparse" in path.read_text(encoding="utf-8") and path.stem != "__main__"
    }
    assert {script.name for script in module.SCRIPTS} == scripts
