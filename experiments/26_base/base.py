"""What of experiments 22 and 25 holds on another architecture, of base size?

    python experiments/26_base/base.py --data FOLDER --weights all-mpnet-base-v2 [--tasks SST-2 ..]

For each seed and task: fine-tune a dense model; search masks of pairs, and on the first model of a
task masks under which tokens die, beside plain ways; choose on other rows; judge. plan.toml says
what is compared; what has ended is a line of results/.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import optuna
import torch
import transformers

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.with_name("25_live_tokens")), str(HERE.with_name("22_as_it_is"))]
import live  # noqa: E402
import run  # noqa: E402
import ways  # noqa: E402
from live import Named  # noqa: E402
from tables import named, scored  # noqa: E402
from ways import Way  # noqa: E402

import masksearch as ms  # noqa: E402
from masksearch import masks  # noqa: E402
from masksearch.evaluators.glue import GlueEvaluator  # noqa: E402
from masksearch.masks.measure import effective_density  # noqa: E402
from masksearch.sparsifier import ways as cuts  # noqa: E402

PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
MASKS, PLAIN = ("effects", "hand"), ("layers", "cut", "layers and cut")
BOTH_ENDS = "head and tail"


class Base(live.Model):
    """One dense model of a task, the searches on it, and what is judged on it.

    Args:
        given: The command line.
        task: One of the plan's.
        seed: Of the fine-tuning; searches have seeds of their own.
    """

    def __init__(self, given: argparse.Namespace, task: str, seed: int) -> None:
        super().__init__(given, task, seed)
        self.plan = PLAN | (PLAN["smoke"] if given.smoke else {})

    # -- pairs ---------------------------------------------------------------------------------
    def pairs(self, first: Base) -> None:
        """Searches, chooses and judges masks of pairs, where that has not ended."""
        if self.lines.of(stage="ended", what="pairs"):
            return
        budget = PLAN["pairs"]["budget"]
        for arm in PLAN["arms"]:
            self.search(arm, budget)
        found = {
            f"{arm} {budget}": ms.load_mask(self.mask_file(arm, budget)) for arm in PLAN["arms"]
        }
        hand = masks.equal_cost_baselines(budget, self.shape)
        drawn = {f"hand {budget}: {name}": mask for name, mask in hand.items()}
        if first is not self:
            liked = sorted(
                scored(first.lines.lines, "choice", f"hand {budget}: "), key=lambda n: -n["score"]
            )
            kept = [line["name"] for line in liked[: PLAN["pairs"]["families"]]]
            drawn = {name: mask for name, mask in drawn.items() if name in kept}
        self.score(found | drawn, "choice")
        name = self.best("choice", f"hand {budget}: ")["name"]
        judged = {"dense": masks.full(), **found, name: drawn[name]}
        self.score(judged, "judge")
        for name, mask in judged.items():
            shares = [effective_density(mask, s) for s in (self.shape, self.judged_shape)]
            about = {"density": round(shares[0], 5), "density_judged": round(shares[1], 5)}
            self.lines.add({"stage": "share", "name": name, **about})
        self.lines.add({"stage": "ended", "what": "pairs"})

    # -- tokens --------------------------------------------------------------------------------
    def tokens(self, fewer: int) -> None:
        """Searches, chooses and judges masks under which tokens die, and plain ways, at the work
        of so many layers fewer, where that has not ended."""
        if self.lines.of(stage="ended", what="tokens", fewer=fewer):
            return
        limit = ways.limit_of(fewer, self.shape)
        found = self.masks(fewer, limit) | self.plain(fewer, limit)
        self.choose(found, "choice")
        arms = (*MASKS, *PLAIN)
        names = [self.best("choice", f"{arm} {fewer}: ")["name"] for arm in arms]
        self.choose({"dense": Way()} | {name: found[name] for name in names}, "judge")
        about = {"what": "tokens", "fewer": fewer, "limit": round(limit, 5)}
        self.lines.add({"stage": "ended", **about})

    def masks(self, fewer: int, limit: float) -> Named:
        """Words by their effects, and all hand-designed schedules."""
        path = self.runs / "masks" / f"words_{fewer}.safetensors"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            ms.save_mask(self.by_effects(fewer, limit), path)
        hand = masks.equal_cost_baselines(limit, self.shape, cost=masks.work)
        return {f"effects {fewer}: found": Way(ms.load_mask(path))} | {
            f"hand {fewer}: {name}": Way(mask) for name, mask in hand.items()
        }

    def fewer_layers(self, fewer: int) -> tuple[int, ...]:
        """The layers that stay: of all blocks of neighbours that can leave, and of those whose
        single losses are the smallest, what the rows of searches prefer."""
        every = range(self.shape.layers)
        single = {f"without layer {at}": Way(layers=tuple({*every} - {at})) for at in every}
        self.choose(single, "search")
        by_name = {name: named(self.lines.lines, "search", name) for name in single}
        order = sorted(every, key=lambda at: -by_name[f"without layer {at}"]["score"])
        leave = [{*order[:fewer]}]
        leave += [{*every[at : at + fewer]} for at in range(len(every) - fewer + 1)]
        sets = {tuple(sorted({*every} - out)) for out in leave}
        found = {f"without {fewer}: {left}": Way(layers=left) for left in sorted(sets)}
        layers = self.prefer(found)[1].layers
        assert layers is not None
        return layers

    def plain(self, fewer: int, limit: float) -> Named:
        """Layers fewer, inputs cut, and two layers fewer with inputs cut, to the same work; each
        with [CLS] alone in the last layer."""
        found = {f"layers {fewer}: {fewer} fewer": Way(layers=self.fewer_layers(fewer))}
        most, two = ways.cut_within(limit, self.shape), self.fewer_layers(2)
        for side in ("head", BOTH_ENDS):
            found[f"cut {fewer}: {side}"] = Way(cut=most, side=side)
        most = ways.cut_within(limit, self.shape, two)
        found[f"layers and cut {fewer}: head"] = Way(layers=two, cut=most)
        return found

    def cut_evaluator(self, read: str, way: Way) -> GlueEvaluator:
        """The evaluator whose rows are cut as a way says; tokenizers join pairs differently."""
        evaluator = self.evaluator(read)
        if way.cut is None:
            return evaluator
        cut, whole = cuts.Way(cut=way.cut, ends=way.side == BOTH_ENDS), evaluator.tokens(self.task)
        dev = {part: cut.rows(rows) for part, rows in whole.dev.items()}
        held = {self.task: replace(whole, train=cut.rows(whole.train), dev=dev)}
        return evaluator.holding(tasks=held, start=evaluator.start, digest="cut")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", required=True, help="the checkpoint, a folder")
    parser.add_argument("--tasks", nargs="+", choices=PLAN["tasks"], default=PLAN["tasks"])
    parser.add_argument("--models", type=int, default=PLAN["models"]["each"], help="of a task")
    parser.add_argument("--runs", type=Path, default=Path("runs/26_base"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    run.PLAN |= {"dense": PLAN["dense"], "arms": PLAN["arms"]}
    run.SMOKE_DENSE = PLAN["smoke"]["dense"]
    live.ABOVE_CONSTANT = PLAN["models"]["above_constant"]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    counts, first = Counter[str](), dict[str, Base]()
    for seed in range(PLAN["models"]["tried"]):  # a task's next model, until it has as many
        for task in given.tasks:
            model = Base(given, task, seed)
            if counts[task] == given.models or not model.learned():
                continue
            counts[task] += 1
            model.pairs(first.setdefault(task, model))
            if counts[task] <= PLAN["models"]["tokens"]:
                for fewer in PLAN["limits"]["fewer"]:
                    model.tokens(fewer)


if __name__ == "__main__":
    main()
