"""What follows from the lines of results/offsets/: DAM against drawn masks without the diagonal.

python experiments/23_no_labels/offset_contrasts.py --data FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import contrasts
import numpy as np
import offsets
import pandas as pd
import texts
from scipy.stats import rankdata
from tables import Line, Model, all_lines, as_line, best, named, rows_of, scored

from masksearch.analysis.row_scores import RowScores, pseudo_values
from masksearch.analysis.stats import PairedDifference, paired_difference

RESULTS = contrasts.RESULTS
ARMS = ("dense", "dam", "offsets", "before", "drawn", "beside")
PAIRS = [("dam", arm) for arm in ARMS[2:]] + [("offsets", "before")]
Lines = Mapping[Model, list[Line]]


def judged(ours: Lines, stored: Lines, part: str, budget: float) -> dict[str, dict[int, Line]]:
    """Arm -> search -> the judged line of its mask. The texts that choose prefer "offsets" of the
    two families, "before" of the list as it was, "drawn" of all; "beside" is read off DAM's."""
    found: dict[str, dict[int, Line]] = {arm: {} for arm in ARMS}
    dense = named(stored[part, 0], "judge", "dense")
    assert dense is not None
    for (of, seed), own in sorted(ours.items()):
        both, hand = [*own, *stored[of, seed]], f"hand {budget}: "
        if of != part or not named(own, "judge", f"{offsets.BESIDE} {budget}"):
            continue
        lists = {"offsets": own, "before": stored[of, seed], "drawn": both}
        names = {arm: best(scored(some, "choice", hand))["name"] for arm, some in lists.items()}
        names |= {"dam": f"dam {budget}", "beside": f"{offsets.BESIDE} {budget}"}
        for arm, name in names.items():
            line = named(both, "judge", name)
            assert line is not None
            found[arm][seed] = line
        found["dense"][seed] = dense
    return found


def of_pairs(line: Line, scores: Sequence[float]) -> RowScores:
    """STS-B's correlation pair by pair: jackknife pseudo-values of the cosines' order."""
    (cosines,) = rows_of(line).scores.values()
    values, n = [], len(cosines)
    for at in range(n):
        others = (rankdata(np.delete(each, at)) for each in (cosines, np.asarray(scores)))
        values.append(np.corrcoef(*others)[0, 1])
    parts = {"rows": pseudo_values(line["score"], np.array(values))}
    return RowScores(parts, {"rows": 1.0}, {"rows": str(n)})


def differences(
    sides: Sequence[Mapping[int, Line]], rows: Mapping[str, RowScores]
) -> dict[str, PairedDifference]:
    """The difference of two arms over searches, and over searches and rows.

    Args:
        sides: Search -> judged line, of two arms.
        rows: Scores row by row of a line, by the word in which the line packs them.
    """
    scores = [{seed: line["score"] for seed, line in side.items()} for side in sides]
    each = [{seed: rows[line["each"]] for seed, line in side.items()} for side in sides]
    both = paired_difference(*scores, rows_a=each[0], rows_b=each[1])
    return {"searches": paired_difference(*scores), "searches and rows": both}


def apart(ours: Lines, stored: Lines, data: Path) -> pd.DataFrame:
    """For each part and budget the differences of `PAIRS`."""
    table, known = [], {}
    pairs, questions = texts.sts(data, "dev"), texts.squad(data)
    paragraphs = questions.right[:: texts.PARTS["squad"]["every"]]
    for part, budgets in offsets.PLAN["parts"].items():
        for budget in budgets:
            arms = judged(ours, stored, part, budget)
            for line in (line for side in arms.values() for line in side.values()):
                if line["each"] not in known:
                    of_squad = part.startswith("squad")
                    how = contrasts.by_paragraph if of_squad else of_pairs
                    known[line["each"]] = how(line, paragraphs if of_squad else pairs.scores)
            for one, other in PAIRS if len(arms["dam"]) > 1 else ():
                sides = arms[one], arms[other]
                for over, gap in differences(sides, known).items():
                    about = {"part": part, "budget": budget, "contrast": f"{one} - {other}"}
                    table.append(about | {"over": over} | as_line(gap, *sides))
    return pd.DataFrame(table)


def kept(ours: Lines, stored: Lines) -> pd.DataFrame:
    """Each arm's mean score and share of the judging texts' pairs, and in how many searches the
    mask has no diagonal, and is of near offsets."""
    table = []
    for part, budgets in offsets.PLAN["parts"].items():
        for budget in budgets:
            for arm, own in judged(ours, stored, part, budget).items():
                if own:
                    line = pd.DataFrame([*own.values()])[["score", "density_judged"]].mean()
                    names = [each["name"] for each in own.values()]
                    table.append(
                        {"part": part, "budget": budget, "arm": arm, "searches": len(own), **line,
                         "without the diagonal": sum("offsets" in name for name in names),
                         "near": sum("near offsets" in name for name in names)}
                    )  # fmt: skip
    return pd.DataFrame(table)


def main() -> None:
    """Prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="squad/, glue/")
    data = parser.parse_args().data
    ours, stored = all_lines(RESULTS / "offsets"), all_lines(RESULTS)
    for name, table in (
        ("apart", apart(ours, stored, data)),
        ("kept", kept(ours, stored)),
    ):
        table.to_csv(RESULTS / f"offsets_{name}.csv", index=False, float_format="%.5f")
        print(table.round(4).to_string(), "\n")


if __name__ == "__main__":
    main()
