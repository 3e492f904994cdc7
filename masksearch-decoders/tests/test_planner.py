"""`allocate`: a decoder, a text and a budget in, a plan out that was judged on unseen text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_decoder import byte_tokenizer, learn_rows
from transformers import AutoModelForCausalLM

import masksearch as ms
import masksearch_decoders as md
from masksearch import masks
from masksearch.errors import NativeError, SearchError
from masksearch_decoders import Serving, to_native
from masksearch_decoders.causal import CausalEvaluator
from masksearch_decoders.plan import Plan, describe_rival, describe_units, report_lines
from masksearch_decoders.planner import (
    DecoderOnText,
    Delivery,
    Unseen,
    build_decoder_evaluator,
)

pytestmark = pytest.mark.usefixtures("in_place")


def allocate(run: Path, budget: float = 0.6, text: str = "text", **how) -> Plan:
    small = {"length": 24, "sequences": 16, "local": "window(3)", "progress": None}
    return md.allocate("model", text, budget, run=run, **(small | how))


@pytest.mark.slow
def test_plan_is_searched_judged_on_unseen_text_and_served(tmp_path):
    plan = allocate(tmp_path)
    records = ms.open_study(tmp_path).records()
    assert plan.levels == (masks.window(3), masks.full())
    assert set(plan.units) == {"l0", "l1", "l2"}
    assert plan.found["cache"]["kv_bytes"] <= 0.6
    inside = [r.values["nll"] for r in records if r.measures["kv_bytes"] <= 0.6]
    assert plan.found["nll"]["search"] == min(inside)
    unseen = plan.found["nll"]["unseen"]
    assert unseen["masked"] - unseen["dense"] == pytest.approx(unseen["difference"], abs=1e-6)
    assert unseen["low"] <= unseen["difference"] <= unseen["high"]
    assert "pieces_of" not in unseen
    assert Plan.load(tmp_path / "plan.json") == plan
    model = AutoModelForCausalLM.from_pretrained("model").eval()
    tokens = torch.arange(1, 13)[None]
    with torch.no_grad():
        served = to_native(model, plan.mask).eval()(tokens).logits
        assert torch.allclose(served, ms.attach(model, plan.mask)(tokens).logits, atol=1e-5)


@pytest.mark.nightly
def test_plan_is_the_same_where_its_masks_are_judged_two_at_a_time(tmp_path):
    alone = allocate(tmp_path / "alone", method="greedy")
    beside = allocate(tmp_path / "beside", method="greedy", executor=ms.Local(slots=2))
    assert beside.units == alone.units
    assert beside.found["nll"] == alone.found["nll"]


WINDOWS = ["window(1)", "window(3)", "window(7)"]


@pytest.mark.nightly
def test_several_windows_are_never_worse_than_one_on_the_text_of_the_search(tmp_path):
    plan = allocate(tmp_path, 0.5, local=WINDOWS)
    records = {record.name: record for record in ms.open_study(tmp_path).records()}
    uniform = records["one window within 0.5"]
    assert str(uniform.mask) == "window(12)"  # 12 of 24 positions
    assert list(map(str, plan.levels)) == [*WINDOWS, "window(12)", "full()"]
    assert plan.found["nll"]["search"] <= uniform.values["nll"]
    assert plan.found["cache"]["kv_bytes"] <= 0.5
    assert plan.found["scores"]["method"] == "exchange"
    units = ms.Units(ms.Shape(24, 3, 4, causal=True), plan.levels, "layer")
    assert units.mask(tuple(plan.units.values())) == plan.mask
    same = plan.mask == uniform.mask
    assert plan.found["rival"].get("is_plan", False) is same
    assert (describe_units(plan) == "window(12) in all 3 units") is same


@pytest.mark.slow
@pytest.mark.parametrize("local", [WINDOWS, "window(3)"], ids=["several", "one"])
def test_where_one_window_is_best_it_is_the_plan(tmp_path, monkeypatch, local):
    def loses(self, mask, *, seed, workdir):
        """Every mask but those of one window in all layers loses more."""
        for report in judge(self, mask, seed=seed, workdir=workdir):
            yield dataclasses.replace(report, values={**report.values, "nll": alike(mask)})

    def alike(mask):
        return 1.0 + mask.sparsity(24, causal=True) / 10 + (mask.layers is not None)

    judge = CausalEvaluator.__call__
    monkeypatch.setattr(CausalEvaluator, "__call__", loses)
    plan = allocate(tmp_path, 0.5, local=local)
    assert str(plan.mask) == "window(12)"
    assert describe_units(plan) == "window(12) in all 3 units"
    assert plan.found["rival"] == {"mask": "window(12)", "is_plan": True}
    assert describe_rival(plan.found["rival"]).startswith(
        "this is the plan, as nothing was better"
    )
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.slow
@pytest.mark.parametrize("gain", [1.0, -1.0])
def test_a_plan_that_is_worse_than_one_window_on_unseen_text_is_not_written(
    tmp_path, monkeypatch, capsys, gain
):
    """Layers that differ are better on the text of the search, and by `gain` on other text."""

    def judged(self, mask, *, seed, workdir):
        for report in judge(self, mask, seed=seed, workdir=workdir):
            better = {"nll": report.values["nll"] - (mask.layers is not None)}
            yield dataclasses.replace(report, values={**report.values, **better})

    def unseen(self, mask, model=None):
        return tokens(self, mask, model) - gain * (mask.layers is not None)

    judge, tokens = CausalEvaluator.__call__, Unseen.nll_of
    monkeypatch.setattr(CausalEvaluator, "__call__", judged)
    monkeypatch.setattr(Unseen, "nll_of", unseen)
    plan = allocate(tmp_path, 0.5, progress="auto")
    assert "allocate: at most " in (said := capsys.readouterr().err)
    assert "masks, each on 16 sequences of 24 tokens; the first in about 0:0" in said
    record = ms.open_study(tmp_path).records()[plan.found["trial"]]
    assert record.mask == plan.mask == Plan.load(tmp_path / "plan.json").mask
    assert plan.found["nll"]["search"] == record.values["nll"]
    assert plan.found["cache"]["kv_bytes"] == record.measures["kv_bytes"] <= 0.5
    rival, losses = plan.found["rival"], plan.found["nll"]["unseen"]
    shown = "\n".join(report_lines(plan, tmp_path / "plan.json", "model"))
    if gain > 0:
        assert plan.mask.layers == 3
        assert rival["low"] > 0
        assert (
            "the plan is better on 10 documents alone, too few to speak of other texts: +" in shown
        )
        return
    assert str(plan.mask) == "window(12)"
    assert rival["high"] < 0
    assert losses["masked"] == rival["rival"]
    assert "of 3 units full" in rival["searched"]
    assert (
        f"this is the plan, as it is better than what the search chose ({rival['searched']})"
        in (shown)
    )


@pytest.mark.slow
def test_an_engine_has_one_window_beside_full_layers(tmp_path):
    how = {"serve": "llama.cpp", "serving": Serving(length=4096, ubatch=64)}
    plan = allocate(tmp_path, 0.5, local=["window(3)", "window(7)", "full()"], check=False, **how)
    records = [record for record in ms.open_study(tmp_path).records() if record.scored]
    windows = [{*map(str, units_of(record.mask))} - {"full()"} for record in records]
    assert max(map(len, windows)) == 1
    assert set.union(*windows) > {"window(3)", "window(7)"}
    assert plan.found["cache"]["kv_bytes"] <= 0.5
    with pytest.raises(ValueError, match=r"one window beside full .*method='exchange' chooses it"):
        allocate(tmp_path / "x", 0.5, local=WINDOWS, method="greedy", **how)


def units_of(mask: ms.Mask) -> list[ms.Mask]:
    return [mask.of_layer(layer) for layer in range(3)]


def test_units_of_several_windows_in_words():
    levels = (masks.window(1), masks.window(7), masks.full())
    plan = Plan({}, "layer", levels, {"l0": 2, "l1": 0, "l2": 1, "l3": 1}, levels[0])
    assert describe_units(plan) == (
        "1 of 4 units full (l0), 1 window(1) (l1), the others window(7)"
    )


@pytest.mark.slow
def test_widest_window_within_the_budget_is_judged_beside_the_plan(tmp_path):
    plan = allocate(tmp_path, budget=0.5, local="columns(2) | window(3)")
    rival = plan.found["rival"]
    mask = masks.parse(rival["mask"])
    assert mask == masks.columns(2) | masks.window(10)  # what 12 of 24 positions hold
    rows = {"length": 24, "held_out_sequences": 16, "split": "holdout"}
    judge = CausalEvaluator("text", weights="model", adapt="none", **rows)
    said, base = (
        final_nll(judge, each, tmp_path / str(at)) for at, each in enumerate((mask, plan.mask))
    )
    assert rival["rival"] == pytest.approx(said, abs=1e-5)
    assert rival["difference"] == pytest.approx(said - base, abs=1e-5)
    assert rival["low"] <= rival["difference"] <= rival["high"]


def test_as_much_is_held_out_as_it_takes_for_sixteen_documents(tmp_path):
    text = (Path("text") / "train.txt").read_text() + (Path("text") / "valid.txt").read_text()
    (tmp_path / "whole.txt").write_text(text)  # 58 articles
    decoder = DecoderOnText("model", tmp_path / "whole.txt", 24, 64, None, "cpu", None)
    judge = build_decoder_evaluator(decoder, "layer", Delivery(None, None, None, None)).evaluator
    assert judge.held_out in (0.4, 0.8)
    assert len({*judge.on("holdout").rows.documents.tolist()}) >= 16
    seen = {*judge.rows.documents.tolist()}
    assert not seen & {*judge.on("holdout").rows.documents.tolist()}
    named = dataclasses.replace(decoder, held_out=0.1)
    again = build_decoder_evaluator(named, "layer", Delivery(None, None, None, None))
    assert again.evaluator.held_out == 0.1
    digests = {judge.task().digest, CausalEvaluator(tmp_path / "whole.txt").task().digest}
    assert len(digests) == 2
    with pytest.raises(ValueError, match=r"a text or a share in \(0, 1\), got 1.5"):
        CausalEvaluator("text", held_out=1.5)


def final_nll(judge: CausalEvaluator, mask: ms.Mask, folder: Path) -> float:
    return [*judge(mask, seed=0, workdir=folder)][-1].values["nll"]


@pytest.mark.parametrize(
    ("interval", "more", "said"),
    [
        ((0.2, 0.1, 0.3), {}, "the plan is shown to be better: +0.2000 ["),
        ((-0.2, -0.3, -0.1), {}, "it is shown to be better than the plan"),
        ((0.2, -0.1, 0.5), {}, "neither is shown to be better: +0.2000"),
        ((0.2,), {}, "neither is shown to be better: +0.2000 nats a token"),
        ((0.2, 0.1, 0.3), {"documents": 12},
         "the plan is better on 12 documents alone, too few to speak of other texts: +0.2000"),
        ((0.2, -0.1, 0.3), {"documents": 12, "pieces_of": 1},
         "neither can be shown to be better on 12 pieces of 1 document: +0.2000 ["),
        ((-0.2, -0.3, -0.1), {"documents": 12, "pieces_of": 15},
         "it is better than the plan on 12 pieces of 15 documents alone, too few to speak of"),
        ((-0.2, -0.3, -0.1), {"is_plan": True, "searched": "all"}, "this is the plan, as it is "
         "better than what the search chose (all) on unseen text: -0.2000 ["),
    ],
)  # fmt: skip
def test_rival_in_words(interval, more, said):
    found = dict(zip(("difference", "low", "high"), interval, strict=False))
    assert describe_rival(found | more).startswith(said)


@pytest.mark.slow
def test_texts_that_are_shorter_than_the_rival_are_warned_of(tmp_path):
    said = r"on texts of 24 tokens window\(2048\) in every layer is dense .* up to 4096"
    with pytest.warns(UserWarning, match=said):
        allocate(tmp_path, 0.5, serving=Serving(length=4096))


@pytest.mark.nightly
def test_plan_within_what_an_engine_reserves(tmp_path):
    serving = Serving(length=4096, in_flight=16)
    how = {
        "serve": "vllm",
        "serving": serving,
        "check": False,
        "local": "columns(1) | window(3)",
    }
    plan = allocate(tmp_path, budget=0.4, **how)
    assert sum(plan.units.values()) == 1
    found = plan.found
    assert found["cache"]["kv_bytes"] == found["cache"]["kv_bytes_vllm"] == (256 + 2 * 3) / 768
    assert found["budget"]["cache_layout"] == "vllm"
    assert found["length"] == 4096
    assert "sinks" in found["native"]["refused"]
    with pytest.raises(ValueError, match=r"vllm keeps 0\.01172 of .* budget=0\.01:"):
        allocate(tmp_path / "less", budget=0.01, **how)
    with pytest.raises(NativeError, match=r"layer 0 keeps other keys in each head"):
        allocate(tmp_path / "heads", unit="head", **how)


@pytest.mark.nightly
@pytest.mark.parametrize(("budget", "judged"), [(0.6, 2 + 3), (0.9, 2 + 3 + 2)])
def test_number_of_masks_is_known(budget, judged, tmp_path, capfd):
    allocate(tmp_path, budget, method="greedy", check=False, progress="auto")
    records = ms.open_study(tmp_path).records()
    assert len([record for record in records if record.role != "baseline"]) <= judged
    shown = [line for line in capfd.readouterr().err.splitlines() if line.startswith("allocate ")]
    count = int(shown[0].split()[1].split("/")[1])
    assert judged <= count - 1 <= judged + 1  # the rival comes on top
    dense = next(line for line in shown if " full()  " in line)
    assert "kv_bytes 1.0000  effective_sparsity 0.0000  front" in dense  # no half-empty table


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:strategy 'allocate' judges")
def test_plan_goes_on_where_it_was_stopped(tmp_path):
    stopped = allocate(tmp_path, 0.3, trials=2, check=False)
    assert {*stopped.units.values()} == {0}
    assert len(ms.open_study(tmp_path).records()) == 1 + 2
    allocate(tmp_path, 0.3)


@pytest.mark.slow
def test_pieces_of_one_document_are_called_so(tmp_path):
    with pytest.warns(UserWarning, match="has 1 documents, so its pieces .* fewer than 16 show"):
        plan = allocate(tmp_path, text="novel.txt", method="restore")
    assert plan.found["nll"]["unseen"]["pieces_of"] == 1
    assert describe_rival(plan.found["rival"]).startswith("neither can be shown to be better on")


@pytest.mark.parametrize(
    ("how", "error", "problem"),
    [
        ({"budget": 1.5}, ValueError, r"shares in \(0, 1\].*got 1.5$"),
        ({"budget": 0.1}, ValueError, r"at least what the cheapest masks of all units cost"),
        ({"unit": "head"}, SearchError, r"kv_bytes_per_head does not add up"),
        ({"local": "full()"}, ValueError, r"drop what keeps the same"),
        ({"tasks": "passky"}, ValueError, r"unknown task 'passky'; did you mean 'passkey'"),
        ({"local": ["window(7)", "window(3)"]}, ValueError,
         r"keeps more than the one before.*got window\(3\) \(0\.\d+ of the pairs of 24 tokens\) "
         r"after window\(7\) .*from narrow to wide"),
        ({"local": ["columns(1) | window(3)", "window(7)"]}, ValueError,
         r"and all that it keeps; got window\(7\)"),
        ({"local": ["window(7)", "window(23)"]}, ValueError,
         r"got window\(23\) \(1 of .*drop what is as wide as the text"),
        ({"local": WINDOWS, "budget": 0.01}, ValueError, r"the cheapest masks of all units cost"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_are_refused_before_anything_is_judged(how, error, problem, tmp_path):
    with pytest.raises(error, match=problem):
        allocate(tmp_path, **how)
    assert not (tmp_path / "study.db").exists()


@pytest.mark.parametrize(
    ("engine", "length", "budget", "problem"),
    [
        ("llama.cpp", 1024, 0.25,
         r"llama\.cpp keeps 0\.75 of its dense cache or more under any window at 1,024 positions "
         r"with ubatch=512, got budget=0\.25: give a longer length or a smaller uba"),
        ("llama.cpp", 512, 0.25,
         r"llama\.cpp keeps everything under any window at 512 positions with ubatch=512"),
        ("llama.cpp", 512, 1.0, "keeps everything under any window at 512"),
        ("vllm", 1024, 0.25,
         r"vllm keeps everything .* in_flight=4,096, .* smaller in_flight in serving= \(--serv"),
    ],
)  # fmt: skip
def test_an_engine_that_no_mask_makes_smaller_says_what_does(
    engine, length, budget, problem, tmp_path
):
    how = {"serve": engine, "serving": Serving(length=length), "check": False}
    with pytest.raises(ValueError, match=problem) as refused:
        allocate(tmp_path, budget, local="columns(1) | window(3)", **how)
    assert "local mask" not in str(refused.value)
    assert "order them" not in str(refused.value)
    assert not (tmp_path / "study.db").exists()


@pytest.mark.slow
def test_masks_no_better_than_a_guess_are_called_so(tmp_path, monkeypatch):
    """More trials would not help."""
    judge = CausalEvaluator.__call__

    def guessed(self, mask, *, seed, workdir):
        """All masks but dense attention lose more than a guess."""
        for report in judge(self, mask, seed=seed, workdir=workdir):
            values = dict(report.values)
            if mask.sparsity(24, causal=True):
                values |= {"nll": 9.0 + mask.sparsity(24, causal=True), "nll/majority": 2.5}
                values.pop("nll/low", None)
            yield dataclasses.replace(report, values=values)

    monkeypatch.setattr(CausalEvaluator, "__call__", guessed)
    with pytest.raises(SearchError) as refused:
        allocate(tmp_path, check=False)
    records = [r for r in ms.open_study(tmp_path).records() if r.role != "baseline"]
    inside = [r.values["nll"] for r in records if r.measures["kv_bytes"] <= 0.6]
    said = str(refused.value)
    assert said.startswith(f"{len(inside)} of {len(records)} trials judged a mask within 0.6, and")
    assert f"the best has nll {min(inside):.4f}, the guess 2.5000: give a larger budget" in said
    assert "more trials" not in said


def test_a_model_in_memory_is_refused(place, tmp_path):
    model = AutoModelForCausalLM.from_pretrained("model")
    with pytest.raises(TypeError, match="got LlamaForCausalLM: save it with its tokenizer"):
        md.allocate(model, "text", run=tmp_path)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:on texts of 200 tokens")
def test_masks_are_searched_by_the_most_that_they_add_to_text_and_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("\n\n".join(f"{n} men went to mow. " * 30 for n in range(90)))
    size = {"size": "2x32x2", "length": 200, "steps": 60, "batch": 8, "lr": 5e-3}
    trained = CausalEvaluator("text", tokenizer=byte_tokenizer(tmp_path / "model"), **size)
    trained.dense(0).model.save_pretrained("trained")
    tasks = {"length": 200, "tasks": ["passkey", "qa_1"]}
    judge = CausalEvaluator("text", weights=byte_tokenizer(tmp_path / "trained"), **tasks)
    learn_rows(tmp_path / "trained", [*judge.prompts.values()], tmp_path / "model")
    how = {"sequences": 3, "method": "greedy", **tasks}
    plan = allocate(tmp_path / "run", **how, serve="transformers", out=tmp_path / "served")
    study = ms.open_study(tmp_path / "run")
    assert study.objectives[0].name == "max_nll_increase"
    inside = [r for r in study.records() if r.measures["kv_bytes"] <= 0.6]
    assert study.records()[plan.found["trial"]].values["max_nll_increase"] == min(
        r.values["max_nll_increase"] for r in inside
    )
    assert list(plan.found["tasks"]) == ["dense", "plan", "rival"]
    assert plan.found["tasks"]["dense"]["nll/retrieval"] > 0
    lost = plan.found["tasks"]["plan"]["nll/retrieval"]
    served = plan.found["served"]["losses"]["tasks"]["served"]["nll/retrieval"]
    assert served == pytest.approx(lost, abs=1e-4)  # windows alone: the same model
    record = study.records()[plan.found["trial"]]
    added = plan.found["lost"]
    assert set(added) == {"text", "retrieval", "answering"}
    assert max(added.values()) == record.values["max_nll_increase"]
    page = (tmp_path / "served" / "SERVING.md").read_text()
    losses = plan.found["served"]["losses"]
    dense, tasks = losses["dense"], losses["tasks"]
    assert "| nats a token | retrieval | answering |" in page
    assert f"| dense attention | {dense:.4f} | {tasks['dense']['nll/retrieval']:.4f} |" in page
    assert f" {losses['served']:.4f} | {served:.4f} |" in page
    most = max(
        losses["served"] - dense,
        *(
            tasks["served"][f"nll/{group}"] - tasks["dense"][f"nll/{group}"]
            for group in ("retrieval", "answering")
        ),
    )
    assert f"the served form adds at most {most:.3f} nats in each: " in page
    said = "\n".join(report_lines(plan, tmp_path / "plan.json", "model"))
    assert f"adds at most {max(added.values()):.3f} nats in each: " in said
    parts = {f"nll increase/{name}" for name in ("text", "retrieval", "answering")}
    assert all(name in repr(study) for name in ("max nll increase", *parts))
