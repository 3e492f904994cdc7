"""Marks of words and sentences, and the Hub that does not answer."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from masksearch.errors import DataError
from masksearch.tasks.text.files import hub_answers
from masksearch.tasks.text.tokenizer import sentence_ends, word_piece, word_starts

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def started(made: Tokenizer) -> set[str]:
    return {str(made.id_to_token(number)) for number in word_starts(made).nonzero().flatten()}


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
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **settings},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
    last = done.stderr.strip().splitlines()[-1]
    assert "DataError" in last
    assert "tokenizer=PATH" in last or "--corpus FILE_OR_FOLDER" in last
    assert "Retrying" not in done.stderr
    assert len(asked) <= 2  # by us, and by transformers, which look once more
