"""Text from the Hugging Face Hub, or from a folder of json, parquet, csv or text files.

    hf:OWNER/NAME[@CONFIG][#COLUMN][?rows=N]
    hf:FOLDER[#COLUMN][?rows=N]

    hf:wikimedia/wikipedia@20231101.en#text?rows=5000

The rows are streamed: no more is read than what is asked for. The split `train` is trained on,
`validation` (or valid, dev) is held out. A row is a document, and blank lines inside it are taken
out; but where one of the first rows is blank the rows are lines of text, as in a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from masksearch.errors import DataError, install_command
from masksearch.tasks.text.files import HELD_OUT_STEMS, content_hash
from masksearch.tasks.text.tokenizer import hub_answers, hub_offline

PREFIX = "hf:"
SPELLING = re.compile(r"(?P<name>[^@#?]+)(@(?P<config>[^#?]+))?(#(?P<column>[^?]+))?")
PEEKED = 1_000  # rows in which a blank one says that rows are lines
LOCAL_TEXT = "give text on disk with --corpus FILE_OR_FOLDER or --corpus hf:FOLDER"
BLANK_LINES = re.compile(r"(\r?\n[^\S\n]*)+")


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


def hub_folder(name: str) -> Path | None:
    """The folder that a data set's name stands for, absolute; None for a name on the Hub."""
    name = name.removeprefix(PREFIX)
    path = Path(name).expanduser()
    is_path = path.is_absolute() or name.startswith(".") or path.is_dir()
    return path.resolve() if is_path else None


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
    if folder is None and (streaming or not hub_offline()) and not hub_answers():
        raise DataError(
            f"the Hugging Face Hub cannot be reached for {PREFIX}{name} (no network, or "
            f"HF_HUB_OFFLINE is set); {remedy}"
        )
    with hub_problems(PREFIX + name, remedy):
        import datasets

        return datasets.load_dataset(str(folder or name), config, streaming=streaming)


@contextmanager
def hub_problems(place: str, remedy: str) -> Iterator[None]:
    """Says in one line what the libraries raise for a data set."""
    import pyarrow as pa

    try:
        import datasets  # noqa: F401
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its client's
    except ImportError as error:
        raise DataError(
            f"{place} needs the package datasets: {install_command('hub')}; or {remedy}"
        ) from error
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, HTTPError, pa.ArrowException) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{place} cannot be read: {said}; check its name and configuration, or {remedy}"
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
        found = SPELLING.fullmatch(rest)
        limit = re.fullmatch(r"rows=([1-9]\d*)", rows)
        if found is None or (asked and limit is None):
            raise DataError(
                f"a dataset is spelled hf:OWNER/NAME[@CONFIG][#COLUMN][?rows=N], N from 1, "
                f"or hf:FOLDER[#COLUMN][?rows=N]; got {str(spelled)!r}"
            )
        return cls(
            found["name"], found["config"], found["column"], int(limit[1]) if limit else None
        )

    def key(self) -> list[str]:
        """What a cache of its tokens is named after; asks no network.

        A folder stands for the bytes of its files, a name on the Hub for itself: what has been
        tokenized once stays until the cache is deleted, also when the dataset moves on.
        """
        parts = [PREFIX, self.config or "", self.column or "", str(self.rows)]
        folder = hub_folder(self.name)
        if folder is None:
            return [*parts, self.name]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [str(path.relative_to(folder)) for path in files]
        return [*parts, *names, content_hash(files)]

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
            wanted = (split,) if split else HELD_OUT_STEMS
            name = next((one for one in wanted if one in splits), None)
            if name is None and split is None:
                return None
            if name is None:
                raise DataError(
                    f"{PREFIX}{self.name} has no split {split!r}; it has {', '.join(splits)}"
                )
            rows = islice(iter(splits[name]), self.rows)
            first = list(islice(rows, PEEKED))
            column = self.choose_column(first[0]) if first else ""
            texts = self.texts(chain(first, rows), column)
            head = list(islice(texts, PEEKED))
            lines = not all(text.strip() for text in head)
            with target.open("w", encoding="utf-8", newline="") as file:
                for text in chain(head, texts):
                    file.write(text + "\n" if lines else as_document(text))
        return target

    def choose_column(self, row: dict[str, Any]) -> str:
        """The column that holds the text."""
        wanted = self.column or "text"
        if wanted in row:
            return wanted
        strings = [name for name in row if isinstance(row[name], str)]
        if self.column is None and len(strings) == 1:
            return strings[0]
        raise DataError(
            f"{PREFIX}{self.name} has no column {wanted!r}; it has {', '.join(row)}: "
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


def as_document(text: str) -> str:
    """A row as one document: no blank line inside, one after it."""
    return BLANK_LINES.sub("\n", text.strip()) + "\n\n"
