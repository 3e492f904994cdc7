"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import runpy
from pathlib import Path

import pandas as pd

from experiments.verify import Claim, rows, sentences

FOLDER = Path(__file__).parent
HERE = "experiments/18_selectors/README.md"
PAGE = runpy.run_path(str(FOLDER / "page.py"))
CELLS, CONFIRMED = PAGE["cells"](), PAGE["confirmed"]()
COMPARED = pd.read_csv(FOLDER / "results" / "compared.csv")
COMPARED = COMPARED[COMPARED.family == "recall"].set_index("selector")
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
NO_CLAIM: list[tuple[str, str]] = []
