"""Texts reach a model's tokenizer as they stand in their file, with all of their white space."""

import csv
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

import masksearch as ms
from masksearch import masks
from masksearch.evaluators.embedding import find_texts
from masksearch.tasks.glue import load_glue
from masksearch.tasks.glue.columns import Columns
from masksearch.tasks.text.rows import TokenRows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*rows have the texts of a training row"),
]

LENGTH = 24
WORDS = ["red", "blue", "green", "a", "b", "."]
SPACES = ["\n", "\r\n", "\r", "\t", " ", "  ", "\x0b", "\x85", "\xa0", "\u2028"]
TEXTS = st.lists(st.sampled_from([*WORDS, *SPACES]), min_size=1, max_size=9).map("".join)
ENDS = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
ROLES = dict(pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>")


def word_piece() -> Tokenizer:
    names = [*ENDS, *WORDS, "r", "##e", "##d", "##b", "##a"]
    made = Tokenizer(models.WordPiece({n: at for at, n in enumerate(names)}, unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def byte_level() -> Tokenizer:
    names = [*ENDS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "re", "red"]
    merges = [("r", "e"), ("re", "d")]
    made = Tokenizer(models.BPE({n: at for at, n in enumerate(names)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def unigram() -> Tokenizer:
    names = [*WORDS, "\u2581", "\u2581red", "\u2581a", "r", "e", "d", "\n", "\t", "\x85"]
    pieces = [*((name, 0.0) for name in ENDS), *((name, -2.0) for name in names)]
    made = Tokenizer(models.Unigram(pieces, unk_id=1))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece": word_piece,
    "byte-level BPE": byte_level,
    "Unigram": unigram,
}


@pytest.fixture(scope="module", params=[*KINDS])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with random weights, of two classes, with such a tokenizer."""
    folder, made = tmp_path_factory.mktemp("model") / "tuned", KINDS[request.param]()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[(name, made.token_to_id(name)) for name in ("<s>", "</s>")],
    )
    whole = PreTrainedTokenizerFast(tokenizer_object=made, **ROLES)
    whole.save_pretrained(folder)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    sizes |= dict(vocab_size=len(whole), max_position_embeddings=2 * LENGTH)
    kind = BertConfig if request.param == "WordPiece" else RobertaConfig
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = kind(**sizes, pad_token_id=0, initializer_range=0.5)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():  # such that a share of texts has each answer
        gaps = [model(**whole(t, return_tensors="pt")).logits.diff()[0, 0] for t in ANCHORS]
        last = [*model.parameters()][-1]
        last[1] -= torch.stack(gaps).median() + 1e-3
    model.save_pretrained(folder)
    return folder


ANCHORS = [f"{one} {two}" for one in WORDS for two in WORDS]  # texts beside the drawn ones


@cache
def ids_alone(model: Path, text: str) -> list[int]:
    """The ids that transformers alone makes of a text."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids: list[int] = tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"]
    return ids


def same_ids(model: Path, rows: TokenRows, texts: Sequence[str]) -> None:
    assert [row.ids for row in rows] == [ids_alone(model, text) for text in texts]


def write_csv(path: Path, texts: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [[text, at % 2] for at, text in enumerate(texts)]
        csv.writer(file).writerows([("text", "label"), *rows])


def write_tsv(path: Path, texts: Sequence[str]) -> None:
    lines = ["text\tlabel", *(f"{text}\t{at % 2}" for at, text in enumerate(texts))]
    path.write_bytes("".join(line + "\n" for line in lines).encode())


def write_json(path: Path, texts: Sequence[str]) -> None:
    escaped = bool(len(texts) % 2)
    lines = [json.dumps({"n": 1, "text": text}, ensure_ascii=escaped) for text in texts]
    path.write_bytes("".join(line + "\r\n" for line in lines).encode())


def write_lines(path: Path, texts: Sequence[str]) -> None:
    path.write_bytes("".join(text + "\n" for text in texts).encode())


WRITERS = {".csv": write_csv, ".tsv": write_tsv, ".jsonl": write_json, ".txt": write_lines}
LOST = {".tsv": "\t\n", ".txt": "\n"}  # what no text of such a file can hold


def fit(texts: Sequence[str], ending: str) -> list[str]:
    """The texts as a file of that form can hold them, each once."""
    lost = str.maketrans(dict.fromkeys(LOST.get(ending, ""), "\u2028"))
    kept = [text.translate(lost) for text in [*texts, *ANCHORS]]
    kept = [text.rstrip("\r") for text in kept] if ending == ".txt" else kept  # a line's end
    return [*dict.fromkeys(kept)]


def judge_of(
    model: Any, folder: Path, texts: list[str], ending: str, task: Columns
) -> ms.GlueEvaluator:
    """Judges by a folder of these texts, which it writes."""
    for part in ("train", "dev"):
        WRITERS[ending](folder / f"{part}{ending}", texts)
    how = dict(length=LENGTH, adapt="none", split="all", device="cpu", cache=folder / "cache")
    return ms.GlueEvaluator(None, folder, tasks=task, weights=model, **how)


def lasting(**how: Any) -> Any:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(deadline=None, suppress_health_check=quiet, **how)


@lasting(max_examples=12)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from([".csv", ".tsv"]))
def test_a_classifier_reads_the_cells_of_its_tables(model, tmp_path_factory, texts, ending):
    folder, texts = tmp_path_factory.mktemp("own"), fit(texts, ending)
    rows = judge_of(model, folder, texts, ending, Columns(("text",), "label")).tokens()
    same_ids(model, rows.train, texts)
    same_ids(model, rows.dev[folder.name], texts)


@lasting(max_examples=12)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from([".csv", ".tsv"]))
def test_answers_are_to_the_cells_and_so_are_their_files(model, tmp_path_factory, texts, ending):
    folder, texts = tmp_path_factory.mktemp("own"), fit(texts, ending)
    judge = judge_of(model, folder, texts, ending, Columns(("text",)))
    same_ids(model, judge.tokens().dev[folder.name], texts)
    whole = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        logits = [whole(input_ids=torch.tensor([ids_alone(model, t)])).logits[0] for t in texts]
    sure = [at for at, each in enumerate(logits) if each.diff().abs() > 1e-4]
    answers = judge.tokens().dev[folder.name].labels
    assert [answers[at] for at in sure] == [int(logits[at].argmax()) for at in sure]


@lasting(max_examples=12)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from([*WRITERS]))
def test_an_embedding_model_reads_the_texts_of_its_file(model, tmp_path_factory, texts, ending):
    pytest.importorskip("sentence_transformers", reason="the extra `embed`")
    folder, texts = tmp_path_factory.mktemp("own"), fit(texts, ending)
    more = [f"{text}{space}b" for space in ("\t", " ", "\x85") for text in ANCHORS]
    texts = [*dict.fromkeys(fit([*texts, *more], ending))]
    WRITERS[ending](folder / f"texts{ending}", texts)
    embedder, columns = embedding(model), () if ending == ".txt" else ("text",)
    how = dict(columns=columns, length=LENGTH, split="all", device="cpu")
    judge = ms.EmbeddingEvaluator(folder / f"texts{ending}", embedder, **how)
    parts = find_texts(judge.texts, judge.columns)
    assert sorted(parts["train"] + parts["dev"]) == sorted(text for text in texts if text.strip())
    same_ids(model, judge.data.train, parts["train"])
    same_ids(model, judge.data.queries, parts["dev"])


@cache
def embedding(model: Path) -> Path:
    """The folder of a SentenceTransformer over that model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    parts = [Transformer(str(model), max_seq_length=LENGTH), Pooling(16)]
    folder = model.with_name("embedder")
    made = SentenceTransformer(modules=parts, device="cpu")
    made.save_pretrained(str(folder), create_model_card=False)
    return folder


def test_a_model_earns_its_own_answers_as_labels(model, tmp_path):
    """Line breaks, tabs and spaces at the ends of cells are part of what it is asked."""
    whole = AutoModelForSequenceClassification.from_pretrained(model).eval()
    texts = [f"{space}{text.replace(' ', space)} " for text in ANCHORS for space in ("\n", "\t")]
    with torch.no_grad():
        logits = [whole(input_ids=torch.tensor([ids_alone(model, t)])).logits[0] for t in texts]
    rows = [(t, int(each.argmax())) for t, each in zip(texts, logits, strict=True)]
    rows = [row for row, each in zip(rows, logits, strict=True) if each.diff().abs() > 1e-4]
    for part in ("train", "dev"):
        with (tmp_path / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    task, how = Columns(("text",), "label"), dict(length=LENGTH, split="all", device="cpu")
    how |= dict(adapt="none", cache=tmp_path / "cache", weights=model, tasks=task)
    judge = ms.GlueEvaluator(None, tmp_path, **how)
    *_, last = judge(masks.full(), seed=0, workdir=tmp_path / "work")
    assert last.values["glue"] == 1.0


@pytest.mark.parametrize(
    ("gap", "before"), [(" ", "e8f1092cc0f69e76"), ("\n", "b6f01b0dfd51cd16")]
)
def test_ids_of_texts_of_one_line_stay_and_those_of_others_change(tmp_path, gap, before):
    """SOURCE of `before`: the digests while line breaks were read as spaces."""
    (tmp_path / "own").mkdir()
    for part in ("train", "dev"):
        rows = f'text,label\n"{part} one{gap}two",0\n"{part} two  three",1\n'
        (tmp_path / "own" / f"{part}.csv").write_text(rows)
    data = load_glue(tmp_path, Columns(("text",), "label").read(tmp_path / "own"))
    assert (data.digest == before) == (gap == " ")
