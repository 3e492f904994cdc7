"""Words cut by their effects as keys: laws of the masks, the wanted work, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_sentences import sentence_judge, write_sentences

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Prune, Record, Shape
from masksearch.errors import SearchError
from masksearch.files import write_tensors
from masksearch.masks.live import live_tokens
from masksearch.positions.words import words_within
from masksearch.strategies.prune import OF_WORDS, prune_words
from masksearch.testing import asked

CLS, LENGTH, LAYERS, WORDS = 3, 6, 3, 9
SIZES = {"read": 1, "hidden_size": 8, "intermediate_size": 32}


def shape_of(texts) -> Shape:
    rows = [[CLS, *text] + [-1] * (LENGTH - 1 - len(text)) for text in texts]
    return Shape(LENGTH, LAYERS, 2, tokens=torch.tensor(rows), **SIZES)


TEXTS = st.lists(
    st.lists(st.integers(4, WORDS - 1), min_size=1, max_size=LENGTH - 1), min_size=1, max_size=4
)
EFFECTS = st.lists(
    st.lists(st.floats(0, 10), min_size=WORDS, max_size=WORDS), min_size=LAYERS, max_size=LAYERS
)


def mask_of(kept) -> masks.Mask:
    return masks.per_layer([masks.token_columns(words) for words in kept])


@given(EFFECTS, TEXTS, st.floats(0.01, 1))
def test_words_are_nested_hold_cls_and_are_the_most_within_the_work(effects, texts, wanted):
    shape, effects = shape_of(texts), torch.tensor(effects, dtype=torch.float64)
    worth = torch.stack([effects[: layer + 1].amin(0) for layer in range(LAYERS)])
    least = masks.work(masks.per_layer([masks.token_columns([CLS])] * LAYERS), shape)
    limit = least + (1 - least) * wanted
    kept = words_within(limit, effects, shape)
    assert (kept[1:] <= kept[:-1]).all()
    assert kept[:, CLS].all()
    assert masks.work(mask_of(kept), shape) <= limit * (1 + 1e-9)
    there = shape.tokens.unique()
    there = there[there > CLS]
    left_out = worth[:, there][~kept[:, there]]
    if len(left_out):  # one more step of the threshold costs too much
        more = (worth >= left_out.max()).index_fill(1, torch.tensor(CLS), True)
        assert (kept <= more).all()
        assert masks.work(mask_of(more), shape) > limit


@given(EFFECTS, TEXTS, st.floats(0.1, 1))
def test_a_token_that_is_left_out_stays_left_out(effects, texts, limit):
    shape = shape_of(texts)
    kept = words_within(limit, torch.tensor(effects), shape)
    live = live_tokens(mask_of(kept), shape)
    assert (live[:, 1:] <= live[:, :-1]).all()
    assert live[:, :, 0].all()


def test_all_work_is_full_attention_and_too_little_the_rows_read_alone(tmp_path):
    shape = shape_of([[4, 5, 6], [7]])
    effects = torch.rand(LAYERS, WORDS, generator=torch.Generator().manual_seed(0))
    assert words_within(1.0, effects, shape).all()
    assert words_within(0.001, effects, shape).nonzero()[:, 1].unique().tolist() == [CLS]
    bare = Shape(LENGTH, LAYERS, 2, **SIZES)
    with pytest.raises(SearchError, match=r"Shape\.tokens has none here"):
        prune_words(tmp_path, bare, works=[0.5])


def test_the_strategy_keeps_the_law(tmp_path):
    effects = torch.rand(LAYERS, WORDS, generator=torch.Generator().manual_seed(0))
    write_tensors(tmp_path / "o.safetensors", {"effects": effects}, {"format": OF_WORDS}, what="")
    shape = shape_of([[4, 5, 6], [7, 8]])

    def make():
        return prune_words(tmp_path, shape, works=[0.8, 0.6], rows=8)

    original = make()
    first = asked(original)
    assert first.job == Prune({"unit": "word", "rows": 8, "by": "margin"})
    assert original.ask() == "wait"
    done = Record(0, "done", first.job, artifacts={"order": "o.safetensors"})
    original.tell(done)
    (one, two), again = (asked(original), asked(original)), make()
    again.tell(done)
    assert [asked(again).job, asked(again).job] == [one.job, two.job]
    assert [one.params, two.params] == [{"work": 0.8}, {"work": 0.6}]
    assert original.ask() == "done"
    lost = make()
    lost.tell(Record(0, "failed", first.job, error="ValueError: no words"))
    with pytest.raises(SearchError, match=r"has no order, its first job has failed: .*no words"):
        lost.ask()


# -- in a search ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> ms.GlueEvaluator:
    folder = write_sentences(tmp_path_factory.mktemp("toys"))
    return sentence_judge(folder, adapt="none", length=16, epochs=3, read_out="own")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["margin", "loss"])
def test_a_search_by_work(evaluator, tmp_path, by) -> None:
    rest = {"strategy": "prune", "strategy_options": {"rows": 48, "by": by}, "trials": 3}
    study = ms.search(None, evaluator, run=tmp_path, work=[0.6, 0.5], baselines={}, **rest)
    measured, *cut = study.records()
    assert measured.curve[-1].values["rows"] >= 48
    assert [each.status for each in cut] == ["done", "done"]
    for record, limit in zip(cut, [0.6, 0.5], strict=True):
        assert limit - 0.1 < record.measures["work"] <= limit
        assert record.measures["work"] == masks.work(record.mask, evaluator.shape)
    assert study.within(0.5) == [cut[1]]
    assert study.objectives[1].name == "work"
    live = live_tokens(cut[1].mask, evaluator.shape)
    assert (live[:, 1:] <= live[:, :-1]).all()
    assert live[:, :, 0].all()


@pytest.mark.parametrize(
    ("options", "limits", "problem"),
    [
        ({"rounds": 2}, {"work": 0.6}, "rounds is for pairs, with budget as limit: leave it out"),
        ({"by": "loss"}, {"budget": 0.6}, "by is for words, with work as limit: leave it out"),
        ({"densities": [0.5]}, {"work": 0.6}, "budgets are densities of strategy 'prune'"),
        ({}, {"work": 0.01}, r"a budget is at least what the diagonal costs, .* \(work\)"),
        ({}, {"work": 1.5}, r"budgets are shares in \(0, 1\]"),
        ({}, {"work": 0.5, "budget": 0.5}, "give either a budget or work, got budget=0.5 and"),
    ],
)
def test_wrong_limits_are_refused_before_anything_is_trained(
    evaluator, tmp_path, options, limits, problem
) -> None:
    with pytest.raises((ms.errors.MaskSearchError, ValueError), match=problem):
        ms.search(None, evaluator, run=tmp_path / "run", trials=2, strategy="prune",
                  strategy_options=options, **limits)  # fmt: skip
    assert not (tmp_path / "run" / "trials").exists()


@pytest.mark.parametrize("strategy", ["dam", "sparsebert"])
def test_strategies_of_pairs_say_that_they_cannot(evaluator, tmp_path, strategy) -> None:
    said = "chooses pairs, work is of tokens: take strategy 'prune', or a sampler|keeps no"
    with pytest.raises(SearchError, match=said):
        ms.search(None, evaluator, run=tmp_path, trials=2, strategy=strategy, work=0.5)


def test_models_all_of_whose_rows_are_read_have_no_work(tmp_path) -> None:
    with pytest.raises(SearchError, match="PlantedEvaluator knows no such model here: give budg"):
        ms.search(None, ms.PlantedEvaluator(steps=2), run=tmp_path, trials=2, work=0.5)
