"""A table: what it answers, and what it refuses."""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import optuna
import optunahub
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import masksearch as ms
from masksearch import masks
from masksearch.executors.local import is_own
from masksearch_bench import Table, TableEvaluator, load, names
from masksearch_bench.table import FORMAT, HERE, natural, write_table
from masksearch_decoders import CausalEvaluator, kv_bytes
from masksearch_decoders.tasks.recall import Recall

HEADS = {"cost": "head/8192"}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """The file as Parquet alone reads it."""
    return pq.read_table(HERE / "recall-1.parquet").to_pylist()


@pytest.mark.parametrize("heads", [0, 1, 3, 7, 12])
def test_the_optimum_is_that_of_brute_force(table, rows, heads):
    local, full = 8 * 64, 8192 * 64  # bytes of a head: 16 wide, keys and values, 2 bytes each
    budget = (heads * full + (12 - heads) * local) / (12 * full)
    best = {}
    for tokens in ("calibration", "validation", "test"):
        kept = [row for row in rows if row["choice"].count("1") <= heads]
        best[tokens] = min(kept, key=lambda row: (row[f"{tokens}/nll"], row["choice"]))
        found = table.optimum(budget, tokens=tokens, **HEADS)
        assert found.choice == best[tokens]["choice"]
        assert found["nll"] == best[tokens][f"{tokens}/nll"]
        assert found.share <= budget
    wanted = best["calibration"]["test/nll"] - best["test"]["test/nll"]
    least = table.optimum(budget, tokens="test", **HEADS).choice
    assert table.regret(least, budget, **HEADS) == pytest.approx(-wanted, abs=1e-9)
    assert table.regret(best["calibration"]["choice"], budget, **HEADS) == 0


def test_shares_are_those_of_the_masks(table):
    config = CausalEvaluator(Recall(), size="3x64x4").config
    for choice in ("000000000000", "000010000001", "111100000000", "111111111111"):
        mask = table.mask(choice)
        assert table.query(choice).share == pytest.approx(
            table.units.density(list(map(int, choice)))
        )
        for cache_layout in ("mask", "head"):
            for length in (512, 32768):
                cell = table.query(choice, cost=f"{cache_layout}/{length}")
                held = kv_bytes(mask, config, length, cache_layout=cache_layout)
                assert cell.share == pytest.approx(held.share)


@given(choice=st.lists(st.integers(0, 1), min_size=12, max_size=12))
def test_masks_are_choices_and_back(table, choice):
    text = "".join(map(str, choice))
    assert table.choice_of(table.mask(choice)) == text
    written = table.choice_of(ms.masks.parse(str(table.mask(text))))
    assert written == text


def test_a_mask_in_other_words_is_known_and_another_is_refused(table):
    assert table.choice_of(masks.full() | masks.window(3)) == "1" * 12
    with pytest.raises(ValueError, match=r"in l0\.h0 none of the masks of table recall-1: window"):
        table.choice_of(masks.window(5))


def test_the_front_is_beaten_by_no_cell(table, rows):
    front = table.front()
    shares = table.cells.pairs.to_numpy()
    scores = table.cells["calibration/nll"].to_numpy()
    for share, nll in zip(front.share, front.nll, strict=True):
        better = (shares <= share) & (scores <= nll) & ((shares < share) | (scores < nll))
        assert not better.any()
    assert front.share.is_monotonic_increasing
    assert front.nll.is_monotonic_decreasing
    assert front.choice.iloc[0] == "0" * 12


def test_dense_is_said_to_be_above_chance(table):
    cell = table.query("0" * 12)
    assert cell.above_chance
    chance = {tokens: 0.1 for tokens in table.sheet.chance}
    poor = Table(dataclasses.replace(table.sheet, chance=chance), table.cells)
    assert not poor.query("0" * 12).above_chance


def test_optuna_optimises_its_objective(table):
    study = optuna.create_study(
        directions=table.directions, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    study.optimize(table.objective, n_trials=5)
    for trial in study.trials:
        cell = table.query(list(trial.params.values()))
        assert trial.values == [cell["nll"], cell.share]


def test_it_is_an_evaluator(table, tmp_path):
    judge = table.evaluator("validation")
    assert isinstance(judge, TableEvaluator)
    assert is_own(judge)  # so that searches ask it in the driver, and start no process
    mask = table.mask("000011000000")
    [report] = judge(mask, seed=3, workdir=tmp_path)
    assert dict(report.values) == table.query("000011000000", "validation").values
    assert judge.protocol != table.evaluator("test").protocol
    compared = ms.compare({"two": mask, "none": table.mask("0" * 12)}, judge, run=tmp_path / "run")
    assert set(compared.entries) == {"two", "none"}


# -- what it refuses -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda t: load("recall-1x"), ms.errors.UnknownNameError,
         r"'recall-1x'.*did you mean 'recall-1'"),
        (lambda t: t.query("0" * 12, "tests"), ms.errors.UnknownNameError, "did you mean 'test'"),
        (lambda t: t.optimum(0.5, "head/819"), ms.errors.UnknownNameError,
         r"did you mean 'head/8192'.*Known: pairs, head/2048"),
        (lambda t: t.optimum(0.2), ValueError, r"costs 0\.2632 of dense pairs, got budget=0\.2"),
        (lambda t: t.regret("1" * 12, 0.5), ValueError,
         r"choice 1{12} costs 1 of dense pairs, more than .* 0\.5"),
        (lambda t: t.query("0101"), ValueError,
         r"12 levels from 0 to 1, the first of l0\.h0; got 4: 0101"),
        (lambda t: t.query("000000000002"), ValueError, "got 12: 000000000002"),
        (lambda t: t.query([0] * 11 + [-1]), ValueError, "from 0 to 1"),
    ],
)  # fmt: skip
def test_mistakes_are_named(table, ask, error, message):
    with pytest.raises(error, match=message):
        ask(table)


def test_a_missing_cell_has_no_substitute_and_a_half_built_table_no_optimum(table):
    half = Table(table.sheet, table.cells.iloc[:-1])
    assert half.query("0" * 12)["nll"] == table.query("0" * 12)["nll"]
    with pytest.raises(ms.errors.DataError, match="no cell 111111111111: it holds 4,095 of 4,096"):
        half.query("1" * 12)
    for ask in (
        lambda: half.optimum(0.5),
        lambda: half.front(),
        lambda: half.regret("0" * 12, 0.5),
    ):
        with pytest.raises(ms.errors.DataError, match=r"not complete \(4,095 of 4,096 cells\)"):
            ask()


def test_every_table_has_its_hash():
    lines = map(str.split, (HERE / "SHA256SUMS").read_text().splitlines())
    stated = {name.removesuffix(".parquet"): digest for digest, name in lines}
    files = {name: path.read_bytes() for name, path in names().items()}
    assert stated == {name: hashlib.sha256(held).hexdigest() for name, held in files.items()}
    assert "recall-1" in stated


def test_files_that_are_damaged_or_changed(table, tmp_path):
    for file in ("recall-1.parquet", "SHA256SUMS"):
        shutil.copy(HERE / file, tmp_path)
    path = tmp_path / "recall-1.parquet"
    assert len(load(path)) == 4096
    write_table(Table(table.sheet, table.cells.assign(pairs=0.5)), path)
    with pytest.raises(ms.errors.DataError, match="SHA256SUMS beside it says"):
        load(path)
    (tmp_path / "SHA256SUMS").unlink()
    assert load(path).shares().eq(0.5).all()
    write_table(
        Table(dataclasses.replace(table.sheet, format="masksearch-table-9"), table.cells), path
    )
    with pytest.raises(ms.errors.DataError, match=f"masksearch-table-9.*reads '{FORMAT}'"):
        load(path)
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(ms.errors.DataError, match="no table of choices"):
        load(path)


def test_files_hold_no_pickle_and_a_datasheet(table):
    found = pq.read_table(HERE / "recall-1.parquet")
    sheet = json.loads(found.schema.metadata[b"masksearch"])
    assert sheet["planned"] == 4096
    assert {str(column.type) for column in found.columns} <= {
        "string",
        "large_string",
        "float",
        "double",
        "int64",
    }
    assert np.isfinite(found.drop_columns(["choice"]).to_pandas().to_numpy()).all()


def test_names_are_in_the_order_of_their_numbers():
    assert sorted(["b-10", "b-9", "a", "b-1", "a-2"], key=natural) == [
        "a",
        "a-2",
        "b-1",
        "b-9",
        "b-10",
    ]


# -- the problem for OptunaHub, by its own loader from a local registry -------------------------
REGISTRY = Path(__file__).parents[2] / "masksearch-bench" / "optunahub"
PLACE = REGISTRY / "benchmarks" / "maskbench"


@pytest.fixture(scope="module")
def module():
    return optunahub.load_local_module("benchmarks/maskbench", registry_root=str(REGISTRY))


def test_a_study_says_what_the_table_says(module):
    problem, table = module.Problem("recall-1", "head/8192"), load("recall-1")
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(directions=problem.directions, sampler=sampler)
    study.optimize(problem, n_trials=20)
    best = {}
    for trial in study.trials:
        choice = "".join(str(trial.params[name]) for name in table.units.names)
        cell = table.query(choice, cost="head/8192")
        assert trial.values == [cell["nll"], cell.share]
        if cell.share <= 0.5:
            best[cell["nll"]] = choice
    wanted = table.regret(best[min(best)], 0.5, "head/8192")
    assert problem.regret(study, 0.5) == wanted
    with pytest.raises(ValueError, match=r"no trial costs at most 0\.001"):
        problem.regret(study, 0.001)


@pytest.mark.nightly
def test_its_example_and_its_readme_run(module, monkeypatch, capsys):
    monkeypatch.setattr(optunahub, "load_module", lambda package: module)
    exec((PLACE / "example.py").read_text("utf-8"), {})
    assert re.findall(r"^(\w+): \d\.\d{3} nats", capsys.readouterr().out, re.M) == [
        "RandomSampler",
        "TPESampler",
    ]
    text = (PLACE / "README.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(code, {})
    assert float(capsys.readouterr().out) >= 0
    for field in ("author", "title", "description", "tags", "optuna_versions", "license"):
        assert re.search(rf"^{field}: \S", text.split("---")[1], re.M)
