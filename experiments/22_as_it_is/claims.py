"""What the pages say of this experiment, from its plan and from results/: see
experiments/verify.py."""

import runpy
from pathlib import Path
from types import SimpleNamespace

from experiments.verify import sentences

HERE = "experiments/22_as_it_is/README.md"
ours = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "tables.py")))
PLAN = ours.PLAN
ROWS, ARMS = PLAN["rows"], PLAN["arms"]
PAGE = {
    "Tasks: SST-2, QNLI and STS-B, with {} dense models each: MiniLM (6 layers, 12 heads) in "
    "transformers' own class, one epoch of at most {} rows. QQP comes after them; neither of its "
    "two draws is GLUE's split.": [len(PLAN["seeds"]["models"]), ROWS["train"]],
    "non-padding query-key pairs of the training rows: {} and {} %.": [
        100 * budget for budget in PLAN["primary"]["budgets"]
    ],
    "Arms, all on the frozen model and told the budget: DAM (free gates, {} steps); first-order "
    "effects in {} rounds; random search and TPE in "
    "[head_roles](../../search_spaces/head_roles.py)"
    " at equal tokens; attention weights, of pairs and of whole heads; random keys.": [
        ARMS["dam"]["options"]["config"]["steps"],
        ARMS["prune"]["options"]["rounds"],
    ],
    "Rows: searches read {} rows held out of the training file. Another {}, that no search reads, "
    "choose the opponents: the best hand-designed mask and the best of the other searches, for "
    "each model. Development rows judge, at most {} a task, once all is chosen.": [
        *(ROWS["held_out"] / 2, ROWS["held_out"] / 2, ROWS["judge"]),
    ],
    "SST-2's phrases have {} words or more, as its judging sentences have.": [
        PLAN["tasks"]["SST-2"]["least_words"]
    ],
    "sequences of at most {} tokens. A share of pairs is no time.": [PLAN["model"]["length"]],
}
CLAIMS = sentences(HERE, PAGE)
NO_CLAIM = [
    (HERE, "which masks keep the score, the searched ones or those that people draw?"),
    (HERE, "Hand-designed: every mask of `masks.equal_cost_baselines`, published families and "
     "whole heads."),
    (HERE, "One checkpoint of 6 layers;"),
    (HERE, "STS-B's judging rows have judged experiments 11, 12, 15, 19 and 21, and DAM's "
     "settings come from these."),
]  # fmt: skip
