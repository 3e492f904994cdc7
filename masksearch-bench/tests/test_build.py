"""Tables are built as the evaluator judges, go on after a stop, and travel."""

import dataclasses
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_table import spec_of

import masksearch as ms
from masksearch_bench import build, judge, load, strategy
from masksearch_bench.builder import CELLS, environment
from masksearch_bench.tree import fits, tree_values
from masksearch_decoders import CausalEvaluator, kv_bytes
from masksearch_decoders.tasks.recall import Recall

PACKAGE = Path(__file__).parents[2] / "masksearch-bench" / "masksearch_bench"


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["head", "layer"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_tree_says_what_the_evaluator_says(learnt, tmp_path, name, unit):
    spec = spec_of(learnt[name], unit=unit)
    assert fits(spec.judge, spec.units)
    found = dict(tree_values(spec.judge, spec.units, spec.choices()))
    assert list(found) == spec.choices()
    for choice, values in found.items():
        *_, last = spec.judge(spec.units.mask(choice), seed=0, workdir=tmp_path)
        for key, value in values.items():
            assert value == pytest.approx(last.values[key], abs=2e-6), (choice, key)


@pytest.mark.nightly
def test_a_table_is_built_and_goes_on(spec, tmp_path, monkeypatch):
    path = build(spec, tmp_path)
    table = load(path)
    assert table.complete
    assert len(table) == 16
    for tokens, split in (
        ("calibration", "validation"),
        ("validation", "holdout"),
        ("test", "test"),
    ):
        judge = spec.judge.on(split)
        for choice in ("0000", "0110", "1111"):
            *_, last = judge(table.mask(choice), seed=0, workdir=tmp_path)
            cell = table.query(choice, tokens)
            assert cell["nll"] == pytest.approx(last.values["nll"], abs=2e-6)
            assert cell["kl"] == pytest.approx(last.values["kl"], abs=2e-6)
    assert table.sheet.dense_bytes.keys() == {
        f"{cache_layout}/{length}" for cache_layout in ("mask", "head") for length in (64, 128)
    }
    before = path.read_bytes()
    [first, *_] = sorted((tmp_path / "tiny.run").glob(f"trials/**/{CELLS}"))
    kept = first.stat().st_mtime_ns
    path.unlink()
    assert build(spec, tmp_path).read_bytes() == before
    assert first.stat().st_mtime_ns == kept  # nothing was judged again


@pytest.mark.nightly
def test_what_fails_is_missing_and_the_rest_is_kept(learnt, tmp_path):
    spec = spec_of(learnt["llama"])
    build(spec, tmp_path)
    parts = sorted((tmp_path / "tiny.run").glob(f"trials/**/{CELLS}"))
    parts[1].unlink()  # as a trial that has failed leaves none
    table = load(build(spec, tmp_path))
    assert not table.complete
    assert 0 < len(table) < 16
    with pytest.raises(ms.errors.DataError, match="not complete"):
        table.optimum(0.9)


@pytest.mark.slow
def test_layers_are_counted_in_the_engines_accounts(learnt, tmp_path):
    spec = spec_of(learnt["qwen3"], unit="layer")
    table = load(build(spec, tmp_path))
    assert len(table) == 4
    assert {"mask/128", "head/64", "transformers/128"} <= set(table.costs)
    cell = table.query("01", cost="transformers/128")
    held = kv_bytes(table.mask("01"), spec.judge.config, 128, cache_layout="transformers")
    assert cell.share == pytest.approx(held.share)


@pytest.mark.nightly
def test_free_units(learnt, tmp_path):
    spec = spec_of(learnt["llama"], free=("l0.h1", "l1.h0"))
    table = load(build(spec, tmp_path))
    assert sorted(table.cells.choice) == ["00", "01", "10", "11"]
    assert table.choice_of(table.mask("01")) == "01"
    with pytest.raises(ValueError, match="changes units that table tiny leaves at full"):
        table.choice_of(spec.units.mask((0, 1, 1, 1)))
    lowest = spec_of(learnt["llama"], free=("l0.h1", "l1.h0"), rest=0, name="lowest")
    table = load(build(lowest, tmp_path))
    wanted = lowest.units.mask((0, 0, 1, 0))
    assert table.mask("01") == wanted
    assert table.choice_of(wanted) == "01"
    *_, last = lowest.judge(wanted, seed=0, workdir=tmp_path)
    assert table.query("01")["nll"] == pytest.approx(last.values["nll"], abs=2e-6)
    assert table.sheet.dense["test"]["nll"] < table.query("11", "test")["nll"]  # all 4 in full
    two = spec_of(learnt["llama"], tokens=("calibration", "test"), free=("l0.h1",), name="two")
    table = load(build(two, tmp_path))
    assert table.query("1", "test")["nll"] > 0
    assert table.regret("1", 1.0) == 0
    for ask in (
        lambda: table.query("1", "validation"),
        lambda: table.optimum(1.0, tokens="validation"),
        lambda: table.front("validation"),
        lambda: table.evaluator("validation"),
    ):
        with pytest.raises(ms.errors.UnknownNameError, match=r"'validation'.*calibration, test"):
            ask()
    for wrong, message in (
        ({"free": ("l9.h0",)}, r"got l9\.h0"),
        ({"rest": 2}, "a level from 0 to 1, got 2"),
        ({"tokens": ("test",)}, "tokens are calibration and others of .*got \\('test'"),
        ({"tokens": ("calibration", "tests")}, "others of calibration, validation, test"),
    ):
        with pytest.raises(ValueError, match=message):
            spec_of(learnt["llama"], **wrong)


@pytest.mark.slow
def test_what_fits_no_tree_is_asked_one_by_one(learnt, tmp_path):
    spec = spec_of(learnt["llama"], free=("l0.h1",))
    judge = dataclasses.replace(spec.judge, precision="bfloat16")
    spec = dataclasses.replace(spec, judge=judge)
    assert not fits(judge, spec.units)
    table = load(build(spec, tmp_path))
    for choice in ("0", "1"):
        *_, last = judge(table.mask(choice), seed=0, workdir=tmp_path)
        assert table.query(choice)["nll"] == np.float32(last.values["nll"])


@pytest.mark.slow
def test_the_command_builds(learnt, program, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from tiny_table import spec_of\n"
        f"def tables():\n    return [spec_of({str(learnt['llama'])!r}, free=('l0.h0',))]\n"
    )
    code, out, _ = program("build", "mine.py:tables", "--out", "made")
    assert code == 0
    assert "wrote made/tiny.parquet" in out
    assert len(load(tmp_path / "made" / "tiny.parquet")) == 2


# -- the package of tables -----------------------------------------------------------------------
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["recall-1", "recall-4", "recall-17", "windows-4", "windows-7"])
def test_cells_are_judged_again_as_they_stand(name):
    """Fifty drawn cells: bit for bit in the environment that judged them, elsewhere to 1e-4 nats,
    with the same best one wherever the next is farther away than that."""
    table = load(PACKAGE / f"{name}.parquet")
    task = Recall(pairs=6, middle=40) if name[-1] == "7" else Recall()
    folder = PACKAGE / "checkpoints" / name.replace("windows", "recall")
    settings = {"held_out_sequences": 128, "kl": "test/kl" in table.cells, "device": "cpu"}
    judge = CausalEvaluator(task, weights=folder, **settings)
    drawn = sorted(table.cells.choice.sample(50, random_state=0))
    allocations = [tuple(map(int, choice)) for choice in drawn]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        same = environment() == table.sheet.environment
        for tokens, split in (("calibration", "validation"), ("test", "test")):
            own = judge.on(split)
            assert own.protocol == table.sheet.protocols[tokens]
            found = {
                "".join(map(str, choice)): np.float32(values["nll"])
                for choice, values in tree_values(own, table.units, allocations)
            }
            wanted = table.cells[f"{tokens}/nll"][drawn]
            apart = (pd.Series(found)[drawn] - wanted).abs()
            assert apart.max() <= (0 if same else 1e-4)
            for budget in table.shares()[drawn].quantile([0.1, 0.3, 0.6, 1.0]):
                paid = wanted[table.shares()[drawn] <= budget].nsmallest(2)
                if paid.iloc[1] - paid.iloc[0] > 2e-4:
                    assert min(paid.index, key=found.__getitem__) == paid.index[0]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["windows-1", "windows-7"])
def test_exchange_finds_the_best_of_windows_that_are_not_nested(name):
    table, budgets = load(name), (0.35, 0.4, 0.5, 0.6, 0.7, 0.8)
    best = [table.optimum(budget).choice for budget in budgets]
    steps = pairwise(best)
    assert any(one > more for step in steps for one, more in zip(*step, strict=True))
    selector = strategy("allocate", 400, strategy_options={"method": "exchange"})
    rows = judge(selector, [table], budgets)
    assert rows.choice.tolist() == best
    assert rows.evaluations.max() < 250


@pytest.mark.nightly
def test_the_package_installs_and_its_tables_are_found(tmp_path):
    """As a wheel, in a folder of its own; under 20 MB, and nothing in it is a pickle."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PACKAGE.parent, source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", site, source], check=True)
    files = [path for path in site.rglob("*") if path.is_file()]
    travels = [path for path in files if path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in travels) < 20e6
    held = {path.suffix for path in (site / "masksearch_bench").rglob("*") if path.is_file()}
    assert held <= {".parquet", ".safetensors", ".json", ".py", ".pyc", ".typed", ""}
    code = (
        "from masksearch_bench import load, names\n"
        "for name in names():\n"
        "    table = load(name)\n"
        "    free = '1' * len(table.sheet.free)\n"
        "    print(name, len(table), table.complete, table.query(free).above_chance)\n"
    )
    paths = os.pathsep.join([str(site), str(PACKAGE.parents[1])])
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = found.stdout.splitlines()
    listed = subprocess.run(
        [site / "bin" / "masksearch-bench"],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {line.split()[0] for line in lines} < {*listed.stdout.split()}
    assert len(lines) >= 25
    for line in lines:
        cells = 1024 if line.startswith("smollm2-1 ") else 4096
        assert line.endswith(f" {cells} True True")
