"""SQuAD's exact match and F1."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksearch.tasks.squad import score

WORDS = (*"a The an cat cats cat's red-cat x , \u201c Ana".split(" "), " ", "\u00a0")
texts = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
ids = st.sampled_from([f"q{number}" for number in range(8)])


def slow_words(text: str) -> list[str]:
    """The official normalisation, letter by letter and word by word."""
    kept = [letter for letter in text.lower() if letter not in string.punctuation]
    words, word = [], ""
    for letter in [*kept, " "]:
        if letter.isalnum() or letter == "_":
            word += letter
            continue
        words.append("" if word in ("a", "an", "the") else word)
        words.append(letter)
        word = ""
    return "".join(" " if part == "" else part for part in words).split()


def slow_f1(prediction: str, gold: str, nullable: bool) -> float:
    """By striking matched words off a list."""
    left, right = slow_words(prediction), slow_words(gold)
    if not left or not right:
        return 1.0 if nullable and left == right else 0.0
    rest, same = list(right), 0
    for word in left:
        if word in rest:
            rest.remove(word)
            same += 1
    if not same:
        return 0.0
    precision, recall = same / len(left), same / len(right)
    return 2 * precision * recall / (precision + recall)


def scored(prediction: str, gold: str, nullable: bool = False) -> tuple[float, float]:
    """Exact match and F1 of one question."""
    found = score({"q": prediction}, {"q": [gold]}, nullable=nullable)
    return found["exact"], found["f1"]


@given(texts, texts, st.booleans())
def test_f1_matches_striking_off(prediction: str, gold: str, nullable: bool) -> None:
    exact, found = scored(prediction, gold, nullable)
    assert found == pytest.approx(slow_f1(prediction, gold, nullable))
    assert exact == (slow_words(prediction) == slow_words(gold))
    assert scored(gold, prediction, nullable) == (exact, found)


@pytest.mark.parametrize(
    ("prediction", "gold", "equal", "overlap"),
    [
        ("the Denver Broncos!", "Denver  broncos", 1, 1),
        ("Broncos", "Denver Broncos", 0, 2 / 3),
        ("1,000 dollars", "1000 dollars", 1, 1),
        ("well-known", "well known", 0, 0),  # punctuation is dropped, not turned into a blank
        ("\u2013", "-", 0, 0),  # only ASCII punctuation is dropped
        ("Theatre", "atre", 0, 0),  # an article is a word
        ("cat cat dog", "cat dog dog", 0, 2 / 3),
        ("a", "the", 1, 0),  # no word on either side, by the rule of 1.1
    ],
)
def test_golden_pairs(prediction: str, gold: str, equal: float, overlap: float) -> None:
    assert scored(prediction, gold) == (equal, pytest.approx(overlap))


def test_the_best_answer_counts() -> None:
    answers = {"q": ["Santa Clara", "Levi's Stadium", "the stadium"], "r": ["x"]}
    found = score({"q": "Levis stadium", "r": "y x"}, answers)
    assert found == {"exact": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)}


def test_version_2_by_hand() -> None:
    answers = {"a": ["cat"], "b": ["red cat"], "c": [], "d": [], "e": ["the"]}
    said = {"a": "cat", "b": "cat", "c": "", "d": "dog", "e": ""}
    null = {"a": -3.0, "b": -1.0, "c": 4.0, "d": 2.0, "e": 1.0}
    plain = score(said, answers, nullable=True)
    # e: its only answer holds no word, so that saying nothing is right; it still has an answer.
    assert plain["exact"] == 3 / 5
    assert plain["f1"] == pytest.approx((1 + 2 / 3 + 1 + 0 + 1) / 5)
    assert plain["HasAns/exact"] == 2 / 3
    assert plain["NoAns/f1"] == 1 / 2
    assert set(plain) == {p + m for p in ("", "HasAns/", "NoAns/") for m in ("exact", "f1")}
    at = score(said, answers, nullable=True, null_scores=null, threshold=1.5)
    assert at["exact"] == 4 / 5  # d is taken back
    assert (at["best_exact"], at["best_exact/threshold"]) == (4 / 5, 1.0)
    assert at["best_f1"] == pytest.approx((1 + 2 / 3 + 1 + 1 + 1) / 5)
    below = score(said, answers, nullable=True, null_scores=null, threshold=-9.0)
    assert (below["exact"], below["HasAns/f1"], below["NoAns/f1"]) == (2 / 5, 0.0, 1.0)


questions = st.dictionaries(
    ids, st.tuples(st.lists(texts, max_size=2), texts, st.integers(-2, 2).map(float)), min_size=1
)


@given(questions, st.integers(-3, 3))
def test_no_threshold_beats_the_best(drawn, threshold):
    answers = {name: golds for name, (golds, _, _) in drawn.items()}
    said = {name: text for name, (_, text, _) in drawn.items()}
    null = {name: value for name, (_, _, value) in drawn.items()}
    settings = dict(nullable=True, null_scores=null)
    found = score(said, answers, threshold=threshold, **settings)  # type: ignore[arg-type]
    for metric in ("exact", "f1"):
        assert found[metric] <= found[f"best_{metric}"] + 1e-12
        at = found[f"best_{metric}/threshold"]
        assert math.isfinite(at)
        reached = score(said, answers, threshold=at, **settings)  # type: ignore[arg-type]
        assert reached[metric] == pytest.approx(found[f"best_{metric}"])


def test_ties_stay_together() -> None:
    said, answers = dict.fromkeys("abc", "x"), {"a": ["x"], "b": [], "c": []}
    found = score(said, answers, nullable=True, null_scores=dict.fromkeys("abc", 5.0))
    assert found["best_exact"] == 2 / 3  # between the tied ones 1.0 could be had, by no threshold
    assert found["best_exact/threshold"] < 5.0
