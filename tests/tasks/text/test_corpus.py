"""Reading, tokenizing, packing and caching text."""

import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from other_process import python
from real_data import DATA, real

from masksearch.errors import DataError
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.files import marked_pieces, split_files

WORDS = [f"{a}{b}{c}" for a in "bdgk" for b in "aeiou" for c in ("n", "rt", "st", "lling")]

CODE = """import sys; from masksearch.tasks.text.corpus import Corpus
print(Corpus.load(sys.argv[1], vocabulary=120, length=16).digest)"""


def text(words: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    lines = []
    while words > 0:
        count = min(words, draw.randint(5, 15))
        lines.append(" ".join(draw.choices(WORDS, k=count)))
        words -= count
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.mkdir()
    (path / "a.txt").write_text(text(3000), encoding="utf-8")
    (path / "b.txt").write_text(text(2000, 1), encoding="utf-8-sig")
    return path


def load(path: Path, **settings: object) -> Corpus:
    settings = {"vocabulary": 120, "length": 16, "cache": path.parent / "cache"} | settings
    return Corpus.load(path, **settings)  # type: ignore[arg-type]


def test_valid_is_held_out_and_test_left_out(folder: Path) -> None:
    before = load(folder)
    (folder / "test.txt").write_text("zzz " * 5000, encoding="utf-8")
    assert load(folder).digest == before.digest
    (folder / "Valid.txt").write_text(text(500, 3), encoding="utf-8")
    after = load(folder)
    assert len(after.train) + len(after.held_out) > len(before.train) + len(before.held_out)


def test_held_out_file_is_named(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text(700, 4), encoding="utf-8")
    corpus = load(folder / "a.txt", held_out=other)
    assert (
        corpus.tokenizer.decode(whole(corpus.held_out)[0].tolist()).split()[0]
        == text(700, 4).split()[0]
    )


def test_a_held_out_file_of_the_folder_is_not_trained_on(folder: Path) -> None:
    (link := folder.parent / "link").symlink_to(folder, target_is_directory=True)
    for spelled in (folder / "b.txt", link / "b.txt"):
        train, valid = split_files(folder, spelled)
        assert (folder / "b.txt" in train, valid) == (False, [spelled])


def test_one_long_line_is_held_out_too(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text(text(30_000).replace("\n", " "), encoding="utf-8")
    corpus = load(path)
    assert len(corpus.held_out) / len(corpus.train) == pytest.approx(0.05 / 0.95, abs=0.01)


@pytest.mark.nightly
def test_vocabulary_is_the_same_in_every_process(folder: Path) -> None:
    settings = {"MASKSEARCH_CACHE": str(folder / "cache"), "PYTHONHASHSEED": "7"}
    done = python("-c", CODE, folder, env=settings, check=True)
    assert done.stdout.strip() == load(folder).digest


def test_held_out_share_does_not_shape_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text(4000) + "qqqqxqqqq\n" * 20, encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text(text(400))
    assert "q" not in load(path).tokenizer.get_vocab()
    assert "q" in load(path, held_out=other).tokenizer.get_vocab()
    path.write_text(text(3000) + "qqqqxqqqq\n" * 20 + text(1000))
    assert "q" in load(path).tokenizer.get_vocab()
    assert "q" not in load(path, held_out=0.4).tokenizer.get_vocab()


def test_digest_follows_text_tokenizer_and_length(folder: Path) -> None:
    digests = {
        load(folder).digest,
        load(folder, length=18).digest,
        load(folder, vocabulary=100).digest,
    }
    (folder / "a.txt").write_text(text(3000, 9), encoding="utf-8")
    digests.add(load(folder).digest)
    assert len(digests) == 4


def whole(rows: Any) -> torch.Tensor:
    return rows[torch.arange(len(rows))]


def same(one: Corpus, two: Corpus) -> bool:
    return one.digest == two.digest and all(
        torch.equal(whole(a), whole(b))
        for a, b in ((one.train, two.train), (one.held_out, two.held_out))
    )


def test_cache_is_used_and_equal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(folder)
    monkeypatch.setattr("masksearch.tasks.text.corpus.write_tokens", None)
    again = load(folder)
    assert same(first, again)
    assert first.encode(["ban dart"]) == again.encode(["ban dart"])
    (stored,) = (folder.parent / "cache").glob("corpus-*[0-9a-f]")
    assert not list((folder.parent / "cache").glob("*.partial"))
    names = {"train.ids", "held_out.ids", "tokenizer.json", "about.json"}
    assert names <= {file.name for file in stored.iterdir()}


def test_what_a_killed_process_leaves_is_cleared(folder: Path) -> None:
    first = load(folder)
    (stored,) = (folder.parent / "cache").glob("corpus-*[0-9a-f]")
    left = stored.with_suffix(".partial")
    stored.rename(left)
    assert same(load(folder), first)
    assert stored.exists()
    assert not left.exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("about.json", damage) for damage in ("cut", "text", "empty", "gone")),
        *((name, "cut") for name in ("train.ids", "train.documents.npy", "tokenizer.json")),
        ("train.ids", "empty"),
    ],
)
def test_damaged_cache_is_made_again(folder: Path, name: str, damage: str) -> None:
    first = load(folder)
    (file,) = (folder.parent / "cache").glob(f"corpus-*/{name}")
    data = file.read_bytes()
    file.unlink()  # who has it mapped goes on reading
    if damage != "gone":
        file.write_bytes({"cut": data[:-40], "text": b"hello", "empty": b""}[damage])
    with pytest.warns(UserWarning, match="made again"):
        again = load(folder)
    assert same(first, again)
    assert file.read_bytes() == data


def test_a_full_disk_is_named(folder: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(6 * 2**20))
    with pytest.raises(DataError, match=r"cannot be kept in .*; set MASKSEARCH_CACHE"):
        load(folder, cache=small_disk)
    assert not list(small_disk.glob("*.partial"))


@pytest.mark.nightly
def test_processes_that_start_together_make_one_cache(folder: Path) -> None:
    cache = folder.parent / "cache"
    run = [sys.executable, "-W", "error", "-c", CODE, str(folder)]
    env = {**os.environ, "MASKSEARCH_CACHE": str(cache)}
    both = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    digests = {process.communicate(timeout=120)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert digests == {load(folder).digest}
    assert len(list(cache.glob("corpus-*[0-9a-f]"))) == 1


def test_cache_folder_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSEARCH_CACHE", str(folder.parent / "mine"))
    load(folder, cache=None)
    assert list((folder.parent / "mine").glob("corpus-*"))


def test_vocab_txt_and_folder_and_json_agree(folder: Path, tmp_path: Path) -> None:
    made = load(folder)
    tokens = sorted(made.tokenizer.get_vocab().items(), key=lambda item: item[1])
    local = tmp_path / "local"
    local.mkdir()
    (local / "vocab.txt").write_text("\n".join(token for token, _ in tokens) + "\n")
    by_file = load(folder, tokenizer=local / "vocab.txt")
    assert torch.equal(whole(by_file.train), whole(load(folder, tokenizer=local).train))
    assert torch.equal(whole(by_file.train)[:50], whole(made.train)[:50])
    made.tokenizer.save(str(local / "tokenizer.json"))
    assert torch.equal(whole(load(folder, tokenizer=str(local)).train), whole(by_file.train))


def test_cased_list_keeps_capitals(tmp_path: Path, folder: Path) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Ban", "ban"]
    (tmp_path / "vocab.txt").write_text("\n".join(names))
    corpus = load(folder, tokenizer=tmp_path / "vocab.txt")
    assert corpus.encode(["Ban ban"]) == [[5, 6]]


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("nowhere", None, {}, r"no such text file or folder: .*nowhere"),
        ("empty/a.md", "x", {}, r"holds no \*\.txt"),
        ("short.txt", "ban dart\n", {}, r"short\.txt holds .* at least a sequence of 16 pos"),
        ("short.txt", "", {}, "holds 0 tokens"),
        ("long.txt", text(500), {"length": 2}, "length must be at least 3"),
        ("long.txt", text(500), {"vocabulary": 8}, "at least 32 token ids"),
        ("only/valid.txt", text(500), {}, "no training text"),
        ("a.csv", text(500), {}, r"a\.csv is a table; name its .*, or give a corpus as hf:FOLDER"),
        ("a.jsonl", text(500), {}, r"a\.jsonl is a table; .*, or give a corpus as hf:FOLDER#COL"),
        ("a.Parquet", text(500), {}, r"is no text; convert .*, or give a corpus as hf:FOLDER#COL"),
        ("a.txt.zst", text(500), {}, r"a\.txt\.zst is packed; unpack it"),
    ],
)
def test_errors_say_what_and_where(tmp_path, name, content, settings, message):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError if settings else DataError, match=message):
        load(tmp_path / Path(name).parts[0], cache=tmp_path / "cache", **settings)


def test_tokenizer_errors(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "tokenizer.json"
    bad.write_text("{}")
    with pytest.raises(DataError, match=r"is not a tokenizer\.json"):
        load(folder, tokenizer=bad)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"not a WordPiece list"):
        load(folder, tokenizer=tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\nban\n")
    with pytest.raises(DataError, match=r"no mask token \(\[MASK\]"):
        load(folder, tokenizer=tmp_path / "vocab.txt")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"no tokenizer 'masksearch/nothing'.*tokenizer=PATH"):
        load(folder, tokenizer="masksearch/nothing")


def test_a_cache_that_cannot_be_written_is_refused(folder: Path) -> None:
    blocked = folder.parent / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*file: .*; set MASKSEARCH_CACHE"):
        load(folder, cache=blocked)


def test_digest_of_known_text_stays(tmp_path: Path) -> None:
    """SOURCE: the corpus before it was mapped; protocols of stored records rest on it."""
    (tmp_path / "a.txt").write_text(text(3000), encoding="utf-8")
    assert load(tmp_path / "a.txt").digest == "4935da8bf0845ed8"


def test_the_vocabulary_holds_every_id_of_a_list_with_repeats(tmp_path: Path) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    listed = tmp_path / "vocab.txt"
    listed.write_text("\n".join([*names, "ab", "ab", "ab", "cd"]))
    path = tmp_path / "a.txt"
    path.write_text("ab cd " * 200)
    corpus = load(path, tokenizer=listed)
    assert int(whole(corpus.train).max()) == 8
    assert corpus.vocabulary == 9


@real
@pytest.mark.nightly
def test_wikitext_token_counts(tmp_path: Path) -> None:
    corpus = Corpus.load(DATA / "wikitext-2", cache=tmp_path)
    assert corpus.train.shape == (23_095, 128)
    assert corpus.held_out.shape == (2_410, 128)
    assert corpus.vocabulary == 4096


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
def test_ids_and_boundaries_match_a_loop(tmp_path, monkeypatch, chunk):
    """Documents are files, paragraphs what follows a blank line; the end of the last file is held
    out, and its boundaries are counted from where it begins."""
    monkeypatch.setattr("masksearch.tasks.text.packing.CHUNK", chunk)
    draw, tokens = random.Random(1), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    (tmp_path / "text").mkdir()
    ids: list[int] = []
    documents, paragraphs = set(), set()
    for name in "xyz":
        lines = [
            " ".join(draw.choices("ab.z", k=5)) if draw.random() < 0.8 else "" for _ in "z" * 60
        ]
        (tmp_path / "text" / f"{name}.txt").write_text("\n".join(lines))
        documents.add(len(ids))
        for before, line in pairwise(["", *lines]):
            paragraphs |= {len(ids)} if line and not before else set()
            ids += [tokens.index(word) if word in tokens else 1 for word in line.split()]
    corpus = load(tmp_path / "text", tokenizer=tmp_path / "vocab.txt", length=12)
    assert corpus.begins is not None
    start = len(ids) - round(0.05 * len(ids))
    for first, rows, begins in zip(
        (0, start), (corpus.train, corpus.held_out), corpus.begins, strict=True
    ):
        count, packed = len(rows) * 10, whole(rows)
        assert (rows.shape, packed.dtype) == ((len(rows), corpus.length), torch.int32)
        assert packed[:, 1:-1].flatten().tolist() == ids[first : first + count]
        assert {(row[0], row[-1]) for row in packed.tolist()} == {(2, 3)}  # [CLS], [SEP]
        for found, places in ((begins.documents, documents), (begins.paragraphs, paragraphs)):
            inside = {at - first for at in places if first <= at < first + count}
            assert found.tolist() == sorted({0} | inside)
    rows = corpus.train[torch.tensor([3, 0, 3])]
    assert torch.equal(rows, whole(corpus.train)[[3, 0, 3]])
    rows.zero_()  # a copy
    assert (whole(corpus.train)[:, 0] == corpus.special["cls"]).all()
    with pytest.raises(IndexError, match="is out of bounds"):
        corpus.train[torch.tensor([len(corpus.train)])]


# -- lines of text files, and what begins with them ---------------------------------------------
TEXT, PARAGRAPH, DOCUMENT = 0, 1, 2


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_files_and_blank_lines_part(tmp_path: Path) -> None:
    one = written(tmp_path, "a", "\na\nb\n\n \nc\n")
    two = written(tmp_path, "b", "d\r\n\r\ne")
    assert list(marked_pieces([one, two])) == [
        (DOCUMENT, "a\n"),
        (TEXT, "b\n"),
        (PARAGRAPH, "c\n"),
        (DOCUMENT, "d\r\n"),
        (PARAGRAPH, "e"),
    ]


def test_wikitext_headings_part_and_blank_lines_do_not(tmp_path: Path) -> None:
    lines = [" = A =", " ", " text", "", " = = Part = = ", " = = = P = = = ", " = B C = ", "more"]
    path = written(tmp_path, "wiki", "\n".join(lines) + "\n\n = not\n= x y =\n==z==\n")
    found = [(mark, piece.strip()) for mark, piece in marked_pieces([path])]
    assert found == [
        (DOCUMENT, "= A ="),
        (TEXT, "text"),
        (TEXT, "= = Part = ="),
        (TEXT, "= = = P = = ="),
        (DOCUMENT, "= B C ="),
        (TEXT, "more"),
        (TEXT, "= not"),
        (DOCUMENT, "= x y ="),
        (TEXT, "==z=="),
    ]


def test_long_lines_are_cut_at_words(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(2_500)]
    path = written(tmp_path, "long", " ".join(words))
    found = list(marked_pieces([path]))
    assert [mark for mark, _ in found] == [DOCUMENT, TEXT, TEXT]
    assert " ".join(piece for _, piece in found).split() == words


@pytest.mark.parametrize("seed", range(3))
def test_pieces_of_a_long_line_are_the_line(tmp_path, seed):
    parts = random.Random(seed).choices(["a", "bc", *" \t\r\x85\u2028"], k=9_000)
    line = " a" + "".join(parts) + "b \n"
    path = written(tmp_path, "long", line)
    pieces = [piece for _, piece in marked_pieces([path])]
    assert "".join(pieces) == line
    assert max(len(piece.split()) for piece in pieces) == 1_000


def test_a_long_line_has_the_digest_of_its_white_space(tmp_path: Path) -> None:
    """SOURCE of the digest: the corpus while pieces of long lines had single spaces."""
    path = written(tmp_path, "a.txt", "ban  dart\t" * 1200 + "\n")
    assert load(path, vocabulary=64).digest != "b256750fbf3f24f6"


@pytest.mark.parametrize("name", ["README", "wiki.train.tokens", "notes.md", "a.text"])
def test_other_endings_are_of_plain_text(tmp_path: Path, name: str) -> None:
    assert len(load(written(tmp_path, name, text(500))).train) > 0


def test_stop_counts_bytes_of_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "a", "abc\n\nde\nf\n")
    assert list(marked_pieces([path], 5)) == [(DOCUMENT, "abc\n")]
    assert list(marked_pieces([path], 6)) == [(DOCUMENT, "abc\n"), (PARAGRAPH, "de\n")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\nna\xefve\n", r"bad\.txt, line 2: byte 0xef is not UTF-8; convert .*iconv"),
        (b"\xef\xbb\xbffine\n\xff\n", r"line 2: byte 0xff is not UTF-8"),
        (b"\xef\xbb\xbfna\xefve\n", r"line 1: byte 0xef is not UTF-8"),
        ("a\nb\n".encode("utf-16"), r"line 1: byte 0xff is .* \(the file begins like UTF-16\)"),
        (b"\x7fELF\0\0\x01\n", r"line 1: a NUL byte, so it is binary; give plain"),
        (b"text\n\x89PNG\n", r"line 2: byte 0x89 is not UTF-8"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(marked_pieces([written(tmp_path, "bad.txt", content)]))
