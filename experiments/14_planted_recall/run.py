"""Planted recall: who finds the heads that must see everything, when every choice can be judged?

    python experiments/14_planted_recall/run.py train judge find draw table [--smoke]

A checkpoint is a small decoder that has learned planted recall (`train`). `judge` says what it
loses under every choice of heads with full attention, the others having a window of 8 keys; `find`
runs each method in a study of its own, whose masks are looked up there, `draw` those that draw at
random; `table` sets what they found against the best choice of each size, here and in README.md.
Every stage goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import regret
import torch
from every_choice import Tabulated, every_loss
from learning import SPREAD, LookupEvaluator, learn

import masksearch as ms
from masksearch import masks
from masksearch.masks.baselines import widest_window
from masksearch.masks.measure import effective_density
from masksearch_decoders import CausalEvaluator, kv_bytes
from masksearch_decoders.tasks.recall import Recall

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from experiments.rivals import as_strategy  # noqa: E402
from experiments.rivals.attention_mass import attention_mass  # noqa: E402
from experiments.rivals.first_order import first_order, flip  # noqa: E402
from experiments.rivals.greedy_removal import GreedyRemoval  # noqa: E402
from experiments.rivals.switch import switch  # noqa: E402
from experiments.rivals.trained_models import score_units  # noqa: E402

TASKS = {"recall": Recall(), "far recall": Recall(pairs=6, middle=40)}
CHECKPOINTS = [  # architecture, process, seed
    *(("llama", "recall", seed) for seed in range(4)),
    *(("qwen3", "recall", seed) for seed in range(3)),
    *(("llama", "far recall", seed) for seed in range(3)),
    # in the place of those that do not learn to answer
    *(("llama", "recall", seed) for seed in range(4, 8)),
    *(("qwen3", "recall", seed) for seed in range(3, 6)),
    *(("llama", "far recall", seed) for seed in range(3, 6)),
]
WANTED = 10
WINDOW = masks.window(7)
TRAINING = {"size": "3x64x4", "batch": 64, "lr": 3e-3, "steps": 1500}
TRAINING |= {"initializer_range": SPREAD}
LEARNT = 0.99  # share of questions that a checkpoint answers without a mask
LARGEST = regret.LARGEST
GATES = {"structure": "switch", "levels": (WINDOW, "full()"), "unit": "head"}
SWITCHES = {"steps": 300, "gate_lr": 0.05}
HEADS = {"levels": (WINDOW, "full()"), "unit": "head"}
RIVALS = {"mass": attention_mass, "gradient": first_order, "flip": flip, "switch": switch}
SAMPLED, SEEDS = ("random", "tpe", "evolution"), 3  # search seeds of each
LAST = "allocate greedy removal, 3 tries"  # method of `find`
Checkpoint = tuple[str, str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--runs", type=Path, default=Path("runs/14_planted_recall"))
    parser.add_argument("--checkpoints", type=int, nargs="*", help="their numbers; all of them")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "the strategy has no more masks|.*a mask that had been")
    every = CHECKPOINTS[:1] if given.smoke else CHECKPOINTS
    for checkpoint in [every[at] for at in given.checkpoints or range(min(WANTED, len(every)))]:
        for stage in given.stages:
            if stage in ("train", "table") or learnt(given, checkpoint):
                STAGES[stage](given, checkpoint)


# -- checkpoints ---------------------------------------------------------------------------------
def name_of(checkpoint: Checkpoint) -> str:
    """Of a checkpoint, in results and as a folder."""
    return "_".join(map(str, checkpoint)).replace(" ", "_")


def evaluator(given: argparse.Namespace, checkpoint: Checkpoint) -> LookupEvaluator:
    """Judges masks on a checkpoint; the seed says which."""
    architecture, process, _ = checkpoint
    task, training = TASKS[process], TRAINING
    if given.smoke:
        task = Recall(pairs=2, keys=4, values=4, fillers=4, middle=8)
        training = TRAINING | {"size": "2x32x2", "steps": 400, "batch": 32, "lr": 5e-3}
    return LookupEvaluator(
        task,
        architecture=architecture,
        adapt="none",
        held_out_sequences=128,
        cache=given.runs / "cache",
        device="cpu",
        **training,
    )


def units_of(judge: CausalEvaluator) -> ms.Units:
    """Heads, each with the window or everything."""
    return ms.Units(judge.shape, (WINDOW, masks.full()))


@contextmanager
def timed(place: Path, name: str) -> Iterator[None]:
    """Adds the CPU seconds of a block to those that are known of a checkpoint."""
    begun, path = time.process_time(), place / "seconds.json"
    yield
    known = json.loads(path.read_text()) if path.is_file() else {}
    known[name] = known.get(name, 0.0) + time.process_time() - begun
    path.write_text(json.dumps(known))


def train(given: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Trains a checkpoint, and says whether it has learned to answer."""
    place, seed = given.runs / name_of(checkpoint), checkpoint[2]
    if (place / "dense.json").is_file():
        return
    place.mkdir(parents=True, exist_ok=True)
    judge = evaluator(given, checkpoint)
    with timed(place, "train"):
        steps = learn(judge, seed)
    *_, last = judge(masks.full(), seed=seed, workdir=place / "judged")
    told = {"steps": steps, "nll": last.values["nll"], "recall": last.values["recall"]}
    print(*checkpoint, told, flush=True)
    (place / "dense.json").write_text(json.dumps({**told, "floor": judge.task().floor}))


def learnt(given: argparse.Namespace, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint answers, so that masks can be compared on it."""
    told = json.loads((given.runs / name_of(checkpoint) / "dense.json").read_text())
    return bool(told["recall"] >= LEARNT or given.smoke)


def judge_all(given: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """The loss of every choice; some are judged by the evaluator too.

    Raises:
        ValueError: If the two differ.
    """
    place, seed = given.runs / name_of(checkpoint), checkpoint[2]
    if (place / "losses.npy").is_file():
        return
    judge = evaluator(given, checkpoint)
    units = units_of(judge)
    with timed(place, "judge"):
        losses = every_loss(judge, seed, units.levels)
    for number in np.random.default_rng(seed).integers(len(losses), size=12).tolist():
        mask = units.mask([int(each) for each in regret.bits(number, len(units.names))])
        *_, last = judge(mask, seed=seed, workdir=place / "judged")
        if abs(losses[number] - last.values["nll"]) > 1e-5:
            raise ValueError(f"{mask}: {losses[number]} in bulk, {last.values['nll']} alone")
    np.save(place / "losses.npy", losses)


# -- methods -------------------------------------------------------------------------------------
class FewHeads:
    """A space of the choices that are asked for: first how many heads, then which."""

    def __init__(self, units: ms.Units) -> None:
        self.units, self.masksearch_source = units, f"{LARGEST} of {units.masksearch_source}"

    def __call__(self, trial: Any) -> masks.Mask:
        heads = len(self.units.names)
        order = list(range(heads))
        for place in range(trial.suggest_int("raised", 1, min(LARGEST, heads))):
            picked = trial.suggest_int(f"pick{place}", place, heads - 1)
            order[place], order[picked] = order[picked], order[place]
        raised = order[: trial.params["raised"]]
        return self.units.mask([int(unit in raised) for unit in range(heads)])


def methods(
    known: Tabulated, units: ms.Units, switched: Path, smoke: bool
) -> dict[str, dict[str, Any]]:
    """Name -> arguments of `search`; of those that draw, one for each seed of the search. DAM is
    the first, as its switches, left in the run `switched`, are scores of units as well."""
    few, found = FewHeads(units), dict[str, dict[str, Any]]()
    sizes = [(1,) * size + (0,) * (len(units.names) - size) for size in range(1, LARGEST + 1)]
    densities = [units.density(one) for one in sizes if len(one) == len(units.names)]
    switches = {"steps": 10} if smoke else SWITCHES
    options = {"gates": GATES, "config": switches, "densities": densities}
    found["dam switches"] = {"strategy": "dam", "strategy_options": options}
    allocations: dict[str, dict[str, Any]] = {
        "restore": {"method": "restore"},
        "ablate": {"method": "ablate"},
        **{
            name: {"method": partial(score_units, known, units, own, 0)}
            for name, own in RIVALS.items()
        },
        "gates": {"method": partial(find_gates, switched)},
        "greedy addition": {"method": "greedy"},
        "greedy addition, 3 tries": {"method": "greedy", "tries": 3},
    }
    for name, own in allocations.items():
        own = {**HEADS, **own}
        found[f"allocate {name}"] = {"strategy": "allocate", "strategy_options": own}
    for name, tries in (("greedy removal", None), ("greedy removal, 3 tries", 3)):
        found[f"allocate {name}"] = {"strategy": GreedyRemoval(units, known.objectives, tries)}
    for name in SAMPLED:
        for seed in range(1 if smoke else SEEDS):
            found[f"{name} {seed}"] = {"space": few, "strategy": as_strategy(name), "seed": seed}
    return found


def find_gates(run: Path) -> Path:
    """The file of gates that a search by DAM has left, in whichever attempt."""
    return run / next(r.artifacts["gates"] for r in ms.open_study(run).records() if not r.number)


def find(given: argparse.Namespace, checkpoint: Checkpoint, drawn: bool = False) -> None:
    """Each method in a study of its own: those that draw at random, or the others."""
    place, judge = given.runs / name_of(checkpoint), evaluator(given, checkpoint)
    units = units_of(judge)
    known = Tabulated(judge, checkpoint[2], units, np.load(place / "losses.npy"))
    wanted = 8 if given.smoke else regret.EVALUATIONS
    path = place / "judged.json"
    judged: dict[str, list[int]] = json.loads(path.read_text()) if path.is_file() else {}
    switched = place / "dam_switches"
    for name, arguments in methods(known, units, switched, given.smoke).items():
        sampled = name.partition(" ")[0] in SAMPLED
        if name in judged or sampled != drawn:
            continue
        run, trials = place / name.replace(" ", "_").replace(",", ""), wanted
        if name.startswith("allocate"):
            trials = 100  # to its end: greedy removal needs more to come down to one head
        with timed(place, name):
            options = dict(arguments.get("strategy_options", {}))
            if callable(options.get("method")):  # scores of a rival, or a file
                options["method"] = options["method"]()
            while True:
                study = ms.search(
                    arguments.get("space"),
                    known,
                    run=run,
                    trials=trials,
                    seed=arguments.get("seed", checkpoint[2]),
                    strategy=arguments["strategy"],
                    strategy_options=options,
                    progress=None,
                )
                found = numbers(study, known)
                trials += wanted - len(found)  # a mask that was drawn again costs nothing
                if not sampled or len(found) >= wanted or trials > 3 * wanted:
                    break
        judged[name] = found
        path.write_text(json.dumps(judged))
        print(*checkpoint, name, len(found), flush=True)


def numbers(study: ms.Study, known: Tabulated) -> list[int]:
    """The masks that a study has judged, each once, in order, as places in the table."""
    masks_judged = [r.mask for r in study.records() if r.scored and r.mask is not None]
    return list(dict.fromkeys(known.number_of(mask) for mask in masks_judged))


# -- results -------------------------------------------------------------------------------------
def table(given: argparse.Namespace, _: Checkpoint) -> None:
    """Writes what is known of all checkpoints whose searches have ended, and prints the table."""
    out = given.runs / "results" if given.smoke else HERE / "results"
    out.mkdir(parents=True, exist_ok=True)
    names = [name_of(each) for each in CHECKPOINTS]
    found = [name for name in names if (given.runs / name / "judged.json").is_file()]

    def read(name: str, file: str) -> dict[str, Any]:
        """A file of a checkpoint."""
        return json.loads((given.runs / name / file).read_text())

    ended = [name for name in found if LAST in read(name, "judged.json")]
    if not ended:
        print("no checkpoint that has learned has been searched to the end: no table", flush=True)
        return
    losses = {name: np.load(given.runs / name / "losses.npy") for name in ended}
    np.savez_compressed(out / "losses.npz", **losses)
    for file in ("judged", "seconds", "dense"):
        told = {name: read(name, f"{file}.json") for name in ended}
        (out / f"{file}.json").write_text(json.dumps(told, indent=1).replace(",\n   ", ",") + "\n")
    each = regret.regrets(losses, {name: read(name, "judged.json") for name in ended})
    each.to_csv(out / "regret.csv", index=False, float_format="%.5g")
    whole = regret.summary(each)
    print(whole.to_string(index=False), flush=True)
    if not given.smoke:
        page = HERE / "results" / "notes.md"
        page.write_text(regret.on_page(page.read_text(encoding="utf-8"), whole), encoding="utf-8")


def window(given: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """What the widest window in every head loses that costs no more than so many full heads, by
    pairs of tokens and by bytes of the cache: see [changed.one_window] in plan.toml.

    Raises:
        ValueError: If the checkpoint is not the one whose losses are kept.
    """
    out = (given.runs / "results" if given.smoke else HERE / "results") / "one_window.csv"
    known, name = pd.read_csv(out) if out.is_file() else pd.DataFrame(), name_of(checkpoint)
    if not known.empty and name in set(known.checkpoint):
        return
    if given.smoke:
        losses = np.load(given.runs / name / "losses.npy")
    else:
        with np.load(HERE / "results" / "losses.npz") as stored:
            losses = stored[name]
    judge, seed = evaluator(given, checkpoint), checkpoint[2]
    units, place = units_of(judge), given.runs / name / "judged"

    def loss(mask: masks.Mask) -> float:
        """Nats a token."""
        *_, last = judge(mask, seed=seed, workdir=place)
        return float(last.values["nll"])

    heads = len(units.names)
    for number in np.random.default_rng(seed).integers(len(losses), size=12).tolist():
        one = loss(units.mask([int(each) for each in regret.bits(number, heads)]))
        if abs(one - losses[number]) > regret.NEAR:
            raise ValueError(f"choice {number} of {name}: {one}, and {losses[number]} is kept")
    raised = np.array([number.bit_count() for number in range(len(losses))])
    length = judge.shape.length
    costs: dict[str, Callable[[masks.Mask], float]] = {
        "pairs": lambda mask: effective_density(mask, judge.shape),
        "bytes": lambda mask: kv_bytes(mask, judge.config, length, cache_layout="head").share,
    }
    rows = []
    for size in range(1, min(LARGEST, heads) + 1):
        some = units.mask([1] * size + [0] * (heads - size))
        best = float(losses[raised <= size].min())
        for of, cost in costs.items():
            mask = widest_window(cost(some), cost, length, WINDOW)
            row = {"checkpoint": name, "budget": size, "of": of, "mask": str(mask)}
            rows.append({**row, "loss": loss(mask), "best": best})
    pd.concat([known, pd.DataFrame(rows)]).to_csv(out, index=False, float_format="%.6g")
    print(pd.DataFrame(rows).to_string(), flush=True)


STAGES = {
    "train": train,
    "judge": judge_all,
    "find": find,
    "draw": partial(find, drawn=True),
    "table": table,
    "window": window,
}

if __name__ == "__main__":
    main()
