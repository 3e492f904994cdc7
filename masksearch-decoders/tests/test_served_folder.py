"""`allocate(serve=, out=)`: a folder that an engine opens, and says whether it does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from closed_schema import check_file
from tiny_decoder import letter_decoder
from transformers import AutoModelForCausalLM

import masksearch as ms
import masksearch_decoders as md
from masksearch import masks
from masksearch.errors import DataError, MaskSearchError, NativeError, UnknownNameError
from masksearch_decoders import CausalEvaluator, EngineEvaluator, Serving, folder, kv_bytes
from masksearch_decoders.plan import Plan

LOCAL = "columns(1) | window(3)"
pytestmark = pytest.mark.usefixtures("in_place")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ and text/."""
    return letter_decoder(tmp_path_factory.mktemp("letters"), "abcdefghijkl=")


def allocate(run: Path, out: Path, budget: float = 0.6, **how) -> Plan:
    small = {"length": 96, "sequences": 16, "local": LOCAL, "method": "restore"}
    small |= {"progress": None, "sinks": "calibrate", "serving": Serving(in_flight=8)}
    return md.allocate("model", "text", budget, run=run, out=out, **(small | how))


def check(folder: Path, log: str) -> tuple[int, str]:
    """What the script in the folder says of a log."""
    script = [sys.executable, str(folder / "check_serving.py")]
    done = subprocess.run(script, input=log, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sinks", ["calibrate", pytest.param("tune", marks=pytest.mark.nightly)])
def test_what_is_written_from_bfloat16_leaves_the_weights_as_they_were(sinks, tmp_path):
    def dense() -> float:
        judge = CausalEvaluator("text", weights="model", length=96, precision="bfloat16")
        return judge.score(judge.dense(0)).nll.mean().item()

    before = dense()
    how = {"serve": "transformers", "sinks": sinks, "precision": "bfloat16"}
    plan = allocate(tmp_path / "run", out := tmp_path / "served", **how)
    assert dense() == before
    assert {each.dtype for each in AutoModelForCausalLM.from_pretrained(out).parameters()} == {
        torch.float16
    }
    said = CausalEvaluator("text", weights=out, length=96, held_out_sequences=16, split="holdout")
    (report,) = said(masks.full(), seed=0, workdir=tmp_path)
    served = plan.found["served"]["losses"]["served"]
    assert served == pytest.approx(report.values["nll"], abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vllm", "sglang", "transformers"])
def test_a_folder_is_written_judged_and_opened_again(engine, tmp_path):
    out = tmp_path / "new" / "served"
    plan = allocate(tmp_path / "run", out, serve=engine)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert model.config.model_type == "granite_swa"
    assert model.config.attention_bias is (engine != "sglang")
    facts = json.loads((out / "serving.json").read_text())
    check_file(out / "serving.json", "serving")
    check_file(tmp_path / "run" / "plan.json", "plan")
    assert facts == plan.found["served"]
    said = CausalEvaluator("text", weights="model", length=96, held_out_sequences=16)
    judge = EngineEvaluator(said.on("holdout"), sinks="calibrate")
    if engine != "sglang":  # the same form, judged as any mask is
        (report,) = judge(plan.mask, seed=0, workdir=tmp_path)
        assert facts["losses"]["served"] == pytest.approx(report.values["nll"], abs=1e-4)
    said = CausalEvaluator("text", weights=out, length=96, held_out_sequences=16, split="holdout")
    (report,) = said(masks.full(), seed=0, workdir=tmp_path)
    assert facts["losses"]["served"] == pytest.approx(report.values["nll"], abs=5e-3)  # float16
    assert facts["losses"]["documents"] == plan.found["nll"]["unseen"]["documents"]
    assert facts["losses"]["dense"] == pytest.approx(plan.found["nll"]["unseen"]["dense"])
    page = (out / "SERVING.md").read_text()
    assert f"{facts['kv_bytes']:,}" in page
    assert f"{facts['losses']['served']:.4f}" in page
    assert {"vllm": "vllm serve", "sglang": "sglang.launch_server"}.get(engine, "from_pre") in page


@pytest.mark.nightly
def test_bytes_and_the_log_of_vllm(tmp_path):
    plan = allocate(tmp_path / "run", out := tmp_path / "served", serve="vllm")
    facts = plan.found["served"]
    held = kv_bytes(
        plan.mask, AutoModelForCausalLM.from_pretrained("model").config, 96,
        cache_layout="vllm", in_flight=8, dtype=torch.float16,
    )  # fmt: skip
    assert (facts["kv_bytes"], facts["dense_kv_bytes"]) == (held.bytes, held.dense_bytes)
    room = 3 * 2**30

    def log(bytes_of_one, length=96):
        return (
            f"INFO Available KV cache memory: {room / 2**30:.2f} GiB\n"
            f"GPU KV cache size: 7 tokens, Maximum concurrency for {length:,} tokens per "
            f"request: {room / bytes_of_one:.2f}x\n"
        )

    assert check(out, log(held.bytes))[0] == 0
    code, said = check(out, log(held.dense_bytes))
    assert code == 1
    assert f"{held.bytes:,}" in said
    assert check(out, log(held.bytes, 4096))[0] == 2
    assert check(out, "")[0] == 2


@pytest.mark.nightly
def test_the_log_of_sglang(tmp_path):
    allocate(tmp_path / "run", out := tmp_path / "served", serve="sglang")
    line = "SWAKVPool mem usage: 1.50 GB, swa size: 4096, full size: 8192"
    assert check(out, line)[0] == 0
    code, said = check(out, "KV Cache is allocated. #tokens: 99, K size: 1.00 GB")
    assert (code, "not freed" in said) == (1, True)
    assert check(out, "")[0] == 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gguf") is None, reason="the extra serve")
def test_a_gguf_file_and_the_log_of_llama_cpp(tmp_path):
    serving = Serving(length=4096, ubatch=64)
    plan = allocate(tmp_path / "run", out := tmp_path / "served", serve="llama.cpp",
                    serving=serving)  # fmt: skip
    assert (out / "model.gguf").stat().st_size > 0
    facts = plan.found["served"]
    full = sum(plan.units.values())
    cell = 2 * 2 * 8 * 2  # keys and values, KV heads, head_dim, bytes
    assert facts["kv_bytes"] == (full * 4096 + (3 - full) * 256) * cell
    run = facts["tried"]["by"] != "nothing: llama-cpp-python is not installed"
    assert run == (find_spec("llama_cpp") is not None)

    assert "Needs a llama.cpp" not in (out / "SERVING.md").read_text()  # GraniteSWA: any build
    assert len(facts["slides"]) == 3
    assert facts["slides"].count(False) == full

    def log(cells, slides=facts["slides"]):
        said = [f"load_tensors: layer {at:3d} assigned to device CPU, is_swa = {each:d}"
                for at, each in enumerate([*slides, False] if slides else [])]  # fmt: skip
        lines = ["n_ctx         = 4096", "n_ubatch      = 64", "n_seq_max     = 1"]
        sizes = [f"llama_kv_cache: size = {each * cell / 2**20:8.2f} MiB (..)" for each in cells]
        return "\n".join([*said, *(f"llama_context: {line}" for line in lines), *sizes])

    assert check(out, log([full * 4096, (3 - full) * 256]))[0] == 0
    slot = "\nslot   load_model: id  0 | task -1 | new slot, n_ctx = 2048"
    assert check(out, log([full * 4096, (3 - full) * 256]) + slot)[0] == 0
    assert check(out, log([full * 4096, (3 - full) * 4096]))[0] == 1  # --swa-full
    turned = facts["slides"][-1:] + facts["slides"][:-1]
    code, said = check(out, log([full * 4096, (3 - full) * 256], turned))  # as many slide
    assert (code, "slide and should not" in said) == (int(turned != facts["slides"]), code == 1)
    code, said = check(out, log([full * 4096, (3 - full) * 256], []))
    assert (code, "--verbosity 5" in said) == (2, True)
    code, said = check(out, log([1]).replace("4096", "512"))
    assert (code, "n_ctx is 512, planned for 4096" in said) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "error", "problem"),
    [
        ({"out": None}, NativeError, r"sinks= \(--sinks\) and out= \(--out\) go with each other"),
        ({"serve": None}, NativeError, "one of transformers, vllm, .*, tensorrt-llm"),
        ({"serve": "vlm"}, UnknownNameError, "did you mean 'vllm'"),
        ({"sinks": None}, NativeError, r"give sinks='tune' .* or local='window\(3\)'"),
        (
            {"sinks": None, "local": ["window(3)", "columns(1) | window(9)"]},
            NativeError,
            r"give sinks='tune' .* or local='window\(9\)'",
        ),
        ({"sinks": "learn"}, UnknownNameError, "calibrate"),
        ({"local": "window(3)"}, NativeError, "keeps no sinks .* leave sinks out"),
        ({"length": 12}, ValueError, "keeps everything under any window at 12 positions"),
        ({"length": 12, "serve": "transformers"}, DataError, "are measured on at least 1,000"),
        ({"unit": "head", "serve": "sglang"}, MaskSearchError, "does not add up"),
    ],
    ids=str,
)
def test_refused_before_anything_is_judged(how, error, problem, tmp_path):
    given = {"run": tmp_path / "run", "out": tmp_path / "served", "serve": "vllm"} | how
    with pytest.raises(error, match=problem):
        allocate(**given)
    assert not (tmp_path / "run" / "study.db").exists()
    assert not (tmp_path / "served").exists()


def test_an_earlier_folder_and_a_full_disk_are_refused(tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    with pytest.raises(NativeError, match="served exists"):
        allocate(tmp_path / "run", tmp_path / "served", serve="vllm")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(NativeError, match=r"has 1,000 bytes free; the folder needs about"):
        allocate(tmp_path / "run", tmp_path / "new", serve="vllm")


@pytest.mark.nightly
def test_nothing_is_left_of_a_folder_that_could_not_be_written(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_page", fail)
        with pytest.raises(OSError, match="No space left"):
            allocate(tmp_path / "run", tmp_path / "served", serve="vllm")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    plan = allocate(tmp_path / "run", tmp_path / "served", serve="vllm")  # goes on
    assert (tmp_path / "served" / "SERVING.md").is_file()
    again = allocate(tmp_path / "run", tmp_path / "served", serve="vllm")  # as after a kill
    assert again.found["served"]["losses"] == plan.found["served"]["losses"]
    written = tmp_path / "served" / "serving.json"
    other = json.loads(written.read_text("utf-8")) | {"mask": "window(1)"}
    written.write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(NativeError, match="served exists"):
        allocate(tmp_path / "run", tmp_path / "served", serve="vllm")


def test_short_prompts_are_warned_of():
    losses = {"dense": 3.0, "masked": 3.1, "served": 3.2, "difference": 0.2, "documents": 9}
    facts = {"engine": "llama.cpp", "model": "m", "units": LOCAL, "form": "granite_swa",
             "settings": vars(Serving(length=512)), "kv_bytes": 10, "dense_kv_bytes": 20,
             "tried": {"by": "nothing"}}  # fmt: skip
    near = {"positions": 32, "dense": 4.0, "served": 4.01}
    page = folder.write_page(facts | {"losses": losses | {"short": near}}, Path("out"))
    assert "short prompts" not in page
    far = {"losses": losses | {"short": near | {"served": 4.5}}}
    page = folder.write_page(facts | far, Path("out"))
    assert "Not for short prompts" in page
    assert "loses 0.500 nats" in page
    assert np.char.count(page, "--ctx-size 512") == 1
    rival = {"mask": "window(9)", "difference": -0.3, "low": -0.4, "high": -0.2}
    beside = {"losses": losses | {"short": near}, "rival": rival}
    page = folder.write_page(facts | beside, Path("out"))
    assert "`window(9)` in every layer, attached: it is shown to be better than the plan" in page
    assert "Needs" not in page
    form = {"form": "gemma3_text"}
    page = folder.write_page(facts | form | {"losses": losses | {"short": near}}, Path("out"))
    assert "Needs a llama.cpp from 17 September 2026 on (change 29042;" in page
    assert "--verbosity 5" in page
    others = {"engine": "tensorrt-llm", "losses": losses | {"short": near}}
    page = folder.write_page(facts | others, Path("out"))  # nothing here reads its log
    assert "trtllm-serve out --max_seq_len 512 --set kv_cache_config.use_kv_cache_man" in page
    assert "tokens_per_block=16" in page
    assert "check_serving.py" not in page


def test_what_is_served_is_a_decoder_and_sinks_are_those_of_a_checkpoint_as_it_is():
    judge = CausalEvaluator("text", weights="model", length=96)
    wrong = [
        (ms.PlantedEvaluator(), {}, TypeError, "takes a CausalEvaluator, got PlantedEvaluator"),
        (judge, {"cache_layout": "vlm"}, UnknownNameError, "did you mean 'vllm'"),
        (judge, {"sinks": "calibrat"}, UnknownNameError, "calibrate"),
        (CausalEvaluator("text"), {"sinks": "calibrate"}, ValueError,
         "give weights= and adapt='none', got weights=None and adapt='train'"),
        (CausalEvaluator("recall", weights="model", adapt="none"), {"sinks": "none"},
         ValueError, "so sinks= belongs to text"),
    ]  # fmt: skip
    for decoder, settings, error, problem in wrong:
        with pytest.raises(error, match=problem):
            EngineEvaluator(decoder, **settings)
    assert EngineEvaluator(judge).protocol == judge.protocol
    assert EngineEvaluator(judge, sinks="none").protocol != judge.protocol


@pytest.mark.nightly
def test_a_judge_of_language_models_imports_no_engine():
    code = "import sys, masksearch_decoders.causal; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "masksearch_decoders.decoders" in run.stdout
    assert "masksearch_decoders.engines" not in run.stdout
