"""Is the diagonal of self-attention needed, and which positions matter? See README.md.

    python experiments/02_importance/run.py STAGE... --data FOLDER [--runs FOLDER] [--smoke]

Stages: approximation (small maps, needs no data), planted and text (masks without their
diagonal against masks without as many other cells; they resume where they stopped), importance
(which positions matter to a dense model, on both).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from approximation import approximation
from controls import Test, controls
from profiles import Subject, profiles

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Record
from masksearch.tasks.planted.process import PlantedProcess

HERE = Path(__file__).parent
STAGES = ("approximation", "planted", "text", "importance")
PLANTED_SEEDS = range(16)
PLANTED_MARGINS = {"score": 0.02, "loss": 0.02}  # accuracy in [0, 1]; nats
TEXT = {"length": 16, "vocabulary": 1024, "batch": 64, "split": "all"}
TEXT |= {"steps": 600, "lr": 2e-3}  # dense leaves its plateau
TEXT_SEEDS = range(6)
TEXT_MARGINS = {"loss": 0.05}  # nats; the families of 01_first_search lie .02 to 1.3 apart
PROFILE_STEPS = {"planted": 500, "text": 600}
PROFILE_SEEDS = range(4)


def main() -> None:
    """Runs the stages that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--data", type=Path, help="holds wikitext-2/; for text")
    parser.add_argument("--runs", type=Path, default=Path("runs/02_importance"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    stages = given.stages or STAGES
    if unknown := set(stages) - set(STAGES):
        parser.error(f"unknown stages {sorted(unknown)}; known: {', '.join(STAGES)}")
    if given.data is None and {"text", "importance"} & set(stages):
        parser.error("text and importance need --data FOLDER, which holds wikitext-2/")
    torch.set_num_threads(1)
    out = given.runs / "results" if given.smoke else HERE / "results"
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if stage == "approximation":
            approximation(out, given.smoke)
        elif stage == "planted":
            controls(planted(given.smoke), given.runs, out, say)
        elif stage == "text":
            controls(text(given.data, given.smoke), given.runs, out, say)
        else:
            for subject in subjects(given.data, given.smoke):
                profiles(subject, out)


def planted(smoke: bool) -> Test:
    """One attention layer, a planted partner 11 positions away; each test's truth is known."""
    process = PlantedProcess()
    evaluator = ms.PlantedEvaluator(process, split="all", **({"steps": 4} if smoke else {}))
    return Test(
        "planted",
        evaluator,
        whole={
            "dense": masks.full(),
            "star + partner": masks.star() | masks.offsets(process.offsets),
        },
        needed=masks.shifts(process.offsets),
        needed_name="later partner",
        seeds=range(2) if smoke else PLANTED_SEEDS,
        margins=PLANTED_MARGINS,
    )


def text(data: Path, smoke: bool) -> Test:
    """WikiText-2, two layers."""
    evaluator = ms.MlmEvaluator(data / "wikitext-2", **{**TEXT, **({"steps": 4} if smoke else {})})
    return Test(
        "text",
        evaluator,
        whole={"dense": masks.full(), "star": masks.star()},
        needed=masks.shifts([1]),
        needed_name="next position",
        seeds=range(2) if smoke else TEXT_SEEDS,
        margins=TEXT_MARGINS,
    )


def subjects(data: Path, smoke: bool) -> list[Subject]:
    """Dense models: on the planted process, where the truth is known, and on WikiText-2."""
    judged = 64 if smoke else 512  # held-out sequences
    planted = ms.PlantedEvaluator(batch=64, held_out_sequences=judged)
    keys = range(planted.process.mask_id + 1, planted.process.ids)
    text = ms.MlmEvaluator(data / "wikitext-2", **TEXT, held_out_sequences=judged)
    marks = text.task().corpus.special
    seeds = range(2) if smoke else PROFILE_SEEDS
    steps = {"planted": 3, "text": 3} if smoke else PROFILE_STEPS
    return [
        Subject("planted", planted, {"the key": list(keys)}, (-11, -1, 0, 1, 11),
                steps["planted"], seeds),
        Subject("text", text, {"[CLS]": [marks["cls"]], "[SEP]": [marks["sep"]]},
                (-2, -1, 0, 1, 2), steps["text"], seeds),
    ]  # fmt: skip


def say(record: Record) -> None:
    """One line a run."""
    values = "  ".join(f"{name} {value:.4f}" for name, value in record.values.items())
    print(
        f"seed {record.seed} {record.name} {record.status}  {values}  "
        f"{record.seconds:.0f} s {record.error[-300:]}",
        flush=True,
    )


if __name__ == "__main__":
    main()
