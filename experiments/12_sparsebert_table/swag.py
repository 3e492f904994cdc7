"""Judges a mask by SWAG: pre-training under the mask, then fine-tuning a choice scorer under it.

    masksearch search SPACE --evaluator swag.py:SwagEvaluator --set swag=FOLDER --set corpus=TEXT

A task in one file: its head, its items as text, and as tokens. In Python:

evaluator = SwagEvaluator("wikitext-2", "swag")
*curve, last = evaluator(masks.star(), seed=0, workdir=Path("run"))
print(last.values["accuracy"], last.values["accuracy/majority"])
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from task_files import TaskFiles, labelled_test_file, read_task, two_files, two_parts
from torch import Tensor, nn
from torch.nn import functional as F

from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.contracts import LOW, MAJORITY, Batch
from masksearch.errors import DataError
from masksearch.evaluators.finetuning import FineTuning
from masksearch.evaluators.tuning import TaskScores
from masksearch.files import read_once, short_hash
from masksearch.models.encoders import Head, Output, draw_linear
from masksearch.tasks.splits import sample_rows, take_split
from masksearch.tasks.tables import read_table
from masksearch.tasks.text.files import decode_utf8, make_absolute
from masksearch.tasks.text.layout import RowLayout
from masksearch.tasks.text.packing import IdLists, shrink
from masksearch.tasks.text.rows import RowSource, digest_in_layout
from masksearch.training.parts import refuse_missing

CHOICE_ORDER = 43  # stream of random numbers
SUFFIXES = (".csv", ".jsonl", ".parquet")
FORMS = (
    "startphrase, choices and answer (JSON lines), or sent1 and sent2 (or startphrase), ending0, "
    "ending1, .. and label (CSV, Parquet, the Hub)"
)


@dataclass(frozen=True)
class SwagEvaluator(FineTuning):
    """Pre-trains like `MlmEvaluator`, then fine-tunes a choice scorer on SWAG.

    With `corpus=None` and `weights` it only fine-tunes a checkpoint. See `FineTuning` for what is
    kept in the working folder.

    The last report holds, beside `"loss"` of a pre-training, `"accuracy"`, and under
    `"accuracy/majority"` what always naming the most frequent place earns; with `split` other than
    `"all"` also `"accuracy/low"`, the lower end of the 95% interval over items.

    Args:
        swag: A SWAG file, or a folder with a train and a val file. A file alone is split: see
            `load_swag`; `data().source` says what was done.
        swag_held_out: A SWAG file to hold out.

    Raises:
        DataError: When it is called, or asked for its protocol, and a file is missing or
            malformed.
    """

    swag: Path | str = ""
    _: KW_ONLY
    swag_held_out: Path | str | None = None

    downstream: ClassVar[tuple[str, ...]] = ("SWAG",)
    score_name: ClassVar[str] = "accuracy"
    streams: ClassVar[tuple[int, int]] = (53, 54)
    head_reads: ClassVar[int | None] = 1
    head_kind: ClassVar[str] = "MultipleChoice"

    def __post_init__(self) -> None:
        refuse_missing(self, "swag")
        super().__post_init__()
        make_absolute(self, "swag", "swag_held_out")  # workers may run in another folder

    @property
    def constant_score(self) -> float:
        """Accuracy of always naming the most frequent place."""
        labels = self.tokens().dev.labels.tolist()
        return max(Counter(labels).values()) / len(labels)

    def task_settings(self) -> dict[str, object]:
        """Hash of the items."""
        return {"swag": self.tokens().digest}

    @property
    def files(self) -> TaskFiles:
        """Where the items are, and which of them are taken."""
        held_out = self.swag_held_out
        return TaskFiles(
            self.swag, held_out, self.rows, self.dev_rows, self.split_seed, self.split
        )

    def data(self) -> SwagData:
        """The items as text, read once a process."""
        data: SwagData = read_once(self.files.states, read_task, load_swag, self.files)
        return data

    def tokenize(self, name: str) -> SwagTokens:
        """The tokenized items."""
        tokens: SwagTokens = read_once(self.files.states, read_tokens, self.source, self.files)
        return tokens

    def head(self, encoder: Any, name: str, seed: int) -> nn.Module:
        """A scorer of choices."""
        return ChoiceScorer(encoder, seed=seed)

    def inputs(self, rows: ChoiceRows, chosen: list[int]) -> Batch:
        """Those items: `[items, choices, width]`, and the right endings `[items]`."""
        items = [rows[index] for index in chosen]
        flat = rows.layout.pad_rows(
            [ids for item in items for ids in item.ids],
            [first for item in items for first in item.first],
        )
        batch = {name: part.reshape(len(items), rows.choices, -1) for name, part in flat.items()}
        return batch | {"labels": torch.tensor([item.label for item in items])}

    def sequence_lengths(self, rows: ChoiceRows) -> list[int]:
        """Tokens of every choice of the items."""
        return rows.sequence_lengths

    def scores(self, head: nn.Module, name: str) -> TaskScores:
        """Accuracy on the held-out items; of equal choices the first is taken."""
        data = self.tokens()
        guesses = torch.stack(self.trainer.predict(head, data.dev)).argmax(-1).numpy()
        right = (guesses == data.dev.labels).astype(np.float64)
        values = {
            "accuracy": int(right.sum()) / len(right),
            f"accuracy{MAJORITY}": self.constant_score,
        }
        if self.split != "all":
            values[f"accuracy{LOW}"] = lower_bound(right)
        digests, predictions = {name: data.rows_digest}, {name: shrink(guesses)}
        return TaskScores(values, RowScores({name: right}, {name: 1.0}, digests, predictions))


# -- the head ---------------------------------------------------------------------------------
class ChoiceScorer(Head):
    """An encoder that scores each of several endings, one sequence an ending.

    [CLS] goes through a tanh layer, as in BERT's released code, then is multiplied by a vector.

    Args:
        encoder: The (pre-trained) encoder; shared, not copied.
        seed: Seed of the head's weights.

    Reference: BERT, arXiv 1810.04805, Section 4.4 (SWAG).
    """

    def __init__(self, encoder: Any, *, seed: int) -> None:
        super().__init__(encoder)
        width, spread = encoder.config.hidden_size, encoder.config.initializer_range
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.dense = draw_linear(width, width, spread)
            self.out = draw_linear(width, 1, spread)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Output:
        """Scores every choice.

        Args:
            input_ids: int64 `[batch, choices, length]` (or `[choices, length]`, unlabelled).
            labels: int64 `[batch]`, the right choice.
            attention_mask: 1 for tokens, 0 for padding, shaped like `input_ids`.
            token_type_ids: Segment ids, shaped like `input_ids`.

        Returns:
            logits `[batch, choices]` and, given labels, their mean cross-entropy.
        """
        flat = [
            None if part is None else part.reshape(-1, part.shape[-1])
            for part in (attention_mask, token_type_ids)
        ]
        hidden = self.hidden(input_ids.reshape(-1, input_ids.shape[-1]), *flat)
        logits = self.out(torch.tanh(self.dense(hidden[:, 0]))).reshape(input_ids.shape[:-1])
        return Output(logits, None if labels is None else F.cross_entropy(logits.float(), labels))


# -- the items --------------------------------------------------------------------------------
@dataclass(frozen=True)
class SwagItem:
    """A start and its possible endings; `label` is the index of the right one."""

    start: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class SwagData:
    """Training and held-out items, all with the same number of choices.

    Args:
        train: What is trained on.
        dev: What is scored.
        source: Where the two parts come from, in words.
        digest: Hash of the items and of how they were split.
    """

    train: Sequence[SwagItem] = field(repr=False)
    dev: Sequence[SwagItem] = field(repr=False)
    source: str
    digest: str


def load_swag(files: TaskFiles) -> SwagData:
    """Reads SWAG.

    Args:
        files: A file (`.csv`, `.jsonl`, `.parquet`), or a folder with one whose name begins with
            train and one whose name begins with val. A file alone (also where it is the only
            one of the folder) is split: a fifth of the starts, drawn by the seed, is held out.
            Of held-out items a hash of the start decides; those of `"test"` are the folder's
            labelled test file.

    Raises:
        DataError: If a file is missing, empty or malformed; names the file and the row.
    """
    path, order = Path(files.path), (files.seed, CHOICE_ORDER)
    taken = two_files(path, files.held_out, folder_files(path), "SWAG")
    for file in taken:
        if file.suffix not in SUFFIXES:
            raise DataError(f"{file}: a SWAG file ends in {', '.join(SUFFIXES)}")
    train, dev, source = two_parts(taken, read_swag, attrgetter("start"), "starts", order)
    if files.split == "test":
        tests = (file for file in path.glob("test*") if file.suffix in SUFFIXES)
        taken = [*taken, labelled_test_file(path, tests, "SWAG")]
        dev, source = read_swag(taken[-1]), f"{source}; scored on {taken[-1].name}"
    dev = take_split(dev, files.split, str(path), attrgetter("start"))
    counts = {len(item.choices) for item in (*train, *dev)}
    if len(counts) > 1:
        raise DataError(f"{source}: items have {sorted(counts)} choices; all need the same number")
    return SwagData(
        sample_rows(train, files.rows, *order),
        sample_rows(dev, files.dev_rows, *order),
        source,
        short_hash("swag-1", *files.content(taken)),
    )


def folder_files(path: Path) -> dict[str, list[Path]]:
    """A folder's training and held-out files; a file of another name where it is the only one."""
    files = [file for file in sorted(path.glob("*")) if file.suffix in SUFFIXES]
    files = [
        file  # those called .._full have other columns
        for file in files
        if not file.stem.startswith("test") and not file.stem.endswith("_full")
    ]
    named = {kind: [f for f in files if f.stem.startswith(kind)] for kind in ("train", "val")}
    return named if any(named.values()) or len(files) > 1 else {"train": files, "val": []}


def read_swag(path: Path) -> list[SwagItem]:
    """Reads one file; see `read_items` for its columns."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            return read_items(parquet.read_table(path).to_pylist(), str(path))
        except pyarrow.ArrowException as error:
            raise DataError(f"{path} is not a Parquet file: {error}") from error
    if path.suffix == ".csv":
        columns, rows = read_table(path)
        return read_items(
            (dict(zip(columns, row, strict=True)) for row in rows.values()), str(path)
        )
    return read_items(read_json_lines(decode_utf8(path.read_bytes(), path), path), str(path))


def read_json_lines(text: str, path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a file with one JSON object a line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object: {line:.40}")
        yield row


def read_items(rows: Iterable[Mapping[str, Any]], source: str) -> list[SwagItem]:
    """Items from rows in SWAG's official CSV columns, the Hub's, or those of the JSON lines.

    Args:
        rows: With `startphrase` (or `sent1` and `sent2`); `choices` (or `ending0`, `ending1`,
            ..); `label` (or `answer`).
        source: What to call it in errors.

    Raises:
        DataError: If a row lacks a column, has fewer than two choices or another number than the
            first row, or its label is not the index of a choice.
    """
    items: list[SwagItem] = []
    for number, row in enumerate(rows, start=1):
        where = f"{source}, item {number}"
        start = row.get("startphrase")
        if start is None and "sent1" in row and "sent2" in row:
            start = f"{row['sent1']} {row['sent2']}"
        choices = row.get("choices")
        if choices is None:
            names = [f"ending{index}" for index in range(len(row))]
            choices = [row[name] for name in names if row.get(name) is not None]
        label = row.get("label", row.get("answer"))
        if start is None or label is None or not choices:
            has = ", ".join(str(key) for key in row)
            raise DataError(f"{where}: columns are missing; needed: {FORMS}; found: {has}")
        if not isinstance(start, str) or not all(isinstance(choice, str) for choice in choices):
            raise DataError(f"{where}: start and choices are texts, found {start!r}, {choices!r}")
        if len(choices) < 2:
            raise DataError(f"{where}: {len(choices)} choice; at least 2 are needed")
        if items and len(choices) != len(items[0].choices):
            raise DataError(
                f"{where}: {len(choices)} choices, item 1 has {len(items[0].choices)}; all items "
                "need the same number"
            )
        if str(label) not in map(str, range(len(choices))):
            hint = " (a test set without labels cannot be used)"
            raise DataError(
                f"{where}: label {label!r} is not the index of a choice, 0 to "
                f"{len(choices) - 1}{hint if str(label) in ('-1', '') else ''}"
            )
        items.append(SwagItem(start, tuple(choices), int(label)))
    if not items:
        raise DataError(f"{source} is empty; give a SWAG file with at least one item")
    return items


# -- as tokens --------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class SwagTokens:
    """Training and held-out items, tokenized."""

    train: ChoiceRows
    dev: ChoiceRows
    digest: str
    rows_digest: str  # of the held-out items


def read_tokens(source: RowSource, files: TaskFiles) -> SwagTokens:
    """The tokenized items."""
    data: SwagData = read_once(files.states, read_task, load_swag, files)
    train, dev = (make_choices(source, part) for part in (data.train, data.dev))
    digest = digest_in_layout(source, data.digest)
    return SwagTokens(train, dev, digest, short_hash(*map(repr, data.dev)))


@dataclass(frozen=True)
class Choices:
    """A tokenized item.

    Args:
        ids: For every choice, in BERT's layout `[CLS] start [SEP] choice [SEP]`.
        first: How many of its tokens have token type 0, for every choice.
        label: The right one.
    """

    ids: list[list[int]]
    first: list[int]
    label: int


@dataclass(frozen=True, eq=False)
class ChoiceRows:
    """Many tokenized items in arrays; one is made where it is read.

    Args:
        starts: Token ids of each item's start.
        endings: Token ids of the endings, item by item.
        labels: The right ending of each item.
        layout: Special tokens, padding and largest length of a sequence; longer ones lose the
            beginning of their start, down to a third of the room, then the end of their ending.
    """

    starts: IdLists = field(repr=False)
    endings: IdLists = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    layout: RowLayout = field(repr=False)

    @property
    def choices(self) -> int:
        """Endings of an item."""
        return len(self.endings) // len(self.labels)

    @property
    def lengths(self) -> list[int]:
        """Positions of the longest sequence of each item."""
        longest = self.starts.lengths + self.endings.lengths.reshape(-1, self.choices).max(1)
        room = self.layout.room(pair=True)
        lengths: list[int] = (longest.clip(max=room) + self.layout.length - room).tolist()
        return lengths

    @property
    def sequence_lengths(self) -> list[int]:
        """Positions of every sequence, item by item."""
        starts = np.repeat(self.starts.lengths, self.choices)
        longest, room = starts + self.endings.lengths, self.layout.room(pair=True)
        lengths: list[int] = (longest.clip(max=room) + self.layout.length - room).tolist()
        return lengths

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Choices:
        index = range(len(self))[index]
        start, spare = self.starts[index], self.layout.room(pair=True)
        rows = []
        for number in range(index * self.choices, (index + 1) * self.choices):
            ending = self.endings[number]
            kept = min(len(start), max(spare - len(ending), spare // 3))
            rows.append(self.layout.join(start[len(start) - kept :], ending[: spare - kept]))
        ids, firsts = ([*part] for part in zip(*rows, strict=True))
        return Choices(ids, firsts, int(self.labels[index]))


def make_choices(source: RowSource, items: Sequence[SwagItem]) -> ChoiceRows:
    """Tokenizes items (one or more, with the same number of choices)."""
    return ChoiceRows(
        IdLists.of(source.encode([item.start for item in items])),
        IdLists.of(source.encode([choice for item in items for choice in item.choices])),
        shrink(np.array([item.label for item in items])),
        source.layout,
    )
