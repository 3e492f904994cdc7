"""What the pages say of this experiment, from its plan and from results/: see
experiments/verify.py."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from experiments.verify import rows, sentences

HERE = "experiments/26_base/README.md"
OF_22 = Path(__file__).parents[1] / "22_as_it_is"
ours = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "contrasts.py")))
PLAN, lines = ours.PLAN, ours.all_lines(ours.RESULTS)
TASK, BUDGET = "SST-2", PLAN["pairs"]["budget"]
kept = ours.scores(lines).set_index(["task", "arm"])
apart = ours.differences(lines).set_index(["task", "contrast"])
minilm = pd.read_csv(OF_22 / "results" / "amended_kept.csv").set_index(["task", "budget", "arm"])
PAIRS = ["dense", "dam, pairs", "effects, pairs", "hand, pairs"]
OF_MINILM = ["dense", "dam", "effects", "same token"]
FEWER = PLAN["limits"]["fewer"]
ARMS = {  # as the page's table names them
    "words by first-order effects": "effects",
    "hand-designed schedules": "hand",
    "layers fewer": "layers",
    "inputs cut": "cut",
    "two layers fewer, inputs cut": "layers and cut",
}


def of(arm: str, column: str = "score") -> float:
    """A figure of an arm."""
    return float(kept.loc[(TASK, arm), column])


def gap(one: str, other: str) -> tuple[float, ...]:
    """A difference with its interval."""
    return (*apart.loc[(TASK, f"{one} - {other}"), ["difference", "low", "high"]],)


first = ours.judged(lines, TASK, "dense")[0]  # tokens were left out of this model alone
TOKENS = {"dense": [figure for _ in FEWER for figure in (first["work_judged"], first["score"])]}
for words, arm in ARMS.items():
    TOKENS[words] = [
        of(f"{arm}, {fewer} fewer", column) for fewer in FEWER for column in ("work", "score")
    ]
TIMED = [
    json.loads(line) for line in (ours.RESULTS / "times.jsonl").read_text("utf-8").splitlines()
]
NAMED = {"dense, rows sorted by length": "dense, sorted", "`drop_tokens` alone": None}
NAMED |= {f"{words}, half of the work": f"{arm} 5: " for words, arm in ARMS.items()}
SECONDS = {
    words: [
        line["times"][1] for line in TIMED if line["name"].startswith(name or "drop_tokens alone")
    ]
    for words, name in NAMED.items()
}
SCORES = {
    "MPNet, accuracy": [of(arm) for arm in PAIRS],
    "MPNet, of dense above a constant answer": [of(arm, "kept") for arm in PAIRS],
    "MiniLM, the same": [minilm.loc[(TASK, BUDGET, arm), "of dense"] for arm in OF_MINILM],
}
MODELS = int(of("dam, pairs", "models"))
BEST = {n: (f"best mask, {n} fewer", f"best plain way, {n} fewer") for n in FEWER}
AHEAD = min(int(apart.loc[(TASK, f"{PAIRS[1]} - {each}"), "ahead"]) for each in PAIRS[2:])
PAGE = {
    "{} models of {} have run, both of SST-2.": [
        MODELS,
        len(PLAN["tasks"]) * PLAN["models"]["each"],
    ],
    "The best mask, which the rows that choose prefer, minus the best plain way is {} [{}, {}] "
    "at half of the work and {} [{}, {}] at two thirds.": [
        *(figure for fewer in FEWER for figure in gap(*BEST[fewer]))
    ],
    "DAM is ahead of both on {} of {}. On the first model's rows DAM minus hand-designed masks "
    "is {} [{}, {}], minus effects {} [{}, {}].": [
        *(AHEAD, MODELS),
        *(*gap(PAIRS[1], PAIRS[3]), *gap(PAIRS[1], PAIRS[2])),
    ],
}
FRONT = {
    "on the first of {} models so far: DAM minus hand-designed masks is {} at 12 % of the pairs, "
    "masks of words "
    "minus plain ways {} at half of the work, {} at two thirds |": [
        MODELS,
        gap(PAIRS[1], PAIRS[3]),
        *(gap(*BEST[fewer]) for fewer in FEWER),
    ],
}
CLAIMS = [
    *rows(
        HERE,
        SCORES,
        "## Pairs",
    ),
    *rows(HERE, TOKENS, "## Tokens"),
    *rows(HERE, SECONDS, "## Seconds"),
    *sentences(HERE, PAGE),
    *sentences("experiments/README.md", FRONT),
]


def tables() -> str:
    """The tables of the page, to paste."""

    def number(value: float) -> str:
        return "1" if value == 1 else f"{value:.3f}".replace("0.", ".", 1)

    out = [
        f"| {name} | {' | '.join(number(each) for each in claim)} |"
        for name, claim in (SCORES | TOKENS | SECONDS).items()
    ]
    return "\n".join(out)


if __name__ == "__main__":
    print(tables())
