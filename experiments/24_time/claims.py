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


PAGE = {
    "DAM's masks keep {} of {} and the best drawn ones {}, on each of {} models less.": [
        *(*AUTHORS[1::-1], AUTHORS[3], ALL[4])
    ],
    "One drawn mask misses {} times, by {}, and by the plan its model does not count: DAM minus "
    "drawn is {} [{}, {}] over the other {}; over all {}, which was not planned, {} [{}, {}].": [
        *(TARGET, TARGET - speeds.loc[OUT, "median"]),
        *(*BOTH_GAPS[0], PLANNED[AUTHOR][5], ALL[5], *gap(ALL)),
    ],
    "On film reviews DAM's keep {} of {}, the drawn ones {}: {} [{}, {}], ahead on {} of {} "
    "models.": [*FILMS[1::-1], FILMS[3], *BOTH_GAPS[1], *PLANNED[REVIEWS][4:6]],
    "on two models a task: DAM minus TPE is {} [{}, {}] on which-author and {} [{}, {}] on "
    "imdb-long, over rows alone.": [*SAMPLED[0], *SAMPLED[1]],
    "TPE's masks are {} to {} times as fast.": range_of(("tpe",), PLAN["tasks"]),
    "On which-author DAM keeps {} with {} % of the pairs and {} with {} %; the two drawn families "
    "{} and {}, and {} and {}.": [
        *(FEW["score"][0], 100 * FEW["density"][0], MANY["score"][0], 100 * MANY["density"][0]),
        *(*FEW["score"][1:], *MANY["score"][1:]),
    ],
    "on imdb-long they are {} and {} times as fast as dense attention with {} % of the pairs, "
    "where DAM's tiles are {} times as fast with {} %.": [
        *(*HALF["median"][1:], 100 * HALF["density"][1], HALF["median"][0]),
        100 * HALF["density"][0],
    ],
    "a drawn mask of {} times, and medians of one mask differ by up to {} from hour to hour.": [
        speeds.loc[OUT, "median"],
        (speeds["most"] - speeds["least"]).max(),
    ],
    "they read {} to {} there, the diagonal's tiles alone {} on all;": [
        *(min(DRAWN), max(DRAWN), TARGETS["the diagonal's tiles"][1]),
    ],
    "DAM's mask of model {} was cut from {} to {} %.": [0, *CUT],
    "both kinds are {} to {} times as fast.": range_of(BOTH, [REVIEWS]),
}
SCORES = {task: of_task(task) for task in PLAN["tasks"]}
TESTS = {f"{task}, planned": PLANNED[task] for task in PLAN["tasks"]}
LINK = " ([24](../experiments/24_time/README.md)) |"
APART = [
    *(TARGET, LENGTH, *BOTH_GAPS[0], PLANNED[AUTHOR][5], *BOTH_GAPS[1], PLANNED[REVIEWS][5]),
    *(ALL[5], speeds.loc[OUT, "median"], *gap(ALL)),
]
DOCS = {
    "docs/adapting.md": {
        "At {} tokens of a widened MiniLM, {} times as fast on one thread, DAM's masks kept {} of "
        "{} on one task and drawn ones {}, {} of {} and {} on another; the planned tests show no "
        "difference ([experiment 24]": KEPT,
    },
    "docs/does_search_pay.md": {
        "| a fine-tuned encoder that is to be {} times as fast at {} tokens, and no further "
        "training | `sparsify --faster 1.3`, which judges DAM's tiles and drawn ones | no "
        "difference is shown: DAM minus the best drawn tiles is {} [{}, {}] on {} models that "
        "tell authors apart, and {} [{}, {}] on {} that judge film reviews. On all {} of the "
        "first, where one drawn mask is {} times as fast, the difference is {} [{}, {}], which "
        "was not planned; DAM minus TPE over bands of tiles is {} [{}, {}] and {} [{}, {}] on two "
        "models each" + LINK: [*APART, *SAMPLED[0], *SAMPLED[1]],
    },
    "experiments/README.md": {
        "not shown by the planned tests: of masks {} times as fast at {} tokens DAM minus the "
        "best drawn is {} [{}, {}] on {} models that tell authors apart, {} [{}, {}] on {} that "
        "judge film reviews. On all {} of the first, where one drawn mask is {} times as fast, "
        "the difference is {} [{}, {}], which was not planned |": APART,
    },
    "README.md": {
        "| And in time, at {} tokens? | Not shown: with `--faster 1.3` DAM's mask keeps {} of {} "
        "where authors are told apart, {} of {} on film reviews; the best drawn one keeps {} and "
        "{} | DAM minus drawn: {} [{}, {}], {} [{}, {}] |": [
            *(LENGTH, *AUTHORS[1::-1], *FILMS[1::-1], AUTHORS[3], FILMS[3]),
            *(*BOTH_GAPS[0], *BOTH_GAPS[1]),
        ],
    },
}
CLAIMS = [
    *rows(HERE, {task: [*counts] for task, counts in judge.iterrows()}, "## Set-up"),
    *rows(HERE, LIMITS),
    *rows(HERE, SCORES, "## Scores"),
    *rows(HERE, TESTS),
    *rows(HERE, {f"{AUTHOR}, all models": ALL}),
    *rows(
        HERE,
        {
            f"{task}, {seed}": of_model(task, seed)
            for task in PLAN["tasks"]
            for seed in PLAN["seeds"]["models"]
        },
    ),
    *sentences(
        HERE,
        PAGE
        | {
            "tiles drawn at random beside those of the diagonal, which are {} % of all at {} "
            "tokens.": [100 * limits.loc[2, "kept"], limits.loc[2, "tokens"]],
            "A target of {} is not to be had by MiniLM at {} tokens.": [
                TARGET,
                limits.loc[2, "tokens"],
            ],
        },
    ),
    *(claim for page, said in DOCS.items() for claim in sentences(page, said)),
]
