"""Drawn masks without the diagonal on 22's models, as offsets.toml plans them.

    python experiments/22_as_it_is/offsets.py --data FOLDER --amended FOLDER [--models SST-2_0 ..]

Dense models are made anew; the amendment's lines have DAM's masks and the drawn ones that were
chosen. What has ended is a line of results/offsets/.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import amend
import lines
import offset_masks
import run
import tables
import torch
import transformers

import masksearch as ms
from masksearch import masks

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "offsets.toml").read_text(encoding="utf-8"))
BUDGET = PLAN["offsets"]["budget"]
MODELS = [f"{task}_{seed}" for task, seeds in PLAN["models"].items() for seed in seeds]
AMENDMENT = tomllib.loads((HERE / "amendment.toml").read_text(encoding="utf-8"))


class Undrawn(amend.Amended):
    """A dense model of the amendment, made anew, and the drawn masks that its list lacked."""

    def __init__(self, given: argparse.Namespace, name: str) -> None:
        task, _, seed = name.rpartition("_")
        super().__init__(given, AMENDMENT, task, int(seed))
        self.stored = tables.read(given.amended / f"{name}.jsonl")

    def dam(self) -> ms.Mask:
        """DAM's mask of the lines: 22's, or the amendment's where 22 has no such model."""
        both = (*amend.EARLIER.get((self.task, self.seed), []), *self.stored)
        (word,) = (
            line["mask"]
            for line in both
            if (line["stage"], line.get("arm"), line.get("budget")) == ("search", "dam", BUDGET)
        )
        return lines.unpacked(word)

    def score(self, named: Mapping[str, ms.Mask], read: str, **about: Any) -> None:
        """As of the amendment, but for rows of searches, which nothing needs here."""
        if read != "search":
            super().score(named, read, **about)

    def work(self) -> None:
        """Chooses and judges, if that has not ended."""
        self.fine_tune()
        families = offset_masks.families(BUDGET, self.shape, masks.full())
        named = {f"hand {BUDGET}: {name}": mask for name, mask in families.items()}
        self.score(named, "choice")
        best = lines.best_hand(self.lines.lines, BUDGET)
        earlier = lines.best_hand(self.stored, BUDGET)
        judged: run.Named = {"dense": masks.full(), best: named[best], f"dam {BUDGET}": self.dam()}
        self.score(judged | {earlier: self.hand_designed(BUDGET)[earlier]}, "judge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--amended", type=Path, required=True, help="results/amended")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--runs", type=Path, default=Path("runs/22_offsets"))
    parser.add_argument("--results", type=Path, default=HERE / "results" / "offsets")
    given: Any = parser.parse_args()
    given.runs, given.weights, given.smoke = given.runs.resolve(), None, False
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in given.models:
        Undrawn(given, name).work()


if __name__ == "__main__":
    main()
