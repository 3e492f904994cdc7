"""SQuAD: its files, exact match and F1."""

import copy
import doctest
import json
import math
import string
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_data import DATA, real
from toy_questions import score, squad_json, task_judge, write_squad

from masksearch.errors import DataError


def load(path: Path, held_out: Path | None = None) -> Any:
    return task_judge("squad", path, held_out).data()


def test_questions_answers_and_paragraphs(tmp_path: Path) -> None:
    answer = {"text": "b c", "answer_start": 2}
    second = [answer, {"text": "c", "answer_start": 4}]
    paragraphs = [
        {"context": "x", "qas": []},
        {
            "context": "a b c",
            "qas": [
                {"id": "p", "question": "one?", "answers": second},
                {"id": "q", "question": "two?", "answers": [], "is_impossible": True},
            ],
        },
    ]
    content = {"data": [{"title": "T", "paragraphs": paragraphs}]}
    path = write_squad(tmp_path / "x.json", content)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    held = write_squad(tmp_path / "y.json", squad_json(1, 1, seed=0))
    one, two = load(path, held).train
    assert one.context == two.context == "a b c"
    assert (one.id, one.text, one.answers, one.starts) == ("p", "one?", ("b c", "c"), (2, 4))
    assert (two.answers, two.article) == ((), "T")


AT = r"x\.json, article 0 \(T\), paragraph 0"
QUESTION = {"id": "p", "question": "?", "answers": [{"text": "b", "answer_start": 2}]}
PARAGRAPH = {"context": "a b c", "qas": [QUESTION]}
GOOD = {"data": [{"title": "T", "paragraphs": [PARAGRAPH]}]}
PLACES: dict[str, tuple[Any, ...]] = {
    "article": ("data", 0),
    "paragraph": ("data", 0, "paragraphs", 0),
    "question": ("data", 0, "paragraphs", 0, "qas", 0),
    "answer": ("data", 0, "paragraphs", 0, "qas", 0, "answers", 0),
}
MISSING = [
    ((), "data", r"x\.json: no key 'data'"),
    (PLACES["article"], "title", r"x\.json, article 0: no key 'title' \(found keys paragraphs\)"),
    (PLACES["article"], "paragraphs", r"x\.json, article 0 \(T\): no key 'paragraphs'"),
    (PLACES["paragraph"], "context", rf"{AT}: no key 'context'"),
    (PLACES["paragraph"], "qas", rf"{AT}: no key 'qas'"),
    (PLACES["question"], "id", rf"{AT}, question 0: no key 'id'"),
    (PLACES["question"], "question", rf"{AT}, question 'p': no key 'question'"),
    (PLACES["question"], "answers", rf"{AT}, question 'p': no key 'answers'"),
    (PLACES["answer"], "text", rf"{AT}, question 'p', answer 0: no key 'text'"),
    (PLACES["answer"], "answer_start", rf"{AT}, question 'p', answer 0: no key 'answer_start'"),
]
WRONG = [
    (PLACES["answer"], {"answer_start": 5}, r"question 'p', answer 0: characters 5 to 6 lie outs"),
    (PLACES["answer"], {"answer_start": -1}, r"answer 0: characters -1 to 0 lie outside .* has 5"),
    (PLACES["answer"], {"answer_start": "2"}, r"'answer_start' must be a int, found '2'"),
    (PLACES["answer"], {"text": " "}, r"question 'p', answer 0 is empty"),
    (PLACES["question"], {"is_impossible": True}, r"'p': is_impossible is true with 1 answers"),
    (PLACES["question"], {"answers": []}, r"'p': is_impossible is false with 0 answers"),
    (PLACES["question"], {"is_impossible": "no"}, r"'p': is_impossible is \"no\""),
    (PLACES["paragraph"], {"qas": ["p"]}, r"question 0: no key 'id' \(found 'p'\)"),
    (PLACES["paragraph"], {"qas": []}, r"x\.json holds no question"),
]


def changed(place: tuple[Any, ...], change: str | dict[str, Any]) -> dict[str, Any]:
    """The good file without a key there, or with other values."""
    content = copy.deepcopy(GOOD)
    found: Any = content
    for step in place:
        found = found[step]
    if isinstance(change, str):
        del found[change]
    else:
        found.update(change)
    return content


@pytest.mark.parametrize(("place", "change", "message"), MISSING + WRONG)
def test_missing_keys_and_wrong_values_are_named(tmp_path, place, change, message):
    with pytest.raises(DataError, match=message):
        load(write_squad(tmp_path / "x.json", changed(place, change)))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "dev-v1.1.json"
    with pytest.raises(DataError, match="holds neither a train nor a dev file of SQuAD"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"no such SQuAD file .*dev-v1\.1\.json; give one on disk"):
        load(path)
    for raw, message in (
        (b" \n", "is empty"),
        (b'{"data": [', "is not JSON: .*line 1 column"),
        (b'{"data": "na\xefve"}', "byte 0xef is not UTF-8"),
        (b"[1]", r"no key 'data' \(found \[1\]\)"),
    ):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=message):
            load(path)
    write_squad(path, squad_json(1, 3, seed=0))
    with pytest.raises(DataError, match=r"dev-v1\.1\.json: one file is split .* holds 1; give"):
        load(path)
    with pytest.raises(DataError, match=r"share 3 questions \('s0-0-0', \.\.\)"):
        load(path, path)


def test_duplicate_ids_are_named(tmp_path: Path) -> None:
    content = squad_json(2, 2, seed=0)
    content["data"][1]["paragraphs"][1]["qas"][0]["id"] = "s0-0-1"
    message = r"article 1 .*, paragraph 1, question 's0-0-1': the id is taken .* paragraph 1"
    with pytest.raises(DataError, match=message):
        load(write_squad(tmp_path / "x.json", content))


def test_version_2_without_unanswerable_questions(tmp_path: Path) -> None:
    content = squad_json(3, 2, seed=0) | {"version": "v2.0"}
    path = write_squad(tmp_path / "x.json", content)
    assert not load(path).nullable
    held = write_squad(tmp_path / "y.json", squad_json(1, 20, seed=1, impossible=0.5))
    path.write_text(json.dumps(squad_json(3, 2, seed=0)))
    assert load(path, held).nullable


@real
@pytest.mark.slow
def test_the_real_file() -> None:
    data = load(DATA / "squad")
    assert len(data.train) + len(data.dev) == 10_570
    assert [len({one.article for one in part}) for part in (data.train, data.dev)] == [38, 10]
    for question in [*data.train, *data.dev]:
        for answer, start in zip(question.answers, question.starts, strict=True):
            assert question.context[start : start + len(answer)] == answer


# -- exact match and F1 -------------------------------------------------------------------------
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


@pytest.mark.parametrize("name", ["squad", "squad_data"])
def test_examples_of_docstrings(name: str) -> None:
    found = doctest.testmod(sys.modules[name])
    assert found.attempted > 0
    assert found.failed == 0
