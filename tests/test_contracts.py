"""AttentionCall against loops over queries and keys."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from masksearch import masks, search
from masksearch.attention.call import AttentionCall
from masksearch.contracts import Evaluator, Objective, Report, Shape
from masksearch.errors import EvaluatorError

QUERIES, KEYS = 3, 5


def attention_call(dtype: torch.dtype = torch.float64) -> AttentionCall:
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)

    visible = torch.rand(2, 1, QUERIES, KEYS, generator=source) < 0.6
    visible[0, 0, 1] = False  # a query that sees nothing
    visible[..., 0, 2] = True
    return AttentionCall(
        normal(2, 4, QUERIES, 6),
        normal(2, 4, KEYS, 6),
        normal(2, 4, KEYS, 6),
        visible=visible,
        scaling=0.7,
        bias=normal(1, 4, QUERIES, KEYS),
    )


def loops(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, weights and output, one pair after the other."""
    scores = torch.zeros(2, 4, QUERIES, KEYS, dtype=torch.float64)
    weights, out = torch.zeros_like(scores), torch.zeros(2, 4, QUERIES, 6, dtype=torch.float64)
    for b, h, q in ((b, h, q) for b in range(2) for h in range(4) for q in range(QUERIES)):
        for k in range(KEYS):
            product = sum(
                float(x * y) for x, y in zip(call.query[b, h, q], call.key[b, h, k], strict=True)
            )
            bias = 0.0 if call.bias is None else float(call.bias[0, h, q, k])
            scores[b, h, q, k] = call.scaling * product + bias
        seen = [k for k in range(KEYS) if call.visible is None or call.visible[b, 0, q, k]]
        odds = {k: math.exp(float(scores[b, h, q, k])) for k in seen}
        for k in seen:
            weights[b, h, q, k] = odds[k] / sum(odds.values())
            out[b, h, q] += weights[b, h, q, k] * call.value[b, h, k]
    return scores, weights, out


@pytest.mark.parametrize(
    "without",
    [(), ("visible",), ("bias",), ("visible", "bias")],
    ids=lambda names: "-".join(names),
)
def test_a_call_computes_what_loops_do(without: tuple[str, ...]):
    call = replace(attention_call(), **dict.fromkeys(without))
    for found, expected in zip(
        (call.scores(), call.weights(), call.attend()), loops(call), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


def test_half_precision_has_whole_scores_and_half_outputs():
    call = attention_call(torch.bfloat16)
    assert call.scores().dtype == call.weights().dtype == torch.float32
    assert call.attend().dtype == torch.bfloat16
    torch.testing.assert_close(call.attend().double(), loops(call)[2], atol=0.05, rtol=0.05)


def test_dropout_scales_what_it_leaves():
    call = replace(attention_call(), dropout=0.5, visible=None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        drawn = torch.stack([call.attend() for _ in range(2000)])
    mean = drawn.mean(0)
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(mean, replace(call, dropout=0.0).attend(), atol=0.2, rtol=0)


class Judge(Evaluator):
    shape = Shape(8, 1, 1)
    objectives = (Objective("loss", "min", 1.0),)
    protocol = "p"

    def __call__(self, mask, *, seed, workdir):
        yield Report(1, {"loss": 0.0})


def without(name):
    return type("Judge", (Evaluator,), {k: v for k, v in vars(Judge).items() if k != name})()


class Inner(Judge):
    @property
    def protocol(self):
        return self.corpus


@pytest.mark.parametrize(
    ("evaluator", "said"),
    [
        (without("protocol"), "^Judge has no protocol; .*docs/write_your_own.md"),
        (without("shape"), "^Judge has no shape;"),
        (without("objectives"), "^Judge has no objectives;"),
        (without("__call__"), "^Judge has no __call__;"),
        (Inner(), "Inner has no protocol that can be read .*'corpus'"),
        (Judge, r"Judge is a class, .*: write Judge\(\.\.\)"),
        (object(), "^object does not inherit masksearch.contracts.Evaluator; an evaluator offers"),
        (
            type("J", (Judge,), {"shape": (8, 1, 1)})(),
            r"shape \(8, 1, 1\), not a masksearch.Shape",
        ),
        (type("J", (Judge,), {"objectives": ()})(), r"not a tuple of \S+contracts\.Objective"),
        (type("J", (Judge,), {"objectives": ("loss",)})(), "objective 'loss', not"),
        (type("J", (Judge,), {"protocol": None})(), "protocol None, not a text"),
        (type("J", (Judge,), {"__call__": lambda self, m: []})(), "cannot be called with"),
    ],
)
def test_an_evaluator_that_lacks_something_is_refused_in_a_line(evaluator, said, tmp_path):
    given = {"run": tmp_path / "run", "trials": 1}
    with pytest.raises(EvaluatorError, match=said) as raised:
        search(lambda trial: masks.window(1), evaluator, **given)
    assert "\n" not in str(raised.value)
    assert not given["run"].exists()


@pytest.mark.slow
def test_an_evaluator_that_lacks_nothing_is_taken(tmp_path):
    study = search(lambda trial: masks.window(1), Judge(), run=tmp_path, trials=1)
    assert [record.status for record in study.records()] == ["done"]


@given(st.dictionaries(st.integers(1, 64), st.integers(1, 9), min_size=1), st.booleans())
def test_a_shape_comes_back_from_json(lengths: dict[int, int], causal: bool):
    shape = Shape(64, 2, 4, causal, lengths)
    assert Shape(**json.loads(json.dumps(shape.to_dict()))) == shape
    assert dict(shape.histogram) == lengths
    assert hash(shape) == hash(Shape(64, 2, 4, causal, dict(reversed(lengths.items()))))


def test_a_shape_without_lengths_is_stored_as_before():
    assert Shape(8, 1, 2).to_dict() == {"length": 8, "layers": 1, "heads": 2}
    assert Shape(8, 1, 2).histogram == ((8, 1),)


@pytest.mark.parametrize(
    ("lengths", "message"), [({}, "got none"), ({9: 1}, "of 1 to 8"), ({3: 0}, "1 sequence")]
)
def test_lengths_that_do_not_fit(lengths: dict[int, int], message: str):
    with pytest.raises(ValueError, match=message):
        Shape(8, 1, 2, lengths=lengths)
