"""Plain ways: rows that are cut as the tokenizer cuts them, and layers that stay."""

from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_checkpoint import tiny_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from masksearch import masks
from masksearch.models.pretrained import TunedHead
from masksearch.sparsifier.faster import fit_cut
from masksearch.sparsifier.ways import SETS, Way, layer_sets
from masksearch.tasks.text.rows import TokenRows, read_tokenizer, tokenize_rows

WORDS = [f"w{number}" for number in range(40)]
SIZES = [*product(range(1, 9), (1, 4, 9))]
PAIRS = [(" ".join(WORDS[:a]), " ".join(WORDS[20 : 20 + b])) for a, b in SIZES]


def roberta(folder: Path) -> Path:
    """A tokenizer with two separators between texts, and no token types."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {word: at for at, word in enumerate([*special, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    names |= {"bos_token": "<s>", "eos_token": "</s>", "model_input_names": ["input_ids"]}
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    return folder


@pytest.fixture(params=["bert", "roberta"])
def folder(request, tmp_path) -> Path:
    if request.param == "roberta":
        return roberta(tmp_path / "roberta")
    return tiny_checkpoint(tmp_path / "bert", WORDS)


def rows_of(folder: Path, texts: list[tuple[str, ...]], length: int) -> TokenRows:
    return tokenize_rows(read_tokenizer(folder, length), texts, [0] * len(texts))


@pytest.mark.parametrize("texts", [PAIRS, [(one,) for one, _ in PAIRS]], ids=["pairs", "single"])
@pytest.mark.parametrize("most", [7, 10, 11])
def test_rows_are_cut_as_the_tokenizer_cuts_them(folder, texts, most):
    cut, made = Way(cut=most).rows(rows_of(folder, texts, 48)), rows_of(folder, texts, most)
    assert [list(cut.ids[at]) for at in range(len(cut))] == [
        list(made.ids[at]) for at in range(len(made))
    ]
    assert cut.firsts.tolist() == made.firsts.tolist()


def test_heads_and_tails_stay_of_long_texts_alone(folder):
    whole = rows_of(folder, PAIRS, 48)
    cut, head = Way(cut=11, ends=True).rows(whole), Way(cut=11).rows(whole)
    for at, size in enumerate(whole.lengths):
        ids, every = list(cut.ids[at]), list(whole.ids[at])
        assert len(ids) == min(11, size) == len(head.ids[at])
        assert (ids[0], ids[-1]) == (every[0], every[-1])
        assert sorted(ids, key=every.index) == ids or len({*every}) < size  # in their order
        assert {*ids} <= {*every}
        assert (ids == every) == (size <= 11)
    one, two = SIZES.index((8, 1)), SIZES.index((8, 9))
    words = whole.ids[two][1:9], whole.ids[two][-10:-1]
    assert [each for each in cut.ids[one] if each in words[0]][-1] == words[0][-1]
    assert [each for each in cut.ids[two] if each in words[1]][-1] == words[1][-1]
    assert words[0][2] not in cut.ids[two]


def test_batches_are_padded_to_their_longest_row_and_sorted_where_asked(tmp_path):
    rows = rows_of(tiny_checkpoint(tmp_path, WORDS), [(one,) for one, _ in PAIRS], 48)
    widths = [batch["input_ids"].shape[1] for batch in Way(by_length=True).batches(rows, 3)]
    assert widths == sorted(widths) == sorted({*rows.lengths})
    (batch,) = Way().batches(rows, len(rows))
    assert batch.keys() == {"input_ids", "attention_mask", "token_type_ids"}


@pytest.mark.parametrize(("layers", "fewer"), [(6, 1), (6, 2), (12, 2), (48, 2)])
def test_sets_of_layers_are_few_and_neighbours_leave_first(layers, fewer):
    sets = layer_sets(layers, fewer)
    assert len({*sets}) == len(sets) == min(SETS, len([*combinations(range(layers), fewer)]))
    out = [[at for at in range(layers) if at not in each] for each in sets]
    spread = [each[-1] - each[0] for each in out]
    assert spread == sorted(spread)
    assert spread[0] == fewer - 1


def test_layers_that_stay_are_the_model_s_own_and_the_rule_changes_no_answer():
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(vocab_size=9, num_hidden_layers=3, **sizes))
    head = TunedHead(model.eval(), "SequenceClassification")
    ids = torch.arange(16)[None] % 9  # as many tokens as `attach` tries, which is no other mask's
    layers = [*model.bert.encoder.layer]
    with torch.no_grad():
        dense = head(ids).logits
        ruled = Way(mask=masks.full(), read=1).on(head)(ids).logits
    assert torch.allclose(ruled, dense, atol=1e-6)
    less = Way(layers=(0, 2)).on(head)
    assert [*less.whole.bert.encoder.layer] == [layers[0], layers[2]]
    assert less.whole.config.num_hidden_layers == 2


@pytest.mark.parametrize("target", [1.05, 1.5, 2.5, 6.0, 50.0])
def test_inputs_are_cut_as_little_as_the_target_lets_them(target):
    """A pass has a part that no cut shortens, so that a line through two lengths bends."""
    timed: list[int] = []

    def speed(cut: int) -> float:
        return 1 / (0.1 + 0.5 * cut / 96 + 0.4 * (cut / 96) ** 2)

    def times(ways: dict[str, Way], say: str) -> dict[str, list[float]]:
        timed.extend(way.cut for way in ways.values() if way.cut)
        return {name: [speed(way.cut or 96)] * 3 for name, way in ways.items()}

    trials: Any = SimpleNamespace(rows=SimpleNamespace(lengths=[20, 96]), times=times)
    most = fit_cut(trials, Way(), target)
    assert len(timed) <= 3 + 3
    if target > speed(8):
        assert most < 24
    else:
        assert speed(most) >= target
        assert speed(most + 8) < target
