"""Ids of default settings on all rows: recorded results are found by them, so they stay."""

import random
from pathlib import Path

import pytest

from masksearch.evaluators.glue import GlueEvaluator
from masksearch.evaluators.mlm import MlmEvaluator
from masksearch.evaluators.planted import PlantedEvaluator

WORDS = [first + vowel + last for first in "bdgk" for vowel in "aeiou" for last in "nrst"]
# Computed by the first version of these evaluators (package version 0.1), on these files.
PLANTED, MLM, GLUE = "2135965bafaae21d", "49c1e68e2139dd7f", "554cef1be9d41abb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text and an SST-2, the same bytes everywhere."""
    made = tmp_path_factory.mktemp("protocols")
    draw = random.Random(0)
    lines = (" ".join(draw.choices(WORDS, k=8)) for _ in range(3000))
    (made / "text.txt").write_text("\n".join(lines))
    for name, count in (("train", 100), ("dev", 40)):
        rows = ["sentence\tlabel"]
        for _ in range(count):
            words = " ".join(draw.choices(WORDS, k=draw.randint(2, 30)))
            rows.append(f"{words}\t{draw.randint(0, 1)}")
        path = made / "glue" / "SST-2" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n")
        for _ in range(count):  # the rows of another task lay between the two files
            draw.choices(WORDS, k=9)
            draw.choices(WORDS, k=draw.randint(2, 30))
            draw.random()
    return made


def test_default_protocols_of_all_rows_do_not_move(folder: Path) -> None:
    text, cache = folder / "text.txt", folder / "cache"
    assert PlantedEvaluator().protocol == PLANTED
    assert MlmEvaluator(text, cache=cache, half="all").protocol == MLM
    for size in ("1x64x2", {"layers": 1, "width": 64, "heads": 2}):
        assert PlantedEvaluator(size=size) == PlantedEvaluator()
    assert MlmEvaluator(text, cache=cache, half="all", size="2x128x4").protocol == MLM
    assert MlmEvaluator(text, cache=cache, half="all", size="2x128x2").protocol != MLM
    judge = GlueEvaluator(text, folder / "glue", tasks=("SST-2",), cache=cache, half="all")
    assert judge.protocol == GLUE
    halves = [judge.on(half) for half in ("search", "final")]  # type: ignore[arg-type]
    assert len({GLUE, *(half.protocol for half in halves)}) == 3
    assert PlantedEvaluator(half="all").protocol == PLANTED
