"""What the pages say of this experiment, from its plan and from results/: see
experiments/verify.py."""

import json
import runpy
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pandas as pd

from experiments.verify import rows, sentences

HERE = "experiments/26_base/README.md"
OF_22 = Path(__file__).parents[1] / "22_as_it_is"
ours = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "contrasts.py")))
PLAN, lines = ours.PLAN, ours.all_lines(ours.RESULTS)
BUDGET, TASKS = PLAN["pairs"]["budget"], PLAN["tasks"]
kept = ours.scores(lines).set_index(["task", "arm"])
apart = ours.differences(lines).set_index(["task", "contrast"])
minilm = pd.read_csv(OF_22 / "results" / "amended_kept.csv").set_index(["task", "budget", "arm"])
PAIRS = ["dense", "dam, pairs", "effects, pairs", "hand, pairs"]
OF_MINILM = ["dense", "dam", "effects", "same token"]
FEWER = PLAN["limits"]["fewer"]
BEST = {n: (f"best mask, {n} fewer", f"best plain way, {n} fewer") for n in FEWER}
ARMS = {  # as the page's table names them
    "words by first-order effects": "effects",
    "hand-designed schedules": "hand",
    "layers fewer": "layers",
    "inputs cut": "cut",
    "two layers fewer, inputs cut": "layers and cut",
}


def gap(task: str, one: str, other: str) -> tuple[float, ...]:
    """A difference with its interval."""
    return (*apart.loc[(task, f"{one} - {other}"), ["difference", "low", "high"]],)


def tokens(task: str, arm: str) -> list[float]:
    """Work and score of an arm at each limit, on the model that tokens were left out of."""
    if arm == "dense":
        first = ours.judged(lines, task, arm)[0]
        return [figure for _ in FEWER for figure in (first["work_judged"], first["score"])]
    each = [kept.loc[(task, f"{arm}, {fewer} fewer")] for fewer in FEWER]
    return [figure for own in each for figure in (own["work"], own["score"])]


SCORES = {
    f"{task}, MPNet": [
        *(kept.loc[(task, arm), "score"] for arm in PAIRS),
        *(kept.loc[(task, arm), "kept"] for arm in PAIRS[1:]),
        *(minilm.loc[(task, BUDGET, arm), "of dense"] for arm in OF_MINILM[1:]),
    ]
    for task in TASKS
}
APART = {
    f"{task}, DAM minus": [
        *(*gap(task, PAIRS[1], PAIRS[3]), *gap(task, PAIRS[1], PAIRS[2])),
    ]
    for task in TASKS
}
TOKENS = {
    words: [figure for task in TASKS for figure in tokens(task, arm)]
    for words, arm in ({"dense": "dense"} | ARMS).items()
}
OF_TOKENS = {
    f"{task}, the best mask minus the best plain way": [
        figure for fewer in FEWER for figure in gap(task, *BEST[fewer])
    ]
    for task in TASKS
}
TIMED = [
    json.loads(line) for line in (ours.RESULTS / "times.jsonl").read_text("utf-8").splitlines()
]
NAMED = {"dense, rows sorted by length": "dense, sorted", "`drop_tokens` alone": None}
NAMED |= {f"{words}, half of the work": f"{arm} 5: " for words, arm in ARMS.items()}
SECONDS = {
    words: [
        line["times"][1]
        for task in TASKS
        for line in TIMED
        if line["task"] == task and line["name"].startswith(name or "drop_tokens alone")
    ]
    for words, name in NAMED.items()
}
MODELS = {task: int(kept.loc[(task, PAIRS[1]), "models"]) for task in TASKS}
AHEAD = sum(
    min(int(apart.loc[(task, f"{PAIRS[1]} - {each}"), "ahead"]) for each in PAIRS[2:])
    for task in TASKS
)
assert max(MODELS.values()) < 3  # so that intervals are over rows alone
PAGE = {
    "{} models of {} have run, {} of SST-2 and {} of QNLI.": [
        *(sum(MODELS.values()), len(TASKS) * PLAN["models"]["each"], *MODELS.values()),
    ],
    "DAM is ahead of both on {} of {} models.": [AHEAD, sum(MODELS.values())],
}
FRONT = {
    "on {} models so far: with {} % of the pairs DAM keeps {} of {} on SST-2 and {} of {} on "
    "QNLI, hand-designed masks {} and {} |": [
        *(sum(MODELS.values()), 100 * BUDGET),
        *(kept.loc[(task, arm), "score"] for task in TASKS for arm in PAIRS[1::-1]),
        *(kept.loc[(task, PAIRS[3]), "score"] for task in TASKS),
    ],
}

# what is lost on the task that loses most: of pairs the mean over its models, of tokens one model
OF_PAIRS = max(kept.loc[(t, "dense"), "score"] - kept.loc[(t, PAIRS[1]), "score"] for t in TASKS)
HALF = f"effects, {max(FEWER)} fewer"
OF_WORDS = max(tuple(-gap(task, HALF, "dense")[at] for at in (0, 2, 1)) for task in TASKS)
FIRST_PAGE = {
    "of accuracy, MPNet [{}](experiments/26_base/README.md).": [OF_WORDS],
    "MPNet lost [{}](experiments/26_base/README.md). No speed |": [OF_PAIRS],
    "unless MPNet is named ([its first models](experiments/26_base/README.md)).": [],
}
ADVICE = {
    "on MPNet {} | afterwards;": [OF_WORDS],
    "[25](../experiments/25_live_tokens/README.md), [26](../experiments/26_base/README.md) |": [],
    "on the worst task, on MPNet {} | tested": [OF_PAIRS],
    "[15](../experiments/15_referee/README.md), [26](../experiments/26_base/README.md) |": [],
}
SEARCHED = [line for own in lines.values() for line in own if line["stage"] == "search"]
PASSES = {
    task: median(
        line["seconds"]
        for (of, _), own in lines.items()
        for line in own
        if of == task and line.get("rows") == "choice"
    )
    for task in TASKS
}


def minutes(arm: str) -> list[float]:
    """The shortest and the longest search of an arm, in minutes of a core."""
    found = [line["seconds"] / 60 for line in SEARCHED if line["arm"] == arm]
    return [min(found), max(found)]


DOCS = {
    "So on MPNet ({} layers, {} wide) with rows of at most {} tokens, DAM's {} steps of {} rows "
    "take {} to {} minutes of one core, first-order effects of as many rows {} to {}, a score of "
    "{} rows {} to {} seconds ([experiment 26](../experiments/26_base/README.md)).": [
        *(12, 768, PLAN["model"]["length"]),
        *(PLAN["arms"]["dam"]["options"]["config"]["steps"], PLAN["model"]["gates_batch"]),
        *(*minutes("dam"), *minutes("effects"), 700, *sorted(PASSES.values())),
    ],
}
CLAIMS = [
    *rows(HERE, SCORES | APART, "## Pairs"),
    *rows(HERE, TOKENS | OF_TOKENS, "## Tokens"),
    *rows(HERE, SECONDS, "## Seconds"),
    *sentences(HERE, PAGE),
    *sentences("experiments/README.md", FRONT),
    *sentences("README.md", FIRST_PAGE),
    *sentences("docs/does_search_pay.md", ADVICE),
    *sentences("docs/trained_encoders.md", DOCS),
]


def tables() -> str:
    """The tables of the page, to paste."""

    def number(value: float) -> str:
        return "1" if value == 1 else f"{value:.3f}".replace("0.", ".", 1)

    out = [
        f"| {name} | {' | '.join(number(each) for each in claim)} |"
        for name, claim in (SCORES | TOKENS | SECONDS).items()
    ]
    for name, ends in (APART | OF_TOKENS).items():
        cells = [[number(end) for end in ends[at : at + 3]] for at in range(0, len(ends), 3)]
        out.append(f"| {name} | " + " | ".join(f"{m} [{lo}, {hi}]" for m, lo, hi in cells) + " |")
    return "\n".join(out)


if __name__ == "__main__":
    print(tables())
