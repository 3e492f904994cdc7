"""Masks of the embedding model as files: of each part and budget one of the arm that is ahead, of
the amendment's DAM's.

python experiments/23_no_labels/take.py --data FOLDER

Of several searches it is the one whose mask the choosing texts prefer, which judge nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import contrasts
import embedder
import lines
import pandas as pd
import run
import tables

import masksearch as ms

ARMS = {"sts-b": "dam", "squad": contrasts.HAND, "squad, paragraphs": "dam"}
TAKEN = [
    (part, arm, budget)
    for part, arm in ARMS.items()
    for budget in contrasts.PARTS[part].get("budgets", contrasts.BUDGETS)
]
FOLDER = contrasts.RESULTS / "masks"


def preferred(found: contrasts.Lines, part: str, arm: str, budget: float) -> tuple[int, str]:
    """The search whose mask of an arm the choosing texts prefer, and its name."""
    judged = contrasts.judged(found, part, arm, budget)
    chosen = {
        seed: tables.named(found[part, seed], "choice", line["name"])
        for seed, line in judged.items()
    }
    seed = max(chosen, key=lambda each: chosen[each]["score"])
    return seed, judged[seed]["name"]


def main() -> None:
    """Writes the files, and masks.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds wikitext-2/")
    parser.add_argument("--runs", type=Path, default=Path("runs/23_no_labels"))
    given = parser.parse_args()
    given.weights, given.results, given.smoke = run.offline_model(), contrasts.RESULTS, False
    found, table = tables.all_lines(contrasts.RESULTS), []
    FOLDER.mkdir(exist_ok=True)
    for part, arm, budget in TAKEN:
        seed, name = preferred(found, part, arm, budget)
        model = embedder.Embedded(given, part, seed)
        if arm == "dam":
            (line,) = model.lines.of(stage="search", arm=arm, budget=budget)
            mask = lines.unpacked(line["mask"])
        else:
            mask = model.hand_designed(budget)[name]
        path = ms.save_mask(mask, FOLDER / f"{part.replace(', ', '_')}_{100 * budget:.0f}.json")
        judged = tables.named(found[part, seed], "judge", name)
        share, length = judged["density_judged"], model.plan["length"]
        table.append(
            {"of": part, "budget": budget, "file": path.name, "arm": arm, "search": seed,
             "length": length, "share": share, "score": judged["score"]}
        )  # fmt: skip
    frame = pd.DataFrame(table)
    frame.to_csv(contrasts.RESULTS / "masks.csv", index=False, float_format="%.5f")
    print(frame.to_string())


if __name__ == "__main__":
    main()
