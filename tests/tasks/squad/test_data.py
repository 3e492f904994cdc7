"""SQuAD files: what is read, how one file is split, what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from real_data import DATA, real
from toy_questions import squad_json, task_judge, write_squad

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
