"""What an evaluator knows of a mask before training: objectives, constraints, records."""

import pytest
import transformers as hf
from toy import ToyEvaluator

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Objective, Report
from masksearch.evaluators.wrappers import Cached

CONFIG = hf.LlamaConfig(
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32
)


class DecoderToy(ToyEvaluator):
    """A toy of a decoder, whose cache is known."""

    shape = ms.Shape(16, 2, 4, causal=True)
    objectives = (Objective("loss", "min", 10.0), Objective("kv_bytes", "min", 1.0))
    measure_names = ("kv_bytes",)
    protocol = "decoder-toy"

    def measures_of(self, mask):
        return {"kv_bytes": ms.kv_bytes(mask, CONFIG, self.shape.length).share}

    def __call__(self, mask, *, seed, workdir):
        yield Report(1, {"loss": 1 + mask.sparsity(16)})


def windows(trial):
    return masks.columns(1) | masks.window(trial.suggest_int("reach", 0, 15))


@pytest.mark.slow
def test_records_carry_it_and_a_violating_mask_is_not_trained(tmp_path):
    study = ms.search(
        windows,
        DecoderToy(),
        run=tmp_path,
        trials=12,
        strategy="random",
        constraints=("kv_bytes <= 0.5",),
        progress=None,
    )
    records = study.records()
    for record in records:
        held = min(16, record.params["reach"] + 1)
        assert record.measures["kv_bytes"] == held / 16
        assert (record.status == "stopped") == (held > 8)
        if held > 8:
            assert not record.curve
            assert "violates kv_bytes <= 0.5" in record.error
    assert {record.status for record in records} >= {"done", "stopped"}


def test_wrappers_offer_it_exactly_where_the_inner_evaluator_does(tmp_path):
    wrapped = Cached(DecoderToy(), tmp_path)
    assert wrapped.measure_names == ("kv_bytes",)
    assert wrapped.measures_of(masks.window(4)) == {"kv_bytes": 4 / 16}
    assert Cached(ToyEvaluator(), tmp_path).measure_names == ()
