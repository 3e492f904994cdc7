"""Tasks of long context: what they ask for stands in the row, once, where it says."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny_decoder import byte_tokenizer

import masksearch as ms
from masksearch.tasks.long_context import GROUPS, TASKS, task_rows
from masksearch.tasks.next_token import NextTokenRows, NextTokenText

LENGTH = 700  # letters: a token each


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> NextTokenText:
    folder = tmp_path_factory.mktemp("tasks")
    articles = [f" = {n} = \n" + f"about {n} the cat sat on it and went. " * 80 for n in range(40)]
    for name in ("train", "valid"):
        (folder / f"{name}.txt").write_text("\n".join(articles))
    tokenizer = byte_tokenizer(folder / "letters")
    return NextTokenText.load(folder, tokenizer=tokenizer, length=LENGTH, cache=folder)


def read(text: NextTokenText, rows: NextTokenRows) -> list[tuple[str, list[str]]]:
    """Prompt and answers of each row."""
    found = []
    for tokens, answers in zip(rows.tokens.tolist(), rows.answers.tolist(), strict=True):
        first = answers.index(True)
        said = text.tokenizer.decode(tokens[first:])
        found.append((text.tokenizer.decode(tokens[:first]), said.split(",")))
    return found


@pytest.mark.parametrize("name", TASKS)
def test_answers_stand_in_the_row_before_they_are_asked_for(text, name):
    rows = task_rows(text, "search", name, 4)
    assert rows.tokens.shape == (4, LENGTH)
    assert torch.equal(rows.labels != -100, rows.answers)
    for row, at in rows.answers.nonzero().tolist():
        source = at - int(rows.needs[row, at])
        assert 0 <= source < at
        assert rows.tokens[row, source] == rows.tokens[row, at]
        assert not rows.answers[row, source]
    assert rows.answers[:, -1].all()
    many = {"niah_multivalue": 4, "niah_multiquery": 4, "vt": 5, "cwe": 10, "fwe": 3}
    for prompt, answers in read(text, rows):
        assert len(answers) == len(set(answers)) == many.get(name, 1)
        assert all(answer in prompt for answer in answers)
    assert task_rows(text, "search", name, 4).digest() == rows.digest()
    final = read(text, task_rows(text, "final", name, 4))
    assert not {answer for _, all_of in final for answer in all_of} & {
        answer for _, all_of in read(text, rows) for answer in all_of
    }


def test_needles_lie_at_every_depth_and_their_number_is_that_of_the_task(text):
    for name, needles in {"niah_single_1": 1, "niah_multikey_1": 4, "niah_multivalue": 4}.items():
        depths = []
        for prompt, answers in read(text, task_rows(text, "search", name, 5)):
            body, question = prompt.rsplit("\nWhat is", 1)
            assert body.count("The secret of") == needles
            key = question.split("? ")[0].removeprefix(" the secret of")
            assert body.count(f"of{key} is") == len(answers)
            depths.append(body.index(f"is{answers[0]}"))
        assert depths == sorted(depths)
        assert depths[-1] - depths[0] > 0.6 * LENGTH / 2
    crowd, _ = read(text, task_rows(text, "search", "niah_multikey_2", 1))[0]
    assert crowd.count("The secret of") > 8


def test_variables_pass_the_value_on_in_order(text):
    for prompt, names in read(text, task_rows(text, "search", "vt", 3)):
        value = prompt.rsplit(" that are", 1)[1].rstrip(":")
        places = [
            prompt.index(f"Let{name} be{source}.")
            for name, source in zip(names, [value, *names], strict=False)
        ]
        assert places == sorted(places)


def test_counted_words_are_the_most_frequent_ones(text):
    prompt, answers = read(text, task_rows(text, "search", "cwe", 1))[0]
    counts = Counter(re.findall(r" (?:[b-z][aeiou]){3}\b", prompt.split("Words:")[1]))
    assert {word for word, _ in counts.most_common(10)} == set(answers)
    assert len({counts[answer] for answer in answers}) == 1
    prompt, answers = read(text, task_rows(text, "search", "fwe", 1))[0]
    counts = Counter(re.findall(r" (?:[b-z][aeiou]){3}\b", prompt.split("Words:")[1]))
    assert [word for word, _ in counts.most_common(3)] == answers
    assert len({counts[answer] for answer in answers}) == 3


def test_facts_of_two_hops_need_both(text):
    for prompt, [answer] in read(text, task_rows(text, "search", "qa_2", 3)):
        person = prompt.split("the place where")[1].split(" lives?")[0]
        town = prompt.split(f"{person.strip()} lives in")[1].split(".")[0]
        assert prompt.split(f"The head of{town} is")[1].split(".")[0] == answer


def test_every_task_is_of_one_group():
    assert len(TASKS) == 14 == sum(map(len, GROUPS.values()))


def test_what_cannot_hold_a_task_says_why(text, tmp_path):
    folder = Path(tmp_path)
    (folder / "text.txt").write_text("the cat sat on the mat and went home. " * 400)
    letters = byte_tokenizer(folder / "letters")
    short = NextTokenText.load(folder / "text.txt", tokenizer=letters, length=40, cache=folder)
    for name in TASKS:
        with pytest.raises(ms.errors.DataError, match=rf"{name} takes \d+ .* a sequence has 40"):
            task_rows(short, "all", name, 2)
    words = NextTokenText.load(folder / "text.txt", vocabulary=40, length=200, cache=folder)
    with pytest.raises(ms.errors.DataError, match="the same ids, so that no answer can be told"):
        task_rows(words, "all", "niah_multikey_3", 2)
