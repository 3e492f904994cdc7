"""DAM's masks as files: of each task and budget that of the model on which rows that choose score
it best, and what it keeps there and on the other models of the task. Nothing is run.

    python experiments/22_as_it_is/take.py
"""

from __future__ import annotations

from itertools import product
from statistics import fmean

import pandas as pd
from lines import unpacked
from tables import PLAN, RESULTS, Line, Model, all_lines, judged, named

import masksearch as ms

FOLDER = RESULTS / "masks"
TASKS = {**dict.fromkeys(PLAN["primary"]["tasks"], RESULTS), "QQP": RESULTS / "amended"}


def elsewhere(
    lines: dict[Model, list[Line]], task: str, name: str, seed: int
) -> list[tuple[Line, Line]]:
    """The mask of one model on each of the others of its task, beside dense attention there."""
    own = [each for (of, at), each in lines.items() if of == task and at != seed]
    names = f"{name} of {task} {seed}", "dense"
    pairs = [tuple(named(each, "judge", which) for which in names) for each in own]
    return [pair for pair in pairs if pair[0]]


def take(lines: dict[Model, list[Line]], task: str, budget: float) -> Line:
    """Writes the mask of a task and a budget; its row of masks.csv."""
    name, models = f"dam {budget}", judged(lines, task, "dam", budget)
    choice = {seed: named(lines[task, seed], "choice", name)["score"] for seed in models}
    seed = max(choice, key=choice.__getitem__)
    (search,) = (
        line
        for line in lines[task, seed]
        if (line["stage"], line.get("arm"), line.get("budget")) == ("search", "dam", budget)
    )
    path = ms.save_mask(unpacked(search["mask"]), FOLDER / f"{task}_{100 * budget:.0f}.json")
    others = elsewhere(lines, task, name, seed)
    return {
        "task": task,
        "budget": budget,
        "file": path.name,
        "model": seed,
        "length": PLAN["model"]["length"],
        "share": models[seed]["density_judged"],
        "score": models[seed]["score"],
        "dense": named(lines[task, seed], "judge", "dense")["score"],
        "others": len(others),
        **{
            title: fmean(pair[at]["score"] for pair in others) if others else None
            for at, title in enumerate(("score_of_others", "dense_of_others"))
        },
    }


def main() -> None:
    """Writes the files, and masks.csv."""
    FOLDER.mkdir(exist_ok=True)
    table = pd.DataFrame(
        take(all_lines(results), task, budget)
        for (task, results), budget in product(TASKS.items(), PLAN["primary"]["budgets"])
    )
    table.to_csv(RESULTS / "masks.csv", index=False, float_format="%.5f")
    print(table.to_string())


if __name__ == "__main__":
    main()
