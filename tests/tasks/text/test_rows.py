"""Rows are made by a checkpoint's own tokenizer; which rows of GLUE differ from BERT's layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import DATA, minilm, real
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, EsmTokenizer, PreTrainedTokenizerFast

from masksearch.contracts import Batch
from masksearch.errors import DataError
from masksearch.tasks.glue.read import load_glue
from masksearch.tasks.text.rows import (
    CheckpointTokenizer,
    bert_rows,
    digest_in_layout,
    read_tokenizer,
    tokenize_rows,
)
from masksearch.tasks.text.tokenizer import Vocabulary, read_vocabulary

NAMES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = "red blue green Red \u2581red \u2581blue \u2581 r e d <new>".split()
PAIR, TWO_ENDS = "<s> $A </s> $B:1 </s>:1", "<s> $A </s> </s> $B </s>"
SPECIAL = {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
TYPED = ["input_ids", "token_type_ids", "attention_mask"]


def saved(
    folder: Path,
    *,
    model: Any = None,
    pair: str | None = PAIR,
    normalizer: Any = None,
    splitter: Any = None,
    lacks: tuple[str, ...] = (),
    added: tuple[str, ...] = (),
    **how: Any,
) -> Path:
    """The folder of a tokenizer as transformers saves it."""
    numbers = {word: at for at, word in enumerate([*NAMES, *WORDS])}
    made = Tokenizer(model or models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = splitter or pre_tokenizers.WhitespaceSplit()
    made.normalizer = normalizer
    if pair is not None:
        ends = [(name, made.token_to_id(name)) for name in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair=pair, special_tokens=ends
        )
    names = {f"{role}_token": name for role, name in SPECIAL.items() if role not in lacks}
    whole = PreTrainedTokenizerFast(
        tokenizer_object=made, **{"model_input_names": TYPED, **names, **how}
    )
    whole.add_tokens(list(added))
    whole.save_pretrained(folder)
    return folder


def esm(folder: Path) -> Path:
    """A slow tokenizer, which has no tokenizer.json."""
    letters = ["<cls>", "<pad>", "<eos>", "<unk>", *"redblugn", "<mask>"]
    (folder / "vocab.txt").write_text("\n".join(letters))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


PIECES = [*((name, 0.0) for name in NAMES), *((word, -2.0) for word in WORDS)]
BYTES = {name: at for at, name in enumerate([*NAMES, *pre_tokenizers.ByteLevel.alphabet()])}
FORMS: dict[str, Callable[[Path], Path]] = {
    "as BERT's": saved,
    "two separators": lambda to: saved(to, pair=TWO_ENDS, model_input_names=TYPED[::2]),
    "prefix space": lambda to: saved(
        to, splitter=pre_tokenizers.Metaspace(prepend_scheme="always")
    ),
    "no types": lambda to: saved(to, model_input_names=TYPED[::2]),
    "left padding": lambda to: saved(to, padding_side="left"),
    "left truncation": lambda to: saved(to, truncation_side="left"),
    "no pad token": lambda to: saved(to, lacks=("pad",), eos_token="</s>"),
    "added tokens": lambda to: saved(to, added=("e d",)),
    "lower case": lambda to: saved(to, normalizer=normalizers.Lowercase()),
    "Unigram": lambda to: saved(
        to, model=models.Unigram(PIECES, unk_id=3), splitter=pre_tokenizers.Metaspace()
    ),
    "byte level": lambda to: saved(
        to, model=models.BPE(BYTES, [], unk_token="<unk>"), splitter=pre_tokenizers.ByteLevel()
    ),
    "slow": esm,
    "adds nothing": lambda to: saved(to, pair=None),
}
texts = st.lists(st.sampled_from([*WORDS, "<s>", "e d", "new", "\u00e9"]), max_size=12).map(
    " ".join
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("form")) for name, make in FORMS.items()}


def rows_of(batch: Batch) -> list[dict[str, list[int]]]:
    """What stands under the attention mask, row by row."""
    lengths = batch["attention_mask"].sum(1).tolist()
    names = [name for name in batch if name != "labels"]
    return [
        {n: batch[n][at, :length].tolist() for n in names} for at, length in enumerate(lengths)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=5), length=st.integers(8, 20))
def test_rows_are_what_the_tokenizer_makes(folders, name, pairs, length):
    theirs = AutoTokenizer.from_pretrained(folders[name])
    source = read_tokenizer(folders[name], length)
    assert isinstance(source, CheckpointTokenizer)
    for rows in (pairs, [(one,) for one, _ in pairs]):
        if name == "adds nothing":  # a row without a token is none
            rows = [tuple(f"{text} red" for text in row) for row in rows]
        batch = tokenize_rows(source, rows, [0] * len(rows)).batch(range(len(rows)))
        columns = [list(column) for column in zip(*rows, strict=True)]
        expected = theirs(*columns, truncation=True, max_length=length)
        for at, row in enumerate(rows_of(batch)):
            assert row == {name: lists[at] for name, lists in expected.items()}
        pads = batch["input_ids"][batch["attention_mask"] == 0]
        assert set(pads.tolist()) <= {2 if name == "no pad token" else 1}


@pytest.mark.parametrize("name", sorted({*FORMS} - {"Unigram", "prefix space"}))
def test_a_row_is_joined_as_the_tokenizer_joins_it(folders: dict[str, Path], name: str) -> None:
    """By `RowLayout`: for tasks that cut their texts themselves."""
    source = read_tokenizer(folders[name], 20)
    one, two = source.encode(["red", "e d"])
    for row in ((one, two), (one,)):
        expected = source.whole(*["red", "e d"][: len(row)])
        ids, first = source.layout.join(*row)
        assert ids == expected["input_ids"]
        kinds = [0] * first + [1] * (len(ids) - first)
        assert kinds == expected.get("token_type_ids", [0] * len(ids))


@pytest.mark.parametrize("name", FORMS)
def test_protocols_change_where_rows_are_not_as_they_were(folders, name):
    """As they were: BERT's layout, each text without its own special tokens."""
    source, row = read_tokenizer(folders[name], 8), ("red red blue green red green green",)
    same = name in ("as BERT's", "left padding", "added tokens", "lower case", "Unigram")
    same |= name in ("prefix space", "byte level", "no pad token")
    assert (tokenize_rows(source, [row], [0]).digest == "") == same
    assert (digest_in_layout(source, "x") == "x") == (same or name == "left truncation")


def test_other_inputs_than_ids_and_types_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, pair="<s>:2 $A:0 </s>:0 $B:1 </s>:1")
    with pytest.raises(DataError, match=r"types \[2, 0, 0, 1, 1\]; masksearch feeds .*0, then 1"):
        tokenize_rows(read_tokenizer(folder, 8), [("red", "blue")], [0])


@real
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("task", "length", "numbers"),
    [
        ("QNLI", 64, [1409, 1982, 2490, 2809]),
        ("RTE", 64, [494, 543, 563, 873, 986, 1109]),
        ("WNLI", 64, [73, 425]),
        ("QQP", 128, [1863]),
        ("SST-2", 64, []),
        ("CoLA", 64, []),
        ("STS-B", 128, []),
    ],
)
def test_rows_of_glue_that_differ_from_those_before(task, length, numbers):
    """Pairs of which both texts are cut: their odd token is the longer text's, and was the first
    one's. All others of the first 3,000 have the ids that BERT's layout gives."""
    source = read_tokenizer(minilm(), length)
    data = load_glue(DATA / "glue", task, None, dev_rows=None)
    texts = [row for part in (data.train, *data.dev.values()) for row in part.texts][:3000]
    made, before = source.rows(texts), bert_rows(read_vocabulary(minilm(), length), texts)
    other = [at for at, (one, two) in enumerate(zip(made, before, strict=True)) if one != two]
    assert other[: len(numbers)] == numbers
    assert len(other) == {"RTE": 11}.get(task, len(numbers))
    for at in other:
        (ids, first), (old, cut) = made[at], before[at]
        assert len(ids) == len(old) == length
        assert first == cut - 1


def test_a_file_that_says_how_rows_are_made_is_obeyed(tmp_path: Path) -> None:
    file = saved(tmp_path, pair=TWO_ENDS) / "tokenizer.json"
    batch = tokenize_rows(read_tokenizer(file, 16), [("red", "blue")], [0]).batch([0])
    assert rows_of(batch)[0]["input_ids"] == [0, 5, 2, 2, 6, 2]


def test_a_list_of_tokens_has_rows_in_the_layout_of_bert(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue"]))
    source = read_tokenizer(file, 16)
    assert isinstance(source, Vocabulary)
    (row,) = rows_of(tokenize_rows(source, [("red", "blue")], [0]).batch([0]))
    assert row["input_ids"] == [2, 5, 3, 6, 3]
    assert row["token_type_ids"] == [0, 0, 0, 1, 1]
