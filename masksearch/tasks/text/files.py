"""Plain text: which files of a folder, which lines, where documents begin; or from a data set.

train, held_out = split_files(Path("wikitext-2"), None)
for mark, piece in marked_pieces(train):     # mark: TEXT, PARAGRAPH or DOCUMENT
    ...

A data set is one of the Hugging Face Hub, or a folder of json, parquet, csv or text files:

    hf:OWNER/NAME[@CONFIG][#COLUMN][?rows=N]
    hf:FOLDER[#COLUMN][?rows=N]

    hf:wikimedia/wikipedia@20231101.en#text?rows=5000

The rows are streamed: no more is read than what is asked for. The split `train` is trained on,
`validation` (or valid, dev) is held out. A row is a document, and blank lines inside it are taken
out; but where one of the first rows is blank the rows are lines of text, as in a file.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from masksearch.errors import DataError, name_extra
from masksearch.files import content_hash

HELD_OUT_STEMS = ("valid", "validation", "dev")
HELD_OUT_SHARE = 0.05  # of the tokens, where no file is held out
WORDS, LONG = 1_000, 8_000  # a line of more characters is cut into pieces of that many words
TEXT, PARAGRAPH, DOCUMENT = 0, 1, 2  # what begins with a piece
HEADING = re.compile(r"\s*= (?!= ).*(?<! =) =\s*")  # of a WikiText article: one "=" on each side
PREFIX = "hf:"
SPELLING = re.compile(r"(?P<name>[^@#?]+)(@(?P<config>[^#?]+))?(#(?P<column>[^?]+))?")
HUB_SECONDS = 5.0  # longest wait for the Hub's first answer
PEEKED = 1_000  # rows in which a blank one says that rows are lines
LOCAL_TEXT = "give text on disk with --corpus FILE_OR_FOLDER or --corpus hf:FOLDER"
BLANK_LINES = re.compile(r"(\r?\n[^\S\n]*)+")
PIECES = re.compile(rf"(\s*\S+){{1,{WORDS}}}(\s+\Z)?")  # of words, each with what is before it
OR_CORPUS = f"or give a corpus as {PREFIX}FOLDER#COLUMN"
NO_TEXT = {  # endings of files -> what they are, and what helps
    ".csv .tsv .jsonl": f"is a table; name its columns: columns=(..), --text, {OR_CORPUS}",
    ".json .ndjson .parquet .arrow .orc .xlsx": f"is no text; convert it to .jsonl, {OR_CORPUS}",
    ".gz .bz2 .xz .zst .zip .tar .tgz .7z": "is packed; unpack it",
}


def check_ending(file: Path, tables: Sequence[str] = ()) -> None:
    """Refuses a file by its ending, where that is of no plain text nor of such `tables`; any
    other ending, and none, is of plain text.

    Raises:
        DataError: Says what the file is, and what helps.
    """
    for endings, remedy in NO_TEXT.items():
        if file.suffix.lower() in {*endings.split()} - {*tables}:
            raise DataError(f"{file} {remedy}")


def text_files(path: Path) -> list[Path]:
    """The file itself, or the *.txt files of a folder by name; see `check_ending`."""
    if path.is_dir():
        files = sorted(file for file in path.glob("*.txt") if file.is_file())
        if not files:
            raise DataError(f"{path} holds no *.txt file; give a text file or a folder of them")
        return files
    if not path.is_file():
        raise DataError(f"no such text file or folder: {path}")
    check_ending(path)
    return [path]


def split_files(path: Path, held_out: Path | str | None) -> tuple[list[Path], list[Path]]:
    """Training files and held-out files.

    Files called test (and, beside an explicit `held_out`, valid) belong to neither.
    """
    files = text_files(path)
    valid = [f for f in files if path.is_dir() and f.stem.lower() in HELD_OUT_STEMS]
    left_out = {*valid, *(file for file in files if path.is_dir() and file.stem.lower() == "test")}
    if held_out is not None:
        valid = text_files(Path(held_out))
    judged = {file.resolve() for file in valid}  # however they are spelled
    train = [f for f in files if f not in left_out and f.resolve() not in judged]
    if not train:
        raise DataError(f"{path} holds no training text beside its held-out and test files")
    return train, valid


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


def read_lines(file: Path) -> Iterator[tuple[str, int]]:
    """Every line with its end, and its bytes.

    Raises:
        DataError: If one is not UTF-8 or holds a NUL byte; names the file and the line.
    """
    with file.open("rb") as handle:
        for at, raw in enumerate(handle, start=1):
            if "\0" in (line := decode_utf8(raw, file, at)):
                raise DataError(f"{file}, line {at}: a NUL byte, so it is binary; give plain text")
            yield line, len(raw)


def marked_pieces(files: list[Path], stop: int | None = None) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, as they stand, of the first `stop` bytes; those of more than
    8,000 characters are cut in front of the white space before every 1,000th word.

    Every file begins a document (`DOCUMENT`), and so does the heading of a WikiText article
    (` = Title = `). In a file without such headings, what follows a blank line begins a
    paragraph (`PARAGRAPH`). Everything else is `TEXT`.
    """
    seen = 0
    for file in files:
        mark, headings = DOCUMENT, False
        for piece, size in (each for line in read_lines(file) for each in _line_pieces(*line)):
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
    pending: tuple[int, str] | None = None
    for mark, piece in marked_pieces(files):
        if pending is not None:
            yield pending[0], pending[1] + ("\n" if mark == PARAGRAPH else "")
        pending = mark, piece.replace("\r\n", "\n")
    if pending is not None:
        yield pending


def _line_pieces(line: str, size: int) -> Iterator[tuple[str, int]]:
    """The line itself, or pieces of it where it is long, each with its bytes."""
    pieces = ((piece[0], len(piece[0].encode())) for piece in PIECES.finditer(line))
    yield from pieces if len(line) > LONG else [(line, size)]


def has_long_lines(files: list[Path]) -> bool:
    """Whether a line of the files is cut into pieces."""
    return any(len(line) > LONG for file in files for line, _ in read_lines(file))


def is_hub(path: Path | str) -> bool:
    """Whether a path is spelled `hf:..`, which is not a path on disk."""
    return str(path).startswith(PREFIX)


def absolute_source(path: Path | str) -> Path | str:
    """A text as it can be stored: an absolute path, because workers may run in another folder; a
    dataset `hf:..` as it is."""
    return path if is_hub(path) else Path(path).expanduser().resolve()


def absolute_if_local(name: Path | str) -> Path | str:
    """The absolute path of what lies on disk; a name on the Hub as it is."""
    path = Path(name).expanduser()
    return path.resolve() if path.exists() else name


def make_absolute(
    owner: object, *names: str, resolve: Callable[[Path | str], Path | str] = absolute_source
) -> None:
    """Makes those places of a frozen dataclass absolute, where they are given."""
    for name in names:
        if isinstance(path := getattr(owner, name), Path | str):
            object.__setattr__(owner, name, resolve(path))


def hub_folder(name: str) -> Path | None:
    """The folder that a data set's name stands for, absolute; None for a name on the Hub."""
    name = name.removeprefix(PREFIX)
    path = Path(name).expanduser()
    is_path = path.is_absolute() or name.startswith(".") or path.is_dir()
    return path.resolve() if is_path else None


def _hub_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` is set, with which the Hub is never asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_answers() -> bool:
    """Whether the Hugging Face Hub answers within `HUB_SECONDS`. The libraries of the Hub
    themselves try for most of a minute."""
    if _hub_offline():
        return False
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def load_hub(name: str, config: str | None, remedy: str, *, streaming: bool = False) -> Any:
    """The splits of a data set by name, by the library `datasets`; none of its code is run.

    Args:
        name: `OWNER/NAME` on the Hub, or a folder.
        config: Its configuration; None = the only one.
        remedy: What to do where it cannot be read, for the errors.
        streaming: Whether no more is read than what is asked for; otherwise it is downloaded, and
            found again without a network.
    """
    folder = hub_folder(name)
    if folder is not None and not folder.is_dir():
        raise DataError(f"no such folder: {name} (of {PREFIX}{name})")
    if folder is None and (streaming or not _hub_offline()) and not hub_answers():
        raise DataError(
            f"the Hugging Face Hub cannot be reached for {PREFIX}{name} (no network, or "
            f"HF_HUB_OFFLINE is set); {remedy}"
        )
    with hub_problems(PREFIX + name, remedy):
        import datasets

        return datasets.load_dataset(str(folder or name), config, streaming=streaming)


@contextmanager
def hub_problems(name: str, remedy: str) -> Iterator[None]:
    """Says in one line what the libraries raise for a data set."""
    with name_extra("hub", name, f"; or {remedy}"):
        import datasets  # noqa: F401
        import pyarrow as pa
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its client's
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, HTTPError, pa.ArrowException) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name} cannot be read: {problem}; check its name and configuration, or {remedy}"
        ) from error


@dataclass(frozen=True)
class HubText:
    """A column of text of a dataset.

    Args:
        name: `OWNER/NAME` on the Hub, or a folder.
        config: Configuration of the dataset; None = its only one.
        column: Column of the text; None = `text`, or the only one.
        rows: Rows to read of each split; None = all.
    """

    name: str
    config: str | None = None
    column: str | None = None
    rows: int | None = None

    @classmethod
    def parse(cls, spelled: Path | str) -> HubText:
        """The dataset of a path `hf:OWNER/NAME[@CONFIG][#COLUMN][?rows=N]`.

        Raises:
            DataError: If it is not spelled like that.
        """
        rest, asked, rows = str(spelled).removeprefix(PREFIX).partition("?")
        matched = SPELLING.fullmatch(rest)
        limit = re.fullmatch(r"rows=([1-9]\d*)", rows)
        if matched is None or (asked and limit is None):
            raise DataError(
                f"a dataset is spelled hf:OWNER/NAME[@CONFIG][#COLUMN][?rows=N], N from 1, "
                f"or hf:FOLDER[#COLUMN][?rows=N]; got {str(spelled)!r}"
            )
        return cls(
            matched["name"], matched["config"], matched["column"], int(limit[1]) if limit else None
        )

    def key(self) -> list[str]:
        """The parts of the name of its tokens' cache; asks no network.

        A folder stands for the bytes of its files, a name on the Hub for itself: what has been
        tokenized once stays until the cache is deleted, also when the dataset moves on.
        """
        parts = [PREFIX, self.config or "", self.column or "", str(self.rows)]
        folder = hub_folder(self.name)
        if folder is None:
            return [*parts, self.name]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [*parts, *[str(path.relative_to(folder)) for path in files], content_hash(files)]

    def write(self, target: Path, split: str | None = None) -> Path | None:
        """Writes the text of a split as a plain text file.

        Args:
            target: The file.
            split: "train"; None = the held-out one, if there is one.

        Returns:
            `target`, or None if there is no such split.

        Raises:
            DataError: If the dataset, its split or its column is missing, a row is no text, or
                the Hub cannot be reached.
        """
        with hub_problems(PREFIX + self.name, LOCAL_TEXT):
            splits = load_hub(self.name, self.config, LOCAL_TEXT, streaming=True)
            candidates = (split,) if split else HELD_OUT_STEMS
            name = next((one for one in candidates if one in splits), None)
            if name is None and split is None:
                return None
            if name is None:
                raise DataError(
                    f"{PREFIX}{self.name} has no split {split!r}; it has {', '.join(splits)}"
                )
            rows = islice(iter(splits[name]), self.rows)
            first = list(islice(rows, PEEKED))
            column = self._choose_column(first[0]) if first else ""
            texts = self.texts(chain(first, rows), column)
            head = list(islice(texts, PEEKED))
            lines = not all(text.strip() for text in head)
            with target.open("w", encoding="utf-8", newline="") as file:
                for text in chain(head, texts):
                    file.write(text + "\n" if lines else _as_document(text))
        return target

    def _choose_column(self, row: dict[str, Any]) -> str:
        """The column that holds the text."""
        column = self.column or "text"
        if column in row:
            return column
        strings = [name for name in row if isinstance(row[name], str)]
        if self.column is None and len(strings) == 1:
            return strings[0]
        raise DataError(
            f"{PREFIX}{self.name} has no column {column!r}; it has {', '.join(row)}: "
            f"name one as {PREFIX}{self.name}#COLUMN"
        )

    def texts(self, rows: Iterator[dict[str, Any]], column: str) -> Iterator[str]:
        """The text of each row; what is missing is empty."""
        for number, row in enumerate(rows):
            text = row[column]
            if text is not None and not isinstance(text, str):
                raise DataError(
                    f"{PREFIX}{self.name}, row {number}: column {column!r} holds a "
                    f"{type(text).__name__}, not text; name another as #COLUMN"
                )
            yield (text or "").replace("\0", "")


def _as_document(text: str) -> str:
    """A row as one document: no blank line inside, one after it."""
    return BLANK_LINES.sub("\n", text.strip()) + "\n\n"
