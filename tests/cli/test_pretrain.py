"""`masksearch pretrain`: what it writes, that it goes on, and one line for mistakes."""

import csv
import errno
import json
import random
from pathlib import Path

import pytest
import torch
from other_process import python
from safetensors.torch import load_file, save_file

from masksearch import attached, load_mask, load_pretrained, masks
from masksearch.models.pretrained import open_pretrained
from masksearch.training.checkpoints import Checkpoints

SMALL = "--steps 6 --size nano --length 16 --set batch=4 --set vocabulary=64".split()


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A file of text, and a cache of its own."""
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    drawn = random.Random(0)
    words = ["the", "mask", "sees", "a", "window", "of", "keys", "and", "one", "star"]
    lines = [" ".join(drawn.choices(words, k=9)) + " ." for _ in range(600)]
    documents = ["\n".join(lines[start : start + 3]) for start in range(0, 600, 3)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture
def run(command):
    """What the command says."""
    return lambda *words: "".join(command("pretrain", *words))


@pytest.mark.slow
def test_one_run_writes_a_model_that_others_read(tmp_path, text, run):
    out = tmp_path / "out"
    said = run(
        "window(2)", "--corpus", text, "--out", out, *SMALL, "--set", "pretraining=mlm+next"
    )
    assert "step 6  held-out loss" in said
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "command.json", "config.json", "curve.csv", "mask.json", "mask.png",
        "masksearch.json", "model.safetensors", "settings.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert load_mask(out / "mask.json") == masks.window(2)
    assert attached(load_pretrained(out)) == {"self": masks.window(2)}
    stored = json.loads((out / "settings.json").read_text())
    assert (stored["mask"], stored["seed"], stored["settings"]["steps"]) == ("window(2)", 0, 6)
    rows = list(csv.DictReader((out / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["1", "3", "6"]
    assert set(rows[0]) == {"step", "loss", "pair_loss", "pair_accuracy"}
    start = open_pretrained(out)
    assert (start.layers, start.positions, start.has_pair_head) == (1, 16, True)
    assert "holds this model already" in run(
        "window(2)", "--corpus", text, "--out", out, *SMALL, "--set", "pretraining=mlm+next"
    )


@pytest.mark.slow
def test_the_written_model_has_the_loss_of_the_curve(tmp_path, text, run):
    """Read back as a checkpoint and judged without a step, it scores what the curve says."""
    from masksearch.evaluators.mlm import MlmEvaluator

    out = tmp_path / "out"
    run("window(2)", "--corpus", text, "--out", out, *SMALL, "--set", "micro_batches=2")
    last = list(csv.DictReader((out / "curve.csv").open()))[-1]
    judge = MlmEvaluator(text, weights=out, steps=0, length=16, batch=4, split="all")
    (report,) = judge(masks.window(2), seed=0, workdir=tmp_path / "judge")
    assert report.values["loss"] == pytest.approx(float(last["loss"]), abs=2e-6)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, text, monkeypatch, run, command):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = ("--corpus", text, *SMALL, "--set", "checkpoint_seconds=0")
    run("star", "--out", whole, *options)

    class Killed(BaseException):
        pass

    saved = Checkpoints.save

    def killing(self: Checkpoints, step: int, *given: object) -> Path:
        made = saved(self, step, *given)
        if step == 4:
            raise Killed
        return made

    monkeypatch.setattr(Checkpoints, "save", killing)
    with pytest.raises(Killed):
        run("star", "--out", broken, *options)
    monkeypatch.setattr(Checkpoints, "save", saved)
    said = command.refused("pretrain", "full", "--out", broken, *options)
    assert "holds another run; not the same: mask" in said
    assert not (broken / "model.safetensors").exists()
    assert Checkpoints(broken, "pretraining").files()
    run("star", "--out", broken, *options)
    assert (broken / "curve.csv").read_text() == (whole / "curve.csv").read_text()
    one, other = (load_file(f / "model.safetensors") for f in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not Checkpoints(broken, "pretraining").files()


@pytest.mark.slow
def test_preset_runs(tmp_path, text, run):
    out = tmp_path / "out"
    run("full", "--corpus", text, "--out", out, *SMALL, "--preset", "sparsebert",
        "--set", "micro_batches=2")  # fmt: skip
    stored = json.loads((out / "settings.json").read_text())["settings"]
    assert (stored["optimiser"], stored["pretraining"], stored["size"]) == (
        "lamb", "mlm+next", "nano"
    )  # fmt: skip


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path, text, command):
    out = tmp_path / "out"
    given = ("--corpus", text, "--out", out, *SMALL)
    for option, value, message in (
        ("--size", "huge", "unknown model size 'huge'"),
        ("--set", "optimiser=adam", "unknown optimiser 'adam'"),
        ("--preset", "bert", "unknown preset 'bert'"),
    ):
        assert message in command.refused("pretrain", "star", *given, option, value)
    assert "no" in command.refused("pretrain", "star", "--corpus", tmp_path / "no", "--out", out)
    assert "window" in command.refused("pretrain", "windo(1)", *given)
    assert not out.exists()
    said = command.refused("pretrain", "star", *given, "--set", "lr=1e30")
    assert "loss became" in said
    assert "lower the learning rate" in said


@pytest.mark.slow
def test_a_folder_of_another_run_is_refused(tmp_path, text, run, command):
    out = tmp_path / "out"
    run("star", "--corpus", text, "--out", out, *SMALL)
    before = (out / "model.safetensors").read_bytes()
    given = ("--corpus", text, "--out", out, *SMALL)
    said = command.refused("pretrain", "full", *given, "--seed", 1, "--set", "lr=0.5")
    assert "holds another run; not the same: mask, seed, lr. Repeat its command" in said
    settings = (out / "settings.json").read_text()
    earlier = json.loads(settings) | {"protocol": "of a head of before"}
    (out / "settings.json").write_text(json.dumps(earlier))
    said = command.refused("pretrain", "star", *given)
    assert "another run; not the same: the text, or the version of masksearch. Repeat" in said
    (out / "settings.json").write_text("{", encoding="utf-8")
    assert "settings.json is damaged" in command.refused("pretrain", "star", *given)
    (out / "settings.json").unlink()
    assert "a model of another origin" in command.refused("pretrain", "star", *given)
    assert (out / "model.safetensors").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    save_file({"a": torch.ones(1)}, other / "model.safetensors")
    given = ("--corpus", text, "--out", other, *SMALL)
    assert "a model of another origin" in command.refused("pretrain", "star", *given)


@pytest.mark.slow
def test_a_full_disk_is_one_line(tmp_path, text, monkeypatch, command):
    from transformers import BertForMaskedLM

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr(BertForMaskedLM, "save_pretrained", full)
    said = command.refused("pretrain", "star", "--corpus", text, "--out", out, *SMALL)
    assert "No space left on device" in said
    assert not (out / "model.safetensors").exists()
    monkeypatch.undo()
    assert (out / "curve.csv").exists()


@pytest.mark.nightly
def test_two_processes_write_one_model(tmp_path, text, run):
    run("window(2)", "--corpus", text, "--out", tmp_path / "one", *SMALL)
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "masksearch", "pretrain", "window(2)", "--corpus", text]
    both = python(*command, "--out", tmp_path / "two", *SMALL, env=settings, timeout=500)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("held-out loss") == 1
    curves = [
        [float(row["loss"]) for row in csv.DictReader((tmp_path / name / "curve.csv").open())]
        for name in ("one", "two")
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert all(
        torch.allclose(one[name], other[name], atol=1e-4) for name in one if "key.bias" not in name
    )
    settings = [json.loads((tmp_path / n / "settings.json").read_text()) for n in ("one", "two")]
    assert settings[0] == settings[1]


@pytest.mark.slow
def test_an_interrupted_command_is_named_and_can_be_resumed(tmp_path, text, monkeypatch, command):
    out, save = tmp_path / "out", Checkpoints.save

    def interrupting(self: Checkpoints, step: int, *given: object) -> Path:
        path = save(self, step, *given)
        raise KeyboardInterrupt if step < 6 else AssertionError
        return path

    words = ["window(2)", "--corpus", text, "--out", out, *SMALL, "--set", "checkpoint_seconds=0"]
    monkeypatch.setattr(Checkpoints, "save", interrupting)
    code, _, said = command.run("pretrain", *words)
    assert code == 130
    assert (
        said.splitlines()[-1]
        == f"stopped; what was finished is kept. Go on with: masksearch resume {out}"
    )
    monkeypatch.setattr(Checkpoints, "save", save)
    assert "step 6  held-out loss" in "".join(command("resume", out))
    refused = command.refused("resume", out, "--trials", 3)
    assert "holds a pretrain, which takes no --trials" in refused


@pytest.mark.slow
def test_a_distilled_encoder_is_written_without_a_head(tmp_path, text, run):
    from toy_sentences import WORDS, write_sentences

    start, out = write_sentences(tmp_path / "toy") / "checkpoint", tmp_path / "out"
    own = tmp_path / "words.txt"
    own.write_text("\n\n".join(" ".join(WORDS[at : at + 9]) for at in range(70)) * 8)
    said = run(
        *("window(2)", "--corpus", own, "--out", out, "--steps", "2", "--length", "16"),
        *("--set", "batch=4", "--weights", start, "--set", "pretraining=distil"),
    )
    assert "step 2  held-out loss" in said
    assert attached(load_pretrained(out)) == {"self": masks.window(2)}
    assert not open_pretrained(out).has_head
