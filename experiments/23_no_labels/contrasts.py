"""What follows from the lines of results/: what the plan compares, and what each arm keeps.

python experiments/23_no_labels/contrasts.py --data FOLDER
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.with_name("22_as_it_is"))]
import texts  # noqa: E402
from tables import (  # noqa: E402
    Line,
    Model,
    all_lines,
    as_line,
    mean_of_tasks,
    minus,
    named,
    opponent,
    rows_of,
    scored,
)

from masksearch.analysis.row_scores import RowScores  # noqa: E402
from masksearch.analysis.stats import (  # noqa: E402
    PairedDifference,
    estimate,
    holm,
    holm_levels,
    paired_difference,
)
from masksearch.tasks.glue.tasks import find_task, row_scores  # noqa: E402

RESULTS = HERE / "results"
PLAN, PARTS = texts.PLAN, texts.PARTS
TASKS = PLAN["classifiers"]["tasks"]
BUDGETS, MARGIN = PLAN["embedder"]["budgets"], PLAN["margin"]["kept"]
HAND = "hand-designed"  # the mask that the choosing texts prefer, as `opponent` has it
Lines = Mapping[Model, list[Line]]
Rows = Callable[[Line], RowScores]
STS_B = find_task("STS-B")


# -- (a) classifiers ---------------------------------------------------------------------------
def of_arm(lines: Lines, task: str, name: str) -> dict[int, Line]:
    """Seed -> the judged line of the mask of that name, of the models that have ended."""
    return {
        seed: line
        for (of, seed), own in sorted(lines.items())
        if of == task and own[-1]["stage"] == "ended"
        if (line := named(own, "judge", name))
    }


def classifiers(lines: Lines) -> pd.DataFrame:
    """Gates without labels minus gates with them: for each budget the mean over tasks, with p of
    both one-sided tests at the margin and Holm's adjusted ones, and each task by itself."""
    table, means = [], dict[float, PairedDifference]()
    for budget in PLAN["classifiers"]["budgets"]:
        gaps = []
        for task in TASKS:
            sides = [of_arm(lines, task, f"{arm} {budget}") for arm in ("answers", "labels")]
            if len(sides[0].keys() & sides[1].keys()) > 2:
                gaps.append(minus(*sides))
                table.append({"budget": budget, "task": task} | as_line(gaps[-1], *sides))
        if len(gaps) == len(TASKS):
            means[budget] = mean_of_tasks(gaps)
    adjusted = [holm([gap.p_above(-MARGIN, sign) for gap in means.values()]) for sign in (1, -1)]
    for budget, loses, gains in zip(means, *adjusted, strict=True):
        mean = means[budget]
        table.append(
            {"budget": budget, "task": "mean", "difference": mean.value, "low": mean.low,
             "high": mean.high, "models": mean.n, "p_loses_less": loses, "p_gains_less": gains,
             "within": max(loses, gains) < 0.05}
        )  # fmt: skip
    return pd.DataFrame(table)


# -- (b) the embedding model -------------------------------------------------------------------
def judged(lines: Lines, part: str, arm: str, budget: float) -> dict[int, Line]:
    """Seed -> the judged line of an arm's mask; the dense model is judged once for a part."""
    own = {seed: each for (of, seed), each in sorted(lines.items()) if of == part}
    own = {n: each for n, each in own.items() if named(each, "judge", f"dam {budget}")}
    found = {n: named(each, "judge", opponent(each, arm, budget)) for n, each in own.items()}
    if arm == "dense":
        found = dict.fromkeys(found, next(filter(None, found.values()), None))
    return {seed: line for seed, line in found.items() if line}


def by_paragraph(line: Line, paragraphs: Sequence[int]) -> RowScores:
    """A line's gains summed over the questions of each paragraph that has some, so that the mean
    over paragraphs is that over questions."""
    gains = rows_of(line).scores["rows"]
    _, numbers = np.unique(paragraphs, return_inverse=True)
    sums = np.bincount(numbers, weights=gains)
    sums *= len(sums) / len(gains)
    return RowScores({"rows": sums}, {"rows": 1.0}, {"rows": str(len(sums))})


def by_pair(line: Line, scores: Sequence[float]) -> RowScores:
    """Jackknife pseudo-values of Spearman's correlation of a line's cosines with people's scores,
    one a pair."""
    cosines = rows_of(line).scores["rows"]
    rows = row_scores(STS_B, "spearman", cosines.tolist(), scores, line["score"])
    return RowScores({"rows": rows}, {"rows": 1.0}, {"rows": str(len(rows))})


def difference(
    one: Mapping[int, Line], other: Mapping[int, Line], rows: Rows, level: float
) -> PairedDifference:
    """The difference of two arms over searches and over what judges, as `rows` has it."""
    scores = [{seed: line["score"] for seed, line in arm.items()} for arm in (one, other)]
    each = [{seed: rows(line) for seed, line in arm.items()} for arm in (one, other)]
    return paired_difference(*scores, level, rows_a=each[0], rows_b=each[1])


def embedder(lines: Lines, judging: Mapping[str, Rows]) -> pd.DataFrame:
    """DAM minus every other arm, and each arm minus dense; the two planned tests, DAM minus the
    best drawn mask on SQuAD, with Holm's adjusted p and level. Of parts with other texts also DAM
    minus DAM of the first ones, at each of its budgets.

    Args:
        lines: The lines of results/.
        judging: What judges, `"squad"` or `"sts-b"` -> a line's scores row by row.
    """
    table, family = list[Line](), list[Line]()
    for part, budget in product(PARTS, BUDGETS):
        arms = [*PARTS[part]["arms"], HAND]
        pairs = [("dam", arm) for arm in arms[1:]] + [(arm, "dense") for arm in arms]
        compared = {
            " - ".join(pair): [judged(lines, part, arm, budget) for arm in pair] for pair in pairs
        }
        first = part.partition(",")[0]
        for at in BUDGETS if part != first else ():  # it differs in the texts that gates read
            both = [judged(lines, *of) for of in ((part, "dam", budget), (first, "dam", at))]
            compared[f"dam - dam of the first texts, {at}"] = both
        for contrast, sides in compared.items():
            if len(sides[0].keys() & sides[1].keys()) > 1:
                found = {"part": part, "budget": budget, "contrast": contrast}
                gap = difference(*sides, judging[first], 0.95)
                table.append(found | as_line(gap, *sides) | {"level": 0.95})
                if part == "squad" and contrast == f"dam - {HAND}":
                    family.append(table[-1] | {"sides": sides})
    p_values = [each["p"] for each in family]
    for each, p, level in zip(family, holm(p_values), holm_levels(p_values), strict=True):
        sides = each.pop("sides")
        row = table[table.index(each)]
        row |= as_line(difference(*sides, judging["squad"], level), *sides) | {
            "level": level,
            "adjusted_p": p,
        }
    return pd.DataFrame(table)


# -- scores ------------------------------------------------------------------------------------
def kept(lines: Lines) -> pd.DataFrame:
    """The mean score of each mask, over models or searches, and its share of the pairs."""
    found = [
        (task, b, name, of_arm(lines, task, name if name == "dense" else f"{name} {b}"))
        for task, b, name in product(TASKS, BUDGETS, ("dense", "labels", "answers"))
    ]
    found += [(part, b, arm, judged(lines, part, arm, b)) for part, b in product(PARTS, BUDGETS)
              for arm in ("dense", *PARTS[part]["arms"], HAND)]  # fmt: skip
    found += [
        (part, b, "consensus", {0: line})
        for part, b in product(PARTS, BUDGETS)
        for line in scored(lines.get((part, 0), []), "judge", f"dam {b}, consensus")
    ]
    table = []
    for of, budget, arm, own in found:
        if own:
            mean = estimate([line["score"] for line in own.values()])
            shares = [line["density_judged"] for line in own.values()]
            names = Counter(line["name"] for line in own.values())
            table.append(
                {"of": of, "budget": budget, "arm": arm, "n": len(own), "score": mean.value,
                 "low": mean.low, "high": mean.high, "share": sum(shares) / len(own),
                 "mask": names.most_common(1)[0][0]}
            )  # fmt: skip
    return pd.DataFrame(table)


def main() -> None:
    """Prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds squad/ and glue/")
    lines, data = all_lines(RESULTS), parser.parse_args().data
    paragraphs = texts.squad(data).right[:: PARTS["squad"]["every"]]
    judging = {
        "squad": partial(by_paragraph, paragraphs=paragraphs),
        "sts-b": partial(by_pair, scores=texts.sts(data, "dev").scores),
    }
    for name, table in (
        ("classifiers", classifiers(lines)),
        ("embedder", embedder(lines, judging)),
        ("kept", kept(lines)),
    ):
        table.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.5f")
        print(name, table.round(3).to_string(), "", sep="\n")


if __name__ == "__main__":
    main()
