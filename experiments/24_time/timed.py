"""Masks of a kernel's tiles that make long rows faster: does search keep more than drawing does?

    python experiments/24_time/timed.py --data FOLDER [--tasks imdb-long ..] [--seeds 0 1 ..]
    python experiments/24_time/timed.py --data FOLDER --time     # of those that ended, an hour

For each task and seed: fine-tune a dense model; train gates of tiles, and cut a mask that meets
the target of time; choose the best drawn mask that meets it on other rows; judge. plan.toml says
what is compared; what has ended is a line of results/.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import texts
import torch
import transformers
from optuna.trial import BaseTrial
from stretch import stretch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.with_name("22_as_it_is")))
import lines  # noqa: E402
import run  # noqa: E402

import masksearch as ms  # noqa: E402
from masksearch import masks  # noqa: E402
from masksearch.analysis.pareto import ranked  # noqa: E402
from masksearch.evaluators.glue import GlueEvaluator  # noqa: E402
from masksearch.evaluators.speed_target import Target, aim  # noqa: E402
from masksearch.gates.result import DamResult  # noqa: E402
from masksearch.masks.baselines import whole_tiles  # noqa: E402
from masksearch.masks.measure import effective_density  # noqa: E402
from masksearch.models.speed import time_masks  # noqa: E402
from masksearch.spaces import tile_bands  # noqa: E402
from masksearch.tasks.glue.columns import Columns  # noqa: E402

PLAN = texts.PLAN
PASSES = [  # whose models have which arms; the second begins when the first has ended
    (PLAN["seeds"]["models"], ["dam"]),
    (PLAN["seeds"]["samplers"], [each for each in PLAN["arms"] if each != "dam"]),
]
DRAWN = "drawn: "  # begins the names of drawn masks that meet the target


class Timed(run.Model):
    """One dense model of a task, the searches on it, and what is judged and timed on it.

    Args:
        given: The command line.
        task: A table of the plan's `tasks`.
        seed: Of the fine-tuning; searches have seeds of their own.
    """

    def __init__(self, given: argparse.Namespace, task: str, seed: int) -> None:
        self.given, self.task, self.seed = given, task, seed
        self.plan = PLAN | (PLAN["smoke"] if given.smoke else {})
        self.runs = given.runs / f"{task}_{seed}"
        self.rows = given.runs / "rows" / task
        self.lines = lines.Lines(given.results / f"{task}_{seed}.jsonl")
        if not (self.rows / "test.tsv").is_file():
            how = PLAN["tasks"][task] | self.plan.get("rows", {})
            texts.write(texts.deal(given.data, task, how), self.rows)

    def evaluator(self, read: str, **settings: Any) -> GlueEvaluator:
        """Judges a mask on rows, as it is."""
        how = PLAN["model"] | PLAN["gates"] | {"rows": None, "dev_rows": None} | self.plan["model"]
        how |= {"split": run.SPLITS[read], "tasks": Columns(("text",), "label"), "adapt": "none"}
        how |= {"weights": self.folder, "cache": self.given.runs / "cache"} | settings
        return GlueEvaluator(None, self.rows, **how)

    @cached_property
    def target(self) -> Target:
        """The share and the drawn masks that meet the target, timed once for a task."""
        how, kept = self.plan["target"], self.given.runs / "target" / self.task
        rows = self.evaluator("search")
        return aim(how["times"], rows, self.seed, kept, how["batch"], shown=False)

    def work(self, arms: Iterable[str]) -> None:
        """Searches with these arms, chooses and judges, where that has not ended."""
        begun = time.process_time()
        if not self.fine_tune():
            return
        if not self.lines.of(stage="dense"):
            seconds = (
                time.process_time() - begun - sum(each["seconds"] for each in self.lines.lines)
            )
            self.lines.add({"stage": "dense", "seconds": round(seconds, 1)})
        if not self.lines.of(stage="target"):
            begun = time.perf_counter()
            shares = {n: round(effective_density(m, self.shape), 5) for n, m in self.drawn.items()}
            about = {"share": self.target.share, "drawn": shares} | self.target.about
            seconds = round(time.perf_counter() - begun, 1)
            self.lines.add({"stage": "target", "seconds": seconds} | about)
        for arm in arms:
            self.search(arm)
        self.score(self.searched() | self.drawn, "choice")
        self.score(self.judged() | {"dense": masks.full()}, "judge")
        if not self.lines.of(stage="ended"):
            self.lines.add({"stage": "ended"})

    # -- masks ---------------------------------------------------------------------------------
    @cached_property
    def drawn(self) -> run.Named:
        """Of each family of drawn masks the densest that meets the target; after the first model
        of those families that its choosing rows prefer."""
        found = {f"{DRAWN}{name}": mask for name, mask in self.target.drawn.items()}
        first = min(PLAN["seeds"]["models"])
        if self.seed == first:
            return found
        names = Timed(self.given, self.task, first).preferred()[: PLAN["choice"]["families"]]
        if not names:
            raise SystemExit(f"{self.task}: model {first} comes first, which chooses families")
        return {name: found[name] for name in names}

    def search(self, arm: str) -> None:
        """The mask that an arm finds within the target's share, a sparser one if it is slow."""
        if self.file(arm).is_file():
            return
        begun, share, how = time.process_time(), self.target.share, PLAN["arms"][arm]
        evaluator, options, space, trials = self.evaluator("search"), dict[str, Any](), None, 2
        if arm == "dam":
            config = how["options"]["config"] | {"density": share} | self.plan.get("config", {})
            options = how["options"] | {"config": config}
        else:
            trials = self.plan.get("trials") or self.equal_trials(evaluator)
            space = self.space
        study = ms.search(
            space,
            evaluator,
            run=self.run_of(arm, share),
            trials=trials,
            strategy=arm,
            strategy_options=options,
            seed=PLAN["seeds"]["searches"] + self.seed,
            budget=share,
            baselines={},
            executor=ms.Local(isolate=False),
            progress=None,
        )
        best = best_within(study, share)
        cut = self.cut if arm == "dam" else partial(best_within, study)
        mask = self.target.fit(f"{arm} of model {self.seed}", best, cut)
        densities = [round(effective_density(each, self.shape), 5) for each in (best, mask)]
        self.lines.add(
            {"stage": "search", "arm": arm, "trials": sum(each.scored for each in study.records()),
             "densities": densities, "mask": lines.packed(mask),
             "seconds": round(time.process_time() - begun, 1)}
        )  # fmt: skip
        self.file(arm).parent.mkdir(exist_ok=True)
        ms.save_mask(mask, self.file(arm))

    def space(self, trial: BaseTrial) -> ms.Mask:
        """Bands of tiles alike in all layers; to keep the share, heads have the diagonal's."""
        tile_bands.HEADS, tile_bands.LENGTH = self.shape.heads, self.shape.length
        least = whole_tiles(masks.window(0), self.shape.length, self.target.block)
        return ms.trim(trial, tile_bands.space(trial), least)

    def equal_trials(self, evaluator: GlueEvaluator) -> int:
        """As many trials as read DAM's rows: those of its steps forward once and backward twice,
        and those of its mask's score."""
        (rows,) = evaluator.tokens(self.task).dev.values()
        steps = PLAN["arms"]["dam"]["options"]["config"]["steps"]
        return int(3 * steps * PLAN["gates"]["gates_batch"] // len(rows)) + 1

    def cut(self, share: float) -> ms.Mask:
        """DAM's gates cut at a share of the pairs."""
        (path,) = self.run_of("dam", self.target.share).rglob("gates.safetensors")
        return DamResult.load(path).mask(sparsity=1 - share, within=True)

    def file(self, arm: str) -> Path:
        """Where an arm's mask is kept."""
        return self.runs / "masks" / f"{arm}.safetensors"

    def searched(self) -> run.Named:
        """The mask of every arm that has one."""
        files = {arm: self.file(arm) for arm in PLAN["arms"]}
        return {arm: ms.load_mask(path) for arm, path in files.items() if path.is_file()}

    def preferred(self) -> list[str]:
        """The names of drawn masks, those first that the choosing rows prefer."""
        scored = lines.tables.scored(self.lines.lines, "choice", DRAWN)
        scored.sort(key=lambda line: (-line["score"], line["density"]))
        return [line["name"] for line in scored]

    def chosen(self) -> run.Named:
        """The mask of every arm, and the best drawn one."""
        name, *_ = self.preferred()
        return self.searched() | {name: self.drawn[name]}

    def judged(self) -> run.Named:
        """The chosen masks, and on some models those of several speeds."""
        return self.chosen() | (self.front() if self.seed in PLAN["seeds"]["front"] else {})

    def front(self) -> run.Named:
        """DAM's gates and the best families of drawn masks at several shares."""
        how, made = self.plan["front"], dict[str, ms.Mask]()
        names = [name.removeprefix(DRAWN).rpartition(" at ")[0] for name in self.preferred()]
        for share in how["shares"]:
            made[f"front dam {share}"] = self.cut(share)
            each = masks.equal_cost_baselines(share, self.shape, block=self.target.block)
            for name in filter(each.__contains__, names[: how["families"]]):
                made[f"front drawn {share}: {name}"] = each[name]
        return made

    # -- times ---------------------------------------------------------------------------------
    def time(self) -> None:
        """A line of how fast each judged mask is at this hour, dense and all of them in turns in a
        process of its own; those of several speeds are timed once."""
        hour = time.strftime("%Y-%m-%dT%H", time.gmtime())
        chosen = {n: m for n, m in self.chosen().items() if not self.lines.of(name=n, hour=hour)}
        once = {n: m for n, m in self.judged().items() if not self.lines.of(stage="time", name=n)}
        if not (left := once | chosen):
            return
        begun, timed, load = time.perf_counter(), self.target.timings, os.getloadavg()[0]
        how = timed.batches, PLAN["times"]["repeats"], timed.device
        for name, quartiles in time_masks(timed.make(), left, *how).items():
            seconds = (time.perf_counter() - begun) / len(left)
            self.lines.add(
                {"stage": "time", "name": name, "hour": hour, "rows": timed.rows, "load": load,
                 "seconds": round(seconds, 1)}
                | dict(zip(("low", "median", "high"), quartiles, strict=True))
            )  # fmt: skip


def best_within(study: ms.Study, share: float) -> ms.Mask:
    """The best mask of a search within a share of the pairs; where there is none, the sparsest."""
    records = [record for record in study.records() if record.mask is not None]
    best = ranked(records, study.objectives, budget=share, learned=False)
    best = best or sorted(records, key=lambda each: -each.measures["effective_sparsity"])
    assert best[0].mask is not None
    return best[0].mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="imdb-long/, english-novels/")
    parser.add_argument("--weights", type=Path, help="a checkpoint; default: the offline extra's")
    parser.add_argument("--tasks", nargs="+", choices=PLAN["tasks"], default=[*PLAN["tasks"]])
    parser.add_argument("--seeds", type=int, nargs="+", default=PLAN["seeds"]["models"])
    parser.add_argument("--runs", type=Path, default=Path("runs/24_time"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--time", action="store_true", help="time what has ended, at this hour")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    given.weights = stretch(given.weights or Path(run.offline_model()), given.runs / "stretched")
    run.PLAN["dense"], run.SMOKE_DENSE = PLAN["dense"], PLAN["smoke"]["dense"]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    models = [Timed(given, task, seed) for seed, task in product(given.seeds, given.tasks)]
    for model in models if given.time else ():
        if model.lines.of(stage="ended"):
            model.time()
    for seeds, arms in () if given.time else PASSES:
        for model in models:
            if model.seed in seeds:
                model.work(arms)


if __name__ == "__main__":
    main()
