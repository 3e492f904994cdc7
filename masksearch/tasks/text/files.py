"""Plain text on disk: which files, which lines, and where documents begin.

train, held_out = split_files(Path("wikitext-2"), None)
for mark, piece in marked_pieces(train):     # mark: TEXT, PARAGRAPH or DOCUMENT
    ...
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from masksearch.errors import DataError

HELD_OUT_STEMS = ("valid", "validation", "dev")
HELD_OUT_SHARE = 0.05  # of the tokens, where no file is held out
WORDS = 1_000  # a longer line is cut into pieces of that many words
TEXT, PARAGRAPH, DOCUMENT = 0, 1, 2  # what begins with a piece
HEADING = re.compile(r"\s*= (?!= ).*(?<! =) =\s*")  # of a WikiText article: one "=" on each side


def text_files(path: Path) -> list[Path]:
    """The file itself, or the *.txt files of a folder by name."""
    if path.is_dir():
        files = sorted(file for file in path.glob("*.txt") if file.is_file())
        if not files:
            raise DataError(f"{path} holds no *.txt file; give a text file or a folder of them")
        return files
    if not path.is_file():
        raise DataError(f"no such text file or folder: {path}")
    return [path]


def split_files(path: Path, held_out: Path | str | None) -> tuple[list[Path], list[Path]]:
    """Training files and held-out files.

    Files called test (and, beside an explicit `held_out`, valid) belong to neither.
    """
    files = text_files(path)
    held = [file for file in files if file.stem.lower() in HELD_OUT_STEMS]
    if not path.is_dir():
        held = []
    left_out = {*held, *(file for file in files if path.is_dir() and file.stem.lower() == "test")}
    if held_out is not None:
        held = text_files(Path(held_out))
    train = [file for file in files if file not in left_out and file not in held]
    if not train:
        raise DataError(f"{path} holds no training text beside its held-out and test files")
    return train, held


def content_hash(files: list[Path]) -> str:
    """Hash of the bytes of the files, in order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def short_hash(*parts: str) -> str:
    """16 hexadecimal digits of SHA-256 over the parts, which cannot run into each other."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def decode_utf8(raw: bytes, file: Path, line: int = 1) -> str:
    """Bytes of a file as text, without a byte-order mark at its start.

    Args:
        raw: One or more whole lines.
        file: Where they stand.
        line: Number of the first of them.

    Raises:
        DataError: If they are not UTF-8; names the file and the line.
    """
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        bad, number = error.object[error.start], line + error.object[: error.start].count(b"\n")
        utf_16 = line == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise DataError(
            f"{file}, line {number}: byte 0x{bad:02x} is not UTF-8"
            f"{' (the file begins like UTF-16)' if utf_16 else ''}; convert the file, or that "
            "line where encodings are mixed, to UTF-8 (iconv -t utf-8)"
        ) from error


def decode_line(raw: bytes, file: Path, number: int) -> str:
    """A line of text.

    Raises:
        DataError: If it is not UTF-8 or holds a NUL byte; names the file and the line.
    """
    text = decode_utf8(raw, file, number)
    if "\0" in text:
        raise DataError(
            f"{file}, line {number}: holds a NUL byte, so it is a binary file; give plain text"
        )
    return text


def marked_pieces(files: list[Path], stop: int | None = None) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, long ones cut at words, of the first `stop` bytes.

    Every file begins a document (`DOCUMENT`), and so does the heading of a WikiText article
    (` = Title = `). In a file without such headings, what follows a blank line begins a
    paragraph (`PARAGRAPH`). Everything else is `TEXT`.
    """
    seen = 0
    for file in files:
        mark, headings = DOCUMENT, False
        with file.open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                line = decode_line(raw, file, number)
                for piece, size in line_pieces(line, len(raw)):
                    if stop is not None and seen >= stop:
                        return
                    seen += size
                    if piece.isspace():
                        mark = mark if headings else max(mark, PARAGRAPH)
                        continue
                    if piece[:3].lstrip()[:1] == "=" and HEADING.fullmatch(piece):
                        mark, headings = DOCUMENT, True
                    yield mark, piece
                    mark = TEXT


def paragraph_pieces(files: list[Path]) -> Iterator[tuple[int, str]]:
    """As `marked_pieces`, for tokenizers that know line breaks: those of Windows become plain
    ones, and what ends before a paragraph ends with a blank line."""
    held: tuple[int, str] | None = None
    for mark, piece in marked_pieces(files):
        if held is not None:
            yield held[0], held[1] + ("\n" if mark == PARAGRAPH else "")
        held = mark, piece.replace("\r\n", "\n")
    if held is not None:
        yield held


def line_pieces(line: str, size: int) -> Iterator[tuple[str, int]]:
    """The line itself, or pieces of it where it is long, each with its bytes."""
    if len(line) <= 8 * WORDS:
        yield line, size
        return
    words = line.split()
    for start in range(0, len(words), WORDS):
        piece = " ".join(words[start : start + WORDS])
        yield piece, len(piece.encode())


def pieces(files: list[Path], stop: int | None = None) -> Iterator[str]:
    """The text of `marked_pieces`."""
    return (piece for _, piece in marked_pieces(files, stop))
