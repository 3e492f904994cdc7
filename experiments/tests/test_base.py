"""26_base: its stages at a toy size."""

import pytest
from experiment_scripts import load_script
from toy_classes import deep_checkpoint, write_two_classes


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")
def test_base_smoke(tmp_path, monkeypatch):
    base = load_script("26_base/base.py")
    write_two_classes(tmp_path / "data" / "glue" / "SST-2")
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
    families = [
        {each["name"] for each in own.of(stage="score", rows="choice") if "hand 0" in each["name"]}
        for own in (first, second)
    ]
    assert families[1] <= families[0]
    assert len(families[1]) == min(len(families[0]), base.PLAN["pairs"]["families"])
    shares = second.of(stage="share")
    assert all(line["density"] <= base.PLAN["pairs"]["budget"] + 1e-4 for line in shares[1:])
