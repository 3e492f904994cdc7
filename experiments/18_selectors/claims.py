"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import runpy
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.verify import Claim, rows, sentences
from masksearch_bench import load

FOLDER = Path(__file__).parent
HERE = "experiments/18_selectors/README.md"
PAGE = runpy.run_path(str(FOLDER / "page.py"))
CELLS, CONFIRMED = PAGE["cells"](), PAGE["confirmed"]()
ALL_COMPARED = pd.read_csv(FOLDER / "results" / "compared.csv")
COMPARED = ALL_COMPARED[ALL_COMPARED.family == "recall"].set_index("selector")
JUDGED = pd.read_csv(FOLDER / "results" / "judged.csv", dtype={"choice": str})
OF_RECALL = JUDGED[JUDGED.table.str.startswith("recall")]
REGRET, MASKS = COMPARED.regret, COMPARED.evaluations
GREEDY, TRIES, REMOVAL = "allocate greedy", "allocate greedy, 3 tries", "greedy removal"
RESTORE, LEAVE = "allocate restore", "leave one out"
SAMPLERS = [REGRET[name] for name in ("tpe", "random")]
ROUNDS = (
    "rounds that raise the best head lose {} nats to it on the average over four budgets, with {} "
    "masks judged, and {} where a round tries only the three best candidates ({} masks)"
)
CLAIMS: list[Claim] = rows(HERE, CELLS, after="### Regret")
ENDS = ["one window, bytes at 8,192 positions", "one window, bytes at the text's length"]
ENDS += [REMOVAL, GREEDY, TRIES, RESTORE, "gates", "attention mass"]  # first and last budget
CLAIMS += rows(HERE, CONFIRMED, after="### Ten others")
AGAIN, COUNTED = PAGE["again"](), PAGE["counted_again"]()
CLAIMS += rows(HERE, AGAIN, after="### New sequences\n")
CLAIMS += rows(HERE, COUNTED, after="### New sequences, counted")
CLAIMS += sentences(
    HERE,
    {
        ROUNDS: [REGRET[GREEDY], MASKS[GREEDY], REGRET[TRIES], MASKS[TRIES]],
        "lowering heads one by one loses {} with {}": [REGRET[REMOVAL], MASKS[REMOVAL]],
        "leave one out: {} to {} masks) lose {}": [
            *(MASKS[LEAVE], MASKS["allocate ablate"], REGRET[RESTORE])
        ],
        "samplers with 60 masks lose {} to {}": SAMPLERS,
        "it loses {} nats at most": [OF_RECALL[OF_RECALL.selector == "exact"].oracle.max()],
        "gates {}, attention mass {}, first-order scores {} and": [
            *(REGRET["gates"], REGRET["attention mass"], REGRET["flip"])
        ],
    },
)
BUDGETS = sorted(OF_RECALL.budget.unique())
FIRST = sorted(OF_RECALL.table.unique())
OTHERS = sorted(pd.read_csv(FOLDER / "results" / "confirmed.csv").table.unique())
TABLES = FOLDER.parents[1] / "masksearch-bench" / "masksearch_bench"
OPENED = {name: load(TABLES / f"{name}.parquet") for name in (*FIRST, *OTHERS)}
WHERE = {"cost": "head/8192"}


def nested(names: list[str]) -> int:
    """Steps from one budget to the next on which the best choice keeps the heads that it had."""
    picks = [
        [OPENED[name].optimum(budget, **WHERE).choice for budget in BUDGETS] for name in names
    ]
    steps = [step for each in picks for step in pairwise(each)]
    return sum(all(a <= b for a, b in zip(*step, strict=True)) for step in steps)


def closed(names: list[str]) -> float:
    """Share of the gap between local heads and dense attention that the first head closes, %."""
    shares = []
    for table in map(OPENED.__getitem__, names):
        first = table.optimum(BUDGETS[0], **WHERE).choice
        local, one, dense = (
            table.query(choice, "test")["nll"] for choice in ("0" * 12, first, "1" * 12)
        )
        shares.append(100 * (local - one) / (local - dense))
    return float(np.mean(shares))


HASHES = Counter(table.sheet.checkpoint["text"][:8] for table in OPENED.values())
WINDOWS = pd.read_csv(FOLDER / "results" / "one_window.csv")
WINDOWS = WINDOWS[WINDOWS.table.isin(FIRST)]
WINDOWS["reach"] = WINDOWS["mask"].str.extract(r"window\((\d+)\)").astype(int)
NARROW = WINDOWS[WINDOWS["at"] != 8192]
WIDE = PAGE["windows"]("recall", set(FIRST))
DENSE, SHORT = WIDE[PAGE["DENSE"]], WIDE[PAGE["NARROW"]]
OWN = pd.read_csv(FOLDER / "results" / "own.csv").set_index("selector")
NEW = AGAIN[GREEDY][-3:], AGAIN[TRIES][-3:]
OF_40 = [CONFIRMED[GREEDY][10], 40, CONFIRMED[TRIES][10], 40]
EACH = pd.read_csv(FOLDER / "results" / "confirmed.csv").set_index(["selector", "table"])
TIMES = [REGRET[name] / REGRET[GREEDY] for name in (RESTORE, "allocate ablate")]
assert round(TIMES[0]) == round(TIMES[1]) == 14
CLAIMS += sentences(
    HERE,
    {
        "reach {} keys back for the bytes of one full head": [
            WINDOWS[(WINDOWS["at"] == 8192) & (WINDOWS.full == 1)].reach.max()
        ],
        "it loses {} nats less than the best\nchoice of one head, and {} less than that of four": [
            *(-DENSE[0], -DENSE[9])
        ],
        "reaches {} to {} keys back, and loses {} to {} nats more": [
            *(NARROW.reach.min(), NARROW.reach.max(), min(SHORT[::3]), max(SHORT[::3]))
        ],
        "greedy rounds are within .002 nats in {} of {} cells (a checkpoint at a budget), three "
        "tries in {} of {}": OF_40,
        "greedy rounds lose {} nats [{}, {}] on the average and are within .002 in {} of {} "
        "cells; three tries lose {} [{}, {}], {} of {}": [
            *(*NEW[0], COUNTED[GREEDY][9], 40, *NEW[1], COUNTED[TRIES][9], 40)
        ],
        "of one head less in {} of {} steps": [nested(FIRST) + nested(OTHERS), 60],
        "no p below {} here": [2 / 2**10 * (len(REGRET) - 2)],
        "Holm over all {} selectors": [len(REGRET) - 2],
        "`restore` has p = {}, is not": [COMPARED.p[RESTORE]],
        "`restore` has p = {} and is shown to be worse, `ablate` has p = {}": [
            *(OWN.p[RESTORE], OWN.p["allocate ablate"])
        ],
        "in the datasheets of {} tables) and one for far pairs (4b59f10e, {} tables)": [
            *(HASHES["74b064c6"], HASHES["4b59f10e"])
        ],
        "lose {} nats on `recall-11` within": [EACH.loc[(TRIES, "recall-11")].regret.max()],
        "in {} of 30 steps on the first ten checkpoints and in {} of 30": [
            *(nested(FIRST), nested(OTHERS))
        ],
        "closes {} % of the gap between all local heads and dense attention on the first "
        "ten, {} %": [*(closed(FIRST), closed(OTHERS))],
    },
)
LEVELS = dict([*pd.read_csv(FOLDER / "results" / "levels.csv").groupby("budget")])
SEVERAL, QUARTER = PAGE["several_windows"](), LEVELS[0.25]
AHEAD = {
    budget: [each.uniform_found.min(), each.uniform_found.max()] for budget, each in LEVELS.items()
}
CLAIMS += rows(HERE, SEVERAL, after="### Several windows")
CLAIMS += sentences(
    HERE,
    {
        "At .25 of the bytes the plan is ahead of one window by {} to {} nats on test sequences, "
        "at .5 by {} to {}.": [*(*AHEAD[0.25], *AHEAD[0.5])],
        "it took the other on {} checkpoints at .25, where\nit loses {} to {} nats": [
            10 - SEVERAL[".25"][3],
            *(QUARTER[QUARTER.found != QUARTER.best].found_best.agg(["min", "max"])),
        ],
    },
)
CLAIMS.append(
    Claim(
        "docs/decoder.md",
        "of six units and four windows the plan at .25 of the bytes is, within noise, the best of "
        "all choices on {}, and {} to {}\nnats {} of one window",
        [SEVERAL[".25"][4], *AHEAD[0.25], AHEAD[0.25][0]],
    )
)
CLAIMS += rows(HERE, PAGE["window_tables"](), after="### Windows that are not nested")
FOUR = pd.read_csv(FOLDER / "results" / "windows_judged.csv", dtype={"choice": str})
BEST = pd.read_csv(FOLDER / "results" / "windows_best.csv")
BEST = BEST[BEST.tokens == "calibration"].assign(best=BEST.choice.str.removeprefix("c"))
FOUR = FOUR.merge(BEST[["table", "budget", "best"]], on=["table", "budget"])
FOUR["found"] = FOUR.choice == FOUR.best
TO_END = FOUR[FOUR.selector == "exchange, to its end"]
FEW = FOUR[FOUR.selector == "exchange"].groupby("budget").found.all()
ALL_STEPS, *APART = PAGE["not_nested"]()
COSTS = [TO_END.evaluations.min(), TO_END.evaluations.max()]
CLAIMS += sentences(
    HERE,
    {
        "From one of seven budgets, {} to {} of the pairs, to the next the best choice narrows "
        "the window of some unit in {} of {} steps by calibration tokens, in {} by validation "
        "tokens, in {} by both.": [
            *(FEW.index.min(), FEW.index.max(), APART[0], ALL_STEPS, *APART[1:])
        ],
        "is done with the {} smallest, where it picks the best of all choices on all four": [
            FEW.sum()
        ],
        "picks the best of all choices in {} of {} cells, with {} to {} of the 4,096 masks.": [
            *(TO_END.found.sum(), len(TO_END), *COSTS)
        ],
    },
)
CLAIMS += sentences(
    "docs/maskbench.md",
    {
        "finds the best of all choices at seven budgets on {} of 4 tables, with {} to {} masks.": [
            *(TO_END.groupby("table").found.all().sum(), *COSTS)
        ]
    },
)
OF_NOVELS = ("novels-0", "novels-1", "novels-4", "novels-5")
NOVELS, ALONE = PAGE["cells"]("novels"), PAGE["alone"]()
CLAIMS += rows(HERE, NOVELS, after="### Novels")
FIRST_AND_LAST = {name: CELLS[name][:4] + CELLS[name][10:13] for name in ENDS}
for name, values in FIRST_AND_LAST.items():
    values.extend(NOVELS[name][1:4] + NOVELS[name][10:13])
CLAIMS += rows(HERE, FIRST_AND_LAST, after="## Scores\n")
CLAIMS += rows(HERE, ALONE, after="### SmolLM2's layers")
SMOL, *TEXT = (load(TABLES / f"{name}.parquet") for name in ("smollm2-1", *OF_NOVELS))
AT_STAKE = [t.query("0" * 12, "test")["nll"] - t.query("1" * 12, "test")["nll"] for t in TEXT]
MEANS = ALL_COMPARED[ALL_COMPARED.family == "novels"].set_index("selector").regret
UNJUDGED = ["first order", "middle heads", "flip", "last heads", "every n-th head"]
UNJUDGED += ["first heads", "attention mass"]
TEXT_ORACLE = JUDGED[(JUDGED.selector == "exact") & JUDGED.table.str.startswith("novels")].oracle
ONE = PAGE["windows"]("smollm2", {"smollm2-1"})
SMOL_WIDE, SMOL_SHORT = ONE[PAGE["DENSE"]], ONE[PAGE["NARROW"]]
TEXT_SHORT = PAGE["windows"]("novels", set(OF_NOVELS))[PAGE["NARROW"]][::3]
OF_SMOL = JUDGED[(JUDGED.selector == "exact") & (JUDGED.table == "smollm2-1")]
SMOL_ORACLE = OF_SMOL.sort_values("budget").oracle.tolist()
OF_JUDGES = [name for name in MEANS.index if name not in [*UNJUDGED, "gates", "Fisher"]]
CLAIMS += sentences(
    HERE,
    {
        "all heads local the four lose {} to {} nats": [min(AT_STAKE), max(AT_STAKE)],
        "All ten layers in full leave {} nats to\ndense attention": [
            SMOL.query("1" * 10, "test")["nll"] - SMOL.sheet.dense["test"]["nll"]
        ],
        "is itself up to {} from the best on test tokens": [TEXT_ORACLE.max()],
        "All\nselectors that judge masks lie within {} nats of it": [MEANS[OF_JUDGES].abs().max()],
        "hand-designed heads lose {} to {} on": [MEANS[UNJUDGED].min(), MEANS[UNJUDGED].max()],
        "for one and two layers and then lose up to {} nats": [max(ALONE["leave one out"][1:5])],
        "On SmolLM2 it loses {} to {} nats less than exhaustive search's choice of layers at all "
        "four budgets by the bytes of the text's own 512 positions, and {} to {} less": [
            *(-max(SMOL_SHORT), -min(SMOL_SHORT), -max(SMOL_WIDE), -min(SMOL_WIDE))
        ],
        "On small decoders of novels it loses {} to {} nats less": [
            *(-max(TEXT_SHORT), -min(TEXT_SHORT))
        ],
        "calibration's best of {} sets with {} masks": [
            *(ALONE["exact"][0], ALONE["greedy rounds"][0])
        ],
        "that pick is {} (4 layers) and {} (6) from the best choice on test tokens": [
            *SMOL_ORACLE[-2:]
        ],
    },
)
CLAIMS.append(
    Claim(
        "experiments/README.md",
        "greedy rounds, on made-up recall as exhaustive search in {} of {} cases; on text one "
        "window |",
        [COUNTED[GREEDY][9], 40],
    )
)
CLAIMS.append(
    Claim(
        "docs/full_or_local.md",
        "on novels that window loses {} than searched full layers",
        [max(SMOL_SHORT)],
    )
)
CLAIMS.append(
    Claim(
        "docs/does_search_pay.md",
        "| a small decoder in which few heads must see everything | `allocate`, which adds one "
        "head at a time | tested on synthetic recall: as exhaustive search in {} of {} "
        "cases | [18](../experiments/18_selectors/README.md) |",
        [COUNTED[GREEDY][9], 40],
    )
)
NO_CLAIM = [
    (HERE, "strictly within .002 nats; the plan"),
    (HERE, "strictly within .002 nats; the worst"),
]
