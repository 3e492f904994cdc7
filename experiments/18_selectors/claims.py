"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import runpy
from pathlib import Path

import pandas as pd

from experiments.verify import Claim, rows, sentences
from masksearch.bench import load

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
CLAIMS += rows(HERE, CONFIRMED, after="### Ten others")
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
CLAIMS.append(
    Claim(
        "experiments/README.md",
        "on ten checkpoints within {} nats of exhaustive search with {} of 4,096 masks judged; "
        "scores of single heads lose {}, samplers {} and more",
        [REGRET[TRIES], MASKS[TRIES], REGRET[RESTORE], SAMPLERS[0]],
    )
)
OF_NOVELS = ("novels-0", "novels-1", "novels-4", "novels-5")
NOVELS, ALONE = PAGE["cells"]("novels"), PAGE["alone"]()
CLAIMS += rows(HERE, NOVELS, after="### Novels")
CLAIMS += rows(HERE, ALONE, after="### SmolLM2's layers")
TABLES = FOLDER.parents[1] / "masksearch-bench" / "masksearch_bench"
SMOL, *TEXT = (load(TABLES / f"{name}.parquet") for name in ("smollm2-1", *OF_NOVELS))
AT_STAKE = [t.query("0" * 12, "test")["nll"] - t.query("1" * 12, "test")["nll"] for t in TEXT]
MEANS = ALL_COMPARED[ALL_COMPARED.family == "novels"].set_index("selector").regret
UNJUDGED = ["first order", "middle heads", "flip", "last heads", "every n-th head"]
UNJUDGED += ["first heads", "attention mass"]
TEXT_ORACLE = JUDGED[(JUDGED.selector == "exact") & JUDGED.table.str.startswith("novels")].oracle
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
        "heads drawn by hand lose {} to {} on": [MEANS[UNJUDGED].min(), MEANS[UNJUDGED].max()],
        "for one and two layers and then lose up to {} nats": [max(ALONE["leave one out"][1:5])],
        "the optimum of {} with {} masks": [ALONE["exact"][0], ALONE["greedy rounds"][0]],
    },
)
NO_CLAIM: list[tuple[str, str]] = []
