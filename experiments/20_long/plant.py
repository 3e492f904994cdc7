"""A made-up language with planted retrieval, its tasks, and decoders that learn it.

    python experiments/20_long/run.py plant

    w07 w36 .  k05 v11  w52 w21 .  m2  p1 v03 v20 v09  w10 .. k05 v11 .. p1 v03 v20 v09 .. most m2

Words follow from the word before. A key has its value, a name its phrase and a document its most
frequent mark wherever they come again, so a decoder that reads on has to look back, at all
distances. The tasks ask for each once, behind words alone: `pairs`, `phrase`, `most`.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedTokenizerFast

from masksearch.contracts import generator, mixed_seed
from masksearch_decoders.decoders import NextTokenModel, decoder
from masksearch_decoders.tasks.long_context import GROUPS, TASKS, Draw, Prompt
from masksearch_decoders.tasks.next_token import NextTokenText
from masksearch_decoders.tasks.recall import Recall

PLAN = tomllib.loads((Path(__file__).parent / "plan.toml").read_text(encoding="utf-8"))["planted"]
WORDS = [f"w{at:02}" for at in range(64)]
KEYS, VALUES = [f"k{at:02}" for at in range(24)], [f"v{at:02}" for at in range(24)]
LESSONS = Recall(keys=len(KEYS), values=len(VALUES), fillers=len(WORDS))
NAMES, MARKS = [f"p{at}" for at in range(8)], [f"m{at}" for at in range(6)]
SMOKE = {
    "size": "2x16x2",
    "lessons": 2,
    "stages": [[64, 120]],
    "words": 200,
    "samples": 2,
    "length": 128,
}
SMOKE |= {"texts": {"train": 30, "pilot": 32, "judge": 64, "search": 32}}


def sentences(draw: random.Random, count: int) -> Iterator[list[str]]:
    """Words that follow from the one before; a sentence has 4 to 12. All languages are one."""
    word = draw.choice(WORDS)
    for _ in range(count):
        spoken = []
        for _ in range(draw.randint(4, 12)):
            nexts = [(5 * int(word[1:]) + step) % 64 for step in (1, 17)]
            known = draw.random() < PLAN["follow"]
            word = WORDS[draw.choice(nexts)] if known else draw.choice(WORDS)
            spoken.append(word)
        yield [*spoken, "."]


def document(draw: random.Random) -> Iterator[str]:
    """Sentences, and between them what comes again."""
    keys = draw.sample(KEYS, draw.choice(PLAN["keys"]))
    values = {key: draw.choice(VALUES) for key in keys}
    names = draw.sample(NAMES, max(1, len(keys) // 6))
    phrases = {name: draw.sample(VALUES, 3) for name in names}
    most, *others = draw.sample(MARKS, 3)
    seen = False
    for sentence in sentences(draw, PLAN["words"] // 8):
        yield from sentence
        kind = draw.choice(["pair", "pair", "phrase", "mark", "mark", "most"])
        if kind == "pair":
            key = draw.choice(keys)
            yield from (key, values[key])
        elif kind == "phrase":
            name = draw.choice(names)
            yield from (name, *phrases[name])
        elif kind == "mark":
            seen = True
            yield most if draw.random() < 0.6 else draw.choice(others)
        elif seen:
            yield from ("most", most)


# -- tasks -------------------------------------------------------------------------------------
def filler(draw: Draw, room: int) -> list[str]:
    """Sentences alone, as many as a row has room for."""
    made = random.Random(int(draw.random.integers(1 << 31)))
    return [" ".join(each) for each in sentences(made, room // 5 + 1)]


def find_pair(draw: Draw, depth: float, room: int) -> Prompt:
    """`pairs`: four keys with their values, one of which is asked for."""
    keys, values = (draw.random.permutation(each)[:4] for each in (KEYS, VALUES))
    depths = [depth, *draw.random.random(3)]
    planted = [(at, f"{k} {v}") for at, k, v in zip(depths, keys, values, strict=True)]
    return Prompt(planted, str(keys[0]), [str(values[0])], filler(draw, room))


def find_phrase(draw: Draw, depth: float, room: int) -> Prompt:
    """`phrase`: three values behind a name; another name stands elsewhere."""
    names, values = (draw.random.permutation(each) for each in (NAMES, VALUES))
    said = [" ".join(values[:3]), " ".join(values[3:6])]
    planted = [(depth, f"{names[0]} {said[0]}"), (draw.random.random(), f"{names[1]} {said[1]}")]
    return Prompt(planted, str(names[0]), said[:1], filler(draw, room))


def find_most(draw: Draw, depth: float, room: int) -> Prompt:
    """`most`: twelve marks, six of which are the same; that is asked for."""
    marks = draw.random.permutation(MARKS)[:3]
    each = [marks[0]] * 6 + [marks[1]] * 3 + [marks[2]] * 3
    planted = [(draw.random.random(), str(mark)) for mark in each]
    return Prompt(planted, "most", [str(marks[0])], filler(draw, room))


def add_tasks() -> None:
    """Makes them tasks like RULER's: `tasks=["pairs", ..]`."""
    GROUPS["retrieval"]["pairs"] = TASKS["pairs"] = find_pair
    GROUPS["answering"]["phrase"] = TASKS["phrase"] = find_phrase
    GROUPS["aggregation"]["most"] = TASKS["most"] = find_most


# -- decoders ----------------------------------------------------------------------------------
def make(place: Path, smoke: bool) -> bool:
    """Texts, tokenizer and weights of `planted-<number>`; False where they were made before."""
    if (place / "learnt").is_file():
        return False
    PLAN.update(SMOKE if smoke else {})
    number = int(place.name.partition("-")[2])
    searches = [f"search-{sample}" for sample in range(PLAN["samples"])]
    for part, name in enumerate(["train", "pilot", "judge", *searches]):
        (place / "text" / name).mkdir(parents=True, exist_ok=True)
        for at in range(PLAN["texts"][name.partition("-")[0]]):
            text = " ".join(document(random.Random(mixed_seed(number, part, at))))
            (place / "text" / name / f"{at:04}.txt").write_text(text, encoding="utf-8")
    tokens = [*KEYS, *VALUES, *WORDS, *NAMES, *MARKS, ".", ",", "most", "<unk>"]  # as of LESSONS
    ids = {token: at for at, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(place)
    learn(place, number, len(ids)).model.save_pretrained(place)
    (place / "learnt").touch()
    return True


def learn(place: Path, number: int, ids: int) -> NextTokenModel:
    """Trains on planted recall until it looks up, at a constant rate, then on the text in rows of
    rising length, while the rate falls."""
    architecture, most, rows = (
        PLAN["architectures"][number % 2],
        PLAN["rate"],
        PLAN["batch_tokens"],
    )
    model = NextTokenModel(decoder(architecture, PLAN["size"], ids, PLAN["length"], seed=number))
    drawn = torch.randn(ids, model.model.config.hidden_size, generator=generator(number))
    model.model.lm_head.weight = torch.nn.Parameter(drawn * PLAN["spread"])  # tied ones delay that
    model.model.config.tie_word_embeddings = False
    optimiser = torch.optim.AdamW(model.parameters(), most, (0.9, 0.98), weight_decay=0.01)

    def step(batch: Any, rate: float) -> float:
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return loss.item()

    lessons = LESSONS.batches(number, rows // LESSONS.length)
    for at in range(PLAN["lessons"]):
        loss = step(next(lessons), most * min(1, at / 100))
        if loss < LESSONS.floor + PLAN["learnt"]:
            break
    print(place.name, at, f"lessons, {loss:.3f} nats, {LESSONS.floor:.3f} at best", flush=True)
    done, whole = 0, sum(steps for _, steps in PLAN["stages"])
    for length, steps in PLAN["stages"]:
        text = NextTokenText.load(
            place / "text" / "train",
            held_out=place / "text" / "pilot",
            tokenizer=place / "tokenizer.json",
            length=length,
        )
        batches = text.batches(mixed_seed(number, length), rows // length)
        for batch in islice(batches, steps):
            if length < PLAN["length"]:  # lest it forgets
                step(next(lessons), most * (1 - done / whole))
            loss = step(batch, most * (1 - done / whole))
            done += 1
        print(place.name, length, f"{loss:.3f}", flush=True)
    return model
