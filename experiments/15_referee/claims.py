"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import runpy
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import pandas as pd

from experiments.verify import Claim, rows, sentences
from masksearch.analysis.stats import PairedDifference, holm

FOLDER = Path(__file__).parent
HERE, GUIDE = "experiments/15_referee/README.md", "docs/trained_encoders.md"
RESULTS = FOLDER / "results"
TABLES = runpy.run_path(str(FOLDER / "tables.py"))
PLAN, BUDGETS, difference = TABLES["PLAN"], TABLES["BUDGETS"], TABLES["difference"]
ARM = PLAN["arms"]
STS, QNLI = "STS-B", "QNLI"
WITH_CLS = "random keys and [CLS]"
CONTROLS = ("random keys", WITH_CLS)

scores = pd.read_csv(RESULTS / "scores.csv")
areas, margins = TABLES["verdict"](RESULTS)
judged = {task: TABLES["read"](RESULTS, task) for task in (STS, QNLI)}


def cell(task: str, arm: str, budget: float) -> list[float]:
    """Mean score and mean judged density of a mask, and what it loses with its interval."""
    found = scores[(scores.task == task) & (scores.arm == arm) & (scores.budget == budget)]
    lost = margins[(margins.task == task) & (margins.arm == arm) & (margins.budget == budget)]
    (line,) = lost.itertuples()
    return [found.score.mean(), found.judged_density.mean(), line.lost, line.low, line.high]


def table(task: str, after: str) -> list[Claim]:
    """The rows of a task's table of scores."""
    arms = dict.fromkeys(margins[margins.task == task].arm)
    return [
        Claim(
            HERE,
            f"| {arm} |...",
            [x for budget in BUDGETS for x in cell(task, arm, budget)],
            after,
        )
        for arm in arms
    ]


def primary(task: str, after: str) -> list[Claim]:
    """The rows of a task's table of areas."""
    return [
        Claim(
            HERE,
            f"| {line.arm} |...",
            [line.area, line.minus_dam, line.low, line.high, line.adjusted_p],
            after,
        )
        for line in areas[areas.task == task].itertuples()
    ]


def dense(task: str) -> float:
    """Mean score of the dense models that judge."""
    return fmean(scores[(scores.task == task) & (scores.arm == "dense")].score)


def lost(task: str, arm: str, *budgets: float) -> list[float]:
    """What an arm loses within each budget, with its interval."""
    return [x for budget in budgets for x in cell(task, arm, budget)[2:]]


def outcome(task: str, arm: str, budget: float) -> str:
    """What is shown at the task's margin, in the words of pages."""
    found = margins[(margins.task == task) & (margins.arm == arm) & (margins.budget == budget)]
    points = {0.02: "two points", 0.03: "three points"}[found.margin.item()]
    kind = found.outcome.item()
    return kind if kind == "undecided" else f"{kind.removeprefix('loses ')} {points}"


def minus_dam(task: str, arm: str) -> list[float]:
    """An arm's area minus DAM's, with Holm's interval."""
    (line,) = areas[(areas.task == task) & (areas.arm == arm)].itertuples()
    return [line.minus_dam, line.low, line.high]


def minus(
    task: str, arm: str, other: str, budget: float | None = None, among: Mapping = judged
) -> list[float]:
    """One arm's area, or score within a budget, minus another's, with a single interval."""
    found = among[task]
    if budget is None:
        sides = [TABLES["area"](each, found) for each in (arm, other)]
    else:
        sides = [found[each, str(budget)] for each in (arm, other)]
    line = difference(*sides)
    return [line.value, line.low, line.high]


def first_three(arm: str) -> PairedDifference:
    """An arm's area minus DAM's on STS-B, by the searches that the plan named."""
    sides = [TABLES["area"](each, judged[STS]) for each in (arm, "dam")]
    return difference(*({seed: side[seed] for seed in PLAN["seeds"]["search"]} for side in sides))


early = [first_three(arm) for arm in areas[areas.task == STS].arm]
early_p = dict(zip(areas[areas.task == STS].arm, holm([d.p_value for d in early]), strict=True))
(ahead,) = [arm for arm, p in early_p.items() if p <= 0.05]
at_first = first_three("fisher_rounds")
worst = margins[(margins.task == STS) & (margins.budget == BUDGETS[-1])]
worst = worst[~worst.arm.isin(CONTROLS) & (worst.outcome == "loses more than")]
HALF, THIRD, LEAST = BUDGETS
SETTINGS = {  # rows that scores use
    "dam": [ARM["fisher"]["rows"]],
    "gates": [ARM["fisher"]["rows"]],
    "restore, restore_star": [ARM["restore_star"]["rows"]],
    "fisher, fisher_rounds": [ARM["fisher_rounds"]["rows"]],
    "random": [ARM["random"]["rows"]],
    "dictionary": [ARM["dictionary"]["rows"]],
}
SAID = {
    "from the same {} training rows and make {} passes of a row at most": [
        PLAN["rows"]["select"],
        PLAN["budgets"]["passes"],
    ],
    "what it loses to dense attention ({})": [dense(STS)],
    "as above; dense attention has {},": [dense(QNLI)],
    "effects of edges in five rounds minus DAM {} [{}, {}] of area": minus_dam(
        STS, "fisher_rounds"
    ),
    "of area, gates of heads minus DAM {} [{}, {}].": minus_dam(STS, "gates"),
    "`restore_star`, in no family, minus DAM: {} [{}, {}]": minus(STS, "restore_star", "dam"),
    "three alone effects in five rounds minus DAM are {} [{}, {}],": [
        at_first.value,
        at_first.low,
        at_first.high,
    ],
    f"DAM is shown to be ahead of {ahead} search only (adjusted p {{}})": [early_p[ahead]],
    "gates minus effects in five rounds are {} [{}, {}] on STS-B and {} [{}, {}] on QNLI": [
        *minus(STS, "gates", "fisher_rounds"),
        *minus(QNLI, "gates", "fisher_rounds"),
    ],
    "gates minus effects measured once {} [{}, {}] and {} [{}, {}].": [
        *minus(STS, "gates", "fisher"),
        *minus(QNLI, "gates", "fisher"),
    ],
    "STS-B gates minus effects in five rounds are {} [{}, {}] at 50 % and {} [{}, {}] at 30 %": [
        *minus(STS, "gates", "fisher_rounds", HALF),
        *minus(STS, "gates", "fisher_rounds", THIRD),
    ],
    "few heads fit, are gates behind by their interval: {} [{}, {}]": minus(
        STS, "gates", "fisher_rounds", LEAST
    ),
    "told from {} arms of {}: effects in five rounds minus DAM {} [{}, {}],": [
        sum(areas[areas.task == QNLI].adjusted_p > 0.05),
        sum(areas.task == QNLI),
        *minus_dam(QNLI, "fisher_rounds"),
    ],
    "effects measured once minus DAM {} [{}, {}],": minus_dam(QNLI, "fisher"),
    "gates of heads minus DAM {} [{}, {}], random search minus DAM {} [{}, {}].": [
        *minus_dam(QNLI, "gates"),
        *minus_dam(QNLI, "random"),
    ],
    "At 15 % all {} arms are shown to lose more on STS-B": [len(worst)],
    f"are {outcome(QNLI, 'dam', LEAST)} there: DAM loses {{}} [{{}}, {{}}],": lost(
        QNLI, "dam", LEAST
    ),
    "loses {} [{}, {}], effects in five rounds {} [{}, {}], effects measured once {} [{}, {}]": [
        *lost(QNLI, "dam", LEAST),
        *lost(QNLI, "fisher_rounds", LEAST),
        *lost(QNLI, "fisher", LEAST),
    ],
    "once {} [{}, {}], gates of heads {} [{}, {}].": [
        *lost(QNLI, "fisher", LEAST),
        *lost(QNLI, "gates", LEAST),
    ],
    "gates minus dictionary {} [{}, {}] on STS-B, {} [{}, {}] on QNLI": [
        *minus(STS, "gates", "dictionary"),
        *minus(QNLI, "gates", "dictionary"),
    ],
    "dictionary minus random keys and [CLS] {} [{}, {}]": minus(QNLI, "dictionary", WITH_CLS),
    "random search minus random keys and [CLS] is {} [{}, {}], at 30 %": minus(
        STS, "random", WITH_CLS, HALF
    ),
    "it keeps {} of the pairs and they {}, {} [{}, {}]": [
        cell(STS, "random", THIRD)[1],
        cell(STS, WITH_CLS, THIRD)[1],
        *minus(STS, "random", WITH_CLS, THIRD),
    ],
}
starred = scores[(scores.task == QNLI) & (scores.arm == "restore_star")].groupby("search")
SAID["masks of two searches of three are at chance, at {} or below"] = [
    sorted(starred.score.max())[1]
]
CLAIMS = [
    *table(STS, "STS-B: scores"),
    *primary(STS, "STS-B: areas"),
    *table(QNLI, "QNLI: scores"),
    *primary(QNLI, "QNLI: areas"),
    *rows(HERE, SETTINGS, "rows that its scores use"),
    *sentences(HERE, SAID),
]
# -- the plan's amendment ------------------------------------------------------------------------
AMENDED = RESULTS / "amended"
PAIRS = TABLES["AMENDED"]["seeds"]
anew = {  # on the amendment's pairs alone
    task: {
        mask: {seed: own[seed] for seed in seeds if seed in own}
        for mask, own in TABLES["read"](AMENDED, task).items()
    }
    for task, seeds in PAIRS.items()
}
NAMED = {  # its arms, in the guide
    "dam": "edges: `dam`",
    "fisher_rounds": "edges: `prune`, five rounds",
    "swept_gates": "heads: `allocate`, swept gates",
    "greedy": "heads: `allocate`, greedy rounds",
    "tpe": "heads: TPE",
}


def amended_scores(task: str) -> list[Claim]:
    """The rows of the amendment's table: mean score, mean judged density and loss by budget; and
    those of the guide, with what is lost alone."""
    table, found, claims = TABLES["amended_scores"](RESULTS), anew[task], list[Claim]()
    for arm, name in NAMED.items():
        values, losses = list[float](), list[float]()
        for budget in BUDGETS:
            own = table[(table.task == task) & (table.arm == arm) & (table.budget == budget)]
            lost = difference(found["dense", "1"], found[arm, str(budget)])
            values += [own.score.mean(), own.judged_density.mean()]
            values += [lost.value, lost.low, lost.high]
            losses += values[-3:]
        claims.append(Claim(HERE, f"| {task} | {arm} |...", values, "Amendment: scores"))
        claims.append(Claim(GUIDE, f"| {name} | {task} |...", losses))
    return claims


amended = TABLES["contrasts"](AMENDED).set_index(["kind", "task", "arm", "minus"])


def contrast(task: str, arm: str, other: str = "dam", kind: str = "primary") -> list[float]:
    """A planned difference of areas, with its interval."""
    return amended.loc[(kind, task, arm, other), ["value", "low", "high"]].to_list()


PRIMARY = {  # the planned tests, on the page
    "STS-B: swept gates minus DAM": (STS, "swept_gates", "dam"),
    "QNLI: swept gates minus DAM": (QNLI, "swept_gates", "dam"),
    "QNLI: DAM minus effects in five rounds": (QNLI, "dam", "fisher_rounds"),
}
LINE = ["value", "low", "high", "p"]
SWEPT = TABLES["AMENDED"]["sweep"]["swept_gates"][TABLES["best_setting"](AMENDED, "swept_gates")]
assert len(SWEPT["levels"]) == 3
assert {TABLES["best_head"](AMENDED, task) for task in PAIRS} == {"swept_gates"}
WITHOUT, TPES = "without the last budget", TABLES["amended_scores"](RESULTS)
TPES = TPES[(TPES.task == STS) & (TPES.arm == "tpe") & (TPES.budget == THIRD)].score
DRAWN_SETS = ARM["random"]["trials"] / len(BUDGETS)
KEPT = [
    cell(STS, "dam", THIRD)[0],
    dense(STS),
    TPES.mean(),
    DRAWN_SETS,
    cell(STS, "random", THIRD)[0],
]
OPENING = {
    "DAM minus effects in five rounds are {} [{}, {}] of area": contrast(
        QNLI, "dam", "fisher_rounds"
    ),
    "Gates of whole heads are behind DAM there, {} [{}, {}], though their settings were swept, "
    "with the budget of {} %; without it {} [{}, {}].": [
        *(*contrast(QNLI, "swept_gates"), 100 * LEAST),
        *contrast(QNLI, "swept_gates", kind=WITHOUT),
    ],
    "Within {} % of STS-B's pairs DAM keeps {} where dense attention has {}, TPE over heads {}, "
    "the best of {} random sets of heads {}, random keys with [CLS] {}.": [
        *(100 * THIRD, *KEPT, cell(STS, WITH_CLS, THIRD)[0])
    ],
    "On QNLI edges are ahead of whole heads with the budget of {} %; without it swept gates minus "
    "DAM are {} [{}, {}].": [100 * LEAST, *contrast(QNLI, "swept_gates", kind=WITHOUT)],
    "that is not shown, {} [{}, {}]. Greedy": contrast(STS, "swept_gates"),
    "at a rate of {}, for the gates": [SWEPT["gate_lr"]],
    "with half or 30 % of the pairs: {} [{}, {}]": contrast(
        STS, "swept_gates", kind="without the last budget"
    ),
    "looked at afterwards, are {} [{}, {}] on STS-B and {} [{}, {}] on QNLI": [
        *minus(STS, "swept_gates", "greedy", among=anew),
        *minus(QNLI, "swept_gates", "greedy", among=anew),
    ],
    "dense attention has {} on STS-B and {} on QNLI.": [
        fmean(rows.score for rows in anew[task]["dense", "1"].values()) for task in (STS, QNLI)
    ],
}
CLAIMS += [
    Claim(
        HERE,
        f"| {kind} | {task} | {arm} minus {other} |...",
        line[["pairs", "value", "low", "high", "p"]].to_list(),
        "Amendment: areas",
    )
    for (kind, task, arm, other), line in amended.iterrows()
]
CLAIMS += [claim for task in PAIRS for claim in amended_scores(task)]
ON_PAGE = {  # its arms, in the page's own table
    "dam": "DAM",
    "fisher_rounds": "effects in five rounds",
    "swept_gates": "swept gates of heads",
    "greedy": "greedy rounds",
    "tpe": "TPE over heads",
}


def lost_anew(task: str, arm: str, budget: float) -> list[float]:
    """What an arm loses to dense attention on the amendment's pairs, with its interval."""
    line = difference(anew[task]["dense", "1"], anew[task][arm, str(budget)])
    return [line.value, line.low, line.high]


CELLS = [*((STS, budget) for budget in BUDGETS), *((QNLI, budget) for budget in BUDGETS[1:])]
CLAIMS += rows(
    HERE,
    {
        name: [value for task, budget in CELLS for value in lost_anew(task, arm, budget)]
        for arm, name in ON_PAGE.items()
    },
    "## Scores\n",
)
CLAIMS += [
    Claim(HERE, f"| {name} |...", amended.loc[("primary", *key), LINE].to_list())
    for name, key in PRIMARY.items()
]
CLAIMS += sentences(HERE, OPENING)
ON_QNLI, ON_STS = contrast(QNLI, "swept_gates"), contrast(STS, "swept_gates")
assert ON_QNLI[2] < 0 < ON_STS[2]  # shown, not shown
SHOWN = amended.loc["alone"].xs("dam", level="minus")
assert (SHOWN.loc[[(task, arm) for task in PAIRS for arm in ("greedy", "tpe")], "high"] < 0).all()
GUIDED = {
    "{} training rows, and passed {} at most": [PLAN["rows"]["select"], PLAN["budgets"]["passes"]],
    "On QNLI DAM is {} of whole heads: swept gates minus DAM {} [{}, {}] "
    "with the budget of {} %; without it {} [{}, {}]": [
        *(-ON_QNLI[0], *ON_QNLI, 100 * LEAST),
        *contrast(QNLI, "swept_gates", kind=WITHOUT),
    ],
    "Greedy rounds scored a mask on {} of these rows, TPE on {}; the": [
        TABLES["AMENDED"]["arms"][arm]["rows"] for arm in ("greedy", "tpe")
    ],
    "On STS-B that is not shown, {} [{}, {}], within half and 30 % alone {} [{}, {}]": [
        *ON_STS,
        *contrast(STS, "swept_gates", kind="without the last budget"),
    ],
    "On QNLI DAM minus these effects are {} [{}, {}]; "
    "on STS-B effects minus DAM are {} [{}, {}]": [
        *contrast(QNLI, "dam", "fisher_rounds"),
        *minus_dam(STS, "fisher_rounds"),
    ],
    "--set dam.gate_lr={}`. Greedy": [SWEPT["gate_lr"]],
    "Greedy rounds, the default of `masksearch allocate`, and TPE are {} DAM on both tasks": [
        SHOWN.loc[(STS, "greedy"), "value"],
    ],
    "Random search over heads is a control. It is not shown to differ from random keys that keep "
    "[CLS]: within 30 % of STS-B random search minus random keys and [CLS] is {} [{}, {}]": minus(
        STS, "random", WITH_CLS, THIRD
    ),
}
CLAIMS += sentences(GUIDE, GUIDED)
SWEEP = TABLES["chosen_areas"](AMENDED / "sweep.csv", STS)
CLAIMS.append(
    Claim(
        "docs/full_or_local.md",
        "greedy rounds have {} of area with the first and {} with the star; gates have {} and {}, "
        "and {} with both as levels.",
        [SWEEP[f"{arm}"] for arm in ("greedy 0", "greedy 1")]
        + [max(SWEEP[f"swept_gates {at}"] for at in pair) for pair in ((0, 1), (2, 3), (4, 5))],
    )
)
CLAIMS += sentences(
    "experiments/README.md",
    {
        "DAM, which chooses single pairs; on QNLI whole heads are {} by {} of the area "
        "under score over budget |": [
            tuple(ON_QNLI),
            tuple(-end for end in (ON_QNLI[0], *ON_QNLI[:0:-1])),
        ],
    },
)
NO_CLAIM = [(HERE, "its interval lies above -.02; edges")]  # the plan's
