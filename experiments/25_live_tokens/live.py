"""Tokens that no one will look at again: which way of doing less work keeps most, as it is?

    python experiments/25_live_tokens/live.py --data FOLDER [--tasks SST-2 ..] [--limits 2 1]

For each task and seed: fine-tune a dense model; search masks under which tokens die, each arm by
itself; fit plain ways to the same work; choose on other rows; judge. plan.toml says what is
compared; what has ended is a line of results/.
"""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from itertools import combinations, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import torch
import transformers
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.with_name("22_as_it_is"))]
import lines  # noqa: E402
import rows as dealt  # noqa: E402
import run  # noqa: E402
import ways  # noqa: E402
from tables import Line, best, named, scored  # noqa: E402
from ways import Way  # noqa: E402

import masksearch as ms  # noqa: E402
from masksearch import masks  # noqa: E402
from masksearch.analysis.row_scores import ROWS  # noqa: E402
from masksearch.evaluators.glue import GlueEvaluator  # noqa: E402
from masksearch.masks.schedules import THINNED  # noqa: E402
from masksearch.positions.words import word_effects, words_within  # noqa: E402
from masksearch.spaces import token_schedules  # noqa: E402
from masksearch.training.checkpoints import Checkpoints  # noqa: E402
from masksearch.training.loop import TrainConfig  # noqa: E402

PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
ABOVE_CONSTANT = PLAN["models"]["above_constant"]
MASKS = ["effects", "tpe", "random", "hand"]  # arms of masks alone
PLAIN = ["layers", "cut", "layers and cut"]
Named = dict[str, Way]


class Dropping(GlueEvaluator):
    """Judges masks with the tokens left out that die: the same scores in less time."""

    def under(
        self, encoder: nn.Module | None, name: str, mask: ms.Mask, kept: Checkpoints, seed: int
    ) -> nn.Module:
        """As of `FineTuning`, where nothing is trained."""
        head: Any = super().under(encoder, name, mask, kept, seed)
        ms.detach(head)
        ms.attach(head.whole, masks.cropped(mask, self.length), drop_tokens=True)
        return head


class Model(run.Model):
    """One dense model of a task, the searches on it, and what is judged on it.

    Args:
        given: The command line.
        task: One of the plan's.
        seed: Of the fine-tuning; searches have seeds of their own.
    """

    def __init__(self, given: argparse.Namespace, task: str, seed: int) -> None:
        self.given, self.task, self.seed = given, task, seed
        self.plan = PLAN | (PLAN["smoke"] if given.smoke else {})
        self.runs = given.runs / f"{task}_{seed}"
        self.lines = lines.Lines(given.results / f"{task}_{seed}.jsonl")
        if not (given.runs / "rows" / task / "test.tsv").is_file():
            dealt.deal(given.data, given.runs / "rows", task)

    def evaluator(self, read: str, **settings: Any) -> GlueEvaluator:
        """Judges a mask on rows, as it is."""
        how = self.plan["model"] | {"rows": None, "dev_rows": None} | self.plan.get("sizes", {})
        how |= {"split": run.SPLITS[read], "tasks": (self.task,), "adapt": "none"}
        how |= {"weights": self.folder, "cache": self.given.runs / "cache"} | settings
        return Dropping(None, self.given.runs / "rows", **how)

    @cached_property
    def judged_shape(self) -> ms.Shape:
        """The shape of the rows that judge."""
        (tokens,) = self.evaluator("judge").tokens(self.task).dev.values()
        ids = [torch.tensor(tokens.ids[at]) for at in range(len(tokens))]
        padded = [nn.functional.pad(i, (0, self.shape.length - len(i)), value=-1) for i in ids]
        return replace(self.shape, lengths=Counter(map(len, ids)), tokens=torch.stack(padded))

    @cached_property
    def head(self) -> Any:
        """The dense model, nothing of it trained."""
        return self.evaluator("search").dense(self.task, self.seed).requires_grad_(False)

    def learned(self) -> bool:
        """Whether the dense model is far enough above a constant answer; made where it is not
        there."""
        if not self.fine_tune():
            return False
        dense = named(self.lines.lines, "choice", "dense")
        assert dense is not None
        return self.given.smoke or dense["score"] - dense["constant"] >= ABOVE_CONSTANT

    def work(self, fewer: int) -> None:
        """Searches, chooses and judges at the work of so many layers fewer, where that has not
        ended."""
        if self.lines.of(stage="ended", fewer=fewer):
            return
        self.fine_tune()
        limit = ways.limit_of(fewer, self.shape)
        found = self.masks(fewer, limit) | self.plain(fewer, limit)
        self.choose(found, "choice")
        chosen = {}
        for arm in filter(partial(self.has, fewer=fewer), (*MASKS, *PLAIN)):
            name = self.best("choice", f"{arm} {fewer}: ")["name"]
            chosen[name] = found[name]
        chosen |= self.together(fewer, limit)
        self.choose({"dense": Way()} | chosen, "judge")
        self.attended(fewer, limit)
        self.lines.add({"stage": "ended", "fewer": fewer, "limit": round(limit, 5)})

    # -- scores --------------------------------------------------------------------------------
    def choose(self, named_ways: Mapping[str, Way], read: str) -> None:
        """Writes the score of ways on rows, where it is missing."""
        for name, way in named_ways.items():
            if not self.lines.of(stage="score", rows=read, name=name):
                begun = time.process_time()
                self.add_score(name, read, way.on(self.head), begun, way)

    def score(self, named_masks: Mapping[str, ms.Mask], read: str, **about: Any) -> None:
        """As of 22, for the dense model's first scores."""
        self.choose({name: Way(mask) for name, mask in named_masks.items()}, read)

    def add_score(
        self, name: str, read: str, head: Any, begun: float, way: Way | None = None
    ) -> None:
        """Writes a model's score on rows; the work is that of a way, or what it has counted."""
        evaluator = self.cut_evaluator(read, way or Way())
        found = evaluator.scores(head, self.task)
        works = {"work_judged": head.spent / head.of_dense} if way is None else {}
        if way is not None:
            works["work"] = way.work(self.shape)
            works |= {"work_judged": way.work(self.judged_shape)} if read == "judge" else {}
        line = {
            "stage": "score", "rows": read, "name": name,
            "score": float(f"{evaluator.summary(found.values)['glue']:.7g}"),
            "constant": round(evaluator.constant_score, 5),
            **{kind: round(work, 5) for kind, work in works.items()},
            "seconds": round(time.process_time() - begun, 1),
        }  # fmt: skip
        if read == "judge":
            found.rows.save(self.runs)
            line["each"] = lines.row_scores(self.runs / ROWS)
        self.lines.add(line)

    def cut_evaluator(self, read: str, way: Way) -> GlueEvaluator:
        """The evaluator whose rows are cut as a way says."""
        evaluator = self.evaluator(read)
        if way.cut is None:
            return evaluator
        whole = evaluator.tokens(self.task)
        dev = {part: ways.cut_rows(rows, way.cut, way.side) for part, rows in whole.dev.items()}
        cut = replace(whole, train=ways.cut_rows(whole.train, way.cut, way.side), dev=dev)
        return evaluator.holding(tasks={self.task: cut}, start=evaluator.start, digest="cut")

    def best(self, read: str, prefix: str) -> Line:
        """The line that rows prefer, of equal ones that of the least work."""
        found = [line | {"density": line["work"]} for line in self.scored(read, prefix)]
        return best(found)

    def scored(self, read: str, prefix: str) -> list[Line]:
        """The lines of ways whose names begin so, scored on those rows."""
        return scored(self.lines.lines, read, prefix)

    def prefer(self, found: Named) -> tuple[str, Way]:
        """The way that the rows of searches prefer."""
        self.choose(found, "search")
        known = [line for line in self.scored("search", "") if line["name"] in found]
        name = best(line | {"density": line["work"]} for line in known)["name"]
        return name, found[name]

    # -- masks ---------------------------------------------------------------------------------
    def masks(self, fewer: int, limit: float) -> Named:
        """The mask of every search, and all hand-designed schedules."""
        found = {}
        for arm in ("effects", "tpe", "random"):
            path = self.runs / "masks" / f"{arm}_{fewer}.safetensors"
            if not path.is_file():
                begun = time.process_time()
                mask = (
                    self.by_effects(fewer, limit) if arm == "effects" else self.draws(arm, limit)
                )
                path.parent.mkdir(exist_ok=True)
                ms.save_mask(mask, path)
                seconds = round(time.process_time() - begun, 1)
                self.lines.add({"stage": "search", "arm": arm, "fewer": fewer, "seconds": seconds})
            found[f"{arm} {fewer}: found"] = Way(ms.load_mask(path))
        hand = masks.equal_cost_baselines(limit, self.shape, cost=masks.work)
        return found | {f"hand {fewer}: {name}": Way(mask) for name, mask in hand.items()}

    def effects(self, layers: tuple[int, ...] | None = None) -> torch.Tensor:
        """The effects of words on the model's own margin, of all layers or of those left."""
        kept, how = self.runs / f"effects_{layers or 'all'}.pt", self.plan["effects"]
        if not kept.is_file():
            evaluator, model = self.evaluator("search"), Way(layers=layers).on(self.head)
            ms.detach(model.whole)
            drawn = replace(evaluator.trainer, batch=how["batch"]).batches(
                evaluator.tokens(self.task).train, evaluator.order(self.task, self.seed, 2)
            )
            batches = [*islice(drawn, how["rows"] // how["batch"])]
            torch.save(word_effects(model, batches, by="margin"), kept)
        found: torch.Tensor = torch.load(kept, weights_only=True)
        return found

    def by_effects(self, fewer: int, limit: float) -> ms.Mask:
        """Words by their effects: one threshold for all layers, or shares that thin out; what the
        rows of searches prefer."""
        effects = self.effects()
        kept = {"one threshold": words_within(limit, effects, self.shape)}
        for how in THINNED:
            kept[how] = ways.words_by_shares(limit, effects, self.shape, how)
        candidates = {
            f"effects of words {fewer}: {name}": Way(ways.mask_of_words(each))
            for name, each in kept.items()
        }
        return self.prefer(candidates)[1].mask

    def draws(self, arm: str, limit: float) -> ms.Mask:
        """The best mask of as many draws as read the rows of `by_effects`."""
        study = ms.search(
            token_schedules.token_schedules(self.shape),
            self.evaluator("search"),
            run=self.runs / "searches" / f"{arm}_{limit:.4f}",
            trials=self.plan["draws"]["trials"],
            strategy=arm,
            seed=PLAN["seeds"]["searches"] + self.seed,
            work=limit,
            baselines={},
            executor=ms.Local(isolate=False),
            progress=None,
        )
        records = [each for each in study.records() if each.scored and each.mask is not None]
        found = max(records, key=lambda each: (each.values["glue"], -each.measures["work"]))
        assert found.mask is not None
        return found.mask

    # -- plain ways ----------------------------------------------------------------------------
    def fewer_layers(self, fewer: int) -> tuple[int, ...]:
        """The layers that stay, of all sets the one that the rows of searches prefer."""
        sets = combinations(range(self.shape.layers), self.shape.layers - fewer)
        found = {f"without {fewer}: {left}": Way(layers=left) for left in sets}
        layers = self.prefer(found)[1].layers
        assert layers is not None
        return layers

    def plain(self, fewer: int, limit: float) -> Named:
        """Layers fewer, inputs cut at either side, and one layer fewer with inputs cut to the same
        work; each with [CLS] alone in the last layer."""
        found = {f"layers {fewer}: {fewer} fewer": Way(layers=self.fewer_layers(fewer))}
        for side in ("head", "tail"):
            most = ways.cut_within(limit, self.shape)
            found[f"cut {fewer}: {side}"] = Way(cut=most, side=side)
            if fewer > 1:
                layers = self.fewer_layers(fewer - 1)
                most = ways.cut_within(limit, self.shape, layers)
                name = f"layers and cut {fewer}: {fewer - 1} fewer, {side}"
                found[name] = Way(layers=layers, cut=most, side=side)
        return found

    # -- reported ------------------------------------------------------------------------------
    def together(self, fewer: int, limit: float) -> Named:
        """One layer fewer, and on that model words by their effects to the same work."""
        if fewer < 2:
            return {}
        layers = self.fewer_layers(fewer - 1)
        shape = replace(self.shape, layers=len(layers))
        within = limit * ways.dense_work(self.shape) / ways.dense_work(shape)
        kept = words_within(within, self.effects(layers), shape)
        return {f"together {fewer}: words": Way(ways.mask_of_words(kept), layers)}

    def attended(self, fewer: int, limit: float) -> None:
        """Scores the tokens with most attention, of three schedules the one that the rows of
        searches prefer."""
        prefix = f"attended {fewer}: "
        if self.scored("judge", prefix):
            return
        made = {f"{prefix}{how}": ways.attended_shares(limit, self.shape, how) for how in THINNED}
        for name, shares in made.items():
            if not self.lines.of(stage="score", rows="search", name=name):
                self.score_attended(name, shares, "search")
        name = best(line | {"density": 0} for line in self.scored("search", prefix))["name"]
        self.score_attended(name, made[name], "judge")

    def score_attended(self, name: str, shares: list[float], read: str) -> None:
        """Writes the score of the tokens with most attention."""
        head = ways.MostAttended(self.head.whole, shares, self.shape).eval()
        self.add_score(name, read, head, time.process_time())

    # -- trained -------------------------------------------------------------------------------
    def recover(self, fewer: int) -> None:
        """Trains the best mask and the best plain way, by the rows that choose, and the dense
        model, for some steps, and judges them."""
        limit = ways.limit_of(fewer, self.shape)
        found = {"dense": Way()} | self.masks(fewer, limit) | self.plain(fewer, limit)
        names = ["dense"]
        for arms in (MASKS, PLAIN):
            known = [self.best("choice", f"{a} {fewer}: ") for a in arms if self.has(a, fewer)]
            names.append(best(known)["name"])
        for name in names:
            if not self.lines.of(stage="score", name=f"recovered {name}"):
                begun, way = time.process_time(), found[name]
                self.add_score(f"recovered {name}", "judge", self.trained(way), begun, way)

    def has(self, arm: str, fewer: int) -> bool:
        """Whether an arm was scored on rows that choose."""
        return bool(self.scored("choice", f"{arm} {fewer}: "))

    def trained(self, way: Way) -> Any:
        """The dense model after some steps under a way, by labels."""
        how = self.plan["recovery"]
        evaluator = self.cut_evaluator("search", way)
        head = way.on(self.head).requires_grad_(True)
        rows, order = evaluator.tokens(self.task).train, evaluator.order(self.task, self.seed, 1)
        config = TrainConfig(how["steps"], how["lr"])
        with TemporaryDirectory() as folder:
            kept = Checkpoints(Path(folder))
            evaluator.trainer.fit(head.train(), rows, config, kept, order=order, noise=self.seed)
        return head.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument(
        "--tasks", nargs="+", choices=PLAN["tasks"], default=PLAN["primary"]["tasks"]
    )
    parser.add_argument("--models", type=int, default=PLAN["models"]["each"], help="of a task")
    parser.add_argument("--limits", type=int, nargs="+", default=PLAN["limits"]["fewer"])
    parser.add_argument("--recover", action="store_true", help="train under what has been chosen")
    parser.add_argument("--runs", type=Path, default=Path("runs/25_live_tokens"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    run.PLAN["dense"], run.SMOKE_DENSE = PLAN["dense"], PLAN["smoke"]["dense"]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    counts = Counter[str]()
    for seed in range(PLAN["models"]["tried"]):  # a task's next model, until it has as many
        for task in given.tasks:
            if counts[task] == given.models:
                continue
            model = Model(given, task, seed)
            if not model.learned():
                continue
            counts[task] += 1
            for fewer in given.limits:
                model.work(fewer)
            if given.recover and counts[task] <= PLAN["recovery"]["models"]:
                model.recover(PLAN["recovery"]["fewer"])


if __name__ == "__main__":
    main()
