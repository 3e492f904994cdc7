"""26_base: its stages at a toy size."""

import random
from pathlib import Path

import pytest
import torch
from experiment_scripts import load_script
from tiny_checkpoint import tiny_checkpoint
from toy_sentences import WORDS, write_lines
from transformers import BertConfig, BertForMaskedLM


def deep_checkpoint(folder: Path) -> Path:
    """A tiny checkpoint of six layers."""
    start = tiny_checkpoint(folder, WORDS)
    config = BertConfig.from_pretrained(start, num_hidden_layers=6)
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(start)
    return start


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")
def test_base_smoke(tmp_path, monkeypatch):
    base = load_script("26_base/base.py")
    draw = random.Random(0)
    for part, count in (("train", 900), ("dev", 120)):
        rows = [f"{' '.join(draw.choices(WORDS[40 * (n % 2) :][:40], k=14))}\t{n % 2}"
                for n in range(count)]  # fmt: skip
        write_lines(tmp_path / "data" / "glue" / "SST-2" / f"{part}.tsv",
                    ["sentence\tlabel", *rows])  # fmt: skip
    monkeypatch.setitem(base.PLAN["smoke"], "dense", {"epochs": 8, "finetune_lr": 3e-3})
    monkeypatch.setitem(base.PLAN["limits"], "fewer", [3])
    monkeypatch.setitem(base.run.PLAN["rows"], "held_out", 200)
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    words = ["--data", tmp_path / "data", "--weights", deep_checkpoint(tmp_path / "start")]
    words += ["--smoke", "--models", "2", "--tasks", "SST-2", "--runs", tmp_path / "runs"]
    words += ["--results", tmp_path / "results"]
    for _ in range(2):  # the second call finds every line
        monkeypatch.setattr("sys.argv", ["base.py", *map(str, words)])
        base.main()
    first, second = (
        base.live.lines.Lines(tmp_path / "results" / f"SST-2_{seed}.jsonl") for seed in range(2)
    )
    for own in (first, second):
        known = [
            tuple(line.get(n) for n in ("stage", "what", "rows", "name", "arm"))
            for line in own.lines
        ]
        assert len({*known}) == len(known)
        assert len(own.of(stage="ended", what="pairs")) == 1
    (ended,) = first.of(stage="ended", what="tokens")
    within = [each for each in first.of(stage="score", rows="choice") if " 3: " in each["name"]]
    assert len(within) > 10
    assert all(line["work"] <= ended["limit"] + 1e-5 for line in within)
    assert not second.of(stage="ended", what="tokens")
    drawn = [each for each in second.of(stage="score", rows="choice") if "hand" in each["name"]]
    assert len(drawn) == base.PLAN["pairs"]["families"]
    shares = second.of(stage="share")
    assert all(line["density"] <= base.PLAN["pairs"]["budget"] + 1e-4 for line in shares[1:])
