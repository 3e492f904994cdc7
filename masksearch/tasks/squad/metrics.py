"""SQuAD's official scores: exact match and F1 over words, with and without unanswerable questions.

score({"q1": "the Broncos"}, {"q1": ["Denver Broncos"]})     # {"exact": 0.0, "f1": 0.67}
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII alone, as in the official script
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and repeated white space.

    Reference: SQuAD, arXiv 1606.05250, Section 6.1, as in the official evaluation script.

    >>> normalise("The  Apple, a day's")
    'apple days'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """1.0 where both are the same after normalisation, else 0.0."""
    return float(normalise(prediction) == normalise(gold))


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
    found, true = normalise(prediction).split(), normalise(gold).split()
    if not found or not true:
        return float(nullable and found == true)
    shared = (Counter(found) & Counter(true)).total()
    return 2 * shared / (len(found) + len(true))


class Threshold(NamedTuple):
    """The best score that some threshold on the null scores earns.

    Args:
        value: The score, in [0, 1].
        threshold: A question counts as unanswered where its null score is above.
    """

    value: float
    threshold: float


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

    Raises:
        ValueError: If there is nothing to score, a question has no prediction or no null score,
            or has no answer by the rules of 1.1; names the question.
    """
    if not answers:
        raise ValueError("no question to score; give at least one")
    for what, known in (("prediction", predictions), ("null score", null_scores)):
        missing = [name for name in answers if known is not None and name not in known]
        if missing:
            raise ValueError(
                f"question {missing[0]!r} has no {what} (nor have {len(missing) - 1} "
                "more); give one for every question"
            )
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
            best = best_threshold(
                scores, null_scores, [n for n, golds in answers.items() if golds]
            )
            values[f"best_{metric}"] = best.value
            values[f"best_{metric}/threshold"] = best.threshold
    return values


def question_scores(
    predictions: Mapping[str, str], answers: Mapping[str, Collection[str]], *, nullable: bool
) -> dict[str, dict[str, float]]:
    """`exact` and `f1` of each question, by its id, before any threshold; see `score`."""
    raw: dict[str, dict[str, float]] = {"exact": {}, "f1": {}}
    for name, golds in answers.items():
        if nullable:
            golds = [gold for gold in golds if normalise(gold)] or [""]
        elif not golds:
            raise ValueError(
                f"question {name!r} has no answer, which SQuAD 1.1 does not know; "
                "score with nullable=True"
            )
        said = predictions[name]
        raw["exact"][name] = max(exact_match(said, gold) for gold in golds)
        raw["f1"][name] = max(f1(said, gold, nullable=nullable) for gold in golds)
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
    scores: Mapping[str, float], null_scores: Mapping[str, float], answerable: Sequence[str]
) -> Threshold:
    """The threshold on the null scores that earns the highest mean score.

    Questions with the same null score stand on the same side of every threshold (the official
    script may part them, and then names a score that no threshold earns). Of equally good
    thresholds the lowest is taken.

    Args:
        scores: Question id -> score of its prediction, in [0, 1].
        null_scores: Question id -> null score.
        answerable: Ids of the questions that have an answer.

    >>> best_threshold({"a": 1.0, "b": 0.0}, {"a": -2.0, "b": 3.0}, ["a"])
    Threshold(value=1.0, threshold=-2.0)
    """
    has_answer = set(answerable)
    order = sorted(scores, key=lambda name: null_scores[name])
    lowest = null_scores[order[0]]
    total = float(len(order) - len(has_answer))  # every prediction taken back
    best, at = total, math.nextafter(lowest, -math.inf)
    for index, name in enumerate(order):
        total += scores[name] - (name not in has_answer)
        last = index + 1 == len(order)
        if (last or null_scores[order[index + 1]] > null_scores[name]) and total > best:
            best, at = total, null_scores[name]
    return Threshold(best / len(order), at)
