"""The tables of README.md, from results/: `python experiments/18_selectors/page.py`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from masksearch.analysis.stats import estimate
from masksearch_bench.table import family_of

RESULTS = Path(__file__).parent / "results"
STRICT = 0.002  # nats
DENSE, NARROW = "one window, bytes at 8,192 positions", "one window, bytes at the text's length"


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
    names = set(pd.read_csv(RESULTS / "judged.csv").table)
    found |= {name: [0, *ends] for name, ends in windows(family, names).items()}
    return dict(sorted(found.items(), key=lambda entry: sum(entry[1][1:13:3])))


def windows(family: str, names: set[str]) -> dict[str, list[float]]:
    """What one window in every unit loses at each budget above exhaustive search's pick, with the
    ends of its interval where there are several tables: of those of some names."""
    each = pd.read_csv(RESULTS / "one_window.csv")
    each = each[(each.table.map(family_of) == family) & each.table.isin(names)]
    found = {}
    for name, part in each.groupby((each["at"] == 8192).map({True: DENSE, False: NARROW})):
        regrets = [own.regret.tolist() for _, own in part.groupby("budget")]
        found[str(name)] = [value for several in regrets for value in means(several)]
    return found


def means(values: list[float]) -> list[float]:
    """Their mean and its 95 % interval; of one value, the value."""
    told = estimate(values) if len(values) > 1 else None
    return values if told is None else [told.value, told.low, told.high]


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
    for name, regrets in windows("smollm2", {"smollm2-1"}).items():
        found[name] = [0, *regrets, sum(regrets) / len(regrets)]
    return dict(sorted(found.items(), key=lambda entry: entry[1][-1]))


def alone_lines() -> list[str]:
    """Rows of that table."""
    return [
        f"| {name} | {judged:.0f} | {' | '.join(f'{each:.3f}' for each in regrets)} |"
        for name, (judged, *regrets) in alone().items()
    ]


def counts(each: pd.DataFrame) -> list[float]:
    """At each budget, and at all, the cells whose regret is within twice the noise, and those
    strictly within `STRICT`."""
    parts = [*(part for _, part in each.groupby("budget")), each]
    return [count for p in parts for count in (p.within.sum(), (p.regret <= STRICT).sum())]


def confirmed() -> dict[str, list[float]]:
    """Selector -> masks judged, counts of checkpoints, mean and worst regret; of the least mean
    regret first."""
    each = pd.read_csv(RESULTS / "confirmed.csv")
    found = {
        str(name): [own.evaluations.mean(), *counts(own), own.regret.mean(), own.regret.max()]
        for name, own in each.groupby("selector")
    }
    return dict(sorted(found.items(), key=lambda entry: entry[1][-2]))


def again() -> dict[str, list[float]]:
    """Selector -> regret on new sequences at each budget and on their mean, with intervals over
    checkpoints; of the least mean first."""
    each = pd.read_csv(RESULTS / "new_tokens.csv")
    found = {}
    for name, own in each.groupby("selector"):
        parts = [part.regret.tolist() for _, part in own.groupby("budget")]
        parts.append(own.groupby("table").regret.mean().tolist())
        found[str(name)] = [value for part in parts for value in means(part)]
    return dict(sorted(found.items(), key=lambda entry: entry[1][-3]))


def counted_again() -> dict[str, list[float]]:
    """Selector -> counts of checkpoints on new sequences, and the worst regret."""
    each = pd.read_csv(RESULTS / "new_tokens.csv").groupby("selector")
    own = {str(name): [*counts(part), part.regret.max()] for name, part in each}
    return {name: own[name] for name in again()}


def several_windows() -> dict[str, list[float]]:
    """Budget -> choices within it, masks that `allocate` judged, and counts of checkpoints: where
    it picks as exhaustive search does, lies within twice the noise of that pick, is better than
    one window, of those where that pick is, and is behind one window on search sequences."""
    found = {}
    for budget, each in pd.read_csv(RESULTS / "levels.csv").groupby("budget"):
        room = each[each.uniform_best > 2 * each.uniform_best_noise]
        found[f"{budget:g}".removeprefix("0")] = [
            *(
                each.choices.iloc[0],
                each.judged.mean(),
                len(each),
                (each.found == each.best).sum(),
            ),
            (each.found_best <= 2 * each.found_best_noise).sum(),
            (room.uniform_found > 2 * room.uniform_found_noise).sum(),
            *(len(room), (each.search_found > each.search_uniform).sum()),
        ]
    return found


def window_tables() -> dict[str, list[float]]:
    """Strategy -> masks judged, and its mean regret over the budgets on tables of four windows."""
    rows = pd.read_csv(RESULTS / "windows_judged.csv")
    found = {}
    for name, each in rows.groupby("selector"):
        regrets = each.groupby("table").regret.mean().tolist()
        found[str(name)] = [each.evaluations.mean(), *means(regrets)]
    return dict(sorted(found.items(), key=lambda entry: entry[1][1]))


def not_nested() -> list[int]:
    """Of all steps from one budget to the next those whose best choices are not nested: by
    calibration, by validation tokens, and by both."""
    rows = pd.read_csv(RESULTS / "windows_best.csv").dropna()
    rows["apart"] = ~rows.nested.astype(bool)
    apart = rows.pivot(index=["table", "budget"], columns="tokens", values="apart")
    return [len(apart), *apart.sum(), apart.all(axis=1).sum()]


def window_lines() -> list[str]:
    """Rows of the table of strategies on tables of four windows."""
    return [
        f"| {name} | {judged:.0f} | {short(mean)} [{short(low)}, {short(high)}] |"
        for name, (judged, mean, low, high) in window_tables().items()
    ]


def short(value: float) -> str:
    """A number of the page."""
    return f"{value:.3f}".replace("0.", ".", 1)


def in_brackets(values: list[float]) -> list[str]:
    """Counts, the second of each pair in brackets."""
    return [f"{values[at]:.0f} ({values[at + 1]:.0f})" for at in range(0, len(values), 2)]


def confirmed_lines() -> list[str]:
    """Rows of the tables of the ten others, and of the new sequences."""
    made = [
        f"| {name} | {judged:.0f} | {' | '.join(in_brackets(told))} | {mean:.4f} | {worst:.3f} |"
        for name, (judged, *told, mean, worst) in confirmed().items()
    ]
    made.append("")
    for name, values in again().items():
        cells = [
            f"{short(values[at])} [{short(values[at + 1])}, {short(values[at + 2])}]"
            for at in range(0, len(values), 3)
        ]
        made.append(f"| {name} | {' | '.join(cells)} |")
    made.append("")
    return made + [
        f"| {name} | {' | '.join(in_brackets(told))} | {worst:.3f} |"
        for name, (*told, worst) in counted_again().items()
    ]


if __name__ == "__main__":
    parts = (lines(), confirmed_lines(), window_lines(), lines("novels"), alone_lines())
    print("\n\n".join(map("\n".join, parts)))
