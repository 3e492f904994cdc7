"""Lines of text files, and what begins with them."""

from pathlib import Path

import pytest

from masksearch.errors import DataError
from masksearch.tasks.text.files import marked_pieces

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
