"""Named encoders, and their heads against the same computed by hand."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from tiny_encoders import (
    SMALL,
    same,
    seeded,
    sizes,
    tokens,
    weights,
    weights_come_from_the_seed,
)
from toy_questions import ChoiceScorer, SpanPredictor, SquadEvaluator, SwagEvaluator

from masksearch import GlueEvaluator, attach, detach, masks
from masksearch.models.encoders import (
    ARCHITECTURES,
    MaskedLanguageModel,
    SequenceClassifier,
    encoder,
)
from masksearch.models.pretrained import TunedHead, rows_read


def body(name: str) -> hf.PreTrainedModel:
    """A random encoder in evaluation mode, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        narrow = sizes(40, 32, 2, 4, 64, 16, embedding_size=16)
        if name == "albert":
            narrow["num_hidden_layers"] = 12  # of one layer's weights
            return hf.AlbertModel(hf.AlbertConfig(**narrow), add_pooling_layer=False).eval()
        if name == "small electra":
            return hf.ElectraModel(hf.ElectraConfig(**narrow)).eval()
    return encoder(SMALL, 40, 16, seed=0, architecture=name, pad=3).eval()


BODIES = [*ARCHITECTURES, "albert", "small electra"]
HEADS = {
    "masked lm": lambda body, seed: MaskedLanguageModel(body, seed=seed),
    "with pairs": lambda body, seed: MaskedLanguageModel(body, seed=seed, pairs=True),
    "classifier": lambda body, seed: SequenceClassifier(body, 3, seed=seed),
    "span": lambda body, seed: SpanPredictor(body, seed=seed),
    "choice": lambda body, seed: ChoiceScorer(body, seed=seed),
}


def batch(head: str) -> dict[str, torch.Tensor]:
    """Two padded rows (of two choices each) with segments and labels."""
    given = tokens(2, 10) % 36 + 4
    visible = torch.ones_like(given)
    visible[1, 7:] = 0
    given[1, 7:] = 3
    parts = {
        "input_ids": given,
        "attention_mask": visible,
        "token_type_ids": (torch.arange(10) > 4).long().expand(2, 10),
    }
    if head == "choice":
        parts = {name: part.unsqueeze(1).expand(2, 2, 10) for name, part in parts.items()}
        return parts | {"labels": torch.tensor([1, 0])}
    if head == "span":
        positions = torch.tensor([2, 5])
        return parts | {"start_positions": positions, "end_positions": positions + 1}
    if head == "classifier":
        return parts | {"labels": torch.tensor([2, 0])}
    labels = given.where((torch.arange(10) % 3 == 1) & visible.bool(), -100)
    pairs = {"next_sentence_label": torch.tensor([0, 1])} if head == "with pairs" else {}
    return parts | {"labels": labels} | pairs


# -- every head on every encoder ---------------------------------------------------------------
@pytest.mark.parametrize("head", HEADS)
class TestContract:
    def test_weights_follow_the_seed_and_nothing_else(self, head):
        weights_come_from_the_seed(lambda seed: HEADS[head](body("bert"), seed))

    @pytest.mark.parametrize("name", BODIES)
    def test_trains_any_encoder_and_reads_no_padding(self, head, name):
        model, given = HEADS[head](body(name), 1), batch(head)
        out = model(**given)
        assert out.loss.isfinite()
        out.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert model.config is model.encoder.config
        hidden = given["attention_mask"] == 0
        segments = given["token_type_ids"].masked_fill(hidden, 0)
        if name != "roberta":  # counts positions by the padding id
            given["input_ids"] = given["input_ids"].masked_fill(hidden, 9)
        again = model(**given | {"token_type_ids": segments})
        assert again.loss.item() == pytest.approx(out.loss.item(), abs=1e-5)

    def test_segments_count_where_the_encoder_knows_them(self, head):
        for name in BODIES:
            model, given = HEADS[head](body(name), 1), batch(head)
            one = model(**given).logits
            two = model(**given | {"token_type_ids": 1 - given["token_type_ids"]}).logits
            knows = name not in ("roberta", "distilbert", "modernbert")
            assert torch.equal(one, two) is not knows, name

    def test_takes_a_mask(self, head):
        model, given = HEADS[head](body("bert"), 1), batch(head)
        before = model(**given).logits
        attach(model, masks.window(0))
        assert not torch.allclose(model(**given).logits, before, atol=1e-4)
        copied = copy.deepcopy(model)
        assert torch.equal(copied(**given).logits, model(**given).logits)


# -- the masked language model -----------------------------------------------------------------
@pytest.mark.parametrize("name", BODIES)
def test_masked_lm_scores_as_transformers_does_at_the_scored_positions(name):
    config = copy.deepcopy(body(name).config)
    config.initializer_range = 0.3
    theirs = seeded(lambda: hf.AutoModelForMaskedLM.from_config(config))
    with torch.no_grad():  # as training would leave them
        drawn = torch.Generator().manual_seed(0)
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=drawn), alpha=0.1)
    given = {key: part for key, part in batch("masked lm").items() if key != "token_type_ids"}
    labels = given.pop("labels")
    with torch.no_grad():
        expected = theirs(**given).logits[labels != -100]
        out = MaskedLanguageModel(theirs, seed=1).eval()(**given, labels=labels)
    assert expected.std() > 0.1
    torch.testing.assert_close(out.logits, expected, rtol=1e-6, atol=1e-6)
    surprises = expected.logsumexp(1) - expected[range(5), labels[labels != -100]]
    assert out.loss.item() == pytest.approx(surprises.mean().item(), abs=1e-5)


@pytest.mark.parametrize("name", BODIES)
def test_a_new_head_is_drawn_with_the_spread_and_tied(name):
    encoder = body(name)
    model, words = MaskedLanguageModel(encoder, seed=1), encoder.get_input_embeddings().weight
    assert model.encoder is encoder
    before = model(tokens(1, 8)).logits
    [dense] = [p for p in model.head.parameters() if p.ndim == 2 and p is not words]
    if name != "modernbert":  # whose own is narrower
        assert dense.std().item() == pytest.approx(encoder.config.initializer_range, rel=0.1)
    with torch.no_grad():
        words.zero_()  # of the encoder, and so of the scores
    assert not torch.equal(model(tokens(1, 8)).logits, before)
    assert model(tokens(1, 8)).logits.std() == 0


def test_a_bias_that_transformers_leaves_as_it_was_made_is_zero():
    config = hf.Data2VecTextConfig(**sizes(40, 32, 2, 4, 64, 16), pad_token_id=1)
    encoder = seeded(lambda: hf.Data2VecTextModel(config, add_pooling_layer=False))
    torch.use_deterministic_algorithms(True)  # new memory is NaN
    try:
        model = MaskedLanguageModel(encoder, seed=1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(part.isfinite().all() for part in model.parameters())
    assert not model.head.lm_head.bias.any()


def test_masked_lm_scores_every_token_without_labels():
    model = MaskedLanguageModel(encoder(SMALL, 40, 16, seed=0), seed=1)
    out = model(tokens(3, 8))
    assert out.logits.shape == (24, 40)
    assert out.loss is None
    labels = torch.full((3, 8), -100)
    labels[1, 2] = 4
    assert torch.allclose(out.logits[10], model(tokens(3, 8), labels=labels).logits[0], atol=1e-5)


# -- the classifier ----------------------------------------------------------------------------
def test_classifier_matches_the_formula():
    model = SequenceClassifier(encoder(SMALL, 40, 16, seed=0), 3, seed=1)
    given, labels = tokens(2, 5), torch.tensor([2, 0])
    out = model(given, labels=labels)
    hidden = model.encoder(input_ids=given).last_hidden_state
    for row in range(2):
        both = torch.cat([hidden[row, 0], hidden[row].sum(0) / 5])
        inner = torch.tanh(model.dense.weight @ both + model.dense.bias)
        logits = model.out.weight @ inner + model.out.bias
        assert torch.allclose(out.logits[row], logits, atol=1e-5)
    chosen = out.logits.log_softmax(-1)[[0, 1], labels]
    assert out.loss.item() == pytest.approx(-chosen.mean().item(), abs=1e-5)
    assert model(given).loss is None
    assert model.config is model.encoder.config


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_read_out_of_pairs_matches_the_formula(name):
    """[CLS] a a [SEP] b b b [SEP], and one with an empty second text, padded."""
    model = SequenceClassifier(body(name), 3, seed=1, read_out="pair")
    texts, given = [((1, 3), (4, 7)), ((1, 4), (5, 5))], tokens(2, 8) % 36 + 4
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 0, 0]])
    visible = torch.tensor([[1] * 8, [1] * 6 + [0, 0]])
    found = model(given, attention_mask=visible, token_type_ids=types).logits
    hidden = model.hidden(given, visible, types)
    for row, places in enumerate(texts):
        u, v = (hidden[row, a:b].sum(0) / max(1, b - a) for a, b in places)
        inner = torch.tanh(model.dense(torch.cat([u, v, (u - v).abs()])))
        torch.testing.assert_close(found[row], model.out(inner), rtol=1e-5, atol=1e-6)


def test_one_label_is_a_regression():
    model = SequenceClassifier(encoder(SMALL, 40, 16, seed=0), 1, seed=1)
    out = model(tokens(3, 5), labels=torch.tensor([0.5, 4.0, 2.0]))
    errors = [(out.logits[i, 0] - y) ** 2 for i, y in enumerate([0.5, 4.0, 2.0])]
    assert out.loss.item() == pytest.approx(sum(e.item() for e in errors) / 3, rel=1e-5)


def test_masked_lm_projects_to_narrow_embeddings():
    for name in ("albert", "small electra"):
        model = MaskedLanguageModel(body(name), seed=1)
        assert (16, 32) in {p.shape for p in model.head.parameters()}
        assert model(tokens(2, 5)).logits.shape == (10, 40)
        assert sum(p.numel() == 40 * 16 for p in model.parameters()) == 1


def test_a_sentence_pair_head_adds_its_cross_entropy():
    model = MaskedLanguageModel(body("bert"), seed=1, pairs=True)
    given = batch("with pairs")
    out = model(**given)
    hidden = model.encoder(**{k: given[k] for k in list(given)[:3]}).last_hidden_state
    pooled = torch.tanh(hidden[:, 0] @ model.pooler.weight.T + model.pooler.bias)
    logits = pooled @ model.pair.weight.T + model.pair.bias
    assert torch.allclose(out.pair_logits, logits, atol=1e-6)
    surprise = -logits.log_softmax(-1)[[0, 1], [0, 1]].mean()
    alone = model(**{k: v for k, v in given.items() if k != "next_sentence_label"})
    assert alone.pair_logits is not None
    assert out.loss.item() == pytest.approx((alone.loss + surprise).item(), abs=1e-5)
    del given["labels"]
    assert model(**given).loss.item() == pytest.approx(surprise.item(), abs=1e-6)


def test_a_sentence_pair_head_leaves_the_other_weights():
    plain, both = (MaskedLanguageModel(body("bert"), seed=1, pairs=pairs) for pairs in (0, 1))
    assert same(weights(plain.head), weights(both.head))
    assert set(both.state_dict()) - set(plain.state_dict()) == {
        f"{part}.{kind}" for part in ("pooler", "pair") for kind in ("weight", "bias")
    }
    assert plain(tokens(2, 5)).pair_logits is None
    with pytest.raises(ValueError, match="without a sentence-pair head; build it with"):
        plain(tokens(2, 5), next_sentence_label=torch.tensor([0, 1]))


# -- spans and choices -------------------------------------------------------------------------
def test_span_loss_is_the_mean_of_both_cross_entropies():
    model, given = SpanPredictor(body("bert"), seed=1), batch("span")
    out = model(**given)
    assert out.logits.shape == (2, 10, 2)
    assert out.logits[1, 7:].eq(-math.inf).all()
    assert out.logits[0].isfinite().all()
    total = 0.0
    for part, name in enumerate(("start_positions", "end_positions")):
        for row in range(2):
            scores = out.logits[row, : (10, 7)[row], part]
            total += (scores.logsumexp(0) - scores[given[name][row]]).item()
    assert out.loss.item() == pytest.approx(total / 4, abs=1e-5)
    assert out.logits[1].softmax(0)[7:].eq(0).all()


@pytest.mark.parametrize("outside", [-1, 10, 99, 8])
@pytest.mark.parametrize("tuned", [False, True])
def test_span_positions_outside_are_ignored(outside, tuned):
    model, given = SpanPredictor(body("bert"), seed=1), batch("span")
    if tuned:  # the head of a checkpoint that was fine-tuned already
        whole = hf.BertForQuestionAnswering(body("bert").config)
        model = TunedHead(whole.eval(), "QuestionAnswering")
    given["start_positions"] = torch.tensor([2, outside])
    given["end_positions"] = torch.tensor([3, outside])
    out = model(**given)
    scores = out.logits[0]
    expected = (F.cross_entropy(scores.T, torch.tensor([2, 3]))).item()
    assert out.loss.item() == pytest.approx(expected, abs=1e-5)
    given |= {name: torch.tensor([-1, outside]) for name in ("start_positions", "end_positions")}
    nothing = model(**given).loss
    nothing.backward()
    assert nothing.item() == 0


def test_span_positions_come_together():
    model, given = SpanPredictor(body("bert"), seed=1), batch("span")
    del given["end_positions"]
    with pytest.raises(ValueError, match="come together"):
        model(**given)
    del given["start_positions"]
    assert model(**given).loss is None


def test_choices_are_scored_one_by_one():
    model, given = ChoiceScorer(body("bert"), seed=1), batch("choice")
    given["input_ids"] = tokens(2, 2, 10)
    out = model(**given)
    assert out.logits.shape == (2, 2)
    for row in range(2):
        for choice in range(2):
            one = {k: v[row, choice][None] for k, v in given.items() if k != "labels"}
            first = model.encoder(**one).last_hidden_state[0, 0]
            inner = torch.tanh(model.dense.weight @ first + model.dense.bias)
            score = (model.out.weight @ inner + model.out.bias).item()
            assert out.logits[row, choice].item() == pytest.approx(score, abs=1e-5)
    chosen = out.logits.log_softmax(-1)[[0, 1], given["labels"]]
    assert out.loss.item() == pytest.approx(-chosen.mean().item(), abs=1e-6)
    assert model(given["input_ids"]).loss is None


# -- which rows of the last layer a head reads: said of every type, and seen in the logits --------
SIZES = {
    **{"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.5},
    **{"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "pad_token_id": 0},
    **{"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
}
OWN = {  # kind of task -> our head, and the evaluator that builds it
    "SequenceClassification": (lambda body: SequenceClassifier(body, 2, seed=0), GlueEvaluator),
    "MultipleChoice": (lambda body: ChoiceScorer(body, seed=0), SwagEvaluator),
    "QuestionAnswering": (lambda body: SpanPredictor(body, seed=0), SquadEvaluator),
}
LENGTH = 6
FIRST_ROW = (
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "modernbert"),
    *("mpnet", "deberta-v2"),
)


def config(kind: str, **changes: Any) -> Any:
    """A tiny model of that type."""
    return hf.AutoConfig.for_model(kind, **(SIZES | changes))


def rows_that_matter(head: torch.nn.Module, kind: str) -> list[int]:
    """Rows of the last layer whose keys change a logit."""
    shape = (1, 2, LENGTH) if kind == "MultipleChoice" else (1, LENGTH)
    ids = torch.randint(3, 40, shape, generator=torch.Generator().manual_seed(0))
    head.eval()
    found = []
    for row in range(LENGTH):
        logits = []
        for kept in (True, False):
            table = torch.ones(2, 2, LENGTH, LENGTH, dtype=torch.bool)
            table[-1, :, row] = kept
            table[-1, :, row, (row + 1) % LENGTH] = True
            attach(head, masks.table(table))
            with torch.no_grad():
                logits.append(head(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
            detach(head)
        if not torch.equal(*logits):
            found.append(row)
    return found


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("name", FIRST_ROW)
@pytest.mark.nightly
def test_rows_that_are_not_read_reach_no_logit(name: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own, evaluator = OWN[kind]
    read = evaluator.head_reads
    whole = getattr(hf, f"AutoModelFor{kind}").from_config(config(name))
    whole.config.architectures = [type(whole).__name__]
    whole.config.save_pretrained(tmp_path)
    body = hf.AutoModel.from_config(config(name))
    for head, tuned in ((own(body), False), (TunedHead(whole, kind), True)):
        matter = rows_that_matter(head, kind)
        assert matter == [*range(rows_read(tmp_path, read, tuned=tuned) or LENGTH)]


@pytest.mark.parametrize(
    ("name", "changes", "made"),
    [
        ("modernbert", {"classifier_pooling": "mean"}, "ModernBertForSequenceClassification"),
        ("electra", {"summary_type": "mean"}, "ElectraForMultipleChoice"),
        ("albert", {}, "AlbertForSequenceClassification"),
        ("xlnet", {}, "XLNetForSequenceClassification"),
    ],
)
def test_heads_that_pool_otherwise_read_all_rows(name, changes, made, tmp_path):
    hf.AutoConfig.for_model(name, **changes, architectures=[made]).save_pretrained(tmp_path)
    assert rows_read(tmp_path, None, tuned=True) is None


def test_one_layer_that_runs_twice_is_read_whole(tmp_path: Path) -> None:
    config("albert").save_pretrained(tmp_path)
    assert rows_read(tmp_path, SwagEvaluator.head_reads, tuned=False) is None


# -- the named encoders of every architecture ----------------------------------------------------
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encoders_follow_the_seed_and_nothing_else(architecture):
    how = {"architecture": architecture}
    weights_come_from_the_seed(lambda seed: encoder(SMALL, 40, 16, seed=seed, **how))


@pytest.mark.parametrize("size", ["3x96x4", "3 x 96 x 4", {"layers": 3, "width": 96, "heads": 4}])
def test_a_size_of_ones_own_is_taken_as_text_or_mapping(size):
    config = encoder(size, 60, 24, seed=0).config
    assert (config.num_hidden_layers, config.hidden_size) == (3, 96)
    assert (config.num_attention_heads, config.intermediate_size) == (4, 384)
    assert config.initializer_range == pytest.approx(0.02 * (768 / 96) ** 0.5)


@pytest.mark.parametrize(
    ("size", "changed", "said"),
    [
        ("tinny", {}, "unknown model size 'tinny'; did you mean 'tiny'"),
        ("4x130x4", {}, "multiple of its heads, got width 130 with 4 heads; 128 or 132 is"),
        ("2x3x4", {}, "got width 3 with 4 heads; 4 is"),
        ("0x128x4", {}, "layers is a whole number of at least 1, got 0"),
        ("4x128", {}, "unknown model size '4x128'.*layers x width x heads such as 4x128x4"),
        ({"layers": 4, "width": 128}, {}, '"heads": 4}, got'),
        ({"layers": 4, "width": 128.0, "heads": 4}, {}, "width is a whole .* got 128.0"),
        (4, {}, "a model size is a name, .* got 4"),
        ("1x6x2", {"architecture": "modernbert"}, r"even number wide .* got 3 in 1x6x2"),
        (SMALL, {"architecture": "robert"}, "unknown architecture 'robert'; did you mean"),
        (SMALL, {"pad": 40}, r"pad must be a token id in 0\.\.39, got 40"),
    ],
)  # fmt: skip
def test_an_impossible_encoder_is_refused(size, changed, said):
    with pytest.raises(ValueError, match=said):
        encoder(size, 40, 16, seed=0, **changed)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_the_size_and_takes_the_whole_length(architecture):
    model = encoder(SMALL, 40, 16, seed=0, architecture=architecture, pad=3).eval()
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size) == (2, 32)
    assert (config.num_attention_heads, config.vocab_size) == (4, 40)
    assert config.pad_token_id == 3
    assert config.initializer_range == pytest.approx(0.02 * (768 / 32) ** 0.5)
    full = tokens(2, 16) % 36 + 4  # no padding among them
    out = model(input_ids=full).last_hidden_state
    assert out.shape == (2, 16, 32)
    assert out.isfinite().all()
    moved = model(input_ids=full.flip(1)).last_hidden_state.flip(1)
    assert not torch.allclose(out, moved, atol=1e-4)  # the order of the tokens counts
    if architecture != "modernbert":  # whose positions are rotations, without an end
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 17), 5))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_reaches_every_architecture(architecture):
    given = tokens(1, 8) % 36 + 4
    for dropout, moves in ((0.0, False), (0.5, True)):
        model = encoder(SMALL, 40, 16, seed=0, dropout=dropout, architecture=architecture).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            one, two = (model(input_ids=given).last_hidden_state for _ in range(2))
        assert torch.equal(one, two) is not moves
