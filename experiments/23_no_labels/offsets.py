"""Drawn masks without the diagonal on the embedding model, as offsets.toml plans them.

    python experiments/23_no_labels/offsets.py --data FOLDER [--parts sts-b ..]

The texts of the stored searches choose. What has ended is a line of results/offsets/.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

import embedder
import lines
import numpy as np
import offset_masks
import run
import tables
import texts
import torch

import masksearch as ms
from masksearch import masks
from masksearch.masks.measure import unit_densities

PLAN = tomllib.loads(Path(__file__).with_name("offsets.toml").read_text(encoding="utf-8"))
(BESIDE,) = PLAN["beside"]  # its last layer is read off DAM's mask
RESULTS = embedder.HERE / "results"
AGAIN = ("sts-b", 0, 0.12)  # whose drawn mask is scored again: are the lines reproduced?


class Undrawn(embedder.Embedded):
    """One of the stored searches, and the drawn masks that its list lacked."""

    seen: dict[tuple[str, ms.Mask], tuple[float, np.ndarray]] = {}  # noqa: RUF012  of all searches

    def __init__(self, given: argparse.Namespace, part: str, seed: int) -> None:
        super().__init__(given, part, seed)
        self.stored = tables.read(RESULTS / f"{part}_{seed}.jsonl")

    def offsets(self, budget: float) -> run.Named:
        """Both families, filled up to the budget."""
        drawn = offset_masks.families(budget, self.shape, None)
        return {f"hand {budget}: {name}": mask for name, mask in drawn.items()}

    def profile(self, budget: float) -> ms.Mask:
        """Near offsets by head, and a last layer as full as that of DAM's mask."""
        (word,) = (
            line["mask"]
            for line in self.stored
            if (line["stage"], line.get("arm"), line.get("budget")) == ("search", "dam", budget)
        )
        kept = np.mean(unit_densities(lines.unpacked(word), self.shape)[-1])
        full = round(self.shape.heads * float(kept))
        others = [masks.columns(1)] * (self.shape.heads - full)
        last = masks.per_head([masks.full()] * full + others)
        return offset_masks.families(budget, self.shape, last)["near offsets by head"]

    def judged_by(self, mask: ms.Mask) -> tuple[float, np.ndarray]:
        """The score of a part; of equal masks of several searches once."""
        key = self.judging, mask
        if key not in self.seen:
            self.seen[key] = super().judged_by(mask)
        return self.seen[key]

    def draw(self, budget: float) -> None:
        """Chooses and judges, where that has not ended."""
        if (self.part, self.seed, budget) == AGAIN:
            name = lines.best_hand(self.stored, budget)
            for rows in ("choice", "judge"):
                self.score({f"again, {name}": self.hand_designed(budget)[name]}, rows)
        named = {**self.offsets(budget), f"{BESIDE} {budget}": self.profile(budget)}
        self.score(named, "choice")
        best = lines.best_hand(self.lines.lines, budget)
        self.score({name: named[name] for name in (best, f"{BESIDE} {budget}")}, "judge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="squad/, glue/, wikitext-2/")
    parser.add_argument("--parts", nargs="+", choices=PLAN["parts"], default=[*PLAN["parts"]])
    parser.add_argument("--runs", type=Path, default=Path("runs/23_offsets"))
    parser.add_argument("--results", type=Path, default=RESULTS / "offsets")
    given = parser.parse_args()
    given.runs, given.weights, given.smoke = given.runs.resolve(), run.offline_model(), False
    torch.set_num_threads(1)
    for part in given.parts:
        for budget in PLAN["parts"][part]:
            for seed in texts.PARTS[part]["seeds"]:
                Undrawn(given, part, seed).draw(budget)


if __name__ == "__main__":
    main()
