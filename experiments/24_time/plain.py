"""The plain ways to make long rows faster, beside the masks of tiles that were found.

    python experiments/24_time/plain.py --data FOLDER                    # dense models, choices
    python experiments/24_time/plain.py --data FOLDER --time             # on an idle machine
    python experiments/24_time/plain.py --data FOLDER                    # judges what is timed

amendment.toml says what is compared; what has ended is a line of results/plain/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import texts
import torch
import transformers
from stretch import stretch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.with_name("22_as_it_is")))
import lines  # noqa: E402
import run  # noqa: E402
from tables import best, named, read, scored  # noqa: E402

from masksearch.analysis.row_scores import ROWS  # noqa: E402
from masksearch.evaluators.glue import GlueEvaluator  # noqa: E402
from masksearch.sparsifier.ways import Measurements, Way  # noqa: E402
from masksearch.tasks.glue.columns import Columns  # noqa: E402

PLAN = texts.PLAN
AMENDMENT = tomllib.loads((HERE / "amendment.toml").read_text(encoding="utf-8"))
HALF = torch.bfloat16
BATCH = PLAN["target"]["batch"]
Named = dict[str, Way]


class Plain(run.Model):
    """One dense model of a task, and the plain ways on it.

    Args:
        given: The command line.
        task: A table of the plan's `tasks`.
        seed: Of the fine-tuning.
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
        """Judges on rows, as it is."""
        how = PLAN["model"] | {"rows": None, "dev_rows": None} | self.plan["model"]
        how |= {"split": run.SPLITS[read], "tasks": Columns(("text",), "label"), "adapt": "none"}
        how |= {"weights": self.folder, "cache": self.given.runs / "cache"} | settings
        return GlueEvaluator(None, self.rows, **how)

    def measurements(self, read: str) -> Measurements:
        """Times and scores of ways on this model."""
        return Measurements(self.evaluator(read), self.seed, self.runs / "ways.json", BATCH, False)

    @cached_property
    def cuts(self) -> Named:
        """Inputs of at most so many tokens."""
        lengths = (AMENDMENT["smoke"] if self.given.smoke else AMENDMENT)["lengths"]
        return {
            f"cut {kind} {most}": Way(cut=most, ends=kind == "ends")
            for most, kind in product(lengths, ("head", "ends"))
        }

    @cached_property
    def found(self) -> Named:
        """The mask of tiles that 24 found on the model of this seed."""
        own = read(HERE / "results" / f"{self.task}_{self.seed}.jsonl")
        [line] = [each for each in own if each["stage"] == "search" and each["arm"] == "dam"]
        return {"dam": Way(mask=lines.unpacked(line["mask"]))}

    def choose(self) -> bool:
        """Makes the dense model and scores what is to be chosen from; whether it has learned."""
        if not self.fine_tune():
            return False
        self.add_scores(self.cuts, "choice")
        return True

    def judge(self, fast: set[str]) -> None:
        """Scores on judging rows what the rows that choose prefer among the fast enough."""
        known = [each for each in scored(self.lines.lines, "choice", "cut ")
                 if each["name"] in fast]  # fmt: skip
        name = best(each | {"density": self.cuts[each["name"]].cut} for each in known)["name"]
        found = {"dense": Way(), name: self.cuts[name]} | ({} if self.given.smoke else self.found)
        self.add_scores(found | {"bfloat16": Way(dtype=HALF)}, "judge")  # slow without its units

    def add_scores(self, ways: Named, part: str) -> None:
        """Writes the score of ways on rows, where it is missing."""
        measured = self.measurements(part)
        for name, way in ways.items():
            if named(self.lines.lines, part, name) is None:
                begun = time.process_time()
                value, found = measured.scores(way)
                line = {"stage": "score", "rows": part, "name": name,
                        "score": float(f"{value:.7g}")}  # fmt: skip
                if part == "judge":
                    found.rows.save(self.runs)
                    line["each"] = lines.row_scores(self.runs / ROWS)
                line["seconds"] = round(time.process_time() - begun, 1)
                self.lines.add(line)

    def time(self, out: lines.Lines) -> None:
        """Lines of how many times as fast as dense each way is: of the first rows of searches."""
        measured = self.measurements("search")
        for dtype in ("float32", "bfloat16"):
            base = replace(measured, full=replace(measured.full, precision=dtype))
            made = {"sorted": Way(by_length=True)} | self.cuts
            made |= {} if self.given.smoke else self.found
            if dtype == "bfloat16":
                made = {name: replace(way, dtype=HALF) for name, way in made.items()}
            else:
                made["bfloat16"] = Way(dtype=HALF)
            left = {
                n: w for n, w in made.items() if not out.of(task=self.task, name=n, beside=dtype)
            }
            for name, times in base.times(left, self.task).items() if left else ():
                out.add({"task": self.task, "name": name, "beside": dtype, "times": times,
                         "rows": base.about})  # fmt: skip


def fast_enough(path: Path, task: str, target: float) -> set[str]:
    """The cuts whose lower quartile meets the target in float32; none before they are timed."""
    found = map(json.loads, path.read_text("utf-8").splitlines()) if path.is_file() else ()
    own = [line for line in found if line["task"] == task and line["beside"] == "float32"]
    return {line["name"] for line in own if line["times"][0] >= target}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="imdb-long/, english-novels/")
    parser.add_argument("--weights", type=Path, help="a checkpoint; default: the offline extra's")
    parser.add_argument("--tasks", nargs="+", choices=PLAN["tasks"], default=[*PLAN["tasks"]])
    parser.add_argument("--seeds", type=int, nargs="+", default=AMENDMENT["models"])
    parser.add_argument("--runs", type=Path, default=Path("runs/24_plain"))
    parser.add_argument("--results", type=Path, default=HERE / "results" / "plain")
    parser.add_argument("--time", action="store_true", help="time the ways of the first models")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    given.weights = stretch(given.weights or Path(run.offline_model()), given.runs / "stretched")
    run.PLAN["dense"], run.SMOKE_DENSE = PLAN["dense"], PLAN["smoke"]["dense"]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    out, timed = given.results / "times.jsonl", set[str]()
    for seed, task in product(given.seeds, given.tasks):
        model = Plain(given, task, seed)
        if given.time:
            if task not in timed and (model.folder / "config.json").is_file():
                timed.add(task)  # the first that has learned
                model.time(lines.Lines(out))
        elif model.choose():
            fast = fast_enough(out, task, model.plan["target"]["times"])
            if fast:  # timed, on an idle machine
                model.judge(fast)


if __name__ == "__main__":
    main()
