"""Which texts a mask hurts: nDCG@10 with the questions masked alone, the paragraphs alone, both.

    python experiments/23_no_labels/sides.py --data FOLDER

Of one search's masks of SQuAD's part, DAM's and the drawn one that was judged, on some questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import embedder
import lines
import pandas as pd
import run
import texts
import torch

import masksearch as ms

BUDGETS, EVERY = embedder.PLAN["embedder"]["budgets"], 8
KINDS = {"none": (0, 0), "questions": (1, 0), "paragraphs": (0, 1), "both": (1, 1)}  # are masked


def sides(model: embedder.Embedded, masks: Iterable[ms.Mask]) -> Iterator[dict[str, float]]:
    """For each mask nDCG@10 with it on either side, and the mean cosine to the dense embedding."""
    found = texts.squad(model.given.data)
    asked, right = found.questions[::EVERY], torch.tensor(found.right[::EVERY])
    dense = [model.embed(model.model, some) for some in (asked, found.paragraphs)]
    for mask in masks:
        masked = model.masked(mask)
        own = [model.embed(masked, some) for some in (asked, found.paragraphs)]
        either = [*zip(dense, own, strict=True)]  # of questions, of paragraphs
        made = {}
        for name, (ask, there) in KINDS.items():
            scores = either[0][ask] @ either[1][there].T
            made[name] = float(embedder.gains(scores, right).mean())
        for name, (one, other) in zip(("questions", "paragraphs"), either, strict=True):
            made[f"cosine of {name}"] = (one * other).sum(1).mean().item()
        yield made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="squad/")
    parser.add_argument("--runs", type=Path, default=Path("runs/23_no_labels"))
    given = parser.parse_args()
    given.weights, given.smoke = run.offline_model(), False
    given.results = embedder.HERE / "results"
    torch.set_num_threads(1)
    model, named = embedder.Embedded(given, "squad", 0), dict[tuple[float, str], ms.Mask]()
    for budget in BUDGETS:
        name = lines.best_hand(model.lines.lines, budget)
        named[budget, "dam"] = ms.load_mask(model.mask_file("dam", budget))
        named[budget, "drawn"] = model.hand_designed(budget)[name]
    table = []
    for (budget, arm), made in zip(named, sides(model, named.values()), strict=True):
        table.append({"budget": budget, "arm": arm} | made)
        print(table[-1], flush=True)
    path = given.results / "sides.csv"
    pd.DataFrame(table).to_csv(path, index=False, float_format="%.5f")


if __name__ == "__main__":
    main()
