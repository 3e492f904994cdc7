"""Plans and units on the command line: `masksearch allocate`, `attach`, `search --unit`."""

from __future__ import annotations

import json
import re

import pytest
from cli_runs import run, write_toys
from transformers import AutoModelForCausalLM

import masksearch as ms
from masksearch import masks
from masksearch_decoders import to_native
from masksearch_decoders.plan import Plan

pytestmark = pytest.mark.filterwarnings(
    "ignore:(the strategy has no more masks|strategy 'allocate' judges)"
)


@pytest.fixture
def allocate(in_place, monkeypatch, capsys):
    def command(*words, name="allocate"):
        return run(monkeypatch, capsys, name, *words)

    return command


def strategy_records(folder):
    return [r for r in ms.open_study(folder).records() if r.role != "baseline"]


@pytest.mark.slow
def test_a_plan_is_found_continued_attached_and_served(allocate, place, tmp_path):
    words = ("model", "text", "--length", 24, "--run", tmp_path / "run")
    words += ("--budget", 0.5, "--budget", 0.8, "--method", "restore", "--set", "device=cpu")
    code, out, err = allocate(*words, "--trials", 3)
    assert code == 0, err
    before = len(strategy_records(tmp_path / "run"))
    code, out, err = allocate(tmp_path / "run", "--trials", 99, name="resume")
    assert code == 0, err
    records = strategy_records(tmp_path / "run")
    assert before == 3 < len(records)
    assert "budget 0.5: " in out
    assert "on unseen text: dense" in out
    assert "not in the model's own configuration: LlamaConfig cannot name" in out
    plan = Plan.load(tmp_path / "run" / "plan-0.5.json")
    assert masks.full() in plan.levels
    assert set(plan.found["scores"]["of_units"]) == {"l0", "l1", "l2"}
    file = tmp_path / "run" / "plan-0.5.json"
    code, out, err = allocate("model", file, "--out", tmp_path / "out", name="attach")
    assert code == 0, err
    loaded = ms.load_pretrained(tmp_path / "out")
    assert ms.attached(loaded) == {"self": plan.mask}
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    code, _, err = allocate("other", file, name="attach")
    assert code == 2
    assert err.count("\n") == 1
    assert "the plan is for model (hash" in err
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 9}))
    code, _, err = allocate("model", file, name="attach")
    assert (code, "plan of format 9" in err) == (2, True)


@pytest.mark.nightly
def test_several_windows_by_the_command(allocate, tmp_path):
    words = ("model", "text", "--length", 24, "--run", tmp_path / "run", "--budget", 0.5)
    code, out, err = allocate(*words, "--local", "window(7)", "--local", "window(3)")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "each local mask keeps more than the one before" in err
    words = (*words, "--local", "window(3)", "--local", "window(7)", "--sequences", 8)
    code, out, err = allocate(*words)
    assert code == 0, err
    plan = Plan.load(tmp_path / "run" / "plan.json")
    assert " ".join(map(str, plan.levels)) == "window(3) window(7) window(12) full()"
    assert ("this is the plan" in out) == ("window(12) in all 3 units" in out)
    (tmp_path / "run" / "plan.json").unlink()
    code, _, err = allocate(tmp_path / "run", name="resume")
    assert (code, Plan.load(tmp_path / "run" / "plan.json")) == (0, plan), err


@pytest.mark.slow
def test_settings_that_no_machine_has_are_refused_at_once(allocate, tmp_path):
    for setting, problem in [
        ("device=cuda:99", "no device 'cuda:99' on this machine; take 'auto' or 'cpu'"),
        ("precision=half", "unknown precision 'half'. Known: float32, bfloat16"),
        ("task_rows=0", "task_rows must be at least 1, got 0"),
        ("dam.steps=3", "setting of allocate"),
        ("devise=cpu", "did you mean 'device'"),
    ]:
        words = ("--budget", 0.5, "--run", tmp_path / "run", "--set", setting)
        code, out, err = allocate("model", "text", *words)
        assert (code, out, err.count("\n")) == (2, "", 1), setting
        assert problem in err


def vllm_share(out):
    return float(re.search(r"vllm (\d\.\d+)", out)[1])


@pytest.mark.nightly
def test_windows_alone_are_written_as_a_configuration(allocate, place, tmp_path):
    words = ("model", "text", "--length", 24, "--run", tmp_path / "run", "--budget", 0.6)
    words += ("--serve", "llama.cpp", "--local", "window(4)", "--serving")
    code, out, err = allocate(*words, '{"length": 4096, "blocks": 8}')
    assert (code, "unknown setting of Serving 'blocks'" in err) == (2, True)
    code, out, err = allocate(*words, '{"length": 4096, "ubatch": 64}')
    assert code == 0, err
    assert "each engine holds: transformers 0.3340, vllm " in out
    assert ("vllm: more than its dense cache" in out) == (vllm_share(out) > 1)
    assert "not in the model's own configuration: of the windows of smollm3" in out
    (tmp_path / "run").rename(tmp_path / "engine")
    words = (*words[: words.index("--serve")], "--local", "window(4)")
    code, out, err = allocate(*words)
    assert code == 0, err
    assert "transformers, vllm can serve it alone (smollm3): --serve, --out" in out
    code, out, err = allocate(*words, "--serve", "transformers", "--out", tmp_path / "served",
                              "--run", tmp_path / "again")  # fmt: skip
    assert code == 0, err
    assert f"read SERVING.md in {tmp_path / 'served'}" in out
    rival = Plan.load(tmp_path / "again" / "plan.json").found["rival"]["mask"]
    page = (tmp_path / "served" / "SERVING.md").read_text()
    assert f"Within the same budget, `{rival}` in every layer, attached: " in page
    plan = Plan.load(tmp_path / "again" / "plan.json")
    native = json.loads((tmp_path / "served" / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    assert native["layer_types"] == to_native(model, plan.mask).config.layer_types


# -- units of any search: strategy allocate, and other strategies over the same units -------------
@pytest.fixture
def proxy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_toys(tmp_path)
    return "my_proxy.py:toy"  # 2 layers of 2 heads


@pytest.mark.nightly
def test_allocate_is_named_and_resumed(monkeypatch, capsys, proxy):
    words = (
        "search", "--strategy", "allocate", "--unit", "head", "--local", "star()",
        "--set", "allocate.method=greedy",
        "--evaluator", proxy, "--run", "found", "--trials", 4,
    )  # fmt: skip
    assert run(monkeypatch, capsys, *words)[0] == 0
    code, _, err = run(monkeypatch, capsys, "resume", "found", "--trials", 7)
    assert (code, "error" in err) == (0, False)
    records = ms.open_study("found").records()
    assert [dict(r.params) for r in records[:3]] == [{}, dict.fromkeys(
        ("l0.h0", "l0.h1", "l1.h0", "l1.h1"), 1
    ), {"l0.h0": 1}]  # fmt: skip
    assert len(records) == 7
    assert {record.origin for record in records} == {"allocate"}


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["random", "tpe"])
def test_other_strategies_search_the_same_units(monkeypatch, capsys, proxy, strategy):
    words = (
        "search", "--strategy", strategy, "--unit", "layer", "--local", "star()",
        "--set", 'units.levels=["star()", "longformer(4, 1)", "full()"]',
        "--evaluator", proxy, "--run", "found", "--trials",
    )  # fmt: skip
    for trials in (2, 3):
        assert run(monkeypatch, capsys, *words, trials)[0] == 0
    records = [each for each in ms.open_study("found").records() if not each.known]
    assert len(records) == 3
    assert all("raised" in record.params for record in records)


@pytest.mark.nightly
def test_other_units_are_another_search(monkeypatch, capsys, proxy):
    words = ("search", "--strategy", "allocate", "--evaluator", proxy, "--run", "found")
    assert run(monkeypatch, capsys, *words, "--local", "star()", "--trials", 1)[0] == 0
    code, _, err = run(monkeypatch, capsys, *words, "--local", "window(1)", "--trials", 2)
    assert code == 2
    assert "window(1)" in err
