"""SQuAD 1.1 and 2.0: questions on paragraphs, from the official JSON files, and their official
scores, exact match and F1 over words.

data = load_squad(TaskFiles("squad", None, None, None, 0, "all"))     # a folder, or a file
data.train[0].text, data.train[0].answers, data.train[0].context
score({"q1": "the Broncos"}, {"q1": ["Denver Broncos"]})     # {"exact": 0.0, "f1": 0.67}
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from task_files import TaskFiles, labelled_test_file, two_files, two_parts

from masksearch.errors import DataError
from masksearch.files import short_hash
from masksearch.tasks.splits import sample_rows, take_split
from masksearch.tasks.text.files import decode_utf8

PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII alone, as in the official script
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
QUESTION_ORDER = 41  # stream of random numbers


@dataclass(frozen=True)
class Question:
    """A question on a paragraph.

    Args:
        id: Its id in the file.
        text: The question.
        context: The paragraph.
        article: Title of its article.
        answers: True answers; none = the paragraph holds no answer.
        starts: Where each of them starts in the paragraph, in characters.
    """

    id: str
    text: str
    context: str = field(repr=False)
    article: str
    answers: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()


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

    train: Sequence[Question] = field(repr=False)
    dev: Sequence[Question] = field(repr=False)
    nullable: bool
    source: str
    digest: str


def load_squad(files: TaskFiles) -> SquadData:
    """Reads SQuAD in the official JSON form.

    Args:
        files: A file, or a folder that holds train-v*.json and dev-v*.json of one version. A
            file alone (also where it is the only one of the folder) is split by article: a
            fifth of them, drawn by the seed, is held out. Of held-out questions a hash of the
            article's title decides, or of the paragraph where there are few articles; those of
            `"test"` are the folder's test-v*.json.

    Raises:
        DataError: If a file is missing, empty or malformed, or a question is on both sides;
            names the article, the paragraph and the question.
    """
    path, order = Path(files.path), (files.seed, QUESTION_ORDER)
    named = {kind: sorted(path.glob(f"{kind}-v*.json")) for kind in ("train", "dev")}
    taken = two_files(path, files.held_out, named, "SQuAD")
    train, dev, source = two_parts(taken, read_squad, attrgetter("article"), "articles", order)
    if files.split == "test":
        taken = [*taken, labelled_test_file(path, path.glob("test-v*.json"), "SQuAD")]
        dev, source = read_squad(taken[-1]), f"{source}; scored on {taken[-1].name}"
    nullable = any(not question.answers for question in (*train, *dev))
    dev = take_split(dev, files.split, str(path), attrgetter("article"), attrgetter("context"))
    both = {question.id for question in train} & {question.id for question in dev}
    if both:
        raise DataError(
            f"{taken[0]} and {taken[1]} share {len(both)} questions ({min(both)!r}, ..); hold out "
            "a file with questions of its own"
        )
    return SquadData(
        sample_rows(train, files.rows, *order),
        sample_rows(dev, files.dev_rows, *order),
        nullable,
        source,
        short_hash("squad-1", *files.content(taken)),
    )


def read_squad(path: Path) -> list[Question]:
    """Reads one file; the errors name the article, the paragraph and the question.

    A file of version 2 without a single unanswerable question is read as one of version 1.1.
    """
    raw = path.read_bytes()
    if not raw.strip():
        raise DataError(f"{path} is empty; give a SQuAD file (JSON with the key 'data')")
    try:
        content = json.loads(decode_utf8(raw, path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}; give SQuAD's official file") from error
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for at, article, paragraph in paragraphs(content, str(path)):
        context = require(paragraph, "context", str, at)
        for place, entry in enumerate(require(paragraph, "qas", list, at)):
            name = require(entry, "id", str, f"{at}, question {place}")
            where = f"{at}, question {name!r}"
            if name in seen:
                raise DataError(f"{where}: the id is taken by a question of {seen[name]}")
            seen[name] = at.removeprefix(f"{path}, ")
            text = require(entry, "question", str, where)
            answers, starts = read_answers(entry, context, where)
            questions.append(Question(name, text, context, article, answers, starts))
    if not questions:
        raise DataError(f"{path} holds no question; give a SQuAD file with at least one")
    return questions


def paragraphs(content: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Every paragraph: where it stands, in words, its article's title, and itself."""
    for number, article in enumerate(require(content, "data", list, path)):
        title = require(article, "title", str, f"{path}, article {number}")
        at = f"{path}, article {number} ({title})"
        for index, paragraph in enumerate(require(article, "paragraphs", list, at)):
            yield f"{at}, paragraph {index}", title, paragraph


def read_answers(
    entry: Mapping[str, Any], context: str, where: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The texts of a question's answers and where they start; none for an unanswerable one."""
    impossible = entry.get("is_impossible", False)
    answers = require(entry, "answers", list, where)
    if impossible is not bool(impossible) or impossible is bool(answers):
        raise DataError(
            f"{where}: is_impossible is {json.dumps(impossible)} with {len(answers)} answers; "
            "a question has at least one, unless is_impossible is true"
        )
    texts, starts = [], []
    for number, answer in enumerate(answers):
        at = f"{where}, answer {number}"
        text, start = require(answer, "text", str, at), require(answer, "answer_start", int, at)
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


def require(holder: Any, key: str, kind: type, where: str) -> Any:
    """The value of a key, of that type, of a JSON object."""
    if not isinstance(holder, dict) or key not in holder:
        has = f"keys {', '.join(holder) or 'none'}" if isinstance(holder, dict) else repr(holder)
        raise DataError(f"{where}: no key {key!r} (found {has:.80}); SQuAD's form needs it")
    value = holder[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: {key!r} must be a {kind.__name__}, found {value!r:.40}")
    return value


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and repeated white space.

    Reference: SQuAD, arXiv 1606.05250, Section 6.1, as in the official evaluation script.

    >>> normalise("The  Apple, a day's")
    'apple days'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def f1(prediction: str, gold: str, *, nullable: bool = False) -> float:
    """Harmonic mean of precision and recall of the normalised words, as a bag, in [0, 1].

    Args:
        prediction: The predicted answer.
        gold: A true answer.
        nullable: Whether SQuAD 2.0's rule holds, by which two texts without a word agree;
            by the rule of 1.1 they score 0.

    >>> round(f1("in the city of Rome", "Rome, Italy"), 3)
    0.333
    """
    words, true = normalise(prediction).split(), normalise(gold).split()
    if not words or not true:
        return float(nullable and words == true)
    shared = (Counter(words) & Counter(true)).total()
    return 2 * shared / (len(words) + len(true))


def score(
    predictions: Mapping[str, str],
    answers: Mapping[str, Collection[str]],
    *,
    nullable: bool = False,
    null_scores: Mapping[str, float] | None = None,
    threshold: float = 0.0,
) -> dict[str, float]:
    """The official scores over all questions, as shares of 1 (the script prints 100 times these).

    A prediction counts with the best of the question's true answers.

    Args:
        predictions: Question id -> answer; `""` = none.
        answers: Question id -> true answers; none = the question is unanswerable.
        nullable: Whether the rules of SQuAD 2.0 hold: true answers without a word do not count,
            and an unanswerable question is solved by no answer. Else those of 1.1.
        null_scores: Question id -> how much more the model trusts that there is no answer than
            in its prediction; with them, the best thresholds are reported.
        threshold: A prediction is taken back where the null score is above.

    Returns:
        `exact` and `f1`; with `nullable` also `HasAns/..` and `NoAns/..` (each where there are
        such questions); with `null_scores` also `best_exact`, `best_exact/threshold`, `best_f1`
        and `best_f1/threshold`, found on these very questions, so that they are upper bounds.
    """
    raw = question_scores(predictions, answers, nullable=nullable)
    counted = after_threshold(raw, answers, null_scores, threshold)
    parts = {"": list(answers)}
    if nullable:
        parts["HasAns/"] = [name for name, golds in answers.items() if golds]
        parts["NoAns/"] = [name for name, golds in answers.items() if not golds]
    values = {}
    for prefix, names in parts.items():
        for metric, scores in counted.items():
            if names:
                values[f"{prefix}{metric}"] = math.fsum(scores[n] for n in names) / len(names)
    if null_scores is not None:
        for metric, scores in raw.items():
            solvable = {name for name, golds in answers.items() if golds}
            best, at = best_threshold(scores, null_scores, solvable)
            values |= {f"best_{metric}": best, f"best_{metric}/threshold": at}
    return values


def question_scores(
    predictions: Mapping[str, str], answers: Mapping[str, Collection[str]], *, nullable: bool
) -> dict[str, dict[str, float]]:
    """`exact` and `f1` of each question, by its id, before any threshold; see `score`."""
    raw: dict[str, dict[str, float]] = {"exact": {}, "f1": {}}
    for name, golds in answers.items():
        if nullable:
            golds = [gold for gold in golds if normalise(gold)] or [""]
        answer = predictions[name]
        raw["exact"][name] = float(normalise(answer) in map(normalise, golds))
        raw["f1"][name] = max(f1(answer, gold, nullable=nullable) for gold in golds)
    return raw


def after_threshold(
    raw: Mapping[str, Mapping[str, float]],
    answers: Mapping[str, Collection[str]],
    null_scores: Mapping[str, float] | None,
    threshold: float,
) -> dict[str, dict[str, float]]:
    """The scores of each question where predictions above the threshold are taken back."""
    nulls = null_scores or {}
    return {
        metric: {
            name: float(not answers[name]) if nulls.get(name, -math.inf) > threshold else value
            for name, value in scores.items()
        }
        for metric, scores in raw.items()
    }


def best_threshold(
    scores: Mapping[str, float], null_scores: Mapping[str, float], answerable: Collection[str]
) -> tuple[float, float]:
    """The highest mean score that some threshold on the null scores earns, and that threshold.

    Questions with the same null score stand on the same side of every threshold (the official
    script may part them, and then names a score that no threshold earns). Of equally good
    thresholds the lowest is taken.

    Args:
        scores: Question id -> score of its prediction, in [0, 1].
        null_scores: Question id -> null score.
        answerable: Ids of the questions that have an answer.

    >>> best_threshold({"a": 1.0, "b": 0.0}, {"a": -2.0, "b": 3.0}, {"a"})
    (1.0, -2.0)
    """
    order = sorted(scores, key=lambda name: null_scores[name])
    lowest = null_scores[order[0]]
    total = float(len(order) - len(answerable))  # every prediction taken back
    best, at = total, math.nextafter(lowest, -math.inf)
    for index, name in enumerate(order):
        total += scores[name] - (name not in answerable)
        last = index + 1 == len(order)
        if (last or null_scores[order[index + 1]] > null_scores[name]) and total > best:
            best, at = total, null_scores[name]
    return best / len(order), at
