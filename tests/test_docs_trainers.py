"""What docs/trainers.md says: its code runs, and lm-eval computes what the masked model does."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import masksearch as ms
from masksearch.models.checkpoints import verify

PAGE = (Path(__file__).parents[1] / "docs" / "trainers.md").read_text(encoding="utf-8")
TRAINERS, LM_EVAL = (
    re.findall(r"```python\n(.*?)```", part, re.S) for part in PAGE.split("## lm-eval")
)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    pytest.importorskip("peft")
    pytest.importorskip("accelerate")
    space: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng(devices=[]):
        patched.chdir(tmp_path_factory.mktemp("trainers"))
        torch.manual_seed(0)
        for code in TRAINERS:
            exec(compile(code, "docs/trainers.md", "exec"), space)
        yield space


@pytest.mark.nightly
def test_trainers_keep_the_mask(session):
    for folder in ("accelerated", "adapted/checkpoint-2", "compiled"):
        assert verify(folder) == {"self": session["mask"]}


@pytest.mark.nightly
def test_lm_eval_scores_the_model_with_its_mask(session):
    pytest.importorskip("lm_eval", reason="the extra `lmeval`")
    for code in LM_EVAL:
        exec(compile(code, "docs/trainers.md", "exec"), session)
    model, tokenizer, scores = session["model"], session["tokenizer"], {}
    for name in ("masked", "dense"):
        if name == "dense":
            ms.detach(model)
            session["found"] = session["lm_eval"].simple_evaluate(
                session["wrapped"],
                tasks=["endings"],
                task_manager=session["tasks"],
                bootstrap_iters=0,
            )
        samples = session["found"]["samples"]["endings"]
        assert len(samples) == 2
        for sample in samples:
            own = []
            for ending in ("mat", "road"):
                ids = tokenizer(f"{sample['doc']['text']} {ending}", return_tensors="pt")
                with torch.no_grad():
                    chances = model(ids["input_ids"]).logits[0, -2].log_softmax(-1)
                own.append(float(chances[ids["input_ids"][0, -1]]))
            theirs = [float(chance) for chance, _ in sample["filtered_resps"]]
            assert theirs == pytest.approx(own, abs=1e-5)
            scores[name, sample["doc_id"]] = own
    apart = [abs(scores["masked", i][0] - scores["dense", i][0]) for i in range(2)]
    assert max(apart) > 1e-3  # else the check says nothing of the mask
