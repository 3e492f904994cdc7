"""What the pages say of this experiment, from its plan and from results/: see
experiments/verify.py."""

import json
import runpy
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from experiments.verify import rows, sentences

HERE = "experiments/24_time/README.md"
RESULTS = Path(__file__).parent / "results"
ours = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "contrasts.py")))
PLAN, TARGET = ours.PLAN, ours.TARGET
judge = pd.read_csv(RESULTS / "tokens.csv").set_index(["rows", "task"]).loc["judge"]
limits = pd.read_csv(RESULTS / "limits.csv")
padding = pd.read_csv(RESULTS / "padding.csv").set_index("task")
lines = ours.all_lines(RESULTS)
speeds = ours.speeds(lines).set_index(["task", "arm", "seed"]).sort_index()
scores = ours.scores(lines).set_index(["task", "arm"])
planned = ours.primary(lines).set_index("task")
samplers = ours.against_samplers(lines).set_index("task")
front = ours.front(lines).set_index(["task", "name"])
LIMITS = {
    f"{layers} layers, width {width}, {heads} heads, {tokens:,} tokens": [
        *own[["median", "low", "high"]].to_numpy().ravel()
    ]
    for (layers, width, heads, tokens), own in limits.groupby(
        ["layers", "width", "heads", "tokens"], sort=False
    )
}
REVIEWS, AUTHOR = PLAN["tasks"]
MASK_CELLS = "{} | {} | {} ({} to {})"  # of a row of the table of models
BOTH, ENDS = ("dam", "drawn"), ["difference", "low", "high"]
OF_DENSE = ["minus_dense", "minus_dense_low", "minus_dense_high"]
assert limits.loc[limits["tokens"] == 512, "high"].max() < TARGET


def of_task(task: str) -> list[float]:
    """A row of the table of scores."""
    means = [scores.loc[(task, arm), "score"] for arm in ("dense", *BOTH)]
    shares = [speeds.loc[(task, arm), "density"].mean() for arm in BOTH]
    apart = [end for arm in BOTH for end in scores.loc[(task, arm), OF_DENSE]]
    return [means[0], means[1], shares[0], means[2], shares[1], *apart]


def of_model(task: str, seed: int) -> list[float]:
    """A row of the table of models."""
    found = [ours.judged(lines, task, "dense")[seed]["score"]]
    for arm in BOTH:
        at = speeds.loc[(task, arm, seed)]
        score = ours.judged(lines, task, arm)[seed]["score"]
        found += [score, *at[["density", "median", "least", "most"]]]
    return found


def family(task: str, seed: int) -> str:
    """The family of a model's drawn mask."""
    name = ours.mask_of(lines[task, seed], "drawn")
    return name.removeprefix("drawn: ").removesuffix(f" at {TARGET} times")


def test(task: str) -> list[float]:
    """A row of the planned tests."""
    return [*planned.loc[task, [*ENDS, "adjusted_p", "ahead", "models", "low_90", "high_90"]]]


def with_all(task: str) -> list[float]:
    """The same over all models, whatever their speed: not planned, its p is of no family."""
    sides = [ours.judged(lines, task, arm) for arm in BOTH]
    found = ours.as_line(ours.minus(*sides), *sides)
    return [found[each] for each in (*ENDS, "p", "ahead", "models")]


def gap(found: list[float]) -> list[float]:
    """The difference and its interval, of a row of tests."""
    return found[:3]


def at(task: str, share: float) -> dict[str, list[float]]:
    """Measures of the masks of the picture that were made at a share, DAM's first."""
    own = front.loc[task]
    own = own[own.index.str.contains(f"front (?:dam|drawn) {share}")]
    return own.sort_values("arm")[["score", "median", "density"]].to_dict("list")


AUTHORS, FILMS, ALL = of_task(AUTHOR), of_task(REVIEWS), with_all(AUTHOR)
PLANNED = {task: test(task) for task in PLAN["tasks"]}
BOTH_GAPS = [gap(PLANNED[AUTHOR]), gap(PLANNED[REVIEWS])]
SAMPLED = [[*samplers.loc[task, ENDS]] for task in (AUTHOR, REVIEWS)]
(OUT,) = speeds.index[~speeds["met"].astype(bool)]  # one mask of one model misses the target
assert OUT[:2] == (AUTHOR, "drawn")
assert not planned["pays"].any()
assert not planned["enough"].any()
FEW, MANY = (at(AUTHOR, share) for share in sorted(PLAN["front"]["shares"]))
HALF = at(REVIEWS, max(PLAN["front"]["shares"]))
TARGETS = json.loads((RESULTS / f"target_{REVIEWS}.json").read_text(encoding="utf-8"))
DRAWN = [quartiles[1] for name, quartiles in TARGETS.items() if name.endswith(", 1")]
LENGTH = PLAN["model"]["length"]
KEPT = [LENGTH, TARGET, *AUTHORS[1::-1], AUTHORS[3], *FILMS[1::-1], FILMS[3]]
(SEARCHED,) = (
    line for line in lines[REVIEWS, 0] if line["stage"] == "search" and line["arm"] == "dam"
)
CUT = [100 * density for density in SEARCHED["densities"]]


def range_of(arms: tuple[str, ...], tasks: Iterable[str]) -> list[float]:
    """The slowest and the fastest of the chosen masks of arms."""
    own = speeds.reset_index()
    own = own[own["arm"].isin(arms) & own["task"].isin(tasks)]["median"]
    return [own.min(), own.max()]


def counted(timings: slice) -> pd.DataFrame:
    """The planned tests, and which models count by some of the timings."""
    found = ours.primary(lines, timings).set_index("task")
    found["counted"] = [
        [
            seed
            for seed in PLAN["seeds"]["models"]
            if all(
                ours.speed_of(own, line["name"], timings)["met"]
                for own, line in (
                    (lines[task, seed], ours.judged(lines, task, arm)[seed]) for arm in BOTH
                )
            )
        ]
        for task in found.index
    ]
    return found


RULES = [counted(each) for each in (slice(3), slice(None), slice(-3, None))]
BY_FIRST, BY_ALL, BY_LAST = ([*rule["counted"]] for rule in RULES)
assert BY_FIRST == BY_ALL
assert BY_FIRST[0] == BY_LAST[0] == PLAN["seeds"]["models"]
assert not any(rule["pays"].any() for rule in RULES)
assert pd.isna(RULES[2].loc[AUTHOR, "low"])  # no interval over two models
TIMED = {*speeds.loc[speeds["timings"] > PLAN["times"]["hours"], "timings"]}
MORE = {(task, seed) for (task, arm, seed), n in speeds["timings"].items() if n > 3}
SEARCHES = {
    model: {line["arm"]: line for line in own if line["stage"] == "search"}
    for model, own in lines.items()
}
TRIALS = {task: SEARCHES[task, 0]["tpe"]["trials"] for task in PLAN["tasks"]}
PART = sorted(
    each["tpe"]["seconds"] / each["dam"]["seconds"] for each in SEARCHES.values() if "tpe" in each
)
REST = min(each["tpe"]["seconds"] for each in SEARCHES.values() if "tpe" in each)
TEACHER = PLAN["arms"]["dam"]["options"]["config"]["steps"] * PLAN["gates"]["gates_batch"]
JUDGED = [
    sum(line["density_judged"] for line in own.values()) / len(own)
    for own in (ours.judged(lines, REVIEWS, arm) for arm in BOTH)
]
FEWER = padding.loc[REVIEWS, "as they come"] / padding.loc[REVIEWS, "sorted"]
FASTER = range_of(BOTH, [REVIEWS])
PADDED = {task: [*counts] for task, counts in padding.iterrows()}
NOT = "" if planned["pays"].any() else "none"
PAGE = {
    "Is there a searched mask that is faster end to end and keeps more than a hand-designed one "
    "of the same speed?": [],
    f"The planned tests show {NOT}. Where an author is to be told, DAM's masks keep {{}} of {{}} "
    "and the best hand-designed ones {}, on each of {} models less. One hand-designed mask misses "
    "{} times, by {}, and by the plan its model does not count: DAM minus hand-designed is {} "
    "[{}, {}] over the other {}; over all {}, which was not planned, {} [{}, {}].": [
        *(*AUTHORS[1::-1], AUTHORS[3], ALL[4], TARGET, TARGET - speeds.loc[OUT, "median"]),
        *(*BOTH_GAPS[0], PLANNED[AUTHOR][5], ALL[5], *gap(ALL)),
    ],
    "On film reviews DAM's keep {} of {}, the hand-designed ones {}: {} [{}, {}], ahead on {} of "
    "{} models. All is in float32, on one thread of a CPU, rows padded as they come. Who sorts "
    "the reviews by length first reads {} times fewer tokens and loses nothing; that was counted, "
    "not timed, alone or with a mask.": [
        *(*FILMS[1::-1], FILMS[3], *BOTH_GAPS[1], *PLANNED[REVIEWS][4:6], FEWER)
    ],
    "in three different hours, on an idle machine": [],
    "[plan.toml](plan.toml) was committed before the first score that it governs.": [],
    "Model: all-MiniLM-L6-v2, 6 layers, 12 heads, each position embedding twice: {} tokens. Four "
    "are fine-tuned a task, dense, one epoch; then no weight is trained.": [LENGTH],
    "Tasks: `imdb-long`, film reviews of 380 words and more, negative or positive; "
    "`which-author`, passages of {} words from ten novels, each of another author, with one word "
    "in place of all names. The first two thirds of a novel train and are searched on, the last "
    "third chooses and judges.": [PLAN["tasks"][AUTHOR]["words"]],
    "Target: {} times as fast as dense attention in the lower quartile, the whole model in "
    "float32, one thread of a CPU, {} rows at once in the order of the file, padded to the "
    "longest of them. Random tiles are timed at several shares; that share of the pairs which "
    "meets the target is the searches'. A mask that was found and is too slow is cut lower, "
    "without training.": [TARGET, PLAN["target"]["batch"]],
    "Search: DAM with gates of the kernel's 64 x 16 tiles, of each layer and head, which learn "
    "the dense model's answers in {} steps of {} rows. On two models a task TPE in "
    "[tile_bands](../../search_spaces/tile_bands.py), {} and {} masks: as many rows as DAM's "
    "gates and score take, a backward pass counted twice and the dense model's {} not at all. "
    "Three of these searches took {} to {} of DAM's seconds; the line of the fourth has {} "
    "seconds, which cannot be all of it.": [
        *(PLAN["arms"]["dam"]["options"]["config"]["steps"], PLAN["gates"]["gates_batch"]),
        *(*TRIALS.values(), TEACHER, PART[1], PART[3], REST),
    ],
    "Opponents: of each family of hand-designed masks the densest that meets the target; the rows "
    "that choose prefer one.": [],
    "Speed of the chosen masks: medians of three timings in different hours, dense and masked in "
    "turns in a process of its own. {} models have {} or {} timings; the first three "
    "count. That rule, `1b6faeb8`, was written after all had been judged.": [
        *(len(MORE), *sorted(TIMED))
    ],
    "Accuracy on the rows that judge, means over {} models. *Share*: of the pairs of the rows "
    "that searches read; of those that judge imdb-long DAM's masks have {} and the hand-designed "
    "ones {}.": [*(len(PLAN["seeds"]["models"]), *JUDGED)],
    "The planned tests are of the models on which both masks are {} times as fast: DAM minus "
    "hand-designed over models and rows, with Holm's interval and p. The interval of 90 % is held "
    "against the margin of {}. *Ahead*: on how many models DAM is.": [TARGET, ours.ENOUGH],
    "The last row was not planned. By the first three timings, or by all, "
    "models {}, {} and {} of which-author count; by the last three {} and {} alone, {}, "
    'too few for an interval. On imdb-long all count by each. "Not shown" stands under each.': [
        *(*BY_FIRST[1], *BY_LAST[1], RULES[2].loc[AUTHOR, "difference"])
    ],
    "TPE in the space of bands of tiles, {} masks on imdb-long and {} on which-author, on two "
    "models a task: DAM minus TPE is {} [{}, {}] on which-author and {} [{}, {}] on imdb-long, "
    "over rows alone. TPE's masks are {} to {} times as fast.": [
        *(*TRIALS.values(), *SAMPLED[0], *SAMPLED[1], *range_of(("tpe",), PLAN["tasks"]))
    ],
    "Times as fast as dense attention: medians of the first three timings, in brackets the least "
    "and the most of all.": [],
    "Tokens a row that judges, in batches of {}, cut at {}. Counted, not timed.": [
        PLAN["target"]["batch"],
        LENGTH,
    ],
    "On imdb-long sorting reads {} times fewer tokens at no loss of score, where masks are {} to "
    "{} times as fast and lose {} and {}. Both may add up. On which-author every row is cut, and "
    "sorting gains nothing. Nor were bfloat16, fewer layers or shorter rows tried.": [
        *(FEWER, *FASTER, -FILMS[5], -FILMS[8])
    ],
    "Model {} of each task; DAM's gates are cut at other shares without training. These masks "
    "were timed once.": [*PLAN["seeds"]["front"]],
    "On which-author DAM keeps {} with {} % of the pairs and {} with {} %; the two hand-designed "
    "families {} and {}, and {} and {}.": [
        *(FEW["score"][0], 100 * FEW["density"][0], MANY["score"][0], 100 * MANY["density"][0]),
        *(*FEW["score"][1:], *MANY["score"][1:]),
    ],
    "Full heads save time where few pairs are kept: on imdb-long they are {} and {} times as fast "
    "as dense attention with {} % of the pairs, where DAM's tiles are {} times as fast with {} "
    "%.": [
        *(*HALF["median"][1:], 100 * HALF["density"][1], HALF["median"][0]),
        100 * HALF["density"][0],
    ],
    "Encoders with random weights, rows without padding, batches of {}, one thread; tiles drawn "
    "at random beside those of the diagonal, which are {} % of all at {} tokens. Times as fast as "
    "dense attention, medians with quartiles:": [
        *(PLAN["target"]["batch"], 100 * limits.loc[2, "kept"], limits.loc[2, "tokens"])
    ],
    "A target of {} is not to be had by MiniLM at {} tokens.": [TARGET, limits.loc[2, "tokens"]],
    "That the difference on which-author is chance, or that it is none. The model that does not "
    "count has a hand-designed mask of {} times, and medians of one mask differ by up to {} from "
    "hour to hour.": [speeds.loc[OUT, "median"], (speeds["most"] - speeds["least"]).max()],
    "Which mask is best at just {} times. The plan's code timed hand-designed masks on half of "
    "the batches that found masks were timed on. On imdb-long, whose batches differ in padding, "
    "they read {} to {} there, the diagonal's tiles alone {} on all; no line through two such "
    "timings meets the target, so none was made denser, while DAM's mask of model {} was cut from "
    "{} to {} %. At the end, all batches read, both kinds are {} to {} times as fast. `sparsify "
    "--faster` searches no tiles any more.": [
        *(TARGET, min(DRAWN), max(DRAWN), TARGETS["the diagonal's tiles"][1], 0, *CUT, *FASTER)
    ],
    "The first dense model of imdb-long has learned less than the others.": [],
    "One kind of CPU, one thread, {} rows at once. No GPU was to be had; larger tiles at 4,096 "
    "tokens were not run.": [PLAN["target"]["batch"]],
    "Weights that train on under the mask, and random search, were left out by the plan.": [],
}
SCORES = {task: of_task(task) for task in PLAN["tasks"]}
TESTS = {f"{task}, planned": PLANNED[task] for task in PLAN["tasks"]}
THREE = [  # dense, DAM and the hand-designed mask on the models of the planned test
    sum(ours.judged(lines, AUTHOR, arm)[seed]["score"] for seed in BY_FIRST[1]) / len(BY_FIRST[1])
    for arm in ("dense", *BOTH)
]
DOCS = {
    "docs/adapting.md": {
        "First sort rows by length: of film reviews of {} tokens at most that reads {} times {} "
        "tokens at no loss; of rows that are all as long it saves nothing. At {} tokens of a "
        "widened MiniLM, {} times as fast on one thread of a CPU in float32, rows as they come, "
        "DAM's masks of tiles kept {} of {} on one task and hand-designed ones {}, {} of {} and "
        "{} on another; the planned tests show no difference ([experiment 24]": [
            *(LENGTH, FEWER, -FEWER, *KEPT)
        ],
    },
    "docs/does_search_pay.md": {
        "| long texts of many lengths, in batches | texts sorted by length: {} % {} tokens of "
        "film reviews | counted; of equally fast masks no difference was shown | "
        "[24](../experiments/24_time/README.md) |": [100 * (1 - 1 / FEWER), -FEWER],
    },
    "experiments/README.md": {
        "not shown; rows sorted by length are {} times {} tokens at no loss |": [FEWER, -FEWER],
    },
}
assert round(4 - 4 / FEWER) == 1  # "a quarter"
CLAIMS = [
    *rows(HERE, {task: [*counts] for task, counts in judge.iterrows()}, "## Set-up"),
    *rows(HERE, LIMITS),
    *rows(HERE, SCORES, "## Scores"),
    *rows(HERE, TESTS),
    *rows(HERE, {f"{AUTHOR}, all models": ALL}),
    *sentences(
        HERE,
        {
            f"| {task}, {seed} | {{}} | {MASK_CELLS} | {MASK_CELLS} | {family(task, seed)} |": (
                of_model(task, seed)
            )
            for task in PLAN["tasks"]
            for seed in PLAN["seeds"]["models"]
        },
    ),
    *rows(HERE, PADDED, "## Before a mask: sort rows by length"),
    *sentences(HERE, PAGE),
    *(claim for page, said in DOCS.items() for claim in sentences(page, said)),
]
COLUMNS = "DAM | share | times as fast | hand-designed | share | times as fast"
NO_CLAIM = [  # headings of tables
    (HERE, "# Time: masks of whole tiles that make long rows 1.3 times as fast"),
    (HERE, "| | to 512 | to 768 | to 1,024 | more, cut |"),
    (
        HERE,
        "| | dense | DAM | share | hand-designed | share | DAM - dense | hand-designed - dense |",
    ),
    (HERE, "| | DAM - hand-designed | p | ahead | 90 % interval |"),
    (HERE, f"| | dense | {COLUMNS} | its family |"),
    (HERE, "| | 25 % of the tiles | 12.5 % | the diagonal's alone |"),
]
