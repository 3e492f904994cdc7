"""What methods lose against the best choice, from the losses of all choices and what was judged.

each = regrets(losses, judged)      # one row a checkpoint, method and number of heads
summary(each)                       # one row a method and number of heads
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from masksearch.analysis.stats import estimate

LARGEST = 4  # heads with full attention
EVALUATIONS = 60  # masks that a method may judge
NEAR = 0.01  # nats from the best choice that count as reached


def bits(number: int, heads: int) -> str:
    """A place in the table as one character a head, "1" = it sees everything.

    >>> bits(5, 4)
    '0101'
    """
    return f"{number:0{heads}b}"


def by_hand(heads: int, size: int) -> dict[str, int]:
    """What people draw: the first heads, the last, those in the middle, and evenly spread ones."""
    first = (heads - size) // 2
    picked = {
        "first heads": range(size),
        "last heads": range(heads - size, heads),
        "middle heads": range(first, first + size),
        "every n-th head": [round((at + 0.5) * heads / size - 0.5) for at in range(size)],
    }
    return {name: sum(1 << (heads - 1 - u) for u in some) for name, some in picked.items()}


def regrets(
    losses: Mapping[str, NDArray[np.float32]], judged: Mapping[str, Mapping[str, Sequence[int]]]
) -> pd.DataFrame:
    """One row for each checkpoint, method and budget; `late` is regret without the limit of
    evaluations, where the method went on. Of methods with several search seeds, the mean regret,
    and the median of the evaluations (a seed that never came near counts as infinitely many)."""
    rows = [
        {"checkpoint": name, "budget": size, **row}
        for name, found in losses.items()
        for size in range(1, min(LARGEST, len(found).bit_length() - 1) + 1)
        for row in of_size(found, judged[name], size)
    ]
    return pd.DataFrame(rows)


def of_size(
    losses: NDArray[np.float32], judged: Mapping[str, Sequence[int]], size: int
) -> Iterator[dict[str, Any]]:
    """What each method is above the best choice of at most so many heads."""
    heads = len(losses).bit_length() - 1
    raised = np.array([number.bit_count() for number in range(len(losses))])
    best = float(losses[raised <= size].min())
    yield {"method": "mean choice", "regret": float(losses[raised == size].mean()) - best}
    for name, number in by_hand(heads, size).items():
        yield {"method": name, "regret": float(losses[number]) - best}
    methods: dict[str, list[Sequence[int]]] = {}
    for name, found in judged.items():
        method = name.rstrip("0123456789 ")
        methods.setdefault(method, []).append(found)
    for method, runs in methods.items():
        curves = [curve(losses, found, size) - best for found in runs]
        needed = [next((n for n, r in enumerate(c, 1) if r <= NEAR), np.inf) for c in curves]
        yield {
            "method": method,
            "regret": fmean(float(c[:EVALUATIONS][-1]) for c in curves),
            "late": fmean(float(c[-1]) for c in curves),
            "reached": fmean(n <= EVALUATIONS for n in needed),
            "evaluations": median(needed),
        }


def curve(losses: NDArray[np.float32], found: Sequence[int], size: int) -> NDArray[np.float64]:
    """The least loss of a mask of at most so many heads, after each evaluation; before there is
    one, that of the window everywhere."""
    values = [float(losses[number if number.bit_count() <= size else 0]) for number in found]
    return np.minimum.accumulate([float(losses[0]), *values])[1:]


def summary(each: pd.DataFrame) -> pd.DataFrame:
    """Over the checkpoints: on how many the best choice is reached, and the mean regret with its
    95 % interval by Student's t."""
    rows = []
    for (budget, method), part in each.groupby(["budget", "method"], sort=False):
        found = estimate(part.regret.tolist())
        mean, low, high = found.value, found.low, found.high
        drawn = part.reached.notna().all()
        reached = part.reached if drawn else (part.regret <= NEAR).astype(float)
        rows.append(
            {
                "budget": budget,
                "method": method,
                "checkpoints": len(part),
                "reached": float(reached.sum()),
                "regret": mean,
                "low": low,
                "high": high,
                "evaluations": median(part.evaluations) if drawn else np.nan,
            }
        )
    return pd.DataFrame(rows)


def tables(whole: pd.DataFrame) -> dict[str, dict[str, list[list[float]]]]:
    """What stands in the page's tables: heading -> method -> the numbers of each cell. An interval
    takes three checkpoints; a median of masks is left out where it is infinite."""
    found: dict[str, dict[str, list[list[float]]]] = {"### Regret": {}, "### Reached": {}}
    for line in whole.itertuples():
        ends = [line.low, line.high] if line.checkpoints > 2 else []
        late = [line.evaluations] if np.isfinite(line.evaluations) else []
        cells = [line.regret, *ends], [line.reached, line.checkpoints, *late]
        for heading, cell in zip(found, cells, strict=True):
            found[heading].setdefault(line.method, []).append(cell)
    return found


def on_page(text: str, whole: pd.DataFrame) -> str:
    """The page with its tables made anew, each the last lines below its heading."""
    for heading, rows in tables(whole).items():
        cells = regret_cell if heading == "### Regret" else reached_cell
        lines = [f"| {name} | {' | '.join(map(cells, each))} |" for name, each in rows.items()]
        begin = text.index("\n|---", text.index(heading)) + 1
        begin = text.index("\n", begin) + 1
        end = text.index("\n\n", begin - 1)
        text = text[:begin] + "\n".join(lines) + text[end:]
    return text


def regret_cell(values: Sequence[float]) -> str:
    """Mean and interval."""
    mean, *ends = [f"{value:.3f}".replace("0.", ".", 1) for value in values]
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def reached_cell(values: Sequence[float]) -> str:
    """Checkpoints, and the median of the masks; "-" where that is infinite."""
    count, of, *masks = [f"{value:.1f}".removesuffix(".0") for value in values]
    return f"{count} of {of} ({masks[0] if masks else '-'})"
