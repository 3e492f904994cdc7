"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import re
import runpy
import tomllib
from bisect import bisect
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd

from experiments.verify import interval, rows, sentences
from masksearch.analysis.stats import paired_difference

FOLDER = Path(__file__).parent
HERE = "experiments/11_glue_fronts/README.md"
RESULTS = FOLDER / "results"
PLAN = tomllib.loads((FOLDER / "plan.toml").read_text(encoding="utf-8"))
TABLES = runpy.run_path(str(FOLDER / "tables.py"))
Scores = TABLES["Scores"]
TASKS, BUDGETS = PLAN["tasks"]["names"], PLAN["budgets"]["densities"]
BLACK_BOX, BUDGET = ("random", "tpe", "evolution"), PLAN["budgets"]["evaluations"]
PRIMARY = f"dam {PLAN['primary']['density']}"
DENSITY = PLAN["primary"]["density"]
ADDED = f"{PLAN['added']['arm']} {DENSITY}"

judged = TABLES["stored"](RESULTS)
scores = pd.read_csv(RESULTS / "scores.csv")


def of(task: str, mask: str, stage: str = "judged") -> list[float]:
    """A mask's scores on fresh models."""
    found = scores[(scores.task == task) & (scores["mask"] == mask) & (scores.stage == stage)]
    return list(found[found.model == "fresh"].score)


def mean(task: str, mask: str) -> float:
    """A mask's mean score on fresh models, nothing trained."""
    return fmean(of(task, mask))


def figures(values: Iterable[float]) -> list[float]:
    """Mean and interval; nothing where there are fewer than three runs."""
    found = list(values)
    return list(interval(found)) if len(found) > 2 else []


def density(task: str, mask: str) -> float:
    """A mask's effective density, mean over its searches."""
    return fmean(judged[task]["fresh"][mask].density.values())


def cell(task: str, mask: str) -> list[float]:
    """Score with interval, and density; nothing where fewer than three searches have the mask."""
    found = figures(of(task, mask))
    return [*found, density(task, mask)] if found else []


def by_arm(task: str) -> dict[str, list[float]]:
    """Arm -> scores and densities at each budget that it has masks for."""
    names = dict.fromkeys(scores[(scores.task == task) & (scores.stage == "judged")]["mask"])
    ends = tuple(f" {budget}" for budget in BUDGETS)
    arms = dict.fromkeys(name.rsplit(" ", 1)[0] for name in names if name.endswith(ends))
    found = {"dense": figures(of(task, "dense")), "star": cell(task, "star")}
    for arm in arms:
        found[arm] = [value for budget in BUDGETS for value in cell(task, f"{arm} {budget}")]
    return {arm: values for arm, values in found.items() if values}


def primary(mask: str, model: str) -> dict[str, list[float]]:
    """Task and what DAM is compared with -> its density, difference, interval, adjusted p."""
    pairs = [(mask, f"{other} {DENSITY}") for other in PLAN["primary"]["against"]]
    table = TABLES["differences"](judged, pairs, model)
    return {
        f"{line.task} | {line.against.rsplit(' ', 1)[0]}": [
            density(line.task, line.against),
            *(line.difference, line.low, line.high, line.adjusted_p),
        ]
        for line in table.itertuples()
    }


def against(mask: str, other: str) -> dict[str, list[float]]:
    """Task -> difference of two masks on fresh models with its single interval."""
    found = {}
    for task in judged:
        table = TABLES["differences"]({task: judged[task]}, [(mask, other)], "fresh")
        for line in table.itertuples():
            found[task] = [line.difference, line.low, line.high]
    return found


def without_cells(task: str, mask: str) -> list[float]:
    """Pairs that a mask's two versions leave out, and their difference with its interval."""
    parts = [f"{mask} without {part}" for part in ("its diagonal", "other cells")]
    lost = [density(task, mask) - density(task, part) for part in parts]
    return [*lost, *against(*parts)[task]]


def at_density(task: str, arm: str, other: str) -> Scores:
    """What an arm would have at the densities of another mask, search by search.

    Scores, and those of single rows where they are stored, on straight lines between its masks
    and dense attention; below its sparsest mask that mask's.
    """
    masks = judged[task]["fresh"]
    found = Scores({}, {}, {})
    for seed, wanted in masks[other].density.items():
        own = [masks[name] for name in (*(f"{arm} {each}" for each in BUDGETS), "dense")]
        own = list({scores.density[seed]: scores for scores in own}.values())
        own.sort(key=lambda scores: scores.density[seed])
        at = min(max(bisect([s.density[seed] for s in own], wanted), 1), len(own) - 1)
        sparser, denser = own[at - 1 : at + 1]
        low, high = sparser.density[seed], denser.density[seed]
        share = min(max((wanted - low) / (high - low), 0.0), 1.0)
        found.score[seed] = (1 - share) * sparser.score[seed] + share * denser.score[seed]
        found.density[seed] = wanted
        if seed in sparser.rows and seed in denser.rows:
            values = [scores.rows[seed].scores["dev"] for scores in (sparser, denser)]
            between = {"dev": (1 - share) * values[0] + share * values[1]}
            found.rows[seed] = replace(sparser.rows[seed], scores=between)
    return found


def at_equal_density(task: str, arm: str, other: str, rows: bool = False) -> list[float]:
    """An arm minus another mask at that mask's densities: single interval over seeds, or over
    seeds and rows."""
    mine, others = at_density(task, arm, other), judged[task]["fresh"][other]
    if not rows:
        return figures(mine.score[seed] - score for seed, score in others.score.items())
    found = paired_difference(mine.score, others.score, 0.95, rows_a=mine.rows, rows_b=others.rows)
    return [found.value, found.low, found.high]


def negative(values: Iterable[float]) -> list[float]:
    """A difference with its interval, the other way round."""
    mean, low, high = values
    return [-mean, -high, -low]


curves = pd.read_csv(RESULTS / "curves.csv")


def hypervolumes(chosen: "pd.Series[bool]") -> dict[str, list[float]]:
    """Task and arm -> masks judged and hypervolume on search rows, of chosen places on curves."""
    return {
        f"{task} | {arm}": [each.masks.max(), *figures(each.hypervolume)]
        for (task, arm), each in curves[chosen].groupby(["task", "arm"])
        if len(each) > 2
    }


drawn = curves.arm.isin(BLACK_BOX)
ended = curves.masks == curves.groupby(["task", "arm", "search_seed"]).masks.transform("max")


def by_layer() -> dict[str, list[float]]:
    """Task -> what DAM's masks keep in each layer, means over heads and seeds."""
    heads = pd.read_csv(RESULTS / "heads.csv")
    kept = heads.groupby(["task", "layer"]).kept.mean().unstack()
    return {str(task): list(kept.loc[task]) for task in kept.index}


def predicted() -> dict[str, list[float]]:
    """Task and map -> rank correlation with DAM's gates."""
    found = pd.read_csv(RESULTS / "predicted.csv").groupby(["task", "map"]).spearman
    return {f"{task} | {name}": figures(each) for (task, name), each in found}


def trained_stages() -> list[str]:
    """Kinds of training under a mask that have been run on the first task."""
    stages = ["judged", "recovered", "finetuned_1", "finetuned_3", "pretrained"]
    return [stage for stage in stages if of(TASKS[0], "dense", stage)]


def trained() -> dict[str, list[float]]:
    """Mask -> figures under every kind of training of the first task."""
    found = {}
    for mask in PLAN["trained"]["masks"]:
        each = [of(TASKS[0], mask, stage) for stage in trained_stages()]
        found[mask] = [density(TASKS[0], mask)] + [
            value for scores in each for value in figures(scores)
        ]
    return found


def behind_dense(mask: str, stage: str) -> list[float]:
    """How much of dense's score a mask loses under a kind of training, over the same seeds."""
    pairs = zip(of(TASKS[0], "dense", stage), of(TASKS[0], mask, stage), strict=True)
    return list(interval([dense - other for dense, other in pairs]))


SECTIONS = {f"### {task}": by_arm(task) for task in judged}
SECTIONS["### Primary comparison: shared gates, fresh models"] = primary(PRIMARY, "fresh")
SECTIONS["### Shared gates, the models of the searches"] = primary(PRIMARY, "own")
SECTIONS["### Gates of each layer's own, fresh models"] = primary(ADDED, "fresh")
SECTIONS["### Hypervolume"] = hypervolumes(  # allocation: of all its masks
    (drawn & (curves.masks == BUDGET)) | (~drawn & ended)
)
SECTIONS["### At ten times the compute"] = hypervolumes(
    drawn & (curves.masks == PLAN["budgets"]["long"])
)
SECTIONS["### What is lost"] = {
    f"{task} | {arm}": [
        value
        for each in BUDGETS
        for value in (*against(f"{arm} {each}", "dense")[task], density(task, f"{arm} {each}"))
    ]
    for task in judged
    for arm in ("dam layers", "dam", "importance")
}
SECTIONS["### Without the diagonal"] = {
    f"{task} | {mask}": without_cells(task, mask) for mask in ("dense", PRIMARY) for task in TASKS
}
SECTIONS["### On another task"] = {
    f"{task} | {other}": [
        density(task, f"{PRIMARY} of {other}"),
        *values,
        *negative(at_equal_density(task, "dam", f"{PRIMARY} of {other}", rows=True)),
    ]
    for other in TASKS
    for task, values in against(f"{PRIMARY} of {other}", PRIMARY).items()
}
HEADS = {  # whole heads: masks of the table "Heads against edges"
    "STS-B": [
        f"allocate {arm}" for arm in ("greedy 0.3", "gates 0.3", "restore 0.3", "gates 0.5")
    ],
    "QQP": ["allocate restore 0.3"],
    "QNLI": ["allocate restore 0.3"],
}
SECTIONS["### Heads against edges"] = {
    f"{task} | {mask}": [
        density(task, mask),
        mean(task, mask),
        *at_equal_density(task, "dam layers", mask),
        *at_equal_density(task, "dam", mask),
    ]
    for task, masks in HEADS.items()
    for mask in masks
}
SECTIONS["### What DAM keeps"] = by_layer()
if (RESULTS / "predicted.csv").is_file():
    SECTIONS["### Do maps predict it"] = predicted()
SECTIONS["### Trained under the mask"] = trained()
verdict = pd.read_csv(RESULTS / "verdict.csv").pivot(index="seed", columns="mask", values="score")
shown = (RESULTS / "verdict.txt").read_text(encoding="utf-8")


def said(pattern: str, text: str) -> list[float]:
    """Numbers in the groups of a pattern, of one place in a verdict."""
    found = re.search(pattern, text, re.M | re.S)
    assert found is not None, pattern
    return [float(part) for part in re.findall(r"[-+]?\d*\.\d+", " ".join(found.groups()))]


def behind_dense_in(mask: str, text: str) -> list[float]:
    """How much a mask loses of dense, and the interval that a verdict prints."""
    mean, low, high = said(rf"^{mask}:.*?^  dense \(.*?\): (\S+ \[.*?\])", text)
    return [-mean, -high, -low]


def printed(mask: str) -> list[float]:
    """A mask's score with the interval over seeds and rows that the verdict prints."""
    mean, low, high = said(rf"^{mask}:[^\n]*glue (\S+ \[.*?\]), ", shown)
    assert abs(mean - verdict[mask].mean()) < 1e-3
    return [mean, low, high]


def behind(mask: str) -> list[float]:
    """How much a mask of the verdict loses of dense, and the interval that the verdict prints."""
    mean, low, high = behind_dense_in(mask, shown)
    assert abs(mean - (verdict["dense"] - verdict[mask]).mean()) < 1e-4
    return [mean, low, high]


def lost(task: str, arm: str) -> list[float]:
    """What an arm loses of dense at the primary density."""
    mean, low, high = against(f"{arm} {DENSITY}", "dense")[task]
    return [-mean, -high, -low]


def lost_on(model: str) -> dict[str, list[float]]:
    """Task -> what the plan's arm loses of dense, search by search, on models of a kind."""
    each = {task: found[model] for task, found in judged.items()}
    return {
        task: [own["dense"].score[seed] - score for seed, score in own[PRIMARY].score.items()]
        for task, own in each.items()
    }


def minus_map(task: str, arm: str) -> list[float]:
    """An arm minus the largest mean attention, at the primary density, over seeds."""
    return figures(a - b for a, b in zip(of(task, arm), of(task, "attention 0.3"), strict=True))


def neighbours() -> tuple[float, int]:
    """Mean correlation of neighbouring seeds' differences from dense, and of how many masks."""
    found = []
    for masks in (each["fresh"] for each in judged.values()):
        dense = pd.Series(masks["dense"].score)
        for name, scores in masks.items():
            gap = (pd.Series(scores.score) - dense).dropna().to_numpy()
            gap = gap - gap.mean()
            if name != "dense" and len(gap) == len(dense) and gap.any():
                found.append(float(gap @ np.roll(gap, -1) / (gap @ gap)))
    return fmean(found), len(found)


STS, HALF, RANDOM = TASKS[0], f"dam layers {BUDGETS[0]}", f"random keys {DENSITY}"
in_half = negative(against(HALF, "dense")[STS])
table = pd.read_csv(FOLDER.parent / "12_sparsebert_table" / "results" / "scores.csv")
table = table[(table["mask"] == "log_sparse") & (table.task == STS) & (table.setting == "none")]
sparsity = pd.read_csv(RESULTS / "verdict.csv").groupby("mask").sparsity.mean()
diagonal = SECTIONS["### Without the diagonal"]
times = {key: line[0] / line[1] for key, line in diagonal.items()}
fresh, own = lost_on("fresh"), lost_on("own")
ends = curves[ended & (curves.task == STS)].set_index(["arm", "search_seed"]).hypervolume
heads, layers = ends["allocate gates"], ends["dam layers"][ends["allocate gates"].index]
families = ("Primary comparison: shared gates", "Gates of each layer's own")
told = [
    {key for key, values in SECTIONS[f"### {name}, fresh models"].items() if values[-1] <= 0.05}
    for name in families
]
assert told[0] == told[1]
pass_rows, search_rows = PLAN["dam"]["steps"] * PLAN["model"]["batch"], PLAN["data"]["search_rows"]
greedy, restore = ([mean(STS, name), density(STS, name)] for name in HEADS[STS][::2])
epochs = ("finetuned_1", "finetuned_3")
transfer = SECTIONS["### On another task"]["QQP | QNLI"][4:]
transfer += at_equal_density("STS-B", "dam", f"{PRIMARY} of QNLI", rows=True)
transfer += at_equal_density("STS-B", "dam", f"{PRIMARY} of QNLI")[1:]
maps = [mean("QQP", "attention 0.3"), *minus_map("QQP", PRIMARY), *minus_map("QQP", ADDED)]
by_hand = [
    of_masks(task, f"hand-designed {DENSITY}") for of_masks in (mean, density) for task in TASKS
]
moved = [fmean(gaps[task]) for task in ("STS-B", "QNLI", "QQP") for gaps in (fresh, own)]
SAID = {  # on the experiment's own page
    "front #1: better than strided(9) and random like front #1, not distinguishable from dense "
    "(50.0% sparse, 78.7% of the table, glue {} [{}, {}], 4 seeds)": printed("front #1"),
    "they lose {} [{}, {}] on STS-B, {} [{}, {}] on QQP and {} [{}, {}] on QNLI": [
        value for task in TASKS for value in lost(task, "dam layers")
    ],
    "star on search rows is at {}, {} and {}, at densities of {}, {} and {}": by_hand,
    "`fixed(5)` has {} at {} (the verdict's four models)": [
        *(verdict["fixed(5)"].mean(), 1 - sparsity["fixed(5)"])
    ],
    "log_sparse {} at {}": [table.score.mean(), 1 - table.effective_sparsity.mean()],
    "all five searches together lose {} [{}, {}]": in_half,
    "one by one {}, {}, {}, {} and {}.": [
        *(a - b for a, b in zip(of(STS, "dense"), of(STS, HALF), strict=True))
    ],
    "worse than dense, by {} [{}, {}] and {} [{}, {}]": behind("front #2") + behind("front #3"),
    "the weaker of two: {} at 50 %": [verdict["random like front #1"].mean()],
    "other keys in each head with [CLS] have {}": [mean(STS, f"random keys {BUDGETS[0]}")],
    "better than the others in the same {} pairs": [len(told[0])],
    "three full heads of 72, at {}, keep {}. So": greedy[::-1],
    "a star in all the others costs {} already": [density(STS, "star")],
    "are one mask, {} at {}; restoring one head has {} at {}": greedy + restore,
    "mean attention has {} at 30 %: the plan's arm minus it is {} [{}, {}], gates of each layer's "
    "own minus it {} [{}, {}]": maps,
    "layers, have {} there (free gates that all layers share: {}); at 15 % they fall to {}": [
        mean(STS, mask) for mask in ("dam toeplitz 0.3", PRIMARY, "dam toeplitz 0.15")
    ],
    "loses {} on fresh models and {} on those of the searches on STS-B, {} and {} on QNLI; on QQP "
    "{} and {}, a rise of": moved,
    "a rise of {} [{}, {}]": interval(
        a - b for a, b in zip(fresh["QQP"], own["QQP"], strict=True)
    ),
    "QNLI's masks keep {} on QQP and {} on STS-B": [
        density(task, f"{PRIMARY} of QNLI") for task in ("QQP", "STS-B")
    ],
    "QQP's and STS-B's masks are at {} and {} on QNLI": [
        density("QNLI", f"{PRIMARY} of {task}") for task in ("QQP", "STS-B")
    ],
    "they are {} [{}, {}] better on QQP, which shows nothing, and {} [{}, {}] worse on STS-B "
    "(over seeds alone [{}, {}])": transfer,
    "loses {} [{}, {}] more on QNLI than without other cells": negative(
        diagonal["QNLI | dense"][2:]
    ),
    "the diagonal is {} times (QNLI) to {} times (STS-B) as many": [
        *(times["QNLI | dense"], times["STS-B | dense"])
    ],
    "for DAM's masks {} to {} times": [
        pick(times[f"{task} | {PRIMARY}"] for task in TASKS) for pick in (min, max)
    ],
    "own have {} on the same three seeds": [layers.mean()],
    "which is {} [{}, {}] less": interval(heads - layers),
    "have a correlation of {} in the mean of {} masks": neighbours(),
    "loses {} [{}, {}] of dense after one epoch under it, and {} [{}, {}] after three": [
        value for stage in epochs for value in behind_dense(ADDED, stage)
    ],
    "Random keys, {} [{}, {}] behind after one epoch, are {} [{}, {}] behind after": [
        value for stage in epochs for value in behind_dense(RANDOM, stage)
    ],
    "a window ends at {}": [fmean(of(STS, f"window {DENSITY}", "finetuned_3"))],
    "after the steps on text it loses {} [{}, {}]": behind_dense(ADDED, "pretrained"),
}
ON_PAGE = {  # arms in its table of scores within the primary density
    "dense, all pairs": "dense",
    "DAM, gates of each layer's own": ADDED,
    "DAM, gates that all layers share": PRIMARY,
    "whole heads, by restoring one": f"allocate restore {DENSITY}",
    "largest mean attention": f"attention {DENSITY}",
    "TPE": f"tpe {DENSITY}",
    "random search": f"random {DENSITY}",
    "random keys": RANDOM,
    "window, BigBird or star": f"hand-designed {DENSITY}",
}
FOUND = {
    arm: [x for task in TASKS for x in (figures(of(task, m)) if m == "dense" else cell(task, m))]
    for arm, m in ON_PAGE.items()
}
TOLD = {  # rows with labels, passes of a row, told the density?
    "DAM": [pass_rows, 3 * pass_rows, len(BUDGETS) * search_rows, PLAN["dam"]["density"]],
    "TPE, random, evolution": [search_rows, BUDGET * search_rows, 0, 1],
    "allocate restore, greedy": [search_rows, PLAN["allocate"]["trials"] * search_rows],
    "hand-designed | the 400 search rows": [7 * search_rows],
}
TABLE = {  # on the page of all experiments
    "yes, on {} tasks; DAM's with {} % of STS-B's pairs has a correlation of {} |": [
        *(len(TASKS), 100 * DENSITY, mean(STS, ADDED)),
    ],
}
CLAIMS = [
    *sentences(HERE, SAID),
    *sentences("experiments/README.md", TABLE),
    *rows(HERE, FOUND, after="## Scores\n"),
    *rows(HERE, TOLD, after="the budget are not:"),
    *(claim for heading, each in SECTIONS.items() for claim in rows(HERE, each, after=heading)),
]
NO_CLAIM = [
    (HERE, "independent ones have -.25"),  # -1 / (seeds - 1)
    *((HERE, text) for text in ('cell ("at .300")', "(at .300)", "masks are at .300")),
    *((HERE, text) for text in ("below .15", "own one at .300", "own mask at .300")),
    (HERE, "2.5 times as many (88 masks)"),
    *((HERE, "a constant answer at .623 and .506"), (HERE, "(margin .01, set before)")),
    (HERE, "DAM's differ by up to .008 at 30 % and .033 at 15 %, Toeplitz masks at 15 % by .14"),
]
