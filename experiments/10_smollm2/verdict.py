"""The tables of README.md, from results/: do searched layers lose less than those drawn by hand?

    python experiments/10_smollm2/verdict.py

Differences are paired over novels, with 95 % intervals by Student's t; those of several budgets
are corrected together (Holm), and so are their intervals.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from masksearch.analysis.stats import PairedDifference, correct_family, estimate, paired_difference

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
DRAWN = ("first", "middle", "last", "every n-th", "every n-th, shifted")
PRIMARY = PLAN["masks"]["primary"]


class Results:
    """What stands in a results folder."""

    def __init__(self, folder: Path) -> None:
        self.stages = {
            path.stem: pd.read_csv(path).set_index("mask")
            for path in folder.glob("*.csv")
            if path.stem != "layers"
        }
        self.layers = pd.read_csv(folder / "layers.csv")
        self.native = json.loads((folder / "native.json").read_text(encoding="utf-8"))
        self.arms = list(dict.fromkeys(self.layers.arm))
        self.budgets = sorted(set(self.layers.full_layers))

    def novels(self, mask: str, stage: str = "judged") -> dict[int, float]:
        """Nats a token on every novel."""
        line = self.stages[stage].filter(like="novel_").loc[mask]
        return dict(enumerate(line.dropna()))

    def random(self, budget: int, stage: str = "judged") -> dict[int, float]:
        """The mean over the sets of layers that were drawn at random."""
        names = [name for name in self.stages[stage].index if name.startswith("random layers")]
        draws = [self.novels(name, stage) for name in names if name.endswith(f" {budget}")]
        return {novel: sum(draw[novel] for draw in draws) / len(draws) for novel in draws[0]}

    def searched(self, budget: int) -> str:
        """The arm that is best on the search half."""
        at = self.layers[self.layers.full_layers == budget].set_index("arm")
        return f"{at.search_nll.idxmin()} {budget}"

    def full_layers(self, budget: int) -> tuple[str, list[int]]:
        """That arm, and the layers that its mask keeps full."""
        arm = self.searched(budget).rsplit(" ", 1)[0]
        at = self.layers[(self.layers.arm == arm) & (self.layers.full_layers == budget)]
        return arm, json.loads(at.layers.iloc[0])

    def drawn(self, budget: int) -> str:
        """The pattern that is best on the search half."""
        names = [f"{pattern} {budget}" for pattern in DRAWN]
        return str(self.stages["drawn"].loc[names, "nll"].idxmin())

    def against(self, budget: int, level: float, stage: str = "judged") -> PairedDifference:
        """The best searched mask minus the best drawn one."""
        best = self.novels(self.searched(budget), stage), self.novels(self.drawn(budget), stage)
        return paired_difference(*best, level)


def tables(results: Results) -> dict[str, str]:
    """Heading -> Markdown."""
    return {
        "Against those drawn by hand": against_drawn(results),
        "Every arm": every_arm(results),
        "At twice the length": at_length(results),
        "After recovery": after_recovery(results),
        "The layers": chosen(results),
    }


def against_drawn(results: Results) -> str:
    """A line for each budget: the primary one by itself, the others as a family."""
    others = [budget for budget in results.budgets if budget != PRIMARY]
    found = dict(zip(others, correct_family(others, results.against), strict=True))
    primary = results.against(PRIMARY, 0.95)
    found[PRIMARY] = primary, primary.p_value
    lines = []
    for budget in results.budgets:
        best, hand = results.searched(budget), results.drawn(budget)
        difference, p_value = found[budget]
        outcome = "not distinguishable"
        if p_value <= 0.05:
            outcome = "better" if difference.value < 0 else "worse"
        lines.append(
            [
                f"{budget}, primary" if budget == PRIMARY else str(budget),
                f"{100 * results.stages['judged'].kv_bytes[hand]:.0f} %",
                *(f"{name.rsplit(' ', 1)[0]} {mean(results, name):.3f}" for name in (best, hand)),
                shown(difference),
                f"{p_value:.1g}",
                outcome,
            ]
        )
    head = ["full layers", "bytes", "searched", "drawn by hand", "difference", "p", "searched is"]
    return markdown(head, lines)


def every_arm(results: Results) -> str:
    """Nats above dense at every budget."""
    dense = mean(results, "dense")
    rows: dict[str, list[float]] = {}
    for arm in results.arms:
        rows[arm] = [mean(results, f"{arm} {budget}") for budget in results.budgets]
    for name in DRAWN:
        rows[name] = [mean(results, f"{name} {budget}") for budget in results.budgets]
    draws = [results.random(budget) for budget in results.budgets]
    rows["random layers"] = [sum(draw.values()) / len(draw) for draw in draws]
    lines = [[name, *(f"{value - dense:.3f}" for value in row)] for name, row in rows.items()]
    return markdown(["layers by", *map(str, results.budgets)], lines)


def at_length(results: Results) -> str:
    """The primary budget at a length that no search has seen."""
    best, hand = results.searched(PRIMARY), results.drawn(PRIMARY)
    lines = []
    for name in ("dense", best, hand, "all local"):
        pair = results.novels(name, "longer"), results.novels(hand, "longer")
        difference = "" if name == hand else shown(paired_difference(*pair, 0.95))
        lines.append([name, f"{mean(results, name, 'longer'):.3f}", difference])
    return markdown(["layers by", "nats a token", f"minus {hand}"], lines)


def after_recovery(results: Results) -> str:
    """Before and after, and what is left of the distance to dense, trained as long."""
    dense, lines = results.novels("dense", "recovered"), []
    names = {name: results.novels(name, "recovered") for name in results.stages["recovered"].index}
    names[results.native["mask"]] = dict(enumerate(results.native["novels"]))
    for name, after in names.items():
        stage = "bare" if name == results.native["mask"] else "judged"
        left = "" if name == "dense" else shown(paired_difference(after, dense, 0.95))
        loss = estimate(list(after.values())).value
        lines.append([name, f"{mean(results, name, stage):.3f}", f"{loss:.3f}", left])
    return markdown(["layers by", "as it is", "after recovery", "minus dense, recovered"], lines)


def chosen(results: Results) -> str:
    """The full layers of the best searched mask of each budget."""
    lines = []
    for budget in results.budgets:
        arm, full = results.full_layers(budget)
        lines.append([str(budget), arm, " ".join(map(str, full))])
    return markdown(["full layers", "by", "which, of 0 to 29"], lines)


def mean(results: Results, mask: str, stage: str = "judged") -> float:
    """Nats a token."""
    return float(results.stages[stage].nll[mask])


def shown(difference: PairedDifference) -> str:
    """With its interval."""
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def markdown(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    for heading, table in tables(Results(HERE / "results")).items():
        print(f"### {heading}\n\n{table}\n")
