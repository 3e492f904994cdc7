"""What the pages say of this experiment, from its plan and from results/: see
experiments/verify.py."""

import json
import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace

from experiments.verify import rows, sentences

HERE = "experiments/25_live_tokens/README.md"
OF_22 = Path(__file__).parents[1] / "22_as_it_is"
ours = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "contrasts.py")))
PLAN, lines = ours.PLAN, ours.all_lines(ours.RESULTS)
TASKS, FEWER = PLAN["primary"]["tasks"], PLAN["primary"]["fewer"]
ENDS = ["difference", "low", "high"]
tested = ours.primary(lines).set_index("task")
apart = ours.differences(lines).set_index(["task", "fewer", "contrast"])
kept = ours.scores(lines).set_index(["task", "fewer", "arm"])
ARMS = {  # as the page's tables name them
    "dense": "dense",
    "effects": "words by first-order effects",
    "tpe": "TPE",
    "random": "random search",
    "hand": "hand-designed schedules, the best on the rows that choose",
    "layers": "two layers fewer",
    "cut": "inputs cut",
    "layers and cut": "a layer fewer, inputs cut",
    "together": "a layer fewer, words by effects",
    "attended": "most attention, chosen for each text",
}
CONTRASTS = {
    "effects - tpe": "effects - TPE",
    "effects - random": "effects - random search",
    "effects - hand": "effects - hand-designed",
    "mask - dense": "the best mask - dense",
    "plain - dense": "the best plain way - dense",
    "together - mask": "a layer fewer and words - the best mask",
    "attended - mask": "most attention - the best mask",
}


later = ours.afterwards(lines).set_index(["task", "contrast"])
chosen = ours.models(lines).query("fewer == @FEWER and task in @TASKS")


def score(task: str, arm: str) -> float:
    """An arm's mean score over the models of a task."""
    return kept.loc[(task, FEWER, arm), "score"]


def work(task: str, arm: str) -> float:
    """The share of the work on the rows that judge."""
    return kept.loc[(task, FEWER, arm), "work_judged"]


def gap(task: str, contrast: str, fewer: int = FEWER) -> list[float]:
    """A difference with its single interval."""
    return [*apart.loc[(task, fewer, contrast), ENDS]]


TESTED = {
    task: [
        *(score(task, "dense"), score(task, "mask"), work(task, "mask")),
        *(score(task, "plain"), work(task, "plain")),
        *tested.loc[task, [*ENDS, "adjusted_p", "ahead", "models"]],
    ]
    for task in TASKS
}
SCORES = {words: [score(task, arm) for task in TASKS] for arm, words in ARMS.items()}
GAPS = {
    words: [end for task in TASKS for end in gap(task, name)] for name, words in CONTRASTS.items()
}
LATER = {
    f"effects - {words}": [end for task in TASKS for end in later.loc[(task, name), ENDS]]
    for name, words in (
        ("effects - plain", "the best plain way"),
        ("effects - layers", "two layers fewer"),
        ("effects - mask", "the best mask"),
    )
}
AT_ONE = {
    words: [kept.loc[(task, 1, arm), "score"] for task in TASKS]
    for arm, words in ARMS.items()
    if arm in ("effects", "hand", "cut")
}
AT_ONE["one layer fewer"] = [kept.loc[(task, 1, "layers"), "score"] for task in TASKS]
BETWEEN_AT_ONE = {
    f"{words}, at one layer fewer": [end for task in TASKS for end in gap(task, contrast, 1)]
    for words, contrast in (
        ("the best mask - the best plain way", "mask - plain"),
        ("words by effects - dense", "effects - dense"),
    )
}
OF_STSB = {  # mean score, work on the rows that judge
    words: [kept.loc[("STS-B", FEWER, arm), "score"], work("STS-B", arm)]
    for arm, words in ARMS.items()
}
ON_STSB = {
    f"{words}, on STS-B": [*apart.loc[("STS-B", FEWER, name), [*ENDS, "ahead", "models"]]]
    for words, name in (
        ("the best mask - the best plain way", "mask - plain"),
        ("words by effects - TPE", "effects - tpe"),
        ("words by effects - hand-designed", "effects - hand"),
        ("words by effects - dense", "effects - dense"),
    )
}
OF_ONE = [
    line["limit"] for own in lines.values() for line in ours.ended(own) if line["fewer"] == 1
]
assert all(gap(task, "mask - plain", 1)[1] < 0 < gap(task, "mask - plain", 1)[2] for task in TASKS)
SHOWN = [task for task in TASKS if tested.loc[task, "shown"]]
TAKEN = int(chosen["mask"].str.startswith("effects").sum())
BEHIND = [later.loc[(task, "effects - plain"), ["ahead", "models"]] for task in TASKS]
assert len(SHOWN) < 2
assert all(ahead == models for ahead, models in BEHIND)
LIMITS = [
    line["limit"] for own in lines.values() for line in ours.ended(own) if line["fewer"] == FEWER
]
LIMIT = sum(LIMITS) / len(LIMITS)
CHOOSING = tomllib.loads((OF_22 / "plan.toml").read_text(encoding="utf-8"))
BOTH = [end for task in TASKS for end in (score(task, "effects"), score(task, "dense"))]
PAGE = {
    "By the planned test on {} of {} tasks. At about half of the work ({}) the best mask, picked "
    "on other rows, is {} of the best plain way by {} [{}, {}] on QNLI, {} [{}, {}] on QQP and {} "
    "[{}, {}] on SST-2 (Holm's intervals).": [
        *(len(SHOWN), len(TASKS), LIMIT, min(tested["difference"])),
        *(end for task in ("QNLI", "QQP", "SST-2") for end in tested.loc[task, ENDS]),
    ],
    'The plan required {} tasks, and no more seconds, before it would say "live tokens pay for '
    'time": it is not said.': [2],
    "words by their effects, found without a label, keep {} of {} on SST-2, {} "
    "of {} on QNLI and {} "
    "of {} on QQP; the best plain ways keep {}, {} and {}, and are {} on each of {} models.": [
        *BOTH,
        *(score(task, "plain") for task in TASKS),
        *(-min(later.loc[(task, "effects - plain"), "difference"] for task in TASKS), len(chosen)),
    ],
    "The pick is this arm on {} of {} models only, for many hand-designed schedules compete on {} "
    "rows.": [TAKEN, len(chosen), CHOOSING["rows"]["held_out"] / 2],
    "At {} of the work, a secondary limit, mask and plain way are level:": [
        sum(OF_ONE) / len(OF_ONE),
    ],
    "All took {} hours of one core, without the dense models.": [ours.hours(lines)],
}
PAGE["{} models, in no test: the mean of both correlations,"] = [
    int(kept.loc[("STS-B", FEWER, "dense"), "models"]),
]
PAGE["On STS-B, in no test, the best mask is {} by {} [{}, {}]."] = [
    *(gap("STS-B", "mask - plain")[0], *gap("STS-B", "mask - plain")),
]
NO_CLAIM = [
    (HERE, "Seconds at two more hours are planned and have not been taken."),
    (HERE, "Rows, splits and the recipe of the dense models are those of [experiment 22]"),
    (HERE, "*Ahead*: on how many models the mask is."),
    (HERE, "| | SST-2 | QNLI | QQP |"),
    (HERE, "| | difference | ahead |"),
    (HERE, "One hour of the three that are planned, the first model of each task, one thread, "
     "float32, SDPA, 32 rows at once as they come, but where it says sorted; times as fast as "
     "dense, "
     "medians of 5 passes. All but dense and int8 leave padding out (`drop_tokens`):"),
    (HERE, "Leaving padding out changes no answer; sorting the rows does nearly as much. Words "
     "by effects then gain what their work says: a little less time than two layers fewer, and a "
     "better score (above)."),
    (HERE, "its seconds, half of the work for no time, are lines of results/times.jsonl too."),
    # headings, settings that the plan says in words, what was not run
    (HERE, "Put on a fine-tuned model as it is: does such a mask keep more of "
     "the score than layers "
     "fewer or shorter inputs of the same work?"),
    (HERE, "One arm is steadier than that pick:"),
    (HERE, "MiniLM, 6 layers, one epoch."),
    (HERE, "was committed before the first score that it governs."),
    (HERE, "The limit is the cost of a model without two of its six layers that computes [CLS] "
     "alone in its last one;"),
    (HERE, "Dense is below 1, for its last layer computes [CLS] alone, too."),
    (HERE, "One checkpoint, one recipe of one epoch, short texts."),
    (HERE, "No smaller distilled model was compared."),
    (HERE, "the share of the dense model's multiplications that is left"),
    (HERE, "words by their first-order effects on the model's own margin, no label read, TPE and "
     "random search over"),
    (HERE, "all hand-designed schedules. For each model the rows that choose prefer one: the best "
     "mask."),
    (HERE, "the best set of layers; inputs cut, heads or tails; a layer fewer, "
     "and inputs cut. The "
     "rows that choose prefer one: the best plain way."),
    (HERE, "| | dense | best mask | work | best plain way | work | mask - plain, "
     "Holm's interval | p "
     "| ahead |"),
    (HERE, "Heads that read all tokens gain nothing."),
    (HERE, "The first two models of each task, all trained for 160 steps by labels under what was "
     "chosen; mean accuracy before and after."),
    (HERE, "The steps cost the dense model itself some accuracy."),
    (HERE, "| | dense | after | best mask | after | best plain way | after |"),
    (HERE, "A model of QNLI, seed 4, has learned nothing and is out; seed 5 took its place,"),
]  # fmt: skip
TIMED = [
    line
    for line in map(json.loads, (ours.RESULTS / "times.jsonl").read_text("utf-8").splitlines())
    if line["threads"] == 1 and "padding" in line  # without it: of the code before
]


def fast(task: str, arm: str, batch: int = 32, dtype: str = "float32") -> float:
    """How many times as fast as dense, rows as they come, an arm of the first limit is."""
    (found,) = (
        line["times"][1]
        for line in TIMED
        if (line["task"], line["batch"], line["dtype"]) == (task, batch, dtype)
        and line["name"].partition(" 2: ")[0] == arm
    )
    return float(found)


trained = ours.recovered(lines)
AFTER = trained.pivot(index=["task", "seed"], columns="group", values="after")
MEANS = trained.groupby(["task", "group"])[["before", "after"]].mean()
TRAINED = {
    task: [
        MEANS.loc[(task, group), when] for group in ("dense", "mask", "plain") for when in MEANS
    ]
    for task in TASKS
}
PAGE["The mask is ahead on {} of {} models."] = [
    int((AFTER["mask"] > AFTER["plain"]).sum()),
    len(AFTER),
]
SECONDS = {
    "dense, rows sorted by length": "dense, sorted",
    "`drop_tokens` alone: the same answers": "drop_tokens alone",
    "words by effects": "effects",
    "a hand-designed schedule": "hand",
    "two layers fewer": "layers",
    "inputs cut": "cut",
    "a layer fewer, inputs cut": "layers and cut",
    "ONNX Runtime, int8": "onnx runtime, int8",
    "the same, rows sorted by length": "onnx runtime, int8, sorted",
}
INT8 = {line["task"]: line["int8_score"] for line in TIMED if "int8_score" in line}
PAGE["Int8 keeps {}, {} and {} where these models have {}, {} and {}."] = [
    *INT8.values(),
    *(ours.judged(lines, task, "dense", FEWER)[0]["score"] for task in INT8),
]
PAGE[
    "One row of SST-2 at a time, words by effects are {} times as fast as dense, two layers "
    "fewer {}."
] = [
    *(fast("SST-2", arm, 1) for arm in ("effects", "layers")),
]
PAGE[
    "In bfloat16, {} rows of SST-2 at once, words by effects are {} times as fast, two layers "
    "fewer {}."
] = [
    *(32, *(fast("SST-2", arm, dtype="bfloat16") for arm in ("effects", "layers"))),
]
LOSSES = [  # of int8
    ours.judged(lines, task, "dense", FEWER)[0]["score"] - kept_so
    for task, kept_so in INT8.items()
]


def times(arm: str) -> list[float]:
    """The least and the most times as fast of an arm, over the tasks."""
    each = [fast(task, arm) for task in TASKS]
    return [min(each), max(each)]


LOSS = [  # of words by their effects, on the task that loses most
    tuple(-gap(task, "effects - dense")[at] for at in (0, 2, 1)) for task in TASKS
]
WORST = max(LOSS)
FRONT = {
    "README.md": {
        "| half of the multiplications to spend | masks that skip words; the worst of {} tasks "
        "lost [{}](experiments/25_live_tokens/README.md) of accuracy,": [len(TASKS), WORST],
        "The planned test, of masks chosen otherwise, showed them {} of plain ways on {} |": [
            *(tuple(tested.loc[SHOWN[0], ENDS]), len(SHOWN)),
        ],
        "| a classifier [that reads its first token](docs/attention.md#tokens-that-no-one-will-"
        "look-at-again), as BERT's and RoBERTa's | the same answers, [{} times as fast]"
        "(experiments/25_live_tokens/README.md#seconds-so-far), by [one line]"
        "(#one-line-the-same-answers); sorting texts: {} |": [
            *(fast("SST-2", arm) for arm in ("drop_tokens alone", "dense, sorted")),
        ],
        "| a CPU to serve it on | first try int8 by ONNX Runtime: [{} times as fast]"
        "(experiments/25_live_tokens/README.md#seconds-so-far), {} with texts sorted by length; "
        "it skips no token |": [
            *(fast("SST-2", f"onnx runtime, int8{how}") for how in ("", ", sorted")),
        ],
    },
    "docs/does_search_pay.md": {
        "| a CPU to serve it on | int8 by ONNX Runtime: {} to {} times as fast, {} sorted texts "
        "at once | measured, on {} tasks; it {} {} to {} | "
        "[25](../experiments/25_live_tokens/README.md) |": [
            *(*times("onnx runtime, int8, sorted"), 32, len(TASKS), "lost"),
            *(min(LOSSES), max(LOSSES)),
        ],
        "| a classifier that reads its first token | `drop_tokens` alone: the same answers, {} to "
        "{} times as fast; texts sorted by length {} to {} | measured, on {} tasks, {} texts at "
        "once | [how](attention.md#tokens-that-no-one-will-look-at-again), "
        "[25](../experiments/25_live_tokens/README.md#seconds-so-far) |": [
            *(*times("drop_tokens alone"), *times("dense, sorted"), len(TASKS), 32),
        ],
        "| {} of the multiplications to spend | a layer {} of {}, level with masks | measured | "
        "[25](../experiments/25_live_tokens/README.md#at-one-layer-fewer) |": [
            *(sum(OF_ONE) / len(OF_ONE), -1, 6),
        ],
        "| half of the multiplications to spend | masks that skip words, `sparsify --work 0.5`; "
        "they lost {} at worst,": [WORST],
        "afterwards; the planned test, of masks chosen otherwise, shows them {} of layers {} "
        "and inputs cut on {} of {} tasks | [25](../experiments/25_live_tokens/README.md),": [
            *(tuple(tested.loc[SHOWN[0], ENDS]), -2, len(SHOWN), len(TASKS)),
        ],
    },
    "experiments/README.md": {
        "by the planned test on {} of {} tasks; masks that skip words lost {} at most, in the "
        "mean "
        "of a task |": [len(SHOWN), len(TASKS), WORST],
    },
}
CLAIMS = [
    *rows(HERE, TESTED, "## The planned test"),
    *rows(HERE, SCORES, "## Every arm"),
    *rows(HERE, GAPS, "# Live tokens: differences"),
    *rows(HERE, LATER),
    *rows(HERE, AT_ONE | BETWEEN_AT_ONE, "## At one layer fewer"),
    *rows(HERE, OF_STSB | ON_STSB, "## STS-B"),
    *rows(HERE, TRAINED, "## Trained further"),
    *rows(
        HERE,
        {words: [fast(task, arm) for task in TASKS] for words, arm in SECONDS.items()},
        "## Seconds, so far",
    ),
    *sentences(HERE, PAGE),
    *(claim for page, said in FRONT.items() for claim in sentences(page, said)),
]


def number(value: float) -> str:
    """A number as the page prints it."""
    return f"{value:.3f}".replace("0.", ".", 1)


def tables() -> str:
    """The tables of the page, to paste."""
    out = []
    for task, (*values, ahead, models) in TESTED.items():
        dense, mask, of_mask, plain, of_plain, middle, low, high, p = map(number, values)
        out.append(
            f"| {task} | {dense} | {mask} | {of_mask} | {plain} | {of_plain} | "
            f"{middle} [{low}, {high}] | {p} | {ahead:g} of {models:g} |"
        )
    scores = [*SCORES.items(), *AT_ONE.items(), *OF_STSB.items()]
    out += [f"| {words} | {' | '.join(map(number, own))} |" for words, own in scores]
    for words, own in (GAPS | LATER | BETWEEN_AT_ONE).items():
        cells = [[number(end) for end in own[at : at + 3]] for at in range(0, len(own), 3)]
        out.append(f"| {words} | " + " | ".join(f"{m} [{lo}, {hi}]" for m, lo, hi in cells) + " |")
    for words, (middle, low, high, ahead, models) in ON_STSB.items():
        ends = f"{number(middle)} [{number(low)}, {number(high)}]"
        out.append(f"| {words} | {ends} | {ahead:g} of {models:g} |")
    return "\n".join(out)


if __name__ == "__main__":
    print(tables())
