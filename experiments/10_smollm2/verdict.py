"""The tables of README.md, from results/: do searched layers lose less than hand-designed masks?

    python experiments/10_smollm2/verdict.py

Differences are paired over novels, with 95 % intervals by Student's t; those of several budgets
are corrected together (Holm), and so are their intervals.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from masksearch.analysis.stats import PairedDifference, correct_family, estimate, paired_difference
from masksearch.masks.baselines import SINKS, WIDEST

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
DRAWN = ("first", "middle", "last", "every n-th", "every n-th, shifted")  # sets of full layers
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
        """The arm that is best on the validation split."""
        at = self.layers[self.layers.full_layers == budget].set_index("arm")
        return f"{at.search_nll.idxmin()} {budget}"

    def reach(self, budget: int) -> int:
        """Of the one window of a budget, in positions: the largest of no more bytes."""
        kept = self.stages["windows"].kv_bytes[f"{WIDEST} {budget}"] * PLAN["text"]["length"]
        return round(kept) - SINKS

    def full_layers(self, budget: int) -> tuple[str, list[int]]:
        """That arm, and the layers that its mask keeps full."""
        arm = self.searched(budget).rsplit(" ", 1)[0]
        at = self.layers[(self.layers.arm == arm) & (self.layers.full_layers == budget)]
        return arm, json.loads(at.layers.iloc[0])

    def drawn(self, budget: int) -> str:
        """The pattern that is best on the validation split."""
        names = [f"{pattern} {budget}" for pattern in DRAWN]
        return str(self.stages["drawn"].loc[names, "nll"].idxmin())

    def against(self, budget: int, level: float, stage: str = "judged") -> PairedDifference:
        """The best searched mask minus the best drawn one."""
        best = self.novels(self.searched(budget), stage), self.novels(self.drawn(budget), stage)
        return paired_difference(*best, level)


def tables(results: Results) -> dict[str, str]:
    """Heading -> Markdown."""
    return {
        "Against one window in every layer": against_window(results),
        "Against hand-designed full layers": against_drawn(results),
        "Every arm": every_arm(results),
        "At twice the length": at_length(results),
        "After recovery": after_recovery(results),
        "The layers": chosen(results),
    }


def window_minus_searched(
    results: Results, budget: int, level: float, stage: str = "windows"
) -> PairedDifference:
    """One window in every layer minus the searched layers, judged side by side."""
    pair = (f"{WIDEST} {budget}", results.searched(budget))
    return paired_difference(*(results.novels(name, stage) for name in pair), level)


def with_primary(
    results: Results, difference: Callable[[int, float], PairedDifference]
) -> dict[int, tuple[PairedDifference, float]]:
    """Budget -> difference and p: the primary one by itself, the others as a family (Holm)."""
    others = [budget for budget in results.budgets if budget != PRIMARY]
    found = dict(zip(others, correct_family(others, difference), strict=True))
    primary = difference(PRIMARY, 0.95)
    return found | {PRIMARY: (primary, primary.p_value)}


def against_window(results: Results) -> str:
    """A line for each budget."""
    found = with_primary(results, partial(window_minus_searched, results))
    lines = []
    for budget in results.budgets:
        best, (difference, p_value) = results.searched(budget), found[budget]
        window = results.stages["windows"].loc[f"{WIDEST} {budget}"]
        lines.append(
            [
                f"{budget}, primary" if budget == PRIMARY else str(budget),
                f"{best.rsplit(' ', 1)[0]} {mean(results, best, 'windows'):.3f}",
                f"{100 * results.stages['windows'].kv_bytes[best]:.1f} %",
                f"window({results.reach(budget)}) {window.nll:.3f}",
                f"{100 * window.kv_bytes:.1f} %",
                shown(difference),
                f"{p_value:.1g}",
            ]
        )
    head = [
        "full layers",
        "searched",
        "bytes",
        "one window",
        "bytes",
        "window minus searched",
        "p",
    ]
    return markdown(head, lines)


def against_drawn(results: Results) -> str:
    """A line for each budget: the primary one by itself, the others as a family."""
    found = with_primary(results, results.against)
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
    head = ["full layers", "bytes", "searched", "hand-designed", "difference", "p", "searched is"]
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
    for name, stage in (
        ("dense", "windows_longer"),
        (f"{WIDEST} {PRIMARY}", "windows_longer"),
        (best, "windows_longer"),
        (hand, "longer"),
        ("all local", "longer"),
    ):
        pair = results.novels(name, stage), results.novels(best, stage)
        difference = "" if name == best else shown(paired_difference(*pair, 0.95))
        cost = f"{100 * results.stages[stage].kv_bytes[name]:.1f} %"
        lines.append([name, cost, f"{mean(results, name, stage):.3f}", difference])
    return markdown(["layers by", "bytes", "nats a token", f"minus {best}"], lines)


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
    if "windows_recovered" not in results.stages:
        return markdown(
            ["layers by", "as it is", "after recovery", "minus dense, recovered"], lines
        )
    window = f"{WIDEST} {PRIMARY}"
    before, after = mean(results, window, "windows"), results.novels(window, "windows_recovered")
    left = shown(paired_difference(after, dense, 0.95))
    lines.append([window, f"{before:.3f}", f"{estimate(list(after.values())).value:.3f}", left])
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
