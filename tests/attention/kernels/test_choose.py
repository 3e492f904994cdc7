"""The choice of a kernel: a rule, the same every time, held against what was measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from mask_trees import sized_trees

from masksearch import masks
from masksearch.attention.kernels.choose import choose, choose_on_cpu, choose_on_cuda

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def chosen(mask: masks.Mask, length: int, **other: object) -> Any:
    given: dict[str, Any] = {"device": "cpu", "trains": False} | other
    return choose(mask, length, **given)


# -- what auto takes ---------------------------------------------------------------------------
@pytest.mark.parametrize("machine", ["attention", "attention_amd_epyc"])
def test_the_rule_takes_what_was_measured_to_be_fast(machine):
    """Within 10 % of the faster of SDPA and block gather, in rounds that compare them in turns."""
    rows = json.loads((RESULTS / f"{machine}.json").read_text())["kernels"]["rows"]
    assert len(rows) == 80
    for row in rows:
        taken, _ = choose_on_cpu(row["length"], row["block_density"])
        assert taken == row["auto"]["backend"]  # whose distance was recorded
        assert row["auto"]["over_fastest_uncompiled"] <= 1.1


# -- measures ----------------------------------------------------------------------------------
@pytest.mark.slow
@settings(max_examples=12)
@given(sized_trees())
def test_densities_are_those_of_the_mask(sized):
    length, mask = sized
    single = masks.layer_of(mask, 0)
    made = chosen(single, length)
    assert made.density == pytest.approx(single.density(length))
    assert made.block_density == float(single.dense(length)[0].any(2).any(1).double().mean())
    assert made.length == length


# -- what is asked for -------------------------------------------------------------------------
@pytest.mark.parametrize("length", [64, 2048])
@pytest.mark.parametrize("backend", ["sdpa", "gather", "flex"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_a_request_is_honoured(backend, length, device):
    made = chosen(masks.window(3), length, requested=backend, device=device)
    assert made.backend == backend
    assert f'backend="{backend}" was asked for' in made.reason


@pytest.mark.parametrize("requested", ["auto", "sdpa", "gather", "flex"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_mask_that_keeps_everything_is_plain_sdpa(requested, device):
    made = chosen(masks.full(), 2048, requested=requested, device=device)
    assert (made.backend, made.density, made.block_density) == ("dense", 1, 1)


def test_flex_that_cannot_train_says_so():
    window = masks.window(3)
    assert "no backward pass" in chosen(window, 64, requested="flex", trains=True).reason
    assert "no backward" not in chosen(window, 64, requested="flex").reason
    on_cuda = chosen(window, 64, requested="flex", trains=True, device="cuda")
    assert "no backward" not in on_cuda.reason


# -- other devices -----------------------------------------------------------------------------
@pytest.mark.parametrize("trains", [False, True])
def test_cuda_takes_flex_where_it_has_less_to_do(trains):
    place, half = torch.device("cuda", 0), torch.bfloat16
    made = chosen(masks.window(64), 4096, device=place, trains=trains, dtype=half)
    assert made.backend == "flex"
    assert made.reason == (
        "0% of its blocks are kept whole, 9% in part: in bfloat16 FlexAttention's work is 0.73 "
        "of a dense mask's, less than 1"
    )
    wide = masks.window(64) | masks.global_tokens(1)
    made = chosen(wide, 4096, device=place, trains=trains)
    assert made.backend == "sdpa"
    assert made.reason == (
        "0% of its blocks are kept whole, 15% in part: in float32 FlexAttention's work is 0.15 "
        "of a dense mask's; it pays below 0.14"
    )
    for mask in (masks.strided(4), masks.random_keys(2, seed=0), ~masks.window(0)):
        for dtype in (half, torch.float16, torch.float32, torch.float64):
            made = chosen(mask, 1024, device=place, trains=trains, dtype=dtype)
            assert made.backend == "sdpa"
    short = masks.block_layout(torch.eye(8, dtype=torch.bool), 128)
    assert chosen(short, 1024, device=place, dtype=half).backend == "flex"
    assert chosen(masks.cropped(short, 1024), 1023, device=place, dtype=half).backend == "sdpa"
    assert "computes no float64" in chosen(short, 1024, device="cuda", dtype=torch.float64).reason


def test_the_rule_for_cuda_takes_what_was_measured_to_be_fast():
    """Of 24 masks in two types, and of layouts from 1,024 positions on, on one NVIDIA H200."""
    found = json.loads((RESULTS / "card.json").read_text())
    cells = {}
    for row in found["kernels"]["rows"]:
        if row["mask"] != "no mask":
            cell = cells.setdefault((row["dtype"], row["length"], row["mask"]), {})
            cell[row["backend"]] = row["forward_backward"]["ms"]
            cell |= {name: row[name] for name in ("kept_blocks", "kept_whole") if name in row}
    over = []
    for (dtype, length, _), cell in cells.items():
        whole = cell["kept_whole"]
        partial, kind = cell["kept_blocks"] - whole, getattr(torch, dtype)
        taken, _ = choose_on_cuda(length, whole, partial, kind)
        over.append(cell[taken] / min(cell["sdpa"], cell["flex"]))
    for row in found["latency"]["rows"]:
        if row["length"] >= 1024:
            times = {"sdpa": found["latency"]["lengths"][str(row["length"])]["sdpa"]["ms"]}
            times["flex"] = row["ms"]
            whole = row["block_density"]
            taken, _ = choose_on_cuda(row["length"], whole, 0.0, torch.bfloat16)
            over.append(times[taken] / min(times.values()))
    assert len(over) == 48 + 150
    assert max(over) == 1


def test_block_density_is_of_the_blocks_that_the_device_computes():
    tiles = torch.rand(32, 32, generator=torch.Generator().manual_seed(0)) < 0.1
    mask = masks.table(tiles.repeat_interleave(64, -1).repeat_interleave(64, -2))
    pairs = tiles.view(16, 2, 16, 2).any(3).any(1)
    assert chosen(mask, 2048).block_density == float(tiles.double().mean())
    assert chosen(mask, 2048, device="cuda").block_density == float(pairs.double().mean())


def test_devices_without_figures_take_sdpa():
    made = chosen(masks.window(64), 4096, device="mps")
    assert made.backend == "sdpa"
    assert 'backend="gather"' in made.reason


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("length", [1, 64, 128, 255])
def test_nothing_sparse_below_256(length, device):
    assert chosen(masks.causal() & masks.window(0), length, device=device).backend in (
        ("sdpa", "dense") if length == 1 else ("sdpa",)
    )
