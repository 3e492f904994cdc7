"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import re
import runpy
import tomllib
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import pandas as pd

from experiments.verify import Claim, interval, rows

FOLDER = Path(__file__).parent
HERE = "experiments/11_glue_fronts/README.md"
RESULTS = FOLDER / "results"
PLAN = tomllib.loads((FOLDER / "plan.toml").read_text(encoding="utf-8"))
TABLES = runpy.run_path(str(FOLDER / "tables.py"))
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


def by_arm(task: str) -> dict[str, list[float]]:
    """Arm -> figures at each budget that it has masks for."""
    names = dict.fromkeys(scores[(scores.task == task) & (scores.stage == "judged")]["mask"])
    ends = tuple(f" {budget}" for budget in BUDGETS)
    arms = dict.fromkeys(name.rsplit(" ", 1)[0] for name in names if name.endswith(ends))
    found = {"dense": figures(of(task, "dense")), "star": figures(of(task, "star"))}
    for arm in arms:
        each = [of(task, f"{arm} {budget}") for budget in BUDGETS]
        found[arm] = [value for values in each for value in figures(values)]
    return {arm: values for arm, values in found.items() if values}


def primary(mask: str, model: str) -> dict[str, list[float]]:
    """Task and what DAM is compared with -> difference, interval, adjusted p-value."""
    pairs = [(mask, f"{other} {DENSITY}") for other in PLAN["primary"]["against"]]
    table = TABLES["differences"](judged, pairs, model)
    return {
        f"{line.task} | {line.against.rsplit(' ', 1)[0]}": [
            *(line.difference, line.low, line.high, line.adjusted_p)
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


curves = pd.read_csv(RESULTS / "curves.csv")


def hypervolumes(chosen: "pd.Series[bool]") -> dict[str, list[float]]:
    """Task and arm -> hypervolume on search rows, of the chosen places on the curves."""
    return {
        f"{task} | {arm}": figures(each.hypervolume)
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
        found[mask] = [value for scores in each for value in figures(scores)]
    return found


def behind_dense(mask: str, stage: str) -> list[float]:
    """How much of dense's score a mask loses under a kind of training, over the same seeds."""
    pairs = zip(of(TASKS[0], "dense", stage), of(TASKS[0], mask, stage), strict=True)
    return list(interval([dense - other for dense, other in pairs]))


SECTIONS = {f"### {task}": by_arm(task) for task in judged}
SECTIONS["### Primary comparison: shared gates, fresh models"] = primary(PRIMARY, "fresh")
SECTIONS["### Shared gates, the models of the searches"] = primary(PRIMARY, "own")
SECTIONS["### Gates of each layer's own, fresh models"] = primary(ADDED, "fresh")
SECTIONS["### At equal compute"] = hypervolumes(  # allocation: of all its masks
    (drawn & (curves.masks == BUDGET)) | (~drawn & ended)
)
SECTIONS["### At ten times the compute"] = hypervolumes(
    drawn & (curves.masks == PLAN["budgets"]["long"])
)
SECTIONS["### What is lost"] = {
    f"{task} | {arm}": [v for each in BUDGETS for v in against(f"{arm} {each}", "dense")[task]]
    for task in judged
    for arm in ("dam layers", "dam", "importance")
}
SECTIONS["### Without the diagonal"] = {
    f"{task} | {mask}": values
    for mask in ("dense", PRIMARY)
    for task, values in against(
        f"{mask} without its diagonal", f"{mask} without other cells"
    ).items()
}
SECTIONS["### On another task"] = {
    f"{task} | {other}": values
    for other in TASKS
    for task, values in against(f"{PRIMARY} of {other}", PRIMARY).items()
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


WORDS = "better than strided(9) and random like front #1, not distinguishable from dense "
SENTENCE = "(50.0% sparse, 78.7% of the table, glue {} [{}, {}], 4 seeds)"
CLAIMS: list[Claim] = [
    Claim(page, WORDS + SENTENCE, printed("front #1")) for page in (HERE, "README.md")
]
CLAIMS += [
    Claim(
        HERE,
        "worse than dense, by {} [{}, {}] and {} [{}, {}]",
        [*behind("front #2"), *behind("front #3")],
    ),
    Claim(
        HERE,
        "they lose {} [{}, {}] on STS-B, {} [{}, {}] on QQP and {} [{}, {}] on QNLI",
        [value for task in TASKS for value in lost(task, "dam layers")],
    ),
    Claim(
        HERE,
        "mask is at {}, {} and {}",
        [mean(task, f"hand-designed {DENSITY}") for task in TASKS],
    ),
    Claim(
        HERE,
        "loses {} [{}, {}] more on QNLI than without as many other cells",
        [-v for v in (SECTIONS["### Without the diagonal"]["QNLI | dense"][i] for i in (0, 2, 1))],
    ),
]
RANDOM = f"random keys {DENSITY}"
CLAIMS += [
    Claim(
        HERE,
        "loses {} [{}, {}] of dense after one epoch under it, and {} [{}, {}] after three",
        [v for stage in ("finetuned_1", "finetuned_3") for v in behind_dense(ADDED, stage)],
    ),
    Claim(
        HERE,
        "Random keys, {} [{}, {}] behind after one epoch, are {} [{}, {}] behind after three",
        [v for stage in ("finetuned_1", "finetuned_3") for v in behind_dense(RANDOM, stage)],
    ),
    Claim(HERE, "a window ends at {}", [fmean(of(TASKS[0], f"window {DENSITY}", "finetuned_3"))]),
    Claim(
        HERE,
        "layers, have {} there (free gates that all layers share: {}); at 15 % they fall to {}",
        [mean(TASKS[0], mask) for mask in ("dam toeplitz 0.3", PRIMARY, "dam toeplitz 0.15")],
    ),
    Claim(
        HERE,
        "after the steps on text it loses {} [{}, {}]",
        behind_dense(ADDED, "pretrained"),
    ),
]
# `masksearch verdict` after the commands of docs/trained_encoders.md
commands = (RESULTS / "four_commands.txt").read_text(encoding="utf-8")
arms = r"searched (\S+ \[.*?\]), hand-designed (\S+ \[.*?\]), random (\S+ \[.*?\])"
best = r"^%s >= 0.4: .*?\((\S+)%% .*? glue (\S+) "
others = [value for arm in ("tpe", "random") for value in said(best % arm, commands)]
CLAIMS += [
    Claim("docs/trained_encoders.md", text, values)
    for text, values in (
        (
            "fronts' hypervolumes: {} [{}, {}], hand-designed {} [{}, {}], random {} [{}, {}]",
            said(arms, commands),
        ),
        ('from dense" ({} [{}, {}])', said(r"^front #5: .*? glue (\S+ \[.*?\])", commands)),
        ("worse than dense by {} [{}, {}]", behind_dense_in("front #1", commands)),
        ("leaves out {} % and is at {}, random search's {} % at {}", others),
    )
]
ENDS = (ADDED, "dense", RANDOM, f"hand-designed {DENSITY}")
text = "own {}, dense {}, random keys {}, the best hand-designed mask {}."
CLAIMS.append(Claim("experiments/README.md", text, [mean(TASKS[0], mask) for mask in ENDS]))
CLAIMS += [
    claim for heading, table in SECTIONS.items() for claim in rows(HERE, table, after=heading)
]
NO_CLAIM = [
    *((HERE, "a constant answer at .623 and .506"), (HERE, "(margin .01, set before)")),
    (HERE, "DAM's differ by up to .008 at 30 % and .033 at 15 %, Toeplitz masks at 15 % by .14"),
]
