"""Tasks of long context: what they ask for stands in the row, once, where it says."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_decoder import byte_tokenizer

import masksearch as ms
from masksearch_decoders.tasks.long_context import GROUPS, TASKS, Draw, Prompt, task_rows
from masksearch_decoders.tasks.next_token import NextTokenRows, NextTokenText

LENGTH = 700  # letters: a token each
RULER = json.loads(Path(__file__).with_name("ruler.json").read_text())
WORD, UUID = r"(?:[b-z][aeiou]){3}", r"\w{8}-\w{4}-4\w{3}-[89ab]\w{3}-\w{12}"
KINDS = {"words": WORD, "numbers": r"\d{7}", "uuids": UUID}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> NextTokenText:
    return written(tmp_path_factory.mktemp("tasks"), LENGTH)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NextTokenText]:
    """By the lengths of RULER's rows."""
    folder = tmp_path_factory.mktemp("lengths")
    lengths = {"2048": 2048, "4096": 4400}  # letters, of which a word has more
    return {name: written(folder / name, length) for name, length in lengths.items()}


def written(folder: Path, length: int) -> NextTokenText:
    folder.mkdir(exist_ok=True)
    articles = [f" = {n} = \n" + f"about {n} the cat sat on it and went. " * 80 for n in range(40)]
    for name in ("train", "valid"):
        (folder / f"{name}.txt").write_text("\n".join(articles))
    tokenizer = byte_tokenizer(folder / "letters")
    return NextTokenText.load(folder, tokenizer=tokenizer, length=length, cache=folder)


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
    rows = task_rows(text, "validation", name, 4)
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
    assert task_rows(text, "validation", name, 4).digest() == rows.digest()
    final = read(text, task_rows(text, "holdout", name, 4))
    assert not {answer for _, all_of in final for answer in all_of} & {
        answer for _, all_of in read(text, rows) for answer in all_of
    }


@pytest.mark.parametrize("name", RULER["settings"])
def test_rows_have_the_kinds_and_sizes_of_rulers(texts, name):
    """Of its settings, and of rows that its own generators made of them."""
    settings, golden = RULER["settings"][name], RULER["rows"][name]
    for length, text in texts.items():
        prompt, answers = read(text, task_rows(text, "validation", name, 1))[0]
        assert len(answers) == golden["answers"]
        assert ("The road is long." in prompt) is (settings.get("type_haystack") == "noise")
        if settings["task"] == "niah":
            key, value = (KINDS[settings[f"type_needle_{which}"]] for which in "kv")
            needle = rf"\nThe secret of ({key}) is ({value})\.\n"
            needles = dict.fromkeys(re.findall(needle, prompt))
            assert all(re.fullmatch(f" {value}", answer) for answer in answers)
            if golden["needles"] == "all":
                between = re.sub(needle, "", prompt.rsplit("\nWhat is the secret", 1)[0])
                assert len(needles) > 10
                assert len(between) < 100  # the last one is cut
                continue
            assert len(needles) == golden["needles"]
            asked = Counter(k for k, v in needles if f" {v}" in answers)
            assert {*asked.values()} == {settings["num_needle_v"]}
            assert len(asked) == settings["num_needle_q"]
            assert len({k for k, _ in needles}) == max(settings["num_needle_k"], len(asked))
        elif name == "vt":
            names = re.findall(rf"\nLet ({WORD}) be (?:{WORD}|\d{{7}})\.\n", prompt)
            assert [f" {each}" for each in names] == answers
            assert len(names) == settings["num_chains"] * (settings["num_hops"] + 1)
        elif name == "cwe":
            counts = Counter(re.findall(rf" {WORD}", prompt.split("Words:")[1]))
            often, seldom = golden["often_seldom"][length]
            assert {counts.pop(answer) for answer in answers} == {often}
            assert {*counts.values()} == {seldom}
        elif name == "fwe":
            counts = Counter(prompt.split("Words:")[1].split("\n")[0].split())
            (most, first), *others = counts.most_common(4)
            dots, *shares = golden["most"][length]
            assert most == dots
            assert [f" {word}" for word, _ in others] == answers
            assert [count / first for _, count in others] == pytest.approx(shares, abs=0.01)


@given(st.integers(120, 900))
def test_no_word_is_as_frequent_as_one_that_is_asked_for(room):
    made = TASKS["fwe"](Draw(0, lambda text: [*text.encode()]), 0.5, room)
    [(_, listed)] = made.planted
    counts = Counter(listed.split("|")[1:])
    most = [word for word, _ in counts.most_common(4)]
    assert most == [" ...", *made.answers]
    assert len({counts[word] for word in most}) == 4
    assert counts.most_common(5)[-1][1] < counts[most[-1]] or len(counts) == 4


@pytest.mark.parametrize("name", TASKS)
def test_guess_is_the_entropy_of_what_is_drawn(text, name):
    rows = task_rows(text, "validation", name, 2)
    nats = {7: 3 * math.log(14 * 5), 8: math.log(9e6), 37: 122 * math.log(2)}  # by the letters
    answers = [answer for _, all_of in read(text, rows) for answer in all_of]
    tokens = sum(map(len, answers))  # a letter each
    assert rows.guess == pytest.approx(sum(nats[len(each)] for each in answers) / tokens)


def test_a_task_of_ones_own_has_no_guess(text, monkeypatch):
    own = Prompt([(0.5, "\nBlue is|the sky|.\n")], "\nBlue is", ["the sky"], [])
    monkeypatch.setitem(TASKS, "own", lambda draw, depth, room: own)
    assert task_rows(text, "validation", "own", 2).guess == math.inf


def test_values_of_one_key_are_asked_for_as_they_stand(text):
    for prompt, answers in read(text, task_rows(text, "validation", "niah_multivalue", 4)):
        places = [prompt.index(f" is{answer}.") for answer in answers]
        assert places == sorted(places)


def test_needles_lie_at_every_depth_and_one_answers(text):
    for name in ("niah_single_1", "niah_multikey_1"):
        depths = []
        for prompt, answers in read(text, task_rows(text, "validation", name, 5)):
            body, question = prompt.rsplit("\nWhat is", 1)
            key = question.split("? ")[0].removeprefix(" the secret of")
            assert body.count(f"of{key} is") == 1
            depths.append(body.index(f"is{answers[0]}"))
        assert depths == sorted(depths)
        assert depths[-1] - depths[0] > 0.6 * LENGTH / 2


def test_variables_pass_the_value_on_in_order(text):
    for prompt, names in read(text, task_rows(text, "validation", "vt", 3)):
        value = prompt.rsplit(" that are", 1)[1].rstrip(":")
        places = [
            prompt.index(f"Let{name} be{source}.")
            for name, source in zip(names, [value, *names], strict=False)
        ]
        assert places == sorted(places)


def test_facts_of_two_hops_need_both(text):
    for prompt, [answer] in read(text, task_rows(text, "validation", "qa_2", 3)):
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
