"""Which texts a mask hurts: nDCG@10 with the questions masked alone, the paragraphs alone, both.

    python experiments/23_no_labels/sides.py --data FOLDER

Of one search's masks of SQuAD's part, DAM's and the drawn one that was judged, on some questions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import embedder
import lines
import pandas as pd
import run
import texts
import torch

import masksearch as ms

BUDGETS, EVERY = embedder.PLAN["embedder"]["budgets"], 8


def sides(model: embedder.Embedded, mask: ms.Mask) -> dict[str, float]:
    """nDCG@10 of a mask on either side, and the mean cosine to the dense embedding there."""
    found = texts.squad(model.given.data)
    asked, right = found.questions[::EVERY], torch.tensor(found.right[::EVERY])
    masked = model.masked(mask)
    dense = [model.embed(model.model, some) for some in (asked, found.paragraphs)]
    own = [model.embed(masked, some) for some in (asked, found.paragraphs)]
    kinds = {"none": (0, 0), "questions": (1, 0), "paragraphs": (0, 1), "both": (1, 1)}
    made = {}
    for name, (ask, there) in kinds.items():
        one, other = (own if ask else dense)[0], (own if there else dense)[1]
        made[name] = float(embedder.gains(one @ other.T, right).mean())
    cosines = [(a * b).sum(1).mean().item() for a, b in zip(own, dense, strict=True)]
    return made | dict(zip(("cosine of questions", "cosine of paragraphs"), cosines, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="squad/")
    parser.add_argument("--runs", type=Path, default=Path("runs/23_no_labels"))
    given = parser.parse_args()
    given.weights, given.smoke = run.offline_model(), False
    given.results = embedder.HERE / "results"
    torch.set_num_threads(1)
    model, table = embedder.Embedded(given, "squad", 0), []
    for budget in BUDGETS:
        name = lines.best_hand(model.lines.lines, budget)
        drawn = model.hand_designed(budget)[name]
        for arm, mask in (("dam", ms.load_mask(model.mask_file("dam", budget))), ("drawn", drawn)):
            table.append({"budget": budget, "arm": arm} | sides(model, mask))
            print(table[-1], flush=True)
    path = given.results / "sides.csv"
    pd.DataFrame(table).to_csv(path, index=False, float_format="%.5f")


if __name__ == "__main__":
    main()
