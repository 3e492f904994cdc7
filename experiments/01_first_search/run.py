"""First search on real text: two spaces and DAM on WikiText-2, judged on GLUE.

    python experiments/01_first_search/run.py STAGE... --data FOLDER [--smoke]

Stages: band, shifts, dam (searches by validation loss), controls and compare (validation loss
and GLUE), rates (does the order hold when every arm has its own learning rate), long (and with
a longer run). Every stage resumes where it stopped; `tables` writes results/*.csv.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Record
from masksearch.user_code import load_function

HERE = Path(__file__).parent
SPACES = HERE.parent.parent / "search_spaces"
TRIALS = 10  # masks of each TPE search
SEARCH_STEPS = 400  # of a search's trial, about 1.3 minutes on one core
STEPS = 800  # of the comparison, about 2.5 minutes
LONG = 1_600  # of the longest run
SEARCH_SEED = 100  # the comparison uses other seeds than the search
SEEDS = (0, 1)
RATES = (1e-3, 4e-3)  # beside the default of 2e-3
TASKS = ("SST-2", "QQP", "MNLI")
ROWS, DEV_ROWS = 4_000, 1_000
DAM_GATES = {"structure": "toeplitz+global", "signed": True, "layers": 2}
DAM_CONFIG = {"steps": 1_600, "dense_warmup": 0.0625, "anneal": 0.4, "density": 0.031, "clip": 1.0}
DAM_DENSITIES = (0.031, 0.022)
BY_HAND = masks.per_head(  # one signed offset a head, with a global token, without the diagonal
    [masks.shifts([step]) | masks.global_tokens(1) for step in (-1, 1, -2, 2)]
)

KINDS = {
    "shifts by hand": "hand-designed",
    "random keys": "control",
    **dict.fromkeys(("tpe band", "tpe shifts", "dam"), "searched"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="holds wikitext-2/ and glue/")
    parser.add_argument("--runs", type=Path, default=Path("runs/01_first_search"))
    parser.add_argument("--slots", type=int, default=1, help="worker processes")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Experiment(arguments.data, arguments.runs, arguments.slots, arguments.smoke)
    for stage in arguments.stages:
        getattr(experiment, stage)()


class Experiment:
    """The stages; each is a study of its own below `runs`."""

    def __init__(self, data: Path, runs: Path, slots: int, smoke: bool) -> None:
        self.runs, self.smoke = runs, smoke
        self.executor = ms.Local(slots, threads=1)
        self.steps, self.trials = (4, 2) if smoke else (STEPS, TRIALS)
        self.text = ms.MlmEvaluator(data / "wikitext-2", steps=self.steps, split="all")
        self.search_text = replace(self.text, steps=4 if smoke else SEARCH_STEPS)
        self.data = data

    @property
    def glue(self) -> ms.GlueEvaluator:
        """Pre-training as in the searches, then fine-tuning on three tasks."""
        return ms.GlueEvaluator(
            self.data / "wikitext-2",
            glue=self.data / "glue",
            tasks=TASKS,
            steps=self.steps,
            rows=64 if self.smoke else ROWS,
            dev_rows=64 if self.smoke else DEV_ROWS,
            epochs=1 if self.smoke else 3,
            split="all",  # the recorded runs were judged by all rows
        )

    def searched(self, name: str) -> ms.Study:
        return ms.search(
            load_function(f"{SPACES / name}.py:space"),
            self.search_text,
            run=self.runs / name,
            trials=self.trials,
            strategy="tpe",
            seed=SEARCH_SEED,
            listeners=[say],
        )

    def band(self) -> ms.Study:
        return self.searched("band_global")

    def shifts(self) -> ms.Study:
        return self.searched("head_shifts")

    def dam(self) -> ms.Study:
        config = {**DAM_CONFIG, "steps": 8} if self.smoke else DAM_CONFIG
        return ms.search(
            None,
            self.search_text,
            run=self.runs / "dam",
            trials=1 + len(DAM_DENSITIES),
            strategy="dam",
            strategy_options={
                "gates": DAM_GATES,
                "config": config,
                "densities": DAM_DENSITIES,
            },
            seed=SEARCH_SEED,
            listeners=[say],
        )

    def known(self) -> dict[str, masks.Mask]:
        """Dense, the six families, one mask by hand, random keys as sparse as star."""
        return {
            "dense": masks.full(),
            **masks.FAMILIES,
            "shifts by hand": BY_HAND,
            "random keys": masks.random_keys(5, seed=1),
        }

    def found(self) -> dict[str, masks.Mask]:
        """What the three searches found."""
        return {
            "tpe band": self.band().best().mask,
            "tpe shifts": self.shifts().best().mask,
            "dam": self.dam().best().mask,
        }

    def judged(self, candidates: dict[str, masks.Mask]) -> ms.Comparison:
        """Validation loss and GLUE, on fresh seeds."""
        return ms.compare(
            candidates,
            self.glue,
            run=self.runs / "compare",
            seeds=SEEDS,
            kinds={name: kind for name, kind in KINDS.items() if name in candidates},
            executor=self.executor,
            listeners=[say],
        )

    def controls(self) -> None:
        self.judged(self.known())

    def compare(self) -> None:
        print(self.judged({**self.known(), **self.found()}).verdict())

    def arms(self) -> dict[str, masks.Mask]:
        chosen = {**self.known(), **self.found()}
        return {name: chosen[name] for name in ("dense", "star", "tpe shifts")}

    def rates(self) -> None:
        for rate in RATES:
            evaluator = replace(self.text, lr=rate)
            run = self.runs / f"rate_{rate:g}"
            self.alone(evaluator, run)

    def long(self) -> None:
        evaluator = replace(self.text, steps=8 if self.smoke else LONG)
        self.alone(evaluator, self.runs / "long")

    def alone(self, evaluator: ms.MlmEvaluator, run: Path) -> None:
        """Validation loss only, one seed."""
        ms.compare(
            self.arms(),
            evaluator,
            run=run,
            seeds=SEEDS[:1],
            executor=self.executor,
            listeners=[say],
        )

    def tables(self) -> None:
        """Small files only: one row a trial, without masks' bits."""
        folder = HERE / "results" if not self.smoke else self.runs / "results"
        folder.mkdir(parents=True, exist_ok=True)
        for run in sorted(path.parent for path in self.runs.glob("*/study.db")):
            study = ms.Study(run)
            frame = study.frame().drop(columns=["error", "fingerprint"])
            frame.to_csv(folder / f"{run.name}.csv", index=False, float_format="%.5g")
            print(run.name, len(frame))
        judged = ms.Comparison.open(self.runs / "compare")
        by_loss = replace(judged, objectives=self.text.objectives)
        text = f"Validation loss\n\n{by_loss.verdict()}\n\nTasks\n\n{judged.verdict()}\n"
        (folder / "verdict.txt").write_text(text, encoding="utf-8")
        for name, mask in self.found().items():
            ms.save_mask(mask, folder / f"{name.replace(' ', '_')}.json")


def say(record: Record) -> None:
    values = "  ".join(f"{name} {value:.4f}" for name, value in record.values.items())
    name = record.name or str(record.mask)
    sparsity = record.measures.get("sparsity", float("nan"))
    print(
        f"{record.origin} {record.number} {record.status} seed {record.seed} {name} "
        f"sparsity {sparsity:.4f}  {values}  {record.seconds:.0f} s {record.error[-300:]}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
