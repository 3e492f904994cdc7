"""Searches and judges windows of several widths; plan.toml was written before.

    python experiments/20_long/run.py plant check search judge longest tables --data FOLDER

Stages: plant (trains the planted decoders, see plant.py), check (which tasks a decoder can do),
search (every arm), judge (what was found, on unseen documents with other words), longest (masks of
SmolLM2 at 8,192 positions), tables. Results go to results/ as they come: each search with its
trials, each judged mask. It goes on where it was stopped, until the hours of the plan are spent.
"""

from __future__ import annotations

import argparse
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plant
import tables
import torch

import masksearch as ms
from masksearch import masks
from masksearch.analysis.pareto import ranked
from masksearch_decoders import CausalEvaluator
from masksearch_decoders.decoders import convert_gguf
from masksearch_decoders.next_tokens import score_tokens

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
METHODS = {"levels": "exchange", "solver": "restore", "narrow": "greedy"}
QUESTION = 16  # tokens in front of an answer that are taken with it
SMOKE = {"length": 64, "search": [4, 16], "judge": [4, 3], "windows": [8, 16], "trials": 12}
SMOKE |= {
    "arms": {"levels": [2, 0], "narrow": [1, 0], "random": [1, 0]},
    "budgets": [0.5],
    "longest": [128, 2, 2],
    "longest_arms": ["dense", "uniform", "levels"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    stages = ["plant", "check", "search", "judge", "longest", "tables"]
    parser.add_argument("stages", nargs="+", choices=stages)
    parser.add_argument("--data", type=Path, help="holds english-novels/")
    parser.add_argument("--weights", type=Path, help="GGUF file of SmolLM2; None = without it")
    parser.add_argument("--runs", type=Path, default=Path("runs/20_long"))
    parser.add_argument("--decoders", nargs="*", help="default: those of the plan")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--samples", nargs="*", type=int, help="searches; default: all")
    parser.add_argument("--budgets", nargs="*", type=float, help="of searches; default: all")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = given.runs / "results" if given.smoke else HERE / "results"
    out.mkdir(parents=True, exist_ok=True)
    plant.add_tasks()
    log = Log(out, PLAN["hours"])
    for stage in given.stages:
        if stage == "tables":
            tables.write(out)
            continue
        for name in given.decoders or PLAN["decoders"]:
            planted, begun = name.startswith("planted"), time.process_time()
            if stage != "plant" and (planted or given.weights):
                getattr(Decoder(name, given, log), stage)()
            elif planted and plant.make(given.runs / name, given.smoke):
                log.spend(begun, f"plant {name}")


@dataclass(frozen=True)
class Log:
    """The tables in results/, and the hours that they tell of."""

    out: Path
    hours: float

    def read(self, name: str) -> pd.DataFrame:
        path = self.out / f"{name}.csv"
        return pd.read_csv(path) if path.is_file() else pd.DataFrame()

    def add(self, name: str, lines: list[dict[str, Any]] | pd.DataFrame) -> None:
        """Appends lines to a table."""
        path, table = self.out / f"{name}.csv", pd.DataFrame(lines)
        table.to_csv(path, mode="a", header=not path.is_file(), index=False, float_format="%.5g")

    def lacks(self, name: str, **keys: object) -> bool:
        """Whether a table has no such line; SystemExit where the hours are spent."""
        table, spent = self.read(name), self.read("hours")
        if len(spent) and spent.seconds.sum() > 3600 * self.hours:
            raise SystemExit(f"the {self.hours} hours of the plan are spent")
        same = [table[key] == value for key, value in keys.items() if len(table)]
        return not same or not pd.concat(same, axis=1).all(axis=1).any()

    def spend(self, begun: float, what: str) -> None:
        """Notes the time of this process since then."""
        self.add("hours", [{"what": what, "seconds": round(time.process_time() - begun)}])
        print(what, f"{time.process_time() - begun:.0f} s", flush=True)


@dataclass(frozen=True)
class Cell:
    """A search: the documents that it searches by, its budget and its arm."""

    sample: int
    budget: float
    arm: str

    def __str__(self) -> str:
        return f"{self.arm} {self.budget:g} {self.sample}"


class Decoder:
    """A decoder, its searches, and what they found on rows that none of them has seen."""

    def __init__(self, name: str, given: argparse.Namespace, log: Log) -> None:
        self.name, self.log, self.runs, self.given = name, log, given.runs / name, given
        kind = name.partition("-")[0]
        self.plan = {**PLAN[kind], **(SMOKE if given.smoke else {})}
        if kind == "planted":
            self.weights, self.text = self.runs, self.runs / "text"
        else:
            self.weights = convert_gguf(given.weights)
            self.text = link_novels(given.data / "english-novels", self.runs / "text")
        self.whole = self.judge_by("search", "search-0")
        self.cost = self.whole.cost

    def judge_by(self, part: str, held_out: str, length: int = 0, tasks: bool = True) -> Any:
        """What judges masks, by the plan's rows for a part of it."""
        rows, task_rows = self.plan[part][-2:]
        return CausalEvaluator(
            self.text / "train",
            weights=self.weights,
            held_out=self.text / held_out,
            length=length or self.plan["length"],
            held_out_sequences=rows,
            tasks=self.plan["tasks"] if tasks else (),
            task_rows=task_rows,
            cost="kv_bytes" if self.plan["unit"] == "layer" else "kv_bytes_per_head",
            adapt="none",
            device=self.given.device,
            precision="float32",
        )

    def windows(self, times: int = 1) -> list[ms.Mask]:
        """Windows of the plan's numbers of keys, so many times as wide; with its sinks."""
        each = [masks.window(times * keys) for keys in self.plan["windows"]]
        sinks = self.plan["sinks"]
        return [masks.columns(sinks) | window for window in each] if sinks else each

    # -- search ----------------------------------------------------------------------------------
    def cells(self) -> Iterator[Cell]:
        """The first budget is the primary one."""
        for place, budget in enumerate(self.plan["budgets"]):
            if budget not in (self.given.budgets or [budget]):
                continue
            for arm, samples in self.plan["arms"].items():
                planned = range(samples[min(place, 1)])
                wanted = self.given.samples or planned
                yield from (Cell(n, budget, arm) for n in planned if n in wanted)

    def search(self) -> None:
        """All searches; those of samplers judge as many masks as that of levels."""
        for cell in self.cells():
            if not self.log.lacks("searches", decoder=self.name, **asdict(cell)):
                continue
            begun, run = time.process_time(), self.runs / "searches" / str(cell)
            study = self.run_search(cell, run)
            about = {"decoder": self.name, **asdict(cell)}
            own = [record for record in study.records() if record.status != "reused"]
            values = ["max_nll_increase", "nll", *(f"nll/{task}" for task in self.plan["tasks"])]
            trials = [{**about, "trial": r.number, "status": r.status,
                       "share": r.measures[self.cost], **{n: r.values.get(n) for n in values}}
                      for r in own]  # fmt: skip
            best = ranked(own, study.objectives, budget=cell.budget)[0]
            facts = {
                "trials": len(own),
                "lost": best.values["max_nll_increase"],
                "mask": str(best.mask),
            }
            self.log.add(f"trials_{self.name}_{cell.arm}", trials)
            self.log.add("searches", [about | {"share": best.measures[self.cost]} | facts])
            self.log.spend(begun, f"search {self.name} {cell}")

    def run_search(self, cell: Cell, run: Path) -> ms.Study:
        """One of them, which goes on in its folder."""
        plan, held_out = self.plan, f"search-{cell.sample}"
        judge, windows = self.judge_by("search", held_out), self.windows()
        how: dict[str, Any] = {"run": run, "progress": None}
        if cell.arm not in METHODS:
            levels = (*windows, masks.full())
            units = ms.Units(judge.shape, levels, plan["unit"], judge.kv_head_count)
            done = self.log.read("searches").set_index(["decoder", "sample", "budget", "arm"])
            how |= {"trials": int(done.trials[self.name, cell.sample, cell.budget, "levels"])}
            how |= {"strategy": cell.arm, "seed": cell.sample, "budget": cell.budget}
            how |= {"baselines": {}}
            return ms.search(units, judge, **how)
        method, local = METHODS[cell.arm], windows[:1] if cell.arm == "narrow" else windows
        options = {"unit": plan["unit"], "levels": [*map(str, local), "full()"]}
        options |= {"method": method, "budgets": [cell.budget]}
        options |= {"tries": plan["tries"]} if "tries" in plan and method == "greedy" else {}
        how |= {"strategy": "allocate", "strategy_options": options, "trials": plan["trials"]}
        return ms.search(None, judge, **how)

    # -- judge -----------------------------------------------------------------------------------
    def candidates(self) -> dict[Cell, ms.Mask]:
        """What is judged: hand-designed masks within each budget, and what was found there."""
        made, found = {Cell(0, 1.0, "dense"): masks.full()}, self.log.read("searches")
        price = lambda mask: self.whole.measures_of(mask)[self.cost]  # noqa: E731
        for budget in self.plan["budgets"]:
            shape, local = self.whole.shape, self.windows()[0]
            drawn = masks.equal_cost_baselines(budget, shape, price, local=local)
            made[Cell(0, budget, "uniform")] = drawn["widest window"]
            if "every n-th" in drawn and self.plan["unit"] == "layer":
                made[Cell(0, budget, "every n-th")] = drawn["every n-th"]
        for line in found.to_dict("records"):
            if line["decoder"] == self.name:
                cell = Cell(line["sample"], line["budget"], line["arm"])
                made[cell] = masks.parse(line["mask"])
        return made

    def judged(self, stage: str, candidates: dict[Cell, ms.Mask], length: int) -> None:
        """Nats of every document, by `ms.compare`, and of the answers in every row of a task."""
        text = self.judge_by(stage, "judge", length, tasks=False)
        prompts = self.judge_by(stage, "judge", length).on("holdout")
        for cell, mask in candidates.items():
            if not self.log.lacks(f"{stage}_{self.name}_{cell.arm}", **asdict(cell)):
                continue
            begun, name = time.process_time(), str(cell)
            compared = ms.compare({name: mask}, text, run=self.runs / stage, progress=None)
            entry = compared.entries[name]
            (documents,) = entry.rows.values()
            bands = [(n[4:], *each.values()) for n, each in entry.values.items() if "/at-" in n]
            about = {"stage": stage, "decoder": self.name, "mask": name}
            self.log.add("bands", [{**about, "band": band, "nats": x} for band, x in bands])
            rows = task_rows(prompts, mask)
            rows = rows.join(pd.Series(documents.scores["text"], name="text"), how="outer")
            lines = rows.assign(**asdict(cell)).rename_axis("row").reset_index()
            self.log.add(f"{stage}_{self.name}_{cell.arm}", lines)
            self.log.spend(begun, f"{stage} {self.name} {cell}")

    def judge(self) -> None:
        """Everything that was drawn or found."""
        self.judged("judge", self.candidates(), 0)

    def longest(self) -> None:
        """At a longer length, with windows so many times as wide that their bytes are the same
        share; what the first sample has found."""
        if "longest" not in self.plan:
            return
        length, times = self.plan["longest"][0], self.plan["longest"][0] // self.plan["length"]
        wider = dict(zip(map(str, self.windows()), self.windows(times), strict=True))
        chosen = {}
        for cell, mask in self.candidates().items():
            text = str(mask)
            for narrow, wide in reversed(wider.items()):
                text = text.replace(narrow, f"{wide}")
            if cell.arm in self.plan["longest_arms"] and cell.sample == 0:
                chosen[cell] = masks.parse(text)
        self.judged("longest", chosen, length)

    def check(self) -> None:
        """What dense attention loses on each task, with its context and behind another row's: a
        task counts where that tells. Draws and documents are those of no other stage."""
        prompts, swapped = self.judge_by("search", "pilot").on("all"), {}
        for name, rows in prompts.prompts.items():
            first = rows.answers.int().argmax(1)
            own = torch.arange(rows.tokens.shape[1]) >= (first - QUESTION)[:, None]
            swapped[name] = torch.where(own, rows.tokens, rows.tokens.roll(1, 0))
        for form, tokens in {"dense": {}, "without": swapped}.items():
            if self.log.lacks(f"check_{self.name}", form=form):
                begun, about = time.process_time(), {"decoder": self.name, "form": form}
                mean = dict(task_rows(prompts, masks.full(), tokens).mean())
                self.log.add(f"check_{self.name}", [about | mean])
                self.log.spend(begun, f"check {self.name} {form}")


def task_rows(judge: Any, mask: ms.Mask, instead: Any = {}) -> pd.DataFrame:  # noqa: B006
    """Mean nats of the answers' tokens, row by row, a column for each task; `right` is the share
    of tasks in which each of the tokens is the likeliest."""
    columns, right = {}, []
    with judge.dense_decoder(0).under(mask) as model:
        for name, rows in judge.prompts.items():
            scores = score_tokens(model, instead.get(name, rows.tokens), answers=True)
            columns[name] = (scores.nll * rows.answers).sum(1) / rows.answers.sum(1)
            right.append((scores.right | ~rows.answers).all(1))
    return pd.DataFrame(columns | {"right": torch.stack(right).float().mean(0)})


def link_novels(novels: Path, text: Path) -> Path:
    """Novels as experiment 10 splits them; half of the others search, and the rest judge."""
    for number, path in enumerate(sorted(novels.glob("*.txt"))):
        spare = number % 4 == 3 and number < 32  # experiment 10's training novels
        for part in ["pilot" if number > 3 else "train"] if spare else ["search-0", "judge"]:
            link = text / part / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path.resolve())
    return text


if __name__ == "__main__":
    main()
