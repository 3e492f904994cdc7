"""Benchmarks and the planted DAM experiment: what they measure, and that their smoke runs end."""

import csv
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_decoder import tiny_decoder, written_text
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.planted_runs import recovery
from masksearch import masks
from masksearch.attention.kernels.flex import FlexPlan
from masksearch.contracts import Shape
from masksearch.masks.measure import measures
from masksearch.models.encoders import MaskedLanguageModel, encoder

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
PLANTED = ROOT / "experiments" / "03_dam_planted" / "run.py"


@pytest.fixture
def load(monkeypatch):
    """Loads a script, with benchmarks/ importable by bare names as it is when they run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)

    def module(name: str, path: Path | None = None) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, path or FOLDER / f"{name}.py")
        loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    yield module
    for name in set(sys.modules) - before:
        if FOLDER.as_posix() in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run(script: Path, *arguments: str, code: int = 0) -> str:
    """What a script prints; where it is to fail, what it says of that."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr[-2000:]
    return done.stderr if code else done.stdout


# -- how it measures ---------------------------------------------------------------------------
@pytest.mark.slow
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


@pytest.mark.nightly
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
def test_random_blocks_have_the_density_that_their_name_says(load, percent):
    kernels = load("attention_kernels")
    layout = kernels.random_blocks(32, percent / 100, heads=3)
    assert layout.float().mean().item() == pytest.approx(1 - percent / 100, abs=1 / 32**2)
    assert layout.diagonal(dim1=1, dim2=2).all()
    assert not torch.equal(layout[0], layout[1])
    assert torch.equal(layout, kernels.random_blocks(32, percent / 100, heads=3))
    mask = masks.block_layout(layout, 4)
    assert mask.dense(126)[0].shape == (3, 126, 126)
    found = measures(mask, Shape(126, 1, 3), block=4)
    assert found["block_density"] == pytest.approx(layout.float().mean().item())


def test_a_plan_of_a_layout_is_that_of_its_mask(load):
    load("card_cells")
    kernels, position = load("card_kernels"), torch.arange(128)
    layout = load("attention_kernels").random_blocks(4, 0.5, heads=3)
    mask = masks.block_layout(layout, 32)
    mine = kernels.plan_of_layout(layout, 32, torch.device("cpu"))
    usual = FlexPlan.of_mask(mask, 128, 32)
    assert torch.equal(mine.whole, usual.whole)
    assert torch.equal(mine.partial, usual.partial)
    head = torch.arange(3)[:, None, None]
    kept = mine.predicate(torch.tensor(0), head, position[:, None], position)
    assert torch.equal(kept, mask.dense(128)[0])


def test_the_truth_is_sdpa_in_float64(load):
    load("card_cells")
    kernels = load("card_kernels")
    states, upstream = kernels.states_of(2, 24, torch.float64, torch.device("cpu"))
    for mask in (masks.star(), masks.per_head([masks.window(2), masks.causal()])):
        table = mask.dense(24)
        mine = load("attention_kernels").called(kernels.sdpa_under(table), states, upstream)
        for one, other in zip(mine, kernels.truth(states, table, upstream), strict=True):
            torch.testing.assert_close(one, other)


def test_a_fit_says_where_flex_attention_takes_as_long_as_sdpa(load):
    load("card_cells")
    kernels = load("card_kernels")
    rows = [{"block_density": at / 8, "ms": 1 + 4 * at / 8} for at in range(1, 9)]
    found = kernels.fit(rows, "ms", 3.0)
    assert found["equals_sdpa_at"] == pytest.approx(0.5)
    assert (found["base_ms"], found["slope_ms"]) == pytest.approx((1, 4))
    assert found["spearman"] == pytest.approx(1)
    assert kernels.fit(rows, "ms", 6.0)["equals_sdpa_at"] is None  # FlexAttention always wins
    assert kernels.fit(rows, "ms", 0.5)["equals_sdpa_at"] is None  # it never does
    assert kernels.fit(rows, "ms", 0.5)["over_sdpa_at_1"] == pytest.approx(10)


def test_cells_beyond_the_time_limit_are_counted_and_the_others_kept(load, tmp_path, capsys):
    cells, path = load("card_cells"), tmp_path / "card.json"
    path.write_text('{"dam": {"ratio": 2}}', encoding="utf-8")
    card = cells.Card(torch.device("cpu"), True, path, None)
    card.begin("latency", 3600.0)
    assert not card.over()
    card.add({"ms": 1.0}, "one cell")
    card.fail({"length": 5}, RuntimeError("no memory\nand more"))
    card.limit = -1.0
    assert card.over(4)
    assert card.over()
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["dam"] == {"ratio": 2}
    assert found["latency"]["left_out"] == 5
    assert found["latency"]["rows"][0] == {"ms": 1.0}
    assert "and more" in found["latency"]["rows"][1]["failed"]
    assert {"machine", "versions"} <= set(found["latency"])
    assert capsys.readouterr().out.splitlines()[0] == "one cell"


@pytest.mark.slow
@pytest.mark.parametrize("trains", [False, True])
def test_a_cell_compares_equal_results(load, trains):
    kernels, place = load("attention_kernels"), torch.device("cpu")
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


@pytest.mark.slow
def test_sides_of_whole_models_differ_in_their_masks_alone(load):
    models = load("attention_models")
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


def test_the_readme_is_what_the_json_says(load):
    tables = load("attention_tables")
    found = json.loads((FOLDER / "results" / "attention.json").read_text(encoding="utf-8"))
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert tables.in_readme(text).strip() == tables.table(found).strip()
    emptied = text.replace(tables.in_readme(text), "")
    assert (
        tables.in_readme(tables.rewritten(emptied, found)).strip() == tables.table(found).strip()
    )


def test_operations_are_those_of_the_matrices(load):
    """Against torch's own count of a forward and backward pass."""
    sides = load("proxy_sides")
    model = MaskedLanguageModel(encoder("nano", 300, 16, seed=0), seed=0)
    model.encoder.set_attn_implementation("eager")
    ids = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(16) < 4, ids, -100)
    with FlopCounterMode(display=False) as counter:
        model(ids, labels).loss.backward()
    expected = counter.get_total_flops() / ids.numel()
    assert sides.flops("nano", 16, 300, scored=0.25) == pytest.approx(expected, rel=0.05)


def test_only_counted_steps_are_in_the_figure(load, monkeypatch):
    sides = load("proxy_sides")
    times = iter([1.0, 5.0, 6.0, 8.0])
    monkeypatch.setattr(sides, "clock", lambda place: next(times))
    assert sides.timed(iter(range(4)), 4, torch.device("cpu")) == [1.0, 2.0]
    times = iter([5.0, 8.0])
    assert sides.timed(iter(range(4)), 4, torch.device("cuda")) == [1.5]


def test_finished_runs_are_read_and_not_repeated(load, tmp_path):
    runs = load("planted_runs")
    calls: list[int] = []

    def make(seed: int) -> dict[str, object]:
        calls.append(seed)
        return {"auroc": 0.25 * seed, "problems": "none, or some", "held_out": None}

    path = tmp_path / "runs.csv"
    first = [runs.Cells(path).run("A", "cell, one", seed, make) for seed in (1, 2)]
    again = runs.Cells(path)
    assert [again.run("A", "cell, one", seed, make)["auroc"] for seed in (1, 2)] == [0.25, 0.5]
    assert calls == [1, 2]
    assert [row["auroc"] for row in first] == [0.25, 0.5]
    again.run("A", "another", 1, make)
    again.run("B", "cell, one", 1, make)
    assert calls == [1, 2, 1, 1]
    kept = runs.Cells(path)
    assert list(kept.of("A")) == ["cell, one", "another"]
    assert runs.summary(kept.of("A")["cell, one"])["auroc"]["mean"] == pytest.approx(0.375)
    assert kept.of("A")["another"][0]["problems"] == "none, or some"


def test_planted_masks_reach_full_recovery_by_the_measure_used(load):
    load("planted_runs")
    experiment = load("dam_planted", PLANTED)
    for process in experiment.processes().values():
        assert recovery(process.oracle.dense(process.length).float(), process.edges) == (1, 1)


@given(st.integers(0, 10_000), st.integers(3, 4), st.integers(1, 6))
def test_recovery_matches_loops_over_pairs_and_ways_of_breaking_ties(seed, length, levels):
    random = torch.Generator().manual_seed(seed)
    probabilities = torch.randint(levels, (2, 2, length, length), generator=random) / levels
    edges = torch.rand(length, length, generator=random) < 0.3
    edges[0, 1], edges[1, 0] = True, False
    found, best = recovery(probabilities, edges), probabilities.amax((0, 1))
    cells = [(q, k) for q, k in itertools.product(range(length), repeat=2) if q != k]
    true = [best[cell].item() for cell in cells if edges[cell]]
    false = [best[cell].item() for cell in cells if not edges[cell]]
    wins = sum((a > b) + 0.5 * (a == b) for a in true for b in false)
    assert found.auroc == pytest.approx(wins / len(true) / len(false))
    lowest = sorted(true + false, reverse=True)[len(true) - 1]
    sure = [cell for cell in cells if best[cell] > lowest]
    tied = [cell for cell in cells if best[cell] == lowest]
    shares = [
        sum(edges[cell].item() for cell in (*sure, *chosen)) / len(true)
        for chosen in itertools.combinations(tied, len(true) - len(sure))
    ]
    assert found.precision == pytest.approx(sum(shares) / len(shares))


@pytest.mark.nightly
def test_dam_benchmark_smoke(tmp_path):
    text = run(FOLDER / "dam.py", "--smoke", "--out", str(tmp_path))
    found = json.loads((tmp_path / "dam.json").read_text(encoding="utf-8"))
    assert set(found) == set("ABCGHIJ")
    assert found["J"]["cells"]["128 tokens, memory"]["ratio"] > 0
    assert 0 <= found["A"]["cells"]["n = 32"]["auroc"]["mean"] <= 1
    assert found["I"]["cells"]["flip"]["ratio"] > 0
    assert "| n = 32 | 1 |" in text
    rows = (tmp_path / "dam_runs.csv").read_text(encoding="utf-8")
    run(FOLDER / "dam.py", "A", "--smoke", "--out", str(tmp_path))
    assert (tmp_path / "dam_runs.csv").read_text(encoding="utf-8") == rows


@pytest.mark.nightly
def test_dam_planted_smoke(tmp_path):
    run(PLANTED, "--smoke", "--out", str(tmp_path))
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        parts = {row["part"] for row in csv.DictReader(file)}
    assert parts == {"density", "retrain", "search", "grid", "plateaus"}
    assert (tmp_path / "planted.png").stat().st_size > 1000
    assert "## grid" in (tmp_path / "tables.md").read_text(encoding="utf-8")


@pytest.mark.nightly
def test_decode_benchmark_smoke(tmp_path):
    text = run(FOLDER / "decode.py", "--smoke", "--out", str(tmp_path))
    found = json.loads((tmp_path / "decode.json").read_text(encoding="utf-8"))
    assert [row["length"] for row in found["rows"]] == [48, 64]
    for row in found["rows"]:
        sides = row["sides"]
        assert sides["sinks"]["bytes"] == sides["window"]["bytes"] == sides["native"]["bytes"]
        assert sides["native"]["share"] == sides["native"]["bytes"] / sides["dense"]["bytes"] < 0.5
        assert sides["dense"]["faster"]["median"] == 1
    assert "| 64 | native |" in text


@pytest.mark.nightly
def test_words_benchmark_smoke(tmp_path):
    run(FOLDER / "words.py", "--smoke", "--out", str(tmp_path))
    found = json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))
    assert [row["length"] for row in found["rows"]] == [8, 16]
    assert all(row["words over table"]["median"] > 0 for row in found["rows"])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("block", [(1, 1), (16, 16), (32, 8), (8, 32)])
def test_random_tiles_are_whole_and_keep_the_diagonal(load, share, block):
    shape = Shape(50, 2, 3)
    kept = load("tiles").random_tiles(share, shape, block).dense(50)
    assert kept.diagonal(dim1=-2, dim2=-1).all()
    rows, columns = (torch.arange(50) // side for side in block)
    for tile in {*zip(rows.tolist(), columns.tolist(), strict=True)}:
        own = kept[..., rows == tile[0], :][..., columns == tile[1]].flatten(2)
        assert (own.all(-1) == own.any(-1)).all()
    if block == (1, 1):
        assert kept[0, 0].sum() == max(50, round(share * 2500))


@pytest.mark.nightly
def test_tiles_benchmark_smoke(tmp_path):
    run(FOLDER / "tiles.py", "--smoke", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "tiles.json").read_text(encoding="utf-8"))["rows"]
    sides = [(row["share"], row["backend"]) for row in rows]
    assert sides == [(0.25, "auto"), (0.25, "sdpa"), (0.0, "auto"), (0.0, "sdpa")]
    assert all(row["faster"]["median"] > 0 for row in rows)


@pytest.mark.nightly
def test_dead_tokens_benchmark_smoke(tmp_path):
    run(FOLDER / "dead_tokens.py", "--smoke", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "dead_tokens.json").read_text(encoding="utf-8"))["rows"]
    assert [row["schedule"] for row in rows] == ["last row", "late", "even", "words"]
    assert all(row["by_widths"] > 1 and row["faster"]["median"] > 0 for row in rows)


@pytest.mark.nightly
def test_judging_benchmark_on_a_tiny_decoder(tmp_path):
    words = ["=", *(f"w{number}" for number in range(12))]
    model = tiny_decoder(tmp_path / "model", words, num_hidden_layers=4, initializer_range=0.05)
    text = written_text(model, tmp_path / "text", words)
    given = ("--weights", model, "--text", text, "--length", 48, "--rounds", 2, "--out", tmp_path)
    printed = run(FOLDER / "judging.py", *map(str, given))
    found = json.loads((tmp_path / "judging.json").read_text(encoding="utf-8"))
    assert found["layers"] == 4
    assert set(found["share"]) == {"one mask", "leave one out"}
    assert all(0 < share["median"] < 100 for share in found["share"].values())
    assert "| leave one out |" in printed


@pytest.mark.nightly
def test_attention_benchmark_smoke(tmp_path):
    text = run(FOLDER / "attention.py", "--smoke", "--out", str(tmp_path))
    found = json.loads((tmp_path / "attention.json").read_text(encoding="utf-8"))
    assert {"machine", "load", "versions", "seconds", "rows"} <= set(found["kernels"])
    assert len(found["kernels"]["rows"]) == 2 * 10 * 2
    assert [row["length"] for row in found["models"]["rows"]] == [64, 64, 128]
    assert all(
        row["error"] < 1e-5
        for cell in found["kernels"]["rows"]
        for row in cell["backends"].values()
    )
    assert "| what | goal |" in text
    assert (tmp_path / "attention.png").stat().st_size > 1000


@pytest.mark.nightly
def test_card_benchmark_smoke(tmp_path):
    text = run(FOLDER / "card.py", "--smoke", "--out", str(tmp_path))
    found = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert set(found) == {"kernels", "latency", "dam", "shares", "ray", "models"}
    assert not [row for part in found.values() for row in part["rows"] if "failed" in row]
    cells = [row for row in found["kernels"]["rows"] if row["mask"] != "no mask"]
    assert len(cells) == 2 * 12 * 2
    most = {"bfloat16": 1e-2, "float32": 1e-6}
    assert all(max(row["errors"].values()) < most[row["dtype"]] for row in cells)
    assert sum(row["new_graphs"] for row in cells) == 2  # one of each type
    assert len(found["latency"]["rows"]) == 6
    assert found["latency"]["lengths"]["128"]["graphs"] == 1
    assert found["dam"]["ratio"] > 0
    assert [row["slots"] for row in found["shares"]["rows"]] == [1, 2]
    assert [row["ray"] for row in found["ray"]["rows"]] == [False, True]
    trials = found["shares"]["rows"] + found["ray"]["rows"]
    assert all(row["status"] == ["done"] * 3 for row in trials)
    assert {row["kind"] for row in found["models"]["rows"]} == {"forward", "train step"}
    assert "DAM over dense" in text
    message = run(FOLDER / "card.py", code=2)
    assert "take --device cuda, or --smoke on a CPU" in message


@pytest.mark.nightly
def test_proxy_benchmark_smoke(tmp_path):
    parts = ["sizes"]
    if importlib.util.find_spec("accelerate") is not None:  # transformers' Trainer needs it
        parts += ["pretrain", "finetune", "scores"]
    run(FOLDER / "proxy.py", *parts, "--smoke", "--out", str(tmp_path))
    found = json.loads((tmp_path / "proxy.json").read_text(encoding="utf-8"))
    assert {"machine", "load", "versions", "seconds"} <= set(found["sizes"])
    assert 0 < found["sizes"]["nano"]["share_of_matrix_product"] < 1
    assert "unknown part speed; known: pretrain" in run(FOLDER / "proxy.py", "speed", code=2)
    if len(parts) == 1:
        return
    for mask in ("dense", "star"):
        assert set(found["pretrain"][mask]["tokens_per_second"]) == {"own", "trainer"}
    assert found["finetune"]["ratio_to_padded"] > 0
    for values in found["scores"]["accuracy"].values():
        assert all(0 <= value <= 1 for value in values)
