"""SQuAD 1.1 and 2.0: questions on paragraphs, from the official JSON files.

data = load_squad("squad")           # a folder with train-v1.1.json and dev-v1.1.json, or a file
data.train.questions[0].text, data.train.contexts[data.train.questions[0].context]
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from masksearch.contracts import generator
from masksearch.errors import DataError
from masksearch.tasks.text.files import content_hash, short_hash

HELD_OUT_SHARE = 0.2  # of the articles, where one file serves both ends
READING_ORDER = 41  # stream of random numbers


@dataclass(frozen=True)
class Question:
    """A question on a paragraph.

    Args:
        id: Its id in the file.
        text: The question.
        context: Index of its paragraph.
        article: Title of its article.
        answers: True answers; none = the paragraph holds no answer.
        starts: Where each of them starts in the paragraph, in characters.
    """

    id: str
    text: str
    context: int
    article: str
    answers: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reading:
    """Questions, in the order of their file, on paragraphs."""

    contexts: Sequence[str] = field(repr=False)
    questions: Sequence[Question] = field(repr=False)

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def nullable(self) -> bool:
        """Whether some question has no answer."""
        return any(not question.answers for question in self.questions)

    @property
    def articles(self) -> list[str]:
        """Titles in the order in which they first come."""
        return list(dict.fromkeys(question.article for question in self.questions))

    def of(self, articles: Iterable[str]) -> Reading:
        """The questions of those articles."""
        chosen = set(articles)
        return Reading(self.contexts, [q for q in self.questions if q.article in chosen])

    def trimmed(self) -> Reading:
        """The same questions with their own paragraphs alone."""
        asked = sorted({question.context for question in self.questions})
        place = {context: index for index, context in enumerate(asked)}
        return Reading(
            [self.contexts[context] for context in asked],
            [replace(q, context=place[q.context]) for q in self.questions],
        )

    def sample(self, count: int | None, seed: int) -> Reading:
        """At most `count` questions, drawn by `seed`, in their order in the file."""
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise ValueError(f"rows must be at least 1, got {count}")
        chosen = torch.randperm(len(self), generator=generator(seed, READING_ORDER))[:count]
        return Reading(self.contexts, [self.questions[i] for i in chosen.sort().values.tolist()])

    def split(self, share: float, seed: int) -> tuple[Reading, Reading]:
        """Two parts without a common article.

        Args:
            share: Share of the articles in the second part, in (0, 1); at least one.
            seed: Seed of the draw.

        Raises:
            DataError: If there are fewer than two articles.
        """
        titles = self.articles
        if len(titles) < 2:
            raise DataError(
                f"one file is split by article into training and held-out questions, and this "
                f"one holds {len(titles)}; give a file to hold out (held_out=)"
            )
        order = torch.randperm(len(titles), generator=generator(seed, READING_ORDER)).tolist()
        count = min(max(1, round(share * len(titles))), len(titles) - 1)
        held = {titles[index] for index in order[:count]}
        return self.of(title for title in titles if title not in held), self.of(held)


@dataclass(frozen=True)
class SquadData:
    """Training and held-out questions.

    Args:
        train: What is trained on.
        dev: What is scored.
        nullable: Whether the rules of SQuAD 2.0 hold: some question has no answer.
        source: Where the two parts come from, in words.
        digest: Hash of the files, the split and the limits.
    """

    train: Reading
    dev: Reading
    nullable: bool
    source: str
    digest: str


def load_squad(
    path: Path | str,
    held_out: Path | str | None = None,
    *,
    rows: int | None = None,
    dev_rows: int | None = None,
    seed: int = 0,
) -> SquadData:
    """Reads SQuAD in the official JSON form.

    Args:
        path: A file, or a folder that holds train-v*.json and dev-v*.json of one version. A
            file alone (also where it is the only one of the folder) is split by article: a
            fifth of them, drawn by `seed`, is held out.
        held_out: A file to hold out.
        rows: Largest number of training questions; more are sampled by `seed`.
        dev_rows: The same for the held-out questions.
        seed: Seed of the split and of the samples.

    Raises:
        DataError: If a file is missing, empty or malformed, or a question is on both sides;
            names the article, the paragraph and the question.
    """
    files = squad_files(Path(path), held_out)
    parts = [read_squad(file) for file in files]
    if len(parts) == 1:
        (whole,) = parts
        try:
            train, dev = whole.split(HELD_OUT_SHARE, seed)
        except DataError as error:
            raise DataError(f"{files[0]}: {error}") from None
        source = (
            f"{files[0].name} alone: {len(dev.articles)} of {len(whole.articles)} articles, drawn "
            f"by seed {seed}, are held out"
        )
    else:
        train, dev = parts
        source = f"{files[0].name}, held out {files[1].name}"
        both = {q.id for q in train.questions} & {q.id for q in dev.questions}
        if both:
            raise DataError(
                f"{files[0]} and {files[1]} share {len(both)} questions ({min(both)!r}, ..); "
                "hold out a file with questions of its own"
            )
    if dev.nullable and not train.nullable:
        warnings.warn(
            f"{source}: held-out questions have no answer, but every training question has one; "
            "nothing teaches a model to answer none",
            stacklevel=2,
        )
    return SquadData(
        train.sample(rows, seed),
        dev.sample(dev_rows, seed),
        train.nullable or dev.nullable,
        source,
        short_hash(
            "squad-1", content_hash(files), str(len(files)), str(rows), str(dev_rows), str(seed)
        ),
    )


def squad_files(path: Path, held_out: Path | str | None) -> list[Path]:
    """The training file and the held-out one, or the one that is to be split."""
    found = [path]
    if path.is_dir():
        kinds = {kind: sorted(path.glob(f"{kind}-v*.json")) for kind in ("train", "dev")}
        if held_out is not None:
            kinds["dev"] = []
        for kind, files in kinds.items():
            if len(files) > 1:
                names = ", ".join(file.name for file in files)
                raise DataError(f"{path} holds {names}: several {kind} files; give the file")
        found = [file for files in kinds.values() for file in files]
        if not found:
            raise DataError(f"{path} holds neither train-v*.json nor dev-v*.json (SQuAD's names)")
    found += [Path(held_out)] if held_out is not None else []
    for file in found:
        if not file.is_file():
            raise DataError(
                f"no such SQuAD file or folder: {file}; give one on disk (--squad PATH), the "
                "Hub is not asked"
            )
    return found


def read_squad(path: Path) -> Reading:
    """Reads one file; the errors name the article, the paragraph and the question.

    A file of version 2 without a single unanswerable question is read, with a warning, as one
    of version 1.1.
    """
    raw = path.read_bytes()
    if not raw.strip():
        raise DataError(f"{path} is empty; give a SQuAD file (JSON with the key 'data')")
    try:
        content = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte 0x{raw[error.start]:02x} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}; give SQuAD's official file") from error
    contexts: list[str] = []
    questions: list[Question] = []
    seen: dict[str, str] = {}
    flagged = False
    for at, article, paragraph in paragraphs(content, str(path)):
        context = member(paragraph, "context", str, at)
        for place, entry in enumerate(member(paragraph, "qas", list, at)):
            name = member(entry, "id", str, f"{at}, question {place}")
            where = f"{at}, question {name!r}"
            if name in seen:
                raise DataError(f"{where}: the id is taken by a question of {seen[name]}")
            seen[name] = at.removeprefix(f"{path}, ")
            flagged |= "is_impossible" in entry
            text = member(entry, "question", str, where)
            answers, starts = true_answers(entry, context, where)
            questions.append(Question(name, text, len(contexts), article, answers, starts))
        contexts.append(context)
    if not questions:
        raise DataError(f"{path} holds no question; give a SQuAD file with at least one")
    found = Reading(contexts, questions)
    if not found.nullable and (flagged or str(content.get("version", "")).startswith("v2")):
        warnings.warn(
            f"{path} is of version 2, but every question has an answer; it is scored by the "
            "rules of version 1.1",
            stacklevel=3,
        )
    return found


def paragraphs(content: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Every paragraph: where it stands, in words, its article's title, and itself."""
    for number, article in enumerate(member(content, "data", list, path)):
        title = member(article, "title", str, f"{path}, article {number}")
        at = f"{path}, article {number} ({title})"
        for index, paragraph in enumerate(member(article, "paragraphs", list, at)):
            yield f"{at}, paragraph {index}", title, paragraph


def true_answers(
    entry: Mapping[str, Any], context: str, where: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The texts of a question's answers and where they start; none for an unanswerable one."""
    impossible = entry.get("is_impossible", False)
    answers = member(entry, "answers", list, where)
    if impossible is not bool(impossible) or impossible is bool(answers):
        raise DataError(
            f"{where}: is_impossible is {json.dumps(impossible)} with {len(answers)} answers; "
            "a question has at least one, unless is_impossible is true"
        )
    texts, starts = [], []
    for number, answer in enumerate(answers):
        at = f"{where}, answer {number}"
        text, start = member(answer, "text", str, at), member(answer, "answer_start", int, at)
        if not text.strip():
            raise DataError(f"{at} is empty; mend or remove it")
        if start < 0 or start + len(text) > len(context):
            raise DataError(
                f"{at}: characters {start} to {start + len(text)} lie outside the paragraph, "
                f"which has {len(context)}; mend answer_start or remove the answer"
            )
        texts.append(text)
        starts.append(start)
    return tuple(texts), tuple(starts)


def member(holder: Any, key: str, kind: type, where: str) -> Any:
    """The value of a key, of that type, of a JSON object."""
    if not isinstance(holder, dict) or key not in holder:
        has = f"keys {', '.join(holder) or 'none'}" if isinstance(holder, dict) else repr(holder)
        raise DataError(f"{where}: no key {key!r} (found {has:.80}); SQuAD's form needs it")
    value = holder[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: {key!r} must be a {kind.__name__}, found {value!r:.40}")
    return value
