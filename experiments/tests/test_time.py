"""24_time: rows that stay apart, names that are gone, positions that stand twice, the planned
contrasts of made-up lines, its stages at a toy size."""

import base64
import itertools
import json
import random
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from experiment_scripts import load_script
from real_data import DATA, real
from scipy import stats
from tiny_checkpoint import tiny_checkpoint
from toy_sentences import WORDS, write_lines
from transformers import BertModel

from masksearch.tasks.glue.columns import Columns
from masksearch.tasks.glue.read import load_glue


@pytest.fixture(scope="module")
def texts() -> ModuleType:
    return load_script("24_time/texts.py")


@pytest.fixture(scope="module")
def data(texts, tmp_path_factory) -> Path:
    """Made-up reviews whose words tell the label, and novels of numbered sentences."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)

    def say(words: list[str], count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    for part, count in (("train", 500), ("dev", 100)):
        rows = [f"{say(WORDS[40 * (n % 2) :][:40], 180)}\t{n % 2}" for n in range(count)]
        write_lines(folder / "imdb-long" / f"{part}.tsv", ["review\tlabel", *rows])
    for at, novel in enumerate(texts.PLAN["tasks"]["which-author"]["novels"]):
        own = WORDS[8 * at : 8 * at + 8]
        said = [f"{say(own, 14)} Mr. Bell {n} and Anna. Anna {say(own, 3)}." for n in range(600)]
        write_lines(folder / "english-novels" / f"{novel}.txt", said)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", ["imdb-long", "which-author"])
def test_no_row_is_in_two_parts_and_searches_read_those_dealt_to_them(texts, data, tmp_path, task):
    plan = texts.PLAN["tasks"][task] | texts.PLAN["smoke"]["rows"]
    parts = texts.deal(data, task, plan)
    assert {name: len(rows) for name, rows in parts.items()} == {
        name: plan[name] for name in ("train", "search", "choice", "judge")
    }
    every = [text for rows in parts.values() for text, _ in rows]
    assert len({*every}) == len(every)
    assert parts == texts.deal(data, task, plan)
    texts.write(parts, tmp_path / task)
    found = Columns(("text",), "label").read(tmp_path / task)
    for split, part in (("validation", "search"), ("holdout", "choice"), ("test", "judge")):
        rows = load_glue(tmp_path, found, split=split)
        assert {text for (text,) in rows.dev[task].texts} == {text for text, _ in parts[part]}


@pytest.mark.slow
def test_the_last_third_of_a_novel_is_a_passage_away(texts, data):
    plan = texts.PLAN["tasks"]["which-author"] | texts.PLAN["smoke"]["rows"] | {"words": 200}
    parts = texts.deal(data, "which-author", plan)
    numbers: dict[tuple[str, bool], list[int]] = {}
    for part, rows in parts.items():
        for text, author in rows:
            own = [int(word) for word in text.split() if word.isdigit()]
            numbers.setdefault((author, part in ("train", "search")), []).extend(own)
    authors = {author for author, _ in numbers}
    assert len(authors) == 10
    for author in authors:
        assert max(numbers[author, True]) + 8 < min(numbers[author, False])


def test_names_are_one_word_wherever_they_stand(texts):
    said = 'Anna saw Mr. Bell. "Bell," said Anna\'s aunt, "I hear the bell." So Anna, J. Roe and'
    said += " I ran; the bell rang, and Anna O'Neil laughed: Then the bell fell. Roe slept."
    plain = texts.without_names(said)
    left = {*texts.LETTERS.findall(plain)}
    assert left.isdisjoint({"Anna", "Roe", "Neil"})
    assert {"I", "So", "Then", "bell", "aunt"} <= left
    assert len(plain.split()) == len(said.split())
    assert plain.startswith("someone saw someone. Bell.")  # as often in small letters


@real
@pytest.mark.slow
def test_real_reviews_are_as_many_as_planned(texts):
    plan = texts.PLAN["tasks"]["imdb-long"]
    parts = texts.deal(DATA, "imdb-long", plan)
    assert {name: len(rows) for name, rows in parts.items()} == plan


@real
@pytest.mark.nightly
def test_real_novels_have_the_planned_rows_and_no_names(texts):
    plan = texts.PLAN["tasks"]["which-author"]
    parts = texts.deal(DATA, "which-author", plan)
    assert len(parts["train"]) > 1100
    assert (len(parts["search"]), len(parts["choice"])) == (plan["search"], plan["choice"])
    assert len(parts["judge"]) > 450
    everything = " ".join(text for rows in parts.values() for text, _ in rows)
    for name in ("Jarndyce", "Tulkinghorn", "Rochester", "Katharine", "Strether", "Feverel"):
        assert name not in everything


def test_sorting_leaves_the_padding_within_batches(texts):
    assert texts.padded([10, 2000, *[10] * 6, *[100] * 8]) == {
        "text": (10 * 7 + 1024 + 800) / 16,
        "as they come": (1024 + 100) / 2,
        "sorted": (100 + 1024) / 2,
    }
    found = texts.padded([20, 10] * 8)
    assert found == {"text": 15, "as they come": 20, "sorted": 15}


def test_positions_stand_twice(tmp_path):
    stretch = load_script("24_time/stretch.py").stretch
    start = tiny_checkpoint(tmp_path / "start", WORDS)
    out = stretch(start, tmp_path / "out")
    one, two = (BertModel.from_pretrained(folder).eval() for folder in (start, out))
    short, long = (model.embeddings.position_embeddings.weight for model in (one, two))
    assert len(long) == 2 * len(short) == two.config.max_position_embeddings == 96
    assert torch.equal(long[0::2], short)
    assert torch.equal(long[1::2], short)
    ids = torch.randint(5, 60, (2, 48))
    for shift in (0, 1):  # at positions 2k + shift it answers as the checkpoint at k
        places = 2 * torch.arange(48)[None] + shift
        again = two(ids, position_ids=places).last_hidden_state
        torch.testing.assert_close(again, one(ids).last_hidden_state)
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 96


# -- contrasts ---------------------------------------------------------------------------------
ROWS, SEEDS, HOURS = 1000, range(4), (1.29, 1.34, 1.4)
RIGHT = {  # task -> mask -> rows that are right on choosing and on judging rows
    "imdb-long": {"dam": (790, 800), "drawn: star": (780, 700), "drawn: fixed": (770, 790),
                  "tpe": (700, 760)},
    "which-author": {"dam": (790, 800), "drawn: star": (780, 800), "drawn: fixed": (770, 850)},
}  # fmt: skip
SLOW = ("imdb-long", 3)  # a model whose drawn mask misses the target


def made_up() -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Task and seed -> lines as the run writes them."""
    lines: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for task, seed in itertools.product(RIGHT, SEEDS):
        lines[task, seed] = own = []
        named = RIGHT[task] | {"dense": (850, 850)}
        named |= {"front dam 0.5": (0, 840), "front drawn 0.5: star": (0, 830)} if not seed else {}
        for name, rights in named.items():
            if name == "tpe" and seed > 1:
                continue
            for rows, right in zip(("choice", "judge"), rights, strict=True):
                right += (seed - 1) * (rows == "judge") * (name == "dam")
                bits = np.packbits(np.arange(ROWS) < right)
                own.append(
                    {"stage": "score", "rows": rows, "name": name, "score": right / ROWS,
                     "density": 0.2, "density_judged": 0.2, "constant": 0.5, "seconds": 1.0,
                     "each": f"{ROWS}b{base64.b85encode(bits.tobytes()).decode()}"}
                )  # fmt: skip
            slower = 0.1 * ((task, seed) == SLOW and name == "drawn: star")
            for hour, middle in enumerate(HOURS):
                ends = {"low": middle - 0.02, "median": middle - slower, "high": middle + 0.02}
                own.append({"stage": "time", "name": name, "hour": f"T{hour}", **ends})
    return lines


def test_contrasts_are_those_of_the_plan():
    contrasts = load_script("24_time/contrasts.py")
    lines = made_up()
    found = contrasts.primary(lines).set_index("task")
    # of the drawn masks that of the choosing rows, and no model on which one misses the target
    gaps = [0.1 + (seed - 1) / ROWS for seed in SEEDS if ("imdb-long", seed) != SLOW]
    assert found.loc["imdb-long", "difference"] == pytest.approx(fmean(gaps))
    assert found["models"].tolist() == [3, 4]
    assert found.loc["which-author", "difference"] == pytest.approx(0.0005)
    assert found["adjusted_p"].tolist() == pytest.approx(
        [2 * found["p"].iloc[0], found["p"].iloc[1]]
    )
    assert found["level"].tolist() == [0.975, 0.95]
    assert found["pays"].tolist() == [True, False]
    assert found["enough"].tolist() == [False, True]
    speeds = contrasts.speeds(lines).set_index(["task", "seed", "arm"])
    assert speeds.loc[
        ("imdb-long", 0, "dam"), ["median", "least", "most", "timings"]
    ].tolist() == [*(1.34, 1.29, 1.4, 3)]
    assert speeds[~speeds["met"]].index.tolist() == [(*SLOW, "drawn")]
    assert contrasts.tasks_in(lines) == dict.fromkeys(RIGHT, True)


def test_the_first_three_timings_count_and_all_are_shown():
    contrasts = load_script("24_time/contrasts.py")
    middles = (1.32, 1.28, 1.35, 1.25, 1.2)
    own = [
        {"stage": "time", "name": "dam", "hour": f"T{hour}", "low": middle, "median": middle,
         "high": middle}
        for hour, middle in enumerate(middles)
    ]  # fmt: skip
    found = contrasts.speed_of(own[::-1], "dam")
    assert [found[each] for each in ("median", "least", "most", "timings", "met")] == [
        *(1.32, 1.2, 1.35, 5, True)
    ]
    assert not contrasts.speed_of(own, "dam", slice(None))["met"]
    assert contrasts.speed_of(own, "dam", slice(-3, None))["median"] == 1.25


def test_samplers_have_intervals_over_rows_alone():
    found = load_script("24_time/contrasts.py").against_samplers(made_up())
    (row,) = found[found["contrast"] == "dam - tpe"].to_dict("records")
    each = np.mean([np.arange(ROWS) < 799, np.arange(ROWS) < 800], 0) - (np.arange(ROWS) < 760)
    half = stats.t.ppf(0.975, ROWS - 1) * each.std(ddof=1) / ROWS**0.5
    assert row["models"] == 2
    assert row["difference"] == pytest.approx(each.mean())
    assert [row["low"], row["high"]] == pytest.approx([each.mean() - half, each.mean() + half])


def test_plain_ways_are_compared_with_the_tiles_that_were_found(tmp_path):
    amended = load_script("24_time/amended.py")
    first, anew = made_up(), {model: own for model, own in made_up().items() if model[1] == 0}
    for own in anew.values():
        cut = [line | {"name": "cut ends 704"} for line in own if line["name"] == "drawn: star"]
        own[:] = [each for each in own if each["name"] in ("dense", "dam")] + cut
        (dense,) = amended.scored(own, "choice", "dense")
        dense["score"] += 0.006 * (own is anew["imdb-long", 0])
    scores = amended.scores(anew).set_index(["task", "arm"])["score"]
    assert scores.to_dict() == {
        **{("imdb-long", "dense"): 0.85, ("imdb-long", "cut"): 0.7},
        **{("imdb-long", "dam"): 0.799, ("which-author", "dense"): 0.85},
        **{("which-author", "cut"): 0.8, ("which-author", "dam"): 0.799},
    }
    found = amended.differences(anew).set_index(["task", "contrast"])
    row = found.loc[("imdb-long", "cut - dam")]
    each = (np.arange(ROWS) < 700).astype(float) - (np.arange(ROWS) < 799)
    half = stats.t.ppf(0.975, ROWS - 1) * each.std(ddof=1) / ROWS**0.5
    assert row["difference"] == pytest.approx(-0.099)
    assert [row["low"], row["high"]] == pytest.approx([-0.099 - half, -0.099 + half])
    assert ("imdb-long", "bfloat16 - dense") not in found.index
    assert amended.anew(anew, first)["near"].tolist() == [False, True]
    line = {"task": "imdb-long", "name": "sorted", "beside": "float32", "times": [1, 1.1, 1.2]}
    write_lines(tmp_path / "times.jsonl", [json.dumps(line)])
    assert amended.times(tmp_path).to_dict("records") == [
        {"task": "imdb-long", "name": "sorted", "beside": "float32"}
        | {"low": 1, "median": 1.1, "high": 1.2}
    ]


@pytest.mark.slow
def test_scores_and_the_picture_are_those_of_the_lines(tmp_path):
    figures = load_script("24_time/figures.py")
    for (task, seed), own in made_up().items():
        write_lines(tmp_path / f"{task}_{seed}.jsonl", list(map(json.dumps, own)))
    lines = figures.contrasts.all_lines(tmp_path)
    scores = figures.contrasts.scores(lines).set_index(["task", "arm"])
    assert scores.loc[("imdb-long", "drawn"), "minus_dense"] == pytest.approx(-0.15)
    assert scores.loc[("imdb-long", "dense"), "score"] == pytest.approx(0.85)
    front = figures.contrasts.front(lines)
    assert front.loc[front["several"], "arm"].tolist() == ["dam", "drawn"] * 2
    figures.write(tmp_path)
    assert (tmp_path / "time.png").stat().st_size > 5_000
