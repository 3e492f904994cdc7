"""Random search at the compute of the TPE and DAM searches of 01_first_search, on test text.

    python experiments/13_random_text/run.py search judge table --data FOLDER [--smoke]

`search` draws masks at random from the space that TPE searched, as many steps each and as many
seeds as `SEARCHES` says; `judge` trains fresh models on fresh seeds under what was found and under
the masks that 01 has kept, and scores them on test text; `table` writes results/. Every stage goes
on where it was stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import masksearch as ms
from masksearch import masks
from masksearch.user_code import load_function

HERE = Path(__file__).parent
EARLIER = HERE.parent / "01_first_search" / "results"
SPACE = HERE.parents[1] / "search_spaces" / "head_shifts.py"
SEARCHES = (100, 101, 102)  # seeds; 100 is that of the searches of 01
STEPS = 400  # of a trial, as in 01, and of the judgement
TRIALS = {"TPE": 10, "DAM": 6}  # whose compute: 10 x 400 steps, and 1,600 + 2 x 400
SEEDS = (10, 11, 12)  # of the judgement; no search has seen them
BY_HAND = masks.per_head(  # one signed offset a head, with a global token, without the diagonal
    [masks.shifts([step]) | masks.global_tokens(1) for step in (-1, 1, -2, 2)]
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=("search", "judge", "table"))
    parser.add_argument("--data", type=Path, required=True, help="holds wikitext-2/")
    parser.add_argument("--runs", type=Path, default=Path("runs/13_random_text"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for stage in given.stages:
        {"search": search, "judge": judge, "table": table}[stage](given)


def evaluator(given: argparse.Namespace) -> ms.MlmEvaluator:
    """The validation loss of 01: its searches were judged by all of these rows."""
    steps = 4 if given.smoke else STEPS
    return ms.MlmEvaluator(
        given.data / "wikitext-2", steps=steps, split="all", precision="bfloat16"
    )


def search(given: argparse.Namespace) -> None:
    """Random search, one run folder a seed."""
    for seed in SEARCHES[:1] if given.smoke else SEARCHES:
        ms.search(
            load_function(f"{SPACE}:space"),
            evaluator(given),
            run=given.runs / f"random_{seed}",
            trials=2 if given.smoke else max(TRIALS.values()),
            strategy="random",
            seed=seed,
        )


def found(runs: Path) -> dict[str, masks.Mask]:
    """The best mask of each random search after as many trials as the other search could pay."""
    best = {}
    for run in sorted(runs.glob("random_*")):
        drawn = [record for record in ms.Study(run).records() if record.scored]
        for other, trials in TRIALS.items():
            first = [record for record in drawn if record.number < trials]
            record = min(first, key=lambda record: record.values["loss"])
            best[f"random {run.name.partition('_')[2]}, as {other}"] = record.mask
    return best


def judge(given: argparse.Namespace) -> None:
    """Loss on test text, from scratch on fresh seeds."""
    chosen = {
        "star": masks.star(),
        "shifts by hand": BY_HAND,
        "TPE": ms.load_mask(EARLIER / "tpe_shifts.json"),
        "DAM": ms.load_mask(EARLIER / "dam.json"),
        **found(given.runs),
    }
    judged = ms.compare(
        chosen,
        replace(evaluator(given), split="test"),
        run=given.runs / "judged",
        seeds=SEEDS[:1] if given.smoke else SEEDS,
        kinds={"shifts by hand": "hand-designed", **dict.fromkeys(list(chosen)[2:], "searched")},
        against="all",
    )
    print(judged.verdict())


def table(given: argparse.Namespace) -> None:
    """One row a training, and the verdict."""
    folder = given.runs / "results" if given.smoke else HERE / "results"
    folder.mkdir(parents=True, exist_ok=True)
    judged = ms.Comparison.open(given.runs / "judged")
    columns = ["mask", "kind", "seed", "sparsity", "loss", "step", "seconds", "expression"]
    scores = judged.frame(per="seed")[columns]
    scores.to_csv(folder / "scores.csv", index=False, float_format="%.5g")
    (folder / "verdict.txt").write_text(judged.verdict() + "\n", encoding="utf-8")
    print(scores.drop(columns="expression").to_string(index=False))


if __name__ == "__main__":
    main()
