"""The tables of README.md, from results/: `python experiments/18_selectors/page.py`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"


def of_family(name: str, family: str) -> pd.DataFrame:
    """The rows of one family in a file of results."""
    each = pd.read_csv(RESULTS / f"{name}.csv")
    return each[each.family == family]


def cells(family: str = "recall") -> dict[str, list[float]]:
    """Selector -> the numbers of its row, of the least mean regret first: masks judged; at each
    budget the mean regret and its interval; Holm's p against the first that is not exhaustive."""
    whole = of_family("summary", family).set_index("selector")
    found = {}
    for row in of_family("compared", family).itertuples():
        parts = whole.loc[row.selector].sort_values("budget")
        regrets = parts[["regret", "low", "high"]].to_numpy().ravel().tolist()
        p = [] if pd.isna(row.p) or family != "recall" else [row.p]  # four pairs show nothing
        found[str(row.selector)] = [row.evaluations, *regrets, *p]
    return found


def lines(family: str = "recall") -> list[str]:
    """Rows of the page."""
    made = []
    for name, (judged, *values) in cells(family).items():
        told = [f"{value:.3f}".replace("0.", ".", 1) for value in values]
        tail = [] if family != "recall" else told[12:] or ["-"]
        regrets = [f"{told[at]} [{told[at + 1]}, {told[at + 2]}]" for at in range(0, 12, 3)]
        made.append(f"| {name} | {judged:.0f} | {' | '.join([*regrets, *tail])} |")
    return made


def alone() -> dict[str, list[float]]:
    """The same of SmolLM2, one table, which has no interval: masks judged, regrets, and their
    mean."""
    found = {
        str(name): [part.evaluations.mean(), *part.regret, part.regret.mean()]
        for name, part in of_family("summary", "smollm2").groupby("selector")
    }
    return dict(sorted(found.items(), key=lambda entry: entry[1][-1]))


def alone_lines() -> list[str]:
    """Rows of that table."""
    return [
        f"| {name} | {judged:.0f} | {' | '.join(f'{each:.3f}' for each in regrets)} |"
        for name, (judged, *regrets) in alone().items()
    ]


def confirmed() -> dict[str, list[float]]:
    """Selector -> masks judged, checkpoints within twice the noise at each budget, mean and worst
    regret; of the least mean regret first."""
    each = pd.read_csv(RESULTS / "confirmed.csv")
    found = {}
    for name, own in each.groupby("selector"):
        within = own.groupby("budget").within.sum().tolist()
        found[str(name)] = [own.evaluations.mean(), *within, own.regret.mean(), own.regret.max()]
    return dict(sorted(found.items(), key=lambda entry: entry[1][-2]))


def confirmed_lines() -> list[str]:
    """Rows of the page's second table."""
    return [
        f"| {name} | {judged:.0f} | {' | '.join(map(str, within))} | {mean:.4f} | {worst:.3f} |"
        for name, (judged, *within, mean, worst) in confirmed().items()
    ]


if __name__ == "__main__":
    print("\n".join([*lines(), "", *confirmed_lines(), "", *lines("novels"), "", *alone_lines()]))
