"""Sizes beyond any model, and values of another kind: refused at once, with rule and value."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, Objective, Proposal, Report
from masksearch.executors.job import JobRun

sys.path.insert(0, str(Path(__file__).parent / "contracts"))
from toy import ToyEvaluator, space

HEADS = "per_head([" + ",".join(["full()"] * 12_000) + "])"  # 84 KB


def stored(count: int) -> str:
    return json.dumps({"kind": "per_head", "of": [{"kind": "full"}] * count})


def search(**changed):
    return ms.search(
        space, ToyEvaluator(), **{"run": "run", "trials": 2, "progress": None} | changed
    )


def compare(seeds):
    return ms.compare({"star": masks.star()}, ToyEvaluator(), run="run", seeds=seeds)


LENGTH = r"length must be at most 2\*\*22, got 1000000000"
PLANES = r"layers x heads must be at most 2\*\*15, got "
REFUSED = {
    "length of any mask": (lambda: masks.window(2).density(10**9), LENGTH),
    "length of a diagonal": (lambda: ms.masks.measure.on_diagonal(masks.full(), 10**9), LENGTH),
    "length of cells": (lambda: masks.bigbird().density(10**6),
        r"length of what is counted cell by cell must be at most 2\*\*17, got 1000000"),
    "length of a table": (lambda: masks.star().dense(10**6),
        r"length of a table of all cells must be at most 2\*\*16, got 1000000"),
    "length of a shape": (lambda: ms.Shape(10**9, 1, 1), LENGTH),
    "text as a length": (lambda: masks.star().density("8"), "whole number of positions, got '8'"),
    "layers and heads": (lambda: masks.star().dense(8, 1000, 1000), PLANES + "1000000"),
    "of a shape": (lambda: ms.Shape(8, 1000, 1000), PLANES + "1000000"),
    "of bits": (lambda: masks.toeplitz(torch.ones(300, 300, 2).bool()), PLANES + "90000"),
    "of a list": (lambda: masks.per_head([masks.full()] * 40_000), PLANES + "40000"),
    "of a file": (lambda: ms.Mask.from_json(stored(100_000)),
        "a list of masks has at most 32768, got 100000"),
    "text as a size": (lambda: ms.Shape("8", 1, 1), "length must be a whole number >= 1, got '8'"),
    "NaN as the worst": (lambda: Objective("loss", "min", math.nan),
        "worst must be a number, the worst loss that counts, got nan"),
    "no values": (lambda: Report(3, {}),
        "a Report holds values by name, got an empty dict: yield"),
    "text as a step": (lambda: Report("a", {"loss": 1}),
        "a Report's step is a whole number >= 0, got 'a'"),
    "half a trial": (lambda: search(trials=2.5), "trials must be a whole number .* got 2.5"),
    "text as a seed": (lambda: search(seed="x"), "seed must be a whole number, got 'x'"),
    "a seed twice": (lambda: compare([1, 1]), r"and no seed twice, .* got \[1, 1\]"),
    "text as slots": (lambda: ms.Local(slots="2"), "slots must be a whole number >= 1, got '2'"),
    "number as an expression": (lambda: masks.parse(3), r"text such as 'window\(3\)', got 3"),
    "text as a mask, saved": (lambda: ms.save_mask("window(2)", "mask.json"),
        r"save_mask takes a mask, got 'window\(2\)'; masks.parse reads one from a text"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_value_out_of_bounds_is_refused_in_words(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError, ms.errors.MaskSearchError), match=message):
        call()
    assert not list(tmp_path.iterdir())  # before anything was written


def test_keys_by_offset_are_counted_at_lengths_beyond_any_table():
    length, reach = 100_000, 2
    kept = sum(length - abs(offset) for offset in range(-reach, reach + 1))
    assert masks.window(reach).kept(length) == kept
    before = sum(length + offset for offset in range(-reach, 1))
    assert masks.window(reach).density(length, causal=True) == before / (
        length * (length + 1) // 2
    )


@pytest.mark.nightly
def test_each_layer_and_head_of_12000_is_counted_once():
    by_head = masks.parse(HEADS)
    assert by_head.heads == 12_000
    assert by_head.density(4) == 1
    by_layer = masks.parse(HEADS.replace("per_head", "per_layer"))
    assert (by_layer & masks.causal()).kept(3) == 6 * 12_000


@pytest.mark.slow
def test_a_text_is_one_constraint(tmp_path):
    study = search(run=tmp_path, trials=4, constraints="sparsity >= 0.9")
    again = search(run=tmp_path, trials=4, constraints=["sparsity >= 0.9"])
    assert [r.status for r in study.records()] == [r.status for r in again.records()]
    assert all(record.measures["sparsity"] >= 0.9 for record in study.frontier())


@dataclass(frozen=True)
class Talkative(ToyEvaluator):
    reports: int = 1
    values: int = 1

    def __call__(self, mask, *, seed, workdir):
        for step in range(self.reports):
            yield Report(step, {"loss": 1.0} | {f"v{i}": 0.0 for i in range(1, self.values)})


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"reports": 10_001}, "got report 10001 with 1: report less often, or write to workdir"),
        ({"values": 1001}, "at most 10000 reports of at most 1000 values, got report 1 with 1001"),
    ],
)
def test_a_trial_that_reports_too_much_fails_with_the_bound(size, message, tmp_path):
    def judge(size):
        proposal = Proposal(0, Evaluate(masks.star()), seed=0)
        return JobRun(proposal, Talkative(**size), tmp_path).run()

    record = judge(size)
    assert record.status == "failed"
    assert message in record.error
    assert judge({name: number - 1 for name, number in size.items()}).status == "done"
